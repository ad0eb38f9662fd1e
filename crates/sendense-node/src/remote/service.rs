//! A node at work: asks its hub for orders, carries them out, and tells what came of them.
//!
//! ```text
//! poll (what I am working at) -> begin these, give those up -> poll …
//! ```
//!
//! Both sides only ever compare what is with what should be: an order that got lost on the way is told again, because the
//! node does not name it; work that the hub does not know (it was restarted, it gave the task up) is ended, because the hub
//! does not name it. Nothing has to be said exactly once.
//!
//! What lives here: polling, and carrying orders out. What does not: backups ([`backup`]), restores ([`restore`]), clearing up ([`super::reaper`]).
//! Invariant: the node only ever dials out, and whatever it makes on a hypervisor is in its journal first.

use super::backup::{self, Tools};
use super::link::{Broken, Link, pause};
use super::message::{
    Answer, BODY_BYTES_MAX, Call, Fault, Malformed, Order, OrderId, Orders, PROTOCOL, Poll, SourceSpec, Work, unpack,
};
use super::reaper::{Kept, Reaper, kept_path};
use super::restore;
use crate::budget::LaneBudget;
use crate::identity::Identity;
use crate::journal::FileJournal;
use parking_lot::Mutex;
use sendense_api::ClientError;
use sendense_block::Cancel;
use sendense_block::error::chain;
use sendense_source::paths::Roots;
use sendense_source::{Artefact, ArtefactKind, Journal, Source, SourceContext};
use sendense_types::{SourceId, TaskId};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Orders at once. The hub bounds what it gives; this holds where it does not.
const ORDERS_MAX: usize = 64;
/// How long an answer is offered to a hub that does not take it. The hub has given the order up long before.
const ANSWER_PATIENCE: Duration = Duration::from_secs(600);
/// Between two polls that bring nothing new: soon enough for whoever waits at a terminal.
const POLL_PERIOD_MIN: Duration = Duration::from_millis(500);
/// Between two looks for what an earlier life of the node left on its sources.
const REAP_PERIOD: Duration = Duration::from_secs(60);
/// The same while something is left that could not be undone yet.
const REAP_PERIOD_LEFT: Duration = Duration::from_secs(10);

/// What a node is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its folder.
    pub data_dir: PathBuf,
    /// Roots of paths on this machine that sources may name.
    pub allow_paths: Vec<PathBuf>,
    /// What blocks may take of the link.
    pub bytes_per_second: Option<u64>,
}

/// Why a node ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its folder cannot be used.
    #[error("use {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process is this node.
    #[error("another process works with {}", .0.display())]
    InUse(PathBuf),
    /// The journal cannot be used.
    #[error("use the journal")]
    Journal(#[source] sendense_source::Error),
    /// No call can be made.
    #[error("make a client")]
    Client(#[source] ClientError),
    /// The hub does not want this node: it was revoked, or another process is it, or the versions do not fit.
    #[error(transparent)]
    Refused(ClientError),
    /// The hub cannot be understood.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What a node holds while it runs.
struct Node {
    link: Arc<Link>,
    options: Options,
    journal: Arc<dyn Journal>,
    budget: LaneBudget,
    kept: Kept,
    working: Mutex<HashMap<OrderId, Working>>,
    stop: Cancel,
}

struct Working {
    cancel: Cancel,
    source: SourceId,
    task: Option<TaskId>,
}

/// Runs a node until `stop`, or until the hub refuses it. `ready` is told when the hub has answered for the first time.
/// Blocks; must not be called on a thread of the runtime.
pub fn run(
    identity: &Identity,
    options: Options,
    runtime: tokio::runtime::Handle,
    stop: &Cancel,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    let _lock = lock(&options)?;
    let journal: Arc<dyn Journal> =
        Arc::new(FileJournal::open(&options.data_dir.join("journal")).map_err(Error::Journal)?);
    let path = kept_path(&options.data_dir);
    let kept = Kept::open(path.clone()).map_err(|source| Error::Folder { path, source })?;
    let client = identity.client().map_err(Error::Client)?;
    let link = Arc::new(Link::new(client, runtime, options.bytes_per_second));
    let node = Node {
        link,
        options,
        journal,
        budget: LaneBudget::default(),
        kept,
        working: Mutex::default(),
        stop: stop.clone(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| node.reap_at_times(stop));
        let ended = node.serve(scope, stop, ready);
        // The reaper ends by it too, where the hub has refused us.
        stop.cancel();
        for working in node.working.lock().values() {
            working.cancel.cancel();
        }
        ended
    })
}

/// One process per folder; the lock goes with the process.
fn lock(options: &Options) -> Result<std::fs::File, Error> {
    let run_dir = options.data_dir.join("run");
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| Error::Folder { path, source }
    };
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&run_dir).map_err(failed(&run_dir))?;
    let path = options.data_dir.join("lock");
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path).map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse(options.data_dir.clone())),
        Err(std::fs::TryLockError::Error(source)) => Err(Error::Folder { path, source }),
    }
}

