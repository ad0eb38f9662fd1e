//! Which batches of a disk the hub has stored, and which of these would outlive it.
//!
//! ```text
//! sent -> stored -> durable
//!           '-- the hub died --> lost -> (read and sent again under its number) stored ...
//! ```
//!
//! Pure: answers go in, what was lost comes out. Invariant: every batch whose answer came is durable, stored in the hub's life
//! of now, or lost.

use super::batch;
use super::message::Stored;
use sendense_block::Result;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Blocks of a batch: the first one and how many follow each other.
pub(super) type Runs = Vec<(u64, u32)>;

/// The blocks of a batch as it travels.
pub(super) fn runs_of(bytes: &[u8]) -> Result<Runs> {
    let mut numbers: Vec<u64> = batch::parse(bytes)?.iter().map(|block| block.index.0).collect();
    // Lanes put their blocks as they come.
    numbers.sort_unstable();
    let mut runs: Runs = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    Ok(runs)
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The hub's life that was heard last.
    life: u32,
    floor: u64,
    beyond: BTreeSet<u64>,
    /// Stored in this life and not durable.
    stored: BTreeMap<u64, Runs>,
    lost: VecDeque<(u64, Runs)>,
}

impl Ledger {
    /// All batches below it outlive the hub.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// True when there is something to be sent again.
    pub fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Takes a batch that is to be sent again.
    pub fn take_lost(&mut self) -> Option<(u64, Runs)> {
        self.lost.pop_front()
    }

    /// The hub has said this to a batch with these blocks.
    pub fn stored(&mut self, batch: u64, runs: Runs, answer: Stored) {
        let life = answer.life;
        self.heard(answer);
        if self.is_durable(batch) {
            return;
        }
        if life == self.life {
            self.stored.insert(batch, runs);
        } else {
            // Stored by a life that is over, whose answer came late.
            self.lost.push_back((batch, runs));
        }
    }

    /// The hub has said how far it is.
    pub fn heard(&mut self, answer: Stored) {
        // What an earlier life says is known; what one life says only grows.
        if answer.life < self.life || answer.life == self.life && answer.floor < self.floor {
            return;
        }
        let is_another = answer.life > self.life;
        (self.life, self.floor, self.beyond) = (answer.life, answer.floor, answer.beyond.into_iter().collect());
        let (floor, beyond) = (self.floor, &self.beyond);
        self.stored.retain(|batch, _| *batch >= floor && !beyond.contains(batch));
        if is_another {
            self.lost.extend(std::mem::take(&mut self.stored));
        }
    }

    fn is_durable(&self, batch: u64) -> bool {
        batch < self.floor || self.beyond.contains(&batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(life: u32, floor: u64, beyond: &[u64]) -> Stored {
        Stored { life, floor, beyond: beyond.to_vec() }
    }

    fn runs(batch: u64) -> Runs {
        vec![(batch * 10, 3)]
    }

    #[test]
    fn what_a_dead_hub_had_not_kept_is_lost_and_nothing_else() {
        let mut ledger = Ledger::default();
        for batch in 0..4 {
            ledger.stored(batch, runs(batch), answer(0, 1, &[]));
        }
        assert!(!ledger.has_lost());
        // The next life has kept 0 and 2. An answer of the former one to batch 4 comes last.
        ledger.stored(5, runs(5), answer(1, 1, &[2]));
        ledger.stored(4, runs(4), answer(0, 1, &[]));
        let lost: Vec<_> = std::iter::from_fn(|| ledger.take_lost()).map(|(batch, runs)| (batch, runs[0].0)).collect();
        assert_eq!(lost, [(1, 10), (3, 30), (4, 40)]);
        for batch in [1, 3, 4] {
            ledger.stored(batch, runs(batch), answer(1, 1, &[2]));
        }
        ledger.heard(answer(1, 6, &[]));
        assert_eq!((ledger.floor(), ledger.has_lost(), ledger.stored.len()), (6, false, 0));
    }

    proptest! {
        /// A hub that dies at any moment, answers that come in any order: in the end all is durable.
        #[test]
        fn every_batch_is_durable_in_the_end(acts in prop::collection::vec((0..5_u8, any::<prop::sample::Index>()), 1..80)) {
            let mut ledger = Ledger::default();
            // The hub: its life, what is durable in it, what is stored; and answers that are under way.
            let (mut life, mut kept, mut held) = (0, BTreeSet::new(), BTreeSet::new());
            let mut under_way: Vec<(u64, Stored)> = Vec::new();
            let mut next = 0;
            let state = |life: u32, kept: &BTreeSet<u64>| {
                let floor = (0..).find(|batch| !kept.contains(batch)).unwrap();
                Stored { life, floor, beyond: kept.range(floor..).copied().collect() }
            };
            for (act, at) in acts {
                match act {
                    0 => {
                        held.insert(next);
                        under_way.push((next, state(life, &kept)));
                        next += 1;
                    }
                    1 => kept.clone_from(&held),
                    2 => (life, held) = (life + 1, kept.clone()),
                    3 if !under_way.is_empty() => {
                        let (batch, answer) = under_way.remove(at.index(under_way.len()));
                        ledger.stored(batch, runs(batch), answer);
                    }
                    _ => if let Some((batch, _)) = ledger.take_lost() {
                        held.insert(batch);
                        under_way.push((batch, state(life, &kept)));
                    },
                }
            }
            for _ in 0..3 {
                for (batch, answer) in under_way.drain(..) {
                    ledger.stored(batch, runs(batch), answer);
                }
                ledger.heard(state(life, &kept));
                while let Some((batch, _)) = ledger.take_lost() {
                    held.insert(batch);
                    under_way.push((batch, state(life, &kept)));
                }
                kept.clone_from(&held);
            }
            ledger.heard(state(life, &kept));
            prop_assert_eq!(ledger.floor(), next);
            prop_assert!(ledger.stored.is_empty() && !ledger.has_lost());
        }
    }
}
