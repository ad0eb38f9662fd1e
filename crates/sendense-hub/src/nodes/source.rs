//! A source that a node reaches: whatever is asked of it is asked of the node.

use super::Nodes;
use super::run::Run;
use super::sessions::Expects;
use super::supply::Supply;
use crate::fault::Result;
use sendense_block::Cancel;
use sendense_node::remote::message::{Answer, Order, OrderId, SourceSpec, Work};
use sendense_source::{
    Artefact, ArtefactKind, DiscoveredVm, Error, FreezeRequest, Frozen, Journal, Kind, Source, TestReport, VmRef,
};
use sendense_types::{ProblemCode, SourceKind, TaskId, TrackingToken};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Between two looks at the request to stop.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// A source behind a node.
pub(crate) struct RemoteSource {
    nodes: Arc<Nodes>,
    node: String,
    spec: SourceSpec,
}

impl RemoteSource {
    pub fn new(nodes: Arc<Nodes>, node: String, spec: SourceSpec) -> Self {
        Self { nodes, node, spec }
    }

    /// The node that it is bound to.
    pub fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn new_id(&self) -> OrderId {
        // An id of a task's kind is unique and random enough that no node guesses another's.
        OrderId(TaskId::generate().to_string())
    }

    fn order(&self, id: OrderId, work: Work) -> Order {
        Order { id, source: self.spec.clone(), work }
    }

    pub(super) fn begin_backup(&self, id: OrderId, work: Work, run: Arc<Run>) -> Result<()> {
        self.nodes.sessions.order(&self.node, self.order(id, work), Expects::Backup(run))
    }

    /// A backup that an earlier life of the hub has begun is taken up again when its node comes.
    pub(super) fn expect_backup(&self, run: Arc<Run>) {
        let record = run.record();
        let order = self.order(record.order, Work::Backup(record.work));
        self.nodes.sessions.expect(&record.node, &record.process, order, run);
    }

    pub(super) fn begin_restore(&self, id: OrderId, work: Work, supply: Arc<Supply>) -> Result<()> {
        self.nodes.sessions.order(&self.node, self.order(id, work), Expects::Restore(supply))
    }

    /// Refuses where the node is known to be of a release that only backs up.
    pub fn check_restores(&self) -> Result<()> {
        self.nodes.sessions.check_restores(&self.node)
    }

    pub(super) fn stop(&self, id: &OrderId) {
        self.nodes.sessions.stop(id);
    }

    pub(super) fn end(&self, id: &OrderId) {
        self.nodes.sessions.remove(id);
    }

    fn ask(&self, work: Work, cancel: &Cancel) -> sendense_source::Result<Answer> {
        let order = self.order(self.new_id(), work);
        let (id, (answered, answer)) = (order.id.clone(), mpsc::channel());
        self.nodes.sessions.order(&self.node, order, Expects::Answer(answered)).map_err(|problem| {
            let kind = if problem.code == ProblemCode::Busy { Kind::Busy } else { Kind::Unavailable };
            Error::new(kind, problem.message).hint(problem.details)
        })?;
        loop {
            match answer.recv_timeout(LOOK_PERIOD) {
                Ok(outcome) => return outcome.map_err(|fault| fault.into_source()),
                Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                    self.nodes.sessions.remove(&id);
                    return Err(Error::new(Kind::Cancelled, "stopped on request"));
                }
                // However long an answer takes, its node polls meanwhile.
                Err(RecvTimeoutError::Timeout) if !self.nodes.sessions.is_silent(&id) => {}
                Err(_) => {
                    self.nodes.sessions.remove(&id);
                    return Err(Error::new(Kind::Unavailable, format!("node {} is not connected any more", self.node)));
                }
            }
        }
    }

    fn odd(&self) -> Error {
        Error::new(Kind::Failed, format!("node {} answered something else than was asked", self.node))
    }
}

impl Source for RemoteSource {
    fn kind(&self) -> SourceKind {
        self.spec.kind
    }

    fn test(&self, cancel: &Cancel) -> sendense_source::Result<TestReport> {
        match self.ask(Work::Test, cancel)? {
            Answer::Tested(report) => Ok(report),
            _ => Err(self.odd()),
        }
    }

    fn discover(&self, cancel: &Cancel) -> sendense_source::Result<Vec<DiscoveredVm>> {
        match self.ask(Work::Discover, cancel)? {
            Answer::Discovered(vms) => Ok(vms),
            _ => Err(self.odd()),
        }
    }

    fn inspect(&self, vm: &VmRef, cancel: &Cancel) -> sendense_source::Result<DiscoveredVm> {
        match self.ask(Work::Inspect(vm.clone()), cancel)? {
            Answer::Inspected(vm) => Ok(*vm),
            _ => Err(self.odd()),
        }
    }

    fn freeze(&self, _: &FreezeRequest, _: &Arc<dyn Journal>, _: &Cancel) -> sendense_source::Result<Box<dyn Frozen>> {
        Err(Error::new(Kind::Unsupported, "a machine behind a node is frozen by the node, with its whole backup"))
    }

    fn retire(
        &self,
        vm: &VmRef,
        keep: &[TrackingToken],
        _: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> sendense_source::Result<Vec<TrackingToken>> {
        match self.ask(Work::Retire { vm: vm.clone(), keep: keep.to_vec() }, cancel)? {
            Answer::Retired(tokens) => Ok(tokens),
            _ => Err(self.odd()),
        }
    }

    /// A snapshot or an unfinished machine is taken away by the node. All else that is behind a node is in the node's own journal; an entry
    /// in ours is from before the source was bound to it.
    fn reap(&self, artefact: &Artefact, cancel: &Cancel) -> sendense_source::Result<bool> {
        if !matches!(artefact.kind, ArtefactKind::Snapshot | ArtefactKind::Machine) {
            return Ok(false);
        }
        match self.ask(Work::Reap(artefact.clone()), cancel)? {
            Answer::Reaped(is_gone) => Ok(is_gone),
            _ => Err(self.odd()),
        }
    }

    /// The node looks, also for what its own journal has lost; whose task is dead the hub knows.
    fn leftovers(&self, cancel: &Cancel) -> sendense_source::Result<Vec<Artefact>> {
        match self.ask(Work::Leftovers, cancel)? {
            Answer::Leftovers(mut found) => {
                found.retain(|artefact| artefact.source_id == self.spec.source_id);
                Ok(found)
            }
            _ => Err(self.odd()),
        }
    }
}
