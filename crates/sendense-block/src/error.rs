//! The one error of this crate: a small stable kind, a context in words, the cause.

use crate::units::ByteOffset;
use std::{fmt, io};

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is. Adding a device or a format adds no kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A read or write failed; says nothing about the data being bad. A retry may help.
    Io,
    /// The peer or file system is away for now. A retry helps.
    Unavailable,
    /// No room left on the target. The operator must make room.
    NoSpace,
    /// A request beyond the end of the device. Our bug or a changed device.
    OutOfRange,
    /// The peer broke its protocol. Its operator must act.
    Protocol,
    /// Something valid that we cannot read, named in the context.
    Unsupported,
    /// Stored data is not what was written.
    Corrupt,
    /// Not permitted: credentials, file permissions, a path outside its gate.
    Denied,
    /// It does not exist.
    NotFound,
    /// It exists already and must not be replaced.
    Exists,
    /// It took longer than its deadline. A retry may help.
    Deadline,
    /// A person or a shutdown stopped it.
    Cancelled,
    /// Wrong input to a call (a bad URI, a bad setting).
    Invalid,
}

impl Kind {
    /// True when the same call may succeed later without anyone acting.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Io | Self::Unavailable | Self::Deadline)
    }
}

/// A failure on the data path.
///
/// `Display` tells this layer only; print the chain of sources once, where it is handled.
#[derive(Debug)]
pub struct Error {
    /// The stable kind.
    pub kind: Kind,
    /// What was being done, as a bare verb with its object: `read 65536 bytes at 4096 of disk.raw`.
    pub context: String,
    /// Where on the device, when that is known.
    pub at: Option<ByteOffset>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), at: None, source: None }
    }

    /// An error of the operating system, its kind taken from `errno`.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self { kind: kind_of(&source), context: context.into(), at: None, source: Some(Box::new(source)) }
    }

    /// Adds the cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the position.
    pub fn at(mut self, at: ByteOffset) -> Self {
        self.at = Some(at);
        self
    }

    /// Wraps this error with what the layer above was doing; kind and position stay.
    pub fn within(self, context: impl Into<String>) -> Self {
        Self { kind: self.kind, context: context.into(), at: self.at, source: Some(Box::new(self)) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match (self.at, &self.source) {
            // A wrapped error of ours says the position itself.
            (Some(at), source) if !source.as_ref().is_some_and(|source| source.is::<Error>()) => {
                write!(f, " (offset {at})")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

fn kind_of(error: &io::Error) -> Kind {
    use io::ErrorKind as E;
    match error.kind() {
        E::StorageFull | E::QuotaExceeded | E::FileTooLarge => Kind::NoSpace,
        E::PermissionDenied | E::ReadOnlyFilesystem => Kind::Denied,
        E::NotFound => Kind::NotFound,
        E::AlreadyExists => Kind::Exists,
        E::TimedOut | E::WouldBlock => Kind::Deadline,
        E::ConnectionRefused
        | E::ConnectionReset
        | E::ConnectionAborted
        | E::NotConnected
        | E::BrokenPipe
        | E::HostUnreachable
        | E::NetworkUnreachable
        | E::NetworkDown
        | E::StaleNetworkFileHandle => Kind::Unavailable,
        _ => Kind::Io,
    }
}

/// The whole chain of causes in one line, outermost first: for the place where an error is handled.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_reads_as_one_line_and_says_the_position_once() {
        let inner = Error::io("read 65536 bytes of disk.raw", io::Error::from_raw_os_error(5)).at(ByteOffset(4096));
        let outer = inner.within("back up disk 0");
        assert_eq!(outer.kind, Kind::Io);
        assert_eq!(
            chain(&outer),
            "back up disk 0: read 65536 bytes of disk.raw (offset 4096): Input/output error (os error 5)"
        );
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        assert_eq!(Error::io("write", io::Error::from_raw_os_error(28)).kind, Kind::NoSpace);
        assert!(!Kind::NoSpace.is_transient());
    }
}
