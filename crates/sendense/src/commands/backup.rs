//! `sendense backup`.

use super::task::print_log;
use crate::args::{BackupCommand, BackupStart};
use crate::context::Context;
use crate::output::{bytes, duration, json, line, say, table as show, verdict};
use crate::plain::plain;
use crate::{progress, tables};
use anyhow::{Result, bail};
use sendense_api::reply::{BackupListReply, BackupReply, ChainReply, DeletionReply, MergeReply, TaskReply};
use sendense_api::{
    Backup, BackupFilter, ChainQuery, Client, CreateBackup, DeleteQuery, Deletion, Limit, ListQuery, MergeQuery,
    UpdateBackup, VerifyBackup,
};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::io::{BufRead, IsTerminal, Write};

/// Runs the command.
pub async fn run(context: &Context, command: BackupCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        BackupCommand::Start(start) => return self::start(context, start).await,
        BackupCommand::List { vm, repo, status, limit } => {
            let limit = Limit::try_from(limit).map_err(anyhow::Error::msg)?;
            let filter = BackupFilter { vm_name: vm, repository_id: repo, status, limit, ..BackupFilter::default() };
            let page = client.list_backups(&filter).await?;
            if context.json {
                json(&BackupListReply::from(page))?;
            } else {
                show(tables::backups(&page.items));
                if page.items.len() as u64 != page.total {
                    say(format!("{} of {} backups; more with --limit", page.items.len(), page.total));
                }
            }
        }
        BackupCommand::Show { backup_id } => {
            let backup = client.get_backup(&backup_id).await?;
            if context.json {
                json(&BackupReply::new(backup))?;
            } else {
                for table in tables::backup(&backup) {
                    show(table);
                }
            }
        }
        BackupCommand::Chain { vm, disk, repo } => {
            let chain = client.backup_chain(&chain_query(vm, disk, repo)).await?;
            if context.json {
                json(&ChainReply::from(chain))?;
            } else {
                show(tables::chain(&chain));
                say(format!("{} points, {}", chain.backup_count, bytes(chain.total_size_bytes)));
            }
        }
        BackupCommand::Verify { backup_id, deep, own_files_only, no_wait } => {
            let task = client.verify_backup(&backup_id, &VerifyBackup { deep, own_files_only }).await?;
            if no_wait {
                if context.json {
                    json(&TaskReply::new(task))?
                } else {
                    line(task.task_id.as_str())
                }
                return Ok(0);
            }
            match progress::wait_completed(client, &task.task_id, &format!("verification of {backup_id}")).await? {
                Err(code) => return Ok(code),
                Ok(task) if context.json => json(&TaskReply::new(*task))?,
                Ok(task) => verdict("ok", task.summary.unwrap_or_default()),
            }
        }
        BackupCommand::Merge { backup_id, dry_run, yes, no_wait } => {
            return merge(context, &backup_id, dry_run, yes, no_wait).await;
        }
        BackupCommand::Protect { backup_id } => {
            let change = UpdateBackup { protected: Some(true), hold_until: None };
            return hold(context, &backup_id, &change).await;
        }
        BackupCommand::Unprotect { backup_id } => {
            let change = UpdateBackup { protected: Some(false), hold_until: None };
            return hold(context, &backup_id, &change).await;
        }
        // Without a date it was asked to let go: the grammar takes one of the two.
        BackupCommand::Hold { backup_id, until, release: _ } => {
            let change = UpdateBackup { protected: None, hold_until: Some(until) };
            return hold(context, &backup_id, &change).await;
        }
        BackupCommand::Delete { backup_id, cascade, dry_run, yes } => {
            return delete(context, &backup_id, DeleteQuery { cascade, dry_run }, yes).await;
        }
        BackupCommand::Cancel { backup_id } => {
            let backup = client.cancel_backup(&backup_id).await?;
            if context.json {
                json(&BackupReply::new(backup))?
            } else {
                say(format!("asked backup {backup_id} to stop"))
            }
        }
        BackupCommand::Log { backup_id } => {
            let page = client.backup_log(&backup_id, &ListQuery::default()).await?;
            print_log(context, page)?;
        }
    }
    Ok(0)
}

async fn start(context: &Context, start: BackupStart) -> Result<u8> {
    let client = &context.client;
    let (vm_name, vm_context_id) = vm(client, start.vm.clone()).await?;
    let body = CreateBackup {
        vm_name,
        vm_context_id,
        repository_id: start.repo,
        backup_type: start.backup_type,
        disk_id: start.disk.map(DiskNumber),
        policy_id: None,
        tags: start.tags.into_iter().collect(),
        quiesce: start.quiesce,
        quiesce_or_fail: start.quiesce_or_fail,
        compression: start.compression,
        on_tracking_loss: start.on_tracking_loss,
        time_limit_seconds: start.time_limit_seconds,
        bytes_per_second_max: start.bandwidth,
        exclude_disks: start.exclude_disk,
    };
    let backup = client.create_backup(&body).await?;
    follow(context, backup, start.wait).await
}

/// Tells of a backup that was begun; waits for its end where that is wanted.
pub(super) async fn follow(context: &Context, backup: Backup, wait: bool) -> Result<u8> {
    let client = &context.client;
    let (backup_id, Some(task_id)) = (backup.backup_id.clone(), backup.task_id.clone()) else {
        bail!("the hub accepted backup {} without a task", backup.backup_id);
    };
    if !wait {
        if context.json {
            json(&BackupReply::new(backup))?;
        } else {
            line(backup_id.as_str());
            say(format!("started; wait for it with 'sendense task wait {task_id}'"));
        }
        return Ok(0);
    }
    if let Err(code) = progress::wait_completed(client, &task_id, &format!("backup {backup_id}")).await? {
        return Ok(code);
    }
    let backup = client.get_backup(&backup_id).await?;
    if context.json {
        json(&BackupReply::new(backup))?;
    } else {
        line(summary(&backup));
    }
    Ok(0)
}

