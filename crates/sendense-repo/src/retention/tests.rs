//! Retention against tables of timelines with answers worked out by hand, and against a stupid model.

use super::*;
use crate::lock::{Claim, Operation};
use expect_test::{Expect, expect};
use jiff::tz::TimeZone;
use proptest::prelude::*;
use sendense_types::{BackupId, DiskNumber, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Later than every point of the tables.
const NOW: &str = "2030-01-01T00:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn point(completed_at: Timestamp) -> Point {
    Point {
        backup_id: format!("p{}", completed_at.as_micros()).parse().unwrap(),
        completed_at,
        state: State::Good,
        protected: false,
        hold_until: None,
        coverage: Coverage::Whole,
    }
}

fn points(moments: &[&str]) -> Vec<Point> {
    moments.iter().map(|text| point(at(text))).collect()
}

fn zone(name: &str) -> TimeZone {
    time_zone(name).expect("the Debian package tzdata is installed")
}

fn utc(keep: Keep) -> Policy {
    Policy::new(keep, TimeZone::UTC, 0).unwrap()
}

/// Every point, oldest first, with what is said of it.
fn told(points: &[Point], policy: &Policy) -> String {
    let verdicts = judge(points, policy, at(NOW));
    let mut points: Vec<&Point> = points.iter().collect();
    points.sort_by_key(|point| point.completed_at);
    let mut text = String::new();
    for point in points {
        match verdicts[&point.backup_id] {
            Verdict::Stays(reason) => writeln!(text, "{} {reason}", point.completed_at).unwrap(),
            Verdict::Goes => writeln!(text, "{} goes", point.completed_at).unwrap(),
        }
    }
    text
}

fn check(moments: &[&str], keep: Keep, expected: Expect) {
    expected.assert_eq(&told(&points(moments), &utc(keep)));
}

const HOURS: [&str; 6] = [
    "2019-11-15T09:39:15Z",
    "2019-11-15T10:49:15Z",
    "2019-11-15T10:59:15Z",
    "2019-11-15T11:39:15Z",
    "2019-11-15T11:49:15Z",
    "2019-11-15T11:59:15Z",
];

