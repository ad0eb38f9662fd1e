//! Policies: what they say, which machines they mean, what they would do.

use super::beside::Beside;
use super::in_force::{self, in_force};
use super::merge::to_merge;
use super::prune::policy as keeping;
use super::selector::{Selector, parts};
use super::{App, Caller, consolidate};
use crate::core::Core;
use crate::fault::{OrProblem, Result, internal, invalid};
use sendense_api::{
    ListQuery, NoLongerMeant, NotPrunedVm, Page, PlannedVm, Policy, PolicyPlan, PolicyPrune, PolicyRules, Prune,
    PruneQuery, PruneVm, Retention, Role,
};
use sendense_catalog as catalog;
use sendense_types::{BackupType, Name, PolicyId, Problem, ProblemCode, RepositoryId, SourceId, VmContextId};
use std::collections::BTreeSet;

/// Patterns and sources of one policy: who needs more needs another policy.
const WORDS_MAX: usize = 1000;
/// A name has 255 bytes at the most, and so has what it is compared with.
const PATTERN_BYTES_MAX: usize = 255;
/// Points of a chain that are looked at for its length; also the most that `full_every` may say.
const FULL_EVERY_MAX: u32 = 1000;

impl App {
    /// Policies by name.
    pub async fn list_policies(&self, page: ListQuery) -> Result<Page<Policy>> {
        let page = catalog::Page { limit: page.limit.get().into(), offset: page.offset };
        let (rows, total) = self.core.catalog.policies().list(page).await.or_problem()?;
        Ok(Page { items: rows.into_iter().map(|row| self.policy_out(row)).collect::<Result<_>>()?, total })
    }

    /// One policy, by its id or name.
    pub async fn get_policy(&self, id_or_name: &str) -> Result<Policy> {
        self.policy_out(self.core.catalog.policies().find(id_or_name).await.or_problem()?)
    }

    /// Makes a policy. Nothing is done before a schedule carries it out.
    pub async fn create_policy(&self, caller: &Caller, rules: PolicyRules) -> Result<Policy> {
        caller.require(Role::Admin)?;
        let (name, rules) = self.check_policy(rules).await?;
        let (id, body) = (PolicyId::generate(), write(&rules)?);
        let row = self.core.catalog.policies().create(&id, &name, &body, self.core.now()).await.or_problem()?;
        tracing::info!(policy_id = %id, name = %name, by = %caller.identity, "policy made");
        self.policy_out(row)
    }

    /// Lets a policy say something else.
    pub async fn replace_policy(&self, caller: &Caller, id_or_name: &str, rules: PolicyRules) -> Result<Policy> {
        caller.require(Role::Admin)?;
        let policies = self.core.catalog.policies();
        let id = policies.find(id_or_name).await.or_problem()?.policy_id;
        let (name, rules) = self.check_policy(rules).await?;
        let row = policies.replace(&id, &name, &write(&rules)?, self.core.now()).await.or_problem()?;
        tracing::info!(policy_id = %id, name = %name, by = %caller.identity, "policy changed");
        self.policy_out(row)
    }

    /// What a policy would do now that is not saved.
    pub async fn plan_policy(&self, caller: &Caller, rules: PolicyRules) -> Result<PolicyPlan> {
        caller.require(Role::Operator)?;
        let (_, rules) = self.check_policy(rules).await?;
        self.plan_rules(rules).await
    }

    /// What a policy would do now.
    pub async fn plan_of_policy(&self, id_or_name: &str) -> Result<PolicyPlan> {
        let rules = self.get_policy(id_or_name).await?.rules;
        self.plan_rules(rules).await
    }

