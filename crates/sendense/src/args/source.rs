//! The words of `sendense source`. No secret is ever an argument: arguments are in everybody's process list.

use clap::{ArgGroup, Args as ClapArgs, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Add a source.
    Add(Box<SourceAddArgs>),
    /// List sources.
    List,
    /// Show one source.
    Show {
        /// Its name or id.
        source: String,
    },
    /// Connect, and say what is found and what is missing.
    Test {
        /// Its name or id.
        source: String,
    },
    /// Look for machines and fill the catalog.
    Discover {
        /// Its name or id.
        source: String,
    },
    /// Change a source; what is not named stays as it is.
    Update(Box<SourceUpdate>),
    /// Forget a source. Backups stay.
    Delete {
        /// Its name or id.
        source: String,
    },
}

#[derive(Debug, ClapArgs)]
pub struct SourceAddArgs {
    /// The node that reaches it; paths are on its machine then. Without it the hub reaches it itself.
    #[arg(long, global = true, value_name = "NAME")]
    pub node: Option<String>,
    #[command(subcommand)]
    pub command: SourceAddCommand,
}

#[derive(Debug, Subcommand)]
pub enum SourceAddCommand {
    /// A folder of disk images: a sub-folder per machine, or a file per machine.
    Image {
        /// A name for it.
        #[arg(long)]
        name: String,
        /// The folder, below one of the hub's allowed paths.
        #[arg(long, value_name = "DIR")]
        path: PathBuf,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// libvirt with QEMU.
    Libvirt {
        /// A name for it.
        #[arg(long)]
        name: String,
        /// The connection.
        #[arg(long, default_value = "qemu:///system")]
        uri: String,
        /// Folder for scratch files while a machine is backed up; QEMU must be able to write there.
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
        /// Give a backup up before scratch space falls below this (`2GiB`).
        #[arg(long, value_name = "SIZE")]
        scratch_floor: Option<bytesize::ByteSize>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// A vCenter, or a bare ESXi host.
    Vsphere {
        /// A name for it.
        #[arg(long)]
        name: String,
        /// Its host name or address, with a port where it is not 443.
        #[arg(long, value_name = "HOST[:PORT]")]
        address: String,
        /// SHA-256 of its certificate, as its administrator says. Without it, what it shows is asked for confirmation.
        #[arg(long, value_name = "SHA256", conflicts_with = "tls_ca")]
        thumbprint: Option<String>,
        /// Authorities (PEM) that vouch for its certificate, instead of a thumbprint.
        #[arg(long, value_name = "FILE")]
        tls_ca: Option<PathBuf>,
        #[command(flatten)]
        vsphere: VsphereArgs,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// An NBD server.
    Nbd {
        /// A name for it.
        #[arg(long)]
        name: String,
        /// `nbd://host[:port]/export`, `nbds://…`, `nbd+unix:///export?socket=PATH`.
        #[arg(long)]
        uri: String,
        #[command(flatten)]
        nbd: NbdArgs,
        #[command(flatten)]
        tls: TlsArgs,
        #[command(flatten)]
        limits: LimitArgs,
    },
}

/// How much at once a source bears.
#[derive(Debug, Default, ClapArgs)]
pub struct LimitArgs {
    /// How many of its machines may be backed up at once; more wait (default 4).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub running_tasks_max: Option<u32>,
}

/// What an NBD server takes beside its URI.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "NBD options")]
pub struct NbdArgs {
    /// The dirty bitmap to use, as the server calls it behind `qemu:dirty-bitmap:`.
    #[arg(long, value_name = "NAME")]
    pub dirty_bitmap: Option<String>,
    /// Believe the bitmap: while the epoch stays the same it recorded every write and was never cleared or made anew.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "true|false")]
    pub trust_bitmap: Option<bool>,
    /// Any text; change it whenever the bitmap was cleared or made anew.
    #[arg(long, value_name = "TEXT")]
    pub bitmap_epoch: Option<String>,
    /// Connections per disk (default 1: many servers serve one client at a time).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub connections: Option<u32>,
    /// The name to look for in the server's certificate, where it is not the URI's host.
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,
}

/// What a vCenter or host takes beside its address.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "vSphere options")]
pub struct VsphereArgs {
    /// VMware's VDDK on the hub's host, as its archive unpacks it (vmware-vix-disklib-distrib).
    #[arg(long, value_name = "DIR")]
    pub vddk_libdir: Option<String>,
    /// nbdkit's vddk plugin as a file, where nbdkit does not find it by its name.
    #[arg(long, value_name = "FILE")]
    pub nbdkit_plugin: Option<String>,
    /// Transport modes, joined by colons (default nbdssl).
    #[arg(long, value_name = "MODES")]
    pub transports: Option<String>,
    /// Disks that may be open at once (default 20; a vCenter gives 52 sessions in all).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=52))]
    pub sessions_max: Option<u32>,
    /// An HTTP proxy on the way to the vCenter's port 443; VDDK does not use it.
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// Fail where a running guest cannot be quiesced, rather than take a point as after a power cut.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "true|false")]
    pub quiesce_or_fail: Option<bool>,
}

/// Certificates for `nbds://`. The files are read here and sent to the hub, which keeps them encrypted.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "Certificates for nbds://")]
pub struct TlsArgs {
    /// Authorities (PEM) that alone may vouch for the server. Without it: the public ones.
    #[arg(long, env = "SENDENSE_SOURCE_TLS_CA_FILE", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate chain (PEM) to show to the server.
    #[arg(long, env = "SENDENSE_SOURCE_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM, not encrypted) of that certificate.
    #[arg(long, env = "SENDENSE_SOURCE_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// An account, for sources that ask for one. The password comes from the file, from `SENDENSE_SOURCE_PASSWORD`, or is asked for.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "Account")]
pub struct PasswordArgs {
    /// The account. Its password comes from `--password-file`, from `SENDENSE_SOURCE_PASSWORD`, or is asked for.
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// File that holds the password; `-` reads it from stdin.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// What may be changed of a source.
#[derive(Debug, ClapArgs)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args([
    "new_name", "address", "dirty_bitmap", "trust_bitmap", "bitmap_epoch", "connections", "tls_server_name", "tls_ca",
    "tls_cert", "tls_key", "username", "password_file", "forget_credentials", "thumbprint", "vddk_libdir",
    "nbdkit_plugin", "transports", "sessions_max", "proxy", "quiesce_or_fail", "running_tasks_max",
]))]
pub struct SourceUpdate {
    /// Its name or id.
    pub source: String,
    /// A new name.
    #[arg(long = "name", value_name = "NAME")]
    pub new_name: Option<String>,
    /// A new place of the same folder or server: a path or a URI.
    #[arg(long, value_name = "PATH|URI")]
    pub address: Option<String>,
    /// SHA-256 of a vCenter's new certificate, after it was compared with what its administrator says.
    #[arg(long, value_name = "SHA256")]
    pub thumbprint: Option<String>,
    #[command(flatten)]
    pub vsphere: VsphereArgs,
    #[command(flatten)]
    pub nbd: NbdArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub password: PasswordArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Remove the stored credentials.
    #[arg(long, conflicts_with_all = ["tls_ca", "tls_cert", "tls_key", "username", "password_file"])]
    pub forget_credentials: bool,
}
