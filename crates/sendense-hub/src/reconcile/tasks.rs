//! Tasks whose hub is dead: nobody works on them, so they end.

use crate::core::Core;
use sendense_catalog::{Conflict, Error, Task};
use sendense_types::{Problem, ProblemCode, TaskKind};
use std::sync::Arc;

/// Ends the tasks of dead hubs, our own former life among them, as `failed: interrupted`. What is kept of
/// backups of nodes without such a task is forgotten, and not before these are known.
pub(super) async fn end_dead(core: &Arc<Core>) {
    let dead = match core.catalog.tasks().running_tasks_of_dead_hubs(core.now()).await {
        Ok(dead) => dead,
        Err(error) => return tracing::warn!(error = %error, "look for interrupted tasks"),
    };
    for task in &dead {
        // Ours and alive: its report is late because the database was away; its runner decides.
        if core.running.get(&task.task_id).is_some() {
            continue;
        }
        if crate::nodes::resume::take_up(core, task).await {
            continue;
        }
        if task.kind == TaskKind::Move && crate::jobs::moving::go_on(core, task).await {
            continue;
        }
        // What it left goes first: once the task has ended, nobody looks for it again.
        if task.kind == TaskKind::Restore && task.hub_id.as_ref() == Some(core.data_dir.hub_id()) {
            crate::jobs::restore::tidy(core, task).await;
        }
        match end(core, task).await {
            Ok(()) => tracing::warn!(task_id = %task.task_id, kind = %task.kind, "task was interrupted"),
            // Another hub was faster.
            Err(Error::Conflict(Conflict::LeaseLost { .. } | Conflict::LeaseHeld { .. })) => {}
            Err(error) => tracing::warn!(task_id = %task.task_id, error = %error, "end an interrupted task"),
        }
    }
    crate::nodes::resume::forget_others(core, &dead);
}

async fn end(core: &Core, task: &Task) -> Result<(), Error> {
    let until = core.limits.lease_until(core.now());
    let taken = core.catalog.tasks().take_over(&task.claim(), &core.lease, until, core.now()).await?;
    let problem = Problem::new(ProblemCode::Interrupted, "interrupted: hub restarted", "");
    let (claim, now) = (taken.claim(), core.now());
    match taken.kind {
        TaskKind::Backup => core.catalog.backups().finish_failed(&claim, &problem, now).await.map(drop),
        _ => core.catalog.tasks().finish_failed(&claim, &problem, now).await.map(drop),
    }
}

/// Says that this hub lives. A later start of the same hub has taken over when that is refused: then this one must stop.
pub(super) async fn renew_hub(core: &Core) {
    let until = core.limits.lease_until(core.now());
    match core.catalog.hubs().renew(&core.lease, until).await {
        Ok(()) => {}
        Err(Error::Conflict(_)) => {
            tracing::error!("a later start of this hub has taken over; stopping");
            core.stop.cancel();
        }
        Err(error) => tracing::warn!(error = %error, "renew the hub's lease"),
    }
}
