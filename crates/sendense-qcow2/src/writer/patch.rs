//! Goes on with a copy of a finished image: what of it stays is kept where it lies, new blocks and all tables are appended.
//!
//! ```text
//! | header, anew | the copy's clusters: kept, or stale and free ... | new data | L2 tables | L1 table | refcounts |
//! ```
//!
//! What lives here: which entries of the older image stay, what refcounts that makes, and which bytes of the copy nobody
//! needs any more (its tables among them). What does not: making the copy, and giving the room of stale bytes back.
//!
//! Invariant: refcounts are counted from the entries that are kept, never taken over, and no two entries share a raw cluster.
//!
//! Memory: the copy is gone through in windows of 2 Mi clusters (128 GiB of file), 4 bytes each: 8 MiB, whatever its size.
//! Each window costs one pass over the tables.

use super::{Held, Observer, Spec, Storage, Writer};
use crate::format::{CLUSTER_BITS, CLUSTER_BYTES, COPIED, Entry, TABLE_ENTRIES, ZERO, entry};
use crate::image::Image;
use sendense_block::{BlockIndex, ByteLen, ByteOffset, Error, Extent, Kind, Result, block_count};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Clusters per window.
const WINDOW: u64 = 2 << 20;
/// Stale bytes are told in whole pieces of this size, which every file system can give back.
const PIECE_BYTES: u64 = 4096;
/// Pieces of a cluster: the bits of a window's mask.
const PIECES: u64 = CLUSTER_BYTES / PIECE_BYTES;
/// In a window's refcounts: a cluster that one entry has for itself. Frames have 9 bytes or more, so no count comes near.
const ALONE: u16 = u16::MAX;
/// What the length of a frame is taken to be less than its entry says, which is in whole sectors: half of one.
const SECTOR_REST: u64 = 255;

/// Is told of the blocks of one table, from the first of the disk to the last, what the older image holds of them, and takes
/// out those that do not stay.
pub type Keep<'a> = dyn FnMut(BlockIndex, &mut [Held]) -> Result<()> + 'a;

/// What stays of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// Blocks stored as they are.
    pub raw_blocks: u64,
    /// Blocks stored as a frame.
    pub compressed_blocks: u64,
    /// Blocks flagged zero.
    pub zero_blocks: u64,
    /// Payload of the blocks that stay; of frames about, for their true length stands nowhere.
    pub kept_bytes: u64,
    /// The same of those that do not stay.
    pub dropped_bytes: u64,
}

/// A part of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Blocks that stay lie in it.
    Live(Extent),
    /// Nothing that is needed lies in it.
    Stale(Extent),
}

/// How to go on with a copy.
pub struct Patch<'a> {
    /// The image that the file is a copy of, or will be where [`Part::Live`] is.
    pub base: &'a Image,
    /// Which of its blocks stay.
    pub keep: &'a mut Keep<'a>,
    /// Told of the whole copy behind its first cluster, in rising order, before [`Writer::patch`] returns.
    pub part: &'a mut dyn FnMut(Part) -> Result<()>,
}

impl Image {
    /// True for an image that [`Writer`] could have made: version 3, 64 KiB clusters, zstd, nothing beside the disk.
    pub fn is_ours(&self) -> bool {
        let header = self.header();
        (header.version, header.cluster_bits) == (3, CLUSTER_BITS)
            && header.compression == crate::Compression::Zstd
            && header.snapshots == 0
            && header.bitmaps.is_none()
            && self.file().size().0.is_multiple_of(CLUSTER_BYTES)
    }

    /// Tells where all lies that says where blocks lie: header, L1 table, L2 tables. Whoever believes the tables looks at these
    /// bytes first.
    pub fn mapping_places(&self, tell: &mut dyn FnMut(Extent)) -> Result<()> {
        let place = |at: ByteOffset, len| {
            Extent::new(at, ByteLen(len)).ok_or_else(|| corrupt("a table passes the end of numbers"))
        };
        let tables = block_count(self.size()).div_ceil(TABLE_ENTRIES);
        tell(place(ByteOffset(0), CLUSTER_BYTES)?);
        tell(place(self.header().l1_table_offset, tables * 8)?);
        for table in 0..tables {
            if let Some(at) = self.table_at(table)? {
                tell(place(at, CLUSTER_BYTES)?);
            }
        }
        Ok(())
    }

    /// Learns what would stay of an image for a disk of this size. Reads tables only.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for tables that [`Writer`] would not have written.
    pub fn kept(&self, capacity: ByteLen, keep: &mut Keep<'_>) -> Result<Kept> {
        for_each_table(self, capacity, keep, &mut |_, _| Ok(()))
    }
}

