//! A disk that a node writes: which batches of its blocks are stored, and which of these outlive the hub.
//!
//! Invariant: a batch is told as durable only after a mark of the draft was written that has all its blocks.

use parking_lot::Mutex;
use sendense_block::{BlockSink, Result, block_count};
use sendense_node::remote::batch::Checked;
use sendense_node::remote::message::{BeginDisk, Stored};
use sendense_repo::DiskDraft;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Batches that may arrive before an earlier one: a node has so many that are not durable at the most, and 16 streams per disk.
pub(super) const BATCHES_AHEAD_MAX: u64 = 1024;
/// Bytes of blocks after which a disk is marked before its time: what a hub that dies loses of a fast line. A mark costs a few
/// syncs, of data that has to be written anyway.
const MARK_BYTES: u64 = 128 << 20;

/// A disk that was begun.
pub(super) struct Landed {
    pub draft: Arc<DiskDraft>,
    pub blocks: u64,
    pub begun: BeginDisk,
    pub batches: Mutex<Batches>,
    /// The hub's lives that this disk has seen before this one.
    life: u32,
    durable: Mutex<Durable>,
    /// Held while a mark is written.
    marking: Mutex<()>,
    is_changed: AtomicBool,
    unmarked_bytes: AtomicU64,
}

/// The batches that a mark has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Durable {
    /// All below.
    floor: u64,
    /// Others beyond it.
    beyond: BTreeSet<u64>,
}

impl Landed {
    /// A disk of which nothing was stored yet. It is marked, so that it outlives the hub from now on.
    pub fn begin(draft: Arc<DiskDraft>, begun: BeginDisk, life: u32) -> Result<Self> {
        let landed = Self::new(draft, begun, life, Durable::default());
        landed.is_changed.store(true, Ordering::SeqCst);
        landed.mark()?;
        Ok(landed)
    }

    /// A disk of which an earlier life of the hub has stored what the note of its mark says.
    pub fn resume(draft: Arc<DiskDraft>, begun: BeginDisk, life: u32, note: &[u8]) -> serde_json::Result<Self> {
        Ok(Self::new(draft, begun, life, serde_json::from_slice(note)?))
    }

    fn new(draft: Arc<DiskDraft>, begun: BeginDisk, life: u32, durable: Durable) -> Self {
        Self {
            blocks: block_count(begun.disk.capacity),
            draft,
            begun,
            batches: Mutex::new(Batches::of(&durable)),
            life,
            durable: Mutex::new(durable),
            marking: Mutex::default(),
            is_changed: AtomicBool::new(false),
            unmarked_bytes: AtomicU64::new(0),
        }
    }

    /// Stores the blocks of a batch, once they are what their digests say.
    pub fn store(&self, batch: u64, bytes: &[u8]) -> Result<()> {
        let blocks = Checked::default().parse(bytes, self.blocks)?;
        if self.life == 0 {
            self.draft.put(&blocks)?;
        } else {
            // A batch that was half in the mark comes again as a whole.
            self.draft.put_missing(&blocks)?;
        }
        self.batches.lock().end(batch);
        self.is_changed.store(true, Ordering::SeqCst);
        let unmarked = self.unmarked_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        if unmarked >= MARK_BYTES
            && let Some(turn) = self.marking.try_lock()
        {
            drop(turn);
            self.mark()?;
        }
        Ok(())
    }

    /// Makes what was stored so far durable, unless it is.
    pub fn mark(&self) -> Result<()> {
        let _turn = self.marking.lock();
        if !self.is_changed.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.unmarked_bytes.store(0, Ordering::SeqCst);
        // Taken before the mark is made: each of these batches is in the draft as a whole.
        let durable = self.batches.lock().ended();
        let note = serde_json::to_vec(&durable).expect("numbers can be written");
        self.draft.mark(&note)?;
        *self.durable.lock() = durable;
        Ok(())
    }

    /// What the node is told after a batch.
    pub fn stored(&self) -> Stored {
        let Durable { floor, beyond } = self.durable.lock().clone();
        Stored { life: self.life, floor, beyond: beyond.into_iter().collect() }
    }
}

/// Which batches of a disk were stored. A batch whose answer was lost comes again.
#[derive(Debug, Default)]
pub(super) struct Batches {
    /// All below are stored.
    floor: u64,
    /// Stored beyond it.
    stored: BTreeSet<u64>,
    /// Being stored.
    busy: BTreeSet<u64>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    New,
    Done,
    Busy,
    TooFar,
}

impl Batches {
    fn of(durable: &Durable) -> Self {
        Self { floor: durable.floor, stored: durable.beyond.clone(), busy: BTreeSet::new() }
    }

    fn ended(&self) -> Durable {
        Durable { floor: self.floor, beyond: self.stored.clone() }
    }

    pub fn begin(&mut self, batch: u64) -> Begun {
        if batch < self.floor || self.stored.contains(&batch) {
            return Begun::Done;
        }
        if batch - self.floor >= BATCHES_AHEAD_MAX {
            return Begun::TooFar;
        }
        if self.busy.insert(batch) { Begun::New } else { Begun::Busy }
    }

    fn end(&mut self, batch: u64) {
        self.busy.remove(&batch);
        self.stored.insert(batch);
        while self.stored.remove(&self.floor) {
            self.floor += 1;
        }
    }

    /// True when so many were stored, and none is missing among them.
    pub fn are(&self, count: u64) -> bool {
        self.floor == count && self.stored.is_empty() && self.busy.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_stored_once_however_often_it_comes() {
        let mut batches = Batches::default();
        assert_eq!(batches.begin(1), Begun::New);
        assert_eq!(batches.begin(1), Begun::Busy);
        assert_eq!(batches.begin(0), Begun::New);
        batches.end(1);
        assert_eq!((batches.begin(1), batches.floor), (Begun::Done, 0));
        batches.end(0);
        assert_eq!((batches.floor, batches.stored.len()), (2, 0), "memory does not grow with the disk");
        assert_eq!(batches.begin(0), Begun::Done);
        assert_eq!(batches.begin(2 + BATCHES_AHEAD_MAX), Begun::TooFar);
    }

    #[test]
    fn what_is_being_stored_is_not_durable_and_comes_again() {
        let mut batches = Batches::default();
        for batch in [0, 2, 3] {
            assert_eq!(batches.begin(batch), Begun::New);
        }
        batches.end(0);
        batches.end(3);
        let durable = batches.ended();
        assert_eq!(durable, Durable { floor: 1, beyond: [3].into() });
        let mut next_life = Batches::of(&durable);
        assert_eq!(
            [0, 1, 2, 3].map(|batch| next_life.begin(batch)),
            [Begun::Done, Begun::New, Begun::New, Begun::Done]
        );
    }
}
