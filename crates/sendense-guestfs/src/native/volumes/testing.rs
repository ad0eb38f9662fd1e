//! Disks in memory.

use sendense_block::device::check_range;
use sendense_block::{ByteLen, ByteOffset, ReadAt};
use std::sync::Arc;

struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn size(&self) -> ByteLen {
        ByteLen(self.0.len() as u64)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        check_range("memory", self.size(), at, buf.len())?;
        buf.copy_from_slice(&self.0[at.0 as usize..at.0 as usize + buf.len()]);
        Ok(())
    }
}

/// A disk with these bytes.
pub fn disk(bytes: Vec<u8>) -> Arc<dyn ReadAt> {
    Arc::new(Bytes(bytes))
}
