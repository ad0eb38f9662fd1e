//! Verifies what nobody has looked at for long, the oldest proof first, one point at a time and beside everything else.
//!
//! Invariant: it begins only while nothing waits and nothing runs in this hub, takes no task's place, keeps to its pace, and makes
//! way for a deletion. A point that could not be verified is passed over for a day, so that it does not stand before all others.

use crate::app::{App, Caller};
use crate::fault::{OrProblem, Result};
use crate::maintenance::{Use, allows};
use crate::repositories::Standing;
use sendense_api::Role;
use sendense_catalog::{Backup, Page};
use sendense_types::{BackupId, Timestamp};
use std::collections::HashMap;
use std::time::Duration;

/// Between two looks: a few small queries, and two points follow each other soon enough.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
const DAY_SECONDS: i64 = 86_400;
/// Points that are looked for in a repository: those of them that were tried within the day are passed over.
const CANDIDATES: u64 = 100;
/// Points that are known to have been tried; more than a hub can try in a day with one look in ten seconds are not needed.
const TRIED_MAX: usize = 8640;

/// Looks until the hub stops.
pub(crate) async fn keep(app: App) {
    if app.core.limits.verify_after_days == 0 {
        return;
    }
    let mut tick = tokio::time::interval(LOOK_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tried = HashMap::new();
    loop {
        tokio::select! {
            () = app.core.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        if let Err(problem) = look(&app, &mut tried).await {
            tracing::warn!(error = %problem.message, details = %problem.details, "look for points to verify");
        }
    }
}

async fn look(app: &App, tried: &mut HashMap<BackupId, Timestamp>) -> Result<()> {
    let core = &app.core;
    if core.running.count() > 0 || core.running.is_at_work_aside() {
        return Ok(());
    }
    if !core.catalog.tasks().pending(1).await.or_problem()?.is_empty() {
        return Ok(());
    }
    let now = core.now();
    tried.retain(|_, at| now.seconds_since(*at).abs() < DAY_SECONDS as f64);
    let before = now.plus_seconds(-i64::from(core.limits.verify_after_days) * DAY_SECONDS);
    let all = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let (repositories, _) = core.catalog.repositories().list(all).await.or_problem()?;
    let mut oldest: Option<Backup> = None;
    for repository in repositories {
        let id = &repository.repository_id;
        let may_read = allows(repository.maintenance.mode, Use::Read);
        if !may_read || core.repositories.standing(core, id) != Standing::Open {
            continue;
        }
        let found = core.catalog.backups().longest_unproved(id, before, CANDIDATES).await.or_problem()?;
        let found = found.into_iter().find(|point| !tried.contains_key(&point.backup_id));
        oldest = oldest.into_iter().chain(found).min_by_key(proved_at);
    }
    let Some(point) = oldest else { return Ok(()) };
    if tried.len() >= TRIED_MAX {
        return Ok(());
    }
    tried.insert(point.backup_id.clone(), now);
    let caller = Caller { identity: "verification".to_owned(), role: Role::Operator };
    app.verify_aside(&caller, point).await.map(drop)
}

/// Since when a point is proved, or else when it was made.
fn proved_at(point: &Backup) -> Timestamp {
    let made = point.completed_at.unwrap_or(point.created_at);
    point.verification.as_ref().map_or(made, |found| found.at)
}
