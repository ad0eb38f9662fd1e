//! Replies on their way to a client.
//!
//! What lives here: putting replies together ([`Reply`]), and sending those of several threads as few large writes
//! ([`Outbox`]). What does not: what they say (`work`). Invariant: a reply's bytes are one piece on the wire, and the chunk
//! with the "done" flag is the last of its request.
//!
//! A thread that has a reply puts it into the queue. If nobody sends, it becomes the sender until the queue is empty; if
//! somebody does, it goes back to work. So one thread at most waits for a slow client, and what gathers meanwhile leaves
//! in one system call. The queue is bounded by the permits that its replies hold.

use super::budget::{Buffer, Permit};
use super::request::Ask;
use crate::nbd::frame::{ReplyHeader, chunk};
use crate::nbd::transport::{Link, Patience, Sender};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// What leaves in one call: a quarter of what Linux takes as one vector (1024 parts), and a socket buffer's worth.
const BATCH_PARTS_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// A client that takes a little of a batch again and again has this many stall times for all of it.
const STALLS_PER_BATCH: u32 = 10;
/// Where the flags are in a chunk's header.
const CHUNK_FLAGS: Range<usize> = 4..6;

/// A request until its reply is sent.
pub(super) struct Job {
    pub(super) cookie: u64,
    pub(super) ask: Ask,
    /// The data of a write.
    pub(super) payload: Vec<u8>,
    /// Pieces of work that are not finished.
    left: AtomicUsize,
    failed: AtomicBool,
    /// Data of a read whose reply must be one piece.
    whole: Mutex<Vec<(u64, Buffer)>>,
    _permit: Permit,
}

