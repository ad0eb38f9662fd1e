//! Merging points into their successors: planned at once, done by a task.

use super::delete::refused;
use super::due::Place;
use super::{App, Caller};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, invalid};
use crate::jobs::work::{MergeWork, Work};
use crate::maintenance::Use;
use sendense_api::{Merge, MergeQuery, Prune, PruneFate, PrunedBackup, Role};
use sendense_catalog as catalog;
use sendense_repo::Kind;
use sendense_types::{BackupId, BackupType, DiskNumber, Problem, ProblemCode, RepositoryId, TaskKind, TaskState};
use std::collections::{BTreeMap, BTreeSet};

/// Merges that may wait in one repository, which does one at a time. What is due beyond that waits elsewhere ([`super::due`]).
const WAITING_MAX: usize = 50;

/// The merges that wait or run, of all hubs.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    places: BTreeSet<Place>,
    waiting: BTreeMap<RepositoryId, usize>,
    fulls: BTreeMap<RepositoryId, u64>,
}

impl UnderWay {
    /// Points of the machine in that repository are being merged, or will be.
    pub fn has(&self, place: &Place) -> bool {
        self.places.contains(place)
    }

    /// Fulls that are being made in a repository, or will be.
    pub fn fulls(&self, id: &RepositoryId) -> u64 {
        self.fulls.get(id).copied().unwrap_or(0)
    }

    /// Whether one more may wait, of these points, beside so many of this repository and of all that are not made yet.
    pub fn bears(&self, place: &Place, here: usize, all: usize, all_max: usize) -> bool {
        let waiting = self.waiting.get(&place.0).copied().unwrap_or(0);
        !self.has(place) && waiting + here < WAITING_MAX && self.waiting.values().sum::<usize>() + all < all_max
    }
}

impl App {
    /// Lets a point go whose data a later one needs, or shows what that would take.
    pub async fn merge_backup(&self, caller: &Caller, id: &BackupId, how: MergeQuery) -> Result<Merge> {
        caller.require(Role::Admin)?;
        let row = self.point(id).await?;
        if let Some((recovery_id, held)) = self.core.recoveries.holding(std::slice::from_ref(id)) {
            let details = format!("recovery {recovery_id} runs on {held}; discard it first");
            return Err(Problem::new(ProblemCode::Conflict, "the point is in use", details));
        }
        let wanted = if how.dry_run { Use::Read } else { Use::Write };
        let repository = self.core.repositories.by_id(&self.core, &row.repository_id, wanted).await?;
        let (vm, going, now) = (row.vm_context_id.clone(), id.clone(), self.core.now());
        let planned = blocking(move || repository.plan_merge(&vm, &going, now)).await?;
        let steps = planned.map_err(|error| cannot(&error))?;
        let task_id = if how.dry_run {
            None
        } else {
            let work = MergeWork {
                vm_context_id: row.vm_context_id,
                vm_name: row.vm_name.into(),
                repository_id: row.repository_id,
                backup_ids: vec![id.clone()],
                full: None,
                aside: false,
            };
            Some(self.make_task(caller, Work::Merge(work), catalog::TaskSubject::Backup(id.clone())).await?.task_id)
        };
        let (last, copies) = steps.split_last().ok_or_else(|| invalid("there is nothing to merge"))?;
        let disks: BTreeSet<DiskNumber> = steps.iter().flat_map(|step| &step.disks).copied().collect();
        Ok(Merge {
            dry_run: how.dry_run,
            backup_id: last.going.clone(),
            successor_id: last.successor.clone(),
            copied_to: copies.iter().map(|copy| copy.successor.clone()).collect(),
            disk_ids: disks.into_iter().collect(),
            dropped_disk_ids: last.dropped.iter().copied().collect(),
            bytes_stored: last.bytes,
            needed_bytes: steps.iter().map(|step| step.needed_bytes).fold(0, u64::saturating_add),
            task_id,
        })
    }

