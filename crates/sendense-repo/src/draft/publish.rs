//! Publication: the one order of steps that makes a point exist.
//!
//! 1. the owner record is checked, and kept from changing hands until the end;
//! 2. the manifest and the intent are written into the draft's folder; file, then folder synced;
//! 3. folders of new disks are made, the VM's folder synced;
//! 4. every file is moved to its final name, replacing nothing; all folders synced;
//! 5. the manifest is moved to its final name; **the point exists**;
//! 6. the VM's folder is synced: now it exists for ever; the draft's folder is removed.
//!
//! A process that dies before 5 leaves a draft that start-up undoes by the intent; one that dies after 5 leaves a point and
//! an empty draft's folder.

use super::disk::SealedDisk;
use super::intent::{Intent, files};
use super::{Core, undo};
use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{self, Disk, Document, Manifest, Vm};
use sendense_types::{BackupType, Consistency, DiskNumber, Timestamp, TrackingAudit, TrackingToken};
use std::collections::BTreeMap;

/// What the manifest says beyond what the draft knows.
#[derive(Debug, Clone)]
pub struct PointFacts {
    /// The VM as its hypervisor knows it.
    pub vm: Vm,
    /// When the source was frozen.
    pub created_at: Timestamp,
    /// What the guest was told before.
    pub consistency: Consistency,
    /// True when disks were left out.
    pub partial: bool,
    /// What was asked for.
    pub requested_type: BackupType,
    /// The policy that asked.
    pub policy_id: Option<String>,
    /// The user's words.
    pub tags: BTreeMap<String, String>,
    /// The VM's configuration.
    pub documents: Vec<Document>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// For each disk of the draft.
    pub disks: BTreeMap<DiskNumber, DiskFacts>,
}

/// What the manifest says of a disk beyond what the draft knows.
#[derive(Debug, Clone, Default)]
pub struct DiskFacts {
    /// The hypervisor's key.
    pub disk_key: String,
    /// What a person calls it.
    pub label: String,
    /// Why a full, or a full read, was made although an incremental was asked.
    pub type_reason: Option<String>,
    /// The hypervisor's word for "changed since this point".
    pub token: Option<TrackingToken>,
    /// What the audit of its change tracking found, where one was made.
    pub tracking_audit: Option<TrackingAudit>,
    /// Bytes read from the source for it.
    pub bytes_transferred: u64,
}

