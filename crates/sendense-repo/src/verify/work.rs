//! Pieces of work done by several threads in rising order, stopped by the first error or on request.

use super::TRIES;
use crate::error::Result;
use parking_lot::Mutex;
use sendense_block::{self as block, Cancel};

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
pub(super) fn read<T>(mut read: impl FnMut() -> block::Result<T>) -> block::Result<T> {
    let mut result = read();
    for _ in 1..TRIES {
        match &result {
            Err(error) if error.kind.is_transient() => result = read(),
            _ => break,
        }
    }
    result
}
