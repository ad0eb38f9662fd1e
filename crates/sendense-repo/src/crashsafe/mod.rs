//! The only door through which this crate changes a repository: create, write, sync, rename without replacing, remove.
//!
//! What lives here: the few operations whose order makes a repository survive power loss, behind the traits [`Fs`] and
//! [`NewFile`], so that a test can record them, drop or reorder what was not synced, fail any of them, and see whether
//! start-up copes. What does not: names and their meaning (`layout`). The file that the owner record is locked by is no
//! part of this: it is empty, and whether it outlives a power loss does not matter.
//!
//! Invariant: a failed fsync is a hard failure. The kernel drops dirty pages after it, so trying again proves nothing.

mod walk;

pub(crate) use walk::{Kindred, entries, is_same_file, open_beneath, read_small};

use crate::error::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;
use sendense_block::backend::File;
use sendense_block::{self as block, AllocationMap, ByteLen, ByteOffset, Extent, ZeroRange};
use sendense_qcow2::Storage;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Changes to a file system, as few as possible. Each is atomic when the process dies; none is durable before the sync
/// that its caller owes it.
pub trait Fs: Send + Sync {
    /// Makes a directory that must not exist.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes an empty file that must not exist and opens it for reading and writing.
    fn create_file(&self, path: &Path) -> io::Result<Arc<dyn NewFile>>;
    /// Makes a file that must not exist, with all that another one holds, and no room of its own for it before it is changed. Where
    /// the file system cannot do that the file is empty, and false is said.
    fn create_clone(&self, path: &Path, of: &fs::File) -> io::Result<(Arc<dyn NewFile>, bool)>;
    /// Opens a regular file of a draft again, for reading and writing.
    fn open_file(&self, path: &Path) -> io::Result<Arc<dyn NewFile>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name that must not exist.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file another name, in the place of what had it.
    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name that must not exist; false where the file system knows no second names.
    fn link(&self, from: &Path, to: &Path) -> io::Result<bool>;
    /// Removes a file's name.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// A file that was just made. Its writes are seen by every reader at once; its bytes and its length are durable after
/// `flush` (its name is not: that is its directory's). Nothing is ever written to a file that was opened again, but to those of
/// a draft that is gone on with.
pub trait NewFile: Storage + AllocationMap {
    /// Sets its length; what is added reads as zeros.
    fn set_len(&self, len: ByteLen) -> block::Result<()>;
    /// Makes a range below its end read as zeros, and gives its room back where the file system can.
    fn punch(&self, range: Extent) -> block::Result<()>;
    /// Writes what another file has in a range to the same place, without a way through this process. Returns how much of it was written,
    /// from the start: less, or nothing, where that cannot be or fails, and whoever then reads and writes it learns why.
    fn take(&self, of: &File, range: Extent) -> ByteLen;
}

impl NewFile for File {
    fn set_len(&self, len: ByteLen) -> block::Result<()> {
        File::set_len(self, len)
    }

    fn punch(&self, range: Extent) -> block::Result<()> {
        self.zero_range(range)
    }

    fn take(&self, of: &File, range: Extent) -> ByteLen {
        File::take(self, of, range)
    }
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Fs for System {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        // 0750: the images are as secret as the machines they come from.
        fs::DirBuilder::new().mode(0o750).create(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<Arc<dyn NewFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(path)?;
        Ok(Arc::new(File::from_std(file, path.display().to_string(), true).map_err(io::Error::other)?))
    }

    fn create_clone(&self, path: &Path, of: &fs::File) -> io::Result<(Arc<dyn NewFile>, bool)> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(path)?;
        let is_clone = match rustix::fs::ioctl_ficlone(&file, of) {
            Ok(()) => true,
            // Not this file system, not between these two, not this sort of file; or a kernel or a filter that knows no such call.
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::NOTTY | Errno::PERM) => false,
            Err(errno) => return Err(errno.into()),
        };
        let file = File::from_std(file, path.display().to_string(), true).map_err(io::Error::other)?;
        Ok((Arc::new(file), is_clone))
    }

