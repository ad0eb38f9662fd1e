//! Executions of schedules.

use crate::backup::words;
use serde::{Deserialize, Serialize};

words! {
    /// The life of an execution: `running -> completed | failed | cancelled`; or `skipped` from the start.
    ExecutionState {
        /// Machines wait or are at work.
        Running = "running",
        /// Every machine has a point.
        Completed = "completed",
        /// A machine at least has none.
        Failed = "failed",
        /// Stopped by a person.
        Cancelled = "cancelled",
        /// The occurrence was not run.
        Skipped = "skipped",
    }
}

words! {
    /// What became of a machine in an execution.
    VmOutcome {
        /// Its turn has not come, or it is to be tried again.
        Waiting = "waiting",
        /// It is being backed up.
        Running = "running",
        /// It has a point.
        Completed = "completed",
        /// It has none.
        Failed = "failed",
        /// It was left out.
        Skipped = "skipped",
    }
}

impl ExecutionState {
    /// True when nothing more will happen to it.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Running)
    }
}

impl VmOutcome {
    /// True when nothing more will happen to it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Skipped)
    }
}
