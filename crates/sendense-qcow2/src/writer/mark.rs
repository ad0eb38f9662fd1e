//! Going on with an image after the process that wrote it has died.
//!
//! ```text
//! put … put  mark  put … (the process dies)      resume  put … seal
//!            '- the file below here is whole       '- what came after the mark is taken out of the tables
//! ```
//!
//! What lives here: what a writer has in memory beside its files, and how the two are brought together again. What does not:
//! making any of it durable, and where a [`Mark`] is kept: that is the caller's.
//!
//! Invariant: a resumed writer holds exactly the blocks that were put before the mark, and perhaps zero blocks that were put
//! after it and that the caller knows, too. Where its count of stored blocks is another than the mark's, there is no writer.

use super::{Counts, Held, Observer, Spec, Storage, Writer, unusable};
use crate::format::{CLUSTER_BITS, CLUSTER_BYTES, Entry, TABLE_ENTRIES, ZERO, entry};
use sendense_block::{BlockIndex, ByteLen, Error, Kind, Result, block_count};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What was written so far. It tells the truth once both files are durable as they were when it was made, or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Host clusters that are taken, the header's among them.
    pub clusters: u64,
    /// Of these, clusters that hold compressed blocks.
    pub arena_clusters: u64,
    /// Blocks stored as they are.
    pub raw_blocks: u64,
    /// Blocks stored as a frame.
    pub compressed_blocks: u64,
    /// Sum of all payloads.
    pub data_bytes: u64,
}

impl Mark {
    /// The length of the image at this mark. What lies behind it was written later and is of no use.
    pub fn image_bytes(&self) -> Option<ByteLen> {
        self.clusters.checked_mul(CLUSTER_BYTES).map(ByteLen)
    }

    /// The longest that the scratch file of a disk of this size can be at this mark.
    pub fn scratch_bytes(&self, capacity: ByteLen) -> Option<ByteLen> {
        let entries = block_count(capacity).checked_next_multiple_of(TABLE_ENTRIES)?.checked_mul(8)?;
        entries.checked_add(self.clusters.checked_mul(2)?).map(ByteLen)
    }
}

impl Writer {
    /// Waits for puts under way, writes what is packed, and tells how far the image is; `also` runs while nobody puts, and sees
    /// what the observer has heard up to here. The rest of an arena may stay a hole in the file; however often an image is marked
    /// from its beginning on, its holes are less than a hundredth of what is packed.
    pub fn mark<T>(&self, also: impl FnOnce() -> T) -> Result<(Mark, T)> {
        let sealed = self.sealed.write();
        if *sealed || self.failed.load(Ordering::SeqCst) {
            return Err(unusable(*sealed));
        }
        self.finish_arena().inspect_err(|_| self.failed.store(true, Ordering::SeqCst))?;
        self.arena.marked();
        let count = |of: fn(&Counts) -> &std::sync::atomic::AtomicU64| of(&self.counts).load(Ordering::Relaxed);
        let mark = Mark {
            clusters: self.cursor.load(Ordering::Relaxed),
            arena_clusters: count(|counts| &counts.arena_clusters),
            raw_blocks: count(|counts| &counts.raw_blocks),
            compressed_blocks: count(|counts| &counts.compressed_blocks),
            data_bytes: count(|counts| &counts.data_bytes),
        };
        Ok((mark, also()))
    }

    /// Goes on at a mark. `file` is as long as [`Mark::image_bytes`] says, `spill` no longer than [`Mark::scratch_bytes`].
    ///
    /// `agree` is told, table by table from the first block of the disk to the last, which blocks the tables hold, and takes
    /// out those that the caller does not know. What is taken out of the tables here is not durable before the caller has
    /// flushed `spill`, which it must before the first put.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] when the files are not what the mark says.
    pub fn resume(
        file: Arc<dyn Storage>,
        spill: Arc<dyn Storage>,
        spec: Spec,
        observer: Arc<dyn Observer>,
        mark: &Mark,
        agree: &mut dyn FnMut(BlockIndex, &mut [Held]) -> Result<()>,
    ) -> Result<Self> {
        let length = mark.image_bytes().filter(|length| *length == file.size() && mark.clusters > 0);
        let length = length.ok_or_else(|| corrupt("the image does not have the length that the mark says"))?;
        if mark.scratch_bytes(spec.capacity).is_none_or(|most| spill.size() > most) {
            return Err(corrupt("the scratch file is longer than the mark allows"));
        }
        let writer = Self::blank(file, spill, spec, observer)?;
        let found = writer.take_out_what_came_later(length, agree)?;
        if (found.raw, found.compressed) != (mark.raw_blocks, mark.compressed_blocks) {
            return Err(corrupt("the tables do not hold as many blocks as the mark says"));
        }
        let counts = &writer.counts;
        counts.raw_blocks.store(found.raw, Ordering::Relaxed);
        counts.compressed_blocks.store(found.compressed, Ordering::Relaxed);
        counts.zero_blocks.store(found.zero, Ordering::Relaxed);
        counts.data_bytes.store(mark.data_bytes, Ordering::Relaxed);
        counts.arena_clusters.store(mark.arena_clusters, Ordering::Relaxed);
        writer.cursor.store(mark.clusters, Ordering::Relaxed);
        writer.arena.marked();
        Ok(writer)
    }

    fn take_out_what_came_later(
        &self,
        length: ByteLen,
        agree: &mut dyn FnMut(BlockIndex, &mut [Held]) -> Result<()>,
    ) -> Result<Found> {
        let mut found = Found::default();
        let mut held = Vec::new();
        for table in 0..self.spill.blocks().div_ceil(TABLE_ENTRIES) {
            let first = table * TABLE_ENTRIES;
            let count = (self.spill.blocks() - first).min(TABLE_ENTRIES) as usize;
            let mut entries = self.spill.read_anew(first, count)?;
            held.clear();
            held.extend(entries.iter().map(|raw| held_below(*raw, length)));
            agree(BlockIndex(first), &mut held)?;
            let mut is_changed = false;
            for (raw, held) in entries.iter_mut().zip(&held) {
                match (held, entry(*raw, CLUSTER_BITS)) {
                    (Held::Absent, _) => {
                        is_changed |= *raw != 0;
                        *raw = 0;
                    }
                    (Held::Zero, _) => found.zero += 1,
                    (Held::Data, Entry::Compressed(..)) => found.compressed += 1,
                    (Held::Data, _) => found.raw += 1,
                }
            }
            if is_changed {
                self.spill.write(first, &entries)?;
            } else if held.iter().any(|held| *held != Held::Absent) {
                self.spill.touch(table);
            }
        }
        Ok(found)
    }
}

#[derive(Default)]
struct Found {
    raw: u64,
    compressed: u64,
    zero: u64,
}

/// What an entry holds, where that lies between the header and the end of the file.
fn held_below(raw: u64, length: ByteLen) -> Held {
    let within = |at: u64, bytes: u64| at >= CLUSTER_BYTES && at.checked_add(bytes).is_some_and(|end| end <= length.0);
    match entry(raw, CLUSTER_BITS) {
        // Ours have no other bit.
        Entry::Zero if raw == ZERO => Held::Zero,
        Entry::Raw(at) if at.0.is_multiple_of(CLUSTER_BYTES) && within(at.0, CLUSTER_BYTES) => Held::Data,
        Entry::Compressed(at, bytes) if within(at.0, bytes.0) => Held::Data,
        _ => Held::Absent,
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("go on with an image: {why}"))
}
