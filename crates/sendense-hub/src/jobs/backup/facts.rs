//! What the manifest and the catalog are told of a point. Pure.

use super::Prepared;
use crate::app::create::is_any;
use crate::app::vms::Facts;
use sendense_catalog::{BackupDisk, Completed};
use sendense_node::mover::{DiskStart, Outcome};
use sendense_repo::manifest::{Content, Document, Manifest, Vm};
use sendense_repo::{DiskFacts, PointFacts, layout};
use sendense_source::ConfigDocument;
use sendense_types::{BackupId, BackupStatus, DiskNumber, Timestamp};

/// What the manifest says beyond what the draft knows.
pub(super) fn of_point(prepared: &Prepared, outcome: &Outcome, frozen_at: Timestamp) -> PointFacts {
    let (work, facts) = (&prepared.work, &outcome.facts);
    let (documents, mut notes) = documents(&facts.config);
    notes.extend(facts.consistency_note.clone());
    notes.extend(left_out(prepared));
    let disks = outcome.disks.iter().zip(&facts.disks).map(|(moved, frozen)| {
        let disk = DiskFacts {
            disk_key: frozen.key.clone(),
            label: frozen.label.clone(),
            type_reason: moved.type_reason.clone(),
            token: frozen.token.clone(),
            tracking_audit: moved.audit,
            bytes_transferred: moved.summary.stored.0,
        };
        (moved.number, disk)
    });
    PointFacts {
        vm: Vm {
            name: prepared.vm.vm_name.clone(),
            kind: prepared.vm.kind,
            instance_uuid: Some(prepared.vm.instance_uuid.clone()),
            source: prepared.address.clone(),
        },
        created_at: frozen_at,
        consistency: facts.consistency,
        partial: prepared.partial,
        requested_type: work.backup_type,
        policy_id: work.policy_id.clone(),
        tags: work.tags.clone(),
        documents,
        notes,
        disks: disks.collect(),
    }
}

/// A line for each disk that cannot be backed up, and that nobody asked to leave out.
pub(super) fn left_out(prepared: &Prepared) -> Vec<String> {
    let (work, vm) = (&prepared.work, &prepared.vm);
    // What a recovery has written is the point's own disks; its machine is not asked.
    if work.recovery_id.is_some() || work.disk_id.is_some() {
        return Vec::new();
    }
    let unsupported = Facts::read(&vm.facts).unsupported_disks;
    let wanted = vm.disks.iter().filter(|disk| disk.present && !is_any(disk, &work.exclude_disks));
    let told = wanted.filter_map(|disk| {
        let why = unsupported.get(&disk.disk_key)?;
        Some(format!("{} ({}) is left out: {why}", disk.disk_key, disk.label))
    });
    told.collect()
}

/// The machine's configuration, and a note for each part that could not be read.
fn documents(config: &[ConfigDocument]) -> (Vec<Document>, Vec<String>) {
    let (mut documents, mut notes) = (Vec::new(), Vec::new());
    for part in config {
        match (&part.content, &part.missing) {
            (Some(content), _) => {
                documents.push(Document { name: part.kind.clone(), content: Content::Text(content.clone()) });
            }
            (None, reason) => {
                let reason = reason.as_deref().unwrap_or("no reason was told");
                notes.push(format!("{} is missing: {reason}", part.kind));
            }
        }
    }
    (documents, notes)
}

/// A disk that is about to be copied, as the catalog keeps it.
pub(super) fn planned(start: &DiskStart<'_>) -> BackupDisk {
    BackupDisk {
        disk_id: start.number,
        disk_key: start.disk.key.clone(),
        label: start.disk.label.clone(),
        backup_type: start.backup_type,
        type_reason: start.type_reason.map(str::to_owned),
        file_path: None,
        capacity_bytes: start.disk.capacity.0,
        bytes_transferred: 0,
        bytes_stored: 0,
        backing_file: start.parent.map(layout::image_name),
        change_id: None,
        tracking_audit: start.audit,
        status: BackupStatus::Running,
        parent_backup_id: start.parent.cloned(),
    }
}

