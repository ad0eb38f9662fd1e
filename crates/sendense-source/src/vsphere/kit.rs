//! A supervised `nbdkit` that serves one disk of one snapshot on a socket of ours, through its vddk plugin.
//!
//! What lives here: its start, the one connection to it, its end. What does not: where VDDK is (`library`). One process per
//! disk: VDDK is a large library of others that may crash, and then one disk's read fails and not the node.
//!
//! One connection is one handle of VDDK is one session of the host. `exitlast` ends nbdkit when the connection does, after VDDK
//! has closed the handle; a process that is killed instead leaves its session to the host's own time-out. So the
//! connection is closed first, and only what does not end by itself is killed.
//!
//! Invariant: the password is never an argument and lies in a file of ours (0600, in a folder 0700) only until nbdkit has
//! read it.

use super::Settings;
use super::library::{self, Library, TOOL, TOOL_PACKAGE};
use crate::child::{self, Child, Spec};
use crate::error::{Error, Kind, Result};
use crate::journal::{Artefact, ArtefactKind, Journal};
use parking_lot::{Mutex, RwLock};
use sendense_block::copy::Existing;
use sendense_block::nbd::{Client, Options, Uri};
use sendense_block::{
    AllocationMap, ByteLen, ByteOffset, Cancel, Extent, Flush, MappedExtent, ReadAt, WriteAt, ZeroRange,
};
use sendense_types::{SourceId, TaskId};
use sendense_vsphere::{Ref, Vim};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes per request. VDDK's guide says that more than 2 MiB at once fails on some hosts, and that 1 MiB is what an NFC buffer
/// holds. Smaller ones cost nbdkit more: its threads, which all answer over one connection, get into each other's way.
pub(super) const REQUEST_BYTES: u32 = 1 << 20;
/// How long it may take to serve: VDDK logs in to the vCenter and opens the disk on its host, seconds each on a busy one.
const START_MAX: Duration = Duration::from_secs(120);
/// How long VDDK may take to close a disk before nbdkit is killed.
const CLOSE_MAX: Duration = Duration::from_secs(30);
/// How often is looked: not felt by people, and 12,000 looks at most.
const POLL: Duration = Duration::from_millis(10);
/// `sun_path` holds 108 bytes, the last one a NUL.
const SOCKET_BYTES_MAX: usize = 107;
/// How long is waited for what nbdkit says of a read that failed: as long as of a start.
const COMPLAINT_MAX: Duration = Duration::from_secs(1);
/// Nothing more in this time is the end of what it says: its lines are written at once, if not in one piece.
const COMPLAINT_PAUSE: Duration = Duration::from_millis(50);
/// What VDDK says of a write for which the datastore has no room (VIX_E_DISK_FULL).
const DISK_FULL: &str = "The disk is full";
const FOLDER_START: &str = "vddk-nbd-";
const SOCKET: &str = "s";
const PASSWORD: &str = "p";

/// How VDDK gets in.
pub(super) struct Access<'a> {
    pub library: &'a Library,
    /// Host and port.
    pub server: (String, u16),
    pub username: &'a str,
    pub password: &'a str,
    /// SHA-1 of the certificate that was believed.
    pub thumbprint: String,
    /// The machine's id on the server.
    pub machine: &'a str,
    /// The snapshot's id on the server, to be read; none to write to the machine's own disks, which is off and has none.
    pub snapshot: Option<&'a str>,
}

impl<'a> Access<'a> {
    /// As the source's settings say, to the server that the session is with.
    pub fn new(settings: &'a Settings, vim: &Vim, machine: &'a Ref, snapshot: Option<&'a Ref>) -> Result<Self> {
        let certificate =
            vim.certificate().ok_or_else(|| Error::new(Kind::Failed, "the server's certificate is not known"))?;
        Ok(Self {
            library: &settings.library,
            server: host_and_port(vim.address()),
            username: &settings.login.username,
            password: &settings.login.password,
            thumbprint: certificate.vddk_thumbprint(),
            machine: &machine.id,
            snapshot: snapshot.map(|snapshot| snapshot.id.as_str()),
        })
    }
}

/// The server for VDDK, which wants the two apart.
fn host_and_port(address: &str) -> (String, u16) {
    let split = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    // An IPv6 address ends in its bracket where no port follows.
    match split {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host.to_owned(), port),
        _ => (address.to_owned(), 443),
    }
}

/// For whom it is started.
pub(super) struct Owner {
    pub run_dir: PathBuf,
    pub source_id: SourceId,
    pub task_id: TaskId,
    pub vm_key: String,
    pub journal: Arc<dyn Journal>,
}

/// A disk of a snapshot. Dropping it ends nbdkit.
pub(super) struct Kit {
    client: RwLock<Option<Client>>,
    size: ByteLen,
    child: Child,
    place: Place,
}

/// The folder of one process, and its entry in the journal.
struct Place {
    folder: PathBuf,
    entry: Mutex<Option<u64>>,
    journal: Arc<dyn Journal>,
}

