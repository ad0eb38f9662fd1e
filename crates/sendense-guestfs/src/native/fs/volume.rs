//! What a reader of one file system supplies, and the [`FileSystem`] that all of them make of it.
//!
//! A reader knows inodes, folders as a sequence of names with positions, and where a file's bytes lie. Paths, pages and
//! files are done here, once. Invariant: memory is bounded by the constants below, whatever the disk says.

use super::device::Device;
use crate::error::{Error, Result};
use crate::meta::{Entry, Facts, FileType, Meta, Page};
use crate::native::{FileRead, FileSystem};
use crate::path::{self, GuestPath};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Segments asked for at a time: 24 KiB of them, and 4 MiB of a file whose every block lies elsewhere.
const SEGMENTS_MAX: usize = 1024;
/// Names passed before a folder gets an index: fewer are compared faster than hashed.
const PLAIN_NAMES_MAX: usize = 256;
/// Names in an index: 2 MiB each. The rest of a larger folder is searched name by name.
const INDEX_NAMES_MAX: usize = 128 * 1024;
/// Indexes kept, 8 MiB in all: somebody reads in few large folders at a time.
const INDEXES_MAX: usize = 4;

/// One file system.
pub trait Volume: Send + Sync + 'static {
    /// An inode, read and checked.
    type Inode: Clone + Send + Sync + 'static;

    /// What it is.
    fn facts(&self) -> &Facts;

    /// The device it lies on.
    fn device(&self) -> &Device;

    /// The root folder's number.
    fn root(&self) -> u64;

    /// Reads an inode.
    fn inode(&self, number: u64) -> Result<Self::Inode>;

    /// What it says of itself.
    fn meta(&self, inode: &Self::Inode) -> Meta;

    /// Calls `visit` with each name of a folder from position `from` on (0 is the start), until it breaks. `.` and `..` may
    /// be among them.
    fn names(&self, folder: &Self::Inode, from: u64, visit: &mut Visit<'_>) -> Result<()>;

    /// The target of a link.
    fn link(&self, inode: &Self::Inode) -> Result<Vec<u8>>;

    /// Where the bytes of a file lie from `from` on, at most `max` segments.
    fn map(&self, inode: &Self::Inode, from: u64, max: usize) -> Result<Map>;

    /// Opens a file. Those whose bytes do not simply lie on the device answer with their own reader.
    fn open(self: &Arc<Self>, inode: Self::Inode) -> Result<Box<dyn FileRead>>
    where
        Self: Sized,
    {
        Ok(Box::new(MappedFile::new(self.clone(), inode)))
    }
}

/// A name in a folder.
pub struct Name<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The inode it names.
    pub inode: u64,
    /// Where the folder goes on after it; grows from name to name.
    pub next: u64,
}

/// What is done with each name.
pub type Visit<'v> = dyn FnMut(Name<'_>) -> ControlFlow<()> + 'v;

/// A run of a file's bytes on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub start: u64,
    /// Its length; not zero.
    pub len: u64,
    /// Where it begins on the device.
    pub at: u64,
}

/// A part of a file: `segments` in order, and zeros between them up to `until`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Map {
    /// The segments, sorted, not overlapping. The first may begin before what was asked for.
    pub segments: Vec<Segment>,
    /// How far the answer reaches: more than what was asked for; `u64::MAX` when nothing follows.
    pub until: u64,
}

impl Map {
    /// Adds a run, joining it to the last one where both go on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it begins before the last one ends.
    pub fn push(&mut self, segment: Segment) -> Result<()> {
        if let Some(last) = self.segments.last_mut() {
            let end = last.start.saturating_add(last.len);
            if segment.start < end {
                return Err(Error::corrupt("two parts of a file overlap"));
            }
            if segment.start == end && last.at.checked_add(last.len) == Some(segment.at) {
                last.len = last.len.saturating_add(segment.len);
                return Ok(());
            }
        }
        self.segments.push(segment);
        Ok(())
    }
}

/// A file whose bytes lie on the device as they are.
pub struct MappedFile<V: Volume> {
    volume: Arc<V>,
    inode: V::Inode,
    size: u64,
    window: Map,
    window_from: u64,
}

impl<V: Volume> MappedFile<V> {
    /// Opens an inode that is known to be a file (or a link, to read its target).
    pub fn new(volume: Arc<V>, inode: V::Inode) -> Self {
        let size = volume.meta(&inode).size_bytes;
        MappedFile { volume, inode, size, window: Map::default(), window_from: 0 }
    }

