//! Between rows and restore points.

use super::{Backup, BackupDisk, Verification};
use crate::error::{Conflict, Error, Result};
use crate::{entity, task, value};
use sendense_types::{BackupId, BackupStatus, DiskNumber, RepositoryId, TrackingAudit, TrackingToken, VmContextId};
use std::collections::BTreeMap;

/// The longest note that is kept, in bytes: a few sentences with names in them.
const NOTE_BYTES_MAX: usize = 4000;

/// A row with its disks as a value.
pub(super) fn read(row: entity::backups::Model, disks: Vec<entity::backup_disks::Model>) -> Result<Backup> {
    let tags: BTreeMap<String, String> = serde_json::from_value(row.tags)
        .map_err(|error| Error::Unreadable { column: "tags", reason: error.to_string() })?;
    Ok(Backup {
        backup_id: value::read("backup_id", &row.backup_id)?,
        vm_context_id: value::read("vm_context_id", &row.vm_context_id)?,
        vm_name: value::read("vm_name", &row.vm_name)?,
        repository_id: value::read("repository_id", &row.repository_id)?,
        requested_type: value::read("requested_type", &row.requested_type)?,
        backup_type: value::read("backup_type", &row.backup_type)?,
        type_reason: row.type_reason,
        policy_id: row.policy_id,
        parent_backup_id: value::read_opt("parent_backup_id", row.parent_backup_id.as_deref())?,
        status: value::read("status", &row.status)?,
        phase: value::read_opt("phase", row.phase.as_deref())?,
        bytes_done: value::read_u64("bytes_done", row.bytes_done)?,
        bytes_transferred: value::read_u64("bytes_transferred", row.bytes_transferred)?,
        bytes_stored: value::read_u64("bytes_stored", row.bytes_stored)?,
        total_bytes: value::read_u64("total_bytes", row.total_bytes)?,
        consistency: value::read_opt("consistency", row.consistency.as_deref())?,
        consistency_note: row.consistency_note,
        error_code: task::problem_code(row.error_code.as_deref())?,
        error_message: row.error_message,
        tags,
        partial: row.partial,
        quiesce: row.quiesce,
        compression: value::read("compression", &row.compression)?,
        on_tracking_loss: value::read("on_tracking_loss", &row.on_tracking_loss)?,
        created_by: row.created_by,
        task_id: value::read_opt("task_id", row.task_id.as_deref())?,
        created_at: row.created_at.into(),
        started_at: row.started_at.map(Into::into),
        completed_at: row.completed_at.map(Into::into),
        protected: row.protected,
        hold_until: row.hold_until.map(Into::into),
        verification: match (&row.verify_state, row.verified_at.or(row.unproved_since).unwrap_or(row.created_at)) {
            (Some(state), at) => Some(Verification {
                state: value::read("verify_state", state)?,
                depth: value::read_opt("verify_depth", row.verify_depth.as_deref())?,
                at: at.into(),
                bytes: value::read_u64("verify_bytes", row.verify_bytes.unwrap_or_default())?,
                took_ms: value::read_u64("verify_ms", row.verify_ms.unwrap_or_default())?,
                open_ms: row.verify_open_ms.map(|ms| value::read_u64("verify_open_ms", ms)).transpose()?,
                finding: row.verify_finding,
            }),
            (None, _) => None,
        },
        disks: disks.into_iter().map(read_disk).collect::<Result<_>>()?,
    })
}

fn read_disk(row: entity::backup_disks::Model) -> Result<BackupDisk> {
    let tracking_audit = match row.audit_blocks_checked {
        None => None,
        Some(checked) => Some(TrackingAudit {
            blocks_checked: value::read_u64("audit_blocks_checked", checked)?,
            blocks_different: value::read_u64(
                "audit_blocks_different",
                row.audit_blocks_different.unwrap_or_default(),
            )?,
        }),
    };
    Ok(BackupDisk {
        tracking_audit,
        disk_id: DiskNumber(value::read_u32("disk_id", row.disk_id)?),
        disk_key: row.disk_key,
        label: row.label,
        backup_type: value::read("backup_type", &row.backup_type)?,
        type_reason: row.type_reason,
        file_path: row.file_path,
        capacity_bytes: value::read_u64("capacity_bytes", row.capacity_bytes)?,
        bytes_transferred: value::read_u64("bytes_transferred", row.bytes_transferred)?,
        bytes_stored: value::read_u64("bytes_stored", row.bytes_stored)?,
        backing_file: row.backing_file,
        change_id: row.change_id.map(TrackingToken),
        status: value::read("status", &row.status)?,
        parent_backup_id: value::read_opt("parent_backup_id", row.parent_backup_id.as_deref())?,
    })
}

