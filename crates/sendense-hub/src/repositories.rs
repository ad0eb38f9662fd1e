//! The repositories that this hub has open, and those that it cannot open now.
//!
//! What lives here: opening (once per repository, with a bound on how long it may take), keeping the lease, what is known
//! of those that are away. What does not: what is done in them. Invariant: a repository is open at most once in a process,
//! because its lock table and its promises of room live in the open repository.

use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use crate::jobs::handle::Stop;
use parking_lot::Mutex;
use sendense_api::Storage;
use sendense_catalog as catalog;
use sendense_repo::owner::{Adopt, Claim};
use sendense_repo::repository::{Create, Options};
use sendense_repo::{Kind, Repository};
use sendense_types::{Problem, ProblemCode, RepositoryId, Timestamp};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long the lease on a repository runs. A hub that dies leaves it to another one after a minute.
const LEASE_SECONDS: u32 = 60;
/// The lease is renewed at a third of it.
const RENEW_PERIOD: Duration = Duration::from_secs(20);
/// A share that does not answer for so long is away. NFS retries for minutes; nobody is to wait for that.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// What is away is tried again after so long.
const RETRY_S: f64 = 15.0;

/// How a repository stands with this hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Open.
    Open,
    /// Another hub of this deployment works in it.
    Elsewhere,
    /// It could not be opened a moment ago.
    Away,
    /// Nobody tried yet, or long ago.
    Untried,
}

/// Open repositories.
#[derive(Default)]
pub(crate) struct Repositories {
    slots: Mutex<HashMap<RepositoryId, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    /// Held while the repository is being opened, so that it is opened once.
    opening: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Repository>,
    away: Option<(Problem, Timestamp)>,
    storage: Option<(String, Storage)>,
}

impl Repositories {
    fn slot(&self, id: &RepositoryId) -> Arc<Slot> {
        self.slots.lock().entry(id.clone()).or_default().clone()
    }

    /// How a repository stands.
    pub fn standing(&self, id: &RepositoryId, now: Timestamp) -> Standing {
        let slot = self.slot(id);
        let state = slot.state.lock();
        match (&state.open, &state.away) {
            (Some(_), _) => Standing::Open,
            (None, Some((_, at))) if now.seconds_since(*at).abs() > RETRY_S => Standing::Untried,
            (None, Some((problem, _))) if problem.code == ProblemCode::RepositoryOwned => Standing::Elsewhere,
            (None, Some(_)) => Standing::Away,
            (None, None) => Standing::Untried,
        }
    }

    /// Why a repository could not be opened when it was last tried.
    pub fn problem(&self, id: &RepositoryId) -> Option<Problem> {
        self.slot(id).state.lock().away.as_ref().map(|(problem, _)| problem.clone())
    }

    /// The repository, opened when it is not open yet.
    pub async fn get(&self, core: &Core, row: &catalog::Repository) -> Result<Repository> {
        self.get_as(core, row, Create::Never, Adopt::Never).await
    }

    /// The same by its id.
    pub async fn by_id(&self, core: &Core, id: &RepositoryId) -> Result<Repository> {
        if let Some(open) = self.opened(id) {
            return Ok(open);
        }
        let row = core.catalog.repositories().get(id).await.or_problem()?;
        self.get(core, &row).await
    }

    /// The repository if it is open.
    pub fn opened(&self, id: &RepositoryId) -> Option<Repository> {
        self.slot(id).state.lock().open.clone()
    }

    /// The repository; made, or taken from a deployment that is gone, if that is asked for.
    pub async fn get_as(
        &self,
        core: &Core,
        row: &catalog::Repository,
        create: Create,
        adopt: Adopt,
    ) -> Result<Repository> {
        let slot = self.slot(&row.repository_id);
        let _turn = slot.opening.lock().await;
        if let Some(open) = slot.state.lock().open.clone() {
            return Ok(open);
        }
        let opened = open(core, row, create, adopt).await;
        let mut state = slot.state.lock();
        match &opened {
            Ok(repository) => {
                tracing::info!(repository_id = %row.repository_id, name = %row.name, "repository opened");
                state.open = Some(repository.clone());
                state.away = None;
            }
            Err(problem) => {
                tracing::warn!(repository_id = %row.repository_id, name = %row.name, code = %problem.code,
                    error = %problem.message, details = %problem.details, "repository cannot be opened");
                state.away = Some((problem.clone(), core.now()));
            }
        }
        opened
    }

    /// Opens a repository on a thread of its own; work that waits for it is looked at again afterwards.
    pub fn open_in_background(core: &Arc<Core>, id: &RepositoryId) {
        let (core, id) = (core.clone(), id.clone());
        core.clone().tracker.spawn(async move {
            let opened = tokio::select! {
                opened = core.repositories.by_id(&core, &id) => opened,
                () = core.stop.cancelled() => return,
            };
            if opened.is_ok() {
                crate::reconcile::repository(&core, &id).await;
            }
            core.running.wake.notify_one();
        });
    }

    /// The room of a repository.
    pub async fn storage(&self, core: &Core, row: &catalog::Repository) -> Result<Storage> {
        let repository = self.get(core, row).await?;
        let asked = blocking(move || {
            let storage = repository.storage()?;
            let mount_point = mount_point(repository.root()).display().to_string();
            Ok::<_, sendense_repo::Error>(Storage {
                total_bytes: storage.total_bytes,
                used_bytes: storage.used_bytes,
                available_bytes: storage.available_bytes,
                mount_point,
            })
        });
        let storage = within(&row.name, asked).await?.or_problem()?;
        self.slot(&row.repository_id).state.lock().storage = Some((row.name.to_string(), storage.clone()));
        Ok(storage)
    }

