//! Sealed copies of the catalog in each repository, and the way back from one on a bare machine.
//!
//! A repository tells its points by itself. What it cannot tell (policies, schedules, sources with their credentials, nodes, tokens,
//! keys) is copied into it once a day, sealed with the [recovery key](RecoveryKey), which an administrator keeps off the machine.
//!
//! ```text
//! catalog + small files --contents--> JSON --seal--> bytes --repository--> <repository>/.sendense-catalog/
//!                         <--recover--        <--open--
//! ```
//!
//! What lives here: what is in a copy, when it is made, how it is opened, and recovery. What does not: how files get into a
//! repository (it does that). Invariant: without the recovery key a copy tells nothing but whose it is and when it was made.

mod contents;
pub(crate) mod keep;
mod key;
mod recover;
mod seal;

pub use key::{KeyError, RecoveryKey};
pub use recover::{Recover, Recovered, Shown, list, recover};
pub use seal::{Error as SealError, Header};

use crate::data_dir;
use crate::secrets::{self, Sealer};
use sendense_types::{HubId, Timestamp};
use std::path::{Path, PathBuf};

/// Copies that a repository keeps of one deployment's catalog: a week.
pub const KEEP: usize = 7;

/// Why a copy cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository.
    #[error("the repository")]
    Repository(#[from] sendense_repo::Error),
    /// The catalog.
    #[error("the catalog")]
    Catalog(#[from] sendense_catalog::Error),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    /// A file of the data directory.
    #[error("access {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be opened. The operator acts: the right key, or another copy.
    #[error("copy {name} cannot be used")]
    Sealed {
        /// Which copy.
        name: String,
        /// Why.
        #[source]
        source: SealError,
    },
    /// It was opened, and what is in it is not understood.
    #[error("what is in the copy cannot be read: {0}")]
    Contents(String),
    /// The key file of the data directory.
    #[error("the key of the data directory")]
    Key(#[from] secrets::Error),
    /// There is none.
    #[error("{}", .0)]
    None(String),
    /// The machine is not bare.
    #[error("{} is not empty: a catalog is recovered into a new data directory", .0.display())]
    NotBare(PathBuf),
    /// The old hub may be at work. The operator acts: end it, and wait for its lease or say that it is gone.
    #[error("hub {hub_id} has the repository until {until}: it must not run any more")]
    OldHub {
        /// Which.
        hub_id: HubId,
        /// When its lease ends, unless it renews it.
        until: Timestamp,
    },
}

/// The recovery key of the hub that lives in a data directory, whether it runs or not.
pub fn recovery_key(data_dir: &Path) -> Result<RecoveryKey, Error> {
    let path = data_dir.join("key");
    let none =
        || Error::None(format!("{} is not there: no hub has been started on this data directory", path.display()));
    Ok(Sealer::read(&path)?.ok_or_else(none)?.recovery_key().clone())
}
