//! Segment digests: what lets bit-rot in an image be found at disk speed, told while the image is written.
//!
//! An image file is cut into 64 KiB clusters and these into segments. A segment's digest is the digest of the concatenated
//! digests of its clusters: raw blocks are clusters whose digests are known already, so nothing is hashed twice.
//!
//! Invariant: memory is bounded by the segments that are open at once. The writer appends, so these are the first one (its
//! header cluster comes last) and those that threads are at work in; a finished one shrinks to 16 bytes.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use sendense_block::digest::DIGEST_BYTES;
use sendense_block::{BLOCK_BYTES, ByteLen, ByteOffset, Digest};
use sendense_qcow2::Observer;
use std::collections::BTreeMap;

/// The smallest segment: 64 MiB, a second's work of a slow disk, so that damage is named closely enough and a verification
/// can be cancelled and show progress.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 20;
/// The most segments per image: 36 bytes of manifest text each, 0.6 MiB. Beyond 1 TiB segments grow instead.
pub const SEGMENTS_MAX: u64 = 16384;

/// The segment size for an image of a disk this big: by the longest its file can become, for two segments cannot be made
/// one afterwards.
pub fn segment_bytes(capacity: ByteLen) -> u64 {
    // Beside the blocks: L2 tables (1/8192 of it), L1 and refcounts (far less), the header and one arena that is not
    // full, and of an image that is marked while it grows holes of 1/128 of what is packed. A sixty-fourth and 64 MiB are
    // more than all of these.
    let file_bytes_max = capacity.0.saturating_add(capacity.0 / 64).saturating_add(64 << 20);
    let mut bytes = SEGMENT_BYTES_MIN;
    while file_bytes_max.div_ceil(bytes) > SEGMENTS_MAX {
        bytes *= 2;
    }
    bytes
}

/// The digest of a segment from the digests of its clusters, in order.
#[derive(Default)]
pub struct SegmentHasher(blake3::Hasher);

impl SegmentHasher {
    /// The next cluster's digest.
    pub fn push(&mut self, cluster: Digest) {
        self.0.update(&cluster.0);
    }

    /// The segment's digest.
    pub fn finish(self) -> Digest {
        let mut short = [0; DIGEST_BYTES];
        short.copy_from_slice(&self.0.finalize().as_bytes()[..DIGEST_BYTES]);
        Digest(short)
    }
}

/// Keeps count of what is written to an image.
pub struct Tally {
    segment_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<u64, Open>,
    finished: BTreeMap<u64, Digest>,
    /// Set when the writer told a cluster twice, or half of one.
    broken: bool,
}

struct Open {
    /// The digest of each cluster, in order; those not told yet are `None`.
    clusters: Vec<Option<Digest>>,
    missing: u64,
}

impl Tally {
    /// A tally for an image of a disk this big.
    pub fn new(capacity: ByteLen) -> Self {
        Self { segment_bytes: segment_bytes(capacity), state: Mutex::default() }
    }

    /// Bytes per segment.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// The digests of all segments of a file of this length. Fails when part of it was never told.
    pub fn finish(&self, file_bytes: ByteLen) -> Result<Vec<Digest>> {
        let mut state = self.state.lock();
        let state = std::mem::take(&mut *state);
        let count = file_bytes.0.div_ceil(self.segment_bytes);
        let mut segments = Vec::with_capacity(usize::try_from(count.min(SEGMENTS_MAX)).unwrap_or_default());
        let clusters = file_bytes.0.div_ceil(BLOCK_BYTES);
        let per_segment = self.segment_bytes / BLOCK_BYTES;
        for index in 0..count {
            let digest = match (state.finished.get(&index), state.open.get(&index)) {
                (Some(digest), _) => Some(*digest),
                (None, Some(open)) => {
                    let len = usize::try_from((clusters - index * per_segment).min(per_segment)).unwrap_or(usize::MAX);
                    open.clusters.get(..len).and_then(fold)
                }
                (None, None) => None,
            };
            segments.push(digest.ok_or_else(|| Error::invalid(format!("segment {index} of the image is incomplete")))?);
        }
        if state.broken || state.finished.len().max(state.open.len()) as u64 > count {
            return Err(Error::invalid("the image was not written cluster by cluster, each once"));
        }
        Ok(segments)
    }
}

/// What a tally knows, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub segment_bytes: u64,
    pub finished: Vec<(u64, Digest)>,
    /// The digests of the clusters of a segment that is not finished; those not told yet are `None`.
    pub open: Vec<(u64, Vec<Option<Digest>>)>,
}

impl Tally {
    /// What is known now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        Snapshot {
            segment_bytes: self.segment_bytes,
            finished: state.finished.iter().map(|(number, digest)| (*number, *digest)).collect(),
            open: state.open.iter().map(|(number, open)| (*number, open.clusters.clone())).collect(),
        }
    }

    /// Goes on from what was kept.
    pub(crate) fn resume(capacity: ByteLen, kept: &Snapshot) -> Result<Self> {
        let segment_bytes = segment_bytes(capacity);
        let per_segment = segment_bytes / BLOCK_BYTES;
        let mut state = State { finished: kept.finished.iter().copied().collect(), ..State::default() };
        for (number, clusters) in &kept.open {
            let told = clusters.iter().flatten().count() as u64;
            if clusters.len() as u64 > per_segment || told >= per_segment || state.finished.contains_key(number) {
                return Err(Error::invalid("what was kept of the image's segments contradicts itself"));
            }
            state.open.insert(*number, Open { clusters: clusters.clone(), missing: per_segment - told });
        }
        if kept.segment_bytes != segment_bytes || state.finished.len() != kept.finished.len() {
            return Err(Error::invalid("what was kept of the image's segments contradicts itself"));
        }
        Ok(Self { segment_bytes, state: Mutex::new(state) })
    }
}

