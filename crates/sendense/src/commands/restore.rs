//! `sendense restore`.

use super::path_text;
use crate::args::{Format, RestoreCommand};
use crate::context::Context;
use crate::output::{json, line, say};
use crate::progress;
use anyhow::Result;
use sendense_api::reply::TaskReply;
use sendense_api::{ImageFormat, RestoreBackup, RestoreTarget};
use sendense_types::DiskNumber;
use std::path::Path;

/// Runs the command.
pub async fn run(context: &Context, command: RestoreCommand) -> Result<u8> {
    let RestoreCommand::Disk { backup_id, disk, to, format, wait } = command;
    let body = RestoreBackup { target: target(&to, format)?, disk_id: disk.map(DiskNumber) };
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
        Ok(_) => say(format!("restored {backup_id} to {to}")),
    }
    Ok(0)
}

fn target(to: &str, format: Format) -> Result<RestoreTarget> {
    if is_nbd_uri(to) {
        return Ok(RestoreTarget::Nbd { uri: to.to_owned() });
    }
    let format = match format {
        Format::Raw => ImageFormat::Raw,
        Format::Qcow2 => ImageFormat::Qcow2,
    };
    Ok(RestoreTarget::File { path: path_text(Path::new(to))?, format, overwrite: false })
}

fn is_nbd_uri(to: &str) -> bool {
    ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"].iter().any(|scheme| to.starts_with(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_uris_are_told_apart() {
        assert!(matches!(target("nbd+unix:///x?socket=/s", Format::Raw).unwrap(), RestoreTarget::Nbd { .. }));
        let RestoreTarget::File { path, .. } = target("nbd", Format::Qcow2).unwrap() else { panic!("not a file") };
        assert!(path.starts_with('/') && path.ends_with("/nbd"));
    }
}
