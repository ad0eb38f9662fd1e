//! The end of an image: the open arena, L2 tables, L1 table, refcounts, and the header last.
//!
//! Everything is streamed; see the bound in the parent's header. Sections: Refcount table entry, L1 table entry, Header.

use super::{Sealed, Writer};
use crate::format::{CLUSTER_BYTES, COPIED, REFCOUNTS_PER_BLOCK, TABLE_ENTRIES};
use crate::header;
use sendense_block::{ByteLen, ByteOffset, Result};
use std::sync::atomic::Ordering;

/// L2 tables written with one call: 1 MiB.
const TABLES_PER_WRITE: usize = 16;

impl Writer {
    /// Alone: nobody puts any more.
    pub(super) fn write_tables(&self) -> Result<Sealed> {
        self.finish_arena()?;
        let (l1_table_offset, l1_size) = self.write_mapping()?;
        let (refcount_table_offset, refcount_table_clusters) = self.write_refcounts()?;
        let fields = header::Fields {
            capacity: self.capacity,
            l1_table_offset,
            l1_size,
            refcount_table_offset,
            refcount_table_clusters,
        };
        self.emit(ByteOffset(0), &header::encode(&fields, self.backing.as_ref()))?;
        let raw_blocks = self.counts.raw_blocks.load(Ordering::Relaxed);
        Ok(Sealed {
            file_bytes: ByteLen(self.cursor.load(Ordering::Relaxed) * CLUSTER_BYTES),
            data_clusters: raw_blocks + self.counts.arena_clusters.load(Ordering::Relaxed),
            raw_blocks,
            compressed_blocks: self.counts.compressed_blocks.load(Ordering::Relaxed),
            zero_blocks: self.counts.zero_blocks.load(Ordering::Relaxed),
            data_bytes: ByteLen(self.counts.data_bytes.load(Ordering::Relaxed)),
        })
    }

    /// Writes the arena that did not become full. Its empty clusters are given back when they are the file's last, else
    /// they stay behind as free clusters: a hole in the file, refcount 0.
    pub(super) fn finish_arena(&self) -> Result<()> {
        let Some(open) = self.arena.finish() else { return Ok(()) };
        let (start, end) = (open.start.0, open.end().0);
        let used_end = start + (open.bytes.len() as u64).next_multiple_of(CLUSTER_BYTES);
        self.write_arena(open)?;
        if self.cursor.load(Ordering::Relaxed) * CLUSTER_BYTES == end {
            self.cursor.store(used_end / CLUSTER_BYTES, Ordering::Relaxed);
            // The refcounts noted for what was given back would be taken for those of the tables.
            let given_back = (end - used_end) / CLUSTER_BYTES;
            return self.spill.write_refcounts(used_end / CLUSTER_BYTES, &vec![1; given_back as usize]);
        }
        let zeros = vec![0; CLUSTER_BYTES as usize];
        for at in (used_end..end).step_by(CLUSTER_BYTES as usize) {
            self.observer.wrote(ByteOffset(at), &zeros, None);
        }
        Ok(())
    }

    /// Writes the touched L2 tables and the L1 table; where that lies and its number of entries.
    fn write_mapping(&self) -> Result<(ByteOffset, u32)> {
        // An empty disk too gets an L1 table of one entry, for a table has to lie somewhere.
        let l1_entries = self.spill.blocks().div_ceil(TABLE_ENTRIES).max(1);
        let mut l1 = vec![0; (l1_entries * 8).next_multiple_of(CLUSTER_BYTES) as usize];
        let touched: Vec<u64> = self.spill.tables().collect();
        let mut tables = vec![0; TABLES_PER_WRITE.min(touched.len()) * CLUSTER_BYTES as usize];
        for group in touched.chunks(TABLES_PER_WRITE) {
            let start = self.allocate(group.len() as u64);
            let mut at = start.0;
            for (table, out) in group.iter().zip(tables.chunks_mut(CLUSTER_BYTES as usize)) {
                self.spill.read_table(*table, out)?;
                l1[*table as usize * 8..][..8].copy_from_slice(&(at | COPIED).to_be_bytes());
                at += CLUSTER_BYTES;
            }
            self.emit(start, &tables[..group.len() * CLUSTER_BYTES as usize])?;
        }
        let at = self.allocate(l1.len() as u64 / CLUSTER_BYTES);
        self.emit(at, &l1)?;
        Ok((at, u32::try_from(l1_entries).expect("the capacity's bound keeps the L1 table below 2^22 entries")))
    }

    /// Writes the refcount table and its blocks, which count themselves too; where the table lies and its clusters.
    fn write_refcounts(&self) -> Result<(ByteOffset, u32)> {
        let before = self.cursor.load(Ordering::Relaxed);
        let (mut blocks, mut table_clusters) = (0, 0);
        loop {
            let wanted = (before + table_clusters + blocks).div_ceil(REFCOUNTS_PER_BLOCK);
            let wanted_clusters = wanted.div_ceil(TABLE_ENTRIES);
            if (wanted, wanted_clusters) == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (wanted, wanted_clusters);
        }
        let at = self.allocate(table_clusters);
        let first_block = self.allocate(blocks);
        let mut table = vec![0; (table_clusters * CLUSTER_BYTES) as usize];
        for (n, entry) in (0..blocks).zip(table.as_chunks_mut::<8>().0) {
            *entry = (first_block.0 + n * CLUSTER_BYTES).to_be_bytes();
        }
        self.emit(at, &table)?;

        let clusters = self.cursor.load(Ordering::Relaxed);
        let mut block = vec![0; CLUSTER_BYTES as usize];
        for n in 0..blocks {
            let first = n * REFCOUNTS_PER_BLOCK;
            let here = (clusters - first).min(REFCOUNTS_PER_BLOCK) as usize * 2;
            self.spill.read_refcounts(first, &mut block[..here])?;
            block[here..].fill(0);
            self.emit(ByteOffset(first_block.0 + n * CLUSTER_BYTES), &block)?;
        }
        Ok((at, u32::try_from(table_clusters).expect("2 PiB of file need 128 clusters of refcount table")))
    }
}