    /// The room of all repositories, as last asked for.
    pub fn storages(&self) -> Vec<(String, Storage)> {
        self.slots.lock().values().filter_map(|slot| slot.state.lock().storage.clone()).collect()
    }

    /// Forgets a repository that was removed from the catalog, and gives its lease back.
    pub async fn forget(&self, core: &Core, id: &RepositoryId) {
        let Some(slot) = self.slots.lock().remove(id) else { return };
        let open = slot.state.lock().open.take();
        if let Some(repository) = open {
            release(core, id, repository).await;
        }
    }

    /// Gives all leases back: the hub ends.
    pub async fn release_all(&self, core: &Core) {
        let slots: Vec<_> = self.slots.lock().drain().collect();
        for (id, slot) in slots {
            let open = slot.state.lock().open.take();
            if let Some(repository) = open {
                release(core, &id, repository).await;
            }
        }
    }

    fn lose(&self, id: &RepositoryId, problem: Problem, now: Timestamp) {
        let slot = self.slot(id);
        let mut state = slot.state.lock();
        state.open = None;
        state.away = Some((problem, now));
    }

    fn all_open(&self) -> Vec<(RepositoryId, Repository)> {
        let slots = self.slots.lock();
        slots.iter().filter_map(|(id, slot)| Some((id.clone(), slot.state.lock().open.clone()?))).collect()
    }
}

/// Renews the leases until the hub stops.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut tick = tokio::time::interval(RENEW_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let renewals = core.repositories.all_open().into_iter().map(|(id, repository)| renew(&core, id, repository));
        futures::future::join_all(renewals).await;
    }
}

async fn renew(core: &Core, id: RepositoryId, repository: Repository) {
    let now = core.now();
    let renewed = tokio::time::timeout(OPEN_TIMEOUT, blocking(move || repository.renew(now))).await;
    match renewed {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) if error.kind == Kind::Fenced => {
            tracing::error!(repository_id = %id, error = %error, "another hub took the repository");
            core.repositories.lose(&id, crate::fault::of_repo(&error), now);
            // Work in it could publish nothing any more; the check before each publication would refuse it.
            for handle in core.running.of_repository(&id) {
                handle.stop(Stop::RepositoryLost);
            }
        }
        Ok(Ok(Err(error))) => tracing::warn!(repository_id = %id, error = %error, "renew the lease on a repository"),
        Ok(Err(problem)) => tracing::warn!(repository_id = %id, error = %problem.message, "renew the lease"),
        Err(_) => tracing::warn!(repository_id = %id, "the repository does not answer"),
    }
}

async fn release(core: &Core, id: &RepositoryId, repository: Repository) {
    let now = core.now();
    let released = tokio::time::timeout(OPEN_TIMEOUT, blocking(move || repository.release(now))).await;
    match released {
        Ok(Ok(Ok(()))) => tracing::debug!(repository_id = %id, "repository released"),
        Ok(Ok(Err(error))) => tracing::warn!(repository_id = %id, error = %error, "release a repository"),
        // The lease runs out by itself.
        Ok(Err(_)) | Err(_) => tracing::warn!(repository_id = %id, "the repository does not answer"),
    }
}

async fn open(core: &Core, row: &catalog::Repository, create: Create, adopt: Adopt) -> Result<Repository> {
    let path = path_of(row)?;
    core.check_host_path(&path, create == Create::IfMissing)?;
    let options = Options {
        claim: Claim {
            deployment_id: core.deployment_id.clone(),
            hub_id: core.lease.hub_id.clone(),
            lease_seconds: LEASE_SECONDS,
            adopt,
        },
        limit_bytes: None,
        create,
    };
    let now = core.now();
    let opened = blocking(move || Repository::open(&path, options, now));
    within(&row.name, opened).await?.map_err(|error| match error.kind {
        // The folder was there when the repository was made: it is not mounted.
        Kind::NotFound => Problem::new(
            ProblemCode::RepositoryUnavailable,
            format!("repository {} is not there", row.name),
            sendense_block::error::chain(&error),
        ),
        _ => crate::fault::of_repo(&error),
    })
}

/// The folder of a repository.
pub(crate) fn path_of(row: &catalog::Repository) -> Result<PathBuf> {
    use serde::Deserialize;
    let config = sendense_api::RepositoryConfig::deserialize(&row.config)
        .map_err(|error| crate::fault::internal("a repository's place cannot be read", error.to_string()))?;
    Ok(PathBuf::from(config.path))
}

/// Waits for an answer of a file system, but not for ever. The thread that asks stays behind until the kernel lets it go.
pub(crate) async fn within<T>(name: &sendense_types::Name, asked: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(OPEN_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::new(
            ProblemCode::RepositoryUnavailable,
            format!("repository {name} does not answer"),
            format!("no answer within {} s", OPEN_TIMEOUT.as_secs()),
        )),
    }
}

/// Where the file system of a folder is mounted: the highest folder above it on the same device.
fn mount_point(path: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    let own = device(path);
    let above = path.ancestors().take_while(|ancestor| device(ancestor) == own).last();
    above.unwrap_or(path).to_owned()
}
