//! Schedules against tables of moments worked out by hand, at both ends of daylight saving, and against a stupid model.

use super::*;
use expect_test::{Expect, expect};
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use sendense_types::Timestamp;
use std::fmt::Write;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn berlin() -> TimeZone {
    time_zone("Europe/Berlin").expect("the Debian package tzdata is installed")
}

fn cron(expression: &str) -> When {
    When::cron(expression, berlin()).unwrap()
}

fn schedule(when: When) -> Schedule {
    let since = at("2027-01-01T00:00:00Z");
    Schedule { id: "sch-1".to_owned(), when, window: None, jitter_seconds: 0, catch_up: CatchUp::Once, since }
}

/// The occurrences of two days from a moment on, by the clock of Berlin.
fn check(when: &When, from: &str, expected: Expect) {
    let (mut text, until) = (String::new(), at(from).plus_seconds(2 * 86_400));
    let mut next = when.next_after(at(from));
    while let Some(due) = next.filter(|due| *due < until) {
        writeln!(text, "{}", due.to_jiff().to_zoned(berlin()).strftime("%a %d %H:%M %:z")).unwrap();
        assert_eq!(when.newest(at(from), due), Some(due), "looking back finds what looking ahead found");
        next = when.next_after(due);
    }
    expected.assert_eq(&text);
}

// In Berlin the clocks go from 02:00 to 03:00 on 2027-03-28, and from 03:00 to 02:00 on 2027-10-31.

