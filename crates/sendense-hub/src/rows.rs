//! Rows of the catalog that tests make by hand: each test says only what it is about.

use sendense_catalog::Backup;
use sendense_types::{BackupStatus, BackupType, Compression, OnTrackingLoss, Timestamp};

/// An incremental of `web` that stands so and was asked for then; nothing else is known of it.
pub(crate) fn backup(status: BackupStatus, created_at: Timestamp) -> Backup {
    Backup {
        backup_id: "bk-1".parse().unwrap(),
        vm_context_id: "vm-1".parse().unwrap(),
        vm_name: "web".parse().unwrap(),
        repository_id: "repo-1".parse().unwrap(),
        requested_type: BackupType::Incremental,
        backup_type: BackupType::Incremental,
        type_reason: None,
        policy_id: None,
        parent_backup_id: None,
        status,
        phase: None,
        bytes_done: 0,
        bytes_transferred: 0,
        bytes_stored: 0,
        total_bytes: 0,
        consistency: None,
        consistency_note: None,
        error_code: None,
        error_message: None,
        tags: Default::default(),
        partial: false,
        quiesce: false,
        compression: Compression::Default,
        on_tracking_loss: OnTrackingLoss::Compare,
        created_by: None,
        task_id: None,
        created_at,
        started_at: None,
        completed_at: None,
        protected: false,
        hold_until: None,
        verification: None,
        disks: Vec::new(),
    }
}
