//! `sendense retention`: what rules come to. Worked out here, without a hub.

use crate::args::{RetentionCommand, SimulateArgs};
use crate::output::{bytes, json, moment, say, table as show};
use crate::tables::Table;
use anyhow::{Result, bail};
use sendense_repo::retention::{Growth, Keep, Policy, Simulation, Standing, simulate, time_zone};
use sendense_types::{Clock, SystemClock};
use serde_json::json as value;

/// Days from line to line: a month, or a year in a play of more than three.
const fn days_between_lines(years: u32) -> usize {
    if years > 3 { 365 } else { 30 }
}

/// Runs the command.
pub fn run(command: RetentionCommand, as_json: bool) -> Result<u8> {
    match command {
        RetentionCommand::Simulate(args) => simulated(&args, as_json),
    }
}

fn simulated(args: &SimulateArgs, as_json: bool) -> Result<u8> {
    let keeping = args.keeping;
    let keep = Keep {
        last: keeping.keep_last.unwrap_or(0),
        hourly: keeping.keep_hourly.unwrap_or(0),
        daily: keeping.keep_daily.unwrap_or(0),
        weekly: keeping.keep_weekly.unwrap_or(0),
        monthly: keeping.keep_monthly.unwrap_or(0),
        yearly: keeping.keep_yearly.unwrap_or(0),
    };
    let minimum_age_seconds = u64::from(args.counting.minimum_age_hours) * 3600;
    let policy = Policy::new(keep, time_zone(&args.counting.time_zone)?, minimum_age_seconds)?;
    let growth = Growth {
        begins_at: SystemClock.now(),
        every_seconds: args.every,
        full_every: args.full_every,
        chain_points_max: args.chain_points,
        full_bytes: args.full.as_u64(),
        incremental_bytes: args.incremental.as_u64(),
    };
    let played = simulate(&policy, &growth, args.years * 365)?;
    let (Some(last), Some(peak)) = (played.days.last().copied(), played.peak) else {
        bail!("no day was played");
    };
    let lines = lines(&played, days_between_lines(args.years), last);
    if as_json {
        let points: Vec<_> = played
            .points
            .iter()
            .map(|(at, fate)| value!({"completed_at": at, "reason": fate.to_string()}))
            .filter(|_| args.points)
            .collect();
        json(&value!({
            "success": true, "standings": lines.iter().map(told).collect::<Vec<_>>(),
            "peak": told(&peak), "points": points,
        }))?;
        return Ok(0);
    }
    if args.points {
        let mut table = Table::new(&["COMPLETED", "WHY"], &[]);
        for (at, fate) in &played.points {
            table.row([moment(*at), fate.to_string()]);
        }
        show(table);
    }
    let mut table = Table::new(&["DAY", "KEPT", "NEEDED", "POINTS", "SIZE"], &[1, 2, 3, 4]);
    for standing in &lines {
        table.row([
            moment(standing.at).chars().take("2027-01-31".len()).collect(),
            standing.kept.to_string(),
            standing.needed.to_string(),
            (standing.kept + standing.needed).to_string(),
            bytes(standing.bytes),
        ]);
    }
    show(table);
    say(format!("at most {}, on {}", bytes(peak.bytes), moment(peak.at)));
    if last.needed > last.kept {
        say("most points are there only because others stand on them; without --full-every they are merged");
    }
    if args.full_every.is_none() || args.chain_points > 0 {
        say(
            "of points that are merged: as much as both, a full at most; while a merge works, it needs room for what it makes beside that",
        );
    }
    Ok(0)
}

/// Every so many days, and the last.
fn lines(played: &Simulation, every: usize, last: Standing) -> Vec<Standing> {
    let mut lines: Vec<Standing> = played.days.iter().skip(every - 1).step_by(every).copied().collect();
    if lines.last() != Some(&last) {
        lines.push(last);
    }
    lines
}

fn told(standing: &Standing) -> serde_json::Value {
    value!({
        "at": standing.at, "kept": standing.kept, "needed": standing.needed, "bytes_stored": standing.bytes,
    })
}
