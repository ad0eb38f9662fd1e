//! Tasks and their logs.

use super::page::Limit;
use crate::problem::TaskError;
use crate::schema;
use sendense_types::{BackupId, RepositoryId, SourceId, TaskId, TaskKind, TaskState, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Which tasks to list; the conditions are combined with AND.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct TaskFilter {
    /// In this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<schema::TaskState>)]
    pub state: Option<TaskState>,
    /// Of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<schema::TaskKind>)]
    pub kind: Option<TaskKind>,
    /// About this backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length = 1, max_length = 64)]
    pub backup_id: Option<BackupId>,
    /// About this VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$", min_length = 1, max_length = 64)]
    pub vm_context_id: Option<VmContextId>,
    /// How many at most.
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: Limit,
    /// How many to leave out at the start.
    #[serde(deserialize_with = "super::page::offset")]
    #[param(required = false, maximum = 2147483647)]
    pub offset: u64,
}

/// A piece of the hub's work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its id.
    #[schema(value_type = String)]
    pub task_id: TaskId,
    /// What it does.
    #[schema(value_type = schema::TaskKind)]
    pub kind: TaskKind,
    /// Its state.
    #[schema(value_type = schema::TaskState)]
    pub state: TaskState,
    /// The backup it is about.
    #[schema(value_type = Option<String>)]
    pub backup_id: Option<BackupId>,
    /// The VM it is about.
    #[schema(value_type = Option<String>)]
    pub vm_context_id: Option<VmContextId>,
    /// That VM's name.
    pub vm_name: Option<String>,
    /// The repository it is about.
    #[schema(value_type = Option<String>)]
    pub repository_id: Option<RepositoryId>,
    /// The source it is about.
    #[schema(value_type = Option<String>)]
    pub source_id: Option<SourceId>,
    /// Who asked for it.
    pub requested_by: Option<String>,
    /// What it does right now, in one word.
    pub phase: Option<String>,
    /// 0 to 100.
    pub progress_percent: f64,
    /// Bytes dealt with: read from the source by a backup, written by a restore, checked by a verification.
    pub bytes_done: u64,
    /// Bytes to deal with, when that is known.
    pub bytes_total: Option<u64>,
    /// `bytes_done` per second over the last ten seconds; 0 unless it runs.
    pub transfer_speed_bps: u64,
    /// Seconds until `bytes_total` at this speed; null unless it runs, and while nothing moves.
    pub eta_seconds: Option<u64>,
    /// What came of it, in one sentence.
    pub summary: Option<String>,
    /// Why it failed.
    pub error: Option<TaskError>,
    /// True when a person asked it to stop.
    pub cancel_requested: bool,
    /// Where its log is read.
    #[schema(example = "/api/v1/tasks/task-0192f0c1/log")]
    pub log_url: String,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When work began.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
}

impl Task {
    /// Where the log of a task is read.
    pub fn log_url(task: &TaskId) -> String {
        format!("/api/v1/tasks/{task}/log")
    }
}

/// One line of a task's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Its place in the task's log, from 1, without gaps.
    pub sequence: u64,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// How much it matters.
    pub level: LogLevel,
    /// What happened.
    pub message: String,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// A state changed.
    Info,
    /// It works, but somebody should look at it.
    Warn,
    /// A person must look at it.
    Error,
}

impl LogLevel {
    /// The text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl std::str::FromStr for LogLevel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            other => Err(format!("{other:?} is not one of info, warn, error")),
        }
    }
}
