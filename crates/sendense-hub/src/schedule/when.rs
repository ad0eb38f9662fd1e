//! When something is due: a cron expression by the clock of a zone, or every so often.

use super::Invalid;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use sendense_types::Timestamp;

/// A schedule's work is a backup of some machines: more often than each minute it cannot be done.
pub const EVERY_SECONDS_MIN: u32 = 60;
/// A year; what happens more seldom is better said as a date.
pub const EVERY_SECONDS_MAX: u32 = 366 * 86_400;

/// An expression is five short fields; this leaves room for long lists.
const EXPRESSION_BYTES_MAX: usize = 200;

/// How far back the newest occurrence is looked for, step by step. The first step that holds one has few, because the steps
/// before it held none.
const LOOK_BACK_SECONDS: [i64; 4] = [3600, 86_400, 32 * 86_400, 400 * 86_400];

/// When something is due.
#[derive(Debug, Clone)]
pub enum When {
    /// At the minutes that a cron expression names, by the clock of a zone.
    Cron {
        /// The expression.
        cron: Box<Cron>,
        /// Whose clock.
        zone: TimeZone,
    },
    /// Every so many seconds, counted from a moment on, whatever clocks show.
    Every {
        /// How many.
        seconds: u32,
        /// From when on; the first occurrence is one interval later.
        from: Timestamp,
    },
}

impl When {
    /// At the minutes that five fields name: minute, hour, day of month, month, day of week; with `L`, `#` and `W`, and the
    /// short forms `@hourly` to `@yearly`.
    ///
    /// # Errors
    /// For an expression that cannot be read, or that never comes true.
    pub fn cron(expression: &str, zone: TimeZone) -> Result<Self, Invalid> {
        if expression.len() > EXPRESSION_BYTES_MAX {
            return Err(Invalid::new(format!("an expression has at most {EXPRESSION_BYTES_MAX} characters")));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(expression).map_err(|error| Invalid::new(format!("{expression:?}: {error}")))?;
        let when = Self::Cron { cron: Box::new(cron), zone };
        // The calendar repeats itself within these years, leap days and weekdays together.
        match when.next_after(Timestamp::from_micros(0)) {
            Some(_) => Ok(when),
            None => Err(Invalid::new(format!("{expression:?} never comes true"))),
        }
    }

    /// Every so many seconds.
    ///
    /// # Errors
    /// For less than a minute or more than a year.
    pub fn every(seconds: u32, from: Timestamp) -> Result<Self, Invalid> {
        if (EVERY_SECONDS_MIN..=EVERY_SECONDS_MAX).contains(&seconds) {
            return Ok(Self::Every { seconds, from });
        }
        Err(Invalid::new(format!(
            "every {EVERY_SECONDS_MIN} to {EVERY_SECONDS_MAX} seconds is possible, not {seconds}"
        )))
    }

    /// The first occurrence after a moment; `None` when time ends before.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron { cron, zone } => {
                let after = after.to_jiff().to_zoned(zone.clone());
                let next = cron.find_next_occurrence(&after, false).ok()?;
                Some(next.timestamp().into())
            }
            Self::Every { seconds, from } => {
                let step_micros = i64::from(*seconds).checked_mul(1_000_000)?;
                let passed_micros = after.as_micros().checked_sub(from.as_micros())?;
                let number = passed_micros.div_euclid(step_micros).max(0).checked_add(1)?;
                Some(Timestamp::from_micros(from.as_micros().checked_add(number.checked_mul(step_micros)?)?))
            }
        }
    }

    /// The newest occurrence after `after` and up to `until`.
    pub fn newest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut newest = None;
        for back in LOOK_BACK_SECONDS {
            let from = after.max(until.plus_seconds(-back));
            let mut next = self.next_after(from);
            while let Some(at) = next.filter(|at| *at <= until) {
                newest = Some(at);
                next = self.next_after(at);
            }
            if newest.is_some() || from == after {
                break;
            }
        }
        newest
    }
}
