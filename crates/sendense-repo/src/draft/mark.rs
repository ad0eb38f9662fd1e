//! How far a disk of a draft is durable: a small file beside its image, replaced as a whole.
//!
//! ```text
//! "SENDMARK" 8 | version 4 | head length 4 | head (JSON) | note length 4 | note | segments | BLAKE3 of all before, 32
//!
//! segments   bytes per segment 8 | finished 4 | each: number 8, digest 16
//!            open 4 | each: number 8, clusters 4, a digest of 16 for each (zeros: not written yet)
//! ```
//!
//! Numbers are little-endian. The note is the caller's: what he wants to know again when he goes on.
//!
//! Invariant: a mark is written after the image, its tables and its digests were made durable as they are told in it, so
//! whoever finds one finds these too.

use crate::digests::Cursor;
use crate::error::{Error, Kind, Result};
use crate::segments::{SEGMENTS_MAX, Snapshot};
use sendense_block::Digest;
use sendense_block::digest::DIGEST_BYTES;
use sendense_qcow2::Mark;
use sendense_types::{BackupId, DiskBinding, DiskNumber};
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 8] = *b"SENDMARK";
const VERSION: u32 = 1;
const SEAL_BYTES: usize = 32;
/// The longest note: a caller's list of what has come out of turn.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
/// The longest mark: 16,384 finished segments, and some open ones of a disk of 64 TiB (2 MiB each).
pub(crate) const MARK_BYTES_MAX: u64 = 32 << 20;

/// What a mark tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub head: Head,
    pub note: Vec<u8>,
    pub segments: Snapshot,
}

/// Which disk it is of, and what its image held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    pub backup_id: BackupId,
    pub disk_id: DiskNumber,
    pub binding: DiskBinding,
    pub capacity_bytes: u64,
    pub parent_backup_id: Option<BackupId>,
    pub clusters: u64,
    pub arena_clusters: u64,
    pub raw_blocks: u64,
    pub compressed_blocks: u64,
    pub data_bytes: u64,
}

impl Head {
    pub fn mark(&self) -> Mark {
        Mark {
            clusters: self.clusters,
            arena_clusters: self.arena_clusters,
            raw_blocks: self.raw_blocks,
            compressed_blocks: self.compressed_blocks,
            data_bytes: self.data_bytes,
        }
    }
}

impl Record {
    /// The file. Fails when it would be longer than one that is read.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let head = serde_json::to_vec(&self.head).expect("a head of plain values can be written");
        let count = |len: usize| u32::try_from(len).map_err(|_| Error::invalid("a mark with more than fits"));
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for part in [&head, &self.note] {
            bytes.extend_from_slice(&count(part.len())?.to_le_bytes());
            bytes.extend_from_slice(part);
        }
        let Snapshot { segment_bytes, finished, open } = &self.segments;
        bytes.extend_from_slice(&segment_bytes.to_le_bytes());
        bytes.extend_from_slice(&count(finished.len())?.to_le_bytes());
        for (number, digest) in finished {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&digest.0);
        }
        bytes.extend_from_slice(&count(open.len())?.to_le_bytes());
        for (number, clusters) in open {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&count(clusters.len())?.to_le_bytes());
            for digest in clusters {
                bytes.extend_from_slice(&digest.map_or([0; DIGEST_BYTES], |digest| digest.0));
            }
        }
        let seal = blake3::hash(&bytes);
        bytes.extend_from_slice(seal.as_bytes());
        if bytes.len() as u64 > MARK_BYTES_MAX || self.note.len() > NOTE_BYTES_MAX {
            return Err(Error::invalid(format!("a mark of {} bytes", bytes.len())));
        }
        Ok(bytes)
    }

    /// Reads a mark. Anything may be given; nothing is reserved that the bytes do not hold.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::invalid(format!("read the mark of a draft: {what}"));
        let body = bytes.len().checked_sub(SEAL_BYTES).and_then(|at| bytes.split_at_checked(at));
        let (body, seal) = body.ok_or_else(|| wrong("it is too short"))?;
        let mut cursor = Cursor(body);
        if cursor.array() != Some(MAGIC) {
            return Err(wrong("it is none"));
        }
        let version = cursor.u32().ok_or_else(|| wrong("it is too short"))?;
        if version != VERSION {
            let context = format!("the mark of the draft has version {version}; this program knows {VERSION}");
            return Err(Error::new(Kind::Unsupported, context));
        }
        if blake3::hash(body).as_bytes() != seal {
            return Err(wrong("its digest is wrong"));
        }
        let record = Self::parse_body(&mut cursor).ok_or_else(|| wrong("it ends too early, or too late"))?;
        record.map_err(|error| wrong("its head").caused_by(error))
    }

    fn parse_body(cursor: &mut Cursor<'_>) -> Option<Result<Self, serde_json::Error>> {
        let head = cursor.part()?;
        let note = cursor.part().filter(|note| note.len() <= NOTE_BYTES_MAX)?.to_vec();
        let segment_bytes = cursor.u64()?;
        let count = cursor.u32().filter(|count| u64::from(*count) <= SEGMENTS_MAX)?;
        let finished: Option<Vec<_>> = (0..count).map(|_| Some((cursor.u64()?, cursor.digest()?))).collect();
        let count = cursor.u32().filter(|count| u64::from(*count) <= SEGMENTS_MAX)?;
        let mut open = Vec::new();
        for _ in 0..count {
            let (number, clusters) = (cursor.u64()?, usize::try_from(cursor.u32()?).ok()?);
            let digests = cursor.take(clusters.checked_mul(DIGEST_BYTES)?)?;
            let told = |digest: &[u8; DIGEST_BYTES]| (*digest != [0; DIGEST_BYTES]).then_some(Digest(*digest));
            open.push((number, digests.as_chunks().0.iter().map(told).collect()));
        }
        if !cursor.0.is_empty() {
            return None;
        }
        let segments = Snapshot { segment_bytes, finished: finished?, open };
        Some(serde_json::from_slice(head).map(|head| Self { head, note, segments }))
    }
}

