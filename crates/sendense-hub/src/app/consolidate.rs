//! Chains that are too long: shorter on demand, and bounded by themselves.
//!
//! What lives here: which points go, or that the newest becomes a full. What does not: how that is done
//! ([`crate::jobs::merge`]). Invariant: by itself no point goes; a chain that is too long ends, and a new one begins with a
//! full made of what is there.

use super::in_force::in_force;
use super::repositories::Settings;
use super::{App, Caller, vms};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, invalid};
use crate::jobs::work::{BackupWork, MergeWork, Work};
use crate::maintenance::Use;
use crate::space::{self, Thresholds};
use sendense_api::{ConsolidateQuery, Consolidation, Role};
use sendense_catalog as catalog;
use sendense_types::{BackupId, BackupType, DiskNumber, Problem, ProblemCode, SpaceState, Timestamp, VmContextId};
use std::collections::BTreeSet;
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
            Some(keep) => going(&chain.backups, keep, &self.newest_of_others(&chain).await?, self.core.now()),
        };
        let newest = chain.backups.last().filter(|newest| newest.backup_type == BackupType::Incremental);
        let full = newest.filter(|_| how.full).map(|newest| newest.backup_id.clone());
        let work = MergeWork {
            vm_context_id: vm.vm_context_id.clone(),
            vm_name: vm.vm_name.to_string(),
            repository_id: chain.repository_id.clone(),
            backup_ids: going.clone(),
            full: full.clone(),
            aside: false,
        };
        let is_nothing = going.is_empty() && full.is_none();
        let task_id = if how.dry_run || is_nothing {
            None
        } else {
            if self.merges_under_way().await?.has(&work.place()) {
                let details = format!("points of {} are being merged, or wait for it; see task list", vm.vm_name);
                return Err(Problem::new(ProblemCode::Conflict, "a merge is under way", details));
            }
            let subject = catalog::TaskSubject::Repository(work.repository_id.clone());
            Some(self.make_task(caller, Work::Merge(work), subject).await?.task_id)
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

    /// Points of a chain that are the newest of another disk: who wants the chain of one disk shorter does not give up another disk,
    /// which a successor made of some disks only may not have.
    async fn newest_of_others(&self, chain: &catalog::Chain) -> Result<BTreeSet<BackupId>> {
        let disks = chain.backups.iter().flat_map(|point| &point.disks).map(|disk| disk.disk_id);
        let others: BTreeSet<DiskNumber> = disks.filter(|disk| *disk != chain.disk_id).collect();
        let mut newest = BTreeSet::new();
        for disk in others {
            let (vm, repository, backups) = (&chain.vm_context_id, &chain.repository_id, self.core.catalog.backups());
            let point = backups.newest_completed(vm, repository, disk).await.or_problem()?;
            newest.extend(point.map(|point| point.backup_id));
        }
        Ok(newest)
    }

    /// Ends chains that have become too long with this point: it is made a full, beside and after the backup. Not where its room
    /// would be missed: a long chain does no harm, and backups come first. False when other merges have to end before.
    pub(super) async fn bound_chains(&self, of: &BackupWork, is_its_turn: bool) -> Result<bool> {
        let rules = self.rules_behind(of.policy_id.as_deref()).await?;
        let said = in_force(&self.core.limits, rules.as_ref()).chain_points_max;
        let point = self.core.catalog.backups().get(&of.backup_id).await.or_problem()?;
        if said == 0 || point.backup_type == BackupType::Full {
            return Ok(true);
        }
        let bound = bound_of(said, &of.vm_context_id);
        let vm = std::slice::from_ref(&of.vm_context_id);
        let chains = self.core.catalog.backups().longest_chains(vm, &of.repository_id).await.or_problem()?;
        let longest = chains.get(&of.vm_context_id).copied().unwrap_or(0);
        let work = MergeWork {
            vm_context_id: of.vm_context_id.clone(),
            vm_name: of.vm_name.clone(),
            repository_id: of.repository_id.clone(),
            backup_ids: Vec::new(),
            full: Some(of.backup_id.clone()),
            aside: true,
        };
        if !is_too_long(longest, said, &of.vm_context_id) {
            return Ok(true);
        }
        if !self.may_merge(&work.place(), is_its_turn).await? {
            return Ok(false);
        }
        if let Some(why) = self.misses_room(of).await? {
            tracing::info!(vm_id = %of.vm_context_id, backup_id = %of.backup_id, points = longest, bound, why,
                "a chain has become too long and stays so for now; the next backup looks again");
            return Ok(true);
        }
        tracing::info!(vm_id = %of.vm_context_id, backup_id = %of.backup_id, points = longest, bound,
            "a chain has become too long; a full is made of its newest point");
        let caller = Caller { identity: "chain bound".to_owned(), role: Role::Admin };
        let subject = catalog::TaskSubject::Backup(of.backup_id.clone());
        self.make_task(&caller, Work::Merge(work), subject).await.map(|_| true)
    }

    /// Why the repository cannot bear a full of this point, if it cannot.
    async fn misses_room(&self, of: &BackupWork) -> Result<Option<String>> {
        let id = &of.repository_id;
        let row = self.core.catalog.repositories().get(id).await.or_problem()?;
        let settings = Settings::read(&row.settings)?;
        let room = self.core.repositories.room(&self.core, &row).await?;
        let state = space::of(&self.core, id, &settings, &room).await?.state;
        if state != SpaceState::Ok {
            return Ok(Some(format!("room is {state}")));
        }
        let repository = self.core.repositories.by_id(&self.core, id, Use::Write).await?;
        let (vm, point) = (of.vm_context_id.clone(), of.backup_id.clone());
        let plan = blocking(move || repository.plan_full(&vm, &point)).await?.or_problem()?;
        // Those that wait have taken no room yet; each is thought to need as much.
        let fulls = self.merges_under_way().await?.fulls(id).saturating_add(1);
        let needed_bytes = plan.needed_bytes.saturating_mul(fulls);
        let bears = space::bears(&room.storage, needed_bytes, Thresholds::of(&settings));
        Ok((!bears).then(|| format!("with {needed_bytes} bytes more, room would be low")))
    }
}

