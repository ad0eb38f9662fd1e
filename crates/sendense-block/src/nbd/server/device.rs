//! What can be exported: a disk to read, or one to write as well.
//!
//! What lives here: the two kinds of devices, the requests both of them take, and the check of what an allocation map
//! says. What does not: names (`exports`), requests of clients (`work`). Invariant: a map that is handed on covers exactly
//! the range asked for, in order, whatever the device answered.

use crate::device::{AllocationMap, Content, Disk, MappedExtent, ReadAt, Target};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::units::{ByteLen, ByteOffset};
use std::sync::Arc;

/// Zeros are written in pieces of this size where a hole is not wanted; between two pieces a dead client is noticed.
const ZERO_PIECE_BYTES: usize = 1 << 20;

/// A disk that takes writes too, such as the overlay of an instant recovery. One object serves all connections, so a
/// flush by one makes durable what others wrote.
pub trait WritableDisk: Disk + Target {}
impl<T: Disk + Target + ?Sized> WritableDisk for T {}

/// A device to export.
#[derive(Clone)]
pub enum Device {
    /// Clients may read. Writes are refused with `EPERM`.
    ReadOnly(Arc<dyn Disk>),
    /// Clients may read and write.
    Writable(Arc<dyn WritableDisk>),
}

impl Device {
    /// A device that clients may only read.
    pub fn read_only(disk: impl Disk + 'static) -> Self {
        Self::ReadOnly(Arc::new(disk))
    }

    /// A device that clients may write to.
    pub fn writable(disk: impl WritableDisk + 'static) -> Self {
        Self::Writable(Arc::new(disk))
    }

    /// Its size, as it is: not rounded to sectors.
    pub fn size(&self) -> ByteLen {
        match self {
            Self::ReadOnly(disk) => disk.size(),
            Self::Writable(disk) => disk.size(),
        }
    }

    /// True when writes are refused.
    pub const fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly(_))
    }

    pub(super) fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::ReadOnly(disk) => disk.read_at(at, buf),
            Self::Writable(disk) => disk.read_at(at, buf),
        }
    }

    pub(super) fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.target()?.write_at(at, data)
    }

    pub(super) fn zero(&self, range: Extent) -> Result<()> {
        self.target()?.zero_range(range)
    }

    /// Writes zeros that stay allocated, for as long as `go_on` says so.
    pub(super) fn fill(&self, range: Extent, go_on: impl Fn() -> bool) -> Result<()> {
        let target = self.target()?;
        let zeros = vec![0; ZERO_PIECE_BYTES];
        for piece in range.pieces(ByteLen(ZERO_PIECE_BYTES as u64)) {
            if !go_on() {
                return Err(Error::new(Kind::Cancelled, "client left"));
            }
            // A piece is no longer than the zeros.
            target.write_at(piece.start(), &zeros[..piece.len().0 as usize])?;
        }
        Ok(())
    }

    /// Nothing was written to a device that takes no writes.
    pub(super) fn flush(&self) -> Result<()> {
        match self {
            Self::ReadOnly(_) => Ok(()),
            Self::Writable(disk) => disk.flush(),
        }
    }

    /// What the range holds; neighbours of the same content are one.
    pub(super) fn map(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        let found = match self {
            Self::ReadOnly(disk) => disk.allocation(within)?,
            Self::Writable(disk) => disk.allocation(within)?,
        };
        let mut map: Vec<MappedExtent> = Vec::with_capacity(found.len());
        let mut at = within.start();
        for next in found {
            if next.extent.is_empty() || next.extent.start() != at || next.extent.end() > within.end() {
                return Err(Error::new(Kind::Corrupt, format!("map of {within} goes on with {}", next.extent)).at(at));
            }
            at = next.extent.end();
            match map.last_mut().filter(|last| last.content == next.content) {
                Some(last) => last.extent = Extent::between(last.extent.start(), at),
                None => map.push(next),
            }
        }
        if at != within.end() {
            return Err(Error::new(Kind::Corrupt, format!("map of {within} ends early")).at(at));
        }
        Ok(map)
    }

    fn target(&self) -> Result<&Arc<dyn WritableDisk>> {
        match self {
            Self::Writable(disk) => Ok(disk),
            Self::ReadOnly(_) => Err(Error::new(Kind::Denied, "write to a device that is exported for reading")),
        }
    }
}

/// A device that tells nothing about its contents: everything may be data.
pub struct Unmapped<T>(pub T);

impl<T: ReadAt> ReadAt for Unmapped<T> {
    fn size(&self) -> ByteLen {
        self.0.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(at, buf)
    }
}

impl<T: ReadAt> AllocationMap for Unmapped<T> {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        let whole = MappedExtent { extent: within, content: Content::Data };
        Ok(if within.is_empty() { Vec::new() } else { vec![whole] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;

    struct Odd(Vec<(u64, u64, Content)>);

    impl ReadAt for Odd {
        fn size(&self) -> ByteLen {
            ByteLen(100)
        }
        fn read_at(&self, _: ByteOffset, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
    }

    impl AllocationMap for Odd {
        fn allocation(&self, _: Extent) -> Result<Vec<MappedExtent>> {
            let extent = |start, end| Extent::between(ByteOffset(start), ByteOffset(end));
            Ok(self
                .0
                .iter()
                .map(|(s, e, content)| MappedExtent { extent: extent(*s, *e), content: *content })
                .collect())
        }
    }

    #[test]
    fn a_map_that_does_not_cover_its_range_goes_no_further() {
        use Content::{Data, Zero};
        let whole = Extent::whole(ByteLen(100));
        let map = |parts: &[(u64, u64, Content)]| Device::read_only(Odd(parts.to_vec())).map(whole);
        for bad in [
            &[][..],
            &[(0, 99, Data)],
            &[(0, 101, Data)],
            &[(1, 100, Data)],
            &[(0, 50, Data), (60, 100, Zero)],
            &[(0, 60, Data), (50, 100, Zero)],
            &[(0, 0, Data), (0, 100, Zero)],
        ] {
            assert_eq!(map(bad).unwrap_err().kind, Kind::Corrupt, "{bad:?}");
        }
        let merged = map(&[(0, 10, Zero), (10, 40, Zero), (40, 100, Data)]).unwrap();
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[0].extent, Extent::between(ByteOffset(0), ByteOffset(40)));
    }

    #[test]
    fn filling_stops_when_nobody_waits_for_it() {
        let memory = Arc::new(Memory::from_bytes(vec![7; 3 << 20]));
        let device = Device::Writable(memory.clone());
        let rounds = std::sync::atomic::AtomicUsize::new(0);
        let go_on = || rounds.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 1;
        assert_eq!(device.fill(Extent::whole(ByteLen(3 << 20)), go_on).unwrap_err().kind, Kind::Cancelled);
        let bytes = memory.to_bytes();
        assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0) && bytes[1 << 20..].iter().all(|byte| *byte == 7));
        assert_eq!(Device::ReadOnly(memory).write(ByteOffset(0), &[1]).unwrap_err().kind, Kind::Denied);
    }
}
