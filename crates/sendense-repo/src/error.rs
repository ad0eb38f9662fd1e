//! The one error of this crate: a kind that says who acts, a context in words, the cause.

use crate::hold::Hold;
use crate::lock::Holder;
use sendense_block as block;
use sendense_types::{BackupId, IdError};
use std::path::Path;
use std::{fmt, io};

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No such point, disk or repository. The caller must name another.
    NotFound,
    /// Something of that name is there already and is not replaced.
    Exists,
    /// Work that runs now stands in the way; the holders are named. Helps to wait.
    Conflict {
        /// Who holds what is wanted.
        holders: Vec<Holder>,
    },
    /// Later points need this one. The caller must delete those too, or keep this one.
    HasDependents {
        /// The points that need it, parents before children.
        ids: Vec<BackupId>,
    },
    /// It is protected, or held until a date. The caller must let it go first, or wait.
    Held {
        /// The point.
        backup_id: BackupId,
        /// What keeps it.
        hold: Hold,
    },
    /// Another deployment (or another hub whose lease is not out) owns the repository. The operator must act.
    Owned,
    /// Another hub took the repository over while this one thought it was the owner: stop working on it.
    Fenced,
    /// No room. The operator must make some.
    NoSpace,
    /// Stored data is not what was written.
    Corrupt {
        /// The file, relative to the repository.
        file: String,
        /// The number of the damaged segment, where the damage is in one.
        segment: Option<u64>,
    },
    /// The storage is away or slow. A retry helps.
    Unavailable,
    /// Not permitted by the file system.
    Denied,
    /// Wrong input, or a file that breaks its format's rules.
    Invalid,
    /// Something valid that this version cannot do, named in the context.
    Unsupported,
    /// A read or write failed; says nothing about the data being bad.
    Io,
    /// A person or a shutdown stopped it.
    Cancelled,
}

/// A failure of the repository. `Display` tells this layer only; print the chain of sources once, where it is handled.
#[derive(Debug)]
pub struct Error {
    /// The kind.
    pub kind: Kind,
    /// What was being done, or what is wrong.
    pub context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// Wrong input, or a file that breaks its format's rules.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, context)
    }

    /// Stored data is not what was written.
    pub fn corrupt(file: &Path, segment: Option<u64>, context: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt { file: file.display().to_string(), segment }, context)
    }

    /// An error of the operating system while doing `context`.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        let kind = kind_of(block::Error::io("", io::Error::from(source.kind())).kind);
        // Some kinds of failure (a full disk among them) keep their meaning only in the raw number.
        let kind = match source.raw_os_error() {
            Some(raw) => kind_of(block::Error::io("", io::Error::from_raw_os_error(raw)).kind),
            None => kind,
        };
        Self { kind, context: context.into(), source: Some(Box::new(source)) }
    }

    /// Adds the cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Wraps this error with what the layer above was doing; the kind stays.
    pub fn within(self, context: impl Into<String>) -> Self {
        Self { kind: self.kind.clone(), context: context.into(), source: Some(Box::new(self)) }
    }

    /// True when the operating system refused it: a permission, or a mount that was made read-only. Says nothing about what is there.
    pub fn is_of_permission(&self) -> bool {
        let refused = |cause: &(dyn std::error::Error + Send + Sync + 'static)| {
            cause.downcast_ref::<io::Error>().is_some()
                || cause.downcast_ref::<Self>().is_some_and(Self::is_of_permission)
        };
        self.kind == Kind::Denied && self.source.as_deref().is_some_and(refused)
    }

    /// True when the same call may succeed later without anyone acting.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Io | Kind::Unavailable | Kind::Conflict { .. })
    }
}

/// The kind of a failure on the data path, in this crate's words. `Corrupt` has no file there: the caller that knows it
/// says so with [`Error::corrupt`].
fn kind_of(kind: block::Kind) -> Kind {
    match kind {
        block::Kind::Io => Kind::Io,
        block::Kind::Unavailable | block::Kind::Deadline => Kind::Unavailable,
        block::Kind::NoSpace => Kind::NoSpace,
        block::Kind::OutOfRange | block::Kind::Invalid | block::Kind::Protocol => Kind::Invalid,
        block::Kind::Unsupported => Kind::Unsupported,
        block::Kind::Corrupt => Kind::Corrupt { file: String::new(), segment: None },
        block::Kind::Denied => Kind::Denied,
        block::Kind::NotFound => Kind::NotFound,
        block::Kind::Exists => Kind::Exists,
        block::Kind::Cancelled => Kind::Cancelled,
    }
}

/// True for failures to read an image that say "these bytes are wrong", not "they could not be read".
pub(crate) const fn says_wrong_bytes(kind: block::Kind) -> bool {
    use block::Kind;
    matches!(kind, Kind::Corrupt | Kind::Invalid | Kind::OutOfRange | Kind::Unsupported)
}

impl From<block::Error> for Error {
    fn from(error: block::Error) -> Self {
        Self { kind: kind_of(error.kind), context: "move blocks".into(), source: Some(Box::new(error)) }
    }
}

impl From<Error> for block::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            Kind::NotFound => block::Kind::NotFound,
            Kind::Exists | Kind::Conflict { .. } | Kind::HasDependents { .. } => block::Kind::Exists,
            Kind::Owned | Kind::Fenced | Kind::Denied | Kind::Held { .. } => block::Kind::Denied,
            Kind::NoSpace => block::Kind::NoSpace,
            Kind::Corrupt { .. } => block::Kind::Corrupt,
            Kind::Unavailable => block::Kind::Unavailable,
            Kind::Invalid => block::Kind::Invalid,
            Kind::Unsupported => block::Kind::Unsupported,
            Kind::Io => block::Kind::Io,
            Kind::Cancelled => block::Kind::Cancelled,
        };
        block::Error::new(kind, "use the repository").caused_by(error)
    }
}

impl From<IdError> for Error {
    fn from(error: IdError) -> Self {
        Self::invalid("read an id").caused_by(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_a_failed_write() {
        assert_eq!(Error::io("write", io::Error::from_raw_os_error(28)).kind, Kind::NoSpace);
        assert_eq!(Error::io("write", io::Error::from_raw_os_error(5)).kind, Kind::Io);
        assert_eq!(Error::from(block::Error::new(block::Kind::NoSpace, "write")).kind, Kind::NoSpace);
        assert!(Error::io("read", io::Error::from_raw_os_error(5)).is_transient());
    }

    #[test]
    fn the_cause_survives_both_ways() {
        let error = Error::io("seal", io::Error::from_raw_os_error(28)).within("publish bk-1");
        let line = block::error::chain(&block::Error::from(error));
        assert!(line.starts_with("use the repository: publish bk-1: seal: No space left"), "{line}");
    }
}