/// One line that says what was made, and why when that differs from what was asked.
fn summary(backup: &Backup) -> String {
    let times = backup.started_at.zip(backup.completed_at);
    let took = times.map(|(started, completed)| format!(" in {}", duration(completed.seconds_since(started))));
    let why = backup.type_reason.as_ref().map(|reason| format!(" ({reason})"));
    format!(
        "{} {} {}: sent {}, stored {}{}{}",
        backup.backup_id,
        backup.backup_type,
        backup.status,
        bytes(backup.bytes_transferred),
        bytes(backup.bytes_stored),
        took.unwrap_or_default(),
        why.unwrap_or_default(),
    )
}

/// A name may also be an id; ids begin with `vm-`, and a machine that is called so is found by asking.
async fn vm(client: &Client, vm: String) -> Result<(Option<String>, Option<VmContextId>)> {
    match vm.parse::<VmContextId>() {
        Ok(id) if vm.starts_with("vm-") && client.get_vm(&vm).await.is_ok_and(|found| found.vm_context_id == id) => {
            Ok((None, Some(id)))
        }
        _ => Ok((Some(vm), None)),
    }
}

fn chain_query(vm: String, disk: u32, repository_id: Option<String>) -> ChainQuery {
    let disk_id = Some(DiskNumber(disk));
    match vm.parse::<VmContextId>() {
        Ok(id) if vm.starts_with("vm-") => {
            ChainQuery { vm_name: None, vm_context_id: Some(id), disk_id, repository_id }
        }
        _ => ChainQuery { vm_name: Some(vm), vm_context_id: None, disk_id, repository_id },
    }
}

async fn delete(context: &Context, backup_id: &BackupId, query: DeleteQuery, yes: bool) -> Result<u8> {
    let client = &context.client;
    let plan = client.delete_backup(backup_id, &DeleteQuery { dry_run: true, ..query }).await?;
    if query.dry_run {
        print_deletion(context, plan)?;
        return Ok(0);
    }
    if !yes {
        eprintln!("{}", tables::deletion(&plan));
        if !confirmed(&format!("delete {} points, {}?", plan.backups.len(), bytes(plan.freed_bytes)), LOOK_FIRST)? {
            say("nothing was deleted");
            return Ok(0);
        }
    }
    let done = client.delete_backup(backup_id, &query).await?;
    print_deletion(context, done)?;
    Ok(0)
}

async fn merge(context: &Context, backup_id: &BackupId, dry_run: bool, yes: bool, no_wait: bool) -> Result<u8> {
    let client = &context.client;
    if dry_run || !yes {
        let plan = client.merge_backup(backup_id, &MergeQuery { dry_run: true }).await?;
        let room = bytes(plan.needed_bytes);
        let into = &plan.successor_id;
        let dropped: Vec<String> = plan.dropped_disk_ids.iter().map(ToString::to_string).collect();
        let dropped = match dropped.as_slice() {
            [] => String::new(),
            disks => format!("; nothing needs its disk {}, which goes with it", disks.join(", ")),
        };
        let copies: Vec<&str> = plan.copied_to.iter().map(BackupId::as_str).collect();
        let copies = match copies.as_slice() {
            [] => String::new(),
            others => format!("; {} stands on it, too, and gets a copy first", others.join(", ")),
        };
        let words = format!("merge {backup_id} into {into}, with at most {room} of room meanwhile{copies}{dropped}");
        if dry_run {
            if context.json {
                json(&MergeReply::new(plan))?;
            } else {
                say(format!("would {words}"));
            }
            return Ok(0);
        }
        if !confirmed(&format!("{words}?"), LOOK_FIRST)? {
            say("nothing was merged");
            return Ok(0);
        }
    }
    let begun = client.merge_backup(backup_id, &MergeQuery::default()).await?;
    let Some(task_id) = begun.task_id.clone() else { bail!("the hub accepted the merge without a task") };
    if no_wait {
        if context.json {
            json(&MergeReply::new(begun))?;
        } else {
            line(task_id.as_str());
        }
        return Ok(0);
    }
    match progress::wait_completed(client, &task_id, &format!("merge of {backup_id}")).await? {
        Err(code) => return Ok(code),
        Ok(task) if context.json => json(&TaskReply::new(*task))?,
        Ok(task) => verdict("ok", task.summary.unwrap_or_default()),
    }
    Ok(0)
}

async fn hold(context: &Context, backup_id: &BackupId, change: &UpdateBackup) -> Result<u8> {
    let backup = context.client.update_backup(backup_id, change).await?;
    if context.json {
        json(&BackupReply::new(backup))?;
    } else {
        say(format!("{backup_id} is {}", tables::held(&backup).unwrap_or_else(|| "not held".to_owned())));
    }
    Ok(0)
}

fn print_deletion(context: &Context, deletion: Deletion) -> Result<()> {
    if context.json {
        return json(&DeletionReply::new(deletion));
    }
    show(tables::deletion(&deletion));
    let verb = if deletion.dry_run { "would free" } else { "freed" };
    say(format!("{verb} {}", bytes(deletion.freed_bytes)));
    Ok(())
}

/// What to do where nobody can be asked and the plan can be looked at.
pub(super) const LOOK_FIRST: &str = "look at the plan with --dry-run, then say --yes";

/// Asks a person; where there is none, `hint` says what to do.
pub(super) fn confirmed(question: &str, hint: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("stdin is no terminal to confirm on: {hint}");
    }
    eprint!("{} [y/N] ", plain(question));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
