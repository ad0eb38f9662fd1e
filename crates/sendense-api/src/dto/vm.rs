//! Virtual machines as the catalog knows them.

use super::page::Limit;
use crate::schema;
use sendense_types::{
    BackupId, BackupStatus, BackupType, DiskNumber, PowerState, SourceId, Tag, Timestamp, VerifyDepth, VmContextId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::{IntoParams, ToSchema};

/// Which VMs to list; the conditions are combined with AND.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct VmFilter {
    /// Of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// On this source (id or name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// That bear this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// That should have had a newer point by their policies' schedules. With `unprotected`, those of which either is so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[param(required = false)]
    pub overdue: bool,
    /// That are there and that nothing protects: no policy means them, or no point of them can be restored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[param(required = false)]
    pub unprotected: bool,
    /// How many at most.
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: Limit,
    /// How many to leave out at the start.
    #[serde(deserialize_with = "super::page::offset")]
    #[param(required = false, maximum = 2147483647)]
    pub offset: u64,
}

/// What to hang on a VM and what to take off. A tag is 1 to 64 characters of `a-z A-Z 0-9 . _ : / = @ -`, the first a letter or
/// digit; a VM bears at most 64.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChangeTags {
    /// Tags that it is to bear.
    #[schema(required = false, value_type = Vec<String>)]
    pub add: BTreeSet<Tag>,
    /// Tags that it is not to bear, also when `add` names them.
    #[schema(required = false, value_type = Vec<String>)]
    pub remove: BTreeSet<Tag>,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id; survives renames.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// Where it was found; null when it is known only from imported backups.
    #[schema(value_type = Option<String>)]
    pub source_id: Option<SourceId>,
    /// What it is on its source.
    pub instance_uuid: String,
    /// Where it lies in the source's inventory.
    pub path: Option<String>,
    /// The folder that it lies in there, where its source has folders: `Datacenter/vm/production`.
    #[serde(default)]
    pub folder: Option<String>,
    /// Its tags.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub tags: BTreeSet<Tag>,
    /// Whether it ran when it was last seen.
    #[schema(value_type = schema::PowerState)]
    pub power_state: PowerState,
    /// The guest's operating system, as the source calls it.
    pub guest_os: Option<String>,
    /// Virtual processors.
    pub cpu_count: Option<u32>,
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Its disks, by number.
    pub disks: Vec<VmDisk>,
    /// Its network cards.
    pub networks: Vec<VmNetwork>,
    /// Its newest backup, in whatever state.
    pub last_backup: Option<LastBackup>,
    /// Its newest point that is proved good; null where none is, and in lists.
    pub last_proved: Option<ProvedBackup>,
    /// When the first of its points fell due that should have been verified long ago, by its policy or the hub, and was not; null where
    /// none is late, and in lists.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub proof_overdue_since: Option<Timestamp>,
    /// How well it is protected.
    pub protection_state: ProtectionState,
    /// The policies that mean it, by name. Without one nothing backs it up by itself.
    #[serde(default)]
    pub policies: Vec<String>,
    /// True when policies mean it and no schedule that is enabled carries one of them out: nothing backs it up by itself either.
    #[serde(default)]
    pub unscheduled: bool,
    /// When it should have had a newer point: the last occurrence, by the timetable of a schedule that carries one of its policies out
    /// and whatever became of it, after which it has none. Null when it is not overdue, and while it has no point at all.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub overdue_since: Option<Timestamp>,
    /// True when its source tells which blocks changed.
    pub change_tracking: bool,
    /// Why it does not; null when it does.
    #[serde(default)]
    pub no_change_tracking: Option<String>,
    /// The version of its virtual hardware, where its source has such: `vmx-19`.
    #[serde(default)]
    pub hardware: Option<String>,
    /// Names of its snapshots when it was last seen, where its source tells them.
    #[serde(default)]
    pub snapshots: Vec<String>,
    /// Why it cannot be backed up; null when it can.
    pub unsupported: Option<String>,
    /// True when the last discovery of its source did not find it.
    pub missing: bool,
    /// When it was last seen.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub discovered_at: Option<Timestamp>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmDisk {
    /// Its number in the VM; never given to another disk.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// The source's key for it.
    #[schema(example = "disk-2000")]
    pub disk_key: String,
    /// For people.
    pub label: String,
    /// Its size.
    pub capacity_bytes: u64,
    /// Its size in GiB.
    pub size_gb: f64,
    /// Where it lies, for people.
    pub datastore: Option<String>,
    /// Its file there, where its source tells it: `[datastore1] web/web.vmdk`.
    #[serde(default)]
    pub path: Option<String>,
    /// How it is attached, in the words of its source, where it tells that: `persistent`, `independent_persistent` …
    #[serde(default)]
    pub mode: Option<String>,
    /// The job that works on it now.
    pub job_id: Option<String>,
    /// Format of its backing, as declared by the source.
    pub format: Option<String>,
    /// Why it cannot be backed up; null when it can.
    pub unsupported: Option<String>,
    /// True when the VM has it no more. Its backups stay.
    pub removed: bool,
}

/// A network card of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmNetwork {
    /// The card's key on the VM.
    pub key: String,
    /// The network it is on.
    pub network: String,
    /// Its MAC address.
    pub mac: Option<String>,
    /// The card's model.
    pub model: Option<String>,
}

/// The newest backup of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastBackup {
    /// Its id.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// Its type.
    #[schema(value_type = schema::BackupType)]
    pub backup_type: BackupType,
    /// Its state.
    #[schema(value_type = schema::BackupStatus)]
    pub status: BackupStatus,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
}

/// A point of which every file, and every file of the points that it builds on, was found to be as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProvedBackup {
    /// Its id.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Since when all of it is proved: when that part of it was looked at whose last look is the oldest.
    #[schema(value_type = String, format = DateTime)]
    pub proved_at: Timestamp,
    /// `deep` when every block of all of it was decoded.
    #[schema(value_type = schema::VerifyDepth)]
    pub depth: VerifyDepth,
    /// Bytes per second, over all of it.
    pub speed_bps: Option<u64>,
    /// Milliseconds until all of its disks were open, with all that they build on, and their first blocks read; null where it was
    /// not opened when it was looked at last.
    #[serde(default)]
    pub open_ms: Option<u64>,
    /// True when it is the machine's newest point.
    pub is_newest: bool,
}

/// How well a VM is protected, from its newest backups alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProtectionState {
    /// No point can be restored.
    Unprotected,
    /// A backup is waiting or running.
    Running,
    /// The newest backup is a point that can be restored.
    Protected,
    /// There is a point, but the newest attempt failed or was stopped.
    Failing,
}