impl Writer {
    /// Goes on with `file`, which is as long as the image of `patch` is. `spill` is as for [`Writer::create`]; the observer is told
    /// only of what is written from now on. Blocks that stay are held already, and cannot be put.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for an image that is not [`Image::is_ours`], or has other tables than ours; [`Kind::Corrupt`] when its tables contradict themselves.
    pub fn patch(
        file: Arc<dyn Storage>,
        spill: Arc<dyn Storage>,
        spec: Spec,
        observer: Arc<dyn Observer>,
        patch: Patch<'_>,
    ) -> Result<(Self, Kept)> {
        if !patch.base.is_ours() {
            return Err(Error::new(Kind::Unsupported, "go on with the copy of an image of another program"));
        }
        if file.size() != patch.base.file().size() || spill.size().0 != 0 {
            return Err(Error::new(
                Kind::Invalid,
                "go on with a copy: it is not as long as its image, or there is scratch",
            ));
        }
        let clusters = file.size().0 / CLUSTER_BYTES;
        let capacity = spec.capacity;
        let writer = Self::blank(file, spill, spec, observer)?;
        // From here on no reader takes it for an image.
        writer.file.write_at(ByteOffset(0), &vec![0; CLUSTER_BYTES as usize])?;
        let kept = for_each_table(patch.base, capacity, patch.keep, &mut |first, entries| {
            if entries.iter().any(|raw| *raw != 0) { writer.spill.write(first, entries) } else { Ok(()) }
        })?;
        let used = writer.count_references(clusters, patch.part)?;
        let counts = &writer.counts;
        counts.raw_blocks.store(kept.raw_blocks, Ordering::Relaxed);
        counts.compressed_blocks.store(kept.compressed_blocks, Ordering::Relaxed);
        counts.zero_blocks.store(kept.zero_blocks, Ordering::Relaxed);
        counts.arena_clusters.store(used.saturating_sub(kept.raw_blocks), Ordering::Relaxed);
        writer.cursor.store(clusters, Ordering::Relaxed);
        Ok((writer, kept))
    }

    /// Keeps the refcounts of the copy's clusters, and tells its parts. How many clusters blocks lie in.
    fn count_references(&self, clusters: u64, part: &mut dyn FnMut(Part) -> Result<()>) -> Result<u64> {
        let mut used = 0;
        let mut table = vec![0; CLUSTER_BYTES as usize];
        for first in (0..clusters).step_by(WINDOW as usize) {
            let mut window = Window::new(first, WINDOW.min(clusters - first));
            for number in self.spill.tables() {
                self.spill.read_table(number, &mut table)?;
                for raw in table.as_chunks::<8>().0 {
                    window.refer(u64::from_be_bytes(*raw))?;
                }
            }
            window.tell(part)?;
            for count in &mut window.refcounts {
                *count = if *count == ALONE { 1 } else { *count };
                used += u64::from(*count > 0);
            }
            self.spill.write_refcounts(first, &window.refcounts)?;
        }
        // The header's is among them.
        Ok(used.saturating_sub(1))
    }
}

/// Goes through the tables of an image as far as the disk goes: `each` is given the entries that stay, as they will be.
fn for_each_table(
    base: &Image,
    capacity: ByteLen,
    keep: &mut Keep<'_>,
    each: &mut dyn FnMut(u64, &[u64]) -> Result<()>,
) -> Result<Kept> {
    let (blocks, there) = (block_count(capacity), block_count(base.size()));
    let length = base.file().size().0;
    let mut kept = Kept::default();
    let mut bytes = vec![0; CLUSTER_BYTES as usize];
    let (mut entries, mut held) = (Vec::new(), Vec::new());
    for first in (0..blocks).step_by(TABLE_ENTRIES as usize) {
        let table = first / TABLE_ENTRIES;
        bytes.fill(0);
        if let Some(at) = if first < there { base.table_at(table)? } else { None } {
            base.file().read_at(at, &mut bytes)?;
        }
        let count = (blocks - first).min(TABLE_ENTRIES) as usize;
        // What a smaller disk had beyond its end is nothing.
        let there = there.saturating_sub(first).min(count as u64) as usize;
        entries.clear();
        entries.extend(bytes.as_chunks::<8>().0.iter().take(there).map(|raw| u64::from_be_bytes(*raw)));
        entries.resize(count, 0);
        held.clear();
        for (raw, block) in entries.iter().zip(first..) {
            held.push(held_in(*raw, length).map_err(|error| error.at(BlockIndex(block).offset()))?);
        }
        keep(BlockIndex(first), &mut held)?;
        for (raw, held) in entries.iter_mut().zip(&held) {
            let (sort, stays) = (entry(*raw, CLUSTER_BITS), *held != Held::Absent);
            let bytes = match sort {
                Entry::Raw(_) => CLUSTER_BYTES,
                Entry::Compressed(_, bytes) => bytes.0.saturating_sub(SECTOR_REST),
                Entry::Zero | Entry::Unallocated => 0,
            };
            let counted = if stays { &mut kept.kept_bytes } else { &mut kept.dropped_bytes };
            *counted += bytes;
            match sort {
                Entry::Raw(_) => kept.raw_blocks += u64::from(stays),
                Entry::Compressed(..) => kept.compressed_blocks += u64::from(stays),
                Entry::Zero if stays => kept.zero_blocks += 1,
                Entry::Unallocated if stays => {
                    return Err(Error::new(Kind::Invalid, "keep a block that the image does not hold"));
                }
                Entry::Zero | Entry::Unallocated => {}
            }
            if !stays {
                *raw = 0;
            }
        }
        each(first, &entries)?;
    }
    Ok(kept)
}

