//! The only door through which this crate changes the file system: create, sync, rename without replacing, remove.
//!
//! What lives here: the few operations whose order makes a repository survive power loss, behind the trait [`Fs`], so that
//! a test can record them, drop or reorder what was not synced, and see whether start-up copes. What does not: names and
//! their meaning (`layout`), and the bytes of images, which are written through open files and made durable here.
//!
//! Invariant: a failed fsync is a hard failure. The kernel drops dirty pages after it, so trying again proves nothing.

mod walk;

pub(crate) use walk::{Kindred, entries, is_same_file, open_beneath, read_small};

use crate::error::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Changes to a file system, as few as possible. Each is atomic when the process dies; none is durable before the sync
/// that its caller owes it.
pub trait Fs: Send + Sync {
    /// Makes a directory that must not exist.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes an empty file that must not exist and opens it for reading and writing.
    fn create_file(&self, path: &Path) -> io::Result<File>;
    /// Makes a file's bytes and length durable (not its name: that is its directory's).
    fn sync_file(&self, path: &Path, file: &File) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name that must not exist.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file another name, in the place of what had it.
    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Fs for System {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        // 0750: the images are as secret as the machines they come from.
        fs::DirBuilder::new().mode(0o750).create(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(path)
    }

    fn sync_file(&self, _path: &Path, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
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
    let mut file = create_file(fs, path)?;
    file.write_all(bytes).map_err(|error| failed("write", path, error))?;
    sync_file(fs, path, &file)
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
pub(crate) fn create_file(fs: &dyn Fs, path: &Path) -> Result<File> {
    fs.create_file(path).map_err(|error| failed("create", path, error))
}

/// Makes a file's bytes durable.
pub(crate) fn sync_file(fs: &dyn Fs, path: &Path, file: &File) -> Result<()> {
    fs.sync_file(path, file).map_err(|error| failed("sync", path, error))
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
