//! Restoring one disk of a point, or all of it.

use super::damage::{self, Passed};
use super::handle::Handle;
use super::restore_vm;
use super::work::{RestoreWork, Work};
use crate::app::repositories::refuse_known_folder;
use crate::core::{Core, blocking};
use crate::fault::{Result, invalid, of_repo};
use crate::maintenance::Use;
use crate::restore::{Job, LANES, Onto, check_uri, remove_parts, restore_file, restore_nbd, restore_onto};
use sendense_api::{RestoreTarget, VmdkSubformat};
use sendense_block::{Cancel, DigestMap, ReadAt};
use sendense_repo::{ComparedDisk, room};
use sendense_types::{DiskNumber, Problem, ProblemCode};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a request to restore waits for what its disk holds to be counted; with more extents than fit into that, the task
/// counts them.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// The path that the request was granted, which was resolved then. Where it leads elsewhere now, somebody put a link into
/// it, and nobody granted that.
pub(super) fn same_place(core: &Core, granted: &Path) -> Result<PathBuf> {
    let now = core.check_host_path(granted, true)?;
    if now == granted {
        return Ok(now);
    }
    let details = format!("{} leads to {} by now", granted.display(), now.display());
    Err(Problem::new(ProblemCode::PathNotAllowed, "the target was moved while the restore waited", details))
}

/// A block device is written to only when that was said.
pub(crate) fn forced(path: &Path) -> Problem {
    let details = format!("{} is a block device; what it holds is lost: say force", path.display());
    Problem::new(ProblemCode::Conflict, "the target is a block device", details)
}

/// Removes what a restore of this hub's former life left beside its target. Nothing of it bears the target's name.
pub(crate) async fn tidy(core: &Arc<Core>, task: &sendense_catalog::Task) {
    let Ok(Work::Restore(RestoreWork { target: RestoreTarget::File { path, onto: false, .. }, .. })) =
        Work::read(&task.request)
    else {
        return;
    };
    let (core, task_id) = (core.clone(), task.task_id.clone());
    let tidied = blocking(move || {
        let path = same_place(&core, Path::new(&path))?;
        remove_parts(&path, &task_id)
    });
    match tidied.await.and_then(|tidied| tidied) {
        Ok(true) => tracing::info!(task_id = %task.task_id, "an unfinished file was removed"),
        Ok(false) => {}
        Err(problem) => {
            tracing::warn!(task_id = %task.task_id, error = %problem.message, details = %problem.details,
                "remove an unfinished file");
        }
    }
}

/// The path of a new file, which takes the room that its disk's data needs. What exists already has room of its own, and how
/// far a stream-optimised VMDK shrinks nobody knows.
fn takes_room(core: &Core, target: &RestoreTarget) -> Option<PathBuf> {
    match target {
        RestoreTarget::File { subformat: Some(VmdkSubformat::StreamOptimized), .. } => None,
        RestoreTarget::File { path, onto: false, .. } => {
            let path = same_place(core, Path::new(path)).ok()?;
            let is_device = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
            (!is_device).then_some(path)
        }
        RestoreTarget::File { .. } | RestoreTarget::Nbd { .. } | RestoreTarget::Vm { .. } => None,
    }
}

/// Refuses a restore that cannot fit before a task is made for it. Whatever else goes wrong is the task's to meet and to tell.
pub(crate) async fn refuse_when_no_space(core: &Arc<Core>, work: &RestoreWork) -> Result<()> {
    let (core, work) = (core.clone(), work.clone());
    let Ok(repository) = core.repositories.by_id(&core, &work.repository_id, Use::Read).await else { return Ok(()) };
    let cancel = Cancel::new();
    let asked = cancel.clone();
    let looked = blocking(move || {
        let (Some(path), Some(disk_id)) = (takes_room(&core, &work.target), work.disk_id) else { return Ok(()) };
        let who = "a request to restore";
        let Ok(disk) = repository.open_disk(&work.vm_context_id, &work.backup_id, disk_id, who) else { return Ok(()) };
        let name = format!("disk {disk_id} of {}", work.backup_id);
        let Ok(needed) = room::needed_bytes(&disk, &name, &asked) else { return Ok(()) };
        core.rooms.check(&name, needed, path.parent().unwrap_or(&path))
    });
    match tokio::time::timeout(LOOK_TIMEOUT, looked).await {
        Ok(Ok(Err(problem))) if problem.code == ProblemCode::NoSpace => Err(problem),
        Ok(_) => Ok(()),
        Err(_) => {
            cancel.cancel();
            Ok(())
        }
    }
}