    async fn plan_rules(&self, rules: PolicyRules) -> Result<PolicyPlan> {
        let (vms, unmatched) = self.machines_of(&rules).await?;
        let repository_id: RepositoryId = repository_of(&rules)?;
        let bound = in_force(&self.core.limits, Some(&rules)).chain_points_max;
        let mut plan = PolicyPlan {
            repository_id: repository_id.clone(),
            vms: Vec::new(),
            unmatched,
            vanished: self.vanished_of(&rules).await?,
            no_longer: Vec::new(),
            not_judged: None,
            deleted: 0,
            merged: 0,
            kept: 0,
            freed_bytes: 0,
            chains_ended: 0,
        };
        let beside = self.beside(&rules).await?;
        plan.no_longer = self.no_longer(&rules, &beside, &vms).await?;
        let ids: Vec<VmContextId> = vms.iter().map(|vm| vm.vm_context_id.clone()).collect();
        let chains = self.core.catalog.backups().longest_chains(&ids, &repository_id).await.or_problem()?;
        for vm in vms {
            let next_type = self.next_type(&rules, &vm.vm_context_id).await?;
            let (prune, not_judged) = match &plan.not_judged {
                Some(_) => (None, None),
                None => match self.judged(&rules, &beside, &vm).await {
                    Ok(prune) => (prune, None),
                    Err(problem) if is_of_the_repository(problem.code) => {
                        plan.not_judged = Some(why_not(&problem));
                        (None, None)
                    }
                    // Nothing is done here: what cannot be told of one machine is in no other one's way, and in that of no change.
                    Err(problem) => (None, Some(why_not(&problem))),
                },
            };
            let merged = prune.as_ref().map_or(0, |prune| to_merge(rules.full_every, prune).len() as u64);
            if let Some(prune) = &prune {
                plan.deleted += prune.deleted;
                plan.merged += merged;
                plan.kept += prune.kept.saturating_sub(merged);
                plan.freed_bytes = plan.freed_bytes.saturating_add(prune.freed_bytes);
            }
            let chain_points = chains.get(&vm.vm_context_id).copied().unwrap_or(0);
            let ends_chain = next_type == BackupType::Incremental
                && consolidate::is_too_long(chain_points + 1, bound, &vm.vm_context_id);
            plan.chains_ended += u64::from(ends_chain);
            let (vm_context_id, vm_name) = (vm.vm_context_id, vm.vm_name.into());
            plan.vms.push(PlannedVm {
                vm_context_id,
                vm_name,
                next_type,
                chain_points,
                ends_chain,
                merged,
                prune,
                not_judged,
            });
        }
        if plan.not_judged.is_some() {
            // What was told of those before it would read as all there is.
            (plan.deleted, plan.merged, plan.kept, plan.freed_bytes) = (0, 0, 0, 0);
            for vm in &mut plan.vms {
                (vm.prune, vm.merged, vm.not_judged) = (None, 0, None);
            }
        }
        Ok(plan)
    }

    /// The machines that a policy means as it is saved and would not mean by these rules, by name.
    async fn no_longer(
        &self,
        rules: &PolicyRules,
        beside: &Beside,
        meant: &[catalog::VmContext],
    ) -> Result<Vec<NoLongerMeant>> {
        let Some(saved) = beside.saved().filter(|saved| *saved != rules) else { return Ok(Vec::new()) };
        let meant: BTreeSet<&VmContextId> = meant.iter().map(|vm| &vm.vm_context_id).collect();
        let gone = self.machines_of(saved).await?.0.into_iter().filter(|vm| !meant.contains(&vm.vm_context_id));
        Ok(gone.map(|vm| beside.without_own(vm)).collect())
    }

    /// Prunes every machine of a policy by its retention, or shows what would go. What is in the way of one machine is told with that
    /// and is in no other one's way.
    pub async fn prune_policy(&self, caller: &Caller, id_or_name: &str, how: PruneQuery) -> Result<PolicyPrune> {
        caller.require(Role::Admin)?;
        if how.plan_id.is_some() {
            return Err(invalid("plan_id names the plan of one VM; prune that VM by itself"));
        }
        let rules = self.get_policy(id_or_name).await?.rules;
        if rules.retention.is_none() {
            return Err(invalid("the policy has no retention: it keeps every point"));
        }
        let (app, by) = (self.clone(), caller.identity.clone());
        self.to_the_end(async move {
            let mut done = PolicyPrune::default();
            let beside = app.beside(&rules).await?;
            for vm in app.machines_of(&rules).await?.0 {
                match app.prune_beside(&rules, &beside, &vm, how.clone(), &by).await {
                    Ok(prune) => done.prunes.extend(prune),
                    Err(problem) if is_of_the_repository(problem.code) => return Err(problem),
                    Err(problem) => done.not_pruned.push(not_pruned(vm, &problem)),
                }
            }
            Ok(done)
        })
        .await
    }

    /// Prunes a machine by a policy's retention, in its repository. `None` when the policy has none.
    pub(crate) async fn prune_by(
        &self,
        rules: &PolicyRules,
        vm: &catalog::VmContext,
        how: PruneQuery,
        by: &str,
    ) -> Result<Option<Prune>> {
        self.prune_beside(rules, &self.beside(rules).await?, vm, how, by).await
    }

