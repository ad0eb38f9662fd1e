//! The hub's own folder: who it is, its key, its token, its catalog.
//!
//! ```text
//! <data-dir>/            0700
//!     lock               held (flock) while a hub runs
//!     hub.json           hub_id, kept over restarts
//!     admin-token        0600, the only plain copy of the first token
//!     key                0600, seals credentials of sources
//!     catalog.db         the embedded database
//!     journal/           what the embedded node made outside this process
//!     hooks/             what is still to be run after backups
//!     recoveries/        what recovered machines are and, unless told otherwise, what they have written
//!     run/               sockets of tools that the hub runs
//!     transfers/         backups of nodes that go on after a restart
//!     tls/               certificate made at first start, where TLS is needed
//! ```
//!
//! What lives here: the layout, the lock, the identity. What does not: what the files mean to others. Invariant: two hubs
//! never work on one data directory, because the lock is taken before anything in it is read.

use rustix::fs::FlockOperation;
use sendense_types::HubId;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why the data directory cannot be used. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be accessed.
    #[error("access {}", path.display())]
    Access {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another hub runs on it.
    #[error("data directory {} is in use by another hub", .0.display())]
    InUse(PathBuf),
    /// `hub.json` cannot be understood.
    #[error("{} cannot be read: {reason}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    version: u32,
    hub_id: HubId,
}

/// The version of `hub.json` that this program writes and reads.
const IDENTITY_VERSION: u32 = 1;

/// An open data directory. Dropping it gives the lock back.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    hub_id: HubId,
    _lock: File,
}

impl DataDir {
    /// Opens the folder, makes it when it is not there, takes the lock and reads or makes the identity.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let access = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Access { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(access(path))?;
        let path = path.canonicalize().map_err(access(path))?;
        // A folder that was there before may be open to others; what will lie in it must not be.
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(access(&path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(access(&lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse(path)),
            Err(errno) => return Err(access(&lock_path)(errno.into())),
        }
        for folder in ["hooks", "journal", "recoveries", "run", "tls", "transfers"] {
            let folder = path.join(folder);
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(access(&folder))?;
        }
        let hub_id = read_or_make_identity(&path.join("hub.json"))?;
        Ok(Self { path, hub_id, _lock: lock })
    }

    /// The folder, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// This hub's identity, the same at every start.
    pub fn hub_id(&self) -> &HubId {
        &self.hub_id
    }

    /// The plain copy of the admin's token.
    pub fn admin_token_path(&self) -> PathBuf {
        self.path.join("admin-token")
    }

    /// The key that seals credentials.
    pub fn key_path(&self) -> PathBuf {
        self.path.join("key")
    }

    /// The embedded database.
    pub fn catalog_path(&self) -> PathBuf {
        self.path.join("catalog.db")
    }

    /// The embedded node's journal.
    pub fn journal_path(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Records of recovered machines.
    pub fn recoveries_path(&self) -> PathBuf {
        self.path.join("recoveries")
    }

    /// Records of what is still to be run after backups.
    pub fn hooks_path(&self) -> PathBuf {
        self.path.join("hooks")
    }

    /// Records of backups that nodes make.
    pub fn transfers_path(&self) -> PathBuf {
        self.path.join("transfers")
    }

    /// Sockets of tools that the hub runs. Short names: a socket's path has at most 107 bytes.
    pub fn run_path(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The hub's own certificate and key.
    pub fn tls_path(&self) -> PathBuf {
        self.path.join("tls")
    }
}

fn read_or_make_identity(path: &Path) -> Result<HubId, Error> {
    let access = |source| Error::Access { path: path.to_owned(), source };
    let wrong = |reason: String| Error::Identity { path: path.to_owned(), reason };
    if let Some(file) = private_file::read(path).map_err(access)? {
        let identity: Identity = serde_json::from_slice(&file.bytes).map_err(|error| wrong(error.to_string()))?;
        if identity.version != IDENTITY_VERSION {
            return Err(wrong(format!("version {} was written by another release", identity.version)));
        }
        return Ok(identity.hub_id);
    }
    let identity = Identity { version: IDENTITY_VERSION, hub_id: HubId::generate() };
    let text = serde_json::to_vec_pretty(&identity).map_err(|error| wrong(error.to_string()))?;
    private_file::create(path, &text).map_err(access)?;
    Ok(identity.hub_id)
}

/// Small files that nobody else may read.
pub(crate) mod private_file {
    use super::*;
    use std::io::{Read, Write};

    /// No private file of ours is larger than a few hundred bytes; a larger one is not ours.
    const BYTES_MAX: u64 = 64 * 1024;

    /// A file's bytes and permission bits.
    pub struct Private {
        /// What it holds.
        pub bytes: Vec<u8>,
        /// Who may do what.
        pub mode: u32,
    }

    /// Reads a file; none when it does not exist.
    pub fn read(path: &Path) -> io::Result<Option<Private>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {BYTES_MAX} bytes")));
        }
        Ok(Some(Private { bytes, mode }))
    }

    /// Makes a file of mode 0600 that is there in full or not at all, also after a power cut.
    pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let temporary = path.with_extension("new");
        // Left over when an earlier start died here; the lock says that nobody else writes it now.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_hub_on_the_same_folder_is_refused_and_the_identity_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = DataDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_matches!(DataDir::open(&path), Err(Error::InUse(_)));
        let hub_id = first.hub_id().clone();
        drop(first);
        assert_eq!(DataDir::open(&path).unwrap().hub_id(), &hub_id);
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        for text in ["", "{}", "{\"version\":1,\"hub_id\":\"../x\"}", "{\"version\":9,\"hub_id\":\"hub-1\"}"] {
            fs::write(folder.path().join("hub.json"), text).unwrap();
            assert_matches!(DataDir::open(folder.path()), Err(Error::Identity { .. }));
        }
    }

    #[test]
    fn an_open_folder_is_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        assert_eq!(fs::metadata(data.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
