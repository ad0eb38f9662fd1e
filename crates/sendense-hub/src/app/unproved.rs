//! Machines with points that nobody has looked at for longer than the rules say: the verification does not keep up, fails, or cannot
//! read the repository. Then nobody knows whether they can be given back.
//!
//! What is late by a little is not told: points fall due in heaps, and are looked at one after the other.

use super::App;
use crate::fault::{OrProblem, Result};
use crate::verification::{rules, sayings};
use sendense_catalog as catalog;
use sendense_types::{PolicyId, Timestamp, VmContextId};
use std::collections::BTreeMap;

const DAY_SECONDS: i64 = 86_400;
/// How late a look may be, the first one too: a quarter of what the rule says, two days at the least. A point that could not be read is
/// tried again after one.
const LATE_PART: i64 = 4;
const LATE_DAYS_MIN: i64 = 2;
/// Machines that are named.
const NAMED_MAX: usize = 20;

/// How late a look may be that is due after so many days.
fn late_days(days: u32) -> i64 {
    (i64::from(days) / LATE_PART).max(LATE_DAYS_MIN)
}

impl App {
    /// The machines with points that should have been verified long ago, each with the time when the first of them fell due.
    pub(super) async fn overdue_proofs(&self) -> Result<BTreeMap<VmContextId, Timestamp>> {
        let now = self.core.now();
        let sayings = sayings(&self.all_policies().await?);
        let own: Vec<PolicyId> = sayings.values().flatten().cloned().collect();
        let rules = rules(&self.core.limits, &sayings, &own, self.core.first_looks_since);
        let all = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
        let (repositories, _) = self.core.catalog.repositories().list(all).await.or_problem()?;
        let mut overdue = BTreeMap::<VmContextId, Timestamp>::new();
        for repository in &repositories {
            for rule in &rules {
                let which = rule.due(&repository.repository_id, now, late_days(rule.days));
                for (vm, oldest) in self.core.catalog.backups().unproved_machines(&which).await.or_problem()? {
                    let looked_at = oldest.looked_at.map(|at| (at, rule.days));
                    let waits = oldest.waits_since.map(|since| (since, rule.first_days()));
                    let waited = oldest.waited_before.map(|since| (since, rule.days));
                    let due = |(since, days): (Timestamp, u32)| since.plus_seconds(i64::from(days) * DAY_SECONDS);
                    let Some(due) = looked_at.into_iter().chain(waits).chain(waited).map(due).min() else { continue };
                    let first = overdue.entry(vm).or_insert(due);
                    *first = due.min(*first);
                }
            }
        }
        Ok(overdue)
    }

    /// The same in words, those that are overdue for the longest first; a few more than are told.
    pub(super) async fn overdue_proofs_told(&self) -> Result<Vec<String>> {
        let mut overdue: Vec<_> = self.overdue_proofs().await?.into_iter().collect();
        overdue.sort_by(|(one, since), (other, as_long)| (since, one).cmp(&(as_long, other)));
        let mut told = Vec::new();
        for (vm, since) in overdue.into_iter().take(NAMED_MAX + 1) {
            let name = match self.core.catalog.vms().get(&vm).await {
                Ok(known) => known.vm_name.to_string(),
                Err(_) => vm.to_string(),
            };
            told.push(format!("{name} since {since}"));
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_may_be_a_little_late() {
        assert_eq!([1, 7, 8, 30, 365].map(late_days), [2, 2, 2, 7, 91]);
    }
}