/// Points of a bound that every machine's chain may have; of those beyond it a half is added by the machine's id.
const BOUND_SHARED: u32 = 10;

/// The bound of a machine's chains: the hub's, or up to half as many again. Machines that were backed up first in the same night
/// would all end their chains in the same night, and want the room of all their fulls at once.
fn bound_of(bound: u32, vm: &VmContextId) -> u64 {
    let spread = bound.saturating_sub(BOUND_SHARED) / 2;
    // FNV-1a: the same on every hub and in every version.
    let hash = vm
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // Its low bits alone would follow the last character.
    let later = (hash >> 32) % (u64::from(spread) + 1);
    u64::from(bound) + later
}

/// Whether a chain of so many points ends by itself. A bound of 0 ends none.
pub(super) fn is_too_long(points: u64, bound: u32, vm: &VmContextId) -> bool {
    bound > 0 && points > bound_of(bound, vm)
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
fn going(
    chain: &[catalog::Backup],
    keep: NonZeroU32,
    newest_of_others: &BTreeSet<BackupId>,
    now: Timestamp,
) -> (Vec<BackupId>, Vec<BackupId>) {
    let too_many = &chain[..chain.len().saturating_sub(keep.get() as usize)];
    let is_held = |point: &&catalog::Backup| {
        let is_newest = newest_of_others.contains(&point.backup_id);
        is_newest || point.protected || point.hold_until.is_some_and(|until| until > now)
    };
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
    #[test]
    fn a_fleet_that_began_in_one_night_does_not_end_its_chains_in_one() {
        let bounds = |bound| (0..1000).map(move |n| bound_of(bound, &format!("vm-{n:04}").parse().unwrap()));
        let mut nights = std::collections::BTreeMap::<u64, usize>::new();
        bounds(60).for_each(|bound| *nights.entry(bound).or_default() += 1);
        assert_eq!((nights.keys().min(), nights.keys().max()), (Some(&60), Some(&85)));
        // A thousand over 26 nights are 38 a night.
        assert!(nights.values().all(|machines| *machines < 80), "{nights:?}");
        for short in [0, 3, 10] {
            assert!(bounds(short).all(|bound| bound == u64::from(short)), "a short bound is kept to the point");
        }
    }
}
