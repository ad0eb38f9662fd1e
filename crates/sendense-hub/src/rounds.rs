//! What the hub looks after by itself is looked after in rounds: one after the other, with a pause between, until it stops.
//!
//! Invariant: a round that takes longer than its period delays the next one; none is made up for.

use crate::core::Core;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// Rounds until the hub stops.
pub(crate) struct Rounds {
    stop: CancellationToken,
    tick: Interval,
}

impl Core {
    /// Rounds that begin now.
    pub fn rounds(&self, period: Duration) -> Rounds {
        self.rounds_after(Duration::ZERO, period)
    }

    /// Rounds of which the first begins after a while.
    pub fn rounds_after(&self, first: Duration, period: Duration) -> Rounds {
        let mut tick = interval_at(Instant::now() + first, period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Rounds { stop: self.stop.clone(), tick }
    }
}

impl Rounds {
    /// Waits for the next one; false once the hub stops.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            _ = self.tick.tick() => true,
        }
    }
}
