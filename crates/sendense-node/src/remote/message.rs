//! The words between a node and its hub. A node asks, the hub answers: every exchange is one request over HTTPS, its body a
//! length, a JSON head and perhaps bytes.
//!
//! What lives here: the shapes, and how a body is put together and taken apart. What does not: what is done with them.
//! Invariant: whatever comes from the other side is taken apart without a panic, and no length in it is believed.

use super::restore::{RestoreAnswer, RestoreOrder};
use crate::mover::{self, DiskOutcome};
use sendense_block::copy::{Sampling, Summary};
use sendense_block::{ByteLen, codec::Level};
use sendense_source::{Artefact, DiscoveredVm, FreezeRequest, FrozenDisk, FrozenFacts, TestReport, VmRef};
use sendense_types::{
    BackupId, BackupType, DeploymentId, DiskNumber, OnTrackingLoss, Phase, SourceId, SourceKind, TrackingAudit,
    TrackingToken,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of these words. A hub takes nodes that speak an earlier one, from [`PROTOCOL_MIN`] on, and orders of them what
/// they know; a later one it refuses.
pub const PROTOCOL: u32 = 5;
/// The earliest that a hub takes. With 5 came restores, and nothing of before was changed.
pub const PROTOCOL_MIN: u32 = 4;
/// From this one on nodes restore.
pub const PROTOCOL_RESTORES: u32 = 5;

/// The longest body, either way: the machines of the largest vCenter take some MiB, a batch of blocks half of one.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Blocks of one answer to [`Call::Read`]: half a MiB, as a batch of a backup has.
pub const READ_BLOCKS_MAX: u32 = 8;
/// Blocks of one question of [`Call::Held`]: 16 GiB, which is what a copy asks about at once.
pub const HELD_BLOCKS_MAX: u64 = 1 << 18;

/// Words of the other side are cut to this: a chain of causes has some hundred.
const WORDS_CHARS_MAX: usize = 2000;

/// The number of an order, unique in the deployment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderId(pub String);

/// A source as a node needs it.
#[derive(Clone, Serialize, Deserialize)]
pub struct SourceSpec {
    /// Which.
    pub source_id: SourceId,
    /// What it is.
    pub kind: SourceKind,
    /// Its settings, in the words of its kind.
    pub config: serde_json::Value,
    /// Its credentials.
    pub secret: Option<String>,
    /// Whose things on the hypervisor are ours.
    pub deployment_id: DeploymentId,
}

impl fmt::Debug for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceSpec")
            .field("source_id", &self.source_id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What a node says to its hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Asks for orders; the hub holds the answer back until there is something to say, for a while.
    Poll(Poll),
    /// An order was carried out, or failed.
    Answer {
        /// Which.
        order: OrderId,
        /// What came of it.
        outcome: Result<Answer, Fault>,
    },
    /// Opens the place for a disk's blocks. Repeating it is harmless.
    BeginDisk {
        /// The backup.
        order: OrderId,
        /// The disk.
        disk: BeginDisk,
    },
    /// A batch of blocks; they follow the head. Repeating it is harmless. The answer is [`Stored`].
    Blocks {
        /// The backup.
        order: OrderId,
        /// The disk.
        disk: DiskNumber,
        /// The batch's number on this disk: 0, 1, 2 … in any order of arrival.
        batch: u64,
    },
    /// Wants what the hub has stored of a disk to outlive the hub. The answer is [`Stored`].
    Settle {
        /// The backup.
        order: OrderId,
        /// The disk.
        disk: DiskNumber,
    },
    /// Asks what the parent of a disk holds, or the point that it is restored from.
    Digests {
        /// The backup or restore.
        order: OrderId,
        /// The disk.
        disk: DiskNumber,
        /// From this block on.
        first: u64,
        /// So many.
        count: u32,
    },
    /// Asks where that holds data next; the answer is a block's number or null.
    NextData {
        /// The backup or restore.
        order: OrderId,
        /// The disk.
        disk: DiskNumber,
        /// From this block on.
        from: u64,
        /// Before this one.
        end: u64,
    },
    /// Asks for blocks of a disk that is restored; the answer is a batch of them. Repeating it is harmless.
    Read {
        /// The restore.
        order: OrderId,
        /// The disk.
        disk: DiskNumber,
        /// From this block on.
        first: u64,
        /// So many.
        count: u32,
    },
    /// Asks where the point of a restore holds data; the answer is runs of blocks, each its first one and how many.
    Held {
        /// The restore.
        order: OrderId,
        /// The disk.
        disk: DiskNumber,
        /// From this block on.
        from: u64,
        /// Before this one.
        end: u64,
    },
    /// All of a restore is written, and what follows is not taken back: asks whether that is still wanted. Repeating it is
    /// harmless.
    HandOver {
        /// The restore.
        order: OrderId,
    },
    /// How far a backup or restore is, and what is worth a line in its log.
    Report {
        /// Which.
        order: OrderId,
        /// Where it is.
        phase: Phase,
        /// Bytes: planned, done, stored, frames, zero, same.
        progress: [u64; 6],
        /// Lines since the last report that arrived, for somebody to look at.
        notes: Vec<String>,
        /// Likewise, for whoever reads the log.
        #[serde(default)]
        lines: Vec<String>,
    },
    /// All is read, or will not be: the source is let go next; or what a restore made is taken away. The answer is whether the
    /// hub waits for that.
    LettingGo {
        /// The backup or restore.
        order: OrderId,
    },
    /// Change tracking of a disk was found wrong. Repeating it is harmless.
    TrackingIsWrong {
        /// The backup.
        order: OrderId,
        /// The disk.
        disk: DiskNumber,
        /// What was found.
        message: String,
    },
    /// Asks for the sources that are bound to the node, to undo what an earlier life left on them.
    Sources,
}

/// Which batches of a disk outlive the hub. What was stored beyond is lost when the hub dies, and is sent again then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The hub's lives before this one that worked at the backup: one more than before tells that a hub has died.
    pub life: u32,
    /// All batches below this one.
    pub floor: u64,
    /// Others beyond it.
    pub beyond: Vec<u64>,
}

