//! `sendense chain`.

use clap::Subcommand;
use sendense_types::DiskNumber;

#[derive(Debug, Subcommand)]
pub enum ChainCommand {
    /// Make a chain shorter: the oldest points go, and what they held becomes their successors'. Or, with --full, no point goes,
    /// and the newest becomes a full with which a chain begins.
    Consolidate {
        /// The machine's name or id.
        vm: String,
        /// The disk whose chain is looked at; other disks of the same points go along.
        #[arg(long, value_name = "N", value_parser = disk_number)]
        disk: Option<DiskNumber>,
        /// The repository, when the machine has chains in several.
        #[arg(long, value_name = "NAME")]
        repo: Option<String>,
        /// How many points stay (default: the hub's bound, 60).
        #[arg(long, value_name = "N", conflicts_with = "full", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        /// Make the newest point a full; no point goes.
        #[arg(long)]
        full: bool,
        /// Only show what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Move a machine's points to another repository: copied, read back, taken over there, and then removed where they lay.
    Move {
        /// The machine's name or id.
        vm: String,
        /// The repository that they go to.
        #[arg(long, value_name = "NAME")]
        to: String,
        /// The repository that they lie in, when the machine has points in several.
        #[arg(long, value_name = "NAME")]
        repo: Option<String>,
        /// Move although policies that back the machine up name another repository, where their next point will be a full.
        #[arg(long)]
        leave_policies: bool,
        /// The most that it copies, or reads back, in a second (`50MB`, `400Mbit`). Left out: as much as the disks give.
        #[arg(long, value_name = "RATE", value_parser = super::node::rate)]
        bandwidth: Option<u64>,
        /// Only show what would be done.
        #[arg(long, visible_alias = "plan")]
        dry_run: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

fn disk_number(text: &str) -> Result<DiskNumber, String> {
    text.parse().map(DiskNumber).map_err(|error: std::num::ParseIntError| error.to_string())
}
