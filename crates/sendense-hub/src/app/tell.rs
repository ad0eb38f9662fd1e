//! Telling listeners what changed, from the rows, so that an event never says what the catalog does not.

use super::wire;
use crate::core::Core;
use crate::jobs::work::Work;
use sendense_types::{BackupId, TaskId};

/// Tells of a task and, when it makes one, of its backup.
pub(crate) async fn task(core: &Core, task_id: &TaskId) {
    if !core.events.has_listeners() {
        return;
    }
    let row = match core.catalog.tasks().get(task_id).await {
        Ok(row) => row,
        Err(error) => return tracing::debug!(task_id = %task_id, error = %error, "tell of a task"),
    };
    let live = core.running.view(task_id);
    if let Ok(Work::Backup(work)) = Work::read(&row.request) {
        backup(core, &work.backup_id).await;
    }
    core.events.task(wire::task(row, live));
}

/// Tells of a backup.
pub(crate) async fn backup(core: &Core, backup_id: &BackupId) {
    if !core.events.has_listeners() {
        return;
    }
    match core.catalog.backups().get(backup_id).await {
        Ok(row) => {
            let live = row.task_id.as_ref().and_then(|task| core.running.view(task));
            core.events.backup(wire::backup(row, live));
        }
        Err(error) => tracing::debug!(backup_id = %backup_id, error = %error, "tell of a backup"),
    }
}
