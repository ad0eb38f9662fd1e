//! Whose points a policy's rules judge, where several policies mean one machine in one repository.
//!
//! A point belongs to the policy that made it, for as long as there is that policy. While it means the machine and puts its points into
//! the repository, it prunes there itself: no other policy's rules let its points go, nor do they take a place of theirs. When it does so no
//! more (the machine bears another name, or the policy was changed), whoever prunes judges them, each policy's by that policy's own rules.
//! What belongs to none (it was made by hand, or its policy is gone) is judged by each policy that means the machine, together with
//! its own points, and goes only when none of them keeps it.
//!
//! Invariant: a policy that cannot be read loses nothing: what it made is left alone.

use super::App;
use super::policies::{as_prune, rules_of};
use super::prune::policy as keeping;
use super::selector::Selector;
use crate::fault::Result;
use sendense_api::{NoLongerMeant, PolicyRules};
use sendense_catalog as catalog;
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

/// What they have to say of a machine's points in a repository.
#[derive(Debug, Default)]
pub(super) struct Having<'a> {
    own: Option<&'a str>,
    /// By id.
    others: BTreeMap<&'a str, Says<'a>>,
}

#[derive(Debug)]
struct Says<'a> {
    name: &'a str,
    /// What is kept; `None` for all.
    keep: Option<Policy>,
    /// It means the machine now, and names the repository.
    is_here: bool,
}

impl App {
    /// All policies but the one that says this; by its name, for what it says may not be saved yet.
    pub(crate) async fn beside(&self, rules: &PolicyRules) -> Result<Beside> {
        Ok(Beside::among(&self.policy_rows().await?, &rules.name))
    }
}

impl Beside {
    /// All of these but the one of this name.
    pub(super) fn among(rows: &[catalog::Policy], own: &str) -> Self {
        let mut beside = Self::default();
        for row in rows {
            let policy_id = row.policy_id.to_string();
            if row.name.as_str() == own {
                beside.own = Some(policy_id);
                beside.saved = rules_of(row).ok();
                continue;
            }
            beside.others.push(Other { policy_id, name: row.name.to_string(), rules: rules_of(row).ok() });
        }
        beside
    }

    /// What the policy says that is about to say something else.
    pub(super) fn saved(&self) -> Option<&PolicyRules> {
        self.saved.as_ref()
    }

    /// A machine that the policy would not mean any more.
    pub(super) fn without_own(&self, vm: VmContext) -> NoLongerMeant {
        NoLongerMeant { policies: self.meaning(&vm), vm_context_id: vm.vm_context_id, vm_name: vm.vm_name.into() }
    }

    /// The names of the others that mean a machine, wherever they put its points.
    fn meaning(&self, vm: &VmContext) -> Vec<String> {
        let means = |rules: &PolicyRules| Selector::new(rules).means(vm);
        let others = self.others.iter().filter(|other| other.rules.as_ref().is_some_and(means));
        others.map(|other| other.name.clone()).collect()
    }

    /// Who has a say in the points of a machine in a repository.
    pub(super) fn of(&self, vm: &VmContext, repository_id: &RepositoryId) -> Having<'_> {
        let says = |other: &'_ Other| {
            // What cannot be read is left alone, and what cannot be understood keeps all, as what says nothing does.
            let rules = other.rules.as_ref();
            let retention = rules.and_then(|rules| rules.retention.as_ref());
            let keep = retention.and_then(|retention| keeping(&as_prune(retention)).ok());
            let is_here = rules
                .is_none_or(|rules| rules.repository_id == repository_id.as_str() && Selector::new(rules).means(vm));
            (keep, is_here)
        };
        let having = self.others.iter().map(|other| {
            let (keep, is_here) = says(other);
            (other.policy_id.as_str(), Says { name: &other.name, keep, is_here })
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
        for (id, says) in &self.others {
            let made = of(&|made_by| made_by == Some(id));
            let kept = match &says.keep {
                // It does not prune here any more.
                Some(keep) if !says.is_here => judge(&made, keep, now),
                _ => BTreeMap::new(),
            };
            for point in made {
                let verdict = kept.get(&point.backup_id).copied().unwrap_or(Verdict::Stays(Reason::NotJudged));
                match verdict {
                    Verdict::Goes => {}
                    Verdict::Stays(Reason::NotJudged) if says.is_here => {
                        left.insert(point.backup_id.clone(), format!("policy {} made it, and judges it", says.name));
                    }
                    Verdict::Stays(Reason::NotJudged) => {
                        left.insert(point.backup_id.clone(), format!("policy {} made it, and keeps all", says.name));
                    }
                    Verdict::Stays(reason) => {
                        let why = format!("{reason} (policy {}, which made it)", says.name);
                        left.insert(point.backup_id.clone(), why);
                    }
                }
                verdicts.insert(point.backup_id, verdict);
            }
        }
        for (id, says) in self.others.iter().filter(|(_, says)| says.is_here) {
            // One that keeps all that it made says nothing of what it did not make.
            let (name, Some(keep)) = (says.name, &says.keep) else { continue };
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
        check_beside(true, others, made_by, policy, expected);
    }

    fn check_beside(
        is_here: bool,
        others: &[(&'static str, Option<Policy>)],
        made_by: &[Option<&str>],
        policy: &Policy,
        expected: Expect,
    ) {
        let point = |day: usize| Point {
            backup_id: format!("p{day}").parse().unwrap(),
            completed_at: Timestamp::from_micros(1_800_000_000_000_000).plus_seconds(day as i64 * DAY),
            state: State::Good,
            protected: false,
            hold_until: None,
            coverage: Coverage::Whole,
        };
        let points: Vec<_> = made_by.iter().enumerate().map(|(day, by)| (*by, point(day))).collect();
        let says = |(id, keep): &(&'static str, Option<Policy>)| (*id, Says { name: id, keep: keep.clone(), is_here });
        let others = others.iter().map(says).collect();
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

    /// The machine was given another name, or the policy another repository: its rules hold all the same, and another's never do.
    #[test]
    fn what_a_policy_made_is_judged_by_its_rules_when_it_prunes_here_no_more() {
        let made_by = [Some("monthly"), Some("monthly"), Some("own"), Some("monthly"), Some("own"), None];
        check_beside(
            false,
            &[("monthly", Some(last(2)))],
            &made_by,
            &last(1),
            expect![[r#"
                p0 monthly: goes
                p1 monthly: keep-last 2 of 2 (policy monthly, which made it)
                p2 own: goes
                p3 monthly: keep-last 1 of 2 (policy monthly, which made it)
                p4 own: goes
                p5 -: keep-last 1 of 1
            "#]],
        );
        check_beside(
            false,
            &[("monthly", None)],
            &made_by[..3],
            &last(1),
            expect![[r#"
                p0 monthly: policy monthly made it, and keeps all
                p1 monthly: policy monthly made it, and keeps all
                p2 own: keep-last 1 of 1
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