    /// Begins to merge what a prune wanted to delete and could not, because later points need it, as far as the policy merges. One task for
    /// each repository; false when one of them has to wait for other merges.
    pub(super) async fn merge_needed(
        &self,
        caller: &Caller,
        pruned: &Prune,
        full_every: Option<u32>,
        is_its_turn: bool,
    ) -> Result<bool> {
        let mut is_all = true;
        for (repository_id, backup_ids) in enough(pruned, &to_merge(full_every, pruned)) {
            let work = MergeWork {
                vm_context_id: pruned.vm_context_id.clone(),
                vm_name: pruned.vm_name.clone(),
                repository_id: repository_id.clone(),
                backup_ids,
                full: None,
                aside: true,
            };
            if self.may_merge(&work.place(), is_its_turn).await? {
                let subject = catalog::TaskSubject::Repository(repository_id.clone());
                self.make_task(caller, Work::Merge(work), subject).await?;
            } else {
                is_all = false;
            }
        }
        Ok(is_all)
    }

    /// The merges that wait or run now.
    pub(super) async fn merges_under_way(&self) -> Result<UnderWay> {
        let mut under_way = UnderWay::default();
        for state in [TaskState::Pending, TaskState::Running] {
            let kind = Some(TaskKind::Consolidate);
            let filter = catalog::TaskFilter { kind, state: Some(state), ..catalog::TaskFilter::default() };
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
            let (rows, _) = self.core.catalog.tasks().list(&filter, page).await.or_problem()?;
            for work in rows.iter().filter_map(|row| Work::read(&row.request).ok()) {
                let Work::Merge(work) = work else { continue };
                if state == TaskState::Pending {
                    *under_way.waiting.entry(work.repository_id.clone()).or_default() += 1;
                }
                if work.full.is_some() {
                    *under_way.fulls.entry(work.repository_id.clone()).or_default() += 1;
                }
                under_way.places.insert(work.place());
            }
        }
        Ok(under_way)
    }
}

/// The chosen points that a prune wanted to delete and could not, in each repository where they are enough to be merged. The oldest point is the
/// full, and is rewritten each time: so not for every single one, but when a quarter of what the rules keep has come together. What
/// another policy keeps does not count, or the chain of a policy that keeps few would grow with the points of one that keeps many.
fn enough<'p>(pruned: &'p Prune, chosen: &BTreeSet<BackupId>) -> BTreeMap<&'p RepositoryId, Vec<BackupId>> {
    let mut needed: BTreeMap<&RepositoryId, Vec<BackupId>> = BTreeMap::new();
    // In the prune's order: each before those it stands on, so that what an older point holds is moved once.
    let mut kept: BTreeMap<&RepositoryId, usize> = BTreeMap::new();
    for entry in &pruned.backups {
        match entry.fate {
            PruneFate::Needed if !chosen.contains(&entry.backup_id) => {}
            PruneFate::Needed => needed.entry(&entry.repository_id).or_default().push(entry.backup_id.clone()),
            PruneFate::Keep if !entry.kept_by_another => *kept.entry(&entry.repository_id).or_default() += 1,
            PruneFate::Keep | PruneFate::Delete | PruneFate::InUse | PruneFate::Unknown => {}
        }
    }
    needed.retain(|repository_id, ids| ids.len() * 4 >= kept.get(repository_id).copied().unwrap_or(0));
    needed
}

/// A point that cannot be merged as things are is no wrong request.
fn cannot(error: &sendense_repo::Error) -> Problem {
    match error.kind {
        Kind::Invalid => {
            Problem::new(ProblemCode::Conflict, "the point cannot be merged", sendense_block::error::chain(error))
        }
        _ => refused(error),
    }
}