impl Kit {
    /// Starts nbdkit for a file (`[datastore] folder/disk.vmdk`) and connects.
    pub fn start(owner: &Owner, access: &Access<'_>, file: &str, cancel: &Cancel) -> Result<Self> {
        let run_dir = std::path::absolute(&owner.run_dir)
            .map_err(|error| Error::new(Kind::Invalid, "the run folder has no name").caused_by(error))?;
        let plugin = access.library.arguments(&run_dir)?;
        let words = [file, access.username, access.machine, access.snapshot.unwrap_or(file), &access.server.0];
        if let Some(word) = words.into_iter().find(|word| !library::is_plain(word)) {
            return Err(Error::new(Kind::Unsafe, format!("{word:?} is no name that nbdkit could be told")));
        }
        let place = Place::make(owner, &run_dir)?;
        let mut password = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(place.folder.join(PASSWORD))
            .map_err(|error| place.failed(error))?;
        password.write_all(access.password.as_bytes()).map_err(|error| place.failed(error))?;
        drop(password);
        let (host, port) = &access.server;
        let spec = Spec::new(TOOL, TOOL_PACKAGE)
            .args(["--foreground", "--filter=exitlast"])
            // What is written to is not asked for what it holds.
            .args(access.snapshot.map_or(&[][..], |_| &["--readonly", "--filter=cacheextents"]))
            .arg("--unix")
            .arg(place.folder.join(SOCKET))
            .args(plugin)
            .arg(format!("server={host}"))
            .arg(format!("port={port}"))
            .arg(format!("user={}", access.username))
            .arg(format!("password=+{}", place.folder.join(PASSWORD).display()))
            .arg(format!("thumbprint={}", access.thumbprint))
            .arg(format!("transports={}", access.library.transports()))
            .arg(format!("vm=moref={}", access.machine))
            // Always to read: without it VDDK opens what the machine writes to, or fails with error 13.
            .args(access.snapshot.map(|snapshot| format!("snapshot={snapshot}")))
            .arg(format!("file={file}"));
        let child = Child::spawn(&spec)?;
        let client = connect(&child, &place.folder.join(SOCKET), access.snapshot.is_some(), cancel);
        // nbdkit reads it before it serves.
        let _ = fs::remove_file(place.folder.join(PASSWORD));
        let client = client?;
        Ok(Self { size: client.size(), client: RwLock::new(Some(client)), child, place })
    }

    /// Ends it: the connection, then by itself, then by force.
    pub fn stop(&self) {
        self.client.write().take();
        let until = Instant::now() + CLOSE_MAX;
        while self.child.outcome().is_none() && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        // What hangs in the kernel stays in the journal, to be ended later.
        if self.child.kill() {
            self.place.close();
        }
    }

    fn client(&self) -> sendense_block::Result<Client> {
        let held = self.client.read().clone();
        held.ok_or_else(|| sendense_block::Error::new(sendense_block::Kind::Unavailable, "the disk was let go"))
    }

    /// An error with what nbdkit said about it.
    fn explained(&self, error: sendense_block::Error) -> sendense_block::Error {
        if error.kind == sendense_block::Kind::Cancelled {
            return error;
        }
        // What it says comes on another way than its answer, a moment later and word by word.
        let (until, mut complaint) = (Instant::now() + COMPLAINT_MAX, String::new());
        loop {
            let said = self.child.complaint();
            let is_whole = !said.is_empty() && said == complaint;
            complaint = said;
            if is_whole || Instant::now() > until {
                break;
            }
            std::thread::sleep(COMPLAINT_PAUSE);
        }
        if complaint.is_empty() {
            return error;
        }
        // The plugin's answer is an I/O error whatever VDDK told it.
        let kind = if complaint.contains(DISK_FULL) { sendense_block::Kind::NoSpace } else { error.kind };
        sendense_block::Error::new(kind, format!("nbdkit says: {complaint}")).caused_by(error)
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        self.stop();
    }
}

impl ReadAt for Kit {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        self.client()?.read_at(at, buf).map_err(|error| self.explained(error))
    }
}

impl WriteAt for Kit {
    fn write_at(&self, at: ByteOffset, buf: &[u8]) -> sendense_block::Result<()> {
        self.client()?.write_at(at, buf).map_err(|error| self.explained(error))
    }
}

impl ZeroRange for Kit {
    fn zero_range(&self, extent: Extent) -> sendense_block::Result<()> {
        self.client()?.zero_range(extent).map_err(|error| self.explained(error))
    }
}

impl Flush for Kit {
    fn flush(&self) -> sendense_block::Result<()> {
        self.client()?.flush().map_err(|error| self.explained(error))
    }
}

// What it wrote and reads again comes from the host: nbdkit keeps nothing.
impl Existing for Kit {}

