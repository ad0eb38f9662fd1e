//! Deciding which blocks to read, before anything is read.
//!
//! A disk is planned window by window ([`WINDOW_BYTES`]), so that memory does not grow with the disk. [`window`] is a pure
//! function of what the source says (size, allocation, changes) and what the parent is known to hold; its [`Plan`] prints.
//!
//! Invariant: a block that is not in a plan is, by the source's own word *and* the parent's digests, equal to the parent's
//! (in a full: zero). Where the two contradict each other the plan carries a doubt and must not be run.

use crate::device::{Content, MappedExtent};
use crate::digest::Known;
use crate::extent::{Extent, ExtentSet};
use crate::units::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset};
use std::fmt;

/// The unit of planning: 8192 blocks (512 MiB), what one QCOW2 table of a 64 KiB cluster maps.
pub const WINDOW_BYTES: u64 = 8192 * BLOCK_BYTES;

/// What is known of the parent within a window.
#[derive(Debug, Clone, Copy)]
pub enum Parent<'a> {
    /// There is none: a full.
    None,
    /// It holds nothing but zeros there.
    Zero,
    /// It holds these; one entry per block of the window.
    Known(&'a [Known]),
}

impl Parent<'_> {
    fn holds_data(self, number: usize) -> bool {
        matches!(self, Parent::Known(known) if matches!(known.get(number), Some(Known::Data(_))))
    }
}

/// What to do with a range of whole blocks (the last may pass the disk's end).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read it; store what is not what the parent holds.
    Read(Extent),
    /// It is zero without reading, and the parent holds data there: store zeros.
    Zero(Extent),
}

/// A block that the source calls unchanged and empty where the parent holds data. One of the two is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt(pub BlockIndex);

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} is called unchanged and is a hole, but the parent holds data there", self.0)
    }
}

/// What to do with a window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Steps in rising order; they do not overlap.
    pub steps: Vec<Step>,
    /// The first contradiction, if there is one. Then the disk must be read completely and compared.
    pub doubt: Option<Doubt>,
    /// Data that is not read because the source calls it unchanged: what an audit of its word picks from.
    pub untouched: ExtentSet,
}

impl Plan {
    /// How many bytes it reads, cut at the disk's end.
    pub fn read_len(&self, size: ByteLen) -> ByteLen {
        let disk = Extent::whole(size);
        let reads = self.steps.iter().map(|step| match step {
            Step::Read(extent) => extent.intersect(disk).len().0,
            Step::Zero(_) => 0,
        });
        ByteLen(reads.sum())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            match step {
                Step::Read(extent) => writeln!(f, "read {extent}")?,
                Step::Zero(extent) => writeln!(f, "zero {extent}")?,
            }
        }
        self.doubt.map_or(Ok(()), |doubt| writeln!(f, "doubt: {doubt}"))
    }
}

/// Plans one window: a range of whole blocks that starts on a block and is cut at the disk's last block.
///
/// `allocation` covers the part of the window that lies on the disk of `size`. `changed` is what changed since the parent;
/// `None` means that nothing is known and everything must be looked at (a full, or a comparison).
pub fn window(
    window: Extent,
    size: ByteLen,
    allocation: &[MappedExtent],
    changed: Option<&ExtentSet>,
    parent: Parent<'_>,
) -> Plan {
    let data: ExtentSet =
        allocation.iter().filter(|mapped| mapped.content == Content::Data).map(|mapped| mapped.extent).collect();
    // A block with one byte of data is data; a block with one changed byte is changed.
    let end = window.end();
    let data = data.to_blocks(end);
    let holes = data.gaps(window);
    let mut plan = Plan::default();
    let (to_read, may_be_zeroed) = match changed {
        None => (data, holes),
        Some(changed) => {
            let changed = changed.to_blocks(end);
            let untouched_holes = holes.difference(&changed);
            plan.doubt = first_data(window, &untouched_holes, parent).map(Doubt);
            plan.untouched = data.difference(&changed);
            (data.intersection(&changed), holes.intersection(&changed))
        }
    };
    let mut zero = ExtentSet::new();
    if let Parent::Known(_) = parent {
        let first = window.start().0 / BLOCK_BYTES;
        for extent in may_be_zeroed.as_slice() {
            for index in extent.block_indices() {
                if parent.holds_data((index.0 - first) as usize) {
                    zero.insert(Extent::block(index));
                }
            }
        }
    }
    plan.steps = to_read.as_slice().iter().map(|extent| Step::Read(*extent)).collect();
    plan.steps.extend(zero.as_slice().iter().map(|extent| Step::Zero(*extent)));
    plan.steps.sort_by_key(|step| match step {
        Step::Read(extent) | Step::Zero(extent) => extent.start(),
    });
    debug_assert!(size.0 + BLOCK_BYTES > end.0, "a window ends at the disk's last block");
    plan
}

