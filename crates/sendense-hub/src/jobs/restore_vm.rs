//! Restoring a whole machine (on hypervisors that keep the disks themselves by [`restore_remote`]): its disks into a folder of the hypervisor's, its configuration made anew, switched off.
//!
//! Invariant: everything that will be made is in the journal before the first file is, and defining the machine is the
//! last step; on any failure before it, or after a crash, the source takes it all away again.

use super::damage::{self, Passed};
use super::handle::Handle;
use super::restore::same_place;
use super::restore_remote::{self, By};
use super::work::RestoreWork;
use crate::app::repositories::refuse_inside;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, invalid, of_planning, of_repo, of_source};
use crate::maintenance::Use;
use crate::restore::{LANES, documents};
use sendense_api::{ImageFormat, RestoreTarget};
use sendense_block::Cancel;
use sendense_repo::extract::{Format, How, Owner, extract};
use sendense_repo::manifest::Manifest;
use sendense_source::Source;
use sendense_source::target::{DiskFormat, NewVm, Planned};
use sendense_types::Problem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Restores the machine.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, work: RestoreWork) -> Result<serde_json::Value> {
    let RestoreTarget::Vm { source_id, onto, .. } = &work.target else {
        return Err(invalid("the target is no machine"));
    };
    let id = source_id.parse().map_err(|_| invalid("source_id is not valid"))?;
    let row = core.catalog.sources().get(&id).await.or_problem()?;
    let repository = core.repositories.by_id(core, &work.repository_id, Use::Read).await?;
    let (core, handle) = (core.clone(), handle.clone());
    if let Some(node) = core.restorer(&row)? {
        return restore_remote::run(core, handle, By::Node(node), repository, work).await;
    }
    let source = core.open_source(&row)?;
    if *onto || source.remote_target().is_some() {
        return restore_remote::run(core, handle, By::Hub(source), repository, work).await;
    }
    let (planner, hypervisor, at, asked) = (core.clone(), source.clone(), repository.clone(), work.clone());
    let cancel = handle.cancel.clone();
    let (manifest, folder, planned) = blocking(move || {
        let manifest = at.manifest(&asked.vm_context_id, &asked.backup_id).map_err(|error| of_repo(&error))?;
        let (folder, planned) = plan(&planner, &*hypervisor, &manifest, &asked.target, &cancel)?;
        Ok::<_, Problem>((manifest, folder, planned))
    })
    .await??;
    // Here, because only now is it known where a pool lies.
    refuse_inside(&core, &folder).await?;
    blocking(move || {
        for note in &planned.notes {
            handle.warn(note.clone());
        }
        // The names of unfinished files: see the extraction.
        let parts = planned.disks.iter().flat_map(|disk| parts(disk, handle.task_id.as_str()));
        let artefact = planned.artefact(row.source_id.clone(), handle.task_id.clone(), parts);
        let entry = core.journal.record(&artefact).map_err(|error| of_source(&error))?;
        let made = make(&core, &handle, &*source, &repository, &manifest, &work, &planned);
        if made.is_err() {
            // A cancelled task tidies up all the same.
            match source.reap(&artefact, &Cancel::new()) {
                Ok(true) if planned.files().all(|file| file.exists()) => {
                    let (name, uuid) = (&planned.vm.name, &planned.vm.instance_uuid);
                    handle.warn(format!("the machine {name} ({uuid}) is there all the same, whole and switched off"));
                }
                Ok(true) => {}
                // The journal keeps it, and it is looked at once more.
                Ok(false) => return made,
                Err(error) => {
                    handle.warn(format!("remove what was restored: {}", sendense_block::error::chain(&error)));
                    return made;
                }
            }
        }
        core.journal.close(entry).map_err(|error| of_source(&error))?;
        made
    })
    .await?
}

