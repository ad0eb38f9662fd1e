//! A supervised `qemu-nbd` that serves one image read-only on a socket of ours.
//!
//! What lives here: its start, the proof that it opened what was checked and nothing else, its end. What does not: which
//! files those are (`foreign`).
//!
//! Invariant: bytes are only read through a tool whose every open file is one that our parsers saw: after its start its
//! handles are compared with the checked files, inode by inode. A file that was swapped between the check and the start
//! is found there.

use super::foreign::{TOOL, TOOL_PACKAGE, ToolImage};
use super::layers::LayerFile;
use crate::child::{self, Child, Spec};
use crate::error::{Error, Kind, Result};
use crate::journal::{Artefact, ArtefactKind, Journal};
use parking_lot::Mutex;
use sendense_block::nbd::{Client, Options, Uri};
use sendense_block::{AllocationMap, ByteLen, ByteOffset, Cancel, Extent, MappedExtent, ReadAt};
use sendense_types::{SourceId, TaskId};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the tool may take to serve. It opens files and reads tables; a slow NFS server fits in.
const START_MAX: Duration = Duration::from_secs(30);
/// How often its socket is tried: not felt by people, and 3,000 tries at most.
const START_POLL: Duration = Duration::from_millis(10);
/// `sun_path` holds 108 bytes, the last one a NUL.
const SOCKET_BYTES_MAX: usize = 107;

/// For whom a tool is started.
pub struct Owner {
    /// Where its socket lies.
    pub run_dir: PathBuf,
    /// On which source.
    pub source_id: SourceId,
    /// For which task.
    pub task_id: TaskId,
    /// For which machine.
    pub vm_key: String,
    /// Knows of it before it exists.
    pub journal: Arc<dyn Journal>,
}

/// A running tool as a disk. Dropping it ends the tool.
pub struct ImageServer {
    client: Client,
    running: Running,
}

impl ImageServer {
    /// Starts the tool, connects, and shows that it serves what was checked.
    pub fn start(owner: &Owner, image: &ToolImage, files: &[LayerFile], cancel: &Cancel) -> Result<Self> {
        // The tool works in `/`.
        let run_dir = std::path::absolute(&owner.run_dir)
            .map_err(|error| Error::new(Kind::Invalid, "the run folder has no name").caused_by(error))?;
        // 64 random bits tell the sockets of one run folder apart and leave room for the folder's name.
        let number = uuid::Uuid::new_v4().as_u64_pair().0;
        let socket = run_dir.join(format!("{SOCKET_START}{number:016x}{SOCKET_END}"));
        if socket.as_os_str().len() > SOCKET_BYTES_MAX {
            let message = format!("the run folder {} has too long a name for a socket", owner.run_dir.display());
            return Err(Error::new(Kind::Invalid, message));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&owner.run_dir).map_err(|error| {
            Error::new(Kind::Failed, format!("make the folder {}", owner.run_dir.display())).caused_by(error)
        })?;
        let running = Running::start(owner, &image.options, socket)?;
        let client = running.connect(cancel)?;
        running.check_handles(files)?;
        if client.size() != image.capacity {
            let message = format!("{TOOL} serves {} where the image says {}", client.size(), image.capacity);
            return Err(Error::new(Kind::Disturbed, message));
        }
        match files.iter().find(|file| !file.stamp.still_holds(&file.handle, &file.path)) {
            Some(file) => {
                Err(Error::new(Kind::Disturbed, format!("{} changed while it was opened", file.path.display())))
            }
            None => Ok(Self { client, running }),
        }
    }

    /// Ends the tool even where somebody still holds the disk; reads fail from then on.
    pub fn stop(&self) {
        self.running.stop();
    }
}

impl ReadAt for ImageServer {
    fn size(&self) -> ByteLen {
        self.client.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        self.client.read_at(at, buf)
    }
}

impl AllocationMap for ImageServer {
    fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
        self.client.allocation(within)
    }
}

/// The tool with what must be tidied up after it.
struct Running {
    child: Option<Child>,
    socket: PathBuf,
    entry: Mutex<Option<u64>>,
    journal: Arc<dyn Journal>,
}

