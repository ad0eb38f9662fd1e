//! Pruning a machine's backups: judged and planned first, shown or done, each repository by itself.
//!
//! What lives here: from rows to a plan of `sendense_repo::retention` and its execution. What does not: the rules, and whose points
//! they judge ([`super::beside`]). Invariant: what is deleted is what the plan that is answered says; a caller who saw a plan can say
//! which, and gets that or nothing.

use super::beside::Beside;
use super::delete::refused;
use super::selector::Selector;
use super::{App, Caller, vms};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, invalid};
use crate::maintenance::Use;
use sendense_api::{Prune, PruneFate, PruneQuery, PruneVm, PrunedBackup, Role};
use sendense_catalog as catalog;
use sendense_repo::delete::Extent;
use sendense_repo::retention::{Coverage, Fate, Keep, Point, Policy, PrunePlan, State, time_zone};
use sendense_repo::{Hold, Repository};
use sendense_types::{BackupId, BackupStatus, Problem, ProblemCode, RepositoryId, VerifyState, VmContextId};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Rows asked for at once: the most that a page of the catalog holds.
const PAGE: u64 = 1000;
/// Rows forgotten in one transaction, which holds the machine's lock.
const FORGET: usize = 1000;
/// Characters of a plan's id: 128 bits, so that two plans never share one by chance.
const PLAN_ID_LEN: usize = 32;

/// The points of a machine in one repository.
type Rows = BTreeMap<BackupId, catalog::Backup>;

/// One repository of a prune.
struct Place {
    repository_id: RepositoryId,
    repository: Repository,
    plan: PrunePlan,
    rows: Rows,
    /// Why points stay that it is not for the rules alone to judge.
    left: BTreeMap<BackupId, String>,
}

impl App {
    /// Deletes the points of a machine that no rule keeps, or shows what would go; says of the others why they stay.
    pub async fn prune_vm(&self, caller: &Caller, vm: &str, asked: PruneVm, how: PruneQuery) -> Result<Prune> {
        caller.require(Role::Admin)?;
        if let Some(policy_id) = &asked.policy_id {
            return self.prune_vm_of_policy(caller, vm, policy_id, &asked, how).await;
        }
        let policy = policy(&asked)?;
        let vm = vms::find(&self.core, vm).await?;
        let only = match &asked.repository_id {
            Some(id_or_name) => Some(self.repository(id_or_name).await?.repository_id),
            None => None,
        };
        let (app, by) = (self.clone(), caller.identity.clone());
        self.to_the_end(async move { app.prune_now(vm, policy, None, only, how, by).await }).await
    }

    /// One machine, just as its policy prunes it.
    async fn prune_vm_of_policy(
        &self,
        caller: &Caller,
        vm: &str,
        policy_id: &str,
        asked: &PruneVm,
        how: PruneQuery,
    ) -> Result<Prune> {
        if *asked != (PruneVm { policy_id: asked.policy_id.clone(), ..PruneVm::default() }) {
            return Err(invalid("policy_id says by which rules and where; leave out all else"));
        }
        let rules = self.get_policy(policy_id).await?.rules;
        let vm = vms::find(&self.core, vm).await?;
        if !Selector::new(&rules).means(&vm) {
            return Err(invalid("the policy does not mean this machine"));
        }
        let (app, by) = (self.clone(), caller.identity.clone());
        let pruned = self.to_the_end(async move { app.prune_by(&rules, &vm, how, &by).await }).await?;
        pruned.ok_or_else(|| invalid("the policy has no retention: it keeps every point"))
    }

    pub(super) async fn prune_now(
        &self,
        vm: catalog::VmContext,
        policy: Policy,
        beside: Option<&Beside>,
        only: Option<RepositoryId>,
        how: PruneQuery,
        by: String,
    ) -> Result<Prune> {
        let mut places = Vec::new();
        let wanted = if how.dry_run { Use::Read } else { Use::Write };
        for repository_id in self.repositories_of(&vm.vm_context_id, only).await? {
            places.push(self.plan_in(&vm, repository_id, &policy, beside, wanted).await?);
        }
        let pruned = describe(&vm, &places, how.dry_run);
        if how.plan_id.is_some_and(|expected| expected != pruned.plan_id) {
            let details = "other points would go than the plan says; look at a new one";
            return Err(Problem::new(ProblemCode::Conflict, "the plan is out of date", details));
        }
        if !how.dry_run {
            for place in places {
                self.execute(place, &by).await?;
            }
        }
        Ok(pruned)
    }

