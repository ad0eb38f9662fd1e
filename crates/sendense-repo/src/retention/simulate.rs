//! A policy played years ahead: how many points there will be, and what they take.
//!
//! What lives here: the play, with the very judgement and plan of a prune, and the merges and fulls that a hub makes by itself. What
//! does not: guesses; how often points are made and how large they are is told. Two that are merged count as both, and as a full at the
//! most: how many blocks they share nobody knows. Nor is the room counted that a merge takes while it works.
//!
//! Invariant: time and memory are bounded by [`POINTS_MAX`] and the days played.

use super::judge::{Coverage, Point, State, Verdict, judge};
use super::plan::{Fate, Member, plan};
use super::policy::Policy;
use crate::error::{Error, Result};
use sendense_types::{BackupId, Timestamp, VmContextId};
use std::collections::{BTreeMap, BTreeSet};

/// Points at once. A prune looks at each of them on every day that is played: 10,000 of them through 20 years take some
/// minutes, and more than that no machine should have.
pub const POINTS_MAX: usize = 10_000;

/// Days played: a century, as far ahead as anybody is answerable.
pub const DAYS_MAX: u32 = 36_525;

const DAY_SECONDS: i64 = 86_400;

/// How points are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// When the first is made, a full.
    pub begins_at: Timestamp,
    /// A point every so often, at least a minute.
    pub every_seconds: u32,
    /// After so many points a full begins a new chain; `None` for incrementals for ever, where what no rule keeps and a later point
    /// needs is merged into that one.
    pub full_every: Option<u32>,
    /// The newest point of a chain that has more is made a full, and a new chain begins with it; 0 for never.
    pub chain_points_max: u32,
    /// What a full takes.
    pub full_bytes: u64,
    /// What an incremental takes.
    pub incremental_bytes: u64,
}

/// How things stand after the prune of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// When.
    pub at: Timestamp,
    /// Points that retention keeps.
    pub kept: u64,
    /// Points that it does not keep, but that others stand on.
    pub needed: u64,
    /// What all of them take.
    pub bytes: u64,
}

/// What came of a play.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulation {
    /// After each day's prune.
    pub days: Vec<Standing>,
    /// The day of the largest size, which is what the repository must have room for; `None` when no day was played.
    pub peak: Option<Standing>,
    /// The points of the last day, oldest first, with what becomes of each and why.
    pub points: Vec<(Timestamp, Fate)>,
}

