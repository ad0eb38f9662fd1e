//! What `GET /events` tells.

use super::backup::Backup;
use super::task::Task;
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
            Self::Lagged { .. } => "lagged",
        }
    }
}
