//! The repositories that this hub has open, and those that it cannot open now.
//!
//! What lives here: opening (once per repository, with a bound on how long it may take), keeping the lease, what is known
//! of those that are away. What does not: what is done in them. Invariant: a repository is open at most once in a process,
//! because its lock table and its promises of room live in the open repository.

use crate::app::repositories::Settings;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use crate::jobs::handle::Stop;
use crate::maintenance::{self, Use};
use crate::space::Room;
use parking_lot::Mutex;
use sendense_api::Storage;
use sendense_catalog as catalog;
use sendense_repo::owner::{self, Adopt, Claim};
use sendense_repo::repository::{Create, Options};
use sendense_repo::{Kind, Repository};
use sendense_types::{HubId, Problem, ProblemCode, RepositoryId, RepositoryMode, SpaceState, Timestamp};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedMutexGuard, Semaphore};

/// A share that does not answer for so long is away. NFS retries for minutes; nobody is to wait for that.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Threads that ask one repository at once whether it is there, how much room it has, and for its lease. A share that hangs
/// keeps each of them until the kernel lets it go, and it is asked four times a minute: without a bound it would take all of
/// tokio's 512 within hours.
const ASKING_MAX: usize = 8;
/// So long a person waits for a look through a repository to end that somebody else has begun.
pub(crate) const CHECK_PATIENCE: Duration = Duration::from_secs(60);
/// What the dead left and cannot be put in order now is tried again with the next round, after one more, two, four and so on, and
/// at least so often: each try reads every manifest, and a reader that is in the way may stay for hours.
const RETRY_MAX: Duration = Duration::from_secs(15 * 60);
/// Four times in a lease, and at least so often, leases are renewed and what is away is tried again.
const KEEP_PERIOD_MAX: Duration = Duration::from_secs(15);

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
    asking: Asking,
    /// Held while the repository is being opened, so that it is opened once.
    opening: tokio::sync::Mutex<()>,
    /// Held while what the dead left in the repository is put in order, so that this is done once at a time.
    recovering: tokio::sync::Mutex<()>,
    /// Held while it is looked through, for whatever reason.
    checking: Arc<tokio::sync::Mutex<()>>,
    /// Held while its bounds are set, which may mean to count its files, by the thread that does it.
    bounding: Arc<tokio::sync::Mutex<()>>,
    /// Held while it is closed because another hub was asked to.
    closing: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

/// The right of a thread to ask the file system of a repository; whoever finds none waits without a thread.
#[derive(Clone)]
struct Asking(Arc<Semaphore>);

impl Default for Asking {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ASKING_MAX)))
    }
}

impl Asking {
    /// Asks on a thread of its own; none when there was no answer in this time. The thread stays behind until the kernel lets it
    /// go, and keeps its right so long.
    async fn ask<T: Send + 'static>(
        &self,
        timeout: Duration,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Result<T>> {
        let asked = async {
            let right = self.0.clone().acquire_owned().await;
            blocking(move || {
                let _right = right;
                question()
            })
            .await
        };
        tokio::time::timeout(timeout, asked).await.ok()
    }
}

#[derive(Default)]
struct State {
    open: Option<Repository>,
    /// How often it was opened, and at which of these times what the dead left in it was put in order last.
    opened: u64,
    recovered: u64,
    /// How often in a row that did not work, and when the last time.
    failed: u32,
    failed_at: Option<Instant>,
    away: Option<(Problem, Timestamp)>,
    /// What was said last of its room.
    space: Option<SpaceState>,
    storage: Option<(String, Storage)>,
}

impl State {
    fn is_recovered(&self) -> bool {
        self.recovered == self.opened
    }

    /// Whether to try again what could not be put in order.
    fn may_recover(&self, period: Duration, now: Instant) -> bool {
        let pause = retry_pause(period, self.failed);
        self.failed_at.is_none_or(|at| now.saturating_duration_since(at) >= pause)
    }
}

impl Repositories {
    fn slot(&self, id: &RepositoryId) -> Arc<Slot> {
        self.slots.lock().entry(id.clone()).or_default().clone()
    }