    fn load(&mut self, offset: u64) -> Result<()> {
        if (self.window_from..self.window.until).contains(&offset) {
            return Ok(());
        }
        let window = self.volume.map(&self.inode, offset, SEGMENTS_MAX)?;
        if window.until <= offset {
            return Err(Error::corrupt("a file's map leads nowhere"));
        }
        (self.window, self.window_from) = (window, offset);
        Ok(())
    }

    /// The segment that holds `offset` or else the next one in the window.
    fn segment(&self, offset: u64) -> Option<Segment> {
        let index = self.window.segments.partition_point(|segment| segment.start.saturating_add(segment.len) <= offset);
        self.window.segments.get(index).copied()
    }
}

impl<V: Volume> FileRead for MappedFile<V> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            self.load(at)?;
            let part = &mut buf[done..wanted];
            let within = |end: u64| usize::try_from(end - at).unwrap_or(usize::MAX).min(part.len());
            done += match self.segment(at) {
                Some(segment) if segment.start <= at => {
                    let len = within(segment.start.saturating_add(segment.len).min(self.window.until));
                    let from = segment.at.checked_add(at - segment.start);
                    let from = from.ok_or_else(|| Error::corrupt("a part of a file lies beyond all disks"))?;
                    self.volume.device().read(from, &mut part[..len])?;
                    len
                }
                next => {
                    let len = within(next.map_or(self.window.until, |segment| segment.start.min(self.window.until)));
                    part[..len].fill(0);
                    len
                }
            };
        }
        Ok(wanted)
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        let mut at = offset;
        // Each window but the last holds a segment, so that this ends with the first window that has one after `offset`.
        while at < self.size {
            self.load(at)?;
            if let Some(segment) = self.segment(at) {
                let end = segment.start.saturating_add(segment.len).min(self.size);
                let start = segment.start.max(at);
                return Ok((start < end).then_some(start..end));
            }
            at = self.window.until;
        }
        Ok(None)
    }
}

/// The names of one folder by their hash.
struct Index {
    folder: u64,
    /// Hash of a name and the position before it, sorted.
    names: Vec<(u64, u64)>,
    /// The position after the last name in it; none when it holds the whole folder.
    rest: Option<u64>,
}

/// Paths and pages over a [`Volume`].
pub struct Tree<V: Volume> {
    volume: Arc<V>,
    indexes: VecDeque<Index>,
    /// The last folder that was resolved: its entries are asked for next.
    last: (GuestPath, u64),
}

impl<V: Volume> Tree<V> {
    /// Wraps an open volume.
    pub fn new(volume: V) -> Self {
        let root = volume.root();
        Tree { volume: Arc::new(volume), indexes: VecDeque::new(), last: (GuestPath::root(), root) }
    }

    fn resolve(&mut self, path: &GuestPath) -> Result<V::Inode> {
        let number = self.find(path)?;
        self.volume.inode(number)
    }

    fn find(&mut self, path: &GuestPath) -> Result<u64> {
        if *path == self.last.0 {
            return Ok(self.last.1);
        }
        let parent = path.parent();
        if parent != self.last.0 {
            let mut number = self.volume.root();
            for name in parent.components() {
                number = self.child(number, name)?;
            }
            self.last = (parent, number);
        }
        match path.name() {
            Some(name) => self.child(self.last.1, name),
            None => Ok(self.volume.root()),
        }
    }

