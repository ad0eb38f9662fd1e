//! What is left of ours on hypervisors, found there and not in the journal: at the start and once a day.
//!
//! The journal knows what this hub made, and is enough as long as it is there. A data folder that was lost, a disk that was
//! set back, an answer that never came leave snapshots that nobody looks for while they grow. Sources find what bears the
//! deployment's id; what belongs to a living task, of any hub, is left alone.
//!
//! Invariant: nothing is swept while a hub of this deployment that the catalog does not know has a repository. A catalog that was
//! recovered from a copy knows no task of the old hub, and would take its snapshots for leftovers.

use super::journal::NOT_NOW;
use super::left_over::{Known, TRIES, Thing, forget, gone, stays};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_source};
use crate::maintenance::{Use, allows};
use crate::repositories::{Standing, path_of, within};
use parking_lot::Mutex;
use sendense_block::Cancel;
use sendense_catalog::{Kind, Page, Source};
use sendense_source::Artefact;
use sendense_types::{SourceId, TaskId, TaskState, Timestamp};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Between two sweeps of a source: a snapshot that is forgotten for a day costs little room, and a sweep reads a few
/// properties of every machine.
const SWEEP_PERIOD_SECONDS: i64 = 24 * 60 * 60;
/// A source that could not be swept is tried again so often.
const LOOK_PERIOD_SECONDS: i64 = 60 * 60;
/// The same where something stays, and how late new sources are seen: a query of the catalog.
const STAYS_PERIOD_MAX: Duration = Duration::from_secs(60);
/// Between the tries to remove something: another program's lock is gone in seconds, or in hours.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at whose the repositories are. It is a query, and a small file for each that another hub has; at a start they
/// are opened within a moment.
const OURS_PERIOD: Duration = Duration::from_secs(1);

/// Sweeps until the hub stops.
pub(super) async fn keep(core: Arc<Core>) {
    let cancel = Cancel::new();
    let asked = cancel.clone();
    let work = async {
        let mut due = Due::new();
        loop {
            while !knows_all_hubs(&core).await {
                tokio::time::sleep(OURS_PERIOD).await;
            }
            pass(&core, &mut due, &cancel).await;
            tokio::time::sleep(stays_period(&core)).await;
        }
    };
    tokio::select! {
        () = core.stop.cancelled() => asked.cancel(),
        () = work => {}
    }
}

fn stays_period(core: &Core) -> Duration {
    core.limits.part_of_lease(1, STAYS_PERIOD_MAX)
}

/// Sources that are to be swept with the next pass, because a backup there may have left something that this hub's journal does not
/// know: the node's does.
#[derive(Debug, Default)]
pub(crate) struct Sweeping(Mutex<HashSet<SourceId>>);

impl Sweeping {
    /// Has a source swept. Its task must have ended: what a living one made is left alone.
    pub fn ask(&self, source_id: SourceId) {
        self.0.lock().insert(source_id);
    }
}

/// When each source is swept next.
pub(crate) type Due = HashMap<SourceId, Next>;

/// A moment, and how long it was until then when that was said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next {
    at: Timestamp,
    period_seconds: i64,
}

impl Next {
    fn after(period_seconds: i64, now: Timestamp) -> Self {
        Self { at: now.plus_seconds(period_seconds), period_seconds }
    }

    /// A clock that was set back puts nothing off: it is longer until then than it ever was.
    fn is_due(&self, now: Timestamp) -> bool {
        self.at <= now || self.at > now.plus_seconds(self.period_seconds)
    }
}

/// Sweeps the sources that are due, and notes when they are due again. By the hub's clock: a machine that was suspended for a
/// week has slept through its days.
pub(crate) async fn pass(core: &Arc<Core>, due: &mut Due, cancel: &Cancel) {
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
    let asked = std::mem::take(&mut *core.sweeping.0.lock());
    due.retain(|id, _| rows.iter().any(|row| row.source_id == *id) && !asked.contains(id));
    forget(core, |thing, known| known == Known::Found && !rows.iter().any(|row| row.source_id == thing.source_id));
    for row in rows {
        if due.get(&row.source_id).is_some_and(|next| !next.is_due(core.now())) {
            continue;
        }
        match sweep(core, &row, cancel).await {
            Ok(true) => _ = due.insert(row.source_id, Next::after(SWEEP_PERIOD_SECONDS, core.now())),
            // With the next pass.
            Ok(false) => {}
            Err(problem) => {
                tracing::debug!(source_id = %row.source_id, error = %problem.message, "a source cannot be swept now");
                due.insert(row.source_id, Next::after(LOOK_PERIOD_SECONDS, core.now()));
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

/// Removes what dead tasks left on a source. True when nothing of it stays.
pub(crate) async fn sweep(core: &Arc<Core>, row: &Source, cancel: &Cancel) -> Result<bool> {
    let source = core.open_source(row)?;
    let (asked, door) = (cancel.clone(), source.clone());
    let found = blocking(move || door.leftovers(&asked)).await?.map_err(|error| of_source(&error))?;
    let mut stay = HashSet::new();
    for artefact in found {
        if is_alive(core, &artefact.task_id).await? {
            continue;
        }
        // The others are not held up by it.
        match remove(&source, &artefact, cancel).await? {
            Ok(()) => {
                tracing::warn!(source_id = %row.source_id, vm_key = artefact.vm_key, task_id = %artefact.task_id,
                    kind = ?artefact.kind, "a leftover is removed");
                gone(core, &artefact);
            }
            Err(why) => {
                tracing::warn!(source_id = %row.source_id, vm_key = artefact.vm_key, task_id = %artefact.task_id,
                    kind = ?artefact.kind, why, "remove a leftover");
                stays(core, &artefact, Known::Found, TRIES, &why).await;
                stay.insert(Thing::of(&artefact));
            }
        }
    }
    forget(core, |thing, known| known == Known::Found && thing.source_id == row.source_id && !stay.contains(thing));
    Ok(stay.is_empty())
}

/// Tries until it works or the tries are used up; then why it does not.
async fn remove(
    source: &Arc<dyn sendense_source::Source>,
    artefact: &Artefact,
    cancel: &Cancel,
) -> Result<std::result::Result<(), String>> {
    let mut why = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let (door, artefact, asked) = (source.clone(), artefact.clone(), cancel.clone());
        match blocking(move || door.reap(&artefact, &asked)).await? {
            Ok(true) => return Ok(Ok(())),
            Ok(false) => why = NOT_NOW.to_owned(),
            Err(error) => why = sendense_block::error::chain(&error),
        }
    }
    Ok(Err(why))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_puts_no_sweep_off() {
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        for period in [LOOK_PERIOD_SECONDS, SWEEP_PERIOD_SECONDS] {
            let next = Next::after(period, now);
            let due = |seconds| next.is_due(now.plus_seconds(seconds));
            assert_eq!([0, 1, period - 1, period, period + 1].map(due), [false, false, false, true, true]);
            // Also by less than a day, which is the longer of the two.
            assert_eq!([-1, -period, -20 * 3600, -400 * 86_400].map(due), [true; 4]);
        }
    }
}
