//! The record of what we made outside our own process, written before it is made.

use crate::error::Result;
use sendense_types::{SourceId, TaskId};
use serde::{Deserialize, Serialize};

/// What sort of thing was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtefactKind {
    /// A backup job that runs in the hypervisor.
    BackupJob,
    /// A tracking mark (checkpoint, bitmap). Kept when the point is published.
    Checkpoint,
    /// A guest whose file systems are frozen; must be thawed within seconds.
    FrozenGuest,
    /// A child process, with its pid and start time, so that a reused pid is never hit.
    ChildProcess,
    /// A file or folder: scratch, socket.
    File,
    /// A snapshot of a machine.
    Snapshot,
    /// A machine that is being restored, with its files. Kept when it is whole.
    Machine,
}

/// One thing that we made or were about to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// On which source.
    pub source_id: SourceId,
    /// For which task. Without a live lease of that task, the thing is an orphan.
    pub task_id: TaskId,
    /// What it is.
    pub kind: ArtefactKind,
    /// The machine it belongs to, in the source's own words; empty when none.
    pub vm_key: String,
    /// What the source needs to find and undo it.
    pub details: serde_json::Value,
}

/// Keeps artefacts durably. `record` returns only when the entry is on stable storage.
pub trait Journal: Send + Sync {
    /// Writes an entry; returns its number.
    fn record(&self, artefact: &Artefact) -> Result<u64>;

    /// Closes an entry: nothing of it remains, or it was handed over.
    fn close(&self, entry: u64) -> Result<()>;

    /// All open entries, oldest first.
    fn open_entries(&self) -> Result<Vec<(u64, Artefact)>>;
}
