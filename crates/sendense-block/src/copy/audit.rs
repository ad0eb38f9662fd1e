//! Whether change tracking tells the truth: a sample of the blocks that it calls unchanged is read, and compared with what
//! the parent holds.
//!
//! What lives here: which blocks, reading them, the count. What does not: what follows from a difference; whoever asked for
//! the backup decides. Tracking that misses a write says nothing about it: the point keeps the old block, and nobody sees
//! it until the restore. A sample cannot prove that this has not happened. It makes tracking that misses more than a
//! little show itself within a few backups, and one that misses a lot show itself in the first.
//!
//! Invariant: which blocks are looked at depends on the seed and on the disk's unchanged data alone, not on the order of
//! work, so that a test can say which.

use super::run_lanes;
use crate::cancel::Cancel;
use crate::device::Disk;
use crate::digest::{Digest, Known, is_zero};
use crate::error::Result;
use crate::extent::{Extent, ExtentSet};
use crate::units::{BLOCK_BYTES, BlockIndex};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// The least number of blocks where a sample is taken: 64 reads cost some hundredths of a second, and small disks would get
/// hardly any by their share.
pub const SAMPLE_BLOCKS_MIN: usize = 64;

/// The most: 8 GiB to read, which is a thousandth of the data of an 8 TiB disk; larger disks are sampled thinner. An entry
/// takes some 60 bytes of memory, 8 MiB in all.
const SAMPLE_BLOCKS_MAX: usize = 1 << 17;

/// How many of the unchanged blocks are looked at, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Of a million so many; a million is all of them, up to a bound.
    pub per_million: u32,
    /// At least so many, where there are so many.
    pub blocks_min: usize,
    /// Chooses among them: the same seed, the same blocks.
    pub seed: u64,
}

impl Sampling {
    /// Looks at nothing.
    pub const NONE: Self = Self { per_million: 0, blocks_min: 0, seed: 0 };

    /// The largest mark of a block that is taken for its share: marks are spread evenly over all numbers.
    fn mark_max(self) -> Option<u64> {
        let share = u64::from(self.per_million.min(1_000_000));
        (share > 0).then(|| (u128::from(u64::MAX) * u128::from(share) / 1_000_000) as u64)
    }

