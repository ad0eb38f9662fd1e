//! VMDK, which `qemu-img` writes while it reads the disk from us: over NBD, through a socket that it is born with. So nothing
//! but the target takes room, nobody else can connect, and when one of the two dies the other one ends.
//!
//! ```text
//! chain -> NBD session (threads of ours) -> socketpair -> qemu-img's stdin -> target
//! ```

use super::Job;
use parking_lot::Mutex;
use sendense_api::VmdkSubformat;
use sendense_block::copy::{self, Mode, Progress};
use sendense_block::error::chain;
use sendense_block::nbd::server::{Device, ExportOptions, Exports, Listen, Options, converse};
use sendense_block::{AllocationMap, ByteLen, ByteOffset, Disk, Extent, MappedExtent, ReadAt};
use sendense_repo::{Error, Kind};
use sendense_source::child::{self, Spec};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What the disk is called between us and the tool.
const EXPORT: &str = "disk";
/// The tool may stall for as long as its target does: the task has a deadline, and its end is the tool's. A day is for ever.
const STALL_TIMEOUT: Duration = Duration::from_secs(86_400);
/// A busy machine may take its time to start a program.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(300);

/// Makes `to`, which lies in a folder that was checked, a VMDK of the disk. The tool has no deadline of its own: the task has
/// one, and stops it.
pub(super) fn write(job: &Job<'_>, to: &Path, subformat: VmdkSubformat) -> Result<(), Error> {
    job.progress.plan(copy::survey(job.name, &job.disk, Mode::Full, job.cancel)?.read);
    let taken = Arc::new(Taken { disk: job.disk.clone(), progress: job.progress.clone(), failure: Mutex::default() });
    let exports = Exports::new();
    let description = ExportOptions { description: job.name.to_owned(), ..ExportOptions::default() };
    let guard = exports.add(EXPORT, Device::ReadOnly(taken.clone()), description)?;
    let options = Options {
        workers_per_client: job.lanes,
        stall_timeout: STALL_TIMEOUT,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        // Nothing is listened on: the socket is there already.
        ..Options::new(Listen::Unix(to.to_owned()))
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| Error::io("make a pair of sockets", error))?;
    let spec = Spec::new("qemu-img", "qemu-utils")
        .args(["convert", "--image-opts", "-O", "vmdk", "-o"])
        .arg(format!("subformat={}", subformat.as_str()))
        // A socket is named by its descriptor: stdin.
        .arg(format!("driver=raw,file.driver=nbd,file.server.type=fd,file.server.str=0,file.export={EXPORT}"))
        // An absolute path is taken neither for a flag nor for a protocol.
        .arg(to);
    let converted = std::thread::scope(|scope| {
        let serving = std::thread::Builder::new()
            .name("vmdk-nbd".into())
            .spawn_scoped(scope, || converse(ours, options, &exports))
            .map_err(|error| Error::io("start a thread", error))?;
        let converted = child::run_with(&spec, OwnedFd::from(theirs).into(), job.cancel);
        // The tool and its end of the socket are gone, and so is the session soon; this is for a request in the chain.
        drop(guard);
        match serving.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(reason = chain(&error), "the session with qemu-img broke off"),
            Err(_) => return Err(Error::new(Kind::Io, "serve the disk to qemu-img")),
        }
        Ok(converted)
    })?;
    // What went wrong on our side says more than the tool's "input/output error".
    match (taken.failure.lock().take(), converted) {
        (Some(error), _) => Err(error.into()),
        (None, Ok(_)) => Ok(()),
        (None, Err(error)) if error.kind == sendense_source::Kind::Cancelled => {
            Err(Error::new(Kind::Cancelled, "stopped on request"))
        }
        (None, Err(error)) => {
            // The tool's words are those of the C locale.
            let kind = if error.message.contains("No space left on device") { Kind::NoSpace } else { Kind::Io };
            Err(Error::new(kind, error.to_string()).caused_by(error))
        }
    }
}

/// The disk, with what the tool has taken of it, and the first error that it met.
struct Taken {
    disk: Arc<dyn Disk>,
    progress: Arc<Progress>,
    failure: Mutex<Option<sendense_block::Error>>,
}

