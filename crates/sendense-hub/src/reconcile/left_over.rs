//! Things of ours on hypervisors that cannot be removed: an alarm is raised when one is found to stay, and cleared when it is
//! gone.
//!
//! ```text
//! a try to remove it fails -> once more -> once more: it stays (event, error in the log, metric, health)
//!                                                     it is not there any more: gone (event, metric, health)
//! ```
//!
//! What lives here: which things stay, and telling so. What does not: the tries (the journal's passes, and sweeps). Nothing is
//! written down: after a restart the tries are made anew, and the alarm is raised again if they fail.
//!
//! Invariant: what was told to stay is told to be gone, once, unless the hub ends before.

use crate::core::Core;
use parking_lot::Mutex;
use sendense_api::{LeftOverAlert, LeftOverKind, LeftOverState};
use sendense_catalog::{Page, VmFilter};
use sendense_source::{Artefact, ArtefactKind};
use sendense_types::{SourceId, TaskId};
use std::collections::HashMap;

/// Tries that fail before somebody is told. Whoever made a thing has tried several times by then; a lock of another program is
/// gone in seconds, and passes are seconds apart.
pub(super) const TRIES: u32 = 3;
/// Things that are looked after. The journal has no more entries either, see `sendense_node::FileJournal`.
const THINGS_MAX: usize = 10_000;

/// Which thing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Thing {
    pub source_id: SourceId,
    pub task_id: TaskId,
    pub kind: ArtefactKind,
    pub vm_key: String,
}

impl Thing {
    pub fn of(artefact: &Artefact) -> Self {
        let Artefact { source_id, task_id, kind, vm_key, .. } = artefact.clone();
        Self { source_id, task_id, kind, vm_key }
    }
}

/// Who knows of a thing, and so will see that it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// This hub's journal.
    Journal,
    /// It was found on its source by its mark.
    Found,
}

/// The things that could not be removed.
#[derive(Debug, Default)]
pub(crate) struct LeftOvers(Mutex<HashMap<Thing, Standing>>);

#[derive(Debug)]
struct Standing {
    known: Known,
    tries: u32,
    told: Option<LeftOverAlert>,
}

impl LeftOvers {
    /// What was told to stay, in words, oldest first.
    pub fn told(&self) -> Vec<String> {
        let things = self.0.lock();
        let mut told: Vec<_> = things.values().filter_map(|standing| standing.told.as_ref()).collect();
        told.sort_by_key(|alert| (alert.at, alert.message.clone()));
        told.into_iter().map(|alert| alert.message.clone()).collect()
    }

    /// Counts a try that failed. True when it is time to tell.
    fn failed(&self, thing: &Thing, known: Known, tries: u32) -> bool {
        let mut things = self.0.lock();
        if !things.contains_key(thing) && things.len() >= THINGS_MAX {
            return false;
        }
        let standing = things.entry(thing.clone()).or_insert(Standing { known, tries: 0, told: None });
        // The journal sees sooner that it is gone.
        if known == Known::Journal {
            standing.known = known;
        }
        standing.tries = standing.tries.saturating_add(tries);
        standing.tries >= TRIES && standing.told.is_none()
    }

    /// Raises the alarm of a thing that is still there. False when it went meanwhile.
    fn raise(&self, thing: &Thing, alert: &LeftOverAlert, tell: impl FnOnce(usize)) -> bool {
        let mut things = self.0.lock();
        let Some(standing) = things.get_mut(thing).filter(|standing| standing.told.is_none()) else { return false };
        standing.told = Some(alert.clone());
        // Under the lock, so that nobody hears that it is gone before.
        tell(count(&things));
        true
    }

    /// Forgets the things of which that is true, and gives what was told of them.
    fn forget(&self, is_gone: impl Fn(&Thing, Known) -> bool, mut tell: impl FnMut(LeftOverAlert, usize)) {
        let mut things = self.0.lock();
        let gone: Vec<Thing> = things
            .iter()
            .filter(|(thing, standing)| is_gone(thing, standing.known))
            .map(|(thing, _)| thing.clone())
            .collect();
        for thing in gone {
            if let Some(alert) = things.remove(&thing).and_then(|standing| standing.told) {
                tell(alert, count(&things));
            }
        }
    }
}