impl Node {
    /// Polls until told to stop.
    fn serve<'s>(
        &'s self,
        scope: &'s std::thread::Scope<'s, '_>,
        stop: &Cancel,
        ready: impl FnOnce(),
    ) -> Result<(), Error> {
        let process = sendense_types::NodeId::generate().to_string();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let (mut ready, mut attempt) = (Some(ready), 0);
        while !stop.is_cancelled() {
            let poll = Poll {
                protocol: PROTOCOL,
                process: process.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                host: host.clone(),
                working: self.working.lock().keys().cloned().collect(),
            };
            let asked = Instant::now();
            match self.link.once(&Call::Poll(poll), &[], stop) {
                Ok(body) => {
                    attempt = 0;
                    if let Some(ready) = ready.take() {
                        ready();
                    }
                    let (orders, _) = unpack::<Orders>(&body)?;
                    self.link.limit(orders.bytes_per_second);
                    let news = self.follow(scope, orders);
                    // A hub has reason to say the same again at once while an order that it gave up is being ended.
                    if !news && self.link.wait(POLL_PERIOD_MIN.saturating_sub(asked.elapsed()), stop).is_err() {
                        break;
                    }
                }
                Err(Broken::Silent(silent, error)) => {
                    tracing::warn!(silent_seconds = silent.as_secs(), error = %error, "the hub does not answer");
                    if self.link.wait(pause(attempt), stop).is_err() {
                        break;
                    }
                    attempt += 1;
                }
                Err(Broken::Refused(error)) => return Err(Error::Refused(error)),
                Err(Broken::Malformed(error)) => return Err(error.into()),
                Err(Broken::Cancelled) => break,
            }
        }
        Ok(())
    }

    /// Does as it is told; true when that was something new.
    fn follow<'s>(&'s self, scope: &'s std::thread::Scope<'s, '_>, orders: Orders) -> bool {
        let mut working = self.working.lock();
        let mut news = false;
        for id in &orders.stop {
            if let Some(working) = working.get(id).filter(|working| !working.cancel.is_cancelled()) {
                news = true;
                tracing::info!(order = %id.0, "the hub gives the order up");
                working.cancel.cancel();
            }
        }
        for order in orders.start {
            if working.contains_key(&order.id) || working.len() >= ORDERS_MAX {
                continue;
            }
            let task = match &order.work {
                Work::Backup(backup) => Some(backup.freeze.task_id.clone()),
                Work::Restore(restore) => Some(restore.task_id.clone()),
                _ => None,
            };
            let (id, cancel) = (order.id.clone(), Cancel::new());
            working
                .insert(id.clone(), Working { cancel: cancel.clone(), source: order.source.source_id.clone(), task });
            news = true;
            let begun = std::thread::Builder::new().name("order".to_owned()).spawn_scoped(scope, move || {
                self.carry_out(order, &cancel);
            });
            if let Err(error) = begun {
                tracing::error!(error = %error, "start a thread for an order");
                // The hub tells it again.
                working.remove(&id);
            }
        }
        news
    }

    fn carry_out(&self, order: Order, cancel: &Cancel) {
        let id = order.id.clone();
        tracing::info!(order = %id.0, source_id = %order.source.source_id, "order begins");
        // Whatever panics below is a fault of ours in one order; the others go on, and the hub is told.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| self.work(order, cancel)));
        let outcome = outcome.unwrap_or_else(|_| {
            let (what, message) = ("carry the order out".to_owned(), "a part of the node failed".to_owned());
            Err(Fault::Source { what, kind: format!("{:?}", sendense_source::Kind::Failed), message })
        });
        if let Err(fault) = &outcome {
            tracing::warn!(order = %id.0, ?fault, "order failed");
        }
        let call = Call::Answer { order: id.clone(), outcome };
        let call = match super::message::pack(&call, &[]) {
            Ok(body) if body.len() <= BODY_BYTES_MAX => call,
            _ => {
                let fault = Fault::Source {
                    what: "tell the hub".to_owned(),
                    kind: "Failed".to_owned(),
                    message: format!("the answer is longer than {BODY_BYTES_MAX} bytes"),
                };
                Call::Answer { order: id.clone(), outcome: Err(fault) }
            }
        };
        // Also what was cancelled is answered, so that the hub need not wait. It is told until the hub knows it or is gone; a
        // node that ends tries once.
        let told = match self.link.call(&call, &[], ANSWER_PATIENCE, &self.stop) {
            Err(Broken::Cancelled) => self.link.once(&call, &[], &Cancel::new()),
            told => told,
        };
        if let Err(error) = told {
            tracing::warn!(order = %id.0, error = %sendense_block::error::chain(&error), "the hub does not take the answer");
        }
        self.working.lock().remove(&id);
    }

    fn work(&self, order: Order, cancel: &Cancel) -> Result<Answer, Fault> {
        let fault = |what: &'static str| move |error: sendense_source::Error| Fault::of_source(what, &error);
        let source = self.open(&order.source).map_err(fault("open the source"))?;
        if matches!(order.work, Work::Backup(_) | Work::Restore(_) | Work::Retire { .. }) {
            self.kept.keep(&order.source).map_err(|message| {
                let error = sendense_source::Error::new(sendense_source::Kind::Failed, message);
                Fault::of_source("keep how the source is reached", &error)
            })?;
        }
        match order.work {
            Work::Test => source.test(cancel).map(Answer::Tested).map_err(fault("test")),
            Work::Discover => source.discover(cancel).map(Answer::Discovered).map_err(fault("discover")),
            Work::Inspect(vm) => {
                source.inspect(&vm, cancel).map(|vm| Answer::Inspected(Box::new(vm))).map_err(fault("inspect"))
            }
            Work::Retire { vm, keep } => {
                source.retire(&vm, &keep, &self.journal, cancel).map(Answer::Retired).map_err(fault("retire"))
            }
            Work::Leftovers => source.leftovers(cancel).map(Answer::Leftovers).map_err(fault("look for leftovers")),
            Work::Reap(artefact) if self.may_reap(&artefact) => {
                source.reap(&artefact, cancel).map(Answer::Reaped).map_err(fault("remove a leftover"))
            }
            Work::Reap(_) => Ok(Answer::Reaped(false)),
            Work::Backup(backup) => {
                let tools = Tools { link: &self.link, journal: &self.journal, budget: &self.budget };
                backup::run(&tools, &order.id, &*source, backup, cancel)
            }
            Work::Restore(wanted) => {
                let tools = Tools { link: &self.link, journal: &self.journal, budget: &self.budget };
                restore::run(&tools, &order.id, &*source, wanted, cancel)
            }
        }
    }

    /// Files and processes of this machine are in the node's own journal, and what it works at is no leftover.
    fn may_reap(&self, artefact: &Artefact) -> bool {
        let is_at_work =
            |task: &TaskId| self.working.lock().values().any(|working| working.task.as_ref() == Some(task));
        matches!(artefact.kind, ArtefactKind::Snapshot | ArtefactKind::Machine) && !is_at_work(&artefact.task_id)
    }

    fn open(&self, spec: &SourceSpec) -> sendense_source::Result<Arc<dyn Source>> {
        let context = SourceContext {
            source_id: spec.source_id.clone(),
            deployment_id: spec.deployment_id.clone(),
            run_dir: self.options.data_dir.join("run"),
            roots: Roots::new(self.options.allow_paths.clone()).without(vec![self.options.data_dir.clone()]),
        };
        sendense_source::open(spec.kind, &spec.config, spec.secret.as_deref(), context)
    }

    /// Undoes what ended backups and restores left on sources: at the start, and again for what could not be undone.
    fn reap_at_times(&self, stop: &Cancel) {
        loop {
            let is_clear = self.reap(stop).unwrap_or_else(|error| {
                tracing::warn!(error, "undo what an earlier backup left");
                false
            });
            let period = if is_clear { REAP_PERIOD } else { REAP_PERIOD_LEFT };
            if self.link.wait(period, stop).is_err() {
                return;
            }
        }
    }

    fn reap(&self, stop: &Cancel) -> Result<bool, String> {
        let is_running =
            |task: &TaskId| self.working.lock().values().any(|working| working.task.as_ref() == Some(task));
        let is_used = |source: &SourceId| self.working.lock().values().any(|working| working.source == *source);
        let ask_hub = || {
            let body = self.link.once(&Call::Sources, &[], stop).map_err(|error| chain(&error))?;
            unpack::<Vec<SourceSpec>>(&body).map(|(specs, _)| specs).map_err(|error| chain(&error))
        };
        let reaper = Reaper {
            journal: &*self.journal,
            kept: &self.kept,
            is_running: &is_running,
            is_used: &is_used,
            ask_hub: &ask_hub,
            open: &|spec| self.open(spec),
        };
        reaper.pass(stop)
    }
}