    /// How a repository stands.
    pub fn standing(&self, core: &Core, id: &RepositoryId) -> Standing {
        let (slot, now) = (self.slot(id), core.now());
        let retry_s = keep_period(core).as_secs_f64();
        let state = slot.state.lock();
        match (&state.open, &state.away) {
            (Some(_), _) => Standing::Open,
            (None, Some((_, at))) if now.seconds_since(*at).abs() > retry_s => Standing::Untried,
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

    /// The same by its id, for whoever says what for: a maintenance mode may be in the way.
    pub async fn by_id(&self, core: &Core, id: &RepositoryId, wanted: Use) -> Result<Repository> {
        // What goes on asks nobody: only a repository that is offline is in its way, and that one is not open.
        if let (Use::GoOn, Some(open)) = (wanted, self.opened(id)) {
            return Ok(open);
        }
        let row = core.catalog.repositories().get(id).await.or_problem()?;
        maintenance::check(&row, wanted)?;
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
        // Read in this turn, so that none is opened that was taken offline a moment ago.
        maintenance::check(&core.catalog.repositories().get(&row.repository_id).await.or_problem()?, Use::GoOn)?;
        let opened = open(core, row, create, adopt).await;
        let mut state = slot.state.lock();
        match &opened {
            Ok(repository) => {
                tracing::info!(repository_id = %row.repository_id, name = %row.name, "repository opened");
                state.open = Some(repository.clone());
                state.opened += 1;
                (state.failed, state.failed_at) = (0, None);
                state.away = None;
            }
            Err(problem) => {
                // It is tried several times a minute: what is known already is told once.
                let is_known = |known: &Problem| (known.code, &known.message) == (problem.code, &problem.message);
                if !state.away.as_ref().is_some_and(|(known, _)| is_known(known)) {
                    tracing::warn!(repository_id = %row.repository_id, name = %row.name, code = %problem.code,
                        error = %problem.message, details = %problem.details, "repository cannot be opened");
                }
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
                opened = core.repositories.by_id(&core, &id, Use::GoOn) => opened,
                () = core.stop.cancelled() => return,
            };
            if opened.is_ok() {
                core.repositories.recover(&core, &id).await;
            }
            core.running.wake.notify_one();
        });
    }

    /// Puts in order what the dead left in an open repository, unless that was done since it was opened or is being done. What
    /// did not work is tried again, later each time.
    async fn recover(&self, core: &Arc<Core>, id: &RepositoryId) {
        let slot = self.slot(id);
        // Every round asks for it: whoever waited here for a share that hangs would be joined by four others a minute.
        let Ok(_turn) = slot.recovering.try_lock() else { return };
        let opened = {
            let state = slot.state.lock();
            if state.is_recovered() {
                return;
            }
            state.opened
        };
        let is_done = crate::reconcile::repository(core, id, Duration::ZERO).await;
        let mut state = slot.state.lock();
        match is_done {
            true => (state.recovered, state.failed, state.failed_at) = (opened, 0, None),
            false => (state.failed, state.failed_at) = (state.failed.saturating_add(1), Some(Instant::now())),
        }
    }

    /// Something was left in a repository that is to be put in order soon: the next round does it.
    pub fn look_again(&self, id: &RepositoryId) {
        let slot = self.slot(id);
        let mut state = slot.state.lock();
        (state.recovered, state.failed, state.failed_at) = (0, 0, None);
    }

    /// The room of a repository.
    pub async fn storage(&self, core: &Core, row: &catalog::Repository) -> Result<Storage> {
        Ok(self.room(core, row).await?.storage)
    }

    /// The same, with what is left of it while much is promised.
    pub async fn room(&self, core: &Core, row: &catalog::Repository) -> Result<Room> {
        let repository = self.get(core, row).await?;
        let asking = self.slot(&row.repository_id).asking.clone();
        let asked = asking.ask(OPEN_TIMEOUT, move || {
            let storage = repository.storage()?;
            let mount_point = mount_point(repository.root()).display().to_string();
            let storage = Storage {
                total_bytes: storage.total_bytes,
                used_bytes: storage.used_bytes,
                available_bytes: storage.available_bytes,
                mount_point,
            };
            Ok::<_, sendense_repo::Error>(Room { storage, unwritten_bytes: repository.unwritten_bytes()? })
        });
        let room = asked.await.unwrap_or_else(|| Err(does_not_answer(&row.name)))?.or_problem()?;
        self.slot(&row.repository_id).state.lock().storage = Some((row.name.to_string(), room.storage.clone()));
        Ok(room)
    }

    /// The turn to look through a repository, of which there is one; none when it did not come within this time.
    pub async fn checking(&self, id: &RepositoryId, patience: Duration) -> Option<OwnedMutexGuard<()>> {
        tokio::time::timeout(patience, self.slot(id).checking.clone().lock_owned()).await.ok()
    }

    /// The turn of a thread that counts what the files of a repository hold.
    #[cfg(test)]
    pub async fn counting(&self, id: &RepositoryId) -> OwnedMutexGuard<()> {
        self.slot(id).bounding.clone().lock_owned().await
    }

    /// What was said last of a repository's room.
    pub fn space_state(&self, id: &RepositoryId) -> SpaceState {
        self.slot(id).state.lock().space.unwrap_or(SpaceState::Ok)
    }

    /// Notes what is said of it now.
    pub fn set_space_state(&self, id: &RepositoryId, to: SpaceState) {
        self.slot(id).state.lock().space = Some(to);
    }

    /// Sets the bounds of an open repository to what its row says. A first limit has to count files: that is not waited for beyond
    /// a time, and goes on beside. Where it has to wait for others, or its turn does not come in time, the next round does it.
    pub async fn bound(&self, core: &Core, id: &RepositoryId, patience: Duration) -> Result<()> {
        let slot = self.slot(id);
        let Ok(turn) = tokio::time::timeout(patience, slot.bounding.clone().lock_owned()).await else { return Ok(()) };
        let Some(open) = self.opened(id) else { return Ok(()) };
        // Read in this turn, so that nobody sets what was said before.
        let row = core.catalog.repositories().get(id).await.or_problem()?;
        let bounds = Settings::read(&row.settings)?.bounds();
        let asked = slot.asking.ask(OPEN_TIMEOUT, move || {
            // Kept by the thread that counts, however long it does: no second one begins beside it.
            let _turn = turn;
            Ok::<_, sendense_repo::Error>(open.bounds() != bounds && open.set_bounds(bounds)?)
        });
        match asked.await {
            Some(set) => {
                if set?.or_problem()? {
                    tracing::info!(repository_id = %id, ?bounds, "a repository has other bounds");
                }
            }
            None => tracing::warn!(repository_id = %id, "the bounds of a repository take long to be set"),
        }
        Ok(())
    }

    /// The room of all repositories, as last asked for.
    pub fn storages(&self) -> Vec<(String, Storage)> {
        self.slots.lock().values().filter_map(|slot| slot.state.lock().storage.clone()).collect()
    }

    /// Closes a repository that goes offline and gives its lease back, or says who holds something in it.
    pub async fn close(&self, core: &Core, id: &RepositoryId) -> Result<(), Vec<String>> {
        let slot = self.slot(id);
        // A look claims nothing in it, and would go on in a folder that is said to be left alone.
        let Some(_looked) = self.checking(id, OPEN_TIMEOUT).await else {
            return Err(vec!["a look through it".to_owned()]);
        };
        let _turn = slot.opening.lock().await;
        let Some(repository) = self.opened(id) else { return Ok(()) };
        repository.locks().shut().map_err(|holders| holders.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        {
            let mut state = slot.state.lock();
            (state.open, state.storage) = (None, None);
        }
        release(core, id, repository).await;
        tracing::info!(repository_id = %id, "repository closed");
        Ok(())
    }

    /// The other hub of this deployment that has the repository open, as its owner record says; none when that cannot be read:
    /// a folder that is not there is not at work.
    pub async fn owner(&self, core: &Core, row: &catalog::Repository) -> Option<HubId> {
        let path = path_of(row).ok()?;
        let asking = self.slot(&row.repository_id).asking.clone();
        let record = asking.ask(OPEN_TIMEOUT, move || owner::read(&path)).await?.ok()?.ok()??;
        let is_ours = record.deployment_id == core.deployment_id;
        let is_another = record.hub_id != core.lease.hub_id;
        (is_ours && is_another && record.lease_until > core.now()).then_some(record.hub_id)
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
        // Side by side: the hub's end is not held up once for each share that does not answer.
        let released = slots.into_iter().map(|(id, slot)| async move {
            let open = slot.state.lock().open.take();
            if let Some(repository) = open {
                release(core, &id, repository).await;
            }
        });
        futures::future::join_all(released).await;
    }

    fn lose(&self, id: &RepositoryId, problem: Problem, now: Timestamp) {
        let slot = self.slot(id);
        let mut state = slot.state.lock();
        state.open = None;
        state.away = Some((problem, now));
    }

    /// True when it is open and nothing of the dead is left in it.
    #[cfg(test)]
    pub fn is_recovered(&self, id: &RepositoryId) -> bool {
        let slot = self.slot(id);
        let state = slot.state.lock();
        state.open.is_some() && state.is_recovered()
    }

    /// Those that are open.
    pub fn all_open(&self) -> Vec<(RepositoryId, Repository)> {
        let slots = self.slots.lock();
        slots.iter().filter_map(|(id, slot)| Some((id.clone(), slot.state.lock().open.clone()?))).collect()
    }
}

fn keep_period(core: &Core) -> Duration {
    core.limits.part_of_lease(4, KEEP_PERIOD_MAX)
}

/// How long to wait after so many tries in a row that came to nothing.
fn retry_pause(period: Duration, failed: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failed.saturating_sub(2));
    // The first time with the next round, whatever that round and the last try took.
    if failed < 2 { Duration::ZERO } else { period.saturating_mul(doubled).min(RETRY_MAX.max(period)) }
}

/// Renews leases until the hub stops, and waits for nothing else: a repository whose lease runs out is another hub's.
pub(crate) async fn keep_leases(core: Arc<Core>) {
    let mut rounds = core.rounds(keep_period(&core));
    while rounds.next().await {
        let renewals = core.repositories.all_open().into_iter().map(|(id, repository)| renew(&core, id, repository));
        futures::future::join_all(renewals).await;
    }
}

/// Until the hub stops: tries what is away, so that a folder that is mounted again and a repository whose hub has died are at
/// work again although nobody asks for them, and follows what other hubs were told of modes and bounds.
pub(crate) async fn keep_open(core: Arc<Core>) {
    let mut rounds = core.rounds(keep_period(&core));
    while rounds.next().await {
        look_for_more(&core).await;
    }
}

/// Begins to open what is not open, and to put in order what could not be put in order yet. Whatever asks a file system is begun
/// beside it, so that a share that hangs holds up nothing of the others.
async fn look_for_more(core: &Arc<Core>) {
    let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
    let rows = match core.catalog.repositories().list(page).await {
        Ok((rows, _)) => rows,
        Err(error) => return tracing::warn!(error = %error, "list repositories"),
    };
    for row in rows {
        let id = &row.repository_id;
        let may_tidy = maintenance::allows(row.maintenance.mode, Use::Write);
        if row.maintenance.mode == RepositoryMode::Offline {
            // Another hub was asked; here it is closed as soon as nothing is at work in it.
            if core.repositories.opened(id).is_some() {
                close_in_background(core, id);
            }
            continue;
        }
        bound_in_background(core, id);
        let (recovered, may_recover) = {
            let slot = core.repositories.slot(id);
            let state = slot.state.lock();
            (state.is_recovered(), state.may_recover(keep_period(core), Instant::now()))
        };
        match core.repositories.standing(core, id) {
            Standing::Open if recovered || !may_tidy || !may_recover => {}
            Standing::Open | Standing::Untried => Repositories::open_in_background(core, id),
            Standing::Elsewhere | Standing::Away => {}
        }
    }
}

fn close_in_background(core: &Arc<Core>, id: &RepositoryId) {
    let Ok(turn) = core.repositories.slot(id).closing.clone().try_lock_owned() else { return };
    let (core, id) = (core.clone(), id.clone());
    core.clone().tracker.spawn(async move {
        let _turn = turn;
        // Whoever holds something in it is looked at again with the next round.
        _ = maintenance::close(&core, &id).await;
    });
}

fn bound_in_background(core: &Arc<Core>, id: &RepositoryId) {
    if core.repositories.opened(id).is_none() {
        return;
    }
    let (core, id) = (core.clone(), id.clone());
    core.clone().tracker.spawn(async move {
        if let Err(problem) = core.repositories.bound(&core, &id, Duration::ZERO).await {
            tracing::warn!(repository_id = %id, error = %problem.message, details = %problem.details, "bound a repository");
        }
    });
}

async fn renew(core: &Core, id: RepositoryId, repository: Repository) {
    let now = core.now();
    let asking = core.repositories.slot(&id).asking.clone();
    match asking.ask(OPEN_TIMEOUT, move || repository.renew(now)).await {
        Some(Ok(Ok(()))) => {}
        Some(Ok(Err(error))) if error.kind == Kind::Fenced => {
            tracing::error!(repository_id = %id, error = %error, "another hub took the repository");
            core.repositories.lose(&id, crate::fault::of_repo(&error), now);
            // Work in it could publish nothing any more; the check before each publication would refuse it.
            for handle in core.running.of_repository(&id) {
                handle.stop(Stop::RepositoryLost);
            }
        }
        Some(Ok(Err(error))) => tracing::warn!(repository_id = %id, error = %error, "renew the lease on a repository"),
        Some(Err(problem)) => tracing::warn!(repository_id = %id, error = %problem.message, "renew the lease"),
        None => tracing::warn!(repository_id = %id, "the repository does not answer"),
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
    // The folder was there when the repository was made: where it is not now, its file system is not mounted.
    let is_not_there = |causes: String| {
        Problem::new(ProblemCode::RepositoryUnavailable, format!("repository {} is not there", row.name), causes)
    };
    core.check_host_path(&path, create == Create::IfMissing).map_err(|problem| match problem.code {
        ProblemCode::InvalidInput if create == Create::Never => is_not_there(problem.message),
        _ => problem,
    })?;
    let bounds = Settings::read(&row.settings)?.bounds();
    let options = Options {
        claim: Claim {
            deployment_id: core.deployment_id.clone(),
            hub_id: core.lease.hub_id.clone(),
            lease_seconds: core.limits.lease_seconds,
            adopt,
        },
        limit_bytes: bounds.limit_bytes,
        floor_bytes: bounds.floor_bytes,
        create,
    };
    let now = core.now();
    let asking = core.repositories.slot(&row.repository_id).asking.clone();
    #[cfg(test)]
    let script = core.script.clone();
    let open = move || {
        #[cfg(test)]
        if let Some(script) = script {
            return Repository::open_scripted(script, &path, options, now);
        }
        Repository::open(&path, options, now)
    };
    let opened = asking.ask(OPEN_TIMEOUT, open).await;
    opened.unwrap_or_else(|| Err(does_not_answer(&row.name)))?.map_err(|error| match error.kind {
        Kind::NotFound => is_not_there(sendense_block::error::chain(&error)),
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
        Err(_) => Err(does_not_answer(name)),
    }
}

fn does_not_answer(name: &sendense_types::Name) -> Problem {
    Problem::new(
        ProblemCode::RepositoryUnavailable,
        format!("repository {name} does not answer"),
        format!("no answer within {} s", OPEN_TIMEOUT.as_secs()),
    )
}

/// Where the file system of a folder is mounted: the highest folder above it on the same device.
fn mount_point(path: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    let own = device(path);
    let above = path.ancestors().take_while(|ancestor| device(ancestor) == own).last();
    above.unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_share_that_hangs_keeps_no_more_than_its_threads() {
        let (asking, asked) = (Asking::default(), Arc::new(AtomicUsize::new(0)));
        let mut hanging = Vec::new();
        for _ in 0..2 * ASKING_MAX {
            let (let_go, hangs) = mpsc::channel::<()>();
            let asked = asked.clone();
            let answer = asking.ask(Duration::from_millis(20), move || {
                asked.fetch_add(1, Ordering::SeqCst);
                let _ = hangs.recv();
            });
            assert!(answer.await.is_none());
            hanging.push(let_go);
        }
        assert!(asked.load(Ordering::SeqCst) <= ASKING_MAX);
        // The kernel lets them go.
        drop(hanging);
        let answer = asking.ask(Duration::from_secs(60), || 7).await;
        assert_eq!(answer.map(Result::unwrap), Some(7));
    }
    #[test]
    fn what_cannot_be_put_in_order_is_tried_less_and_less_often() {
        let round = Duration::from_secs(15);
        let pauses = [0, 1, 2, 3, 6, 7, 40, u32::MAX].map(|failed| retry_pause(round, failed).as_secs());
        assert_eq!(pauses, [0, 0, 15, 30, 240, 480, 900, 900]);
        let now = Instant::now();
        let state = State { failed: 3, failed_at: Some(now), ..State::default() };
        let after = |seconds| state.may_recover(round, now + Duration::from_secs(seconds));
        assert!(!after(29) && after(30));
        assert!(State::default().may_recover(round, now));
    }
}
