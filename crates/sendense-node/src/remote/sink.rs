//! A disk's blocks on their way to the hub: gathered into batches that several streams send side by side.
//!
//! ```text
//! lanes --put--> batch --full--> queue --> streams --> hub      stored -> durable
//!                                            ^                     |
//!                                            '-- read again <------' the hub died before
//! ```
//!
//! Each stream has one batch under way and waits for the hub to say that it is stored, so a slow repository holds the
//! streams, they hold the queue, and the queue holds the lanes. A batch whose answer was lost is sent again under its
//! number, and the hub stores it once. Of batches that are stored but would not outlive the hub ([`Ledger`]) the numbers of the
//! blocks are kept, not the bytes: when the hub has died, those are read again from the same snapshot.
//!
//! Invariant: [`RemoteSink::finish`] returns well only when every block that was put outlives the hub.

use super::batch;
use super::ledger::{Ledger, Runs, runs_of};
use super::link::Link;
use super::message::{Call, OrderId, Stored, unpack};
use super::ways::{Way, Ways};
use parking_lot::{Condvar, Mutex};
use sendense_block::codec::{Encoder, Level};
use sendense_block::{
    BLOCK_BYTES, Block, BlockIndex, BlockSink, Cancel, Digest, Disk, Error, HookGuard, Kind, Payload, ReadAt, Result,
};
use sendense_types::DiskNumber;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Streams per disk. Each waits a round trip, and for the hub's disk, between two batches, and begins as slowly as TCP does: with 8 a line
/// of 100 Mbit/s at 150 ms took seven seconds to be full. How many of a backup's are on their
/// way at once is bounded and learnt in `ways`: a stream takes up a batch only when it may go.
const STREAMS: usize = 16;
/// A batch is sent when it has so many bytes: large enough that its head and the wait for its answer cost nothing, small
/// enough that sending it again after a broken connection costs little.
const BATCH_BYTES: usize = 512 << 10;
/// Or so many blocks, which bounds what is kept of it until it is durable: 16 KiB.
const BATCH_BLOCKS: usize = 1024;
/// Batches that wait for a stream: 2 MiB a disk. Streams become free one after the other.
const QUEUED_MAX: usize = 4;
/// Batches that are not durable yet. The hub takes 1024 ahead of those that are; it makes them durable every 256 at the latest.
const NOT_DURABLE_MAX: u64 = 768;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Where the blocks of one disk go.
pub struct RemoteSink {
    shared: Arc<Shared>,
    streams: Mutex<Vec<JoinHandle<()>>>,
}

/// What a disk's sink needs.
pub struct Options {
    /// The way to the hub.
    pub link: Arc<Link>,
    /// How many batches of the backup go at once.
    pub ways: Arc<Ways>,
    /// The backup.
    pub order: OrderId,
    /// The disk.
    pub disk: DiskNumber,
    /// How they are compressed.
    pub level: Level,
    /// How long a hub that is away is waited for.
    pub patience: Duration,
    /// Ends it.
    pub cancel: Cancel,
}

struct Shared {
    options: Options,
    /// Ends the streams: somebody cancelled, one of them failed, or the disk was let go. What waits for its share of the line
    /// does not wait on.
    over: Cancel,
    _cancelled: HookGuard,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Where blocks are read again, until the disk is let go.
    reader: Option<Arc<dyn Disk>>,
    gathering: Vec<u8>,
    gathered: usize,
    queue: VecDeque<(u64, Vec<u8>)>,
    ledger: Ledger,
    next: u64,
    under_way: usize,
    settling: bool,
    failed: Option<(Kind, String)>,
    closed: bool,
}

/// What a stream does next.
enum Work {
    Send(u64, Vec<u8>),
    ReadAgain(u64, Runs),
    Settle,
}