impl Taken {
    fn note<T>(&self, outcome: sendense_block::Result<T>) -> sendense_block::Result<T> {
        outcome.map_err(|error| {
            let told = sendense_block::Error::new(error.kind, chain(&error));
            self.failure.lock().get_or_insert(error);
            told
        })
    }
}

impl ReadAt for Taken {
    fn size(&self) -> ByteLen {
        self.disk.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        self.note(self.disk.read_at(at, buf))?;
        self.progress.taken(ByteLen(buf.len() as u64));
        Ok(())
    }
}

impl AllocationMap for Taken {
    fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
        self.note(self.disk.allocation(within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::restore_file;
    use sendense_api::ImageFormat;
    use sendense_block::backend::Memory;
    use sendense_block::{Cancel, Extent, WriteAt};
    use sendense_types::{ProblemCode, TaskId};
    use std::ffi::OsString;
    use std::path::PathBuf;

    fn names(folder: &Path) -> Vec<OsString> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    /// A disk that does something with each read.
    struct Watched<F>(Memory, F);

    impl<F: Fn() -> sendense_block::Result<()> + Send + Sync> ReadAt for Watched<F> {
        fn size(&self) -> ByteLen {
            self.0.size()
        }

        fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
            self.1()?;
            self.0.read_at(at, buf)
        }
    }

    impl<F: Send + Sync> AllocationMap for Watched<F> {
        fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
            self.0.allocation(within)
        }
    }

    fn restore(
        path: &Path,
        cancel: &Cancel,
        on_read: impl Fn() -> sendense_block::Result<()> + Send + Sync + 'static,
    ) -> crate::fault::Result<Progress> {
        let disk = Memory::zeroed(ByteLen((3 << 20) + 70_001));
        disk.write_at(ByteOffset(65_536), &[7; 1 << 20]).unwrap();
        disk.write_at(ByteOffset((3 << 20) + 70_000), &[9]).unwrap();
        let progress = Arc::new(Progress::default());
        let disk = Arc::new(Watched(disk, on_read));
        let job = Job { name: "disk 0", disk, needed_bytes: None, lanes: 2, progress: &progress, cancel };
        let task = TaskId::generate();
        restore_file(&job, path, ImageFormat::Vmdk, VmdkSubformat::default(), false, &task)?;
        drop(job);
        Ok(Arc::into_inner(progress).expect("the session with the tool has ended"))
    }

    fn target() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        // Restores take resolved paths.
        let path = folder.path().canonicalize().unwrap().join("disk.vmdk");
        (folder, path)
    }

    #[test]
    fn nothing_but_the_target_takes_room() {
        let (folder, path) = target();
        let (seen, inside) = (Arc::new(Mutex::new(Vec::new())), folder.path().to_owned());
        let notes = seen.clone();
        let progress = restore(&path, &Cancel::new(), move || {
            notes.lock().push(names(&inside));
            Ok(())
        });
        let progress = progress.unwrap().snapshot();
        assert!(progress.done == progress.planned && progress.stored.0 > 1 << 20, "{progress:?}");
        let seen = seen.lock();
        assert!(!seen.is_empty() && seen.iter().all(|names| names.len() == 1), "{seen:?}");
        assert_eq!(names(folder.path()), ["disk.vmdk"]);
        assert!(std::fs::read(&path).unwrap().starts_with(b"KDMV"));
    }

    #[test]
    fn our_own_failure_is_told_and_not_the_tools() {
        let (folder, path) = target();
        let problem = restore(&path, &Cancel::new(), || {
            Err(sendense_block::Error::new(sendense_block::Kind::Corrupt, "block 17 is rotten"))
        });
        let problem = problem.unwrap_err();
        assert!(problem.details.contains("block 17 is rotten"), "{problem:?}");
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_stopped_restore_ends_the_tool_and_leaves_nothing() {
        let (folder, path) = target();
        let cancel = Cancel::new();
        let stop = cancel.clone();
        let problem = restore(&path, &cancel, move || {
            stop.cancel();
            Ok(())
        });
        assert_eq!(problem.unwrap_err().code, ProblemCode::Cancelled);
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
