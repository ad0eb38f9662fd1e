//! Words of `prune` and `retention`.

use clap::{Args as ClapArgs, Subcommand};

/// The rules, of which at least one is given.
#[derive(Debug, Clone, Copy, ClapArgs)]
#[group(id = "rules", required = true, multiple = true)]
pub struct Keeping {
    /// Keep so many of the newest points.
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep the newest point of so many hours.
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<u32>,
    /// Keep the newest point of so many days.
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// Keep the newest point of so many weeks, Monday to Sunday.
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// Keep the newest point of so many months.
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// Keep the newest point of so many years.
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<u32>,
}

/// By which calendar they count, and from which age.
#[derive(Debug, Clone, ClapArgs)]
pub struct Counting {
    /// The time zone whose hours and days are counted.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub time_zone: String,
    /// Keep what is younger than so many hours.
    #[arg(long, value_name = "HOURS", default_value_t = 0)]
    pub minimum_age_hours: u32,
}

#[derive(Debug, ClapArgs)]
pub struct PruneArgs {
    /// The machine's name or id.
    pub vm: String,
    /// Only in this repository. Left out: in each, judged by itself.
    #[arg(long)]
    pub repo: Option<String>,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub counting: Counting,
    /// Delete what the plan of this id says, or nothing when it would be something else by now.
    #[arg(long, value_name = "ID", conflicts_with = "dry_run")]
    pub plan: Option<String>,
    /// Only show the plan.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Debug, Subcommand)]
pub enum RetentionCommand {
    /// Play rules ahead: points kept, points that these need, and the space of both. Needs no hub.
    Simulate(SimulateArgs),
}

#[derive(Debug, ClapArgs)]
pub struct SimulateArgs {
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub counting: Counting,
    /// A point every so often: 30m, 6h, 1d.
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = every)]
    pub every: u32,
    /// A full begins a new chain after so many points. Left out: incrementals for ever.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub full_every: Option<u32>,
    /// The newest point of a longer chain is made a full; 0 for never.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub chain_points: u32,
    /// What a full takes.
    #[arg(long, value_name = "SIZE")]
    pub full: bytesize::ByteSize,
    /// What an incremental takes.
    #[arg(long, value_name = "SIZE")]
    pub incremental: bytesize::ByteSize,
    /// How far ahead.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub years: u32,
    /// Show every point of the last day too, and why it stays.
    #[arg(long)]
    pub points: bool,
}

/// Seconds, from a minute to some years.
pub(super) fn every(text: &str) -> Result<u32, String> {
    let usage = || "write a number with m, h or d: 30m, 6h, 1d".to_owned();
    let unit_seconds = match text.chars().last() {
        Some('m') => 60_u32,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(usage()),
    };
    let number: u32 = text.get(..text.len() - 1).and_then(|digits| digits.parse().ok()).ok_or_else(usage)?;
    number.checked_mul(unit_seconds).filter(|seconds| *seconds > 0).ok_or_else(usage)
}