    /// Makes the plan for one repository.
    async fn plan_in(
        &self,
        vm: &catalog::VmContext,
        repository_id: RepositoryId,
        policy: &Policy,
        beside: Option<&Beside>,
        wanted: Use,
    ) -> Result<Place> {
        let others = beside.map(|beside| beside.of(vm, &repository_id)).unwrap_or_default();
        let vm = &vm.vm_context_id;
        let repository = self.core.repositories.by_id(&self.core, &repository_id, wanted).await?;
        let rows = self.points_in(vm, &repository_id).await?;
        let (reader, of) = (repository.clone(), vm.clone());
        let holds = blocking(move || reader.holds(&of)).await?.or_problem()?;
        let points = rows.values().map(|row| (row.policy_id.as_deref(), point(row, holds.get(&row.backup_id))));
        let (verdicts, left) = others.judge(&points.collect::<Vec<_>>(), policy, self.core.now());
        // Also by recoveries that are not served now, which claim nothing in the repository.
        let held = |id: &BackupId| self.core.recoveries.holding(std::slice::from_ref(id));
        let busy = rows.keys().filter_map(|id| Some((id.clone(), format!("recovery {} runs on it", held(id)?.0))));
        let (planner, of, busy) = (repository.clone(), vm.clone(), busy.collect());
        let plan = blocking(move || planner.plan_prune(&of, &verdicts, &busy)).await?.or_problem()?;
        Ok(Place { repository_id, repository, plan, rows, left })
    }

