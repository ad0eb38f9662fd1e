//! Whose points a policy's rules judge, where several policies mean one machine in one repository.
//!
//! A point belongs to the policy that made it, as long as that one means the machine and puts its points into the repository: no other
//! policy's rules let it go, nor does it take a place of theirs. What belongs to none (it was made by hand, or its policy is gone, or
//! means the machine no more) is judged by each policy together with its own points, and goes only when none of them keeps it.
//!
//! Invariant: a policy that cannot be read loses nothing: what it made is left alone.

use super::App;
use super::policies::{as_prune, rules_of};
use super::prune::policy as keeping;
use super::selector::Selector;
use crate::fault::Result;
use sendense_api::PolicyRules;
use sendense_catalog::VmContext;
use sendense_repo::retention::{Point, Policy, Reason, Verdict, judge};
use sendense_types::{BackupId, RepositoryId, Timestamp};
use std::collections::BTreeMap;

/// The policies beside one that prunes.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// The one that prunes; none where it is not saved yet.
    own: Option<String>,
    /// What it says as it is saved.
    saved: Option<PolicyRules>,
    others: Vec<Other>,
}

#[derive(Debug)]
struct Other {
    policy_id: String,
    name: String,
    /// None where it cannot be read.
    rules: Option<PolicyRules>,
}

/// Those of them that have a say in a machine's points in a repository.
#[derive(Debug, Default)]
pub(super) struct Having<'a> {
    own: Option<&'a str>,
    /// By id: the name, and what is kept; `None` for all.
    others: BTreeMap<&'a str, (&'a str, Option<Policy>)>,
}

impl App {
    /// All policies but the one that says this; by its name, for what it says may not be saved yet.
    pub(crate) async fn beside(&self, rules: &PolicyRules) -> Result<Beside> {
        let mut beside = Beside::default();
        for row in self.policy_rows().await? {
            let policy_id = row.policy_id.to_string();
            if row.name.as_str() == rules.name {
                beside.own = Some(policy_id);
                beside.saved = rules_of(&row).ok();
                continue;
            }
            beside.others.push(Other { policy_id, name: row.name.to_string(), rules: rules_of(&row).ok() });
        }
        Ok(beside)
    }
}

impl Beside {
    /// What the policy says that is about to say something else.
    pub(super) fn saved(&self) -> Option<&PolicyRules> {
        self.saved.as_ref()
    }

    /// The names of the others that mean a machine, wherever they put its points.
    pub(super) fn meaning(&self, vm: &VmContext) -> Vec<String> {
        let means = |rules: &PolicyRules| Selector::new(rules).means(vm);
        let others = self.others.iter().filter(|other| other.rules.as_ref().is_some_and(means));
        others.map(|other| other.name.clone()).collect()
    }

    /// Who has a say in the points of a machine in a repository.
    pub(super) fn of(&self, vm: &VmContext, repository_id: &RepositoryId) -> Having<'_> {
        let say = |other: &Other| match &other.rules {
            None => Some(None),
            Some(rules) => {
                let is_here = rules.repository_id == repository_id.as_str() && Selector::new(rules).means(vm);
                // What cannot be understood keeps all, as what says nothing does.
                let keep = || rules.retention.as_ref().and_then(|retention| keeping(&as_prune(retention)).ok());
                is_here.then(keep)
            }
        };
        let having = self.others.iter().filter_map(|other| {
            let keep = say(other)?;
            Some((other.policy_id.as_str(), (other.name.as_str(), keep)))
        });
        Having { own: self.own.as_deref(), others: having.collect() }
    }
}

