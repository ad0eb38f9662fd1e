//! The fallback backend: a guest's own kernel reads what the native readers do not know, in an appliance: User Mode Linux, or a
//! virtual machine of QEMU.
//!
//! ```text
//! hub --(wire, a socketpair)-------------------------------------------------.
//!  |                                                                         |
//!  '-- outside: namespaces --> room (pid 1): own root, no privileges, seccomp |
//!                               |-- qemu-storage-daemon <--vhost-user--> linux.uml: guest agent, serial line
//!      NBD socket --------------'   throw-away overlay over the disk
//!                               or |-- qemu-system: both in one; the guest's processor is KVM's
//! ```
//!
//! What lives here: finding the parts ([`kit`]), which machine it is ([`machine`], [`proof`]), the process that confines itself and starts both programs, the agent
//! in the guest, and the session that asks the appliance only for what the native one refuses ([`fallback`]). The words are
//! those of [`crate::wire`], and the hub's end is [`crate::client`]: it believes an appliance as little as a worker.
//!
//! The guest's kernel writes (it replays logs), but into an overlay in a memory file system that is visible to nobody else
//! and gone with the last process, however that ends. So nothing is ever left to be swept.
//!
//! Invariant: the disk is reached through a socket whose other end only reads.

mod cpio;
mod elf;
pub mod fallback;
mod first_files;
mod guest;
pub mod kit;
pub mod machine;
mod outside;
mod overlay;
pub mod proof;
mod room;
mod seccomp;
mod tail;

pub use fallback::Fallback;
pub use kit::Kit;
pub use machine::{Accelerator, Machine};
pub use proof::Kits;

use crate::client::{self, Bounds, Patience, Worker};
use crate::error::{Error, Result};
use crate::wire::codec::{self, Decoder, Encoder};
use sendense_block::nbd::server;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// The first argument of the process outside the room.
const OUTSIDE: &str = "__appliance";
/// The first argument of the first process in the room.
const ROOM: &str = "__appliance-room";
/// The first argument of the agent; the guest's kernel gives it.
const AGENT: &str = "__appliance-agent";

/// Memory of the guest, in MiB, of which the host gives what is touched. While the kernel unpacks its first files they lie in it twice:
/// this program (80 MiB where it is built without optimisation, half of that else), its libraries, the modules. Afterwards an
/// XFS log takes tens of it, listings and files less.
const GUEST_MIB: u64 = 384;
/// What the memory file system holds beside the guest's memory: the overlay. A replayed log is at most as large as the log,
/// 5 MiB on common disks and 128 MiB where ext4 and XFS set their default bounds.
const OVERLAY_MIB: u64 = 256;

/// All of an appliance together: the guest, the overlay, and half a GiB for the programs and what they cache of files. QEMU has
/// up to 64 threads for files, and under User Mode Linux each process of the guest is one of the host: tens.
const BOUNDS: Bounds = Bounds { memory_bytes: (GUEST_MIB + OVERLAY_MIB + 512) << 20, processes: 256 };
/// Starting takes two seconds on a quiet machine and ten times that on one that builds or swaps; finding the volumes replays logs.
const PATIENCE: Patience =
    Patience { start: Duration::from_secs(60), step: Duration::from_secs(60), slow: Duration::from_secs(60) };

/// A disk for an appliance: a connected socket of an NBD server that only reads.
#[derive(Debug)]
pub struct Disk {
    /// The socket; the server has not greeted yet, or its greeting has not been read.
    pub socket: UnixStream,
    /// The name of the export.
    pub export: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
}

