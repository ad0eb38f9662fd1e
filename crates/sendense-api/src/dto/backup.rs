//! Backups: what is asked, what is told.

use super::page::Limit;
use crate::schema;
use sendense_types::{
    BackupId, BackupStatus, BackupType, Compression, Consistency, DiskNumber, OnTrackingLoss, Phase, ProblemCode,
    RepositoryId, TaskId, Timestamp, VerifyDepth, VerifyState, VmContextId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// Asks for a backup of a VM or of one disk of it. Exactly one of `vm_name` and `vm_context_id` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, try_from = "Loose")]
pub struct CreateBackup {
    /// The VM's name; 409 with the ids when several VMs bear it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// The VM's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length = 1, max_length = 64)]
    pub vm_context_id: Option<VmContextId>,
    /// The repository's id or name.
    pub repository_id: String,
    /// An incremental with no usable parent becomes a full; `type_reason` then says why.
    #[schema(value_type = schema::BackupType)]
    pub backup_type: BackupType,
    /// Only this disk. Left out: all disks, in one snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub disk_id: Option<DiskNumber>,
    /// The policy that asks, kept with the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_id: Option<String>,
    /// Free text for people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Ask the guest to bring its file systems into order first.
    #[serde(default)]
    pub quiesce: bool,
    /// Ask it, and fail where it cannot be done rather than take a point as after a power cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiesce_or_fail: bool,
    /// Left out: as the repository says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Compression>)]
    pub compression: Option<Compression>,
    /// What to do when changes cannot be told. Left out: `compare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::OnTrackingLoss>)]
    pub on_tracking_loss: Option<OnTrackingLoss>,
    /// Seconds after its begin at which it is ended, whatever it has reached. Left out: it may take as long as it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub time_limit_seconds: Option<u32>,
    /// The most bytes that it reads from the VM in a second. Left out: as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1_048_576)]
    pub bytes_per_second_max: Option<u64>,
    /// Disks to leave out, by id, key or label. The point then says that it is partial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_disks: Vec<String>,
}

/// [`CreateBackup`] as it arrives: everything may be missing, so that what is missing can be told in the order in which a
/// person thinks of it, the VM first.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loose {
    vm_name: Option<String>,
    vm_context_id: Option<VmContextId>,
    repository_id: Option<String>,
    backup_type: Option<BackupType>,
    disk_id: Option<DiskNumber>,
    policy_id: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    quiesce: bool,
    #[serde(default)]
    quiesce_or_fail: bool,
    compression: Option<Compression>,
    on_tracking_loss: Option<OnTrackingLoss>,
    time_limit_seconds: Option<u32>,
    bytes_per_second_max: Option<u64>,
    #[serde(default)]
    exclude_disks: Vec<String>,
}

/// The longest time that may be set: a year. What takes longer is not ended by a clock.
pub const TIME_LIMIT_SECONDS_MAX: u32 = 365 * 24 * 3600;

/// The least bandwidth that a backup may be given: at less, a disk of 100 GiB keeps its snapshot for more than a day.
pub const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

impl TryFrom<Loose> for CreateBackup {
    type Error = String;
    fn try_from(loose: Loose) -> Result<Self, String> {
        if loose.vm_name.is_none() && loose.vm_context_id.is_none() {
            return Err("vm_name is required".to_owned());
        }
        if loose.time_limit_seconds.is_some_and(|limit| limit == 0 || limit > TIME_LIMIT_SECONDS_MAX) {
            return Err(format!("time_limit_seconds is 1 to {TIME_LIMIT_SECONDS_MAX}"));
        }
        if loose.bytes_per_second_max.is_some_and(|most| most < BYTES_PER_SECOND_MIN) {
            return Err(format!("bytes_per_second_max is at least {BYTES_PER_SECOND_MIN}"));
        }
        Ok(Self {
            vm_name: loose.vm_name,
            vm_context_id: loose.vm_context_id,
            repository_id: loose.repository_id.ok_or("repository_id is required")?,
            backup_type: loose.backup_type.ok_or("backup_type is required")?,
            disk_id: loose.disk_id,
            policy_id: loose.policy_id,
            tags: loose.tags,
            quiesce: loose.quiesce || loose.quiesce_or_fail,
            quiesce_or_fail: loose.quiesce_or_fail,
            compression: loose.compression,
            on_tracking_loss: loose.on_tracking_loss,
            time_limit_seconds: loose.time_limit_seconds,
            bytes_per_second_max: loose.bytes_per_second_max,
            exclude_disks: loose.exclude_disks,
        })
    }
}

