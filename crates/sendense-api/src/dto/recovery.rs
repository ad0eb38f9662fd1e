//! Machines that were recovered in an instant: restore points that are served writable.

use sendense_types::{BackupId, DiskNumber, Name, RecoveryId, RepositoryId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for an instant recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRecovery {
    /// The restore point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// A name for the recovery, which no other one has.
    #[schema(value_type = String)]
    pub name: Name,
}

/// The life of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RecoveryStatus {
    /// It is being made.
    Creating,
    /// Its disks are served.
    Ready,
    /// Its disks are not served now; `error_message` says why, and it is tried again.
    Unavailable,
    /// It is being taken away.
    Ending,
}

impl RecoveryStatus {
    /// The text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Unavailable => "unavailable",
            Self::Ending => "ending",
        }
    }
}

/// A restore point whose disks are served writable. What is written lies beside the point, which stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recovery {
    /// Its id.
    #[schema(value_type = String)]
    pub recovery_id: RecoveryId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// The restore point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The VM of the point.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// Where the point lies.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// Whether it is served.
    pub status: RecoveryStatus,
    /// What is in the way, if something is.
    pub error_message: Option<String>,
    /// Its disks.
    pub disks: Vec<RecoveryDisk>,
    /// The recorded configuration; only where one recovery is asked for, and not told to viewers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<RecoveryDocument>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
}

/// A disk of a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryDisk {
    /// Its number.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// The source's key for it: `vda`, `disk-2000`.
    pub disk_key: String,
    /// For people.
    pub label: String,
    /// Its size.
    pub size_bytes: u64,
    /// What NBD clients open, the same after each start of the hub. Whoever knows it can read and write the disk, so viewers are
    /// not told; none while it is not served.
    pub uri: Option<String>,
    /// What was written to it, in whole blocks; none while it is not served.
    pub held_bytes: Option<u64>,
    /// Connections that are open.
    pub clients: u64,
}

/// A piece of the machine's configuration, as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryDocument {
    /// What it is: `libvirt-domain-xml`, `facts`.
    pub name: String,
    /// Its text.
    pub content: String,
}