    /// What a policy's retention would do with a machine's points.
    pub(super) async fn judged(
        &self,
        rules: &PolicyRules,
        beside: &Beside,
        vm: &catalog::VmContext,
    ) -> Result<Option<Prune>> {
        let how = PruneQuery { dry_run: true, plan_id: None };
        self.prune_beside(rules, beside, vm, how, "plan").await
    }

    async fn prune_beside(
        &self,
        rules: &PolicyRules,
        beside: &Beside,
        vm: &catalog::VmContext,
        how: PruneQuery,
        by: &str,
    ) -> Result<Option<Prune>> {
        let Some(retention) = &rules.retention else { return Ok(None) };
        let keep = keeping(&as_prune(retention))?;
        let only = Some(repository_of(rules)?);
        self.prune_now(vm.clone(), keep, Some(beside), only, how, by.to_owned()).await.map(Some)
    }

    /// The machines that a policy means, by name, and the patterns, tags and folders that none matches. Those that no discovery sees any more
    /// are not among them.
    pub(crate) async fn machines_of(&self, rules: &PolicyRules) -> Result<(Vec<catalog::VmContext>, Vec<String>)> {
        let mut selector = Selector::new(rules);
        let filter = catalog::VmFilter { present: Some(true), ..catalog::VmFilter::default() };
        let mut chosen = Vec::new();
        let mut offset = 0;
        loop {
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset };
            let (vms, _) = self.core.catalog.vms().list(&filter, page).await.or_problem()?;
            offset += vms.len() as u64;
            let is_last = (vms.len() as u64) < catalog::Page::LIMIT_MAX;
            chosen.extend(vms.into_iter().filter(|vm| selector.means(vm)));
            if is_last {
                return Ok((chosen, selector.unmatched()));
            }
        }
    }

    /// What the next backup of a machine is asked to be: a full once so many points stand in the chain.
    pub(crate) async fn next_type(&self, rules: &PolicyRules, vm: &VmContextId) -> Result<BackupType> {
        let Some(every) = rules.full_every else { return Ok(BackupType::Incremental) };
        let repository_id = repository_of(rules)?;
        let backups = self.core.catalog.backups();
        let since_full = backups.points_since_full(vm, &repository_id, every.into()).await.or_problem()?;
        Ok(match since_full {
            Some(since_full) if since_full + 1 < u64::from(every) => BackupType::Incremental,
            _ => BackupType::Full,
        })
    }

    /// A policy that puts its points into a repository, by name, if there is one. Whatever a policy says that cannot be read, it may be
    /// that.
    pub(super) async fn policy_into(&self, repository_id: &RepositoryId) -> Result<Option<Name>> {
        for policy in self.policy_rows().await? {
            if rules_of(&policy)?.repository_id == repository_id.as_str() {
                return Ok(Some(policy.name));
            }
        }
        Ok(None)
    }

    /// Every policy with what it says. One that cannot be read, as a newer hub may have written it, is told and left out: what the others
    /// say is shown and done all the same.
    pub(crate) async fn all_policies(&self) -> Result<Vec<(catalog::Policy, PolicyRules)>> {
        let mut all = Vec::new();
        for policy in self.policy_rows().await? {
            match rules_of(&policy) {
                Ok(rules) => all.push((policy, rules)),
                Err(problem) => {
                    tracing::warn!(policy = %policy.name, error = %problem.message, details = %problem.details,
                    "a policy is left out")
                }
            }
        }
        Ok(all)
    }

    pub(super) async fn policy_rows(&self) -> Result<Vec<catalog::Policy>> {
        let mut all = Vec::new();
        loop {
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: all.len() as u64 };
            let (policies, _) = self.core.catalog.policies().list(page).await.or_problem()?;
            let is_last = (policies.len() as u64) < catalog::Page::LIMIT_MAX;
            all.extend(policies);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// What the policy says that a backup was made for; none when it was made by hand, or the policy is gone.
    pub(crate) async fn rules_behind(&self, policy_id: Option<&str>) -> Result<Option<PolicyRules>> {
        let Some(policy_id) = policy_id else { return Ok(None) };
        match self.core.catalog.policies().find(policy_id).await {
            Ok(row) if row.policy_id.as_str() == policy_id => rules_of(&row).map(Some),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == catalog::Kind::NotFound => Ok(None),
            Err(error) => Err(error).or_problem(),
        }
    }

    fn policy_out(&self, row: catalog::Policy) -> Result<Policy> {
        let rules = PolicyRules { name: row.name.to_string(), ..rules_of(&row)? };
        let in_force = in_force(&self.core.limits, Some(&rules));
        let (created_at, updated_at) = (row.created_at, row.updated_at);
        Ok(Policy { policy_id: row.policy_id, name: row.name.into(), rules, in_force, created_at, updated_at })
    }

    /// What a policy says, checked, with sources and repository by id.
    async fn check_policy(&self, mut rules: PolicyRules) -> Result<(Name, PolicyRules)> {
        let name: Name = rules.name.parse().map_err(|error: sendense_types::NameError| invalid(error.to_string()))?;
        if rules.vms.is_empty() {
            return Err(invalid("vms is empty: name a pattern, * for every VM"));
        }
        for words in [&rules.vms, &rules.exclude, &rules.sources, &rules.folders, &rules.exclude_folders] {
            if words.len() > WORDS_MAX || words.iter().any(|word| word.is_empty() || word.len() > PATTERN_BYTES_MAX) {
                let bounds = format!("at most {WORDS_MAX} patterns of 1 to {PATTERN_BYTES_MAX} bytes are possible");
                return Err(invalid(bounds));
            }
        }
        if rules.tags.len() > WORDS_MAX || rules.exclude_tags.len() > WORDS_MAX {
            return Err(invalid(format!("at most {WORDS_MAX} tags are possible")));
        }
        if let Some(folder) = rules.folders.iter().chain(&rules.exclude_folders).find(|folder| parts(folder).is_empty())
        {
            return Err(invalid(format!("folder {folder:?} names none; leave it out to mean all")));
        }
        if rules.full_every.is_some_and(|every| !(1..=FULL_EVERY_MAX).contains(&every)) {
            return Err(invalid(format!("full_every is 1 to {FULL_EVERY_MAX}")));
        }
        in_force::check(&rules)?;
        if let Some(hooks) = &rules.hooks {
            self.core.hooks.check(hooks)?;
        }
        if let Some(retention) = &rules.retention {
            keeping(&as_prune(retention))?;
        }
        rules.repository_id = self.repository(&rules.repository_id).await?.repository_id.to_string();
        for source in &mut rules.sources {
            *source = source_id(&self.core, source).await?.to_string();
        }
        Ok((name, rules))
    }
}