    fn child(&mut self, folder: u64, name: &[u8]) -> Result<u64> {
        let inode = self.folder(folder)?;
        if let Some(index) = self.indexes.iter().position(|index| index.folder == folder) {
            return self.child_by_index(index, &inode, name);
        }
        let (mut found, mut passed) = (None, 0);
        self.volume.names(&inode, 0, &mut |entry| {
            passed += 1;
            if entry.bytes == name {
                found = Some(entry.inode);
            }
            if found.is_some() || passed > PLAIN_NAMES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match found {
            Some(number) => Ok(number),
            None if passed > PLAIN_NAMES_MAX => {
                let index = self.index(folder, &inode)?;
                if self.indexes.len() >= INDEXES_MAX {
                    self.indexes.pop_front();
                }
                self.indexes.push_back(index);
                self.child_by_index(self.indexes.len() - 1, &inode, name)
            }
            None => Err(Error::NotFound),
        }
    }

    fn folder(&self, number: u64) -> Result<V::Inode> {
        let inode = self.volume.inode(number)?;
        match self.volume.meta(&inode).file_type {
            FileType::Directory => Ok(inode),
            _ => Err(Error::NotDirectory),
        }
    }

    fn index(&self, folder: u64, inode: &V::Inode) -> Result<Index> {
        let mut names = Vec::new();
        let (mut before, mut rest) = (0, None);
        self.volume.names(inode, 0, &mut |entry| {
            names.push((hash(entry.bytes), before));
            before = entry.next;
            if names.len() < INDEX_NAMES_MAX {
                return ControlFlow::Continue(());
            }
            rest = Some(before);
            ControlFlow::Break(())
        })?;
        names.sort_unstable();
        Ok(Index { folder, names, rest })
    }

    fn child_by_index(&self, index: usize, inode: &V::Inode, name: &[u8]) -> Result<u64> {
        let index = &self.indexes[index];
        let wanted = hash(name);
        let from = index.names.partition_point(|(hash, _)| *hash < wanted);
        let mut found = None;
        for (_, position) in index.names[from..].iter().take_while(|(hash, _)| *hash == wanted) {
            self.volume.names(inode, *position, &mut |entry| {
                if entry.bytes == name {
                    found = Some(entry.inode);
                }
                ControlFlow::Break(())
            })?;
            if found.is_some() {
                break;
            }
        }
        if let (None, Some(rest)) = (found, index.rest) {
            self.volume.names(inode, rest, &mut |entry| {
                if entry.bytes == name {
                    found = Some(entry.inode);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        }
        found.ok_or(Error::NotFound)
    }

    fn entry(&self, name: Vec<u8>, number: u64) -> Result<Entry> {
        match self.volume.inode(number) {
            Ok(inode) => {
                let meta = self.volume.meta(&inode);
                let target = (meta.file_type == FileType::Symlink).then(|| self.volume.link(&inode).ok()).flatten();
                Ok(Entry { name, meta, target })
            }
            // One damaged inode must not hide its neighbours: it is shown as a thing that cannot be opened.
            Err(Error::Corrupt(_) | Error::Unsupported(_) | Error::NotFound) => {
                let meta = Meta {
                    inode: number,
                    file_type: FileType::Other,
                    size_bytes: 0,
                    mode: 0,
                    uid: 0,
                    gid: 0,
                    links: 1,
                    modified: None,
                };
                Ok(Entry { name, meta, target: None })
            }
            Err(error) => Err(error),
        }
    }
}

fn hash(name: &[u8]) -> u64 {
    // Fixed keys: a folder made to collide costs a linear search, no more, and needs no random numbers in the sandbox.
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

impl<V: Volume> FileSystem for Tree<V> {
    fn facts(&self) -> &Facts {
        self.volume.facts()
    }

    fn stat(&mut self, path: &GuestPath) -> Result<Meta> {
        let inode = self.resolve(path)?;
        Ok(self.volume.meta(&inode))
    }

    fn readlink(&mut self, path: &GuestPath) -> Result<Vec<u8>> {
        let inode = self.resolve(path)?;
        match self.volume.meta(&inode).file_type {
            FileType::Symlink => self.volume.link(&inode),
            _ => Err(Error::NotRegular),
        }
    }

    fn list(&mut self, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page> {
        let number = self.find(path)?;
        let inode = self.folder(number)?;
        // Its entries are the likely next paths.
        self.last = (path.clone(), number);
        let mut found: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut next = None;
        let from = after.unwrap_or(0);
        let mut position = from;
        self.volume.names(&inode, from, &mut |entry| {
            if found.len() >= limit {
                next = Some(position);
                return ControlFlow::Break(());
            }
            position = entry.next;
            // A name that cannot be a component (`.`, `..`, or one with a `/`, which only a damaged folder holds) cannot be
            // asked for either.
            if path::check_name(entry.bytes).is_ok() {
                found.push((entry.bytes.to_vec(), entry.inode));
            }
            ControlFlow::Continue(())
        })?;
        let entries = found.into_iter().map(|(name, number)| self.entry(name, number)).collect::<Result<_>>()?;
        Ok(Page { entries, next })
    }

    fn open(&mut self, path: &GuestPath) -> Result<Box<dyn FileRead>> {
        let inode = self.resolve(path)?;
        match self.volume.meta(&inode).file_type {
            FileType::File => self.volume.open(inode),
            _ => Err(Error::NotRegular),
        }
    }
}
