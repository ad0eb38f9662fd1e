//! Backups of nodes that an earlier life of this hub has begun: taken up again at the start.
//!
//! ```text
//! records -> their tasks are taken over, their nodes' calls are held off (503) -> repository opened, draft gone on with ->
//! the node sends what is missing
//! ```
//!
//! What lives here: from the record to the running task. What does not: the backup itself (the job). Invariant: a record whose
//! task is not ours any more, or has ended, is removed, and what its draft holds is start-up's to undo.

use super::kept::{Book, Keeper, Record};
use super::run::{Resuming, Run};
use crate::core::Core;
use crate::fault::OrProblem;
use crate::jobs;
use crate::jobs::work::Work;
use parking_lot::Mutex;
use sendense_catalog::{Conflict, Error, Task};
use sendense_types::{TaskId, TaskKind};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

/// The backups that outlive the hub.
pub(crate) struct Transfers {
    pub book: Book,
    /// Found at the start, and not taken up yet.
    found: Mutex<BTreeMap<TaskId, Record>>,
    /// Taken up, until their jobs begin.
    resuming: Mutex<BTreeMap<TaskId, Resuming>>,
}

impl Transfers {
    /// Reads the records of the hub's earlier life.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        let book = Book::new(folder);
        let found = Mutex::new(book.read_all()?);
        Ok(Self { book, found, resuming: Mutex::default() })
    }

    /// The backup that a task goes on with.
    pub fn take(&self, task_id: &TaskId) -> Option<Resuming> {
        self.resuming.lock().remove(task_id)
    }

    /// A backup has ended.
    pub fn forget(&self, task_id: &TaskId) {
        if let Err(error) = self.book.remove(task_id) {
            tracing::warn!(%task_id, error = %error, "remove the record of a node's backup; the next start does");
        }
    }
}

/// Takes a task of the hub's earlier life up again, if it is a backup that was kept. True when it runs, or another hub has it.
pub(crate) async fn take_up(core: &Arc<Core>, task: &Task) -> bool {
    let Some(record) = core.nodes.transfers.found.lock().remove(&task.task_id) else { return false };
    if task.kind != TaskKind::Backup || task.hub_id.as_ref() != Some(core.data_dir.hub_id()) {
        core.nodes.transfers.forget(&task.task_id);
        return false;
    }
    match try_take_up(core, task, record).await {
        Ok(()) => {
            tracing::info!(task_id = %task.task_id, "a node's backup of an earlier life of this hub is waited for");
            true
        }
        Err(Fault::Elsewhere) => {
            core.nodes.transfers.forget(&task.task_id);
            true
        }
        Err(Fault::Failed(why)) => {
            tracing::warn!(task_id = %task.task_id, why, "a node's backup cannot be gone on with");
            core.nodes.transfers.forget(&task.task_id);
            false
        }
    }
}

/// What was found and is not a running task any more.
pub(crate) fn forget_others(core: &Core) {
    let others = std::mem::take(&mut *core.nodes.transfers.found.lock());
    for task_id in others.keys() {
        core.nodes.transfers.forget(task_id);
    }
}

enum Fault {
    /// Another hub was faster.
    Elsewhere,
    Failed(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Conflict(Conflict::LeaseLost { .. } | Conflict::LeaseHeld { .. }) => Self::Elsewhere,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<sendense_types::Problem> for Fault {
    fn from(problem: sendense_types::Problem) -> Self {
        Self::Failed(problem.to_string())
    }
}

async fn try_take_up(core: &Arc<Core>, task: &Task, record: Record) -> Result<(), Fault> {
    let Work::Backup(work) = Work::read(&task.request)? else {
        return Err(Fault::Failed("it is no backup".to_owned()));
    };
    let source = core.catalog.sources().get(&work.source_id).await.or_problem()?;
    let remote = core.remote_source(&source)?.filter(|remote| remote.node() == record.node);
    let remote = remote.ok_or_else(|| Fault::Failed("its source is not bound to the node any more".to_owned()))?;
    let until = core.limits.lease_until(core.now());
    let taken = core.catalog.tasks().take_over(&task.claim(), &core.lease, until, core.now()).await?;
    let keeper = Keeper::again(core.nodes.transfers.book.clone(), record);
    let keeper = keeper.map_err(|error| Fault::Failed(format!("its record cannot be written: {error}")))?;
    let is_answered = keeper.record().answer.is_some();
    let (told, events) = mpsc::channel();
    let run = Arc::new(Run::new(keeper, told));
    if !is_answered {
        remote.expect_backup(run.clone());
    }
    core.nodes.transfers.resuming.lock().insert(task.task_id.clone(), Resuming { run, events });
    jobs::start_again(core, taken, Work::Backup(work));
    Ok(())
}