/// What an entry of one of our images holds. Another program's may be sound all the same: zeros over a cluster that stays its own, one
/// cluster of several blocks.
fn held_in(raw: u64, length: u64) -> Result<Held> {
    let within = |at: u64, bytes: u64| at >= CLUSTER_BYTES && at.checked_add(bytes).is_some_and(|end| end <= length);
    match entry(raw, CLUSTER_BITS) {
        Entry::Unallocated if raw == 0 => Ok(Held::Absent),
        Entry::Zero if raw == ZERO => Ok(Held::Zero),
        Entry::Raw(at)
            if raw == crate::format::raw_entry(at)
                && at.0.is_multiple_of(CLUSTER_BYTES)
                && within(at.0, CLUSTER_BYTES) =>
        {
            Ok(Held::Data)
        }
        Entry::Compressed(at, bytes) if raw & COPIED == 0 && within(at.0, bytes.0) => Ok(Held::Data),
        _ => {
            let why = format!("go on with the copy of an image: the entry {raw:#x} is none of ours");
            Err(Error::new(Kind::Unsupported, why))
        }
    }
}

/// Some clusters of the copy.
struct Window {
    first: u64,
    refcounts: Vec<u16>,
    /// A bit per piece of a cluster: something that stays lies in it.
    live: Vec<u16>,
}

impl Window {
    fn new(first: u64, count: u64) -> Self {
        let mut window = Self { first, refcounts: vec![0; count as usize], live: vec![0; count as usize] };
        if first == 0 {
            (window.refcounts[0], window.live[0]) = (ALONE, u16::MAX);
        }
        window
    }

    /// Counts what an entry points to, as far as it lies here.
    fn refer(&mut self, raw: u64) -> Result<()> {
        let (at, end) = match entry(raw, CLUSTER_BITS) {
            Entry::Unallocated | Entry::Zero => return Ok(()),
            Entry::Raw(at) => (at.0, at.0 + CLUSTER_BYTES),
            Entry::Compressed(at, bytes) => (at.0, at.0 + bytes.0),
        };
        let is_raw = matches!(entry(raw, CLUSTER_BITS), Entry::Raw(_));
        let window_end = self.first + self.refcounts.len() as u64;
        for cluster in (at / CLUSTER_BYTES).max(self.first)..end.div_ceil(CLUSTER_BYTES).min(window_end) {
            let (refcount, live) = {
                let n = (cluster - self.first) as usize;
                (&mut self.refcounts[n], &mut self.live[n])
            };
            *refcount = match *refcount {
                0 if is_raw => ALONE,
                count if !is_raw && count < ALONE - 2 => count + 1,
                _ => return Err(corrupt(&format!("cluster {cluster} of the file is used twice"))),
            };
            let start = cluster * CLUSTER_BYTES;
            let from = at.saturating_sub(start) / PIECE_BYTES;
            let to = (end - start).div_ceil(PIECE_BYTES).min(PIECES);
            for piece in from..to {
                *live |= 1 << piece;
            }
        }
        Ok(())
    }

    /// Tells live and stale parts by turns.
    fn tell(&self, part: &mut dyn FnMut(Part) -> Result<()>) -> Result<()> {
        let is_live = |piece: u64| self.live[(piece / PIECES) as usize] >> (piece % PIECES) & 1 != 0;
        // The first cluster is the header's, which is nobody's copy.
        let mut start = if self.first == 0 { PIECES } else { 0 };
        let end = self.live.len() as u64 * PIECES;
        while start < end {
            let sort = is_live(start);
            let mut next = start + 1;
            while next < end && is_live(next) == sort {
                next += 1;
            }
            let at = |piece: u64| ByteOffset(self.first * CLUSTER_BYTES + piece * PIECE_BYTES);
            let extent = Extent::between(at(start), at(next));
            part(if sort { Part::Live(extent) } else { Part::Stale(extent) })?;
            start = next;
        }
        Ok(())
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("go on with the copy of an image: {why}"))
}
