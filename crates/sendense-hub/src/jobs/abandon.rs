//! The end of a task whose job does not come back: it hangs in the kernel, on a device or a share that does not answer.
//!
//! A thread that waits in the kernel cannot be ended. So its task ends without it: the draft or the unfinished file is taken
//! away, the points that it held are free, its place goes to the next one. The thread may come back any time later, and finds
//! nothing that it could still do.
//!
//! Invariant: a job that was left behind makes nothing visible. Either it had passed its point of no return
//! ([`sendense_block::Cancel::commit`]) before it was stopped, and then nothing is taken away from it and nobody says that there
//! is no result; or it never will.

use super::handle::{Handle, Stop};
use super::queue::Needs;
use super::runner::Done;
use crate::core::{Core, blocking};
use crate::fault::Result;
use crate::reconcile;
use crate::repositories::CHECK_PATIENCE;
use sendense_catalog::{LogLevel, Task, TaskSubject};
use sendense_types::{BackupId, Problem, ProblemCode, RepositoryId, TaskKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Jobs that are left behind at once at the most; with more, those that are stopped keep their places until one of these comes
/// back. Each keeps a thread (of tokio's 512) and its lanes with their buffers, so that memory stays bounded.
const LEFT_BEHIND_MAX: usize = 16;

/// How long is waited for what such a job made to be taken away: its file system may be what hangs. The next start, or the next
/// time that the repository is opened, does it then.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A job that was left behind.
#[derive(Debug, Clone)]
pub(crate) struct LeftBehind {
    repository_id: Option<RepositoryId>,
    /// The point that it may be publishing.
    publishing: Option<BackupId>,
}

impl super::Running {
    /// Ends the wait for a job, unless too many are out already. A merge is always waited for: each of a task's merges has a
    /// point of no return of its own, and one that has passed it is changing names, which nobody else may meet half done. So is a move:
    /// its threads write into files that bear their final names.
    pub(super) fn leave_behind(&self, handle: &Handle, task: &Task) -> bool {
        if matches!(task.kind, TaskKind::Consolidate | TaskKind::Move) {
            return false;
        }
        let mut out = self.left_behind.lock();
        if out.len() >= LEFT_BEHIND_MAX {
            return false;
        }
        let tasks = self.tasks.lock();
        let needs = tasks.get(&handle.task_id).map(|entry| entry.needs.clone());
        let repository_id = needs.and_then(|Needs { repository, .. }| repository).map(|(id, _)| id);
        let publishing = match &task.subject {
            TaskSubject::Backup(id) if task.kind == TaskKind::Backup && handle.cancel.is_committed() => {
                Some(id.clone())
            }
            _ => None,
        };
        out.insert(handle.task_id.clone(), LeftBehind { repository_id, publishing });
        true
    }

    /// Points that jobs which were left behind may be publishing at this moment.
    pub fn publishing_left_behind(&self) -> Vec<BackupId> {
        self.left_behind.lock().values().filter_map(|job| job.publishing.clone()).collect()
    }

    /// How many jobs were left behind and have not come back.
    pub fn left_behind(&self) -> usize {
        self.left_behind.lock().len()
    }
}

/// Takes away what a job that does not come back has made, and gives the problem that its task ends with.
pub(super) async fn abandon(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    task: &Task,
    job: JoinHandle<Result<Done>>,
    why: Stop,
) -> Problem {
    let waited_s = handle.stopped_for().as_secs();
    let what = format!("what it was doing has not come back for {waited_s} s and was left behind");
    handle.log(LogLevel::Error, format!("{what}; look at the source and the repository"), serde_json::json!({}));
    tracing::error!(task_id = %task.task_id, waited_s, "a job does not come back and is left behind");
    let left = core.running.left_behind.lock().get(&task.task_id).cloned();
    let is_committed = handle.cancel.is_committed();
    let take_back = handle.abandon();
    // A repository that another hub has by now is that one's to tidy up.
    if !is_committed && !matches!(why, Stop::LeaseLost | Stop::RepositoryLost) {
        let watched = handle.clone();
        let taken = blocking(move || take_back.into_iter().for_each(|take| take(&watched)));
        if tokio::time::timeout(TAKE_BACK_TIMEOUT, taken).await.is_err() {
            handle.warn("what it had made could not be removed yet; the next start will");
        }
        let repository_id = left.as_ref().and_then(|left| left.repository_id.as_ref());
        if let Some(repository) = repository_id.and_then(|id| core.repositories.opened(id)) {
            repository.locks().release_of(task.task_id.as_str());
        }
    }
    wait_for(core, task, job, left);
    match is_committed {
        true => Problem::new(
            ProblemCode::RepositoryUnavailable,
            "it hung while its result was being published",
            format!("{what}; whether there is a result will be seen when the storage answers"),
        ),
        false => {
            let problem = why.problem();
            let details = match problem.details.as_str() {
                "" => what,
                details => format!("{what}; {details}"),
            };
            Problem { details, ..problem }
        }
    }
}

/// Beside everything else, and nobody waits for it: when the job comes back after all, its place among the lost is free, and a
/// point that it was publishing is taken into the catalog.
fn wait_for(core: &Arc<Core>, task: &Task, job: JoinHandle<Result<Done>>, left: Option<LeftBehind>) {
    let (core, task_id) = (core.clone(), task.task_id.clone());
    tokio::spawn(async move {
        drop(job.await);
        core.running.left_behind.lock().remove(&task_id);
        core.running.wake.notify_one();
        tracing::info!(%task_id, "a job that was left behind has come back");
        if let Some(LeftBehind { repository_id: Some(id), publishing: Some(_) }) = left
            && !core.stop.is_cancelled()
        {
            reconcile::repository(&core, &id, CHECK_PATIENCE).await;
        }
        reconcile::reap_task(&core, &task_id).await;
    });
}
