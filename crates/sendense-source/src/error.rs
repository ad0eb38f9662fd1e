//! The one error of sources: a stable kind, a sentence, a hint, the cause.

use std::fmt;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is, and so who acts and whether a retry helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The machine or disk is not there. The caller must name another.
    NotFound,
    /// The hypervisor cannot be reached now. A retry helps.
    Unavailable,
    /// Credentials or permissions do not suffice. The operator must act.
    Denied,
    /// Somebody else works on the machine (another backup job). A retry helps later.
    Busy,
    /// Valid, but not something we can back up; the sentence names it.
    Unsupported,
    /// Wrong settings of the source. The operator must act.
    Invalid,
    /// What was read may not be the frozen state: started, changed, powered off. The point fails; a retry helps.
    Disturbed,
    /// The scratch space ran low and the backup was given up so that the guest did not suffer. The operator must make room.
    ScratchFull,
    /// A path leaves the source's folder, or names something that a guest could have planted.
    Unsafe,
    /// A person or a shutdown stopped it.
    Cancelled,
    /// A tool that is needed is not installed; the hint says which package.
    MissingTool,
    /// The hypervisor failed in a way that nothing above describes.
    Failed,
}

impl Kind {
    /// True when the same call may succeed later without anyone acting.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy | Self::Disturbed)
    }
}

/// A failure of a source. `Display` tells this layer only.
#[derive(Debug)]
pub struct Error {
    /// The stable kind.
    pub kind: Kind,
    /// What went wrong, for people; without secrets.
    pub message: String,
    /// What to do about it, when that is known.
    pub hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl Error {
    /// An error of the data path as this source's, with a sentence of its own.
    pub fn of_device(message: impl Into<String>, error: sendense_block::Error) -> Self {
        use sendense_block::Kind as Block;
        let kind = match error.kind {
            Block::Unavailable | Block::Deadline | Block::Io => Kind::Unavailable,
            Block::Denied => Kind::Denied,
            Block::NotFound => Kind::NotFound,
            Block::Unsupported => Kind::Unsupported,
            Block::Cancelled => Kind::Cancelled,
            Block::Invalid => Kind::Invalid,
            Block::NoSpace | Block::OutOfRange | Block::Protocol | Block::Corrupt | Block::Exists => Kind::Failed,
        };
        Self::new(kind, message).caused_by(error)
    }
}

/// A machine whose guest cannot be brought into order, where nothing less is wanted.
pub(crate) fn cannot_quiesce(name: &str, why: &str) -> Error {
    Error::new(Kind::Failed, format!("{name} cannot be quiesced, which is demanded: {why}"))
}

impl From<sendense_block::Error> for Error {
    fn from(error: sendense_block::Error) -> Self {
        Self::of_device("access the source's disk", error)
    }
}
