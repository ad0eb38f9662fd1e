//! What is left of ours on hypervisors, found there and not in the journal: at the start and once a day.
//!
//! The journal knows what this hub made, and is enough as long as it is there. A data folder that was lost, a disk that was
//! set back, an answer that never came leave snapshots that nobody looks for while they grow. Sources find what bears the
//! deployment's id; what belongs to a living task, of any hub, is left alone.

use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_source};
use sendense_block::Cancel;
use sendense_catalog::{Kind, Page, Source};
use sendense_source::Artefact;
use sendense_types::{SourceId, TaskId, TaskState};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two sweeps of a source: a snapshot that is forgotten for a day costs little room, and a sweep reads a few
/// properties of every machine.
const SWEEP_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);
/// A source that could not be swept is tried again so often, and new ones are seen so late.
const LOOK_PERIOD: Duration = Duration::from_secs(60 * 60);

/// Sweeps until the hub stops.
pub(super) async fn keep(core: Arc<Core>) {
    let cancel = Cancel::new();
    let asked = cancel.clone();
    let work = async {
        let mut due: HashMap<SourceId, Instant> = HashMap::new();
        loop {
            pass(&core, &mut due, &cancel).await;
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    };
    tokio::select! {
        () = core.stop.cancelled() => asked.cancel(),
        () = work => {}
    }
}

async fn pass(core: &Arc<Core>, due: &mut HashMap<SourceId, Instant>, cancel: &Cancel) {
    let mut page = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let mut rows = Vec::new();
    loop {
        match core.catalog.sources().list(page).await {
            Ok((found, total)) => {
                page.offset += found.len() as u64;
                let is_last = found.is_empty() || page.offset >= total;
                rows.extend(found);
                if is_last {
                    break;
                }
            }
            Err(error) => return tracing::warn!(%error, "list the sources to sweep"),
        }
    }
    due.retain(|id, _| rows.iter().any(|row| row.source_id == *id));
    for row in rows {
        if due.get(&row.source_id).is_some_and(|at| *at > Instant::now()) {
            continue;
        }
        match sweep(core, &row, cancel).await {
            Ok(()) => _ = due.insert(row.source_id, Instant::now() + SWEEP_PERIOD),
            // It is tried again at the next look.
            Err(problem) => {
                tracing::debug!(source_id = %row.source_id, error = %problem.message, "a source cannot be swept now");
            }
        }
    }
}

/// Removes what dead tasks left on a source.
pub(crate) async fn sweep(core: &Arc<Core>, row: &Source, cancel: &Cancel) -> Result<()> {
    let source = core.open_source(row)?;
    let (asked, door) = (cancel.clone(), source.clone());
    let found = blocking(move || door.leftovers(&asked)).await?.map_err(|error| of_source(&error))?;
    for artefact in found {
        if is_alive(core, &artefact.task_id).await? {
            continue;
        }
        let Artefact { kind, vm_key, task_id, .. } = artefact.clone();
        let (asked, door) = (cancel.clone(), source.clone());
        match blocking(move || door.reap(&artefact, &asked)).await? {
            Ok(true) => tracing::warn!(source_id = %row.source_id, vm_key, %task_id, ?kind, "a leftover is removed"),
            Ok(false) => {
                tracing::info!(source_id = %row.source_id, vm_key, %task_id, ?kind, "a leftover stays for now")
            }
            // The others are not held up by it.
            Err(error) => {
                let error = sendense_block::error::chain(&error);
                tracing::warn!(source_id = %row.source_id, vm_key, %task_id, ?kind, error, "remove a leftover");
            }
        }
    }
    Ok(())
}

/// Whether somebody of this deployment still works for the task. Asked after its thing was seen, so a task that has begun since
/// is alive.
pub(crate) async fn is_alive(core: &Core, task_id: &TaskId) -> Result<bool> {
    if core.running.get(task_id).is_some() {
        return Ok(true);
    }
    match core.catalog.tasks().get(task_id).await {
        Ok(task) => Ok(matches!(task.state, TaskState::Pending | TaskState::Running)),
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        other => other.or_problem().map(|_| true),
    }
}