/// Asks for orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poll {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Tells one life of the node from the next: random.
    pub process: String,
    /// The node's version.
    pub version: String,
    /// The name of its machine.
    pub host: String,
    /// What it is working at.
    pub working: Vec<OrderId>,
}

/// What a hub says to a poll.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Orders {
    /// Begin these.
    pub start: Vec<Order>,
    /// Give these up.
    pub stop: Vec<OrderId>,
    /// What blocks may take of the line until the next answer. None: as much as there is.
    pub bytes_per_second: Option<u64>,
}

/// Something to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Its number.
    pub id: OrderId,
    /// On which source.
    pub source: SourceSpec,
    /// What.
    pub work: Work,
}

/// What to do on a source.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// See whether it answers.
    Test,
    /// List its machines.
    Discover,
    /// Look at one machine.
    Inspect(VmRef),
    /// Remove tracking marks that no chain needs.
    Retire {
        /// On this machine.
        vm: VmRef,
        /// All but these.
        keep: Vec<TrackingToken>,
    },
    /// Look for snapshots and unfinished machines that bear the deployment's id, whoever's task they are of.
    Leftovers,
    /// Take the snapshot or machine of a task away that is dead, as the hub knows.
    Reap(Artefact),
    /// Back a machine up.
    Backup(BackupOrder),
    /// Restore a machine. Nodes of before [`PROTOCOL_RESTORES`] do not know it.
    Restore(RestoreOrder),
}

/// A backup, as the hub wants it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupOrder {
    /// What to freeze.
    pub freeze: FreezeRequest,
    /// What each disk goes onto, in the same order.
    pub disks: Vec<DiskOrder>,
    /// How hard to compress.
    pub level: WireLevel,
    /// What to do where tracking is lost.
    pub on_tracking_loss: OnTrackingLoss,
    /// Disks that are copied at once.
    pub parallel_disks: usize,
    /// How many of the blocks that tracking calls unchanged are looked at all the same.
    pub audit: WireSampling,
    /// The most bytes that are read in a second; none for as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max: Option<u64>,
    /// After so long without a word from the hub the backup is given up.
    pub lease_seconds: u32,
}

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOrder {
    /// Its number.
    pub number: DiskNumber,
    /// Its key on the source.
    pub key: String,
    /// The point that it goes onto.
    pub parent: Option<BackupId>,
    /// Why there is none although an incremental was asked for; or why the disk is compared with it, whatever has changed.
    pub reason: Option<String>,
}

