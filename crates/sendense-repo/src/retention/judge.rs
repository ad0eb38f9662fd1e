//! The judgement: for every point, why it stays or that it may go.

use super::policy::{Period, Policy, Rule};
use sendense_types::{BackupId, DiskNumber, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A point as retention sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The point.
    pub backup_id: BackupId,
    /// The moment by which it is counted.
    pub completed_at: Timestamp,
    /// Whether it can be restored.
    pub state: State,
    /// A person said that it stays until a person says otherwise.
    pub protected: bool,
    /// It stays until then.
    pub hold_until: Option<Timestamp>,
    /// What it holds of the machine. Points of different coverage are counted apart: a point of one disk must not push out
    /// the last point of another.
    pub coverage: Coverage,
}

/// Whether a point can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As far as is known.
    Good,
    /// Stored data of it is damaged.
    Bad,
}

/// What a point holds of its machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// Every disk that the machine had.
    Whole,
    /// Only these.
    Disks(BTreeSet<DiskNumber>),
}

/// What retention says of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Stays(Reason),
    /// No reason holds it: it may go.
    Goes,
}

/// Why a point stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is protected.
    Protected,
    /// It is held until then.
    Held(Timestamp),
    /// A rule chose it: the `number`th that the rule keeps, of `count`.
    Rule {
        /// The rule.
        rule: Rule,
        /// Which of its periods, the newest being 1.
        number: u32,
        /// How many it keeps.
        count: u32,
    },
    /// It is damaged, but the newest there is: nothing good has come after it.
    NewestAttempt,
    /// It is damaged, and were it good, the rule would keep it. It takes no place from a good one. One stays for a period.
    Damaged {
        /// The rule.
        rule: Rule,
        /// Which of its periods it would be.
        number: u32,
        /// How many it keeps.
        count: u32,
    },
    /// It is younger than the policy lets points go, until then.
    Young(Timestamp),
    /// It is not for these rules to judge.
    NotJudged,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protected => write!(f, "protected"),
            Self::Held(until) => write!(f, "held until {until}"),
            Self::Rule { rule, number, count } => write!(f, "{rule} {number} of {count}"),
            Self::NewestAttempt => write!(f, "damaged, but nothing good is newer"),
            Self::Damaged { rule, number, count } => write!(f, "damaged; were it good: {rule} {number} of {count}"),
            Self::Young(until) => write!(f, "younger than the minimum age until {until}"),
            Self::NotJudged => write!(f, "not judged by these rules"),
        }
    }
}

/// Judges the points of one VM in one repository. Every point gets a verdict, whatever order they come in.
pub fn judge(points: &[Point], policy: &Policy, now: Timestamp) -> BTreeMap<BackupId, Verdict> {
    let mut series: BTreeMap<&Coverage, Vec<&Point>> = BTreeMap::new();
    for point in points {
        series.entry(&point.coverage).or_default().push(point);
    }
    let mut verdicts = BTreeMap::new();
    for mut points in series.into_values() {
        points.sort_by(|a, b| (b.completed_at, &b.backup_id).cmp(&(a.completed_at, &a.backup_id)));
        judge_series(&points, policy, now, &mut verdicts);
    }
    verdicts
}

/// Judges points of one coverage, newest first.
fn judge_series(points: &[&Point], policy: &Policy, now: Timestamp, verdicts: &mut BTreeMap<BackupId, Verdict>) {
    // What stays anyway takes no place of a rule.
    let ruled: Vec<&Point> = points.iter().copied().filter(|point| set_aside(point, now).is_none()).collect();
    let chosen = choose_despite_damage(&ruled, policy);
    for (at, point) in points.iter().enumerate() {
        let reason = set_aside(point, now)
            .or_else(|| (at == 0 && point.state == State::Bad).then_some(Reason::NewestAttempt))
            .or_else(|| chosen.get(&point.backup_id).copied())
            .or_else(|| {
                let of_age_at = policy.of_age_at(point.completed_at);
                (of_age_at > now).then_some(Reason::Young(of_age_at))
            });
        verdicts.insert(point.backup_id.clone(), reason.map_or(Verdict::Goes, Verdict::Stays));
    }
}

