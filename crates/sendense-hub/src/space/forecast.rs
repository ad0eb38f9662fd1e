//! When a repository will be full, from what it held on recent days. Pure: samples in, a forecast out.
//!
//! What is fitted is a line, by the median of the slopes between any two days (Theil and Sen): up to a quarter of the days may be
//! odd, a prune or a first full among them, and the line does not follow them. Invariant: no forecast without three days, and
//! none that is further away than anybody plans.

/// What a repository held at some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// In days, from any beginning.
    pub day: f64,
    pub used_bytes: u64,
}

/// What is to be expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Forecast {
    /// Too few days are known.
    Unknown,
    /// It does not grow, or is full only after so long that nobody can say.
    NotFilling { bytes_per_day: i64 },
    /// It is full in so many days.
    Full { days: f64, bytes_per_day: i64 },
}

/// Days that count: what happened before says little of what comes. At most one sample of each, so at most 435 slopes.
pub(crate) const DAYS: f64 = 30.0;
/// Days between the first and the last sample, at least: of less, a line says nothing.
const SPAN_DAYS_MIN: f64 = 2.0;
const SAMPLES_MIN: usize = 3;
/// Ten years: beyond that, hardware is renewed before.
const HORIZON_DAYS: f64 = 3650.0;

/// Fits the samples of the last [`DAYS`]; `available_bytes` is what may still be written now.
pub(crate) fn forecast(samples: &[Sample], available_bytes: u64) -> Forecast {
    let newest = samples.iter().map(|sample| sample.day).fold(f64::MIN, f64::max);
    let recent: Vec<&Sample> = samples.iter().filter(|sample| newest - sample.day <= DAYS).collect();
    let oldest = recent.iter().map(|sample| sample.day).fold(f64::MAX, f64::min);
    if recent.len() < SAMPLES_MIN || newest - oldest < SPAN_DAYS_MIN {
        return Forecast::Unknown;
    }
    let mut slopes = Vec::with_capacity(recent.len() * (recent.len() - 1) / 2);
    for (at, one) in recent.iter().enumerate() {
        for other in &recent[at + 1..] {
            let days = other.day - one.day;
            if days != 0.0 {
                slopes.push((other.used_bytes as f64 - one.used_bytes as f64) / days);
            }
        }
    }
    let Some(slope) = median(&mut slopes) else { return Forecast::Unknown };
    let bytes_per_day = slope as i64;
    let days = available_bytes as f64 / slope;
    match slope > 0.0 && days <= HORIZON_DAYS {
        true => Forecast::Full { days, bytes_per_day },
        false => Forecast::NotFilling { bytes_per_day },
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    values.sort_by(f64::total_cmp);
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn days(used_gib: impl IntoIterator<Item = u64>) -> Vec<Sample> {
        let used = used_gib.into_iter().map(|gib| gib * GIB).enumerate();
        used.map(|(day, used_bytes)| Sample { day: day as f64, used_bytes }).collect()
    }

    fn said(samples: &[Sample], available_gib: u64) -> String {
        match forecast(samples, available_gib * GIB) {
            Forecast::Unknown => "unknown".to_owned(),
            Forecast::NotFilling { bytes_per_day } => format!("{} GiB a day", bytes_per_day / GIB as i64),
            Forecast::Full { days, bytes_per_day } => {
                format!("full in {days:.0} days, {} GiB a day", bytes_per_day / GIB as i64)
            }
        }
    }

    #[test]
    fn a_table_of_histories() {
        let grows = || (0..30).map(|day| 100 + 10 * day);
        let prune = |on: usize| grows().enumerate().map(move |(day, used)| if day < on { used } else { used - 80 });
        for (name, samples, available_gib, expected) in [
            ("nothing is known", days([]), 100, "unknown"),
            ("two days", days([1, 2]), 100, "unknown"),
            ("three days", days([1, 2, 3]), 100, "full in 100 days, 1 GiB a day"),
            ("steady growth", days(grows()), 230, "full in 23 days, 10 GiB a day"),
            ("full already", days(grows()), 0, "full in 0 days, 10 GiB a day"),
            (
                "a first full long ago",
                days([5, 900].into_iter().chain((0..28).map(|day| 900 + day))),
                28,
                "full in 28 days, 1 GiB a day",
            ),
            ("a prune in the midst", days(prune(15)), 230, "full in 33 days, 6 GiB a day"),
            ("a prune yesterday", days(prune(29)), 230, "full in 23 days, 10 GiB a day"),
            (
                "what was before a month",
                days((0..60).map(|day| if day < 25 { 9000 } else { day })),
                30,
                "full in 30 days, 1 GiB a day",
            ),
            ("no growth", days([7; 20]), 10, "0 GiB a day"),
            ("shrinks", days((0..20).map(|day| 100 - 2 * day)), 10, "-2 GiB a day"),
            ("in a hundred years", days(0..30), 36_500, "1 GiB a day"),
        ] {
            assert_eq!(said(&samples, available_gib), expected, "{name}");
        }
        let hours: Vec<_> =
            (0..20).map(|n| Sample { day: f64::from(n) / 24.0, used_bytes: u64::from(n as u32) * GIB }).collect();
        assert_eq!(said(&hours, 100), "unknown", "an evening's work is no trend");
    }

    proptest! {
        /// Whatever lies in a database: an answer, with figures that are numbers.
        #[test]
        fn any_samples_give_an_answer(samples in prop::collection::vec((any::<i32>(), any::<u64>()), 0..40), available in any::<u64>()) {
            let samples: Vec<_> = samples.into_iter().map(|(day, used_bytes)| Sample { day: day.into(), used_bytes }).collect();
            if let Forecast::Full { days, .. } = forecast(&samples, available) {
                prop_assert!((0.0..=HORIZON_DAYS).contains(&days));
            }
        }

        /// A quarter of the days may be anything, and steady growth is still seen.
        #[test]
        fn odd_days_do_not_lead_astray(odd in prop::collection::btree_map(0..30_usize, 0..10_000_u64, 0..4)) {
            let mut samples = days((0..30).map(|day| 1000 + 10 * day));
            for (day, used) in odd {
                samples[day].used_bytes = used * GIB;
            }
            let found = forecast(&samples, 1000 * GIB);
            prop_assert!(matches!(found, Forecast::Full { days, .. } if (70.0..140.0).contains(&days)), "{found:?}");
        }
    }
}
