//! Restore points in a repository of our own: the seeds of everything that lies there.

use sendense_block::codec::{Encoder, Level};
use sendense_block::{Block, BlockIndex, BlockSink, ByteLen, Digest, Payload};
use sendense_repo::manifest::{Content, Document, Manifest, Vm};
use sendense_repo::owner::{Adopt, Claim};
use sendense_repo::{Create, DiskFacts, DiskSpec, DraftSpec, Options, PointFacts, Repository};
use sendense_types::{
    BackupId, BackupType, Consistency, DiskBinding, DiskNumber, SourceKind, Timestamp, TrackingAudit, TrackingToken,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The files of some points, the full one first.
#[derive(Default)]
pub struct Files {
    /// Images.
    pub images: Vec<Vec<u8>>,
    /// Digests files.
    pub digests: Vec<Vec<u8>>,
    /// Manifests.
    pub manifests: Vec<Vec<u8>>,
    /// The owner record.
    pub owner: Vec<u8>,
}

fn now() -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000)
}

/// A block of text: it shrinks to almost nothing.
pub fn text(seed: u8) -> Vec<u8> {
    b"the quick brown fox jumps over ".iter().map(|byte| byte ^ (seed & 1)).cycle().take(65536).collect()
}

/// A block that does not shrink.
pub fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..65536).map(|_| next()).collect()
}

/// A full point and an incremental on it: raw, compressed and zero blocks in both, a disk of odd size.
pub fn files() -> Files {
    let folder = tempfile::tempdir().expect("a folder for the seeds");
    let claim = Claim {
        deployment_id: "dep-seed".parse().expect("an id"),
        hub_id: "hub-seed".parse().expect("an id"),
        lease_seconds: 60,
        adopt: Adopt::Never,
    };
    let options = Options { claim, limit_bytes: None, floor_bytes: None, create: Create::IfMissing };
    let repository = Repository::open(folder.path(), options, now()).expect("an empty folder becomes a repository");
    let (text, noise, zero) = (text(0), noise(7), vec![0; 65536]);
    let full = [(0, &text), (1, &noise), (4, &zero), (6, &text)];
    let mut files = Files::default();
    put(&repository, folder.path(), &mut files, "bk-full", None, 7 * 65536 - 100, &full);
    put(&repository, folder.path(), &mut files, "bk-incr", Some("bk-full"), 9 * 65536, &[(1, &zero), (7, &text)]);
    files.owner = std::fs::read(folder.path().join(sendense_repo::layout::OWNER_FILE)).expect("the owner record");
    files
}

fn put(
    repository: &Repository,
    root: &Path,
    files: &mut Files,
    id: &str,
    parent: Option<&str>,
    capacity: u64,
    blocks: &[(u64, &Vec<u8>)],
) {
    let parent: Option<BackupId> = parent.map(|id| id.parse().expect("an id"));
    let vm: sendense_types::VmContextId = "ctx-seed".parse().expect("an id");
    let mut draft = repository
        .begin_draft(
            DraftSpec {
                backup_id: id.parse().expect("an id"),
                vm_context_id: vm.clone(),
                parents: parent.iter().cloned().collect::<BTreeSet<_>>(),
                expected_bytes: 1 << 20,
                who: "seeds".to_owned(),
            },
            now(),
        )
        .expect("a draft");
    let binding = DiskBinding("vda /images/seed.raw".to_owned());
    let number = DiskNumber(0);
    let spec = DiskSpec { number, binding, capacity: ByteLen(capacity), parent: parent.clone() };
    let disk = draft.begin_disk(spec).expect("a disk");
    let mut encoder = Encoder::new(Level::Default).expect("an encoder");
    for (index, block) in blocks {
        let mut frame = vec![0; Encoder::FRAME_BYTES_MAX];
        let digest = Digest::of(block);
        let payload = match encoder.encode(block, &mut frame) {
            _ if digest == Digest::of_zero_block() => Payload::Zero,
            Some(len) => Payload::Zstd(&frame[..len]),
            None => Payload::Raw(block),
        };
        disk.put(&[Block { index: BlockIndex(*index), digest, payload }]).expect("a block");
    }
    let backup_type = if parent.is_some() { BackupType::Incremental } else { BackupType::Full };
    let facts = PointFacts {
        vm: Vm {
            name: "web".parse().expect("a name"),
            kind: SourceKind::Image,
            instance_uuid: Some("6b1f0d5e-3c59-4a8e-9a60-0d6f1c1f7a11".to_owned()),
            source: "/images".to_owned(),
        },
        created_at: now(),
        consistency: Consistency::Crash,
        partial: false,
        requested_type: backup_type,
        policy_id: None,
        tags: BTreeMap::from([("team".to_owned(), "db".to_owned())]),
        documents: vec![
            Document { name: "domain.xml".to_owned(), content: Content::Text("<domain/>".to_owned()) },
            Document { name: "nvram".to_owned(), content: Content::Hex(vec![0, 1, 255]) },
        ],
        notes: vec!["NVRAM could not be read".to_owned()],
        disks: BTreeMap::from([(
            number,
            DiskFacts {
                disk_key: "vda".to_owned(),
                label: "system".to_owned(),
                type_reason: None,
                token: Some(TrackingToken("cp-1".to_owned())),
                tracking_audit: Some(TrackingAudit { blocks_checked: 64, blocks_different: 1 }),
                bytes_transferred: capacity,
            },
        )]),
    };
    let manifest: Manifest = draft.seal().expect("a sealed draft").publish(facts, now()).expect("a point");
    let dir = root.join(vm.to_string());
    let read = |name: &str| std::fs::read(dir.join(name)).expect("a published file");
    files.images.push(read(&manifest.disks[0].image.file));
    files.digests.push(read(&manifest.disks[0].digests.file));
    files.manifests.push(read(&format!("{id}.json")));
}
