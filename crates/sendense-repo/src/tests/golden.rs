//! Files of every version that was ever written: today's program reads them, and writes the same bytes.
//!
//! A fixture is never changed. A new version gets a folder of its own beside the old ones.

use crate::crashsafe::{Fs, System};
use crate::digests::{self, DigestFile, Group, Spill, State};
use crate::draft::intent::{self, Intent};
use crate::error::Kind;
use crate::manifest::{self, Content, Digests, Disk, Document, HexDigest, Image, Manifest, Vm};
use crate::merge;
use crate::owner::{self, Adopt, Claim, Ownership};
use crate::segments::SEGMENT_BYTES_MIN;
use sendense_block::backend::Memory;
use sendense_block::{Block, BlockIndex, ByteLen, Digest, Payload};
use sendense_types::{BackupType, Consistency, DiskBinding, DiskNumber, SourceKind, Timestamp, TrackingToken};
use std::sync::Arc;

const MANIFEST: &[u8] = include_bytes!("../../tests/fixtures/v1/manifest.json");
const DIGESTS: &[u8] = include_bytes!("../../tests/fixtures/v1/disk.digests");
const INTENT: &[u8] = include_bytes!("../../tests/fixtures/v1/intent.json");
const MERGE: &[u8] = include_bytes!("../../tests/fixtures/v1/merge.json");
const FULL: &[u8] = include_bytes!("../../tests/fixtures/v2/merge.json");
const OWNER: &[u8] = include_bytes!("../../tests/fixtures/v1/owner.json");

/// Compares; a difference in text is shown as text.
fn same(written: &[u8], fixture: &[u8]) {
    if written != fixture {
        assert_eq!(String::from_utf8_lossy(written), String::from_utf8_lossy(fixture));
        panic!("the bytes differ, although they read the same");
    }
}

fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_123_456).plus_seconds(seconds)
}

/// A point that has everything a manifest can have.
fn point() -> Manifest {
    let disk = |number: u32, parent: Option<&str>| Disk {
        disk_id: DiskNumber(number),
        disk_key: format!("vd{number}"),
        label: "Hard disk \"1\" – ü".into(),
        binding: DiskBinding(format!("libvirt:vd{number}:/images/a.qcow2")),
        capacity_bytes: 3 * 65536 + 1,
        backup_type: if parent.is_some() { BackupType::Incremental } else { BackupType::Full },
        type_reason: parent.is_none().then(|| "full: this repository holds no earlier point of this disk".into()),
        parent_backup_id: parent.map(|id| id.parse().unwrap()),
        token: parent.map(|_| TrackingToken("checkpoint-7".into())),
        tracking_audit: None,
        bytes_transferred: 131_072,
        image: Image {
            file: format!("disk-{number}/bk-2.qcow2"),
            file_bytes: 458_752,
            stored_bytes: 70_000,
            data_blocks: 2,
            zero_blocks: 1,
            segment_bytes: SEGMENT_BYTES_MIN,
            segments: vec![HexDigest(Digest::of(b"segment"))],
        },
        digests: Digests {
            file: format!("disk-{number}/bk-2.digests"),
            file_bytes: 64 + 2048 + 2 * 16 + 32,
            blake3: blake3::hash(b"digests").to_hex().to_string(),
            root: HexDigest(Digest::of(b"root")),
        },
    };
    Manifest {
        backup_id: "bk-2".parse().unwrap(),
        vm_context_id: "vm-1".parse().unwrap(),
        vm: Vm {
            name: "mail server".to_owned().try_into().unwrap(),
            kind: SourceKind::Libvirt,
            instance_uuid: Some("6f9619ff-8b86-d011-b42d-00c04fc964ff".into()),
            source: "qemu:///system".into(),
        },
        created_at: moment(0),
        deployment_id: "dep-1".parse().unwrap(),
        consistency: Consistency::Filesystem,
        partial: true,
        backup_type: BackupType::Incremental,
        requested_type: BackupType::Incremental,
        policy_id: Some("nightly".into()),
        tags: [("owner".into(), "ops".into()), ("tier".into(), "1".into())].into(),
        documents: vec![
            Document { name: "domain.xml".into(), content: Content::Text("<domain>\n</domain>".into()) },
            Document { name: "nvram".into(), content: Content::Hex(vec![0, 1, 254, 255]) },
        ],
        notes: vec!["vTPM state could not be read".into()],
        disks: vec![disk(0, Some("bk-1")), disk(3, None)],
    }
}

