//! A disk onto something that exists: a file that holds another state of it, or a block device.
//!
//! The target bears a mark in its first block from the first write to the end, so whatever interrupts the restore, it does
//! not look complete; restoring onto it again goes on where it stopped, because blocks that are right are left alone.

use super::{Job, device};
use crate::fault::{Result, of_block, of_source};
use rustix::fs::FlockOperation;
use sendense_block::backend::File;
use sendense_block::copy::{self, Difference, Differential, Marked, Restore};
use sendense_block::{DigestMap, ReadAt};
use sendense_source::image::Writers;
use sendense_source::paths::Roots;
use sendense_types::{Problem, ProblemCode};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a lock is asked for again. A process that the hub starts has a copy of every descriptor until it runs its own
/// program, also of the one that a restore onto the same file has just closed; a busy machine takes some milliseconds for that.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What is written onto and how.
pub(crate) struct Onto<'a> {
    /// An absolute and resolved path that was checked against the allowed roots.
    pub path: &'a Path,
    /// Those roots.
    pub roots: &'a Roots,
    /// The disk's digests: only what differs is written. None: everything is (block devices only).
    pub digests: Option<&'a dyn DigestMap>,
    /// A file of another size is grown or cut.
    pub resize: bool,
    /// For whoever finds the target unfinished.
    pub why: &'a str,
}

/// Makes the target hold the disk. Gives what differed where that was looked at.
pub(crate) fn restore_onto(job: &Job<'_>, onto: &Onto<'_>) -> Result<Option<Difference>> {
    let failed = |error: sendense_block::Error| of_block("restore to the target", &error);
    let size = job.disk.size();
    let is_device = onto.path.metadata().is_ok_and(|found| found.file_type().is_block_device());
    let target = if is_device { device::open(onto.roots, onto.path, size)? } else { open_file(onto)? };
    let resize = !is_device && target.size() != size;
    if resize && !onto.resize {
        let details =
            format!("{} has {}, the disk {size}; say resize to change that", onto.path.display(), target.size());
        return Err(Problem::new(ProblemCode::Conflict, "the target has another size", details));
    }
    let marked = Marked::new(target, onto.why);
    if resize {
        marked.mark().and_then(|()| marked.inner().set_len(size)).map_err(failed)?;
    }
    let (name, disk, options, progress, cancel) = (job.name, &job.disk, job.options(), job.progress, job.cancel);
    let difference = match onto.digests {
        Some(digests) => {
            let target = &marked;
            let job = Differential { name, disk, digests, target, options, progress, cancel };
            Some(copy::differential(&job).map_err(failed)?)
        }
        None => {
            marked.mark().map_err(failed)?;
            let job = Restore { name, disk, target: &marked, target_is_zero: false, options, progress, cancel };
            copy::restore(&job).map_err(failed)?;
            None
        }
    };
    // A flush may have hung until nobody counted on this restore any more: then the mark stays.
    cancel.commit().and_then(|()| marked.finish()).map_err(failed)?;
    Ok(difference)
}

/// Opens a file that no running machine writes to, and that no other restore writes onto.
fn open_file(onto: &Onto<'_>) -> Result<File> {
    let file = onto.roots.open_write(onto.path).map_err(|error| of_source(&error))?;
    let in_use = |why: &str| {
        let details = format!("{}: {why}", onto.path.display());
        Err(Problem::new(ProblemCode::Conflict, "the target is in use", details))
    };
    if Writers::now().hold(&file) {
        return in_use("a running machine has it open for writing");
    }
    if !lock(&file) {
        return in_use("another program has locked it");
    }
    File::from_std(file, onto.path.display().to_string(), true).map_err(|error| of_block("open the target", &error))
}

/// Locks a file against other restores and everybody else who asks; false when somebody else has the lock.
fn lock(file: &std::fs::File) -> bool {
    let until = Instant::now() + LOCK_PATIENCE;
    while rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_block::backend::Memory;
    use sendense_block::copy::{MARK, Progress};
    use sendense_block::{BlockIndex, ByteLen, ByteOffset, Cancel, Digest, Known, WriteAt};
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    /// A disk of four blocks and a bit: data, zeros, data, zeros, data.
    fn disk() -> Memory {
        let disk = Memory::zeroed(ByteLen(4 * 65536 + 100));
        for (at, fill) in [(0, 1), (2 * 65536, 3), (4 * 65536, 5)] {
            disk.write_at(ByteOffset(at), &[fill; 100]).unwrap();
        }
        disk
    }

    struct Digests(Vec<u8>);

    impl DigestMap for Digests {
        fn known(&self, first: BlockIndex, out: &mut [Known]) -> sendense_block::Result<()> {
            for (out, number) in out.iter_mut().zip(first.0 as usize..) {
                let block = self.0.chunks(65536).nth(number).unwrap_or_default();
                let padded = [block, &vec![0; 65536 - block.len()]].concat();
                let zero = padded.iter().all(|byte| *byte == 0);
                *out = if zero { Known::Zero } else { Known::Data(Digest::of(&padded)) };
            }
            Ok(())
        }
    }

    fn run(path: &Path, resize: bool, cancel: &Cancel) -> Result<Option<Difference>> {
        let (disk, progress) = (Arc::new(disk()), Arc::new(Progress::default()));
        let digests = Digests(disk.to_bytes());
        let roots = Roots::new(vec![path.parent().unwrap().to_owned()]);
        let job = Job { name: "disk 0", disk, needed_bytes: None, lanes: 2, progress: &progress, cancel };
        restore_onto(&job, &Onto { path, roots: &roots, digests: Some(&digests), resize, why: "test" })
    }

    #[test]
    fn a_file_is_made_equal_and_its_size_is_changed_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("disk");
        let (want, go) = (disk().to_bytes(), Cancel::new());
        for had in [vec![7; want.len()], want.clone(), vec![9; 100], vec![9; want.len() + 70000], vec![]] {
            std::fs::write(&path, &had).unwrap();
            if had.len() != want.len() {
                assert_eq!(run(&path, false, &go).unwrap_err().code, ProblemCode::Conflict);
                assert!(std::fs::read(&path).unwrap() == had, "a refused target is untouched");
            }
            let times = || {
                let found = std::fs::metadata(&path).unwrap();
                (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
            };
            let before = times();
            let found = run(&path, true, &go).unwrap().unwrap();
            assert!(std::fs::read(&path).unwrap() == want);
            if had == want {
                assert_eq!(times(), before, "a target that is right is not touched");
            }
            assert_eq!(found.differing == ByteLen(0), had == want);
        }
    }

    #[test]
    fn one_that_is_in_use_is_refused_and_one_that_is_stopped_bears_the_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("disk");
        std::fs::write(&path, [7; 10]).unwrap();
        let held = std::fs::File::open(&path).unwrap();
        rustix::fs::flock(&held, FlockOperation::LockShared).unwrap();
        assert_eq!(run(&path, true, &Cancel::new()).unwrap_err().code, ProblemCode::Conflict);
        drop(held);
        std::fs::write(&path, vec![7; 70000]).unwrap();
        let stop = Cancel::new();
        stop.cancel();
        assert_eq!(run(&path, true, &stop).unwrap_err().code, ProblemCode::Cancelled);
        assert!(std::fs::read(&path).unwrap().starts_with(MARK.as_bytes()));
        assert!(run(&path, true, &Cancel::new()).is_ok());
        assert!(std::fs::read(&path).unwrap() == disk().to_bytes());
    }
}