fn plan(
    core: &Core,
    source: &dyn Source,
    manifest: &Manifest,
    target: &RestoreTarget,
    cancel: &Cancel,
) -> Result<(PathBuf, Planned)> {
    let RestoreTarget::Vm { name, pool, format, networks, keep_identity, .. } = target else {
        return Err(invalid("the target is no machine"));
    };
    let door = source
        .target()
        .ok_or_else(|| invalid(format!("machines cannot be restored to a source of kind {}", source.kind())))?;
    let folder = door.folder(pool, cancel).map_err(|error| of_source(&error))?;
    // A path was granted when the restore was asked for; a pool's is looked at now.
    let folder = match pool.starts_with('/') {
        true => same_place(core, &folder)?,
        false => core.check_host_path(&folder, false)?,
    };
    if !folder.is_dir() {
        return Err(invalid(format!("{} is no folder", folder.display())));
    }
    let documents = documents(manifest);
    let disks: Vec<String> = manifest.disks.iter().map(|disk| disk.disk_key.clone()).collect();
    let format = if *format == ImageFormat::Raw { DiskFormat::Raw } else { DiskFormat::Qcow2 };
    let new = NewVm {
        name,
        documents: &documents,
        disks: &disks,
        folder: &folder,
        format,
        networks,
        keep_identity: *keep_identity,
    };
    let planned = door.plan(&new, cancel).map_err(|error| of_planning(&error))?;
    Ok((folder, planned))
}

fn make(
    core: &Core,
    handle: &Handle,
    source: &dyn Source,
    repository: &sendense_repo::Repository,
    manifest: &Manifest,
    work: &RestoreWork,
    planned: &Planned,
) -> Result<serde_json::Value> {
    let RestoreTarget::Vm { format, .. } = &work.target else { return Err(invalid("the target is no machine")) };
    let format = if *format == ImageFormat::Raw { Format::Raw } else { Format::Qcow2 };
    let who = handle.task_id.as_str();
    let mut needed = 0_u64;
    let mut chains = Vec::with_capacity(manifest.disks.len());
    for disk in &manifest.disks {
        let chain = repository.open_compared(&work.vm_context_id, &work.backup_id, disk.disk_id, who, work.on_damage());
        let chain = Arc::new(chain.map_err(|error| of_repo(&error))?);
        let bytes = chain.needed_bytes(&handle.cancel).map_err(|error| of_repo(&error))?;
        needed = needed.saturating_add(bytes);
        chains.push((disk, chain, bytes));
    }
    let _room = match planned.disks.first().and_then(|disk| disk.parent()) {
        Some(folder) => {
            let task = format!("the machine of {}", work.backup_id);
            Some(core.rooms.take(&task, needed, folder, &handle.task_id, &handle.progress)?)
        }
        None => None,
    };
    let mut passed = Vec::with_capacity(chains.len());
    for ((disk, chain, bytes), path) in chains.into_iter().zip(&planned.disks) {
        let share = core.budget.take(LANES);
        let (lanes, disk_name, owner) = (share.lanes(), chain.name(), Owner::OfFolder);
        let how = How {
            format,
            lanes,
            suffix: who,
            disk_name,
            overwrite: false,
            owner,
            needed_bytes: Some(bytes),
            is_last: false,
        };
        extract(&chain, path, how, &handle.progress, &handle.cancel)
            .map_err(|error| damage::told(&chain, crate::restore::target_problem(path, &error)))?;
        handle.info(format!("disk {} is restored to {}", disk.disk_id, path.display()));
        passed.push(Passed::of(&chain));
    }
    let door = source.target().ok_or_else(|| invalid("the source takes no machines"))?;
    door.finish(planned, &handle.cancel).map_err(|error| of_source(&error))?;
    let written = handle.progress.snapshot().stored;
    let summary = format!(
        "{} is restored as {} ({}), with {} disks, switched off",
        work.vm_name,
        planned.vm.name,
        planned.vm.instance_uuid,
        planned.disks.len()
    );
    let made = serde_json::json!({
        "summary": summary,
        "written_bytes": written.0,
        "vm_name": planned.vm.name,
        "instance_uuid": planned.vm.instance_uuid,
        "notes": planned.notes,
    });
    Ok(damage::with_what_passed(handle, made, &passed))
}

/// What an extraction to this file may leave beside it when it dies.
fn parts(path: &Path, suffix: &str) -> Vec<PathBuf> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    [format!(".{name}.{suffix}"), format!(".{name}.{suffix}.tables")].map(|part| path.with_file_name(part)).to_vec()
}
