//! Calls of a node to its hub: made again while the link is broken, until patience ends or somebody cancels.
//!
//! What lives here: calls, and their pace on a broken link. What does not: what is said, and how blocks share a bandwidth
//! ([`super::throttle`]). Invariant: no call outlasts its patience or a cancellation.

use super::message::{Call, Malformed, pack};
use super::throttle::Throttle;
use super::ways::Way;
use parking_lot::Mutex;
use sendense_api::{Client, ClientError};
use sendense_block::Cancel;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// Pauses between attempts: doubled from the first to the last, each shortened by a random part, so that a hundred nodes do
/// not come back to a hub that restarted at one moment.
const PAUSE_MS_FIRST: u64 = 200;
/// The longest pause. A hub that is back is found again after it.
const PAUSE_MS_MAX: u64 = 10_000;

/// Who waits for a share of the bandwidth looks so often whether it has become another one.
const LIMIT_LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The hub was not heard for too long.
    #[error("the hub was not heard for {} s", .0.as_secs())]
    Silent(Duration, #[source] ClientError),
    /// The hub refused.
    #[error("the hub refused")]
    Refused(#[source] ClientError),
    /// The call could not be put together.
    #[error("put a call together")]
    Malformed(#[from] Malformed),
    /// Somebody cancelled.
    #[error("stopped on request")]
    Cancelled,
}

impl From<Broken> for sendense_block::Error {
    fn from(broken: Broken) -> Self {
        use sendense_block::Kind;
        let kind = match &broken {
            Broken::Silent(..) => Kind::Unavailable,
            Broken::Cancelled => Kind::Cancelled,
            // The hub's reason is in the chain: no space, a lost lease, blocks that it does not take.
            Broken::Refused(error) if error.code() == Some(sendense_types::ProblemCode::NoSpace) => Kind::NoSpace,
            Broken::Refused(_) => Kind::Denied,
            Broken::Malformed(_) => Kind::Protocol,
        };
        Self::new(kind, "talk to the hub").caused_by(broken)
    }
}

/// The way to the hub. Used from threads of its own, never from a runtime's.
#[derive(Debug)]
pub struct Link {
    client: Client,
    runtime: Handle,
    heard: Mutex<Instant>,
    /// What the node's own command line allows to blocks.
    own_limit: Option<u64>,
    throttle: Mutex<Throttle>,
}

impl Link {
    /// A link with the node's client; `bytes_per_second` bounds what blocks take of it.
    pub fn new(client: Client, runtime: Handle, bytes_per_second: Option<u64>) -> Self {
        let now = Instant::now();
        let throttle = Mutex::new(Throttle::new(bytes_per_second, now));
        Self { client, runtime, heard: Mutex::new(now), own_limit: bytes_per_second, throttle }
    }

    /// One attempt.
    pub fn once(&self, call: &Call, tail: &[u8], cancel: &Cancel) -> Result<Vec<u8>, Broken> {
        let body = pack(call, tail)?;
        match self.attempt(body, cancel) {
            None => Err(Broken::Cancelled),
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) if is_transient(&error) => Err(Broken::Silent(self.heard.lock().elapsed(), error)),
            Some(Err(error)) => Err(Broken::Refused(error)),
        }
    }

    /// Attempts until there is an answer, or the hub was not heard (by any call) for as long as `patience`.
    pub fn call(&self, call: &Call, tail: &[u8], patience: Duration, cancel: &Cancel) -> Result<Vec<u8>, Broken> {
        attempts(patience, || self.once(call, tail, cancel), |pause| self.wait(pause, cancel))
    }

    /// The same for blocks, which have a way of their own and keep to the bandwidth, also where they are sent again.
    pub fn send(
        &self,
        call: &Call,
        blocks: &[u8],
        way: &Way<'_>,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, Broken> {
        let once = || {
            self.wait_for_turn(blocks.len(), cancel)?;
            let began = Instant::now();
            self.once(call, blocks, cancel).inspect(|_| way.answered(began.elapsed()))
        };
        attempts(patience, once, |pause| match way.failed(cancel, || self.wait(pause, cancel).is_ok()) {
            true => Ok(()),
            false => Err(Broken::Cancelled),
        })
    }

    /// The same for blocks that are fetched, `bytes_max` at the most. They keep to the bandwidth as those that are sent.
    pub fn fetch(
        &self,
        call: &Call,
        bytes_max: usize,
        way: &Way<'_>,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, Broken> {
        let once = || {
            self.wait_for_turn(bytes_max, cancel)?;
            let began = Instant::now();
            let answer = self.once(call, &[], cancel);
            // How far they shrink only the hub knows: what did not come is for others.
            let came = answer.as_ref().map_or(0, Vec::len);
            self.throttle.lock().give_back(bytes_max.saturating_sub(came));
            answer.inspect(|_| way.answered(began.elapsed()))
        };
        attempts(patience, once, |pause| match way.failed(cancel, || self.wait(pause, cancel).is_ok()) {
            true => Ok(()),
            false => Err(Broken::Cancelled),
        })
    }

    /// How long the hub was not heard.
    pub fn silent_for(&self) -> Duration {
        self.heard.lock().elapsed()
    }

    /// Waits for a share of the bandwidth.
    fn wait_for_turn(&self, bytes: usize, cancel: &Cancel) -> Result<(), Broken> {
        let turn = self.throttle.lock().book(bytes, Instant::now());
        loop {
            let left = self.throttle.lock().until(turn, Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if let Err(error) = self.wait(left.min(LIMIT_LOOK_PERIOD), cancel) {
                // Who comes next does not wait for what nobody sends.
                self.throttle.lock().give_back(bytes);
                return Err(error);
            }
        }
    }

    /// The hub says what blocks may take from now on; the node's own limit holds beside it.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        let lowest = [self.own_limit, bytes_per_second].into_iter().flatten().min();
        self.throttle.lock().limit(lowest, Instant::now());
    }

    /// Waits, unless somebody cancels.
    pub fn wait(&self, duration: Duration, cancel: &Cancel) -> Result<(), Broken> {
        if duration.is_zero() {
            return Ok(());
        }
        // Made where it is awaited: a timer belongs to a runtime, and this thread is none of it.
        self.until_cancelled(async { tokio::time::sleep(duration).await }, cancel).ok_or(Broken::Cancelled)
    }

    fn attempt(&self, body: Vec<u8>, cancel: &Cancel) -> Option<Result<Vec<u8>, ClientError>> {
        let answer = self.until_cancelled(self.client.node_call(body), cancel)?;
        // A refusal is a sign of life, too.
        if !answer.as_ref().is_err_and(is_transient) {
            *self.heard.lock() = Instant::now();
        }
        Some(answer)
    }

    /// What comes of `work`; none when somebody cancels before.
    fn until_cancelled<T>(&self, work: impl Future<Output = T>, cancel: &Cancel) -> Option<T> {
        let asked = Arc::new(Notify::new());
        let rung = asked.clone();
        let _guard = cancel.on_cancel(move || rung.notify_one());
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Some(done),
                () = asked.notified() => None,
            }
        })
    }
}

