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
    /// Left out: as the repository says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Compression>)]
    pub compression: Option<Compression>,
    /// What to do when changes cannot be told. Left out: `compare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::OnTrackingLoss>)]
    pub on_tracking_loss: Option<OnTrackingLoss>,
    /// Which points stay, in this repository, after each new one. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
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
    /// Points that its retention would delete now.
    pub deleted: u64,
    /// Points that would stay.
    pub kept: u64,
    /// Bytes that this would free.
    pub freed_bytes: u64,
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
    /// What retention would take and leave; null when the policy has none.
    pub prune: Option<Prune>,
}
