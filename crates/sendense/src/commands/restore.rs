//! `sendense restore`.

use super::path_text;
use crate::args::{Format, RestoreCommand, RestoreFormat};
use crate::context::Context;
use crate::output::{json, line, say};
use crate::progress;
use anyhow::Result;
use sendense_api::reply::TaskReply;
use sendense_api::{ImageFormat, LIMIT_MAX, Limit, ListQuery, RestoreBackup, RestoreTarget, Task, VmdkSubformat};
use sendense_types::{BackupId, DiskNumber};
use std::path::Path;

/// Runs the command.
pub async fn run(context: &Context, command: RestoreCommand) -> Result<u8> {
    match command {
        RestoreCommand::Disk { backup_id, disk, to, onto, resize, force, format, allow_damaged, wait } => {
            let (target, to) = disk_target(to, onto, resize, force, format)?;
            let body = RestoreBackup { target, disk_id: disk.map(DiskNumber), allow_damaged };
            restore(context, backup_id, body, to, wait).await
        }
        RestoreCommand::Vm {
            backup_id,
            source,
            libvirt,
            vsphere,
            name,
            onto,
            disk,
            force,
            pool,
            datastore,
            folder,
            cluster,
            format,
            networks,
            keep_identity,
            allow_damaged,
            wait,
        } => {
            let source_id = match (source.or(vsphere), libvirt) {
                (Some(source), _) => source,
                (None, uri) => source_of(context, &uri.unwrap_or_default()).await?,
            };
            let format = match format {
                Format::Raw => ImageFormat::Raw,
                Format::Qcow2 => ImageFormat::Qcow2,
            };
            let networks =
                networks.into_iter().map(|(old, new)| (old, Some(new).filter(|new| new != "none"))).collect();
            // A pool's name has no separator; anything else is a path, seen from here.
            let pool = match datastore {
                Some(datastore) => datastore,
                None if pool.contains('/') => path_text(Path::new(&pool))?,
                None => pool,
            };
            let is_onto = onto.is_some();
            // One of the two is there.
            let name = onto.or(name).unwrap_or_default();
            let target = RestoreTarget::Vm {
                source_id,
                name: name.clone(),
                onto: is_onto,
                force,
                pool,
                format,
                networks,
                keep_identity,
                folder,
                cluster,
            };
            let body = RestoreBackup { target, disk_id: disk.map(DiskNumber), allow_damaged };
            restore(context, backup_id, body, name, wait).await
        }
    }
}

/// The libvirt source with this URI.
pub(super) async fn source_of(context: &Context, uri: &str) -> Result<String> {
    let sources = context
        .client
        .list_sources(&ListQuery { limit: Limit::try_from(LIMIT_MAX).unwrap_or_default(), ..ListQuery::default() })
        .await?;
    match sources.items.into_iter().find(|source| source.address == uri) {
        Some(source) => Ok(source.source_id.to_string()),
        None => anyhow::bail!("no source has the URI {uri}: add it with 'sendense source add libvirt --uri {uri}'"),
    }
}

fn disk_target(
    to: Option<String>,
    onto: Option<String>,
    resize: bool,
    force: bool,
    format: RestoreFormat,
) -> Result<(RestoreTarget, String)> {
    let (to, differential) = match (to, onto) {
        (_, Some(onto)) => (onto, true),
        (to, None) => (to.unwrap_or_default(), false),
    };
    let target = match differential {
        false => target(&to, format, force)?,
        true => RestoreTarget::File {
            path: path_text(Path::new(&to))?,
            format: ImageFormat::Raw,
            overwrite: false,
            onto: true,
            resize,
            force,
            subformat: None,
        },
    };
    Ok((target, to))
}

/// Asks for a restore and waits for it where that is wanted.
async fn restore(context: &Context, backup_id: BackupId, body: RestoreBackup, to: String, wait: bool) -> Result<u8> {
    let task = context.client.restore_backup(&backup_id, &body).await?;
    follow(context, task, format!("restore of {backup_id} to {to}"), wait).await
}

/// Tells of a task that was begun; waits for its end where that is wanted.
pub(super) async fn follow(context: &Context, task: Task, what: String, wait: bool) -> Result<u8> {
    if !wait {
        if context.json {
            json(&TaskReply::new(task))?;
        } else {
            line(task.task_id.as_str());
            say(format!("{what} begins; wait for it with 'sendense task wait {}'", task.task_id));
        }
        return Ok(0);
    }
    match progress::wait_completed(&context.client, &task.task_id, &what).await? {
        Err(code) => return Ok(code),
        Ok(task) if context.json => json(&TaskReply::new(*task))?,
        Ok(task) => say(task.summary.unwrap_or_else(|| format!("{what} is done"))),
    }
    Ok(0)
}

fn target(to: &str, format: RestoreFormat, force: bool) -> Result<RestoreTarget> {
    if is_nbd_uri(to) {
        return Ok(RestoreTarget::Nbd { uri: to.to_owned() });
    }
    let (format, subformat) = match format {
        RestoreFormat::Raw => (ImageFormat::Raw, None),
        RestoreFormat::Qcow2 => (ImageFormat::Qcow2, None),
        RestoreFormat::Vmdk => (ImageFormat::Vmdk, Some(VmdkSubformat::MonolithicSparse)),
        RestoreFormat::VmdkStream => (ImageFormat::Vmdk, Some(VmdkSubformat::StreamOptimized)),
    };
    let path = path_text(Path::new(to))?;
    Ok(RestoreTarget::File { path, format, overwrite: false, onto: false, resize: false, force, subformat })
}

fn is_nbd_uri(to: &str) -> bool {
    ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"].iter().any(|scheme| to.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_uris_are_told_apart() {
        assert!(matches!(
            target("nbd+unix:///x?socket=/s", RestoreFormat::Raw, false).unwrap(),
            RestoreTarget::Nbd { .. }
        ));
        let RestoreTarget::File { path, .. } = target("nbd", RestoreFormat::Qcow2, false).unwrap() else {
            panic!("not a file")
        };
        assert!(path.starts_with('/') && path.ends_with("/nbd"));
    }
}
