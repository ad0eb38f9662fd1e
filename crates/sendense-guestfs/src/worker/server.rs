//! Answering requests, one step of one request at a time.
//!
//! What is asked is taken in whenever it comes; who has work to do and credit to send it with gets his turn, one after the
//! other. A step is short (a page, a piece of a file, one page of a walk), so a listing waits for a step of each download
//! beside it and not for the download. Nothing is prepared beyond what the credit allows to send.
//!
//! Invariant: what waits to be sent is at most one step's result per request.

use crate::error::{Error, Result};
use crate::native::Engine;
use crate::native::session::Pieces;
use crate::native::walk::{Step, Walker};
use crate::sandbox;
use crate::session::ByteStream;
use crate::volume::VolumeId;
use crate::wire::frame::{self, Assembler};
use crate::wire::reply::{self, Part};
use crate::wire::request::{Call, Message};
use crate::wire::{CREDIT_BYTES, PIECE_BYTES, REQUESTS_MAX};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How often a request that finds nothing says that it is at work; well below the hub's patience.
const WORKING_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a frame besides its payload.
const FRAME_OVERHEAD: u64 = 5;

/// A request that has not ended.
struct Request {
    credit: u64,
    job: Job,
    /// Encoded parts that wait for credit.
    outbox: VecDeque<(u8, Vec<u8>)>,
    last_sent: Instant,
}

enum Job {
    /// Not begun.
    Asked(Call),
    /// A part of a file.
    File(Pieces),
    /// A walk.
    Walk(VolumeId, Box<Walker>),
    /// Everything is in the outbox; this ends it.
    Ending(Result<()>),
}

/// Serves until the hub closes the socket.
///
/// # Errors
/// The socket fails, or the hub breaks the protocol.
pub fn serve(socket: &UnixStream, engine: Engine) -> Result<()> {
    let server = Server { socket, engine, requests: BTreeMap::new(), turn: 0, arrived: Assembler::default() };
    server.run()
}

struct Server<'a> {
    socket: &'a UnixStream,
    engine: Engine,
    requests: BTreeMap<u32, Request>,
    /// The request that had the last turn.
    turn: u32,
    arrived: Assembler,
}

impl Server<'_> {
    fn run(mut self) -> Result<()> {
        loop {
            let next = self.next_turn();
            if !self.receive(next.is_none())? {
                return Ok(());
            }
            // What arrived may have cancelled it.
            if let Some(id) = next.filter(|id| self.requests.contains_key(id)) {
                self.turn = id;
                self.step(id)?;
            }
        }
    }

    /// The next request, after the one that had the last turn, that can do something.
    fn next_turn(&self) -> Option<u32> {
        let after = self.requests.range(self.turn.saturating_add(1)..);
        let before = self.requests.range(..=self.turn);
        after.chain(before).find(|(_, request)| request.can_go_on()).map(|(id, _)| *id)
    }

    /// Takes in what has arrived; waits for something when there is nothing else to do. False when the hub has gone.
    fn receive(&mut self, wait: bool) -> Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match recv(self.socket, &mut buffer, flags) {
            Ok((_, 0)) => return Ok(false),
            Ok((_, len)) => self.arrived.push(&buffer[..len]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(Error::Io(format!("receive a request: {errno}"))),
        }
        let protocol = |error: crate::wire::Malformed| Error::Io(error.to_string());
        while let Some(frame) = self.arrived.next_frame().map_err(protocol)? {
            self.take(Message::decode(&frame).map_err(protocol)?)?;
        }
        Ok(true)
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Request { id, .. } if self.requests.contains_key(&id) => {
                return Err(Error::Io(format!("request {id} is open already")));
            }
            Message::Request { id, .. } if self.requests.len() >= REQUESTS_MAX => {
                let error = Error::Limit(format!("{REQUESTS_MAX} requests are open"));
                self.send(&reply::Message::Failed { id, error })?;
            }
            Message::Request { id, call } => {
                let request = Request {
                    credit: CREDIT_BYTES,
                    job: Job::Asked(call),
                    outbox: VecDeque::new(),
                    last_sent: Instant::now(),
                };
                self.requests.insert(id, request);
            }
            // Both may cross with the answer's end.
            Message::Credit { id, bytes } => {
                if let Some(request) = self.requests.get_mut(&id) {
                    request.credit = request.credit.saturating_add(bytes).min(CREDIT_BYTES);
                }
            }
            Message::Cancel { id } => {
                if self.requests.remove(&id).is_some() {
                    self.send(&reply::Message::Done { id })?;
                }
            }
            Message::Start(_) => return Err(Error::Io("Start came twice".into())),
        }
        Ok(())
    }

    /// Sends what waits, or does a little more work.
    fn step(&mut self, id: u32) -> Result<()> {
        let Some(request) = self.requests.get_mut(&id) else { return Ok(()) };
        if request.outbox.is_empty() {
            let outcome = work(&mut self.engine, request, id);
            if let Err(error) = outcome {
                request.job = Job::Ending(Err(error));
            }
        }
        while let Some((tag, payload)) = request.outbox.pop_front_if(|(_, payload)| cost(payload) <= request.credit) {
            request.credit -= cost(&payload);
            request.last_sent = Instant::now();
            frame::write(&mut &*self.socket, tag, &payload).map_err(|error| Error::Io(error.to_string()))?;
        }
        if let (true, Job::Ending(outcome)) = (request.outbox.is_empty(), &request.job) {
            let end = match outcome {
                Ok(()) => reply::Message::Done { id },
                Err(error) => reply::Message::Failed { id, error: error.clone() },
            };
            self.requests.remove(&id);
            self.send(&end)?;
        }
        Ok(())
    }

    fn send(&mut self, message: &reply::Message) -> Result<()> {
        let (tag, payload) = message.encode();
        frame::write(&mut &*self.socket, tag, &payload).map_err(|error| Error::Io(error.to_string()))
    }
}

