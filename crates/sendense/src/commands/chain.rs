//! `sendense chain`.

use super::backup::{LOOK_FIRST, confirmed};
use crate::args::ChainCommand;
use crate::context::Context;
use crate::output::{json, line, say, verdict};
use crate::progress;
use anyhow::Result;
use sendense_api::reply::{ConsolidationReply, TaskReply};
use sendense_api::{ConsolidateQuery, Consolidation};

/// Runs the command.
pub async fn run(context: &Context, command: ChainCommand) -> Result<u8> {
    let client = &context.client;
    let ChainCommand::Consolidate { vm, disk, repo, keep, full, dry_run, yes, no_wait } = command;
    let how = ConsolidateQuery { disk_id: disk, repository_id: repo, keep, full, dry_run: true };
    if dry_run || !yes {
        let plan = client.consolidate_chain(&vm, &how).await?;
        let is_nothing = plan.going.is_empty() && plan.full_backup_id.is_none();
        if dry_run || is_nothing {
            if context.json {
                json(&ConsolidationReply::new(plan))?;
            } else {
                say(words(&plan));
            }
            return Ok(0);
        }
        if !confirmed(&format!("{}?", words(&plan)), LOOK_FIRST)? {
            say("nothing was changed");
            return Ok(0);
        }
    }
    let begun = client.consolidate_chain(&vm, &ConsolidateQuery { dry_run: false, ..how }).await?;
    let Some(task_id) = begun.task_id.clone().filter(|_| !no_wait) else {
        if context.json {
            json(&ConsolidationReply::new(begun))?;
        } else {
            line(begun.task_id.as_ref().map_or_else(|| words(&begun), ToString::to_string));
        }
        return Ok(0);
    };
    match progress::wait_completed(client, &task_id, &format!("consolidation of {vm}")).await? {
        Err(code) => return Ok(code),
        Ok(task) if context.json => json(&TaskReply::new(*task))?,
        Ok(task) => verdict("ok", task.summary.unwrap_or_default()),
    }
    Ok(0)
}

/// What is to be done, in a line.
fn words(plan: &Consolidation) -> String {
    let of = format!("the chain of disk {} of {} has {} points", plan.disk_id, plan.vm_name, plan.backup_count);
    let held = match plan.held.len() {
        0 => String::new(),
        count => format!("; {count} older ones are protected or held and stay"),
    };
    match (&plan.full_backup_id, plan.going.as_slice()) {
        (Some(full), _) => format!("{of}: make {full} a full, with which a chain begins"),
        (None, []) => format!("{of}: nothing is to be done{held}"),
        (None, going) => {
            let names: Vec<&str> = going.iter().map(|id| id.as_str()).collect();
            format!("{of}: merge {} of them into their successors ({}){held}", going.len(), names.join(", "))
        }
    }
}
