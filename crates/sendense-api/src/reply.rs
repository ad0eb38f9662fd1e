//! The envelopes of successful replies: `success` plus the payload under the name of its noun.

use crate::dto::{
    Backup, Chain, CleanupStatus, DebugHealth, Deletion, Discovery, Endpoint, Export, FileHistory, GuestFile,
    GuestFileInfo, Health, LogEntry, Mount, MountResources, NewToken, Page, Prune, Recovery, Repository, Source,
    Storage, Task, TestReport, Token, Vm, Volume,
};
use crate::dto::{CatalogCopy, ChainMove, Consolidation, Merge, RepositoryReport, SpaceSample};
use crate::dto::{Enrolment, Node, NodeWelcome, Pairing};
use crate::dto::{Execution, Occurrence, Policy, PolicyDeletion, PolicyPlan, PolicyPrune, Schedule};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A single thing under its singular.
macro_rules! single {
    ($($name:ident { $noun:ident: $payload:ty } $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name {
            /// Always true.
            #[schema(example = true)]
            pub success: bool,
            /// What was done, for people; only in replies to calls that do something.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub message: Option<String>,
            /// The payload.
            pub $noun: $payload,
        }

        impl $name {
            /// A reply to a question.
            pub fn new($noun: $payload) -> Self {
                Self { success: true, message: None, $noun }
            }

            /// A reply to an order.
            pub fn done(message: impl Into<String>, $noun: $payload) -> Self {
                Self { success: true, message: Some(message.into()), $noun }
            }
        }
    )*};
}

/// A page of things under their plural.
macro_rules! list {
    ($($name:ident { $noun:ident: $payload:ty } $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name {
            /// Always true.
            #[schema(example = true)]
            pub success: bool,
            /// The things, in the list's order.
            pub $noun: Vec<$payload>,
            /// How many there are without `limit` and `offset`.
            pub total: u64,
        }

        impl From<Page<$payload>> for $name {
            fn from(page: Page<$payload>) -> Self {
                Self { success: true, $noun: page.items, total: page.total }
            }
        }

        impl From<$name> for Page<$payload> {
            fn from(reply: $name) -> Self {
                Page { items: reply.$noun, total: reply.total }
            }
        }
    )*};
}

/// A payload whose fields stand beside `success`.
macro_rules! flat {
    ($($name:ident { $payload:ident } $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $name {
            /// Always true.
            #[schema(example = true)]
            pub success: bool,
            /// The payload.
            #[serde(flatten)]
            pub payload: $payload,
        }

        impl From<$payload> for $name {
            fn from(payload: $payload) -> Self {
                Self { success: true, payload }
            }
        }
    )*};
}

single! {
    BackupReply { backup: Backup } "One backup.";
    DeletionReply { deletion: Deletion } "What a delete takes.";
    MergeReply { merge: Merge } "What a merge takes.";
    ConsolidationReply { consolidation: Consolidation } "How a chain becomes shorter.";
    ChainMoveReply { chain_move: ChainMove } "What a move to another repository takes.";
    PolicyReply { policy: Policy } "One policy.";
    PolicyPlanReply { plan: PolicyPlan } "What a policy would do.";
    PolicyDeletionReply { deletion: PolicyDeletion } "What becomes of VMs and points without a policy.";
    ScheduleReply { schedule: Schedule } "One schedule.";
    PreviewReply { occurrences: Vec<Occurrence> } "Occurrences to come.";
    ExecutionReply { execution: Execution } "One execution.";
    PruneReply { prune: Prune } "What a prune takes and leaves.";
    TaskReply { task: Task } "One task.";
    ReportReply { report: RepositoryReport } "What is out of order in a repository.";
    RepositoryReply { repository: Repository } "One repository.";
    CatalogCopyReply { catalog_copy: CatalogCopy } "A copy of the catalog.";
    CatalogCopiesReply { catalog_copies: Vec<CatalogCopy> } "The copies of catalogs in a repository, the newest first.";
    SourceReply { source: Source } "One source.";
    VmReply { vm: Vm } "One VM.";
    FileReply { file: GuestFileInfo } "One entry of a folder.";
    ExportReply { export: Export } "One export.";
    RecoveryReply { recovery: Recovery } "One recovery.";
    TestReply { report: TestReport } "What a test found.";
}

list! {
    BackupListReply { backups: Backup } "A page of backups.";
    TaskListReply { tasks: Task } "A page of tasks.";
    LogReply { entries: LogEntry } "A page of a task's log, oldest first.";
    RepositoryListReply { repositories: Repository } "A page of repositories.";
    ReportListReply { reports: RepositoryReport } "Reports of a repository, newest first.";
    SpaceListReply { samples: SpaceSample } "What a repository held from day to day, oldest first.";
    SourceListReply { sources: Source } "A page of sources.";
    VmListReply { vms: Vm } "A page of VMs.";
    PolicyListReply { policies: Policy } "A page of policies.";
    ScheduleListReply { schedules: Schedule } "A page of schedules.";
    ExecutionListReply { executions: Execution } "A page of executions.";
    TokenListReply { tokens: Token } "A page of tokens.";
    MountListReply { mounts: Mount } "The restore points that are open.";
    VolumeListReply { volumes: Volume } "What is on a disk.";
    FileListReply { files: GuestFile } "A page of a folder, by name.";
    ExportListReply { exports: Export } "A page of exports.";
    RecoveryListReply { recoveries: Recovery } "A page of recoveries.";
    NodeListReply { nodes: Node } "A page of nodes.";
    EndpointListReply { endpoints: Endpoint } "Every call that the hub answers.";
}

flat! {
    ChainReply { Chain } "The chain of a disk.";
    StorageReply { Storage } "The space of a repository.";
    DiscoveryReply { Discovery } "The machines of a source.";
    HealthReply { Health } "Whether the hub serves.";
    DebugHealthReply { DebugHealth } "How the hub's parts are.";
    MountReply { Mount } "A restore point that is open.";
    MountResourcesReply { MountResources } "How many points are open and may be.";
    FileHistoryReply { FileHistory } "A file over the restore points of its VM.";
    CleanupStatusReply { CleanupStatus } "What closes points that nobody uses.";
    PairingReply { Pairing } "A code that lets one node in, shown once.";
    EnrolmentReply { Enrolment } "A node that was let in, with its certificate.";
    NodeWelcomeReply { NodeWelcome } "As whom the hub knows a node.";
    PrunesReply { PolicyPrune } "What prunes take and leave, VM by VM.";
    NewTokenReply { NewToken } "A token with its secret, shown once.";
}

/// Something was done and there is nothing more to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoneReply {
    /// Always true.
    #[schema(example = true)]
    pub success: bool,
    /// What was done, for people.
    pub message: String,
}

impl DoneReply {
    /// Says what was done.
    pub fn new(message: impl Into<String>) -> Self {
        Self { success: true, message: message.into() }
    }
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SearchReply {
    /// Always true.
    #[schema(example = true)]
    pub success: bool,
    /// A page of what fits, folders before what is in them.
    pub files: Vec<GuestFile>,
    /// How many were found without `limit` and `offset`.
    pub total: u64,
    /// Whether the search ended before it had seen everything, because of its bounds on time and entries.
    pub truncated: bool,
    /// Folders that could not be read, and why; at most 100.
    pub unreadable: Vec<String>,
}
