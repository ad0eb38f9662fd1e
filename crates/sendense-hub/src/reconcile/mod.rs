//! After a crash, and ever after: what is left of the dead is ended, undone, adopted.
//!
//! ```text
//! tasks of dead hubs -> failed: interrupted      journal -> reaped at the sources      repositories -> drafts undone,
//!                                                                                      deletions finished, points adopted
//! ```
//!
//! Backups of nodes go on ([`crate::nodes::resume`]): their tasks are not ended, nor their drafts undone.
//!
//! What lives here: converging. Each pass reads everything anew and may be repeated at any time. What does not: deciding
//! what is a draft or a deletion (the repository does). Invariant: only what has no live owner is touched, and what cannot
//! be reached now holds nothing up: it is tried again.

mod journal;
mod left_over;
mod moves;
mod plan;
mod points;
mod report;
pub(crate) mod sweep;
mod tasks;

#[cfg(test)]
pub(crate) use journal::reap_orphans;
pub(crate) use journal::{Reaping, left_over, reap_task};
pub(crate) use left_over::LeftOvers;
pub(crate) use moves::under_way as moving;
pub(crate) use points::{Doing, adopt_machine, point, repository};
pub(crate) use report::check;
pub(crate) use sweep::Sweeping;
#[cfg(test)]
pub(crate) use sweep::{is_alive, knows_all_hubs};

use crate::core::Core;
use crate::hooks;
use crate::maintenance::{Use, allows};
use crate::repositories::Repositories;
use sendense_catalog::Page;
use std::sync::Arc;
use std::time::Duration;

/// Between two passes at most: a thawed guest must not wait for long, and an idle pass costs three small queries. The hub's lease,
/// which bears six of them, is renewed as often.
const PASS_PERIOD_MAX: Duration = Duration::from_secs(10);

/// The first pass of a start, before the hub says that it is ready: tasks end, everything else begins beside.
pub(crate) async fn at_start(core: &Arc<Core>) {
    tasks::end_dead(core).await;
    core.tracker.spawn(keep_lease(core.clone()));
    // Guests first: one may stand still.
    core.tracker.spawn(watch(core.clone()));
    core.tracker.spawn(sweep::keep(core.clone()));
    core.tracker.spawn(report::keep(core.clone()));
    let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
    match core.catalog.repositories().list(page).await {
        Ok((rows, _)) => {
            for row in rows.iter().filter(|row| allows(row.maintenance.mode, Use::GoOn)) {
                Repositories::open_in_background(core, &row.repository_id);
            }
        }
        Err(error) => tracing::warn!(error = %error, "list repositories"),
    }
}

/// Passes until the hub stops.
async fn watch(core: Arc<Core>) {
    let mut rounds = core.rounds(core.limits.part_of_lease(6, PASS_PERIOD_MAX));
    while rounds.next().await {
        journal::reap_orphans(&core).await;
        hooks::after_orphans(&core).await;
        tasks::end_dead(&core).await;
    }
}

/// Renews the hub's lease until it stops, and waits for nothing else: what a pass takes away may be on a source that hangs, and a hub
/// whose lease has run out is taken for dead.
async fn keep_lease(core: Arc<Core>) {
    let mut rounds = core.rounds(core.limits.part_of_lease(6, PASS_PERIOD_MAX));
    while rounds.next().await {
        tasks::renew_hub(&core).await;
    }
}
