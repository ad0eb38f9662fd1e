//! Ranges of bytes and sets of them.
//!
//! Invariant of [`ExtentSet`]: its extents are sorted, not empty, and neither overlap nor touch, so two sets of the same
//! bytes are equal as values. Memory: 16 bytes per extent; callers ask for changes window by window, so a set never
//! covers more than a window.

use crate::units::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset};
use std::fmt;

/// A range of bytes, `start..end`. May be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Extent {
    start: u64,
    end: u64,
}

impl Extent {
    /// `len` bytes from `at`; `None` when that passes 2^64.
    pub fn new(at: ByteOffset, len: ByteLen) -> Option<Self> {
        Some(Self { start: at.0, end: at.0.checked_add(len.0)? })
    }

    /// From the first byte to before the last; empty at `start` when `end` is smaller.
    pub const fn between(start: ByteOffset, end: ByteOffset) -> Self {
        Self { start: start.0, end: if end.0 < start.0 { start.0 } else { end.0 } }
    }

    /// A whole device.
    pub const fn whole(size: ByteLen) -> Self {
        Self { start: 0, end: size.0 }
    }

    /// A block's bytes.
    pub const fn block(index: BlockIndex) -> Self {
        let start = index.offset().0;
        Self { start, end: start.saturating_add(BLOCK_BYTES) }
    }

    /// Its first byte.
    pub const fn start(self) -> ByteOffset {
        ByteOffset(self.start)
    }

    /// The byte after its last.
    pub const fn end(self) -> ByteOffset {
        ByteOffset(self.end)
    }

    /// How many bytes.
    pub const fn len(self) -> ByteLen {
        ByteLen(self.end - self.start)
    }

    /// True when there are no bytes in it.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// True when every byte of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The bytes in both; empty when there are none.
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// The smallest range of whole blocks around it, saturating at the end of the number space.
    pub fn to_blocks(self) -> Self {
        if self.is_empty() {
            return self;
        }
        Self {
            start: self.start / BLOCK_BYTES * BLOCK_BYTES,
            end: self.end.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES),
        }
    }

    /// The numbers of the blocks it touches.
    pub fn block_indices(self) -> impl Iterator<Item = BlockIndex> + Clone {
        let last = if self.is_empty() { self.start / BLOCK_BYTES } else { self.end.div_ceil(BLOCK_BYTES) };
        (self.start / BLOCK_BYTES..last).map(BlockIndex)
    }

    /// Cuts it into pieces of at most `len` bytes, at multiples of `len` from the start of the device.
    pub fn pieces(self, len: ByteLen) -> impl Iterator<Item = Extent> {
        let (mut at, end, step) = (self.start, self.end, len.0.max(1));
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let stop = (at / step).saturating_add(1).saturating_mul(step).min(end);
            let piece = Extent { start: at, end: stop };
            at = stop;
            Some(piece)
        })
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A set of bytes as sorted, disjoint, non-touching extents.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ExtentSet {
    extents: Vec<Extent>,
}

impl ExtentSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { extents: Vec::new() }
    }

    /// The extents, sorted and disjoint.
    pub fn as_slice(&self) -> &[Extent] {
        &self.extents
    }

    /// True when no byte is in it.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// How many bytes are in it.
    pub fn byte_len(&self) -> ByteLen {
        ByteLen(self.extents.iter().map(|extent| extent.len().0).sum())
    }

    /// Adds bytes. Cheap (amortised constant) at the end, linear elsewhere.
    pub fn insert(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        // The first extent that reaches `extent.start`, and the first that starts beyond `extent.end`.
        let first = self.extents.partition_point(|held| held.end < extent.start);
        let after = self.extents.partition_point(|held| held.start <= extent.end);
        if first == after {
            self.extents.insert(first, extent);
            return;
        }
        let merged = Extent {
            start: self.extents[first].start.min(extent.start),
            end: self.extents[after - 1].end.max(extent.end),
        };
        self.extents.splice(first..after, [merged]);
    }

    /// True when every byte of `extent` is in the set.
    pub fn contains(&self, extent: Extent) -> bool {
        if extent.is_empty() {
            return true;
        }
        let first = self.extents.partition_point(|held| held.end <= extent.start);
        self.extents.get(first).is_some_and(|held| held.contains(extent))
    }

    /// True when some byte of `extent` is in the set.
    pub fn overlaps(&self, extent: Extent) -> bool {
        let first = self.extents.partition_point(|held| held.end <= extent.start);
        !extent.is_empty() && self.extents.get(first).is_some_and(|held| held.start < extent.end)
    }

    /// The bytes in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut out, mut i, mut j) = (Vec::new(), 0, 0);
        while let (Some(a), Some(b)) = (self.extents.get(i), other.extents.get(j)) {
            let both = a.intersect(*b);
            if !both.is_empty() {
                out.push(both);
            }
            if a.end < b.end { i += 1 } else { j += 1 }
        }
        Self { extents: out }
    }

    /// The bytes in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<Extent> = self.extents.iter().chain(&other.extents).copied().collect();
        all.sort_by_key(|extent| extent.start);
        all.into_iter().collect()
    }

    /// The bytes of this set that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        let mut j = 0;
        for extent in &self.extents {
            let mut start = extent.start;
            while other.extents.get(j).is_some_and(|held| held.end <= start) {
                j += 1;
            }
            let mut k = j;
            while let Some(hole) = other.extents.get(k).filter(|hole| hole.start < extent.end) {
                if hole.start > start {
                    out.push(Extent { start, end: hole.start });
                }
                start = hole.end;
                k += 1;
            }
            if start < extent.end {
                out.push(Extent { start, end: extent.end });
            }
        }
        Self { extents: out }
    }

    /// The bytes of the set that lie in `range`; costs by what it returns, not by the size of the set.
    pub fn within(&self, range: Extent) -> Self {
        let first = self.extents.partition_point(|held| held.end <= range.start);
        let held = self.extents[first..].iter().take_while(|held| held.start < range.end);
        Self { extents: held.map(|held| held.intersect(range)).filter(|held| !held.is_empty()).collect() }
    }

    /// The bytes of `within` that are not in the set.
    pub fn gaps(&self, within: Extent) -> Self {
        [within].into_iter().collect::<Self>().difference(self)
    }

    /// The set grown to whole blocks and cut at `limit`.
    pub fn to_blocks(&self, limit: ByteOffset) -> Self {
        let bounds = Extent { start: 0, end: limit.0 };
        self.extents.iter().map(|extent| extent.to_blocks().intersect(bounds)).collect()
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = Self::new();
        for extent in extents {
            set.insert(extent);
        }
        set
    }
}

