//! One opened disk, read by one thread: finds the volumes when they are first asked for and answers every call.
//!
//! What does not live here: the process boundary, streams and their back-pressure (see [`crate::worker`] and
//! [`super::session`]).
//!
//! Invariant: no call follows a link at the end of its path, and none leaves its volume.

use super::resolve::{Last, resolve};
use super::volumes::{self, Content, Slot};
use super::walk::{Step, Walker};
use super::{FileRead, FileSystem, Readers};
use crate::error::{Error, Result};
use crate::meta::{FileType, Meta, Page, State};
use crate::path::GuestPath;
use crate::session::{PAGE_ENTRIES_MAX, PAGE_RANGES_MAX, RangePage, WalkOptions};
use crate::volume::{Key, Volume, VolumeId};
use sendense_block::ReadAt;
use std::sync::Arc;

/// What an engine may have to allocate for a key, beyond what reading takes.
pub const DERIVATION_BYTES_MAX: u64 = volumes::luks::DERIVATION_BYTES_MAX;

/// A disk and what was found on it.
pub struct Engine {
    find: Box<dyn FnMut() -> Result<Vec<Slot>> + Send>,
    readers: Readers,
    slots: Option<Vec<Slot>>,
}

impl Engine {
    /// Takes a disk; nothing is read yet.
    pub fn new(disk: Arc<dyn ReadAt>, readers: Readers) -> Engine {
        Engine::with_finder(Box::new(move || volumes::discover(disk.clone(), readers)), readers)
    }

    /// Takes another way of finding the volumes, for a backend that reads them by other means. `readers` are for what lies in
    /// encrypted ones.
    pub fn with_finder(find: Box<dyn FnMut() -> Result<Vec<Slot>> + Send>, readers: Readers) -> Engine {
        Engine { find, readers, slots: None }
    }

    /// All volumes, in the disk's order.
    ///
    /// # Errors
    /// The disk cannot be read where its tables are.
    pub fn volumes(&mut self) -> Result<Vec<Volume>> {
        Ok(self.slots()?.iter().map(|slot| slot.volume.clone()).collect())
    }

    /// Opens an encrypted volume; an open one stays as it is.
    ///
    /// # Errors
    /// [`Error::NoVolume`], [`Error::WrongKey`], [`Error::Unsupported`].
    pub fn unlock(&mut self, volume: &VolumeId, key: &Key) -> Result<Vec<Volume>> {
        let readers = self.readers;
        let slots = self.slots()?;
        let index = slots.iter().position(|slot| slot.volume.id == *volume).ok_or(Error::NoVolume)?;
        volumes::unlock(slots, index, key, readers)?;
        self.volumes()
    }

    /// The path without links.
    ///
    /// # Errors
    /// See [`resolve`].
    pub fn resolve(&mut self, volume: &VolumeId, path: &GuestPath) -> Result<GuestPath> {
        resolve(self.files(volume)?, path, Last::Follow)
    }

    /// One entry.
    ///
    /// # Errors
    /// See [`resolve`].
    pub fn stat(&mut self, volume: &VolumeId, path: &GuestPath) -> Result<Meta> {
        let (files, path) = self.place(volume, path)?;
        files.stat(&path)
    }

    /// The target of a link.
    ///
    /// # Errors
    /// [`Error::NotRegular`] when it is none.
    pub fn readlink(&mut self, volume: &VolumeId, path: &GuestPath) -> Result<Vec<u8>> {
        let (files, path) = self.place(volume, path)?;
        files.readlink(&path)
    }

    /// A page of a folder.
    ///
    /// # Errors
    /// [`Error::NotDirectory`].
    pub fn list(&mut self, volume: &VolumeId, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page> {
        let (files, path) = self.place(volume, path)?;
        files.list(&path, after, limit.clamp(1, PAGE_ENTRIES_MAX))
    }

    /// Opens a regular file. Devices and pipes are refused before any reader sees them.
    ///
    /// # Errors
    /// [`Error::NotRegular`].
    pub fn open(&mut self, volume: &VolumeId, path: &GuestPath) -> Result<Box<dyn FileRead>> {
        let (files, path) = self.place(volume, path)?;
        match files.stat(&path)?.file_type {
            FileType::File => files.open(&path),
            FileType::Directory | FileType::Symlink | FileType::Other => Err(Error::NotRegular),
        }
    }

    /// A page of a file's data ranges.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn data_ranges(&mut self, volume: &VolumeId, path: &GuestPath, from: u64) -> Result<RangePage> {
        let mut file = self.open(volume, path)?;
        let size = file.size();
        let mut page = RangePage { ranges: Vec::new(), next: None, file_size_bytes: size };
        let mut at = from;
        while let Some(range) = file.next_data(at)? {
            // A reader whose ranges go backwards would never end.
            if range.start < at || range.is_empty() || range.end > size {
                return Err(Error::corrupt("the data ranges of a file do not go forwards"));
            }
            at = range.end;
            let full = page.ranges.len() == PAGE_RANGES_MAX;
            match page.ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ if full => {
                    page.next = Some(range.start);
                    break;
                }
                _ => page.ranges.push(range),
            }
        }
        Ok(page)
    }

    /// Begins a walk below a folder; a link to a folder is not entered.
    ///
    /// # Errors
    /// As [`Walker::new`], and where the folder is not one.
    pub fn walk(&mut self, volume: &VolumeId, path: &GuestPath, options: &WalkOptions) -> Result<Walker> {
        let (files, path) = self.place(volume, path)?;
        match files.stat(&path)?.file_type {
            FileType::Directory => Walker::new(path, options.clone()),
            FileType::File | FileType::Symlink | FileType::Other => Err(Error::NotDirectory),
        }
    }

    /// Goes on with a walk.
    ///
    /// # Errors
    /// As [`Walker::step`].
    pub fn step(&mut self, volume: &VolumeId, walker: &mut Walker) -> Result<Step> {
        walker.step(self.files(volume)?)
    }

    fn slots(&mut self) -> Result<&mut Vec<Slot>> {
        if self.slots.is_none() {
            self.slots = Some((self.find)()?);
        }
        Ok(self.slots.as_mut().expect("it was set just now"))
    }

    fn files(&mut self, volume: &VolumeId) -> Result<&mut dyn FileSystem> {
        let slot = self.slots()?.iter_mut().find(|slot| slot.volume.id == *volume).ok_or(Error::NoVolume)?;
        match (&mut slot.content, &slot.volume.state) {
            (Content::Files(files), _) => Ok(files.as_mut()),
            (Content::Locked(_), _) => Err(Error::Locked),
            (Content::Nothing, State::Unsupported(reason)) => Err(Error::Unsupported(reason.clone())),
            (Content::Nothing, State::Corrupt(text)) => Err(Error::Corrupt(text.clone())),
            (Content::Nothing, _) => Err(Error::unsupported("there is no file system on the volume")),
        }
    }

    /// The volume's files, and the path with the links on the way followed.
    fn place(&mut self, volume: &VolumeId, path: &GuestPath) -> Result<(&mut dyn FileSystem, GuestPath)> {
        let files = self.files(volume)?;
        let path = resolve(files, path, Last::Keep)?;
        Ok((files, path))
    }
}
