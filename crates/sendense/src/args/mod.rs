//! The command line's grammar. What a word does is in `commands`.

mod backup;
mod chain;
mod files;
mod hub;
mod node;
mod recover;
mod repo;
mod retention;
mod schedule;
mod source;
mod vm;

pub use backup::{BackupCommand, BackupStart};
pub use chain::ChainCommand;
pub use files::{Archive, DiffArgs, FindArgs, GetArgs, HistoryArgs, LsArgs, MountArgs, Place, StatArgs, UnlockArgs};
pub use hub::{HubCommand, HubRecoverArgs};
pub use node::{NodeArgs, NodeCommand, NodePlace, NodeRun};
pub use recover::RecoverCommand;
pub use repo::{RepoAddCommand, RepoCommand};
pub use retention::{PruneArgs, RetentionCommand, SimulateArgs};
pub use schedule::{Missed, PolicyArgs, PolicyCommand, ScheduleArgs, ScheduleCommand};
pub use source::{
    LimitArgs, NbdArgs, PasswordArgs, SourceAddArgs, SourceAddCommand, SourceCommand, SourceUpdate, TlsArgs,
    VsphereArgs,
};
pub use vm::{TagChange, VmCommand};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use sendense_types::{BackupId, ExportId, TaskId};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Agentless backup of virtual machines into plain QCOW2 chains.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 something is in the way, 5 hub unreachable or busy,
/// 6 the work that was waited for failed, 7 not permitted, 130 waiting was stopped.
#[derive(Debug, Parser)]
#[command(name = "sendense", version, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach the hub, and how to print.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The hub's address.
    #[arg(long, global = true, env = "SENDENSE_URL", default_value = "http://127.0.0.1:8082")]
    pub url: String,
    /// File that holds the token (`admin-token` in the hub's data folder). `SENDENSE_TOKEN` holds the token itself.
    #[arg(long, global = true, env = "SENDENSE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificate (PEM) to trust, for a hub with a certificate of its own making.
    #[arg(long, global = true, env = "SENDENSE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// SHA-256 fingerprint of the hub's certificate, as the hub prints it when it starts.
    #[arg(long, global = true, env = "SENDENSE_FINGERPRINT", value_name = "HEX", conflicts_with = "ca_file")]
    pub fingerprint: Option<String>,
    /// Print what the API said, as JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server.
    Hub(Box<HubArgs>),
    /// Repositories: where backups are kept.
    #[command(subcommand)]
    Repo(RepoCommand),
    /// Chains: the points of a disk that stand on each other.
    #[command(subcommand)]
    Chain(ChainCommand),
    /// Sources: hypervisors, image folders, NBD servers.
    #[command(subcommand)]
    Source(SourceCommand),
    /// Virtual machines.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Backups.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Delete the backups of a machine that no rule keeps. Shows the plan and asks first.
    Prune(PruneArgs),
    /// Policies: which machines are protected, and how.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Schedules: when policies are carried out.
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// What rules come to in years.
    #[command(subcommand)]
    Retention(RetentionCommand),
    /// Restores.
    #[command(subcommand)]
    Restore(RestoreCommand),
    /// Open a restore point for browsing.
    Mount(MountArgs),
    /// List the restore points that are open.
    Mounts,
    /// Close an open point.
    Umount {
        /// The open point.
        mount: sendense_types::MountId,
    },
    /// List what is on the disk of an open point.
    Volumes {
        /// The open point.
        mount: sendense_types::MountId,
    },
    /// Unlock an encrypted volume of an open point.
    Unlock(UnlockArgs),
    /// List a folder of an open point.
    Ls(LsArgs),
    /// Show one file, folder or link of an open point.
    Stat(StatArgs),
    /// Fetch a file or a folder of an open point; what broke off goes on where it ended.
    Get(GetArgs),
    /// Search for names in an open point.
    Find(FindArgs),
    /// Open a restore point and browse in it, as `sftp` does; `help` there tells more.
    Shell(MountArgs),
    /// Offer a disk of a restore point to NBD clients; prints the URI, which is a secret.
    Export {
        /// The restore point.
        backup_id: BackupId,
        /// The disk's number; may be left out when the point has one disk.
        #[arg(long)]
        disk: Option<u32>,
    },
    /// List what is on offer over NBD.
    Exports,
    /// Take an export back. Its clients are cut off.
    Unexport {
        /// Its id.
        export_id: ExportId,
    },
    /// Follow a file over the restore points of a VM: which hold it, and which hold the same.
    History(HistoryArgs),
    /// Compare a text file in two restore points of a VM.
    Diff(DiffArgs),
    /// Run a machine straight from a restore point.
    #[command(subcommand)]
    Recover(RecoverCommand),
    /// Tasks: what the hub is doing and did.
    #[command(subcommand)]
    Task(TaskCommand),
    /// Nodes: data movers beside hypervisors. Without a command: run as one.
    Node(Box<NodeArgs>),
    /// Tokens: who may call the hub.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Work on a repository folder alone, with no hub and no database.
    #[command(subcommand)]
    Offline(OfflineCommand),
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct HubArgs {
    #[command(subcommand)]
    pub command: Option<HubCommand>,
    /// Folder for the catalog, keys and the admin token. Made when missing.
    #[arg(long, value_name = "DIR", required = true)]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one. Beyond loopback, TLS is used.
    #[arg(long, default_value = "127.0.0.1:8082")]
    pub listen: SocketAddr,
    /// The catalog: `sqlite://…`, `mysql://…` or `postgres://…`. Default: SQLite in the data folder. Holds a password, so
    /// prefer the environment.
    #[arg(long, env = "SENDENSE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Folder that repositories, image sources and restore targets may lie in. Repeatable; without it none may.
    #[arg(long = "allow-path", value_name = "DIR")]
    pub allow_paths: Vec<PathBuf>,
    /// TLS certificate chain (PEM). Default beyond loopback: one made at the first start.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// TLS private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Restore points that may be open for browsing at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub mounts_max: u32,
    /// Seconds after which an open restore point that nobody uses is closed.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(60..=604_800))]
    pub mount_idle_seconds: u32,
    /// TCP address to serve restore points on over NBD; port 0 takes a free one. Default: a socket in the data folder, for
    /// the hub's user alone. Beyond loopback, certificates are needed.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub nbd_listen: Option<SocketAddr>,
    /// How NBD clients call this machine, where it is not by the address listened on.
    #[arg(long, value_name = "HOST", requires = "nbd_listen")]
    pub nbd_host: Option<String>,
    /// Certificate chain (PEM) shown to NBD clients.
    #[arg(long, value_name = "FILE", requires_all = ["nbd_listen", "nbd_tls_key", "nbd_tls_client_ca"])]
    pub nbd_tls_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", requires = "nbd_tls_cert")]
    pub nbd_tls_key: Option<PathBuf>,
    /// Authority (PEM) that vouches for NBD clients; those without a certificate of it are refused.
    #[arg(long, value_name = "FILE", requires = "nbd_tls_cert")]
    pub nbd_tls_client_ca: Option<PathBuf>,
    /// Restore points that may be exported at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub exports_max: u32,
    /// Seconds after which an export ends that nobody uses.
    #[arg(long, default_value_t = 86_400, value_parser = clap::value_parser!(u32).range(60..=31_536_000))]
    pub export_idle_seconds: u32,
    /// Folder for what recovered machines write. Default: in the data folder. No request can name anything in it.
    #[arg(long, value_name = "DIR")]
    pub recovery_dir: Option<PathBuf>,
    /// What recovered machines leave free on that file system (`2GiB`).
    #[arg(long, default_value = "2GiB", value_name = "SIZE")]
    pub recovery_floor: bytesize::ByteSize,
    /// Recovered machines at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub recoveries_max: u32,
    /// Folder of programs that policies may have run before and after backups, with the hub's rights. Nobody but root and the
    /// hub's user may be able to write to it.
    #[arg(long, value_name = "DIR")]
    pub hooks_dir: Option<PathBuf>,
    /// Tasks that run at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub running_tasks_max: u32,
    /// Tasks that may wait for a place; a call that would add one more is told to come back (503).
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub waiting_tasks_max: u32,
    /// Seconds after which a hub that gives no sign of life is taken for dead by the other hubs on its database: they end its
    /// tasks and take its repositories over. Give all hubs of a database the same.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(3..=3600))]
    pub lease_seconds: u32,
    /// Of a million blocks that change tracking calls unchanged, how many are read and compared all the same (64 of a disk
    /// at the least). 0 believes change tracking; 1000000 reads all.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub audit_per_million: u32,
    /// Seconds after which a backup is given up whose node is not heard any more.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(5..=86_400))]
    pub node_lease_seconds: u32,
    /// Days after which a point is verified again by itself, what is overdue for the longest first, beside everything else; the first
    /// time it is a day after it was made. 0 for never.
    #[arg(long, default_value_t = 30, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=3650))]
    pub verify_after_days: u32,
    /// Decode every block in those verifications, too.
    #[arg(long)]
    pub verify_deep: bool,
    /// The most that those verifications read in a second (`64MiB`).
    #[arg(long, default_value = "64MiB", value_name = "SIZE")]
    pub verify_rate: bytesize::ByteSize,
    /// The most that merges by policies move or check in a second (`128MiB`).
    #[arg(long, default_value = "128MiB", value_name = "SIZE")]
    pub merge_rate: bytesize::ByteSize,
    /// Points of a chain after which its newest is made a full, so that a new chain begins; 0 for as late as can be.
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub chain_points_max: u32,
    /// Forget executions, tasks with their logs and failed attempts that ended so many days ago; 0 keeps all of it. What belongs to
    /// a point stays with it.
    #[arg(long, default_value_t = 90, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=36_500))]
    pub history_days: u32,
    /// The key file of stored credentials is lost for good: make a new one. Credentials must be set again for all sources.
    #[arg(long)]
    pub accept_new_key: bool,
    /// Log as JSON lines.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Restore a disk to a file, a block device or an NBD export.
    Disk {
        /// The backup's id.
        backup_id: BackupId,
        /// The disk's number; may be left out when the backup has one disk.
        #[arg(long)]
        disk: Option<u32>,
        /// A new file or a block device on the hub (below an allowed path), or an NBD URI.
        #[arg(long, value_name = "FILE|DEVICE|NBD_URI", required_unless_present = "onto")]
        to: Option<String>,
        /// An existing file or block device: only the blocks that differ are written.
        #[arg(long, value_name = "FILE|DEVICE", conflicts_with_all = ["to", "format"])]
        onto: Option<String>,
        /// With --onto: grow or cut a file that has another size.
        #[arg(long, conflicts_with = "to")]
        resize: bool,
        /// Write to a block device; what it holds is lost.
        #[arg(long)]
        force: bool,
        /// The file's format.
        #[arg(long, value_enum, default_value_t = RestoreFormat::Raw)]
        format: RestoreFormat,
        /// Restore damaged blocks too, as they can be read, or as zeros; the end tells how many there were.
        #[arg(long)]
        allow_damaged: bool,
        /// Wait for the end and show progress.
        #[arg(long)]
        wait: bool,
    },
    /// Restore a whole VM as a new one, switched off.
    Vm {
        /// The backup's id.
        backup_id: BackupId,
        /// The source that it becomes a VM of.
        #[arg(long, required_unless_present_any = ["libvirt", "vsphere"])]
        source: Option<String>,
        /// The same, by the URI of a libvirt source.
        #[arg(long, value_name = "URI", conflicts_with_all = ["source", "vsphere"])]
        libvirt: Option<String>,
        /// The same, by the name of a vSphere source.
        #[arg(long, value_name = "SOURCE", conflicts_with = "source")]
        vsphere: Option<String>,
        /// The new VM's name.
        #[arg(long, required_unless_present = "onto")]
        name: Option<String>,
        /// vSphere: write onto the disks of this VM, which is switched off and has no snapshots; only blocks that differ are
        /// written. Name or id, as `vm list` tells them.
        #[arg(long, value_name = "VM", requires_all = ["vsphere", "force"],
              conflicts_with_all = ["name", "datastore", "folder", "cluster", "networks", "keep_identity"])]
        onto: Option<String>,
        /// With --onto: only this disk, by its number.
        #[arg(long, requires = "onto")]
        disk: Option<u32>,
        /// With --onto: what the disks hold is lost.
        #[arg(long, requires = "onto")]
        force: bool,
        /// Where its disks go: a libvirt pool, or a folder on the hub below an allowed path.
        #[arg(long, value_name = "POOL|DIR", default_value = "default", conflicts_with = "vsphere")]
        pool: String,
        /// vSphere: the datastore that its disks go to; the original's when left out.
        #[arg(long, value_name = "NAME", requires = "vsphere")]
        datastore: Option<String>,
        /// vSphere: the folder in the inventory, as `vm show` tells paths.
        #[arg(long, value_name = "PATH", requires = "vsphere")]
        folder: Option<String>,
        /// vSphere: the cluster or host that it is to run on.
        #[arg(long, value_name = "NAME", requires = "vsphere")]
        cluster: Option<String>,
        /// The disks' format on libvirt.
        #[arg(long, value_enum, default_value_t = Format::Qcow2)]
        format: Format,
        /// Plug cards that were in a network or bridge (or the card with this MAC address) into this network of libvirt's, or
        /// into a bridge of the host (`bridge:NAME`); all others come unplugged, as with `none`.
        #[arg(long = "network", value_name = "OLD=NEW", value_parser = key_value)]
        networks: Vec<(String, String)>,
        /// Keep UUID and MAC addresses, for a VM that is gone.
        #[arg(long)]
        keep_identity: bool,
        /// Restore damaged blocks too, as they can be read, or as zeros; the end tells how many there were.
        #[arg(long)]
        allow_damaged: bool,
        /// Wait for the end and show progress.
        #[arg(long)]
        wait: bool,
    },
}

