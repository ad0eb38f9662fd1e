//! A backup that the hub ordered: the same mover as everywhere, with the hub at the far end of a link.

use super::digests::RemoteDigests;
use super::link::Link;
use super::message::{Answer, BackupOrder, BeginDisk, Call, Fault, MovedDisk, OrderId, unpack};
use super::reports::Reports;
use super::sink::{self, RemoteSink};
use super::ways::Ways;
use crate::budget::LaneBudget;
use crate::mover::{self, Assignment, DiskAssignment, DiskStart, Landing, Parent, Parentage};
use parking_lot::Mutex;
use sendense_block::codec::Level;
use sendense_block::copy::Progress;
use sendense_block::{BlockSink, Cancel, Error, Kind};
use sendense_source::{Journal, Source};
use sendense_types::{DiskNumber, Phase};
use std::sync::Arc;
use std::time::Duration;

/// A hub that was heard within this is asked whether it waits: reports come every second.
pub(super) const LETTING_GO_PATIENCE: Duration = Duration::from_secs(10);

/// What a backup needs of its node.
pub struct Tools<'a> {
    /// The way to the hub.
    pub link: &'a Arc<Link>,
    /// What is made on hypervisors.
    pub journal: &'a Arc<dyn Journal>,
    /// Lanes of the process.
    pub budget: &'a LaneBudget,
}

/// Runs a backup. When this returns, the source is released, or what could not be is in the journal.
pub fn run(
    tools: &Tools<'_>,
    id: &OrderId,
    source: &dyn Source,
    order: BackupOrder,
    cancel: &Cancel,
) -> Result<Answer, Fault> {
    let patience = Duration::from_secs(order.lease_seconds.into());
    let progress = Progress::default();
    let landing = RemoteLanding {
        link: tools.link.clone(),
        ways: Arc::default(),
        id: id.clone(),
        patience,
        level: order.level.into(),
        cancel: cancel.clone(),
        sinks: Mutex::default(),
        reports: Reports::new(tools.link.clone(), id.clone(), patience, Phase::Snapshot, cancel.clone()),
    };
    let assignment = assignment(tools.link, id, order, patience, cancel);
    std::thread::scope(|scope| {
        scope.spawn(|| landing.reports.tell(&progress));
        let _reports = landing.reports.until_dropped();
        let moved = mover::run(&assignment, source, &landing, tools.journal, tools.budget, &progress, cancel);
        let outcome = moved.map_err(|error| Fault::of_mover(&error))?;
        Ok(Answer::Moved {
            facts: outcome.facts,
            disks: outcome.disks.iter().map(|disk| MovedDisk::new(disk, landing.batches(disk.number))).collect(),
        })
    })
}

fn assignment(link: &Arc<Link>, id: &OrderId, order: BackupOrder, patience: Duration, cancel: &Cancel) -> Assignment {
    let disks = order.disks.into_iter().map(|disk| {
        let parentage = match disk.parent {
            None => Parentage::None { reason: disk.reason },
            Some(backup_id) => {
                let digests = RemoteDigests::new(link.clone(), id.clone(), disk.number, patience, cancel.clone());
                Parentage::Parent(Parent { backup_id, digests: Arc::new(digests), lost: disk.reason })
            }
        };
        DiskAssignment { number: disk.number, key: disk.key, parentage }
    });
    Assignment {
        disks: disks.collect(),
        freeze: order.freeze,
        level: order.level.into(),
        on_tracking_loss: order.on_tracking_loss,
        parallel_disks: order.parallel_disks,
        audit: order.audit.into(),
        bytes_per_second_max: order.bytes_per_second_max,
    }
}

/// The hub's draft, seen from here.
struct RemoteLanding {
    link: Arc<Link>,
    ways: Arc<Ways>,
    id: OrderId,
    patience: Duration,
    level: Level,
    cancel: Cancel,
    sinks: Mutex<Vec<(DiskNumber, Arc<RemoteSink>)>>,
    reports: Reports,
}

impl RemoteLanding {
    /// How many batches a disk's blocks took.
    fn batches(&self, number: DiskNumber) -> u64 {
        self.sinks.lock().iter().find(|(known, _)| *known == number).map_or(0, |(_, sink)| sink.batches())
    }
}

impl Landing for RemoteLanding {
    fn begin_disk(&self, start: &DiskStart<'_>) -> sendense_block::Result<Arc<dyn BlockSink>> {
        let disk = BeginDisk {
            number: start.number,
            disk: start.disk.clone(),
            backup_type: start.backup_type,
            type_reason: start.type_reason.map(str::to_owned),
            read: start.read.0,
            audit: start.audit,
        };
        let call = Call::BeginDisk { order: self.id.clone(), disk };
        self.link.call(&call, &[], self.patience, &self.cancel)?;
        let reader = start.reader.ok_or_else(|| Error::new(Kind::Invalid, "a disk that cannot be read"))?;
        let options = sink::Options {
            link: self.link.clone(),
            ways: self.ways.clone(),
            order: self.id.clone(),
            disk: start.number,
            level: self.level,
            patience: self.patience,
            cancel: self.cancel.clone(),
        };
        let sink = Arc::new(RemoteSink::start(options, reader.clone())?);
        self.sinks.lock().push((start.number, sink.clone()));
        Ok(sink)
    }

    fn phase(&self, phase: Phase) {
        self.reports.phase(phase);
    }

    fn note(&self, message: &str) {
        self.reports.note(message);
    }

    fn settle(&self) -> Result<(), (DiskNumber, Error)> {
        for (number, sink) in self.sinks.lock().iter() {
            sink.finish().map_err(|error| (*number, error))?;
        }
        Ok(())
    }

    fn letting_go(&self) -> bool {
        // A snapshot is taken away when nobody reads it any more.
        self.sinks.lock().iter().for_each(|(_, sink)| sink.let_go());
        // The source does not wait for a hub that is away, and a cancelled backup tells this too.
        if self.link.silent_for() > LETTING_GO_PATIENCE {
            return false;
        }
        let call = Call::LettingGo { order: self.id.clone() };
        let answer = self.link.once(&call, &[], &Cancel::new());
        answer.is_ok_and(|body| unpack::<bool>(&body).is_ok_and(|(is_awaited, _)| is_awaited))
    }

    fn tracking_is_wrong(&self, disk: DiskNumber, message: &str) {
        let call = Call::TrackingIsWrong { order: self.id.clone(), disk, message: message.to_owned() };
        if let Err(broken) = self.link.call(&call, &[], self.patience, &self.cancel) {
            let error = sendense_block::error::chain(&broken);
            tracing::error!(order = %self.id.0, disk_id = %disk, message, error, "tell the hub that tracking is wrong");
        }
    }
}
