//! What every backend can do with one opened disk: the calls that browsing, downloads and archives are made of.
//!
//! What does not live here: HTTP, archives, which restore point the disk belongs to. The calls block and may come from
//! several threads. No call follows a symbolic link at the end of its path; [`Session::resolve`] does, inside the volume.
//!
//! Invariant: dropping a [`ByteStream`] or a [`Walk`] ends the work behind it.

use crate::error::{Error, Result};
use crate::meta::{Meta, Page};
use crate::path::GuestPath;
use crate::sandbox::Level;
use crate::volume::{Key, Volume, VolumeId};
use std::ops::Range;

/// The most entries one page of a folder has.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// The most data ranges one page has.
pub const PAGE_RANGES_MAX: usize = 4096;
/// The deepest folder a walk enters: deeper than any tree that people make, and an end for a folder that holds itself.
pub const WALK_DEPTH_MAX: usize = 512;

/// A disk opened for browsing.
pub trait Session: Send + Sync {
    /// The volumes of the disk, in the order in which they lie on it.
    fn volumes(&self) -> Result<Vec<Volume>>;

    /// Opens an encrypted volume with a key and answers all volumes anew; what lies inside has joined them.
    ///
    /// # Errors
    /// [`Error::WrongKey`] when the key fits no slot.
    fn unlock(&self, volume: &VolumeId, key: &Key) -> Result<Vec<Volume>>;

    /// Follows every link of the path, the last one too, inside the volume: an absolute target begins at the volume's root
    /// and `..` ends there. The answer is a path without links.
    fn resolve(&self, volume: &VolumeId, path: &GuestPath) -> Result<GuestPath>;

    /// One entry; a link at the end is described, not followed.
    fn stat(&self, volume: &VolumeId, path: &GuestPath) -> Result<Meta>;

    /// The target of a link, as bytes.
    fn readlink(&self, volume: &VolumeId, path: &GuestPath) -> Result<Vec<u8>>;

    /// Up to `limit` entries of a folder, which is at most [`PAGE_ENTRIES_MAX`]. `after` is an earlier page's `next`.
    fn list(&self, volume: &VolumeId, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page>;

    /// Streams a part of a regular file. The range is clipped to the file; an empty one is an empty stream.
    fn read(&self, volume: &VolumeId, path: &GuestPath, range: Range<u64>) -> Result<Box<dyn ByteStream>>;

    /// The ranges of a file that may hold something else than zeros, sorted, from `from` on.
    fn data_ranges(&self, volume: &VolumeId, path: &GuestPath, from: u64) -> Result<RangePage>;

    /// Goes through everything below a folder.
    fn walk(&self, volume: &VolumeId, path: &GuestPath, options: &WalkOptions) -> Result<Box<dyn Walk>>;

    /// How the process that reads the disk is confined; none when it is this process.
    fn level(&self) -> Option<Level>;

    /// Ends the session and waits until nothing of it is left.
    fn close(self: Box<Self>);
}

/// Bytes of a file, piece by piece.
pub trait ByteStream: Send {
    /// Size of the whole file.
    fn file_size_bytes(&self) -> u64;

    /// The next piece, never empty; none at the end of the range.
    fn next_piece(&mut self) -> Result<Option<Vec<u8>>>;
}

/// What a walk finds, batch by batch.
pub trait Walk: Send {
    /// The folder below which it goes, with the links on the way to it followed; every path found begins with it.
    fn root(&self) -> &GuestPath;

    /// The next batch, never empty; none when everything was seen. A folder comes before what is in it.
    ///
    /// # Errors
    /// [`Error::Limit`] when `entries_max` is reached before the end.
    fn next_batch(&mut self) -> Result<Option<Vec<Found>>>;
}

/// One thing a walk came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where: the whole path inside the volume.
    pub path: GuestPath,
    /// What it is, or why it could not be read. The walk goes on after a folder that cannot be read.
    pub outcome: Result<FoundEntry>,
}

/// A readable entry of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundEntry {
    /// What it is.
    pub meta: Meta,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// What a walk goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkOptions {
    /// How many folders deep; 1 is the folder itself, at most [`WALK_DEPTH_MAX`].
    pub depth_max: usize,
    /// After how many visited entries the walk ends with [`Error::Limit`]. Entries that `name` leaves out count too.
    pub entries_max: u64,
    /// Only entries whose last name fits; every folder is still entered. `*` is any run of bytes, `?` is one byte.
    pub name: Option<Vec<u8>>,
    /// Whether `A` and `a` fit each other (ASCII only).
    pub ignore_case: bool,
}

impl Default for WalkOptions {
    /// Everything, up to ten million entries: three times what large file servers keep on one disk.
    fn default() -> WalkOptions {
        WalkOptions { depth_max: WALK_DEPTH_MAX, entries_max: 10_000_000, name: None, ignore_case: false }
    }
}

impl WalkOptions {
    /// Refuses what no walk can be asked for.
    ///
    /// # Errors
    /// [`Error::Limit`] or [`Error::InvalidPath`].
    pub fn check(&self) -> Result<()> {
        if self.depth_max == 0 || self.depth_max > WALK_DEPTH_MAX {
            return Err(Error::Limit(format!("a walk is 1 to {WALK_DEPTH_MAX} folders deep")));
        }
        match &self.name {
            Some(name) if name.len() > crate::path::NAME_BYTES_MAX => {
                Err(Error::InvalidPath("the name pattern is too long".into()))
            }
            _ => Ok(()),
        }
    }
}

/// Some data ranges of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangePage {
    /// Sorted, apart, not empty, inside the file; at most [`PAGE_RANGES_MAX`].
    pub ranges: Vec<Range<u64>>,
    /// Ask again from here; none at the end of the file.
    pub next: Option<u64>,
    /// Size of the whole file.
    pub file_size_bytes: u64,
}
