//! What `GET /events` tells.

use super::backup::Backup;
use super::task::Task;
use crate::schema;
use sendense_types::{BackupId, DiskNumber, RepositoryId, SourceId, SpaceState, TaskId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something happened. The server-sent event's name is `type`, its data is this object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    /// A task was made, went on, or ended. The task is told whole, so a reader may miss events and still be right.
    Task {
        /// The task as it is now.
        task: Box<Task>,
    },
    /// A backup was made, changed its state, or was deleted.
    Backup {
        /// The backup as it is now.
        backup: Box<Backup>,
    },
    /// Something that somebody should look at. It is in the task's log, too.
    Alert {
        /// What it is.
        alert: Alert,
    },
    /// The room of a repository has become scarce, or is enough again.
    Space {
        /// Which one, and how it is.
        space: SpaceAlert,
    },
    /// Something of ours on a source cannot be removed, or is gone at last.
    #[serde(rename = "left_over")]
    LeftOver {
        /// Which thing, and how it is.
        left_over: LeftOverAlert,
    },
    /// The reader was too slow and missed events; it should ask for what it watches.
    Lagged {
        /// How many were missed.
        missed: u64,
    },
}

impl Event {
    /// The name under which it is sent.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Task { .. } => "task",
            Self::Backup { .. } => "backup",
            Self::Alert { .. } => "alert",
            Self::Space { .. } => "space",
            Self::LeftOver { .. } => "left_over",
            Self::Lagged { .. } => "lagged",
        }
    }
}

/// Something that somebody should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// What sort it is. More may come; none is ever renamed.
    pub kind: AlertKind,
    /// The backup that met it, or whose data it is.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The machine.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// The machine's name.
    pub vm_name: String,
    /// The disk.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// What was found and what was done, for people.
    pub message: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// How the room of a repository is, told when that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpaceAlert {
    /// The repository.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// Its name.
    pub name: String,
    /// How its room is now.
    #[schema(value_type = schema::SpaceState)]
    pub state: SpaceState,
    /// The figures, for people.
    pub message: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// Something that a task made on a source and that could not be removed. Told when several tries have failed, and once more when it
/// is gone. What stays now is in `GET /debug/health`, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftOverAlert {
    /// Where it is.
    #[schema(value_type = String)]
    pub source_id: SourceId,
    /// The task that made it.
    #[schema(value_type = String)]
    pub task_id: TaskId,
    /// What it is. More may come; none is ever renamed.
    pub kind: LeftOverKind,
    /// The machine, in its source's words; empty when it is of none.
    pub vm_key: String,
    /// The machine's name, where it is known.
    pub vm_name: Option<String>,
    /// How it is.
    pub state: LeftOverState,
    /// What was tried and why it failed, for people.
    pub message: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// What a thing on a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeftOverKind {
    /// A backup job that runs in the hypervisor.
    BackupJob,
    /// A tracking mark: a checkpoint, a bitmap.
    Checkpoint,
    /// A guest whose file systems are frozen.
    FrozenGuest,
    /// A process beside the hypervisor.
    ChildProcess,
    /// A file or folder.
    File,
    /// A snapshot of a machine.
    Snapshot,
    /// A machine whose restore did not end.
    Machine,
}

/// How a thing on a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeftOverState {
    /// It could not be removed. It is tried again.
    Stays,
    /// It is not there any more.
    Gone,
}

/// Sorts of alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// Change tracking called blocks unchanged that had changed.
    ChangeTrackingWrong,
    /// Stored data of a point is not what was written. The message names the points that need what is lost.
    PointDamaged,
}