/// Changes what keeps a point from being deleted. What is left out stays as it is; at least one field is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateBackup {
    /// Whether it stays until somebody says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub protected: Option<bool>,
    /// Until when it stays; null lets it go.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, required = false)]
    pub hold_until: Option<Option<Timestamp>>,
}

/// Tells what is null from what is left out.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Timestamp>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Which backups to list; the conditions are combined with AND.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct BackupFilter {
    /// Of VMs of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// Of this VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length = 1, max_length = 64)]
    pub vm_context_id: Option<VmContextId>,
    /// In this repository (id or name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<String>,
    /// In this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<schema::BackupStatus>)]
    pub status: Option<BackupStatus>,
    /// Of this type.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<schema::BackupType>)]
    pub backup_type: Option<BackupType>,
    /// How many at most.
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: Limit,
    /// How many to leave out at the start.
    #[serde(deserialize_with = "super::page::offset")]
    #[param(required = false, maximum = 2147483647)]
    pub offset: u64,
}

/// A backup: one point of one VM, or the attempt to make it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// Its id.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The task that makes or made it; null when it was imported.
    #[schema(value_type = Option<String>)]
    pub task_id: Option<TaskId>,
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// The VM's name when the backup was made.
    pub vm_name: String,
    /// The disk; null when there are several.
    #[schema(value_type = Option<u32>)]
    pub disk_id: Option<DiskNumber>,
    /// What it holds. With several disks: incremental when any disk is.
    #[schema(value_type = schema::BackupType)]
    pub backup_type: BackupType,
    /// What was asked for.
    #[schema(value_type = schema::BackupType)]
    pub requested_type: BackupType,
    /// Why a full, or a full read, was made although an incremental was asked for.
    pub type_reason: Option<String>,
    /// Where it lies.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// The policy that asked.
    pub policy_id: Option<String>,
    /// The point it is based on; null for a full.
    #[schema(value_type = Option<String>)]
    pub parent_backup_id: Option<BackupId>,
    /// Its state.
    #[schema(value_type = schema::BackupStatus)]
    pub status: BackupStatus,
    /// Where it is while it runs.
    #[schema(value_type = Option<schema::Phase>)]
    pub phase: Option<Phase>,
    /// The disk's image, relative to the repository; null when there are several disks.
    pub file_path: Option<String>,
    /// Bytes of the disks that were sent to the repository, counted before compression. Zeros and blocks that equal the
    /// parent's are not sent, so an incremental that reads everything and compares may read much and send little.
    pub bytes_transferred: u64,
    /// Bytes that the point takes in the repository; while it runs, what was sent counted after compression.
    pub bytes_stored: u64,
    /// Bytes of all its disks together, as the guest sees them. Not what is to be read: see `bytes_to_read`.
    pub total_bytes: u64,
    /// Bytes that were read from the source so far; null unless it runs. The task keeps the figure (`bytes_done`).
    pub bytes_read: Option<u64>,
    /// Bytes that have to be read: changed extents where changes are tracked, else all that the source does not know to
    /// be a hole. Null unless it runs and this is known. The task keeps the figure (`bytes_total`).
    pub bytes_to_read: Option<u64>,
    /// 0 to 100: `bytes_read` of `bytes_to_read`, at most 99.9 until the point is published.
    pub progress_percent: f64,
    /// Bytes read per second over the last ten seconds; 0 unless it runs.
    pub transfer_speed_bps: u64,
    /// Seconds until all is read at this speed; null unless it runs, and while nothing moves.
    pub eta_seconds: Option<u64>,
    /// The tracking token of the disk; null when there are several disks or none is kept.
    pub change_id: Option<String>,
    /// What the audit of change tracking found, over all disks; null where no disk was backed up by change tracking.
    pub cbt_audit: Option<CbtAudit>,
    /// What the guest was told before the freeze; null until it is known.
    #[schema(value_type = Option<schema::Consistency>)]
    pub consistency: Option<Consistency>,
    /// What must be known of the point: why its consistency is less than was asked for, what of the machine could not be read.
    pub consistency_note: Option<String>,
    /// True when disks of the VM were left out.
    pub partial: bool,
    /// The disks that were left out, by label.
    pub excluded_disks: Vec<String>,
    /// The stable kind of failure, when it failed.
    #[schema(value_type = Option<schema::ProblemCode>)]
    pub error_code: Option<ProblemCode>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// What verifications say of it; null where none was made.
    #[schema(value_type = Option<schema::VerifyState>)]
    pub verify_state: Option<VerifyState>,
    /// How much the last one looked at; null for a point that is `affected` by another one's damage and was not looked at itself.
    #[schema(value_type = Option<schema::VerifyDepth>)]
    pub verify_depth: Option<VerifyDepth>,
    /// When it was looked at last; null where its own files never were.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub verified_at: Option<Timestamp>,
    /// Bytes of it that were read per second, or decoded in a deep verification; null where no byte was.
    pub verify_speed_bps: Option<u64>,
    /// Milliseconds until all of its disks were open, with all that they build on, and their first blocks read, before it was
    /// verified last; null where it was not opened.
    #[serde(default)]
    pub verify_open_ms: Option<u64>,
    /// What is wrong.
    pub verify_finding: Option<String>,
    /// Free text for people and selectors.
    pub tags: BTreeMap<String, String>,
    /// True when a person said that it stays: it is not deleted, and no rule takes it.
    pub protected: bool,
    /// It is not deleted before; null when there is no such date.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub hold_until: Option<Timestamp>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When work began.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it ended, well or not.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
    /// Its disks, by number.
    pub disks: Vec<BackupDisk>,
}

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackupDisk {
    /// Its number in the VM.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// The source's key for it.
    #[schema(example = "disk-2000")]
    pub disk_key: String,
    /// For people.
    pub label: String,
    /// What the image holds.
    #[schema(value_type = schema::BackupType)]
    pub backup_type: BackupType,
    /// Why this disk was read in full, or became a full, although an incremental was asked for.
    pub type_reason: Option<String>,
    /// The image, relative to the repository; null until it is published.
    pub file_path: Option<String>,
    /// The disk's size as the guest sees it.
    pub capacity_bytes: u64,
    /// Bytes of the disk that were sent to the repository, counted before compression.
    pub bytes_transferred: u64,
    /// Bytes that the image and its digests take.
    pub bytes_stored: u64,
    /// The parent's image, relative to this one; null for a full.
    pub backing_file: Option<String>,
    /// The tracking token that the next incremental asks changes against.
    pub change_id: Option<String>,
    /// What the audit of this disk's change tracking found; null where it was not used, or not audited.
    pub cbt_audit: Option<CbtAudit>,
    /// Its state.
    #[schema(value_type = schema::BackupStatus)]
    pub status: BackupStatus,
}

