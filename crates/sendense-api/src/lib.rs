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

pub use client::{Client, ClientError, ClientOptions, EventStream, Trust};
pub use dto::{
    Backup, BackupDisk, BackupFilter, Chain, ChainBackup, ChainQuery, CheckStatus, CreateBackup, CreateRepository,
    CreateSource, CreateToken, Credentials, DebugHealth, DeleteQuery, DeletedBackup, Deletion, Discovery, Endpoint,
    Event, Health, HealthCheck, ImageFormat, LIMIT_DEFAULT, LIMIT_MAX, LastBackup, Limit, ListQuery, LogEntry,
    LogLevel, NbdOptions, NewToken, Page, ProtectionState, Repository, RepositoryConfig, RestoreBackup, RestoreTarget,
    Role, Secret, Source, Storage, Task, TaskCounts, TaskFilter, TestReport, Token, UpdateSource, VerifyBackup, Vm,
    VmDisk, VmFilter, VmNetwork, VmdkSubformat,
};
pub use problem::{ProblemBody, TaskError};
