//! A disk's blocks on their way to the hub: gathered into batches that several streams send side by side.
//!
//! ```text
//! lanes --put--> batch --full--> queue --> streams --> hub
//! ```
//!
//! Each stream has one batch under way and waits for the hub to say that it is stored, so a slow repository holds the
//! streams, they hold the queue, and the queue holds the lanes. A batch whose answer was lost is sent again under its
//! number, and the hub stores it once.
//!
//! Invariant: [`RemoteSink::finish`] returns well only when the hub has stored every block that was put.

use super::batch;
use super::link::Link;
use super::message::{Call, OrderId};
use parking_lot::{Condvar, Mutex};
use sendense_block::{Block, BlockSink, Cancel, Error, Kind, Result};
use sendense_types::DiskNumber;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Streams per disk. With [`BATCH_BYTES`] each, 4 MiB are under way: that fills 100 Mbit/s up to 300 ms of round trip, and
/// 1 Gbit/s up to 30 ms. Disks that are copied side by side add up.
const STREAMS: usize = 8;
/// A batch is sent when it has so many bytes: large enough that its head and the wait for its answer cost nothing, small
/// enough that sending it again after a broken connection costs little.
const BATCH_BYTES: usize = 512 << 10;
/// Batches that wait for a stream: one each, so that a stream never waits for the reader.
const QUEUED_MAX: usize = STREAMS;

/// Where the blocks of one disk go.
pub struct RemoteSink {
    shared: Arc<Shared>,
    streams: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    link: Arc<Link>,
    order: OrderId,
    disk: DiskNumber,
    patience: Duration,
    cancel: Cancel,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    gathering: Vec<u8>,
    queue: VecDeque<(u64, Vec<u8>)>,
    next: u64,
    under_way: usize,
    failed: Option<(Kind, String)>,
    closed: bool,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some((kind, why)) => Err(Error::new(*kind, why.clone())),
            None => Ok(()),
        }
    }

    /// Queues what was gathered.
    fn flush(&mut self) {
        if !self.gathering.is_empty() {
            let batch = std::mem::take(&mut self.gathering);
            self.queue.push_back((self.next, batch));
            self.next += 1;
        }
    }
}

impl RemoteSink {
    /// Starts the streams of a disk.
    pub fn start(
        link: Arc<Link>,
        order: OrderId,
        disk: DiskNumber,
        patience: Duration,
        cancel: Cancel,
    ) -> Result<Self> {
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { link, order, disk, patience, cancel, state, changed: Condvar::new() });
        let sink = Self { shared: shared.clone(), streams: Mutex::new(Vec::new()) };
        for number in 0..STREAMS {
            let shared = shared.clone();
            let stream = std::thread::Builder::new().name(format!("stream-{number}")).spawn(move || shared.send());
            // Those that were started end when the sink is dropped.
            sink.streams.lock().push(stream.map_err(|error| Error::io("start a stream", error))?);
        }
        Ok(sink)
    }

    /// Sends what is left and waits until the hub has stored it.
    pub fn finish(&self) -> Result<()> {
        let mut state = self.shared.state.lock();
        state.flush();
        self.shared.changed.notify_all();
        while state.failed.is_none() && !(state.queue.is_empty() && state.under_way == 0) {
            self.shared.changed.wait(&mut state);
        }
        state.check()
    }

    /// How many batches were made so far.
    pub fn batches(&self) -> u64 {
        self.shared.state.lock().next
    }
}

impl BlockSink for RemoteSink {
    fn put(&self, blocks: &[Block<'_>]) -> Result<()> {
        let mut state = self.shared.state.lock();
        for block in blocks {
            while state.failed.is_none() && state.queue.len() >= QUEUED_MAX {
                self.shared.changed.wait(&mut state);
            }
            state.check()?;
            batch::append(&mut state.gathering, block);
            if state.gathering.len() >= BATCH_BYTES {
                state.flush();
                self.shared.changed.notify_all();
            }
        }
        Ok(())
    }
}

impl Drop for RemoteSink {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
        for stream in self.streams.get_mut().drain(..) {
            // A stream that panicked has said so in its disk's failure.
            let _ = stream.join();
        }
    }
}

impl Shared {
    /// The life of a stream.
    fn send(&self) {
        // A panic must not leave those waiting who wait for the batch.
        let _ended = Ended(self);
        while let Some((number, bytes)) = self.next() {
            let sent = self.send_one(number, &bytes);
            let mut state = self.state.lock();
            state.under_way -= 1;
            if let Err(error) = sent {
                state.failed.get_or_insert((error.kind, sendense_block::error::chain(&error)));
            }
            self.changed.notify_all();
        }
    }

    fn send_one(&self, batch: u64, bytes: &[u8]) -> Result<()> {
        self.link.wait_for_turn(bytes.len(), &self.cancel)?;
        let call = Call::Blocks { order: self.order.clone(), disk: self.disk, batch };
        self.link.call(&call, bytes, self.patience, &self.cancel)?;
        Ok(())
    }

    fn next(&self) -> Option<(u64, Vec<u8>)> {
        let mut state = self.state.lock();
        loop {
            if state.failed.is_some() || state.closed {
                return None;
            }
            if let Some(next) = state.queue.pop_front() {
                state.under_way += 1;
                // There is room for the lanes now.
                self.changed.notify_all();
                return Some(next);
            }
            self.changed.wait(&mut state);
        }
    }
}

/// Says that a stream ended, where that was not asked for.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if !state.closed {
            state.failed.get_or_insert((Kind::Io, "a stream to the hub ended".to_owned()));
        }
        self.0.changed.notify_all();
    }
}
