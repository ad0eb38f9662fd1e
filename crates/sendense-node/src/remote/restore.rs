//! A restore that the hub ordered: the same steps as beside the hub, with the point at the far end of a link.
//!
//! What lives here: what is ordered and answered, and carrying it out. What does not: the steps ([`crate::restore`]) and how
//! blocks come ([`super::point`]).
//!
//! Invariant: what was made is handed over only after the hub has said, on this very order, that it still wants it. A node
//! that cannot ask takes it away again.

use super::backup::{LETTING_GO_PATIENCE, Tools};
use super::digests::RemoteDigests;
use super::link::Link;
use super::message::{Answer, Call, Fault, OrderId, block_kind, source_kind};
use super::point::{self, RemoteDisk};
use super::reports::Reports;
use super::ways::Ways;
use crate::restore::{self, Assignment, DiskAssignment, Error, Point, Restored, To};
use sendense_block::copy::{Difference, Progress};
use sendense_block::{ByteLen, Cancel, DigestMap, Disk, Kind};
use sendense_source::{Source, VmRef};
use sendense_types::{BackupId, DiskNumber, Phase, TaskId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Lanes of a disk. Each waits a round trip for its blocks: with 16 and half a MiB each, a line of 100 Mbit/s at 150 ms is full
/// of blocks that shrink to a quarter.
pub const LANES: usize = 16;

/// A restore, as the hub wants it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// For which task.
    pub task_id: TaskId,
    /// The point, for messages.
    pub backup_id: BackupId,
    /// Its disks, in the order in which they are restored. No others are read.
    pub disks: Vec<DiskAssignment>,
    /// Where they go.
    pub to: To,
    /// After so long without a word from the hub the restore is given up.
    pub lease_seconds: u32,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreAnswer {
    /// The machine.
    pub vm: VmRef,
    /// What of a new machine is not as it was, for people.
    pub notes: Vec<String>,
    /// What differed on the disks of a machine that was there. Bytes: compared, differing, written, zeroed, unreadable.
    pub difference: Option<[u64; 5]>,
}

impl From<Restored> for RestoreAnswer {
    fn from(Restored { vm, notes, difference }: Restored) -> Self {
        let bytes = |found: Difference| {
            [found.compared, found.differing, found.written, found.zeroed, found.unreadable].map(|bytes| bytes.0)
        };
        Self { vm, notes, difference: difference.map(bytes) }
    }
}

impl From<RestoreAnswer> for Restored {
    fn from(RestoreAnswer { vm, notes, difference }: RestoreAnswer) -> Self {
        let found = |bytes: [u64; 5]| {
            let [compared, differing, written, zeroed, unreadable] = bytes.map(ByteLen);
            Difference { compared, differing, written, zeroed, unreadable }
        };
        Self { vm, notes, difference: difference.map(found) }
    }
}

impl Fault {
    /// A restore's error.
    pub fn of_restore(error: &Error) -> Self {
        match error {
            Error::Planning(source) => {
                let (kind, message) = (format!("{:?}", source.kind), sendense_block::error::chain(source));
                Self::Planning { kind, message }
            }
            Error::Source(source) => Self::of_source("restore", source),
            Error::Copy { number, source } => Self::Copy {
                number: *number,
                kind: format!("{:?}", source.kind),
                message: sendense_block::error::chain(source),
            },
            Error::HandOver(source) if source.kind == Kind::Cancelled => Self::Cancelled,
            Error::HandOver(source) => {
                let message = sendense_block::error::chain(source);
                Self::of_source("restore", &sendense_source::Error::new(sendense_source::Kind::Unavailable, message))
            }
        }
    }

    /// The same as a restore's error, with kinds that this version does not know as plain failures.
    pub fn into_restore(self) -> Error {
        match self.cut() {
            Self::Planning { kind, message } => {
                Error::Planning(sendense_source::Error::new(source_kind(&kind), message))
            }
            Self::Copy { number, kind, message } => {
                Error::Copy { number, source: sendense_block::Error::new(block_kind(&kind), message) }
            }
            other => Error::Source(other.into_source()),
        }
    }
}

/// Runs a restore. When this returns, the machine is whole, or gone, or in the journal; or, where it was there before, marked.
pub(super) fn run(
    tools: &Tools<'_>,
    id: &OrderId,
    source: &dyn Source,
    order: RestoreOrder,
    cancel: &Cancel,
) -> Result<Answer, Fault> {
    let patience = Duration::from_secs(order.lease_seconds.into());
    let (link, progress) = (tools.link.clone(), Progress::default());
    let point = RemotePoint {
        reports: Reports::new(link.clone(), id.clone(), patience, Phase::Transferring, cancel.clone()),
        link,
        ways: Arc::default(),
        id: id.clone(),
        disks: order.disks.clone(),
        patience,
        cancel: cancel.clone(),
    };
    let RestoreOrder { task_id, backup_id, disks, to, .. } = order;
    let assignment = Assignment { task_id, backup_id, disks, to, lanes: LANES };
    std::thread::scope(|scope| {
        scope.spawn(|| point.reports.tell(&progress));
        let _reports = point.reports.until_dropped();
        let restored = restore::run(&assignment, source, &point, tools.journal, tools.budget, &progress, cancel);
        restored.map(|restored| Answer::Restored(restored.into())).map_err(|error| Fault::of_restore(&error))
    })
}

/// The hub's point, seen from here.
struct RemotePoint {
    link: Arc<Link>,
    ways: Arc<Ways>,
    id: OrderId,
    disks: Vec<DiskAssignment>,
    patience: Duration,
    cancel: Cancel,
    reports: Reports,
}

impl Point for RemotePoint {
    fn disk(&self, number: DiskNumber) -> sendense_block::Result<Arc<dyn Disk>> {
        let ordered = self.disks.iter().find(|disk| disk.number == number);
        let ordered =
            ordered.ok_or_else(|| sendense_block::Error::new(Kind::NotFound, "a disk that was not ordered"))?;
        Ok(Arc::new(RemoteDisk::new(point::Options {
            link: self.link.clone(),
            ways: self.ways.clone(),
            order: self.id.clone(),
            disk: number,
            size: ByteLen(ordered.capacity_bytes),
            patience: self.patience,
            cancel: self.cancel.clone(),
        })))
    }

    fn digests(&self, number: DiskNumber) -> sendense_block::Result<Arc<dyn DigestMap>> {
        let (link, id, cancel) = (self.link.clone(), self.id.clone(), self.cancel.clone());
        Ok(Arc::new(RemoteDigests::new(link, id, number, self.patience, cancel)))
    }

    fn note(&self, message: &str) {
        self.reports.line(message);
    }

    fn warn(&self, message: &str) {
        self.reports.note(message);
    }

    fn hand_over(&self) -> sendense_block::Result<()> {
        self.cancel.check()?;
        self.link.call(&Call::HandOver { order: self.id.clone() }, &[], self.patience, &self.cancel)?;
        self.cancel.commit()
    }

    fn letting_go(&self) {
        // Who cannot be reached waits for nothing.
        if self.link.silent_for() <= LETTING_GO_PATIENCE {
            let call = Call::LettingGo { order: self.id.clone() };
            if let Err(broken) = self.link.once(&call, &[], &Cancel::new()) {
                let error = sendense_block::error::chain(&broken);
                tracing::debug!(order = %self.id.0, error, "tell the hub that what was made is taken away");
            }
        }
    }
}
