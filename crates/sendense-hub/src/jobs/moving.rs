//! Moving a machine's points to another repository.
//!
//! The repositories decide whose the points are ([`sendense_repo::moving`]); the catalog follows. So the job has nothing to remember:
//! it settles what an earlier life of it has left, and goes on with the copies that lie there.
//!
//! - **A hub that dies**: the task stays running in its row. The next start, of this hub or another, takes it over and does the same
//!   again ([`go_on`]); the copies are not made anew. A task that ends otherwise leaves the rest to [`crate::reconcile`].
//! - **Two hubs**: a move needs both repositories, and each has one owner. Who has lost the task, or one of the two, goes over to
//!   nothing more: asked right before the points go over, and by each step in a repository.
//! - **A repository that is removed** from the catalog meanwhile takes no points, and one that takes some is not removed.
//! - **Two moves** of a machine: refused where it is asked for, by the claims while one runs, and by the folders until it is settled.

use super::handle::{Handle, Stop};
use super::lease;
use super::work::{MoveWork, Work};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_repo};
use crate::maintenance::Use;
use sendense_catalog as catalog;
use sendense_catalog::{Conflict, Error, Task, TaskClaim};
use sendense_repo::moving::{Done, Ends, Finished, Ledger, Options};
use sendense_repo::{Kind, MovePlan, Repository};
use sendense_types::{BackupId, Problem, ProblemCode, RepositoryId, Timestamp, VmContextId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle as Runtime;

/// Reads in flight while copies are read back: as few as keep a disk busy, for backups come first.
const THREADS: usize = 2;
/// How long the copies wait for readers to end before they are given up: as long as a merge does.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// How often what is verified aside is asked to make way: as often as something to verify is looked for.
const MAKE_WAY_PERIOD: Duration = Duration::from_secs(10);
/// A repository that was another hub's, or not mounted yet, is waited for after a start: longer than a lease lasts.
const OPEN_TRIES: u32 = 60;
const OPEN_PAUSE: Duration = Duration::from_secs(3);
/// A task that was taken over so often brings hubs down, or never comes to its end.
const ATTEMPTS_MAX: u32 = 10;

/// The catalog, as a move asks it and tells it.
pub(crate) struct Books {
    pub core: Arc<Core>,
    pub runtime: Runtime,
    pub vm: VmContextId,
    pub to: RepositoryId,
    /// The task that does it; none where what was cut off is settled.
    pub task: Option<(Arc<Handle>, TaskClaim)>,
}

impl Ledger for Books {
    fn now(&self) -> Timestamp {
        self.core.now()
    }

    fn refuse(&self, points: &BTreeSet<BackupId>) -> sendense_repo::Result<()> {
        // It finds what it runs on by the repository that it began with.
        let points: Vec<BackupId> = points.iter().cloned().collect();
        if let Some((recovery_id, held)) = self.core.recoveries.holding(&points) {
            let why =
                format!("recovery {recovery_id} runs on {held}; the points stay where they are until it is ended");
            return Err(sendense_repo::Error::new(Kind::Conflict { holders: Vec::new() }, why));
        }
        let Some((handle, claim)) = &self.task else { return Ok(()) };
        if self.runtime.block_on(lease::check(&self.core, handle, claim)).is_err() {
            return Err(sendense_repo::Error::new(Kind::Fenced, "another hub took the task over"));
        }
        let context = match self.runtime.block_on(self.core.catalog.repositories().get(&self.to)) {
            Ok(_) => return Ok(()),
            Err(error) => crate::fault::of_catalog(&error).message,
        };
        Err(sendense_repo::Error::new(Kind::Unavailable, format!("look for the repository: {context}")))
    }

    fn switch(&self, points: &BTreeSet<BackupId>) -> sendense_repo::Result<()> {
        let backups = self.core.catalog.backups();
        match self.runtime.block_on(backups.moved(&self.vm, points, &self.to, self.core.now())) {
            Ok(rows) => {
                tracing::info!(vm_id = %self.vm, repository_id = %self.to, rows, "points lie in another repository now");
                Ok(())
            }
            // Also where the repository is not in the catalog any more: nothing is removed from the old one then.
            Err(error) => Err(sendense_repo::Error::new(Kind::Unavailable, crate::fault::of_catalog(&error).message)),
        }
    }

    fn goes_on(&self) -> bool {
        let stopped = self.task.as_ref().and_then(|(handle, _)| handle.stopped());
        matches!(stopped, Some(Stop::Shutdown | Stop::LeaseLost))
    }
}

/// What came of it.
enum Outcome {
    /// All of it.
    Done(Done),
    /// What an earlier life of the task had left to do.
    Settled,
}

pub(crate) async fn run(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    claim: &TaskClaim,
    work: MoveWork,
) -> Result<serde_json::Value> {
    let (from, to) = (&work.repository_id, &work.to_repository_id);
    let moved = go(core, handle, claim, &work).await;
    if moved.is_err() {
        if handle.stopped() == Some(Stop::Shutdown) && handle.pause() {
            return Err(Stop::Shutdown.problem());
        }
        // Whatever it has left, in either.
        [from, to].into_iter().for_each(|id| core.repositories.look_again(id));
    }
    let names = (name(core, from).await, name(core, to).await);
    let mut summary = format!("the points of {} lie in {} now", work.vm_name, names.1);
    let (points, bytes) = match moved? {
        Outcome::Settled => (None, None),
        Outcome::Done(done) => {
            summary = format!("{} points of {} were moved from {} to {}", done.points, work.vm_name, names.0, names.1);
            if let Some(error) = &done.left {
                let why = sendense_block::error::chain(error);
                handle.warn(format!("what lies in {} could not all be removed yet, and will be: {why}", names.0));
                core.repositories.look_again(from);
            }
            (Some(done.points), Some(done.bytes))
        }
    };
    handle.info(summary.clone());
    Ok(serde_json::json!({ "summary": summary, "points": points, "bytes": bytes }))
}

async fn go(core: &Arc<Core>, handle: &Arc<Handle>, claim: &TaskClaim, work: &MoveWork) -> Result<Outcome> {
    let source = open(core, handle, &work.repository_id).await?;
    let target = open(core, handle, &work.to_repository_id).await?;
    let ends = Ends {
        from: work.repository_id.to_string(),
        to: work.to_repository_id.to_string(),
        who: handle.task_id.to_string(),
    };
    let books = Books {
        core: core.clone(),
        runtime: Runtime::current(),
        vm: work.vm_context_id.clone(),
        to: work.to_repository_id.clone(),
        task: Some((handle.clone(), claim.clone())),
    };
    let books = Arc::new(books);
    let known = points_of(core, &work.vm_context_id).await?;
    core.running.make_way(&known).await;
    let is_taken_over = core.catalog.tasks().get(&claim.task_id).await.or_problem()?.attempts > 1;
    let begun = {
        let (source, target, vm, ends, books) =
            (source.clone(), target.clone(), work.vm_context_id.clone(), ends.clone(), books.clone());
        blocking(move || -> sendense_repo::Result<Option<MovePlan>> {
            match source.finish_move(&vm, &target, &ends, &*books)? {
                Finished::Moved => Ok(None),
                Finished::NotBegun => match source.plan_move(&vm, &target) {
                    // An earlier life had done all of it, and died before it could say so.
                    Err(error)
                        if error.kind == Kind::NotFound && is_taken_over && !target.list(&vm)?.points.is_empty() =>
                    {
                        Ok(None)
                    }
                    planned => planned.map(Some),
                },
            }
        })
        .await?
        .or_problem()?
    };
    let Some(plan) = begun else { return Ok(Outcome::Settled) };
    let ids: Vec<BackupId> = plan.ids().into_iter().collect();
    refuse_recovered(core, &ids)?;
    handle.info(format!("{} points, {} bytes, are copied and read back", ids.len(), plan.bytes()));
    let bytes_per_second = work.bytes_per_second_max;
    let options = Options { ends, threads: THREADS, patience: PATIENCE, humble: true, bytes_per_second };
    let (progress, cancel) = (handle.measure_verify(), handle.cancel.clone());
    let stopped = cancel.clone();
    let hub = core.clone();
    let make_way = async {
        loop {
            tokio::time::sleep(MAKE_WAY_PERIOD).await;
            hub.running.make_way(&ids).await;
        }
    };
    let done = blocking(move || source.execute_move(&target, &plan, &options, &progress, &cancel, &*books));
    let done = tokio::select! {
        done = done => done?,
        never = make_way => never,
    };
    match done {
        Ok(done) => Ok(Outcome::Done(done)),
        // Until it is committed nothing was written but there.
        Err(error) if error.kind == Kind::NoSpace && !stopped.is_committed() => {
            let (from, to) = (name(core, &work.repository_id).await, name(core, &work.to_repository_id).await);
            let why = sendense_block::error::chain(&error);
            let details = format!("{why}; the points stay in {from}: make room for {to}, and ask for the move again");
            Err(Problem::new(ProblemCode::NoSpace, format!("no space in repository {to}"), details))
        }
        Err(error) => Err(of_repo(&error)),
    }
}

/// What people call a repository.
async fn name(core: &Core, id: &RepositoryId) -> String {
    match core.catalog.repositories().get(id).await {
        Ok(row) => row.name.to_string(),
        Err(_) => id.to_string(),
    }
}

/// A recovery runs on a point, also one that is not served now, which claims nothing in the repository.
pub(crate) fn refuse_recovered(core: &Core, ids: &[BackupId]) -> Result<()> {
    let Some((recovery_id, held)) = core.recoveries.holding(ids) else { return Ok(()) };
    let details = format!("recovery {recovery_id} runs on {held}; commit or discard it first");
    Err(Problem::new(ProblemCode::Conflict, "a point is in use", details))
}

/// The repository. One that another hub had a moment ago, or whose file system comes late, is waited for.
async fn open(core: &Arc<Core>, handle: &Handle, id: &RepositoryId) -> Result<Repository> {
    for left in (0..OPEN_TRIES).rev() {
        match core.repositories.by_id(core, id, Use::GoOn).await {
            Err(problem)
                if left > 0
                    && handle.stopped().is_none()
                    && matches!(problem.code, ProblemCode::RepositoryOwned | ProblemCode::RepositoryUnavailable) =>
            {
                tokio::time::sleep(OPEN_PAUSE).await;
            }
            opened => return opened,
        }
    }
    unreachable!("the last try returns")
}

/// The newest points of a machine, wherever the catalog says that they lie.
async fn points_of(core: &Core, vm: &VmContextId) -> Result<Vec<BackupId>> {
    let filter = catalog::BackupFilter { vm_context_id: Some(vm.clone()), ..catalog::BackupFilter::default() };
    let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
    let (rows, _) = core.catalog.backups().list(&filter, page).await.or_problem()?;
    Ok(rows.into_iter().map(|row| row.backup_id).collect())
}

/// Takes a move of a dead hub up again. False when it is none, or has been tried too often: then it ends.
pub(crate) async fn go_on(core: &Arc<Core>, task: &Task) -> bool {
    let work = match Work::read(&task.request) {
        Ok(work @ Work::Move(_)) if task.attempts < ATTEMPTS_MAX => work,
        _ => return false,
    };
    let until = core.limits.lease_until(core.now());
    match core.catalog.tasks().take_over(&task.claim(), &core.lease, until, core.now()).await {
        Ok(taken) => {
            tracing::info!(task_id = %task.task_id, "a move that was cut off goes on");
            super::start_again(core, taken, work);
        }
        // Another hub was faster.
        Err(Error::Conflict(Conflict::LeaseLost { .. } | Conflict::LeaseHeld { .. })) => {}
        Err(error) => tracing::warn!(task_id = %task.task_id, error = %error, "take a move up again"),
    }
    true
}
