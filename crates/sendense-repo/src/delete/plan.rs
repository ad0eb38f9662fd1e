//! The plan of a deletion: a value that is made without touching anything, can be shown, and is what is executed.

use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What will be deleted, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletePlan {
    /// The VM.
    pub vm_context_id: VmContextId,
    /// Its points, each before those it stands on.
    pub points: Vec<PlannedPoint>,
}

/// One point of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPoint {
    /// The point.
    pub backup_id: BackupId,
    /// Its disks.
    pub disks: BTreeSet<DiskNumber>,
    /// Bytes of its files.
    pub bytes: u64,
}

/// How far a deletion may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The named points only; refused when others stand on them.
    Named,
    /// Also every point that stands on one of them.
    Cascade,
}

impl DeletePlan {
    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.points.iter().map(|point| point.bytes).fold(0, u64::saturating_add)
    }
}

impl fmt::Display for DeletePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for point in &self.points {
            let disks: Vec<String> = point.disks.iter().map(DiskNumber::to_string).collect();
            writeln!(f, "delete {} (disks {}, {} bytes)", point.backup_id, disks.join(", "), point.bytes)?;
        }
        Ok(())
    }
}

/// Makes a plan of all points of a VM and those that shall go.
pub fn plan(vm: &VmContextId, all: &[Manifest], named: &BTreeSet<BackupId>, extent: Extent) -> Result<DeletePlan> {
    let by_id: BTreeMap<&BackupId, &Manifest> = all.iter().map(|point| (&point.backup_id, point)).collect();
    if let Some(missing) = named.iter().find(|id| !by_id.contains_key(id)) {
        return Err(Error::new(Kind::NotFound, format!("no point {missing} of {vm}")));
    }
    let mut children: BTreeMap<&BackupId, BTreeSet<&BackupId>> = BTreeMap::new();
    for point in all {
        for parent in point.parents() {
            children.entry(parent).or_default().insert(&point.backup_id);
        }
    }
    let (mut going, mut open): (BTreeSet<&BackupId>, Vec<&BackupId>) = (BTreeSet::new(), named.iter().collect());
    while let Some(id) = open.pop() {
        if going.insert(id) {
            open.extend(children.get(id).into_iter().flatten());
        }
    }
    // Parents come before children in a listing; the other way round, each point goes before what it stands on.
    let order: Vec<&Manifest> = all.iter().filter(|point| going.contains(&point.backup_id)).collect();
    let dependents: Vec<BackupId> =
        order.iter().map(|point| point.backup_id.clone()).filter(|id| !named.contains(id)).collect();
    if extent == Extent::Named && !dependents.is_empty() {
        let names: Vec<&str> = dependents.iter().map(BackupId::as_str).collect();
        let context = format!("later points stand on what shall be deleted: {}", names.join(", "));
        return Err(Error::new(Kind::HasDependents { ids: dependents }, context));
    }
    let points = order.iter().rev().map(|point| PlannedPoint {
        backup_id: point.backup_id.clone(),
        disks: point.disks.iter().map(|disk| disk.disk_id).collect(),
        bytes: point.file_bytes(),
    });
    Ok(DeletePlan { vm_context_id: vm.clone(), points: points.collect() })
}
