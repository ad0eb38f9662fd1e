//! The hours in which something may begin.

use super::Invalid;
use jiff::ToSpan;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use sendense_types::Timestamp;
use std::collections::BTreeSet;

/// From an hour to an hour, by the clock of a zone, on some days of the week. One that ends before it begins ends on the next
/// day, and belongs to the day on which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    from: Time,
    until: Time,
    /// Days on which it opens, Monday being 1.
    days: BTreeSet<i8>,
    zone: TimeZone,
}

impl Window {
    /// A window; no days mean every day.
    ///
    /// # Errors
    /// For hours that cannot be read, or are the same.
    pub fn new(from: &str, until: &str, days: &[Weekday], zone: TimeZone) -> Result<Self, Invalid> {
        let from = time(from)?;
        let until = time(until)?;
        if from == until {
            return Err(Invalid::new("a window begins and ends at different times"));
        }
        let every_day = 1..=7;
        let days = match days {
            [] => every_day.collect(),
            days => days.iter().map(|day| day.to_monday_one_offset()).collect(),
        };
        Ok(Self { from, until, days, zone })
    }

    /// True when the moment lies in it.
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.closes_at(at).is_some()
    }

    /// When the window that the moment lies in closes.
    pub fn closes_at(&self, at: Timestamp) -> Option<Timestamp> {
        let today = self.zone.to_datetime(at.to_jiff()).date();
        let yesterday = today.checked_sub(1.day()).ok()?;
        [yesterday, today].into_iter().find_map(|day| {
            let (opens, closes) = self.of(day)?;
            (opens <= at && at < closes).then_some(closes)
        })
    }

    /// When the next window opens after a moment.
    pub fn opens_after(&self, at: Timestamp) -> Option<Timestamp> {
        let today = self.zone.to_datetime(at.to_jiff()).date();
        // Within eight days there is one of each weekday that has not begun yet.
        (0..=8).find_map(|days| {
            let (opens, _) = self.of(today.checked_add(days.days()).ok()?)?;
            (opens > at).then_some(opens)
        })
    }

    /// The window that opens on a day, if one does. An hour that the clocks skip is the one after it.
    fn of(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days.contains(&day.weekday().to_monday_one_offset()) {
            return None;
        }
        let last_day = if self.until > self.from { day } else { day.checked_add(1.day()).ok()? };
        let moment = |day: Date, time: Time| {
            let zoned = day.to_datetime(time).to_zoned(self.zone.clone()).ok()?;
            Some(Timestamp::from(zoned.timestamp()))
        };
        Some((moment(day, self.from)?, moment(last_day, self.until)?))
    }
}

/// Reads `22:00`.
fn time(text: &str) -> Result<Time, Invalid> {
    let unreadable = || Invalid::new(format!("{text:?} is no time of day; write 22:00"));
    let (hour, minute) = text.split_once(':').ok_or_else(unreadable)?;
    if hour.len() != 2 || minute.len() != 2 {
        return Err(unreadable());
    }
    let number = |digits: &str| digits.parse::<i8>().map_err(|_| unreadable());
    Time::new(number(hour)?, number(minute)?, 0, 0).map_err(|_| unreadable())
}
