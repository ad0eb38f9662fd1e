//! What comes after a backup by itself: the prune of its machine with the merges which that leaves, and the bound of its chains.
//!
//! Only so many merges wait in the list of tasks. A night of thousands of machines makes more of them due: the rest is remembered here, and
//! looked at anew, the longest first, when merges have ended.
//!
//! Invariants: what goes is decided by the rules and points of the moment in which it is looked at, never by those of an earlier one. A
//! machine's points in a repository have one look at a time, and a repository so many that one which hangs takes no threads from others.
//! What is remembered is at most one prune for each policy of a machine and one bound for each of its repositories, and lives in memory: what a
//! hub that ends has left is found by each machine's next backup.

use super::merge::UnderWay;
use super::policies::repository_of;
use super::selector::Selector;
use super::{App, Caller};
use crate::fault::{OrProblem, Result};
use crate::jobs::work::BackupWork;
use parking_lot::Mutex;
use sendense_api::{PolicyRules, PruneQuery, Role};
use sendense_types::{PolicyId, ProblemCode, RepositoryId, VmContextId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::sync::Notify;

/// Between two looks without word that a merge has ended: it may be another hub's.
const LOOK_PERIOD: Duration = Duration::from_secs(120);
/// Looks at the points of one repository at once: each may hold a thread, of which the runtime has 512, for as long as the repository hangs.
const LOOKS_MAX: usize = 20;

/// Merges that wait in all repositories together, at the most: they are read as one page of the catalog.
const ALL_WAITING_MAX: usize = 500;

/// Whose points: a machine's in one repository.
pub(super) type Place = (RepositoryId, VmContextId);

/// What is to be looked at after a backup.
#[derive(Debug, Clone)]
pub(crate) enum Due {
    /// Points of a machine that no rule of its policy keeps: they go, or are merged.
    Prune { policy_id: PolicyId, place: Place, by: String },
    /// Chains that this backup has made longer: they end where they are too long.
    Bound(Box<BackupWork>),
}

impl Due {
    fn place(&self) -> Place {
        match self {
            Self::Prune { place, .. } => place.clone(),
            Self::Bound(of) => (of.repository_id.clone(), of.vm_context_id.clone()),
        }
    }

    /// Whether one of the two is enough.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prune { policy_id, place, .. }, Self::Prune { policy_id: of, place: at, .. }) => {
                policy_id == of && place == at
            }
            (Self::Bound(of), Self::Bound(other)) => {
                (&of.repository_id, &of.vm_context_id) == (&other.repository_id, &other.vm_context_id)
            }
            _ => false,
        }
    }
}

/// One that waits for its look.
#[derive(Debug)]
struct Waiting {
    due: Due,
    /// Its turn: lower is earlier.
    number: u64,
    /// A look has found other merges in the way.
    is_hindered: bool,
}

/// What waits, and what is being looked at.
#[derive(Default)]
pub(crate) struct MergesDue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// By their numbers.
    waiting: VecDeque<Waiting>,
    next_number: u64,
    looking: BTreeSet<Place>,
    /// Merges that have ended.
    ended: u64,
}

impl MergesDue {
    /// A merge has ended: others may begin.
    pub fn merge_ended(&self) {
        self.state.lock().ended += 1;
        self.changed.notify_one();
    }

    /// How many wait until others have ended.
    pub fn hindered(&self) -> usize {
        self.state.lock().waiting.iter().filter(|one| one.is_hindered).count()
    }

    /// A person does not want the merge of a machine's points now: what waits for its end is left to the next backup.
    pub(super) fn forget(&self, place: &Place) {
        self.state.lock().waiting.retain(|one| one.due.place() != *place);
    }

    /// Nothing waits, and nothing is being looked at.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.waiting.is_empty() && state.looking.is_empty()
    }

    /// It is looked at soon. One that waits already keeps its turn.
    fn come(&self, due: Due) {
        let mut state = self.state.lock();
        let number = state.remove(&due).unwrap_or(state.next_number);
        state.next_number += 1;
        state.insert(Waiting { due, number, is_hindered: false });
        self.changed.notify_one();
    }

    fn hinders(&self, place: &Place) -> bool {
        self.state.lock().waiting.iter().any(|one| one.is_hindered && one.due.place().0 == place.0)
    }
}

