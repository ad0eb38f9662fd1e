//! From rows to the words on the wire. Pure: rows go in, DTOs come out.

use super::vms::Facts;
use crate::jobs::report::View;
use crate::jobs::work::Work;
use sendense_api as dto;
use sendense_api::TaskError;
use sendense_types::{BackupStatus, Compression, Phase, ProblemCode, TaskState, TrackingAudit};

/// A backup; `live` is the last report of its task while it runs in this hub.
pub(crate) fn backup(row: sendense_catalog::Backup, live: Option<View>) -> dto::Backup {
    let capacity: u64 = row.disks.iter().map(|disk| disk.capacity_bytes).sum();
    let view = live.unwrap_or(View {
        phase: row.phase,
        bytes_done: row.bytes_done,
        bytes_total: row.total_bytes,
        bytes_transferred: row.bytes_transferred,
        bytes_stored: row.bytes_stored,
        speed_bps: 0,
        eta_seconds: None,
    });
    let progress_percent = match row.status {
        BackupStatus::Completed => 100.0,
        // The last byte is read, but the point is not there yet: 100 would promise too much.
        BackupStatus::Running if view.phase == Some(Phase::Finalizing) => 99.9,
        _ => view.percent().min(99.9),
    };
    let running = row.status == BackupStatus::Running;
    let mut audit = None;
    for disk in row.disks.iter().filter_map(|disk| disk.tracking_audit) {
        *audit.get_or_insert_with(TrackingAudit::default) += disk;
    }
    let single = if let [disk] = row.disks.as_slice() { Some(disk) } else { None };
    dto::Backup {
        disk_id: single.map(|disk| disk.disk_id),
        file_path: single.and_then(|disk| disk.file_path.clone()),
        change_id: single.and_then(|disk| disk.change_id.as_ref().map(|token| token.0.clone())),
        backup_id: row.backup_id,
        task_id: row.task_id,
        vm_context_id: row.vm_context_id,
        vm_name: row.vm_name.into(),
        backup_type: row.backup_type,
        requested_type: row.requested_type,
        type_reason: row.type_reason,
        repository_id: row.repository_id,
        policy_id: row.policy_id,
        parent_backup_id: row.parent_backup_id,
        status: row.status,
        phase: view.phase.filter(|_| running),
        bytes_transferred: view.bytes_transferred,
        bytes_stored: view.bytes_stored,
        total_bytes: if capacity > 0 { capacity } else { row.total_bytes },
        bytes_read: running.then_some(view.bytes_done),
        bytes_to_read: Some(view.bytes_total).filter(|total| running && *total > 0),
        progress_percent,
        transfer_speed_bps: if running { view.speed_bps } else { 0 },
        eta_seconds: view.eta_seconds.filter(|_| running),
        cbt_audit: audit.map(cbt_audit),
        consistency: row.consistency,
        consistency_note: row.consistency_note,
        partial: row.partial,
        excluded_disks: Vec::new(),
        error_code: row.error_code,
        error_message: row.error_message,
        verify_state: row.verification.as_ref().map(|found| found.state),
        verify_depth: row.verification.as_ref().and_then(|found| found.depth),
        verified_at: row.verification.as_ref().filter(|found| found.depth.is_some()).map(|found| found.at),
        verify_speed_bps: row.verification.as_ref().and_then(|found| speed_bps(found.bytes, found.took_ms)),
        verify_open_ms: row.verification.as_ref().and_then(|found| found.open_ms),
        verify_finding: row.verification.and_then(|found| found.finding),
        tags: row.tags,
        protected: row.protected,
        hold_until: row.hold_until,
        created_at: row.created_at,
        started_at: row.started_at,
        completed_at: row.completed_at,
        disks: row.disks.into_iter().map(backup_disk).collect(),
    }
}

/// Bytes per second; none where nothing was read.
pub(super) fn speed_bps(bytes: u64, took_ms: u64) -> Option<u64> {
    (bytes > 0).then(|| u64::try_from(u128::from(bytes) * 1000 / u128::from(took_ms.max(1))).unwrap_or(u64::MAX))
}

fn backup_disk(disk: sendense_catalog::BackupDisk) -> dto::BackupDisk {
    dto::BackupDisk {
        disk_id: disk.disk_id,
        disk_key: disk.disk_key,
        label: disk.label,
        backup_type: disk.backup_type,
        type_reason: disk.type_reason,
        file_path: disk.file_path,
        capacity_bytes: disk.capacity_bytes,
        bytes_transferred: disk.bytes_transferred,
        bytes_stored: disk.bytes_stored,
        backing_file: disk.backing_file,
        change_id: disk.change_id.map(|token| token.0),
        cbt_audit: disk.tracking_audit.map(cbt_audit),
        status: disk.status,
    }
}