fn count(things: &HashMap<Thing, Standing>) -> usize {
    things.values().filter(|standing| standing.told.is_some()).count()
}

/// A try to remove a thing has failed, or several have.
pub(super) async fn stays(core: &Core, artefact: &Artefact, known: Known, tries: u32, why: &str) {
    let thing = Thing::of(artefact);
    if !core.left_overs.failed(&thing, known, tries) {
        return;
    }
    let alert = describe(core, &thing, why).await;
    let raised = core.left_overs.raise(&thing, &alert, |count| {
        crate::metrics::set_left_over(count);
        core.events.left_over(alert.clone());
    });
    if raised {
        // A snapshot that stays is worth waking somebody for.
        tracing::error!(source_id = %thing.source_id, task_id = %thing.task_id, kind = ?thing.kind, vm_key = thing.vm_key,
            message = alert.message, "something of ours stays on a source");
    }
}

/// A thing was removed.
pub(super) fn gone(core: &Core, artefact: &Artefact) {
    let thing = Thing::of(artefact);
    forget(core, |other, _| *other == thing);
}

/// Things that are not there any more, whoever removed them.
pub(super) fn forget(core: &Core, is_gone: impl Fn(&Thing, Known) -> bool) {
    core.left_overs.forget(is_gone, |alert, count| {
        crate::metrics::set_left_over(count);
        tracing::info!(source_id = %alert.source_id, task_id = %alert.task_id, vm_key = alert.vm_key,
            "something of ours that stayed on a source is gone");
        core.events.left_over(LeftOverAlert {
            state: LeftOverState::Gone,
            message: format!("{} is gone", words(alert.kind, alert.vm_name.as_deref().unwrap_or(&alert.vm_key))),
            at: core.now(),
            ..alert
        });
    });
}

async fn describe(core: &Core, thing: &Thing, why: &str) -> LeftOverAlert {
    // Where the catalog does not answer, or the source was removed, ids have to do.
    let source = core.catalog.sources().get(&thing.source_id).await;
    let source = source.map_or_else(|_| thing.source_id.to_string(), |source| source.name.to_string());
    let filter = VmFilter {
        source_id: Some(thing.source_id.clone()),
        instance_uuid: Some(thing.vm_key.clone()),
        ..VmFilter::default()
    };
    let vms = core.catalog.vms().list(&filter, Page { limit: 1, offset: 0 }).await;
    let vm_name = vms.ok().and_then(|(mut vms, _)| vms.pop()).map(|vm| vm.vm_name.to_string());
    let kind = kind(thing.kind);
    let what = words(kind, vm_name.as_deref().unwrap_or(&thing.vm_key));
    let harm = match kind {
        LeftOverKind::Snapshot => " While it is there the machine is slower and its datastore fills.",
        _ => "",
    };
    LeftOverAlert {
        source_id: thing.source_id.clone(),
        task_id: thing.task_id.clone(),
        kind,
        vm_key: thing.vm_key.clone(),
        vm_name,
        state: LeftOverState::Stays,
        message: format!(
            "{what} on {source}, made by {}, cannot be removed: {why}. It is tried again.{harm}",
            thing.task_id
        ),
        at: core.now(),
    }
}

/// Things of the journal in the API's words.
pub(super) fn kind(kind: ArtefactKind) -> LeftOverKind {
    match kind {
        ArtefactKind::BackupJob => LeftOverKind::BackupJob,
        ArtefactKind::Checkpoint => LeftOverKind::Checkpoint,
        ArtefactKind::FrozenGuest => LeftOverKind::FrozenGuest,
        ArtefactKind::ChildProcess => LeftOverKind::ChildProcess,
        ArtefactKind::File => LeftOverKind::File,
        ArtefactKind::Snapshot => LeftOverKind::Snapshot,
        ArtefactKind::Machine => LeftOverKind::Machine,
    }
}

