//! Restore points that are open for browsing: which, for how long, and what each may take.
//!
//! ```text
//! app -> Mounts (table, places, idle) -> Mount -> Session: a confined process per point, an appliance if need be (sendense-guestfs)
//!                                          |-> listing   a folder's entries in pages
//!                                          |-> outlet    bytes on their way to one client
//!                                          `-> archive   tar.gz and zip of a folder
//!     `-> Looker -> a Session for one look at a point, not kept (look)
//! ```
//!
//! What lives here: the life of an open point. What does not: HTTP, which point is meant, file systems. Nothing is kept on
//! disk: the processes die with their socket, and with the hub, so that a hub that was killed leaves nothing behind.
//!
//! Invariant: whoever is counted as open holds a process and a claim on the chain; both are gone when it is closed.

pub(crate) mod archive;
pub(crate) mod fault;
pub(crate) mod listing;
pub(crate) mod look;
mod mount;
pub(crate) mod outlet;
#[cfg(test)]
mod tests;
pub(crate) mod words;

pub(crate) use mount::{Mount, Point, Task, pick_volume};

use crate::core::{Core, blocking};
use crate::fault::Result;
use parking_lot::Mutex;
use sendense_api as dto;
use sendense_api::{CleanupStatus, MountResources};
use sendense_guestfs::appliance::{self, Fallback, Kits};
use sendense_guestfs::client::{Options, Worker, prepare_groups};
use sendense_guestfs::{Error, Session, VolumeId};
use sendense_repo::{ChainReader, Detached};
use sendense_types::{Clock, MountId, Problem, ProblemCode, Timestamp};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The argument that makes this program a reader of guests' disks.
pub const WORKER_ARGUMENT: &str = "__guestfs-worker";
/// How often idle points are looked for: the contract's minute.
pub(crate) const CLEANUP_PERIOD: Duration = Duration::from_secs(60);

/// A session whose end can be seen and asked for.
pub(crate) trait Reader: Session {
    /// Why it is over, when it is.
    fn ended(&self) -> Option<Error>;
    /// Ends it: every call that is open fails, and its processes are killed.
    fn stop(&self);
    /// What reads a volume.
    fn backend(&self, volume: &VolumeId) -> dto::Backend;
    /// How its processes are confined.
    fn confinement(&self) -> Option<String>;
}

impl Reader for Fallback<Worker> {
    fn ended(&self) -> Option<Error> {
        // An appliance that has ended costs its volumes; the others are read as before.
        Worker::ended(self.native())
    }

    fn stop(&self) {
        self.native().stop();
        self.stop_appliance();
    }

    fn backend(&self, volume: &VolumeId) -> dto::Backend {
        if self.is_taken(volume) { dto::Backend::Appliance } else { dto::Backend::Native }
    }

    fn confinement(&self) -> Option<String> {
        let native = self.level()?;
        let appliance = self.appliance().and_then(|appliance| appliance.level());
        let appliance = appliance.map(|level| format!("; appliance: {level}")).unwrap_or_default();
        Some(format!("{native}{appliance}"))
    }
}

/// Opens the disk of some files; blocks.
pub(crate) type Open = dyn Fn(Vec<OwnedFd>, Vec<u8>) -> sendense_guestfs::Result<Arc<dyn Reader>> + Send + Sync;

/// Starts a confined process for them, and an appliance behind it when the first knows a volume that it does not read. The
/// appliance's parts are kept in `folder`.
pub(crate) fn start_worker(folder: PathBuf) -> Arc<Open> {
    prepare_groups();
    let kits = Arc::new(Kits::new(folder).or_virtual_machine(|proof| match proof {
        Ok(()) => tracing::info!("a virtual machine was proven: appliances run in one from now on"),
        Err(why) => tracing::info!(%why, "appliances run under user mode linux, for no virtual machine was proven"),
    }));
    Arc::new(move |files, words| {
        let again = clones(&files)?;
        let setup = words.clone();
        let worker = Worker::start(Options::new(vec![WORKER_ARGUMENT.into()], files, words))?;
        let kits = kits.clone();
        let open = move || {
            let kit = kits.get()?;
            let io = |error: &dyn std::fmt::Display| Error::Io(format!("open the chain for the appliance: {error}"));
            let words = serde_json::from_slice(&setup).map_err(|error| io(&error))?;
            let chain = ChainReader::attach(clones(&again)?, &words).map_err(|error| io(&error))?;
            Ok((appliance::Options::new(kit), appliance::Disk::serve(Arc::new(chain))?))
        };
        let reader: Arc<dyn Reader> = Arc::new(Fallback::new(worker, Box::new(open)));
        Ok(reader)
    })
}

