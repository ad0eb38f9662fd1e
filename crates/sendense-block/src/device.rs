//! What a device can do, as small traits that compose.
//!
//! All calls are blocking, take `&self`, and may run from several threads at once. Offsets count from the device's start;
//! a request beyond its end fails with [`crate::Kind::OutOfRange`] and does nothing.

use crate::error::Result;
use crate::extent::{Extent, ExtentSet};
use crate::units::{ByteLen, ByteOffset};

/// Gives bytes.
pub trait ReadAt: Send + Sync {
    /// The device's size. Does not change while it is open.
    fn size(&self) -> ByteLen;

    /// Fills `buf` with the bytes at `at`: all of it or an error. On an error `buf` holds anything.
    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()>;
}

/// Takes bytes.
pub trait WriteAt: Send + Sync {
    /// Writes all of `data` at `at`. On an error any part of it may be written. Durable only after [`Flush::flush`].
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()>;

    /// Writes the parts one after the other from `at` on, as one write where the device can: blocks that lie apart in
    /// memory and together on the device cost one system call. On an error any part of them may be written.
    fn write_vectored_at(&self, at: ByteOffset, parts: &[&[u8]]) -> Result<()> {
        let mut at = at;
        for part in parts {
            self.write_at(at, part)?;
            // `write_at` has shown that the part ends inside the number space.
            at = ByteOffset(at.0.saturating_add(part.len() as u64));
        }
        Ok(())
    }
}

/// Makes ranges read as zeros, sparsely where the device can.
pub trait ZeroRange: Send + Sync {
    /// After it the range reads as zeros. Durable only after [`Flush::flush`].
    fn zero_range(&self, range: Extent) -> Result<()>;
}

/// Makes writes durable.
pub trait Flush: Send + Sync {
    /// Returns when everything written before is on stable storage. After an error nothing written before may be relied
    /// on, and a second try proves nothing (a failed fsync drops dirty pages): give the device up.
    fn flush(&self) -> Result<()>;
}

/// What a range of a device holds, as far as is known without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// It may hold anything.
    Data,
    /// It reads as zeros, for certain.
    Zero,
}

/// A range and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedExtent {
    /// The range; never empty.
    pub extent: Extent,
    /// What it holds.
    pub content: Content,
}

/// Tells which ranges need no reading.
pub trait AllocationMap: Send + Sync {
    /// Sorted extents that cover exactly `within`, which must lie inside the device. Devices that cannot tell answer
    /// one [`Content::Data`] extent.
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>>;
}

/// Tells what changed since a point in time that the one who made the map knows.
pub trait ChangeMap: Send + Sync {
    /// The bytes of `within` that may have changed. Every byte not in the set has not changed.
    fn changed(&self, within: Extent) -> Result<ExtentSet>;
}

/// A device to back up from, or a chain to restore from.
pub trait Disk: ReadAt + AllocationMap {}
impl<T: ReadAt + AllocationMap + ?Sized> Disk for T {}

/// A device to restore to.
pub trait Target: WriteAt + ZeroRange + Flush {}
impl<T: WriteAt + ZeroRange + Flush + ?Sized> Target for T {}

/// Fails with `OutOfRange` when the range passes `size`; backends call it first.
pub fn check_range(device: &str, size: ByteLen, at: ByteOffset, len: usize) -> Result<()> {
    match at.0.checked_add(len as u64) {
        Some(end) if end <= size.0 => Ok(()),
        _ => {
            Err(crate::Error::new(crate::Kind::OutOfRange, format!("access {len} bytes of {device}, which has {size}"))
                .at(at))
        }
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn size(&self) -> ByteLen { (**self).size() }
            fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> { (**self).read_at(at, buf) }
        }
        impl<T: WriteAt + ?Sized> WriteAt for $pointer {
            fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> { (**self).write_at(at, data) }
            fn write_vectored_at(&self, at: ByteOffset, parts: &[&[u8]]) -> Result<()> {
                (**self).write_vectored_at(at, parts)
            }
        }
        impl<T: ZeroRange + ?Sized> ZeroRange for $pointer {
            fn zero_range(&self, range: Extent) -> Result<()> { (**self).zero_range(range) }
        }
        impl<T: Flush + ?Sized> Flush for $pointer {
            fn flush(&self) -> Result<()> { (**self).flush() }
        }
        impl<T: AllocationMap + ?Sized> AllocationMap for $pointer {
            fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> { (**self).allocation(within) }
        }
    )*};
}
forward!(Box<T>, std::sync::Arc<T>, &T);
