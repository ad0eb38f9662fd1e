//! Restore points: what they are. Their life, lists, chains, adoption and deletion have a file each.
//!
//! What lives here: the values. What does not: files; a point's file names are text here. Invariant: a VM has at most one
//! backup that is pending or running, which a unique column guards in the database itself.

mod adopt;
mod chain;
mod delete;
mod failures;
mod hold;
mod life;
mod list;
mod made;
mod merge;
mod moved;
mod row;
mod unproved;
mod verify;

pub use chain::{Chain, TokenInUse};
pub use life::{BackupPlan, Completed, DiskProgress, NewBackup, Progress};
pub(crate) use life::{begin_all_in, lock_vm};
pub use list::BackupFilter;
pub use made::MadePoints;
pub(crate) use row::active_conflict;
pub use unproved::{Due, MadeBy, Oldest, Unproved};
pub use verify::{Lost, Verification, Verified};

use crate::Catalog;
use sendense_types::{
    BackupId, BackupStatus, BackupType, Compression, Consistency, DiskNumber, Name, OnTrackingLoss, Phase, ProblemCode,
    RepositoryId, TaskId, Timestamp, TrackingAudit, TrackingToken, VmContextId,
};
use std::collections::BTreeMap;

/// A restore point, or the attempt to make one.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// Who.
    pub backup_id: BackupId,
    /// Of which machine.
    pub vm_context_id: VmContextId,
    /// The machine's name then.
    pub vm_name: Name,
    /// Where it lies.
    pub repository_id: RepositoryId,
    /// What was asked for.
    pub requested_type: BackupType,
    /// What was made: full when any disk's part is.
    pub backup_type: BackupType,
    /// Why it is not what was asked for, or why everything was read.
    pub type_reason: Option<String>,
    /// The policy that asked.
    pub policy_id: Option<String>,
    /// The point it builds on.
    pub parent_backup_id: Option<BackupId>,
    /// Where it stands.
    pub status: BackupStatus,
    /// What it does; `None` before the start and after the end.
    pub phase: Option<Phase>,
    /// Bytes looked at, of `total_bytes`.
    pub bytes_done: u64,
    /// Bytes that travelled.
    pub bytes_transferred: u64,
    /// Bytes that lie in the repository.
    pub bytes_stored: u64,
    /// Bytes to look at; 0 when not known yet.
    pub total_bytes: u64,
    /// What the guest was told; `None` before the freeze.
    pub consistency: Option<Consistency>,
    /// What must be known of it: why that is less than was asked for, what of the machine could not be read.
    pub consistency_note: Option<String>,
    /// Why it failed.
    pub error_code: Option<ProblemCode>,
    /// Why it failed, for people.
    pub error_message: Option<String>,
    /// A person's words.
    pub tags: BTreeMap<String, String>,
    /// True when disks of the machine were left out.
    pub partial: bool,
    /// Whether the guest was to be quiesced.
    pub quiesce: bool,
    /// How hard it was compressed.
    pub compression: Compression,
    /// What was to be done without tracking.
    pub on_tracking_loss: OnTrackingLoss,
    /// Who asked.
    pub created_by: Option<String>,
    /// The task that makes or made it; `None` for a point that was adopted.
    pub task_id: Option<TaskId>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When work began.
    pub started_at: Option<Timestamp>,
    /// When it ended, one way or the other.
    pub completed_at: Option<Timestamp>,
    /// A person said that it stays. A copy of what its repository says.
    pub protected: bool,
    /// It stays until then. A copy of what its repository says.
    pub hold_until: Option<Timestamp>,
    /// What verifications say of it; `None` where none was made.
    pub verification: Option<Verification>,
    /// Its disks by number; empty until they are planned.
    pub disks: Vec<BackupDisk>,
}

/// One disk of a restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupDisk {
    /// Its number.
    pub disk_id: DiskNumber,
    /// The hypervisor's key.
    pub disk_key: String,
    /// The hypervisor's label.
    pub label: String,
    /// What was made.
    pub backup_type: BackupType,
    /// Why it is not what was asked for, or why everything was read.
    pub type_reason: Option<String>,
    /// The image, relative to the repository.
    pub file_path: Option<String>,
    /// The disk's size then.
    pub capacity_bytes: u64,
    /// Bytes that travelled.
    pub bytes_transferred: u64,
    /// Bytes that lie in the repository.
    pub bytes_stored: u64,
    /// The name by which the image calls its parent.
    pub backing_file: Option<String>,
    /// The tracking token, as the manifest has it.
    pub change_id: Option<TrackingToken>,
    /// What the audit of its change tracking found, where one was made.
    pub tracking_audit: Option<TrackingAudit>,
    /// Where this disk stands.
    pub status: BackupStatus,
    /// The point whose image of this disk it builds on.
    pub parent_backup_id: Option<BackupId>,
}

/// Restore points and chains.
#[derive(Debug, Clone, Copy)]
pub struct Backups<'a>(pub(crate) &'a Catalog);
