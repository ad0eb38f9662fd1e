//! One restore of a machine: a point's disks into a new machine, or onto the disks of one that exists, on a hypervisor that
//! keeps its disks itself.
//!
//! What lives here: the order of the steps. What does not: where the point's blocks come from ([`Point`]: a repository beside
//! it, or a hub far away), and what a machine is (the source knows).
//!
//! Invariants: a new machine is in the journal before it is made, is somebody's only after its last block is written, and is
//! taken away again on any failure before that. A disk that is written onto bears a mark in its first block from the first
//! write until all of it is right, so that no machine starts from one that is half of one state and half of another. And
//! whoever gives the point is asked before the last step, after which nobody can stop it.

use crate::budget::LaneBudget;
use sendense_block::codec::Level;
use sendense_block::copy::{self, Difference, Differential, Marked, Options, Progress, Restore};
use sendense_block::{Cancel, DigestMap, Disk};
use sendense_source::{
    ConfigDocument, Journal, Kind, NewRemoteVm, Overwriting, RemoteDisk, RemoteTarget, Restoring, Source, VmRef,
};
use sendense_types::{BackupId, DiskNumber, TaskId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes per read: enough that a spinning repository streams, little enough to stay in a core's cache.
const REQUEST_BYTES: usize = 512 * 1024;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// For which task: machines and children bear it.
    pub task_id: TaskId,
    /// The point, for messages.
    pub backup_id: BackupId,
    /// Its disks, in the order in which they are restored.
    pub disks: Vec<DiskAssignment>,
    /// Where they go.
    pub to: To,
    /// Lanes of each disk.
    pub lanes: usize,
}

/// One disk of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAssignment {
    /// Its number.
    pub number: DiskNumber,
    /// Its key when it was backed up.
    pub key: String,
    /// Its size.
    pub capacity_bytes: u64,
}

/// Where a point goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum To {
    /// Into a machine that is made for it.
    New(NewMachine),
    /// Onto the disks of this one.
    Existing(VmRef),
}

/// What a new machine is to be; as [`NewRemoteVm`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the source's")]
pub struct NewMachine {
    pub name: String,
    pub documents: Vec<ConfigDocument>,
    pub datastore: Option<String>,
    pub folder: Option<String>,
    pub cluster: Option<String>,
    pub networks: BTreeMap<String, Option<String>>,
    pub keep_identity: bool,
    pub note: String,
}

/// The point that is restored, and who is told. Called from threads of the restore.
pub trait Point: Send + Sync {
    /// A disk as it was then, its true size.
    fn disk(&self, number: DiskNumber) -> sendense_block::Result<Arc<dyn Disk>>;

    /// Its digests.
    fn digests(&self, number: DiskNumber) -> sendense_block::Result<Arc<dyn DigestMap>>;

    /// What the log should say.
    fn note(&self, message: &str);

    /// What somebody should look at.
    fn warn(&self, message: &str);

    /// All is written, and what follows is not taken back. An error when somebody has changed the mind; after it nobody can.
    fn hand_over(&self) -> sendense_block::Result<()>;

    /// It has failed, and what was made is taken away next, in the source's own time.
    fn letting_go(&self);
}

/// What came of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The machine.
    pub vm: VmRef,
    /// What of a new machine is not as it was, for people.
    pub notes: Vec<String>,
    /// What differed on the disks of a machine that was there.
    pub difference: Option<Difference>,
}

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine cannot be made, or taken, as it was asked for. Nothing was written.
    #[error("{0}")]
    Planning(sendense_source::Error),
    /// The source failed.
    #[error("{0}")]
    Source(sendense_source::Error),
    /// Reading or writing a disk failed.
    #[error("restore disk {number}")]
    Copy {
        /// The disk.
        number: DiskNumber,
        /// Why.
        #[source]
        source: sendense_block::Error,
    },
    /// Somebody changed the mind, or could not be asked, before the last step.
    #[error("hand the machine over")]
    HandOver(#[source] sendense_block::Error),
}

/// What every step needs.
struct Work<'a> {
    assignment: &'a Assignment,
    point: &'a dyn Point,
    journal: &'a Arc<dyn Journal>,
    budget: &'a LaneBudget,
    progress: &'a Progress,
    cancel: &'a Cancel,
}

