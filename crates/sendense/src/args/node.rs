//! `sendense node`.

use super::schedule::{WeekDay, hours};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use sendense_api::LimitWindow;
use std::path::PathBuf;

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
    #[command(flatten)]
    pub run: NodeRun,
}

/// How a node runs.
#[derive(Debug, ClapArgs)]
pub struct NodeRun {
    #[command(flatten)]
    pub place: NodePlace,
    /// The hub's address, where it is another one than at the enrolment. The hub must be the same.
    #[arg(long, value_name = "URL")]
    pub hub: Option<String>,
    /// What the node must be called: refuses to run as another one.
    #[arg(long)]
    pub name: Option<String>,
    /// Folder that sources on this machine may lie in. Repeatable; without it none may.
    #[arg(long = "allow-path", value_name = "DIR")]
    pub allow_paths: Vec<PathBuf>,
    /// What blocks may take of the link, per second: 100Mbit, or 12MB in bytes. The hub may say less (`node limit`).
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub bandwidth: Option<u64>,
    /// Log as JSON lines.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a code that lets a node in, once, within a quarter of an hour.
    Pair {
        /// What the node will be called.
        #[arg(long)]
        name: String,
    },
    /// List nodes.
    List,
    /// Limit what a node's blocks take of its line, by the time of day. Replaces what was said before.
    Limit {
        /// Its name or id.
        node: String,
        /// Outside of all windows, per second: 50Mbit, or 6MB in bytes. Default: as much as there is.
        #[arg(long, value_name = "RATE", value_parser = rate)]
        bandwidth: Option<u64>,
        /// Hours with a limit of their own: "mon-fri 08:00-18:00=20Mbit", "22:00-06:00=unlimited". Repeatable; of those that
        /// overlap the first one counts.
        #[arg(long = "window", value_name = "WINDOW", value_parser = limit_window)]
        windows: Vec<LimitWindow>,
        /// The time zone whose clock counts.
        #[arg(long, value_name = "ZONE", default_value = "UTC")]
        time_zone: String,
        /// Lift the limit.
        #[arg(long, conflicts_with_all = ["bandwidth", "windows", "time_zone"], required_unless_present_any = ["bandwidth", "windows"])]
        none: bool,
    },
    /// Revoke a node. Whatever it does is refused from that moment on.
    Revoke {
        /// Its name or id.
        node: String,
    },
    /// Make this machine a node: shows the hub's certificate and asks, unless --fingerprint or --ca-file tells it.
    Enrol {
        /// The hub's address: `https://HOST:8082`.
        #[arg(long, value_name = "URL")]
        hub: String,
        /// The code from `sendense node pair`.
        #[arg(long, env = "SENDENSE_PAIRING_CODE", hide_env_values = true)]
        code: String,
        /// HTTP proxy on the way to the hub. Default: what `HTTPS_PROXY` says.
        #[arg(long, value_name = "URL")]
        proxy: Option<String>,
        #[command(flatten)]
        place: NodePlace,
    },
    /// Ask the hub whether it knows this node.
    Check(NodePlace),
    /// Look whether this machine can read and write vSphere's disks, and say what to do where it cannot. Asks no hub.
    Doctor {
        /// The folder vmware-vix-disklib-distrib. Default: where nbdkit's plugin looks.
        #[arg(long, value_name = "DIR")]
        vddk_libdir: Option<PathBuf>,
        /// nbdkit's vddk plugin as a file, where nbdkit does not find it by its name.
        #[arg(long, value_name = "FILE")]
        nbdkit_plugin: Option<PathBuf>,
        /// The transport modes that are wanted, joined by colons. Default: nbdssl.
        #[arg(long, value_name = "MODES")]
        transports: Option<String>,
    },
    /// Take the hub's new certificate, after it was renewed. Asks like `enrol`.
    Trust(NodePlace),
}

/// Where a node keeps what it is.
#[derive(Debug, ClapArgs)]
pub struct NodePlace {
    /// Folder for the node's key and certificate. Made when missing.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sendense-node")]
    pub data_dir: PathBuf,
}