fn first_data(window: Extent, within: &ExtentSet, parent: Parent<'_>) -> Option<BlockIndex> {
    let first = window.start().0 / BLOCK_BYTES;
    within
        .as_slice()
        .iter()
        .flat_map(|extent| extent.block_indices())
        .find(|index| parent.holds_data((index.0 - first) as usize))
}

/// The windows of a disk, each cut at the disk's last block.
pub fn windows(size: ByteLen) -> impl Iterator<Item = Extent> {
    let blocks = Extent::whole(size).to_blocks();
    blocks.pieces(ByteLen(WINDOW_BYTES))
}

/// The part of a window that lies on the disk.
pub fn on_disk(window: Extent, size: ByteLen) -> Extent {
    Extent::between(window.start(), ByteOffset(window.end().0.min(size.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use proptest::prelude::*;

    const B: u64 = BLOCK_BYTES;

    /// What a block is to the four parties, for the oracle.
    #[derive(Debug, Clone, Copy)]
    struct Cell {
        data: bool,
        changed: bool,
        parent_data: bool,
    }

    fn run(cells: &[Cell], cut: u64, tracked: bool, parent: bool) -> Plan {
        let size = ByteLen(cells.len() as u64 * B - cut);
        let range = Extent::whole(ByteLen(cells.len() as u64 * B));
        let extent = |n: usize| on_disk(Extent::block(BlockIndex(n as u64)), size);
        let allocation: Vec<_> = cells
            .iter()
            .enumerate()
            .map(|(n, cell)| MappedExtent {
                extent: extent(n),
                content: if cell.data { Content::Data } else { Content::Zero },
            })
            .collect();
        // One byte stands for the block: maps may be finer than blocks.
        let changed: ExtentSet = cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.changed)
            .map(|(n, _)| Extent::new(extent(n).start(), ByteLen(1)).unwrap())
            .collect();
        let known: Vec<_> = cells
            .iter()
            .map(|cell| if cell.parent_data { Known::Data(Digest([1; 16])) } else { Known::Zero })
            .collect();
        let parent = if parent { Parent::Known(&known) } else { Parent::None };
        window(range, size, &allocation, tracked.then_some(&changed), parent)
    }

    proptest! {
        #[test]
        fn every_block_gets_what_the_table_says(
            cells in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..40),
            cut in 0..B, tracked in any::<bool>(), with_parent in any::<bool>(),
        ) {
            let cells: Vec<_> = cells.into_iter().map(|(data, changed, parent_data)| Cell { data, changed, parent_data }).collect();
            let plan = run(&cells, cut, tracked && with_parent, with_parent);
            let tracked = tracked && with_parent;
            for (n, cell) in cells.iter().enumerate() {
                let block = Extent::block(BlockIndex(n as u64));
                let looked_at = !tracked || cell.changed;
                let read = plan.steps.iter().any(|step| matches!(step, Step::Read(extent) if extent.contains(block)));
                let zero = plan.steps.iter().any(|step| matches!(step, Step::Zero(extent) if extent.contains(block)));
                prop_assert_eq!(read, cell.data && looked_at);
                prop_assert_eq!(zero, !cell.data && looked_at && with_parent && cell.parent_data);
            }
            let doubt = cells.iter().position(|cell| tracked && !cell.changed && !cell.data && cell.parent_data);
            prop_assert_eq!(plan.doubt, doubt.map(|n| Doubt(BlockIndex(n as u64))));
        }
    }

    #[test]
    fn a_plan_prints() {
        let cell = |data, changed, parent_data| Cell { data, changed, parent_data };
        let cells =
            [cell(true, true, true), cell(false, true, true), cell(true, false, true), cell(false, false, true)];
        expect_test::expect![[r#"
            read 0..65536
            zero 65536..131072
            doubt: block 3 is called unchanged and is a hole, but the parent holds data there
        "#]]
        .assert_eq(&run(&cells, 5, true, true).to_string());
    }

    #[test]
    fn windows_cover_odd_disks() {
        let all: Vec<_> = windows(ByteLen(WINDOW_BYTES + 1)).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].len().0, B);
        assert_eq!(windows(ByteLen(0)).count(), 0);
    }
}
