//! L1 and L2 tables read in slices, a bounded number of them kept.
//!
//! Bound: 64 slices of 8 KiB = 512 KiB per image, which map 4 GiB of guest with 64 KiB clusters: several sequential readers,
//! or a file system's hot places. A chain of 256 images stays below 128 MiB, and only what is touched is allocated.
//! Invariant: a slice is cached under its place in the file, and a file being read does not change.

use parking_lot::RwLock;
use sendense_block::{ByteOffset, ReadAt, Result};
use std::sync::Arc;

/// Bytes of a slice.
pub(crate) const SLICE_BYTES: u64 = 8192;
const SLOTS: usize = 64;

/// Some entries of a table that follow each other.
pub(crate) type Slice = Arc<[u64]>;

type Slot = RwLock<Option<(ByteOffset, Slice)>>;

/// A cache without eviction order: each place in the file has one slot, and the last one wins. A conflict costs one read
/// of 8 KiB, and a hit costs a hash and a shared lock.
pub(crate) struct Tables {
    slots: Box<[Slot]>,
}

impl Tables {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| RwLock::new(None)).collect() }
    }

    /// The `count` entries at `at`, at most a slice of them.
    pub(crate) fn slice(&self, file: &dyn ReadAt, at: ByteOffset, count: usize) -> Result<Slice> {
        // Fibonacci hashing: neighbours spread over the slots. The shift keeps 6 bits, 64 slots.
        let slot = &self.slots[((at.0 / 512).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize];
        // In a broken image one place may be asked for as parts of two tables, with different lengths.
        if let Some((_, slice)) = slot.read().as_ref().filter(|(held, slice)| *held == at && slice.len() == count) {
            return Ok(slice.clone());
        }
        let mut bytes = vec![0; count * 8];
        file.read_at(at, &mut bytes).map_err(|error| error.within("read a mapping table"))?;
        let slice: Slice = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
        *slot.write() = Some((at, slice.clone()));
        Ok(slice)
    }
}
