//! Backups of nodes that an earlier life of this hub has begun: taken up again at the start.
//!
//! ```text
//! records -> their tasks are taken over, their nodes' calls are held off (503) -> repository opened, draft gone on with ->
//! the node sends what is missing
//! ```
//!
//! What lives here: from the record to the running task. What does not: the backup itself (the job). Invariant: a record whose
//! task is not ours any more, or has ended, is removed, and what its draft holds is start-up's to undo; and however a backup that
//! was taken up ends, its node is told, so that no machine stays frozen for it.

use super::Nodes;
use super::kept::{Book, Keeper, Record};
use super::run::{Closed, Event, Run};
use crate::core::Core;
use crate::jobs;
use crate::jobs::handle::Handle;
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
    taken_up: Mutex<BTreeMap<TaskId, TakenUp>>,
}

/// What a job goes on with.
struct TakenUp {
    run: Arc<Run>,
    events: mpsc::Receiver<Event>,
}

/// A backup that an earlier life of the hub has begun, in the hands of its job. When it is dropped the order is over, unless the
/// job is paused: a node whose calls are held off would hold its machine for as long as the hub lives.
pub(crate) struct Resuming {
    taken_up: TakenUp,
    nodes: Arc<Nodes>,
    handle: Arc<Handle>,
}

impl Resuming {
    /// The backup that a task goes on with.
    pub fn take(nodes: &Arc<Nodes>, handle: &Arc<Handle>) -> Option<Self> {
        let taken_up = nodes.transfers.taken_up.lock().remove(&handle.task_id)?;
        let (told, order) = (nodes.clone(), taken_up.run.record().order);
        // What hangs in a repository that does not answer drops nothing.
        handle.on_abandon(move |_| told.sessions.remove(&order));
        Some(Self { taken_up, nodes: nodes.clone(), handle: handle.clone() })
    }

    /// What it is.
    pub fn record(&self) -> Record {
        self.run().record()
    }

    pub(super) fn run(&self) -> &Arc<Run> {
        &self.taken_up.run
    }

    pub(super) fn events(&self) -> &mpsc::Receiver<Event> {
        &self.taken_up.events
    }
}

impl Drop for Resuming {
    fn drop(&mut self) {
        let how = if self.handle.is_paused() {
            Closed::Paused
        } else {
            // The node gives it up at its next poll.
            self.nodes.sessions.remove(&self.record().order);
            Closed::Over
        };
        self.run().close(how);
    }
}

impl Transfers {
    /// Reads the records of the hub's earlier life.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        let book = Book::new(folder);
        let found = Mutex::new(book.read_all()?);
        Ok(Self { book, found, taken_up: Mutex::default() })
    }

    /// A backup has ended.
    pub fn forget(&self, task_id: &TaskId) {
        if let Err(error) = self.book.remove(task_id) {
            tracing::warn!(%task_id, error = %error, "remove the record of a node's backup; the next start does");
        }
    }
}

/// Takes a task of the hub's earlier life up again, if it is a backup that was kept. True when it runs, will
/// with a later pass, or another hub has it.
pub(crate) async fn take_up(core: &Arc<Core>, task: &Task) -> bool {
    let Some(record) = core.nodes.transfers.found.lock().remove(&task.task_id) else { return false };
    if task.kind != TaskKind::Backup || task.hub_id.as_ref() != Some(core.data_dir.hub_id()) {
        core.nodes.transfers.forget(&task.task_id);
        return false;
    }
    let kept = record.clone();
    match try_take_up(core, task, record).await {
        Ok(()) => {
            tracing::info!(task_id = %task.task_id, "a node's backup of an earlier life of this hub is waited for");
            true
        }
        Err(Fault::Elsewhere) => {
            core.nodes.transfers.forget(&task.task_id);
            true
        }
        Err(Fault::Later(why)) => {
            tracing::warn!(task_id = %task.task_id, why, "a node's backup is taken up with the next pass");
            core.nodes.transfers.found.lock().insert(task.task_id.clone(), kept);
            true
        }
        Err(Fault::Failed(why)) => {
            tracing::warn!(task_id = %task.task_id, why, "a node's backup cannot be gone on with");
            core.nodes.transfers.forget(&task.task_id);
            false
        }
    }
}

/// What was found and is none of the tasks that wait to be taken up.
pub(crate) fn forget_others(core: &Core, waiting: &[Task]) {
    let mut found = core.nodes.transfers.found.lock();
    found.retain(|task_id, _| {
        let waits = waiting.iter().any(|task| task.task_id == *task_id);
        if !waits {
            core.nodes.transfers.forget(task_id);
        }
        waits
    });
}

enum Fault {
    /// Another hub was faster.
    Elsewhere,
    /// The catalog does not answer.
    Later(String),
    Failed(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Conflict(Conflict::LeaseLost { .. } | Conflict::LeaseHeld { .. }) => Self::Elsewhere,
            Error::Unavailable(_) | Error::Busy(_) => Self::Later(error.to_string()),
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
    let source = core.catalog.sources().get(&work.source_id).await?;
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
    core.nodes.transfers.taken_up.lock().insert(task.task_id.clone(), TakenUp { run, events });
    jobs::start_again(core, taken, Work::Backup(work));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hub, HubConfig, reconcile};
    use sendense_node::remote::message::{Answer, BackupOrder};

    fn order() -> BackupOrder {
        serde_json::from_value(serde_json::json!({
            "freeze": {
                "vm": { "instance_uuid": "u-1", "name": "web" },
                "disks": [],
                "quiesce": true,
                "deployment_id": "dep-1",
                "task_id": TaskId::generate(),
            },
            "disks": [],
            "level": "fast",
            "on_tracking_loss": "full",
            "parallel_disks": 1,
            "audit": { "per_million": 0, "blocks_min": 0, "seed": 0 },
            "lease_seconds": 600,
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn what_is_kept_is_forgotten_once_the_tasks_are_known_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = HubConfig::new(folder.path().join("data"));
        config.listen.set_port(0);
        let hub = Hub::start(config).await.unwrap();
        let core = hub.app().core.clone();
        let find = || {
            let (book, task_id) = (core.nodes.transfers.book.clone(), TaskId::generate());
            let keeper = Keeper::new(book, task_id.clone(), "SITE-A".to_owned(), order(), false, core.now());
            keeper.answered(&Answer::Retired(Vec::new())).unwrap();
            core.nodes.transfers.found.lock().insert(task_id.clone(), keeper.record());
            task_id
        };
        let is_kept = |task_id| core.nodes.transfers.book.read_all().unwrap().contains_key(task_id);
        let without_task = find();
        assert!(is_kept(&without_task));
        reconcile::at_start(&core).await;
        assert!(!is_kept(&without_task), "there is no such task");
        core.catalog.close().await.unwrap();
        let unknown = find();
        reconcile::at_start(&core).await;
        assert!(is_kept(&unknown), "nobody has asked for its task");
        hub.shutdown().await;
    }
}