/// A value as a row, without its disks.
pub(super) fn store(backup: &Backup) -> Result<entity::backups::Model> {
    let active = (!backup.status.is_final()).then(|| backup.vm_context_id.as_str().to_owned());
    if let Some(policy_id) = &backup.policy_id {
        value::fits("policy_id", policy_id, 64)?;
    }
    let verification = match &backup.verification {
        Some(verification) => super::verify::columns(verification)?,
        None => super::verify::Columns::default(),
    };
    let tags = serde_json::to_value(&backup.tags)
        .map_err(|error| Error::Invalid { field: "tags", reason: error.to_string() })?;
    Ok(entity::backups::Model {
        backup_id: backup.backup_id.as_str().to_owned(),
        vm_context_id: backup.vm_context_id.as_str().to_owned(),
        active_vm_context_id: active,
        vm_name: backup.vm_name.as_str().to_owned(),
        repository_id: backup.repository_id.as_str().to_owned(),
        requested_type: backup.requested_type.as_str().to_owned(),
        backup_type: backup.backup_type.as_str().to_owned(),
        type_reason: backup.type_reason.clone(),
        policy_id: backup.policy_id.clone(),
        parent_backup_id: backup.parent_backup_id.as_ref().map(|id| id.as_str().to_owned()),
        status: backup.status.as_str().to_owned(),
        phase: backup.phase.map(|phase| phase.as_str().to_owned()),
        bytes_done: value::store_u64("bytes_done", backup.bytes_done)?,
        bytes_transferred: value::store_u64("bytes_transferred", backup.bytes_transferred)?,
        bytes_stored: value::store_u64("bytes_stored", backup.bytes_stored)?,
        total_bytes: value::store_u64("total_bytes", backup.total_bytes)?,
        consistency: backup.consistency.map(|word| word.as_str().to_owned()),
        error_code: backup.error_code.map(|code| code.as_str().to_owned()),
        error_message: backup.error_message.clone(),
        tags,
        partial: backup.partial,
        quiesce: backup.quiesce,
        compression: backup.compression.as_str().to_owned(),
        on_tracking_loss: backup.on_tracking_loss.as_str().to_owned(),
        created_by: backup.created_by.as_deref().map(|by| value::trim_text(by, 255)),
        task_id: backup.task_id.as_ref().map(|id| id.as_str().to_owned()),
        created_at: backup.created_at.into(),
        started_at: backup.started_at.map(Into::into),
        completed_at: backup.completed_at.map(Into::into),
        protected: backup.protected,
        hold_until: backup.hold_until.map(Into::into),
        consistency_note: backup.consistency_note.as_deref().map(note),
        verify_state: verification.state,
        verify_depth: verification.depth,
        verified_at: verification.at,
        verify_bytes: verification.bytes,
        verify_ms: verification.took_ms,
        verify_finding: verification.finding,
        deep_verified_at: verification.deep_at,
        generation: 0,
        verify_open_ms: verification.open_ms,
        unproved_since: match backup.status {
            BackupStatus::Completed => Some(backup.completed_at.unwrap_or(backup.created_at).into()),
            _ => None,
        },
    })
}

/// A note as it is kept: the manifest has all of it.
pub(super) fn note(text: &str) -> String {
    value::trim_text(text, NOTE_BYTES_MAX)
}

/// A disk as a row.
pub(super) fn store_disk(
    backup_id: &BackupId,
    vm_context_id: &VmContextId,
    repository_id: &RepositoryId,
    disk: &BackupDisk,
) -> Result<entity::backup_disks::Model> {
    Ok(entity::backup_disks::Model {
        backup_id: backup_id.as_str().to_owned(),
        disk_id: value::store_u32("disk_id", disk.disk_id.0)?,
        vm_context_id: vm_context_id.as_str().to_owned(),
        repository_id: repository_id.as_str().to_owned(),
        disk_key: disk.disk_key.clone(),
        label: disk.label.clone(),
        backup_type: disk.backup_type.as_str().to_owned(),
        type_reason: disk.type_reason.clone(),
        file_path: disk.file_path.clone(),
        capacity_bytes: value::store_u64("capacity_bytes", disk.capacity_bytes)?,
        bytes_transferred: value::store_u64("bytes_transferred", disk.bytes_transferred)?,
        bytes_stored: value::store_u64("bytes_stored", disk.bytes_stored)?,
        backing_file: disk.backing_file.clone(),
        change_id: disk.change_id.as_ref().map(|token| token.0.clone()),
        status: disk.status.as_str().to_owned(),
        parent_backup_id: disk.parent_backup_id.as_ref().map(|id| id.as_str().to_owned()),
        audit_blocks_checked: audited(disk, |audit| audit.blocks_checked)?,
        audit_blocks_different: audited(disk, |audit| audit.blocks_different)?,
    })
}

fn audited(disk: &BackupDisk, figure: impl Fn(TrackingAudit) -> u64) -> Result<Option<i64>> {
    disk.tracking_audit.map(|audit| value::store_u64("tracking_audit", figure(audit))).transpose()
}

/// The conflict of a VM that has this backup, which is not final.
pub(crate) fn active_conflict(row: &entity::backups::Model) -> Result<Conflict> {
    Ok(Conflict::BackupActive {
        vm_context_id: value::read("vm_context_id", &row.vm_context_id)?,
        backup_id: value::read("backup_id", &row.backup_id)?,
        task_id: value::read_opt("task_id", row.task_id.as_deref())?,
    })
}
