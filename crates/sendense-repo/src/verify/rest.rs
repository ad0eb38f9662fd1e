//! At rest: the files of a point, byte by byte, against its manifest.

use super::{Check, Finding, work};
use crate::digests::Layer;
use crate::error::{Error, Kind, Result};
use crate::manifest::Disk;
use crate::repository::Repository;
use crate::segments::SegmentHasher;
use sendense_block::backend::File;
use sendense_block::{self as block, BLOCK_BYTES, ByteLen, Cancel, Digest, Extent, ReadAt};
use std::path::Path;

/// Bytes per read: large enough that a disk's seeks do not show, small enough that a cancel is quick.
pub(crate) const READ_BYTES: u64 = 1 << 20;

/// Checks the segments of an image.
pub(super) fn image(
    repository: &Repository,
    check: &Check<'_>,
    path: &Path,
    disk: &Disk,
    threads: usize,
) -> Result<()> {
    let Some(file) = open(repository, check, path, disk.image.file_bytes)? else { return Ok(()) };
    let whole = Extent::whole(ByteLen(disk.image.file_bytes));
    let segments: Vec<Extent> = whole.pieces(ByteLen(disk.image.segment_bytes)).collect();
    work::each(
        check.cancel,
        threads,
        segments.len() as u64,
        || vec![0; READ_BYTES as usize],
        |buffer, index| {
            let at = usize::try_from(index).expect("segments are counted in memory");
            let range = segments[at];
            let finding =
                |what: String| Finding { file: path.to_owned(), segment: Some(index), range: Some(range), what };
            match digest(&file, range, buffer, check.cancel, &|bytes| check.read(bytes)) {
                Ok(digest) if disk.image.segments.get(at).is_some_and(|segment| segment.0 == digest) => {}
                Ok(_) => {
                    check.damaged(finding(format!("segment {index} of {} is not what was written", path.display())));
                }
                Err(error) if error.kind == Kind::Cancelled => return Err(error),
                Err(error) => check.unreadable(finding(block::error::chain(&error))),
            }
            Ok(())
        },
    )
}

/// The digest of a segment, read piece by piece into a buffer of [`READ_BYTES`]; `read` is told of each.
pub(crate) fn digest(
    file: &File,
    range: Extent,
    buffer: &mut [u8],
    cancel: &Cancel,
    read: &dyn Fn(u64),
) -> Result<Digest> {
    let mut hasher = SegmentHasher::default();
    clusters(file, range, buffer, cancel, read, &mut |digest| hasher.push(digest))?;
    Ok(hasher.finish())
}

/// The digests of the clusters of a part of a file, in order; as [`digest`].
pub(crate) fn clusters(
    file: &File,
    range: Extent,
    buffer: &mut [u8],
    cancel: &Cancel,
    read: &dyn Fn(u64),
    tell: &mut dyn FnMut(Digest),
) -> Result<()> {
    for piece in range.pieces(ByteLen(READ_BYTES)) {
        cancel.check()?;
        let bytes = &mut buffer[..piece.len().0 as usize];
        work::read(|| file.read_at(piece.start(), bytes))?;
        for cluster in bytes.chunks(BLOCK_BYTES as usize) {
            tell(Digest::of(cluster));
        }
        read(piece.len().0);
    }
    Ok(())
}

/// Checks a digests file; gives it back when it is sound.
pub(super) fn digests(repository: &Repository, check: &Check<'_>, path: &Path, disk: &Disk) -> Result<Option<Layer>> {
    let Some(file) = open(repository, check, path, disk.digests.file_bytes)? else { return Ok(None) };
    let finding = |what: String| Finding { file: path.to_owned(), segment: None, range: None, what };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES as usize];
    for piece in Extent::whole(ByteLen(disk.digests.file_bytes)).pieces(ByteLen(READ_BYTES)) {
        check.cancel.check()?;
        let bytes = &mut buffer[..piece.len().0 as usize];
        if let Err(error) = work::read(|| file.read_at(piece.start(), bytes)) {
            check.unreadable(finding(block::error::chain(&error)));
            return Ok(None);
        }
        hasher.update(bytes);
        check.read(piece.len().0);
    }
    if hasher.finalize().to_hex().as_str() != disk.digests.blake3.to_ascii_lowercase() {
        check.damaged(finding(format!("{} is not what was written", path.display())));
        return Ok(None);
    }
    match repository.open_digest_file_at(path.to_owned(), disk) {
        Ok(layer) => Ok(Some(layer)),
        Err(error) if matches!(error.kind, Kind::Corrupt { .. }) => {
            check.damaged(finding(block::error::chain(&error)));
            Ok(None)
        }
        Err(error) => {
            check.unreadable(finding(block::error::chain(&error)));
            Ok(None)
        }
    }
}

/// Opens a file that must be there with this length; a finding and nothing when it is not.
fn open(repository: &Repository, check: &Check<'_>, path: &Path, bytes: u64) -> Result<Option<File>> {
    let finding =
        |error: &Error| Finding { file: path.to_owned(), segment: None, range: None, what: block::error::chain(error) };
    match repository.open_file(path, bytes) {
        Ok(file) => return Ok(Some(file)),
        Err(error) if says_damaged(&error) => check.damaged(finding(&error)),
        Err(error) => check.unreadable(finding(&error)),
    }
    Ok(None)
}

/// True for what lies there instead of the file: nothing, or less or more, or a link, a folder, a device. Whoever may not open it
/// knows nothing of it.
fn says_damaged(error: &Error) -> bool {
    matches!(error.kind, Kind::Corrupt { .. }) || (error.kind == Kind::Denied && !error.is_of_permission())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crashsafe;

    #[test]
    fn a_permission_condemns_no_file_and_a_link_does() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        for name in ["link", "folder"] {
            let error = crashsafe::open_beneath(dir.path(), Path::new(name)).unwrap_err();
            assert!(says_damaged(&error), "{error}");
        }
        use rustix::io::Errno;
        for errno in [Errno::ACCESS, Errno::PERM, Errno::ROFS, Errno::STALE, Errno::IO, Errno::NODEV] {
            let error = crashsafe::failed("open", Path::new("x"), errno.into());
            assert!(!says_damaged(&error) && !says_damaged(&error.within("verify")), "{errno}");
        }
    }
}
