//! The nouns of Sendense: ids, virtual machines and their disks, backups, tasks, problem codes, time.
//!
//! What lives here: values and the rules that make them valid. What does not: I/O, async, SQL, HTTP.
//! Invariant: an id or a name that exists as a value of these types is safe to use as one component of a path.

mod backup;
mod clock;
mod execution;
mod id;
mod problem;
mod source;
mod task;
mod vm;

pub use backup::{
    BackupStatus, BackupType, Compression, Consistency, OnTrackingLoss, Phase, TrackingAudit, VerifyDepth, VerifyState,
};
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use execution::{ExecutionState, VmOutcome};
pub use id::{
    BackupId, DeploymentId, DiskNumber, ExecutionId, ExportId, HubId, IdError, MountId, NodeId, PolicyId, RecoveryId,
    RepositoryId, ScheduleId, SourceId, TaskId, VmContextId,
};
pub use problem::{Problem, ProblemCode, WhoActs};
pub use source::{RepositoryKind, RepositoryMode, SourceKind, SpaceState};
pub use task::{TaskKind, TaskState};
pub use vm::{DiskBinding, Name, NameError, PowerState, Tag, TagError, TrackingToken};