/// Reads a mark; for the fuzzer.
pub fn parse(bytes: &[u8]) -> Result<()> {
    let record = Record::parse(bytes)?;
    assert_eq!(Record::parse(&record.to_bytes()?)?, record, "what was read can be written");
    Ok(())
}

/// The input as a mark with the right digest; for the fuzzer.
pub fn sealed(body: &[u8]) -> Vec<u8> {
    [body, blake3::hash(body).as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    fn record() -> Record {
        let head = Head {
            backup_id: "bk-1".parse().unwrap(),
            disk_id: DiskNumber(2),
            binding: DiskBinding("disk".to_owned()),
            capacity_bytes: 1 << 30,
            parent_backup_id: None,
            clusters: 9,
            arena_clusters: 4,
            raw_blocks: 4,
            compressed_blocks: 17,
            data_bytes: 300_000,
        };
        let open = vec![(2, vec![None, Some(Digest([7; 16])), None])];
        let segments = Snapshot { segment_bytes: 64 << 20, finished: vec![(1, Digest([9; 16]))], open };
        Record { head, note: b"note".to_vec(), segments }
    }

    #[test]
    fn the_format_stays() {
        let bytes = record().to_bytes().unwrap();
        assert_eq!(Record::parse(&bytes).unwrap(), record());
        let digest = blake3::hash(&bytes).to_hex().to_string();
        expect!["347 4fb1db33f31ba663780e75378486d44c3643739f8e9ade9d4d1c4b273207fb09"]
            .assert_eq(&format!("{} {digest}", bytes.len()));
        let mut later = bytes;
        later[8] = 2;
        assert_eq!(Record::parse(&later).unwrap_err().kind, Kind::Unsupported);
    }

    proptest! {
        #[test]
        fn a_mark_that_was_changed_is_refused(at in any::<prop::sample::Index>(), flip in 1_u8..=255, cut in any::<bool>()) {
            let mut bytes = record().to_bytes().unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            prop_assert!(Record::parse(&bytes).is_err());
        }

        #[test]
        fn nonsense_with_the_right_digest_never_panics(
            at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..40), whole in any::<bool>(),
        ) {
            let mut body = record().to_bytes().unwrap();
            body.truncate(body.len() - SEAL_BYTES);
            let at = if whole { 0 } else { at.index(body.len()) };
            let end = (at + bytes.len()).min(body.len());
            body.splice(at..end, bytes);
            let _ = parse(&sealed(&body));
        }
    }
}
