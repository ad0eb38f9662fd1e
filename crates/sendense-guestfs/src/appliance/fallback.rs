//! One session out of two: the native readers, and an appliance for the volumes that they know but do not read.
//!
//! The appliance is started when the volumes are first asked for and one of them is unsupported, never for what is damaged
//! or slow: a disk must not choose its reader by breaking the first one.
//!
//! Invariant: a volume that the native readers can read is never read by the appliance.

use super::{Disk, Options};
use crate::client::Worker;
use crate::error::{Reason, Result};
use crate::meta::{Meta, Page, State};
use crate::path::GuestPath;
use crate::sandbox::Level;
use crate::session::{ByteStream, RangePage, Session, Walk, WalkOptions};
use crate::volume::{Key, VOLUMES_MAX, Volume, VolumeId};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Opens the disk once more, for an appliance.
pub type OpenDisk = dyn Fn() -> Result<(Options, Disk)> + Send + Sync;

/// A native session and, behind it, an appliance.
pub struct Fallback {
    native: Box<dyn Session>,
    open: Box<OpenDisk>,
    second: Mutex<Second>,
}

/// Where the appliance stands.
#[derive(Default)]
struct Second {
    /// None until one was needed; then it, or why there is none.
    appliance: Option<Result<std::sync::Arc<Worker>>>,
    /// The volumes it reads.
    volumes: HashSet<VolumeId>,
}

impl Fallback {
    /// Puts an appliance behind a native session; `open` is called when, and only when, one is needed.
    pub fn new(native: Box<dyn Session>, open: Box<OpenDisk>) -> Fallback {
        Fallback { native, open, second: Mutex::default() }
    }

    /// The appliance, when one was started.
    pub fn appliance(&self) -> Option<std::sync::Arc<Worker>> {
        self.second().appliance.as_ref().and_then(|appliance| appliance.clone().ok())
    }

    fn second(&self) -> MutexGuard<'_, Second> {
        // What is in it is set whole.
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what the native readers refuse by what the appliance says of it.
    fn completed(&self, volumes: Vec<Volume>) -> Vec<Volume> {
        if !volumes.iter().any(|volume| matches!(volume.state, State::Unsupported(_))) {
            return volumes;
        }
        let mut second = self.second();
        let started = second.appliance.get_or_insert_with(|| {
            let (options, disk) = (self.open)()?;
            super::start(options, disk).map(std::sync::Arc::new)
        });
        let found = started.as_ref().map_err(Clone::clone).and_then(|appliance| appliance.volumes());
        match found {
            Ok(found) => {
                let (volumes, read) = merged(volumes, found);
                second.volumes = read;
                volumes
            }
            Err(error) => volumes.into_iter().map(|volume| with_reason(volume, &error.to_string())).collect(),
        }
    }

    /// Asks whoever reads the volume.
    fn ask<T>(&self, volume: &VolumeId, call: impl FnOnce(&dyn Session) -> Result<T>) -> Result<T> {
        let second = {
            let second = self.second();
            match &second.appliance {
                Some(Ok(appliance)) if second.volumes.contains(volume) => Some(appliance.clone()),
                _ => None,
            }
        };
        match second {
            Some(appliance) => call(&*appliance),
            None => call(&*self.native),
        }
    }
}

/// Both lists as one, in the native order, and which of them the appliance reads.
fn merged(native: Vec<Volume>, mut found: Vec<Volume>) -> (Vec<Volume>, HashSet<VolumeId>) {
    let known: HashSet<VolumeId> = native.iter().map(|volume| volume.id.clone()).collect();
    let mut all = Vec::new();
    let mut read = HashSet::new();
    for volume in native {
        let State::Unsupported(_) = volume.state else {
            all.push(volume);
            continue;
        };
        if volume.kind == "LVM2_member" {
            // In place of a member whose group the native readers do not know, the group's volumes.
            let fresh = |other: &Volume| !known.contains(&other.id) && other.id.as_str().starts_with("lvm:");
            let group: Vec<Volume> = found.extract_if(.., |other| fresh(other)).collect();
            if !group.is_empty() {
                read.extend(group.iter().filter(|volume| opens(volume)).map(|volume| volume.id.clone()));
                all.extend(group);
                continue;
            }
        }
        // The second half of a volume over two partitions, which the appliance has put together.
        if let Some((first, _)) = volume.id.as_str().split_once('#')
            && found.iter().any(|other| other.id.as_str() == first && opens(other))
        {
            continue;
        }
        match found.iter().find(|other| other.id == volume.id) {
            Some(other) if opens(other) => {
                read.insert(other.id.clone());
                all.push(other.clone());
            }
            Some(Volume { state: State::Unsupported(Reason(why)) | State::Corrupt(why), .. }) => {
                all.push(with_reason(volume, why));
            }
            _ => all.push(volume),
        }
    }
    all.truncate(VOLUMES_MAX);
    (all, read)
}

