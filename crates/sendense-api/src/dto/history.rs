//! What became of a file over the restore points of its VM.

use super::mount::{GuestFile, VolumeConsistency};
use super::page::Limit;
use sendense_types::{BackupId, DiskNumber, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Which file's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Its absolute path, percent-encoded bytes. A link is followed inside the volume.
    #[param(example = "/etc/fstab")]
    pub path: String,
    /// The disk. May be left out when the VM's points hold only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<u32>)]
    pub disk_id: Option<DiskNumber>,
    /// The volume. Left out: the only one of the disk that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// How many restore points at most.
    #[serde(default)]
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: Limit,
    /// How many restore points to leave out at the start.
    #[serde(default, deserialize_with = "super::page::offset")]
    #[param(required = false, maximum = 2147483647)]
    pub offset: u64,
}

/// Whether a file is in a restore point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VersionState {
    /// It is there.
    Present,
    /// The volume has no such file.
    Absent,
    /// The point's disk could not be read, so nobody knows.
    Unreadable,
}

/// A restore point that was looked into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryPoint {
    /// The restore point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// What several restore points in a row hold under one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileVersion {
    /// Whether it is there.
    pub state: VersionState,
    /// The file, folder or link; null where there is none. A link is described by what it leads to, with its `target`.
    pub file: Option<GuestFile>,
    /// Where a link leads to inside the volume, as `path=` takes it; null where the path has none.
    pub resolved_path_encoded: Option<String>,
    /// SHA-256 of a file's content, always read from the points themselves and never inferred from size or time.
    #[schema(example = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    pub sha256: Option<String>,
    /// Why a file has no digest. Then equal sizes and times made one version of these points.
    pub sha256_missing: Option<String>,
    /// The volume it lies in.
    pub volume: Option<String>,
    /// Whether that volume shows what its guest had written.
    pub consistency: Option<VolumeConsistency>,
    /// Why the points could not be read.
    pub reason: Option<String>,
    /// The restore points, newest first; never empty.
    pub points: Vec<HistoryPoint>,
}

impl FileVersion {
    /// A version of which nothing is known but its state, held by no point yet.
    pub fn nothing(state: VersionState) -> Self {
        Self {
            state,
            file: None,
            resolved_path_encoded: None,
            sha256: None,
            sha256_missing: None,
            volume: None,
            consistency: None,
            reason: None,
            points: Vec::new(),
        }
    }

    /// Whether both tell the same, of whichever points.
    pub fn is_same(&self, other: &Self) -> bool {
        let Self { state, file, resolved_path_encoded, sha256, sha256_missing, volume, consistency, reason, points: _ } =
            self;
        *state == other.state
            && *file == other.file
            && *resolved_path_encoded == other.resolved_path_encoded
            && *sha256 == other.sha256
            && *sha256_missing == other.sha256_missing
            && *volume == other.volume
            && *consistency == other.consistency
            && *reason == other.reason
    }

    /// Adds a version to those that are newer; one that tells the same as the last is folded into it.
    pub fn fold(versions: &mut Vec<Self>, older: Self) {
        match versions.last_mut() {
            Some(last) if last.is_same(&older) => last.points.extend(older.points),
            _ => versions.push(older),
        }
    }
}

/// A file over the restore points of its VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileHistory {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// The disk.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// The path; what is not UTF-8 is replaced.
    pub path: String,
    /// The path, percent-encoded bytes.
    pub path_encoded: String,
    /// What the points hold, newest first; runs of points that hold the same are one version.
    pub versions: Vec<FileVersion>,
    /// How many restore points of the VM hold the disk.
    pub total: u64,
    /// Ask again with this `offset` for the older points; null when all were looked into. An answer may end before `limit`
    /// points, because each takes time.
    pub next_offset: Option<u64>,
}