impl Disk {
    /// Serves a disk of this process, for reading only, in a thread that ends with the appliance.
    ///
    /// # Errors
    /// [`Error::Io`]: no socket or no thread.
    pub fn serve(disk: Arc<dyn sendense_block::Disk>) -> Result<Disk> {
        const EXPORT: &str = "disk";
        let io = |what: &str, error: &dyn std::fmt::Display| Error::Io(format!("{what} for the appliance: {error}"));
        let size_bytes = disk.size().0;
        let (socket, other) = UnixStream::pair().map_err(|error| io("make a socket pair", &error))?;
        let exports = server::Exports::new();
        let offered = exports
            .add(EXPORT, server::Device::ReadOnly(disk), server::ExportOptions::default())
            .map_err(|error| io("offer the disk", &error))?;
        let mut options = server::Options::new(server::Listen::Unix(PathBuf::new()));
        // A guest in which nobody reads asks nothing; its session's own limit ends it.
        options.idle_timeout = None;
        std::thread::Builder::new()
            .name("appliance-disk".into())
            .spawn(move || {
                let _offered = offered;
                // Its end is the appliance's end, which is told where the appliance is asked.
                let _ = server::converse(other, options, &exports);
            })
            .map_err(|error| io("start a thread", &error))?;
        Ok(Disk { socket, export: EXPORT.into(), size_bytes })
    }
}

/// How an appliance is started.
#[derive(Debug)]
pub struct Options {
    /// The parts.
    pub kit: Kit,
    /// The program whose `main` begins with [`run_if_asked`]; by default this one, started anew.
    pub program: PathBuf,
    /// How long it may be silent.
    pub patience: Patience,
}

impl Options {
    /// An appliance of these parts.
    pub fn new(kit: Kit) -> Options {
        Options { kit, program: "/proc/self/exe".into(), patience: PATIENCE }
    }
}

/// Boots an appliance on a disk. It answers as a worker does; its volumes are looked for when they are first asked for.
///
/// # Errors
/// [`Error::Unsupported`] where this machine cannot confine one, [`Error::WorkerDied`] with its last words.
pub fn start(options: Options, disk: Disk) -> Result<Worker> {
    if disk.size_bytes > overlay::DISK_BYTES_MAX {
        return Err(Error::unsupported(format!("a disk of more than {} TiB", overlay::DISK_BYTES_MAX >> 40)));
    }
    let setup = Setup { kit: options.kit, export: disk.export, size_bytes: disk.size_bytes };
    let arguments = vec![OsString::from(OUTSIDE)];
    let mut worker = client::Options::new(arguments, vec![OwnedFd::from(disk.socket)], setup.encode());
    worker.program = options.program;
    worker.patience = options.patience;
    worker.bounds = BOUNDS;
    Worker::start(worker).map_err(|error| match error {
        Error::Sandbox(why) => Error::unsupported(format!("the appliance cannot be confined on this machine: {why}")),
        other => other,
    })
}

/// Becomes a part of an appliance when this process was started as one. Call it first in `main`, before any thread exists.
pub fn run_if_asked() -> Option<ExitCode> {
    // Words of the kernel's own command line that it does not know come before the agent's; only the first process of a guest
    // is one.
    if std::process::id() == 1 && std::env::args().any(|argument| argument == AGENT) {
        return Some(guest::run());
    }
    let mut arguments = std::env::args().skip(1);
    match arguments.next()?.as_str() {
        OUTSIDE => Some(outside::run()),
        ROOM => Some(room::run(arguments.next().and_then(|level| level.parse().ok()).unwrap_or_default())),
        _ => None,
    }
}

/// What the room is told.
struct Setup {
    kit: Kit,
    export: String,
    size_bytes: u64,
}

impl Setup {
    fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::new();
        self.kit.encode(&mut to);
        to.bytes(self.export.as_bytes()).u64(self.size_bytes);
        to.finish()
    }

    fn decode(words: &[u8]) -> codec::Result<Setup> {
        /// NBD's own bound for names.
        const EXPORT_BYTES_MAX: usize = 4096;
        let mut from = Decoder::new(words);
        let kit = Kit::decode(&mut from)?;
        let export = from.text(EXPORT_BYTES_MAX)?.to_owned();
        let setup = Setup { kit, export, size_bytes: from.u64()? };
        from.end()?;
        Ok(setup)
    }
}