/// [`Sampling`] as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the copy's")]
pub struct WireSampling {
    pub per_million: u32,
    pub blocks_min: usize,
    pub seed: u64,
}

impl From<Sampling> for WireSampling {
    fn from(Sampling { per_million, blocks_min, seed }: Sampling) -> Self {
        Self { per_million, blocks_min, seed }
    }
}

impl From<WireSampling> for Sampling {
    fn from(WireSampling { per_million, blocks_min, seed }: WireSampling) -> Self {
        Self { per_million, blocks_min, seed }
    }
}

/// A level of compression in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words are those of the codec")]
pub enum WireLevel {
    Off,
    Fast,
    Default,
    High,
}

impl From<Level> for WireLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::Off,
            Level::Fast => Self::Fast,
            Level::Default => Self::Default,
            Level::High => Self::High,
        }
    }
}

impl From<WireLevel> for Level {
    fn from(level: WireLevel) -> Self {
        match level {
            WireLevel::Off => Self::Off,
            WireLevel::Fast => Self::Fast,
            WireLevel::Default => Self::Default,
            WireLevel::High => Self::High,
        }
    }
}

/// A disk that is about to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginDisk {
    /// Its number.
    pub number: DiskNumber,
    /// What was frozen.
    pub disk: FrozenDisk,
    /// What its backup is.
    pub backup_type: BackupType,
    /// Why a full, or a full read, is made.
    pub type_reason: Option<String>,
    /// Bytes that will be read of it.
    pub read: u64,
    /// What the audit of its change tracking found, where one was made.
    pub audit: Option<TrackingAudit>,
}

/// What came of an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Work::Test`].
    Tested(TestReport),
    /// To [`Work::Discover`].
    Discovered(Vec<DiscoveredVm>),
    /// To [`Work::Inspect`].
    Inspected(Box<DiscoveredVm>),
    /// To [`Work::Retire`].
    Retired(Vec<TrackingToken>),
    /// To [`Work::Leftovers`].
    Leftovers(Vec<Artefact>),
    /// To [`Work::Reap`]: whether nothing of it is there any more.
    Reaped(bool),
    /// To [`Work::Backup`]: the last byte is with the hub, and the source is released.
    Moved {
        /// What was frozen and how.
        facts: FrozenFacts,
        /// What each disk's backup became.
        disks: Vec<MovedDisk>,
    },
    /// To [`Work::Restore`]: the machine is whole, and somebody's.
    Restored(RestoreAnswer),
}

/// What a disk's backup became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedDisk {
    /// Its number.
    pub number: DiskNumber,
    /// Full or incremental.
    pub backup_type: BackupType,
    /// Why a full, or a full read, was made.
    pub type_reason: Option<String>,
    /// The parent, for an incremental.
    pub parent: Option<BackupId>,
    /// What the audit of its change tracking found, where one was made.
    pub audit: Option<TrackingAudit>,
    /// How many batches its blocks took: the hub has stored as many, or the point is not whole.
    pub batches: u64,
    /// Bytes: read, stored, frames, zeroed, same.
    pub summary: [u64; 5],
}

impl MovedDisk {
    /// What became of a disk whose blocks took so many batches.
    pub fn new(disk: &DiskOutcome, batches: u64) -> Self {
        let Summary { read, stored, frames, zeroed, same } = disk.summary;
        Self {
            number: disk.number,
            backup_type: disk.backup_type,
            type_reason: disk.type_reason.clone(),
            parent: disk.parent.clone(),
            audit: disk.audit,
            batches,
            summary: [read, stored, frames, zeroed, same].map(|bytes| bytes.0),
        }
    }
}

impl From<MovedDisk> for DiskOutcome {
    fn from(disk: MovedDisk) -> Self {
        let [read, stored, frames, zeroed, same] = disk.summary.map(ByteLen);
        Self {
            number: disk.number,
            backup_type: disk.backup_type,
            type_reason: disk.type_reason,
            parent: disk.parent,
            audit: disk.audit,
            summary: Summary { read, stored, frames, zeroed, same },
        }
    }
}