/// Formats that the hub restores a disk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RestoreFormat {
    /// Plain bytes, sparse.
    Raw,
    /// A QCOW2 image that needs no other file.
    Qcow2,
    /// A VMDK that a machine can run on (monolithicSparse).
    Vmdk,
    /// A compressed VMDK to be imported (streamOptimized).
    VmdkStream,
}

/// Formats that a disk can be restored to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Plain bytes, sparse.
    Raw,
    /// A QCOW2 image that needs no other file.
    Qcow2,
}

#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks, newest first.
    List,
    /// Show one task.
    Show {
        /// Its id.
        task_id: TaskId,
    },
    /// Print a task's log.
    Log {
        /// Its id.
        task_id: TaskId,
    },
    /// Stop a task.
    Cancel {
        /// Its id.
        task_id: TaskId,
    },
    /// Wait for a task's end and show progress.
    Wait {
        /// Its id.
        task_id: TaskId,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token. It is printed once.
    Create {
        /// Who will use it.
        #[arg(long)]
        name: String,
        /// `viewer` reads, `operator` backs up and restores, `admin` does everything.
        #[arg(long)]
        role: sendense_api::Role,
    },
    /// List tokens.
    List,
    /// Take a token back.
    Revoke {
        /// Its id.
        token_id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum OfflineCommand {
    /// List the restore points of a repository folder.
    List {
        /// The repository's folder.
        #[arg(long, value_name = "DIR")]
        repo_path: PathBuf,
    },
    /// Check restore points against their digests.
    Verify {
        /// The repository's folder.
        #[arg(long, value_name = "DIR")]
        repo_path: PathBuf,
        /// The point; without it, all.
        backup_id: Option<BackupId>,
        /// Decode every block too.
        #[arg(long)]
        deep: bool,
    },
    /// Restore a disk to a file.
    Restore {
        /// The repository's folder.
        #[arg(long, value_name = "DIR")]
        repo_path: PathBuf,
        /// The point.
        backup_id: BackupId,
        /// The disk's number; may be left out when the point has one disk.
        #[arg(long)]
        disk: Option<u32>,
        /// The file to make.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// The file's format.
        #[arg(long, value_enum, default_value_t = Format::Raw)]
        format: Format,
        /// Restore damaged blocks too, as they can be read, or as zeros; the end tells which they are.
        #[arg(long)]
        allow_damaged: bool,
    },
    /// Serve the disks of every restore point over NBD, read-only, until Ctrl-C.
    Export {
        /// The repository's folder.
        #[arg(long, value_name = "DIR")]
        repo_path: PathBuf,
        /// The socket to make. Default: `sendense-nbd.sock` in the current folder.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
}

/// `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_the_guide_shows_is_understood() {
        for line in [
            "sendense hub --data-dir D --listen 127.0.0.1:0 --allow-path A --allow-path B",
            "sendense repo add local --name R --path P",
            "sendense repo list",
            "sendense repo show R",
            "sendense repo import R",
            "sendense repo update R --limit 2TiB --keep-free 20GiB --low-percent 80 --critical-percent 90",
            "sendense chain consolidate web --disk 1 --keep 30 --dry-run",
            "sendense chain consolidate web --repo R --full --yes --no-wait",
            "sendense chain move web --to new --plan",
            "sendense chain move web --to new --repo old --leave-policies --yes --no-wait",
            "sendense repo space R",
            "sendense repo check R --dry-run",
            "sendense repo delete R",
            "sendense repo delete R --lost --yes",
            "sendense repo reports R",
            "sendense repo mode R read-only --reason new-disks",
            "sendense source add image --name I --path P",
            "sendense source add libvirt --name L --uri qemu:///system --scratch S --scratch-floor 2GiB",
            "sendense source add nbd --name N --uri nbd://h/e",
            "sendense source add nbd --name N --uri nbds://h/e --tls-ca C --tls-cert C --tls-key K --tls-server-name h --connections 4",
            "sendense source add nbd --name N --uri nbd://h/e --dirty-bitmap b --trust-bitmap --bitmap-epoch 1",
            "sendense source update N --bitmap-epoch 2",
            "sendense repo add local --name R --path P --running-tasks-max 2",
            "sendense source add libvirt --name L --running-tasks-max 1",
            "sendense source update N --running-tasks-max 8",
            "sendense source update N --trust-bitmap=false --forget-credentials",
            "sendense source add vsphere --name V --address vc.example --username u --thumbprint 0f --vddk-libdir /opt/vddk",
            "sendense source list",
            "sendense source show I",
            "sendense source test I",
            "sendense source discover I",
            "sendense vm list",
            "sendense vm show web",
            "sendense backup start web --repo R --type full --disk 0 --compression off --wait",
            "sendense backup list --status completed",
            "sendense backup show bk-1",
            "sendense backup cancel bk-1",
            "sendense backup chain web --disk 1 --json",
            "sendense backup verify bk-1 --deep",
            "sendense backup delete bk-1 --cascade --dry-run",
            "sendense backup merge bk-1 --yes --no-wait",
            "sendense backup protect bk-1",
            "sendense backup unprotect bk-1",
            "sendense backup hold bk-1 --until 2030-01-31",
            "sendense backup hold bk-1 --until 2030-01-31T12:00:00+01:00",
            "sendense backup hold bk-1 --release",
            "sendense prune web --keep-last 3 --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --time-zone Europe/Berlin --dry-run",
            "sendense prune web --repo R --keep-hourly 24 --keep-yearly 9 --minimum-age-hours 48 --plan 0f --yes",
            "sendense policy create gold --vm * --exclude test-* --repo main --keep-daily 14 --full-every 28",
            "sendense policy update gold --vm db-? --source kvm --repo main --quiesce --rename silver",
            "sendense policy plan --vm * --repo main --keep-last 7 --time-zone Europe/Berlin",
            "sendense policy list",
            "sendense policy show gold",
            "sendense policy prune gold --dry-run",
            "sendense policy delete gold --dry-run",
            "sendense policy delete gold --yes",
            "sendense schedule create nightly --policy gold --cron @daily --time-zone Europe/Berlin --jitter-minutes 30",
            "sendense schedule create day --policy gold --every 6h --window 20:00-06:00 --window-days fri,sat --window-stops --missed skip --disabled",
            "sendense schedule update nightly --policy gold --every 1d",
            "sendense schedule list",
            "sendense schedule show nightly",
            "sendense schedule preview nightly --days 7",
            "sendense schedule enable nightly",
            "sendense schedule disable nightly",
            "sendense schedule trigger nightly",
            "sendense schedule executions nightly --limit 5",
            "sendense schedule execution exec-1",
            "sendense schedule delete nightly",
            "sendense retention simulate --keep-daily 14 --keep-monthly 12 --full 40GiB --incremental 2GB",
            "sendense retention simulate --keep-last 30 --every 6h --full-every 28 --years 10 --full 1TiB --incremental 5GiB --points",
            "sendense restore disk bk-1 --disk 0 --to f --format qcow2 --wait",
            "sendense restore disk bk-1 --to f --format vmdk-stream",
            "sendense restore disk bk-1 --to /dev/x --force --wait",
            "sendense restore disk bk-1 --onto f --resize --wait",
            "sendense restore vm bk-1 --source L --name new --pool /p --network lan=lab --network x=none --wait",
            "sendense restore vm bk-1 --libvirt qemu:///system --name new --format raw --keep-identity",
            "sendense restore vm bk-1 --vsphere vc --name new --datastore ds --folder DC/vm/x --cluster c --wait",
            "sendense restore vm bk-1 --vsphere vc --onto web --disk 1 --force --wait",
            "sendense offline restore --repo-path P bk-1 --to f",
            "sendense offline list --repo-path P",
            "sendense offline verify --repo-path P",
            "sendense node --hub https://h:8082 --name SITE-A",
            "sendense node pair --name SITE-A",
            "sendense node enrol --hub https://h:8082 --code C",
            "sendense node list",
            "sendense node doctor",
            "sendense history web /etc/fstab --disk 0 --volume p2",
            "sendense diff web /etc/fstab bk-1 bk-2 -U 5",
            "sendense mount bk-1 --disk 0 --volume p2",
            "sendense ls mnt-1 /etc --volume lvm:vg0/root",
            "sendense get mnt-1 /etc/fstab --to f --force",
            "sendense get mnt-1 /etc --archive zip",
            "sendense find mnt-1 /etc --name *.conf",
            "sendense shell bk-1",
            "sendense offline export --repo-path P --socket S",
            "sendense export bk-1 --disk 0",
            "sendense exports --json",
            "sendense unexport exp-1",
            "sendense hub --data-dir D --nbd-listen 0.0.0.0:10809 --nbd-host h --nbd-tls-cert C --nbd-tls-key K --nbd-tls-client-ca A",
        ] {
            Args::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "sendense backup start web",
            "sendense prune web --dry-run",
            "sendense policy create gold --repo main",
            "sendense schedule create nightly --policy gold",
            "sendense schedule create nightly --policy gold --every 1d --cron @daily",
            "sendense schedule create nightly --policy gold --every 1d --window-days mon",
            "sendense retention simulate --full 1GiB --incremental 1GiB",
            "sendense retention simulate --keep-last 1 --full 1GiB --incremental 1GiB --every 0d",
            "sendense backup hold bk-1",
            "sendense backup hold bk-1 --until tomorrow",
            "sendense backup hold bk-1 --until 2030-01-31 --release",
            "sendense backup show ../x",
            "sendense backup start w --repo r --type big",
            "sendense source add nbd --name N --uri nbds://h/e --tls-cert C",
            "sendense source add nbd --name N --uri nbds://h/e --connections 0",
            "sendense source update N",
            "sendense source update N --running-tasks-max 0",
            "sendense restore disk bk-1",
            "sendense restore disk bk-1 --to f --onto g",
            "sendense restore disk bk-1 --to f --resize",
            "sendense hub --data-dir D --nbd-listen 0.0.0.0:10809 --nbd-tls-cert C --nbd-tls-key K",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line} was taken");
        }
    }
}
