//! The folder of one backup job: its socket, its scratch files, and the watch over the space they may take.
//!
//! What lives here: making the folder so that QEMU can use it, taking it away, and the thread that looks at the free space.
//! What does not: the job itself.
//!
//! While a job runs, QEMU saves each block that the guest overwrites in the scratch file first. If that write fails the
//! *guest* gets the error (QEMU 7.2 has no other way in pull mode). So long before the space is used up the backup is
//! given up: see [`Watch`].

use super::name::Checkpoint;
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest path of a unix socket: `sun_path` less its NUL, Linux.
const SOCKET_BYTES_MAX: usize = 107;

/// How often the free space is looked at. At 2 GB/s of guest writes a floor of 1 GiB leaves ten looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The folder of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Where the job's folder will be. Its name is short, because a socket lies in it, and says whose it is only as a
    /// digest; the journal knows.
    pub fn of(scratch_dir: &Path, checkpoint: &Checkpoint, vm: &str) -> Result<Self> {
        let digest = blake3::hash(format!("{checkpoint} {vm}").as_bytes()).to_hex();
        let folder = Self(scratch_dir.join(format!("sd-{}", &digest[..16])));
        check_socket(&folder.socket())?;
        Ok(folder)
    }

    /// A folder that the journal names; none when the path does not look like one of ours.
    pub fn of_journal(path: &str) -> Option<Self> {
        let path = PathBuf::from(path);
        let name = path.file_name()?.to_str()?;
        let ours = name
            .strip_prefix("sd-")
            .is_some_and(|digest| digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        (ours && path.is_absolute()).then_some(Self(path))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where QEMU listens.
    pub fn socket(&self) -> PathBuf {
        self.0.join("nbd")
    }

    /// A disk's scratch file. The number is its place in the request: a target's name may hold anything.
    pub fn scratch(&self, number: usize) -> PathBuf {
        self.0.join(format!("{number}.scratch"))
    }

    /// Makes the folder so that QEMU, which may be another user, can make its socket in it: it takes owner and group of
    /// the folder above, or at least the group if that has the set-group-id bit.
    pub fn make(&self) -> Result<()> {
        let failed = |what: &str, error: io::Error| {
            let kind = if error.kind() == io::ErrorKind::PermissionDenied { Kind::Denied } else { Kind::Failed };
            Error::new(kind, format!("{what} {}", self.0.display())).caused_by(error)
        };
        let above = self.0.parent().unwrap_or(Path::new("/"));
        if !above.exists() {
            make_like_above(above).map_err(|error| {
                failed("make the folder above", error).hint("QEMU's user must be able to write to scratch_dir")
            })?;
        }
        self.remove().map_err(|error| failed("empty", error))?;
        make_like_above(&self.0).map_err(|error| failed("make the folder", error))
    }

    /// Takes it away with all that is in it. What is gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Refuses a path that is too long for a socket.
pub(super) fn check_socket(path: &Path) -> Result<()> {
    let socket_bytes = path.as_os_str().len();
    if socket_bytes > SOCKET_BYTES_MAX {
        let message = format!("the path of the socket {} has {socket_bytes} bytes", path.display());
        return Err(Error::new(Kind::Invalid, message)
            .hint(format!("{SOCKET_BYTES_MAX} are possible: choose a scratch_dir with a shorter path")));
    }
    Ok(())
}

/// Makes a folder that has the owner and group of the one above. The one above may belong to QEMU's user, which must be
/// taken for the guest's once a guest has broken out: everything after the making goes through a handle that follows no
/// link and is known to be what was made, so that nothing put in its place is given away.
pub(super) fn make_like_above(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    let above = fs::metadata(folder.parent().unwrap_or(Path::new("/")))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(folder, flags, Mode::empty())?;
    let us = rustix::process::geteuid();
    if rustix::fs::fstat(&handle)?.st_uid != us.as_raw() {
        return Err(io::Error::other("somebody put another folder in its place"));
    }
    // Only root may give a folder away; for others the set-group-id bit of the folder above does what is needed.
    if us.is_root() {
        let (owner, group) = (Uid::from_raw(above.uid()), Gid::from_raw(above.gid()));
        rustix::fs::fchown(&handle, Some(owner), Some(group))?;
    }
    rustix::fs::fchmod(&handle, Mode::RWXU | Mode::RWXG | Mode::SGID)?;
    Ok(())
}

/// Bytes that an unprivileged writer still gets there.
pub(super) fn free_bytes(folder: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(folder)
        .map_err(|errno| Error::new(Kind::Failed, format!("look at {}", folder.display())).caused_by(errno))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Why a backup was given up, when the space ran low.
pub(super) fn too_full(folder: &Path, free: u64, floor: u64) -> Error {
    let message = format!("only {free} bytes are free in {}, less than the floor of {floor}", folder.display());
    Error::new(Kind::ScratchFull, message).hint("make room there, or name another scratch_dir in the source's settings")
}

/// A thread that looks at the free space until it is dropped.
pub(super) struct Watch {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `give_up` once, with the reason, when less than `floor` bytes are free.
    pub fn start(folder: PathBuf, floor: u64, give_up: impl FnOnce(Error) + Send + 'static) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let look = move || {
            loop {
                match stopped.recv_timeout(LOOK_EVERY) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
                // A failed look is no finding: the folder itself may have been taken away at the end of the job.
                let Ok(free) = free_bytes(&folder) else { continue };
                if free < floor {
                    return give_up(too_full(&folder, free, floor));
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("scratch-watch".into())
            .spawn(look)
            .map_err(|error| Error::new(Kind::Failed, "start a thread").caused_by(error))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // It can only have panicked in `give_up`; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

/// Something that is told once and read from many threads: why the frozen state is no more.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<Told>>>);

#[derive(Debug)]
struct Told {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

impl Verdict {
    /// The first one stays.
    pub fn tell(&self, error: &Error) {
        let Error { kind, message, hint, .. } = error;
        self.0.lock().get_or_insert_with(|| Told { kind: *kind, message: message.clone(), hint: hint.clone() });
    }

    /// The error, if one was told.
    pub fn check(&self) -> Result<()> {
        let Some(Told { kind, message, hint }) = &*self.0.lock() else { return Ok(()) };
        let mut error = Error::new(*kind, message.clone());
        error.hint.clone_from(hint);
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint { deployment_id: "dep-1".parse().unwrap(), task_id: "task-1".parse().unwrap() }
    }

    #[test]
    fn a_folder_is_made_twice_and_removed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(&dir.path().join("scratch"), &checkpoint(), "vm").unwrap();
        folder.make().unwrap();
        fs::write(folder.scratch(0), "left over").unwrap();
        folder.make().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(Folder::of_journal(folder.path().to_str().unwrap()), Some(folder.clone()));
        folder.remove().unwrap();
        folder.remove().unwrap();
    }

    #[test]
    fn only_our_folders_are_taken_from_the_journal() {
        for path in ["/", "/etc", "/x/sd-", "/x/sd-0123456789abcde", "sd-0123456789abcdef", "/x/sd-0123456789abcdeg"] {
            assert_eq!(Folder::of_journal(path), None, "{path}");
        }
    }

    #[test]
    fn a_socket_that_cannot_be_is_refused_before_anything_is_made() {
        let long = PathBuf::from(format!("/{}", "x".repeat(90)));
        assert_eq!(Folder::of(&long, &checkpoint(), "vm").unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn a_floor_that_is_passed_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let (told, hears) = mpsc::channel();
        let _watch = Watch::start(dir.path().into(), u64::MAX, move |error| told.send(error.kind).unwrap()).unwrap();
        assert_eq!(hears.recv_timeout(Duration::from_secs(10)), Ok(Kind::ScratchFull));
        assert!(hears.recv_timeout(Duration::from_secs(10)).is_err());
    }
}