/// Restores what is asked for. Where damage is met the point is looked at.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, work: RestoreWork) -> Result<serde_json::Value> {
    let restored = match work.target {
        RestoreTarget::Vm { .. } => restore_vm::run(core, handle, work.clone()).await,
        RestoreTarget::File { .. } | RestoreTarget::Nbd { .. } => one_disk(core, handle, work.clone()).await,
    };
    if damage::was_met(&restored) {
        damage::look_closer(core, handle, &work.backup_id).await;
    }
    restored
}

async fn one_disk(core: &Arc<Core>, handle: &Arc<Handle>, work: RestoreWork) -> Result<serde_json::Value> {
    let repository = core.repositories.by_id(core, &work.repository_id, Use::Read).await?;
    if let RestoreTarget::File { path, .. } = &work.target {
        // Somebody may have made one there while the restore waited.
        refuse_known_folder(core, Path::new(path)).await?;
    }
    let (core, handle) = (core.clone(), handle.clone());
    let disk_id = work.disk_id.ok_or_else(|| invalid("a disk is required"))?;
    blocking(move || {
        let disk = repository
            .open_compared(&work.vm_context_id, &work.backup_id, disk_id, handle.task_id.as_str(), work.on_damage())
            .map_err(|error| of_repo(&error))?;
        let disk = Arc::new(disk);
        let written = write(&core, &handle, &work, disk_id, &disk).map_err(|problem| damage::told(&disk, problem))?;
        Ok(damage::with_what_passed(&handle, written, &[Passed::of(&disk)]))
    })
    .await?
}

fn write(
    core: &Arc<Core>,
    handle: &Handle,
    work: &RestoreWork,
    disk_id: DiskNumber,
    disk: &Arc<ComparedDisk>,
) -> Result<serde_json::Value> {
    let who = handle.task_id.as_str();
    let (size, images) = (disk.size(), disk.chain().links().len());
    handle.info(format!("disk {} has {} and is read through {} images", disk_id, size, images));
    let share = core.budget.take(LANES);
    let name = disk.name();
    let (lanes, progress, cancel) = (share.lanes(), &handle.progress, &handle.cancel);
    let (needed_bytes, _room) = match takes_room(core, &work.target) {
        Some(path) => {
            let needed = disk.needed_bytes(cancel).map_err(|error| of_repo(&error))?;
            let folder = path.parent().unwrap_or(&path);
            (Some(needed), Some(core.rooms.take(name, needed, folder, &handle.task_id, progress)?))
        }
        None => (None, None),
    };
    let job = Job { name, disk: disk.clone(), needed_bytes, lanes, progress, cancel };
    let mut difference = None;
    let place = match &work.target {
        RestoreTarget::File { path, format, overwrite, onto, resize, force, subformat } => {
            let path = same_place(core, Path::new(path))?;
            let is_device = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
            if is_device && !*force {
                return Err(forced(&path));
            }
            if is_device || *onto {
                let why = format!("{name}, by {who}. Restore onto it again: what is right already is left alone.");
                let digests = onto.then_some(&**disk as &dyn DigestMap);
                let onto = Onto { path: &path, roots: &core.roots, digests, resize: *resize, why: &why };
                difference = restore_onto(&job, &onto)?;
            } else {
                let subformat = subformat.unwrap_or_default();
                let (hub, part_of, task_id) = (core.clone(), path.clone(), handle.task_id.clone());
                handle.on_abandon(move |handle| {
                    hub.rooms.give_back(&task_id);
                    if let Err(problem) = remove_parts(&part_of, &task_id) {
                        handle.warn(format!("the unfinished file could not be removed: {}", problem.details));
                    }
                });
                restore_file(&job, &path, *format, subformat, *overwrite, &handle.task_id)?;
            }
            path.display().to_string()
        }
        RestoreTarget::Nbd { uri } => {
            let uri = check_uri(uri, &core.roots)?;
            let place = uri.to_string();
            restore_nbd(&job, uri)?;
            place
        }
        RestoreTarget::Vm { .. } => return Err(invalid("a machine takes all disks")),
    };
    let written = handle.progress.snapshot().stored;
    let restored = format!("disk {} ({}) is restored to {place}", disk_id, size);
    Ok(match difference {
        None => serde_json::json!({ "summary": restored, "written_bytes": written.0 }),
        Some(found) => serde_json::json!({
            "summary": format!(
                "{restored}: {} differed, {} were written and {} made zero{}",
                found.differing,
                found.written,
                found.zeroed,
                match found.unreadable.0 {
                    0 => String::new(),
                    _ => format!("; {} could not be read before, look after the disk", found.unreadable),
                },
            ),
            "compared_bytes": found.compared.0,
            "differing_bytes": found.differing.0,
            "written_bytes": found.written.0,
            "zeroed_bytes": found.zeroed.0,
            "unreadable_bytes": found.unreadable.0,
        }),
    })
}
