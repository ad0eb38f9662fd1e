//! The disks of a recovery while they are served: a chain, an overlay over it, an export of that.
//!
//! Invariant: an overlay is closed only when no client can reach it any more, and its folder is removed only then.

use super::Record;
use super::below::{Below, Comparing, WrittenDisk};
use super::record::DiskRecord;
use crate::exports::Exports;
use crate::fault::{OrProblem, Result, of_block};
use parking_lot::Mutex;
use sendense_block::nbd::server::{Device, ExportGuard, ExportOptions, Exports as Registry, Listen, Options, Server};
use sendense_block::overlay::Held;
use sendense_block::{self as block, ByteLen, Disk, Flush, Overlay};
use sendense_repo::Repository;
use sendense_types::{DiskNumber, RecoveryId};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the end waits for requests in a chain or an overlay: a read of a few clusters from a share that is slow, or a
/// flush of a disk's cache.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// Disks on offer.
pub(crate) struct Served {
    disks: Vec<ServedDisk>,
    /// The server that serves nothing else.
    server: Mutex<Option<Server>>,
}

/// Where disks are served.
pub(super) enum Stage {
    /// With the exports.
    Hub(Arc<Exports>),
    /// By a server of their own.
    Own(Server),
}

impl Stage {
    /// A server of its own on a socket.
    pub fn own(socket: &Path) -> block::Result<Self> {
        Ok(Self::Own(Server::start(Options::new(Listen::Unix(socket.to_owned())), Registry::new())?))
    }

    fn offer(&self, name: &str, device: Device, description: String) -> block::Result<(ExportGuard, String)> {
        match self {
            Self::Hub(exports) => exports.serve_as(name, device, description),
            Self::Own(server) => {
                let options = ExportOptions { description, ..ExportOptions::default() };
                let guard = server.exports().add(name, device, options)?;
                Ok((guard, server.uri(name)?.to_string()))
            }
        }
    }
}

/// One of them.
pub(crate) struct ServedDisk {
    pub disk_id: DiskNumber,
    pub uri: String,
    overlay: Arc<Overlay>,
    below: Arc<Below>,
    /// None once it is not served any more.
    guard: Mutex<Option<ExportGuard>>,
}

/// Whether the overlays are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// They are made.
    Create,
    /// They were made before, and hold what was written.
    Open,
}

/// Serves all disks, or none. Blocks.
pub(super) fn serve(
    record: &Record,
    repository: &Repository,
    stage: Stage,
    floor: ByteLen,
    begin: Begin,
) -> Result<Served> {
    if begin == Begin::Create {
        let failed = |error: io::Error| of_block("make the recovery's folder", &block::Error::io("make", error));
        make_folder(&record.folder).map_err(failed)?;
    }
    let disks = record.disks.iter().map(|disk| serve_disk(record, disk, repository, &stage, floor, begin));
    let disks = disks.collect::<Result<_>>()?;
    let server = match stage {
        Stage::Hub(_) => None,
        Stage::Own(server) => Some(server),
    };
    Ok(Served { disks, server: Mutex::new(server) })
}

fn serve_disk(
    record: &Record,
    disk: &DiskRecord,
    repository: &Repository,
    stage: &Stage,
    floor: ByteLen,
    begin: Begin,
) -> Result<ServedDisk> {
    let id = disk.disk_id;
    let who = format!("recovery {}", record.recovery_id);
    let chain = repository.open_disk(&record.vm_context_id, &record.backup_id, id, &who).or_problem()?;
    let below = Arc::new(Below::new(chain));
    let base: Arc<dyn Disk> = below.clone();
    let (folder, identity) = (record.overlay(id), record.identity(id));
    let overlay = match begin {
        Begin::Create => make_folder(&folder)
            .map_err(|error| block::Error::io(format!("make {}", folder.display()), error))
            .and_then(|()| Overlay::create(&folder, base, &identity)),
        Begin::Open => Overlay::open(&folder, base, &identity),
    };
    let what = format!("serve disk {id}");
    let overlay = Arc::new(overlay.map_err(|error| of_block(&what, &error))?.with_floor(floor));
    let description = format!("{}: disk {id} of {}, {}", record.recovery_id, record.vm_name, record.backup_id);
    let (guard, uri) = stage
        .offer(&disk.export, Device::Writable(overlay.clone()), description)
        .map_err(|error| of_block(&what, &error))?;
    Ok(ServedDisk { disk_id: id, uri, overlay, below, guard: Mutex::new(Some(guard)) })
}

