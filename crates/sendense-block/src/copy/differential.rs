//! From a chain onto a target that may hold much of it already: what is equal by its digest is left alone.
//!
//! The target is read with the lanes and planned as a backup's source is; what the point's digests say is the other side.
//! Only blocks that differ are read from the chain, and each is checked against its digest *before* it is written: a
//! damaged chain stops the restore and never reaches the target. Afterwards what was written is read back and compared.
//!
//! Memory: that of a restore, plus one bit per MiB of the disk (128 KiB per TiB) for what has to be read back.

use super::feed::{Chunk, Feed, Windows};
use super::{Mode, Options, Progress, Stop, add, run_lanes};
use crate::cancel::Cancel;
use crate::device::{Disk, Target};
use crate::digest::{DigestMap, Known};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::units::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCK: usize = BLOCK_BYTES as usize;

/// What one bit of [`Touched`] stands for, and what the comparison at the end reads at once.
const PIECE_BYTES: u64 = 1 << 20;

/// A target that holds something, and can be read.
pub trait Existing: Disk + Target {
    /// Lets the next read of the range come from the device rather than from a cache. Best effort.
    fn forget(&self, _range: Extent) {}
}

impl Existing for crate::backend::Memory {}

impl<D: Existing> Existing for crate::backend::Faulty<D> {}

impl Existing for crate::backend::File {
    fn forget(&self, range: Extent) {
        crate::backend::File::forget(self, range);
    }
}

/// One disk's differential restore.
pub struct Differential<'a> {
    /// The disk's name, for messages.
    pub name: &'a str,
    /// What to restore.
    pub disk: &'a dyn Disk,
    /// The digests of the same disk.
    pub digests: &'a dyn DigestMap,
    /// Onto what; at least as large as the disk. What lies beyond the disk's end is not touched.
    pub target: &'a dyn Existing,
    /// How.
    pub options: Options,
    /// Told of the work as it is done.
    pub progress: &'a Progress,
    /// Asked between chunks.
    pub cancel: &'a Cancel,
}

/// What was found and done, in bytes of whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Difference {
    /// Read from the target; the rest of the disk was a hole there.
    pub compared: ByteLen,
    /// Were not what the point holds.
    pub differing: ByteLen,
    /// Of those, written as data.
    pub written: ByteLen,
    /// Of those, made zero.
    pub zeroed: ByteLen,
    /// Of those, could not be read before: a bad sector, which a disk replaces when it is written to.
    pub unreadable: ByteLen,
}

/// Makes the target hold the disk and flushes it. A target that holds it already is only read.
///
/// On an error or a cancellation the target holds a mixture of what it held and the disk.
///
/// # Errors
/// [`Kind::Corrupt`] when the chain does not give what its digests say (nothing of that block was written), or the target
/// does not give back what was written; whatever reading and writing gives.
pub fn differential(job: &Differential<'_>) -> Result<Difference> {
    run(job).map_err(|error| error.within(format!("restore {}", job.name)))
}

fn run(job: &Differential<'_>) -> Result<Difference> {
    let size = job.disk.size();
    if job.target.size() < size {
        return Err(Error::new(Kind::Invalid, format!("the target has {}, the disk {size}", job.target.size())));
    }
    let mode = Mode::Compare { parent: job.digests };
    let work = super::survey(job.name, &OnDisk { target: job.target, size }, mode, job.cancel)?.read;
    job.progress.plan(work);
    let view = OnDisk { target: job.target, size };
    let feed = Mutex::new(Feed::new(Windows::new(&view, size, mode), job.options.request_bytes()));
    let shared = Shared { job, size, touched: Touched::new(size), totals: Mutex::default() };
    run_lanes(job.options.lanes(work), job.cancel, |stop| Lane::new(&shared).run(&feed, stop))?;
    let totals = *shared.totals.lock();
    if totals.differing.0 > 0 {
        job.target.flush()?;
        read_back(&shared)?;
    }
    Ok(totals)
}

/// The part of the target that the disk will lie on.
struct OnDisk<'a> {
    target: &'a dyn Existing,
    size: ByteLen,
}

impl crate::device::ReadAt for OnDisk<'_> {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.target.read_at(at, buf)
    }
}