/// The same open files once more.
fn clones(files: &[OwnedFd]) -> sendense_guestfs::Result<Vec<OwnedFd>> {
    let clones: std::io::Result<Vec<_>> = files.iter().map(OwnedFd::try_clone).collect();
    clones.map_err(|error| Error::Io(format!("hold the chain's files: {error}")))
}

/// The open points of this hub.
pub(crate) struct Mounts {
    open: Arc<Open>,
    clock: Arc<dyn Clock>,
    places: usize,
    idle_seconds: u64,
    table: Arc<Mutex<Table>>,
    lookers: look::Places,
}

#[derive(Default)]
struct Table {
    mounts: BTreeMap<MountId, Arc<Mount>>,
    /// Points that are being opened: they have a place already.
    opening: usize,
    last_run_at: Option<Timestamp>,
    total_cleaned: u64,
}

/// A place that was given to somebody who is opening a point.
struct Place(Arc<Mutex<Table>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().opening -= 1;
    }
}

impl Mounts {
    /// No point is open yet.
    pub fn new(open: Arc<Open>, clock: Arc<dyn Clock>, places: usize, idle_seconds: u64) -> Self {
        Self { open, clock, places, idle_seconds, table: Arc::default(), lookers: look::Places::default() }
    }

    /// Opens a point. `detach` opens its files and claims its chain; it blocks.
    pub async fn open(
        &self,
        id: MountId,
        point: Point,
        volume: Option<VolumeId>,
        detach: impl FnOnce() -> Result<Detached> + Send + 'static,
    ) -> Result<Arc<Mount>> {
        // Kept until the point is open or its process is gone, also when the one who asked for it is gone before.
        let place = self.take_place()?;
        let (open, asked) = (self.open.clone(), volume.clone());
        let (reader, volumes, guard, _place) = blocking(move || {
            let Detached { files, words, guard } = detach()?;
            let reader = open(files, words_of(&words)?).map_err(|error| fault::of_guestfs(&error))?;
            let volumes = reader.volumes().map_err(|error| fault::of_guestfs(&error))?;
            match &asked {
                Some(asked) if !volumes.iter().any(|known| known.id == *asked) => {
                    Err(fault::no_volume(asked.as_str(), &volumes))
                }
                _ => Ok((reader, volumes, guard, place)),
            }
        })
        .await??;
        let mount = Arc::new(Mount::new(id.clone(), point, volume, reader, volumes, guard, self.clock.clone()));
        self.table.lock().mounts.insert(id, mount.clone());
        Ok(mount)
    }

    fn take_place(&self) -> Result<Place> {
        let mut table = self.table.lock();
        if table.mounts.len() + table.opening >= self.places {
            let open: Vec<&str> = table.mounts.keys().map(MountId::as_str).collect();
            let details = format!("{} may be open at once; close one: {}", self.places, open.join(", "));
            return Err(Problem::new(ProblemCode::Busy, "too many restore points are open", details));
        }
        table.opening += 1;
        Ok(Place(self.table.clone()))
    }

    /// An open point.
    pub fn get(&self, id: &MountId) -> Result<Arc<Mount>> {
        self.table.lock().mounts.get(id).cloned().ok_or_else(|| not_open(id))
    }