/// A published point, as the catalog keeps it.
pub(crate) fn completed(manifest: &Manifest) -> Completed {
    let disks = disks(manifest);
    Completed {
        backup_type: manifest.backup_type,
        type_reason: reason_of_all(disks.iter().map(|disk| (disk.disk_id, disk.type_reason.as_deref()))),
        parent_backup_id: parent_of_all(disks.iter().map(|disk| disk.parent_backup_id.as_ref())),
        total_bytes: disks.iter().map(|disk| disk.capacity_bytes).sum(),
        bytes_transferred: disks.iter().map(|disk| disk.bytes_transferred).sum(),
        bytes_stored: disks.iter().map(|disk| disk.bytes_stored).sum(),
        consistency: Some(manifest.consistency),
        consistency_note: Some(manifest.notes.join("; ")).filter(|notes| !notes.is_empty()),
        partial: manifest.partial,
        disks,
    }
}

/// The disks of a published point.
fn disks(manifest: &Manifest) -> Vec<BackupDisk> {
    let vm = layout::vm_dir(&manifest.vm_context_id);
    let disks = manifest.disks.iter().map(|disk| BackupDisk {
        disk_id: disk.disk_id,
        disk_key: disk.disk_key.clone(),
        label: disk.label.clone(),
        backup_type: disk.backup_type,
        type_reason: disk.type_reason.clone(),
        file_path: Some(vm.join(&disk.image.file).display().to_string()),
        capacity_bytes: disk.capacity_bytes,
        bytes_transferred: disk.bytes_transferred,
        bytes_stored: disk.image.file_bytes.saturating_add(disk.digests.file_bytes),
        backing_file: disk.parent_backup_id.as_ref().map(layout::image_name),
        change_id: disk.token.clone(),
        tracking_audit: disk.tracking_audit,
        status: BackupStatus::Completed,
        parent_backup_id: disk.parent_backup_id.clone(),
    });
    disks.collect()
}

/// The reasons of a point's disks in one text; said once when they are all the same.
pub(crate) fn reason_of_all<'r>(reasons: impl Iterator<Item = (DiskNumber, Option<&'r str>)>) -> Option<String> {
    let reasons: Vec<_> = reasons.collect();
    let (_, first) = reasons.first()?;
    if reasons.iter().all(|(_, reason)| reason == first) {
        return first.map(str::to_owned);
    }
    let said = reasons.iter().filter_map(|(number, reason)| Some(format!("disk {number}: {}", (*reason)?)));
    Some(said.collect::<Vec<_>>().join("; "))
}

/// The parent of a point: that of its disks, the first one that is told when they differ.
pub(crate) fn parent_of_all<'p>(mut parents: impl Iterator<Item = Option<&'p BackupId>>) -> Option<BackupId> {
    parents.find_map(|parent| parent.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_said_once_or_by_disk() {
        let all = |reasons: &[Option<&'static str>]| {
            reason_of_all(reasons.iter().enumerate().map(|(number, reason)| (DiskNumber(number as u32), *reason)))
        };
        assert_eq!(all(&[]), None);
        assert_eq!(all(&[None, None]), None);
        assert_eq!(all(&[Some("full: x"), Some("full: x")]).as_deref(), Some("full: x"));
        assert_eq!(all(&[None, Some("a"), Some("b")]).as_deref(), Some("disk 1: a; disk 2: b"));
    }

    #[test]
    fn a_part_of_the_configuration_that_is_missing_is_noted() {
        let part = |content: Option<&str>, missing: Option<&str>| ConfigDocument {
            kind: "nvram".to_owned(),
            content: content.map(str::to_owned),
            missing: missing.map(str::to_owned),
        };
        let (documents, notes) = documents(&[part(Some("x"), None), part(None, Some("not readable"))]);
        assert_eq!(documents.len(), 1);
        assert_eq!(notes, ["nvram is missing: not readable"]);
    }
}
