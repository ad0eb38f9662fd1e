//! What every part of the hub stands on, made once at the start.
//!
//! What lives here: the parts and how they are held together. What does not: what is done with them. Invariant: nothing in
//! here is replaced while the hub runs, so whoever holds it needs no lock.

use crate::app::due::MergesDue;
use crate::app::tokens::Notes;
use crate::config::Limits;
use crate::data_dir::DataDir;
use crate::events::Events;
use crate::exports::Exports;
use crate::fault::{OrProblem, Result, internal, invalid};
use crate::hooks::Hooks;
use crate::jobs::Running;
use crate::mounts::Mounts;
use crate::nodes::Nodes;
use crate::nodes::source::RemoteSource;
use crate::reconcile::{LeftOvers, Reaping, Sweeping};
use crate::recoveries::Recoveries;
use crate::repositories::Repositories;
use crate::restore::Rooms;
use crate::secrets::Sealer;
use sendense_catalog::{Catalog, HubLease};
use sendense_node::LaneBudget;
use sendense_node::remote::message::SourceSpec;
use sendense_source::paths::Roots;
use sendense_source::{Journal, Source, SourceContext};
use sendense_types::{Clock, DeploymentId, Problem, ProblemCode, SourceKind, Timestamp};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The hub's parts.
pub(crate) struct Core {
    pub catalog: Catalog,
    pub clock: Arc<dyn Clock>,
    pub started_at: Timestamp,
    pub lease: HubLease,
    pub deployment_id: DeploymentId,
    /// Since when the first look at a point is due sooner than others.
    pub first_looks_since: Timestamp,
    pub sealer: Sealer,
    pub roots: Roots,
    pub limits: Limits,
    pub events: Events,
    pub journal: Arc<dyn Journal>,
    /// Lanes of all copies together: what bounds the hub's memory.
    pub budget: LaneBudget,
    pub repositories: Repositories,
    pub running: Running,
    /// Room at the targets of restores.
    pub rooms: Rooms,
    pub token_notes: Notes,
    /// What comes after backups and has to wait until merges have ended.
    pub merges_due: MergesDue,
    /// Told when a schedule is to be looked at before its time.
    pub schedules_changed: tokio::sync::Notify,
    /// What of the journal is being undone.
    pub reaping: Reaping,
    /// What could not be undone.
    pub left_overs: LeftOvers,
    /// Sources that are to be swept before their time.
    pub sweeping: Sweeping,
    pub mounts: Mounts,
    pub nodes: Arc<Nodes>,
    pub exports: Arc<Exports>,
    pub recoveries: Recoveries,
    /// What is run before and after backups.
    pub hooks: Hooks,
    /// Asked for when the hub ends: nothing new begins.
    pub stop: CancellationToken,
    /// Everything that was started and must have ended before the hub is gone.
    pub tracker: TaskTracker,
    /// Dropped last: the lock on the data directory.
    pub data_dir: DataDir,
    /// What happens to changes of repositories.
    #[cfg(test)]
    pub script: Option<Arc<dyn sendense_repo::testing::stage::Script>>,
    /// Puts itself between the hub and the sources it opens.
    #[cfg(test)]
    pub between: parking_lot::Mutex<Option<Between>>,
}

/// A source made of a source.
#[cfg(test)]
pub(crate) type Between = Box<dyn Fn(Arc<dyn Source>) -> Arc<dyn Source> + Send + Sync>;

impl Core {
    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The resolved form of a path on this host that a request names. It lies below an allowed root, and never in the data
    /// directory, even where an allowed root holds that: nobody backs up the hub's key, or writes over it.
    pub fn check_host_path(&self, path: &Path, may_be_new: bool) -> Result<PathBuf> {
        if path.as_os_str().is_empty() {
            return Err(invalid("a path is required"));
        }
        let existing = self.roots.check_existing(path);
        let resolved = match existing {
            Err(error) if may_be_new && error.kind == sendense_source::Kind::NotFound => self.roots.check_new(path),
            existing => existing,
        };
        let resolved = resolved.map_err(|error| {
            let problem = crate::fault::of_source(&error);
            match problem.code {
                ProblemCode::VmNotFound | ProblemCode::SourceFailed => {
                    Problem { code: ProblemCode::InvalidInput, ..problem }
                }
                _ => problem,
            }
        })?;
        let private = [(Some(self.data_dir.path()), "data directory"), (self.hooks.folder(), "folder of hooks")];
        for (private, what) in private.into_iter().filter_map(|(private, what)| Some((private?, what))) {
            if resolved.starts_with(private) || private.starts_with(&resolved) {
                let details = format!("{} is, holds or lies in the hub's {what}", path.display());
                return Err(Problem::new(ProblemCode::PathNotAllowed, "the path is not allowed", details));
            }
        }
        Ok(resolved)
    }

