//! Work: what waits, what runs, what may run at once.
//!
//! ```text
//! app -> row (pending) -> dispatcher: limits, claim -> runner: job on threads + report twice a second -> end in one place
//! ```
//!
//! What lives here: the life of tasks. What does not: whether a request is allowed (app), what is left of dead hubs
//! (reconcile). Invariant: a task ends in the catalog exactly once, by the holder of its claim, whatever its job did.

mod abandon;
pub(crate) mod backup;
pub(crate) mod damage;
pub(crate) mod dispatcher;
pub(crate) mod handle;
pub(crate) mod import;
mod lease;
pub(crate) mod merge;
mod migrate;
pub(crate) mod moving;
mod queue;
mod rate;
pub(crate) mod report;
pub(crate) mod restore;
mod restore_remote;
mod restore_vm;
mod runner;
pub(crate) use runner::claim;
pub(crate) mod verify;
pub(crate) mod work;

use handle::{Handle, Stop};
use parking_lot::Mutex;
use queue::Needs;
use sendense_types::{BackupId, RepositoryId, TaskId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// A stopped verification ends with the read that is under way, and its row is written: ten seconds are plenty.
const MAKE_WAY_LOOKS: u32 = 200;
const MAKE_WAY_PAUSE: Duration = Duration::from_millis(50);

/// Starts a task again that this hub has taken over from its earlier life. It has its place already: limits are not asked.
pub(crate) fn start_again(core: &Arc<crate::core::Core>, task: sendense_catalog::Task, work: work::Work) {
    let needs = work.needs(|_| core.limits.running_per_repository, |_| core.limits.running_per_source);
    runner::start(core, task, work, needs);
}

/// What runs in this hub now.
#[derive(Default)]
pub(crate) struct Running {
    tasks: Mutex<HashMap<TaskId, Entry>>,
    /// Jobs of tasks that were ended without them.
    left_behind: Mutex<HashMap<TaskId, abandon::LeftBehind>>,
    /// Rung when a place may have become free, or work has come.
    pub wake: Notify,
}

struct Entry {
    handle: Arc<Handle>,
    needs: Needs,
    view: Mutex<report::View>,
}

impl Running {
    /// A running task of this hub.
    pub fn get(&self, task_id: &TaskId) -> Option<Arc<Handle>> {
        self.tasks.lock().get(task_id).map(|entry| entry.handle.clone())
    }

    /// All running tasks of this hub.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        self.tasks.lock().values().map(|entry| entry.handle.clone()).collect()
    }

    /// The running tasks that work in a repository.
    pub fn of_repository(&self, id: &RepositoryId) -> Vec<Arc<Handle>> {
        let tasks = self.tasks.lock();
        let works_in =
            |needs: &Needs| needs.repository.iter().map(|(of, _)| of).chain(&needs.rewrites).any(|of| of == id);
        let entries = tasks.values().filter(|entry| works_in(&entry.needs));
        entries.map(|entry| entry.handle.clone()).collect()
    }

    /// How many run that take a place.
    pub fn count(&self) -> usize {
        self.tasks.lock().values().filter(|entry| entry.needs.aside.is_none()).count()
    }

    /// True while something is done aside.
    pub fn is_at_work_aside(&self) -> bool {
        self.tasks.lock().values().any(|entry| entry.needs.aside.is_some())
    }

    /// Ends what is done aside with one of these points, so that they can be deleted. Waits until it has ended, but not for
    /// ever: who comes too early is told what is in the way.
    pub async fn make_way(&self, points: &[BackupId]) {
        let in_the_way = || {
            let tasks = self.tasks.lock();
            let is_one = |entry: &&Entry| entry.needs.aside.as_ref().is_some_and(|point| points.contains(point));
            tasks.values().filter(is_one).map(|entry| entry.handle.clone()).collect::<Vec<_>>()
        };
        for _ in 0..MAKE_WAY_LOOKS {
            let handles = in_the_way();
            if handles.is_empty() {
                return;
            }
            for handle in handles {
                handle.stop(Stop::MakesWay);
            }
            tokio::time::sleep(MAKE_WAY_PAUSE).await;
        }
    }

    /// How far a running task was at its last report.
    pub fn view(&self, task_id: &TaskId) -> Option<report::View> {
        self.tasks.lock().get(task_id).map(|entry| *entry.view.lock())
    }

    fn set_view(&self, task_id: &TaskId, view: report::View) {
        if let Some(entry) = self.tasks.lock().get(task_id) {
            *entry.view.lock() = view;
        }
    }

    fn needs(&self) -> Vec<Needs> {
        self.tasks.lock().values().map(|entry| entry.needs.clone()).collect()
    }

    fn enter(&self, handle: Arc<Handle>, needs: Needs) {
        let entry = Entry { handle: handle.clone(), needs, view: Mutex::default() };
        self.tasks.lock().insert(handle.task_id.clone(), entry);
    }

    fn leave(&self, task_id: &TaskId) {
        self.tasks.lock().remove(task_id);
        self.wake.notify_one();
    }
}
