//! Merging a backup into the one that stands on it, and moving all of a VM's to another repository.

use sendense_types::{BackupId, DiskNumber, RepositoryId, TaskId, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Whether to merge or to show the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct MergeQuery {
    /// Only show what would be done.
    #[param(required = false)]
    pub dry_run: bool,
}

/// A backup that goes, and the one that takes over what it held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Merge {
    /// True when this is only the plan.
    pub dry_run: bool,
    /// The backup that goes.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The one that stands on it and takes over.
    #[schema(value_type = String)]
    pub successor_id: BackupId,
    /// Others that stand on it: each gets a copy of what it needs first. So it is where a disk was away for some backups.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub copied_to: Vec<BackupId>,
    /// The disks whose images are written anew.
    #[schema(value_type = Vec<u32>)]
    pub disk_ids: Vec<DiskNumber>,
    /// Disks on which nothing stands, for they were removed from the machine. Their files go with the backup.
    #[serde(default)]
    #[schema(value_type = Vec<u32>)]
    pub dropped_disk_ids: Vec<DiskNumber>,
    /// Bytes that the files of the backup and its successor take now.
    pub bytes_stored: u64,
    /// Room that is needed meanwhile, at most.
    pub needed_bytes: u64,
    /// The task that does it; null when this is only the plan.
    #[schema(value_type = Option<String>)]
    pub task_id: Option<TaskId>,
}

/// How a chain is made shorter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ConsolidateQuery {
    /// Whose chain is looked at; other disks of the same points go along.
    #[param(value_type = Option<u32>, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_id: Option<DiskNumber>,
    /// The repository, by id or name, when the VM has chains in several.
    #[param(required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<String>,
    /// How many points stay: the oldest of the others go, and what they held becomes their successors'. Left out: the hub's bound.
    #[param(minimum = 1, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// No point goes: the newest becomes a full of its own, and a chain begins with it.
    #[param(required = false)]
    pub full: bool,
    /// Only show what would be done.
    #[param(required = false)]
    pub dry_run: bool,
}

/// How a chain becomes shorter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Consolidation {
    /// True when this is only the plan.
    pub dry_run: bool,
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// The disk whose chain it is.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// Where the chain lies.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// How many points it has now.
    pub backup_count: u64,
    /// The points that go, in the order in which they do.
    #[schema(value_type = Vec<String>)]
    pub going: Vec<BackupId>,
    /// Points that would go, but are protected or held, or the newest of another disk.
    #[schema(value_type = Vec<String>)]
    pub held: Vec<BackupId>,
    /// The point that becomes a full.
    #[schema(value_type = Option<String>)]
    pub full_backup_id: Option<BackupId>,
    /// The task that does it; null when this is only the plan, or there is nothing to do.
    #[schema(value_type = Option<String>)]
    pub task_id: Option<TaskId>,
}

/// Where a VM's backups go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveVm {
    /// The repository that they go to, by id or name.
    pub to_repository_id: String,
    /// The repository that they lie in, by id or name, when the VM has backups in several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<String>,
    /// Move although policies that back the VM up name another repository, in which their next backup will be a full.
    #[serde(default)]
    pub leave_policies: bool,
    /// The most bytes to copy, or to read back, in a second, at least 1048576. Left out: as much as the disks give.
    #[schema(minimum = 1_048_576)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max: Option<u64>,
}

/// Whether to move or to show the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct MoveQuery {
    /// Only show what would be done.
    #[param(required = false)]
    pub dry_run: bool,
}

/// What a move of a VM's backups to another repository takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChainMove {
    /// True when this is only the plan.
    pub dry_run: bool,
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// Where the backups lie.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// Where they go.
    #[schema(value_type = String)]
    pub to_repository_id: RepositoryId,
    /// The backups, each after those it stands on.
    pub backups: Vec<MovedBackup>,
    /// Bytes of their files.
    pub bytes_stored: u64,
    /// Room that is needed where they go; as much is free afterwards where they lie now.
    pub needed_bytes: u64,
    /// Room that is left there.
    pub available_bytes: u64,
    /// The policies that back the VM up to another repository, and will go on doing that.
    pub policies: Vec<String>,
    /// The task that does it; null when this is only the plan.
    #[schema(value_type = Option<String>)]
    pub task_id: Option<TaskId>,
}

/// A backup that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MovedBackup {
    /// Its id, which stays.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// Bytes of its files.
    pub bytes_stored: u64,
}