/// Sorts of [`Work`].
enum Due {
    Lost,
    Queued,
    Settle,
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
            self.gathered = 0;
            self.queue.push_back((self.next, batch));
            self.next += 1;
        }
    }

    fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert((error.kind, sendense_block::error::chain(error)));
    }

    /// What is to be done next.
    fn due(&self) -> Option<Due> {
        if self.ledger.has_lost() {
            return Some(Due::Lost);
        }
        let (batch, _) = self.queue.front()?;
        // What a hub says is not believed: it may tell of more than was ever made.
        if *batch < self.ledger.floor().saturating_add(NOT_DURABLE_MAX) {
            return Some(Due::Queued);
        }
        (!self.settling).then_some(Due::Settle)
    }

    /// Takes it up.
    fn next_work(&mut self) -> Option<Work> {
        let work = match self.due()? {
            Due::Lost => self.ledger.take_lost().map(|(batch, runs)| Work::ReadAgain(batch, runs)),
            Due::Queued => self.queue.pop_front().map(|(batch, bytes)| Work::Send(batch, bytes)),
            Due::Settle => {
                self.settling = true;
                return Some(Work::Settle);
            }
        };
        self.under_way += usize::from(work.is_some());
        work
    }
}

impl RemoteSink {
    /// Starts the streams of a disk, which may read it through `reader` until [`RemoteSink::let_go`].
    pub fn start(options: Options, reader: Arc<dyn Disk>) -> Result<Self> {
        let state = State { reader: Some(reader), ..State::default() };
        let over = Cancel::new();
        let ends = over.clone();
        let _cancelled = options.cancel.on_cancel(move || ends.cancel());
        let shared = Arc::new(Shared { options, over, _cancelled, state: Mutex::new(state), changed: Condvar::new() });
        let sink = Self { shared: shared.clone(), streams: Mutex::new(Vec::new()) };
        for number in 0..STREAMS {
            let shared = shared.clone();
            let stream = std::thread::Builder::new().name(format!("stream-{number}")).spawn(move || shared.send());
            // Those that were started end when the sink is dropped.
            sink.streams.lock().push(stream.map_err(|error| Error::io("start a stream", error))?);
        }
        Ok(sink)
    }

    /// Sends what is left and waits until the hub has stored it for good. The disk can still be read, and is, where the hub dies
    /// meanwhile.
    pub fn finish(&self) -> Result<()> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        state.flush();
        shared.changed.notify_all();
        loop {
            while state.failed.is_none()
                && !(state.queue.is_empty() && state.under_way == 0 && !state.ledger.has_lost())
            {
                shared.changed.wait(&mut state);
            }
            state.check()?;
            if state.ledger.floor() == state.next {
                return Ok(());
            }
            drop(state);
            let stored = shared.settle()?;
            state = shared.state.lock();
            state.ledger.heard(stored);
            shared.changed.notify_all();
            if state.ledger.floor() != state.next && !state.ledger.has_lost() && state.under_way == 0 {
                return Err(Error::new(Kind::Protocol, "the hub does not know of blocks that it has stored"));
            }
        }
    }

    /// Nothing is sent any more, and the disk is not held open. A call that is under way is given up: its source does
    /// not wait for a hub that is away, nor for a share of the line.
    pub fn let_go(&self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        let reader = state.reader.take();
        drop(state);
        self.shared.over.cancel();
        self.shared.changed.notify_all();
        // Without the lock: this may end a connection.
        drop(reader);
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
            state.gathered += 1;
            if state.gathering.len() >= BATCH_BYTES || state.gathered >= BATCH_BLOCKS {
                state.flush();
                self.shared.changed.notify_all();
            }
        }
        Ok(())
    }
}

impl Drop for RemoteSink {
    fn drop(&mut self) {
        self.let_go();
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
        while let Some((work, way)) = self.next() {
            let (done, is_batch) = match work {
                Work::Send(batch, bytes) => (self.send_one(batch, &bytes, None, &way), true),
                Work::ReadAgain(batch, runs) => {
                    let blocks: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
                    tracing::info!(disk_id = %self.options.disk, batch, blocks, "blocks that a hub has lost are read again");
                    (self.read_again(&runs).and_then(|bytes| self.send_one(batch, &bytes, Some(runs), &way)), true)
                }
                Work::Settle => (self.settle().map(|stored| self.state.lock().ledger.heard(stored)), false),
            };
            drop(way);
            if let Err(error) = done {
                self.fail(&error);
            }
            let mut state = self.state.lock();
            if is_batch {
                state.under_way -= 1;
            } else {
                state.settling = false;
            }
            self.changed.notify_all();
        }
    }

