//! Carrying out requests, on any of a connection's threads.
//!
//! What lives here: what a device is asked to do for each command, and what the client is told. What does not: how requests
//! arrive (`session`) and replies leave (`outbox`). Invariant: each piece of a request posts its share of the reply exactly
//! once, whatever the device does.

use super::budget::{PIECE_BYTES, Total};
use super::exports::{Entry, Trim};
use super::haggle::BASE_ALLOCATION_ID;
use super::outbox::{Job, Outbox, Reply};
use super::request::{Ask, Refusal};
use crate::device::{Content, MappedExtent};
use crate::error::{Error, Kind, Result, chain as error_chain};
use crate::extent::Extent;
use crate::nbd::frame::{allocation, chunk, errno};
use crate::units::{ByteLen, ByteOffset};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Holes below a page are sent as the zeros they are: their chunks would cost more.
const HOLE_BYTES_MIN: u64 = 4096;
/// Status is asked of the device in windows, so that one request cannot make it map 4 GiB of fragments at once.
const STATUS_WINDOW_BYTES: u64 = 64 << 20;
/// A status reply has at most so many descriptors, 64 KiB; "the server MAY return less than was asked".
const DESCRIPTORS_MAX: usize = 8 * 1024;
/// What a status reply is counted as.
pub(super) const STATUS_BYTES: u64 = 8 * DESCRIPTORS_MAX as u64;
/// Reading ahead is a favour, and a request of 28 bytes shall not cost reading 4 GiB.
pub(super) const CACHE_BYTES_MAX: u64 = 32 << 20;

/// What all threads of a connection share for their work.
pub(super) struct Bench {
    pub(super) entry: Arc<Entry>,
    pub(super) total: Arc<Total>,
    pub(super) outbox: Outbox,
    pub(super) structured: bool,
}

impl Bench {
    /// Does one piece of a request; `piece` is the part of the range it is about.
    pub(super) fn serve(&self, job: &Arc<Job>, piece: Extent) {
        match job.ask {
            Ask::Read { whole: false, .. } => self.read_chunks(job, piece),
            Ask::Read { range, whole: true } => self.read_whole(job, range, piece),
            Ask::Cache { .. } => self.cache(job, piece),
            Ask::Status { range, one } => match self.status(range, one) {
                Ok(descriptors) => self.outbox.post(status_reply(job, &descriptors)),
                Err(error) => self.fail(job, &error),
            },
            ask => match self.change(ask, &job.payload) {
                Ok(()) => self.outbox.post(Reply::simple(job, 0)),
                Err(error) => self.fail(job, &error),
            },
        }
    }

    /// Says no to a request that was not begun.
    pub(super) fn refuse(&self, job: &Arc<Job>, refusal: Refusal) {
        let reply = match self.structured {
            true => error_chunk(job, None, refusal.errno, refusal.words).done(),
            false => Reply::simple(job, refusal.errno),
        };
        self.outbox.post(reply);
    }

    fn fail(&self, job: &Arc<Job>, error: &Error) {
        self.refuse(job, self.explain(job, error));
    }

    /// The client learns the kind; names of files are for our log.
    fn explain(&self, job: &Job, error: &Error) -> Refusal {
        // Not the name: where names are secrets, a log is read by more people than may read the disk.
        tracing::warn!(export = self.entry.options.description, ask = ?job.ask, reason = error_chain(error), "NBD request failed");
        let (errno, words) = match error.kind {
            Kind::NoSpace => (errno::ENOSPC, "no room left"),
            Kind::Denied => (errno::EPERM, "not permitted"),
            Kind::OutOfRange | Kind::Invalid => (errno::EINVAL, "the device does not take the request"),
            Kind::Unsupported => (errno::ENOTSUP, "the device cannot do it"),
            Kind::Cancelled => (errno::ESHUTDOWN, "stopped"),
            Kind::Corrupt => (errno::EIO, "the stored data is damaged"),
            _ => (errno::EIO, "the device failed"),
        };
        Refusal { errno, words }
    }