fn cbt_audit(found: TrackingAudit) -> dto::CbtAudit {
    dto::CbtAudit { blocks_checked: found.blocks_checked, blocks_different: found.blocks_different }
}

/// A task; `live` is its last report while it runs in this hub.
pub(crate) fn task(row: sendense_catalog::Task, live: Option<View>) -> dto::Task {
    let view = live.unwrap_or_else(|| View::read(row.progress.as_ref()));
    let work = Work::read(&row.request).ok();
    let about = work.as_ref().map(Work::about).unwrap_or_default();
    let running = row.state == TaskState::Running;
    let summary = row.result.as_ref().and_then(|result| result.get("summary")).and_then(|text| text.as_str());
    dto::Task {
        log_url: dto::Task::log_url(&row.task_id),
        kind: row.kind,
        state: row.state,
        backup_id: about.backup_id.cloned(),
        vm_context_id: about.vm.map(|(id, _)| id.clone()),
        vm_name: about.vm.map(|(_, name)| name.to_owned()),
        repository_id: about.repository_id.cloned(),
        source_id: about.source_id.cloned(),
        requested_by: row.created_by,
        phase: view.phase.filter(|_| running).map(|phase| phase.as_str().to_owned()),
        progress_percent: if row.state == TaskState::Completed { 100.0 } else { view.percent().min(99.9) },
        bytes_done: view.bytes_done.max(row.bytes_done),
        bytes_total: Some(view.bytes_total.max(row.bytes_total)).filter(|total| *total > 0),
        transfer_speed_bps: if running { view.speed_bps } else { 0 },
        eta_seconds: if running { view.eta_seconds } else { None },
        summary: summary.map(str::to_owned),
        error: row.error_code.or(row.error_message.as_ref().map(|_| ProblemCode::Internal)).map(|code| TaskError {
            code,
            message: row.error_message.unwrap_or_default(),
            details: String::new(),
        }),
        cancel_requested: row.cancel_requested,
        created_at: row.created_at,
        started_at: row.started_at,
        completed_at: row.finished_at,
        task_id: row.task_id,
    }
}

/// A line of a task's log.
pub(crate) fn log_entry(line: sendense_catalog::LogLine) -> dto::LogEntry {
    use sendense_catalog::LogLevel;
    // Fields are written behind the sentence: the wire has one text.
    let fields = line.fields.as_object().filter(|fields| !fields.is_empty());
    let fields = fields.map(|fields| {
        let pairs = fields.iter().map(|(key, value)| match value.as_str() {
            Some(text) => format!("{key}={text}"),
            None => format!("{key}={value}"),
        });
        pairs.collect::<Vec<_>>().join(" ")
    });
    dto::LogEntry {
        sequence: line.seq.saturating_add(1),
        at: line.at,
        level: match line.level {
            LogLevel::Info => dto::LogLevel::Info,
            LogLevel::Warning => dto::LogLevel::Warn,
            LogLevel::Error => dto::LogLevel::Error,
        },
        message: fields.map_or(line.message.clone(), |fields| format!("{} ({fields})", line.message)),
    }
}

/// A machine with its newest backup, if it has one.
pub(crate) fn vm(row: sendense_catalog::VmContext, newest: &super::vms::Newest) -> dto::Vm {
    let facts = Facts::read(&row.facts);
    let disks = row.disks.into_iter().map(|disk| {
        let unsupported = facts.unsupported_disks.get(&disk.disk_key).cloned();
        let attached = facts.attached.get(&disk.disk_key).cloned().unwrap_or_default();
        dto::VmDisk {
            disk_id: disk.disk_id,
            label: disk.label,
            capacity_bytes: disk.capacity_bytes,
            size_gb: disk.capacity_bytes as f64 / (1_u64 << 30) as f64,
            datastore: disk.datastore,
            path: attached.path,
            mode: attached.mode,
            job_id: disk.job_id,
            format: disk.format,
            unsupported: unsupported.filter(|_| disk.present),
            removed: !disk.present,
            disk_key: disk.disk_key,
        }
    });
    dto::Vm {
        vm_context_id: row.vm_context_id,
        vm_name: row.vm_name.into(),
        missing: row.vanished_at.is_some() || row.source_id.is_none(),
        source_id: row.source_id,
        instance_uuid: row.instance_uuid,
        path: row.path,
        folder: row.folder,
        tags: row.tags,
        power_state: row.power_state,
        guest_os: facts.guest_os,
        cpu_count: facts.cpu_count,
        memory_bytes: facts.memory_bytes,
        disks: disks.collect(),
        networks: facts
            .networks
            .into_iter()
            .map(|card| dto::VmNetwork { key: card.key, network: card.network, mac: card.mac, model: card.model })
            .collect(),
        last_backup: newest.attempt.as_ref().map(|backup| dto::LastBackup {
            backup_id: backup.backup_id.clone(),
            backup_type: backup.backup_type,
            status: backup.status,
            created_at: backup.created_at,
            completed_at: backup.completed_at,
        }),
        last_proved: None,
        proof_overdue_since: None,
        protection_state: newest.protection(),
        policies: Vec::new(),
        unscheduled: false,
        overdue_since: None,
        change_tracking: facts.change_tracking,
        no_change_tracking: facts.no_change_tracking,
        hardware: facts.hardware,
        snapshots: facts.snapshots,
        unsupported: facts.unsupported,
        discovered_at: row.last_seen_at,
    }
}

