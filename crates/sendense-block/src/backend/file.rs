//! A file or a block device.

use crate::device::{AllocationMap, Content, Flush, MappedExtent, ReadAt, WriteAt, ZeroRange, check_range};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::units::{ByteLen, ByteOffset};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Options {
    /// For reading; nothing is created or changed.
    Read,
    /// For reading and writing an existing file or block device.
    Write,
    /// A new file for reading and writing; fails with [`Kind::Exists`] when there is one.
    CreateNew,
}

/// A regular file or a block device.
///
/// A regular file opened for writing grows by writes beyond its end: its size is the largest end seen. Reading beyond the
/// end fails.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    name: String,
    size: AtomicU64,
    grows: bool,
}

impl File {
    /// Opens a path. Anything but a regular file or a block device is refused (a FIFO would hang, a directory lies).
    pub fn open(path: &Path, options: Options) -> Result<Self> {
        let name = path.display().to_string();
        let mut open = fs::OpenOptions::new();
        open.read(true);
        match options {
            Options::Read => {}
            Options::Write => {
                open.write(true);
            }
            Options::CreateNew => {
                open.write(true).create_new(true);
            }
        }
        // O_NONBLOCK: opening a FIFO that somebody put there must not wait for a writer. It does nothing on files.
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut open, rustix::fs::OFlags::NONBLOCK.bits() as i32);
        let file = open.open(path).map_err(|error| Error::io(format!("open {name}"), error))?;
        Self::from_std(file, name, options != Options::Read)
    }

    /// Takes an open file. `name` is used in messages only; `grows` lets writes extend a regular file.
    pub fn from_std(file: fs::File, name: String, grows: bool) -> Result<Self> {
        let metadata = file.metadata().map_err(|error| Error::io(format!("stat {name}"), error))?;
        let kind = metadata.file_type();
        let size = if kind.is_file() {
            metadata.len()
        } else if kind.is_block_device() {
            // A block device's length is where its end lies.
            rustix::fs::seek(&file, SeekFrom::End(0))
                .map_err(|errno| Error::io(format!("size of {name}"), errno.into()))?
        } else {
            return Err(Error::new(Kind::Invalid, format!("{name} is neither a regular file nor a block device")));
        };
        Ok(Self { file, name, size: AtomicU64::new(size), grows: grows && kind.is_file() })
    }

    /// Sets the size of a regular file; what is added reads as zeros.
    pub fn set_len(&self, size: ByteLen) -> Result<()> {
        self.file.set_len(size.0).map_err(|error| self.error("resize", ByteOffset(size.0), error))?;
        self.size.store(size.0, Ordering::SeqCst);
        Ok(())
    }

    /// Tells the kernel that a range will not be needed again from the page cache. Best effort.
    pub fn forget(&self, range: Extent) {
        let len = std::num::NonZeroU64::new(range.len().0);
        let _ = rustix::fs::fadvise(&self.file, range.start().0, len, rustix::fs::Advice::DontNeed);
    }

    /// Copies a range of another file to the same place in this one, inside the kernel, which spares two ways through memory; some
    /// network file systems need not move the bytes at all. Returns how many bytes were copied, from the start: fewer than asked, or none,
    /// where it cannot be done or something failed. Whoever reads and writes the rest learns why. The same as a write for durability.
    pub fn take(&self, of: &File, range: Extent) -> ByteLen {
        let end = range.end().0;
        let mut at = range.start().0;
        if !self.grows && end > self.size().0 {
            return ByteLen(0);
        }
        while at < end {
            let (mut from, mut to) = (at, at);
            let len = usize::try_from(end - at).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(&of.file, Some(&mut from), &self.file, Some(&mut to), len) {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => break,
                Ok(copied) => at += copied as u64,
            }
        }
        self.size.fetch_max(at, Ordering::SeqCst);
        ByteLen(at - range.start().0)
    }

    /// The open file.
    pub fn as_std(&self) -> &fs::File {
        &self.file
    }

    /// The name used in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn error(&self, op: &str, at: ByteOffset, error: io::Error) -> Error {
        Error::io(format!("{op} {}", self.name), error).at(at)
    }
}