fn fold(clusters: &[Option<Digest>]) -> Option<Digest> {
    let mut hasher = SegmentHasher::default();
    for cluster in clusters {
        hasher.push((*cluster)?);
    }
    Some(hasher.finish())
}

impl Observer for Tally {
    fn wrote(&self, at: ByteOffset, data: &[u8], cluster_digests: Option<&[Digest]>) {
        let (clusters, rest) = data.as_chunks::<{ BLOCK_BYTES as usize }>();
        // Hashed outside the lock: this runs on every thread that stores blocks.
        let hashed: Vec<Digest>;
        let digests = match cluster_digests {
            Some(digests) if digests.len() == clusters.len() => digests,
            _ => {
                hashed = clusters.iter().map(|cluster| Digest::of(cluster)).collect();
                &hashed
            }
        };
        let mut state = self.state.lock();
        if !rest.is_empty() || !at.0.is_multiple_of(BLOCK_BYTES) {
            state.broken = true;
            return;
        }
        let per_segment = self.segment_bytes / BLOCK_BYTES;
        for (cluster, digest) in (at.0 / BLOCK_BYTES..).zip(digests) {
            state.tell(cluster / per_segment, cluster % per_segment, per_segment, *digest);
        }
    }
}

impl State {
    fn tell(&mut self, segment: u64, cluster: u64, per_segment: u64, digest: Digest) {
        if self.finished.contains_key(&segment) {
            self.broken = true;
            return;
        }
        let open = self.open.entry(segment).or_insert_with(|| Open { clusters: Vec::new(), missing: per_segment });
        let index = usize::try_from(cluster).expect("a segment's clusters are counted in memory");
        if open.clusters.len() <= index {
            open.clusters.resize(index + 1, None);
        }
        if open.clusters[index].replace(digest).is_some() {
            self.broken = true;
            return;
        }
        open.missing -= 1;
        if open.missing == 0 {
            let whole = self.open.remove(&segment).and_then(|open| fold(&open.clusters));
            self.finished.insert(segment, whole.expect("no cluster is missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLUSTER: usize = BLOCK_BYTES as usize;

    /// The stupid oracle: cut the file, hash everything.
    fn oracle(file: &[u8], segment_bytes: u64) -> Vec<Digest> {
        file.chunks(segment_bytes as usize)
            .map(|segment| {
                let digests: Vec<u8> = segment.chunks(CLUSTER).flat_map(|cluster| Digest::of(cluster).0).collect();
                Digest::of(&digests)
            })
            .collect()
    }

    #[test]
    fn segments_are_bounded_in_number() {
        for (capacity, expected) in [(0, 64 << 20), (1 << 30, 64 << 20), (1 << 40, 128 << 20), (64 << 40, 8 << 30)] {
            assert_eq!(segment_bytes(ByteLen(capacity)), expected, "{capacity}");
        }
        assert!(segment_bytes(ByteLen(u64::MAX)) > 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_order_of_writes_gives_what_reading_gives(
            clusters in 1usize..12,
            swaps in prop::collection::vec((0usize..12, 0usize..12), 0..12),
            known in any::<bool>(),
        ) {
            // A small segment stands for a large one.
            let tally = Tally { segment_bytes: 4 * BLOCK_BYTES, state: Mutex::default() };
            let file: Vec<u8> = (0..clusters * CLUSTER).map(|i| (i / 777) as u8).collect();
            let mut order: Vec<usize> = (0..clusters).collect();
            for (a, b) in swaps {
                order.swap(a % clusters, b % clusters);
            }
            for index in order {
                let data = &file[index * CLUSTER..][..CLUSTER];
                let digest = [Digest::of(data)];
                tally.wrote(ByteOffset((index * CLUSTER) as u64), data, known.then_some(&digest[..]));
            }
            prop_assert_eq!(tally.finish(ByteLen(file.len() as u64)).unwrap(), oracle(&file, 4 * BLOCK_BYTES));
        }
    }

    #[test]
    fn a_gap_a_double_and_a_half_are_found() {
        let cluster = vec![1; CLUSTER];
        let told = |places: &[u64], len: usize| {
            let tally = Tally::new(ByteLen(1 << 20));
            for at in places {
                tally.wrote(ByteOffset(*at), &cluster[..len], None);
            }
            tally.finish(ByteLen(2 * BLOCK_BYTES))
        };
        assert!(told(&[0, BLOCK_BYTES], CLUSTER).is_ok());
        assert!(told(&[BLOCK_BYTES], CLUSTER).is_err(), "a gap");
        assert!(told(&[0, 0, BLOCK_BYTES], CLUSTER).is_err(), "a double");
        assert!(told(&[0, BLOCK_BYTES], 4096).is_err(), "a half");
    }
}