impl State {
    fn insert(&mut self, one: Waiting) {
        let position = self.waiting.partition_point(|other| other.number < one.number);
        self.waiting.insert(position, one);
    }

    /// Takes out what asks for the same; gives its number.
    fn remove(&mut self, due: &Due) -> Option<u64> {
        let position = self.waiting.iter().position(|one| one.due.is_same(due))?;
        self.waiting.remove(position).map(|one| one.number)
    }

    /// What may be looked at now; a look at each begins. Without knowledge of the merges under way what they hinder stays.
    fn take(&mut self, under_way: Option<&UnderWay>, waiting_max: usize) -> Vec<Waiting> {
        let mut looks: BTreeMap<RepositoryId, usize> = BTreeMap::new();
        self.looking.iter().for_each(|(repository, _)| *looks.entry(repository.clone()).or_default() += 1);
        let mut all = self.looking.len();
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        for one in self.waiting.drain(..) {
            let place = one.due.place();
            let here = looks.entry(place.0.clone()).or_default();
            let has_room = || under_way.is_some_and(|merges| merges.bears(&place, *here, all, waiting_max));
            if *here < LOOKS_MAX && !self.looking.contains(&place) && (!one.is_hindered || has_room()) {
                *here += 1;
                all += 1;
                self.looking.insert(place);
                taken.push(one);
            } else {
                left.push_back(one);
            }
        }
        self.waiting = left;
        taken
    }

    /// A look has ended; what it left waits. True when there may be another one to begin now: so many merges had ended when it began.
    fn looked(&mut self, at: &Waiting, is_hindered: bool, ended: u64) -> bool {
        let place = at.due.place();
        self.looking.remove(&place);
        if is_hindered {
            // One that came meanwhile knows better, and takes the turn.
            let newer = self.waiting.iter().position(|one| one.due.is_same(&at.due));
            let again = match newer.and_then(|position| self.waiting.remove(position)) {
                Some(newer) => Waiting { number: at.number, ..newer },
                None => Waiting { due: at.due.clone(), number: at.number, is_hindered },
            };
            self.insert(again);
        }
        let is_next = |one: &Waiting| one.due.place().0 == place.0 && !(is_hindered && one.is_hindered);
        self.ended != ended || self.waiting.iter().any(is_next)
    }
}

/// Looks at what may be looked at, whenever that changes, until the hub stops.
pub(crate) async fn keep(app: App) {
    let mut rounds = app.core.rounds(LOOK_PERIOD);
    loop {
        tokio::select! {
            biased;
            goes_on = rounds.next() => if !goes_on { return },
            () = app.core.merges_due.changed.notified() => {}
        }
        app.look_at_what_may().await;
    }
}

impl App {
    /// A machine has a new point: what its policy's retention says of the others is done soon, beside whatever runs.
    pub(crate) fn prune_soon(&self, policy_id: PolicyId, rules: &PolicyRules, vm: VmContextId, by: String) {
        // That names a repository since it was made.
        if let (Some(_), Ok(repository_id)) = (&rules.retention, repository_of(rules)) {
            self.core.merges_due.come(Due::Prune { policy_id, place: (repository_id, vm), by });
        }
    }

    /// A backup has made chains longer: they are bounded soon, beside whatever runs.
    pub(crate) fn bound_soon(&self, of: BackupWork) {
        self.core.merges_due.come(Due::Bound(Box::new(of)));
    }

    async fn look_at_what_may(&self) {
        let due = &self.core.merges_due;
        let under_way = if due.hindered() > 0 { self.merges_under_way().await.map(Some) } else { Ok(None) };
        let under_way = under_way.unwrap_or_else(|problem| {
            tracing::warn!(error = %problem.message, details = %problem.details,
                "count the merges that wait; those that are due are looked at again in two minutes");
            None
        });
        let taken = due.state.lock().take(under_way.as_ref(), self.merges_waiting_max());
        taken.into_iter().for_each(|one| self.look_at_due(one));
    }

