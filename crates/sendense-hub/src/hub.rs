//! Starting and stopping a hub.
//!
//! ```text
//! data dir (lock) -> catalog -> key -> authority for nodes -> epoch -> admin token -> reconcile -> dispatcher -> API
//! ```
//!
//! What lives here: the order of the start and of the end. What does not: what any part does. Invariant: nothing is served
//! before interrupted work was ended, and the lock on the data directory outlives everything that writes.

use crate::app::App;
use crate::app::due::{self, MergesDue};
use crate::app::tokens;
use crate::catalog_copy;
use crate::config::HubConfig;
use crate::core::Core;
use crate::data_dir::{self, DataDir, private_file};
use crate::events::Events;
use crate::exports::{self, Exports};
use crate::history;
use crate::hooks::{self, Hooks};
use crate::jobs::handle::Stop;
use crate::jobs::{Running, dispatcher};
use crate::mounts::{self, Mounts};
use crate::nodes::Nodes;
use crate::nodes::authority::{self, Authority};
use crate::nodes::resume::Transfers;
use crate::reconcile;
use crate::recoveries::{self, Recoveries};
use crate::repositories::{self, Repositories};
use crate::restore::Rooms;
use crate::schedule;
use crate::secrets::{self, Sealer};
use crate::space;
use crate::verification;
use sendense_catalog::{Catalog, Page, TokenRole};
use sendense_node::{FileJournal, LaneBudget};
use sendense_source::Journal;
use sendense_source::paths::Roots;
use sendense_types::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long running work may take to end when the hub stops. Copies end within a second, and what hangs is given up after
/// [`crate::config::Limits::stop_grace`]; what takes longer still is left to the next start.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of the token that a hub makes at its first start.
const ADMIN_TOKEN_NAME: &str = "admin";

/// The setting that names the key of the catalog's credentials.
const KEY_ID: &str = "key_id";

