//! How much may be in flight: bytes of all clients together, bytes and requests of one.
//!
//! What lives here: two counters and the waits on them, and the pool of buffers that are read into. What does not: who
//! asks (`session`). Invariant: a [`Permit`] holds what it counts until it is dropped, so memory in use never passes the
//! limits by more than what one request needs to be decoded.

use parking_lot::{Condvar, Mutex};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

/// Waits look up this often whether their client is still there: its end does not signal.
const TICK: Duration = Duration::from_millis(100);
/// Reads are served in pieces of at most this size, on as many threads: four clusters of a chain, and a copy within a
/// core's cache.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// Spare buffers that are kept, 16 MiB: what four fast connections use at the same time.
const SPARE_MAX: usize = 64;

/// All clients together.
pub(super) struct Total {
    limit: u64,
    used: Mutex<u64>,
    freed: Condvar,
    spare: Mutex<Vec<Box<[u8]>>>,
}

/// One client.
pub(super) struct Budget {
    total: Arc<Total>,
    bytes_max: u64,
    requests_max: usize,
    used: Mutex<Used>,
    freed: Condvar,
}

#[derive(Default)]
struct Used {
    bytes: u64,
    requests: usize,
}

/// A request in flight.
pub(super) struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Total {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: Mutex::new(0), freed: Condvar::new(), spare: Mutex::default() })
    }

    #[cfg(test)]
    fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// Room for `len` bytes of one piece. What it holds before it is read into is anything.
    pub(super) fn buffer(self: &Arc<Self>, len: usize) -> Buffer {
        debug_assert!(len <= PIECE_BYTES);
        // Small reads would waste the pool's large buffers, and cost little to allocate.
        if len <= PIECE_BYTES / 4 {
            return Buffer { bytes: vec![0; len].into(), len, pool: None };
        }
        let bytes = self.spare.lock().pop().unwrap_or_else(|| vec![0; PIECE_BYTES].into());
        Buffer { bytes, len, pool: Some(self.clone()) }
    }
}

impl Budget {
    pub(super) fn new(total: Arc<Total>, bytes_max: u64, requests_max: usize) -> Arc<Self> {
        Arc::new(Self { total, bytes_max, requests_max, used: Mutex::default(), freed: Condvar::new() })
    }

    /// Waits for room for a request with so many bytes, for as long as the client is `alive`.
    pub(super) fn acquire(self: &Arc<Self>, bytes: u64, alive: impl Fn() -> bool) -> Option<Permit> {
        let mut used = self.used.lock();
        while used.requests >= self.requests_max || (used.bytes > 0 && used.bytes + bytes > self.bytes_max) {
            self.freed.wait_for(&mut used, TICK);
            if !alive() {
                return None;
            }
        }
        used.requests += 1;
        used.bytes += bytes;
        drop(used);
        if bytes > 0 {
            let mut used = self.total.used.lock();
            while *used > 0 && *used + bytes > self.total.limit {
                self.total.freed.wait_for(&mut used, TICK);
                if !alive() {
                    drop(used);
                    self.give_back(bytes);
                    return None;
                }
            }
            *used += bytes;
        }
        Some(Permit { budget: self.clone(), bytes })
    }

    /// True while nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.used.lock().requests == 0
    }

    fn give_back(&self, bytes: u64) {
        let mut used = self.used.lock();
        used.requests -= 1;
        used.bytes -= bytes;
        drop(used);
        self.freed.notify_one();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            *self.budget.total.used.lock() -= self.bytes;
            self.budget.total.freed.notify_all();
        }
        self.budget.give_back(self.bytes);
    }
}

/// Bytes to read into; goes back to the pool.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    pool: Option<Arc<Total>>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let mut spare = pool.spare.lock();
            if spare.len() < SPARE_MAX {
                spare.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn nobody_gets_more_than_there_is() {
        let total = Total::new(100);
        let (a, b) = (Budget::new(total.clone(), 60, 2), Budget::new(total.clone(), 60, 2));
        let first = a.acquire(50, || true).unwrap();
        let gone = AtomicBool::new(true);
        let alive = || !gone.load(Ordering::SeqCst);
        assert!(a.acquire(20, alive).is_none(), "60 bytes for a client");
        let second = b.acquire(50, || true).unwrap();
        assert!(b.acquire(5, alive).is_none(), "100 bytes for all");
        assert_eq!(total.used(), 100);
        let third = b.acquire(0, || true).unwrap();
        assert!(b.acquire(0, alive).is_none(), "2 requests for a client");
        drop((second, third));
        assert!(b.is_idle() && !a.is_idle());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| a.acquire(40, || true).is_some());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        assert_eq!(total.used(), 0);
        assert!(a.acquire(1000, || true).is_some(), "one request always fits");
    }

    #[test]
    fn large_buffers_come_back_and_small_ones_do_not() {
        let total = Total::new(1 << 20);
        drop((total.buffer(PIECE_BYTES), total.buffer(100_000), total.buffer(100)));
        assert_eq!(total.spare.lock().len(), 2);
        let again = total.buffer(70_000);
        assert_eq!((again.len(), total.spare.lock().len()), (70_000, 1));
    }
}
