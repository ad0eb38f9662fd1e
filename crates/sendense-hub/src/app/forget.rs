//! Forgetting a policy, and what becomes of its machines and points then.
//!
//! Its points belong to nobody then. Other policies that mean their machine in that repository judge them together with those that they
//! made, so that of both sorts others may go than before; where there is none they stay until somebody deletes them. Invariant: planning
//! does nothing, and is in the way of nothing: what cannot be told of a machine is said.

use super::beside::Beside;
use super::merge::to_merge;
use super::policies::{is_of_the_repository, repository_of, rules_of, why_not};
use super::selector::Selector;
use super::{App, Caller};
use crate::fault::{OrProblem, Result};
use sendense_api::{JudgedVm, LeftPoints, PolicyDeletion, PolicyRules, PruneFate, Role};
use sendense_catalog as catalog;
use sendense_types::{BackupId, PolicyId, RepositoryId, VmContextId};
use std::collections::{BTreeMap, BTreeSet};

/// A machine in a repository.
type Place = (VmContextId, RepositoryId);

impl App {
    /// Forgets a policy. What becomes of its points then, [`App::plan_policy_deletion`] tells.
    pub async fn delete_policy(&self, caller: &Caller, id_or_name: &str) -> Result<()> {
        caller.require(Role::Admin)?;
        let policies = self.core.catalog.policies();
        let row = policies.find(id_or_name).await.or_problem()?;
        policies.delete(&row.policy_id).await.or_problem()?;
        tracing::info!(policy_id = %row.policy_id, name = %row.name, by = %caller.identity, "policy forgotten");
        Ok(())
    }

    /// What would become of machines and points if a policy were forgotten now.
    pub async fn plan_policy_deletion(&self, id_or_name: &str) -> Result<PolicyDeletion> {
        let row = self.core.catalog.policies().find(id_or_name).await.or_problem()?;
        let mut others = self.policy_rows().await?;
        others.retain(|other| other.policy_id != row.policy_id);
        // One that cannot be read means no machine that anybody knows of; its points are known all the same.
        let own = rules_of(&row).ok();
        let no_longer = match &own {
            Some(own) => {
                let beside = Beside::among(&others, row.name.as_str());
                self.machines_of(own).await?.0.into_iter().map(|vm| beside.without_own(vm)).collect()
            }
            None => Vec::new(),
        };
        let made = self.core.catalog.backups().made_for(&row.policy_id).await.or_problem()?;
        let points = made.iter().map(|made| made.points).sum();
        let mut made: BTreeMap<Place, catalog::MadePoints> =
            made.into_iter().map(|made| ((made.vm_context_id.clone(), made.repository_id.clone()), made)).collect();
        let has: BTreeSet<Place> = made.keys().cloned().collect();
        let mut judged = Judged::default();
        for other in &others {
            // What cannot be read judges nothing, and neither does what keeps all that it made.
            let Ok(rules) = rules_of(other) else { continue };
            if rules.retention.is_none() {
                continue;
            }
            let repository_id = repository_of(&rules)?;
            let beside = Beside::among(&others, other.name.as_str());
            let mut own = own.as_ref().filter(|own| own.repository_id == rules.repository_id).map(Selector::new);
            for vm in self.machines_of(&rules).await?.0 {
                let place = (vm.vm_context_id.clone(), repository_id.clone());
                made.remove(&place);
                // What belongs to nobody was the forgotten one's to judge, too, where it meant the machine.
                if has.contains(&place) || own.as_mut().is_some_and(|own| own.means(&vm)) {
                    let told = match judged.away.get(&repository_id) {
                        Some(why) => Err(why.clone()),
                        None => self.judged(&rules, &beside, &vm).await.map_err(|problem| {
                            let why = why_not(&problem);
                            if is_of_the_repository(problem.code) {
                                judged.away.insert(repository_id.clone(), why.clone());
                            }
                            why
                        }),
                    };
                    judged.note(&rules, other.name.to_string(), vm, told);
                }
            }
        }
        let left = made.into_values().map(|made| LeftPoints {
            vm_context_id: made.vm_context_id,
            vm_name: made.vm_name,
            repository_id: made.repository_id,
            points: made.points,
        });
        Ok(PolicyDeletion {
            schedules: self.schedules_of(&row.policy_id).await?,
            policy_id: row.policy_id,
            name: row.name.into(),
            no_longer,
            points,
            left: left.collect(),
            deleted: judged.deleted.len() as u64,
            merged: judged.merged.difference(&judged.deleted.keys().cloned().collect()).count() as u64,
            freed_bytes: judged.deleted.values().copied().fold(0, u64::saturating_add),
            judged: judged.vms,
        })
    }

    /// The names of the schedules that carry a policy out.
    async fn schedules_of(&self, policy_id: &PolicyId) -> Result<Vec<String>> {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset };
            let (schedules, _) = self.core.catalog.schedules().list(page).await.or_problem()?;
            offset += schedules.len() as u64;
            let is_last = (schedules.len() as u64) < catalog::Page::LIMIT_MAX;
            let its = schedules.into_iter().filter(|schedule| schedule.policy_id == *policy_id);
            names.extend(its.map(|schedule| schedule.name.to_string()));
            if is_last {
                return Ok(names);
            }
        }
    }
}

/// What the other policies' rules would do.
#[derive(Default)]
struct Judged {
    vms: Vec<JudgedVm>,
    /// Why nothing is told of what lies in these: asked once.
    away: BTreeMap<RepositoryId, String>,
    /// Points that would go, each with the bytes that come back.
    deleted: BTreeMap<BackupId, u64>,
    merged: BTreeSet<BackupId>,
}

impl Judged {
    fn note(
        &mut self,
        rules: &PolicyRules,
        policy: String,
        vm: catalog::VmContext,
        told: Result<Option<sendense_api::Prune>, String>,
    ) {
        let (prune, not_judged) = match told {
            Ok(prune) => (prune, None),
            Err(why) => (None, Some(why)),
        };
        let merged = prune.as_ref().map(|prune| to_merge(rules.full_every, prune)).unwrap_or_default();
        for entry in prune.iter().flat_map(|prune| &prune.backups) {
            match entry.fate {
                PruneFate::Delete => {
                    self.deleted.insert(entry.backup_id.clone(), entry.bytes_stored);
                }
                PruneFate::Needed if merged.contains(&entry.backup_id) => {
                    self.merged.insert(entry.backup_id.clone());
                }
                _ => {}
            }
        }
        self.vms.push(JudgedVm {
            vm_context_id: vm.vm_context_id,
            vm_name: vm.vm_name.into(),
            policy,
            merged: merged.len() as u64,
            prune,
            not_judged,
        });
    }
}
