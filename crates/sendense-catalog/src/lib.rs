//! The catalog: what the hub remembers, in SQLite, MariaDB or PostgreSQL.
//!
//! What lives here: migrations, and one module per noun whose methods are **whole transactions with compare-and-set**.
//! What does not: files, HTTP, DTOs, the clock (every method takes `now`). SQL is known in this crate only.
//!
//! The repository is the truth: what the catalog says of backups can be rebuilt from manifests. Invariant: a state that the
//! state machines of `sendense-types` do not allow is never stored, and a VM never has two backups that are not final, even
//! with several hubs on one database.
//!
//! ```no_run
//! # async fn example() -> sendense_catalog::Result<()> {
//! let catalog = sendense_catalog::Catalog::open("sqlite:///var/lib/sendense/catalog.db?mode=rwc").await?;
//! let (repositories, total) = catalog.repositories().list(Default::default()).await?;
//! # Ok(()) }
//! ```

mod backup;
mod connect;
mod counts;
mod entity;
pub mod error;
mod essentials;
mod execution;
mod hub;
mod journal;
mod lease;
mod migration;
mod node;
mod policy;
mod report;
mod repository;
mod schedule;
mod setting;
mod source;
mod space;
mod task;
mod token;
mod tx;
mod value;
mod vm;

pub use backup::{
    Backup, BackupDisk, BackupFilter, BackupPlan, Backups, Chain, Completed, DiskProgress, Due, Lost, MadeBy,
    MadePoints, NewBackup, Oldest, Progress, TokenInUse, Unproved, Verification, Verified,
};
pub use error::{Conflict, Error, Kind, Noun, Result};
pub use essentials::{Counts, ESSENTIALS_VERSION, Essentials};
pub use execution::{Begun, Execution, ExecutionVm, Executions, NewExecution};
pub use hub::{Hub, HubLease, Hubs};
pub use journal::{Artefact, Journal, NewArtefact};
pub use lease::{Lease, Leases};
pub use node::{NewNode, NewNodeCode, Node, Nodes};
pub use policy::{Policies, Policy};
pub use report::{REPORTS_MAX, Report, Reports};
pub use repository::{Maintenance, NewRepository, Repositories, Repository, RepositoryChange};
pub use schedule::{NewSchedule, Schedule, Schedules};
pub use setting::Settings;
pub use source::{NewSource, Source, SourceChange, Sources};
pub use space::{KEPT_DAYS, Space, SpaceSample};
pub use task::{Heartbeat, LogLevel, LogLine, NewLogLine, NewTask, Task, TaskClaim, TaskFilter, TaskSubject, Tasks};
pub use token::{NewToken, Token, TokenRole, Tokens};
pub use vm::{
    DiscoveredDisk, DiscoveredVm, Discovery, KnownDisk, KnownVm, SeenVm, TAGS_MAX, VmContext, VmDisk, VmFilter, Vms,
};

use sea_orm::{DatabaseConnection, DbBackend};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The catalog. Cheap to clone; all clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: DatabaseConnection,
    backend: DbBackend,
    /// The turn to write, on SQLite only.
    writers: Option<Semaphore>,
}

/// A page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many rows; more than [`Page::LIMIT_MAX`] is cut to it.
    pub limit: u64,
    /// So many rows are skipped.
    pub offset: u64,
}

impl Page {
    /// The largest page. It keeps one reply below a few MiB.
    pub const LIMIT_MAX: u64 = 1000;

    fn limit(self) -> u64 {
        self.limit.min(Self::LIMIT_MAX)
    }
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 100, offset: 0 }
    }
}

impl Catalog {
    /// Deployment and hubs.
    pub fn hubs(&self) -> Hubs<'_> {
        Hubs(self)
    }
    /// Hypervisors, image folders, NBD servers.
    pub fn sources(&self) -> Sources<'_> {
        Sources(self)
    }
    /// Machines and their disks.
    pub fn vms(&self) -> Vms<'_> {
        Vms(self)
    }
    /// Repositories.
    pub fn repositories(&self) -> Repositories<'_> {
        Repositories(self)
    }
    /// Restore points and chains.
    pub fn backups(&self) -> Backups<'_> {
        Backups(self)
    }
    /// Tasks and their logs.
    pub fn tasks(&self) -> Tasks<'_> {
        Tasks(self)
    }
    /// Access tokens.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens(self)
    }
    /// Nodes.
    pub fn nodes(&self) -> Nodes<'_> {
        Nodes(self)
    }
    /// Settings.
    pub fn settings(&self) -> Settings<'_> {
        Settings(self)
    }
    /// What was made on hypervisors and hosts and must be reaped.
    pub fn journal(&self) -> Journal<'_> {
        Journal(self)
    }
    /// Which machines are protected, and how.
    pub fn policies(&self) -> Policies<'_> {
        Policies(self)
    }
    /// Which policy is carried out when.
    pub fn schedules(&self) -> Schedules<'_> {
        Schedules(self)
    }
    /// What was carried out.
    pub fn executions(&self) -> Executions<'_> {
        Executions(self)
    }
    /// Reports of what was out of order in repositories.
    pub fn reports(&self) -> Reports<'_> {
        Reports(self)
    }
    /// What repositories held from day to day.
    pub fn space(&self) -> Space<'_> {
        Space(self)
    }
    /// Named leases.
    pub fn leases(&self) -> Leases<'_> {
        Leases(self)
    }

    pub(crate) fn pool(&self) -> &DatabaseConnection {
        &self.inner.pool
    }
}
