//! Which blocks an overlay holds: two bits each, in groups, and which groups changed since they were last asked for.
//!
//! What lives here: the numbers. What does not: I/O. Invariant: a block beyond the device's end is base, and every group
//! whose states changed is on the list of changed ones.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Blocks of a group: 512 MiB of disk, whose states fit into one page of the journal.
pub(super) const GROUP_BLOCKS: u64 = 8192;
/// Bytes of a group's states.
pub(super) const GROUP_BYTES: usize = GROUP_BLOCKS as usize / 4;

/// The states of a group, the first block in the lowest two bits.
pub(super) type Group = [u8; GROUP_BYTES];

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Base = 0,
    Data = 1,
    Zero = 2,
}

/// The states of all blocks of a device. Groups of which nothing is held take no memory.
#[derive(Debug)]
pub(super) struct States {
    blocks: u64,
    groups: BTreeMap<u64, Box<Group>>,
    changed: BTreeSet<u64>,
    data: u64,
    zero: u64,
}

/// A group that no overlay can have written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Impossible;

impl States {
    pub(super) const fn new(blocks: u64) -> Self {
        Self { blocks, groups: BTreeMap::new(), changed: BTreeSet::new(), data: 0, zero: 0 }
    }

    /// How many blocks are data, and how many are zero.
    pub(super) const fn counts(&self) -> (u64, u64) {
        (self.data, self.zero)
    }

    pub(super) fn get(&self, block: u64) -> State {
        self.groups.get(&(block / GROUP_BLOCKS)).map_or(State::Base, |group| state_in(group, block % GROUP_BLOCKS))
    }

    /// Sets the states of blocks; those beyond the end are left out.
    pub(super) fn set(&mut self, blocks: Range<u64>, state: State) {
        for block in blocks.start..blocks.end.min(self.blocks) {
            let (number, place) = (block / GROUP_BLOCKS, block % GROUP_BLOCKS);
            let group = self.groups.entry(number).or_insert_with(|| Box::new([0; GROUP_BYTES]));
            let before = state_in(group, place);
            if before == state {
                continue;
            }
            let shift = place % 4 * 2;
            let byte = &mut group[(place / 4) as usize];
            *byte = *byte & !(3 << shift) | ((state as u8) << shift);
            self.changed.insert(number);
            self.count(before, false);
            self.count(state, true);
        }
    }

    fn count(&mut self, state: State, more: bool) {
        let counter = match state {
            State::Base => return,
            State::Data => &mut self.data,
            State::Zero => &mut self.zero,
        };
        if more { *counter += 1 } else { *counter -= 1 }
    }

    /// The blocks in order, neighbours of the same state together. Costs by the groups that are held.
    pub(super) fn runs(&self, blocks: Range<u64>) -> Vec<(Range<u64>, State)> {
        let mut runs: Vec<(Range<u64>, State)> = Vec::new();
        let mut push = |range: Range<u64>, state| match runs.last_mut().filter(|last| last.1 == state) {
            Some(last) => last.0.end = range.end,
            None if range.is_empty() => {}
            None => runs.push((range, state)),
        };
        let mut at = blocks.start;
        for (number, group) in self.groups.range(blocks.start / GROUP_BLOCKS..blocks.end.div_ceil(GROUP_BLOCKS)) {
            let first = (number * GROUP_BLOCKS).max(at);
            let last = (number + 1).saturating_mul(GROUP_BLOCKS).min(blocks.end);
            if at < first {
                push(at..first, State::Base);
            }
            for block in first..last {
                push(block..block + 1, state_in(group, block % GROUP_BLOCKS));
            }
            at = last;
        }
        if at < blocks.end {
            push(at..blocks.end, State::Base);
        }
        runs
    }

