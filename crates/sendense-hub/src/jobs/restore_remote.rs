//! Restoring a whole machine to a hypervisor that keeps its disks itself: made empty, each disk filled, handed over.
//!
//! Invariant: the source has the machine in the journal before it is made, and it is somebody's only after the last block
//! is written; on any failure before that the source takes it away again.

use super::handle::Handle;
use super::work::RestoreWork;
use crate::core::Core;
use crate::fault::{Result, invalid, of_block, of_planning, of_repo, of_source};
use crate::restore::{Job, LANES, documents};
use sendense_api::RestoreTarget;
use sendense_block::copy::{self, Restore};
use sendense_repo::Repository;
use sendense_repo::manifest::Manifest;
use sendense_source::{NewRemoteVm, RemoteDisk, Restoring, Source};
use std::sync::Arc;

/// Restores the machine, on a thread of its own.
pub(super) fn run(
    core: &Core,
    handle: &Handle,
    source: &dyn Source,
    repository: &Repository,
    work: &RestoreWork,
) -> Result<serde_json::Value> {
    let RestoreTarget::Vm { name, pool, folder, cluster, networks, keep_identity, .. } = &work.target else {
        return Err(invalid("the target is no machine"));
    };
    let door = source
        .remote_target()
        .ok_or_else(|| invalid(format!("machines cannot be restored to a source of kind {}", source.kind())))?;
    let manifest = repository.manifest(&work.vm_context_id, &work.backup_id).map_err(|error| of_repo(&error))?;
    let disk = |disk: &sendense_repo::manifest::Disk| RemoteDisk {
        key: disk.disk_key.clone(),
        capacity_bytes: disk.capacity_bytes,
    };
    let disks: Vec<RemoteDisk> = manifest.disks.iter().map(disk).collect();
    let new = NewRemoteVm {
        name,
        documents: &documents(&manifest),
        disks: &disks,
        // The default of libvirt's means nothing here: the original's datastore does.
        datastore: Some(pool.as_str()).filter(|pool| *pool != sendense_api::POOL_DEFAULT),
        folder: folder.as_deref(),
        cluster: cluster.as_deref(),
        networks,
        keep_identity: *keep_identity,
        note: &format!("Restored by Sendense from {} of {}", work.backup_id, work.vm_name),
    };
    let restoring =
        door.create(&new, &handle.task_id, &core.journal, &handle.cancel).map_err(|error| of_planning(&error))?;
    for note in restoring.notes() {
        handle.warn(note.clone());
    }
    let (vm, notes) = (restoring.vm().clone(), restoring.notes().to_vec());
    let filled = fill(core, handle, &*restoring, repository, &manifest, work);
    // The last moment at which a person can change the mind: what is handed over is not taken back.
    let whole = filled.and_then(|()| handle.cancel.commit().map_err(|error| of_block("hand the machine over", &error)));
    if let Err(problem) = whole {
        handle.letting_go();
        // What cannot be taken away now stays in the journal.
        if let Err(error) = restoring.abandon() {
            handle.warn(format!("remove what was restored: {}", sendense_block::error::chain(&error)));
        }
        return Err(problem);
    }
    restoring.finish().map_err(|error| of_source(&error))?;
    let written = handle.progress.snapshot().stored;
    let summary = format!(
        "{} is restored as {} ({}), with {} disks, switched off",
        work.vm_name,
        vm.name,
        vm.instance_uuid,
        disks.len()
    );
    Ok(serde_json::json!({
        "summary": summary,
        "written_bytes": written.0,
        "vm_name": vm.name,
        "instance_uuid": vm.instance_uuid,
        "notes": notes,
    }))
}

fn fill(
    core: &Core,
    handle: &Handle,
    restoring: &dyn Restoring,
    repository: &Repository,
    manifest: &Manifest,
    work: &RestoreWork,
) -> Result<()> {
    for (position, disk) in manifest.disks.iter().enumerate() {
        let chain = repository
            .open_disk(&work.vm_context_id, &work.backup_id, disk.disk_id, handle.task_id.as_str())
            .map_err(|error| of_repo(&error))?;
        let share = core.budget.take(LANES);
        let name = format!("disk {} of {}", disk.disk_id, work.backup_id);
        let job = Job {
            name: &name,
            disk: Arc::new(chain),
            lanes: share.lanes(),
            progress: &handle.progress,
            cancel: &handle.cancel,
        };
        let target = restoring.open_write(position, &handle.cancel).map_err(|error| of_source(&error))?;
        let restore = Restore {
            name: job.name,
            disk: &job.disk,
            target: &target,
            // A new thin disk: what is not written stays unallocated.
            target_is_zero: true,
            options: job.options(),
            progress: job.progress,
            cancel: job.cancel,
        };
        copy::restore(&restore).map_err(|error| of_block("restore to the hypervisor", &error))?;
        handle.info(format!("disk {} is restored", disk.disk_id));
    }
    Ok(())
}
