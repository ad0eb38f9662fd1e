//! Packs the compressed blocks of all threads byte by byte into arenas: runs of clusters, written with one call when full.
//!
//! Invariant: a frame lies in one arena, or in two that follow each other in the file.

use crate::format::CLUSTER_BYTES;
use parking_lot::Mutex;
use sendense_block::ByteOffset;

/// Largest arena: 2 MiB, where the cost of a write call no longer shows, and small beside a hub's 256 MiB.
const CLUSTERS_MAX: u64 = 32;
/// Smallest arena. Arenas start small and grow with what was packed (an eighth of it), so that the part of the last one
/// that nobody fills stays small beside the image.
const CLUSTERS_MIN: u64 = 4;
/// Spare buffers kept: as many as threads may be writing full arenas at once without allocating. More are freed.
const SPARES_MAX: usize = 4;

/// The arena that frames go into now. The lock is held for copying at most a batch of frames, never over a write.
#[derive(Default)]
pub(super) struct Arena {
    state: Mutex<State>,
    spares: Mutex<Vec<Vec<u8>>>,
}

#[derive(Default)]
struct State {
    open: Option<Filled>,
    /// Clusters of all arenas so far.
    clusters: u64,
}

/// An arena to be written.
pub(super) struct Filled {
    /// Where in the file.
    pub(super) start: ByteOffset,
    /// What was packed; the last cluster may be partly filled.
    pub(super) bytes: Vec<u8>,
    /// For each cluster of the arena, how many frames touch it: its refcount. 64 bytes for 2 MiB.
    pub(super) refcounts: Vec<u16>,
}

impl Filled {
    /// The byte after its last cluster.
    pub(super) fn end(&self) -> ByteOffset {
        ByteOffset(self.start.0 + self.refcounts.len() as u64 * CLUSTER_BYTES)
    }

    fn room(&self) -> usize {
        self.refcounts.len() * CLUSTER_BYTES as usize - self.bytes.len()
    }

    /// Takes bytes that fit.
    fn push(&mut self, bytes: &[u8]) {
        let first = self.bytes.len() / CLUSTER_BYTES as usize;
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len().div_ceil(CLUSTER_BYTES as usize);
        for refcount in &mut self.refcounts[first..end] {
            *refcount += 1;
        }
    }
}

impl Arena {
    /// Packs the frames that have no place yet (`places` holds one for each that has), until all are packed or an arena
    /// is full. A full one is returned and is the caller's to write; `None` when all frames are packed.
    pub(super) fn place(
        &self,
        frames: &[&[u8]],
        places: &mut Vec<ByteOffset>,
        allocate: impl Fn(u64) -> ByteOffset,
    ) -> Option<Filled> {
        if places.len() == frames.len() {
            return None;
        }
        let mut state = self.state.lock();
        for frame in &frames[places.len()..] {
            match state.open.as_mut() {
                Some(open) if open.room() >= frame.len() => {
                    places.push(ByteOffset(open.start.0 + open.bytes.len() as u64));
                    open.push(frame);
                }
                _ => {
                    let mut next = self.begin(&mut state, &allocate);
                    let mut full = state.open.take();
                    match &mut full {
                        Some(full) if full.end() == next.start && full.room() > 0 => {
                            places.push(ByteOffset(full.start.0 + full.bytes.len() as u64));
                            let (head, tail) = frame.split_at(full.room());
                            full.push(head);
                            next.push(tail);
                        }
                        _ => {
                            places.push(next.start);
                            next.push(frame);
                        }
                    }
                    state.open = Some(next);
                    if full.is_some() {
                        return full;
                    }
                }
            }
        }
        None
    }

    /// The arena that is not full, at the end.
    pub(super) fn finish(&self) -> Option<Filled> {
        self.spares.lock().clear();
        self.state.lock().open.take()
    }

    /// Takes a buffer back.
    pub(super) fn recycle(&self, mut bytes: Vec<u8>) {
        let mut spares = self.spares.lock();
        if spares.len() < SPARES_MAX {
            bytes.clear();
            spares.push(bytes);
        }
    }

    fn begin(&self, state: &mut State, allocate: &impl Fn(u64) -> ByteOffset) -> Filled {
        let clusters = (state.clusters / 8).clamp(CLUSTERS_MIN, CLUSTERS_MAX);
        state.clusters += clusters;
        let mut bytes = self.spares.lock().pop().unwrap_or_default();
        bytes.reserve_exact(clusters as usize * CLUSTER_BYTES as usize);
        Filled { start: allocate(clusters), bytes, refcounts: vec![0; clusters as usize] }
    }
}
