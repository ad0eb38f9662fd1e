//! Readers in safe Rust, for the sandboxed process.
//!
//! [`volumes`] finds what lies on a disk, `fs` reads one file system, [`resolve`] and [`walk`] stand above both, [`engine`]
//! answers the calls of a session with them.
//!
//! Invariant: no reader follows a symbolic link; resolving is done once, above them.

pub mod engine;
pub mod fs;
pub mod resolve;
pub mod session;
#[cfg(test)]
mod testing;
pub mod volumes;
pub mod walk;

pub use engine::Engine;
pub use session::Session;

use crate::error::Result;
use crate::meta::{Facts, Meta, Page};
use crate::path::GuestPath;
use sendense_block::ReadAt;
use std::ops::Range;
use std::sync::Arc;

/// Opens the file system on a device.
pub type Open = fn(Arc<dyn ReadAt>) -> Result<Box<dyn FileSystem>>;

/// The file systems that can be read, as two functions, so that what stands above them is tested without them.
#[derive(Clone, Copy)]
pub struct Readers {
    /// The name of the file system on a device; none when there is none that is known.
    pub detect: fn(&dyn ReadAt) -> Result<Option<&'static str>>,
    /// Opens the file system and replays its log in memory.
    pub open: Open,
}

impl Default for Readers {
    /// Everything in [`fs`].
    fn default() -> Readers {
        Readers { detect: fs::detect, open: fs::open }
    }
}

/// A file system, read-only. Paths name entries one component after the other; links on the way are not followed.
pub trait FileSystem: Send {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// One entry. A link is described, not followed.
    fn stat(&mut self, path: &GuestPath) -> Result<Meta>;

    /// The target of a link.
    fn readlink(&mut self, path: &GuestPath) -> Result<Vec<u8>>;

    /// Up to `limit` entries of a folder, from where an earlier page's `next` says. Every name comes once; `.` and `..` never.
    fn list(&mut self, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page>;

    /// Opens a regular file.
    fn open(&mut self, path: &GuestPath) -> Result<Box<dyn FileRead>>;
}

/// An open regular file of a [`FileSystem`].
pub trait FileRead: Send {
    /// Its length in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`; less than asked only at the end of the file. Holes read as zeros.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// The first range at or after `offset` that may hold other bytes than zeros, clipped to the file; none when only holes
    /// follow. A reader that does not know answers the rest of the file.
    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.size()).then(|| offset..self.size()))
    }
}
