//! `sendense hub recover` and its sisters: what is done with a hub's data folder while no hub runs on it.

use clap::{Args as ClapArgs, Subcommand};
use std::path::PathBuf;

/// What is done with a hub's data folder instead of running it.
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Print the recovery key: it opens the copies of the catalog in the repositories. Keep it off this machine.
    RecoveryKey {
        /// The hub's data folder.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Make a data folder from a copy of the catalog in a repository, on a machine that has lost everything else.
    Recover(HubRecoverArgs),
    /// List the copies of catalogs in a repository's folder. Needs no key and no hub.
    Copies {
        /// The repository's folder.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub struct HubRecoverArgs {
    /// The new data folder. Must not hold a catalog.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The repository's folder. It is only read.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// File with the recovery key. Default: SENDENSE_RECOVERY_KEY, or it is asked for.
    #[arg(long, value_name = "FILE")]
    pub recovery_key_file: Option<PathBuf>,
    /// The copy to use (see `sendense hub copies`). Default: the newest.
    #[arg(long, value_name = "NAME")]
    pub copy: Option<String>,
    /// Whose copies are meant, where hubs of several deployments have used the repository.
    #[arg(long, value_name = "ID")]
    pub deployment: Option<sendense_types::DeploymentId>,
    /// The catalog, which must be empty: `mysql://…` or `postgres://…`. Default: SQLite in the data folder.
    #[arg(long, env = "SENDENSE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// The old hub does not run any more and never will: do not wait until its lease on the repository is out.
    #[arg(long)]
    pub old_hub_is_gone: bool,
}