impl Job {
    pub(super) fn new(cookie: u64, ask: Ask, payload: Vec<u8>, pieces: usize, permit: Permit) -> Arc<Self> {
        Arc::new(Self {
            cookie,
            ask,
            payload,
            left: AtomicUsize::new(pieces),
            failed: AtomicBool::new(false),
            whole: Mutex::default(),
            _permit: permit,
        })
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// True for the first failure of the request.
    pub(super) fn fail(&self) -> bool {
        !self.failed.swap(true, Ordering::SeqCst)
    }

    pub(super) fn keep(&self, at: u64, buffer: Buffer) {
        self.whole.lock().push((at, buffer));
    }

    /// What was kept, in order.
    pub(super) fn kept(&self) -> Vec<Buffer> {
        let mut whole = std::mem::take(&mut *self.whole.lock());
        whole.sort_by_key(|(at, _)| *at);
        whole.into_iter().map(|(_, buffer)| buffer).collect()
    }

    /// Counts a piece as finished; true for the last.
    pub(super) fn finish_piece(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

/// Headers and data of a reply, or of a part of it.
pub(super) struct Reply {
    job: Arc<Job>,
    heads: Vec<u8>,
    buffers: Vec<Buffer>,
    parts: Vec<Part>,
    /// Where in `heads` the last chunk starts.
    last_chunk: Option<usize>,
}

enum Part {
    Head(Range<usize>),
    Data { buffer: usize, range: Range<usize> },
}

impl Reply {
    /// Nothing yet.
    pub(super) fn new(job: &Arc<Job>) -> Self {
        Self { job: job.clone(), heads: Vec::new(), buffers: Vec::new(), parts: Vec::new(), last_chunk: None }
    }

    /// A simple reply without data.
    pub(super) fn simple(job: &Arc<Job>, error: u32) -> Self {
        let mut reply = Self::new(job);
        reply.head(&ReplyHeader::Simple { error, cookie: job.cookie }.encode());
        reply
    }

    /// A chunk with all of its payload but `data_len` bytes, which [`Reply::data`] adds.
    pub(super) fn chunk(&mut self, kind: u16, payload: &[u8], data_len: usize) {
        // Requests are at most 32 MiB, status replies some KiB.
        let len = u32::try_from(payload.len() + data_len).expect("a chunk is hardly longer than the largest request");
        let start = self.heads.len();
        self.head(&ReplyHeader::Chunk { flags: 0, kind, cookie: self.job.cookie, len }.encode());
        self.head(payload);
        self.last_chunk = Some(start);
    }

    /// Holds a buffer for [`Reply::data`].
    pub(super) fn hold(&mut self, buffer: Buffer) -> usize {
        self.buffers.push(buffer);
        self.buffers.len() - 1
    }

    /// Bytes of a held buffer.
    pub(super) fn data(&mut self, buffer: usize, range: Range<usize>) {
        self.parts.push(Part::Data { buffer, range });
    }

    /// Marks the last chunk, an empty one if there is none.
    pub(super) fn done(mut self) -> Self {
        if self.last_chunk.is_none() {
            self.chunk(chunk::NONE, &[], 0);
        }
        let start = self.last_chunk.expect("a chunk was just added");
        self.heads[start..][CHUNK_FLAGS].copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
        self
    }

    fn head(&mut self, bytes: &[u8]) {
        let start = self.heads.len();
        self.heads.extend_from_slice(bytes);
        match self.parts.last_mut() {
            Some(Part::Head(range)) if range.end == start => range.end = self.heads.len(),
            _ => self.parts.push(Part::Head(start..self.heads.len())),
        }
    }

    fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.parts.iter().map(|part| match part {
            Part::Head(range) => IoSlice::new(&self.heads[range.clone()]),
            Part::Data { buffer, range } => IoSlice::new(&self.buffers[*buffer][range.clone()]),
        })
    }

    fn byte_len(&self) -> usize {
        self.slices().map(|slice| slice.len()).sum()
    }
}

/// The way to one client.
pub(super) struct Outbox {
    link: Arc<Link>,
    queue: Mutex<Queue>,
    sender: Mutex<Sender>,
    stall: Duration,
    /// Beside the queue, because who waits for room asks it with the budget locked, and replies that are dropped lock the
    /// budget: for the same reason no reply is dropped with the queue locked.
    broken: AtomicBool,
}

#[derive(Default)]
struct Queue {
    replies: VecDeque<Reply>,
    sending: bool,
}

impl Outbox {
    pub(super) fn new(link: Arc<Link>, sender: Sender, stall: Duration) -> Self {
        let (queue, sender) = (Mutex::default(), Mutex::new(sender));
        Self { link, queue, sender, stall, broken: AtomicBool::new(false) }
    }

    /// True when nobody takes replies any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Sends a reply, or leaves it to whoever sends now.
    pub(super) fn post(&self, reply: Reply) {
        self.put(|| Some(reply));
    }

    /// Sends what one piece of a request has to say; the last piece ends the reply.
    pub(super) fn post_piece(&self, job: &Arc<Job>, piece: Option<Reply>) {
        // Under the queue's lock, so that the piece that is counted last is also the last in the queue.
        self.put(|| if job.finish_piece() { Some(piece.unwrap_or_else(|| Reply::new(job)).done()) } else { piece });
    }

    /// Ends the stream politely, if the socket takes it.
    pub(super) fn goodbye(&self) {
        let mut patience = Patience::new(self.stall, self.stall);
        // Whether the client hears it changes nothing.
        let _ = self.sender.lock().goodbye(&mut patience);
    }

    fn put(&self, make: impl FnOnce() -> Option<Reply>) {
        let mut queue = self.queue.lock();
        let Some(reply) = make() else { return };
        queue.replies.push_back(reply);
        let sends_already = std::mem::replace(&mut queue.sending, true);
        drop(queue);
        if !sends_already {
            self.send();
        }
    }

    fn send(&self) {
        let mut sender = self.sender.lock();
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            if self.is_broken() {
                batch.clear();
                continue;
            }
            let mut slices: Vec<_> = batch.iter().flat_map(Reply::slices).collect();
            let mut patience = Patience::new(self.stall, self.stall * STALLS_PER_BATCH);
            if let Err(broken) = sender.all(&mut slices, &mut patience) {
                tracing::debug!(?broken, "NBD client takes no replies");
                self.broken.store(true, Ordering::SeqCst);
                // The receiver learns it so.
                self.link.shutdown();
            }
            batch.clear();
        }
    }

    /// The next replies; false, and nobody is sending any more, when there are none.
    fn take(&self, batch: &mut Vec<Reply>) -> bool {
        let mut queue = self.queue.lock();
        let (mut parts, mut bytes) = (0, 0);
        while parts < BATCH_PARTS_MAX
            && bytes < BATCH_BYTES_MAX
            && let Some(reply) = queue.replies.pop_front()
        {
            parts += reply.parts.len();
            bytes += reply.byte_len();
            batch.push(reply);
        }
        queue.sending = !batch.is_empty();
        queue.sending
    }
}
