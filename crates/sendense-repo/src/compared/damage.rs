//! What was found damaged while a disk was read that is needed all the same.

use sendense_block::{BLOCK_BYTES, BlockIndex, Extent, ExtentSet};

/// Ranges that are kept of each kind: 16 KiB. A disk that is damaged in more places is counted as far as that.
const RANGES_MAX: usize = 1024;

/// What a damaged block was given as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// As it lies there: it is not what was backed up.
    AsRead,
    /// As zeros: it can neither be read nor decoded.
    Zeros,
    /// As it lies there: its digest is damaged, and nobody knows whether it is what was backed up.
    Unproved,
}

/// The blocks of a disk that were not, or may not be, given as they were backed up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    as_read: ExtentSet,
    zeros: ExtentSet,
    unproved: ExtentSet,
    is_more: bool,
}

impl Damage {
    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks() == 0
    }

    /// How many there are; more than that where [`Damage::is_more`] says so.
    pub fn blocks(&self) -> u64 {
        self.blocks_given(Given::AsRead) + self.blocks_given(Given::Zeros) + self.blocks_given(Given::Unproved)
    }

    /// How many of them were given so.
    pub fn blocks_given(&self, given: Given) -> u64 {
        self.of(given).byte_len().0 / BLOCK_BYTES
    }

    /// True when damage lies in so many places that not all of it is counted.
    pub fn is_more(&self) -> bool {
        self.is_more
    }

    /// All of them by their place, in whole blocks.
    pub fn ranges(&self) -> Vec<(Extent, Given)> {
        let of = |given| self.of(given).as_slice().iter().map(move |range| (*range, given));
        let mut ranges: Vec<_> = of(Given::AsRead).chain(of(Given::Zeros)).chain(of(Given::Unproved)).collect();
        ranges.sort_by_key(|(range, _)| range.start());
        ranges
    }

    const fn of(&self, given: Given) -> &ExtentSet {
        match given {
            Given::AsRead => &self.as_read,
            Given::Zeros => &self.zeros,
            Given::Unproved => &self.unproved,
        }
    }

    /// A block is read more than once by some readers, and counts once.
    pub(super) fn note(&mut self, index: BlockIndex, given: Given) {
        let set = match given {
            Given::AsRead => &mut self.as_read,
            Given::Zeros => &mut self.zeros,
            Given::Unproved => &mut self.unproved,
        };
        let block = Extent::block(index);
        if set.contains(block) {
            return;
        }
        if set.as_slice().len() < RANGES_MAX {
            set.insert(block);
            return;
        }
        // Only what touches a range that is kept.
        let mut grown = set.clone();
        grown.insert(block);
        match grown.as_slice().len() <= RANGES_MAX {
            true => *set = grown,
            false => self.is_more = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_counts_once_and_what_is_everywhere_is_bounded() {
        let mut damage = Damage::default();
        assert!(damage.is_empty());
        for index in [7, 8, 7, 3, 8] {
            damage.note(BlockIndex(index), Given::AsRead);
        }
        damage.note(BlockIndex(5), Given::Zeros);
        assert_eq!((damage.blocks(), damage.blocks_given(Given::AsRead), damage.is_more()), (4, 3, false));
        let ranges: Vec<_> = damage
            .ranges()
            .iter()
            .map(|(range, given)| (range.start().0 / BLOCK_BYTES, range.len().0 / BLOCK_BYTES, *given))
            .collect();
        assert_eq!(ranges, [(3, 1, Given::AsRead), (5, 1, Given::Zeros), (7, 2, Given::AsRead)]);
        for index in 0..2 * RANGES_MAX as u64 {
            damage.note(BlockIndex(100 + 2 * index), Given::Unproved);
        }
        assert_eq!((damage.blocks_given(Given::Unproved), damage.is_more()), (RANGES_MAX as u64, true));
        // Beside one that is kept there is room.
        damage.note(BlockIndex(101), Given::Unproved);
        assert_eq!(damage.blocks_given(Given::Unproved), RANGES_MAX as u64 + 1);
    }
}
