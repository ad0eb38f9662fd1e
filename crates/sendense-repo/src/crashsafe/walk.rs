//! Looking without touching: opening what lies beneath a folder, listing it, reading small files.
//!
//! A repository folder is somebody else's input: no symbolic link in it is followed, only regular files are opened, and a
//! small file is small or refused.

use super::failed;
use crate::error::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

/// What a directory entry is, without following links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kindred {
    File,
    Directory,
    Other,
}

/// The entries of a directory, sorted by name. Fails whole rather than be incomplete.
pub(crate) fn entries(path: &Path) -> Result<Vec<(OsString, Kindred)>> {
    let list = || -> io::Result<Vec<(OsString, Kindred)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let kind = match (kind.is_file(), kind.is_dir()) {
                (true, _) => Kindred::File,
                (_, true) => Kindred::Directory,
                _ => Kindred::Other,
            };
            names.push((entry.file_name(), kind));
        }
        names.sort();
        Ok(names)
    };
    list().map_err(|error| failed("list", path, error))
}

impl PartialOrd for Kindred {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kindred {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

/// Opens a regular file beneath `root` for reading, following no symbolic link below `root`.
pub(crate) fn open_beneath(root: &Path, relative: &Path) -> Result<File> {
    let at = || root.join(relative);
    let mut components = Vec::new();
    for component in relative.components() {
        match component {
            Component::Normal(name) => components.push(name),
            _ => return Err(Error::new(Kind::Denied, format!("{} is not a plain relative path", relative.display()))),
        }
    }
    let Some((last, folders)) = components.split_last() else {
        return Err(Error::new(Kind::Denied, "an empty path names no file"));
    };
    let opened = || -> Result<File, Errno> {
        let folder_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = rustix::fs::open(root, folder_flags, Mode::empty())?;
        for name in folders {
            folder = rustix::fs::openat(&folder, *name, folder_flags | OFlags::NOFOLLOW, Mode::empty())?;
        }
        // NONBLOCK: a FIFO in the folder must not make us wait for its writer. It means nothing to a regular file.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&folder, *last, flags, Mode::empty())?.into())
    };
    let file = match opened() {
        Ok(file) => file,
        Err(Errno::LOOP | Errno::MLINK | Errno::NOTDIR) => {
            return Err(Error::new(Kind::Denied, format!("{} is or lies behind a link", at().display())));
        }
        Err(errno) => return Err(failed("open", &at(), errno.into())),
    };
    let metadata = file.metadata().map_err(|error| failed("stat", &at(), error))?;
    if metadata.file_type().is_file() {
        Ok(file)
    } else {
        Err(Error::new(Kind::Denied, format!("{} is not a regular file", at().display())))
    }
}

/// Reads a whole file of at most `bytes_max`. Reserves no more than the file has.
pub(crate) fn read_small(root: &Path, relative: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let file = open_beneath(root, relative)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long, also one that grows while it is read.
    let read = file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| failed("read", &root.join(relative), error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::invalid(format!("{} is larger than {bytes_max} bytes", relative.display())));
    }
    Ok(bytes)
}

/// True when both names are there and mean one inode.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> Result<bool> {
    let identity = |path: &Path| match path.symlink_metadata() {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("stat", path, error)),
    };
    Ok(matches!((identity(a)?, identity(b)?), (Some(a), Some(b)) if a == b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_fifos_and_ways_out_are_refused() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("vm")).unwrap();
        fs::write(root.join("vm/good"), "g").unwrap();
        symlink(outside.path().join("secret"), root.join("vm/link")).unwrap();
        symlink(outside.path(), root.join("away")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("vm/fifo"), Mode::RWXU).unwrap();
        assert_eq!(read_small(root, Path::new("vm/good"), 1).unwrap(), b"g");
        assert_eq!(read_small(root, Path::new("vm/good"), 0).unwrap_err().kind, Kind::Invalid);
        for path in ["vm/link", "away/secret", "vm/fifo", "../x", "/etc/passwd", "vm", "", "."] {
            assert_eq!(read_small(root, Path::new(path), 9).unwrap_err().kind, Kind::Denied, "{path}");
        }
        assert_eq!(read_small(root, Path::new("vm/none"), 9).unwrap_err().kind, Kind::NotFound);
    }

    #[test]
    fn hard_links_are_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "").unwrap();
        assert!(!is_same_file(&a, &b).unwrap());
        fs::hard_link(&a, &b).unwrap();
        assert!(is_same_file(&a, &b).unwrap());
    }
}
