//! What a hub is told at its start.
//!
//! What lives here: settings and their defaults. What does not: reading them from a command line (the binary does) and
//! checking them (each room checks what it uses). Invariant: a bound that is not set here has its reason where it is used.

use sendense_types::{Clock, SystemClock, Timestamp};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Port of the API when nothing else is said.
pub const PORT_DEFAULT: u16 = 8082;

/// No period that is derived from the lease is shorter, so that a very short lease does not make the hub spin.
const SHORTEST_PERIOD: Duration = Duration::from_millis(500);

/// Settings of a hub.
#[derive(Clone)]
pub struct HubConfig {
    /// Where the hub keeps its identity, its key and, with the embedded database, its catalog.
    pub data_dir: PathBuf,
    /// Where the API is served.
    pub listen: SocketAddr,
    /// The catalog's database; absent: an SQLite file in the data directory.
    pub database_url: Option<String>,
    /// Roots of host paths that requests may name.
    pub allow_paths: Vec<PathBuf>,
    /// Certificate chain and key (PEM files) for TLS; absent: made at first start where TLS is needed.
    pub tls: Option<TlsFiles>,
    /// Whether the key of the catalog's credentials is lost for good, so that a new one is made, or another one taken.
    pub accept_new_key: bool,
    /// Where and for how long restore points are served over NBD.
    pub nbd: NbdConfig,
    /// Instant recoveries.
    pub recovery: RecoveryConfig,
    /// The folder of programs that policies may have run before and after backups; absent: none may.
    pub hooks_dir: Option<PathBuf>,
    /// How much may happen at once.
    pub limits: Limits,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What happens to changes of repositories.
    #[cfg(test)]
    pub(crate) script: Option<Arc<dyn sendense_repo::testing::stage::Script>>,
}

/// A certificate that the operator brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file with the chain, the hub's certificate first.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
}

/// Where and for how long restore points are served over NBD.
#[derive(Debug, Clone)]
pub struct NbdConfig {
    /// A TCP address for all exports; absent: a socket in the data directory. Beyond loopback, certificates are needed.
    pub listen: Option<SocketAddr>,
    /// How clients call this machine, where it is not by the address listened on.
    pub host: Option<String>,
    /// Certificates; clients must show one as well.
    pub tls: Option<sendense_block::nbd::server::ServerTls>,
    /// Exports at once. Each keeps the files of a chain open, some dozen as a rule, and no memory to speak of; a process may
    /// have 1024 files open where nobody raised that.
    pub exports_max: usize,
    /// How long an export that nobody uses stays, in seconds.
    pub idle_seconds: u32,
}

impl Default for NbdConfig {
    fn default() -> Self {
        Self { listen: None, host: None, tls: None, exports_max: 32, idle_seconds: 24 * 3600 }
    }
}

/// Where recovered machines write, and how much of them there may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryConfig {
    /// The folder for what they write; absent: in the data directory. No request can name anything in it.
    pub dir: Option<PathBuf>,
    /// What stays free on its file system: a write that would take from it fails, and a guest that is told so waits. With
    /// the folder in the data directory the catalog lives there too, and 2 GiB last it for weeks.
    pub floor_bytes: u64,
    /// Recoveries at once. Each is a machine that somebody runs; a chain's files are open for each of its disks.
    pub recoveries_max: usize,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        Self { dir: None, floor_bytes: 2 << 30, recoveries_max: 16 }
    }
}

