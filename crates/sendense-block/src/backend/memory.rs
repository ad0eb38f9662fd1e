//! A device in memory, for tests and small images.

use crate::device::{AllocationMap, Content, Flush, MappedExtent, ReadAt, WriteAt, ZeroRange, check_range};
use crate::digest::is_zero;
use crate::error::Result;
use crate::extent::Extent;
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset};
use parking_lot::RwLock;

/// A device in memory with a fixed size.
#[derive(Debug, Default)]
pub struct Memory(RwLock<Vec<u8>>);

impl Memory {
    /// A device of zeros.
    pub fn zeroed(size: ByteLen) -> Self {
        Self::from_bytes(vec![0; usize::try_from(size.0).expect("a memory device fits into memory")])
    }

    /// A device with these bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }

    /// A copy of its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.read().clone()
    }
}

fn range(at: ByteOffset, len: usize) -> std::ops::Range<usize> {
    // `check_range` has shown that the range lies inside a vector.
    let start = at.0 as usize;
    start..start + len
}

impl ReadAt for Memory {
    fn size(&self) -> ByteLen {
        ByteLen(self.0.read().len() as u64)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let bytes = self.0.read();
        check_range("memory", ByteLen(bytes.len() as u64), at, buf.len())?;
        buf.copy_from_slice(&bytes[range(at, buf.len())]);
        Ok(())
    }
}

impl WriteAt for Memory {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let mut bytes = self.0.write();
        check_range("memory", ByteLen(bytes.len() as u64), at, data.len())?;
        bytes[range(at, data.len())].copy_from_slice(data);
        Ok(())
    }
}

impl ZeroRange for Memory {
    fn zero_range(&self, extent: Extent) -> Result<()> {
        let mut bytes = self.0.write();
        let len = usize::try_from(extent.len().0).unwrap_or(usize::MAX);
        check_range("memory", ByteLen(bytes.len() as u64), extent.start(), len)?;
        bytes[range(extent.start(), len)].fill(0);
        Ok(())
    }
}

impl Flush for Memory {
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl AllocationMap for Memory {
    /// Looks at the bytes, block by block.
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        let bytes = self.0.read();
        let len = usize::try_from(within.len().0).unwrap_or(usize::MAX);
        check_range("memory", ByteLen(bytes.len() as u64), within.start(), len)?;
        let mut map: Vec<MappedExtent> = Vec::new();
        for extent in within.pieces(ByteLen(BLOCK_BYTES)) {
            let zero = is_zero(&bytes[range(extent.start(), extent.len().0 as usize)]);
            let content = if zero { Content::Zero } else { Content::Data };
            match map.last_mut().filter(|last| last.content == content) {
                Some(last) => last.extent = Extent::between(last.extent.start(), extent.end()),
                None => map.push(MappedExtent { extent, content }),
            }
        }
        Ok(map)
    }
}