impl crate::device::AllocationMap for OnDisk<'_> {
    fn allocation(&self, within: Extent) -> Result<Vec<crate::device::MappedExtent>> {
        self.target.allocation(within)
    }
}

/// Which MiB were written to.
struct Touched(Vec<AtomicU64>);

impl Touched {
    fn new(size: ByteLen) -> Self {
        let words = size.0.div_ceil(PIECE_BYTES).div_ceil(64);
        // A bit per MiB of a size that fits 64 bits fits any memory that could hold such a disk's page tables.
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    fn add(&self, extent: Extent) {
        for piece in extent.start().0 / PIECE_BYTES..extent.end().0.div_ceil(PIECE_BYTES) {
            if let Some(word) = self.0.get((piece / 64) as usize) {
                word.fetch_or(1 << (piece % 64), Ordering::Relaxed);
            }
        }
    }

    fn holds(&self, piece: u64) -> bool {
        self.0.get((piece / 64) as usize).is_some_and(|word| word.load(Ordering::Relaxed) >> (piece % 64) & 1 == 1)
    }
}

struct Shared<'a> {
    job: &'a Differential<'a>,
    size: ByteLen,
    touched: Touched,
    totals: Mutex<Difference>,
}

/// What to do with a run of blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Keep,
    Write,
    Zero,
}

struct Lane<'a> {
    shared: &'a Shared<'a>,
    /// What the target holds.
    here: Vec<u8>,
    /// What the point holds.
    there: Vec<u8>,
    sum: Difference,
}

impl<'a> Lane<'a> {
    fn new(shared: &'a Shared<'a>) -> Self {
        let request = shared.job.options.request_bytes();
        Self { shared, here: vec![0; request], there: vec![0; request], sum: Difference::default() }
    }

    fn run(&mut self, feed: &Mutex<Feed<'_>>, stop: &Stop<'_>) -> Result<()> {
        while !stop.asked() {
            let Some(chunk) = feed.lock().next()? else { break };
            if chunk.zero {
                // A hole of the target where the point holds data in every block.
                for piece in chunk.extent.pieces(ByteLen(self.there.len() as u64)) {
                    if stop.asked() {
                        break;
                    }
                    self.write(piece, &chunk)?;
                }
            } else {
                self.compare(&chunk)?;
            }
        }
        let mut totals = self.shared.totals.lock();
        totals.compared.0 += self.sum.compared.0;
        totals.differing.0 += self.sum.differing.0;
        totals.written.0 += self.sum.written.0;
        totals.zeroed.0 += self.sum.zeroed.0;
        totals.unreadable.0 += self.sum.unreadable.0;
        Ok(())
    }

    fn compare(&mut self, chunk: &Chunk) -> Result<()> {
        let on_disk = chunk.extent.intersect(Extent::whole(self.shared.size));
        let (read, padded) = (on_disk.len().0 as usize, chunk.extent.len().0 as usize);
        let lost = match self.shared.job.target.read_at(on_disk.start(), &mut self.here[..read]) {
            Ok(()) => Vec::new(),
            Err(error) if error.kind == Kind::Io => self.read_each(on_disk)?,
            Err(error) => return Err(error),
        };
        self.here[read..padded].fill(0);
        self.sum.compared.0 += padded as u64;
        let blocks = chunk.extent.block_indices().zip(self.here[..padded].chunks_exact(BLOCK)).enumerate();
        let acts: Vec<Act> = blocks
            .map(|(number, (index, block))| match (lost.get(number), known(chunk, index)) {
                (Some(true), Known::Zero) => Act::Zero,
                (Some(true), Known::Data(_)) => Act::Write,
                (_, known) => act(block, known),
            })
            .collect();
        let kept = acts.iter().filter(|act| **act == Act::Keep).count() as u64;
        add(&self.shared.job.progress.same, kept * BLOCK_BYTES);
        let mut first = 0;
        while let Some(act) = acts.get(first) {
            let count = acts[first..].iter().take_while(|other| *other == act).count();
            let start = ByteOffset(chunk.extent.start().0 + first as u64 * BLOCK_BYTES);
            let run = Extent::between(start, ByteOffset(start.0 + count as u64 * BLOCK_BYTES));
            match act {
                Act::Keep => {}
                Act::Write => self.write(run, chunk)?,
                Act::Zero => self.zero(run)?,
            }
            first += count;
        }
        add(&self.shared.job.progress.done, on_disk.len().0);
        Ok(())
    }

