//! The words of `sendense source`. No secret is ever an argument: arguments are in everybody's process list.

use clap::{ArgGroup, Args as ClapArgs, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Add a source.
    #[command(subcommand)]
    Add(SourceAddCommand),
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
    },
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
    "tls_cert", "tls_key", "username", "password_file", "forget_credentials",
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
    #[command(flatten)]
    pub nbd: NbdArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub password: PasswordArgs,
    /// Remove the stored credentials.
    #[arg(long, conflicts_with_all = ["tls_ca", "tls_cert", "tls_key", "username", "password_file"])]
    pub forget_credentials: bool,
}
