//! Words on the wire: the bodies of the REST calls, the problem body, events, and a client that speaks them.
//!
//! What lives here: the shapes that the hub and its clients share, their OpenAPI schemas, and the typed client. What does
//! not: decisions (the hub's), SQL. Invariant: a request type refuses fields that it does not know, and a secret that came in
//! through a request type has no way out through a reply type.

mod client;
mod dto;
mod problem;
pub mod reply;
pub mod schema;

pub use client::{Client, ClientError, ClientOptions, Download, EventStream, Identity, Trust, fingerprint_of};
pub use dto::{
    Alert, AlertKind, CbtAudit, LeftOverAlert, LeftOverKind, LeftOverState, POOL_DEFAULT, RepositorySpace, SpaceAlert,
    SpaceSample,
};
pub use dto::{
    ArchiveFormat, ArchiveQuery, Backend, Backup, BackupDisk, BackupFilter, Chain, ChainBackup, ChainQuery, ChangeTags,
    CheckStatus, CleanupStatus, CreateBackup, CreateExport, CreateMount, CreateRepository, CreateSource, CreateToken,
    Credentials, DebugHealth, DeleteQuery, DeletedBackup, Deletion, Discovery, Endpoint, Event, Export, FileHistory,
    FileKind, FileQuery, FileVersion, FilesQuery, GuestFile, GuestFileInfo, Health, HealthCheck, HistoryPoint,
    HistoryQuery, ImageFormat, LIMIT_DEFAULT, LIMIT_MAX, LastBackup, Limit, ListQuery, LogEntry, LogLevel, Mount,
    MountResources, MountStatus, NbdOptions, NewToken, Page, ProtectionState, ProvedBackup, Prune, PruneFate,
    PruneQuery, PruneVm, PrunedBackup, Repository, RepositoryConfig, RestoreBackup, RestoreTarget, Role, SearchQuery,
    Secret, Source, Storage, Task, TaskCounts, TaskFilter, TestReport, Token, UnlockVolume, UpdateBackup,
    UpdateRepository, UpdateSource, VerifyBackup, VersionState, Vm, VmDisk, VmFilter, VmNetwork, VmdkSubformat, Volume,
    VolumeConsistency, VolumeState, VsphereOptions, decode_path, encode_path,
};
pub use dto::{BYTES_PER_SECOND_MIN, TIME_LIMIT_SECONDS_MAX};
pub use dto::{CatalogCopy, Merge, MergeQuery};
pub use dto::{
    CatchUp, Day, Execution, ExecutionVm, JudgedVm, LeftPoints, NoLongerMeant, NotPrunedVm, Occurrence, PlannedVm,
    Policy, PolicyDeletion, PolicyHooks, PolicyInForce, PolicyOrder, PolicyPlan, PolicyPrune, PolicyRules,
    PolicyVerification, PreviewQuery, Retention, Schedule, ScheduleRules, ScheduleWindow, VanishedVm,
};
pub use dto::{ChainMove, MoveQuery, MoveVm, MovedBackup};
pub use dto::{ConsolidateQuery, Consolidation, DeleteRepository};
pub use dto::{
    CreatePairing, EnrolNode, Enrolment, LimitWindow, Node, NodeHello, NodeLimit, NodeStatus, NodeWelcome, Pairing,
};
pub use dto::{
    CreateRecovery, MigrateRecovery, Recovery, RecoveryDisk, RecoveryDocument, RecoveryMachine, RecoveryStatus,
};
pub use dto::{FindingKind, ReconcileQuery, ReportFinding, RepositoryReport};
pub use problem::{ProblemBody, TaskError};