#[test]
fn an_hour_that_does_not_exist_begins_at_its_end() {
    check(
        &cron("30 2 * * *"),
        "2027-03-27T00:00:00Z",
        expect![[r#"
            Sat 27 02:30 +01:00
            Sun 28 03:00 +02:00
        "#]],
    );
}

#[test]
fn an_hour_that_happens_twice_is_meant_once() {
    check(
        &cron("30 2 * * *"),
        "2027-10-30T12:00:00Z",
        expect![[r#"
            Sun 31 02:30 +02:00
            Mon 01 02:30 +01:00
        "#]],
    );
}

#[test]
fn every_hour_is_every_hour_on_a_day_of_25() {
    check(
        &cron("0 0-5 * * *"),
        "2027-10-30T20:00:00Z",
        expect![[r#"
            Sun 31 00:00 +02:00
            Sun 31 01:00 +02:00
            Sun 31 02:00 +02:00
            Sun 31 02:00 +01:00
            Sun 31 03:00 +01:00
            Sun 31 04:00 +01:00
            Sun 31 05:00 +01:00
            Mon 01 00:00 +01:00
            Mon 01 01:00 +01:00
            Mon 01 02:00 +01:00
            Mon 01 03:00 +01:00
            Mon 01 04:00 +01:00
            Mon 01 05:00 +01:00
        "#]],
    );
    let hours = |from: &str, until: &str| {
        let hourly = schedule(cron("0 * * * *"));
        preview(&hourly, at(from), at(until), 100).len()
    };
    assert_eq!(hours("2027-10-30T22:00:00Z", "2027-10-31T23:00:00Z"), 25, "a day of 25 hours in Berlin");
    assert_eq!(hours("2027-03-27T23:00:00Z", "2027-03-28T22:00:00Z"), 23, "a day of 23 hours in Berlin");
}

#[test]
fn every_so_many_hours_is_so_many_hours_whatever_clocks_show() {
    check(
        &When::every(12 * 3600, at("2027-03-27T11:00:00Z")).unwrap(),
        "2027-03-27T11:00:00Z",
        expect![[r#"
            Sun 28 00:00 +01:00
            Sun 28 13:00 +02:00
            Mon 29 01:00 +02:00
        "#]],
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    for expression in ["", "every day", "61 * * * *", "0 0 30 2 *", "* * * * * *", "0 0 1 1 * 2030", &"1,".repeat(200)]
    {
        assert!(When::cron(expression, berlin()).is_err(), "{expression}");
    }
    for expression in ["@daily", "0 22 * * MON-FRI", "0 3 L * *", "15 4 * * SUN#1"] {
        assert!(When::cron(expression, berlin()).is_ok(), "{expression}");
    }
    assert!(When::every(59, at("2027-01-01T00:00:00Z")).is_err());
    assert!(time_zone("Mars/Base").is_err());
    for (from, until) in [("22:00", "22:00"), ("24:00", "06:00"), ("9:00", "10:00"), ("aa:00", "10:00"), ("22", "23")] {
        assert!(Window::new(from, until, &[], berlin()).is_err(), "{from} {until}");
    }
}

#[test]
fn windows_open_and_close_by_the_clock() {
    let nights = Window::new("22:00", "06:00", &[Weekday::Friday, Weekday::Saturday], berlin()).unwrap();
    // Friday 2027-03-26 and Saturday; the second night has nine hours of the clock, and seven of time.
    for (moment, closes) in [
        ("2027-03-26T20:59:59Z", None),
        ("2027-03-26T21:00:00Z", Some("2027-03-27T05:00:00Z")),
        ("2027-03-27T04:59:59Z", Some("2027-03-27T05:00:00Z")),
        ("2027-03-27T05:00:00Z", None),
        ("2027-03-28T01:30:00Z", Some("2027-03-28T04:00:00Z")),
        ("2027-03-28T21:00:00Z", None),
    ] {
        assert_eq!(nights.closes_at(at(moment)), closes.map(at), "{moment}");
        assert_eq!(nights.is_open(at(moment)), closes.is_some());
    }
    assert_eq!(nights.opens_after(at("2027-03-28T05:00:00Z")), Some(at("2027-04-02T20:00:00Z")));
    // A window whose first half hour the clocks skip opens when the hour that is there begins.
    let early = Window::new("02:30", "04:00", &[], berlin()).unwrap();
    assert_eq!(early.opens_after(at("2027-03-28T00:00:00Z")), Some(at("2027-03-28T01:30:00Z")));
    let day = Window::new("08:00", "18:00", &[], TimeZone::UTC).unwrap();
    assert!(day.is_open(at("2027-01-01T08:00:00Z")) && !day.is_open(at("2027-01-01T18:00:00Z")));
}

#[test]
fn what_is_due_is_run_once() {
    let daily = schedule(cron("0 3 * * *"));
    let due = at("2027-05-01T01:00:00Z");
    let before = History { handled: Some(at("2027-04-30T01:00:00Z")), is_running: false };
    assert_eq!(decide(&daily, before, due.plus_seconds(-1)), Decision::Wait(Some(due)));
    for late in [0, 1, GRACE_SECONDS] {
        assert_eq!(decide(&daily, before, due.plus_seconds(late)), Decision::Run { due, is_late: false });
    }
    let after = History { handled: Some(due), is_running: true };
    assert_eq!(decide(&daily, after, due.plus_seconds(1)), Decision::Wait(Some(at("2027-05-02T01:00:00Z"))));
    // What was due before the schedule was there is none of its business.
    let new = Schedule { since: due.plus_seconds(60), ..daily };
    assert_eq!(
        decide(&new, History::default(), due.plus_seconds(90)),
        Decision::Wait(Some(at("2027-05-02T01:00:00Z")))
    );
}

#[test]
fn what_was_missed_is_caught_up_with_once_or_left_out() {
    let hourly = schedule(cron("0 * * * *"));
    let before = History { handled: Some(at("2027-05-01T00:00:00Z")), is_running: false };
    let now = at("2027-05-04T10:20:00Z");
    let newest = at("2027-05-04T10:00:00Z");
    assert_eq!(decide(&hourly, before, now), Decision::Run { due: newest, is_late: true });
    let strict = Schedule { catch_up: CatchUp::Skip, ..hourly };
    assert_eq!(decide(&strict, before, now), Decision::Skip { due: newest, why: Skipped::Missed });
    let told = History { handled: Some(newest), is_running: false };
    assert_eq!(decide(&strict, told, now), Decision::Wait(Some(at("2027-05-04T11:00:00Z"))));
    // A hub that was away for a month finds the newest of a monthly one, too.
    let monthly = schedule(cron("0 3 1 * *"));
    let now = at("2027-05-28T10:00:00Z");
    let before = History { handled: Some(at("2027-03-01T02:00:00Z")), is_running: false };
    assert_eq!(decide(&monthly, before, now), Decision::Run { due: at("2027-05-01T01:00:00Z"), is_late: true });
}

#[test]
fn runs_do_not_pile_up() {
    let hourly = schedule(cron("0 * * * *"));
    let busy = History { handled: Some(at("2027-05-01T00:00:00Z")), is_running: true };
    let due = at("2027-05-01T01:00:00Z");
    assert_eq!(decide(&hourly, busy, due), Decision::Skip { due, why: Skipped::StillRunning });
}

#[test]
fn a_shut_window_leaves_out_what_is_due_and_holds_back_what_is_late() {
    let window = Window::new("20:00", "06:00", &[], berlin()).unwrap();
    let schedule =
        Schedule { window: Some(window), ..schedule(When::every(6 * 3600, at("2027-05-01T00:00:00Z")).unwrap()) };
    let history = |handled: &str| History { handled: Some(at(handled)), is_running: false };
    let noon = at("2027-05-01T12:00:00Z");
    assert_eq!(
        decide(&schedule, history("2027-05-01T06:00:00Z"), noon),
        Decision::Skip { due: noon, why: Skipped::OutsideWindow }
    );
    // The one of 12:00 was missed; it waits for 20:00 in Berlin, but the one of 18:00 comes first.
    let now = at("2027-05-01T13:00:00Z");
    assert_eq!(
        decide(&schedule, history("2027-05-01T06:00:00Z"), now),
        Decision::Wait(Some(at("2027-05-01T18:00:00Z")))
    );
    let evening = at("2027-05-01T18:00:00Z");
    assert_eq!(
        decide(&schedule, history("2027-05-01T06:00:00Z"), evening.plus_seconds(600)),
        Decision::Run { due: evening, is_late: true }
    );
    let days = preview(&schedule, at("2027-05-01T00:00:00Z"), at("2027-05-02T00:00:00Z"), 10);
    assert_eq!(days.iter().map(|one| one.may_begin).collect::<Vec<_>>(), [false, false, true, true]);
}

#[test]
fn beginnings_are_spread_and_always_the_same() {
    let due = at("2027-05-01T01:00:00Z");
    let begins_at = |number: u32| {
        let one = Schedule { id: format!("sch-{number}"), jitter_seconds: 600, ..schedule(cron("0 3 * * *")) };
        assert_eq!(one.begins_at(due), one.begins_at(due));
        one.begins_at(due).seconds_since(due)
    };
    let all: Vec<f64> = (0..1000).map(begins_at).collect();
    assert!(all.iter().all(|put_off| (0.0..=600.0).contains(put_off)));
    // Ten parts of a minute each: a hundred in each on average, and far from none in any.
    for part in 0..10 {
        let minute = f64::from(part) * 60.0..f64::from(part + 1) * 60.0;
        let count = all.iter().filter(|put_off| minute.contains(put_off)).count();
        assert!((50..200).contains(&count), "{count} in part {part}");
    }
    let put_off = Schedule { jitter_seconds: 600, ..schedule(cron("0 3 * * *")) };
    let begins_at = put_off.begins_at(due);
    assert!(begins_at > due, "this schedule is put off, or the test shows nothing");
    let before = History { handled: Some(at("2027-04-30T01:00:00Z")), is_running: false };
    assert_eq!(decide(&put_off, before, begins_at.plus_seconds(-1)), Decision::Wait(Some(begins_at)));
    assert_eq!(decide(&put_off, before, begins_at), Decision::Run { due, is_late: false });
}

/// One that was overtaken would never be run, and nobody would be told.
#[test]
fn a_jitter_larger_than_the_interval_lets_no_occurrence_overtake_another() {
    let from = at("2027-01-15T00:00:00Z");
    for when in [cron("*/30 * * * *"), cron("* * * * *"), When::every(1800, from).unwrap()] {
        let schedule = Schedule { jitter_seconds: 3600, ..schedule(when) };
        let told = preview(&schedule, from, from.plus_seconds(86_400), 2000);
        assert!(told.iter().any(|one| one.begins_at > one.due), "some are put off");
        for pair in told.windows(2) {
            assert!(pair[0].begins_at < pair[1].due, "{pair:?}");
            let history = History { handled: Some(pair[0].due.plus_seconds(-1)), is_running: false };
            let decision = decide(&schedule, history, pair[0].begins_at);
            assert_eq!(decision, Decision::Run { due: pair[0].due, is_late: false });
        }
    }
}

proptest! {
    /// A schedule that is asked every now and then, with pauses and runs of any length: each occurrence is handled at most
    /// once and in order, nothing begins before it is due, and whoever waits as long as he is told misses nothing.
    #[test]
    fn asked_at_any_times_it_handles_each_occurrence_once(
        expression in prop::sample::select(vec!["*/7 * * * *", "0 * * * *", "30 2 * * *", "0 */5 * * *", "15 1 * * 0"]),
        pauses in prop::collection::vec((0..40_000i64, any::<bool>()), 1..60),
        jitter_seconds in prop::sample::select(vec![0u32, 300, 3600]),
        skip: bool,
        spring: bool,
    ) {
        let since = at(if spring { "2027-03-26T00:00:00Z" } else { "2027-10-29T00:00:00Z" });
        let catch_up = if skip { CatchUp::Skip } else { CatchUp::Once };
        let schedule = Schedule { since, jitter_seconds, catch_up, ..schedule(cron(expression)) };
        let (mut now, mut history) = (since, History::default());
        for (pause, is_running) in pauses {
            now = now.plus_seconds(pause);
            history.is_running = is_running;
            match decide(&schedule, history, now) {
                Decision::Run { due, .. } | Decision::Skip { due, .. } => {
                    prop_assert!(schedule.begins_at(due) <= now && due > history.handled.unwrap_or(since));
                    prop_assert_eq!(schedule.when.next_after(due.plus_seconds(-1)), Some(due), "it is an occurrence");
                    history.handled = Some(due);
                }
                Decision::Wait(until) => {
                    let until = until.unwrap();
                    prop_assert!(until > now);
                    let early = decide(&schedule, history, until.plus_seconds(-1).max(now));
                    prop_assert!(matches!(early, Decision::Wait(_)), "{early:?}");
                    let then = decide(&schedule, history, until);
                    prop_assert!(!matches!(then, Decision::Wait(_)), "{then:?}");
                }
            }
        }
    }

    #[test]
    fn any_text_is_an_expression_or_refused(text in ".{0,40}", fields in "[0-9*/,L#W -]{1,30}") {
        for text in [text, fields] {
            if let Ok(when) = When::cron(&text, TimeZone::UTC) {
                prop_assert!(when.next_after(at("2027-01-01T00:00:00Z")).is_some());
            }
        }
    }
}
