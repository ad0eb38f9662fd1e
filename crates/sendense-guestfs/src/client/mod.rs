//! The hub's end: starts a worker, asks it, and believes nothing of what it says without a check.
//!
//! A worker that breaks the protocol, does not answer in time, or dies costs its own session: every open call ends with
//! [`Error::WorkerDied`] and the process is killed. Nothing else is touched.
//!
//! Invariant: memory for a session is at most [`REQUESTS_MAX`](crate::wire::REQUESTS_MAX) times the credit of a request.

mod answers;
mod connection;
mod group;
mod process;

pub use group::{Bounds, prepare_groups};

use crate::error::{Error, Result};
use crate::meta::{Meta, Page};
use crate::path::GuestPath;
use crate::sandbox::{Level, MEMORY_BYTES_MAX};
use crate::session::{ByteStream, Found, PAGE_ENTRIES_MAX, RangePage, Session, Walk, WalkOptions};
use crate::volume::{Key, Volume, VolumeId};
use crate::wire::reply::{Part, add_volume};
use crate::wire::request::Call;
use answers::Answers;
use connection::Connection;
use std::collections::HashSet;
use std::ffi::OsString;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How a worker is started.
#[derive(Debug)]
pub struct Options {
    /// The program; by default this one, started anew.
    pub program: PathBuf,
    /// What makes it call [`worker::run`](crate::worker::run).
    pub arguments: Vec<OsString>,
    /// The open files of the disk, for reading only.
    pub descriptors: Vec<OwnedFd>,
    /// What they are, for the `open` of the worker.
    pub setup: Vec<u8>,
    /// How long a worker may be silent.
    pub patience: Patience,
    /// What it and whatever it starts may take together, where the kernel can be told so.
    pub bounds: Bounds,
}

/// How long a call waits for a sign of life before the worker is killed.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Starting, confining, opening the chain: tens of milliseconds, but a busy machine may swap.
    pub start: Duration,
    /// One step of a request and of the fifteen others before it; a disk on a slow network takes seconds.
    pub step: Duration,
    /// Finding the volumes, which replays logs, and deriving keys, which is bounded by 90 s in the worker.
    pub slow: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { start: Duration::from_secs(20), step: Duration::from_secs(60), slow: Duration::from_secs(120) }
    }
}

impl Options {
    /// This program, started with `arguments`, for a disk of these files.
    pub fn new(arguments: Vec<OsString>, descriptors: Vec<OwnedFd>, setup: Vec<u8>) -> Options {
        // The running program, also after its file was replaced by an upgrade.
        let program = PathBuf::from("/proc/self/exe");
        // It starts nothing; the bound of its memory is that of its addresses, and holds for what the kernel keeps for it too.
        let bounds = Bounds { memory_bytes: MEMORY_BYTES_MAX, processes: 1 };
        Options { program, arguments, descriptors, setup, patience: Patience::default(), bounds }
    }
}

/// A session with a worker process.
pub struct Worker {
    connection: Arc<Connection>,
    keeper: Option<JoinHandle<()>>,
    level: Level,
    process_id: u32,
}

impl Worker {
    /// Starts a worker and waits until it is confined and has opened the disk.
    ///
    /// # Errors
    /// [`Error::Sandbox`] when it cannot be confined, [`Error::Io`] when the disk cannot be opened or the program not started,
    /// [`Error::WorkerDied`].
    pub fn start(options: Options) -> Result<Worker> {
        let started = process::start(options)?;
        Ok(Worker {
            connection: started.connection,
            keeper: Some(started.keeper),
            level: started.level,
            process_id: started.process_id,
        })
    }

    /// The worker's process id, for the journal of children and for accounting.
    pub fn process_id(&self) -> u32 {
        self.process_id
    }

    /// Why the session is over, when it is.
    pub fn ended(&self) -> Option<Error> {
        self.connection.over()
    }

    /// Ends the session although others may hold it: open calls fail, the process is killed.
    pub fn stop(&self) {
        self.connection.end(Error::WorkerDied("the session was closed".into()));
    }

    fn ask(&self, call: Call) -> Result<Answers> {
        Answers::ask(&self.connection, call)
    }

    /// A call whose answer is one part.
    fn ask_one<T>(&self, call: Call, pick: impl FnOnce(Part) -> Option<T>) -> Result<T> {
        let mut answers = self.ask(call)?;
        let part = answers.next_part()?;
        let Some(value) = part.and_then(pick) else {
            return Err(answers.broken("the answer is not of the kind asked for"));
        };
        answers.finish()?;
        Ok(value)
    }

    fn ask_volumes(&self, call: Call) -> Result<Vec<Volume>> {
        let mut answers = self.ask(call)?;
        let mut volumes = Vec::new();
        loop {
            match answers.next_part()? {
                Some(Part::Volume(volume)) => {
                    add_volume(&mut volumes, volume).map_err(|error| answers.broken(&error.to_string()))?;
                }
                Some(_) => return Err(answers.broken("something that is no volume")),
                None => return Ok(volumes),
            }
        }
    }
}

impl Drop for Worker {
    /// Kills the process; the thread that waits for it ends by itself.
    fn drop(&mut self) {
        self.connection.end(Error::WorkerDied("the session was closed".into()));
    }
}

impl Session for Worker {
    fn volumes(&self) -> Result<Vec<Volume>> {
        self.ask_volumes(Call::Volumes)
    }

    fn unlock(&self, volume: &VolumeId, key: &Key) -> Result<Vec<Volume>> {
        self.ask_volumes(Call::Unlock(volume.clone(), key.clone()))
    }

