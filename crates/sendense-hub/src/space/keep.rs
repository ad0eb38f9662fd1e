//! Looks at the room of the open repositories, notes it, and tells when it becomes scarce or is enough again.

use super::{Thresholds, describe, forecast_of, judge};
use crate::app::repositories::Settings;
use crate::core::Core;
use crate::fault::{OrProblem, Result};
use crate::metrics;
use crate::repositories::Standing;
use sendense_api::SpaceAlert;
use sendense_catalog::{Page, Repository, SpaceSample};
use sendense_types::{RepositoryId, SpaceState, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;

/// Between two samples of a day: the newest of a day counts, and each is a row that is written.
const NOTE_SECONDS: f64 = 900.0;

/// Looks until the hub stops.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut rounds = core.rounds(core.limits.upkeep_period);
    let mut noted = HashMap::new();
    while rounds.next().await {
        let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
        let rows = match core.catalog.repositories().list(page).await {
            Ok((rows, _)) => rows,
            Err(error) => {
                tracing::warn!(%error, "list repositories to see their room");
                continue;
            }
        };
        noted.retain(|id, _| rows.iter().any(|row| row.repository_id == *id));
        for row in rows.iter().filter(|row| core.repositories.standing(&core, &row.repository_id) == Standing::Open) {
            if let Err(problem) = look(&core, row, &mut noted).await {
                tracing::warn!(repository_id = %row.repository_id, error = %problem.message,
                    details = %problem.details, "see how much room a repository has");
            }
        }
    }
}

async fn look(core: &Arc<Core>, row: &Repository, noted: &mut HashMap<RepositoryId, Timestamp>) -> Result<()> {
    let (id, now) = (&row.repository_id, core.now());
    let room = core.repositories.room(core, row).await?;
    let storage = &room.storage;
    if noted.get(id).is_none_or(|at| now.seconds_since(*at).abs() >= NOTE_SECONDS) {
        let sample = SpaceSample {
            at: now,
            total_bytes: storage.total_bytes,
            used_bytes: storage.used_bytes,
            available_bytes: storage.available_bytes,
        };
        core.catalog.space().note(id, &sample).await.or_problem()?;
        noted.insert(id.clone(), now);
    }
    let history = core.catalog.space().history(id).await.or_problem()?;
    let forecast = forecast_of(&history, &room);
    let before = core.repositories.space_state(id);
    let at = Thresholds::of(&Settings::read(&row.settings)?);
    let state = judge(&room, forecast, at, before);
    let space = describe(storage, forecast, at, state, now);
    metrics::set_space(row.name.as_str(), &space);
    if state == before {
        return Ok(());
    }
    core.repositories.set_space_state(id, state);
    let soon = space.full_in_days.map(|days| format!(", full in {days:.0} days")).unwrap_or_default();
    let message = format!(
        "repository {}: {:.0} % of {} bytes are taken, {} bytes may still be written{soon}",
        row.name, space.used_percent, storage.total_bytes, storage.available_bytes
    );
    match state {
        SpaceState::Ok => tracing::info!(repository_id = %id, message, "a repository has room again"),
        SpaceState::Low => tracing::warn!(repository_id = %id, message, "a repository's room is low"),
        SpaceState::Critical => tracing::error!(repository_id = %id, message, "a repository has hardly any room"),
    }
    core.events.space(SpaceAlert { repository_id: id.clone(), name: row.name.to_string(), state, message, at: now });
    Ok(())
}
