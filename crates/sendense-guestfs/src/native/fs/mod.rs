//! File systems: which one a volume holds, and its reader.
//!
//! Each reader is a `volume::Volume`; paths, pages and reading are the same for all. Invariant: memory is bounded by
//! constants (12 MiB of cache, 8 MiB of name indexes, 16 to 48 MiB while a log is replayed), never by a number on the disk.

mod btrfs;
mod bytes;
mod calendar;
mod crc32c;
mod device;
mod ext4;
mod fat;
pub mod foreign;
mod iso;
mod ntfs;
mod sectors;
mod unpack;
mod volume;
mod xfs;

use crate::error::{Error, Result};
use crate::native::FileSystem;
use sendense_block::{ByteOffset, ReadAt};
use std::sync::Arc;
use volume::Tree;

/// What the device holds, as `blkid` names it; none when it is nothing known.
///
/// # Errors
/// [`Error::Io`] when the device cannot be read.
pub fn detect(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    for detect in [ext4::detect, xfs::detect, btrfs::detect, ntfs::detect, fat::detect, iso::detect] {
        if let Some(kind) = detect(device)? {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// Opens the file system that the device holds. A log is replayed in memory.
///
/// # Errors
/// [`Error::Unsupported`] for what is known but beyond this reader (or not known at all), [`Error::Corrupt`] for what
/// contradicts itself.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Box<dyn FileSystem>> {
    match detect(&*device)? {
        Some("ext2" | "ext3" | "ext4") => Ok(Box::new(Tree::new(ext4::open(device)?))),
        Some("xfs") => Ok(Box::new(Tree::new(xfs::open(device)?))),
        Some("ntfs") => Ok(Box::new(Tree::new(ntfs::open(device)?))),
        Some("vfat") => Ok(Box::new(Tree::new(fat::open(device)?))),
        Some("iso9660") => Ok(Box::new(Tree::new(iso::open(device)?))),
        Some("btrfs") => Ok(Box::new(Tree::new(btrfs::open(device)?))),
        Some(kind) => Err(Error::unsupported(format!("file system {kind}"))),
        None => Err(Error::unsupported("no known file system")),
    }
}

/// `len` bytes at `at` for a detection; none when the device is shorter.
fn read_start(device: &dyn ReadAt, at: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if at + len as u64 > device.size().0 {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    device.read_at(ByteOffset(at), &mut bytes)?;
    Ok(Some(bytes))
}
