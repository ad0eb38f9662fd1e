//! The room of repositories: watched, kept from day to day, and told of before it is gone.
//!
//! ```text
//! look (every minute) -> a sample of the day -> the catalog -> forecast -> ok | low | critical -> alarm when that changes
//! ```
//!
//! What lives here: what figures mean ([`judge`], pure), the forecast, and the look. What does not: the refusal of a backup that
//! has no room, which the repository makes by itself (`sendense_repo::capacity`). Invariant: an alarm is told once, when the
//! state changes, and a figure that goes to and fro at a threshold changes nothing.

pub(crate) mod forecast;
mod keep;

pub(crate) use keep::keep;

use crate::app::repositories::Settings;
use crate::core::Core;
use crate::fault::{OrProblem, Result};
use forecast::{Forecast, Sample};
use sendense_api::{RepositorySpace, Storage};
use sendense_catalog::SpaceSample;
use sendense_types::{RepositoryId, SpaceState, Timestamp};

/// Of the room, what may be taken before it is said to be low or critical, where nobody said otherwise: at 85 % somebody has
/// time to buy disks, at 95 % there is none to lose.
pub(crate) const LOW_PERCENT_DEFAULT: u8 = 85;
pub(crate) const CRITICAL_PERCENT_DEFAULT: u8 = 95;

/// A repository that is full within a week is low, however much room that is: a week is what a delivery takes.
const LOW_DAYS: f64 = 7.0;

/// How far off that day has to be before the alarm is over: a forecast moves by some hours from day to day.
const NOT_LOW_DAYS: f64 = 8.0;

/// By how much a figure has to fall below a threshold before the alarm is over. Backups that end and prunes move it by less.
const HYSTERESIS_PERCENT: f64 = 2.0;

const DAY_SECONDS: f64 = 86_400.0;

/// From which figures on something is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    pub low_percent: u8,
    pub critical_percent: u8,
}

impl Thresholds {
    /// Of a repository's settings.
    pub fn of(settings: &Settings) -> Self {
        Self {
            low_percent: settings.low_percent.unwrap_or(LOW_PERCENT_DEFAULT),
            critical_percent: settings.critical_percent.unwrap_or(CRITICAL_PERCENT_DEFAULT),
        }
    }
}

/// The room of a repository.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    /// As it is told.
    pub storage: Storage,
    /// What may still be written, promises to running backups not deducted. One large full is promised all that is left until it is
    /// known how far its data shrinks; that is no reason to wake anybody.
    pub unwritten_bytes: u64,
}

/// What a repository's room is like. `before` is what was said last.
pub(crate) fn judge(room: &Room, forecast: Forecast, at: Thresholds, before: SpaceState) -> SpaceState {
    let storage = &room.storage;
    let percent = 100.0 * storage.used_bytes as f64 / storage.total_bytes.max(1) as f64;
    let is_over = |state: SpaceState, percent_max: u8| {
        let bound = f64::from(percent_max) - if before >= state { HYSTERESIS_PERCENT } else { 0.0 };
        percent >= bound
    };
    let is_full = room.unwritten_bytes == 0;
    let soon_days = if before >= SpaceState::Low { NOT_LOW_DAYS } else { LOW_DAYS };
    let is_soon = matches!(forecast, Forecast::Full { days, .. } if days <= soon_days);
    if is_full || is_over(SpaceState::Critical, at.critical_percent) {
        SpaceState::Critical
    } else if is_soon || is_over(SpaceState::Low, at.low_percent) {
        SpaceState::Low
    } else {
        SpaceState::Ok
    }
}

/// Whether so much more may be written and nothing would have to be said of the room.
pub(crate) fn bears(storage: &Storage, more_bytes: u64, at: Thresholds) -> bool {
    let used_bytes = storage.used_bytes.saturating_add(more_bytes);
    // What is promised to backups is theirs here: they come first.
    let unwritten_bytes = storage.available_bytes.saturating_sub(more_bytes);
    let after = Room { storage: Storage { used_bytes, ..storage.clone() }, unwritten_bytes };
    judge(&after, Forecast::Unknown, at, SpaceState::Ok) == SpaceState::Ok
}

/// The forecast of a repository from its history, which has a sample for each day.
pub(crate) fn forecast_of(history: &[SpaceSample], room: &Room) -> Forecast {
    let samples: Vec<Sample> = history
        .iter()
        .map(|sample| Sample { day: sample.at.as_micros() as f64 / 1e6 / DAY_SECONDS, used_bytes: sample.used_bytes })
        .collect();
    forecast::forecast(&samples, room.unwritten_bytes)
}

/// What is told of a repository's room.
pub(crate) fn describe(
    storage: &Storage,
    forecast: Forecast,
    at: Thresholds,
    state: SpaceState,
    now: Timestamp,
) -> RepositorySpace {
    let used_percent = 100.0 * storage.used_bytes as f64 / storage.total_bytes.max(1) as f64;
    let (bytes_per_day, full_in_days) = match forecast {
        Forecast::Unknown => (None, None),
        Forecast::NotFilling { bytes_per_day } => (Some(bytes_per_day), None),
        Forecast::Full { days, bytes_per_day } => (Some(bytes_per_day), Some(days)),
    };
    RepositorySpace {
        state,
        // A tenth is as exact as anybody reads it.
        used_percent: (10.0 * used_percent).round() / 10.0,
        low_percent: at.low_percent,
        critical_percent: at.critical_percent,
        bytes_per_day,
        full_in_days: full_in_days.map(|days| (10.0 * days).round() / 10.0),
        full_at: full_in_days.map(|days| now.plus_seconds((days * DAY_SECONDS) as i64)),
    }
}

