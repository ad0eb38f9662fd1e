//! How fast work goes lately, and so when it will be done. Pure: time and bytes go in.

use sendense_types::Timestamp;
use std::collections::VecDeque;

/// Speed is told over the last ten seconds: long enough to smooth single requests, short enough to show a stall.
const WINDOW_S: f64 = 10.0;
/// Samples come at most twice a second, so a window holds 20; 64 leave room for a clock that jumps.
const SAMPLES_MAX: usize = 64;

/// A sliding window of samples.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    samples: VecDeque<(Timestamp, u64)>,
}

impl Rate {
    /// Notes how many bytes are done by now.
    pub fn sample(&mut self, at: Timestamp, done: u64) {
        // A clock that was set back would make every difference meaningless.
        if self.samples.back().is_some_and(|(last, bytes)| *last > at || *bytes > done) {
            self.samples.clear();
        }
        self.samples.push_back((at, done));
        while self.samples.len() > SAMPLES_MAX
            || (self.samples.len() > 2
                && self.samples.front().is_some_and(|(old, _)| at.seconds_since(*old) > WINDOW_S))
        {
            self.samples.pop_front();
        }
    }

    /// Bytes per second over the window.
    pub fn bytes_per_second(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.samples.front(), self.samples.back()) else { return 0 };
        let seconds = to.seconds_since(*from);
        if seconds <= 0.0 { 0 } else { ((after - before) as f64 / seconds) as u64 }
    }

    /// Seconds until `total` at this speed; none when nothing moves or nothing is left.
    pub fn eta_seconds(&self, total: u64) -> Option<u64> {
        let (_, done) = self.samples.back()?;
        let (left, speed) = (total.checked_sub(*done)?, self.bytes_per_second());
        if speed == 0 || left == 0 { None } else { Some(left.div_ceil(speed)) }
    }
}

/// Part of the whole as a percentage, 0 to 100, with one digit after the point.
pub(crate) fn percent(done: u64, total: u64) -> f64 {
    if total == 0 {
        return 0.0;
    }
    (done.min(total) as f64 / total as f64 * 1000.0).floor() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn speed_is_that_of_the_last_seconds() {
        let start = Timestamp::from_micros(0);
        let mut rate = Rate::default();
        assert_eq!((rate.bytes_per_second(), rate.eta_seconds(10)), (0, None));
        for second in 0..=20 {
            // 100 bytes a second at first, then 1000.
            let done = if second <= 10 { second * 100 } else { 1000 + (second - 10) * 1000 };
            rate.sample(start.plus_seconds(second as i64), done);
        }
        assert_eq!(rate.bytes_per_second(), 1000);
        assert_eq!(rate.eta_seconds(11_000 + 5_000), Some(5));
        assert_eq!(rate.eta_seconds(11_000), None);
    }

    #[test]
    fn percentages_do_not_promise_too_much() {
        assert_eq!(percent(0, 0), 0.0);
        assert_eq!(percent(999_999, 1_000_000), 99.9);
        assert_eq!(percent(7, 7), 100.0);
        assert_eq!(percent(8, 7), 100.0);
    }

    proptest! {
        #[test]
        fn any_samples_are_taken(samples in prop::collection::vec((any::<i64>(), any::<u64>()), 0..200), total in any::<u64>()) {
            let mut rate = Rate::default();
            for (at, done) in samples {
                rate.sample(Timestamp::from_micros(at), done);
                prop_assert!(rate.samples.len() <= SAMPLES_MAX);
            }
            rate.bytes_per_second();
            rate.eta_seconds(total);
        }
    }
}
