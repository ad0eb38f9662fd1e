//! `sendense chain`.

use super::backup::{LOOK_FIRST, confirmed};
use crate::args::ChainCommand;
use crate::context::Context;
use crate::output::{bytes, json, line, say, verdict};
use crate::progress;
use anyhow::Result;
use sendense_api::reply::{ChainMoveReply, ConsolidationReply, TaskReply};
use sendense_api::{ChainMove, ConsolidateQuery, Consolidation, MoveQuery, MoveVm};

/// What is done once the plan is there.
struct Go {
    dry_run: bool,
    yes: bool,
    no_wait: bool,
}

/// Runs the command.
pub async fn run(context: &Context, command: ChainCommand) -> Result<u8> {
    match command {
        ChainCommand::Consolidate { vm, disk, repo, keep, full, dry_run, yes, no_wait } => {
            let how = ConsolidateQuery { disk_id: disk, repository_id: repo, keep, full, dry_run: true };
            consolidate(context, &vm, how, Go { dry_run, yes, no_wait }).await
        }
        ChainCommand::Move { vm, to, repo, leave_policies, bandwidth, dry_run, yes, no_wait } => {
            let (to_repository_id, repository_id, bytes_per_second_max) = (to, repo, bandwidth);
            let request = MoveVm { to_repository_id, repository_id, leave_policies, bytes_per_second_max };
            move_all(context, &vm, request, Go { dry_run, yes, no_wait }).await
        }
    }
}

async fn move_all(context: &Context, vm: &str, request: MoveVm, go: Go) -> Result<u8> {
    let client = &context.client;
    if go.dry_run || !go.yes {
        let plan = client.move_chain(vm, &request, &MoveQuery { dry_run: true }).await?;
        if go.dry_run {
            if context.json {
                json(&ChainMoveReply::new(plan))?;
            } else {
                plan.backups
                    .iter()
                    .for_each(|point| line(format!("{}  {}", point.backup_id, bytes(point.bytes_stored))));
                say(what_moves(&plan, &request));
            }
            return Ok(0);
        }
        if !confirmed(&format!("{}. Go on?", what_moves(&plan, &request)), LOOK_FIRST)? {
            say("nothing was changed");
            return Ok(0);
        }
    }
    let begun = client.move_chain(vm, &request, &MoveQuery { dry_run: false }).await?;
    let Some(task_id) = begun.task_id.clone().filter(|_| !go.no_wait) else {
        if context.json {
            json(&ChainMoveReply::new(begun))?;
        } else {
            line(begun.task_id.as_ref().map_or_else(|| what_moves(&begun, &request), ToString::to_string));
        }
        return Ok(0);
    };
    match progress::wait_completed(client, &task_id, &format!("move of {vm}")).await? {
        Err(code) => return Ok(code),
        Ok(task) if context.json => json(&TaskReply::new(*task))?,
        Ok(task) => verdict("ok", task.summary.unwrap_or_default()),
    }
    Ok(0)
}

/// What moves, and what will not, in a line.
fn what_moves(plan: &ChainMove, request: &MoveVm) -> String {
    let (points, to) = (plan.backups.len(), &request.to_repository_id);
    let (needed, left) = (bytes(plan.needed_bytes), bytes(plan.available_bytes));
    let policies = match plan.policies.as_slice() {
        [] => String::new(),
        names => format!("; policy {} goes on in another repository, with a full", names.join(", ")),
    };
    format!(
        "move all {points} points of {} to {to}: {needed} are needed there, {left} are left{policies}",
        plan.vm_name
    )
}

async fn consolidate(context: &Context, vm: &str, how: ConsolidateQuery, go: Go) -> Result<u8> {
    let client = &context.client;
    let Go { dry_run, yes, no_wait } = go;
    if dry_run || !yes {
        let plan = client.consolidate_chain(vm, &how).await?;
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
    let begun = client.consolidate_chain(vm, &ConsolidateQuery { dry_run: false, ..how }).await?;
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
        count => format!("; {count} older ones stay: protected, held, or the newest of another disk"),
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
