//! The words of `sendense recover`.

use super::Format;
use clap::Subcommand;
use sendense_types::{BackupId, Name};

#[derive(Debug, Subcommand)]
pub enum RecoverCommand {
    /// Serve all disks of a restore point writable, at once. Prints an NBD URI for each, which is a secret, and the recorded
    /// configuration. What is written is kept beside the point, also when the hub dies, until the recovery is discarded.
    Instant {
        /// The restore point.
        backup_id: BackupId,
        /// A name for the recovery.
        #[arg(long)]
        name: Name,
        /// Define a machine of that name on this libvirt source (a name, an id or its URI), from the recorded configuration, and
        /// start it on the disks.
        #[arg(long, value_name = "SOURCE|URI")]
        libvirt: Option<String>,
        /// Plug cards that were in a network or bridge (or the card with this MAC address) into this network of libvirt's, or
        /// into a bridge of the host (`bridge:NAME`); all others come unplugged, as with `none`.
        #[arg(long = "network", value_name = "OLD=NEW", value_parser = super::key_value, requires = "libvirt")]
        networks: Vec<(String, String)>,
    },
    /// List recoveries.
    List,
    /// Show one recovery with its URIs and the recorded configuration.
    Show {
        /// Its name or id.
        recovery: String,
    },
    /// Make what was written the next point of the chain, and end the recovery. Only of the newest point, with the machine shut
    /// down and no client connected.
    Commit {
        /// Its name or id.
        recovery: String,
        /// Wait for the end and show progress.
        #[arg(long)]
        wait: bool,
    },
    /// Move the machine to storage of its own while it runs, and end the recovery.
    Migrate {
        /// Its name or id.
        recovery: String,
        /// Where its disks go: a libvirt pool, or a folder on the hub below an allowed path.
        #[arg(long, value_name = "POOL|DIR", default_value = "default")]
        pool: String,
        /// The disks' format.
        #[arg(long, value_enum, default_value_t = Format::Qcow2)]
        format: Format,
        /// Wait for the end and show progress.
        #[arg(long)]
        wait: bool,
    },
    /// Take a recovery away with all that was written to it.
    Discard {
        /// Its name or id.
        recovery: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}
