//! What shall be kept: rules with counts, the calendar they are counted by, and a least age.

use crate::error::{Error, Result};
use jiff::tz::TimeZone;
use sendense_types::Timestamp;
use std::fmt;

/// A rule counts periods from the newest point back and keeps the newest point of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Each point is a period of its own.
    Last,
    /// Hours of the wall clock.
    Hourly,
    /// Days.
    Daily,
    /// ISO weeks, Monday to Sunday.
    Weekly,
    /// Months.
    Monthly,
    /// Years.
    Yearly,
}

/// The calendar's name of one period of a rule. Equal names are one period: the hour that a clock shows twice when summer
/// time ends is one hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Period(i16, i8, i8, i8);

impl Rule {
    /// Every rule, in the order in which they choose.
    pub const ALL: [Self; 6] = [Self::Last, Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];

    /// The rule's name, as options and reasons have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Last => "keep-last",
            Self::Hourly => "keep-hourly",
            Self::Daily => "keep-daily",
            Self::Weekly => "keep-weekly",
            Self::Monthly => "keep-monthly",
            Self::Yearly => "keep-yearly",
        }
    }

    /// The period that a moment lies in; `None` for [`Rule::Last`], which has no calendar.
    pub(super) fn period(self, at: Timestamp, zone: &TimeZone) -> Option<Period> {
        let at = zone.to_datetime(at.to_jiff());
        let (year, month, day) = (at.year(), at.month(), at.day());
        Some(match self {
            Self::Last => return None,
            Self::Hourly => Period(year, month, day, at.hour()),
            Self::Daily => Period(year, month, day, 0),
            Self::Weekly => {
                // The days around New Year belong to the week's year, which need not be the calendar's.
                let week = at.date().iso_week_date();
                Period(week.year(), week.week(), 0, 0)
            }
            Self::Monthly => Period(year, month, 0, 0),
            Self::Yearly => Period(year, 0, 0, 0),
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many periods each rule keeps; 0 switches a rule off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Points.
    pub last: u32,
    /// Hours.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// Weeks.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
}

impl Keep {
    /// The count of a rule.
    pub const fn count(&self, rule: Rule) -> u32 {
        match rule {
            Rule::Last => self.last,
            Rule::Hourly => self.hourly,
            Rule::Daily => self.daily,
            Rule::Weekly => self.weekly,
            Rule::Monthly => self.monthly,
            Rule::Yearly => self.yearly,
        }
    }
}

/// What shall be kept. At least one rule keeps something, so that no policy can ask for a VM's last good point to go.
#[derive(Debug, Clone)]
pub struct Policy {
    keep: Keep,
    zone: TimeZone,
    minimum_age_seconds: u64,
}

impl Policy {
    /// A policy that counts by the calendar of a time zone, and lets nothing go that is younger than `minimum_age_seconds`.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) when no rule keeps anything.
    pub fn new(keep: Keep, zone: TimeZone, minimum_age_seconds: u64) -> Result<Self> {
        if keep == Keep::default() {
            return Err(Error::invalid("a policy needs a rule that keeps something"));
        }
        Ok(Self { keep, zone, minimum_age_seconds })
    }

    /// How many periods each rule keeps.
    pub const fn keep(&self) -> &Keep {
        &self.keep
    }

    /// The time zone of its calendar.
    pub const fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// When a point of that moment is old enough to go.
    pub(super) fn of_age_at(&self, completed_at: Timestamp) -> Timestamp {
        completed_at.plus_seconds(i64::try_from(self.minimum_age_seconds).unwrap_or(i64::MAX))
    }
}

/// The time zone of an IANA name such as `Europe/Berlin`.
///
/// # Errors
/// [`Kind::Invalid`](crate::Kind::Invalid) when the machine knows no such zone.
pub fn time_zone(name: &str) -> Result<TimeZone> {
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|error| {
        let context = format!("no time zone {name:?}; names are those of the package tzdata, such as Europe/Berlin");
        Error::invalid(context).caused_by(error)
    })
}