#[test]
fn manifests() {
    same(&manifest::write(&point()).unwrap(), MANIFEST);
    assert_eq!(manifest::parse(MANIFEST).unwrap(), point());
    let later = String::from_utf8_lossy(MANIFEST).replacen("\"version\":1", "\"version\":2", 1);
    let error = manifest::parse(later.as_bytes()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert_eq!(error.to_string(), "the manifest has version 2; this program knows 1");
}

/// Three groups: the first holds data and zeros, the second nothing, the third the disk's odd tail.
const BLOCKS: u64 = 2 * 8192 + 5;

fn held() -> Vec<(u64, State)> {
    let data = |index: u64| (index, State::Data(Digest::of(&index.to_le_bytes())));
    vec![data(0), (1, State::Zero), data(2), data(4095), (8191, State::Zero), data(BLOCKS - 1)]
}

#[test]
fn digest_files() {
    let folder = tempfile::tempdir().unwrap();
    let spill = Spill::new(System.create_file(&folder.path().join("spill")).unwrap(), BLOCKS).unwrap();
    let bytes = [0; 65536];
    for (index, state) in held() {
        let (digest, payload) = match state {
            State::Data(digest) => (digest, Payload::Raw(&bytes)),
            _ => (Digest::of_zero_block(), Payload::Zero),
        };
        spill.put(&[Block { index: BlockIndex(index), digest, payload }]).unwrap();
    }
    let path = folder.path().join("digests");
    let file = System.create_file(&path).unwrap();
    let written = digests::write(&*file, ByteLen(BLOCKS * 65536 - 1), &spill).unwrap();
    same(&std::fs::read(&path).unwrap(), DIGESTS);
    assert_eq!((written.data_blocks, written.zero_blocks), (4, 2));
    assert_eq!(written.file_bytes, DIGESTS.len() as u64);
    assert_eq!(written.blake3, blake3::hash(DIGESTS).to_hex().as_str());

    let read = DigestFile::open(Box::new(Memory::from_bytes(DIGESTS.to_vec())), Some(written.root)).unwrap();
    assert_eq!((read.blocks(), read.groups()), (BLOCKS, 3));
    let (mut group, mut found) = (Group::default(), Vec::new());
    for number in 0..3 {
        if read.group(number, &mut group).unwrap() {
            let states = (number * 8192..).zip(group.states());
            found.extend(states.filter(|(_, state)| *state != State::Absent));
        }
    }
    assert_eq!(found, held());

    let mut later = DIGESTS.to_vec();
    later[8] = 2;
    let error = DigestFile::open(Box::new(Memory::from_bytes(later)), None).err().unwrap();
    assert_eq!(error.kind, Kind::Unsupported);
    assert_eq!(error.to_string(), "the digests file has version 2; this program knows 1");
}

#[test]
fn intents() {
    let intent = Intent { backup_id: "bk-2".parse().unwrap(), disks: [DiskNumber(0), DiskNumber(17)].into() };
    same(&intent.to_bytes(), INTENT);
    assert_eq!(intent::read(INTENT, &intent.backup_id).unwrap(), intent);
    let later = String::from_utf8_lossy(INTENT).replacen("\"version\": 1", "\"version\": 2", 1);
    let error = intent::read(later.as_bytes(), &intent.backup_id).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert_eq!(error.to_string(), "the intent has version 2; this program knows 1");
}

#[test]
fn intents_of_merges() {
    let [successor, going] = ["bk-3", "bk-2"].map(|id| id.parse().unwrap());
    let disks = [DiskNumber(0), DiskNumber(17)].into();
    let before = blake3::hash(b"manifest").to_hex().to_string();
    let intent = merge::Intent { successor, going, disks, going_before: before.clone(), before, stays: false };
    same(&intent.to_bytes(), MERGE);
    assert_eq!(merge::read_intent(MERGE, &intent.successor).unwrap(), intent);
    // Of a synthetic full, which programs of version 1 must not carry out.
    let full = merge::Intent { stays: true, ..intent };
    same(&full.to_bytes(), FULL);
    assert_eq!(merge::read_intent(FULL, &full.successor).unwrap(), full);
}

#[test]
fn owner_records() {
    let folder = tempfile::tempdir().unwrap();
    let claim = Claim {
        deployment_id: "dep-1".parse().unwrap(),
        hub_id: "hub-1".parse().unwrap(),
        lease_seconds: 60,
        adopt: Adopt::Never,
    };
    Ownership::take(folder.path(), Arc::new(System), claim, moment(0)).unwrap();
    same(&std::fs::read(folder.path().join(crate::layout::OWNER_FILE)).unwrap(), OWNER);
    let record = owner::parse(OWNER).unwrap();
    assert_eq!((record.deployment_id.as_str(), record.hub_id.as_str(), record.epoch), ("dep-1", "hub-1", 1));
    assert_eq!(record.lease_until, moment(60));
    let later = String::from_utf8_lossy(OWNER).replacen("\"version\": 1", "\"version\": 2", 1);
    let error = owner::parse(later.as_bytes()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert_eq!(error.to_string(), "the repository has version 2; this program knows 1");
}