impl Served {
    /// A disk on offer.
    pub fn disk(&self, id: DiskNumber) -> Option<&ServedDisk> {
        self.disks.iter().find(|disk| disk.disk_id == id)
    }

    /// Compares what is read of the point from now on with its digests, as long as somebody wants that. Blocks.
    pub(super) fn compare(&self, record: &Record, repository: &Repository) -> sendense_repo::Result<Comparing> {
        let who = format!("recovery {}", record.recovery_id);
        let disks = self.disks.iter().map(|disk| (disk.disk_id, &disk.below));
        Comparing::begin(repository, &record.vm_context_id, &record.backup_id, &who, disks)
    }

    /// Connections that are open to any of them.
    pub fn clients(&self) -> usize {
        self.disks.iter().map(ServedDisk::clients).sum()
    }
}

impl ServedDisk {
    /// What was written to it.
    pub fn held(&self) -> Held {
        self.overlay.held()
    }

    /// Connections that are open.
    pub fn clients(&self) -> usize {
        self.guard.lock().as_ref().map_or(0, |guard| guard.status().clients)
    }
}

/// Cuts all clients off, waits for what they were doing, and makes what they have written durable.
pub(super) fn close(recovery_id: &RecoveryId, served: Arc<Served>) {
    drop(stop(recovery_id, served));
}

/// The same, and gives what was written, to which nobody can write any more.
pub(super) fn stop(recovery_id: &RecoveryId, served: Arc<Served>) -> Vec<(DiskNumber, Arc<WrittenDisk>)> {
    let written = |disk: &ServedDisk| WrittenDisk { overlay: disk.overlay.clone(), below: disk.below.clone() };
    let disks: Vec<_> = served.disks.iter().map(|disk| (disk.disk_id, Arc::new(written(disk)))).collect();
    for disk in &served.disks {
        // Whoever looks at it for a list holds it for a moment longer.
        let Some(guard) = disk.guard.lock().take() else { continue };
        if let Err(error) = guard.close(CLOSE_TIMEOUT) {
            tracing::warn!(%recovery_id, disk_id = disk.disk_id.0, %error,
                "a recovery's disk is not served any more, but a request hangs");
        }
    }
    if let Some(server) = served.server.lock().take() {
        server.shutdown();
    }
    flush(recovery_id, disks.iter().map(|(disk_id, written)| (*disk_id, &written.overlay)));
    disks
}

fn flush<'a>(recovery_id: &RecoveryId, overlays: impl Iterator<Item = (DiskNumber, &'a Arc<Overlay>)>) {
    for (disk_id, overlay) in overlays {
        if let Err(error) = overlay.flush() {
            let reason = block::error::chain(&error);
            tracing::error!(%recovery_id, disk_id = disk_id.0, %reason, "what was written last to a recovery may be lost");
        }
    }
}

/// Removes what a recovery has written. Only what it made goes; what is gone already is no error.
pub(super) fn remove(record: &Record) -> Result<()> {
    for disk in &record.disks {
        let folder = record.overlay(disk.disk_id);
        if folder.is_dir() {
            Overlay::remove(&folder).map_err(|error| of_block("remove what was written", &error))?;
        }
        remove_folder(&folder)?;
    }
    remove_folder(&record.folder)
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let error = block::Error::io(format!("remove {}", folder.display()), error);
            Err(of_block("remove what was written", &error))
        }
        _ => Ok(()),
    }
}

/// A new folder that only we can look into, and its name durable.
fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)?;
    folder.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
}
