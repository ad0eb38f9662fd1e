//! Whose turn comes first of the machines that a policy means.

use super::App;
use super::selector::matches;
use crate::fault::{OrProblem, Result};
use sendense_api::{PolicyOrder, PolicyRules};
use sendense_catalog::SeenVm;
use sendense_types::VmContextId;
use std::cmp::Reverse;

impl App {
    /// Machines, which come by name, in the order of a policy.
    pub(super) async fn in_turn<'v>(&self, rules: &PolicyRules, mut vms: Vec<&'v SeenVm>) -> Result<Vec<&'v SeenVm>> {
        match rules.order.unwrap_or_default() {
            PolicyOrder::Name => {}
            PolicyOrder::Listed => vms.sort_by_cached_key(|vm| place(&rules.vms, vm)),
            PolicyOrder::LargestFirst => {
                let bytes = self.core.catalog.vms().disk_bytes().await.or_problem()?;
                vms.sort_by_key(|vm| Reverse(bytes.get(&vm.vm_context_id).copied().unwrap_or(0)));
            }
            PolicyOrder::OldestFirst => {
                let ids: Vec<VmContextId> = vms.iter().map(|vm| vm.vm_context_id.clone()).collect();
                let newest = self.core.catalog.backups().newest_times_of_vms(&ids).await.or_problem()?;
                vms.sort_by_key(|vm| newest.get(&vm.vm_context_id).copied());
            }
        }
        Ok(vms)
    }
}

/// The place of the first pattern that means it.
fn place(patterns: &[String], vm: &SeenVm) -> usize {
    patterns.iter().position(|pattern| matches(pattern, vm.vm_name.as_str())).unwrap_or(patterns.len())
}
