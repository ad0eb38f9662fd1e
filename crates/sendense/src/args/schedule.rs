//! Words of `policy` and `schedule`.

use super::retention::{Counting, every};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use sendense_api::{Day, PolicyOrder};
use sendense_types::{Compression, ExecutionId, OnTrackingLoss, Tag};

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Make a policy: which machines are protected, and how.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        rules: PolicyArgs,
    },
    /// Let a policy say something else. All of it is said anew.
    Update {
        /// Its name or id.
        policy: String,
        /// Another name.
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        #[command(flatten)]
        rules: PolicyArgs,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Show what such a policy would do now: machines, their next backups, what retention would delete.
    Plan {
        /// As a change of this policy: which machines it would not mean any more.
        #[arg(long, value_name = "POLICY")]
        policy: Option<String>,
        #[command(flatten)]
        rules: PolicyArgs,
    },
    /// Let the hub have the policies and schedules that a file says (TOML or JSON; the bodies of the API). Shows the difference and
    /// asks first. What the file does not name is left alone.
    Apply {
        /// The file; `-` for stdin.
        #[arg(long, short, value_name = "FILE")]
        file: std::path::PathBuf,
        /// Only show the difference.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// List policies.
    List,
    /// Show a policy, and what it would do now.
    Show {
        /// Its name or id.
        policy: String,
    },
    /// Delete the points that a policy's retention keeps no more. Shows the plan and asks first.
    Prune {
        /// Its name or id.
        policy: String,
        /// Only show the plan.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Forget a policy. Shows what becomes of its machines and points, and asks first.
    Delete {
        /// Its name or id.
        policy: String,
        /// Only show what becomes of them.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Clone, ClapArgs)]
pub struct PolicyArgs {
    /// Machines whose name matches; `*` stands for any characters, `?` for one. May be said several times.
    #[arg(long = "vm", value_name = "PATTERN", required_unless_present_any = ["tags", "folders"])]
    pub vms: Vec<String>,
    /// Only machines that bear this tag (`vm tag`). Said several times: one of these.
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<Tag>,
    /// Only machines in this folder of their source's inventory, or in folders of it: DC/vm/production. Said several times: in
    /// one of these.
    #[arg(long = "folder", value_name = "FOLDER")]
    pub folders: Vec<String>,
    /// But not those whose name matches.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// But not those that bear this tag.
    #[arg(long = "exclude-tag", value_name = "TAG")]
    pub exclude_tags: Vec<Tag>,
    /// But not those in this folder, or in folders of it.
    #[arg(long = "exclude-folder", value_name = "FOLDER")]
    pub exclude_folders: Vec<String>,
    /// Only machines of this source. May be said several times.
    #[arg(long = "source", value_name = "NAME")]
    pub sources: Vec<String>,
    /// Where points go.
    #[arg(long)]
    pub repo: String,
    /// A full after so many points of a machine; 1 for fulls alone. Left out: incrementals for ever.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub full_every: Option<u32>,
    /// Ask the guests to bring their file systems into order first.
    #[arg(long)]
    pub quiesce: bool,
    /// The same, and let a backup fail whose guest cannot do it rather than take a point as after a power cut.
    #[arg(long)]
    pub quiesce_or_fail: bool,
    /// How hard to compress: off, fast, default, high. Left out: as the repository says.
    #[arg(long)]
    pub compression: Option<Compression>,
    /// What to do when changes cannot be told: compare, full, fail.
    #[arg(long)]
    pub on_tracking_loss: Option<OnTrackingLoss>,
    /// End a backup that has taken so long, whatever it has reached. Left out: as long as it gets on.
    #[arg(long = "time-limit", value_name = "90m|6h|2d", value_parser = super::backup::seconds)]
    pub time_limit_seconds: Option<u32>,
    /// The most that each backup reads from its machine in a second (`50MB`, `400Mbit`). Left out: as much as comes.
    #[arg(long, value_name = "RATE", value_parser = super::node::rate)]
    pub bandwidth: Option<u64>,
    /// How many of its machines are backed up at once. Left out: as many as hub, sources and repository bear.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub at_once: Option<u32>,
    /// Whose turn comes first: by name, as the patterns are listed, the largest, those with the oldest points.
    #[arg(long, value_name = "name|listed|largest-first|oldest-first", value_parser = order)]
    pub order: Option<PolicyOrder>,
    /// Points of a chain after which its newest is made a full, 2 to 256, which is as late as can be. Left out: as the hub says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=256))]
    pub chain_points_max: Option<u32>,
    /// Verify its points at rest so many days after anybody looked at them; 0 for never. Left out: as the hub says.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=3650))]
    pub verify_at_rest: Option<u32>,
    /// Decode every block of its points so many days after that was done; 0 for never. Left out: as the hub says.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=3650))]
    pub verify_deep: Option<u32>,
    /// Run this program of the hub's `--hooks-dir` before each backup; when it fails, the backup does.
    #[arg(long, value_name = "NAME")]
    pub before: Option<String>,
    /// Run this one when the backup has ended, however it did.
    #[arg(long, value_name = "NAME")]
    pub after: Option<String>,
    /// How long each may run. Left out: 600.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub hook_timeout: Option<u32>,
    /// Keep so many of the newest points. Without any `--keep-…` every point stays.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_last: u32,
    /// Keep the newest point of so many hours.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_hourly: u32,
    /// Keep the newest point of so many days.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_daily: u32,
    /// Keep the newest point of so many weeks, Monday to Sunday.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_weekly: u32,
    /// Keep the newest point of so many months.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_monthly: u32,
    /// Keep the newest point of so many years.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_yearly: u32,
    #[command(flatten)]
    pub counting: Counting,
}

#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// Make a schedule: when a policy is carried out.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        rules: ScheduleArgs,
        /// Begin nothing before it is enabled.
        #[arg(long)]
        disabled: bool,
    },
    /// Let a schedule say something else. All of it is said anew.
    Update {
        /// Its name or id.
        schedule: String,
        /// Another name.
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        #[command(flatten)]
        rules: ScheduleArgs,
    },
    /// List schedules.
    List,
    /// Show a schedule.
    Show {
        /// Its name or id.
        schedule: String,
    },
    /// Show when it will begin.
    Preview {
        /// Its name or id.
        schedule: String,
        /// How many days ahead.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=366))]
        days: u32,
    },
    /// Let it begin by itself again. What was due meanwhile is not caught up with.
    Enable {
        /// Its name or id.
        schedule: String,
    },
    /// Let nothing begin by itself.
    Disable {
        /// Its name or id.
        schedule: String,
    },
    /// Carry it out now.
    Trigger {
        /// Its name or id.
        schedule: String,
    },
    /// List what was carried out, newest first.
    Executions {
        /// Its name or id.
        schedule: String,
        /// How many at most.
        #[arg(long, default_value_t = 30)]
        limit: u32,
    },
    /// Show what became of each machine in an execution.
    Execution {
        /// Its id.
        execution_id: ExecutionId,
    },
    /// Forget a schedule with its executions. Points stay.
    Delete {
        /// Its name or id.
        schedule: String,
    },
}

#[derive(Debug, Clone, ClapArgs)]
#[command(group = clap::ArgGroup::new("when").required(true))]
pub struct ScheduleArgs {
    /// What is carried out.
    #[arg(long)]
    pub policy: String,
    /// Minute, hour, day of month, month, day of week: "30 22 * * MON-FRI".
    #[arg(long, value_name = "EXPRESSION", group = "when")]
    pub cron: Option<String>,
    /// Every so often, whatever clocks show: 30m, 6h, 1d.
    #[arg(long, value_name = "TIME", value_parser = every, group = "when")]
    pub every: Option<u32>,
    /// The time zone whose clock counts.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub time_zone: String,
    /// Put each beginning off by up to so many minutes, so that not all begin at once.
    #[arg(long, value_name = "MINUTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=60))]
    pub jitter_minutes: u32,
    /// What becomes of what no hub was there to begin.
    #[arg(long, value_enum, default_value_t = Missed::Once)]
    pub missed: Missed,
    /// When backups may begin: 22:00-06:00. What has not begun when it closes is left out.
    #[arg(long, value_name = "FROM-UNTIL", value_parser = hours)]
    pub window: Option<(String, String)>,
    /// Days on which the window opens: mon,tue,…
    #[arg(long, value_name = "DAYS", value_enum, value_delimiter = ',', requires = "window")]
    pub window_days: Vec<WeekDay>,
    /// Stop what runs when the window closes, too.
    #[arg(long, requires = "window")]
    pub window_stops: bool,
}

/// What becomes of what was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Missed {
    /// It is run once, as soon as it may be.
    Once,
    /// It is left out.
    Skip,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeekDay {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl WeekDay {
    /// The day in the API's words.
    pub const fn told(self) -> Day {
        match self {
            Self::Mon => Day::Monday,
            Self::Tue => Day::Tuesday,
            Self::Wed => Day::Wednesday,
            Self::Thu => Day::Thursday,
            Self::Fri => Day::Friday,
            Self::Sat => Day::Saturday,
            Self::Sun => Day::Sunday,
        }
    }
}

/// Reads `22:00-06:00`.
pub(super) fn hours(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('-').ok_or("write FROM-UNTIL: 22:00-06:00")?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

fn order(text: &str) -> Result<PolicyOrder, String> {
    match text {
        "name" => Ok(PolicyOrder::Name),
        "listed" => Ok(PolicyOrder::Listed),
        "largest-first" => Ok(PolicyOrder::LargestFirst),
        "oldest-first" => Ok(PolicyOrder::OldestFirst),
        _ => Err("one of name, listed, largest-first, oldest-first".to_owned()),
    }
}