/// How far a failed publication came.
enum Failed {
    /// Nobody can see the point.
    Before(Error),
    /// The manifest has its final name; whether that is durable is not known.
    After(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

pub(super) fn publish(core: &Core, disks: &[SealedDisk], facts: PointFacts, now: Timestamp) -> Result<Manifest> {
    match steps(core, disks, facts, now) {
        Ok(manifest) => {
            settle(core, disks);
            if let Err(error) = undo::clear_published(&core.repository, &core.vm, &core.backup_id) {
                let error = sendense_block::error::chain(&error);
                tracing::warn!(backup_id = %core.backup_id, error, "a draft's folder stays until the next start");
            }
            tracing::info!(backup_id = %core.backup_id, vm_context_id = %core.vm, "published");
            Ok(manifest)
        }
        Err(Failed::Before(error)) => {
            let error = error.within(format!("publish {}", core.backup_id));
            // A fenced hub touches nothing: the files are the next owner's to undo.
            if error.kind != Kind::Fenced {
                core.abandon_after(&error);
            }
            Err(error)
        }
        Err(Failed::After(error)) => {
            settle(core, disks);
            let context = format!("publish {}: the next start decides whether it exists", core.backup_id);
            Err(error.within(context))
        }
    }
}

/// The files are the point's from now on: their room is held by it, no longer by the draft's reservation.
fn settle(core: &Core, disks: &[SealedDisk]) {
    let bytes = disks.iter().map(|disk| disk.image.file_bytes.saturating_add(disk.digests.file_bytes));
    let bytes = bytes.fold(0, u64::saturating_add);
    core.repository.capacity().settle(i64::try_from(bytes).unwrap_or(i64::MAX));
}

fn steps(core: &Core, disks: &[SealedDisk], facts: PointFacts, now: Timestamp) -> Result<Manifest, Failed> {
    let (repository, fs, dir) = (&core.repository, core.repository.fs(), core.dir());
    // Of all that follows nothing can happen in a repository that is another's by now.
    let _turn = repository.ownership()?.turn(now)?;
    let manifest = compose(core, disks, facts)?;
    let text = manifest::write(&manifest)?;
    core.reservation.spend(text.len() as u64)?;

    let vm_dir = repository.at(layout::vm_dir(&core.vm));
    let intent =
        Intent { backup_id: core.backup_id.clone(), disks: manifest.disks.iter().map(|d| d.disk_id).collect() };
    let moves: Vec<_> = intent
        .disks
        .iter()
        .flat_map(|disk| files(&core.backup_id, *disk))
        .map(|(to, from)| (dir.join(from), vm_dir.join(to)))
        .collect();
    let manifest_from = dir.join(layout::MANIFEST_IN_FOLDER);
    let manifest_to = repository.at(layout::manifest(&core.vm, &core.backup_id));
    // Looked at before the intent exists: undoing takes back every name in it.
    for to in moves.iter().map(|(_, to)| to).chain([&manifest_to]) {
        if to.symlink_metadata().is_ok() {
            return Err(Error::new(Kind::Exists, format!("{} is there already", to.display())).into());
        }
    }
    crashsafe::write_new(fs, &manifest_from, &text)?;
    crashsafe::write_new(fs, &dir.join(layout::INTENT_FILE), &intent.to_bytes())?;
    crashsafe::sync_dir(fs, &dir)?;

    let disk_dirs: Vec<_> = intent.disks.iter().map(|disk| repository.at(layout::disk_dir(&core.vm, *disk))).collect();
    for disk_dir in &disk_dirs {
        crashsafe::ensure_dir(fs, disk_dir)?;
    }
    for (from, to) in &moves {
        crashsafe::rename_new(fs, from, to)?;
    }
    for disk_dir in &disk_dirs {
        crashsafe::sync_dir(fs, disk_dir)?;
    }
    crashsafe::sync_dir(fs, &dir)?;

    crashsafe::rename_new(fs, &manifest_from, &manifest_to)?;
    crashsafe::sync_dir(fs, &vm_dir).map_err(Failed::After)?;
    Ok(manifest)
}

fn compose(core: &Core, disks: &[SealedDisk], mut facts: PointFacts) -> Result<Manifest> {
    let type_of = |grown: bool| if grown { BackupType::Incremental } else { BackupType::Full };
    let mut records = Vec::with_capacity(disks.len());
    for disk in disks {
        let number = disk.spec.number;
        let told = facts.disks.remove(&number);
        let told = told.ok_or_else(|| Error::invalid(format!("nothing is told of disk {number}")))?;
        records.push(Disk {
            disk_id: number,
            disk_key: told.disk_key,
            label: told.label,
            binding: disk.spec.binding.clone(),
            capacity_bytes: disk.spec.capacity.0,
            backup_type: type_of(disk.spec.parent.is_some()),
            type_reason: told.type_reason,
            parent_backup_id: disk.spec.parent.clone(),
            token: told.token,
            tracking_audit: told.tracking_audit,
            bytes_transferred: told.bytes_transferred,
            image: disk.image.clone(),
            digests: disk.digests.clone(),
        });
    }
    if let Some(number) = facts.disks.keys().next() {
        return Err(Error::invalid(format!("disk {number} is not in the draft")));
    }
    Ok(Manifest {
        backup_id: core.backup_id.clone(),
        vm_context_id: core.vm.clone(),
        vm: facts.vm,
        created_at: facts.created_at,
        deployment_id: core.repository.ownership()?.claim().deployment_id.clone(),
        consistency: facts.consistency,
        partial: facts.partial,
        backup_type: type_of(records.iter().any(|disk| disk.parent_backup_id.is_some())),
        requested_type: facts.requested_type,
        policy_id: facts.policy_id,
        tags: facts.tags,
        documents: facts.documents,
        notes: facts.notes,
        disks: records,
    })
}
