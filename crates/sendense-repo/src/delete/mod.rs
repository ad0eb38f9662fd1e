//! Deleting points: first a plan that can be shown, then exactly that plan.
//!
//! Steps for one point, dependents before what they stand on:
//!
//! 1. `.delete-<backup_id>/` is made with the list of the point's files; file, then folders synced;
//! 2. the manifest is moved into it, the VM's folder synced: **the point exists no more**;
//! 3. the files are removed, its hold among them, folders synced; the folder is removed.
//!
//! A process that dies before 2 leaves a point and a folder that start-up removes; one that dies after 2 leaves a deletion
//! that start-up finishes. Done twice is done once.
//!
//! Invariant: a plan is made of a complete listing or not at all: a manifest that cannot be read might be a dependent's.

mod plan;
mod steps;

pub use plan::{DeletePlan, Extent, PlannedPoint, plan};
pub(crate) use steps::{Finished, delete, finish};

use crate::error::{Error, Kind, Result};
use crate::lock::Operation;
use crate::repository::Repository;
use sendense_types::{BackupId, Timestamp, VmContextId};
use std::collections::BTreeSet;

impl Repository {
    /// Plans to delete points of a VM. Changes nothing.
    ///
    /// # Errors
    /// [`Kind::HasDependents`] names the points that stand on one of them, unless they are taken along;
    /// [`Kind::NotFound`]; and whatever keeps the VM's points from being listed completely.
    pub fn plan_delete(&self, vm: &VmContextId, points: &BTreeSet<BackupId>, extent: Extent) -> Result<DeletePlan> {
        plan(vm, &self.list(vm)?.complete()?, points, extent)
    }

    /// Deletes what the plan says. `who` is told to those who meet it.
    ///
    /// # Errors
    /// [`Kind::Held`] when a point of it must stay; [`Kind::Conflict`] when a point of it is in use, or a new point has come to stand on one since it was planned;
    /// [`Kind::Fenced`]. What was deleted before an error stays deleted; the same plan may be executed again.
    pub fn execute_delete(&self, plan: DeletePlan, who: &str, now: Timestamp) -> Result<()> {
        let ids: BTreeSet<BackupId> = plan.points.iter().map(|point| point.backup_id.clone()).collect();
        let _guard = self.lock(Operation::Delete, &plan.vm_context_id, ids.clone(), who)?;
        // Under the lock, so that nobody protects a point between this look and its end.
        self.refuse_held(&plan.vm_context_id, &ids, now)?;
        let listed = self.list(&plan.vm_context_id)?.complete()?;
        let still_there: BTreeSet<BackupId> =
            listed.iter().map(|point| point.backup_id.clone()).filter(|id| ids.contains(id)).collect();
        if !still_there.is_empty() {
            let again = self::plan::plan(&plan.vm_context_id, &listed, &still_there, Extent::Named);
            let again = again.map_err(|error| error.within("the plan is out of date: make it again"))?;
            if !again.points.iter().all(|point| plan.points.contains(point)) {
                return Err(Error::new(
                    Kind::Conflict { holders: Vec::new() },
                    "the plan is out of date: make it again",
                ));
            }
        }
        for point in &plan.points {
            // One for each: another hub waits no longer than the files of one point take.
            let _turn = self.ownership()?.turn(now)?;
            delete(self, &plan.vm_context_id, point)
                .map_err(|error| error.within(format!("delete {}", point.backup_id)))?;
        }
        Ok(())
    }
}