impl fmt::Debug for ExtentSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.extents).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACE: usize = 64;

    /// The stupid oracle: one bool per byte.
    fn bits(set: &ExtentSet) -> Vec<bool> {
        let mut bits = vec![false; SPACE];
        for extent in set.as_slice() {
            bits[extent.start as usize..extent.end as usize].fill(true);
        }
        bits
    }

    fn extent() -> impl Strategy<Value = Extent> {
        (0..SPACE as u64, 0..SPACE as u64).prop_map(|(a, b)| Extent { start: a.min(b), end: a.max(b) })
    }

    fn set() -> impl Strategy<Value = ExtentSet> {
        prop::collection::vec(extent(), 0..12).prop_map(|extents| extents.into_iter().collect())
    }

    fn check_form(set: &ExtentSet) {
        assert!(set.as_slice().iter().all(|extent| !extent.is_empty()));
        assert!(set.as_slice().windows(2).all(|pair| pair[0].end < pair[1].start), "{set:?}");
    }

    proptest! {
        #[test]
        fn inserting_is_setting_bits(extents in prop::collection::vec(extent(), 0..16)) {
            let (mut set, mut oracle) = (ExtentSet::new(), vec![false; SPACE]);
            for extent in extents {
                set.insert(extent);
                oracle[extent.start as usize..extent.end as usize].fill(true);
                check_form(&set);
            }
            prop_assert_eq!(bits(&set), oracle);
        }

        #[test]
        fn set_operations_are_bit_operations(a in set(), b in set(), e in extent()) {
            let (x, y) = (bits(&a), bits(&b));
            let zip = |op: fn(bool, bool) -> bool| x.iter().zip(&y).map(|(x, y)| op(*x, *y)).collect::<Vec<_>>();
            for (got, want) in [
                (a.union(&b), zip(|x, y| x || y)),
                (a.intersection(&b), zip(|x, y| x && y)),
                (a.difference(&b), zip(|x, y| x && !y)),
            ] {
                check_form(&got);
                prop_assert_eq!(bits(&got), want);
            }
            let range = e.start as usize..e.end as usize;
            prop_assert_eq!(a.contains(e), x[range.clone()].iter().all(|bit| *bit));
            prop_assert_eq!(a.overlaps(e), x[range].iter().any(|bit| *bit));
            prop_assert_eq!(a.within(e), a.intersection(&[e].into_iter().collect()));
            prop_assert_eq!(a.byte_len().0, x.iter().filter(|bit| **bit).count() as u64);
        }

        #[test]
        fn pieces_cover_the_extent_in_order(e in extent(), len in 1u64..9) {
            let pieces: Vec<_> = e.pieces(ByteLen(len)).collect();
            prop_assert_eq!(pieces.iter().map(|piece| piece.len().0).sum::<u64>(), e.len().0);
            prop_assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % len == 0));
        }
    }

    #[test]
    fn blocks_around_an_extent() {
        let odd = Extent::new(ByteOffset(BLOCK_BYTES - 1), ByteLen(2)).unwrap();
        assert_eq!(odd.to_blocks(), Extent { start: 0, end: 2 * BLOCK_BYTES });
        assert_eq!(odd.block_indices().collect::<Vec<_>>(), [BlockIndex(0), BlockIndex(1)]);
        assert_eq!(Extent::new(ByteOffset(u64::MAX), ByteLen(2)), None);
    }
}
