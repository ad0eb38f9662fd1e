//! A bandwidth that is divided among those who send, and that may become another one while they wait.
//!
//! What lives here: who may send when. What does not: waiting, and the clock. Invariant: over any time in which somebody waits, what
//! may be sent is the bandwidth times that time; time in which nobody did is not saved up.

use std::time::{Duration, Instant};

/// The bandwidth, and what was booked of it.
///
/// ```text
/// booked   |=== gone ===|--- waits ---|      a turn is the number of bytes before it: it comes when so many are gone
/// ```
#[derive(Debug)]
pub struct Throttle {
    /// None: as much as there is.
    bytes_per_second: Option<f64>,
    /// Bytes that were booked so far.
    booked: u64,
    /// Of these, what had gone at the moment `at`.
    gone: f64,
    at: Instant,
}

/// A place in the row.
#[derive(Debug, Clone, Copy)]
pub struct Turn(u64);

impl Throttle {
    /// A bandwidth; none for as much as there is.
    pub fn new(bytes_per_second: Option<u64>, now: Instant) -> Self {
        Self { bytes_per_second: rate(bytes_per_second), booked: 0, gone: 0.0, at: now }
    }

    /// Another bandwidth from now on, also for those who wait.
    pub fn limit(&mut self, bytes_per_second: Option<u64>, now: Instant) {
        self.advance(now);
        self.bytes_per_second = rate(bytes_per_second);
    }

    /// Books `bytes`.
    pub fn book(&mut self, bytes: usize, now: Instant) -> Turn {
        self.advance(now);
        let turn = Turn(self.booked);
        self.booked = self.booked.saturating_add(bytes as u64);
        turn
    }

    /// What was booked and will not be sent: those who wait come so much sooner.
    pub fn give_back(&mut self, bytes: usize) {
        self.gone = (self.gone + bytes as f64).min(self.booked as f64);
    }

    /// How long until a turn comes, as long as the bandwidth stays what it is.
    pub fn until(&mut self, turn: Turn, now: Instant) -> Duration {
        self.advance(now);
        let left = turn.0 as f64 - self.gone;
        match self.bytes_per_second {
            // What rounding leaves is no byte.
            Some(rate) if left > 0.5 => Duration::from_secs_f64(left / rate),
            _ => Duration::ZERO,
        }
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let booked = self.booked as f64;
        self.gone = self.bytes_per_second.map_or(booked, |rate| (self.gone + passed * rate).min(booked));
        self.at = self.at.max(now);
    }
}

/// A bandwidth of nothing would hold a transfer for ever.
fn rate(bytes_per_second: Option<u64>) -> Option<f64> {
    bytes_per_second.map(|rate| rate.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Books, and tells how long that has to wait.
    fn book(throttle: &mut Throttle, bytes: usize, now: Instant) -> Duration {
        let turn = throttle.book(bytes, now);
        throttle.until(turn, now)
    }

    #[test]
    fn a_bandwidth_is_kept_and_unused_time_is_not_saved_up() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(1000), start);
        assert_eq!(book(&mut throttle, 2000, start), Duration::ZERO);
        assert_eq!(book(&mut throttle, 500, start), 2 * SECOND);
        assert_eq!(book(&mut throttle, 1000, start + SECOND), SECOND * 3 / 2);
        assert_eq!(book(&mut throttle, 1000, start + 60 * SECOND), Duration::ZERO);
        assert_eq!(book(&mut throttle, 1, start + 60 * SECOND), SECOND);
    }

    #[test]
    fn another_bandwidth_holds_for_those_who_wait_already() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(1000), start);
        throttle.book(10_000, start);
        let turn = throttle.book(10_000, start);
        assert_eq!(throttle.until(turn, start), 10 * SECOND);
        // Half of it is gone when it becomes ten times as fast, and slower again.
        throttle.limit(Some(10_000), start + 5 * SECOND);
        assert_eq!(throttle.until(turn, start + 5 * SECOND), SECOND / 2);
        throttle.limit(Some(100), start + 5 * SECOND);
        assert_eq!(throttle.until(turn, start + 5 * SECOND), 50 * SECOND);
        throttle.limit(None, start + 6 * SECOND);
        assert_eq!(throttle.until(turn, start + 6 * SECOND), Duration::ZERO);
        // What went without a limit is no debt.
        throttle.limit(Some(1000), start + 7 * SECOND);
        assert_eq!(book(&mut throttle, 3000, start + 7 * SECOND), Duration::ZERO);
        assert_eq!(book(&mut throttle, 1, start + 7 * SECOND), 3 * SECOND);
    }

    #[test]
    fn what_is_given_back_holds_nobody() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(1000), start);
        throttle.book(1000, start);
        throttle.book(500_000, start);
        let turn = throttle.book(1000, start);
        assert_eq!(throttle.until(turn, start), 501 * SECOND);
        throttle.give_back(500_000);
        assert_eq!(throttle.until(turn, start), SECOND);
        // No more than was booked: what is not there yet waits as ever.
        throttle.give_back(500_000);
        assert_eq!(book(&mut throttle, 2000, start), Duration::ZERO);
        assert_eq!(book(&mut throttle, 1, start), 2 * SECOND);
    }

    proptest! {
        /// Against a model that lets one byte after the other go.
        #[test]
        fn no_more_goes_than_the_bandwidth_allows(
            steps in prop::collection::vec((0_u64..4, 0_usize..5000, prop::option::of(1_u64..4000)), 1..40),
        ) {
            let start = Instant::now();
            let mut throttle = Throttle::new(Some(1000), start);
            let (mut now, mut rate, mut waiting) = (start, Some(1000), 0_u64);
            for (seconds, bytes, limit) in steps {
                now += Duration::from_secs(seconds);
                waiting = rate.map_or(0, |rate| waiting.saturating_sub(rate * seconds));
                let wait = book(&mut throttle, bytes, now).as_secs_f64();
                let expected = rate.map_or(0.0, |rate| waiting as f64 / rate as f64);
                prop_assert!((wait - expected).abs() < 1e-3, "{} s instead of {}", wait, expected);
                waiting = rate.map_or(0, |_| waiting + bytes as u64);
                throttle.limit(limit, now);
                rate = limit;
            }
        }
    }
}