    fn read_chunks(&self, job: &Arc<Job>, piece: Extent) {
        // After a failure nobody uses the rest.
        let reply = match job.has_failed() {
            true => None,
            false => match self.read_piece(job, piece) {
                Ok(reply) => Some(reply),
                Err(error) if job.fail() => {
                    let Refusal { errno, words } = self.explain(job, &error);
                    Some(error_chunk(job, Some(piece.start()), errno, words))
                }
                Err(_) => None,
            },
        };
        self.outbox.post_piece(job, reply);
    }

    fn read_piece(&self, job: &Arc<Job>, piece: Extent) -> Result<Reply> {
        let mut reply = Reply::new(job);
        if piece.is_empty() {
            return Ok(reply);
        }
        let map = coarse(self.entry.device.map(piece)?);
        let place = |extent: Extent| {
            let start = (extent.start().0 - piece.start().0) as usize;
            start..start + extent.len().0 as usize
        };
        let mut buffer = None;
        for MappedExtent { extent, content } in &map {
            if *content == Content::Data {
                let buffer = buffer.get_or_insert_with(|| self.total.buffer(piece.len().0 as usize));
                self.entry.device.read(extent.start(), &mut buffer[place(*extent)])?;
            }
        }
        let buffer = buffer.map(|buffer| reply.hold(buffer));
        for MappedExtent { extent, content } in map {
            let at = extent.start().0.to_be_bytes();
            let len = extent.len().0;
            match (content, buffer) {
                (Content::Data, Some(buffer)) => {
                    reply.chunk(chunk::OFFSET_DATA, &at, len as usize);
                    reply.data(buffer, place(extent));
                }
                // A piece is far below 4 GiB.
                _ => reply.chunk(chunk::OFFSET_HOLE, &[&at[..], &(len as u32).to_be_bytes()].concat(), 0),
            }
        }
        self.entry.bytes_read.fetch_add(piece.len().0, Ordering::Relaxed);
        Ok(reply)
    }

    fn read_whole(&self, job: &Arc<Job>, range: Extent, piece: Extent) {
        if !job.has_failed() {
            let mut buffer = self.total.buffer(piece.len().0 as usize);
            match self.entry.device.read(piece.start(), &mut buffer) {
                Ok(()) => job.keep(piece.start().0, buffer),
                Err(error) if job.fail() => self.fail(job, &error),
                Err(_) => {}
            }
        }
        if !job.finish_piece() || job.has_failed() {
            return;
        }
        self.entry.bytes_read.fetch_add(range.len().0, Ordering::Relaxed);
        let mut reply = if self.structured { Reply::new(job) } else { Reply::simple(job, 0) };
        if self.structured && !range.is_empty() {
            reply.chunk(chunk::OFFSET_DATA, &range.start().0.to_be_bytes(), range.len().0 as usize);
        }
        for buffer in job.kept() {
            let len = buffer.len();
            let buffer = reply.hold(buffer);
            reply.data(buffer, 0..len);
        }
        self.outbox.post(if self.structured { reply.done() } else { reply });
    }

    fn cache(&self, job: &Arc<Job>, piece: Extent) {
        if !job.has_failed() {
            let mut buffer = self.total.buffer(piece.len().0 as usize);
            if let Err(error) = self.entry.device.read(piece.start(), &mut buffer)
                && job.fail()
            {
                self.fail(job, &error);
            }
        }
        if job.finish_piece() && !job.has_failed() {
            self.outbox.post(Reply::simple(job, 0));
        }
    }

