//! The bodies, one noun per file.

mod backup;
mod chain;
mod event;
mod export;
mod health;
mod history;
mod mount;
mod page;
mod prune;
mod recovery;
mod repository;
mod restore;
mod source;
mod task;
mod token;
mod vm;

pub use backup::{
    Backup, BackupDisk, BackupFilter, CbtAudit, CreateBackup, DeleteQuery, DeletedBackup, Deletion, UpdateBackup,
    VerifyBackup,
};
pub use chain::{Chain, ChainBackup, ChainQuery};
pub use event::{Alert, AlertKind, Event};
pub use export::{CreateExport, Export};
pub use health::{CheckStatus, DebugHealth, Endpoint, Health, HealthCheck, TaskCounts};
pub use history::{FileHistory, FileVersion, HistoryPoint, HistoryQuery, VersionState};
pub use mount::{
    ArchiveFormat, ArchiveQuery, Backend, CleanupStatus, CreateMount, FileKind, FileQuery, FilesQuery, GuestFile,
    GuestFileInfo, Mount, MountResources, MountStatus, SearchQuery, UnlockVolume, Volume, VolumeConsistency,
    VolumeState, decode_path, encode_path,
};
pub use page::{LIMIT_DEFAULT, LIMIT_MAX, Limit, ListQuery, Page};
pub use prune::{Prune, PruneFate, PruneQuery, PruneVm, PrunedBackup};
pub use recovery::{
    CreateRecovery, MigrateRecovery, Recovery, RecoveryDisk, RecoveryDocument, RecoveryMachine, RecoveryStatus,
};
pub use repository::{CreateRepository, Repository, RepositoryConfig, Storage};
pub use restore::{ImageFormat, RestoreBackup, RestoreTarget, VmdkSubformat};
pub use source::{
    CreateSource, Credentials, Discovery, NbdOptions, Secret, Source, TestReport, UpdateSource, VsphereOptions,
};
pub use task::{LogEntry, LogLevel, Task, TaskFilter};
pub use token::{CreateToken, NewToken, Role, Token};
pub use vm::{LastBackup, ProtectionState, Vm, VmDisk, VmFilter, VmNetwork};
