//! Time as a value that is passed, so that tests turn the clock by hand.

use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::{fmt, str::FromStr};

/// A moment in UTC with microseconds. Text form: RFC 3339 with `Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// From microseconds since 1970-01-01T00:00:00Z; out-of-range values are clamped to what can be written as text.
    pub fn from_micros(micros: i64) -> Self {
        let (min, max) = (jiff::Timestamp::MIN, jiff::Timestamp::MAX);
        Self(jiff::Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { min } else { max }))
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub fn as_micros(self) -> i64 {
        self.0.as_microsecond()
    }

    /// This moment plus some seconds (negative: minus), clamped.
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self::from_micros(self.as_micros().saturating_add(seconds.saturating_mul(1_000_000)))
    }

    /// Seconds from `earlier` to this moment; negative when `earlier` is later.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.as_micros().saturating_sub(earlier.as_micros())) as f64 / 1e6
    }

    /// The value of the time library, for calendar arithmetic.
    pub fn to_jiff(self) -> jiff::Timestamp {
        self.0
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(at: jiff::Timestamp) -> Self {
        Self::from_micros(at.as_microsecond())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        text.parse::<jiff::Timestamp>().map(Self::from)
    }
}

/// Gives the time. Passed to whatever decides by time, so that no test waits.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        jiff::Timestamp::now().into()
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(Mutex<Timestamp>);

impl ManualClock {
    /// A clock that shows `at`.
    pub fn new(at: Timestamp) -> Self {
        Self(Mutex::new(at))
    }

    /// Moves the clock on (negative: back).
    pub fn advance_seconds(&self, seconds: i64) {
        let mut at = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *at = at.plus_seconds(seconds);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_rfc_3339_utc() {
        let at = Timestamp::from_micros(1_700_000_000_123_456);
        assert_eq!(at.to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!("2023-11-14T23:13:20.123456+01:00".parse::<Timestamp>().unwrap(), at);
        assert_eq!(serde_json::to_string(&at).unwrap(), "\"2023-11-14T22:13:20.123456Z\"");
    }

    #[test]
    fn extremes_are_clamped() {
        for micros in [i64::MIN, i64::MAX] {
            let at = Timestamp::from_micros(micros);
            assert_eq!(at.to_string().parse::<Timestamp>().unwrap(), at);
        }
    }
}
