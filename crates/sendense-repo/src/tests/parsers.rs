//! What a repository folder may hold instead of what was written there: arbitrary bytes, and true files with bytes changed.
//!
//! A parser answers in order: no panic, no memory beyond what the file's own length accounts for, and never a wrong value
//! for a right one.

use crate::digests::{DigestFile, Group, State};
use crate::draft::intent;
use crate::manifest;
use crate::merge;
use crate::owner;
use proptest::prelude::*;
use sendense_block::backend::Memory;
use sendense_block::{self as block, ByteLen, ByteOffset, ReadAt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const MANIFEST: &[u8] = include_bytes!("../../tests/fixtures/v1/manifest.json");
const DIGESTS: &[u8] = include_bytes!("../../tests/fixtures/v1/disk.digests");
const INTENT: &[u8] = include_bytes!("../../tests/fixtures/v1/intent.json");
const MERGE: &[u8] = include_bytes!("../../tests/fixtures/v1/merge.json");
const OWNER: &[u8] = include_bytes!("../../tests/fixtures/v1/owner.json");

/// A file that tells the longest read asked of it, which is the largest buffer that the reader made for its sake, and ends
/// a test in which that is more than a group: the reader would have reserved it whatever the file holds.
struct Watched {
    inner: Memory,
    longest: Arc<AtomicUsize>,
}

impl ReadAt for Watched {
    fn size(&self) -> ByteLen {
        self.inner.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> block::Result<()> {
        self.longest.fetch_max(buf.len(), Ordering::SeqCst);
        self.inner.read_at(at, buf)
    }
}

/// A group with a digest for each of its blocks.
const GROUP_BYTES_MAX: usize = 2048 + 8192 * 16;

fn read_digests(bytes: Vec<u8>) -> Option<Vec<(u64, State)>> {
    let longest = Arc::new(AtomicUsize::new(0));
    let file = Watched { inner: Memory::from_bytes(bytes), longest: longest.clone() };
    let read = || -> crate::Result<Vec<(u64, State)>> {
        let file = DigestFile::open(Box::new(file), None)?;
        let (mut group, mut found) = (Group::default(), Vec::new());
        // The index lies in the file, so a file of some kilobytes has few groups.
        for number in 0..file.groups() {
            if file.group(number, &mut group)? {
                found.extend((number * 8192..).zip(group.states()).filter(|(_, state)| *state != State::Absent));
            }
        }
        Ok(found)
    };
    let found = read().ok();
    assert!(longest.load(Ordering::SeqCst) <= GROUP_BYTES_MAX, "{longest:?} bytes at once");
    found
}

fn read_texts(bytes: &[u8]) -> bool {
    let intent = intent::read(bytes, &"bk-2".parse().unwrap()).is_ok();
    let merge = merge::read_intent(bytes, &"bk-3".parse().unwrap()).is_ok();
    manifest::parse(bytes).is_ok() || owner::parse(bytes).is_ok() || intent || merge
}

/// A true file, cut, grown, or with some bytes changed.
fn mutated(file: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5);
    let len = prop::option::weighted(0.2, 0..file.len() + 100);
    (changes, len).prop_map(|(changes, len)| {
        let mut bytes = file.to_vec();
        for (at, byte) in changes {
            bytes[at.index(file.len())] = byte;
        }
        if let Some(len) = len {
            bytes.resize(len, 0);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_are_nothing(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(!read_texts(&bytes));
        prop_assert_eq!(read_digests(bytes), None);
    }

    /// A right header with anything behind it, of a disk of any size.
    #[test]
    fn a_header_alone_reserves_nothing(blocks in any::<u64>(), tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = DIGESTS[..64].to_vec();
        bytes[24..32].copy_from_slice(&blocks.to_le_bytes());
        bytes[32..40].copy_from_slice(&blocks.div_ceil(8192).to_le_bytes());
        bytes.extend(tail);
        let read = read_digests(bytes);
        prop_assert!(read.is_none_or(|held| held.is_empty()));
    }

    /// A digests file has no byte that is not digested: changed, it is refused, or was not changed.
    #[test]
    fn changed_digests_are_refused(bytes in mutated(DIGESTS)) {
        let changed = bytes != DIGESTS;
        let root = DigestFile::open(Box::new(Memory::from_bytes(DIGESTS.to_vec())), None).unwrap().root();
        let opened = DigestFile::open(Box::new(Memory::from_bytes(bytes.clone())), Some(root));
        let sound = opened.is_ok_and(|file| (0..file.groups()).all(|number| file.group(number, &mut Group::default()).is_ok()));
        prop_assert_eq!(sound, !changed);
        read_digests(bytes);
    }

    /// A manifest's inside is digested, and its outside says nothing but that.
    #[test]
    fn changed_manifests_are_refused_or_say_the_same(bytes in mutated(MANIFEST)) {
        if let Ok(read) = manifest::parse(&bytes) {
            prop_assert_eq!(read, manifest::parse(MANIFEST).unwrap());
        }
    }

    /// A record and an intent are not digested: changed ones are read as what they say, or refused, in order.
    #[test]
    fn changed_records_and_intents_are_read_in_order(
        owner in mutated(OWNER),
        intent in mutated(INTENT),
        merge in mutated(MERGE),
    ) {
        read_texts(&owner);
        if let Ok(read) = merge::read_intent(&merge, &"bk-3".parse().unwrap()) {
            prop_assert_eq!(read.successor.as_str(), "bk-3");
        }
        if let Ok(read) = intent::read(&intent, &"bk-2".parse().unwrap()) {
            prop_assert_eq!(read.backup_id.as_str(), "bk-2");
        }
    }

    /// A manifest whose inside was changed by someone who knows how to digest it.
    #[test]
    fn forged_manifests_are_read_in_order(bytes in mutated(MANIFEST)) {
        let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
        let Some(body) = text.split_once('\n').and_then(|(_, rest)| rest.strip_suffix("\n}\n")) else { return Ok(()) };
        let digest = blake3::hash(body.as_bytes()).to_hex();
        let forged = format!("{{\"format\":\"sendense-manifest\",\"version\":1,\"digest\":\"{digest}\",\"manifest\":\n{body}\n}}\n");
        if let Ok(read) = manifest::parse(forged.as_bytes()) {
            // What was read can be written, and is then read as the same.
            prop_assert_eq!(manifest::parse(&manifest::write(&read).unwrap()).unwrap(), read);
        }
    }
}

#[test]
fn deeply_nested_text_is_refused() {
    let nested = "[".repeat(1 << 20);
    assert!(!read_texts(nested.as_bytes()));
    let inside = format!("{{\"format\":\"sendense-manifest\",\"version\":1,\"digest\":\"\",\"manifest\":{nested}");
    assert!(manifest::parse(inside.as_bytes()).is_err());
}

#[test]
fn a_manifest_beyond_its_bound_is_not_read() {
    let mut bytes = MANIFEST.to_vec();
    bytes.resize(manifest::MANIFEST_BYTES_MAX as usize + 1, b' ');
    assert_eq!(manifest::parse(&bytes).unwrap_err().kind, crate::Kind::Invalid);
    bytes.truncate(manifest::MANIFEST_BYTES_MAX as usize);
    manifest::parse(&bytes).unwrap();
}
