//! The socket to a worker, shared by all calls of a session: who is waiting for what, and how the session ended.
//!
//! Invariant: what the worker has sent and nobody has taken is at most the credit of each open request; more ends the session.

use super::Patience;
use crate::error::{Error, Result};
use crate::wire::codec;
use crate::wire::frame::{self, Frame, ReadError};
use crate::wire::reply::{self, Part};
use crate::wire::request::Message;
use crate::wire::{CREDIT_BYTES, REQUESTS_MAX};
use std::collections::HashMap;
use std::io::BufReader;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What came for a request.
pub enum Event {
    /// A part, and what it cost.
    Part {
        /// The part.
        part: Part,
        /// Its frame's length.
        wire_bytes: u64,
    },
    /// The end.
    Done,
    /// The end, with an error.
    Failed(Error),
}

/// The socket and who waits at it.
pub struct Connection {
    socket: UnixStream,
    /// One frame at a time.
    writing: Mutex<()>,
    calls: Mutex<Calls>,
    slow: AtomicUsize,
    answered: AtomicBool,
    patience: Patience,
}

struct Calls {
    next_id: u32,
    open: HashMap<u32, Open>,
    over: Option<Error>,
}

struct Open {
    events: Sender<Event>,
    /// What the worker may still send.
    credit: u64,
    /// Nobody waits any more; the number is kept until the worker has ended the answer.
    cancelled: bool,
}

impl Connection {
    /// Takes a socket to a worker that has said Hello.
    pub fn new(socket: UnixStream, patience: Patience) -> std::io::Result<Connection> {
        // A worker that does not read: its socket's buffer fills, and a write must not wait for ever.
        socket.set_write_timeout(Some(patience.step))?;
        let calls = Calls { next_id: 1, open: HashMap::new(), over: None };
        Ok(Connection {
            socket,
            writing: Mutex::new(()),
            calls: Mutex::new(calls),
            slow: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            patience,
        })
    }

    /// A number for a new request, and where its answer will arrive.
    pub fn open(&self) -> Result<(u32, Receiver<Event>)> {
        let mut calls = self.calls();
        if let Some(over) = &calls.over {
            return Err(over.clone());
        }
        if calls.open.len() >= REQUESTS_MAX {
            return Err(Error::Limit(format!("{REQUESTS_MAX} calls of one session are under way")));
        }
        let mut id = calls.next_id;
        while calls.open.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        calls.next_id = id.wrapping_add(1);
        // The channel holds no more than the credit lets in.
        let (events, arriving) = channel();
        calls.open.insert(id, Open { events, credit: CREDIT_BYTES, cancelled: false });
        Ok((id, arriving))
    }

    /// Sends a frame.
    pub fn send(&self, message: &Message) -> Result<()> {
        let (tag, payload) = message.encode();
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match frame::write(&mut &self.socket, tag, &payload) {
            Ok(()) => Ok(()),
            // A frame that is too long never left; anything else leaves the stream in the middle of a frame.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                Err(Error::Limit("the request is too long".into()))
            }
            Err(error) => Err(self.end(Error::WorkerDied(format!("send it a request: {error}")))),
        }
    }

    /// Gives credit back for what was taken.
    pub fn refund(&self, id: u32, bytes: u64) -> Result<()> {
        match self.calls().open.get_mut(&id) {
            Some(open) => open.credit = open.credit.saturating_add(bytes).min(CREDIT_BYTES),
            // The answer has ended meanwhile: the worker has forgotten the number.
            None => return Ok(()),
        }
        self.send(&Message::Credit { id, bytes })
    }

    /// Nobody waits for this answer any more.
    pub fn cancel(&self, id: u32) {
        let tell = match self.calls().open.get_mut(&id) {
            Some(open) => !std::mem::replace(&mut open.cancelled, true),
            None => false,
        };
        if tell {
            // When it cannot be sent the session is over, which cancels too.
            let _ = self.send(&Message::Cancel { id });
        }
    }

    /// Ends the session: the first reason counts. The socket's end makes the keeper kill the process.
    pub fn end(&self, why: Error) -> Error {
        let mut calls = self.calls();
        let over = calls.over.get_or_insert(why).clone();
        // Their receivers find the channel closed and ask why.
        calls.open.clear();
        drop(calls);
        let _ = self.socket.shutdown(Shutdown::Both);
        over
    }

    /// Why the session is over, when it is.
    pub fn over(&self) -> Option<Error> {
        self.calls().over.clone()
    }

    /// Why the session is over, for a call that found it so.
    pub fn why_over(&self) -> Error {
        self.over().unwrap_or_else(|| Error::WorkerDied("the answer's channel was closed".into()))
    }

    /// How long a call may wait now.
    pub fn patience(&self) -> std::time::Duration {
        if self.slow.load(Ordering::SeqCst) > 0 { self.patience.slow } else { self.patience.step }
    }

    /// Whether the worker has answered any request: before, the volumes are not known and the first call finds them.
    pub fn has_answered(&self) -> bool {
        self.answered.load(Ordering::SeqCst)
    }

    /// A call that takes long by its nature has begun; the others wait behind it, so they get its patience.
    pub fn slow_begins(&self) {
        self.slow.fetch_add(1, Ordering::SeqCst);
    }

    /// It has ended.
    pub fn slow_ends(&self) {
        self.slow.fetch_sub(1, Ordering::SeqCst);
    }

    /// Hands out what arrives, until the session ends. Answers why it ended, when the worker said or showed it.
    pub fn receive(&self) -> Option<Error> {
        let mut from = BufReader::with_capacity(64 * 1024, &self.socket);
        loop {
            let died = |what: String| Some(Error::WorkerDied(what));
            match frame::read(&mut from) {
                Ok(frame) => match self.deliver(&frame) {
                    Ok(None) => {}
                    Ok(Some(last)) => return Some(last),
                    Err(error) => return died(format!("it broke the protocol: {}", error.0)),
                },
                Err(ReadError::Malformed(error)) => return died(format!("it broke the protocol: {}", error.0)),
                Err(ReadError::Closed | ReadError::Io(_)) => return None,
            }
        }
    }

    fn deliver(&self, frame: &Frame) -> std::result::Result<Option<Error>, codec::Malformed> {
        let message = reply::Message::decode(frame)?;
        let unknown = |id: u32| codec::malformed(format!("an answer to {id}, which nobody asked"));
        let mut calls = self.calls();
        if calls.over.is_some() {
            return Ok(None);
        }
        match message {
            reply::Message::Part { id, part } => {
                let Some(open) = calls.open.get_mut(&id) else { return unknown(id) };
                let wire_bytes = frame.wire_bytes();
                match open.credit.checked_sub(wire_bytes) {
                    Some(left) => open.credit = left,
                    None => return codec::malformed("it sent more than its credit"),
                }
                if !open.cancelled {
                    // A receiver that was just dropped is a cancellation under way.
                    let _ = open.events.send(Event::Part { part, wire_bytes });
                }
            }
            reply::Message::Done { id } | reply::Message::Failed { id, .. } => {
                let Some(open) = calls.open.remove(&id) else { return unknown(id) };
                self.answered.store(true, Ordering::SeqCst);
                let event = match message {
                    reply::Message::Failed { error, .. } => Event::Failed(error),
                    _ => Event::Done,
                };
                let _ = open.events.send(event);
            }
            reply::Message::Hello { .. } => return codec::malformed("Hello came twice"),
            reply::Message::Fatal { text, .. } => return Ok(Some(Error::WorkerDied(text))),
        }
        Ok(None)
    }

    /// The tables are whole at every moment a panic could happen.
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
