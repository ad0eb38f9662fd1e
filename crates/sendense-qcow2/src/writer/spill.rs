//! L2 entries and odd refcounts on disk until the image is sealed, so that memory does not grow with the disk.
//!
//! A sparse scratch file: the entry of block `n` at `8 n`, big-endian, so that 64 KiB of it are one L2 table as it will lie
//! in the image; behind the last entry the refcounts of host clusters that are not 1, two bytes each, as `count + 1`.
//! Invariant: what was never written reads as zeros, which means "absent" for an entry and 1 for a refcount.

use super::Storage;
use crate::format::{CLUSTER_BYTES, TABLE_ENTRIES};
use sendense_block::{ByteOffset, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) struct Spill {
    file: Arc<dyn Storage>,
    blocks: u64,
    /// A bit per L2 table: something was put into it. 1 bit per 512 MiB of guest.
    touched: Box<[AtomicU64]>,
}

impl Spill {
    pub(super) fn new(file: Arc<dyn Storage>, blocks: u64) -> Self {
        let tables = blocks.div_ceil(TABLE_ENTRIES);
        Self { file, blocks, touched: (0..tables.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// How many blocks the disk has.
    pub(super) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The tables that hold something, in order.
    pub(super) fn tables(&self) -> impl Iterator<Item = u64> {
        (0..self.blocks.div_ceil(TABLE_ENTRIES)).filter(|table| self.is_touched(*table))
    }

    /// Stores the entries of blocks that follow each other, all on the disk.
    pub(super) fn write(&self, first: u64, entries: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file.write_at(ByteOffset(first * 8), &bytes)?;
        for table in tables_of(first, entries.len()) {
            self.touch(table);
        }
        Ok(())
    }

    /// The entries of blocks; 0 for absent ones and those beyond the end.
    pub(super) fn read(&self, first: u64, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        let on_disk = self.blocks.saturating_sub(first).min(count as u64) as usize;
        if tables_of(first, on_disk).any(|table| self.is_touched(table)) {
            self.read_sparse(ByteOffset(first * 8), &mut bytes[..on_disk * 8])?;
        }
        Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// The same whether or not anything is known of their tables.
    pub(super) fn read_anew(&self, first: u64, count: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; count * 8];
        self.read_sparse(ByteOffset(first * 8), &mut bytes)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// The table holds something.
    pub(super) fn touch(&self, table: u64) {
        if let Some(word) = self.touched.get((table / 64) as usize) {
            word.fetch_or(1 << (table % 64), Ordering::Release);
        }
    }

    /// The first of these blocks that has an entry.
    pub(super) fn first_held(&self, first: u64, count: usize) -> Result<Option<u64>> {
        if tables_of(first, count).all(|table| !self.is_touched(table)) {
            return Ok(None);
        }
        let entries = self.read(first, count)?;
        Ok(entries.iter().position(|entry| *entry != 0).map(|position| first + position as u64))
    }

    /// A table's entries as they will lie in the image.
    pub(super) fn read_table(&self, table: u64, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        let entries = self.blocks.saturating_sub(table * TABLE_ENTRIES).min(TABLE_ENTRIES);
        self.read_sparse(ByteOffset(table * CLUSTER_BYTES), &mut out[..entries as usize * 8])
    }

    /// Keeps the refcounts of host clusters from `first` on.
    pub(super) fn write_refcounts(&self, first: u64, refcounts: &[u16]) -> Result<()> {
        // A frame has 9 bytes or more, so a refcount is far below 2^16 - 1 and the addition cannot overflow.
        let bytes: Vec<u8> = refcounts.iter().flat_map(|count| (count + 1).to_be_bytes()).collect();
        self.file.write_at(self.refcounts_at(first), &bytes)
    }

    /// Fills `out` with the refcounts of host clusters from `first` on, big-endian.
    pub(super) fn read_refcounts(&self, first: u64, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        self.read_sparse(self.refcounts_at(first), out)?;
        for bytes in out.as_chunks_mut::<2>().0 {
            *bytes = match u16::from_be_bytes(*bytes) {
                0 => 1,
                stored => stored - 1,
            }
            .to_be_bytes();
        }
        Ok(())
    }

    fn refcounts_at(&self, cluster: u64) -> ByteOffset {
        ByteOffset(self.blocks.next_multiple_of(TABLE_ENTRIES) * 8 + cluster * 2)
    }

    /// Reads what lies before the file's end; the rest of `out`, which is zero, stays.
    fn read_sparse(&self, at: ByteOffset, out: &mut [u8]) -> Result<()> {
        let there = self.file.size().0.saturating_sub(at.0).min(out.len() as u64) as usize;
        if there == 0 { Ok(()) } else { self.file.read_at(at, &mut out[..there]) }
    }

    fn is_touched(&self, table: u64) -> bool {
        self.touched
            .get((table / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Acquire) & 1 << (table % 64) != 0)
    }
}

fn tables_of(first: u64, count: usize) -> std::ops::Range<u64> {
    if count == 0 { 0..0 } else { first / TABLE_ENTRIES..(first + count as u64 - 1) / TABLE_ENTRIES + 1 }
}