    /// All open points, oldest first.
    pub fn all(&self) -> Vec<Arc<Mount>> {
        let mut all: Vec<_> = self.table.lock().mounts.values().cloned().collect();
        all.sort_by_key(|mount| (mount.created_at, mount.id.clone()));
        all
    }

    /// When a point will be closed if nobody uses it.
    pub fn expires_at(&self, mount: &Mount) -> Timestamp {
        let last = if mount.streams() > 0 { self.clock.now() } else { mount.last_used() };
        last.plus_seconds(i64::try_from(self.idle_seconds).unwrap_or(i64::MAX))
    }

    /// Closes a point: its process ends, its chain is free. It is closed also when nobody waits for that.
    pub async fn close(&self, id: &MountId) -> Result<()> {
        let mount = self.table.lock().mounts.remove(id).ok_or_else(|| not_open(id))?;
        end(vec![mount]).await
    }

    /// Closes all.
    pub async fn close_all(&self) {
        let all = std::mem::take(&mut self.table.lock().mounts);
        told(end(all.into_values().collect()).await);
    }

    /// Closes the points that nobody has used for too long; gives their ids.
    pub async fn clean_up(&self) -> Vec<MountId> {
        let now = self.clock.now();
        let idle = {
            let mut table = self.table.lock();
            let is_idle = |mount: &Mount| {
                mount.streams() == 0 && now.seconds_since(mount.last_used()) >= self.idle_seconds as f64
            };
            let ids: Vec<MountId> =
                table.mounts.iter().filter(|(_, mount)| is_idle(mount)).map(|(id, _)| id.clone()).collect();
            table.last_run_at = Some(now);
            table.total_cleaned += ids.len() as u64;
            table.mounts.values().for_each(|mount| mount.forget_old_listing(now));
            ids.into_iter().filter_map(|id| table.mounts.remove(&id)).collect::<Vec<_>>()
        };
        let ids = idle.iter().map(|mount| mount.id.clone()).collect();
        told(end(idle).await);
        ids
    }

    /// How many are open and may be.
    pub fn resources(&self) -> MountResources {
        let table = self.table.lock();
        let taken = table.mounts.len() + table.opening;
        MountResources {
            active_mounts: table.mounts.len() as u32,
            max_mounts: self.places as u32,
            available_slots: self.places.saturating_sub(taken) as u32,
            allocated_devices: Vec::new(),
            device_utilization_percent: taken as f64 * 100.0 / self.places.max(1) as f64,
        }
    }

    /// What closes idle points.
    pub fn cleanup_status(&self, running: bool) -> CleanupStatus {
        let table = self.table.lock();
        CleanupStatus {
            running,
            interval_seconds: CLEANUP_PERIOD.as_secs(),
            idle_timeout_seconds: self.idle_seconds,
            last_run_at: table.last_run_at,
            total_cleaned: table.total_cleaned,
            active_mounts: table.mounts.len() as u32,
        }
    }
}

/// Ends points on a thread where it does not matter how long killing processes and dropping claims takes.
async fn end(mounts: Vec<Arc<Mount>>) -> Result<()> {
    blocking(move || mounts.iter().for_each(|mount| mount.close())).await
}

fn told(ended: Result<()>) {
    if let Err(problem) = ended {
        tracing::error!(error = %problem.message, details = %problem.details, "close open points");
    }
}

fn not_open(id: &MountId) -> Problem {
    let details = format!("no open point has the id {id}; it may have been closed after an hour without use");
    Problem::new(ProblemCode::MountNotFound, "mount not found", details)
}

fn words_of(words: &sendense_repo::Words) -> Result<Vec<u8>> {
    serde_json::to_vec(words)
        .map_err(|error| crate::fault::internal("describe a chain to its reader", error.to_string()))
}

/// Until the hub stops: closes what nobody uses, each minute.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut rounds = core.rounds(CLEANUP_PERIOD);
    while rounds.next().await {
        for id in core.mounts.clean_up().await {
            tracing::info!(mount_id = %id, "nobody used the open point; it is closed");
        }
    }
    core.mounts.close_all().await;
}