impl ReadAt for File {
    fn size(&self) -> ByteLen {
        ByteLen(self.size.load(Ordering::SeqCst))
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        check_range(&self.name, self.size(), at, buf.len())?;
        self.file.read_exact_at(buf, at.0).map_err(|error| self.error("read", at, error))
    }
}

impl WriteAt for File {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let end = at.0.saturating_add(data.len() as u64);
        if !self.grows {
            check_range(&self.name, self.size(), at, data.len())?;
        }
        self.file.write_all_at(data, at.0).map_err(|error| self.error("write", at, error))?;
        self.size.fetch_max(end, Ordering::SeqCst);
        Ok(())
    }

    fn write_vectored_at(&self, at: ByteOffset, parts: &[&[u8]]) -> Result<()> {
        // 1024 parts are what Linux takes in one call (IOV_MAX).
        let mut at = at.0;
        for parts in parts.chunks(1024) {
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let len: usize = parts.iter().map(|part| part.len()).sum();
            if !self.grows {
                check_range(&self.name, self.size(), ByteOffset(at), len)?;
            }
            let mut written = match rustix::io::pwritev(&self.file, &slices, at) {
                Ok(written) => written,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(self.error("write", ByteOffset(at), errno.into())),
            };
            self.size.fetch_max(at.saturating_add(written as u64), Ordering::SeqCst);
            // A short write (a signal, a nearly full disk) is finished part by part, which also finds the error's cause.
            for part in parts {
                let done = written.min(part.len());
                if done < part.len() {
                    self.write_at(ByteOffset(at.saturating_add(done as u64)), &part[done..])?;
                }
                written -= done;
                at = at.saturating_add(part.len() as u64);
            }
        }
        Ok(())
    }
}

impl ZeroRange for File {
    /// Punches a hole, or writes zeros where the file system or device cannot.
    fn zero_range(&self, range: Extent) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if !self.grows {
            check_range(&self.name, self.size(), range.start(), usize::try_from(range.len().0).unwrap_or(usize::MAX))?;
        } else if range.end().0 > self.size().0 {
            self.set_len(ByteLen(range.end().0))?;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, range.start().0, range.len().0) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS | Errno::INVAL) => {
                // 1 MiB: large enough that the system call's cost does not show.
                let zeros = vec![0; range.len().0.min(1 << 20) as usize];
                for piece in range.pieces(ByteLen(1 << 20)) {
                    self.write_at(piece.start(), &zeros[..piece.len().0 as usize])?;
                }
                Ok(())
            }
            Err(errno) => Err(self.error("zero", range.start(), errno.into())),
        }
    }
}

impl Flush for File {
    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::io(format!("flush {}", self.name), error))
    }
}

