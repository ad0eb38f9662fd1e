//! Whether a file with a disk's content fits where it is to go: what the disk holds, beside what is free there.
//!
//! What a disk holds is what an extraction writes, to the block; the tables of a QCOW2 image (0.02 %) are not counted, and
//! neither is what a file system makes smaller. So this refuses what cannot fit, and does not promise that the rest will.

use crate::error::{Error, Kind, Result};
use rustix::fs::StatVfs;
use sendense_block::copy::{self, Mode};
use sendense_block::{Cancel, Disk};
use std::os::fd::AsFd;
use std::path::Path;

/// Bytes that a file with the disk's content takes, which leaves out what is zero.
pub fn needed_bytes(disk: &dyn Disk, name: &str, cancel: &Cancel) -> Result<u64> {
    Ok(copy::survey(name, disk, Mode::Full, cancel)?.read.0)
}

/// What is free for anybody in a folder's file system; `None` where it does not say.
pub fn free_bytes(folder: &Path) -> Result<Option<u64>> {
    let asked = rustix::fs::statvfs(folder);
    Ok(free(&asked.map_err(|errno| Error::io(format!("ask for the room of {}", folder.display()), errno.into()))?))
}

/// The same of a folder that is held open.
pub(crate) fn free_bytes_of(folder: impl AsFd, shown: &str) -> Result<Option<u64>> {
    let asked = rustix::fs::fstatvfs(folder);
    Ok(free(&asked.map_err(|errno| Error::io(format!("ask for the room of {shown}"), errno.into()))?))
}

fn free(stat: &StatVfs) -> Option<u64> {
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Refuses what does not fit. `promised_bytes` of what is free are for others.
///
/// # Errors
/// [`Kind::NoSpace`], with the figures.
pub fn check(name: &str, needed_bytes: u64, free_bytes: Option<u64>, promised_bytes: u64, folder: &str) -> Result<()> {
    let Some(free_bytes) = free_bytes else { return Ok(()) };
    if needed_bytes <= free_bytes.saturating_sub(promised_bytes) {
        return Ok(());
    }
    let promised = match promised_bytes {
        0 => String::new(),
        bytes => format!(", {bytes} of them for other restores"),
    };
    let context = format!("{name} takes {needed_bytes} bytes, and {free_bytes} are free in {folder}{promised}");
    Err(Error::new(Kind::NoSpace, context))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use sendense_block::backend::Memory;
    use sendense_block::{BLOCK_BYTES, ByteLen, ByteOffset, WriteAt};

    #[test]
    fn what_is_zero_takes_no_room() {
        let disk = Memory::zeroed(ByteLen(1000 * BLOCK_BYTES + 7));
        let needed = || needed_bytes(&disk, "disk 0", &Cancel::new()).unwrap();
        assert_eq!(needed(), 0);
        disk.write_at(ByteOffset(3 * BLOCK_BYTES + 5), &[1]).unwrap();
        disk.write_at(ByteOffset(1000 * BLOCK_BYTES), &[1; 7]).unwrap();
        assert_eq!(needed(), BLOCK_BYTES + 7);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).unwrap().is_some_and(|bytes| bytes > 0));
        assert!(check("disk 0", 100, Some(100), 0, "/x").is_ok());
        assert!(check("disk 0", 100, None, 0, "/x").is_ok(), "a file system that does not say is tried");
        let refused = |promised| {
            let error = check("disk 0", 101, Some(110), promised, "/x").unwrap_err();
            assert_eq!(error.kind, Kind::NoSpace);
            error.to_string()
        };
        expect!["disk 0 takes 101 bytes, and 110 are free in /x, 10 of them for other restores"]
            .assert_eq(&refused(10));
        assert!(check("disk 0", 101, Some(110), 9, "/x").is_ok());
        let error = check("disk 0", 101, Some(100), 0, "/x").unwrap_err();
        expect!["disk 0 takes 101 bytes, and 100 are free in /x"].assert_eq(&error.to_string());
    }
}
