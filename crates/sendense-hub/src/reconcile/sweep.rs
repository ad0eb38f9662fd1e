//! What is left of ours on hypervisors, found there and not in the journal: at the start and once a day.
//!
//! The journal knows what this hub made, and is enough as long as it is there. A data folder that was lost, a disk that was
//! set back, an answer that never came leave snapshots that nobody looks for while they grow. Sources find what bears the
//! deployment's id; what belongs to a living task, of any hub, is left alone.
//!
//! Invariant: nothing is swept while a hub of this deployment that the catalog does not know has a repository. A catalog that was
//! recovered from a copy knows no task of the old hub, and would take its snapshots for leftovers.

use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_source};
use crate::maintenance::{Use, allows};
use crate::repositories::{Standing, path_of, within};
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
/// Between two looks at whose the repositories are. It is a query, and a small file for each that another hub has; at a start they
/// are opened within a moment.
const OURS_PERIOD: Duration = Duration::from_secs(1);

/// Sweeps until the hub stops.
pub(super) async fn keep(core: Arc<Core>) {
    let cancel = Cancel::new();
    let asked = cancel.clone();
    let work = async {
        let mut due: HashMap<SourceId, Instant> = HashMap::new();
        loop {
            while !knows_all_hubs(&core).await {
                tokio::time::sleep(OURS_PERIOD).await;
            }
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

/// Whether the catalog knows all hubs that may be at work, as far as the repositories tell: one at least is open here or with a hub
/// of this catalog, and none is with another hub of the deployment. Those that are away or offline tell nothing.
pub(crate) async fn knows_all_hubs(core: &Core) -> bool {
    let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let (rows, hubs) = match (core.catalog.repositories().list(page).await, core.catalog.hubs().list().await) {
        (Ok((rows, _)), Ok(hubs)) => (rows, hubs),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "look whose the repositories are");
            return false;
        }
    };
    let rows: Vec<_> = rows.into_iter().filter(|row| allows(row.maintenance.mode, Use::GoOn)).collect();
    // Where there is none, nobody makes points.
    let mut is_one_ours = rows.is_empty();
    for row in &rows {
        match core.repositories.standing(core, &row.repository_id) {
            Standing::Open => is_one_ours = true,
            // It is being opened.
            Standing::Untried => return false,
            Standing::Away => {}
            Standing::Elsewhere => {
                let Ok(path) = path_of(row) else { continue };
                let read = blocking(move || sendense_repo::owner::read(&path));
                let record = within(&row.name, async { read.await?.or_problem() }).await;
                let Ok(Some(record)) = record else { continue };
                if record.deployment_id == core.deployment_id {
                    if !hubs.iter().any(|hub| hub.hub_id == record.hub_id) {
                        return false;
                    }
                    is_one_ours = true;
                }
            }
        }
    }
    is_one_ours
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