    fn open_file(&self, path: &Path) -> io::Result<Arc<dyn NewFile>> {
        // NONBLOCK: a FIFO in the folder must not make us wait. Neither flag means anything to a regular file.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
        let file = fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(Arc::new(File::from_std(file, path.display().to_string(), true).map_err(io::Error::other)?))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // NFS and some FUSE file systems know no such flag. A hard link does not replace either; the file has two
            // names until the old one is gone, which start-up recognises by the inode.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty())?;
                fs::remove_file(from)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<bool> {
        match rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()) {
            Ok(()) => Ok(true),
            // FUSE file systems, exFAT, some network file systems; and where a file may have no more names.
            Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::MLINK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }
}

/// Makes a directory unless it is there, and its name durable. True when it was made.
///
/// Also syncs the parent when the directory was there: whoever made it may have died before doing so.
pub(crate) fn ensure_dir(fs: &dyn Fs, path: &Path) -> Result<bool> {
    let made = match fs.create_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = path.symlink_metadata().map_err(|error| failed("stat", path, error))?;
            if !metadata.file_type().is_dir() {
                return Err(Error::new(Kind::Denied, format!("{} is not a directory", path.display())));
            }
            false
        }
        Err(error) => return Err(failed("create directory", path, error)),
    };
    sync_parent(fs, path)?;
    Ok(made)
}

/// Writes a new small file and makes its bytes durable. Its name is durable after [`sync_dir`] of its directory.
pub(crate) fn write_new(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = create_file(fs, path)?;
    file.write_at(ByteOffset(0), bytes)?;
    sync_file(&*file)
}

/// Writes a small file in the place of the one that bears the name, durably: a reader sees the old one or the new one.
pub(crate) fn replace(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // Left by a process that died here.
    remove_file_if_there(fs, &temporary)?;
    write_new(fs, &temporary, bytes)?;
    fs.rename_over(&temporary, path).map_err(|error| failed("replace", path, error))?;
    sync_parent(fs, path)
}

/// Makes an empty file that must not exist.
pub(crate) fn create_file(fs: &dyn Fs, path: &Path) -> Result<Arc<dyn NewFile>> {
    fs.create_file(path).map_err(|error| failed("create", path, error))
}

/// Makes a file that must not exist, of what another one holds; empty, and false, where the file system cannot.
pub(crate) fn create_clone(fs: &dyn Fs, path: &Path, of: &File) -> Result<(Arc<dyn NewFile>, bool)> {
    fs.create_clone(path, of.as_std()).map_err(|error| failed("create", path, error))
}

/// Makes a file's bytes durable.
pub(crate) fn sync_file(file: &dyn NewFile) -> Result<()> {
    Ok(file.flush()?)
}

/// Makes a directory's names durable.
pub(crate) fn sync_dir(fs: &dyn Fs, path: &Path) -> Result<()> {
    fs.sync_dir(path).map_err(|error| failed("sync directory", path, error))
}

fn sync_parent(fs: &dyn Fs, path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(fs, parent),
        _ => Ok(()),
    }
}

/// Gives a file a name that must not exist. Not durable before both directories are synced.
pub(crate) fn rename_new(fs: &dyn Fs, from: &Path, to: &Path) -> Result<()> {
    fs.rename_new(from, to).map_err(|error| failed(&format!("move {} to", from.display()), to, error))
}

/// Gives a file a name in the place of what had it. Not durable before both directories are synced.
pub(crate) fn rename_over(fs: &dyn Fs, from: &Path, to: &Path) -> Result<()> {
    fs.rename_over(from, to).map_err(|error| failed(&format!("move {} over", from.display()), to, error))
}

/// Gives a file a second name that must not exist; false where the file system knows no second names.
pub(crate) fn link(fs: &dyn Fs, from: &Path, to: &Path) -> Result<bool> {
    fs.link(from, to).map_err(|error| failed(&format!("link {} to", from.display()), to, error))
}

/// Removes a name; true when it was there. Removing what is gone is not an error, so that a step can be done twice.
pub(crate) fn remove_file_if_there(fs: &dyn Fs, path: &Path) -> Result<bool> {
    match fs.remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path, error)),
    }
}

/// Removes a directory if it is there and empty; true when it is gone.
pub(crate) fn remove_dir_if_empty(fs: &dyn Fs, path: &Path) -> Result<bool> {
    match fs.remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(failed("remove directory", path, error)),
    }
}

pub(crate) fn failed(verb: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{verb} {}", path.display()), error)
}