impl Running {
    fn start(owner: &Owner, options: &OsStr, socket: PathBuf) -> Result<Self> {
        // The socket's path is among the tool's arguments, so that it can be found again by it: a pid could only be
        // written down after the tool exists.
        let artefact = Artefact {
            source_id: owner.source_id.clone(),
            task_id: owner.task_id.clone(),
            kind: ArtefactKind::ChildProcess,
            vm_key: owner.vm_key.clone(),
            details: json!({ "socket": socket }),
        };
        let entry = owner.journal.record(&artefact)?;
        let mut running = Self { child: None, socket, entry: Mutex::new(Some(entry)), journal: owner.journal.clone() };
        let spec = Spec::new(TOOL, TOOL_PACKAGE)
            .args(["--read-only", "--persistent", "--shared=1", "--socket"])
            .arg(&running.socket)
            .arg("--image-opts")
            .arg(options);
        running.child = Some(Child::spawn(&spec)?);
        Ok(running)
    }

    fn connect(&self, cancel: &Cancel) -> Result<Client> {
        let uri = Uri::unix(&self.socket, "")?;
        let mut options = Options::new(uri);
        options.read_only = true;
        let until = Instant::now() + START_MAX;
        loop {
            cancel.check()?;
            if let Some(outcome) = self.child.as_ref().and_then(Child::outcome) {
                let message = format!("{TOOL} does not open the image: {}", outcome.complaint());
                return Err(Error::new(Kind::Failed, message));
            }
            match Client::connect(&options, cancel) {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > until => {
                    return Err(Error::of_device(format!("{TOOL} does not serve in time"), error));
                }
                Err(error) if error.kind == sendense_block::Kind::Unavailable => {}
                Err(error) if error.kind == sendense_block::Kind::NotFound => {}
                Err(error) => return Err(Error::of_device(format!("{TOOL} does not serve the image"), error)),
            }
            std::thread::sleep(START_POLL);
        }
    }

    /// Every stored file that the tool holds open must be one of `files`.
    fn check_handles(&self, files: &[LayerFile]) -> Result<()> {
        let pid = self.child.as_ref().map_or(0, |child| child.identity().pid);
        let folder = PathBuf::from(format!("/proc/{pid}/fd"));
        let failed = |error| Error::new(Kind::Failed, format!("look at what {TOOL} opened")).caused_by(error);
        let mut seen = 0;
        for handle in fs::read_dir(&folder).map_err(failed)? {
            let link = handle.map_err(failed)?.path();
            // A handle that is closed meanwhile reads nothing.
            let Ok(found) = fs::metadata(&link) else { continue };
            if !found.is_file() && !found.file_type().is_block_device() {
                continue;
            }
            if !files.iter().any(|file| file.stamp.same_file(&found)) {
                // The name is for the log: it may be a secret file's that somebody tried to reach.
                let name = fs::read_link(&link).unwrap_or_default();
                tracing::error!(file = %name.display(), "a tool opened a file that was not checked");
                return Err(Error::new(
                    Kind::Unsafe,
                    "the image led the tool to a file that was not checked; was it swapped?",
                ));
            }
            seen += 1;
        }
        if seen == 0 {
            Err(Error::new(Kind::Failed, format!("{TOOL} holds none of the image's files")))
        } else {
            Ok(())
        }
    }
}

impl Running {
    /// Ends the tool and tidies up; the second time nothing is left to do.
    fn stop(&self) {
        let Some(entry) = self.entry.lock().take() else { return };
        // A tool that hangs in the kernel stays in the journal, to be ended later.
        let ended = self.child.as_ref().is_none_or(Child::kill);
        let removed = fs::remove_file(&self.socket);
        let tidy = removed.is_ok() || removed.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        if ended
            && tidy
            && let Err(error) = self.journal.close(entry)
        {
            tracing::warn!(%error, "cannot close a journal entry; it will be reaped at the next start");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

const SOCKET_START: &str = "nbd-";
const SOCKET_END: &str = ".sock";

/// Ends the tool of a dead process of ours, and removes its socket.
pub fn reap(artefact: &Artefact) -> Result<bool> {
    let wrong = || Error::new(Kind::Invalid, "the journal's entry is not one of an image source");
    let socket = artefact.details.get("socket").and_then(|socket| socket.as_str()).map(Path::new).ok_or_else(wrong)?;
    let name = socket.file_name().and_then(OsStr::to_str).ok_or_else(wrong)?;
    if !socket.is_absolute() || !name.starts_with(SOCKET_START) || !name.ends_with(SOCKET_END) {
        return Err(wrong());
    }
    if !child::reap_marked(socket.as_os_str())? {
        return Ok(false);
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new(Kind::Failed, format!("remove {}", socket.display())).caused_by(error))
        }
        _ => Ok(true),
    }
}
