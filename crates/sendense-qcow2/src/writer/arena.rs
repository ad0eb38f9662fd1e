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
/// The same in an image that is marked while it grows: each mark ends an arena, and what of it nobody has filled is a hole
/// where other blocks lie behind it. So an arena there is one cluster, or as much of what was packed since the last mark that
/// all holes together are less than this part of what is packed.
const HOLES_PART: u64 = 128;
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
    /// Clusters of all arenas so far; where the image is marked, since the last mark.
    clusters: u64,
    is_marked: bool,
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

    /// The image is marked, and will be again: nothing is open at this moment.
    pub(super) fn marked(&self) {
        let mut state = self.state.lock();
        (state.clusters, state.is_marked) = (0, true);
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
        let clusters = if state.is_marked {
            (state.clusters / HOLES_PART).clamp(1, CLUSTERS_MAX)
        } else {
            (state.clusters / 8).clamp(CLUSTERS_MIN, CLUSTERS_MAX)
        };
        state.clusters += clusters;
        let mut bytes = self.spares.lock().pop().unwrap_or_default();
        bytes.reserve_exact(clusters as usize * CLUSTER_BYTES as usize);
        Filled { start: allocate(clusters), bytes, refcounts: vec![0; clusters as usize] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_marks_leave_empty_is_a_small_part_of_what_is_packed() {
        let (arena, cursor) = (Arena::default(), Cell::new(0));
        arena.marked();
        let (mut clusters, mut empty) = (0, 0);
        let mut take = |filled: &Filled| {
            clusters += filled.refcounts.len() as u64;
            empty += filled.refcounts.iter().filter(|frames| **frames == 0).count() as u64;
        };
        let frame = vec![0; 40_000];
        for frames in [1, 2, 7, 150, 3, 2000, 500, 1, 900, 11] {
            for _ in 0..frames {
                let mut places = Vec::new();
                // Other blocks come between all arenas.
                let allocate = |clusters: u64| ByteOffset(cursor.replace(cursor.get() + clusters + 1) * CLUSTER_BYTES);
                while let Some(full) = arena.place(&[&frame], &mut places, allocate) {
                    take(&full);
                    arena.recycle(full.bytes);
                }
            }
            take(&arena.finish().unwrap());
            arena.marked();
        }
        assert!(empty * HOLES_PART <= clusters, "{empty} of {clusters}");
    }
}
