//! Start-up: what a hub that died left behind is undone or finished, and nothing else is touched.
//!
//! Invariant: a file is removed only when a draft's or a deletion's intent or a deleted point's manifest names it. Any other
//! file that no manifest names is reported and stays. One folder's trouble does not keep the others from being looked at.

use crate::delete;
use crate::draft::undo;
use crate::error::{Error, Kind, Result};
use crate::layout::{self, VmEntry};
use crate::lock::Operation;
use crate::merge;
use crate::moving::{self, Arrival, RECOVERER};
use crate::repository::Repository;
use crate::survey::Moving;
use crate::{crashsafe, owner};
use sendense_types::{BackupId, Timestamp, VmContextId};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What the catalog says of points and drafts.
pub trait Catalog {
    /// True while somebody works on this draft (its lease is not out).
    fn is_live(&self, vm: &VmContextId, draft: &BackupId) -> bool;
    /// True while somebody moves the points of this VM here or away, or will go on with that.
    fn is_moving(&self, vm: &VmContextId) -> bool;
    /// True when the catalog knows this point.
    fn knows(&self, vm: &VmContextId, point: &BackupId) -> bool;
}

/// What start-up met and did.
#[derive(Debug, Default)]
pub struct Report {
    /// Drafts that were undone.
    pub undone: Vec<(VmContextId, BackupId)>,
    /// Drafts that somebody works on; left alone.
    pub live: Vec<(VmContextId, BackupId)>,
    /// Deletions that were finished.
    pub deleted: Vec<(VmContextId, BackupId)>,
    /// Points that took over what the one below them held: their parents, types and sizes changed, and mostly the other point is gone.
    pub merged: Vec<(VmContextId, BackupId)>,
    /// VMs whose copied points nobody goes on to move here: they were taken away.
    pub unmoved: Vec<VmContextId>,
    /// VMs whose points have come here by a move that was cut off, with the repository they came from. To be finished with
    /// [`Repository::finish_arrival`].
    pub arriving: Vec<(VmContextId, String)>,
    /// VMs whose points have arrived, with the repository that they came from and that has not let go of them. To be finished with
    /// its [`Repository::finish_move`].
    pub arrived: Vec<(VmContextId, String)>,
    /// VMs whose points may have gone, with the repository that says so. To be settled with [`Repository::finish_move`].
    pub leaving: Vec<(VmContextId, String)>,
    /// Published points that the catalog does not know: to be adopted.
    pub unknown: Vec<(VmContextId, BackupId)>,
    /// Files and folders that no manifest names, relative to the repository. A person must look.
    pub strangers: Vec<PathBuf>,
    /// What could not be looked at or finished. The next start tries again.
    pub problems: Vec<(PathBuf, Error)>,
}

impl Repository {
    /// Undoes dead drafts, finishes deletions, and reports the rest. Can be called while the repository is in use.
    ///
    /// # Errors
    /// Only when the repository is not ours or cannot be listed at all; all else is in the report.
    pub fn recover(&self, catalog: &dyn Catalog, now: Timestamp) -> Result<Report> {
        self.ownership()?.check(now)?;
        let mut report = Report::default();
        for (name, kind) in crashsafe::entries(self.root())? {
            let own = layout::OWN.iter().any(|own| name == *own);
            match (kind, name.to_str().map(str::parse::<VmContextId>)) {
                (crashsafe::Kindred::Directory, Some(Ok(vm))) => {
                    if let Err(error) = self.recover_vm(&vm, catalog, now, &mut report) {
                        report.problems.push((layout::vm_dir(&vm), error));
                    }
                }
                _ if own => {}
                _ => report.strangers.push(PathBuf::from(name)),
            }
        }
        // A replacement of the record that was cut off.
        if owner::read(self.root())?.is_some() {
            let half = PathBuf::from(format!("{}.new", layout::OWNER_FILE));
            report.strangers.retain(|path| *path != half);
        }
        self.keep_spare();
        // What was removed here was counted when the repository was opened.
        if let Err(error) = self.recount() {
            report.problems.push((PathBuf::from("."), error.within("count what the files take")));
        }
        Ok(report)
    }

    fn recover_vm(&self, vm: &VmContextId, catalog: &dyn Catalog, now: Timestamp, report: &mut Report) -> Result<()> {
        for (path, entry, _) in self.vm_entries(vm)? {
            let done = match &entry {
                VmEntry::Draft(_) | VmEntry::Delete(_) | VmEntry::Merge(_) | VmEntry::MoveIn | VmEntry::MoveOut => {
                    self.recover_entry(vm, &entry, catalog, now, report)
                }
                _ => Ok(()),
            };
            if let Err(error) = done {
                report.problems.push((path, error));
            }
        }
        // For what has been undone and finished is gone now.
        let lies_there = self.survey_vm(vm)?;
        if lies_there.moving > Some(Moving::Arrived) {
            return Ok(());
        }
        let unknown = lies_there.points.iter().filter(|id| !catalog.knows(vm, id)).cloned();
        report.unknown.extend(unknown.map(|id| (vm.clone(), id)));
        let is_empty = lies_there.points.is_empty() && !lies_there.has_disks && lies_there.moving.is_none();
        report.strangers.extend(lies_there.strangers);
        if is_empty { self.remove_empty(vm, now) } else { Ok(()) }
    }