#[test]
fn hours_keep_their_newest() {
    check(
        &HOURS,
        Keep { hourly: 3, ..Keep::default() },
        expect![[r#"
            2019-11-15T09:39:15Z keep-hourly 3 of 3
            2019-11-15T10:49:15Z goes
            2019-11-15T10:59:15Z keep-hourly 2 of 3
            2019-11-15T11:39:15Z goes
            2019-11-15T11:49:15Z goes
            2019-11-15T11:59:15Z keep-hourly 1 of 3
        "#]],
    );
    check(
        &HOURS,
        Keep { hourly: 2, ..Keep::default() },
        expect![[r#"
            2019-11-15T09:39:15Z goes
            2019-11-15T10:49:15Z goes
            2019-11-15T10:59:15Z keep-hourly 2 of 2
            2019-11-15T11:39:15Z goes
            2019-11-15T11:49:15Z goes
            2019-11-15T11:59:15Z keep-hourly 1 of 2
        "#]],
    );
}

const MONTHS: [&str; 9] = [
    "2018-11-15T11:59:15Z",
    "2019-11-15T11:59:15Z",
    "2019-11-21T11:59:15Z",
    "2019-11-22T11:59:15Z",
    "2019-11-29T11:59:15Z",
    "2019-12-01T11:59:15Z",
    "2019-12-02T11:59:15Z",
    "2019-12-03T11:59:15Z",
    "2019-12-04T11:59:15Z",
];

fn kept(moments: &[&str], keep: Keep) -> Vec<String> {
    let points = points(moments);
    let verdicts = judge(&points, &utc(keep), at(NOW));
    let stays = points.iter().filter(|point| verdicts[&point.backup_id] != Verdict::Goes);
    stays.map(|point| point.completed_at.to_string()[..10].to_owned()).collect()
}

/// A rule leaves alone what an earlier one covers, and looks for its own periods further back.
#[test]
fn each_rule_looks_only_at_what_is_left() {
    let none = Keep::default();
    assert_eq!(kept(&MONTHS, Keep { daily: 1, ..none }), ["2019-12-04"]);
    assert_eq!(kept(&MONTHS, Keep { last: 1, daily: 1, ..none }), ["2019-12-03", "2019-12-04"]);
    assert_eq!(kept(&MONTHS, Keep { daily: 1, weekly: 1, ..none }), ["2019-12-01", "2019-12-04"]);
    // The 29th fell to the week of the 1st, so November is kept by the 22nd.
    let all_three = Keep { daily: 1, weekly: 1, monthly: 1, ..none };
    assert_eq!(kept(&MONTHS, all_three), ["2019-11-22", "2019-12-01", "2019-12-04"]);
    assert_eq!(kept(&MONTHS, Keep { monthly: 1, yearly: 1, ..none }), ["2018-11-15", "2019-12-04"]);
}

const WEEK: [&str; 4] =
    ["2019-12-02T11:59:15Z", "2019-12-03T11:59:15Z", "2019-12-04T11:59:15Z", "2019-12-04T12:59:15Z"];

#[test]
fn a_period_without_points_costs_no_count() {
    let none = Keep::default();
    for (last, oldest) in [(4, 0), (3, 1), (2, 2), (1, 3)] {
        let days: Vec<&str> = WEEK[oldest..].iter().map(|text| &text[..10]).collect();
        assert_eq!(kept(&WEEK, Keep { last, ..none }), days);
    }
    assert_eq!(kept(&WEEK, Keep { last: 2, daily: 2, ..none }).len(), 4);
    assert_eq!(kept(&WEEK, Keep { daily: 3, ..none }), ["2019-12-02", "2019-12-03", "2019-12-04"]);
    assert_eq!(kept(&WEEK, Keep { daily: 2, ..none }), ["2019-12-03", "2019-12-04"]);
    for keep in [
        Keep { weekly: 5, ..none },
        Keep { daily: 1, weekly: 5, ..none },
        Keep { monthly: 6, ..none },
        Keep { yearly: 7, ..none },
        Keep { weekly: 5, monthly: 6, yearly: 7, ..none },
    ] {
        assert_eq!(kept(&WEEK, keep), ["2019-12-04"], "{keep:?}");
    }
    // A gap of years between two points is no reason to let the older one go.
    assert_eq!(kept(&["2012-01-01T00:00:00Z", "2019-01-01T00:00:00Z"], Keep { daily: 2, ..none }).len(), 2);
}

/// The example for ten years of archive: 3 last, 13 days, 8 weeks, 11 months, 9 years, one backup each day.
#[test]
fn ten_years_of_daily_backups() {
    let keep = Keep { last: 3, daily: 13, weekly: 8, monthly: 11, yearly: 9, ..Keep::default() };
    let newest = at("2029-12-31T21:00:00Z");
    let daily: Vec<Point> = (0..12 * 366).map(|day| point(newest.plus_seconds(-day * 86_400))).collect();
    let verdicts = judge(&daily, &utc(keep), at(NOW));
    let mut counts: BTreeMap<Rule, u32> = BTreeMap::new();
    for verdict in verdicts.values() {
        if let Verdict::Stays(Reason::Rule { rule, .. }) = verdict {
            *counts.entry(*rule).or_default() += 1;
        }
    }
    let expected = [(Rule::Last, 3), (Rule::Daily, 13), (Rule::Weekly, 8), (Rule::Monthly, 11), (Rule::Yearly, 9)];
    assert_eq!(counts, BTreeMap::from(expected));
    // The last three and thirteen further days are sixteen days without a gap.
    let kept: Vec<&Point> = daily.iter().filter(|point| verdicts[&point.backup_id] != Verdict::Goes).collect();
    assert_eq!(kept[15].completed_at, newest.plus_seconds(-15 * 86_400));
    // 2028, covered by months, needs no place of the years: the ninth is 2019's last day.
    assert_eq!(kept[43].completed_at.to_string(), "2019-12-31T21:00:00Z");
}

#[test]
fn weeks_are_iso_weeks_across_new_year() {
    // Monday 2018-12-31 to Sunday 2019-01-06 is week 1 of 2019; Sunday 2018-12-30 ends week 52.
    check(
        &["2018-12-30T12:00:00Z", "2018-12-31T12:00:00Z", "2019-01-06T12:00:00Z"],
        Keep { weekly: 9, ..Keep::default() },
        expect![[r#"
            2018-12-30T12:00:00Z keep-weekly 2 of 9
            2018-12-31T12:00:00Z goes
            2019-01-06T12:00:00Z keep-weekly 1 of 9
        "#]],
    );
}

/// In Berlin a day may have 23 or 25 hours, and begins in the evening of UTC's day before.
#[test]
fn days_and_hours_are_those_of_the_time_zone() {
    let berlin = |keep| Policy::new(keep, zone("Europe/Berlin"), 0).unwrap();
    // 2026-03-29 begins at 23:00Z and ends at 22:00Z.
    let spring =
        points(&["2026-03-28T22:30:00Z", "2026-03-28T23:30:00Z", "2026-03-29T21:30:00Z", "2026-03-29T22:30:00Z"]);
    expect![[r#"
        2026-03-28T22:30:00Z keep-daily 3 of 9
        2026-03-28T23:30:00Z goes
        2026-03-29T21:30:00Z keep-daily 2 of 9
        2026-03-29T22:30:00Z keep-daily 1 of 9
    "#]]
    .assert_eq(&told(&spring, &berlin(Keep { daily: 9, ..Keep::default() })));
    // 2026-10-25: the clock shows two o'clock twice, at 00:30Z and 01:30Z. That is one hour of the wall clock.
    let autumn = points(&["2026-10-24T23:30:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]);
    expect![[r#"
        2026-10-24T23:30:00Z keep-hourly 2 of 9
        2026-10-25T00:30:00Z goes
        2026-10-25T01:30:00Z keep-hourly 1 of 9
    "#]]
    .assert_eq(&told(&autumn, &berlin(Keep { hourly: 9, ..Keep::default() })));
    assert_eq!(time_zone("Europe/Sendense").unwrap_err().kind, crate::Kind::Invalid);
}

#[test]
fn what_a_person_keeps_takes_no_place_of_a_rule() {
    let mut points = points(&WEEK);
    points[3].protected = true;
    points[2].hold_until = Some(at("2030-01-01T00:00:01Z"));
    points[1].hold_until = Some(at(NOW));
    expect![[r#"
        2019-12-02T11:59:15Z goes
        2019-12-03T11:59:15Z keep-last 1 of 1
        2019-12-04T11:59:15Z held until 2030-01-01T00:00:01Z
        2019-12-04T12:59:15Z protected
    "#]]
    .assert_eq(&told(&points, &utc(Keep { last: 1, ..Keep::default() })));
}

/// One rotten block must not cost a machine its history: what would stay were it good stays, beside as many good ones as ever.
#[test]
fn damaged_points_take_no_place_of_a_rule_and_stay_as_long_as_good_ones_would() {
    let mut points = points(&WEEK);
    points[3].state = State::Bad;
    points[1].state = State::Bad;
    expect![[r#"
        2019-12-02T11:59:15Z keep-last 2 of 2
        2019-12-03T11:59:15Z damaged; were it good: keep-last 2 of 2
        2019-12-04T11:59:15Z keep-last 1 of 2
        2019-12-04T12:59:15Z damaged, but nothing good is newer
    "#]]
    .assert_eq(&told(&points, &utc(Keep { last: 2, ..Keep::default() })));
}

/// A block of the full rots, and all that stands on it needs the block: the next backup heals, and a fortnight of points stays
/// until as many good ones have come after them.
#[test]
fn a_damaged_full_costs_no_point_of_its_chain() {
    let days = |first: i64, count: i64| {
        (first..first + count).map(|day| at("2029-01-01T22:00:00Z").plus_seconds(day * 86_400))
    };
    let policy = utc(Keep { daily: 14, ..Keep::default() });
    let mut points: Vec<Point> = days(0, 14).map(point).collect();
    for point in &mut points {
        point.state = State::Bad;
    }
    let damaged: BTreeSet<BackupId> = points.iter().map(|point| point.backup_id.clone()).collect();
    for (healed, moment) in days(14, 14).enumerate() {
        points.push(point(moment));
        let stays = staying(&points, &policy);
        let left = damaged.intersection(&stays).count();
        assert_eq!(left, if healed < 13 { 14 } else { 0 }, "{} good points", healed + 1);
        points.retain(|point| stays.contains(&point.backup_id));
    }
    assert_eq!(points.len(), 14);
}

/// All of a year's points but the first of each month are damaged: of each month one more stays.
#[test]
fn of_many_damaged_points_one_stays_for_a_period() {
    let daily = (0..365).map(|day| point(at("2029-01-01T22:00:00Z").plus_seconds(day * 86_400)));
    let mut points: Vec<Point> = daily.collect();
    for point in &mut points {
        let is_first = point.completed_at.to_string()[8..10] == *"01";
        point.state = if is_first { State::Good } else { State::Bad };
    }
    let stays = |keep| staying(&points, &utc(keep));
    let (none, ends) = (Keep::default(), |monthly: usize| monthly * 2);
    for monthly in [1, 6, 12] {
        assert_eq!(stays(Keep { monthly: monthly as u32, ..none }).len(), ends(monthly), "{monthly}");
    }
    // The newest damaged three, beside three good ones of which the last is two months old.
    assert_eq!(stays(Keep { daily: 3, ..none }).len(), 6);
    assert_eq!(stays(Keep { yearly: 1, ..none }).len(), 2);
}

#[test]
fn young_points_stay() {
    let points = points(&["2029-12-31T22:00:00Z", "2029-12-31T23:00:00Z", "2029-12-31T23:30:00Z"]);
    let policy = Policy::new(Keep { last: 1, ..Keep::default() }, TimeZone::UTC, 3600).unwrap();
    expect![[r#"
        2029-12-31T22:00:00Z goes
        2029-12-31T23:00:00Z goes
        2029-12-31T23:30:00Z keep-last 1 of 1
    "#]]
    .assert_eq(&told(&points, &policy));
    let policy = Policy::new(Keep { last: 1, ..Keep::default() }, TimeZone::UTC, 3601).unwrap();
    expect![[r#"
        2029-12-31T22:00:00Z goes
        2029-12-31T23:00:00Z younger than the minimum age until 2030-01-01T00:00:01Z
        2029-12-31T23:30:00Z keep-last 1 of 1
    "#]]
    .assert_eq(&told(&points, &policy));
}

/// A backup of one disk alone is no replacement for one of the machine.
#[test]
fn points_of_different_coverage_are_counted_apart() {
    let mut points = points(&WEEK);
    for number in [1, 3] {
        points[number].coverage = Coverage::Disks(BTreeSet::from([DiskNumber(1)]));
    }
    expect![[r#"
        2019-12-02T11:59:15Z goes
        2019-12-03T11:59:15Z goes
        2019-12-04T11:59:15Z keep-last 1 of 1
        2019-12-04T12:59:15Z keep-last 1 of 1
    "#]]
    .assert_eq(&told(&points, &utc(Keep { last: 1, ..Keep::default() })));
}

#[test]
fn a_policy_that_keeps_nothing_cannot_be_made() {
    assert_eq!(Policy::new(Keep::default(), TimeZone::UTC, 0).unwrap_err().kind, crate::Kind::Invalid);
}

/// Weeks do not nest in months, so here, as in Proxmox Backup Server, one week more keeps one month fewer.
#[test]
fn a_week_may_take_a_months_only_point() {
    let moments = ["2019-11-29T12:00:00Z", "2019-12-01T12:00:00Z"];
    assert_eq!(kept(&moments, Keep { monthly: 2, ..Keep::default() }).len(), 2);
    assert_eq!(kept(&moments, Keep { weekly: 1, monthly: 2, ..Keep::default() }).len(), 1);
}

/// The definition told the simplest way: names of periods as text, a mark per point, one pass per rule.
fn model(points: &[Point], keep: &Keep, zone: &TimeZone) -> BTreeSet<BackupId> {
    let formats = [
        (keep.last, "%s %f"),
        (keep.hourly, "%Y/%m/%d/%H"),
        (keep.daily, "%Y/%m/%d"),
        (keep.weekly, "%G/%V"),
        (keep.monthly, "%Y/%m"),
        (keep.yearly, "%Y"),
    ];
    let mut newest_first: Vec<&Point> = points.iter().collect();
    newest_first.sort_by_key(|point| std::cmp::Reverse((point.completed_at, point.backup_id.clone())));
    let mut marks: BTreeMap<&BackupId, bool> = BTreeMap::new();
    for (count, format) in formats {
        let name = |point: &Point| point.completed_at.to_jiff().to_zoned(zone.clone()).strftime(format).to_string();
        let is_kept = |point: &&&Point| marks.get(&point.backup_id) == Some(&true);
        let before: Vec<String> = newest_first.iter().filter(is_kept).map(|point| name(point)).collect();
        let mut mine: Vec<String> = Vec::new();
        for point in &newest_first {
            let name = name(point);
            if marks.contains_key(&point.backup_id) || before.contains(&name) {
                continue;
            }
            if mine.contains(&name) {
                marks.insert(&point.backup_id, false);
            } else if mine.len() < count as usize {
                marks.insert(&point.backup_id, true);
                mine.push(name);
            } else {
                break;
            }
        }
    }
    marks.into_iter().filter(|(_, keep)| *keep).map(|(id, _)| id.clone()).collect()
}

/// Points around two changes of the clock and a new year, at distances from minutes to months.
fn timelines() -> impl Strategy<Value = Vec<Point>> {
    let gap_minutes = prop_oneof![1..90i64, 60..3000i64, 1440..60_000i64];
    prop::collection::vec(gap_minutes, 1..60).prop_map(|gaps| {
        let mut moment = at("2026-04-02T00:00:00Z");
        gaps.into_iter()
            .map(|minutes| {
                moment = moment.plus_seconds(-minutes * 60);
                point(moment)
            })
            .collect()
    })
}

fn keeps() -> impl Strategy<Value = Keep> {
    [0..5u32, 0..5u32, 0..5u32, 0..5u32, 0..5u32, 0..3u32]
        .prop_map(|[last, hourly, daily, weekly, monthly, yearly]| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        })
        .prop_filter("keeps something", |keep| *keep != Keep::default())
}

fn zones() -> impl Strategy<Value = TimeZone> {
    // Half an hour of summer time, none at all, the usual, and a zone whose clock is turned at midnight.
    prop::sample::select(vec!["Australia/Lord_Howe", "UTC", "Europe/Berlin", "America/Santiago"]).prop_map(zone)
}

fn staying(points: &[Point], policy: &Policy) -> BTreeSet<BackupId> {
    let verdicts = judge(points, policy, at(NOW));
    verdicts.into_iter().filter(|(_, verdict)| *verdict != Verdict::Goes).map(|(id, _)| id).collect()
}

/// The same points, some of them protected, held, damaged or of one disk.
fn mixed(mut points: Vec<Point>, kinds: &[u8]) -> Vec<Point> {
    for (point, kind) in points.iter_mut().zip(kinds.iter().cycle()) {
        match kind {
            0 => point.protected = true,
            1 => point.hold_until = Some(at("2030-06-01T00:00:00Z")),
            2 => point.state = State::Bad,
            3 => point.coverage = Coverage::Disks(BTreeSet::from([DiskNumber(1)])),
            _ => {}
        }
    }
    points
}

fn id(number: usize) -> BackupId {
    format!("p{number}").parse().unwrap()
}

fn read_of(points: impl IntoIterator<Item = usize>) -> Claim {
    Claim {
        operation: Operation::Read,
        vm: "vm-1".parse().unwrap(),
        points: points.into_iter().map(id).collect(),
        who: "mount mnt-1".to_owned(),
    }
}

#[test]
fn what_is_needed_or_in_use_is_not_planned_to_go() {
    // 0 <- 1 <- 2 and 3 <- 4; the catalog does not know 5, which stands on nothing; nor does anything stand on 6.
    let members: Vec<Member> = [None, Some(0), Some(1), None, Some(3), None, None]
        .into_iter()
        .enumerate()
        .map(|(number, parent)| Member {
            backup_id: id(number),
            parents: parent.map(id).into_iter().collect(),
            bytes: 1,
        })
        .collect();
    let mut verdicts: BTreeMap<BackupId, Verdict> = [0, 1, 2, 3, 4, 6].map(|number| (id(number), Verdict::Goes)).into();
    verdicts.insert(id(1), Verdict::Stays(Reason::Protected));
    let busy = BTreeMap::from([(id(6), "recovery rcv-1 runs on it".to_owned())]);
    let mut text = String::new();
    for entry in plan(&"vm-1".parse().unwrap(), &members, &verdicts, &[read_of([3, 4])], &busy).entries {
        writeln!(text, "{} {}", entry.backup_id, entry.fate).unwrap();
    }
    expect![[r#"
        p6 in use: recovery rcv-1 runs on it
        p5 not in the catalog yet
        p4 in use: read by mount mnt-1
        p3 needed by p4
        p2 no rule keeps it
        p1 protected
        p0 needed by p1
    "#]]
    .assert_eq(&text);
}

proptest! {
    /// What goes is closed: nothing that stays stands on it. And it is all that may go: whatever else was let go is held by a
    /// point that stays, or by somebody who works with it.
    #[test]
    fn a_plan_takes_all_that_may_go_and_no_more(
        shape in prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..3), any::<bool>()), 1..40),
        used in prop::collection::btree_set(0..40usize, 0..4),
        recovered in prop::collection::btree_set(0..40usize, 0..4),
    ) {
        let members: Vec<Member> = shape.iter().enumerate().map(|(number, (parents, _))| {
            let parents = parents.iter().filter(|_| number > 0).map(|parent| id(parent.index(number))).collect();
            Member { backup_id: id(number), parents, bytes: 1 }
        }).collect();
        let verdict = |goes: bool| if goes { Verdict::Goes } else { Verdict::Stays(Reason::Protected) };
        let verdicts = shape.iter().enumerate().map(|(number, (_, goes))| (id(number), verdict(*goes))).collect();
        let busy = recovered.iter().map(|number| (id(*number), "recovery rcv-1 runs on it".to_owned())).collect();
        let plan = plan(&"vm-1".parse().unwrap(), &members, &verdicts, &[read_of(used.iter().copied())], &busy);
        let going: BTreeSet<&BackupId> = plan.going().map(|entry| &entry.backup_id).collect();
        prop_assert_eq!(plan.entries.len(), members.len());
        for (number, member) in members.iter().enumerate() {
            let has_staying_child = members
                .iter()
                .any(|child| child.parents.contains(&member.backup_id) && !going.contains(&child.backup_id));
            let is_used = used.contains(&number) || recovered.contains(&number);
            let may_go = shape[number].1 && !has_staying_child && !is_used;
            prop_assert_eq!(going.contains(&member.backup_id), may_go, "{}", member.backup_id);
        }
    }

    #[test]
    fn the_rules_choose_as_the_model_does(points in timelines(), keep in keeps(), zone in zones()) {
        let policy = Policy::new(keep, zone.clone(), 0).unwrap();
        prop_assert_eq!(staying(&points, &policy), model(&points, &keep, &zone));
    }

    #[test]
    fn done_twice_is_done_once(
        points in timelines(), kinds in prop::collection::vec(0..8u8, 1..9), keep in keeps(), zone in zones(),
    ) {
        let (points, policy) = (mixed(points, &kinds), Policy::new(keep, zone, 0).unwrap());
        let stays = staying(&points, &policy);
        let left: Vec<Point> = points.into_iter().filter(|point| stays.contains(&point.backup_id)).collect();
        prop_assert_eq!(staying(&left, &policy), stays);
    }

    #[test]
    fn a_good_point_of_each_coverage_stays(
        points in timelines(), kinds in prop::collection::vec(0..8u8, 1..9), keep in keeps(), zone in zones(),
    ) {
        let (points, policy) = (mixed(points, &kinds), Policy::new(keep, zone, 0).unwrap());
        let stays = staying(&points, &policy);
        let good = || points.iter().filter(|point| point.state == State::Good);
        let coverages: BTreeSet<&Coverage> = good().map(|point| &point.coverage).collect();
        for coverage in coverages {
            let newest = good().filter(|point| point.coverage == *coverage).max_by_key(|point| point.completed_at);
            prop_assert!(stays.contains(&newest.unwrap().backup_id), "{coverage:?}");
        }
    }

    /// Word of damage makes nothing go that the rules would keep were nothing damaged, and no good point at all. Where weeks are
    /// counted, which nest in no month, good ones are compared with what stays were nothing damaged.
    #[test]
    fn damage_makes_no_point_go(
        points in timelines(), kinds in prop::collection::vec(0..8u8, 1..9), keep in keeps(), zone in zones(),
        bad in prop::collection::vec(any::<prop::sample::Index>(), 1..9), weeks: bool,
    ) {
        let keep = if weeks { keep } else { Keep { weekly: 0, last: keep.last.max(1), ..keep } };
        let policy = Policy::new(keep, zone, 0).unwrap();
        let mut now = mixed(points, &kinds);
        let mut sound = now.clone();
        for point in &mut sound {
            point.state = State::Good;
        }
        let of_sound = staying(&sound, &policy);
        prop_assert!(of_sound.is_subset(&staying(&now, &policy)));
        // The first and only one: it stays when it would.
        let first = bad[0].index(sound.len());
        sound[first].state = State::Bad;
        let id = &sound[first].backup_id;
        prop_assert!(!of_sound.contains(id) || staying(&sound, &policy).contains(id), "itself");
        for number in bad {
            let before = staying(&now, &policy);
            let hurt = number.index(now.len());
            now[hurt].state = State::Bad;
            let after = staying(&now, &policy);
            let good = now.iter().filter(|point| point.state == State::Good).map(|point| point.backup_id.clone());
            let good: BTreeSet<BackupId> = good.collect();
            prop_assert!(weeks || before.intersection(&good).all(|id| after.contains(id)));
        }
    }

    /// However many points are damaged, of those that the rules keep there are twice as many at most as the rules say, and thrice
    /// where weeks are counted.
    #[test]
    fn damage_lets_no_more_stay_than_the_bound(
        mut points in timelines(), bad in prop::collection::vec(any::<bool>(), 1..9), keep in keeps(), zone in zones(),
    ) {
        for (point, bad) in points.iter_mut().zip(bad.iter().cycle()) {
            point.state = if *bad { State::Bad } else { State::Good };
        }
        let of_rules = keep.last + keep.hourly + keep.daily + keep.weekly + keep.monthly + keep.yearly;
        let times = if keep.weekly > 0 { 3 } else { 2 };
        let verdicts = judge(&points, &Policy::new(keep, zone, 0).unwrap(), at(NOW));
        let is_ruled = |verdict: &&Verdict| {
            matches!(verdict, Verdict::Stays(Reason::Rule { .. } | Reason::Damaged { .. }))
        };
        prop_assert!(verdicts.values().filter(is_ruled).count() <= (times * of_rules) as usize);
    }

    /// A smaller policy keeps no point that a larger one lets go. With weeks, this is so for the rules after the weeks.
    #[test]
    fn a_smaller_policy_keeps_no_more(
        points in timelines(), keep in keeps(), less in prop::array::uniform6(0..3u32), zone in zones(), weeks: bool,
    ) {
        let [last, hourly, daily, _, monthly, yearly] = less;
        let keep = if weeks { keep } else { Keep { weekly: 0, last: keep.last.max(1), ..keep } };
        let mut smaller = Keep {
            monthly: keep.monthly.saturating_sub(monthly),
            yearly: keep.yearly.saturating_sub(yearly),
            ..keep
        };
        if !weeks {
            smaller.last = keep.last.saturating_sub(last);
            smaller.hourly = keep.hourly.saturating_sub(hourly);
            smaller.daily = keep.daily.saturating_sub(daily);
        }
        prop_assume!(smaller != Keep::default());
        let (smaller, larger) = (Policy::new(smaller, zone.clone(), 0).unwrap(), Policy::new(keep, zone, 0).unwrap());
        prop_assert!(staying(&points, &smaller).is_subset(&staying(&points, &larger)));
    }

    #[test]
    fn a_minimum_age_only_adds(points in timelines(), keep in keeps(), age_days in 0..4000u64) {
        let without = utc(keep);
        let with = Policy::new(keep, TimeZone::UTC, age_days * 86_400).unwrap();
        prop_assert!(staying(&points, &without).is_subset(&staying(&points, &with)));
    }
}
