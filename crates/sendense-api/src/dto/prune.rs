//! Pruning the backups of a VM: which rules, what becomes of each point.

use crate::schema;
use sendense_types::{BackupId, BackupType, ProblemCode, RepositoryId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Which points shall stay. The rules choose in the order last, hourly, daily, weekly, monthly, yearly. Each passes over
/// periods in which an earlier rule keeps a point, and keeps the newest point of so many further periods that hold any. At
/// least one rule keeps something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PruneVm {
    /// Only in this repository (id or name). Left out: in each of the VM's, judged by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub repository_id: Option<String>,
    /// By the retention of this policy (id or name), in its repository, and as it prunes: other policies' points are left to them. Then
    /// nothing else is said here.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub policy_id: Option<String>,
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

/// Whether to prune or to show the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PruneQuery {
    /// Only show what would be deleted.
    #[param(required = false)]
    pub dry_run: bool,
    /// The plan that was looked at. When other points would go by now, nothing goes. Left out: whatever the plan says now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(required = false)]
    pub plan_id: Option<String>,
}

/// What a prune takes, and why the rest stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Prune {
    /// True when this is only the plan.
    pub dry_run: bool,
    /// Names what goes: two plans that delete the same points have the same id.
    pub plan_id: String,
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// Every point, by repository; each before those it stands on.
    pub backups: Vec<PrunedBackup>,
    /// How many go.
    pub deleted: u64,
    /// How many stay.
    pub kept: u64,
    /// Bytes that this frees, or freed.
    pub freed_bytes: u64,
}

/// What the prunes of a policy's VMs take and leave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyPrune {
    /// VM by VM, by name.
    pub prunes: Vec<Prune>,
    /// VMs that could not be pruned, by name: none of `prunes` has them, and the others were pruned all the same.
    #[serde(default)]
    pub not_pruned: Vec<NotPrunedVm>,
}

/// A VM that a policy's prune has left, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotPrunedVm {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name.
    pub vm_name: String,
    /// What is in the way, as a problem code: it says who must act.
    #[schema(value_type = schema::ProblemCode)]
    pub code: ProblemCode,
    /// The same for people: a manifest is damaged, or a point was taken into use meanwhile.
    pub why: String,
}

/// What becomes of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PruneFate {
    /// It is deleted.
    Delete,
    /// A rule or the minimum age keeps it.
    Keep,
    /// No rule keeps it, but a later point that stays stands on it.
    Needed,
    /// No rule keeps it, but somebody works with it now; a later prune will take it.
    InUse,
    /// The catalog does not know it yet, so nothing is said of it.
    Unknown,
}

/// One point of a [`Prune`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedBackup {
    /// The point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// Where it lies.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// Its type; null when the catalog does not know it yet.
    #[schema(value_type = Option<schema::BackupType>)]
    pub backup_type: Option<BackupType>,
    /// The moment by which it is counted; null when the catalog does not know it yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
    /// Bytes that its files take.
    pub bytes_stored: u64,
    /// What becomes of it.
    pub fate: PruneFate,
    /// Why, for people.
    pub reason: String,
    /// Another policy than the one that prunes keeps it.
    #[serde(default)]
    pub kept_by_another: bool,
}

impl PruneFate {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Keep => "keep",
            Self::Needed => "needed",
            Self::InUse => "in_use",
            Self::Unknown => "unknown",
        }
    }
}
