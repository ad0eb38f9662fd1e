//! What comes after a backup by itself: the prune of its machine with the merges which that leaves, and the bound of its chains.
//!
//! Only so many merges wait in the queue. A night of thousands of machines makes more of them due: the rest is remembered here, each machine
//! once, and looked at anew when merges have ended.
//!
//! Invariant: what goes is decided by the rules and points of the moment in which it is looked at, never by those of an earlier one.
//! What is remembered lives in memory: what a hub that ends has left is found by each machine's next backup.

use super::merge::MERGES_WAITING_MAX;
use super::selector::Selector;
use super::{App, Caller};
use crate::fault::{OrProblem, Result};
use crate::jobs::work::BackupWork;
use parking_lot::Mutex;
use sendense_api::{PruneQuery, Role};
use sendense_types::{PolicyId, ProblemCode, RepositoryId, VmContextId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Between two looks without word that a merge has ended: it may be another hub's, or be cancelled while it waits.
const LOOK_PERIOD: Duration = Duration::from_secs(60);

/// What is to be looked at after a backup.
#[derive(Debug, Clone)]
pub(crate) enum Due {
    /// Points of a machine that no rule of its policy keeps: they go, or are merged.
    Prune { policy_id: PolicyId, vm: VmContextId, by: String },
    /// Chains that this backup has made longer: they end where they are too long.
    Bound(Box<BackupWork>),
}

/// What is the same of two of which one is enough.
#[derive(PartialEq)]
enum Subject<'a> {
    Prune(&'a PolicyId, &'a VmContextId),
    Bound(&'a VmContextId, &'a RepositoryId),
}

impl Due {
    fn subject(&self) -> Subject<'_> {
        match self {
            Self::Prune { policy_id, vm, .. } => Subject::Prune(policy_id, vm),
            Self::Bound(of) => Subject::Bound(&of.vm_context_id, &of.repository_id),
        }
    }
}

/// What waits until merges have ended, and what is being looked at.
#[derive(Default)]
pub(crate) struct MergesDue {
    state: Mutex<State>,
    /// Merges that have ended.
    ended: AtomicUsize,
    has_ended: Notify,
}

#[derive(Default)]
struct State {
    /// The longest first.
    waiting: VecDeque<Due>,
    looking: usize,
}

impl MergesDue {
    /// A place in the queue may be free.
    pub fn merge_ended(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.has_ended.notify_one();
    }

    /// How many wait.
    pub fn waits(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Nothing waits, and nothing is being looked at.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.waiting.is_empty() && state.looking == 0
    }

    /// Looks begin at so many of those that wait.
    fn take(&self, count: usize) -> Vec<Due> {
        let mut state = self.state.lock();
        let count = count.min(state.waiting.len());
        state.looking += count;
        state.waiting.drain(..count).collect()
    }

    /// A look begins at what has not waited.
    fn come(&self) {
        self.state.lock().looking += 1;
    }

    /// A look ends. What is left waits until the next merge ends: when so many had ended before the look, and others did meanwhile, nobody
    /// might call again. The later one of two takes the turn of the earlier one.
    fn looked(&self, left: Option<Due>, ended: usize) {
        let mut state = self.state.lock();
        state.looking -= 1;
        let Some(due) = left else { return };
        match state.waiting.iter().position(|other| other.subject() == due.subject()) {
            Some(position) => state.waiting[position] = due,
            None => state.waiting.push_back(due),
        }
        if self.ended.load(Ordering::SeqCst) != ended {
            self.has_ended.notify_one();
        }
    }
}

/// Looks again at what waits, as merges end, until the hub stops.
pub(crate) async fn keep(app: App) {
    let mut rounds = app.core.rounds(LOOK_PERIOD);
    loop {
        tokio::select! {
            goes_on = rounds.next() => if !goes_on { return },
            () = app.core.merges_due.has_ended.notified() => {}
        }
        if app.core.merges_due.waits() == 0 {
            continue;
        }
        match app.merges_waiting().await {
            Ok(waiting) => {
                let free = MERGES_WAITING_MAX.saturating_sub(waiting);
                app.core.merges_due.take(free).into_iter().for_each(|due| app.look_at_due(due));
            }
            Err(problem) => tracing::warn!(error = %problem.message, details = %problem.details,
                "count the merges that wait; what is due is looked at again in a minute"),
        }
    }
}

impl App {
    /// Does what is due, beside whatever runs: a repository that hangs holds up no backup.
    pub(crate) fn look_after(&self, due: Due) {
        self.core.merges_due.come();
        self.look_at_due(due);
    }

    fn look_at_due(&self, due: Due) {
        let (app, core) = (self.clone(), self.core.clone());
        core.tracker.clone().spawn(async move {
            let ended = core.merges_due.ended.load(Ordering::SeqCst);
            let left = match app.begin_due(&due).await {
                Ok(true) => None,
                Ok(false) => Some(due),
                Err(problem) if problem.code == ProblemCode::Busy => Some(due),
                // Whoever closed the repository knows.
                Err(problem) if problem.code == ProblemCode::RepositoryMaintenance => None,
                Err(problem) => {
                    tracing::warn!(?due, error = %problem.message, details = %problem.details,
                        "let go what no rule keeps after a backup; the machine's next backup tries again");
                    None
                }
            };
            core.merges_due.looked(left, ended);
        });
    }

    /// False when merges have to end first.
    async fn begin_due(&self, due: &Due) -> Result<bool> {
        match due {
            Due::Prune { policy_id, vm, by } => self.prune_due(policy_id, vm, by).await,
            Due::Bound(of) => self.bound_chains(of).await,
        }
    }

    async fn prune_due(&self, policy_id: &PolicyId, vm: &VmContextId, by: &str) -> Result<bool> {
        let Some(rules) = self.rules_behind(Some(policy_id.as_str())).await? else { return Ok(true) };
        let machine = self.core.catalog.vms().get(vm).await.or_problem()?;
        if !Selector::new(&rules).means(&machine) {
            return Ok(true);
        }
        let Some(pruned) = self.prune_by(&rules, &machine, PruneQuery::default(), by).await? else { return Ok(true) };
        if pruned.deleted > 0 {
            tracing::info!(vm_context_id = %vm, deleted = pruned.deleted, kept = pruned.kept,
                freed_bytes = pruned.freed_bytes, "pruned");
        }
        let caller = Caller { identity: by.to_owned(), role: Role::Operator };
        self.merge_needed(&caller, &pruned, rules.full_every).await
    }
}
