//! How far a running task is, as people see it.

use super::handle::Handle;
use super::rate::{Rate, percent};
use sendense_types::{Clock, Phase};
use serde::{Deserialize, Serialize};

/// A report: kept in the task's row, told in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct View {
    /// Where a backup is.
    pub phase: Option<Phase>,
    /// Bytes dealt with.
    pub bytes_done: u64,
    /// Bytes to deal with; 0 until known.
    pub bytes_total: u64,
    /// Bytes of data that had to be stored, before compression.
    pub bytes_transferred: u64,
    /// What they take after compression.
    pub bytes_stored: u64,
    /// Bytes per second, lately.
    pub speed_bps: u64,
    /// Seconds to go.
    pub eta_seconds: Option<u64>,
}

impl View {
    /// 0 to 100.
    pub fn percent(&self) -> f64 {
        percent(self.bytes_done, self.bytes_total)
    }

    /// The report that a row keeps; an empty one when there is none or another version wrote it.
    pub fn read(progress: Option<&serde_json::Value>) -> Self {
        progress.and_then(|progress| Self::deserialize(progress).ok()).unwrap_or_default()
    }
}

/// Takes reports of one task.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    rate: Rate,
}

impl Reporter {
    /// The task as it is now.
    pub fn take(&mut self, handle: &Handle, clock: &dyn Clock) -> View {
        let progress = handle.snapshot();
        self.rate.sample(clock.now(), progress.done.0);
        View {
            phase: handle.phase(),
            bytes_done: progress.done.0,
            bytes_total: progress.planned.0,
            bytes_transferred: progress.stored.0,
            bytes_stored: progress.frames.0,
            speed_bps: self.rate.bytes_per_second(),
            eta_seconds: self.rate.eta_seconds(progress.planned.0),
        }
    }
}
