//! Which policies mean a machine, and whether it should have had a newer point by what their schedules say.

use super::App;
use super::selector::Selector;
use crate::fault::{OrProblem, Result};
use sendense_api::PolicyRules;
use sendense_catalog::VmContext;
use sendense_types::{PolicyId, Timestamp};
use std::collections::BTreeMap;

/// All policies, each with the time of the last occurrence that was carried out and is over.
pub(super) struct Cover(Vec<(String, PolicyRules, Option<Timestamp>)>);

impl App {
    /// What policies and schedules say now. An occurrence that was left out, for its window was closed, makes nothing overdue; nor
    /// does one that runs: its machines may still have their turns, and what the one before it missed stays missed.
    pub(super) async fn cover(&self) -> Result<Cover> {
        let mut over: BTreeMap<PolicyId, Timestamp> = BTreeMap::new();
        for ended in self.core.catalog.executions().last_ended().await.or_problem()? {
            // A schedule may have been given another policy since.
            let last = over.entry(ended.policy_id).or_insert(ended.due);
            *last = ended.due.max(*last);
        }
        let policies = self.all_policies().await?.into_iter();
        Ok(Cover(policies.map(|(row, rules)| (row.name.into(), rules, over.get(&row.policy_id).copied())).collect()))
    }
}

impl Cover {
    /// The names of the policies that mean a machine; and since when it is overdue, if it has a point and is.
    pub fn of(&self, vm: &VmContext, newest_point: Option<Timestamp>) -> (Vec<String>, Option<Timestamp>) {
        let mine = self.0.iter().filter(|(_, rules, _)| Selector::new(rules).means(vm));
        let (names, over): (Vec<String>, Vec<Option<Timestamp>>) =
            mine.map(|(name, _, over)| (name.clone(), *over)).unzip();
        let last = over.into_iter().flatten().max();
        (names, last.filter(|last| newest_point.is_some_and(|made| made < *last)))
    }
}
