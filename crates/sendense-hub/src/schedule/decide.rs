//! What is to be done now, and what will be.

use super::{When, Window};
use sendense_types::Timestamp;
use std::fmt;

/// An occurrence that begins later than this was missed: nobody was there to begin it. A reconciler looks every few seconds,
/// and a hub that is restarted is back within a minute or two.
pub const GRACE_SECONDS: i64 = 300;

/// The most that a beginning is put off so that not all begin at once.
pub const JITTER_SECONDS_MAX: u32 = 3600;

/// What is done, when.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Who: decides, with the occurrence, how long a beginning is put off.
    pub id: String,
    /// When it is due.
    pub when: When,
    /// When it may begin; `None` for always.
    pub window: Option<Window>,
    /// A beginning is put off by up to so many seconds.
    pub jitter_seconds: u32,
    /// What becomes of an occurrence that was missed.
    pub catch_up: CatchUp,
    /// What was due before is none of its business: when it was made, or enabled last.
    pub since: Timestamp,
}

/// What becomes of an occurrence that was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// It is run as soon as it can be; however many were missed, once.
    Once,
    /// It is left out.
    Skip,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// The newest occurrence that was run or skipped.
    pub handled: Option<Timestamp>,
    /// Whether a run of it goes on.
    pub is_running: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing; look again then. `None` when nothing will ever be due.
    Wait(Option<Timestamp>),
    /// Run it, for the occurrence of that moment.
    Run {
        /// When it was due.
        due: Timestamp,
        /// True when it was missed and is caught up with.
        is_late: bool,
    },
    /// Note that the occurrence is not run.
    Skip {
        /// When it was due.
        due: Timestamp,
        /// Why.
        why: Skipped,
    },
}

/// Why an occurrence is not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// The one before still runs.
    StillRunning,
    /// Nobody was there to begin it.
    Missed,
    /// Nothing may begin then.
    OutsideWindow,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StillRunning => "the last run has not ended",
            Self::Missed => "no hub was there to begin it",
            Self::OutsideWindow => "outside the window",
        })
    }
}

/// An occurrence to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// When it is due.
    pub due: Timestamp,
    /// When it begins.
    pub begins_at: Timestamp,
    /// False when the window is shut then.
    pub may_begin: bool,
}

impl Schedule {
    /// When an occurrence begins: put off by what its moment and its schedule say, the same whenever and wherever it is asked. Always
    /// before the next one is due, however large the jitter: no occurrence overtakes another, which would never be run then.
    pub fn begins_at(&self, due: Timestamp) -> Timestamp {
        if self.jitter_seconds == 0 {
            return due;
        }
        // FNV-1a, then mixed: well spread, and the same in every version of every hub.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.id.bytes().chain(due.as_micros().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let room = self.when.next_after(due).map_or(f64::MAX, |next| next.seconds_since(due) - 1.0);
        let put_off = (hash >> 32) % (u64::from(self.jitter_seconds).min(room.max(0.0) as u64) + 1);
        due.plus_seconds(i64::try_from(put_off).unwrap_or(0))
    }

    fn may_begin(&self, at: Timestamp) -> bool {
        self.window.as_ref().is_none_or(|window| window.is_open(at))
    }

    /// The newest occurrence that should have begun up to a moment, whatever became of it.
    pub fn newest_due(&self, until: Timestamp) -> Option<Timestamp> {
        self.newest_begun(self.since, until)
    }

    /// The newest occurrence whose beginning has come. Steps back over one that is put off still.
    fn newest_begun(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let mut until = now;
        while let Some(due) = self.when.newest(after, until) {
            if self.begins_at(due) <= now {
                return Some(due);
            }
            until = Timestamp::from_micros(due.as_micros().saturating_sub(1));
        }
        None
    }

    /// When the next occurrence begins, of those that have not begun now.
    fn next_beginning(&self, handled: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let put_off_at_most = i64::from(self.jitter_seconds);
        let mut next = self.when.next_after(handled.max(now.plus_seconds(-put_off_at_most)));
        let mut soonest: Option<Timestamp> = None;
        // Until an occurrence that is due only after the soonest beginning: none after it begins sooner.
        while let Some(due) = next.filter(|due| soonest.is_none_or(|soonest| *due < soonest)) {
            let begins_at = self.begins_at(due);
            if begins_at > now {
                soonest = Some(soonest.map_or(begins_at, |soonest| soonest.min(begins_at)));
            }
            next = self.when.next_after(due);
        }
        soonest
    }
}

/// What is to be done now.
pub fn decide(schedule: &Schedule, history: History, now: Timestamp) -> Decision {
    let handled = history.handled.map_or(schedule.since, |handled| handled.max(schedule.since));
    let Some(due) = schedule.newest_begun(handled, now) else {
        return Decision::Wait(schedule.next_beginning(handled, now));
    };
    let is_late = now > schedule.begins_at(due).plus_seconds(GRACE_SECONDS);
    if history.is_running {
        return Decision::Skip { due, why: Skipped::StillRunning };
    }
    if is_late && schedule.catch_up == CatchUp::Skip {
        return Decision::Skip { due, why: Skipped::Missed };
    }
    if schedule.may_begin(now) {
        return Decision::Run { due, is_late };
    }
    if !is_late {
        return Decision::Skip { due, why: Skipped::OutsideWindow };
    }
    // What is caught up with waits for the window, or for the next occurrence, which takes its place.
    let opens_at = schedule.window.as_ref().and_then(|window| window.opens_after(now));
    let next = schedule.next_beginning(due, now);
    Decision::Wait(match (opens_at, next) {
        (Some(opens_at), Some(next)) => Some(opens_at.min(next)),
        (one, other) => one.or(other),
    })
}

/// The occurrences after a moment and until another, at most so many.
pub fn preview(schedule: &Schedule, after: Timestamp, until: Timestamp, count_max: usize) -> Vec<Occurrence> {
    let mut occurrences = Vec::new();
    let mut next = schedule.when.next_after(after);
    while let Some(due) = next.filter(|due| *due <= until && occurrences.len() < count_max) {
        let begins_at = schedule.begins_at(due);
        occurrences.push(Occurrence { due, begins_at, may_begin: schedule.may_begin(begins_at) });
        next = schedule.when.next_after(due);
    }
    occurrences
}