/// Why a hub does not start. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    /// The key for credentials cannot be used.
    #[error("prepare the key for credentials")]
    Key(#[source] secrets::Error),
    /// The authority for nodes cannot be used.
    #[error("prepare the certificate authority for nodes")]
    Authority(#[source] authority::Error),
    /// The catalog cannot be opened.
    #[error("open the catalog")]
    Catalog(#[source] sendense_catalog::Error),
    /// The journal cannot be opened.
    #[error("open the journal")]
    Journal(#[source] sendense_source::Error),
    /// The admin token cannot be read or made.
    #[error("prepare the admin token {}", path.display())]
    AdminToken {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An allowed path is none.
    #[error("allowed path {} is not absolute", .0.display())]
    AllowPath(PathBuf),
    /// Restore points cannot be served over NBD.
    #[error("serve restore points over NBD")]
    Nbd(#[source] sendense_block::Error),
    /// The folder for what recovered machines write cannot be made.
    #[error("prepare the folder for recoveries {}", path.display())]
    RecoveryDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder of hooks cannot be trusted.
    #[error("use the folder of hooks")]
    Hooks(#[source] hooks::Refused),
    /// The API cannot be served.
    #[error(transparent)]
    Serve(#[from] crate::http::Error),
}

/// Starts hubs.
#[derive(Debug)]
pub struct Hub;

/// A hub at work.
pub struct RunningHub {
    core: Arc<Core>,
    app: App,
    server: crate::http::Server,
}

impl Hub {
    /// Starts a hub. When this returns, interrupted work of an earlier life was ended and the API answers; repositories and
    /// sources that cannot be reached are tried on in the background.
    pub async fn start(config: HubConfig) -> Result<RunningHub, Error> {
        let now = config.clock.now();
        for path in &config.allow_paths {
            if !path.is_absolute() {
                return Err(Error::AllowPath(path.clone()));
            }
        }
        let data_dir = DataDir::open(&config.data_dir)?;
        let recovery_dir = config.recovery.dir.as_deref().map(make_recovery_dir).transpose()?;
        let hooks = Hooks::open(config.hooks_dir.as_deref(), &data_dir.hooks_path()).map_err(Error::Hooks)?;
        // What lies there no request may name, even where an allowed path holds it: keys, and programs that are run with our rights.
        let private =
            [data_dir.path().to_owned()].into_iter().chain(recovery_dir.clone()).chain(config.hooks_dir.clone());
        let private: Vec<PathBuf> = private.collect();
        let url = config.database_url.clone().unwrap_or_else(|| sqlite_url(&data_dir.catalog_path()));
        let catalog = Catalog::open(&url).await.map_err(Error::Catalog)?;
        let sealer = sealer(&data_dir.key_path(), &catalog, config.accept_new_key, now).await?;
        let authority =
            Authority::open(&catalog, &sealer, config.accept_new_key, now).await.map_err(Error::Authority)?;
        let node_verifier = authority.verifier().map_err(Error::Authority)?;
        let deployment_id = catalog.hubs().deployment_id(now).await.map_err(Error::Catalog)?;
        let until = config.limits.lease_until(now);
        let lease = catalog.hubs().acquire(data_dir.hub_id(), until, now).await.map_err(Error::Catalog)?;
        let first_looks_since = verification::first_looks_since(&catalog, now).await.map_err(Error::Catalog)?;
        let journal: Arc<dyn Journal> = Arc::new(FileJournal::open(&data_dir.journal_path()).map_err(Error::Journal)?);
        let transfers_path = data_dir.transfers_path();
        let transfers = Transfers::open(transfers_path.clone())
            .map_err(|source| data_dir::Error::Access { path: transfers_path, source })?;
        crate::metrics::install();
        let core = Arc::new(Core {
            catalog,
            clock: config.clock.clone(),
            started_at: now,
            lease,
            deployment_id,
            first_looks_since,
            sealer,
            roots: Roots::new(config.allow_paths.clone()).without(private),
            limits: config.limits.clone(),
            events: Events::new(),
            journal,
            budget: LaneBudget::default(),
            repositories: Repositories::default(),
            running: Running::default(),
            rooms: Rooms::default(),
            token_notes: tokens::Notes::default(),
            merges_due: MergesDue::default(),
            schedules_changed: tokio::sync::Notify::new(),
            reaping: reconcile::Reaping::default(),
            left_overs: reconcile::LeftOvers::default(),
            sweeping: reconcile::Sweeping::default(),
            mounts: Mounts::new(
                mounts::start_worker(data_dir.run_path()),
                config.clock.clone(),
                config.limits.mounts_max,
                config.limits.mount_idle_seconds,
            ),
            nodes: Arc::new(Nodes::new(authority, transfers)),
            recoveries: Recoveries::new(config.recovery.clone(), recovery_dir, data_dir.recoveries_path()),
            hooks,
            exports: Arc::new(Exports::new(config.nbd.clone(), data_dir.path())),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            data_dir,
            #[cfg(test)]
            script: config.script.clone(),
            #[cfg(test)]
            between: Default::default(),
        });
        admin_token(&core).await?;
        reconcile::at_start(&core).await;
        core.tracker.spawn(dispatcher::run(core.clone()));
        core.tracker.spawn(repositories::keep_leases(core.clone()));
        core.tracker.spawn(repositories::keep_open(core.clone()));
        core.tracker.spawn(space::keep(core.clone()));
        core.tracker.spawn(mounts::keep(core.clone()));
        core.tracker.spawn(exports::keep(core.clone()));
        core.tracker.spawn(recoveries::keep(core.clone()));
        core.tracker.spawn(catalog_copy::keep::keep(core.clone()));
        core.tracker.spawn(history::keep(core.clone()));
        let app = App::new(core.clone());
        core.tracker.spawn(schedule::keep(app.clone()));
        core.tracker.spawn(schedule::rediscover(app.clone()));
        core.tracker.spawn(verification::keep(app.clone()));
        core.tracker.spawn(due::keep(app.clone()));
        let options = crate::http::Options {
            listen: config.listen,
            tls: config.tls.clone(),
            tls_dir: core.data_dir.tls_path(),
            node_verifier,
            timeouts: crate::http::Timeouts::default(),
            clock: config.clock.clone(),
        };
        if let Err(error) = core.exports.start() {
            stop(&core).await;
            return Err(Error::Nbd(error));
        }
        let server = match crate::http::Server::start(app.clone(), options) {
            Ok(server) => server,
            Err(error) => {
                stop(&core).await;
                return Err(error.into());
            }
        };
        if let Some(fingerprint) = server.fingerprint() {
            core.nodes.served_with(fingerprint);
        }
        tracing::info!(hub_id = %core.lease.hub_id, deployment_id = %core.deployment_id, epoch = core.lease.epoch,
            address = %server.local_addr(), "hub is ready");
        Ok(RunningHub { core, app, server })
    }
}

impl RunningHub {
    /// Where the API is served, with the port that it got.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.server.local_addr()
    }

    /// The URL for a client on this machine.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// SHA-256 of the API's certificate in hex; none on plain HTTP.
    pub fn fingerprint(&self) -> Option<&str> {
        self.server.fingerprint()
    }

    /// The use-cases, for callers in the same process.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// The file that holds the admin's token.
    pub fn admin_token_path(&self) -> PathBuf {
        self.core.data_dir.admin_token_path()
    }

    /// Returns when the hub must end because a later start of it has taken over.
    pub async fn superseded(&self) {
        self.core.stop.cancelled().await;
    }

    /// Stops: no new calls, running work is told to stop and waited for, leases are given back.
    pub async fn shutdown(self) {
        tracing::info!("hub stops");
        self.core.stop.cancel();
        // Work first: a call that waits for a deletion is answered while the server still waits for calls.
        let ((), ()) = tokio::join!(stop(&self.core), self.server.shutdown());
        tracing::info!("hub has stopped");
    }
}

/// The key that the catalog's credentials are sealed with. All hubs of a deployment have the same one, and which one that is
/// the catalog knows, so that a key file that was lost or mixed up is found at the start and not on the day when a source is
/// to be opened. A new one is made only where none ever was, or when the operator has given the old one up.
async fn sealer(path: &Path, catalog: &Catalog, accept_new_key: bool, now: Timestamp) -> Result<Sealer, Error> {
    let present = Sealer::read(path).map_err(Error::Key)?;
    let known = match catalog.settings().get(KEY_ID).await.map_err(Error::Catalog)? {
        Some(id) => id.as_str().map(str::to_owned),
        None => sealed_with(catalog).await?,
    };
    let sealer = match (present, known) {
        (Some(sealer), known) if accept_new_key || known.as_deref().is_none_or(|id| id == sealer.key_id()) => sealer,
        (None, known) if accept_new_key || known.is_none() => Sealer::make(path).map_err(Error::Key)?,
        (present, sealed_with) => return Err(Error::Key(refused(path, present.as_ref(), sealed_with))),
    };
    let id = serde_json::Value::from(sealer.key_id());
    if accept_new_key {
        catalog.settings().set(KEY_ID, &id, now).await.map_err(Error::Catalog)?;
        return Ok(sealer);
    }
    // Of two hubs that start on a new database at once, the key of one becomes that of both.
    let agreed = catalog.settings().get_or_set(KEY_ID, &id, now).await.map_err(Error::Catalog)?;
    if agreed != id {
        let sealed_with = agreed.as_str().map(str::to_owned);
        return Err(Error::Key(refused(path, Some(&sealer), sealed_with)));
    }
    Ok(sealer)
}

fn refused(path: &Path, present: Option<&Sealer>, sealed_with: Option<String>) -> secrets::Error {
    let (path, sealed_with) = (path.to_owned(), sealed_with.unwrap_or_default());
    match present {
        Some(sealer) => secrets::Error::NotTheCatalogs { path, present: sealer.key_id().to_owned(), sealed_with },
        None => secrets::Error::Missing { path, sealed_with },
    }
}

/// The folder that only we can look into, made when it is not there, without symbolic links.
fn make_recovery_dir(path: &Path) -> Result<PathBuf, Error> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).and_then(|()| path.canonicalize());
    made.map_err(|source| Error::RecoveryDir { path: path.to_owned(), source })
}

/// The key of the credentials that a catalog holds which does not say it itself.
async fn sealed_with(catalog: &Catalog) -> Result<Option<String>, Error> {
    let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let (sources, _) = catalog.sources().list(page).await.map_err(Error::Catalog)?;
    let mut envelopes = sources.iter().filter_map(|source| std::str::from_utf8(source.secret.as_deref()?).ok());
    Ok(envelopes.find_map(secrets::key_id_of).map(str::to_owned))
}

/// Ends everything that was started.
async fn stop(core: &Arc<Core>) {
    core.stop.cancel();
    for handle in core.running.all() {
        handle.stop(Stop::Shutdown);
    }
    let closing = core.clone();
    core.tracker.spawn_blocking(move || closing.recoveries.shutdown());
    let exports = core.exports.clone();
    core.tracker.spawn_blocking(move || exports.shutdown());
    core.tracker.close();
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, core.tracker.wait()).await.is_err() {
        tracing::warn!(running = core.running.count(), "work did not end in time; the next start will end it");
    }
    core.repositories.release_all(core).await;
    if let Err(error) = core.catalog.close().await {
        tracing::warn!(error = %error, "close the catalog");
    }
}

pub(crate) fn sqlite_url(path: &Path) -> String {
    // A path may hold characters that mean something in a URL.
    let encoded = percent_encoding::utf8_percent_encode(&path.to_string_lossy(), PATH).to_string();
    format!("sqlite://{encoded}?mode=rwc")
}

/// Everything but what a path is mostly made of.
const PATH: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_').remove(b'~');

/// The token in the admin's file is valid: made at the first start, or whenever the file is not there. Who can write the
/// file can do everything with the hub's data anyway, so a token that was put there by hand is taken, too.
async fn admin_token(core: &Core) -> Result<(), Error> {
    let path = core.data_dir.admin_token_path();
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::AdminToken { path: path.clone(), source };
    let known = private_file::read(&path).map_err(|error| failed(error.into()))?;
    if let Some(file) = &known
        && file.mode & 0o077 != 0
    {
        return Err(failed(format!("its mode is {:o}; nobody but its owner may read it", file.mode).into()));
    }
    let name = ADMIN_TOKEN_NAME.parse().expect("a plain word is a name");
    let secret = match known {
        Some(file) => {
            let text = String::from_utf8(file.bytes).map_err(|error| failed(error.into()))?;
            let text = text.trim().to_owned();
            // Shorter ones can be guessed; ours have 47 characters.
            if text.len() < 32 {
                return Err(failed("it holds no token of at least 32 characters".into()));
            }
            text
        }
        None => {
            let secret = tokens::generate().map_err(|problem| failed(problem.into()))?;
            private_file::create(&path, format!("{secret}\n").as_bytes()).map_err(|error| failed(error.into()))?;
            tracing::info!(path = %path.display(), "admin token made");
            secret
        }
    };
    match tokens::keep(core, name, TokenRole::Admin, &secret).await {
        Ok(_) => Ok(()),
        // Known already, valid or revoked: what was revoked stays so.
        Err(sendense_catalog::Error::Conflict(sendense_catalog::Conflict::Exists { .. })) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}
