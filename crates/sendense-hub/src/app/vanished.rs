//! Machines that policies mean and that their sources do not have any more. Nobody backs them up, and nobody may have noticed.
//!
//! Only those count that have points: who deletes the points has decided. One that another source has now was moved.

use super::App;
use super::selector::Selector;
use crate::fault::{OrProblem, Result};
use sendense_api::{PolicyRules, VanishedVm};
use sendense_catalog::SeenVm;
use sendense_types::VmContextId;
use std::collections::HashSet;

/// Names that a sentence tells.
const NAMED_MAX: usize = 10;

impl App {
    /// The machines that a policy means and that are not found any more, by name.
    pub(crate) async fn vanished_of(&self, rules: &PolicyRules) -> Result<Vec<VanishedVm>> {
        let all = self.core.catalog.vms().seen().await.or_problem()?;
        self.vanished_among(&all, rules).await
    }

    /// The same, of all machines as they were seen last.
    async fn vanished_among(&self, all: &[SeenVm], rules: &PolicyRules) -> Result<Vec<VanishedVm>> {
        let mut selector = Selector::new(rules);
        // What a source has is not gone, whatever other source does not have it any more.
        let there: HashSet<_> = all.iter().filter(|vm| vm.vanished_at.is_none()).filter_map(SeenVm::identity).collect();
        let is_gone = |vm: &&SeenVm| {
            let is_elsewhere = vm.identity().is_some_and(|identity| there.contains(&identity));
            vm.vanished_at.is_some() && !is_elsewhere && selector.means(*vm)
        };
        let gone: Vec<&SeenVm> = all.iter().filter(is_gone).collect();
        let ids: Vec<VmContextId> = gone.iter().map(|vm| vm.vm_context_id.clone()).collect();
        let points = self.core.catalog.backups().newest_times_of_vms(&ids).await.or_problem()?;
        let vanished = gone.into_iter().filter_map(|vm| {
            let newest_point_at = *points.get(&vm.vm_context_id)?;
            Some(VanishedVm {
                vm_context_id: vm.vm_context_id.clone(),
                vm_name: vm.vm_name.to_string(),
                discovered_at: vm.last_seen_at,
                newest_point_at,
            })
        });
        Ok(vanished.collect())
    }

    /// What a person should know of it, if there are any.
    pub(super) async fn vanished_words(&self, all: &[SeenVm], rules: &PolicyRules) -> Result<Option<String>> {
        Ok(words(&self.vanished_among(all, rules).await?))
    }

    /// What all policies miss, in words, each with the policy's name.
    pub(super) async fn all_vanished(&self) -> Result<Vec<String>> {
        let all = self.core.catalog.vms().seen().await.or_problem()?;
        let mut told = Vec::new();
        for (policy, rules) in self.all_policies().await? {
            let vanished = self.vanished_among(&all, &rules).await?;
            told.extend(words(&vanished).map(|words| format!("policy {}: {words}", policy.name)));
        }
        Ok(told)
    }
}

fn words(vanished: &[VanishedVm]) -> Option<String> {
    let names: Vec<&str> = vanished.iter().take(NAMED_MAX).map(|vm| vm.vm_name.as_str()).collect();
    let more = if vanished.len() > NAMED_MAX { " …" } else { "" };
    (!names.is_empty()).then(|| format!("not found any more: {}{more}", names.join(", ")))
}
