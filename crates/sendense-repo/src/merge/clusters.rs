//! Which clusters of a copied image are as they were: those need not be decoded again.
//!
//! What lives here: the digests of an old image's clusters, taken while it is copied ([`Read`]), and what they tell once the new one was
//! read from the disk ([`Changed`]). What does not: copying and reading.
//!
//! Invariant: a cluster is called unchanged only where the whole old segment is what its manifest says and the new file's cluster, read
//! from the disk, has the same digest.

use crate::segments::SegmentHasher;
use crate::verify::READ_BYTES;
use parking_lot::Mutex;
use sendense_block::{BLOCK_BYTES, Digest, Extent};
use std::collections::BTreeMap;

/// Reads that are remembered, at most: 64 GiB of file, 20 MiB of memory. What lies behind is decoded.
const READS_MAX: u64 = 1 << 16;

/// Digests of clusters of the old image, by the number of the read of [`READ_BYTES`] that they lie in.
#[derive(Default)]
pub(super) struct Read(Mutex<BTreeMap<u64, Vec<Digest>>>);

impl Read {
    /// Takes the bytes of one read.
    pub(super) fn take(&self, number: u64, bytes: &[u8]) {
        if number < READS_MAX {
            let clusters = bytes.chunks(BLOCK_BYTES as usize).map(Digest::of).collect();
            self.0.lock().insert(number, clusters);
        }
    }

    /// The clusters of a part of the old file, where all of it was taken and is what `was` says.
    fn proven(&self, part: Extent, was: Digest) -> Option<Vec<Digest>> {
        let read = self.0.lock();
        let numbers = part.start().0 / READ_BYTES..part.end().0.div_ceil(READ_BYTES);
        let mut clusters = Vec::new();
        for number in numbers {
            clusters.extend_from_slice(read.get(&number)?);
        }
        (fold(&clusters) == was).then_some(clusters)
    }
}

/// The digest of a segment.
pub(super) fn fold(clusters: &[Digest]) -> Digest {
    let mut hasher = SegmentHasher::default();
    clusters.iter().for_each(|cluster| hasher.push(*cluster));
    hasher.finish()
}

/// What is new in a segment of the new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Anew {
    /// Nothing.
    Nothing,
    /// The clusters with their bits set.
    Some(Vec<u64>),
    /// It may be anything.
    All,
}

impl Anew {
    /// Compares a segment of the new file with what lay at `part` of the old one, of which the manifest says `was`.
    pub(super) fn of(read: &Read, part: Extent, was: Digest, new: &[Digest]) -> Self {
        let Some(old) = read.proven(part, was) else { return Self::All };
        let mut bits = vec![0; new.len().div_ceil(64)];
        for (n, cluster) in new.iter().enumerate() {
            if old.get(n) != Some(cluster) {
                bits[n / 64] |= 1 << (n % 64);
            }
        }
        Self::Some(bits)
    }

    fn meets(&self, first: u64, last: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Some(bits) => (first..=last).any(|cluster| {
                let word = usize::try_from(cluster / 64).ok().and_then(|word| bits.get(word));
                word.is_none_or(|word| word >> (cluster % 64) & 1 != 0)
            }),
        }
    }
}

/// What is new in the new file, by segments.
pub(super) struct Changed {
    pub segment_bytes: u64,
    pub segments: Vec<Anew>,
}

impl Changed {
    /// True for bytes of the new file of which some may not be as they were.
    pub(super) fn meets(&self, bytes: Extent) -> bool {
        let (from, to) = (bytes.start().0 / self.segment_bytes, bytes.end().0.div_ceil(self.segment_bytes));
        (from..to).any(|segment| {
            let anew = usize::try_from(segment).ok().and_then(|segment| self.segments.get(segment));
            let start = segment * self.segment_bytes;
            let first = bytes.start().0.max(start) - start;
            let last = bytes.end().0.min(start + self.segment_bytes) - 1 - start;
            anew.is_none_or(|anew| anew.meets(first / BLOCK_BYTES, last / BLOCK_BYTES))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_block::{ByteLen, ByteOffset};

    const CLUSTER: usize = BLOCK_BYTES as usize;

    fn extent(at: u64, len: u64) -> Extent {
        Extent::new(ByteOffset(at), ByteLen(len)).unwrap()
    }

    #[test]
    fn only_clusters_of_a_proven_segment_are_as_they_were() {
        // A segment of two reads, the second of which is short.
        let old: Vec<u8> = (0..READ_BYTES as usize + 2 * CLUSTER).map(|at| (at / CLUSTER) as u8).collect();
        let clusters = |bytes: &[u8]| -> Vec<Digest> { bytes.chunks(CLUSTER).map(Digest::of).collect() };
        let (part, was) = (extent(0, old.len() as u64), fold(&clusters(&old)));
        let read = Read::default();
        read.take(0, &old[..READ_BYTES as usize]);
        assert_eq!(Anew::of(&read, part, was, &clusters(&old)), Anew::All, "half of it was not read");
        read.take(1, &old[READ_BYTES as usize..]);
        assert_eq!(Anew::of(&read, part, fold(&[]), &clusters(&old)), Anew::All, "it is not what was written");

        // One cluster has changed, and the file has grown by one.
        let mut new = old;
        new[3 * CLUSTER + 5] ^= 1;
        new.extend(vec![9; CLUSTER]);
        let changed = Changed {
            segment_bytes: 32 * BLOCK_BYTES,
            segments: vec![Anew::of(&read, part, was, &clusters(&new)), Anew::Nothing, Anew::All],
        };
        let anew: Vec<u64> =
            (0..128).filter(|cluster| changed.meets(extent(cluster * BLOCK_BYTES, BLOCK_BYTES))).collect();
        assert_eq!(anew, [vec![3], (18..19).collect(), (64..128).collect()].concat());
        // A frame that begins in one cluster and ends in the next.
        assert!(changed.meets(extent(3 * BLOCK_BYTES - 1, 2)) && changed.meets(extent(4 * BLOCK_BYTES - 1, 2)));
        assert!(!changed.meets(extent(4 * BLOCK_BYTES, 1)) && !changed.meets(extent(2 * BLOCK_BYTES, 700)));
        assert!(changed.meets(extent(64 * BLOCK_BYTES - 1, 2)), "the next segment is another matter");
    }
}