    fn change(&self, ask: Ask, payload: &[u8]) -> Result<()> {
        let device = &self.entry.device;
        let wrote = |range: Extent| {
            self.entry.bytes_written.fetch_add(range.len().0, Ordering::Relaxed);
        };
        let durable = match ask {
            Ask::Write { range, durable } => {
                if !range.is_empty() {
                    device.write(range.start(), payload)?;
                }
                wrote(range);
                durable
            }
            Ask::Zero { range, durable, allocated } => {
                match allocated {
                    _ if range.is_empty() => {}
                    true => device.fill(range, || !self.outbox.is_broken() && !self.entry.removed.is_cancelled())?,
                    false => device.zero(range)?,
                }
                wrote(range);
                durable
            }
            Ask::Trim { range, durable } => {
                if self.entry.options.trim == Trim::Zero && !range.is_empty() {
                    device.zero(range)?;
                    wrote(range);
                }
                durable
            }
            Ask::Flush => true,
            // These have no place here; they change nothing.
            Ask::Read { .. } | Ask::Cache { .. } | Ask::Status { .. } | Ask::Disconnect => false,
        };
        if durable { device.flush() } else { Ok(()) }
    }

    /// Lengths and flags that follow each other from the range's start, at least one, not beyond its end.
    fn status(&self, range: Extent, one: bool) -> Result<Vec<(u32, u32)>> {
        let mut found: Vec<(u32, u32)> = Vec::new();
        for window in range.pieces(ByteLen(STATUS_WINDOW_BYTES)) {
            for MappedExtent { extent, content } in self.entry.device.map(window)? {
                let flags = match content {
                    Content::Zero => allocation::HOLE | allocation::ZERO,
                    Content::Data => 0,
                };
                // The range's length came as 32 bits.
                let len = extent.len().0 as u32;
                let full = found.len() >= if one { 1 } else { DESCRIPTORS_MAX };
                match found.last_mut() {
                    Some((total, last)) if *last == flags => *total += len,
                    _ if full => return Ok(found),
                    _ => found.push((len, flags)),
                }
            }
            if self.outbox.is_broken() {
                break;
            }
        }
        Ok(found)
    }
}

/// How many threads could share a request, as the ranges they would take.
pub(super) fn pieces(ask: &Ask) -> Vec<Extent> {
    let range = match *ask {
        Ask::Read { range, .. } => range,
        Ask::Cache { range } => {
            let end = range.end().0.min(range.start().0.saturating_add(CACHE_BYTES_MAX));
            Extent::between(range.start(), ByteOffset(end))
        }
        _ => return vec![Extent::default()],
    };
    if range.is_empty() {
        return vec![range];
    }
    range.pieces(ByteLen(PIECE_BYTES as u64)).collect()
}

fn coarse(map: Vec<MappedExtent>) -> Vec<MappedExtent> {
    let mut out: Vec<MappedExtent> = Vec::with_capacity(map.len());
    for MappedExtent { extent, content } in map {
        let hole = content == Content::Zero && extent.len().0 >= HOLE_BYTES_MIN;
        let content = if hole { Content::Zero } else { Content::Data };
        match out.last_mut().filter(|last| last.content == content) {
            Some(last) => last.extent = Extent::between(last.extent.start(), extent.end()),
            None => out.push(MappedExtent { extent, content }),
        }
    }
    out
}

fn status_reply(job: &Arc<Job>, descriptors: &[(u32, u32)]) -> Reply {
    let mut payload = BASE_ALLOCATION_ID.to_be_bytes().to_vec();
    for (len, flags) in descriptors {
        payload.extend(len.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    let mut reply = Reply::new(job);
    reply.chunk(chunk::BLOCK_STATUS, &payload, 0);
    reply.done()
}

fn error_chunk(job: &Arc<Job>, at: Option<ByteOffset>, errno: u32, words: &str) -> Reply {
    let mut payload = errno.to_be_bytes().to_vec();
    // Our words are a short line.
    payload.extend((words.len() as u16).to_be_bytes());
    payload.extend(words.as_bytes());
    let kind = match at {
        None => chunk::ERROR,
        Some(at) => {
            payload.extend(at.0.to_be_bytes());
            chunk::ERROR_OFFSET
        }
    };
    let mut reply = Reply::new(job);
    reply.chunk(kind, &payload, 0);
    reply
}
