//! One open point: its process, its volumes, who uses it, and when it was used last.
//!
//! Invariant: at most [`REQUESTS`] requests of a point are under way, which is what its process takes.

use super::listing::{Folder, Listing};
use super::{Reader, fault};
use crate::core::blocking;
use crate::fault::{Result, internal};
use parking_lot::Mutex;
use sendense_api::MountStatus;
use sendense_guestfs::meta::State;
use sendense_guestfs::{GuestPath, Key, Volume, VolumeId};
use sendense_repo::lock::ChainGuard;
use sendense_types::{BackupId, Clock, DiskNumber, MountId, Problem, ProblemCode, Timestamp, VmContextId};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Requests of one point at once: what its process takes.
const REQUESTS: usize = sendense_guestfs::wire::REQUESTS_MAX;
/// Of these, how many downloads may hold for long; the rest is for those who look around meanwhile.
const STREAM_REQUESTS: usize = REQUESTS - 4;

/// What was opened.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub disk_id: DiskNumber,
}

/// An open point.
pub(crate) struct Mount {
    pub id: MountId,
    pub point: Point,
    pub created_at: Timestamp,
    /// The volume that is meant where none is named.
    volume: Option<VolumeId>,
    reader: Arc<dyn Reader>,
    volumes: Mutex<Vec<Volume>>,
    used: Mutex<Used>,
    listing: Listing,
    guard: Mutex<Option<ChainGuard>>,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Cancelled when it is closed.
    pub closed: CancellationToken,
    clock: Arc<dyn Clock>,
}

struct Used {
    last: Timestamp,
    streams: u32,
}

/// Something long that reads from a point: a download, an archive. While it lives the point is in use.
pub(crate) struct Task {
    mount: Arc<Mount>,
    _requests: OwnedSemaphorePermit,
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut used = self.mount.used.lock();
        used.streams -= 1;
        used.last = self.mount.clock.now();
    }
}

impl Task {
    /// The point.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Its session.
    pub fn reader(&self) -> &Arc<dyn Reader> {
        &self.mount.reader
    }
}

impl Mount {
    pub(super) fn new(
        id: MountId,
        point: Point,
        volume: Option<VolumeId>,
        reader: Arc<dyn Reader>,
        volumes: Vec<Volume>,
        guard: ChainGuard,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let now = clock.now();
        Self {
            id,
            point,
            created_at: now,
            volume,
            reader,
            volumes: Mutex::new(volumes),
            used: Mutex::new(Used { last: now, streams: 0 }),
            listing: Listing::default(),
            guard: Mutex::new(Some(guard)),
            calls: Arc::new(Semaphore::new(REQUESTS - STREAM_REQUESTS)),
            streams: Arc::new(Semaphore::new(STREAM_REQUESTS)),
            closed: CancellationToken::new(),
            clock,
        }
    }

    /// When it was used last.
    pub fn last_used(&self) -> Timestamp {
        self.used.lock().last
    }

    /// Downloads and archives under way.
    pub fn streams(&self) -> u32 {
        self.used.lock().streams
    }

    /// Whether it can be used, and why not.
    pub fn status(&self) -> (MountStatus, Option<String>) {
        match self.reader.ended() {
            None => (MountStatus::Mounted, None),
            Some(error) => (MountStatus::Failed, Some(error.to_string())),
        }
    }

    /// How its processes are confined.
    pub fn confinement(&self) -> Option<String> {
        self.reader.confinement()
    }

    /// What reads a volume.
    pub fn backend(&self, volume: &VolumeId) -> sendense_api::Backend {
        self.reader.backend(volume)
    }

    /// What is on the disk, as last seen.
    pub fn volumes(&self) -> Vec<Volume> {
        self.volumes.lock().clone()
    }

    /// The volume that a call means.
    pub fn volume(&self, asked: Option<&str>) -> Result<VolumeId> {
        pick_volume(&self.volumes.lock(), self.volume.as_ref(), asked)
    }

    /// The volume that is meant where none is named, if there is one.
    pub fn default_volume(&self) -> Option<Volume> {
        let id = self.volume(None).ok()?;
        self.volumes.lock().iter().find(|volume| volume.id == id).cloned()
    }

    /// Asks the process something short.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Reader) -> sendense_guestfs::Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = self.calls.clone().acquire_owned().await;
        let permit = permit.map_err(|error| internal("the places of an open point are gone", error.to_string()))?;
        self.touch();
        let reader = self.reader.clone();
        let answer = blocking(move || {
            let _held = permit;
            question(&*reader)
        })
        .await?;
        self.touch();
        answer.map_err(|error| fault::of_guestfs(&error))
    }

    /// Opens an encrypted volume; all volumes anew.
    pub async fn unlock(&self, volume: VolumeId, key: Key) -> Result<Vec<Volume>> {
        let volumes = self.ask(move |reader| reader.unlock(&volume, &key)).await?;
        *self.volumes.lock() = volumes.clone();
        Ok(volumes)
    }

    /// A folder's entries; see [`super::listing`].
    pub async fn folder(&self, volume: VolumeId, path: GuestPath, offset: u64, limit: usize) -> Result<Arc<Folder>> {
        let _turn = self.listing.turn().await;
        if let Some(known) = self.listing.known(&volume, &path, self.clock.now()) {
            self.touch();
            return Ok(known);
        }
        let (of, at) = (volume.clone(), path.clone());
        let folder = self.ask(move |reader| Folder::read(reader, &of, &at, offset, limit)).await?;
        Ok(self.listing.keep(volume, path, folder, self.clock.now()))
    }

    /// Drops a listing that nobody has asked for lately.
    pub(super) fn forget_old_listing(&self, now: Timestamp) {
        self.listing.forget_old(now);
    }

    /// Begins something long that takes so many requests at once.
    pub fn begin(self: &Arc<Self>, requests: u32) -> Result<Task> {
        let Ok(permit) = self.streams.clone().try_acquire_many_owned(requests) else {
            let details = format!("{} are under way from {}", self.streams(), self.id);
            return Err(Problem::new(ProblemCode::Busy, "too many downloads of this point", details));
        };
        let mut used = self.used.lock();
        used.streams += 1;
        used.last = self.clock.now();
        drop(used);
        Ok(Task { mount: self.clone(), _requests: permit })
    }

    /// Ends it: the process is killed, whoever reads from it is cut off, and its chain is free. Blocks.
    pub(super) fn close(&self) {
        self.closed.cancel();
        self.reader.stop();
        self.guard.lock().take();
    }

    fn touch(&self) {
        self.used.lock().last = self.clock.now();
    }
}

/// The volume that is asked for, else the point's own, else the only one that can be read.
pub(crate) fn pick_volume(volumes: &[Volume], own: Option<&VolumeId>, asked: Option<&str>) -> Result<VolumeId> {
    if let Some(asked) = asked {
        let known = VolumeId::parse(asked).ok().filter(|id| volumes.iter().any(|volume| volume.id == *id));
        return known.ok_or_else(|| fault::no_volume(asked, volumes));
    }
    if let Some(own) = own {
        return Ok(own.clone());
    }
    let readable: Vec<&Volume> = volumes.iter().filter(|volume| volume.state == State::Readable).collect();
    match readable.as_slice() {
        [only] => Ok(only.id.clone()),
        _ => Err(fault::which_volume(volumes)),
    }
}