    fn resolve(&self, volume: &VolumeId, path: &GuestPath) -> Result<GuestPath> {
        self.ask_one(Call::Resolve(volume.clone(), path.clone()), |part| match part {
            Part::Path(path) => Some(path),
            _ => None,
        })
    }

    fn stat(&self, volume: &VolumeId, path: &GuestPath) -> Result<Meta> {
        self.ask_one(Call::Stat(volume.clone(), path.clone()), |part| match part {
            Part::Meta(meta) => Some(meta),
            _ => None,
        })
    }

    fn readlink(&self, volume: &VolumeId, path: &GuestPath) -> Result<Vec<u8>> {
        self.ask_one(Call::Readlink(volume.clone(), path.clone()), |part| match part {
            Part::Target(target) => Some(target),
            _ => None,
        })
    }

    fn list(&self, volume: &VolumeId, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page> {
        let limit = limit.clamp(1, PAGE_ENTRIES_MAX);
        let mut answers = self.ask(Call::List(volume.clone(), path.clone(), after, limit as u32))?;
        let mut page = Page::default();
        loop {
            match answers.next_part()? {
                Some(Part::Entries(entries)) if page.entries.len() + entries.len() <= limit => {
                    page.entries.extend(entries)
                }
                Some(Part::Next(next)) => {
                    page.next = next;
                    break;
                }
                _ => return Err(answers.broken("not a page of a folder")),
            }
        }
        answers.finish()?;
        let mut names = HashSet::new();
        if !page.entries.iter().all(|entry| names.insert(&entry.name[..])) {
            return Err(answers.broken("a name twice in one folder"));
        }
        if page.next.is_some() && page.entries.is_empty() {
            return Err(answers.broken("an empty page that is not the last"));
        }
        Ok(page)
    }

    fn read(&self, volume: &VolumeId, path: &GuestPath, range: Range<u64>) -> Result<Box<dyn ByteStream>> {
        let mut answers = self.ask(Call::Read(volume.clone(), path.clone(), range.clone()))?;
        let Some(Part::Opened { file_size_bytes: size }) = answers.next_part()? else {
            return Err(answers.broken("no opened file"));
        };
        // What must come, to the byte.
        let left = range.end.min(size).saturating_sub(range.start.min(size));
        Ok(Box::new(Stream { answers, size, left }))
    }

    fn data_ranges(&self, volume: &VolumeId, path: &GuestPath, from: u64) -> Result<RangePage> {
        let mut answers = self.ask(Call::DataRanges(volume.clone(), path.clone(), from))?;
        let Some(Part::Ranges(page)) = answers.next_part()? else { return Err(answers.broken("no data ranges")) };
        answers.finish()?;
        let behind = page.ranges.first().is_some_and(|range| range.start < from);
        if behind || page.next.is_some_and(|next| next <= from) {
            return Err(answers.broken("data ranges that go backwards"));
        }
        Ok(page)
    }

    fn walk(&self, volume: &VolumeId, path: &GuestPath, options: &WalkOptions) -> Result<Box<dyn Walk>> {
        options.check()?;
        let mut answers = self.ask(Call::Walk(volume.clone(), path.clone(), options.clone()))?;
        let Some(Part::Path(root)) = answers.next_part()? else {
            return Err(answers.broken("no folder to walk below"));
        };
        Ok(Box::new(Batches { answers, root, options: options.clone(), found: 0, failed: 0 }))
    }

    fn level(&self) -> Option<Level> {
        Some(self.level)
    }

    fn close(mut self: Box<Self>) {
        self.connection.end(Error::WorkerDied("the session was closed".into()));
        if let Some(keeper) = self.keeper.take() {
            // It panics only by a bug of ours, and then the process is gone too.
            let _ = keeper.join();
        }
    }
}

/// A file's content as it comes.
struct Stream {
    answers: Answers,
    size: u64,
    left: u64,
}

impl ByteStream for Stream {
    fn file_size_bytes(&self) -> u64 {
        self.size
    }

    fn next_piece(&mut self) -> Result<Option<Vec<u8>>> {
        match self.answers.next_part()? {
            Some(Part::Piece(piece)) if piece.len() as u64 <= self.left => {
                self.left -= piece.len() as u64;
                Ok(Some(piece))
            }
            None if self.left == 0 => Ok(None),
            Some(Part::Piece(_)) => Err(self.answers.broken("more of a file than was asked for")),
            None => Err(self.answers.broken("less of a file than was asked for")),
            Some(_) => Err(self.answers.broken("something that is no content of a file")),
        }
    }
}

/// What a walk finds as it comes.
struct Batches {
    answers: Answers,
    root: GuestPath,
    options: WalkOptions,
    found: u64,
    failed: u64,
}

impl Walk for Batches {
    fn root(&self) -> &GuestPath {
        &self.root
    }

    fn next_batch(&mut self) -> Result<Option<Vec<Found>>> {
        let found = match self.answers.next_part()? {
            Some(Part::Found(found)) if !found.is_empty() => found,
            Some(_) => return Err(self.answers.broken("something that no walk finds")),
            None => return Ok(None),
        };
        for found in &found {
            if !found.path.is_below(&self.root) && (found.outcome.is_ok() || found.path != self.root) {
                return Err(self.answers.broken("a path that is not below the folder"));
            }
            *if found.outcome.is_ok() { &mut self.found } else { &mut self.failed } += 1;
        }
        // Each entry fails at most once and each folder once more.
        if self.found > self.options.entries_max || self.failed > self.options.entries_max.saturating_mul(2) {
            return Err(self.answers.broken("more entries than were asked for"));
        }
        Ok(Some(found))
    }
}
