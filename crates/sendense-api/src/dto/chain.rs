//! The chain of a disk.

use super::backup::Backup;
use crate::schema;
use sendense_types::{BackupId, BackupType, DiskNumber, RepositoryId, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Which chain. Exactly one of `vm_name` and `vm_context_id` is given; in the call that has the VM in its path, neither.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ChainQuery {
    /// The VM's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// The VM's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length = 1, max_length = 64)]
    pub vm_context_id: Option<VmContextId>,
    /// The disk. Left out: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<u32>)]
    pub disk_id: Option<DiskNumber>,
    /// The repository (id or name). Left out: the one that holds the disk's newest point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<String>,
}

/// The points of one disk in one repository that build on the same full, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Chain {
    /// `<vm_context_id>-disk<disk_id>-chain`.
    #[schema(example = "vm-0192f0c1-disk0-chain")]
    pub chain_id: String,
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// The VM's name.
    pub vm_name: String,
    /// The disk.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// Where it lies.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// The newest full.
    #[schema(value_type = Option<String>)]
    pub full_backup_id: Option<BackupId>,
    /// The newest point.
    #[schema(value_type = Option<String>)]
    pub latest_backup_id: Option<BackupId>,
    /// The points, oldest first.
    pub backups: Vec<ChainBackup>,
    /// How many points.
    pub backup_count: u64,
    /// Bytes that the disk's images take together.
    pub total_size_bytes: u64,
}

impl Chain {
    /// The id of the chain of a disk.
    pub fn id(vm: &VmContextId, disk: DiskNumber) -> String {
        format!("{vm}-disk{disk}-chain")
    }
}

/// A backup as a member of one disk's chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChainBackup {
    /// The backup.
    #[serde(flatten)]
    pub backup: Backup,
    /// What this disk's image holds.
    #[serde(rename = "type")]
    #[schema(value_type = schema::BackupType)]
    pub kind: BackupType,
    /// Bytes that this disk's image takes.
    pub size_bytes: u64,
    /// The parent's image, relative to this one; null for a full.
    pub backing_file: Option<String>,
}
