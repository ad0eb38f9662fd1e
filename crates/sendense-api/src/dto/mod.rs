//! The bodies, one noun per file.

mod backup;
mod chain;
mod event;
mod export;
mod health;
mod history;
mod merge;
mod mount;
mod node;
mod page;
mod policy;
mod prune;
mod recovery;
mod report;
mod repository;
mod restore;
mod schedule;
mod source;
mod task;
mod token;
mod vm;

pub use backup::{
    BYTES_PER_SECOND_MIN, Backup, BackupDisk, BackupFilter, CbtAudit, CreateBackup, DeleteQuery, DeletedBackup,
    Deletion, TIME_LIMIT_SECONDS_MAX, UpdateBackup, VerifyBackup,
};
pub use chain::{Chain, ChainBackup, ChainQuery};
pub use event::{Alert, AlertKind, Event, LeftOverAlert, LeftOverKind, LeftOverState, SpaceAlert};
pub use export::{CreateExport, Export};
pub use health::{CheckStatus, DebugHealth, Endpoint, Health, HealthCheck, TaskCounts};
pub use history::{FileHistory, FileVersion, HistoryPoint, HistoryQuery, VersionState};
pub use merge::{ChainMove, ConsolidateQuery, Consolidation, Merge, MergeQuery, MoveQuery, MoveVm, MovedBackup};
pub use mount::{
    ArchiveFormat, ArchiveQuery, Backend, CleanupStatus, CreateMount, FileKind, FileQuery, FilesQuery, GuestFile,
    GuestFileInfo, Mount, MountResources, MountStatus, SearchQuery, UnlockVolume, Volume, VolumeConsistency,
    VolumeState, decode_path, encode_path,
};
pub use node::{
    CreatePairing, EnrolNode, Enrolment, LimitWindow, Node, NodeHello, NodeLimit, NodeStatus, NodeWelcome, Pairing,
};
pub use page::{LIMIT_DEFAULT, LIMIT_MAX, Limit, ListQuery, Page};
pub use policy::{
    JudgedVm, LeftPoints, NoLongerMeant, PlannedVm, Policy, PolicyDeletion, PolicyHooks, PolicyInForce, PolicyOrder,
    PolicyPlan, PolicyRules, PolicyVerification, Retention, VanishedVm,
};
pub use prune::{NotPrunedVm, PolicyPrune, Prune, PruneFate, PruneQuery, PruneVm, PrunedBackup};
pub use recovery::{
    CreateRecovery, MigrateRecovery, Recovery, RecoveryDisk, RecoveryDocument, RecoveryMachine, RecoveryStatus,
};
pub use report::{FindingKind, ReconcileQuery, ReportFinding, RepositoryReport};
pub use repository::{
    CatalogCopy, CreateRepository, DeleteRepository, Repository, RepositoryConfig, RepositorySpace, SpaceSample,
    Storage, UpdateRepository,
};
pub use restore::{ImageFormat, POOL_DEFAULT, RestoreBackup, RestoreTarget, VmdkSubformat};
pub use schedule::{
    CatchUp, Day, Execution, ExecutionVm, Occurrence, PreviewQuery, Schedule, ScheduleRules, ScheduleWindow,
};
pub use source::{
    CreateSource, Credentials, Discovery, NbdOptions, Secret, Source, TestReport, UpdateSource, VsphereOptions,
};
pub use task::{LogEntry, LogLevel, Task, TaskFilter};
pub use token::{CreateToken, NewToken, Role, Token};
pub use vm::{ChangeTags, LastBackup, ProtectionState, ProvedBackup, Vm, VmDisk, VmFilter, VmNetwork};

/// Reads a limit that may be left out: none of 0, for what waits for its turn would wait for ever.
fn at_least_one<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let limit: Option<std::num::NonZeroU32> = serde::Deserialize::deserialize(from)?;
    Ok(limit.map(std::num::NonZeroU32::get))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_zero() {
        let source = r#"{"name": "x", "kind": "nbd", "uri": "u", "running_tasks_max": "#;
        let repository = r#"{"name": "x", "type": "local", "config": {"path": "/"}, "running_tasks_max": "#;
        let refused = |error: serde_json::Error| assert!(error.to_string().contains("nonzero"), "{error}");
        refused(serde_json::from_str::<CreateSource>(&format!("{source}0}}")).unwrap_err());
        refused(serde_json::from_str::<CreateRepository>(&format!("{repository}0}}")).unwrap_err());
        refused(serde_json::from_str::<UpdateSource>(r#"{"running_tasks_max": 0}"#).unwrap_err());
        let read = serde_json::from_str::<CreateSource>(&format!("{source}2}}")).unwrap();
        assert_eq!(read.running_tasks_max, Some(2));
    }
}
