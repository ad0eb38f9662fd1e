//! Forgets what has ended long ago, so that the catalog does not grow with the years: executions, tasks with their logs, and attempts
//! at backups that came to nothing.
//!
//! Invariant: what runs stays, and all of a point stays as long as the point: its row, its task and that task's log.

use crate::core::Core;
use crate::fault::{OrProblem, Result};
use sendense_catalog::Page;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks: four small sets of statements, which nobody waits for.
const LOOK_PERIOD: Duration = Duration::from_secs(6 * 3600);
const FIRST_LOOK: Duration = Duration::from_secs(600);

/// Executions of a schedule that stay whatever their age: the last three months of a nightly one, and eight years of a monthly one.
const EXECUTIONS_KEPT: u64 = 100;

/// What goes in one transaction, with all that hangs on it: others write meanwhile, and none of them may wait for long. An execution
/// has a row for each machine, thousands perhaps; a task has a thousand lines of log at most.
const EXECUTIONS_AT_ONCE: u64 = 4;
const ATTEMPTS_AT_ONCE: u64 = 100;
const TASKS_AT_ONCE: u64 = 20;

/// Between two transactions: whoever waits has its turn.
const PAUSE: Duration = Duration::from_millis(50);

const DAY_SECONDS: i64 = 86_400;

/// What was forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub executions: u64,
    pub attempts: u64,
    pub tasks: u64,
}

/// Looks until the hub stops.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut rounds = core.rounds_after(FIRST_LOOK, LOOK_PERIOD);
    while rounds.next().await {
        match forget(&core).await {
            Ok(gone) if gone == Forgotten::default() => {}
            Ok(Forgotten { executions, attempts, tasks }) => {
                tracing::info!(executions, attempts, tasks, "what has ended long ago is forgotten");
            }
            Err(problem) => tracing::warn!(error = %problem.message, details = %problem.details,
                "forget what has ended long ago; the next look tries again"),
        }
    }
}

/// Forgets what is older than the hub's history.
pub(crate) async fn forget(core: &Core) -> Result<Forgotten> {
    let mut gone = Forgotten::default();
    if core.limits.history_days == 0 {
        return Ok(gone);
    }
    let now = core.now();
    let before = now.plus_seconds(-DAY_SECONDS * i64::from(core.limits.history_days));
    let (executions, backups, tasks) = (core.catalog.executions(), core.catalog.backups(), core.catalog.tasks());
    let mut offset = 0;
    loop {
        let page = Page { limit: Page::LIMIT_MAX, offset };
        let (schedules, _) = core.catalog.schedules().list(page).await.or_problem()?;
        offset += schedules.len() as u64;
        for schedule in &schedules {
            while !core.stop.is_cancelled() {
                let ended = executions.forget_ended(&schedule.schedule_id, before, EXECUTIONS_KEPT, EXECUTIONS_AT_ONCE);
                let went = ended.await.or_problem()?;
                gone.executions += went;
                if went < EXECUTIONS_AT_ONCE {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        if (schedules.len() as u64) < Page::LIMIT_MAX {
            break;
        }
    }
    // Attempts first: their tasks go when they are gone.
    while !core.stop.is_cancelled() {
        let old = backups.old_failures(before, ATTEMPTS_AT_ONCE).await.or_problem()?;
        if old.is_empty() {
            break;
        }
        let went = backups.forget_failures(&old, now).await.or_problem()?;
        gone.attempts += went;
        // What became a point meanwhile, or has dependents, stays.
        if went < ATTEMPTS_AT_ONCE {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let mut behind = None;
    while !core.stop.is_cancelled() {
        let (went, place) = tasks.forget_ended(before, behind, TASKS_AT_ONCE).await.or_problem()?;
        gone.tasks += went;
        behind = place;
        if behind.is_none() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(gone)
}
