//! Problem codes: the stable words by which a program can tell failures apart.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Who can do something about a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhoActs {
    /// The one who called: another request is needed.
    Caller,
    /// The one who runs the hub, the repository or the source.
    Operator,
    /// Nobody: the same call will work later.
    Time,
}

macro_rules! problems {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $who:ident;)*) => {
        /// A stable problem code. Its text is part of the API; a code is never renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ProblemCode { $($(#[$doc])* #[serde(rename = $text)] $variant,)* }

        impl ProblemCode {
            /// Every code, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The code's text form.
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
            /// The HTTP status that carries it (RFC 9110).
            pub const fn http_status(self) -> u16 { match self { $(Self::$variant => $status,)* } }
            /// Who must act.
            pub const fn who_acts(self) -> WhoActs { match self { $(Self::$variant => WhoActs::$who,)* } }
        }

        impl std::str::FromStr for ProblemCode {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$variant),)* _ => Err(()) }
            }
        }
    };
}

problems! {
    /// A field or parameter is missing or wrong.
    InvalidInput = "invalid_input", 400, Caller;
    /// No such repository was named in a request that needs one.
    UnknownRepository = "unknown_repository", 400, Caller;
    /// A path lies outside the roots that the hub may touch.
    PathNotAllowed = "path_not_allowed", 400, Caller;
    /// No token, or one that is not known.
    Unauthorized = "unauthorized", 401, Caller;
    /// The token does not allow this.
    Forbidden = "forbidden", 403, Caller;
    /// No such route.
    RouteNotFound = "route_not_found", 404, Caller;
    /// The route exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, Caller;
    /// No such VM.
    VmNotFound = "vm_not_found", 404, Caller;
    /// No such disk in the VM or the point.
    DiskNotFound = "disk_not_found", 404, Caller;
    /// No such backup.
    BackupNotFound = "backup_not_found", 404, Caller;
    /// No such repository.
    RepositoryNotFound = "repository_not_found", 404, Caller;
    /// No such source.
    SourceNotFound = "source_not_found", 404, Caller;
    /// No such task.
    TaskNotFound = "task_not_found", 404, Caller;
    /// No such mount.
    MountNotFound = "mount_not_found", 404, Caller;
    /// The disk has no such volume.
    VolumeNotFound = "volume_not_found", 404, Caller;
    /// No such file or folder in the volume.
    FileNotFound = "file_not_found", 404, Caller;
    /// The volume is encrypted and no key was given yet.
    VolumeLocked = "volume_locked", 409, Caller;
    /// The volume, or the file, is of a sort that cannot be read.
    VolumeUnreadable = "volume_unreadable", 409, Caller;
    /// The key does not open the volume.
    WrongKey = "wrong_key", 400, Caller;
    /// A bound on the size of an answer is reached; the details name it.
    LimitReached = "limit_reached", 400, Caller;
    /// The range lies beyond the end of the file.
    RangeNotSatisfiable = "range_not_satisfiable", 416, Caller;
    /// The process that reads a guest's disk has ended; the point can be opened again.
    ReaderFailed = "reader_failed", 502, Operator;
    /// No such export.
    ExportNotFound = "export_not_found", 404, Caller;
    /// No such recovery.
    RecoveryNotFound = "recovery_not_found", 404, Caller;
    /// No such node.
    NodeNotFound = "node_not_found", 404, Caller;
    /// No such policy.
    PolicyNotFound = "policy_not_found", 404, Caller;
    /// No such schedule.
    ScheduleNotFound = "schedule_not_found", 404, Caller;
    /// No such execution.
    ExecutionNotFound = "execution_not_found", 404, Caller;
    /// Several VMs bear the name.
    AmbiguousName = "ambiguous_name", 409, Caller;
    /// The VM is being backed up already.
    BackupRunning = "backup_running", 409, Time;
    /// Later points need this one.
    HasDependents = "has_dependents", 409, Caller;
    /// Nobody has confirmed the source's certificate yet; the details are its SHA-256.
    CertificateUnconfirmed = "certificate_unconfirmed", 409, Caller;
    /// Something that exists or runs is in the way.
    Conflict = "conflict", 409, Caller;
    /// The point is protected, or held until a date.
    BackupHeld = "backup_held", 409, Caller;
    /// Another deployment owns the repository.
    RepositoryOwned = "repository_owned", 409, Operator;
    /// Somebody has set the repository to a maintenance mode that does not allow it; whoever runs it sets it back.
    RepositoryMaintenance = "repository_maintenance", 409, Operator;
    /// The request body is too large.
    TooLarge = "too_large", 413, Caller;
    /// A fault of ours.
    Internal = "internal", 500, Operator;
    /// The hypervisor or NBD server does not do what it should.
    SourceFailed = "source_failed", 502, Operator;
    /// A program that the administrator has run before a backup failed, or may not be run.
    HookFailed = "hook_failed", 502, Operator;
    /// A limit is reached or a service is not there now.
    Busy = "busy", 503, Time;
    /// The source cannot be reached.
    SourceUnavailable = "source_unavailable", 503, Time;
    /// The repository cannot be reached.
    RepositoryUnavailable = "repository_unavailable", 503, Time;
    /// No space in the repository.
    NoSpace = "no_space", 507, Operator;
    /// Stored data is damaged.
    Corrupt = "corrupt", 500, Operator;
    /// Change tracking was lost and the request says to fail then.
    TrackingLost = "tracking_lost", 409, Caller;
    /// The work was stopped by a person.
    Cancelled = "cancelled", 409, Caller;
    /// The hub ended while the work ran.
    Interrupted = "interrupted", 500, Time;
    /// The work made no progress for too long.
    DeadlineExceeded = "deadline_exceeded", 500, Operator;
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as a person or a program meets it: what went wrong, which kind, and the particulars.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The stable kind.
    pub code: ProblemCode,
    /// One sentence for people, without secrets and without host internals.
    pub message: String,
    /// Particulars: names, offsets, what stands in the way, what to do.
    pub details: String,
}

impl Problem {
    /// A problem with particulars.
    pub fn new(code: ProblemCode, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_back_and_carry_error_statuses() {
        for code in ProblemCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
            assert!((400..600).contains(&code.http_status()) && code.http_status() != 422, "{code}");
        }
    }
}