    fn look_at_due(&self, one: Waiting) {
        let core = self.core.clone();
        let app = self.clone();
        core.tracker.clone().spawn(async move {
            let ended = core.merges_due.state.lock().ended;
            let is_hindered = !app.begin_due(&one).await;
            if core.merges_due.state.lock().looked(&one, is_hindered, ended) {
                core.merges_due.changed.notify_one();
            }
        });
    }

    /// False when merges have to end first.
    async fn begin_due(&self, one: &Waiting) -> bool {
        if self.core.stop.is_cancelled() {
            return true;
        }
        let begun = match &one.due {
            Due::Prune { policy_id, place, by } => self.prune_due(policy_id, place, by, one.is_hindered).await,
            Due::Bound(of) => self.bound_chains(of, one.is_hindered).await,
        };
        let problem = match begun {
            Ok(begun) => return begun,
            Err(problem) => problem,
        };
        let ((repository_id, vm_id), details) = (one.due.place(), &problem.details);
        match (problem.code, &one.due) {
            (ProblemCode::Busy, _) => return false,
            // Deleted meanwhile; or closed by somebody who knows.
            (ProblemCode::VmNotFound | ProblemCode::BackupNotFound | ProblemCode::RepositoryMaintenance, _) => {}
            (_, Due::Prune { .. }) => tracing::warn!(%vm_id, %repository_id, error = %problem.message, %details,
                "prune after a backup; the next one tries again"),
            (_, Due::Bound(of)) => tracing::warn!(%vm_id, %repository_id, backup_id = %of.backup_id,
                error = %problem.message, %details, "bound the length of a chain; the next backup tries again"),
        }
        true
    }

    async fn prune_due(&self, policy_id: &PolicyId, place: &Place, by: &str, is_its_turn: bool) -> Result<bool> {
        let Some(rules) = self.rules_behind(Some(policy_id.as_str())).await? else { return Ok(true) };
        let machine = self.core.catalog.vms().get(&place.1).await.or_problem()?;
        if !Selector::new(&rules).means(&machine) {
            return Ok(true);
        }
        let Some(pruned) = self.prune_by(&rules, &machine, PruneQuery::default(), by).await? else { return Ok(true) };
        if pruned.deleted > 0 {
            tracing::info!(vm_id = %place.1, deleted = pruned.deleted, kept = pruned.kept,
                freed_bytes = pruned.freed_bytes, "pruned");
        }
        let caller = Caller { identity: by.to_owned(), role: Role::Operator };
        self.merge_needed(&caller, &pruned, rules.full_every, is_its_turn).await
    }

    /// Whether a merge of these points may be asked for now by itself. One that has not waited goes behind those that have.
    pub(super) async fn may_merge(&self, place: &Place, is_its_turn: bool) -> Result<bool> {
        let max = self.merges_waiting_max();
        let waits_behind = !is_its_turn && self.core.merges_due.hinders(place);
        Ok(!waits_behind && self.merges_under_way().await?.bears(place, 0, 0, max))
    }

