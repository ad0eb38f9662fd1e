//! Writes one image from its blocks, append-only: data in the order it comes, tables at the end, the header last.
//!
//! What lives here: the door ([`Writer`]) and the storing of a batch. [`arena`] packs compressed blocks, [`spill`] keeps
//! the L2 entries on disk until [`seal`] turns them into tables, [`mark`] goes on where a process died, [`patch`] with the copy of
//! another image. What does not: digests, files and folders, fsync.
//!
//! Invariant: until `seal` has returned, the file's first cluster is not written, so that no reader takes an unfinished
//! image for a finished one.
//!
//! ```text
//! | header | data and arenas as they come ... | L2 tables | L1 table | refcount table | refcount blocks |
//! ```
//!
//! Memory does not grow with the disk: a bit per 512 MiB of guest (2.5 KiB for 10 TiB), one arena of at most 2 MiB plus
//! one per writing thread, and while sealing the L1 table (8 bytes per 512 MiB) and 1 MiB of L2 tables.

mod arena;
mod mark;
mod patch;
mod seal;
mod spill;

use crate::format::{CLUSTER_BYTES, L1_BYTES_MAX, NAME_BYTES_MAX, TABLE_ENTRIES, ZERO, compressed_entry, raw_entry};
use arena::{Arena, Filled};
pub use mark::Mark;
use parking_lot::RwLock;
pub use patch::{Keep, Kept, Part, Patch};
use sendense_block::{
    BLOCK_BYTES, Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Digest, Error, Flush, Kind, Payload, ReadAt,
    Result, WriteAt, block_count,
};
use spill::Spill;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A file that grows by writes beyond its end and reads back what was written.
pub trait Storage: ReadAt + WriteAt + Flush {}
impl<T: ReadAt + WriteAt + Flush + ?Sized> Storage for T {}

/// Hears of every byte range of the file that is being written, so that digests of the file need no second read.
pub trait Observer: Send + Sync {
    /// `data` lies in the file at `at` from now on. Whole clusters, from several threads at once, in no order; each
    /// cluster below the file's end is told exactly once before [`Writer::seal`] returns. `cluster_digests` holds a digest
    /// per cluster where those are known already (raw blocks).
    fn wrote(&self, at: ByteOffset, data: &[u8], cluster_digests: Option<&[Digest]>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deaf;

impl Observer for Deaf {
    fn wrote(&self, _at: ByteOffset, _data: &[u8], _cluster_digests: Option<&[Digest]>) {}
}

/// The image below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its file name, relative to this image's folder, so that the folder can be moved.
    pub name: String,
    /// Its format, written beside the name: nobody has to guess from contents that a guest controls.
    pub format: String,
}

/// What image to write.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The disk's size. Rounded up to 512 in the image, for QEMU cuts the rest off; the true size is the caller's to keep.
    pub capacity: ByteLen,
    /// The image below; `None` for one that stands alone.
    pub backing: Option<Backing>,
}

/// What one image holds of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing: it is as in the image below.
    Absent,
    /// Zeros, flagged.
    Zero,
    /// Its bytes.
    Data,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sealed {
    /// Length of the file, a multiple of 64 KiB.
    pub file_bytes: ByteLen,
    /// Host clusters that hold raw blocks or compressed ones.
    pub data_clusters: u64,
    /// Blocks stored as they are.
    pub raw_blocks: u64,
    /// Blocks stored as a frame.
    pub compressed_blocks: u64,
    /// Blocks flagged zero.
    pub zero_blocks: u64,
    /// Sum of all payloads, compressed where they are.
    pub data_bytes: ByteLen,
}

/// Writes an image. Shared by the threads that put blocks.
pub struct Writer {
    file: Arc<dyn Storage>,
    observer: Arc<dyn Observer>,
    spill: Spill,
    arena: Arena,
    capacity: ByteLen,
    backing: Option<Backing>,
    /// The next cluster that nobody has.
    cursor: AtomicU64,
    /// Puts hold it shared and sealing alone, so that sealing waits for puts under way. True once sealing has begun.
    sealed: RwLock<bool>,
    /// A write failed: the file is of no use any more.
    failed: AtomicBool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    raw_blocks: AtomicU64,
    compressed_blocks: AtomicU64,
    zero_blocks: AtomicU64,
    data_bytes: AtomicU64,
    arena_clusters: AtomicU64,
}

impl Writer {
    /// Begins an image in `file`, which must be empty, with `spill` as scratch: an empty file on a file system with
    /// holes, of no use after sealing. It needs 8 bytes per block put.
    pub fn create(
        file: Arc<dyn Storage>,
        spill: Arc<dyn Storage>,
        spec: Spec,
        observer: Arc<dyn Observer>,
    ) -> Result<Self> {
        for (name, storage) in [("image", &file), ("scratch", &spill)] {
            if storage.size().0 != 0 {
                return Err(Error::new(Kind::Exists, format!("begin an image: the {name} file is not empty")));
            }
        }
        Self::blank(file, spill, spec, observer)
    }

