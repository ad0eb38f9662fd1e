//! The copy pipeline: from a disk into a sink (backup), from a chain onto a target (restore), all of it or what differs.
//!
//! Work is done by **lanes**: threads that each take the next chunk of the plan, read it, look at every block, and store
//! what must be stored. A lane owns its buffers, so nothing is queued between stages: a slow sink holds the lanes, and the
//! lanes hold the reader. A source with latency (NBD) gets more lanes than there are cores: while some wait for data, others
//! hash and compress. A chunk is read into a buffer that stays in a core's cache until it is hashed, compressed and written.
//!
//! Memory: `lanes x (2 x request_bytes + one zstd context)`, plus one window of the parent's digests (140 KiB) and the
//! extents of one span; with the largest options, 32 lanes of 1 MiB, below 128 MiB whatever the size of the disk.
//!
//! Cancelling takes effect at the next chunk; reads that may hang register with [`Cancel`] themselves.

mod audit;
mod backup;
mod differential;
mod feed;
mod marked;
mod restore;

pub use audit::{Audit, SAMPLE_BLOCKS_MIN, Sample, Sampling, audit};
pub use backup::{Backup, Mode, Summary, Survey, backup, survey, survey_and_sample};
pub use differential::{Difference, Differential, Existing, differential};
pub use marked::{MARK, Marked};
pub use restore::{Restore, restore};

use crate::cancel::Cancel;
use crate::codec::Level;
use crate::error::{Error, Kind, Result};
use crate::units::{BLOCK_BYTES, ByteLen};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Lanes at the most: two connections with 16 requests in flight on each.
pub const LANES_MAX: usize = 32;

/// Bytes per request at the most: what keeps memory at its bound; larger requests were not faster anywhere.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// How to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads that read and work at once; cut to [`LANES_MAX`].
    pub lanes: usize,
    /// Bytes per read; made a multiple of a block and cut to [`REQUEST_BYTES_MAX`].
    pub request_bytes: usize,
    /// How hard to compress (backup only).
    pub level: Level,
}

impl Options {
    fn lanes(self, work: ByteLen) -> usize {
        // No more threads than requests: an incremental of 64 KiB starts one.
        let requests = work.0.div_ceil(self.request_bytes() as u64).max(1);
        self.lanes.clamp(1, LANES_MAX).min(usize::try_from(requests).unwrap_or(LANES_MAX))
    }

    fn request_bytes(self) -> usize {
        let block = BLOCK_BYTES as usize;
        (self.request_bytes / block).clamp(1, REQUEST_BYTES_MAX / block) * block
    }
}

/// How far a copy is; read by others while it runs. All values are bytes of the disk unless said otherwise.
#[derive(Debug, Default)]
pub struct Progress {
    planned: AtomicU64,
    done: AtomicU64,
    stored: AtomicU64,
    frames: AtomicU64,
    zero: AtomicU64,
    same: AtomicU64,
}

/// [`Progress`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// To be read, all in all; 0 until it is planned.
    pub planned: ByteLen,
    /// Read and dealt with.
    pub done: ByteLen,
    /// Stored as data.
    pub stored: ByteLen,
    /// What the stored data takes after compression.
    pub frames: ByteLen,
    /// Found or known to be zero.
    pub zero: ByteLen,
    /// Equal to the parent's and therefore not stored.
    pub same: ByteLen,
}

impl Progress {
    /// The state now. The values are read one after the other: they need not belong to the same instant.
    pub fn snapshot(&self) -> Snapshot {
        let get = |value: &AtomicU64| ByteLen(value.load(Ordering::Relaxed));
        Snapshot {
            planned: get(&self.planned),
            done: get(&self.done),
            stored: get(&self.stored),
            frames: get(&self.frames),
            zero: get(&self.zero),
            same: get(&self.same),
        }
    }

    /// Takes over how far a copy is that runs elsewhere.
    pub fn set(&self, now: &Snapshot) {
        for (counter, value) in [
            (&self.planned, now.planned),
            (&self.done, now.done),
            (&self.stored, now.stored),
            (&self.frames, now.frames),
            (&self.zero, now.zero),
            (&self.same, now.same),
        ] {
            counter.store(value.0, Ordering::Relaxed);
        }
    }

    /// Adds to what will be read: the sum over all disks of a machine is known before the first byte is copied.
    pub fn plan(&self, len: ByteLen) {
        self.planned.fetch_add(len.0, Ordering::Relaxed);
    }

    /// Counts data that another program took from us to store it.
    pub fn taken(&self, len: ByteLen) {
        add(&self.done, len.0);
        add(&self.stored, len.0);
    }
}

fn add(counter: &AtomicU64, bytes: u64) {
    counter.fetch_add(bytes, Ordering::Relaxed);
}

/// Runs `lane` on `count` threads until all return or one fails; the first error wins and stops the others.
fn run_lanes(count: usize, cancel: &Cancel, lane: impl Fn(&Stop) -> Result<()> + Sync) -> Result<()> {
    let stop = Stop { failed: AtomicBool::new(false), error: Mutex::new(None), cancel };
    std::thread::scope(|scope| {
        for number in 0..count {
            let (stop, lane) = (&stop, &lane);
            let work = move || {
                if let Err(error) = lane(stop) {
                    stop.fail(error);
                }
            };
            if let Err(error) = std::thread::Builder::new().name(format!("lane-{number}")).spawn_scoped(scope, work) {
                stop.fail(Error::io("start a copy thread", error));
                break;
            }
        }
    });
    match stop.error.into_inner() {
        Some(error) => Err(error),
        None => cancel.check(),
    }
}

/// Tells lanes to stop: somebody cancelled, or another lane failed.
struct Stop<'a> {
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
    cancel: &'a Cancel,
}

impl Stop<'_> {
    fn asked(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    fn fail(&self, error: Error) {
        let mut first = self.error.lock();
        // A read that was ended by the cancellation fails with some error of its own: say what really happened.
        let error = if self.cancel.is_cancelled() { Error::new(Kind::Cancelled, "stopped on request") } else { error };
        first.get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }
}