/// The same of a repository whose room is known, from what the catalog keeps.
pub(crate) async fn of(core: &Core, id: &RepositoryId, settings: &Settings, room: &Room) -> Result<RepositorySpace> {
    let history = core.catalog.space().history(id).await.or_problem()?;
    let forecast = forecast_of(&history, room);
    let before = core.repositories.space_state(id);
    let at = Thresholds::of(settings);
    Ok(describe(&room.storage, forecast, at, judge(room, forecast, at, before), core.now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use SpaceState::{Critical, Low, Ok};

    const DEFAULT: Thresholds =
        Thresholds { low_percent: LOW_PERCENT_DEFAULT, critical_percent: CRITICAL_PERCENT_DEFAULT };

    fn room(used: u64, available: u64) -> Storage {
        Storage { total_bytes: 1000, used_bytes: used, available_bytes: available, mount_point: "/".to_owned() }
    }

    #[test]
    fn a_table_of_rooms() {
        let soon = Forecast::Full { days: 6.0, bytes_per_day: 1 };
        let later = Forecast::Full { days: 23.0, bytes_per_day: 1 };
        let within = |days| Forecast::Full { days, bytes_per_day: 1 };
        for (name, storage, forecast, before, after) in [
            ("much room", room(500, 490), later, Ok, Ok),
            ("at the threshold", room(850, 140), Forecast::Unknown, Ok, Low),
            ("just below it", room(849, 141), Forecast::Unknown, Ok, Ok),
            ("just below it, and it was low", room(849, 141), Forecast::Unknown, Low, Low),
            ("well below it", room(829, 161), Forecast::Unknown, Low, Ok),
            ("critical", room(950, 40), Forecast::Unknown, Low, Critical),
            ("a little less than critical", room(940, 50), Forecast::Unknown, Critical, Critical),
            ("less than critical", room(920, 70), Forecast::Unknown, Critical, Low),
            ("full in days", room(500, 490), soon, Ok, Low),
            ("full in a little more than a week", room(500, 490), within(7.3), Ok, Ok),
            ("full in a little more than a week, and it was low", room(500, 490), within(7.3), Low, Low),
            ("full in nine days", room(500, 490), within(9.0), Low, Ok),
            ("all that is free is kept free", room(500, 0), Forecast::Unknown, Ok, Critical),
            ("a file system without size", Storage { total_bytes: 0, ..room(0, 0) }, Forecast::Unknown, Ok, Critical),
        ] {
            let room = Room { unwritten_bytes: storage.available_bytes, storage };
            assert_eq!(judge(&room, forecast, DEFAULT, before), after, "{name}");
        }
    }

    #[test]
    fn what_is_promised_and_not_written_wakes_nobody() {
        let now = Timestamp::from_micros(1_780_000_000_000_000);
        let sample = |day: i64| SpaceSample {
            at: now.plus_seconds(86_400 * (day - 3)),
            total_bytes: 1000,
            used_bytes: (100 + 10 * day).unsigned_abs(),
            available_bytes: 0,
        };
        let promised = Room { storage: room(130, 0), unwritten_bytes: 870 };
        let forecast = forecast_of(&[sample(1), sample(2), sample(3)], &promised);
        assert_matches!(forecast, Forecast::Full { days, .. } if days == 87.0);
        assert_eq!(judge(&promised, forecast, DEFAULT, Ok), Ok);
        assert_eq!(judge(&Room { unwritten_bytes: 0, ..promised }, forecast, DEFAULT, Ok), Critical);
    }

    #[test]
    fn what_would_make_room_scarce_is_not_borne() {
        for (name, storage, more, expected) in [
            ("much room", room(500, 490), 300, true),
            ("low afterwards", room(500, 490), 350, false),
            ("low already", room(900, 90), 0, false),
            ("the last that may be written", room(100, 50), 50, false),
            ("more than there is", room(100, 50), u64::MAX, false),
        ] {
            assert_eq!(bears(&storage, more, DEFAULT), expected, "{name}");
        }
    }

    #[test]
    fn a_forecast_is_told_in_days_and_as_a_date() {
        let now = Timestamp::from_micros(1_780_000_000_000_000);
        let day = |day: i64| SpaceSample {
            at: now.plus_seconds(86_400 * (day - 9)),
            total_bytes: 1000,
            used_bytes: (100 + 10 * day).unsigned_abs(),
            available_bytes: 0,
        };
        let history: Vec<_> = (0..10).map(day).collect();
        let storage = room(190, 230);
        let left = Room { storage: storage.clone(), unwritten_bytes: 230 };
        let told = describe(&storage, forecast_of(&history, &left), DEFAULT, Ok, now);
        assert_eq!((told.bytes_per_day, told.full_in_days, told.used_percent), (Some(10), Some(23.0), 19.0));
        assert_eq!(told.full_at.unwrap(), now.plus_seconds(23 * 86_400));
        let told = describe(&storage, forecast_of(&history[..1], &left), DEFAULT, Ok, now);
        assert_eq!((told.bytes_per_day, told.full_in_days, told.full_at), (None, None, None));
    }
}
