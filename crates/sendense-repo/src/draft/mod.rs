//! A point while it is written: from its first block to its publication.
//!
//! ```text
//! begin_draft -> Draft -> seal -> Sealed -> publish -> the point exists
//!                  \________________\________\-> abandon, or start-up: as if it had never been
//!                   '- a disk is marked; the process dies -> resume_draft -> Draft
//! ```
//!
//! What lives here: the draft's folder and its disks ([`disk`]), sealing, and the end without a point. [`publish`] holds
//! the one order of steps that makes a point; [`undo`] takes back any prefix of them. [`mark`] tells how far a disk is
//! durable, and [`resume`] goes on from there. [`over`] begins a disk as the copy of an image.
//!
//! Invariant: until the manifest's rename nothing outside of `.draft-<backup_id>/` is read by anyone, and every file that
//! was moved out of it is listed in its intent.
//!
//! Dropping a draft does no I/O: its folder stays until somebody goes on with it, abandons it, or a later start-up undoes it.

mod disk;
pub(crate) mod intent;
mod mark;
mod over;
mod publish;
mod resume;
pub(crate) mod undo;

pub(crate) use disk::SealedDisk;
pub use disk::{DiskDraft, DiskSpec};
#[doc(hidden)]
pub use intent::parse as parse_intent;
pub use mark::NOTE_BYTES_MAX;
#[doc(hidden)]
pub use mark::{parse as parse_mark, sealed as sealed_mark};
pub(crate) use over::{Base, Over};
pub use publish::{DiskFacts, PointFacts};
pub use resume::Resumed;

