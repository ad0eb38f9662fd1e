//! Pieces of work done by several threads in rising order, stopped by the first error or on request.

use super::TRIES;
use crate::error::Result;
use parking_lot::Mutex;
use sendense_block::{self as block, Cancel};
use std::time::{Duration, Instant};

/// The longest pause between two looks at whether to stop.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// So much of a pause may be made up for afterwards. More would be a burst: an image may be synced for a minute.
const CREDIT_MAX: Duration = Duration::from_secs(1);

/// Keeps reads to so many bytes per second, over all threads.
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When all bytes so far were due.
    due: Mutex<Instant>,
}

impl Pace {
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, due: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes more were due.
    pub fn wait(&self, bytes: u64, cancel: &Cancel) {
        let Some(bytes_per_second) = self.bytes_per_second else { return };
        let due = self.take(Instant::now(), bytes, bytes_per_second);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || cancel.is_cancelled() {
                return;
            }
            std::thread::sleep(left.min(PAUSE_MAX));
        }
    }

    fn take(&self, now: Instant, bytes: u64, bytes_per_second: u64) -> Instant {
        let mut due = self.due.lock();
        let from = now.checked_sub(CREDIT_MAX).map_or(*due, |earliest| earliest.max(*due));
        *due = from + Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64);
        *due
    }
}

/// Does `work` on each of `0..count`, by `threads` at once.
pub(crate) fn each<S>(
    cancel: &Cancel,
    threads: usize,
    count: u64,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, u64) -> Result<()> + Sync,
) -> Result<()> {
    let next = Mutex::new(0);
    let failed = Mutex::new(None);
    let take = || {
        let mut next = next.lock();
        let mine = *next;
        (mine < count && failed.lock().is_none()).then(|| *next += 1)?;
        Some(mine)
    };
    let run = || {
        let mut state = state();
        while let Some(mine) = take() {
            let done = cancel.check().map_err(Into::into).and_then(|()| work(&mut state, mine));
            if let Err(error) = done {
                failed.lock().get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        // This thread is one of them.
        for _ in 1..threads.min(usize::try_from(count).unwrap_or(usize::MAX)) {
            scope.spawn(run);
        }
        run();
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// Reads, and tries again what may be transient. Immediately: a device's own retries have taken seconds already, and a
/// network file system's too.
pub(crate) fn read<T>(mut read: impl FnMut() -> block::Result<T>) -> block::Result<T> {
    let mut result = read();
    for _ in 1..TRIES {
        match &result {
            Err(error) if error.kind.is_transient() => result = read(),
            _ => break,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_not_saved_up() {
        let pace = Pace::new(Some(1000));
        let began = *pace.due.lock();
        let seconds = |seconds: u64| began + Duration::from_secs(seconds);
        assert_eq!(pace.take(seconds(0), 2000, 1000), seconds(2));
        assert_eq!(pace.take(seconds(1), 3000, 1000), seconds(5), "who comes early waits for those before");
        assert_eq!(pace.take(seconds(60), 500, 1000), seconds(59) + Duration::from_millis(500));
        assert_eq!(pace.take(seconds(60), 1500, 1000), seconds(61));
    }

    /// Each piece waits for the others: nobody goes on before all four are at work.
    #[test]
    fn as_many_are_at_work_at_once_as_asked_for() {
        let begun = Mutex::new(0);
        let all = parking_lot::Condvar::new();
        each(
            &Cancel::new(),
            4,
            4,
            || (),
            |(), _| {
                let mut begun = begun.lock();
                *begun += 1;
                all.notify_all();
                let missing = |begun: &mut i32| *begun < 4;
                assert!(!all.wait_while_for(&mut begun, missing, Duration::from_secs(60)).timed_out(), "{begun} of 4");
                Ok(())
            },
        )
        .unwrap();
    }

    #[test]
    fn a_read_that_may_succeed_is_tried_again_and_no_other() {
        let tried = |fails: u32, kind: block::Kind| {
            let mut tries = 0;
            let done = read(|| {
                tries += 1;
                if tries <= fails { Err(block::Error::new(kind, "read")) } else { Ok(()) }
            });
            (done.is_ok(), tries)
        };
        assert_eq!(tried(0, block::Kind::Io), (true, 1));
        assert_eq!(tried(2, block::Kind::Io), (true, 3));
        assert_eq!(tried(3, block::Kind::Unavailable), (false, TRIES));
        assert_eq!(tried(1, block::Kind::Corrupt), (false, 1), "bytes that are wrong were read");
    }
}