/// A thing for people.
pub(super) fn words(kind: LeftOverKind, of: &str) -> String {
    let what = match kind {
        LeftOverKind::BackupJob => "a backup job",
        LeftOverKind::Checkpoint => "a checkpoint",
        LeftOverKind::FrozenGuest => "a frozen guest",
        LeftOverKind::ChildProcess => "a process",
        LeftOverKind::File => "a file",
        LeftOverKind::Snapshot => "a snapshot",
        LeftOverKind::Machine => "a restored machine",
    };
    if of.is_empty() { what.to_owned() } else { format!("{what} of {of}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(task: &str) -> Thing {
        Thing {
            source_id: "src-1".parse().unwrap(),
            task_id: task.parse().unwrap(),
            kind: ArtefactKind::Snapshot,
            vm_key: "4206".into(),
        }
    }

    fn alert(thing: &Thing) -> LeftOverAlert {
        LeftOverAlert {
            source_id: thing.source_id.clone(),
            task_id: thing.task_id.clone(),
            kind: LeftOverKind::Snapshot,
            vm_key: thing.vm_key.clone(),
            vm_name: None,
            state: LeftOverState::Stays,
            message: format!("of {}", thing.task_id),
            at: sendense_types::Timestamp::from_micros(0),
        }
    }

    fn forgotten(things: &LeftOvers, is_gone: impl Fn(&Thing, Known) -> bool) -> Vec<(String, usize)> {
        let mut told = Vec::new();
        things.forget(is_gone, |alert, count| told.push((alert.task_id.to_string(), count)));
        told
    }

    #[test]
    fn a_thing_is_told_after_its_tries_and_once() {
        let (things, one) = (LeftOvers::default(), thing("task-1"));
        assert_eq!([(); 3].map(|()| things.failed(&one, Known::Journal, 1)), [false, false, true]);
        assert!(things.told().is_empty(), "nobody was told yet");
        assert!(things.failed(&one, Known::Journal, 1), "nobody was told, so it is still time");
        let mut counts = Vec::new();
        assert!(things.raise(&one, &alert(&one), |count| counts.push(count)));
        assert!(!things.raise(&one, &alert(&one), |count| counts.push(count)), "once");
        assert!(!things.failed(&one, Known::Journal, 1));
        assert_eq!((counts, things.told()), (vec![1], vec!["of task-1".to_owned()]));
        assert_eq!(forgotten(&things, |_, _| true), [("task-1".to_owned(), 0)]);
        assert_eq!(forgotten(&things, |_, _| true), []);
        assert!(!things.failed(&one, Known::Journal, 1), "its tries begin anew");
    }

    #[test]
    fn what_went_before_it_was_told_is_never_told() {
        let (things, one) = (LeftOvers::default(), thing("task-1"));
        assert!(things.failed(&one, Known::Found, TRIES));
        assert_eq!(forgotten(&things, |_, _| true), []);
        assert!(!things.raise(&one, &alert(&one), |_| panic!("it is gone")));
    }

    #[test]
    fn what_the_journal_knows_only_the_journal_clears() {
        let (things, one, two) = (LeftOvers::default(), thing("task-1"), thing("task-2"));
        for thing in [&one, &two] {
            assert!(things.failed(thing, Known::Found, TRIES));
            assert!(things.raise(thing, &alert(thing), |_| {}));
        }
        things.failed(&one, Known::Journal, 1);
        things.failed(&one, Known::Found, 1);
        assert_eq!(forgotten(&things, |_, known| known == Known::Found), [("task-2".to_owned(), 1)]);
        assert_eq!(forgotten(&things, |_, known| known == Known::Journal), [("task-1".to_owned(), 0)]);
    }

    #[test]
    fn no_more_things_are_kept_than_the_journal_holds() {
        let things = LeftOvers::default();
        for number in 0..THINGS_MAX {
            things.failed(&thing(&format!("task-{number}")), Known::Found, 1);
        }
        assert!(!things.failed(&thing("task-more"), Known::Found, TRIES));
        assert!(things.failed(&thing("task-0"), Known::Found, TRIES));
    }
}
