//! Whose turn comes first of the machines that a policy means.

use super::App;
use super::selector::matches;
use crate::fault::{OrProblem, Result};
use sendense_api::{PolicyOrder, PolicyRules};
use sendense_catalog::VmContext;
use sendense_types::{Timestamp, VmContextId};
use std::cmp::Reverse;
use std::collections::HashMap;

impl App {
    /// Machines, which come by name, in the order of a policy.
    pub(super) async fn in_turn(&self, rules: &PolicyRules, mut vms: Vec<VmContext>) -> Result<Vec<VmContext>> {
        match rules.order.unwrap_or_default() {
            PolicyOrder::Name => {}
            PolicyOrder::Listed => vms.sort_by_cached_key(|vm| place(&rules.vms, vm)),
            PolicyOrder::LargestFirst => vms.sort_by_cached_key(|vm| Reverse(bytes(vm))),
            PolicyOrder::OldestFirst => {
                let newest = self.newest_points(&vms).await?;
                vms.sort_by_key(|vm| newest.get(&vm.vm_context_id).copied());
            }
        }
        Ok(vms)
    }

    async fn newest_points(&self, vms: &[VmContext]) -> Result<HashMap<VmContextId, Timestamp>> {
        let ids: Vec<VmContextId> = vms.iter().map(|vm| vm.vm_context_id.clone()).collect();
        let points = self.core.catalog.backups().newest_of_vms(&ids).await.or_problem()?;
        Ok(points.into_iter().map(|(vm, point)| (vm, point.created_at)).collect())
    }
}

/// The place of the first pattern that means it.
fn place(patterns: &[String], vm: &VmContext) -> usize {
    patterns.iter().position(|pattern| matches(pattern, vm.vm_name.as_str())).unwrap_or(patterns.len())
}

/// What its disks hold at the most.
fn bytes(vm: &VmContext) -> u64 {
    let sizes = vm.disks.iter().filter(|disk| disk.present).map(|disk| disk.capacity_bytes);
    sizes.fold(0, u64::saturating_add)
}
