//! Readers in safe Rust, for the sandboxed process.
//!
//! Invariant: no reader follows a symbolic link; resolving is done once, above them.

pub mod fs;

use crate::error::Result;
use crate::meta::{Facts, Meta, Page};
use crate::path::GuestPath;
use std::ops::Range;

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
