//! Runs one task that was claimed: starts its job, reports twice a second, ends it in the catalog.

use super::handle::{Handle, Stop};
use super::queue::Needs;
use super::report::Reporter;
use super::work::{BackupWork, Work};
use super::{abandon, backup, import, migrate, restore, verify};
use crate::app::App;
use crate::core::Core;
use crate::fault::{Result, of_catalog};
use crate::hooks::{self, Ending};
use crate::reconcile;
use crate::verification;
use sendense_catalog::{Completed, Conflict, Error, Heartbeat, LogLevel, Task, TaskClaim};
use sendense_types::{Problem, ProblemCode, TaskKind, TaskState, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Between two reports: a person sees motion, and the database gets two small writes a second and task.
const REPORT_PERIOD: Duration = Duration::from_millis(500);

/// How often ending a task in the catalog is tried once more, [`FINISH_PAUSE`] apart: five minutes, in which a database restarts.
/// After that the row's lease is out and start-up (of this hub or another) says what became of it.
const FINISH_TRIES_MAX: u32 = 60;
const FINISH_PAUSE: Duration = Duration::from_secs(5);

/// What a job leaves.
pub(crate) enum Done {
    /// A point was published.
    Backup(Box<Completed>),
    /// Anything else, with what came of it.
    Other(serde_json::Value),
}

fn lease_until(core: &Core) -> Timestamp {
    core.limits.lease_until(core.now())
}

/// Takes a waiting task.
pub(crate) async fn claim(core: &Core, task: &Task) -> Result<Task, Error> {
    core.catalog.tasks().claim(&task.claim(), &core.lease, lease_until(core), core.now()).await
}

/// Ends a waiting task that cannot be done.
pub(crate) async fn refuse(core: &Core, task: &Task, problem: &Problem) {
    let ended = async {
        let task = claim(core, task).await?;
        end(core, &task.claim(), task.kind, Err(problem)).await
    };
    if let Err(error) = ended.await {
        tracing::warn!(task_id = %task.task_id, error = %error, "refuse a task");
    }
}

/// Starts a claimed task beside whatever runs.
pub(crate) fn start(core: &Arc<Core>, task: Task, work: Work, needs: Needs) {
    let handle = Arc::new(Handle::new(task.task_id.clone(), core.clock.clone()));
    core.running.enter(handle.clone(), needs);
    if task.cancel_requested {
        handle.stop(Stop::Person);
    }
    if core.stop.is_cancelled() {
        handle.stop(Stop::Shutdown);
    }
    let core = core.clone();
    core.tracker.clone().spawn(async move {
        run(&core, &handle, &task, work).await;
        core.running.leave(&handle.task_id);
    });
}

async fn run(core: &Arc<Core>, handle: &Arc<Handle>, task: &Task, work: Work) {
    tracing::info!(task_id = %task.task_id, kind = %task.kind, "task begins");
    let began = core.now();
    let claim = task.claim();
    let time_limit_s = work.time_limit_seconds();
    let backup = if let Work::Backup(work) = &work { Some(work.clone()) } else { None };
    crate::app::tell::task(core, &task.task_id).await;
    let mut job = tokio::spawn(job(core.clone(), handle.clone(), claim.clone(), work));
    let mut reporter = Reporter::default();
    let mut tick = tokio::time::interval(REPORT_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut lease = Lease { until: lease_until(core) };
    let ended = loop {
        tokio::select! {
            ended = &mut job => break Some(ended),
            _ = tick.tick() => {
                if time_limit_s.is_some_and(|limit| core.now().seconds_since(began) > f64::from(limit))
                    && handle.stop(Stop::TimeLimit)
                {
                    handle.log(LogLevel::Error, "the time limit has passed; the task is ended", serde_json::json!({}));
                }
                report(core, handle, &claim, &mut reporter, &mut lease).await;
                if handle.is_overdue(core.limits.stop_grace) && core.running.leave_behind(handle, task) {
                    break None;
                }
            }
        }
    };
    let is_left_behind = ended.is_none();
    let ended = match (ended, handle.stopped()) {
        // A panic of the job is a fault of ours and ends the task like any other.
        (Some(ended), _) => {
            ended.unwrap_or_else(|error| Err(crate::fault::internal("the task's job failed", error.to_string())))
        }
        (None, why) => Err(abandon::abandon(core, handle, task, job, why.unwrap_or(Stop::Deadline)).await),
    };
    let ended = match (ended, handle.stopped()) {
        (ended, _) if is_left_behind => ended,
        // Whatever an interrupted job complains of, the reason is that it was stopped.
        (Err(problem), Some(stop)) => {
            tracing::debug!(task_id = %task.task_id, error = %problem.message, "stopped job complains");
            Err(stop.problem())
        }
        (ended, _) => ended,
    };
    report(core, handle, &claim, &mut reporter, &mut lease).await;
    if handle.is_paused() && !is_left_behind {
        tracing::info!(task_id = %task.task_id, "task is paused; the next start goes on with it");
        return;
    }
    let ending = Ending::of(ended.as_ref().err());
    if handle.stopped() == Some(Stop::LeaseLost) {
        // What comes after the backup stays owed: the other hub may be at work on the machine in this moment.
        tracing::warn!(task_id = %task.task_id, "task was taken over by another hub");
        return;
    }
    let state = match &ended {
        Ok(_) => TaskState::Completed,
        Err(problem) if problem.code == ProblemCode::Cancelled => TaskState::Cancelled,
        Err(_) => TaskState::Failed,
    };
    crate::metrics::task_ended(task.kind, state, core.now().seconds_since(began));
    let is_point = ended.is_ok();
    say_how_it_ended(core, handle, &claim, &ended).await;
    // First the row: what comes after the backup may ask for the point. A catalog that is away does not hold it up.
    let has_ended = conclude(core, &claim, task.kind, &ended, 1).await;
    // A point that needs what is lost is none that others may go for: this is known before anything that takes its time.
    if let (true, true, Some(work)) = (is_point, has_ended, &backup) {
        judge(core, task, work).await;
    }
    if backup.is_some() {
        crate::app::tell::task(core, &task.task_id).await;
        let (after_core, task_id) = (core.clone(), task.task_id.clone());
        // A hook may take its time, and a task that has not ended is still ours meanwhile. It is a task of its own for the runtime: held
        // here, it could stand still in the middle of a write to the catalog while the report below waits for that write to end.
        let mut after = tokio::spawn(async move { hooks::after(&after_core, &task_id, ending).await });
        loop {
            tokio::select! {
                ended = &mut after => {
                    if let Err(error) = ended {
                        tracing::error!(task_id = %task.task_id, %error, "run what comes after a backup");
                    }
                    break;
                }
                _ = tick.tick(), if !has_ended => {
                    handle.step();
                    report(core, handle, &claim, &mut reporter, &mut lease).await;
                }
            }
        }
    }
    if !has_ended {
        conclude(core, &claim, task.kind, &ended, FINISH_TRIES_MAX).await;
        if let (true, Some(work)) = (is_point, &backup) {
            judge(core, task, work).await;
        }
    }
    if let (true, Some(work)) = (is_point, backup) {
        App::new(core.clone()).bound_soon(work);
    }
    if task.kind == TaskKind::Consolidate {
        core.merges_due.merge_ended();
    }
    crate::app::tell::task(core, &task.task_id).await;
    // Where it was left behind, its source may be what hangs: then the place is not kept for that.
    if task.kind == TaskKind::Backup && !is_left_behind {
        // A freeze, a job, a child that could not be let go: now, and not with the next pass.
        reconcile::reap_task(core, &task.task_id).await;
    }
    if let Some(source_id) = handle.to_look_after() {
        core.sweeping.ask(source_id);
    }
}

/// Looks whether a new point stands on what is lost.
async fn judge(core: &Arc<Core>, task: &Task, work: &BackupWork) {
    if let Err(problem) = verification::judge_new_point(core, work).await {
        tracing::warn!(task_id = %task.task_id, error = %problem.message, details = %problem.details,
            "look whether the new point needs what is lost; its verification will tell");
    }
}

async fn job(core: Arc<Core>, handle: Arc<Handle>, claim: TaskClaim, work: Work) -> Result<Done> {
    match work {
        Work::Backup(work) => backup::run(&core, &handle, &claim, work).await,
        Work::Restore(work) => restore::run(&core, &handle, work).await.map(Done::Other),
        Work::Migrate(work) => migrate::run(&core, &handle, work).await.map(Done::Other),
        Work::Verify(work) => verify::run(&core, &handle, work).await.map(Done::Other),
        Work::Merge(work) => super::merge::run(&core, &handle, &claim, work).await.map(Done::Other),
        Work::Move(work) => super::moving::run(&core, &handle, &claim, work).await.map(Done::Other),
        Work::Import(work) => import::run(&core, &handle, work).await.map(Done::Other),
    }
}

struct Lease {
    until: Timestamp,
}

/// One report: log lines, progress, sign of life; learns whether somebody asked to stop.
async fn report(core: &Arc<Core>, handle: &Handle, claim: &TaskClaim, reporter: &mut Reporter, lease: &mut Lease) {
    if handle.idle_seconds() > core.limits.progress_deadline_s as f64 && handle.stop(Stop::Deadline) {
        handle.log(LogLevel::Error, "no progress for too long; the task is ended", serde_json::json!({}));
    }
    let lines = handle.take_lines();
    if !lines.is_empty()
        && let Err(error) = core.catalog.tasks().append_log(&claim.task_id, &lines).await
    {
        // The log is for people; its loss must not cost the backup.
        tracing::warn!(task_id = %claim.task_id, error = %error, "keep log lines");
    }
    let view = reporter.take(handle, &*core.clock);
    core.running.set_view(&claim.task_id, view);
    let until = lease_until(core);
    let beat = Heartbeat {
        lease_until: until,
        progress: serde_json::to_value(view).ok(),
        bytes_done: view.bytes_done,
        bytes_total: view.bytes_total,
    };
    match core.catalog.tasks().heartbeat(claim, &beat).await {
        Ok(cancel_requested) => {
            lease.until = until;
            if cancel_requested {
                handle.stop(Stop::Person);
            }
        }
        Err(Error::Conflict(Conflict::LeaseLost { .. } | Conflict::WrongState { .. })) => {
            handle.stop(Stop::LeaseLost);
        }
        Err(error) => {
            tracing::warn!(task_id = %claim.task_id, error = %error, "report a task");
            // Without a lease another hub may begin the same work: ours must have stopped by then.
            if core.now() > lease.until {
                handle.stop(Stop::LeaseLost);
            }
        }
    }
    if core.events.has_listeners() {
        crate::app::tell::task(core, &claim.task_id).await;
    }
}

/// Puts into the task's log how it ended.
async fn say_how_it_ended(core: &Core, handle: &Handle, claim: &TaskClaim, ended: &Result<Done>) {
    match ended {
        Ok(_) => tracing::info!(task_id = %claim.task_id, "task completed"),
        Err(problem) if problem.code == ProblemCode::Cancelled => {
            handle.info("cancelled");
            tracing::info!(task_id = %claim.task_id, "task cancelled");
        }
        Err(problem) => {
            let fields = serde_json::json!({ "code": problem.code, "details": problem.details });
            handle.log(LogLevel::Error, problem.message.clone(), fields);
            tracing::warn!(task_id = %claim.task_id, code = %problem.code, error = %problem.message,
                details = %problem.details, "task failed");
        }
    }
    let lines = handle.take_lines();
    if !lines.is_empty()
        && let Err(error) = core.catalog.tasks().append_log(&claim.task_id, &lines).await
    {
        tracing::warn!(task_id = %claim.task_id, error = %error, "keep log lines");
    }
}

/// Ends the task in the catalog, with so many tries. False when another may succeed.
async fn conclude(core: &Core, claim: &TaskClaim, kind: TaskKind, ended: &Result<Done>, tries: u32) -> bool {
    for attempt in 1..=tries {
        match end(core, claim, kind, ended.as_ref()).await {
            Ok(()) => return true,
            Err(error @ (Error::Unavailable(_) | Error::Busy(_))) if !core.stop.is_cancelled() => {
                tracing::warn!(task_id = %claim.task_id, attempt, error = %error, "end a task");
                if attempt < tries {
                    tokio::time::sleep(FINISH_PAUSE).await;
                }
            }
            Err(error) => {
                tracing::error!(task_id = %claim.task_id, error = %of_catalog(&error).message, "end a task");
                return true;
            }
        }
    }
    false
}

async fn end(core: &Core, claim: &TaskClaim, kind: TaskKind, ended: Result<&Done, &Problem>) -> Result<(), Error> {
    let (tasks, backups, now) = (core.catalog.tasks(), core.catalog.backups(), core.now());
    match (ended, kind) {
        (Ok(Done::Backup(completed)), _) => backups.finish_completed(claim, completed, now).await.map(drop),
        (Ok(Done::Other(result)), _) => tasks.finish_completed(claim, Some(result), now).await.map(drop),
        (Err(problem), TaskKind::Backup) if problem.code == ProblemCode::Cancelled => {
            backups.finish_cancelled(claim, now).await.map(drop)
        }
        (Err(problem), TaskKind::Backup) => backups.finish_failed(claim, problem, now).await.map(drop),
        (Err(problem), _) if problem.code == ProblemCode::Cancelled => {
            tasks.finish_cancelled(claim, now).await.map(drop)
        }
        (Err(problem), _) => tasks.finish_failed(claim, problem, now).await.map(drop),
    }
}
