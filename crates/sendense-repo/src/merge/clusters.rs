//! Which clusters of a copied image are as they were: those need not be decoded again.
//!
//! What lives here: what is kept of the old image's clusters while it is copied ([`Taken`]), and what they tell once the new one was
//! read from the disk ([`Changed`]). What does not: copying and reading.
//!
//! Invariant: a cluster is called unchanged only where the whole old segment is what its manifest says, with what the new file, read
//! from the disk, has in the places of the clusters that were taken over.

use crate::segments::SegmentHasher;
use sendense_block::{BLOCK_BYTES, Digest, Extent};

/// What was taken over of a segment of the old image.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken {
    /// Of each cluster: nothing where it was taken over whole, else its digest.
    pub clusters: Vec<Option<Digest>>,
    /// Some of what was not taken over is no zeros.
    pub is_part: bool,
}

/// What is known of a segment that was copied.
pub(super) enum Copied {
    /// It was not read back yet.
    Taken(Taken),
    /// Read from the disk: its digest there, and what is new in it.
    Checked(Digest, Anew),
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
    /// Compares a segment of the new file with the old one, of which the manifest says `was`.
    pub(super) fn of(taken: &Taken, was: Digest, new: &[Digest]) -> Self {
        let old = taken.clusters.iter().enumerate().map(|(n, digest)| digest.or_else(|| new.get(n).copied()));
        let Some(old) = old.collect::<Option<Vec<Digest>>>() else { return Self::All };
        if fold(&old) != was {
            return Self::All;
        }
        let mut bits = vec![0; new.len().div_ceil(64)];
        for (n, cluster) in new.iter().enumerate() {
            if old.get(n) != Some(cluster) {
                bits[n / 64] |= 1 << (n % 64);
            }
        }
        if bits.iter().all(|word| *word == 0) { Self::Nothing } else { Self::Some(bits) }
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

    fn extent(at: u64, len: u64) -> Extent {
        Extent::new(ByteOffset(at), ByteLen(len)).unwrap()
    }

    #[test]
    fn only_clusters_of_a_proven_segment_are_as_they_were() {
        let digests = |bytes: &[u8]| -> Vec<Digest> { bytes.iter().map(|byte| Digest::of(&[*byte])).collect() };
        let old = digests(&(0..18).collect::<Vec<u8>>());
        let was = fold(&old);
        // The fourth was not taken over, and the new file goes on.
        let mut taken = Taken { clusters: vec![None; 18], is_part: true };
        taken.clusters[3] = Some(old[3]);
        let mut new = [old.clone(), digests(&[99])].concat();
        new[3] = Digest::of(&[98]);

        assert_eq!(Anew::of(&taken, fold(&[]), &new), Anew::All, "it is not what was written");
        assert_eq!(Anew::of(&taken, was, &new[..10]), Anew::All, "half of it was not read");
        let mut bad = new.clone();
        bad[7] = Digest::of(&[97]);
        assert_eq!(Anew::of(&taken, was, &bad), Anew::All, "one that was taken over is another");
        taken.clusters[4] = Some(Digest::of(&[96]));
        assert_eq!(Anew::of(&taken, was, &new), Anew::All, "one that was not is another");
        taken.clusters[4] = Some(old[4]);
        assert_eq!(Anew::of(&taken, was, &old), Anew::Nothing);

        let changed = Changed {
            segment_bytes: 32 * BLOCK_BYTES,
            segments: vec![Anew::of(&taken, was, &new), Anew::Nothing, Anew::All],
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