    /// A source, opened. Nothing is connected yet.
    pub fn open_source(&self, row: &sendense_catalog::Source) -> Result<Arc<dyn Source>> {
        if let Some(remote) = self.remote_source(row)? {
            return Ok(Arc::new(remote));
        }
        let spec = self.source_spec(row)?;
        let context = SourceContext {
            source_id: spec.source_id,
            deployment_id: spec.deployment_id,
            run_dir: self.data_dir.run_path(),
            roots: self.roots.clone(),
        };
        let source = sendense_source::open(spec.kind, &spec.config, spec.secret.as_deref(), context).or_problem()?;
        #[cfg(test)]
        if let Some(between) = &*self.between.lock() {
            return Ok(between(source));
        }
        Ok(source)
    }

    /// A source that the hub itself reaches: machines are run on points by it alone. What cannot be done behind a node is refused
    /// before anything is begun.
    pub fn open_source_here(&self, row: &sendense_catalog::Source) -> Result<Arc<dyn Source>> {
        match self.remote_source(row)? {
            None => self.open_source(row),
            Some(remote) => Err(cannot(row, remote.node(), "runs no machines on points")),
        }
    }

    /// The node that restores machines to a source, none where the hub does it. Refuses what that node cannot do.
    pub fn restorer(&self, row: &sendense_catalog::Source) -> Result<Option<RemoteSource>> {
        let Some(remote) = self.remote_source(row)? else { return Ok(None) };
        if row.kind != SourceKind::Vsphere {
            let what = format!("restores no machines to sources of kind {}", row.kind);
            return Err(cannot(row, remote.node(), &what));
        }
        remote.check_restores()?;
        Ok(Some(remote))
    }

    /// A source as the node sees it that it is bound to; none when it is bound to none.
    pub fn remote_source(&self, row: &sendense_catalog::Source) -> Result<Option<RemoteSource>> {
        let Some(node) = crate::app::sources::Settings::read(&row.config)?.node else { return Ok(None) };
        Ok(Some(RemoteSource::new(self.nodes.clone(), node, self.source_spec(row)?)))
    }

    /// All that is needed to open a source, its credentials included.
    pub fn source_spec(&self, row: &sendense_catalog::Source) -> Result<SourceSpec> {
        use secrecy::ExposeSecret;
        let secret = match &row.secret {
            Some(envelope) => {
                let envelope = String::from_utf8_lossy(envelope);
                let opened = self.sealer.open_sealed(row.source_id.as_str(), &envelope).map_err(|error| {
                    internal(format!("credentials of source {} cannot be opened", row.name), error.to_string())
                })?;
                Some(opened.expose_secret().to_owned())
            }
            None => None,
        };
        Ok(SourceSpec {
            source_id: row.source_id.clone(),
            kind: row.kind,
            config: crate::app::sources::Settings::read(&row.config)?.for_source(row.kind)?,
            secret,
            deployment_id: self.deployment_id.clone(),
        })
    }
}

/// What is refused of a source because it is bound to a node.
fn cannot(row: &sendense_catalog::Source, node: &str, what: &str) -> Problem {
    let message = format!("source {} is bound to node {node}, and a node {what}", row.name);
    let details = "restore its disks with `sendense restore disk` or export them with `sendense export`, or name a source that \
        the hub reaches by itself";
    Problem::new(ProblemCode::InvalidInput, message, details)
}

/// Runs blocking work on a thread of its own and waits for it. The work is not stopped when the waiting is: it ends by
/// itself, because all blocking work of ours asks a [`sendense_block::Cancel`] or is bounded.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        // A panic in a room below is a fault of ours; the message of the panic was logged where it happened.
        internal("a part of the hub failed", error.to_string())
    })
}
