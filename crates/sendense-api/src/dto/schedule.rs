//! Schedules: when policies are carried out, and what was carried out.

use crate::schema;
use sendense_types::{BackupId, ExecutionId, ExecutionState, PolicyId, ScheduleId, Timestamp, VmContextId, VmOutcome};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What a schedule says. Exactly one of `cron` and `every_seconds` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRules {
    /// Its name.
    pub name: String,
    /// What is carried out (id or name).
    pub policy_id: String,
    /// Minute, hour, day of month, month, day of week. An hour that the clocks skip begins at its end; one that they show
    /// twice is meant once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "30 22 * * MON-FRI")]
    pub cron: Option<String>,
    /// Every so many seconds from now on, whatever clocks show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 60)]
    pub every_seconds: Option<u32>,
    /// The IANA time zone whose clock counts. Left out: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "Europe/Berlin")]
    pub time_zone: Option<String>,
    /// Each beginning is put off by up to so many seconds, so that not all begin at once.
    #[serde(default)]
    #[schema(maximum = 3600)]
    pub jitter_seconds: u32,
    /// What becomes of occurrences that no hub was there to begin.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// When backups may begin. Left out: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<ScheduleWindow>,
    /// Whether anything begins by itself. Left out: true.
    #[serde(default = "yes")]
    pub enabled: bool,
}

const fn yes() -> bool {
    true
}

/// What becomes of occurrences that were missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// However many were missed, it is run once, as soon as it may be.
    #[default]
    Once,
    /// They are left out.
    Skip,
}

/// When backups may begin, by the clock of the schedule's time zone. What has not begun when it closes is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleWindow {
    /// When it opens: `22:00`.
    pub from: String,
    /// When it closes; on the next day when that is earlier.
    pub until: String,
    /// Days on which it opens: `monday` to `sunday`. Left out: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// Whether backups that run when it closes are stopped, too.
    #[serde(default)]
    pub stop_running: bool,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the days of the week need no explanation")]
pub enum Day {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// Its id.
    #[schema(value_type = String)]
    pub schedule_id: ScheduleId,
    /// Its name.
    pub name: String,
    /// What is carried out.
    #[schema(value_type = String)]
    pub policy_id: PolicyId,
    /// Whether anything begins by itself.
    pub enabled: bool,
    /// What it says; the policy by id.
    pub rules: ScheduleRules,
    /// When the next occurrence begins; null when it is disabled, or none will.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_at: Option<Timestamp>,
    /// The newest occurrence that was run or skipped; null when there was none.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub handled_at: Option<Timestamp>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// How far ahead to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PreviewQuery {
    /// Days, 1 to 366. At most 1000 occurrences are told.
    #[param(required = false, minimum = 1, maximum = 366, default = 30)]
    pub days: u32,
}

impl Default for PreviewQuery {
    fn default() -> Self {
        Self { days: 30 }
    }
}

/// An occurrence to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Occurrence {
    /// When it is due.
    #[schema(value_type = String, format = DateTime)]
    pub due_at: Timestamp,
    /// When it begins: put off so that not all begin at once.
    #[schema(value_type = String, format = DateTime)]
    pub begins_at: Timestamp,
    /// False when the window is shut then, so that it will be left out.
    pub may_begin: bool,
}

/// An execution of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Execution {
    /// Its id.
    #[schema(value_type = String)]
    pub execution_id: ExecutionId,
    /// The schedule.
    #[schema(value_type = String)]
    pub schedule_id: ScheduleId,
    /// The policy that was carried out.
    #[schema(value_type = String)]
    pub policy_id: PolicyId,
    /// The occurrence.
    #[schema(value_type = String, format = DateTime)]
    pub due_at: Timestamp,
    /// Where it stands.
    #[schema(value_type = schema::ExecutionState)]
    pub state: ExecutionState,
    /// Why it was left out, or how it began or ended.
    pub reason: Option<String>,
    /// Who asked for it; null for an occurrence.
    pub triggered_by: Option<String>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// Its VMs, in the order of their turns; null in lists.
    pub vms: Option<Vec<ExecutionVm>>,
}

/// What became of a VM in an execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecutionVm {
    /// The VM.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// Its name then.
    pub vm_name: String,
    /// Where it stands.
    #[schema(value_type = schema::VmOutcome)]
    pub outcome: VmOutcome,
    /// Its backup, the last one when it was tried again.
    #[schema(value_type = Option<String>)]
    pub backup_id: Option<BackupId>,
    /// How often it was begun.
    pub attempts: u32,
    /// Why it failed, was left out, or is tried again.
    pub reason: Option<String>,
}