    /// What was listed is a dead one's only as long as the repository is ours.
    fn recover_entry(
        &self,
        vm: &VmContextId,
        entry: &VmEntry,
        catalog: &dyn Catalog,
        now: Timestamp,
        report: &mut Report,
    ) -> Result<()> {
        let turn = self.ownership()?.turn(now)?;
        match entry {
            VmEntry::Draft(id) => self.recover_draft(vm, id, catalog, report),
            VmEntry::Delete(id) => self.recover_delete(vm, id, report),
            VmEntry::Merge(id) => self.recover_merge(vm, id, &turn, now, report),
            VmEntry::MoveIn => self.recover_copies(vm, &turn, catalog, report),
            // Decided by the other repository.
            VmEntry::MoveOut if self.locks().is_moving(vm) || catalog.is_moving(vm) => Ok(()),
            VmEntry::MoveOut => {
                let to = self.move_that_left(vm, now)?;
                report.leaving.extend(to.map(|to| (vm.clone(), to)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Removes the folder of a VM whose first point died before it had a draft's folder, or whose last was deleted just
    /// before. Only an empty one.
    fn remove_empty(&self, vm: &VmContextId, now: Timestamp) -> Result<()> {
        let _turn = self.ownership()?.turn(now)?;
        // Whoever begins a point of this VM has made its folder under this claim.
        let _guard = match self.lock(Operation::Backup, vm, BTreeSet::new(), RECOVERER) {
            Ok(guard) => guard,
            Err(error) if matches!(error.kind, Kind::Conflict { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if crashsafe::remove_dir_if_empty(self.fs(), &self.at(layout::vm_dir(vm)))? {
            crashsafe::sync_dir(self.fs(), self.root())?;
        }
        Ok(())
    }

    fn recover_copies(
        &self,
        vm: &VmContextId,
        turn: &owner::Turn,
        catalog: &dyn Catalog,
        report: &mut Report,
    ) -> Result<()> {
        // Whoever goes on with the move does the rest of it, too.
        if self.locks().is_moving(vm) || catalog.is_moving(vm) {
            return Ok(());
        }
        match moving::arrival(self, vm)? {
            Some(Arrival::Decided(record)) => report.arriving.push((vm.clone(), record.from)),
            Some(Arrival::Arrived(record)) => report.arrived.push((vm.clone(), record.from)),
            None if self.recover_move_in(vm, turn)? => report.unmoved.push(vm.clone()),
            None => {}
        }
        Ok(())
    }

    fn recover_draft(&self, vm: &VmContextId, id: &BackupId, catalog: &dyn Catalog, report: &mut Report) -> Result<()> {
        // Whoever writes it in this process holds the VM's backup claim; so do we, while we take it back.
        let guard = self.lock(Operation::Backup, vm, BTreeSet::new(), RECOVERER);
        let busy = matches!(&guard, Err(error) if matches!(error.kind, Kind::Conflict { .. }));
        if busy || catalog.is_live(vm, id) {
            report.live.push((vm.clone(), id.clone()));
            return Ok(());
        }
        let _guard = guard?;
        match undo::undo(self, vm, id)? {
            undo::Undone::Gone => report.undone.push((vm.clone(), id.clone())),
            undo::Undone::WasPublished => {}
        }
        Ok(())
    }

    fn recover_delete(&self, vm: &VmContextId, id: &BackupId, report: &mut Report) -> Result<()> {
        let _guard = match self.lock(Operation::Delete, vm, BTreeSet::from([id.clone()]), RECOVERER) {
            Ok(guard) => guard,
            // It is being deleted at this moment.
            Err(error) if matches!(error.kind, Kind::Conflict { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if delete::finish(self, vm, id)? == delete::Finished::Deleted {
            report.deleted.push((vm.clone(), id.clone()));
        }
        Ok(())
    }

    fn recover_merge(
        &self,
        vm: &VmContextId,
        id: &BackupId,
        turn: &owner::Turn,
        now: Timestamp,
        report: &mut Report,
    ) -> Result<()> {
        if self.is_merging(vm, id) {
            return Ok(());
        }
        let guard = match self.take_up(vm, id) {
            Some(kept) => kept,
            None => {
                // Somebody who reads the points before they are set right is in the way, and told of: the next look tries again.
                let guard = self.lock(Operation::Merge, vm, merge::points_of(self, vm, id), RECOVERER)?;
                // Since the folder was listed that merge may have ended and another have begun, which prepares its files now.
                if self.is_merging(vm, id) {
                    return Ok(());
                }
                guard
            }
        };
        let may_have_begun = merge::may_have_begun(self, vm, id);
        match merge::finish(self, vm, id, turn, now) {
            Ok(merge::Finished::Merged) => report.merged.push((vm.clone(), id.clone())),
            Ok(merge::Finished::NotBegun) => {}
            Err(error) => {
                // As in `merge`: nobody touches points that may lie between two states. Others are as they were.
                if may_have_begun {
                    self.set_aside(vm, id, guard);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}