/// Why an order failed: the errors of the mover and of sources, flattened to words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The source failed.
    Source {
        /// What was being done.
        what: String,
        /// The kind, as [`sendense_source::Kind`] calls it.
        kind: String,
        /// What went wrong, with its causes.
        message: String,
    },
    /// A machine cannot be made, or taken, as it was asked for.
    Planning {
        /// The kind, as [`sendense_source::Kind`] calls it.
        kind: String,
        /// What is in the way, with its causes.
        message: String,
    },
    /// Reading, sending or writing a disk failed.
    Copy {
        /// The disk.
        number: DiskNumber,
        /// The kind, as [`sendense_block::Kind`] calls it.
        kind: String,
        /// What went wrong, with its causes.
        message: String,
    },
    /// Change tracking is lost and the request says to fail then.
    TrackingLost {
        /// The disk.
        number: DiskNumber,
        /// Why.
        reason: String,
    },
    /// It was asked to stop.
    Cancelled,
}

const SOURCE_KINDS: [sendense_source::Kind; 12] = {
    use sendense_source::Kind::*;
    [
        NotFound,
        Unavailable,
        Denied,
        Busy,
        Unsupported,
        Invalid,
        Disturbed,
        ScratchFull,
        Unsafe,
        Cancelled,
        MissingTool,
        Failed,
    ]
};

const BLOCK_KINDS: [sendense_block::Kind; 13] = {
    use sendense_block::Kind::*;
    [
        Io,
        Unavailable,
        NoSpace,
        OutOfRange,
        Protocol,
        Unsupported,
        Corrupt,
        Denied,
        NotFound,
        Exists,
        Deadline,
        Cancelled,
        Invalid,
    ]
};

impl Fault {
    /// A source's error while `what` was done.
    pub fn of_source(what: impl Into<String>, error: &sendense_source::Error) -> Self {
        let message = sendense_block::error::chain(error);
        Self::Source { what: what.into(), kind: format!("{:?}", error.kind), message }
    }

    /// The mover's error.
    pub fn of_mover(error: &mover::Error) -> Self {
        match error {
            mover::Error::Source { what, source } => Self::of_source(what.clone(), source),
            mover::Error::Copy { number, source } => Self::Copy {
                number: *number,
                kind: format!("{:?}", source.kind),
                message: sendense_block::error::chain(source),
            },
            mover::Error::TrackingLost { number, reason } => {
                Self::TrackingLost { number: *number, reason: reason.clone() }
            }
            mover::Error::Cancelled => Self::Cancelled,
        }
    }

    /// The same as the mover's error, with kinds that this version does not know as plain failures.
    pub fn into_mover(self) -> mover::Error {
        match self.cut() {
            Self::Source { what, kind, message } => {
                let source = sendense_source::Error::new(source_kind(&kind), message);
                mover::Error::Source { what, source }
            }
            Self::Planning { kind, message } => {
                let source = sendense_source::Error::new(source_kind(&kind), message);
                mover::Error::Source { what: "plan".to_owned(), source }
            }
            Self::Copy { number, kind, message } => {
                mover::Error::Copy { number, source: sendense_block::Error::new(block_kind(&kind), message) }
            }
            Self::TrackingLost { number, reason } => mover::Error::TrackingLost { number, reason },
            Self::Cancelled => mover::Error::Cancelled,
        }
    }

    /// The same with its words as [`words`] leaves them: they end in tables and logs.
    pub(super) fn cut(self) -> Self {
        match self {
            Self::Planning { kind, message } => Self::Planning { kind, message: words(&message) },
            Self::Source { what, kind, message } => Self::Source { what: words(&what), kind, message: words(&message) },
            Self::Copy { number, kind, message } => Self::Copy { number, kind, message: words(&message) },
            Self::TrackingLost { number, reason } => Self::TrackingLost { number, reason: words(&reason) },
            Self::Cancelled => Self::Cancelled,
        }
    }

    /// The same as a source's error.
    pub fn into_source(self) -> sendense_source::Error {
        use sendense_source::{Error, Kind};
        match self.cut() {
            Self::Source { kind, message, .. } | Self::Planning { kind, message } => {
                Error::new(source_kind(&kind), message)
            }
            Self::Cancelled => Error::new(Kind::Cancelled, "stopped on request"),
            Self::Copy { message, .. } | Self::TrackingLost { reason: message, .. } => {
                Error::new(Kind::Failed, message)
            }
        }
    }
}

