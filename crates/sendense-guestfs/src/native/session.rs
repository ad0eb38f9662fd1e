//! The native readers in this process: for tests, for disks one made oneself, and as the stupid twin of the confined worker.
//!
//! Invariant: streams hold no lock between two pieces.

use super::engine::Engine;
use super::walk::{Step, Walker};
use super::{FileRead, Readers};
use crate::error::{Error, Result};
use crate::meta::{Meta, Page};
use crate::path::GuestPath;
use crate::sandbox::Level;
use crate::session::{self, ByteStream, Found, RangePage, Walk, WalkOptions};
use crate::volume::{Key, Volume, VolumeId};
use crate::wire::PIECE_BYTES;
use sendense_block::ReadAt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk opened in this process.
pub struct Session {
    engine: Arc<Mutex<Engine>>,
}

impl Session {
    /// Opens a disk that is trusted not to attack its reader.
    pub fn open(disk: Arc<dyn ReadAt>, readers: Readers) -> Session {
        Session { engine: Arc::new(Mutex::new(Engine::new(disk, readers))) }
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        lock(&self.engine)
    }
}

/// A panicking reader leaves the engine's tables whole: they are changed only after a call has succeeded.
fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl session::Session for Session {
    fn volumes(&self) -> Result<Vec<Volume>> {
        self.engine().volumes()
    }

    fn unlock(&self, volume: &VolumeId, key: &Key) -> Result<Vec<Volume>> {
        self.engine().unlock(volume, key)
    }

    fn resolve(&self, volume: &VolumeId, path: &GuestPath) -> Result<GuestPath> {
        self.engine().resolve(volume, path)
    }

    fn stat(&self, volume: &VolumeId, path: &GuestPath) -> Result<Meta> {
        self.engine().stat(volume, path)
    }

    fn readlink(&self, volume: &VolumeId, path: &GuestPath) -> Result<Vec<u8>> {
        self.engine().readlink(volume, path)
    }

    fn list(&self, volume: &VolumeId, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page> {
        self.engine().list(volume, path, after, limit)
    }

    fn read(&self, volume: &VolumeId, path: &GuestPath, range: Range<u64>) -> Result<Box<dyn ByteStream>> {
        Ok(Box::new(Pieces::new(self.engine().open(volume, path)?, range)))
    }

    fn data_ranges(&self, volume: &VolumeId, path: &GuestPath, from: u64) -> Result<RangePage> {
        self.engine().data_ranges(volume, path, from)
    }

    fn walk(&self, volume: &VolumeId, path: &GuestPath, options: &WalkOptions) -> Result<Box<dyn Walk>> {
        let walker = self.engine().walk(volume, path, options)?;
        Ok(Box::new(Steps { engine: self.engine.clone(), volume: volume.clone(), walker }))
    }

    fn level(&self) -> Option<Level> {
        None
    }

    fn close(self: Box<Self>) {}
}

/// A part of an open file, piece by piece.
pub struct Pieces {
    file: Box<dyn FileRead>,
    size: u64,
    rest: Range<u64>,
}

impl Pieces {
    /// The range is clipped to the file.
    pub fn new(file: Box<dyn FileRead>, range: Range<u64>) -> Pieces {
        let size = file.size();
        Pieces { file, size, rest: range.start.min(size)..range.end.min(size) }
    }

    /// Whether the range has been given out.
    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }
}

impl ByteStream for Pieces {
    fn file_size_bytes(&self) -> u64 {
        self.size
    }

    fn next_piece(&mut self) -> Result<Option<Vec<u8>>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let left = self.rest.end - self.rest.start;
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        let read = self.file.read_at(self.rest.start, &mut piece)?;
        if read == 0 || read > piece.len() {
            return Err(Error::corrupt("the file ends before its size"));
        }
        piece.truncate(read);
        self.rest.start += read as u64;
        Ok(Some(piece))
    }
}

struct Steps {
    engine: Arc<Mutex<Engine>>,
    volume: VolumeId,
    walker: Walker,
}

impl Walk for Steps {
    fn root(&self) -> &GuestPath {
        self.walker.root()
    }

    fn next_batch(&mut self) -> Result<Option<Vec<Found>>> {
        loop {
            match lock(&self.engine).step(&self.volume, &mut self.walker)? {
                Step::Found(found) => return Ok(Some(found)),
                Step::Working => {}
                Step::End => return Ok(None),
            }
        }
    }
}
