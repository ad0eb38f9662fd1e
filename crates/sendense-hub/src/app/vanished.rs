//! Machines that policies mean and that their sources do not have any more. Nobody backs them up, and nobody may have noticed.
//!
//! Only those count that have points: who deletes the points has decided. One that another source has now was moved.

use super::App;
use super::selector::Selector;
use crate::fault::{OrProblem, Result};
use sendense_api::{PolicyRules, VanishedVm};
use sendense_catalog as catalog;
use sendense_catalog::VmContext;
use sendense_types::VmContextId;

/// Names that a sentence tells.
const NAMED_MAX: usize = 10;
/// Machines whose points are asked for at once.
const AT_ONCE: usize = 500;

/// Machines that no source has, as the catalog knows them.
struct Absent(Vec<VmContext>);

impl App {
    async fn absent(&self) -> Result<Absent> {
        let filter = catalog::VmFilter { present: Some(false), ..catalog::VmFilter::default() };
        let mut absent = Vec::new();
        loop {
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: absent.len() as u64 };
            let (vms, _) = self.core.catalog.vms().list(&filter, page).await.or_problem()?;
            let is_last = (vms.len() as u64) < catalog::Page::LIMIT_MAX;
            absent.extend(vms);
            if is_last {
                return Ok(Absent(absent));
            }
        }
    }

    /// The machines that a policy means and that are not found any more, by name.
    pub(crate) async fn vanished_of(&self, rules: &PolicyRules) -> Result<Vec<VanishedVm>> {
        self.vanished_among(&self.absent().await?, rules).await
    }

    async fn vanished_among(&self, absent: &Absent, rules: &PolicyRules) -> Result<Vec<VanishedVm>> {
        let mut selector = Selector::new(rules);
        let gone: Vec<&VmContext> = absent.0.iter().filter(|vm| selector.means(vm)).collect();
        let mut vanished = Vec::new();
        for part in gone.chunks(AT_ONCE) {
            let ids: Vec<VmContextId> = part.iter().map(|vm| vm.vm_context_id.clone()).collect();
            let points = self.core.catalog.backups().newest_of_vms(&ids).await.or_problem()?;
            for &vm in part {
                let Some(point) = points.get(&vm.vm_context_id) else { continue };
                if self.is_elsewhere(vm).await? {
                    continue;
                }
                vanished.push(VanishedVm {
                    vm_context_id: vm.vm_context_id.clone(),
                    vm_name: vm.vm_name.to_string(),
                    discovered_at: vm.last_seen_at,
                    newest_point_at: point.created_at,
                });
            }
        }
        Ok(vanished)
    }

    /// Whether another source has the machine.
    async fn is_elsewhere(&self, vm: &VmContext) -> Result<bool> {
        let vms = self.core.catalog.vms();
        for other in vms.same_machine(&vm.vm_context_id).await.or_problem()? {
            if other != vm.vm_context_id && vms.get(&other).await.or_problem()?.vanished_at.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a person should know of it, if there are any.
    pub(super) async fn vanished_words(&self, rules: &PolicyRules) -> Result<Option<String>> {
        Ok(words(&self.vanished_of(rules).await?))
    }

    /// What all policies miss, in words, each with the policy's name.
    pub(super) async fn all_vanished(&self) -> Result<Vec<String>> {
        let absent = self.absent().await?;
        let mut told = Vec::new();
        for (policy, rules) in self.all_policies().await? {
            let vanished = self.vanished_among(&absent, &rules).await?;
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
