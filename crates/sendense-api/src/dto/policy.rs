//! Policies: which VMs are protected, and how.

use super::prune::Prune;
use crate::schema;
use sendense_types::{BackupType, Compression, OnTrackingLoss, PolicyId, RepositoryId, Tag, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a policy says. It protects every VM that matches now, also one that was discovered after it was made. A VM has to match
/// one of each of `vms`, `tags`, `folders` and `sources` that is given, and none of what is excluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRules {
    /// Its name.
    pub name: String,
    /// VMs whose name matches one of these; `*` stands for any characters, `?` for one.
    pub vms: Vec<String>,
    /// Only VMs that bear one of these tags. Left out: whatever they bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub tags: Vec<Tag>,
    /// Only VMs that lie in one of these folders of their source's inventory, or in folders of these. Left out: wherever they lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["Datacenter/vm/production"]))]
    pub folders: Vec<String>,
    /// But not those whose name matches one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// But not those that bear one of these tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub exclude_tags: Vec<Tag>,
    /// But not those that lie in one of these folders, or in folders of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_folders: Vec<String>,
    /// Only VMs of these sources (id or name). Left out: of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Where points go (id or name).
    pub repository_id: String,
    /// A full after so many points of a VM; 1 for fulls alone. Left out: incrementals for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub full_every: Option<u32>,
    /// Ask the guests to bring their file systems into order first.
    #[serde(default)]
    pub quiesce: bool,
    /// Ask them, and let a backup fail whose guest cannot do it rather than take a point as after a power cut.
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
    /// A backup is ended when it has taken so many seconds, whatever it has reached. Left out: as long as it gets on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub time_limit_seconds: Option<u32>,
    /// The most bytes that each backup reads from its VM in a second. Left out: as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1_048_576)]
    pub bytes_per_second_max: Option<u64>,
    /// How many of its VMs are backed up at once when a schedule carries it out. Left out: as many as hub, sources and repository
    /// bear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub vms_at_once: Option<u32>,
    /// Whose turn comes first when a schedule carries it out. Left out: `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<PolicyOrder>,
    /// Points of a chain after which its newest is made a full, so that a new chain begins; 256 for as late as can be. Of what
    /// it has above 10, a machine's chain may have up to half as much again. Left out: as the hub says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 2, maximum = 256)]
    pub chain_points_max: Option<u32>,
    /// How often the points that it made are verified by themselves. Left out: as the hub says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<PolicyVerification>,
    /// Programs that are run on the hub's machine before and after each backup. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<PolicyHooks>,
    /// Which points stay, in this repository, after each new one. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// In which order the VMs of a policy have their turns. Those that are equal come by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyOrder {
    /// By name.
    #[default]
    Name,
    /// As `vms` lists the patterns: first those of the first.
    Listed,
    /// Those with the most bytes of disks first, so that the longest backup does not begin last.
    LargestFirst,
    /// Those without a point first, then those whose newest point is the oldest.
    OldestFirst,
}

/// How often points are verified by themselves. At least one of both is said; what is left out is as the hub says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyVerification {
    /// Days after which a point that nobody has looked at is looked at: its files are compared with their digests. 0 for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, maximum = 3650)]
    pub at_rest_days: Option<u32>,
    /// Days after which every block of a point is decoded and compared, too, where that was not done since. 0 for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, maximum = 3650)]
    pub deep_days: Option<u32>,
}

/// What holds for a policy's points: what it says, and what the hub says where it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInForce {
    /// Points of a chain after which its newest is made a full; 0: chains grow to 256.
    pub chain_points_max: u32,
    /// Days after which a point that nobody has looked at is verified at rest; 0: never.
    pub at_rest_days: u32,
    /// Days after which every block of a point is decoded; 0: never.
    pub deep_days: u32,
}

/// Programs of the hub's folder of hooks (`--hooks-dir`), by their names there. At least one of both is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyHooks {
    /// Run before anything of the VM is touched. When it fails, the backup does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub before: Option<String>,
    /// Run when the backup has ended, however it did; it is told how.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub after: Option<String>,
    /// How long each may run; then it is killed with all that it has started. Left out: 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, minimum = 1, maximum = 3600)]
    pub timeout_seconds: Option<u32>,
}