    /// The numbers of the groups that are held.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.groups.keys().copied().collect()
    }

    /// A group's states.
    pub(super) fn group(&self, number: u64) -> Group {
        self.groups.get(&number).map_or([0; GROUP_BYTES], |group| **group)
    }

    /// Takes a group's states from a journal; it is not on the list of changed ones by that.
    pub(super) fn load(&mut self, number: u64, group: &Group) -> Result<(), Impossible> {
        let first = number.checked_mul(GROUP_BLOCKS).filter(|first| *first < self.blocks).ok_or(Impossible)?;
        let mut counts = [0u64; 4];
        for place in 0..GROUP_BLOCKS {
            let bits = group[(place / 4) as usize] >> (place % 4 * 2) & 3;
            if bits == 3 || bits != 0 && place >= self.blocks - first {
                return Err(Impossible);
            }
            counts[bits as usize] += 1;
        }
        if let Some(before) = self.groups.insert(number, Box::new(*group)) {
            for place in 0..GROUP_BLOCKS {
                self.count(state_in(&before, place), false);
            }
        }
        self.data += counts[State::Data as usize];
        self.zero += counts[State::Zero as usize];
        Ok(())
    }

    /// The groups that changed; the list is empty afterwards.
    pub(super) fn take_changed(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.changed)
    }

    /// Puts groups on the list again, because what they were taken for did not succeed.
    pub(super) fn put_back(&mut self, changed: BTreeSet<u64>) {
        self.changed.extend(changed);
    }
}

fn state_in(group: &Group, place: u64) -> State {
    match group[(place / 4) as usize] >> (place % 4 * 2) & 3 {
        1 => State::Data,
        2 => State::Zero,
        // Three cannot be: `load` refuses it and `set` does not write it.
        _ => State::Base,
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 3 * GROUP_BLOCKS - 100;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn states_are_an_array(sets in prop::collection::vec((0..BLOCKS, 0..400u64, 1..3u8), 0..20), asked in (0..BLOCKS, 0..BLOCKS)) {
            let (mut states, mut oracle) = (States::new(BLOCKS), vec![State::Base; BLOCKS as usize]);
            for (at, len, state) in sets {
                let state = if state == 1 { State::Data } else { State::Zero };
                states.set(at..at + len, state);
                oracle[at as usize..(at + len).min(BLOCKS) as usize].fill(state);
            }
            let asked = asked.0.min(asked.1)..asked.0.max(asked.1);
            let runs = states.runs(asked.clone());
            let mut at = asked.start;
            for (run, state) in &runs {
                prop_assert!(run.start == at && !run.is_empty());
                prop_assert!(oracle[run.start as usize..run.end as usize].iter().all(|held| held == state));
                at = run.end;
            }
            prop_assert_eq!(at, asked.end);
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1));
            let count = |state| oracle.iter().filter(|held| **held == state).count() as u64;
            prop_assert_eq!(states.counts(), (count(State::Data), count(State::Zero)));
            // What is stored and loaded again is the same.
            let mut loaded = States::new(BLOCKS);
            for number in states.numbers() {
                prop_assert_eq!(loaded.load(number, &states.group(number)), Ok(()));
                prop_assert_eq!(loaded.load(number, &states.group(number)), Ok(()));
            }
            prop_assert_eq!(loaded.counts(), states.counts());
            prop_assert_eq!(loaded.runs(0..BLOCKS), states.runs(0..BLOCKS));
            prop_assert!(loaded.take_changed().is_empty());
        }
    }

    #[test]
    fn impossible_groups_are_refused() {
        let mut states = States::new(GROUP_BLOCKS + 1);
        let mut group = [0; GROUP_BYTES];
        group[0] = 1;
        assert_eq!(states.load(1, &group), Ok(()));
        group[0] = 0b0100;
        assert_eq!(states.load(1, &group), Err(Impossible), "the second block lies beyond the end");
        group[0] = 0b11;
        assert_eq!(states.load(0, &group), Err(Impossible), "there is no fourth state");
        assert_eq!(states.load(2, &[0; GROUP_BYTES]), Err(Impossible));
        assert_eq!(states.load(u64::MAX, &[0; GROUP_BYTES]), Err(Impossible));
    }
}
