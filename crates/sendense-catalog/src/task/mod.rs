//! Tasks: rows with a state machine, taken by lease and fenced by version.
//!
//! What lives here: making, taking, reporting, ending, listing. What does not: doing. A taker gets a [`TaskClaim`]; every
//! report carries it, and a report whose version is not the row's is refused, so that a hub that was taken for dead cannot
//! overwrite what its successor did.
//!
//! ```text
//! create -> pending --claim--> running --finish--> completed | failed | cancelled
//!                               |  ^
//!                               +--+ take_over (the holder is dead: version + 1)
//! ```
//!
//! Invariant: the version grows with each change of holder or state, and only the holder of the present one may write.

mod claim;
mod forget;
mod list;
mod log;

pub use claim::{Heartbeat, TaskClaim};
pub(crate) use claim::{
    cancel_waiting_in, count_new_in, error_text, finish_in, heartbeat_in, insert_in, require_claim,
};
pub use list::TaskFilter;
pub use log::{LogLevel, LogLine, NewLogLine};

use crate::error::{Error, Result};
use crate::{Catalog, entity, value};
use sendense_types::{BackupId, HubId, ProblemCode, RepositoryId, SourceId, TaskId, TaskKind, TaskState, Timestamp};
use serde_json::Value;

/// What a task is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TaskSubject {
    /// A restore point.
    Backup(BackupId),
    /// A source.
    Source(SourceId),
    /// A repository.
    Repository(RepositoryId),
    /// Nothing that has an id.
    None,
}

impl TaskSubject {
    fn kind(&self) -> &'static str {
        match self {
            Self::Backup(_) => "backup",
            Self::Source(_) => "source",
            Self::Repository(_) => "repository",
            Self::None => "none",
        }
    }

    /// The id as text.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Backup(id) => Some(id.as_str()),
            Self::Source(id) => Some(id.as_str()),
            Self::Repository(id) => Some(id.as_str()),
            Self::None => None,
        }
    }

    fn read(kind: &str, id: Option<&str>) -> Result<Self> {
        match (kind, id) {
            ("backup", Some(id)) => Ok(Self::Backup(value::read("subject_id", id)?)),
            ("source", Some(id)) => Ok(Self::Source(value::read("subject_id", id)?)),
            ("repository", Some(id)) => Ok(Self::Repository(value::read("subject_id", id)?)),
            ("none", None) => Ok(Self::None),
            _ => Err(Error::Unreadable { column: "subject_kind", reason: format!("{kind:?} with id {id:?}") }),
        }
    }
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Who.
    pub task_id: TaskId,
    /// What it does.
    pub kind: TaskKind,
    /// Where it stands.
    pub state: TaskState,
    /// What it is about.
    pub subject: TaskSubject,
    /// What was asked for. The shape belongs to the hub.
    pub request: Value,
    /// What came out.
    pub result: Option<Value>,
    /// Which hub holds or held it.
    pub hub_id: Option<HubId>,
    /// In which of its epochs.
    pub hub_epoch: Option<i64>,
    /// Until when the holder is believed to be at work.
    pub lease_until: Option<Timestamp>,
    /// The fencing number.
    pub version: i64,
    /// How often it was taken.
    pub attempts: u32,
    /// True when someone asked to stop it.
    pub cancel_requested: bool,
    /// The last report. The shape belongs to the hub.
    pub progress: Option<Value>,
    /// Of the last report.
    pub bytes_done: u64,
    /// Of the last report; 0 when not known.
    pub bytes_total: u64,
    /// How many lines its log has had; the oldest may be gone.
    pub log_lines: u64,
    /// Why it failed.
    pub error_code: Option<ProblemCode>,
    /// Why it failed, for people.
    pub error_message: Option<String>,
    /// Who asked for it.
    pub created_by: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it was taken first.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl Task {
    /// The claim of whoever holds the task as it was when this was read.
    pub fn claim(&self) -> TaskClaim {
        TaskClaim { task_id: self.task_id.clone(), version: self.version }
    }
}

/// A task to make.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// Who.
    pub task_id: TaskId,
    /// What it does.
    pub kind: TaskKind,
    /// What it is about.
    pub subject: TaskSubject,
    /// What was asked for.
    pub request: Value,
    /// Who asked.
    pub created_by: Option<String>,
}

/// Tasks and their logs.
#[derive(Debug, Clone, Copy)]
pub struct Tasks<'a>(pub(crate) &'a Catalog);

impl TryFrom<entity::tasks::Model> for Task {
    type Error = Error;
    fn try_from(row: entity::tasks::Model) -> Result<Self> {
        Ok(Self {
            task_id: value::read("task_id", &row.task_id)?,
            kind: value::read("kind", &row.kind)?,
            state: value::read("state", &row.state)?,
            subject: TaskSubject::read(&row.subject_kind, row.subject_id.as_deref())?,
            request: row.request,
            result: row.result,
            hub_id: value::read_opt("hub_id", row.hub_id.as_deref())?,
            hub_epoch: row.hub_epoch,
            lease_until: row.lease_until.map(Into::into),
            version: row.version,
            attempts: value::read_u32("attempts", row.attempts)?,
            cancel_requested: row.cancel_requested,
            progress: row.progress,
            bytes_done: value::read_u64("bytes_done", row.bytes_done)?,
            bytes_total: value::read_u64("bytes_total", row.bytes_total)?,
            log_lines: value::read_u64("log_next", row.log_next)?,
            error_code: problem_code(row.error_code.as_deref())?,
            error_message: row.error_message,
            created_by: row.created_by,
            created_at: row.created_at.into(),
            started_at: row.started_at.map(Into::into),
            finished_at: row.finished_at.map(Into::into),
        })
    }
}

/// Reads a problem code back.
pub(crate) fn problem_code(text: Option<&str>) -> Result<Option<ProblemCode>> {
    let unreadable =
        |text: &str| Error::Unreadable { column: "error_code", reason: format!("{text:?} is not a problem code") };
    text.map(|text| text.parse().map_err(|()| unreadable(text))).transpose()
}