/// Whether there is something to browse. A locked volume's key is asked for by the native readers alone.
fn opens(volume: &Volume) -> bool {
    matches!(volume.state, State::Readable)
}

/// What the native readers refuse, and why the appliance does too.
fn with_reason(mut volume: Volume, why: &str) -> Volume {
    if let State::Unsupported(Reason(reason)) = &mut volume.state {
        *reason = format!("{reason}; {why}");
    }
    volume
}

impl Session for Fallback {
    fn volumes(&self) -> Result<Vec<Volume>> {
        Ok(self.completed(self.native.volumes()?))
    }

    fn unlock(&self, volume: &VolumeId, key: &Key) -> Result<Vec<Volume>> {
        Ok(self.completed(self.native.unlock(volume, key)?))
    }

    fn resolve(&self, volume: &VolumeId, path: &GuestPath) -> Result<GuestPath> {
        self.ask(volume, |session| session.resolve(volume, path))
    }

    fn stat(&self, volume: &VolumeId, path: &GuestPath) -> Result<Meta> {
        self.ask(volume, |session| session.stat(volume, path))
    }

    fn readlink(&self, volume: &VolumeId, path: &GuestPath) -> Result<Vec<u8>> {
        self.ask(volume, |session| session.readlink(volume, path))
    }

    fn list(&self, volume: &VolumeId, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page> {
        self.ask(volume, |session| session.list(volume, path, after, limit))
    }

    fn read(&self, volume: &VolumeId, path: &GuestPath, range: Range<u64>) -> Result<Box<dyn ByteStream>> {
        self.ask(volume, |session| session.read(volume, path, range))
    }

    fn data_ranges(&self, volume: &VolumeId, path: &GuestPath, from: u64) -> Result<RangePage> {
        self.ask(volume, |session| session.data_ranges(volume, path, from))
    }

    fn walk(&self, volume: &VolumeId, path: &GuestPath, options: &WalkOptions) -> Result<Box<dyn Walk>> {
        self.ask(volume, |session| session.walk(volume, path, options))
    }

    /// The native reader's, which has read every volume's beginning; the appliance's own is at [`Fallback::appliance`].
    fn level(&self) -> Option<Level> {
        self.native.level()
    }

    fn close(self: Box<Self>) {
        let Fallback { native, second, .. } = *self;
        native.close();
        let second = second.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(appliance)) = second.appliance
            && let Ok(appliance) = std::sync::Arc::try_unwrap(appliance)
        {
            Box::new(appliance).close();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn volume(id: &str, kind: &str, state: State) -> Volume {
        let id = VolumeId::parse(id).unwrap();
        Volume { id, kind: kind.into(), label: None, uuid: None, size_bytes: 1, state, consistency: None }
    }

    fn refused(why: &str) -> State {
        State::Unsupported(Reason(why.into()))
    }

    #[test]
    fn only_what_is_refused_is_taken_over() {
        let native = vec![
            volume("p1", "ext4", State::Readable),
            volume("p2", "ext4", refused("inline_data")),
            volume("p3", "xfs", State::Corrupt("a".into())),
            volume("p4", "", refused("unknown")),
            volume("p5", "LVM2_member", refused("thin")),
            volume("lvm:a/known", "thin", refused("thin")),
            volume("lvm:a/known#2", "thin", refused("thin")),
        ];
        let found = vec![
            volume("p1", "ext4", State::Readable),
            volume("p2", "ext4", State::Readable),
            volume("p3", "xfs", State::Readable),
            volume("p4", "", refused("nor the appliance")),
            volume("lvm:b/root", "ext4", State::Readable),
            volume("lvm:a/known", "ext4", State::Readable),
        ];
        let (all, read) = merged(native, found);
        let told: Vec<(&str, &State)> = all.iter().map(|volume| (volume.id.as_str(), &volume.state)).collect();
        assert_eq!(
            told,
            [
                ("p1", &State::Readable),
                ("p2", &State::Readable),
                ("p3", &State::Corrupt("a".into())),
                ("p4", &refused("unknown; nor the appliance")),
                ("lvm:b/root", &State::Readable),
                ("lvm:a/known", &State::Readable),
            ]
        );
        let mut read: Vec<String> = read.iter().map(ToString::to_string).collect();
        read.sort();
        assert_eq!(read, ["lvm:a/known", "lvm:b/root", "p2"]);
    }

    #[test]
    fn without_need_no_appliance_is_started() {
        let native: std::sync::Arc<dyn sendense_block::ReadAt> =
            std::sync::Arc::new(sendense_block::backend::Memory::zeroed(sendense_block::ByteLen(1 << 20)));
        let native = crate::native::Session::open(native, crate::native::Readers::default());
        let session = Fallback::new(Box::new(native), Box::new(|| panic!("it was started")));
        assert_eq!(session.volumes().unwrap()[0].state, State::Empty);
    }
}
