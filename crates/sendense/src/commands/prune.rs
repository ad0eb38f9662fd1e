//! `sendense prune`.

use super::backup::{LOOK_FIRST, confirmed};
use crate::args::PruneArgs;
use crate::context::Context;
use crate::output::{bytes, json, say, table as show};
use crate::tables;
use anyhow::Result;
use sendense_api::reply::PruneReply;
use sendense_api::{Prune, PruneQuery, PruneVm};

/// Runs the command.
pub async fn run(context: &Context, args: PruneArgs) -> Result<u8> {
    let client = &context.client;
    let request = PruneVm {
        policy_id: None,
        repository_id: args.repo,
        keep_last: args.keeping.keep_last.unwrap_or(0),
        keep_hourly: args.keeping.keep_hourly.unwrap_or(0),
        keep_daily: args.keeping.keep_daily.unwrap_or(0),
        keep_weekly: args.keeping.keep_weekly.unwrap_or(0),
        keep_monthly: args.keeping.keep_monthly.unwrap_or(0),
        keep_yearly: args.keeping.keep_yearly.unwrap_or(0),
        time_zone: Some(args.counting.time_zone),
        minimum_age_seconds: u64::from(args.counting.minimum_age_hours) * 3600,
    };
    // What a person said yes to is what goes, or nothing does.
    let mut seen = args.plan.clone();
    if args.dry_run || !args.yes {
        let how = PruneQuery { dry_run: true, plan_id: args.plan };
        let plan = client.prune_vm(&args.vm, &request, &how).await?;
        if args.dry_run || plan.deleted == 0 {
            print(context, plan)?;
            return Ok(0);
        }
        eprintln!("{}", tables::prune(&plan));
        if !confirmed(&format!("delete {} points, {}?", plan.deleted, bytes(plan.freed_bytes)), LOOK_FIRST)? {
            say("nothing was deleted");
            return Ok(0);
        }
        seen = Some(plan.plan_id);
    }
    let how = PruneQuery { dry_run: false, plan_id: seen };
    let done = client.prune_vm(&args.vm, &request, &how).await?;
    print(context, done)?;
    Ok(0)
}

fn print(context: &Context, prune: Prune) -> Result<()> {
    if context.json {
        return json(&PruneReply::new(prune));
    }
    show(tables::prune(&prune));
    let verb = if prune.dry_run { "would delete" } else { "deleted" };
    say(format!("{verb} {} points, {}; {} stay", prune.deleted, bytes(prune.freed_bytes), prune.kept));
    if prune.dry_run && prune.deleted > 0 {
        say(format!("to do just this, say --plan {}", prune.plan_id));
    }
    Ok(())
}
