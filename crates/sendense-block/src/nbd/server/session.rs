//! One client's requests: taking them, and the threads that serve them.
//!
//! What lives here: reading requests and write payloads, and the queue to the workers. What does not: the haggling before
//! (`haggle`), the work (`work`), replies (`outbox`). Invariant: when [`Session::run`] returns, no thread of this
//! connection uses the device.
//!
//! ```text
//! socket --> receiver --permit--> queue --> workers --> outbox --> socket
//! ```

use super::budget::Budget;
use super::haggle::{Agreed, End};
use super::options::{Options, REQUEST_BYTES_MAX};
use super::outbox::{Job, Outbox};
use super::request::{self, Ask, Facts};
use super::work::{self, Bench, STATUS_BYTES};
use crate::cancel::Cancel;
use crate::extent::Extent;
use crate::nbd::dial::FOREVER;
use crate::nbd::frame::{Command, REQUEST_BYTES, Request};
use crate::nbd::transport::{Broken, Link, Patience, Receiver, Sender};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, Scope};

/// A client that sends a little of a payload again and again has this many stall times for all of it.
const STALLS_PER_PAYLOAD: u32 = 10;

pub(super) struct Session<'a> {
    options: &'a Options,
    cancel: &'a Cancel,
    facts: Facts,
    link: Arc<Link>,
    budget: Arc<Budget>,
    bench: Bench,
    queue: Mutex<Queue>,
    ready: Condvar,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<(Arc<Job>, Extent)>,
    workers: usize,
    idle: usize,
    /// No more tasks come.
    closed: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        options: &'a Options,
        cancel: &'a Cancel,
        agreed: Agreed,
        link: Arc<Link>,
        sender: Sender,
        total: Arc<super::budget::Total>,
    ) -> Self {
        let Agreed { entry, structured, allocation } = agreed;
        let facts = Facts { size: entry.size, read_only: entry.device.is_read_only(), structured, allocation };
        let outbox = Outbox::new(link.clone(), sender, options.stall_timeout);
        Self {
            options,
            cancel,
            facts,
            link,
            budget: Budget::new(total.clone(), options.client_bytes_max, options.requests_max),
            bench: Bench { entry, total, outbox, structured },
            queue: Mutex::default(),
            ready: Condvar::new(),
        }
    }

    /// Serves requests until the client leaves or is cut off.
    pub(super) fn run(&self, receiver: &mut Receiver) -> End {
        let end = std::thread::scope(|scope| {
            let end = self.receive(scope, receiver).unwrap_or_else(|end| end);
            let mut queue = self.queue.lock();
            queue.closed = true;
            // "The server MUST handle all outstanding requests" of a client that says goodbye; of others, nobody waits for
            // the replies.
            if !matches!(end, End::Left) {
                queue.tasks.clear();
                self.link.shutdown();
            }
            self.ready.notify_all();
            end
        });
        if matches!(end, End::Left) {
            self.bench.outbox.goodbye();
        }
        end
    }

    fn receive<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, receiver: &mut Receiver) -> Result<End, End> {
        loop {
            self.wait(receiver)?;
            let mut patience = Patience::new(self.options.stall_timeout, self.options.stall_timeout);
            let request = receiver.message(&mut patience, decode)??;
            if !self.is_alive() {
                return Err(End::Refused("the export was removed".into()));
            }
            let asked = request::check(&request, &self.facts);
            if asked == Ok(Ask::Disconnect) {
                return Ok(End::Left);
            }
            // The payload of a write comes also where the write is refused.
            let payload_len = if request.command == Command::Write.code() { u64::from(request.len) } else { 0 };
            if payload_len > REQUEST_BYTES_MAX {
                return Err(End::Refused(format!("write of {payload_len} bytes")));
            }
            let bytes = match asked {
                Ok(Ask::Read { range, .. }) => range.len().0,
                Ok(Ask::Cache { range }) => range.len().0.min(work::CACHE_BYTES_MAX),
                Ok(Ask::Status { .. }) => STATUS_BYTES,
                Ok(Ask::Write { .. }) => payload_len,
                _ => 0,
            };
            let permit = self.budget.acquire(bytes, || self.is_alive()).ok_or(End::Broken(Broken::Closed))?;
            let total = self.options.stall_timeout * STALLS_PER_PAYLOAD;
            let mut patience = Patience::new(self.options.stall_timeout, total);
            match asked {
                Ok(ask) => {
                    let payload = receiver.bytes(payload_len as usize, &mut patience)?;
                    let pieces = work::pieces(&ask);
                    let job = Job::new(request.cookie, ask, payload, pieces.len(), permit);
                    self.push(scope, &job, pieces)?;
                }
                Err(refusal) => {
                    discard(receiver, payload_len as usize, &mut patience)?;
                    let job = Job::new(request.cookie, Ask::Disconnect, Vec::new(), 1, permit);
                    self.bench.refuse(&job, refusal);
                }
            }
        }
    }

    /// Until a request begins. A client that waits for replies is not idle.
    fn wait(&self, receiver: &mut Receiver) -> Result<(), End> {
        let idle = self.options.idle_timeout.unwrap_or(FOREVER);
        loop {
            match receiver.any(&mut Patience::new(idle, FOREVER)) {
                Err(Broken::Silent(_) | Broken::Slow) if self.options.idle_timeout.is_none() => {}
                Err(Broken::Silent(_)) if !self.budget.is_idle() => {}
                other => return Ok(other?),
            }
        }
    }

    fn is_alive(&self) -> bool {
        !(self.cancel.is_cancelled() || self.bench.entry.removed.is_cancelled() || self.bench.outbox.is_broken())
    }

    fn push<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        job: &Arc<Job>,
        pieces: Vec<Extent>,
    ) -> Result<(), End> {
        let mut queue = self.queue.lock();
        queue.tasks.extend(pieces.into_iter().map(|piece| (job.clone(), piece)));
        for _ in 0..queue.tasks.len().min(queue.idle) {
            self.ready.notify_one();
        }
        // Workers that were woken but do not run yet still count as idle, so tasks beyond them need new ones.
        while queue.tasks.len() > queue.idle && queue.workers < self.options.workers_per_client {
            match Builder::new().name("nbd-worker".into()).spawn_scoped(scope, || self.work()) {
                Ok(_) => queue.workers += 1,
                // Fewer do as well, unless there are none.
                Err(_) if queue.workers > 0 => break,
                Err(error) => return Err(End::Broken(Broken::Io(error))),
            }
        }
        Ok(())
    }

    fn work(&self) {
        let _alarm = Alarm(&self.link);
        loop {
            let (job, piece) = {
                let mut queue = self.queue.lock();
                loop {
                    if let Some(task) = queue.tasks.pop_front() {
                        break task;
                    }
                    if queue.closed {
                        return;
                    }
                    queue.idle += 1;
                    self.ready.wait(&mut queue);
                    queue.idle -= 1;
                }
            };
            if self.is_alive() {
                self.bench.serve(&job, piece);
            }
        }
    }
}

/// A worker that panics leaves requests without replies: then the client must go.
struct Alarm<'a>(&'a Link);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.shutdown();
        }
    }
}

fn decode(bytes: &[u8]) -> crate::error::Result<Option<(Request, usize)>> {
    match bytes.first_chunk::<REQUEST_BYTES>() {
        Some(header) => Ok(Some((Request::decode(header)?, REQUEST_BYTES))),
        None => Ok(None),
    }
}

fn discard(receiver: &mut Receiver, len: usize, patience: &mut Patience) -> Result<(), Broken> {
    let mut left = len;
    let mut waste = vec![0; left.min(64 * 1024)];
    while left > 0 {
        let now = left.min(waste.len());
        receiver.exact(&mut waste[..now], patience)?;
        left -= now;
    }
    Ok(())
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(Broken::Io(error))
    }
}