impl AllocationMap for File {
    /// Asks the file system for holes (`SEEK_DATA`, `SEEK_HOLE`); block devices and file systems that cannot tell are
    /// all data.
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        check_range(&self.name, self.size(), within.start(), usize::try_from(within.len().0).unwrap_or(usize::MAX))?;
        let mut map = Vec::new();
        let mut push = |start: u64, end: u64, content| {
            let extent = Extent::between(ByteOffset(start), ByteOffset(end)).intersect(within);
            if !extent.is_empty() {
                map.push(MappedExtent { extent, content });
            }
        };
        let (mut at, end) = (within.start().0, within.end().0);
        while at < end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.max(at),
                Err(Errno::NXIO) => {
                    push(at, end, Content::Zero);
                    break;
                }
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => {
                    push(at, end, Content::Data);
                    break;
                }
                Err(errno) => return Err(self.error("seek data in", ByteOffset(at), errno.into())),
            };
            push(at, data, Content::Zero);
            if data >= end {
                break;
            }
            let hole = match rustix::fs::seek(&self.file, SeekFrom::Hole(data)) {
                // A file that shrank under us: let the read that follows find out.
                Ok(hole) if hole > data => hole,
                Ok(_) | Err(Errno::NXIO) => end,
                Err(errno) => return Err(self.error("seek hole in", ByteOffset(data), errno.into())),
            };
            push(data, hole, Content::Data);
            at = hole;
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_and_cover_the_range() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::open(&dir.path().join("disk"), Options::CreateNew).unwrap();
        file.set_len(ByteLen(8 << 20)).unwrap();
        file.write_at(ByteOffset(2 << 20), &[7; 4096]).unwrap();
        let map = file.allocation(Extent::whole(file.size())).unwrap();
        assert_eq!(map.iter().map(|mapped| mapped.extent.len().0).sum::<u64>(), 8 << 20);
        let data: ExtentSet = map.iter().filter(|m| m.content == Content::Data).map(|m| m.extent).collect();
        assert!(data.contains(Extent::new(ByteOffset(2 << 20), ByteLen(4096)).unwrap()));
        assert!(data.byte_len().0 <= 1 << 20, "{data:?}");
        file.zero_range(Extent::whole(ByteLen(8 << 20))).unwrap();
        let mut byte = [1];
        file.read_at(ByteOffset(2 << 20), &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn the_kernel_copies_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let old = File::open(&dir.path().join("old"), Options::CreateNew).unwrap();
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        old.write_at(ByteOffset(0), &bytes).unwrap();
        let new = File::open(&dir.path().join("new"), Options::CreateNew).unwrap();
        let range = Extent::new(ByteOffset(5000), ByteLen(200_000)).unwrap();
        assert_eq!(new.take(&old, range), range.len());
        assert_eq!(new.size(), ByteLen(205_000));
        let mut got = vec![1; 205_000];
        new.read_at(ByteOffset(0), &mut got).unwrap();
        assert!(got[..5000].iter().all(|byte| *byte == 0) && got[5000..] == bytes[5000..205_000]);
        // As far as there is something; nothing into what was opened for reading, or beyond the end of what does not grow.
        let beyond = Extent::new(ByteOffset(290_000), ByteLen(20_000)).unwrap();
        assert_eq!((new.take(&old, beyond), new.size()), (ByteLen(10_000), ByteLen(300_000)));
        let shut = File::open(&dir.path().join("new"), Options::Read).unwrap();
        assert_eq!((shut.take(&old, range), shut.take(&old, beyond)), (ByteLen(0), ByteLen(0)));
    }

    #[test]
    fn parts_land_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::open(&dir.path().join("disk"), Options::CreateNew).unwrap();
        // More parts than one system call takes, of uneven lengths, some empty.
        let parts: Vec<Vec<u8>> = (0..2500).map(|n| vec![n as u8; n % 7]).collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        file.write_vectored_at(ByteOffset(3), &slices).unwrap();
        let mut got = vec![0; file.size().0 as usize - 3];
        file.read_at(ByteOffset(3), &mut got).unwrap();
        assert_eq!(got, parts.concat());
    }

    #[test]
    fn reading_beyond_the_end_is_an_error_and_fifos_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [1; 100]).unwrap();
        let file = File::open(&path, Options::Read).unwrap();
        assert_eq!(file.read_at(ByteOffset(99), &mut [0; 2]).unwrap_err().kind, Kind::OutOfRange);
        assert_eq!(file.read_at(ByteOffset(u64::MAX), &mut [0; 2]).unwrap_err().kind, Kind::OutOfRange);
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(File::open(&fifo, Options::Read).unwrap_err().kind, Kind::Invalid);
        assert_eq!(File::open(&path, Options::CreateNew).unwrap_err().kind, Kind::Exists);
    }

    use crate::extent::ExtentSet;
}
