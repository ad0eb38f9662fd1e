//! How many batches of a backup are on their way to the hub at once, over all its disks.
//!
//! A far and fast line wants many, because each waits for its answer; a slow line wants few, or each takes so long that it is
//! given up and all of it is sent again. Nobody says which line it is, so it is learnt: answers that come soon let one more
//! go, late ones one fewer, and a call that failed halves them. Each backup learns for itself: one whose repository hangs
//! holds no other up. What lives here: who may go. What does not: the calls.
//!
//! Invariant: never more than [`WAYS_MAX`] batches are held by those who send, whatever fails.

use parking_lot::{Condvar, Mutex};
use sendense_block::Cancel;
use std::time::Duration;

/// Batches under way at once. Of half a mebibyte each, and each there twice, as a batch and as a body: 16 MiB a backup. A disk
/// has as many streams; a line of 100 Mbit/s at 150 ms is full with them.
pub const WAYS_MAX: usize = 16;
/// There are all of them after one round trip on a fast line. On a slow one these arrive within the two minutes that a call
/// may take from 35 KiB/s on, and are fewer after that.
const WAYS_FIRST: usize = WAYS_MAX / 2;
/// An answer within it lets one more go.
const SOON: Duration = Duration::from_secs(2);
/// An answer that takes longer is a sixth of what a call may take: one fewer.
const LATE: Duration = Duration::from_secs(20);
/// Those who wait look so often whether somebody cancelled.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// The ways of a backup.
#[derive(Debug)]
pub struct Ways {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    allowed: usize,
    taken: usize,
    /// Batches whose call failed and that are to be sent again: they go before others.
    returning: usize,
}

impl Default for Ways {
    fn default() -> Self {
        Self { state: Mutex::new(State { allowed: WAYS_FIRST, taken: 0, returning: 0 }), changed: Condvar::new() }
    }
}

/// A batch's way, until it is dropped.
#[derive(Debug)]
pub struct Way<'a>(&'a Ways);

impl Ways {
    /// Waits for a way; none when somebody cancels.
    pub fn take(&self, cancel: &Cancel) -> Option<Way<'_>> {
        let mut state = self.state.lock();
        while state.taken >= state.allowed || state.returning > 0 {
            self.wait(&mut state, cancel)?;
        }
        state.taken += 1;
        Some(Way(self))
    }

    fn wait(&self, state: &mut parking_lot::MutexGuard<'_, State>, cancel: &Cancel) -> Option<()> {
        if cancel.is_cancelled() {
            return None;
        }
        self.changed.wait_for(state, LOOK_PERIOD);
        Some(())
    }
}

impl Way<'_> {
    /// The batch was answered after so long.
    pub fn answered(&self, after: Duration) {
        let mut state = self.0.state.lock();
        if after <= SOON {
            state.allowed = (state.allowed + 1).min(WAYS_MAX);
        } else if after > LATE {
            state.allowed = (state.allowed - 1).max(1);
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Its call failed. Runs `pause`, and then waits until it may go again, before all that has not gone yet; false when
    /// `pause` said so or somebody cancels. Meanwhile its way is another's that failed, too.
    pub fn failed(&self, cancel: &Cancel, pause: impl FnOnce() -> bool) -> bool {
        let mut state = self.0.state.lock();
        state.allowed = (state.allowed / 2).max(1);
        state.taken -= 1;
        state.returning += 1;
        drop(state);
        self.0.changed.notify_all();
        let mut goes = pause();
        let mut state = self.0.state.lock();
        while goes && state.taken >= state.allowed {
            goes = self.0.wait(&mut state, cancel).is_some();
        }
        // Also without a way: dropping it gives back what is counted here.
        state.taken += 1;
        state.returning -= 1;
        goes
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        self.0.state.lock().taken -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    const NEVER: fn() -> Cancel = Cancel::new;

    fn cancelled() -> Cancel {
        let cancel = Cancel::new();
        cancel.cancel();
        cancel
    }

    /// How many can be had at once.
    fn allowed(ways: &Ways) -> usize {
        let stop = cancelled();
        std::iter::from_fn(|| ways.take(&stop)).collect::<Vec<_>>().len()
    }

    #[test]
    fn soon_lets_more_go_late_fewer_and_failure_half() {
        let ways = Ways::default();
        assert_eq!(allowed(&ways), WAYS_FIRST);
        let way = ways.take(&NEVER()).unwrap();
        way.answered(SOON);
        way.answered(SOON + Duration::from_secs(1));
        assert_eq!(allowed(&ways), WAYS_FIRST, "one more, which is the one that is taken here");
        way.answered(LATE + Duration::from_secs(1));
        assert!(way.failed(&NEVER(), || true));
        drop(way);
        assert_eq!(allowed(&ways), WAYS_FIRST / 2);
        let way = ways.take(&NEVER()).unwrap();
        (0..9).for_each(|_| assert!(way.failed(&NEVER(), || true)));
        assert_eq!(allowed(&ways), 0, "one is left, and it is taken");
        (0..99).for_each(|_| way.answered(SOON));
        drop(way);
        assert_eq!(allowed(&ways), WAYS_MAX);
    }

    #[test]
    fn what_failed_goes_before_what_has_not_gone_and_a_cancelled_one_is_given_back() {
        let ways = Ways::default();
        let two = [ways.take(&NEVER()).unwrap(), ways.take(&NEVER()).unwrap()];
        ways.state.lock().allowed = 2;
        // Halved to one, which the other has: it waits, and gives up because somebody cancelled.
        assert!(!two[0].failed(&cancelled(), || true));
        ways.state.lock().allowed = 9;
        assert!(!two[0].failed(&NEVER(), || false), "somebody cancelled in the pause");
        ways.state.lock().allowed = 1;
        let waits = Cancel::new();
        thread::scope(|scope| {
            let again = scope.spawn(|| two[0].failed(&waits, || true));
            while ways.state.lock().returning == 0 {
                thread::yield_now();
            }
            ways.state.lock().allowed = 9;
            // Whether it has seen that yet or not: nobody passes it.
            assert!(ways.take(&cancelled()).is_none_or(|_| ways.state.lock().returning == 0));
            ways.changed.notify_all();
            assert!(again.join().unwrap());
        });
        drop(two);
        assert_eq!(ways.state.lock().taken, 0);
    }

    #[test]
    fn no_more_are_held_than_there_are_whatever_fails() {
        let (ways, held) = (Ways::default(), AtomicUsize::new(0));
        thread::scope(|scope| {
            for worker in 0..64_u32 {
                let (ways, held) = (&ways, &held);
                scope.spawn(move || {
                    for batch in 0..50 {
                        let way = ways.take(&NEVER()).unwrap();
                        assert!(held.fetch_add(1, Ordering::SeqCst) < WAYS_MAX);
                        if (worker + batch) % 7 == 0 {
                            assert!(way.failed(&NEVER(), || true));
                        }
                        way.answered(Duration::from_secs(u64::from(worker % 3) * 15));
                        held.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(ways.state.lock().taken, 0);
    }
}
