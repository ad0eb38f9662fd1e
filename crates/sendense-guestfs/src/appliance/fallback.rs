//! One session out of two: the native readers, and an appliance for the volumes that they know but do not read.
//!
//! The appliance is started when the volumes are first asked for and one of them is of a kind that the guest's kernel may read
//! and the native readers do not, never for what is damaged or slow: a disk must not choose its reader by breaking the first one.
//!
//! Invariant: a volume that the native readers can read is never read by the appliance.

use super::kit::FILE_SYSTEMS;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Opens the disk once more, for an appliance.
pub type OpenDisk = dyn Fn() -> Result<(Options, Disk)> + Send + Sync;

/// A native session and, behind it, an appliance.
pub struct Fallback<N: Session> {
    native: N,
    open: Box<OpenDisk>,
    /// None until one was needed; then it, or why there is none. Held while one starts: whoever else needs it waits.
    appliance: Mutex<Option<Result<Arc<Worker>>>>,
    /// Who is asked for which volume; held for a glance, so that a start delays nobody who does not need it.
    taken: Mutex<Taken>,
}

/// What the appliance has taken over.
#[derive(Default)]
struct Taken {
    appliance: Option<Arc<Worker>>,
    volumes: HashSet<VolumeId>,
    stopped: bool,
}

impl<N: Session> Fallback<N> {
    /// Puts an appliance behind a native session; `open` is called when, and only when, one is needed.
    pub fn new(native: N, open: Box<OpenDisk>) -> Fallback<N> {
        Fallback { native, open, appliance: Mutex::default(), taken: Mutex::default() }
    }

    /// The native session.
    pub fn native(&self) -> &N {
        &self.native
    }

    /// The appliance, when one was started.
    pub fn appliance(&self) -> Option<Arc<Worker>> {
        self.taken().appliance.clone()
    }

    /// Whether the appliance reads this volume.
    pub fn is_taken(&self, volume: &VolumeId) -> bool {
        self.taken().volumes.contains(volume)
    }

    /// Ends the appliance, also one that is just starting, although others may hold this session.
    pub fn stop_appliance(&self) {
        let appliance = {
            let mut taken = self.taken();
            taken.stopped = true;
            taken.appliance.clone()
        };
        if let Some(appliance) = appliance {
            appliance.stop();
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // What is in it is set whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The appliance, started if it was not.
    fn started(&self) -> Result<Arc<Worker>> {
        let mut appliance = self.appliance.lock().unwrap_or_else(PoisonError::into_inner);
        let started = appliance.get_or_insert_with(|| {
            let (options, disk) = (self.open)()?;
            super::start(options, disk).map(Arc::new)
        });
        let started = started.clone()?;
        let mut taken = self.taken();
        taken.appliance = Some(started.clone());
        if taken.stopped {
            started.stop();
        }
        Ok(started)
    }

    /// Replaces what the native readers refuse by what the appliance says of it.
    fn completed(&self, volumes: Vec<Volume>) -> Vec<Volume> {
        if !volumes.iter().any(is_worth_trying) {
            return volumes;
        }
        match self.started().and_then(|appliance| appliance.volumes()) {
            Ok(found) => {
                let (volumes, read) = merged(volumes, found);
                self.taken().volumes = read;
                volumes
            }
            // It reads nothing, or nothing more.
            Err(error) => volumes
                .into_iter()
                .map(|volume| if is_worth_trying(&volume) { with_reason(volume, &error.to_string()) } else { volume })
                .collect(),
        }
    }

    /// Asks whoever reads the volume.
    fn ask<T>(&self, volume: &VolumeId, call: impl FnOnce(&dyn Session) -> Result<T>) -> Result<T> {
        let appliance = {
            let taken = self.taken();
            taken.appliance.clone().filter(|_| taken.volumes.contains(volume))
        };
        match appliance {
            Some(appliance) => call(&*appliance),
            None => call(&self.native),
        }
    }
}

/// Whether an appliance may know what the native readers refuse. What neither knows, such as a boot loader in a partition of its
/// own, must not cost a guest's start at every look at a disk; and what lies behind a key it cannot reach.
fn is_worth_trying(volume: &Volume) -> bool {
    let id = volume.id.as_str();
    let reachable = !id.starts_with("luks:") && !id.starts_with("md:");
    let known = FILE_SYSTEMS.contains(&&*volume.kind) || volume.kind == "LVM2_member" || id.starts_with("lvm:");
    reachable && known && matches!(volume.state, State::Unsupported(_))
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

impl<N: Session> Session for Fallback<N> {
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
        let Fallback { native, appliance, taken, .. } = *self;
        Box::new(native).close();
        drop(taken);
        let appliance = appliance.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(appliance)) = appliance
            && let Some(appliance) = Arc::into_inner(appliance)
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
        for (id, kind, worth) in [
            ("p1", "ext4", true),
            ("p1", "f2fs", true),
            ("p1", "LVM2_member", true),
            ("lvm:a/b", "thin", true),
            ("p1", "", false),
            ("p1", "exfat", false),
            ("p1", "linux_raid_member", false),
            ("luks:p1", "f2fs", false),
            ("md:p1", "f2fs", false),
        ] {
            assert_eq!(is_worth_trying(&volume(id, kind, refused("a"))), worth, "{id} {kind}");
            for state in [State::Readable, State::Locked, State::Empty, State::Corrupt("a".into())] {
                assert!(!is_worth_trying(&volume(id, kind, state)));
            }
        }
        let native: Arc<dyn sendense_block::ReadAt> =
            Arc::new(sendense_block::backend::Memory::zeroed(sendense_block::ByteLen(1 << 20)));
        let native = crate::native::Session::open(native, crate::native::Readers::default());
        let session = Fallback::new(native, Box::new(|| panic!("it was started")));
        assert_eq!(session.volumes().unwrap()[0].state, State::Empty);
    }
}