/// Tries once, and after a pause again, until the hub was silent for as long as `patience`.
fn attempts(
    patience: Duration,
    once: impl Fn() -> Result<Vec<u8>, Broken>,
    wait: impl Fn(Duration) -> Result<(), Broken>,
) -> Result<Vec<u8>, Broken> {
    let mut attempt = 0;
    loop {
        match once() {
            Err(Broken::Silent(silent, error)) if silent < patience => {
                tracing::debug!(attempt, error = %error, "the hub does not answer");
                wait(pause(attempt))?;
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// True when the same call may succeed later: the way is broken, or the hub (or a proxy before it) cannot answer now.
fn is_transient(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable(_) | ClientError::Protocol(_) => true,
        error => matches!(error.status(), Some(502..=504)),
    }
}

/// The pause after an attempt.
pub fn pause(attempt: u32) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let full = PAUSE_MS_FIRST.saturating_mul(1 << attempt.min(10)).min(PAUSE_MS_MAX);
    let random = RandomState::new().hash_one(attempt);
    Duration::from_millis(full / 2 + random % (full / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        for attempt in 0..40 {
            let pause = pause(attempt).as_millis() as u64;
            let full = (PAUSE_MS_FIRST << attempt.min(10)).min(PAUSE_MS_MAX);
            assert!((full / 2..full).contains(&pause), "{attempt}: {pause}");
        }
    }
}