    /// A writer that knows of no block.
    fn blank(file: Arc<dyn Storage>, spill: Arc<dyn Storage>, spec: Spec, observer: Arc<dyn Observer>) -> Result<Self> {
        let rounded = spec.capacity.0.checked_next_multiple_of(512);
        let capacity = rounded.filter(|capacity| *capacity <= L1_BYTES_MAX / 8 * TABLE_ENTRIES * CLUSTER_BYTES);
        let capacity = ByteLen(capacity.ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                format!("a disk of {}: QCOW2 with 64 KiB clusters ends at 2 PiB", spec.capacity),
            )
        })?);
        if let Some(backing) = &spec.backing {
            check_name(backing)?;
        }
        Ok(Self {
            file,
            observer,
            spill: Spill::new(spill, block_count(capacity)),
            arena: Arena::default(),
            capacity,
            backing: spec.backing,
            // Cluster 0 is the header's.
            cursor: AtomicU64::new(1),
            sealed: RwLock::new(false),
            failed: AtomicBool::new(false),
            counts: Counts::default(),
        })
    }

    /// Tells what was put so far for the blocks from `first` on: after a broken connection, what need not be sent again.
    /// A block that another thread is putting at this moment may be told either way.
    pub fn held(&self, first: BlockIndex, out: &mut [Held]) -> Result<()> {
        // 8192 entries: one table, 64 KiB.
        let mut first = first.0;
        for part in out.chunks_mut(TABLE_ENTRIES as usize) {
            let entries = self.spill.read(first, part.len())?;
            for (held, entry) in part.iter_mut().zip(entries) {
                *held = match entry {
                    0 => Held::Absent,
                    ZERO => Held::Zero,
                    _ => Held::Data,
                };
            }
            first = first.saturating_add(TABLE_ENTRIES);
        }
        Ok(())
    }

    /// The sum of all payloads so far.
    pub fn data_bytes(&self) -> u64 {
        self.counts.data_bytes.load(Ordering::Relaxed)
    }

    /// Writes the tables and, last, the header. Waits for puts under way; none may follow. Does not flush: that is the
    /// caller's, once, before publishing. After an error the file is of no use.
    pub fn seal(&self) -> Result<Sealed> {
        let mut sealed = self.sealed.write();
        if *sealed || self.failed.load(Ordering::SeqCst) {
            return Err(unusable(*sealed));
        }
        *sealed = true;
        self.write_tables()
    }

    fn check(&self, batch: &[Block<'_>]) -> Result<()> {
        let invalid = |index: BlockIndex, why: &str| {
            Error::new(Kind::Invalid, format!("store block {index}: {why}")).at(index.offset())
        };
        let mut next = 0;
        for block in batch {
            if block.index.0 < next {
                return Err(invalid(block.index, "blocks of a batch must rise"));
            }
            if block.index.0 >= self.spill.blocks() {
                return Err(invalid(block.index, "it is beyond the end of the disk"));
            }
            match block.payload {
                Payload::Raw(bytes) if bytes.len() as u64 != BLOCK_BYTES => {
                    return Err(invalid(block.index, "a raw block has 64 KiB"));
                }
                // A frame has at least 9 bytes (magic, header, one block header), which also keeps the number of frames
                // in a cluster, its refcount, below 2^16.
                Payload::Zstd(frame) if frame.len() < 9 || frame.len() as u64 >= BLOCK_BYTES => {
                    return Err(invalid(block.index, "a frame has 9 bytes or more and is smaller than its block"));
                }
                _ => {}
            }
            next = block.index.0 + 1;
        }
        for run in runs(batch) {
            if let Some(index) = self.spill.first_held(run[0].index.0, run.len())? {
                return Err(invalid(BlockIndex(index), "it is stored already"));
            }
        }
        Ok(())
    }

    fn store(&self, batch: &[Block<'_>]) -> Result<()> {
        let (mut raw, mut frames) = (Vec::new(), Vec::new());
        for block in batch {
            match block.payload {
                Payload::Raw(bytes) => raw.push((bytes, block.digest)),
                Payload::Zstd(frame) => frames.push(frame),
                Payload::Zero => {}
            }
        }
        let mut raw_at = self.store_raw(&raw)?.0;
        let mut frames_at = self.store_frames(&frames)?.into_iter();
        let entries: Vec<u64> = batch
            .iter()
            .map(|block| match block.payload {
                Payload::Zero => ZERO,
                Payload::Raw(_) => {
                    raw_at += CLUSTER_BYTES;
                    raw_entry(ByteOffset(raw_at - CLUSTER_BYTES))
                }
                Payload::Zstd(frame) => {
                    let at = frames_at.next().expect("every frame was given its place");
                    compressed_entry(at, frame.len() as u64)
                }
            })
            .collect();
        let mut done = 0;
        for run in runs(batch) {
            self.spill.write(run[0].index.0, &entries[done..done + run.len()])?;
            done += run.len();
        }
        let data_bytes = raw.len() as u64 * BLOCK_BYTES + frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        self.counts.raw_blocks.fetch_add(raw.len() as u64, Ordering::Relaxed);
        self.counts.compressed_blocks.fetch_add(frames.len() as u64, Ordering::Relaxed);
        self.counts.zero_blocks.fetch_add((batch.len() - raw.len() - frames.len()) as u64, Ordering::Relaxed);
        self.counts.data_bytes.fetch_add(data_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// One allocation and one write for all raw blocks of a batch, wherever they lie on the disk and in memory.
    fn store_raw(&self, blocks: &[(&[u8], Digest)]) -> Result<ByteOffset> {
        let start = self.allocate(blocks.len() as u64);
        if blocks.is_empty() {
            return Ok(start);
        }
        let parts: Vec<&[u8]> = blocks.iter().map(|(bytes, _)| *bytes).collect();
        self.file.write_vectored_at(start, &parts)?;
        let mut at = start.0;
        for (bytes, digest) in blocks {
            self.observer.wrote(ByteOffset(at), bytes, Some(&[*digest]));
            at += CLUSTER_BYTES;
        }
        Ok(start)
    }

    fn store_frames(&self, frames: &[&[u8]]) -> Result<Vec<ByteOffset>> {
        let mut places = Vec::with_capacity(frames.len());
        while let Some(filled) = self.arena.place(frames, &mut places, |clusters| self.allocate(clusters)) {
            // Outside of the arena's lock: the other threads go on packing into the next one.
            self.write_arena(filled)?;
        }
        Ok(places)
    }

    fn write_arena(&self, mut filled: Filled) -> Result<()> {
        filled.bytes.resize(filled.bytes.len().next_multiple_of(CLUSTER_BYTES as usize), 0);
        self.emit(filled.start, &filled.bytes)?;
        self.spill.write_refcounts(filled.start.0 / CLUSTER_BYTES, &filled.refcounts)?;
        self.counts.arena_clusters.fetch_add(filled.bytes.len() as u64 / CLUSTER_BYTES, Ordering::Relaxed);
        self.arena.recycle(filled.bytes);
        Ok(())
    }

    /// Takes clusters at the end of the file.
    fn allocate(&self, clusters: u64) -> ByteOffset {
        ByteOffset(self.cursor.fetch_add(clusters, Ordering::Relaxed) * CLUSTER_BYTES)
    }

    /// Writes whole clusters and tells the observer.
    fn emit(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.file.write_at(at, data)?;
        self.observer.wrote(at, data, None);
        Ok(())
    }
}

impl BlockSink for Writer {
    /// A batch refused as [`Kind::Invalid`] (beyond the end, stored already) leaves the image as it was; after any other
    /// error every further call fails. That a block is stored already is found unless both are put at the same moment.
    fn put(&self, batch: &[Block<'_>]) -> Result<()> {
        let sealed = self.sealed.read();
        if *sealed || self.failed.load(Ordering::SeqCst) {
            return Err(unusable(*sealed));
        }
        self.check(batch)?;
        self.store(batch).inspect_err(|_| self.failed.store(true, Ordering::SeqCst))
    }
}

/// The batch cut where block numbers do not follow each other.
fn runs<'a, 'b>(batch: &'a [Block<'b>]) -> impl Iterator<Item = &'a [Block<'b>]> {
    batch.chunk_by(|a, b| a.index.0 + 1 == b.index.0)
}

fn unusable(sealed: bool) -> Error {
    let why = if sealed { "it is sealed" } else { "an earlier write failed" };
    Error::new(Kind::Invalid, format!("write to the image: {why}"))
}

/// QEMU reads a name as a protocol when a colon comes before the first slash, and anything absolute would tie the chain to
/// this machine.
fn check_name(backing: &Backing) -> Result<()> {
    let name = &backing.name;
    let protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    // 32: the longest format name that fits beside a name of the full length is far beyond any that QEMU has.
    let format = !backing.format.is_empty() && backing.format.len() <= 32;
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.starts_with('/')
        || name.contains('\0')
        || protocol
        || !format
    {
        return Err(Error::new(Kind::Invalid, format!("name {name:?} ({:?}) as backing file", backing.format)));
    }
    Ok(())
}
