//! Restore points on offer over NBD.

use sendense_types::{BackupId, DiskNumber, ExportId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateExport {
    /// The restore point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The disk; may be left out when the point has one.
    #[schema(value_type = Option<u32>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_id: Option<DiskNumber>,
}

/// A disk of a restore point that NBD clients can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Export {
    /// Its id.
    #[schema(value_type = String)]
    pub export_id: ExportId,
    /// The restore point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The VM of the point.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// The disk.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// What NBD clients open. Whoever knows it can read the disk, so viewers are not told.
    pub uri: Option<String>,
    /// Whether clients can only read; true for restore points.
    pub read_only: bool,
    /// The disk's size.
    pub size_bytes: u64,
    /// Connections that are open.
    pub clients: u64,
    /// How much clients have read.
    pub bytes_read: u64,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it ends unless somebody uses it; moves on with each use.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}