async fn source_id(core: &Core, id_or_name: &str) -> Result<SourceId> {
    Ok(core.catalog.sources().find(id_or_name).await.or_problem()?.source_id)
}

pub(super) fn repository_of(rules: &PolicyRules) -> Result<RepositoryId> {
    rules.repository_id.parse().map_err(|error: sendense_types::IdError| invalid(error.to_string()))
}

/// Why it cannot be told what retention would do.
pub(super) fn why_not(problem: &Problem) -> String {
    match problem.details.as_str() {
        "" => problem.message.clone(),
        details if details.starts_with(&problem.message) => details.to_owned(),
        details => format!("{}: {details}", problem.message),
    }
}

fn not_pruned(vm: catalog::VmContext, problem: &Problem) -> NotPrunedVm {
    let why = why_not(problem);
    tracing::warn!(vm_context_id = %vm.vm_context_id, code = %problem.code, why, "a machine of a policy is not pruned");
    NotPrunedVm { vm_context_id: vm.vm_context_id, vm_name: vm.vm_name.into(), code: problem.code, why }
}

/// A repository that is drained, offline or away says nothing of what a policy says.
pub(super) fn is_of_the_repository(code: ProblemCode) -> bool {
    use ProblemCode::{RepositoryMaintenance, RepositoryOwned, RepositoryUnavailable};
    matches!(code, RepositoryMaintenance | RepositoryOwned | RepositoryUnavailable)
}

pub(super) fn as_prune(retention: &Retention) -> PruneVm {
    PruneVm {
        repository_id: None,
        policy_id: None,
        keep_last: retention.keep_last,
        keep_hourly: retention.keep_hourly,
        keep_daily: retention.keep_daily,
        keep_weekly: retention.keep_weekly,
        keep_monthly: retention.keep_monthly,
        keep_yearly: retention.keep_yearly,
        time_zone: retention.time_zone.clone(),
        minimum_age_seconds: retention.minimum_age_seconds,
    }
}

fn write(rules: &PolicyRules) -> Result<serde_json::Value> {
    serde_json::to_value(rules).map_err(|error| internal("a policy cannot be written", error.to_string()))
}

/// What a row says.
pub(crate) fn rules_of(row: &catalog::Policy) -> Result<PolicyRules> {
    let read = serde_json::from_value(row.body.clone());
    read.map_err(|error| internal(format!("policy {} cannot be read", row.name), error.to_string()))
}