impl AllocationMap for Kit {
    fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
        self.client()?.allocation(within).map_err(|error| self.explained(error))
    }
}

fn connect(child: &Child, socket: &Path, read_only: bool, cancel: &Cancel) -> Result<Client> {
    let mut options = Options::new(Uri::unix(socket, "")?);
    options.read_only = read_only;
    options.request_bytes = REQUEST_BYTES;
    options.handshake_timeout = START_MAX;
    let until = Instant::now() + START_MAX;
    loop {
        cancel.check()?;
        let tried = match socket.exists() {
            true => Some(Client::connect(&options, cancel)),
            false => None,
        };
        let failed = match tried {
            Some(Ok(client)) => return Ok(client),
            Some(Err(error)) if error.kind == sendense_block::Kind::Cancelled => return Err(error.into()),
            Some(Err(error)) => Some(error),
            None => None,
        };
        // A socket that does not listen yet, or no more: then nbdkit has ended and says why.
        let early = failed.as_ref().is_none_or(|error| error.kind == sendense_block::Kind::Unavailable);
        if let Some(outcome) = child.outcome() {
            return Err(refused(&outcome.complaint(), failed));
        }
        if !early || Instant::now() > until {
            // A disk that VDDK does not open looks like an export that is not there: asking again would only log in
            // again. The reason is on nbdkit's stderr, a moment after the answer at the latest, and word by word.
            let said = Instant::now() + Duration::from_secs(1);
            while library::explained(&child.complaint()).is_none() && Instant::now() < said {
                std::thread::sleep(POLL);
            }
            return Err(refused(&child.complaint(), failed));
        }
        std::thread::sleep(POLL);
    }
}

/// Why a disk is not served.
fn refused(complaint: &str, failed: Option<sendense_block::Error>) -> Error {
    let unknown = || match failed {
        Some(error) => Error::of_device(format!("nbdkit does not serve the disk: {complaint}"), error),
        None => Error::new(Kind::Failed, format!("nbdkit does not serve the disk: {complaint}")),
    };
    library::explained(complaint).unwrap_or_else(unknown)
}

impl Place {
    /// The socket's path is among nbdkit's arguments, so that it can be found again by it: a pid could only be written down
    /// after the process exists.
    fn make(owner: &Owner, run_dir: &Path) -> Result<Self> {
        // 64 random bits tell the folders apart and leave room for the run folder's name.
        let folder = run_dir.join(format!("{FOLDER_START}{:016x}", uuid::Uuid::new_v4().as_u64_pair().0));
        if folder.join(SOCKET).as_os_str().len() > SOCKET_BYTES_MAX {
            let message = format!("the run folder {} has too long a name for a socket", run_dir.display());
            return Err(Error::new(Kind::Invalid, message));
        }
        let artefact = Artefact {
            source_id: owner.source_id.clone(),
            task_id: owner.task_id.clone(),
            kind: ArtefactKind::ChildProcess,
            vm_key: owner.vm_key.clone(),
            details: json!({ "folder": folder }),
        };
        let entry = owner.journal.record(&artefact)?;
        let place = Self { folder, entry: Mutex::new(Some(entry)), journal: owner.journal.clone() };
        DirBuilder::new().recursive(true).mode(0o700).create(&place.folder).map_err(|error| place.failed(error))?;
        Ok(place)
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::new(Kind::Failed, format!("write to the folder {}", self.folder.display())).caused_by(error)
    }

    /// Tidies up; the second time nothing is left to do.
    fn close(&self) {
        let Some(entry) = self.entry.lock().take() else { return };
        if let Err(error) = remove(&self.folder).and_then(|()| self.journal.close(entry)) {
            tracing::warn!(%error, "cannot close a journal entry; it will be reaped at the next start");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Reached with an entry only where nbdkit was not started or has ended (the child is dropped before).
        self.close();
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new(Kind::Failed, format!("remove {}", folder.display())).caused_by(error))
        }
        _ => Ok(()),
    }
}

/// Ends the nbdkit of a dead process of ours, and removes its folder.
pub(crate) fn reap(artefact: &Artefact) -> Result<bool> {
    let wrong = || Error::new(Kind::Invalid, "the journal's entry is not one of a vsphere source");
    let folder = artefact.details.get("folder").and_then(|folder| folder.as_str()).map(Path::new).ok_or_else(wrong)?;
    let name = folder.file_name().and_then(OsStr::to_str).ok_or_else(wrong)?;
    if !folder.is_absolute() || !name.starts_with(FOLDER_START) {
        return Err(wrong());
    }
    if !child::reap_marked(folder.join(SOCKET).as_os_str())? {
        return Ok(false);
    }
    remove(folder).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (address, host, port) in
            [("vc", "vc", 443), ("vc:8443", "vc", 8443), ("[::1]", "[::1]", 443), ("[::1]:8443", "[::1]", 8443)]
        {
            assert_eq!(host_and_port(address), (host.to_owned(), port));
        }
    }
}
