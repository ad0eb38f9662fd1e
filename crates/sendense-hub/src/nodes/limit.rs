//! What a node's blocks may take of its line, by the time of day.
//!
//! What lives here: reading a limit, and what holds at a moment. What does not: keeping to it, which the node does. Pure.
//! Invariant: a limit that was taken in can be read again, and says something at every moment.

use crate::app::schedules::weekday;
use crate::schedule::{Invalid, Window, time_zone};
use jiff::civil::Weekday;
use sendense_api::{LimitWindow, NodeLimit};
use sendense_types::Timestamp;

/// The slowest: at half of it a batch of blocks, half a MiB, takes two minutes, and a person who looks sees nothing move.
const BYTES_PER_SECOND_MIN: u64 = 8192;
/// The most windows: four of each day, and as many again.
const WINDOWS_MAX: usize = 32;

/// A limit that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    usual: Option<u64>,
    windows: Vec<(Window, Option<u64>)>,
}

impl Limit {
    /// Reads what somebody says.
    pub fn read(said: &NodeLimit) -> Result<Self, Invalid> {
        let zone = time_zone(said.time_zone.as_deref().unwrap_or("UTC"))?;
        if said.windows.len() > WINDOWS_MAX {
            return Err(Invalid::new(format!("a limit has at most {WINDOWS_MAX} windows")));
        }
        let rate = |rate: Option<u64>| match rate {
            Some(slow) if slow < BYTES_PER_SECOND_MIN => {
                Err(Invalid::new(format!("{slow} bytes per second are fewer than {BYTES_PER_SECOND_MIN}")))
            }
            rate => Ok(rate),
        };
        let windows = said.windows.iter().map(|window| {
            let LimitWindow { from, until, days, bytes_per_second } = window;
            let days: Vec<Weekday> = days.iter().map(|day| weekday(*day)).collect();
            Ok((Window::new(from, until, &days, zone.clone())?, rate(*bytes_per_second)?))
        });
        Ok(Self { usual: rate(said.bytes_per_second)?, windows: windows.collect::<Result<_, Invalid>>()? })
    }

    /// Bytes per second at a moment; none for as much as there is.
    pub fn at(&self, now: Timestamp) -> Option<u64> {
        let open = self.windows.iter().find(|(window, _)| window.is_open(now));
        open.map_or(self.usual, |(_, rate)| *rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_api::Day;

    fn window(from: &str, until: &str, days: &[Day], bytes_per_second: Option<u64>) -> LimitWindow {
        LimitWindow { from: from.to_owned(), until: until.to_owned(), days: days.to_vec(), bytes_per_second }
    }

    /// 5 MB/s, 1 MB/s at work, everything at night; in Berlin.
    fn limit() -> Limit {
        use Day::{Friday, Monday, Thursday, Tuesday, Wednesday};
        let work = window("08:00", "18:00", &[Monday, Tuesday, Wednesday, Thursday, Friday], Some(1_000_000));
        let night = window("22:00", "04:00", &[], None);
        let said = NodeLimit {
            bytes_per_second: Some(5_000_000),
            time_zone: Some("Europe/Berlin".to_owned()),
            windows: vec![work, night],
        };
        Limit::read(&said).unwrap()
    }

    #[track_caller]
    fn check(at: &str, megabytes: Option<u64>) {
        let at: jiff::Timestamp = at.parse().unwrap();
        assert_eq!(limit().at(at.into()), megabytes.map(|rate| rate * 1_000_000), "{at}");
    }

    #[test]
    fn a_window_holds_from_its_first_moment_to_its_last() {
        // Friday, winter: Berlin is an hour ahead.
        check("2026-11-20T06:59:59.999Z", Some(5));
        check("2026-11-20T07:00:00Z", Some(1));
        check("2026-11-20T16:59:59.999Z", Some(1));
        check("2026-11-20T17:00:00Z", Some(5));
        check("2026-11-20T21:00:00Z", None);
        // Saturday morning belongs to Friday's night; no work on Saturday.
        check("2026-11-21T02:59:59.999Z", None);
        check("2026-11-21T03:00:00Z", Some(5));
        check("2026-11-21T10:00:00Z", Some(5));
    }

    #[test]
    fn hours_are_those_of_the_clock_also_when_clocks_are_changed() {
        // On 29 March 2026 two o'clock becomes three: the night ends at 04:00, which is 02:00 UTC, an hour earlier than the day before.
        check("2026-03-28T02:59:59Z", None);
        check("2026-03-28T03:00:00Z", Some(5));
        check("2026-03-29T01:59:59Z", None);
        check("2026-03-29T02:00:00Z", Some(5));
        check("2026-03-30T06:00:00Z", Some(1));
        // On 25 October 2026 three o'clock becomes two: the night is an hour longer.
        check("2026-10-25T02:59:59Z", None);
        check("2026-10-25T03:00:00Z", Some(5));
    }

    #[test]
    fn the_first_window_counts_and_nonsense_is_refused() {
        let said = NodeLimit {
            windows: vec![window("00:00", "12:00", &[], Some(20_480)), window("06:00", "18:00", &[], Some(40_960))],
            ..NodeLimit::default()
        };
        let limit = Limit::read(&said).unwrap();
        let at = |hour: i8| {
            limit.at(jiff::civil::date(2026, 1, 1).at(hour, 0, 0, 0).in_tz("UTC").unwrap().timestamp().into())
        };
        assert_eq!([at(5), at(7), at(13), at(19)], [Some(20_480), Some(20_480), Some(40_960), None]);
        assert_eq!(Limit::read(&NodeLimit::default()).unwrap().at(Timestamp::from_micros(0)), None);
        let wrong = [
            NodeLimit { bytes_per_second: Some(8191), ..NodeLimit::default() },
            NodeLimit { time_zone: Some("Nowhere/At-all".to_owned()), ..NodeLimit::default() },
            NodeLimit { windows: vec![window("8", "9", &[], None)], ..NodeLimit::default() },
            NodeLimit { windows: vec![window("08:00", "08:00", &[], None)], ..NodeLimit::default() },
            NodeLimit { windows: vec![window("08:00", "09:00", &[], None); 33], ..NodeLimit::default() },
        ];
        for said in wrong {
            assert!(Limit::read(&said).is_err(), "{said:?}");
        }
    }
}