/// Which points stay; the rules of a prune. At least one keeps something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// So many of the newest points.
    #[schema(required = false)]
    pub keep_last: u32,
    /// The newest point of so many hours.
    #[schema(required = false)]
    pub keep_hourly: u32,
    /// The newest point of so many days.
    #[schema(required = false)]
    pub keep_daily: u32,
    /// The newest point of so many weeks, Monday to Sunday.
    #[schema(required = false)]
    pub keep_weekly: u32,
    /// The newest point of so many months.
    #[schema(required = false)]
    pub keep_monthly: u32,
    /// The newest point of so many years.
    #[schema(required = false)]
    pub keep_yearly: u32,
    /// The IANA time zone whose hours and days are counted. Left out: UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, example = "Europe/Berlin")]
    pub time_zone: Option<String>,
    /// Nothing younger goes.
    #[schema(required = false)]
    pub minimum_age_seconds: u64,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Its id.
    #[schema(value_type = String)]
    pub policy_id: PolicyId,
    /// Its name.
    pub name: String,
    /// What it says; sources and the repository by id.
    pub rules: PolicyRules,
    /// What holds with what the hub says.
    pub in_force: PolicyInForce,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was changed last.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// What a policy would do now. Nothing is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyPlan {
    /// The repository.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// Every VM that it protects, by name.
    pub vms: Vec<PlannedVm>,
    /// Patterns that no VM matches; and as `tag PROD` or `folder DC/vm` tags and folders that no VM has.
    pub unmatched: Vec<String>,
    /// VMs that it means and that their sources do not have any more, by name. Their points stay until somebody deletes them.
    #[serde(default)]
    pub vanished: Vec<VanishedVm>,
    /// VMs that the policy of this name means as it is saved, and would not mean any more, by name.
    #[serde(default)]
    pub no_longer: Vec<NoLongerMeant>,
    /// Why nobody can tell what its retention would do: the repository is not in use, or cannot be reached. Then no VM has a `prune`.
    /// What is in the way of one VM is told with that.
    #[serde(default)]
    pub not_judged: Option<String>,
    /// Points that its retention would delete now.
    pub deleted: u64,
    /// Points that would be merged into later ones after backups: no rule keeps them, and what they hold is needed.
    pub merged: u64,
    /// Points that would stay.
    pub kept: u64,
    /// Bytes that deleting would free. What merging frees is known when it is done.
    pub freed_bytes: u64,
    /// Chains that the next backups would make too long: each ends with a full, made beside the backups, one after another.
    pub chains_ended: u64,
}

/// A VM that a policy would not mean any more. Its points stay, for no rules judge them then but those of other policies that mean it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NoLongerMeant {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// Other policies that mean it, by name. Without one nothing backs it up by itself.
    pub policies: Vec<String>,
}

/// What would become of VMs and points if a policy were forgotten. Nothing is done. Its points belong to nobody then: other policies
/// that mean their VM in that repository judge them together with those that they made, or nobody does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDeletion {
    /// The policy.
    #[schema(value_type = String)]
    pub policy_id: PolicyId,
    /// Its name.
    pub name: String,
    /// Schedules that carry it out, by name. As long as there is one the policy cannot be forgotten.
    pub schedules: Vec<String>,
    /// VMs that it means, by name.
    pub no_longer: Vec<NoLongerMeant>,
    /// Points that it made and that are there.
    pub points: u64,
    /// Those of them that no rules judge any more: they stay until somebody deletes them.
    pub left: Vec<LeftPoints>,
    /// What the rules of other policies would do with points of the VMs that it has a say in.
    pub judged: Vec<JudgedVm>,
    /// Points that those rules would delete. A point that several of them would delete counts once.
    pub deleted: u64,
    /// Points that would be merged into later ones after backups.
    pub merged: u64,
    /// Bytes that deleting would free.
    pub freed_bytes: u64,
}

/// Points of a VM that no policy's rules judge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftPoints {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name, as the points have it.
    pub vm_name: String,
    /// Where they lie.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// How many there are.
    pub points: u64,
}

/// What one policy would do with a VM's points without the other policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JudgedVm {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// The policy whose rules they are.
    pub policy: String,
    /// Points that would be merged into later ones, which `prune` tells as `needed`.
    pub merged: u64,
    /// What its retention would take and leave; null when that cannot be told.
    pub prune: Option<Prune>,
    /// Why that cannot be told.
    pub not_judged: Option<String>,
}

/// A VM that a policy means, that has points, and that no discovery finds any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VanishedVm {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// When it was seen last.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub discovered_at: Option<Timestamp>,
    /// When its newest point was made.
    #[schema(value_type = String, format = DateTime)]
    pub newest_point_at: Timestamp,
}

/// A VM of a [`PolicyPlan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedVm {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// What its next backup would be asked to be.
    #[schema(value_type = schema::BackupType)]
    pub next_type: BackupType,
    /// Points of its longest chain in the repository now.
    pub chain_points: u64,
    /// Whether the chain would be too long with the next point, so that a full would be made of that.
    pub ends_chain: bool,
    /// Points that would be merged into later ones, which `prune` tells as `needed`.
    pub merged: u64,
    /// What retention would take and leave; null when the policy has none, or when that cannot be told.
    pub prune: Option<Prune>,
    /// Why nobody can tell what retention would do with its points: a manifest is damaged. No sum of the plan has them.
    #[serde(default)]
    pub not_judged: Option<String>,
}
