//! `sendense repo`.

use clap::Subcommand;
use sendense_types::{Compression, RepositoryMode};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Add a repository.
    #[command(subcommand)]
    Add(RepoAddCommand),
    /// List repositories.
    List,
    /// Show one repository and its space.
    Show {
        /// Its name or id.
        repo: String,
    },
    /// Change what a repository may take, and when its room is called low.
    Update {
        /// Its name or id.
        repo: String,
        /// What its points may take, though the file system has more (`500GiB`); 0 for all that it has.
        #[arg(long, value_name = "SIZE")]
        limit: Option<bytesize::ByteSize>,
        /// What is kept free on its file system; 0 for the default: a hundredth of it, between 64 MiB and 10 GiB.
        #[arg(long, value_name = "SIZE")]
        keep_free: Option<bytesize::ByteSize>,
        /// From how many percent taken on its room is low (default 85).
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
        low_percent: Option<u8>,
        /// From how many percent taken on its room is critical (default 95).
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
        critical_percent: Option<u8>,
    },
    /// Look through a repository: compare its folder, the catalog and what runs, repair what is safe, tell the rest.
    Check {
        /// Its name or id.
        repo: String,
        /// Only look.
        #[arg(long)]
        dry_run: bool,
        /// Give moves up whose other repository is lost for good, and not in the catalog any more: what lies here is this
        /// repository's then.
        #[arg(long, conflicts_with = "dry_run")]
        forget_moves: bool,
    },
    /// Show what was out of order in a repository, as looked at by hand, at starts and each day.
    Reports {
        /// Its name or id.
        repo: String,
    },
    /// Show what a repository held from day to day.
    Space {
        /// Its name or id.
        repo: String,
    },
    /// Say what may be done in a repository: normal, read-only (nothing is made, changed or deleted), draining (what runs
    /// comes to its end, nothing begins) or offline (the hub closes the folder and leaves it alone).
    Mode {
        /// Its name or id.
        repo: String,
        /// normal, read-only, draining or offline.
        #[arg(value_parser = repository_mode)]
        mode: RepositoryMode,
        /// Why, for those who are refused meanwhile.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Rebuild the catalog from the repository's manifests.
    Import {
        /// Its name or id.
        repo: String,
    },
    /// Copy the hub's catalog into the repository now, sealed with the recovery key. It is done once a day anyway.
    CopyCatalog {
        /// Its name or id.
        repo: String,
    },
    /// List the copies of catalogs in the repository, the newest first.
    CatalogCopies {
        /// Its name or id.
        repo: String,
    },
    /// Forget a repository that holds no backups.
    Delete {
        /// Its name or id.
        repo: String,
        /// It is lost: forget it with all that is known of its points. Refused while it can be reached.
        #[arg(long)]
        lost: bool,
        /// Do not ask.
        #[arg(long, short, requires = "lost")]
        yes: bool,
    },
}

/// A mode as it is typed or as the API says it.
fn repository_mode(text: &str) -> Result<RepositoryMode, String> {
    text.replace('-', "_").parse()
}

#[derive(Debug, Subcommand)]
pub enum RepoAddCommand {
    /// A folder on a local file system.
    Local {
        /// A name for it.
        #[arg(long)]
        name: String,
        /// The folder, below one of the hub's allowed paths.
        #[arg(long, value_name = "DIR")]
        path: PathBuf,
        /// How hard backups are compressed when they do not say.
        #[arg(long)]
        compression: Option<Compression>,
        /// How many tasks may work on it at once; more wait (default 4).
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        running_tasks_max: Option<u32>,
    },
}