/// A sample of the blocks that change tracking calls unchanged, read again and compared with the parent's digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CbtAudit {
    /// Blocks of 64 KiB that were checked.
    pub blocks_checked: u64,
    /// Those of them that had changed all the same. With one, the disk was read completely and compared, and its change
    /// tracking begun anew.
    pub blocks_different: u64,
}

/// How to delete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Take the later points that need this one along.
    #[param(required = false)]
    pub cascade: bool,
    /// Only show what would be deleted.
    #[param(required = false)]
    pub dry_run: bool,
}

/// What a delete takes, and whether it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deletion {
    /// True when this is only the plan.
    pub dry_run: bool,
    /// True when later points go along.
    pub cascade: bool,
    /// The points, in the order in which they go: newest first.
    pub backups: Vec<DeletedBackup>,
    /// Bytes that this frees, or freed.
    pub freed_bytes: u64,
}

/// One point of a [`Deletion`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeletedBackup {
    /// The point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// Its type.
    #[schema(value_type = schema::BackupType)]
    pub backup_type: BackupType,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Bytes that it takes.
    pub bytes_stored: u64,
    /// Its files, relative to the repository.
    pub files: Vec<String>,
}

/// How to verify.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyBackup {
    /// Decode every block and check its digest too, not only the files' digests.
    #[schema(required = false)]
    pub deep: bool,
    /// Check what this point has stored, and not the points that it builds on. A restore reads those too.
    #[schema(required = false)]
    pub own_files_only: bool,
}
