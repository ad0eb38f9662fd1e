//! What can go wrong between us and a vCenter, and the faults that it tells of.

use crate::tls::Fingerprint;
use std::fmt;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call. `Display` tells this layer only; causes hang below.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong settings: an address that is none, a CA file without certificates. The operator must act.
    #[error("{0}")]
    Options(String),
    /// The server cannot be reached, or the connection broke. A retry helps.
    #[error("reach {address}")]
    Unreachable {
        /// The server.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server did not answer in time. A retry helps.
    #[error("{method} got no answer from {address} within {seconds} s")]
    Timeout {
        /// The server.
        address: String,
        /// The method.
        method: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The server's certificate is not the confirmed one, or no authority vouches for it. The operator must look.
    #[error("the certificate of {address} is not trusted: {reason}")]
    Certificate {
        /// The server.
        address: String,
        /// Why.
        reason: String,
        /// SHA-256 of what the server showed.
        found: Option<Fingerprint>,
    },
    /// The server refused the call with a fault.
    #[error("{method}: {fault}")]
    Fault {
        /// The method.
        method: String,
        /// What the server says.
        fault: Box<Fault>,
    },
    /// The answer is not what the method answers.
    #[error("the answer to {method} cannot be used: {problem}")]
    Reply {
        /// The method.
        method: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A task did not end in time. It may still end.
    #[error("the task {task} did not end within {seconds} s")]
    TaskTimeout {
        /// What the task does.
        task: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A person or a shutdown stopped it.
    #[error("stopped on request")]
    Cancelled,
}

impl Error {
    /// The fault, when the server told one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault { fault, .. } => Some(fault),
            _ => None,
        }
    }

    /// The kind of the fault, when the server told one.
    pub fn kind(&self) -> Option<FaultKind> {
        self.fault().map(|fault| fault.kind)
    }

    /// True when the same call may succeed later without anyone acting.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::TaskTimeout { .. } => true,
            Self::Fault { fault, .. } => fault.kind.is_transient(),
            _ => false,
        }
    }
}

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident,)*) => {
        /// The faults that somebody acts upon; all others are [`FaultKind::Other`] with their name in the [`Fault`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FaultKind {
            $($(#[$doc])* $variant,)*
            /// Any other.
            Other,
        }

        impl FaultKind {
            /// Reads a fault's type, as the schema calls it.
            pub fn named(name: &str) -> Self {
                match name { $(stringify!($variant) => Self::$variant,)* _ => Self::Other }
            }
        }
    };
}

faults! {
    /// The session is gone: log in again.
    NotAuthenticated,
    /// Account or password are wrong.
    InvalidLogin,
    /// The account has not the privilege.
    NoPermission,
    /// The object is gone (or never was).
    ManagedObjectNotFound,
    /// Another operation is under way on the object.
    TaskInProgress,
    /// The object's state does not allow it.
    InvalidState,
    /// The machine's power state does not allow it.
    InvalidPowerState,
    /// Somebody else changed it at the same time.
    ConcurrentAccess,
    /// A file of the machine cannot be used; a changeId that is not valid any more is told so, too.
    FileFault,
    /// A file is not there.
    FileNotFound,
    /// A file is locked.
    FileLocked,
    /// A parameter is wrong; a changeId of another epoch may be told so.
    InvalidArgument,
    /// The guest's applications could not be brought into order.
    ApplicationQuiesceFault,
    /// The guest's file systems could not be frozen.
    FilesystemQuiesceFault,
    /// A snapshot could not be made or removed.
    SnapshotFault,
    /// The guest's tools do not run.
    ToolsUnavailable,
    /// Not possible with this machine or host.
    NotSupported,
    /// The server has no such method.
    MethodNotFound,
    /// The host is not connected to the vCenter.
    HostNotConnected,
    /// The host cannot be reached.
    HostCommunication,
    /// A limit of the product or its licence.
    RestrictedVersion,
    /// The datastore is full.
    NoDiskSpace,
    /// The request was cancelled.
    RequestCanceled,
    /// The name is taken.
    DuplicateName,
    /// The schema does not allow the request: a fault of ours.
    InvalidRequest,
}

impl FaultKind {
    /// True when the same call may succeed later without anyone acting.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::NotAuthenticated
                | Self::TaskInProgress
                | Self::ConcurrentAccess
                | Self::FileLocked
                | Self::HostNotConnected
                | Self::HostCommunication
        )
    }
}

/// A fault as the server told it. Everything in it is the server's text, cut to bearable length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What sort it is.
    pub kind: FaultKind,
    /// The fault's type as the schema calls it: `NoPermission`.
    pub name: String,
    /// What the server says to people.
    pub message: String,
    /// Particulars: the privilege that is missing, the property that is wrong, the file.
    pub details: Vec<(String, String)>,
}

impl Fault {
    /// A particular by its name.
    pub fn detail(&self, name: &str) -> Option<&str> {
        self.details.iter().find(|(held, _)| held == name).map(|(_, text)| text.as_str())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, message, .. } = self;
        match (message.is_empty(), name.is_empty()) {
            (true, true) => f.write_str("the server failed and does not say why")?,
            (true, false) => f.write_str(name)?,
            (false, true) => f.write_str(message)?,
            (false, false) => write!(f, "{message} [{name}]")?,
        }
        for (name, text) in &self.details {
            write!(f, ", {name} {text}")?;
        }
        Ok(())
    }
}
