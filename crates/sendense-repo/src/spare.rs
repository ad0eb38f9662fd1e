//! A little room that a repository keeps for itself, so that room can be made where there is none.
//!
//! A deletion writes a folder and a list before it frees anything, and a hub that cannot renew its lease deletes nothing at all. Others
//! on the file system may have taken the last block. Then a file that nobody needs goes, and what it held bears that little; it is made
//! again as soon as there is room.
//!
//! Invariant: the file may be absent, short or damaged at any moment, and nothing is the worse for it.

use crate::crashsafe::{self, Fs};
use crate::error::{Kind, Result};
use crate::layout;
use sendense_block::ByteOffset;
use std::path::Path;

/// Folders, a list and a record take five blocks of 4 KiB; XFS wants some forty at hand before it makes a folder.
const SPARE_BYTES: u64 = 1 << 20;
/// It is written in pieces, so that a part of it is kept where there is not room for all.
const PIECE_BYTES: usize = 64 * 1024;

/// Does something that must be possible on a full file system too. Called a second time where there was no room for it, so what it
/// did by halves it must be able to do again.
pub(crate) fn with<T>(fs: &dyn Fs, root: &Path, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    match work() {
        Err(error) if error.kind == Kind::NoSpace && give(fs, root) => {
            tracing::warn!(repository = %root.display(), "the file system is full: the repository's spare room is used");
            let done = work();
            keep(fs, root);
            done
        }
        done => done,
    }
}

/// Makes the file, as far as there is room, unless it is there. That it cannot be made is no error.
pub(crate) fn keep(fs: &dyn Fs, root: &Path) {
    let path = root.join(layout::SPARE_FILE);
    if path.symlink_metadata().is_ok_and(|metadata| metadata.len() >= SPARE_BYTES) {
        return;
    }
    if let Err(error) = make(fs, root, &path) {
        tracing::debug!(repository = %root.display(), %error, "the spare room is not whole");
    }
}

fn make(fs: &dyn Fs, root: &Path, path: &Path) -> Result<()> {
    crashsafe::remove_file_if_there(fs, path)?;
    let file = crashsafe::create_file(fs, path)?;
    // Noise, for a file system that compresses would keep no room for anything else.
    let mut noise = blake3::Hasher::new().update(layout::SPARE_FILE.as_bytes()).finalize_xof();
    let mut piece = vec![0; PIECE_BYTES];
    for at in (0..SPARE_BYTES).step_by(PIECE_BYTES) {
        noise.fill(&mut piece);
        if let Err(error) = file.write_at(ByteOffset(at), &piece) {
            tracing::debug!(repository = %root.display(), %error, "there is not room for all of the spare room");
            break;
        }
    }
    crashsafe::sync_file(&*file)?;
    crashsafe::sync_dir(fs, root)
}

/// Gives the room back; false where there was none.
fn give(fs: &dyn Fs, root: &Path) -> bool {
    let removed = crashsafe::remove_file_if_there(fs, &root.join(layout::SPARE_FILE));
    // Some file systems give room back only when the removal is durable.
    removed.is_ok_and(|removed| removed) && crashsafe::sync_dir(fs, root).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crashsafe::System;
    use crate::error::Error;

    #[test]
    fn it_is_given_once_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(layout::SPARE_FILE);
        let full = || Err::<(), _>(Error::new(Kind::NoSpace, "make a folder"));
        // There is none yet.
        assert_eq!(with(&System, dir.path(), full).unwrap_err().kind, Kind::NoSpace);
        assert!(!path.exists());
        keep(&System, dir.path());
        assert_eq!(path.metadata().unwrap().len(), SPARE_BYTES);
        let mut seen = Vec::new();
        let done = with(&System, dir.path(), || {
            seen.push(path.exists());
            if path.exists() { full() } else { Ok(()) }
        });
        done.unwrap();
        assert_eq!(seen, [true, false]);
        assert_eq!(path.metadata().unwrap().len(), SPARE_BYTES, "made again");
        // Any other trouble leaves it alone.
        let denied = || Err::<(), _>(Error::new(Kind::Denied, "make a folder"));
        assert_eq!(with(&System, dir.path(), denied).unwrap_err().kind, Kind::Denied);
        // One that was cut off is made whole.
        std::fs::write(&path, [1; 5]).unwrap();
        keep(&System, dir.path());
        assert_eq!(path.metadata().unwrap().len(), SPARE_BYTES);
    }
}