impl Having<'_> {
    /// Judges points, each with the policy that made it, by the rules of the policy that prunes; and tells why those stay that it does
    /// not judge alone.
    pub(super) fn judge(
        &self,
        points: &[(Option<&str>, Point)],
        policy: &Policy,
        now: Timestamp,
    ) -> (BTreeMap<BackupId, Verdict>, BTreeMap<BackupId, String>) {
        let owner = |made_by: Option<&str>| made_by.and_then(|id| self.others.get_key_value(id).map(|(id, _)| *id));
        let of = |whose: &dyn Fn(Option<&str>) -> bool| {
            let mine = points.iter().filter(|(made_by, _)| whose(*made_by));
            mine.map(|(_, point)| point.clone()).collect::<Vec<_>>()
        };
        let mut verdicts = judge(&of(&|made_by| owner(made_by).is_none()), policy, now);
        let mut left = BTreeMap::new();
        for (made_by, point) in points {
            let Some((name, _)) = owner(*made_by).and_then(|id| self.others.get(id)) else { continue };
            verdicts.insert(point.backup_id.clone(), Verdict::Stays(Reason::NotJudged));
            left.insert(point.backup_id.clone(), format!("policy {name} made it, and judges it"));
        }
        for (id, (name, keep)) in &self.others {
            // One that keeps all that it made says nothing of what it did not make.
            let Some(keep) = keep else { continue };
            let nobodys =
                |made_by: Option<&str>| owner(made_by).is_none() && made_by.is_none_or(|by| Some(by) != self.own);
            let with_own = of(&|made_by| nobodys(made_by) || made_by == Some(id));
            let free = of(&nobodys);
            let kept = judge(&with_own, keep, now);
            for point in &free {
                let Some(Verdict::Stays(reason)) = kept.get(&point.backup_id) else { continue };
                if verdicts.get(&point.backup_id) == Some(&Verdict::Goes) {
                    verdicts.insert(point.backup_id.clone(), Verdict::Stays(*reason));
                    left.insert(point.backup_id.clone(), format!("{reason} (policy {name})"));
                }
            }
        }
        (verdicts, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use sendense_repo::retention::{Coverage, Keep, State, time_zone};

    const DAY: i64 = 86_400;

    fn keep(keep: Keep) -> Policy {
        Policy::new(keep, time_zone("UTC").unwrap(), 0).unwrap()
    }

    fn last(last: u32) -> Policy {
        keep(Keep { last, ..Keep::default() })
    }

    /// Points of days, oldest first, each by who made it: what `own` would do with them.
    fn check(others: &[(&'static str, Option<Policy>)], made_by: &[Option<&str>], policy: &Policy, expected: Expect) {
        let point = |day: usize| Point {
            backup_id: format!("p{day}").parse().unwrap(),
            completed_at: Timestamp::from_micros(1_800_000_000_000_000).plus_seconds(day as i64 * DAY),
            state: State::Good,
            protected: false,
            hold_until: None,
            coverage: Coverage::Whole,
        };
        let points: Vec<_> = made_by.iter().enumerate().map(|(day, by)| (*by, point(day))).collect();
        let others = others.iter().map(|(id, keep)| (*id, (*id, keep.clone()))).collect();
        let having = Having { own: Some("own"), others };
        let (verdicts, left) = having.judge(&points, policy, Timestamp::from_micros(1_900_000_000_000_000));
        let told = points.iter().map(|(made_by, point)| {
            let why = match &verdicts[&point.backup_id] {
                Verdict::Goes => "goes".to_owned(),
                Verdict::Stays(reason) => left.get(&point.backup_id).cloned().unwrap_or_else(|| reason.to_string()),
            };
            format!("{} {}: {why}\n", point.backup_id, made_by.unwrap_or("-"))
        });
        expected.assert_eq(&told.collect::<String>());
    }

    #[test]
    fn what_another_policy_made_is_left_to_it_and_takes_no_place() {
        let made_by = [Some("monthly"), Some("own"), Some("own"), Some("monthly"), Some("own")];
        check(
            &[("monthly", Some(last(1)))],
            &made_by,
            &last(2),
            expect![[r#"
                p0 monthly: policy monthly made it, and judges it
                p1 own: goes
                p2 own: keep-last 2 of 2
                p3 monthly: policy monthly made it, and judges it
                p4 own: keep-last 1 of 2
            "#]],
        );
        // As it is for one that keeps everything, or cannot be read.
        check(
            &[("monthly", None)],
            &made_by[..2],
            &last(1),
            expect![[r#"
                p0 monthly: policy monthly made it, and judges it
                p1 own: keep-last 1 of 1
            "#]],
        );
    }

    #[test]
    fn what_belongs_to_no_policy_goes_when_none_keeps_it() {
        check(
            &[("other", Some(last(3))), ("all", None)],
            &[None, Some("gone"), None, Some("other"), Some("own")],
            &last(2),
            expect![[r#"
                p0 -: goes
                p1 gone: keep-last 3 of 3 (policy other)
                p2 -: keep-last 2 of 2
                p3 other: policy other made it, and judges it
                p4 own: keep-last 1 of 2
            "#]],
        );
    }
}