    /// Merges that may wait in all repositories together: they never fill the list of tasks that backups wait in.
    fn merges_waiting_max(&self) -> usize {
        (self.core.limits.pending_max / 2).clamp(1, ALL_WAITING_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prune(repository: &str, vm: usize) -> Due {
        let place = (repository.parse().unwrap(), format!("vm-{vm}").parse().unwrap());
        Due::Prune { policy_id: "pol-1".parse().unwrap(), place, by: "schedule nightly".to_owned() }
    }

    fn names(taken: &[Waiting]) -> Vec<String> {
        taken.iter().map(|one| one.due.place()).map(|(repository, vm)| format!("{repository} {vm}")).collect()
    }

    fn waits(due: &MergesDue) -> Vec<(String, bool)> {
        let state = due.state.lock();
        state.waiting.iter().map(|one| (one.due.place().1.to_string(), one.is_hindered)).collect()
    }

    /// Takes what may be, and says of each whether merges are in its way.
    fn look(due: &MergesDue, under_way: Option<&UnderWay>, hindered: impl Fn(&Place) -> bool) -> Vec<String> {
        let taken = due.state.lock().take(under_way, 500);
        for one in &taken {
            let ended = due.state.lock().ended;
            due.state.lock().looked(one, hindered(&one.due.place()), ended);
        }
        names(&taken)
    }

    #[test]
    fn a_repository_that_hangs_takes_so_many_looks_and_no_more() {
        let due = MergesDue::default();
        (0..100).for_each(|vm| due.come(prune("repo-hangs", vm)));
        (0..3).for_each(|vm| due.come(prune("repo-works", vm)));
        let taken = due.state.lock().take(None, 500);
        let of = |repository: &str| names(&taken).iter().filter(|name| name.starts_with(repository)).count();
        assert_eq!((of("repo-hangs"), of("repo-works")), (LOOKS_MAX, 3));
        assert_eq!(look(&due, None, |_| false), [""; 0], "until one of them ends");
        due.state.lock().looked(&taken[0], false, 0);
        assert_eq!(look(&due, None, |_| false), [format!("repo-hangs vm-{LOOKS_MAX}")]);
    }

    #[test]
    fn a_machine_has_one_look_at_a_time_and_what_comes_meanwhile_has_its_own() {
        let due = MergesDue::default();
        due.come(prune("repo-1", 1));
        let taken = due.state.lock().take(None, 500);
        due.come(prune("repo-1", 1));
        due.come(prune("repo-1", 1));
        assert_eq!(look(&due, None, |_| false), [""; 0]);
        // It found merges in its way: the newer one, which will, too, is enough.
        assert!(due.state.lock().looked(&taken[0], true, 0), "the newer one may begin");
        assert_eq!(waits(&due), [("vm-1".to_owned(), false)]);
        assert_eq!(look(&due, None, |_| false), ["repo-1 vm-1"]);
        assert!(due.is_idle());
    }

    #[test]
    fn what_waits_for_merges_keeps_its_turn() {
        let due = MergesDue::default();
        (1..4).for_each(|vm| due.come(prune("repo-1", vm)));
        look(&due, None, |_| true);
        assert_eq!(due.hindered(), 3);
        assert!(due.hinders(&prune("repo-1", 9).place()) && !due.hinders(&prune("repo-2", 9).place()));
        // Nobody knows what is under way; then one of them is.
        assert_eq!(look(&due, None, |_| true), [""; 0]);
        let none = UnderWay::default();
        let taken = due.state.lock().take(Some(&none), 1);
        assert_eq!(names(&taken), ["repo-1 vm-1"], "there is one place");
        assert!(!due.state.lock().looked(&taken[0], true, 0), "it is gone: nothing may begin before a merge ends");
        let turns = |due: &MergesDue| waits(due).into_iter().map(|(vm, _)| vm).collect::<Vec<_>>();
        assert_eq!(turns(&due), ["vm-1", "vm-2", "vm-3"]);
        // Its next backup changes nothing of that, and is looked at for what can be deleted; so is one that ends during a look.
        due.come(prune("repo-1", 2));
        assert_eq!(look(&due, None, |_| true), ["repo-1 vm-2"]);
        assert_eq!(turns(&due), ["vm-1", "vm-2", "vm-3"]);
        let taken = due.state.lock().take(Some(&none), 1);
        due.come(prune("repo-1", 1));
        assert_eq!(turns(&due), ["vm-2", "vm-3", "vm-1"]);
        assert!(due.state.lock().looked(&taken[0], true, 0));
        assert_eq!(look(&due, None, |_| true), ["repo-1 vm-1"]);
        assert_eq!(turns(&due), ["vm-1", "vm-2", "vm-3"]);
        due.forget(&prune("repo-1", 3).place());
        assert_eq!(turns(&due), ["vm-1", "vm-2"]);
        assert_eq!(look(&due, Some(&none), |_| false), ["repo-1 vm-1", "repo-1 vm-2"]);
        assert!(due.is_idle());
    }

    #[test]
    fn a_merge_that_ends_during_a_look_is_not_missed() {
        let due = MergesDue::default();
        due.come(prune("repo-1", 1));
        let (taken, ended) = {
            let mut state = due.state.lock();
            (state.take(None, 500), state.ended)
        };
        due.merge_ended();
        assert!(due.state.lock().looked(&taken[0], true, ended));
    }
}
