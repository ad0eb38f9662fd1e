//! Which policies mean a machine, and whether it should have had a newer point by what their schedules say.
//!
//! The timetable says when a machine should have a point, not what became of an occurrence: one that was left out, missed or that hangs
//! leaves its machines without one all the same.

use super::App;
use super::schedules::timetable;
use super::selector::Selector;
use crate::fault::{OrProblem, Result};
use crate::schedule::GRACE_SECONDS;
use sendense_api::PolicyRules;
use sendense_catalog as catalog;
use sendense_catalog::VmContext;
use sendense_types::{PolicyId, ScheduleId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// While an execution goes on its machines may still have their turns, and no other is begun; after a day it hangs.
const RUNNING_GRACE_SECONDS: i64 = 86_400;

/// All policies, with what their schedules say.
pub(super) struct Cover(Vec<Covering>);

struct Covering {
    name: String,
    rules: PolicyRules,
    said: Said,
}

/// What the schedules of a policy say that are enabled.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    is_scheduled: bool,
    /// The newest occurrence after which its machines should have a point.
    last: Option<Timestamp>,
}

/// What holds for a machine.
pub(super) struct Covered {
    /// The policies that mean it, by name.
    pub policies: Vec<String>,
    /// There are such, and no schedule carries one of them out.
    pub unscheduled: bool,
    /// Since when it is overdue, if it has a point and is.
    pub overdue_since: Option<Timestamp>,
}

impl App {
    /// What policies and schedules say now.
    pub(super) async fn cover(&self) -> Result<Cover> {
        let running = self.core.catalog.executions().running().await.or_problem()?;
        let running: BTreeSet<ScheduleId> = running.into_iter().map(|execution| execution.schedule_id).collect();
        let mut said: BTreeMap<PolicyId, Said> = BTreeMap::new();
        let mut offset = 0;
        loop {
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset };
            let (schedules, _) = self.core.catalog.schedules().list(page).await.or_problem()?;
            offset += schedules.len() as u64;
            for schedule in schedules.iter().filter(|schedule| schedule.enabled) {
                let of_policy = said.entry(schedule.policy_id.clone()).or_default();
                of_policy.is_scheduled = true;
                of_policy.last = of_policy.last.max(self.last_due(schedule, running.contains(&schedule.schedule_id)));
            }
            if (schedules.len() as u64) < catalog::Page::LIMIT_MAX {
                break;
            }
        }
        for ended in self.core.catalog.executions().last_ended().await.or_problem()? {
            // A schedule may have been given another policy since.
            let of_policy = said.entry(ended.policy_id).or_default();
            of_policy.last = of_policy.last.max(Some(ended.due));
        }
        let policies = self.all_policies().await?.into_iter();
        let covering = policies.map(|(row, rules)| {
            let said = said.get(&row.policy_id).copied().unwrap_or_default();
            Covering { name: row.name.into(), rules, said }
        });
        Ok(Cover(covering.collect()))
    }

    /// The newest occurrence of a schedule that should have given points by now. What an execution that ended was for is known better.
    fn last_due(&self, schedule: &catalog::Schedule, is_running: bool) -> Option<Timestamp> {
        let grace_seconds = if is_running { RUNNING_GRACE_SECONDS } else { GRACE_SECONDS };
        match timetable(schedule) {
            Ok(timetable) => timetable.newest_due(self.core.now().plus_seconds(-grace_seconds)),
            Err(problem) => {
                tracing::warn!(schedule = %schedule.name, error = %problem.message, details = %problem.details,
                    "a schedule is left out");
                None
            }
        }
    }
}

impl Cover {
    /// Which policies mean a machine, and what follows of that.
    pub fn of(&self, vm: &VmContext, newest_point: Option<Timestamp>) -> Covered {
        let mine: Vec<_> = self.0.iter().filter(|one| Selector::new(&one.rules).means(vm)).collect();
        let last = mine.iter().filter_map(|one| one.said.last).max();
        Covered {
            policies: mine.iter().map(|one| one.name.clone()).collect(),
            unscheduled: !mine.is_empty() && !mine.iter().any(|one| one.said.is_scheduled),
            overdue_since: last.filter(|last| newest_point.is_some_and(|made| made < *last)),
        }
    }
}