fn cost(payload: &[u8]) -> u64 {
    FRAME_OVERHEAD + payload.len() as u64
}

impl Request {
    fn can_go_on(&self) -> bool {
        self.outbox.front().is_none_or(|(_, payload)| cost(payload) <= self.credit)
    }

    fn put(&mut self, id: u32, part: Part) {
        self.outbox.push_back(reply::Message::Part { id, part }.encode());
    }

    /// The last part of an answer.
    fn end(&mut self, id: u32, part: Part) {
        self.put(id, part);
        self.job = Job::Ending(Ok(()));
    }
}

/// One step of a request; what it gives goes to the outbox.
fn work(engine: &mut Engine, request: &mut Request, id: u32) -> Result<()> {
    match &mut request.job {
        Job::Asked(call) => {
            let call = call.clone();
            begin(engine, request, id, call)?;
        }
        Job::File(pieces) => match pieces.next_piece()? {
            Some(piece) => request.put(id, Part::Piece(piece)),
            None => request.job = Job::Ending(Ok(())),
        },
        Job::Walk(volume, walker) => match engine.step(volume, walker)? {
            Step::Found(mut found) => {
                found
                    .iter_mut()
                    .filter_map(|found| found.outcome.as_mut().ok())
                    .for_each(|entry| fit_target(&mut entry.target));
                in_frames(found, found_bytes, |found| request.put(id, Part::Found(found)));
            }
            Step::Working if request.last_sent.elapsed() >= WORKING_EVERY => request.put(id, Part::Working),
            Step::Working => {}
            Step::End => request.job = Job::Ending(Ok(())),
        },
        Job::Ending(_) => {}
    }
    Ok(())
}

fn begin(engine: &mut Engine, request: &mut Request, id: u32, call: Call) -> Result<()> {
    match call {
        Call::Volumes => volumes(engine.volumes()?, request, id),
        Call::Unlock(volume, key) => {
            let all = sandbox::memory_for_a_key(|| engine.unlock(&volume, &key))?;
            volumes(all, request, id);
        }
        Call::Resolve(volume, path) => request.end(id, Part::Path(engine.resolve(&volume, &path)?)),
        Call::Stat(volume, path) => request.end(id, Part::Meta(engine.stat(&volume, &path)?)),
        Call::Readlink(volume, path) => {
            let target = engine.readlink(&volume, &path)?;
            if target.len() > reply::TARGET_BYTES_MAX {
                return Err(Error::Limit(format!("a link's target has at most {} bytes", reply::TARGET_BYTES_MAX)));
            }
            request.end(id, Part::Target(target));
        }
        Call::List(volume, path, after, limit) => {
            let mut page = engine.list(&volume, &path, after, limit as usize)?;
            page.entries.iter_mut().for_each(|entry| fit_target(&mut entry.target));
            in_frames(
                page.entries,
                |entry| entry.name.len() + target_bytes(&entry.target),
                |entries| {
                    request.put(id, Part::Entries(entries));
                },
            );
            request.end(id, Part::Next(page.next));
        }
        Call::Read(volume, path, range) => {
            let pieces = Pieces::new(engine.open(&volume, &path)?, range);
            request.put(id, Part::Opened { file_size_bytes: pieces.file_size_bytes() });
            request.job = if pieces.is_over() { Job::Ending(Ok(())) } else { Job::File(pieces) };
        }
        Call::DataRanges(volume, path, from) => {
            request.end(id, Part::Ranges(engine.data_ranges(&volume, &path, from)?));
        }
        Call::Walk(volume, path, options) => {
            let walker = engine.walk(&volume, &path, &options)?;
            request.put(id, Part::Path(walker.root().clone()));
            request.job = Job::Walk(volume, Box::new(walker));
        }
    }
    Ok(())
}

fn volumes(volumes: Vec<crate::Volume>, request: &mut Request, id: u32) {
    volumes.into_iter().for_each(|volume| request.put(id, Part::Volume(volume)));
    request.job = Job::Ending(Ok(()));
}

/// A target too long for the wire is none that any system follows.
fn fit_target(target: &mut Option<Vec<u8>>) {
    if target.as_ref().is_some_and(|target| target.len() > reply::TARGET_BYTES_MAX) {
        *target = None;
    }
}

fn target_bytes(target: &Option<Vec<u8>>) -> usize {
    target.as_ref().map_or(0, Vec::len)
}

fn found_bytes(found: &crate::session::Found) -> usize {
    let outcome = match &found.outcome {
        Ok(entry) => target_bytes(&entry.target),
        // The longest text of an error on the wire.
        Err(_) => 1024,
    };
    found.path.components().map(|name| name.len() + 1).sum::<usize>() + outcome
}

/// Puts items into frames of about [`PIECE_BYTES`]; one item is always far below the bound of a frame.
fn in_frames<T>(items: Vec<T>, bytes: impl Fn(&T) -> usize, mut put: impl FnMut(Vec<T>)) {
    /// What an item costs besides its names: numbers, lengths, marks.
    const ITEM_BYTES: usize = 96;
    let (mut frame, mut len) = (Vec::new(), 0);
    for item in items {
        let item_len = bytes(&item) + ITEM_BYTES;
        if len + item_len > PIECE_BYTES && !frame.is_empty() {
            put(std::mem::take(&mut frame));
            len = 0;
        }
        len += item_len;
        frame.push(item);
    }
    if !frame.is_empty() {
        put(frame);
    }
}