/// How much may happen at once and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Tasks that run at once in this hub. Four keep two disks and two networks busy; the copy buffers of four stay far
    /// below the 256 MiB that a hub may use.
    pub running_per_hub: usize,
    /// Tasks that write to or read from one repository at once.
    pub running_per_repository: usize,
    /// Tasks that read from one source at once: hypervisors suffer before repositories do.
    pub running_per_source: usize,
    /// Tasks that wait for a place. A night's schedule for a thousand machines fits; what is more is told to come back.
    pub pending_max: usize,
    /// How long a hub that says nothing more is believed to be at work, in seconds: its tasks and repositories stay its own
    /// so long, then another hub on the same database ends the tasks and takes the repositories over. Shorter is quicker on
    /// the bad day; longer outlasts longer stalls of the database or of a share.
    pub lease_seconds: u32,
    /// Restore points that are open for browsing at once. Each is a process of up to 64 MiB.
    pub mounts_max: usize,
    /// How long an open point stays open that nobody uses, in seconds.
    pub mount_idle_seconds: u64,
    /// Entries of one archive of a folder: ten times what a home folder of a developer holds.
    pub archive_entries_max: u64,
    /// Bytes of content of one archive; a disk larger than this is restored whole.
    pub archive_bytes_max: u64,
    /// Of a million blocks that change tracking calls unchanged, those that are read and compared all the same (and 64 of a
    /// disk at the least); 0 believes it.
    pub audit_per_million: u32,
    /// A point that nobody has verified for so many days is verified by itself, and the first time a day after it was made; 0 leaves
    /// that to people. A month finds what rots before the points are gone that could still replace it.
    pub verify_after_days: u32,
    /// Whether that decodes every block, too.
    pub verify_deep: bool,
    /// The most bytes that it reads in a second: a quarter of what one spinning disk gives leaves the rest to backups, and is
    /// 160 TB in a month.
    pub verify_bytes_per_second: u64,
    /// The most bytes that a merge moves or checks in a second which nobody asked for: half of what one spinning disk gives.
    pub merge_bytes_per_second: u64,
    /// Points of a chain after which its newest is made a full, so that a new chain begins; 0 lets chains grow to 256, where
    /// backups make a full by themselves. Sixty open files for a disk's restore, and two months of daily points. Machines of a
    /// fleet exceed it by up to half as much, each by another number.
    pub chain_points_max: u32,
    /// What has ended is forgotten after so many days: executions, tasks with their logs, attempts that failed; 0 keeps all of it. A
    /// quarter of a year tells what happened on the last quarter's end.
    pub history_days: u32,
    /// Between two looks at the room of repositories: a disk takes longer than a minute to go from low to full, and a look is one
    /// call of the file system.
    pub upkeep_period: Duration,
    /// A running task that moves nothing for so long is ended: 4 h outlast any stall of a storage that still lives.
    pub progress_deadline_s: u64,
    /// How long the job of a task that was stopped may take to come back. Copies stop within a second and tools of other people
    /// within ten; what takes longer hangs in the kernel, and the task ends without it.
    pub stop_grace: Duration,
    /// How long a node may not be heard in mid-backup before it is given up, in seconds: longer than most outages of a line,
    /// shorter than what a hypervisor bears of a snapshot that nobody reads.
    pub node_lease_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            running_per_hub: 4,
            running_per_repository: 4,
            running_per_source: 4,
            pending_max: 1000,
            // 120 reports of a task may be lost before that, so that a database that restarts costs no backup.
            lease_seconds: 60,
            mounts_max: 8,
            mount_idle_seconds: 3600,
            archive_entries_max: 2_000_000,
            archive_bytes_max: 4 << 40,
            audit_per_million: 1000,
            verify_after_days: 30,
            verify_deep: false,
            verify_bytes_per_second: 64 << 20,
            merge_bytes_per_second: 128 << 20,
            chain_points_max: 60,
            history_days: 90,
            upkeep_period: Duration::from_secs(60),
            progress_deadline_s: 4 * 3600,
            // With what is taken back after it, less than a hub that stops waits for its tasks.
            stop_grace: Duration::from_secs(20),
            node_lease_seconds: 300,
        }
    }
}

impl Limits {
    /// Until when whoever says now that it is alive is believed.
    pub(crate) fn lease_until(&self, now: Timestamp) -> Timestamp {
        now.plus_seconds(self.lease_seconds.into())
    }

    /// A part of the lease, for what must happen several times while it runs; never longer than `longest`.
    pub(crate) fn part_of_lease(&self, parts: u32, longest: Duration) -> Duration {
        (Duration::from_secs(self.lease_seconds.into()) / parts).clamp(SHORTEST_PERIOD, longest)
    }
}

impl HubConfig {
    /// Defaults: embedded catalog, plain HTTP on loopback, no host path allowed.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT_DEFAULT)),
            database_url: None,
            allow_paths: Vec::new(),
            tls: None,
            accept_new_key: false,
            nbd: NbdConfig::default(),
            recovery: RecoveryConfig::default(),
            hooks_dir: None,
            limits: Limits::default(),
            clock: Arc::new(SystemClock),
            #[cfg(test)]
            script: None,
        }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The database URL may hold a password, so only its presence is told.
        f.debug_struct("HubConfig")
            .field("data_dir", &self.data_dir)
            .field("listen", &self.listen)
            .field("database_url", &self.database_url.as_ref().map(|_| "(set)"))
            .field("allow_paths", &self.allow_paths)
            .field("tls", &self.tls)
            .field("accept_new_key", &self.accept_new_key)
            .field("nbd", &self.nbd)
            .field("recovery", &self.recovery)
            .field("hooks_dir", &self.hooks_dir)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
