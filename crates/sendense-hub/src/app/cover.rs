//! Which policies mean a machine, and whether it should have had a newer point by what their schedules say.

use super::App;
use super::selector::Selector;
use crate::fault::{OrProblem, Result};
use sendense_api::PolicyRules;
use sendense_catalog as catalog;
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
        let mut offset = 0;
        loop {
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset };
            let (schedules, _) = self.core.catalog.schedules().list(page).await.or_problem()?;
            offset += schedules.len() as u64;
            let is_last = (schedules.len() as u64) < catalog::Page::LIMIT_MAX;
            for schedule in schedules.iter().filter(|schedule| schedule.enabled) {
                let ended = self.core.catalog.executions().last_ended(&schedule.schedule_id).await.or_problem()?;
                // A schedule may have been given another policy since.
                if let Some(ended) = ended {
                    let last = over.entry(ended.policy_id).or_insert(ended.due);
                    *last = ended.due.max(*last);
                }
            }
            if is_last {
                break;
            }
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