/// Plays `days` days: points are made as `growth` says, and at the end of each day those go that no rule keeps and no other
/// point needs.
///
/// # Errors
/// [`Kind::Invalid`](crate::Kind::Invalid) for more points or days than can be played, and for points made all too often.
pub fn simulate(policy: &Policy, growth: &Growth, days: u32) -> Result<Simulation> {
    if days > DAYS_MAX {
        return Err(Error::invalid(format!("at most {DAYS_MAX} days can be played")));
    }
    if growth.every_seconds < 60 || growth.full_every == Some(0) {
        return Err(Error::invalid("a point is made once a minute at the most, and a full every so many points"));
    }
    let vm: VmContextId = "simulated".parse().expect("a plain word is an id");
    let mut played = Simulation { days: Vec::new(), peak: None, points: Vec::new() };
    let (mut points, mut members): (Vec<Point>, Vec<Member>) = (Vec::new(), Vec::new());
    let (mut number, mut next, mut latest) = (0_u64, growth.begins_at, None::<BackupId>);
    for day in 1..=i64::from(days) {
        let ends_at = growth.begins_at.plus_seconds(day * DAY_SECONDS);
        while next < ends_at {
            if points.len() >= POINTS_MAX {
                let context = format!("at {next} there are {POINTS_MAX} points, more than can be played");
                return Err(Error::invalid(context));
            }
            let is_full = latest.is_none() || growth.full_every.is_some_and(|every| number % u64::from(every) == 0);
            let parent = latest.take().filter(|_| !is_full);
            let backup_id: BackupId = format!("p{number}").parse().expect("a letter and digits are an id");
            let bytes = if is_full { growth.full_bytes } else { growth.incremental_bytes };
            members.push(Member { backup_id: backup_id.clone(), parents: parent.into_iter().collect(), bytes });
            bound_chain(&mut members, growth);
            points.push(simulated(backup_id.clone(), next));
            latest = Some(backup_id);
            number += 1;
            next = next.plus_seconds(growth.every_seconds.into());
        }
        let verdicts = judge(&points, policy, ends_at);
        let pruned = plan(&vm, &members, &verdicts, &[], &BTreeMap::new());
        let gone: BTreeSet<BackupId> = pruned.going().map(|entry| entry.backup_id.clone()).collect();
        members.retain(|member| !gone.contains(&member.backup_id));
        if growth.full_every.is_none() {
            merge_away(&mut members, &verdicts, growth.full_bytes);
        }
        let there: BTreeSet<&BackupId> = members.iter().map(|member| &member.backup_id).collect();
        points.retain(|point| there.contains(&point.backup_id));
        let kept = points.iter().filter(|point| verdicts.get(&point.backup_id) != Some(&Verdict::Goes)).count() as u64;
        let standing = Standing {
            at: ends_at,
            kept,
            needed: points.len() as u64 - kept,
            bytes: members.iter().map(|member| member.bytes).fold(0, u64::saturating_add),
        };
        if played.peak.is_none_or(|peak| peak.bytes < standing.bytes) {
            played.peak = Some(standing);
        }
        played.days.push(standing);
        if day == i64::from(days) {
            let mut fates: BTreeMap<BackupId, Fate> =
                pruned.entries.into_iter().map(|entry| (entry.backup_id, entry.fate)).collect();
            let told = points.iter().filter_map(|point| Some((point.completed_at, fates.remove(&point.backup_id)?)));
            played.points = told.collect();
        }
    }
    Ok(played)
}

/// Ends the newest point's chain with it, if that has become too long.
fn bound_chain(members: &mut [Member], growth: &Growth) {
    let Some((newest, below)) = members.split_last_mut() else { return };
    if growth.chain_points_max == 0 {
        return;
    }
    // Each stands on one that was made before it.
    let (mut points, mut parent) = (1, newest.parents.first());
    for member in below.iter().rev() {
        if parent == Some(&member.backup_id) {
            (points, parent) = (points + 1, member.parents.first());
        }
    }
    if points > growth.chain_points_max {
        newest.parents.clear();
        newest.bytes = growth.full_bytes;
    }
}

/// Merges what no rule keeps into the one point that stands on it.
fn merge_away(members: &mut Vec<Member>, verdicts: &BTreeMap<BackupId, Verdict>, full_bytes: u64) {
    // Oldest first: what goes has handed its parents on before the next one is looked at.
    let mut at = 0;
    while at < members.len() {
        let id = &members[at].backup_id;
        if verdicts.get(id) != Some(&Verdict::Goes) {
            at += 1;
            continue;
        }
        let above: Vec<usize> = (at + 1..members.len()).filter(|above| members[*above].parents.contains(id)).collect();
        let [above] = above[..] else {
            at += 1;
            continue;
        };
        let going = members.remove(at);
        let successor = &mut members[above - 1];
        let most = full_bytes.max(going.bytes).max(successor.bytes);
        successor.bytes = successor.bytes.saturating_add(going.bytes).min(most);
        successor.parents = going.parents;
    }
}

