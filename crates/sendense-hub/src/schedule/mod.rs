//! Schedules: when work is due, and what is done when the moment was missed. Pure: (schedule, history, now) -> decision.
//!
//! What lives here: occurrences ([`When`]), windows ([`Window`]), the decision ([`decide()`]) and the look ahead ([`preview`]).
//! What does not: the wall clock (`now` is passed in). Only `keep` and
//! `carry` know the catalog: they act on what the others decide, of schedules and (`fate`) of the machines of an execution.
//!
//! ```text
//! occurrence ---- jitter ----> begins ---- late? ----> run | skip: missed
//!                                  \---- window shut, or the last run still goes on ----> skip
//! ```
//!
//! Time is the zone's wall clock where an expression says so. When clocks go forward, an occurrence in the hour that does not
//! exist begins at its end; when they go back, one that names an hour happens once, one of every hour happens in both.
//!
//! Invariant: of all occurrences up to now at most one is run, the newest; the others were handled before or are missed.

mod carry;
mod decide;
mod fate;
mod keep;
#[cfg(test)]
mod tests;
mod when;
mod window;

pub use decide::{CatchUp, Decision, GRACE_SECONDS, History, JITTER_SECONDS_MAX, Occurrence, Schedule, Skipped};
pub use decide::{decide, preview};
#[cfg(test)]
pub(crate) use keep::discover_all;
pub(crate) use keep::{keep, rediscover};
pub use when::{EVERY_SECONDS_MAX, EVERY_SECONDS_MIN, When};
pub use window::Window;

/// What a schedule says that makes no sense. The caller must say something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// The time zone of an IANA name such as `Europe/Berlin`.
///
/// # Errors
/// When the machine knows no such zone.
pub fn time_zone(name: &str) -> Result<jiff::tz::TimeZone, Invalid> {
    sendense_repo::retention::time_zone(name).map_err(|error| Invalid::new(error.to_string()))
}
