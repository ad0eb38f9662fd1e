//! Tasks: the hub's unit of work.

use crate::backup::words;
use serde::{Deserialize, Serialize};

words! {
    /// What a task does.
    TaskKind {
        /// Back up a VM.
        Backup = "backup",
        /// Restore disks.
        Restore = "restore",
        /// Check what is stored.
        Verify = "verify",
        /// Delete points.
        Delete = "delete",
        /// Merge points into their successors.
        Consolidate = "consolidate",
        /// Move a machine's points to another repository.
        Move = "move",
        /// Rebuild the catalog from manifests.
        Import = "import",
        /// List a source's machines.
        Discover = "discover",
    }
}

words! {
    /// The life of a task: `pending -> running -> completed | failed | cancelled`.
    TaskState {
        /// Accepted, waits for a free place.
        Pending = "pending",
        /// At work.
        Running = "running",
        /// Done.
        Completed = "completed",
        /// Ended with an error.
        Failed = "failed",
        /// Stopped by a person.
        Cancelled = "cancelled",
    }
}

impl TaskState {
    /// True when nothing more will happen to it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// True when the state machine allows this step.
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Pending, Self::Running | Self::Failed | Self::Cancelled)
                | (Self::Running, Self::Completed | Self::Failed | Self::Cancelled)
        )
    }
}
