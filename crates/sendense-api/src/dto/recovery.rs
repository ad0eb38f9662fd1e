//! Machines that were recovered in an instant: restore points that are served writable.

use super::restore::ImageFormat;
use sendense_types::{BackupId, DiskNumber, Name, RecoveryId, RepositoryId, SourceId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// A libvirt source, by id or name, that gets a machine of that name from the recorded configuration, started on the disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// By the name of the network or bridge that a card was in, or by the card's MAC address: the network that the new card is
    /// in, `bridge:NAME` for a bridge of the host, or null. All other cards are not plugged in: the recorded configuration does
    /// not decide which network a machine reaches.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, Option<String>>,
}

/// Asks for the migration of a recovered machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRecovery {
    /// Where its disks go: a pool of the source, or a folder below one that the hub was allowed to touch.
    #[serde(default = "super::restore::pool")]
    pub pool: String,
    /// The disks' format: raw or qcow2.
    #[serde(default = "super::restore::qcow2")]
    pub format: ImageFormat,
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
    /// What was written is being made into a point; nothing is served meanwhile.
    Committing,
    /// Its machine moves to storage of its own; it is served meanwhile.
    Migrating,
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
            Self::Committing => "committing",
            Self::Migrating => "migrating",
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
    /// The machine that was made to run on them, if one was asked for.
    pub machine: Option<RecoveryMachine>,
    /// The recorded configuration; only where one recovery is asked for, and not told to viewers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<RecoveryDocument>,
    /// What of the machine is not as it was; told once, when it is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
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

/// A machine on a hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryMachine {
    /// Its source.
    #[schema(value_type = String)]
    pub source_id: SourceId,
    /// Its name there.
    pub name: String,
    /// Its identity there.
    pub instance_uuid: String,
}

/// A piece of the machine's configuration, as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveryDocument {
    /// What it is: `libvirt-domain-xml`, `facts`.
    pub name: String,
    /// Its text.
    pub content: String,
}