    fn send_one(&self, batch: u64, bytes: &[u8], runs: Option<Runs>, way: &Way<'_>) -> Result<()> {
        let Options { link, order, disk, patience, .. } = &self.options;
        let call = Call::Blocks { order: order.clone(), disk: *disk, batch };
        let stored = self.read_stored(&link.send(&call, bytes, way, *patience, &self.over)?)?;
        let runs = match runs {
            Some(runs) => runs,
            None => runs_of(bytes)?,
        };
        self.state.lock().ledger.stored(batch, runs, stored);
        Ok(())
    }

    fn settle(&self) -> Result<Stored> {
        let Options { link, order, disk, patience, .. } = &self.options;
        let call = Call::Settle { order: order.clone(), disk: *disk };
        self.read_stored(&link.call(&call, &[], *patience, &self.over)?)
    }

    fn read_stored(&self, answer: &[u8]) -> Result<Stored> {
        let read = unpack::<Stored>(answer);
        read.map(|(stored, _)| stored).map_err(|error| Error::new(Kind::Protocol, error.to_string()))
    }

    /// The batch that these blocks make, from the disk as it was frozen.
    fn read_again(&self, runs: &Runs) -> Result<Vec<u8>> {
        let reader = self.state.lock().reader.clone();
        let reader = reader.ok_or_else(|| Error::new(Kind::Cancelled, "the disk was let go"))?;
        let mut encoder = Encoder::new(self.options.level)?;
        let (mut block, mut frame) = (vec![0; BLOCK], vec![0; Encoder::FRAME_BYTES_MAX]);
        let mut bytes = Vec::with_capacity(BATCH_BYTES);
        for index in runs.iter().flat_map(|(first, count)| *first..first.saturating_add(u64::from(*count))) {
            let index = BlockIndex(index);
            let here = reader.size().0.saturating_sub(index.offset().0).min(BLOCK_BYTES) as usize;
            reader.read_at(index.offset(), &mut block[..here])?;
            block[here..].fill(0);
            let digest = Digest::of(&block);
            let payload = if digest == Digest::of_zero_block() {
                Payload::Zero
            } else {
                match encoder.encode(&block, &mut frame) {
                    Some(len) => Payload::Zstd(&frame[..len]),
                    None => Payload::Raw(&block),
                }
            };
            batch::append(&mut bytes, &Block { index, digest, payload });
        }
        Ok(bytes)
    }

    /// The first failure is what is told of the disk; the other streams end.
    fn fail(&self, error: &Error) {
        self.state.lock().fail(error);
        self.over.cancel();
    }

    /// Something to do, and the way for it; none when it is over.
    fn next(&self) -> Option<(Work, Way<'_>)> {
        let mut state = self.state.lock();
        loop {
            if state.failed.is_some() || state.closed {
                return None;
            }
            if state.due().is_none() {
                self.changed.wait(&mut state);
                continue;
            }
            drop(state);
            let Some(way) = self.options.ways.take(&self.over) else {
                self.fail(&Error::new(Kind::Cancelled, "stopped on request"));
                return None;
            };
            state = self.state.lock();
            // Another stream may have been faster, or it is over by now.
            if state.failed.is_none()
                && !state.closed
                && let Some(work) = state.next_work()
            {
                // There is room for the lanes now.
                self.changed.notify_all();
                return Some((work, way));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_api::{Client, ClientOptions};
    use sendense_block::ByteLen;
    use sendense_block::backend::Memory;

    #[test]
    fn a_disk_that_was_let_go_is_not_held_open_and_its_streams_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let client = Client::new(ClientOptions::new("http://127.0.0.1:1")).unwrap();
        let options = Options {
            link: Arc::new(Link::new(client, runtime.handle().clone(), None)),
            ways: Arc::default(),
            order: OrderId("order".to_owned()),
            disk: DiskNumber(0),
            level: Level::Fast,
            patience: Duration::ZERO,
            cancel: Cancel::new(),
        };
        let disk = Arc::new(Memory::zeroed(ByteLen(BLOCK_BYTES)));
        let sink = RemoteSink::start(options, disk.clone()).unwrap();
        assert_eq!(Arc::strong_count(&disk), 2);
        sink.let_go();
        assert_eq!(Arc::strong_count(&disk), 1, "the sink holds the disk open");
        assert_eq!(sink.shared.read_again(&vec![(0, 1)]).unwrap_err().kind, Kind::Cancelled);
        sink.streams.lock().drain(..).for_each(|stream| stream.join().unwrap());
    }
}
