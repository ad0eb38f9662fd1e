//! Lost blocks, between the sets of the repository and the rows of the catalog. Pure.

use sendense_block::{BLOCK_BYTES, ByteLen, ByteOffset, Extent, ExtentSet};
use sendense_catalog::Lost;
use sendense_types::{BackupId, DiskNumber};
use std::collections::BTreeMap;

/// Ranges that are kept of a disk: 80 KB of text at the most. What is damaged in more places is kept in coarser ranges, so that
/// some blocks are stored again that were not lost.
const RANGES_MAX: usize = 4096;

/// The lost blocks of a point as they are kept.
pub(crate) fn keep(lost: &BTreeMap<DiskNumber, ExtentSet>) -> Lost {
    lost.iter().map(|(disk, blocks)| (*disk, ranges(blocks))).collect()
}

fn ranges(blocks: &ExtentSet) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut gap_max = 0;
    for extent in blocks.as_slice() {
        let extent = extent.to_blocks();
        ranges.push((extent.start().0 / BLOCK_BYTES, extent.len().0 / BLOCK_BYTES));
        if ranges.len() > RANGES_MAX {
            // Wider gaps are closed each time, until half of the room is free again.
            while ranges.len() > RANGES_MAX / 2 {
                gap_max = (gap_max * 2).max(8);
                close_gaps(&mut ranges, gap_max);
            }
        }
    }
    ranges
}

fn close_gaps(ranges: &mut Vec<(u64, u64)>, gap_max: u64) {
    ranges.dedup_by(|next, kept| {
        let end = kept.0.saturating_add(kept.1);
        let is_near = next.0.saturating_sub(end) <= gap_max;
        if is_near {
            kept.1 = next.0.saturating_add(next.1).saturating_sub(kept.0);
        }
        is_near
    });
}

/// What each point has lost of a disk. Ranges that no disk can have are as if they were not there.
pub(crate) fn of_disk(damaged: &BTreeMap<BackupId, Lost>, disk: DiskNumber) -> BTreeMap<BackupId, ExtentSet> {
    let of_point = |(id, lost): (&BackupId, &Lost)| {
        let blocks: ExtentSet = lost.get(&disk)?.iter().filter_map(|range| extent(*range)).collect();
        (!blocks.is_empty()).then(|| (id.clone(), blocks))
    };
    damaged.iter().filter_map(of_point).collect()
}

fn extent((first, count): (u64, u64)) -> Option<Extent> {
    let start = first.checked_mul(BLOCK_BYTES)?;
    Extent::new(ByteOffset(start), ByteLen(count.checked_mul(BLOCK_BYTES)?))
}

/// How many blocks are lost of a disk.
pub(crate) fn count(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// All blocks of a disk of so many bytes.
pub(crate) fn whole(capacity_bytes: u64) -> ExtentSet {
    std::iter::once(Extent::whole(ByteLen(capacity_bytes)).to_blocks()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sendense_block::BlockIndex;

    fn set(blocks: impl IntoIterator<Item = u64>) -> ExtentSet {
        blocks.into_iter().map(|index| Extent::block(BlockIndex(index))).collect()
    }

    fn back(lost: &Lost, disk: u32) -> ExtentSet {
        let id: BackupId = "bk-1".parse().unwrap();
        of_disk(&[(id.clone(), lost.clone())].into(), DiskNumber(disk)).remove(&id).unwrap_or_default()
    }

    #[test]
    fn what_is_kept_is_read_back() {
        let lost = keep(&[(DiskNumber(0), set([0, 1, 7])), (DiskNumber(1), ExtentSet::new())].into());
        assert_eq!(lost, [(DiskNumber(0), vec![(0, 2), (7, 1)]), (DiskNumber(1), vec![])].into());
        assert_eq!(count(&lost[&DiskNumber(0)]), 3);
        assert_eq!(back(&lost, 0), set([0, 1, 7]));
        assert_eq!(back(&lost, 1), ExtentSet::new());
        assert_eq!(back(&[(DiskNumber(0), vec![(u64::MAX, 1), (1, u64::MAX)])].into(), 0), ExtentSet::new());
        assert_eq!((whole(65_537), whole(0)), (set([0, 1]), ExtentSet::new()));
    }

    #[test]
    fn what_is_damaged_everywhere_is_kept_in_coarser_ranges() {
        let every_other = set((0..40_000).map(|number| number * 2));
        let kept = keep(&[(DiskNumber(0), every_other.clone())].into());
        assert!(kept[&DiskNumber(0)].len() <= RANGES_MAX, "{}", kept[&DiskNumber(0)].len());
        assert_eq!(every_other.difference(&back(&kept, 0)), ExtentSet::new(), "nothing that is lost is left out");
    }

    proptest! {
        #[test]
        fn nothing_is_left_out(blocks in prop::collection::btree_set(0_u64..5000, 0..200)) {
            let blocks = set(blocks);
            let kept = keep(&[(DiskNumber(0), blocks.clone())].into());
            prop_assert_eq!(back(&kept, 0), blocks);
        }
    }
}
