//! Why a volume or a file cannot be given back. One enum for both sides of the process boundary.

/// What this crate's calls return.
pub type Result<T> = std::result::Result<T, Error>;

/// What a reader cannot read although nothing is wrong with it. Another backend may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Reason(
    /// One line for a person: "ext4 feature inline_data", "LVM thin volume".
    pub String,
);

/// A failed call. Each says whether another backend, another path or another point would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Sound, but beyond this backend: the appliance may read it.
    #[error("not supported: {0}")]
    Unsupported(Reason),
    /// What lies on the disk contradicts itself. Another restore point may be whole.
    #[error("the file system is damaged: {0}")]
    Corrupt(String),
    /// No such path in the volume.
    #[error("no such file or folder in the volume")]
    NotFound,
    /// A component of the path is not a folder.
    #[error("not a folder")]
    NotDirectory,
    /// The call needs a regular file (or a symbolic link, for its target).
    #[error("not a regular file")]
    NotRegular,
    /// The path cannot be one: empty or too long components, NUL, `..`.
    #[error("not a guest path: {0}")]
    InvalidPath(String),
    /// The disk has no volume of this name.
    #[error("no such volume on the disk")]
    NoVolume,
    /// The volume is encrypted; give a key first.
    #[error("the volume is locked")]
    Locked,
    /// The key fits no slot of the encrypted volume.
    #[error("the key does not open the volume")]
    WrongKey,
    /// A bound was reached; the text names it.
    #[error("limit reached: {0}")]
    Limit(String),
    /// The disk could not be read; trying again may help.
    #[error("read the disk: {0}")]
    Io(String),
    /// The process that reads the disk cannot be confined, so nothing is opened. The host's kernel must allow it.
    #[error("confine the reader process: {0}")]
    Sandbox(String),
    /// The process that reads the disk has ended; open the point again.
    #[error("the reader process has ended: {0}")]
    WorkerDied(String),
}

impl Error {
    /// A thing that another backend may read.
    pub fn unsupported(reason: impl Into<String>) -> Error {
        Error::Unsupported(Reason(reason.into()))
    }

    /// Data that contradicts itself.
    pub fn corrupt(what: impl Into<String>) -> Error {
        Error::Corrupt(what.into())
    }
}

impl From<sendense_block::Error> for Error {
    /// A read beyond the device's end was asked by a structure on the disk, so the structure is wrong.
    fn from(error: sendense_block::Error) -> Error {
        match error.kind {
            sendense_block::Kind::OutOfRange => Error::Corrupt(error.to_string()),
            _ => Error::Io(error.to_string()),
        }
    }
}
