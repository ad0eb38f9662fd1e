//! Makes copies: once a day into each repository that this hub has, and when somebody asks.
//!
//! Invariant: a copy that cannot be made keeps nothing else from being done, and is tried again within the hour.

use super::contents::Contents;
use super::{Error, KEEP, seal};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, internal, of_repo};
use crate::maintenance::Use;
use sendense_repo::{CatalogCopy, Repository};
use sendense_types::{Problem, ProblemCode, RepositoryId};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks: one small listing of a folder for each repository. The first comes soon after the start, when repositories
/// are open and before anybody has lost anything.
const LOOK_PERIOD: Duration = Duration::from_secs(3600);
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// A copy that is older is followed by the next one. Less than a day by one look, so that the time of day stays about the same.
const AGE_MAX_SECONDS: f64 = 23.5 * 3600.0;

/// Looks until the hub stops.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut rounds = core.rounds_after(FIRST_LOOK, LOOK_PERIOD);
    while rounds.next().await {
        pass(&core).await;
    }
}

/// Looks once into each open repository.
pub(crate) async fn pass(core: &Arc<Core>) {
    for (id, _) in core.repositories.all_open() {
        match look(core, &id).await {
            Ok(()) => {}
            // Somebody looks after it: nothing begins in it.
            Err(problem) if problem.code == ProblemCode::RepositoryMaintenance => {}
            Err(problem) => tracing::warn!(repository_id = %id, error = %problem.message,
                details = %problem.details, "copy the catalog into a repository; it is tried again within the hour"),
        }
    }
}

async fn look(core: &Arc<Core>, id: &RepositoryId) -> Result<()> {
    let repository = core.repositories.by_id(core, id, Use::Write).await?;
    let reader = repository.clone();
    let copies = blocking(move || reader.catalog_copies()).await?.or_problem()?;
    let now = core.now();
    // One from the future was made by a clock that was wrong.
    let is_young = |copy: &&CatalogCopy| (0.0..AGE_MAX_SECONDS).contains(&now.seconds_since(copy.made_at));
    if copies.iter().filter(|copy| copy.deployment_id == core.deployment_id).any(|copy| is_young(&copy)) {
        return Ok(());
    }
    let copy = make(core, repository).await?;
    tracing::info!(repository_id = %id, copy = %copy.name, bytes = copy.bytes, "catalog copied");
    Ok(())
}

/// Makes a copy now.
pub(crate) async fn make(core: &Arc<Core>, repository: Repository) -> Result<CatalogCopy> {
    let essentials = core.catalog.essentials().await.or_problem()?;
    let core = core.clone();
    blocking(move || {
        let contents = Contents::gather(essentials, core.data_dir.path()).map_err(|error| told(&error))?;
        let plain = contents.to_bytes().map_err(|error| told(&error))?;
        let now = core.now();
        // Sealed with the moment that its name says, so that a copy under another name is found out.
        let seal = |made_at| {
            seal::seal(core.sealer.recovery_key(), &core.deployment_id, &core.lease.hub_id, made_at, &plain)
                .map_err(|error| sendense_repo::Error::new(sendense_repo::Kind::Io, error.to_string()))
        };
        repository.keep_catalog_copy(KEEP, now, seal).map_err(|error| of_repo(&error))
    })
    .await?
}

fn told(error: &Error) -> Problem {
    internal("the catalog cannot be copied", sendense_block::error::chain(error))
}