/// Runs a restore. When this returns, the machine is whole, or gone, or in the journal; or, where it was there before, marked.
pub fn run(
    assignment: &Assignment,
    source: &dyn Source,
    point: &dyn Point,
    journal: &Arc<dyn Journal>,
    budget: &LaneBudget,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Restored, Error> {
    let none = || {
        let message = format!("machines cannot be restored so to a source of kind {}", source.kind());
        Error::Planning(sendense_source::Error::new(Kind::Unsupported, message))
    };
    let door = source.remote_target().ok_or_else(none)?;
    let disk = |disk: &DiskAssignment| RemoteDisk { key: disk.key.clone(), capacity_bytes: disk.capacity_bytes };
    let disks: Vec<RemoteDisk> = assignment.disks.iter().map(disk).collect();
    let work = Work { assignment, point, journal, budget, progress, cancel };
    match &assignment.to {
        To::New(new) => work.make(door, new, &disks),
        To::Existing(vm) => work.write_onto(door, vm, &disks),
    }
}

impl Work<'_> {
    fn make(&self, door: &dyn RemoteTarget, new: &NewMachine, disks: &[RemoteDisk]) -> Result<Restored, Error> {
        let wanted = NewRemoteVm {
            name: &new.name,
            documents: &new.documents,
            disks,
            datastore: new.datastore.as_deref(),
            folder: new.folder.as_deref(),
            cluster: new.cluster.as_deref(),
            networks: &new.networks,
            keep_identity: new.keep_identity,
            note: &new.note,
        };
        let made = door.create(&wanted, &self.assignment.task_id, self.journal, self.cancel);
        let restoring = made.map_err(Error::Planning)?;
        restoring.notes().iter().for_each(|note| self.point.warn(note));
        let (vm, notes) = (restoring.vm().clone(), restoring.notes().to_vec());
        let filled = self.fill(&*restoring);
        // The last moment at which a person can change the mind: what is handed over is not taken back.
        let whole = filled.and_then(|()| self.point.hand_over().map_err(Error::HandOver));
        if let Err(error) = whole {
            self.point.letting_go();
            // What cannot be taken away now stays in the journal.
            if let Err(error) = restoring.abandon() {
                self.point.warn(&format!("remove what was restored: {}", sendense_block::error::chain(&error)));
            }
            return Err(error);
        }
        restoring.finish().map_err(Error::Source)?;
        Ok(Restored { vm, notes, difference: None })
    }

    fn fill(&self, restoring: &dyn Restoring) -> Result<(), Error> {
        for (position, disk) in self.assignment.disks.iter().enumerate() {
            let number = disk.number;
            let failed = |source| Error::Copy { number, source };
            let held = self.point.disk(number).map_err(failed)?;
            let share = self.budget.take(self.assignment.lanes);
            let target = restoring.open_write(position, self.cancel).map_err(Error::Source)?;
            let restore = Restore {
                name: &self.name(disk),
                disk: &held,
                target: &target,
                // A new thin disk: what is not written stays unallocated.
                target_is_zero: true,
                options: options(share.lanes()),
                progress: self.progress,
                cancel: self.cancel,
            };
            copy::restore(&restore).map_err(failed)?;
            self.point.note(&format!("disk {number} is restored"));
        }
        Ok(())
    }

    fn write_onto(&self, door: &dyn RemoteTarget, vm: &VmRef, disks: &[RemoteDisk]) -> Result<Restored, Error> {
        let taken = door.onto(vm, disks, &self.assignment.task_id, self.journal, self.cancel);
        let machine = taken.map_err(Error::Planning)?;
        let mut all = Difference::default();
        for (position, disk) in self.assignment.disks.iter().enumerate() {
            let is_last = position + 1 == self.assignment.disks.len();
            let found = self.write_disk(&*machine, position, disk, is_last)?;
            let (number, differing, compared) = (disk.number, found.differing, found.compared);
            self.point.note(&format!("disk {number} is restored: {differing} of {compared} differed"));
            all.compared.0 += found.compared.0;
            all.differing.0 += found.differing.0;
            all.written.0 += found.written.0;
            all.zeroed.0 += found.zeroed.0;
            all.unreadable.0 += found.unreadable.0;
        }
        machine.finish().map_err(Error::Source)?;
        Ok(Restored { vm: vm.clone(), notes: Vec::new(), difference: Some(all) })
    }

    fn write_disk(
        &self,
        machine: &dyn Overwriting,
        position: usize,
        disk: &DiskAssignment,
        is_last: bool,
    ) -> Result<Difference, Error> {
        let failed = |source| Error::Copy { number: disk.number, source };
        let held = self.point.disk(disk.number).map_err(failed)?;
        let digests = self.point.digests(disk.number).map_err(failed)?;
        let share = self.budget.take(self.assignment.lanes);
        let volume = machine.open(position, self.cancel).map_err(Error::Source)?;
        let (name, who) = (self.name(disk), &self.assignment.task_id);
        let why = format!("{name}, by {who}. Restore onto it again: what is right already is left alone.");
        let marked = Marked::new(volume, &why);
        let differential = Differential {
            name: &name,
            disk: &held,
            digests: &*digests,
            target: &marked,
            options: options(share.lanes()),
            progress: self.progress,
            cancel: self.cancel,
        };
        let found = copy::differential(&differential).map_err(failed)?;
        // The last disk makes the machine whole; what comes after is not stopped by anybody.
        match is_last {
            true => self.point.hand_over().map_err(Error::HandOver)?,
            false => self.cancel.check().map_err(failed)?,
        }
        marked.finish().map_err(failed)?;
        Ok(found)
    }

    fn name(&self, disk: &DiskAssignment) -> String {
        format!("disk {} of {}", disk.number, self.assignment.backup_id)
    }
}

fn options(lanes: usize) -> Options {
    // Nothing is compressed on the way to a machine.
    Options { lanes, request_bytes: REQUEST_BYTES, level: Level::Off }
}