/// The points that a policy merges away by and by which a prune leaves: of incrementals for ever all that no rule keeps and a later one
/// needs. Where fulls are made again and again whole chains go instead, and only what a former chain left is merged: a disk was away when
/// the next one began, and went on where it had ended. Then a full lies between the point and the next one that is kept.
pub(super) fn to_merge(full_every: Option<u32>, prune: &Prune) -> BTreeSet<BackupId> {
    let mut repositories: BTreeMap<&RepositoryId, Vec<&PrunedBackup>> = BTreeMap::new();
    for entry in &prune.backups {
        repositories.entry(&entry.repository_id).or_default().push(entry);
    }
    let mut chosen = BTreeSet::new();
    for mut entries in repositories.into_values() {
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.completed_at));
        let mut is_former = false;
        for entry in entries {
            let is_full = entry.backup_type == Some(BackupType::Full);
            if entry.fate == PruneFate::Needed && (is_former || full_every.is_none()) {
                chosen.insert(entry.backup_id.clone());
            }
            is_former = is_full || (is_former && entry.fate != PruneFate::Keep);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_types::Timestamp;

    /// Of how many points that later ones need a merge begins, where a policy keeps so many itself and another one so many.
    fn begins_at(own: usize, others: usize) -> usize {
        let points = |needed: usize| {
            let point = |number: usize| PrunedBackup {
                backup_id: format!("p{number}").parse().unwrap(),
                repository_id: "repo-1".parse().unwrap(),
                backup_type: None,
                completed_at: None,
                bytes_stored: 0,
                fate: if number < needed { PruneFate::Needed } else { PruneFate::Keep },
                reason: String::new(),
                kept_by_another: number >= needed + own,
            };
            (0..needed + own + others).map(point).collect()
        };
        let pruned = |needed| Prune {
            dry_run: false,
            plan_id: String::new(),
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web".to_owned(),
            backups: points(needed),
            deleted: 0,
            kept: 0,
            freed_bytes: 0,
        };
        let begins = |pruned: Prune| !enough(&pruned, &to_merge(None, &pruned)).is_empty();
        (1..100).find(|needed| begins(pruned(*needed))).unwrap()
    }

    #[test]
    fn a_quarter_of_what_the_own_rules_keep_is_enough() {
        let begins = [(2, 0), (14, 0), (14, 12), (40, 0), (2, 60), (0, 60)].map(|(own, others)| begins_at(own, others));
        assert_eq!(begins, [1, 4, 4, 10, 1, 1]);
    }

    /// Points from the oldest on: `F` for a full, `i` for an incremental; what becomes of each in the second word.
    fn merged(full_every: Option<u32>, types: &str, fates: &str) -> String {
        let entry = |(at, (kind, fate)): (usize, (char, char))| PrunedBackup {
            backup_id: format!("bk-{at}").parse().unwrap(),
            repository_id: "repo-1".parse().unwrap(),
            backup_type: Some(if kind == 'F' { BackupType::Full } else { BackupType::Incremental }),
            completed_at: Some(Timestamp::from_micros(at as i64)),
            bytes_stored: 1,
            fate: match fate {
                'k' => PruneFate::Keep,
                'n' => PruneFate::Needed,
                'u' => PruneFate::InUse,
                _ => PruneFate::Delete,
            },
            reason: String::new(),
            kept_by_another: false,
        };
        let pruned = Prune {
            dry_run: true,
            plan_id: String::new(),
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web".to_owned(),
            backups: types.chars().zip(fates.chars()).enumerate().map(entry).collect(),
            deleted: 0,
            kept: 0,
            freed_bytes: 0,
        };
        let chosen = to_merge(full_every, &pruned);
        let told = |at: usize| if chosen.contains(&format!("bk-{at}").parse().unwrap()) { 'm' } else { '.' };
        (0..types.len()).map(told).collect()
    }

    #[test]
    fn what_is_merged_of_what_a_prune_leaves() {
        assert_eq!(merged(None, "Fiiii", "nnnkk"), "mmm..");
        // Whole chains go, when their time has come.
        assert_eq!(merged(Some(5), "Fiiii", "nnnkk"), ".....");
        assert_eq!(merged(Some(5), "FiiiiFiii", "nnnnkkkkk"), ".........");
        // A disk was away when the second chain began, and stands on the first one.
        assert_eq!(merged(Some(5), "FiiiiFiii", "nnnnnnkkk"), "mmmmm....");
        assert_eq!(merged(Some(5), "FiiiiFiii", "nnnnndkkk"), "mmmmm....");
        assert_eq!(merged(Some(5), "FiiiiFiii", "nnnnnkkkk"), "mmmmm....");
        assert_eq!(merged(Some(5), "FiiiiFiii", "nnunnukkk"), "mm.mm....");
        // One that a person keeps stands on its own chain.
        assert_eq!(merged(Some(5), "FiiiiFiii", "nnknnnkkk"), "...mm....");
    }
}
