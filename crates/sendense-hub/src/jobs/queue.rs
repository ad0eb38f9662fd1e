//! Which waiting tasks may start now. Pure: what waits, what runs and the limits go in, positions come out.
//!
//! Invariant: no limit is passed, and a task waits only while one of *its* limits is reached: a busy repository does not
//! hold up tasks of another one.

use sendense_types::{BackupId, RepositoryId, SourceId};
use std::collections::{HashMap, HashSet};

/// Merges and moves that a hub does at once: each has two threads and some MiB, and none is in a hurry.
pub(crate) const MERGES_MAX: usize = 4;

/// What a task occupies while it runs, with how many tasks that thing bears at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    /// A repository.
    pub repository: Option<(RepositoryId, usize)>,
    /// A source.
    pub source: Option<(SourceId, usize)>,
    /// The one place for merges and moves in each of these repositories. They take none of those that backups wait for, neither there
    /// nor in the hub.
    pub rewrites: Vec<RepositoryId>,
    /// It is done beside the others: it takes no place, waits for none, and makes way for whoever wants to delete this point.
    pub aside: Option<BackupId>,
}

#[derive(Default)]
struct Occupied<'a> {
    all: usize,
    repositories: HashMap<&'a RepositoryId, usize>,
    sources: HashMap<&'a SourceId, usize>,
    rewrites: HashSet<&'a RepositoryId>,
    rewriting: usize,
}

impl<'a> Occupied<'a> {
    fn has_room(&self, needs: &Needs, all_max: usize) -> bool {
        if !needs.rewrites.is_empty() {
            return !needs.rewrites.iter().any(|id| self.rewrites.contains(id)) && self.rewriting < MERGES_MAX;
        }
        let below = |used: Option<&usize>, max: usize| used.copied().unwrap_or(0) < max.max(1);
        needs.aside.is_some()
            || self.all < all_max
                && needs.repository.as_ref().is_none_or(|(id, max)| below(self.repositories.get(id), *max))
                && needs.source.as_ref().is_none_or(|(id, max)| below(self.sources.get(id), *max))
    }

    fn take(&mut self, needs: &'a Needs) {
        if needs.aside.is_some() {
            return;
        }
        if !needs.rewrites.is_empty() {
            self.rewrites.extend(&needs.rewrites);
            self.rewriting += 1;
            return;
        }
        self.all += 1;
        if let Some((id, _)) = &needs.repository {
            *self.repositories.entry(id).or_default() += 1;
        }
        if let Some((id, _)) = &needs.source {
            *self.sources.entry(id).or_default() += 1;
        }
    }
}

/// Positions in `waiting` (oldest first) of the tasks that may start beside those that run.
pub(crate) fn startable(waiting: &[Needs], running: &[Needs], all_max: usize) -> Vec<usize> {
    let mut occupied = Occupied::default();
    for needs in running {
        occupied.take(needs);
    }
    let mut chosen = Vec::new();
    for (position, needs) in waiting.iter().enumerate() {
        if occupied.has_room(needs, all_max.max(1)) {
            occupied.take(needs);
            chosen.push(position);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn needs(repository: Option<u8>, source: Option<u8>, max: usize) -> Needs {
        Needs {
            repository: repository.map(|n| (format!("repo-{n}").parse().unwrap(), max)),
            source: source.map(|n| (format!("src-{n}").parse().unwrap(), max)),
            rewrites: Vec::new(),
            aside: None,
        }
    }

    #[test]
    fn what_is_done_aside_takes_no_place_and_waits_for_none() {
        let aside = Needs { aside: Some("bk-1".parse().unwrap()), ..needs(Some(1), None, 1) };
        let backup = needs(Some(1), Some(1), 1);
        assert_eq!(startable(std::slice::from_ref(&backup), std::slice::from_ref(&aside), 1), [0]);
        assert_eq!(startable(std::slice::from_ref(&aside), std::slice::from_ref(&backup), 1), [0]);
    }

    #[test]
    fn merges_and_backups_are_not_in_each_others_way() {
        let id = |n: u8| format!("repo-{n}").parse().unwrap();
        let merge = |n: u8| Needs { rewrites: vec![id(n)], ..Needs::default() };
        let moving = |from: u8, to: u8| Needs { rewrites: vec![id(from), id(to)], ..Needs::default() };
        let backup = || needs(Some(1), Some(1), 1);
        assert_eq!(startable(&[merge(1), backup()], &[backup()], 1), [0]);
        assert_eq!(startable(&[merge(1), merge(2), backup()], &[merge(1)], 1), [1, 2]);
        let many: Vec<Needs> = (0..9).map(merge).collect();
        assert_eq!(startable(&many, &[], 1).len(), MERGES_MAX);
        assert_eq!(startable(&[moving(1, 2), merge(2), moving(3, 1), merge(3), backup()], &[], 1), [0, 3, 4]);
        let many: Vec<Needs> = (0..9).map(|n| moving(2 * n, 2 * n + 1)).collect();
        assert_eq!(startable(&many, &[], 1).len(), MERGES_MAX, "two repositories, one place in the hub");
    }

    #[test]
    fn a_busy_repository_holds_up_only_its_own_tasks() {
        let running = [needs(Some(1), None, 1)];
        let waiting = [needs(Some(1), Some(1), 1), needs(Some(2), Some(1), 1), needs(Some(3), Some(1), 1)];
        assert_eq!(startable(&waiting, &running, 4), [1]);
        assert_eq!(startable(&waiting, &running, 1), [0; 0]);
    }

    fn any_needs() -> impl Strategy<Value = Needs> {
        (prop::option::of(0..3_u8), prop::option::of(0..3_u8)).prop_map(|(r, s)| needs(r, s, 2))
    }

    proptest! {
        /// Each task is looked at by itself: it starts exactly when those before it leave room.
        #[test]
        fn limits_hold_and_nobody_waits_without_a_reason(
            waiting in prop::collection::vec(any_needs(), 0..20),
            running in prop::collection::vec(any_needs(), 0..3), all_max in 1..8_usize,
        ) {
            let chosen = startable(&waiting, &running, all_max);
            let mut at_work: Vec<&Needs> = running.iter().collect();
            for (position, needs) in waiting.iter().enumerate() {
                let same = |by: fn(&Needs, &Needs) -> bool| at_work.iter().filter(|other| by(other, needs)).count();
                let room = at_work.len() < all_max
                    && (needs.repository.is_none() || same(|a, b| a.repository == b.repository) < 2)
                    && (needs.source.is_none() || same(|a, b| a.source == b.source) < 2);
                prop_assert_eq!(chosen.contains(&position), room);
                if room {
                    at_work.push(needs);
                }
            }
        }
    }
}
