//! Merging a backup into the one that stands on it.

use sendense_types::{BackupId, DiskNumber, TaskId};
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
    /// The disks whose images are written anew.
    #[schema(value_type = Vec<u32>)]
    pub disk_ids: Vec<DiskNumber>,
    /// Bytes that the files of both take now.
    pub bytes_stored: u64,
    /// Room that is needed meanwhile, at most.
    pub needed_bytes: u64,
    /// The task that does it; null when this is only the plan.
    #[schema(value_type = Option<String>)]
    pub task_id: Option<TaskId>,
}