/// Words of the other side for people: without control characters, and no longer than anybody reads.
pub fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

pub(super) fn block_kind(text: &str) -> sendense_block::Kind {
    let known = BLOCK_KINDS.into_iter().find(|known| format!("{known:?}") == text);
    known.unwrap_or(sendense_block::Kind::Io)
}

pub(super) fn source_kind(text: &str) -> sendense_source::Kind {
    let known = SOURCE_KINDS.into_iter().find(|known| format!("{known:?}") == text);
    known.unwrap_or(sendense_source::Kind::Failed)
}

/// Why a body cannot be taken apart.
#[derive(Debug, thiserror::Error)]
#[error("the other side does not speak as this version does: {0}")]
pub struct Malformed(String);

/// A body: the head's length (four bytes, big end first), the head, and what follows.
pub fn pack(head: &impl Serialize, tail: &[u8]) -> Result<Vec<u8>, Malformed> {
    let head = serde_json::to_vec(head).map_err(|error| Malformed(error.to_string()))?;
    let len = u32::try_from(head.len()).map_err(|_| Malformed("the head is too long".to_owned()))?;
    let mut body = Vec::with_capacity(4 + head.len() + tail.len());
    body.extend_from_slice(&len.to_be_bytes());
    body.extend_from_slice(&head);
    body.extend_from_slice(tail);
    Ok(body)
}

/// Takes a body apart: the head, and what follows.
pub fn unpack<T: DeserializeOwned>(body: &[u8]) -> Result<(T, &[u8]), Malformed> {
    let cut = || Malformed("it ends too early".to_owned());
    let (len, rest) = body.split_first_chunk::<4>().ok_or_else(cut)?;
    let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| cut())?;
    let (head, tail) = rest.split_at_checked(len).ok_or_else(cut)?;
    let head = serde_json::from_slice(head).map_err(|error| Malformed(error.to_string()))?;
    Ok((head, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_keep_their_kind_on_the_way() {
        for kind in SOURCE_KINDS {
            let fault = Fault::of_source("freeze", &sendense_source::Error::new(kind, "x").hint("y"));
            let back = fault.into_source();
            assert_eq!((back.kind, back.to_string()), (kind, "x (y)".to_owned()));
        }
        for kind in BLOCK_KINDS {
            let error = mover::Error::Copy { number: DiskNumber(3), source: sendense_block::Error::new(kind, "x") };
            let back = Fault::of_mover(&error).into_mover();
            assert!(matches!(back, mover::Error::Copy { number: DiskNumber(3), source } if source.kind == kind));
        }
        let unknown = Fault::Source { what: "x".to_owned(), kind: "Newer".to_owned(), message: "y".to_owned() };
        assert_eq!(unknown.into_source().kind, sendense_source::Kind::Failed);
    }

    #[test]
    fn credentials_are_not_printed() {
        let spec = SourceSpec {
            source_id: "src-1".parse().unwrap(),
            kind: SourceKind::Vsphere,
            config: serde_json::json!({}),
            secret: Some("hunter2".to_owned()),
            deployment_id: "dep-1".parse().unwrap(),
        };
        let order = Order { id: OrderId("1".to_owned()), source: spec, work: Work::Test };
        assert!(!format!("{order:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn bodies_come_back(order in "[a-z0-9-]{1,20}", batch in any::<u64>(), tail in prop::collection::vec(any::<u8>(), 0..99)) {
            let call = Call::Blocks { order: OrderId(order.clone()), disk: DiskNumber(2), batch };
            let body = pack(&call, &tail).unwrap();
            let (back, rest) = unpack::<Call>(&body).unwrap();
            let same = matches!(back, Call::Blocks { order: o, disk: DiskNumber(2), batch: b } if o.0 == order && b == batch);
            prop_assert!(same);
            prop_assert_eq!(rest, &tail[..]);
        }

        #[test]
        fn what_is_no_body_is_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(unpack::<Call>(&body).is_err());
        }
    }
}
