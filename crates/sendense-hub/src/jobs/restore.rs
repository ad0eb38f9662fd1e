//! Restoring one disk of a point.

use super::handle::Handle;
use super::work::RestoreWork;
use crate::core::{Core, blocking};
use crate::fault::{Result, invalid, of_repo};
use crate::restore::{Job, LANES, check_uri, restore_file, restore_nbd};
use sendense_api::RestoreTarget;
use sendense_block::ReadAt;
use sendense_types::{Problem, ProblemCode};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The path that the request was granted, which was resolved then. Where it leads elsewhere now, somebody put a link into
/// it, and nobody granted that.
fn same_place(core: &Core, granted: &Path) -> Result<PathBuf> {
    let now = core.check_host_path(granted, true)?;
    if now == granted {
        return Ok(now);
    }
    let details = format!("{} leads to {} by now", granted.display(), now.display());
    Err(Problem::new(ProblemCode::PathNotAllowed, "the target was moved while the restore waited", details))
}

/// Restores the disk.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, work: RestoreWork) -> Result<serde_json::Value> {
    let repository = core.repositories.by_id(core, &work.repository_id).await?;
    let (core, handle) = (core.clone(), handle.clone());
    blocking(move || {
        let who = handle.task_id.as_str();
        let disk = repository
            .open_disk(&work.vm_context_id, &work.backup_id, work.disk_id, who)
            .map_err(|error| of_repo(&error))?;
        handle.info(format!(
            "disk {} has {} and is read through {} images",
            work.disk_id,
            disk.size(),
            disk.links().len()
        ));
        let share = core.budget.take(LANES);
        let name = format!("disk {} of {}", work.disk_id, work.backup_id);
        let job =
            Job { name: &name, disk: &disk, lanes: share.lanes(), progress: &handle.progress, cancel: &handle.cancel };
        let place = match &work.target {
            RestoreTarget::File { path, format, overwrite } => {
                let path = same_place(&core, Path::new(path))?;
                restore_file(&job, &path, *format, *overwrite, &handle.task_id)?;
                path.display().to_string()
            }
            RestoreTarget::Nbd { uri } => {
                let uri = check_uri(uri, &core.roots)?;
                let place = uri.to_string();
                restore_nbd(&job, uri)?;
                place
            }
            RestoreTarget::Vm { .. } => return Err(invalid("restoring to a new VM is not supported yet")),
        };
        let written = handle.progress.snapshot().stored;
        let summary = format!("disk {} ({}) is restored to {place}", work.disk_id, disk.size());
        Ok(serde_json::json!({ "summary": summary, "written_bytes": written.0 }))
    })
    .await?
}
