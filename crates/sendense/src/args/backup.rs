//! What `sendense backup` takes.

use super::key_value;
use clap::{Args as ClapArgs, Subcommand};
use sendense_types::{BackupId, BackupType, Compression, OnTrackingLoss, Timestamp};

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Start a backup.
    Start(BackupStart),
    /// List backups, newest first.
    List {
        /// Only of this machine.
        #[arg(long)]
        vm: Option<String>,
        /// Only in this repository.
        #[arg(long)]
        repo: Option<String>,
        /// Only in this state.
        #[arg(long)]
        status: Option<sendense_types::BackupStatus>,
        /// How many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one backup.
    Show {
        /// Its id.
        backup_id: BackupId,
    },
    /// Show the chain of a disk, oldest first.
    Chain {
        /// The machine's name or id.
        vm: String,
        /// The disk's number.
        #[arg(long, default_value_t = 0)]
        disk: u32,
        /// The repository, when the machine has chains in several.
        #[arg(long)]
        repo: Option<String>,
    },
    /// Check what is stored against its digests.
    Verify {
        /// Its id.
        backup_id: BackupId,
        /// Decode every block too.
        #[arg(long)]
        deep: bool,
        /// Leave out the points that it builds on.
        #[arg(long)]
        own_files_only: bool,
        /// Start it and return at once.
        #[arg(long)]
        no_wait: bool,
    },
    /// Protect a backup: nothing deletes it until it is unprotected.
    Protect {
        /// Its id.
        backup_id: BackupId,
    },
    /// Let a protected backup go. A date until which it is held stays.
    Unprotect {
        /// Its id.
        backup_id: BackupId,
    },
    /// Hold a backup until a date: nothing deletes it before.
    #[command(group = clap::ArgGroup::new("how").required(true))]
    Hold {
        /// Its id.
        backup_id: BackupId,
        /// Until when: 2027-01-31 (the beginning of that day in UTC) or 2027-01-31T18:00:00+01:00.
        #[arg(long, value_name = "DATE", value_parser = date, group = "how")]
        until: Option<Timestamp>,
        /// Let it go now. Protection stays.
        #[arg(long, group = "how")]
        release: bool,
    },
    /// Delete a backup. Shows the plan and asks first.
    Delete {
        /// Its id.
        backup_id: BackupId,
        /// Take the later points along that need it.
        #[arg(long)]
        cascade: bool,
        /// Only show the plan.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Merge a backup into the one that stands on it: it goes although a later one needs its data. Shows the plan and asks first.
    Merge {
        /// Its id.
        backup_id: BackupId,
        /// Only show the plan.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Start it and return at once.
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop a running backup.
    Cancel {
        /// Its id.
        backup_id: BackupId,
    },
    /// Print a backup's log.
    Log {
        /// Its id.
        backup_id: BackupId,
    },
}

/// A date means its beginning in UTC.
fn date(text: &str) -> Result<Timestamp, String> {
    let whole_day = text.len() == "2027-01-31".len();
    let moment = if whole_day { format!("{text}T00:00:00Z") } else { text.to_owned() };
    moment.parse().map_err(|error| format!("{error}; write 2027-01-31 or 2027-01-31T18:00:00+01:00"))
}

#[derive(Debug, ClapArgs)]
pub struct BackupStart {
    /// The machine's name or id.
    pub vm: String,
    /// The repository's name or id.
    #[arg(long)]
    pub repo: String,
    /// What to make. An incremental without a usable parent becomes a full.
    #[arg(long = "type", default_value = "incremental", value_name = "full|incremental")]
    pub backup_type: BackupType,
    /// Only this disk.
    #[arg(long)]
    pub disk: Option<u32>,
    /// All disks but this one (number, key or label). Repeatable.
    #[arg(long, conflicts_with = "disk", value_name = "DISK")]
    pub exclude_disk: Vec<String>,
    /// How hard to compress.
    #[arg(long, value_name = "off|fast|default|high")]
    pub compression: Option<Compression>,
    /// What to do when change tracking is lost.
    #[arg(long, value_name = "compare|full|fail")]
    pub on_tracking_loss: Option<OnTrackingLoss>,
    /// End it when it has taken so long, whatever it has reached.
    #[arg(long = "time-limit", value_name = "90m|6h|2d", value_parser = seconds)]
    pub time_limit_seconds: Option<u32>,
    /// The most that it reads from the machine in a second (`50MB`, `400Mbit`). Left out: as much as comes.
    #[arg(long, value_name = "RATE", value_parser = super::node::rate)]
    pub bandwidth: Option<u64>,
    /// Ask the guest to bring its file systems into order first.
    #[arg(long)]
    pub quiesce: bool,
    /// The same, and fail where it cannot be done rather than take a point as after a power cut.
    #[arg(long)]
    pub quiesce_or_fail: bool,
    /// A word for later (`key=value`). Repeatable.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    pub tags: Vec<(String, String)>,
    /// Wait for the end and show progress.
    #[arg(long)]
    pub wait: bool,
}

/// A span of time in whole seconds: `90s`, `90m`, `6h`, `2d`.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("write a number and s, m, h or d, as in 90m".into()),
    };
    let seconds =
        digits.parse::<u32>().ok().and_then(|number| number.checked_mul(factor)).filter(|seconds| *seconds > 0);
    seconds.ok_or_else(|| "write a number from 1 up that a year can hold".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_read() {
        assert_eq!(["90s", "90m", "6h", "2d"].map(seconds), [Ok(90), Ok(5400), Ok(21_600), Ok(172_800)]);
        for wrong in ["", "6", "h", "0h", "-1h", "6 h", "1w", "99999999999s", "99999d9"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }
}