/// The level of the codec for a word of the API.
pub(crate) fn level(compression: Compression) -> sendense_block::codec::Level {
    use sendense_block::codec::Level;
    match compression {
        Compression::Off => Level::Off,
        Compression::Fast => Level::Fast,
        Compression::Default => Level::Default,
        Compression::High => Level::High,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows;
    use sendense_types::{BackupType, Timestamp};

    const CAPACITY: u64 = 8 << 30;

    fn row(status: BackupStatus) -> sendense_catalog::Backup {
        let at = Timestamp::from_micros(0);
        sendense_catalog::Backup {
            phase: Some(Phase::Transferring),
            bytes_done: 1 << 30,
            bytes_transferred: 1 << 20,
            bytes_stored: 1 << 19,
            total_bytes: 4 << 30,
            started_at: Some(at),
            disks: vec![sendense_catalog::BackupDisk {
                disk_id: sendense_types::DiskNumber(0),
                disk_key: "disk-0".to_owned(),
                label: "disk".to_owned(),
                backup_type: BackupType::Incremental,
                type_reason: None,
                file_path: None,
                capacity_bytes: CAPACITY,
                bytes_transferred: 1 << 20,
                bytes_stored: 1 << 19,
                backing_file: None,
                change_id: None,
                tracking_audit: None,
                status,
                parent_backup_id: None,
            }],
            ..rows::backup(status, at)
        }
    }

    /// An incremental that compares: it reads 4 GiB of a disk of 8 and sends one MiB. Its figures agree with each other as
    /// the API describes them, and what is known only while it runs is not told afterwards.
    #[test]
    fn the_figures_of_a_backup_agree() {
        let live = View {
            phase: Some(Phase::Transferring),
            bytes_done: 1 << 30,
            bytes_total: 4 << 30,
            bytes_transferred: 1 << 20,
            bytes_stored: 1 << 19,
            speed_bps: 1 << 29,
            eta_seconds: Some(6),
        };
        // From the task's report, and from the row alone, as after the hub was restarted.
        for view in [Some(live), None] {
            let told = backup(row(BackupStatus::Running), view);
            assert_eq!(told.total_bytes, CAPACITY, "what the guest sees");
            assert_eq!((told.bytes_read, told.bytes_to_read), (Some(1 << 30), Some(4 << 30)));
            assert_eq!(told.progress_percent, 25.0, "of what is to be read, not of what is sent or of the disk");
            assert_eq!((told.bytes_transferred, told.bytes_stored), (1 << 20, 1 << 19));
        }
        let told = backup(row(BackupStatus::Running), Some(live));
        let left = told.bytes_to_read.unwrap() - told.bytes_read.unwrap();
        assert_eq!(told.eta_seconds, Some(left / told.transfer_speed_bps));
        let finalizing = View { phase: Some(Phase::Finalizing), bytes_done: 4 << 30, ..live };
        assert_eq!(backup(row(BackupStatus::Running), Some(finalizing)).progress_percent, 99.9);
        for status in [BackupStatus::Completed, BackupStatus::Failed, BackupStatus::Cancelled] {
            let told = backup(row(status), None);
            assert_eq!((told.bytes_read, told.bytes_to_read, told.eta_seconds), (None, None, None));
            assert_eq!((told.total_bytes, told.transfer_speed_bps, told.phase), (CAPACITY, 0, None));
            assert_eq!(told.progress_percent == 100.0, status == BackupStatus::Completed);
        }
    }
}
