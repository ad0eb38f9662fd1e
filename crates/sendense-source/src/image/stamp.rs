//! What a file was at a moment, to see later whether it changed.
//!
//! Files: device, inode, size, time of the last change of content and of the inode. Block devices: device number and size;
//! their writes leave no trace that could be seen. Invariant: a write after [`Stamp::settled`] returned makes the stamp of
//! a file differ, even where the file system's clock ticks slowly.

use crate::error::{Error, Kind, Result};
use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Twice the longest tick of a Linux kernel's clock (10 ms at 100 Hz): a file that changed longer ago than this gets
/// another time stamp by its next write.
const TICK: Duration = Duration::from_millis(20);
/// So often a file is looked at before it counts as being written: a tenth of a second, five times what a single last
/// write needs.
const TRIES: u32 = 10;

/// What a file was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    special: bool,
}

impl Stamp {
    /// What an open file is now.
    pub fn of(file: &fs::File, path: &Path) -> Result<Self> {
        let failed = |error| Error::new(Kind::Failed, format!("stat {}", path.display())).caused_by(error);
        let found = file.metadata().map_err(failed)?;
        let mut stamp = Self::of_metadata(&found);
        if stamp.special {
            // A handle's position is nobody's: reads give their own.
            stamp.size = (&*file).seek(SeekFrom::End(0)).map_err(failed)?;
        }
        Ok(stamp)
    }

    /// Like [`Stamp::of`], after the clock has moved on since the file's last change; none when it keeps changing.
    pub fn settled(file: &fs::File, path: &Path) -> Result<Option<Self>> {
        for _ in 0..TRIES {
            let stamp = Self::of(file, path)?;
            if stamp.special || !stamp.is_fresh(SystemTime::now()) {
                return Ok(Some(stamp));
            }
            std::thread::sleep(TICK / 2);
        }
        Ok(None)
    }

    /// The file's size then.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// True for a block device.
    pub fn is_block_device(&self) -> bool {
        self.special
    }

    /// True when the path still leads to this very file, unchanged.
    pub fn still_holds(&self, file: &fs::File, path: &Path) -> bool {
        let same_name = fs::symlink_metadata(path).is_ok_and(|found| self.same_file(&found));
        same_name && Self::of(file, path).is_ok_and(|now| now == *self)
    }

    /// True when the metadata is that of the stamped file, whatever was written to it since.
    pub fn same_file(&self, found: &fs::Metadata) -> bool {
        let now = Self::of_metadata(found);
        (now.device, now.inode, now.special) == (self.device, self.inode, self.special)
    }

    fn of_metadata(found: &fs::Metadata) -> Self {
        if found.file_type().is_block_device() {
            // The node may be made anew (udev); the device behind it is what counts.
            return Self { device: found.rdev(), inode: 0, size: 0, modified: (0, 0), changed: (0, 0), special: true };
        }
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            special: false,
        }
    }

    /// Changed within the last tick. A change in the future (a server's clock that runs ahead) says nothing.
    fn is_fresh(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.changed.max(self.modified);
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return false };
        let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        changed.and_then(|changed| now.duration_since(changed).ok()).is_some_and(|age| age < TICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn every_change_after_the_stamp_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let changes: [&dyn Fn(&fs::File); 4] = [
            &|file| file.write_all_at(b"x", 5).unwrap(),
            &|file| file.set_len(11).unwrap(),
            &|file| file.set_modified(SystemTime::UNIX_EPOCH).unwrap(),
            &|_| {
                fs::write(dir.path().join("other"), "0123456789").unwrap();
                fs::rename(dir.path().join("other"), &path).unwrap();
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            fs::write(&path, "0123456789").unwrap();
            let file = fs::File::options().read(true).write(true).open(&path).unwrap();
            let stamp = Stamp::settled(&file, &path).unwrap().unwrap();
            assert!(stamp.still_holds(&file, &path));
            change(&file);
            assert!(!stamp.still_holds(&file, &path), "change {number} was not seen");
        }
        let file = fs::File::open(&path).unwrap();
        let stamp = Stamp::settled(&file, &path).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!stamp.still_holds(&file, &path));
    }

    /// The first write after a stamp is seen even when it follows at once, many times over.
    #[test]
    fn a_write_right_after_the_stamp_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "0123456789").unwrap();
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        for _ in 0..20 {
            let stamp = Stamp::settled(&file, &path).unwrap().unwrap();
            file.write_all_at(b"x", 0).unwrap();
            assert!(!stamp.still_holds(&file, &path));
        }
    }
}
