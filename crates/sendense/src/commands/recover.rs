//! `sendense recover`: machines straight from restore points.

use super::backup::confirmed;
use super::path_text;
use super::restore::{follow, source_of};
use crate::args::{Format, RecoverCommand};
use crate::context::Context;
use crate::output::{bytes, json, line, say, table as show};
use crate::tables;
use anyhow::Result;
use sendense_api::reply::{DoneReply, RecoveryListReply, RecoveryReply};
use sendense_api::{CreateRecovery, ImageFormat, ListQuery, MigrateRecovery, Recovery};
use std::path::Path;

/// Runs the command.
pub async fn run(context: &Context, command: RecoverCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        RecoverCommand::Instant { backup_id, name, libvirt, networks } => {
            let source_id = match libvirt {
                Some(uri) if uri.contains("://") => Some(source_of(context, &uri).await?),
                other => other,
            };
            let networks =
                networks.into_iter().map(|(old, new)| (old, Some(new).filter(|new| new != "none"))).collect();
            let recovery = client.create_recovery(&CreateRecovery { backup_id, name, source_id, networks }).await?;
            print(context, recovery)?;
        }
        RecoverCommand::List => {
            let page = client.list_recoveries(&ListQuery::default()).await?;
            match context.json {
                true => json(&RecoveryListReply::from(page))?,
                false => show(tables::recoveries(&page.items)),
            }
        }
        RecoverCommand::Show { recovery } => print(context, client.recovery(&recovery).await?)?,
        RecoverCommand::Commit { recovery, wait } => {
            let backup = client.commit_recovery(&recovery).await?;
            return super::backup::follow(context, backup, wait).await;
        }
        RecoverCommand::Migrate { recovery, pool, format, wait } => {
            let format = match format {
                Format::Raw => ImageFormat::Raw,
                Format::Qcow2 => ImageFormat::Qcow2,
            };
            // A pool's name has no separator; anything else is a path, seen from here.
            let pool = if pool.contains('/') { path_text(Path::new(&pool))? } else { pool };
            let task = client.migrate_recovery(&recovery, &MigrateRecovery { pool, format }).await?;
            return follow(context, task, format!("migration of {recovery}"), wait).await;
        }
        RecoverCommand::Discard { recovery, yes } => return discard(context, &recovery, yes).await,
    }
    Ok(0)
}

/// The URIs, a line each, then the recorded configuration.
fn print(context: &Context, recovery: Recovery) -> Result<()> {
    if context.json {
        return json(&RecoveryReply::new(recovery));
    }
    for uri in recovery.disks.iter().filter_map(|disk| disk.uri.as_deref()) {
        line(uri);
    }
    for note in &recovery.notes {
        say(note);
    }
    match &recovery.machine {
        Some(machine) => say(format!("machine {} ({}) runs on it", machine.name, machine.instance_uuid)),
        // Who makes a machine himself needs to know what it was.
        None => {
            for document in &recovery.documents {
                line("");
                document.content.lines().for_each(line);
            }
        }
    }
    if let Some(trouble) = &recovery.error_message {
        say(format!("{}: {trouble}", recovery.recovery_id));
    }
    say(format!(
        "{}: {} of {}, served writable; whoever knows a URI can read and write that disk; 'recover discard' ends it",
        recovery.recovery_id, recovery.backup_id, recovery.vm_name
    ));
    Ok(())
}

async fn discard(context: &Context, id_or_name: &str, yes: bool) -> Result<u8> {
    let recovery = context.client.recovery(id_or_name).await?;
    if !yes {
        let held: u64 = recovery.disks.iter().filter_map(|disk| disk.held_bytes).sum();
        let question = format!("discard {} with the {} that were written to it?", recovery.name, bytes(held));
        if !confirmed(&question, "say --yes")? {
            say("nothing was discarded");
            return Ok(0);
        }
    }
    context.client.delete_recovery(recovery.recovery_id.as_str()).await?;
    let done = format!("recovery {} is gone", recovery.recovery_id);
    match context.json {
        true => json(&DoneReply::new(done))?,
        false => say(done),
    }
    Ok(0)
}