    /// Deletes what a plan says, files before rows. When a point of it was taken into use since, nothing is deleted.
    async fn execute(&self, place: Place, by: &str) -> Result<()> {
        let (repository, vm) = (place.repository, place.plan.vm_context_id.clone());
        let ids: Vec<BackupId> = place.plan.going().map(|entry| entry.backup_id.clone()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        if let Some((recovery_id, held)) = self.core.recoveries.holding(&ids) {
            let details = format!("recovery {recovery_id} runs on {held} since the plan was made; nothing was deleted");
            return Err(Problem::new(ProblemCode::Conflict, "the plan is out of date", details));
        }
        let repository_id = &place.repository_id;
        tracing::info!(vm_context_id = %vm, repository_id = %repository_id, points = ids.len(), by = %by, "prune begins");
        self.core.running.make_way(&ids).await;
        let (who, named, now) = (format!("prune by {by}"), ids.iter().cloned().collect(), self.core.now());
        let deleted = blocking(move || {
            let plan = repository.plan_delete(&vm, &named, Extent::Named)?;
            repository.execute_delete(plan, &who, now)
        });
        deleted.await?.map_err(|error| refused(&error))?;
        self.refuse_gone_over(&ids, repository_id).await?;
        // Children before what they stand on, as the plan has them: each part leaves whole chains.
        for part in ids.chunks(FORGET) {
            self.core.catalog.backups().delete(part, self.core.now()).await.or_problem()?;
        }
        Ok(())
    }

    /// The repositories that hold points of a machine.
    pub(super) async fn repositories_of(
        &self,
        vm: &VmContextId,
        only: Option<RepositoryId>,
    ) -> Result<BTreeSet<RepositoryId>> {
        if let Some(only) = only {
            return Ok(BTreeSet::from([only]));
        }
        Ok(self.completed(vm, None).await?.into_iter().map(|row| row.repository_id).collect())
    }

    async fn points_in(&self, vm: &VmContextId, repository_id: &RepositoryId) -> Result<Rows> {
        let rows = self.completed(vm, Some(repository_id.clone())).await?;
        Ok(rows.into_iter().map(|row| (row.backup_id.clone(), row)).collect())
    }

    /// The points of a machine, newest first. One that is deleted meanwhile may hide another from a later page; that one then stays, for
    /// nobody has judged it.
    pub(super) async fn completed(
        &self,
        vm: &VmContextId,
        in_repository: Option<RepositoryId>,
    ) -> Result<Vec<catalog::Backup>> {
        let filter = catalog::BackupFilter {
            vm_context_id: Some(vm.clone()),
            repository_id: in_repository,
            status: Some(BackupStatus::Completed),
            ..catalog::BackupFilter::default()
        };
        let mut rows = Vec::new();
        loop {
            let page = catalog::Page { limit: PAGE, offset: rows.len() as u64 };
            let (more, _) = self.core.catalog.backups().list(&filter, page).await.or_problem()?;
            let is_last = (more.len() as u64) < PAGE;
            rows.extend(more);
            if is_last {
                return Ok(rows);
            }
        }
    }
}

/// Tells what the plans say.
fn describe(vm: &catalog::VmContext, places: &[Place], dry_run: bool) -> Prune {
    let mut pruned = Prune {
        dry_run,
        plan_id: plan_id(places),
        vm_context_id: vm.vm_context_id.clone(),
        vm_name: vm.vm_name.to_string(),
        backups: Vec::new(),
        deleted: 0,
        kept: 0,
        freed_bytes: 0,
    };
    for place in places {
        for entry in &place.plan.entries {
            let row = place.rows.get(&entry.backup_id);
            let fate = fate_of(&entry.fate);
            if fate == PruneFate::Delete {
                pruned.deleted += 1;
                pruned.freed_bytes = pruned.freed_bytes.saturating_add(entry.bytes);
            } else {
                pruned.kept += 1;
            }
            pruned.backups.push(PrunedBackup {
                backup_id: entry.backup_id.clone(),
                repository_id: place.repository_id.clone(),
                backup_type: row.map(|row| row.backup_type),
                completed_at: row.map(counted_at),
                bytes_stored: entry.bytes,
                fate,
                reason: match (&entry.fate, place.left.get(&entry.backup_id)) {
                    (Fate::Stays(_), Some(why)) => why.clone(),
                    (fate, _) => fate.to_string(),
                },
                kept_by_another: matches!(entry.fate, Fate::Stays(_)) && place.left.contains_key(&entry.backup_id),
            });
        }
    }
    pruned
}

/// Two plans that delete the same have the same id.
fn plan_id(places: &[Place]) -> String {
    let mut hasher = Sha256::new();
    for place in places {
        for entry in place.plan.going() {
            hasher.update(format!("{} {}\n", place.repository_id, entry.backup_id));
        }
    }
    let mut id = hex::encode(hasher.finalize());
    id.truncate(PLAN_ID_LEN);
    id
}

pub(super) fn policy(asked: &PruneVm) -> Result<Policy> {
    let keep = Keep {
        last: asked.keep_last,
        hourly: asked.keep_hourly,
        daily: asked.keep_daily,
        weekly: asked.keep_weekly,
        monthly: asked.keep_monthly,
        yearly: asked.keep_yearly,
    };
    let zone = time_zone(asked.time_zone.as_deref().unwrap_or("UTC"));
    let policy = zone.and_then(|zone| Policy::new(keep, zone, asked.minimum_age_seconds));
    policy.map_err(|error| invalid(error.to_string()))
}

/// A point that was imported ended, as far as is known, when it was asked for.
fn counted_at(row: &catalog::Backup) -> sendense_types::Timestamp {
    row.completed_at.unwrap_or(row.created_at)
}

fn point(row: &catalog::Backup, hold: Option<&Hold>) -> Point {
    let disks = || row.disks.iter().map(|disk| disk.disk_id).collect();
    Point {
        backup_id: row.backup_id.clone(),
        completed_at: counted_at(row),
        state: match row.verification.as_ref().map(|found| found.state) {
            Some(VerifyState::Corrupt | VerifyState::Affected) => State::Bad,
            Some(VerifyState::Sound) | None => State::Good,
        },
        protected: hold.is_some_and(|hold| hold.protected),
        hold_until: hold.and_then(|hold| hold.until),
        coverage: if row.partial { Coverage::Disks(disks()) } else { Coverage::Whole },
    }
}

fn fate_of(fate: &Fate) -> PruneFate {
    match fate {
        Fate::Goes => PruneFate::Delete,
        Fate::Stays(_) => PruneFate::Keep,
        Fate::NeededBy(_) => PruneFate::Needed,
        Fate::InUse(_) => PruneFate::InUse,
        Fate::Unknown => PruneFate::Unknown,
    }
}