/// Lets the rules choose among the good points as if there were no others, and adds what damage must not cost: every point that the
/// rules would keep were nothing damaged at all, and those damaged ones that would stay were they alone good beside the good ones,
/// for one lost block may be all that is wrong with them. Of these the rules choose once more, so that one stays for a period, and
/// no more periods than the rules have.
///
/// So a good point never goes because another is damaged, nor does one because it is. Each of the three choices has no more points
/// than the rules keep, so damage makes of that number three times as many at most (twice, where no weeks are counted: periods that
/// nest let the first two choices have the same good points).
fn choose_despite_damage(points: &[&Point], policy: &Policy) -> BTreeMap<BackupId, Reason> {
    let is_good = |point: &Point| point.state == State::Good;
    let mut chosen = choose(points, policy);
    let good: Vec<&Point> = points.iter().copied().filter(|point| is_good(point)).collect();
    if good.len() == points.len() {
        return chosen;
    }
    let were_it_good = |bad: &Point| {
        let with_it = points.iter().copied().filter(|point| is_good(point) || point.backup_id == bad.backup_id);
        choose(&with_it.collect::<Vec<_>>(), policy).remove(&bad.backup_id)
    };
    let bad = points.iter().copied().filter(|point| !is_good(point));
    let (would_stay, why): (Vec<&Point>, Vec<Reason>) = bad.filter_map(|bad| Some((bad, were_it_good(bad)?))).unzip();
    let why: BTreeMap<&BackupId, Reason> = would_stay.iter().map(|point| &point.backup_id).zip(why).collect();
    chosen.extend(choose(&would_stay, policy));
    for (id, reason) in &mut chosen {
        *reason = why.get(id).copied().unwrap_or(*reason);
    }
    chosen.extend(choose(&good, policy));
    for bad in points.iter().filter(|point| !is_good(point)) {
        if let Some(reason) = chosen.get_mut(&bad.backup_id)
            && let Reason::Rule { rule, number, count } = *reason
        {
            *reason = Reason::Damaged { rule, number, count };
        }
    }
    chosen
}

/// Why a point is none of the rules' business.
fn set_aside(point: &Point, now: Timestamp) -> Option<Reason> {
    let held = point.hold_until.filter(|until| *until > now).map(Reason::Held);
    if point.protected { Some(Reason::Protected) } else { held }
}

/// Lets the rules choose, each after the one before it. A period in which an earlier rule keeps a point is covered: the rule
/// passes over it without counting. Of a period that it counts, it keeps the newest point, and lets the others go for good:
/// no later rule looks at them.
fn choose(candidates: &[&Point], policy: &Policy) -> BTreeMap<BackupId, Reason> {
    let mut chosen: BTreeMap<BackupId, Reason> = BTreeMap::new();
    let mut passed: BTreeSet<&BackupId> = BTreeSet::new();
    for rule in Rule::ALL {
        let count = policy.keep().count(rule);
        let period = |point: &Point| rule.period(point.completed_at, policy.zone());
        let covered: BTreeSet<Period> = candidates
            .iter()
            .filter(|point| chosen.contains_key(&point.backup_id))
            .filter_map(|point| period(point))
            .collect();
        let (mut counted, mut number): (BTreeSet<Period>, u32) = (BTreeSet::new(), 0);
        for point in candidates {
            if chosen.contains_key(&point.backup_id) || passed.contains(&point.backup_id) {
                continue;
            }
            let period = period(point);
            match period {
                Some(period) if covered.contains(&period) => continue,
                Some(period) if counted.contains(&period) => {
                    passed.insert(&point.backup_id);
                    continue;
                }
                _ if number == count => break,
                _ => counted.extend(period),
            }
            number += 1;
            chosen.insert(point.backup_id.clone(), Reason::Rule { rule, number, count });
        }
    }
    chosen
}