    /// Reads what can be read of a range that holds something unreadable; gives for each block whether it is lost. A target
    /// that is gone altogether shows when the first of them is written.
    fn read_each(&mut self, range: Extent) -> Result<Vec<bool>> {
        let mut lost = Vec::new();
        for (piece, here) in range.pieces(ByteLen(BLOCK_BYTES)).zip(self.here.chunks_mut(BLOCK)) {
            match self.shared.job.target.read_at(piece.start(), &mut here[..piece.len().0 as usize]) {
                Ok(()) => lost.push(false),
                Err(error) if error.kind == Kind::Io => {
                    self.sum.unreadable.0 += BLOCK_BYTES;
                    lost.push(true);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(lost)
    }

    /// Reads whole blocks from the chain, checks each, and writes them.
    fn write(&mut self, run: Extent, chunk: &Chunk) -> Result<()> {
        let job = self.shared.job;
        let on_disk = run.intersect(Extent::whole(self.shared.size));
        let (read, padded) = (on_disk.len().0 as usize, run.len().0 as usize);
        job.disk.read_at(on_disk.start(), &mut self.there[..read])?;
        self.there[read..padded].fill(0);
        for (index, block) in run.block_indices().zip(self.there[..padded].chunks_exact(BLOCK)) {
            if act(block, known(chunk, index)) != Act::Keep {
                let context = "the chain does not hold what its digests say; nothing of it was written here";
                return Err(Error::new(Kind::Corrupt, context).at(index.offset()));
            }
        }
        self.shared.touched.add(on_disk);
        job.target.write_at(on_disk.start(), &self.there[..read])?;
        self.sum.differing.0 += padded as u64;
        self.sum.written.0 += padded as u64;
        add(&job.progress.stored, padded as u64);
        Ok(())
    }

    fn zero(&mut self, run: Extent) -> Result<()> {
        let on_disk = run.intersect(Extent::whole(self.shared.size));
        self.shared.touched.add(on_disk);
        self.shared.job.target.zero_range(on_disk)?;
        self.sum.differing.0 += run.len().0;
        self.sum.zeroed.0 += run.len().0;
        add(&self.shared.job.progress.zero, run.len().0);
        Ok(())
    }
}

fn known(chunk: &Chunk, index: BlockIndex) -> Known {
    chunk.known.as_ref().map_or(Known::Zero, |known| known.get(index))
}

/// What has to be done for a block to be what is known of it.
fn act(block: &[u8], known: Known) -> Act {
    match known {
        known if known.is_of(block) => Act::Keep,
        Known::Zero => Act::Zero,
        Known::Data(_) => Act::Write,
    }
}

/// Reads what was written once more, from the device where that can be had, and compares it with the digests.
fn read_back(shared: &Shared<'_>) -> Result<()> {
    let (job, size) = (shared.job, shared.size);
    let (next, pieces) = (AtomicU64::new(0), size.0.div_ceil(PIECE_BYTES));
    run_lanes(job.options.lanes(size), job.cancel, |stop| {
        let mut buffer = vec![0; PIECE_BYTES as usize];
        let mut known = [Known::Zero; (PIECE_BYTES / BLOCK_BYTES) as usize];
        while !stop.asked() {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                break;
            }
            if !shared.touched.holds(piece) {
                continue;
            }
            let start = piece * PIECE_BYTES;
            let extent = Extent::between(ByteOffset(start), ByteOffset((start + PIECE_BYTES).min(size.0)));
            let len = extent.len().0 as usize;
            job.target.forget(extent);
            job.target.read_at(extent.start(), &mut buffer[..len])?;
            buffer[len..].fill(0);
            let first = BlockIndex::holding(extent.start());
            job.digests.known(first, &mut known)?;
            for ((block, known), number) in buffer.chunks_exact(BLOCK).zip(known).zip(0..) {
                if act(block, known) != Act::Keep {
                    let context = "the target does not give back what was written to it";
                    return Err(Error::new(Kind::Corrupt, context).at(BlockIndex(first.0 + number).offset()));
                }
            }
        }
        Ok(())
    })
}