fn simulated(backup_id: BackupId, completed_at: Timestamp) -> Point {
    Point { backup_id, completed_at, state: State::Good, protected: false, hold_until: None, coverage: Coverage::Whole }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::Keep;
    use jiff::tz::TimeZone;

    const DAY: u32 = 86_400;

    fn growth(full_every: Option<u32>) -> Growth {
        Growth {
            begins_at: "2030-01-01T00:00:00Z".parse().unwrap(),
            every_seconds: DAY,
            full_every,
            chain_points_max: 0,
            full_bytes: 1000,
            incremental_bytes: 10,
        }
    }

    fn policy(keep: Keep) -> Policy {
        Policy::new(keep, TimeZone::UTC, 0).unwrap()
    }

    #[test]
    fn fulls_alone_are_just_what_the_rules_keep() {
        let keep = Keep { last: 3, weekly: 4, ..Keep::default() };
        let played = simulate(&policy(keep), &growth(Some(1)), 100).unwrap();
        let last = played.days[99];
        assert_eq!((last.kept, last.needed, last.bytes), (7, 0, 7000));
        assert_eq!(played.days.iter().map(|day| day.kept).take(4).collect::<Vec<_>>(), [1, 2, 3, 3]);
        assert_eq!(played.peak.unwrap().bytes, 7000);
        assert_eq!(played.points.len(), 7);
        assert_eq!(played.points[6].1.to_string(), "keep-last 1 of 3");
    }

    #[test]
    fn of_incrementals_for_ever_what_no_rule_keeps_is_merged() {
        let keep = Keep { last: 3, ..Keep::default() };
        let played = simulate(&policy(keep), &growth(None), 50).unwrap();
        let last = played.days[49];
        // The oldest has become a full, which takes no more than a full.
        assert_eq!((last.kept, last.needed, last.bytes), (3, 0, 1000 + 2 * 10));
        assert_eq!(played.peak.unwrap().bytes, 1000 + 2 * 10);
        assert_eq!(played.points[0].1.to_string(), "keep-last 3 of 3");
        // A month's point holds what changed in the month, up to a full.
        let keep = Keep { last: 1, monthly: 4, ..Keep::default() };
        let played = simulate(&policy(keep), &Growth { incremental_bytes: 50, ..growth(None) }, 120).unwrap();
        let last = played.days[119];
        // Until the end of April, the full with January's end, then 28, 31 and 30 days of 50, none more than a full.
        assert_eq!((last.kept, last.needed, last.bytes), (4, 0, 4 * 1000));
        let played = simulate(&policy(keep), &growth(None), 120).unwrap();
        assert_eq!(played.days[119].bytes, 1000 + (28 + 31 + 30) * 10);
    }

    #[test]
    fn a_chain_that_is_too_long_ends_with_a_full() {
        let keep = Keep { last: 25, ..Keep::default() };
        let played = simulate(&policy(keep), &Growth { chain_points_max: 10, ..growth(None) }, 200).unwrap();
        for day in &played.days[60..] {
            let fulls = day.bytes / 1000;
            // Every tenth or so is a full, and the oldest is one by what was merged into it.
            assert!((3..=4).contains(&fulls), "{day:?}");
            assert_eq!((day.kept, day.needed, day.bytes), (25, 0, fulls * 1000 + (25 - fulls) * 10));
        }
        let unbounded = simulate(&policy(keep), &growth(None), 200).unwrap();
        assert_eq!(unbounded.peak.unwrap().bytes, 1000 + 24 * 10);
    }

    #[test]
    fn whole_chains_go_once_nothing_of_them_is_kept() {
        // Chains of seven; the newest three points are kept, so at the end of a day there are at most one chain and two points.
        let keep = Keep { last: 3, ..Keep::default() };
        let played = simulate(&policy(keep), &growth(Some(7)), 70).unwrap();
        let points: Vec<u64> = played.days[60..68].iter().map(|day| day.kept + day.needed).collect();
        // Day 63 ends a chain; while the next has one or two points, the newest three need the old one too.
        assert_eq!(points, [5, 6, 7, 8, 9, 3, 4, 5]);
        assert_eq!(played.peak.unwrap().bytes, 2 * 1000 + 7 * 10);
    }

    #[test]
    fn what_cannot_be_played_is_refused() {
        let keep = policy(Keep { last: 1, ..Keep::default() });
        for (growth, days) in [
            (growth(None), DAYS_MAX + 1),
            (Growth { every_seconds: 59, ..growth(None) }, 1),
            (growth(Some(0)), 1),
            (Growth { every_seconds: 60, ..growth(Some(20_000)) }, 8),
        ] {
            assert_eq!(simulate(&keep, &growth, days).unwrap_err().kind, crate::Kind::Invalid, "{growth:?}");
        }
        let nothing = simulate(&keep, &growth(None), 0).unwrap();
        assert_eq!((nothing.days.len(), nothing.peak), (0, None));
    }
}