/// Bytes per second as people say them: in bits (`50Mbit`) as lines are sold, or in bytes (`6MB`).
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let Some(bits) = text.strip_suffix("bit") else {
        return text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
    };
    let (number, unit) = match bits.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&bits[..at], 1_000),
        Some((at, 'M')) => (&bits[..at], 1_000_000),
        Some((at, 'G')) => (&bits[..at], 1_000_000_000),
        _ => (bits, 1),
    };
    let number: u64 = number.trim().parse().map_err(|_| format!("{text:?} is no rate; write 50Mbit or 6MB"))?;
    number.checked_mul(unit).map(|bits| bits / 8).ok_or_else(|| format!("{text:?} is more than there is"))
}

/// Reads `mon-fri 08:00-18:00=20Mbit`; without days it is every day. Whether the hours make sense the hub says.
fn limit_window(text: &str) -> Result<LimitWindow, String> {
    let (when, limit) = text.split_once('=').ok_or("write it as \"mon-fri 08:00-18:00=20Mbit\"")?;
    let when: Vec<&str> = when.split_whitespace().collect();
    let (days, span) = match when[..] {
        [span] => (Vec::new(), span),
        [days, span] => (week_days(days)?, span),
        _ => return Err("write days and hours as \"mon-fri 08:00-18:00\"".to_owned()),
    };
    let (from, until) = hours(span)?;
    let bytes_per_second = if limit == "unlimited" { None } else { Some(rate(limit)?) };
    Ok(LimitWindow { from, until, days: days.into_iter().map(WeekDay::told).collect(), bytes_per_second })
}

/// Reads `mon-fri,sun`.
fn week_days(text: &str) -> Result<Vec<WeekDay>, String> {
    let all = WeekDay::value_variants();
    let number = |word: &str| {
        let day = WeekDay::from_str(word, true).map_err(|_| format!("{word:?} is no day; write mon, tue, …"))?;
        Ok::<_, String>(all.iter().position(|known| *known == day).unwrap_or_default())
    };
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        // `sat-mon` goes over the week's end.
        let count = (last + all.len() - first) % all.len() + 1;
        days.extend(all.iter().cycle().skip(first).take(count));
    }
    Ok(days)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_api::Day;

    #[test]
    fn rates_are_read_in_bits_and_in_bytes() {
        let read = |text| rate(text).ok();
        assert_eq!(["50Mbit", "64kbit", "1Gbit", "800bit"].map(read), [6_250_000, 8000, 125_000_000, 100].map(Some));
        assert_eq!(["12MB", "1 MiB", "9000"].map(read), [12_000_000, 1 << 20, 9000].map(Some));
        assert_eq!(
            ["", "bit", "Mbit", "1.5Mbit", "-1Mbit", "fast", "99999999999999999999Gbit", "36893488147Gbit"].map(read),
            [None; 8]
        );
    }

    #[test]
    fn windows_are_read_as_people_write_them() {
        let window = limit_window("fri-sun,wed 22:00-06:00=16Mbit").unwrap();
        assert_eq!(window.days, [Day::Friday, Day::Saturday, Day::Sunday, Day::Wednesday]);
        assert_eq!((window.from.as_str(), window.until.as_str()), ("22:00", "06:00"));
        assert_eq!(window.bytes_per_second, Some(2_000_000));
        assert_eq!(
            limit_window("sat-mon 00:00-12:00=unlimited").unwrap().days,
            [Day::Saturday, Day::Sunday, Day::Monday]
        );
        let every = limit_window("08:00-18:00=unlimited").unwrap();
        assert_eq!((every.days, every.bytes_per_second), (vec![], None));
        for wrong in [
            "",
            "08:00-18:00",
            "someday 08:00-18:00=2MB",
            "mon 08:00=2MB",
            "mon 08:00-18:00=fast",
            "a b c=1MB",
            "mon,=1MB",
            "=1MB",
        ] {
            assert!(limit_window(wrong).is_err(), "{wrong}");
        }
    }
}
