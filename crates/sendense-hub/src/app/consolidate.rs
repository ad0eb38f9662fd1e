//! Chains that are too long: shorter on demand, and bounded by themselves.
//!
//! What lives here: which points go, or that the newest becomes a full. What does not: how that is done
//! ([`crate::jobs::merge`]). Invariant: by itself no point goes; a chain that is too long ends, and a new one begins with a
//! full made of what is there.

use super::{App, Caller, vms};
use crate::fault::{OrProblem, Result, invalid};
use crate::jobs::work::{BackupWork, MergeWork, Work};
use sendense_api::{ConsolidateQuery, Consolidation, Role};
use sendense_catalog as catalog;
use sendense_types::{BackupId, BackupType, DiskNumber, Problem, ProblemCode, Timestamp};
use std::num::NonZeroU32;

impl App {
    /// Makes the chain of a disk shorter, or shows what that would take.
    pub async fn consolidate_chain(&self, caller: &Caller, vm: &str, how: ConsolidateQuery) -> Result<Consolidation> {
        caller.require(Role::Admin)?;
        if how.full && how.keep.is_some() {
            return Err(invalid("keep and full cannot both be given"));
        }
        // Said before anything is looked up: without a number nobody knows how much is to go.
        let keep = if how.full { None } else { Some(points_to_keep(how.keep, self.core.limits.chain_points_max)?) };
        let vm = vms::find(&self.core, vm).await?;
        let disk_id = how.disk_id.unwrap_or(DiskNumber(0));
        let repository_id = match &how.repository_id {
            Some(id_or_name) => Some(self.repository(id_or_name).await?.repository_id),
            None => None,
        };
        let found = self.core.catalog.backups().chain(&vm.vm_context_id, disk_id, repository_id.as_ref()).await;
        let chain = found.map_err(|error| match error.kind() {
            catalog::Kind::NotFound => {
                let details = format!("disk {disk_id} of {} has no point that can be restored", vm.vm_name);
                Problem::new(ProblemCode::BackupNotFound, "the disk has no backup", details)
            }
            _ => crate::fault::of_catalog(&error),
        })?;
        let (going, held) = match keep {
            None => (Vec::new(), Vec::new()),
            Some(keep) => going(&chain.backups, keep, self.core.now()),
        };
        let newest = chain.backups.last().filter(|newest| newest.backup_type == BackupType::Incremental);
        let full = newest.filter(|_| how.full).map(|newest| newest.backup_id.clone());
        let work = MergeWork {
            vm_context_id: vm.vm_context_id.clone(),
            vm_name: vm.vm_name.to_string(),
            repository_id: chain.repository_id.clone(),
            backup_ids: going.clone(),
            full: full.clone(),
        };
        let is_nothing = going.is_empty() && full.is_none();
        let task_id = match how.dry_run || is_nothing {
            true => None,
            false if self.is_merging(&work).await? => {
                let details =
                    format!("points of {} are being merged, or so many merges wait; see task list", vm.vm_name);
                return Err(Problem::new(ProblemCode::Conflict, "a merge is under way", details));
            }
            false => {
                let subject = catalog::TaskSubject::Repository(work.repository_id.clone());
                Some(self.make_task(caller, Work::Merge(work), subject).await?.task_id)
            }
        };
        Ok(Consolidation {
            dry_run: how.dry_run,
            vm_context_id: vm.vm_context_id,
            vm_name: vm.vm_name.into(),
            disk_id,
            repository_id: chain.repository_id,
            backup_count: chain.backups.len() as u64,
            going,
            held,
            full_backup_id: full,
            task_id,
        })
    }

    /// Ends chains that have become too long with this point: it is made a full, beside and after the backup.
    pub(crate) async fn bound_chains(&self, of: &BackupWork) -> Result<()> {
        let bound = self.core.limits.chain_points_max as usize;
        let point = self.core.catalog.backups().get(&of.backup_id).await.or_problem()?;
        if bound == 0 || point.backup_type == BackupType::Full {
            return Ok(());
        }
        let mut longest = 0;
        for disk in &point.disks {
            let (vm, repository) = (&of.vm_context_id, &of.repository_id);
            let chain = self.core.catalog.backups().chain(vm, disk.disk_id, Some(repository)).await.or_problem()?;
            longest = longest.max(chain.backups.len());
        }
        let work = MergeWork {
            vm_context_id: of.vm_context_id.clone(),
            vm_name: of.vm_name.clone(),
            repository_id: of.repository_id.clone(),
            backup_ids: Vec::new(),
            full: Some(of.backup_id.clone()),
        };
        if longest <= bound || self.is_merging(&work).await? {
            return Ok(());
        }
        tracing::info!(vm_id = %of.vm_context_id, backup_id = %of.backup_id, points = longest, bound,
            "a chain has become too long; a full is made of its newest point");
        let caller = Caller { identity: "chain bound".to_owned(), role: Role::Admin };
        let subject = catalog::TaskSubject::Backup(of.backup_id.clone());
        self.make_task(&caller, Work::Merge(work), subject).await.map(drop)
    }
}

/// How many points of a chain stay: as many as is asked for, or as the hub lets chains grow to. A hub that bounds no chain
/// (`bound` is 0) has no number of its own, and one made up here would let points go that nobody has given up.
fn points_to_keep(asked: Option<u32>, bound: u32) -> Result<NonZeroU32> {
    match asked {
        Some(keep) => NonZeroU32::new(keep).ok_or_else(|| invalid("keep is at least 1")),
        None => NonZeroU32::new(bound).ok_or_else(|| invalid("keep is required: this hub has no bound for chains")),
    }
}

/// The points that go so that so many stay, each before those it stands on, and those that must stay although they would go.
fn going(chain: &[catalog::Backup], keep: NonZeroU32, now: Timestamp) -> (Vec<BackupId>, Vec<BackupId>) {
    let too_many = &chain[..chain.len().saturating_sub(keep.get() as usize)];
    let is_held = |point: &&catalog::Backup| point.protected || point.hold_until.is_some_and(|until| until > now);
    let ids = |points: Vec<&catalog::Backup>| points.into_iter().map(|point| point.backup_id.clone()).collect();
    let (held, going): (Vec<_>, Vec<_>) = too_many.iter().rev().partition(is_held);
    (ids(going), ids(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_without_a_bound_does_not_choose_how_many_points_go() {
        let told = |asked, bound| {
            points_to_keep(asked, bound).map(NonZeroU32::get).map_err(|problem| (problem.code, problem.details))
        };
        assert_eq!(told(None, 60), Ok(60));
        assert_eq!(told(Some(5), 60), Ok(5));
        assert_eq!(told(Some(5), 0), Ok(5));
        for (asked, bound) in [(None, 0), (Some(0), 0), (Some(0), 60)] {
            assert_matches!(told(asked, bound), Err((ProblemCode::InvalidInput, _)));
        }
    }
}
