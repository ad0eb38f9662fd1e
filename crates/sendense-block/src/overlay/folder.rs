//! The door to an overlay's files: few operations, so that a test can play a power loss behind them.
//!
//! What lives here: the files' names, locking, creating, renaming, removing. What does not: what is in them. Invariant:
//! nothing is durable before the sync that its caller owes it, and no file of another name is touched.

use super::{journal, live};
use crate::backend;
use crate::device::{AllocationMap, Content, Flush, ReadAt, WriteAt, ZeroRange};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::units::{ByteLen, ByteOffset};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file with the data blocks, each at its own place.
pub(super) const DATA: &str = "data";
/// Empty; locked while the overlay is open.
const LOCK: &str = "lock";

/// Which run of the kernel it is: the text of its boot id.
pub(super) type Boot = [u8; 36];

/// An overlay's folder.
pub(super) trait Folder: Send + Sync {
    /// Opens a file for reading and writing; `None` when there is none.
    fn open(&self, name: &str) -> Result<Option<Arc<dyn Blob>>>;
    /// Makes an empty file that must not exist.
    fn create(&self, name: &str) -> Result<Arc<dyn Blob>>;
    /// Gives a file another name, in the place of what had it.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Removes a file if it is there.
    fn remove(&self, name: &str) -> Result<()>;
    /// Whose memory what was written is in; `None` where that is not known.
    fn boot(&self) -> Option<Boot>;
    /// How much may yet be written, as far as the file system knows.
    fn available(&self) -> Result<ByteLen>;
    /// Makes names durable.
    fn sync(&self) -> Result<()>;
}

/// A file.
pub(super) trait Blob: Send + Sync {
    fn size(&self) -> ByteLen;
    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()>;
    fn write_at(&self, at: ByteOffset, bytes: &[u8]) -> Result<()>;
    /// Sets its length; what is added reads as zeros.
    fn set_len(&self, len: ByteLen) -> Result<()>;
    /// Asks for room up to `len` without changing the length. Best effort.
    fn reserve(&self, len: ByteLen);
    /// Gives the room of a range back; it reads as zeros then.
    fn punch(&self, range: Extent) -> Result<()>;
    /// True when nothing was ever written to it, for certain.
    fn is_hole(&self) -> Result<bool>;
    /// Makes its bytes and its length durable.
    fn sync(&self) -> Result<()>;
}

impl Blob for backend::File {
    fn size(&self) -> ByteLen {
        ReadAt::size(self)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        ReadAt::read_at(self, at, buf)
    }

    fn write_at(&self, at: ByteOffset, bytes: &[u8]) -> Result<()> {
        WriteAt::write_at(self, at, bytes)
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        Self::set_len(self, len)
    }

    fn reserve(&self, len: ByteLen) {
        let _ = rustix::fs::fallocate(self.as_std(), FallocateFlags::KEEP_SIZE, 0, len.0);
    }

    fn punch(&self, range: Extent) -> Result<()> {
        self.zero_range(range)
    }

    fn is_hole(&self) -> Result<bool> {
        let map = self.allocation(Extent::whole(ReadAt::size(self)))?;
        Ok(map.iter().all(|part| part.content == Content::Zero))
    }

    fn sync(&self) -> Result<()> {
        self.flush()
    }
}

/// A folder of the operating system, locked: one process at a time has it.
pub(super) struct System {
    path: PathBuf,
    lock: fs::File,
}

impl System {
    /// Locks a folder. The lock ends with the process, however that ends.
    pub(super) fn lock(path: &Path) -> Result<Self> {
        let name = path.join(LOCK);
        let failed = |error| Error::io(format!("lock {}", name.display()), error);
        let file = options().create(true).open(&name).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), lock: file }),
            Err(Errno::WOULDBLOCK) => {
                Err(Error::new(Kind::Unavailable, format!("the overlay in {} is in use", path.display())))
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Removes every file of an overlay, the lock last. The journal goes first: without it there is no overlay.
    pub(super) fn clear(&self) -> Result<()> {
        for name in [journal::NAME, journal::NEW, live::NAME, DATA, LOCK] {
            self.remove(name)?;
        }
        self.sync()
    }

    fn failed(&self, verb: &str, name: &str, error: io::Error) -> Error {
        Error::io(format!("{verb} {}", self.path.join(name).display()), error)
    }

    fn blob(&self, name: &str, opened: io::Result<fs::File>) -> Result<Arc<dyn Blob>> {
        let file = opened.map_err(|error| self.failed("open", name, error))?;
        Ok(Arc::new(backend::File::from_std(file, self.path.join(name).display().to_string(), true)?))
    }
}

/// For its owner only, as a guest's disk is; and no link is followed.
fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

impl Folder for System {
    fn open(&self, name: &str) -> Result<Option<Arc<dyn Blob>>> {
        match options().open(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => self.blob(name, opened).map(Some),
        }
    }

    fn create(&self, name: &str) -> Result<Arc<dyn Blob>> {
        self.blob(name, options().create_new(true).open(self.path.join(name)))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(self.path.join(from), self.path.join(to)).map_err(|error| self.failed("rename", from, error))
    }

    fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", name, error)),
            _ => Ok(()),
        }
    }

    fn boot(&self) -> Option<Boot> {
        fs::read("/proc/sys/kernel/random/boot_id").ok()?.first_chunk().copied()
    }

    fn available(&self) -> Result<ByteLen> {
        let found = rustix::fs::fstatvfs(&self.lock);
        let found = found.map_err(|errno| self.failed("look for room in", "", errno.into()))?;
        Ok(ByteLen(found.f_bavail.saturating_mul(found.f_frsize)))
    }

    fn sync(&self) -> Result<()> {
        let synced = fs::File::open(&self.path).and_then(|folder| folder.sync_all());
        synced.map_err(|error| self.failed("sync", "", error))
    }
}
