//! A file system that the guest's kernel has mounted.
//!
//! Every path is opened below the mount's root, component by component as far as the kernel is concerned: no link is followed,
//! no mount entered, and nothing but folders and regular files is ever opened for reading.
//!
//! A page's cursor is the number of entries before it: what kernels count by grows from entry to entry in some file systems and
//! jumps to and fro in others (JFS), and a cursor that does not grow is taken for a circle.
//!
//! Invariant: no descriptor of this module leads out of its volume.

use crate::error::{Error, Result};
use crate::meta::{Entry, Facts, FileType, GuestTime, Meta, Page};
use crate::native::{FileRead, FileSystem};
use crate::path::GuestPath;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Bytes of a path that one call takes; deeper folders are reached in steps.
const STEP_BYTES: usize = 3072;

/// The mounted file system.
pub struct Mounted {
    root: OwnedFd,
    facts: Facts,
    /// Where the last page ended, so that the next one need not count its way there.
    place: Option<Place>,
}

struct Place {
    folder: GuestPath,
    after: u64,
    /// The kernel's own cursor.
    offset: u64,
}

impl Mounted {
    /// Takes what is mounted at `place`.
    pub fn open(place: &Path, facts: Facts) -> Result<Mounted> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, place, flags, Mode::empty()).map_err(fault)?;
        Ok(Mounted { root, facts, place: None })
    }

    fn at(&self, path: &GuestPath, flags: OFlags) -> Result<OwnedFd> {
        let mut names = path.components().peekable();
        let mut folder: Option<OwnedFd> = None;
        loop {
            let mut step = Vec::new();
            while let Some(name) = names.next_if(|name| step.is_empty() || step.len() + name.len() < STEP_BYTES) {
                if !step.is_empty() {
                    step.push(b'/');
                }
                step.extend_from_slice(name);
            }
            let below = folder.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            if names.peek().is_none() {
                return open(below, &step, flags);
            }
            folder = Some(open(below, &step, OFlags::PATH | OFlags::DIRECTORY)?);
        }
    }
}

fn open(below: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // A link at the end is opened as itself, for its target; one on the way is none that the caller has left in.
    if !flags.contains(OFlags::PATH) {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    rustix::fs::openat2(below, path, flags, Mode::empty(), resolve).map_err(fault)
}

/// What the kernel answers, in our words.
fn fault(errno: Errno) -> Error {
    match errno {
        Errno::NOENT => Error::NotFound,
        Errno::NOTDIR => Error::NotDirectory,
        Errno::LOOP | Errno::XDEV => Error::NotDirectory,
        Errno::NAMETOOLONG => Error::NotFound,
        Errno::UCLEAN | Errno::BADMSG => Error::corrupt(errno.to_string()),
        Errno::OPNOTSUPP => Error::unsupported("the guest's kernel does not read this"),
        // For example an encrypted folder's key.
        Errno::NOKEY => Error::unsupported("the file is encrypted by its file system"),
        other => Error::Io(format!("in the appliance: {other}")),
    }
}

fn meta(folder: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<Meta> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(folder, name, flags, StatxFlags::BASIC_STATS).map_err(fault)?;
    let mode = u32::from(stat.stx_mode);
    let file_type = match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::RegularFile => FileType::File,
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::Other,
    };
    Ok(Meta {
        inode: stat.stx_ino,
        file_type,
        size_bytes: stat.stx_size,
        mode: mode & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        links: stat.stx_nlink,
        modified: Some(GuestTime { seconds: stat.stx_mtime.tv_sec, nanoseconds: stat.stx_mtime.tv_nsec }),
    })
}

impl FileSystem for Mounted {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn stat(&mut self, path: &GuestPath) -> Result<Meta> {
        meta(self.at(path, OFlags::PATH)?.as_fd(), c"")
    }

    fn readlink(&mut self, path: &GuestPath) -> Result<Vec<u8>> {
        let link = self.at(path, OFlags::PATH)?;
        let target = rustix::fs::readlinkat(link, "", Vec::new());
        // What is no link answers so.
        target.map(std::ffi::CString::into_bytes).map_err(|errno| match errno {
            Errno::INVAL | Errno::NOENT => Error::NotRegular,
            other => fault(other),
        })
    }

    fn list(&mut self, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page> {
        let folder = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Dir::read_from(&folder).map_err(fault)?;
        let after = after.unwrap_or_default();
        let (mut passed, mut last) = (0, 0);
        if let Some(place) = self.place.take_if(|place| place.after == after && place.folder == *path) {
            names.seek(place.offset as i64).map_err(fault)?;
            passed = after;
        }
        let mut page = Page::default();
        for name in names {
            let name = name.map_err(fault)?;
            if matches!(name.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if page.entries.len() == limit {
                page.next = Some(passed);
                self.place = Some(Place { folder: path.clone(), after: passed, offset: last });
                break;
            }
            passed += 1;
            last = name.offset() as u64;
            if passed <= after {
                continue;
            }
            let meta = match meta(folder.as_fd(), name.file_name()) {
                Ok(meta) => meta,
                // A name whose entry is damaged does not hide the others.
                Err(Error::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let target = match meta.file_type {
                FileType::Symlink => rustix::fs::readlinkat(&folder, name.file_name(), Vec::new()).ok(),
                _ => None,
            };
            let name = name.file_name().to_bytes().to_vec();
            page.entries.push(Entry { name, meta, target: target.map(std::ffi::CString::into_bytes) });
        }
        Ok(page)
    }

    fn open(&mut self, path: &GuestPath) -> Result<Box<dyn FileRead>> {
        // The kernel must not open a device or a pipe even when the caller's knowledge is old.
        if self.stat(path)?.file_type != FileType::File {
            return Err(Error::NotRegular);
        }
        let file = self.at(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let size = meta(file.as_fd(), c"")?.size_bytes;
        Ok(Box::new(OpenFile { file, size }))
    }
}

struct OpenFile {
    file: OwnedFd,
    size: u64,
}

impl FileRead for OpenFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&self.file, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fault(errno)),
            }
        }
        Ok(done)
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        if offset >= self.size {
            return Ok(None);
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) if start < self.size => start,
            Ok(_) | Err(Errno::NXIO) => return Ok(None),
            // The file system does not know its holes.
            Err(_) => return Ok(Some(offset..self.size)),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(self.size).min(self.size);
        Ok((start < end).then_some(start..end))
    }
}