use crate::capacity::Reservation;
use crate::chain::CHAIN_DEPTH_MAX;
use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::lock::{ChainGuard, Operation};
use crate::manifest::Manifest;
use crate::repository::Repository;
use sendense_types::{BackupId, Timestamp, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

/// What point is begun.
#[derive(Debug, Clone)]
pub struct DraftSpec {
    /// The new point.
    pub backup_id: BackupId,
    /// Its VM.
    pub vm_context_id: VmContextId,
    /// The points that its disks may have as parents. They, and all below them, are held until the draft ends.
    pub parents: BTreeSet<BackupId>,
    /// How many bytes it may become: promised before the first one is written.
    pub expected_bytes: u64,
    /// Who does it (a task's id), for messages to those who meet it.
    pub who: String,
}

/// A point that is being written.
pub struct Draft {
    core: Core,
    disks: BTreeMap<sendense_types::DiskNumber, Arc<DiskDraft>>,
}

/// A point whose files are complete and durable in the draft's folder. Nobody writes to them any more.
pub struct Sealed {
    core: Core,
    disks: Vec<SealedDisk>,
}

/// The way to a draft for somebody else than who writes it, who may be stuck in a read that never ends.
#[derive(Clone)]
pub struct Recall {
    repository: Repository,
    backup_id: BackupId,
    vm: VmContextId,
    reservation: Weak<Reservation>,
}

/// What a draft has from its first moment to its end.
struct Core {
    repository: Repository,
    backup_id: BackupId,
    vm: VmContextId,
    parents: BTreeSet<BackupId>,
    reservation: Arc<Reservation>,
    _guard: ChainGuard,
}

impl Repository {
    /// Begins a point: claims its parents, reserves room, makes its folder.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when the VM is being backed up or a parent is being deleted, [`Kind::NoSpace`],
    /// [`Kind::Fenced`], [`Kind::Exists`] when the id was used before, [`Kind::Corrupt`] when a parent's chain is broken.
    pub fn begin_draft(&self, spec: DraftSpec, now: Timestamp) -> Result<Draft> {
        let context = format!("begin {}", spec.backup_id);
        self.begin(spec, now).map_err(|error| error.within(context))
    }

    fn begin(&self, spec: DraftSpec, now: Timestamp) -> Result<Draft> {
        self.ownership()?.check(now)?;
        let (vm, backup_id) = (spec.vm_context_id, spec.backup_id);
        let guard = self.lock(Operation::Backup, &vm, self.below(&vm, &spec.parents)?, &spec.who)?;
        // Again under the claim: a deletion may have come between.
        self.below(&vm, &spec.parents)?;
        let reservation = Arc::new(self.capacity().reserve(spec.expected_bytes)?);
        let manifest = layout::manifest(&vm, &backup_id);
        if self.at(&manifest).symlink_metadata().is_ok() {
            return Err(Error::new(Kind::Exists, format!("the point {backup_id} exists")));
        }
        let _turn = self.ownership()?.turn(now)?;
        if !self.make_draft_dir(&vm, &backup_id)? {
            return Err(Error::new(Kind::Exists, format!("a draft of {backup_id} is there already")));
        }
        let core = Core { repository: self.clone(), backup_id, vm, parents: spec.parents, reservation, _guard: guard };
        Ok(Draft { core, disks: BTreeMap::new() })
    }

    /// Makes the folder of a draft, and the VM's. False when it was there.
    fn make_draft_dir(&self, vm: &VmContextId, backup: &BackupId) -> Result<bool> {
        let make = || {
            crashsafe::ensure_dir(self.fs(), &self.at(layout::vm_dir(vm)))?;
            crashsafe::ensure_dir(self.fs(), &self.at(layout::draft_dir(vm, backup)))
        };
        let made = match make() {
            // The deletion of the VM's last point took the empty folder away between the two. Nothing is left that could
            // be deleted a second time.
            Err(error) if error.kind == Kind::NotFound => make(),
            made => made,
        };
        made.inspect_err(|_| {
            // What was made and could not be made durable. Should this fail too, the next start removes it.
            for dir in [layout::draft_dir(vm, backup), layout::vm_dir(vm)] {
                let _ = crashsafe::remove_dir_if_empty(self.fs(), &self.at(dir));
            }
        })
    }

    /// The points and everything they stand on.
    pub(crate) fn below(&self, vm: &VmContextId, points: &BTreeSet<BackupId>) -> Result<BTreeSet<BackupId>> {
        match self.walk_below(vm, points) {
            // A merge took a point away between the reading of its child and its own: now the child stands elsewhere.
            Err(error) if error.kind == Kind::NotFound => self.walk_below(vm, points),
            walked => walked,
        }
    }

    fn walk_below(&self, vm: &VmContextId, points: &BTreeSet<BackupId>) -> Result<BTreeSet<BackupId>> {
        let mut found = BTreeSet::new();
        let mut open: Vec<BackupId> = points.iter().cloned().collect();
        // Disks of one point may have different parents, so this is a walk over a graph: bounded by what a VM may have of
        // them, all as deep as a chain may be.
        let most = CHAIN_DEPTH_MAX * (points.len() + 1);
        while let Some(id) = open.pop() {
            if !found.insert(id.clone()) {
                continue;
            }
            if found.len() > most {
                return Err(Error::invalid(format!("the parents stand on more than {most} points")));
            }
            open.extend(self.manifest(vm, &id)?.parents().cloned());
        }
        Ok(found)
    }
}

impl Core {
    fn dir(&self) -> PathBuf {
        self.repository.at(layout::draft_dir(&self.vm, &self.backup_id))
    }

    fn abandon(&self) -> Result<()> {
        undo::undo(&self.repository, &self.vm, &self.backup_id)
            .map(drop)
            .map_err(|error| error.within(format!("abandon the draft of {}", self.backup_id)))
    }
}

impl Draft {
    /// The point it will be.
    pub fn backup_id(&self) -> &BackupId {
        &self.core.backup_id
    }

    /// Begins a disk. Each number once.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when the parent was not claimed, is another disk, or its chain is full already.
    pub fn begin_disk(&mut self, spec: DiskSpec) -> Result<Arc<DiskDraft>> {
        let number = spec.number;
        let context = format!("begin disk {number} of {}", self.core.backup_id);
        if self.disks.contains_key(&number) {
            return Err(Error::new(Kind::Exists, context));
        }
        let disk = Arc::new(DiskDraft::begin(&self.core, spec).map_err(|error| error.within(context))?);
        self.disks.insert(number, disk.clone());
        Ok(disk)
    }

    /// The way to take it back from outside.
    pub fn recall(&self) -> Recall {
        let core = &self.core;
        Recall {
            repository: core.repository.clone(),
            backup_id: core.backup_id.clone(),
            vm: core.vm.clone(),
            reservation: Arc::downgrade(&core.reservation),
        }
    }

    /// Says what the point may become, all told, as soon as that is known: room for it is kept from others as far as there is
    /// any. Returns how much is missing; the draft goes on all the same, and fails with [`Kind::NoSpace`] if it must.
    pub fn expect(&self, bytes: u64) -> Result<u64> {
        self.core.reservation.expect(bytes)
    }

    /// The disk with this number, once it was begun.
    pub fn disk(&self, number: sendense_types::DiskNumber) -> Option<&Arc<DiskDraft>> {
        self.disks.get(&number)
    }

    /// Completes all files and makes them durable. Waits for puts under way; none may follow.
    ///
    /// On an error the draft has been abandoned as far as that was possible; start-up does the rest.
    pub fn seal(self) -> Result<Sealed> {
        match self.seal_disks() {
            Ok(disks) => Ok(Sealed { core: self.core, disks }),
            Err(error) => {
                let error = error.within(format!("seal {}", self.core.backup_id));
                self.core.abandon_after(&error);
                Err(error)
            }
        }
    }

    fn seal_disks(&self) -> Result<Vec<SealedDisk>> {
        if self.disks.is_empty() {
            return Err(Error::invalid("a point without disks"));
        }
        // One after the other: sealing writes little (tables and digests), and the disk below is one.
        let sealed = self.disks.values().map(|disk| disk.seal()).collect::<Result<Vec<_>>>()?;
        crashsafe::sync_dir(self.core.repository.fs(), &self.core.dir())?;
        Ok(sealed)
    }

    /// Removes everything of it.
    pub fn abandon(self) -> Result<()> {
        self.core.abandon()
    }
}

impl Recall {
    /// Removes everything of the draft and gives its room back. Who writes it may be at it still: what it writes into files that
    /// are gone harms nobody, no block is taken any more, and it may abandon the draft once more. It must not be publishing,
    /// nor begin to: that is the caller's to know ([`sendense_block::Cancel::commit`]).
    pub fn take_back(&self) -> Result<()> {
        if let Some(reservation) = self.reservation.upgrade() {
            reservation.close();
        }
        undo::undo(&self.repository, &self.vm, &self.backup_id)
            .map(drop)
            .map_err(|error| error.within(format!("take back the draft of {}", self.backup_id)))
    }
}

impl Core {
    /// Abandons after a failure whose error is the one to report.
    fn abandon_after(&self, error: &Error) {
        if let Err(second) = self.abandon() {
            tracing::warn!(
                backup_id = %self.backup_id,
                first = %error,
                error = sendense_block::error::chain(&second),
                "the draft could not be removed; the next start will"
            );
        }
    }
}

impl Sealed {
    /// The point it will be.
    pub fn backup_id(&self) -> &BackupId {
        &self.core.backup_id
    }

    /// Bytes of its files.
    pub fn file_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.image.file_bytes + disk.digests.file_bytes).sum()
    }

    /// Makes the point exist, for all its disks at once, or not at all.
    ///
    /// # Errors
    /// [`Kind::Fenced`] when another hub has the repository: the files are left to it. After any other error the draft has
    /// been abandoned as far as that was possible; if the last step of all (syncing the manifest's name) failed, the next
    /// start decides whether the point exists.
    pub fn publish(self, facts: PointFacts, now: Timestamp) -> Result<Manifest> {
        publish::publish(&self.core, &self.disks, facts, now)
    }

    /// Removes everything of it.
    pub fn abandon(self) -> Result<()> {
        self.core.abandon()
    }
}
