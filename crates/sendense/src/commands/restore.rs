//! `sendense restore`.

use super::path_text;
use crate::args::{RestoreCommand, RestoreFormat};
use crate::context::Context;
use crate::output::{json, line, say};
use crate::progress;
use anyhow::Result;
use sendense_api::reply::TaskReply;
use sendense_api::{ImageFormat, RestoreBackup, RestoreTarget, VmdkSubformat};
use sendense_types::DiskNumber;
use std::path::Path;

/// Runs the command.
pub async fn run(context: &Context, command: RestoreCommand) -> Result<u8> {
    let RestoreCommand::Disk { backup_id, disk, to, onto, resize, force, format, wait } = command;
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
    let body = RestoreBackup { target, disk_id: disk.map(DiskNumber) };
    let task = context.client.restore_backup(&backup_id, &body).await?;
    if !wait {
        if context.json {
            json(&TaskReply::new(task))?;
        } else {
            line(task.task_id.as_str());
            say(format!("restoring; wait for it with 'sendense task wait {}'", task.task_id));
        }
        return Ok(0);
    }
    match progress::wait_completed(&context.client, &task.task_id, &format!("restore of {backup_id}")).await? {
        Err(code) => return Ok(code),
        Ok(task) if context.json => json(&TaskReply::new(*task))?,
        Ok(task) => say(task.summary.unwrap_or_else(|| format!("restored {backup_id} to {to}"))),
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
