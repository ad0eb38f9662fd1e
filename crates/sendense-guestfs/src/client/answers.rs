//! The answer to one request, part by part.
//!
//! Invariant: a part's credit goes back to the worker when the part has been taken, never before; dropping an answer that has
//! not ended cancels it.

use super::connection::{Connection, Event};
use crate::error::{Error, Result};
use crate::wire::reply::Part;
use crate::wire::request::{Call, Message};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often a waiting call looks whether another call has become a reason for more patience.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One open request.
pub struct Answers {
    connection: Arc<Connection>,
    id: u32,
    events: Receiver<Event>,
    ended: bool,
    slow: bool,
    walks: bool,
    asked: Instant,
    working: u64,
}

impl Answers {
    /// Sends a request.
    ///
    /// # Errors
    /// [`Error::Limit`] when too many are open, [`Error::WorkerDied`].
    pub fn ask(connection: &Arc<Connection>, call: Call) -> Result<Answers> {
        // Any of the calls may be the first that finds the volumes; only these are known to be slow every time.
        let slow = matches!(call, Call::Volumes | Call::Unlock(..)) || !connection.has_answered();
        let walks = matches!(call, Call::Walk(..));
        let (id, events) = connection.open()?;
        if slow {
            connection.slow_begins();
        }
        let connected = connection.clone();
        let answers =
            Answers { connection: connected, id, events, ended: false, slow, walks, asked: Instant::now(), working: 0 };
        connection.send(&Message::Request { id, call })?;
        Ok(answers)
    }

    /// The next part; none at the end. Waits no longer than the worker's patience allows.
    pub fn next_part(&mut self) -> Result<Option<Part>> {
        if self.ended {
            return Ok(None);
        }
        loop {
            match self.wait()? {
                Event::Part { part: Part::Working, wire_bytes } => {
                    // An honest worker says so once a second at most, and only of a walk.
                    self.working += 1;
                    if !self.walks || self.working > self.asked.elapsed().as_secs() + 2 {
                        return Err(self.broken("signs of life that are none"));
                    }
                    self.credit(wire_bytes)?;
                }
                Event::Part { part, wire_bytes } => {
                    self.credit(wire_bytes)?;
                    return Ok(Some(part));
                }
                Event::Done => {
                    self.ended = true;
                    return Ok(None);
                }
                Event::Failed(error) => {
                    self.ended = true;
                    return Err(error);
                }
            }
        }
    }

    /// Nothing may follow.
    pub fn finish(&mut self) -> Result<()> {
        match self.next_part()? {
            None => Ok(()),
            Some(_) => Err(self.broken("a part too many")),
        }
    }

    /// Ends the session: the worker said what no honest one says.
    pub fn broken(&self, what: &str) -> Error {
        self.connection.end(Error::WorkerDied(format!("it broke the protocol: {what}")))
    }

    fn wait(&mut self) -> Result<Event> {
        let begun = Instant::now();
        loop {
            match self.events.recv_timeout(LOOK_EVERY.min(self.connection.patience())) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Disconnected) => return Err(self.connection.why_over()),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < self.connection.patience() => {}
                Err(RecvTimeoutError::Timeout) => {
                    let silence = format!("no answer for {} ms", begun.elapsed().as_millis());
                    return Err(self.connection.end(Error::WorkerDied(silence)));
                }
            }
        }
    }

    fn credit(&self, bytes: u64) -> Result<()> {
        self.connection.refund(self.id, bytes)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.slow {
            self.connection.slow_ends();
        }
        if !self.ended {
            self.connection.cancel(self.id);
        }
    }
}