    /// A number of the block's own, even over all numbers. SplitMix64 of seed and index: nobody gains by knowing it before.
    fn mark(self, index: BlockIndex) -> u64 {
        let mut mixed = self.seed.wrapping_add(index.0.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Blocks to look at, with what the parent holds there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    sampling: Sampling,
    /// Those with the smallest marks, by mark.
    blocks: BTreeMap<(u64, BlockIndex), Known>,
}

impl Default for Sample {
    fn default() -> Self {
        Self::new(Sampling::NONE)
    }
}

impl Sample {
    pub(super) fn new(sampling: Sampling) -> Self {
        Self { sampling, blocks: BTreeMap::new() }
    }

    /// How many blocks it has.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// True when there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Takes some of these whole blocks in.
    pub(super) fn offer(&mut self, unchanged: &ExtentSet, known: impl Fn(BlockIndex) -> Known) {
        if self.sampling == Sampling::NONE {
            return;
        }
        let share = self.sampling.mark_max();
        for index in unchanged.as_slice().iter().flat_map(|extent| extent.block_indices()) {
            let mark = self.sampling.mark(index);
            let wanted = share.is_some_and(|max| mark <= max) && self.blocks.len() < SAMPLE_BLOCKS_MAX;
            // The others stand in until there are enough, or take the place of one with a larger mark.
            let stands_in = self.blocks.len() < self.sampling.blocks_min
                || self.blocks.last_key_value().is_some_and(|((largest, _), _)| mark < *largest);
            if !wanted && !stands_in {
                continue;
            }
            self.blocks.insert((mark, index), known(index));
            while let Some(((largest, _), _)) = self.blocks.last_key_value()
                && (self.blocks.len() > SAMPLE_BLOCKS_MAX
                    || self.blocks.len() > self.sampling.blocks_min && share.is_none_or(|max| *largest > max))
            {
                self.blocks.pop_last();
            }
        }
    }

    /// By rising index, which disks like.
    fn in_order(&self) -> Vec<(BlockIndex, Known)> {
        let mut blocks: Vec<_> = self.blocks.iter().map(|((_, index), known)| (*index, *known)).collect();
        blocks.sort_unstable_by_key(|(index, _)| *index);
        blocks
    }
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    /// Blocks that were read and compared.
    pub blocks_checked: u64,
    /// Those of them that are not what the parent holds, although they are called unchanged.
    pub blocks_different: u64,
    /// The first one of these.
    pub first_different: Option<BlockIndex>,
}

/// Reads the sampled blocks of a disk, some at once, and compares each with the parent's.
pub fn audit(name: &str, disk: &dyn Disk, sample: &Sample, lanes: usize, cancel: &Cancel) -> Result<Audit> {
    let blocks = sample.in_order();
    let lanes = lanes.clamp(1, super::LANES_MAX).min(blocks.len().max(1));
    let (work, found) = (Mutex::new(blocks.into_iter()), Mutex::new(Audit::default()));
    run_lanes(lanes, cancel, |stop| {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        while !stop.asked() {
            let Some((index, known)) = work.lock().next() else { break };
            let same = read(disk, index, &mut buffer)? == known;
            let mut found = found.lock();
            found.blocks_checked += 1;
            if !same {
                found.blocks_different += 1;
                found.first_different = Some(found.first_different.map_or(index, |first| first.min(index)));
            }
        }
        Ok(())
    })
    .map_err(|error| error.within(format!("audit the change tracking of {name}")))?;
    Ok(found.into_inner())
}

/// What a block holds now; the last one is padded with zeros.
fn read(disk: &dyn Disk, index: BlockIndex, buffer: &mut [u8]) -> Result<Known> {
    let held = Extent::block(index).intersect(Extent::whole(disk.size()));
    let (bytes, padding) = buffer.split_at_mut(held.len().0 as usize);
    disk.read_at(held.start(), bytes)?;
    padding.fill(0);
    Ok(if is_zero(buffer) { Known::Zero } else { Known::Data(Digest::of(buffer)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;
    use crate::units::ByteOffset;
    use crate::{ChangeMap, DigestMap, WriteAt, copy};
    use proptest::prelude::*;

    const B: u64 = BLOCK_BYTES;

    /// The parent of a disk as it was.
    struct Parent(Vec<u8>);

    impl DigestMap for Parent {
        fn known(&self, first: BlockIndex, out: &mut [Known]) -> Result<()> {
            let disk = Memory::from_bytes(self.0.clone());
            let end = self.0.len() as u64;
            for (number, known) in out.iter_mut().enumerate() {
                let index = BlockIndex(first.0 + number as u64);
                let inside = Extent::block(index).start().0 < end;
                *known = if inside { read(&disk, index, &mut vec![0; B as usize])? } else { Known::Zero };
            }
            Ok(())
        }
    }

    struct Told(ExtentSet);

    impl ChangeMap for Told {
        fn changed(&self, within: Extent) -> Result<ExtentSet> {
            Ok(self.0.within(within))
        }
    }

    fn told(blocks: &[u64]) -> ExtentSet {
        blocks.iter().map(|index| Extent::block(BlockIndex(*index))).collect()
    }

    fn all(seed: u64) -> Sampling {
        Sampling { per_million: 1_000_000, blocks_min: 0, seed }
    }

    #[test]
    fn a_lie_is_found_and_the_truth_is_believed() {
        // Ten blocks of data and a tail of 100 bytes.
        let bytes = vec![3; 10 * B as usize + 100];
        let (disk, parent) = (Memory::from_bytes(bytes.clone()), Parent(bytes));
        let ask = |changed: &[u64]| {
            let changes = Told(told(changed));
            let mode = copy::Mode::Tracked { parent: &parent, changes: &changes };
            let cancel = Cancel::new();
            let survey = copy::survey_and_sample("a disk", &disk, mode, all(1), &cancel).unwrap();
            audit("a disk", &disk, &survey.sample, 3, &cancel).unwrap()
        };
        assert_eq!(ask(&[]), Audit { blocks_checked: 11, ..Audit::default() });
        disk.write_at(ByteOffset(7 * B + 9), &[4]).unwrap();
        assert_eq!(ask(&[7]), Audit { blocks_checked: 10, ..Audit::default() });
        let lie = Audit { blocks_checked: 10, blocks_different: 1, first_different: Some(BlockIndex(7)) };
        assert_eq!(ask(&[6]), lie);
        disk.write_at(ByteOffset(10 * B + 99), &[4]).unwrap();
        assert_eq!(ask(&[7]).first_different, Some(BlockIndex(10)), "the tail is looked at, too");
    }

    fn sample(blocks: u64, sampling: Sampling) -> Vec<u64> {
        let mut sample = Sample::new(sampling);
        // In two parts, as it is offered by windows.
        let half = ByteOffset(blocks / 2 * B);
        for (start, end) in [(ByteOffset(0), half), (half, ByteOffset(blocks * B))] {
            sample.offer(&[Extent::between(start, end)].into_iter().collect(), |_| Known::Zero);
        }
        sample.in_order().into_iter().map(|(index, _)| index.0).collect()
    }

    #[test]
    fn the_default_sample_has_its_least_and_its_share() {
        let default = |seed| Sampling { per_million: 1000, blocks_min: SAMPLE_BLOCKS_MIN, seed };
        assert_eq!(sample(5, default(1)), [0, 1, 2, 3, 4]);
        assert_eq!(sample(10_000, default(1)).len(), SAMPLE_BLOCKS_MIN);
        let large = sample(1 << 20, default(2));
        assert!((900..1200).contains(&large.len()), "{}", large.len());
        let low = large.iter().filter(|index| **index < 1 << 19).count();
        assert!((large.len() * 2 / 5..large.len() * 3 / 5).contains(&low), "both halves are looked at: {low}");
        assert_eq!(large, sample(1 << 20, default(2)));
        assert_ne!(large, sample(1 << 20, default(3)));
        assert_eq!(sample(1 << 20, Sampling::NONE), [0; 0]);
        assert_eq!(sample(SAMPLE_BLOCKS_MAX as u64 + 1000, all(3)).len(), SAMPLE_BLOCKS_MAX);
    }

    proptest! {
        /// The stupid oracle: sort all by their marks, and take from the front.
        #[test]
        fn the_smallest_marks_are_taken(blocks in 0u64..3000, per_million in 0u32..=1_000_000, blocks_min in 0usize..80, seed in any::<u64>()) {
            let sampling = Sampling { per_million, blocks_min, seed };
            let mut marked: Vec<_> = (0..blocks).map(|index| (sampling.mark(BlockIndex(index)), index)).collect();
            marked.sort_unstable();
            let share = marked.iter().filter(|(mark, _)| sampling.mark_max().is_some_and(|max| *mark <= max)).count();
            marked.truncate(share.max(blocks_min));
            let mut wanted: Vec<_> = marked.into_iter().map(|(_, index)| index).collect();
            wanted.sort_unstable();
            prop_assert_eq!(sample(blocks, sampling), wanted);
        }
    }
}
