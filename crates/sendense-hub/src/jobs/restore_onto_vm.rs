//! Restoring a point onto the disks of a machine that exists, on a hypervisor that keeps its disks itself.
//!
//! Invariant: each disk bears a mark in its first block from the first write until all of it is right, so that whatever
//! interrupts the restore, the machine starts from no disk that is half of one state and half of another.

use super::handle::Handle;
use super::work::RestoreWork;
use crate::app::vms;
use crate::core::{Core, blocking};
use crate::fault::{Result, invalid, of_block, of_planning, of_repo, of_source};
use crate::restore::{Job, LANES};
use sendense_api::RestoreTarget;
use sendense_block::copy::{self, Difference, Differential, Marked};
use sendense_repo::Repository;
use sendense_repo::manifest::Disk;
use sendense_source::{Overwriting, RemoteDisk, Source, VmRef};
use std::sync::Arc;

/// Restores onto the machine.
pub(super) async fn run(
    core: Arc<Core>,
    handle: Arc<Handle>,
    source: Arc<dyn Source>,
    repository: Repository,
    work: RestoreWork,
) -> Result<serde_json::Value> {
    let RestoreTarget::Vm { name, .. } = &work.target else { return Err(invalid("the target is no machine")) };
    let found = vms::find(&core, name).await?;
    let vm = VmRef { instance_uuid: found.instance_uuid, name: found.vm_name.into() };
    blocking(move || write(&core, &handle, &*source, &repository, &work, &vm)).await?
}

fn write(
    core: &Core,
    handle: &Handle,
    source: &dyn Source,
    repository: &Repository,
    work: &RestoreWork,
    vm: &VmRef,
) -> Result<serde_json::Value> {
    let door =
        source.remote_target().ok_or_else(|| invalid(format!("a source of kind {} has no onto", source.kind())))?;
    let manifest = repository.manifest(&work.vm_context_id, &work.backup_id).map_err(|error| of_repo(&error))?;
    let asked = |disk: &&Disk| work.disk_id.is_none_or(|number| number == disk.disk_id);
    let disks: Vec<&Disk> = manifest.disks.iter().filter(asked).collect();
    let wanted: Vec<RemoteDisk> = disks
        .iter()
        .map(|disk| RemoteDisk { key: disk.disk_key.clone(), capacity_bytes: disk.capacity_bytes })
        .collect();
    let machine =
        door.onto(vm, &wanted, &handle.task_id, &core.journal, &handle.cancel).map_err(|error| of_planning(&error))?;
    let mut all = Difference::default();
    for (position, disk) in disks.iter().enumerate() {
        let is_last = position + 1 == disks.len();
        let found = Step { core, handle, repository, work, machine: &*machine }.disk(position, disk, is_last)?;
        let number = disk.disk_id;
        handle.info(format!("disk {number} is restored: {} of {} differed", found.differing, found.compared));
        all.compared.0 += found.compared.0;
        all.differing.0 += found.differing.0;
        all.written.0 += found.written.0;
        all.zeroed.0 += found.zeroed.0;
        all.unreadable.0 += found.unreadable.0;
    }
    machine.finish().map_err(|error| of_source(&error))?;
    let (count, name) = (disks.len(), &vm.name);
    Ok(serde_json::json!({
        "summary": format!(
            "{count} disks of {} are restored onto {name}: {} differed; its next backup compares all blocks",
            work.vm_name, all.differing
        ),
        "vm_name": name,
        "instance_uuid": vm.instance_uuid,
        "compared_bytes": all.compared.0,
        "differing_bytes": all.differing.0,
        "written_bytes": all.written.0,
        "zeroed_bytes": all.zeroed.0,
        "unreadable_bytes": all.unreadable.0,
    }))
}

/// What every disk needs.
struct Step<'a> {
    core: &'a Core,
    handle: &'a Handle,
    repository: &'a Repository,
    work: &'a RestoreWork,
    machine: &'a dyn Overwriting,
}

impl Step<'_> {
    fn disk(&self, position: usize, disk: &Disk, is_last: bool) -> Result<Difference> {
        let Self { core, handle, repository, work, machine } = *self;
        let (who, cancel) = (handle.task_id.as_str(), &handle.cancel);
        let chain = repository
            .open_disk(&work.vm_context_id, &work.backup_id, disk.disk_id, who)
            .map_err(|error| of_repo(&error))?;
        let digests = repository
            .open_digests(&work.vm_context_id, &work.backup_id, disk.disk_id, who)
            .map_err(|error| of_repo(&error))?;
        let share = core.budget.take(LANES);
        let name = format!("disk {} of {}", disk.disk_id, work.backup_id);
        let job = Job { name: &name, disk: Arc::new(chain), lanes: share.lanes(), progress: &handle.progress, cancel };
        let volume = machine.open(position, cancel).map_err(|error| of_source(&error))?;
        let why = format!("{name}, by {who}. Restore onto it again: what is right already is left alone.");
        let marked = Marked::new(volume, &why);
        let differential = Differential {
            name: job.name,
            disk: &job.disk,
            digests: &digests,
            target: &marked,
            options: job.options(),
            progress: job.progress,
            cancel,
        };
        let failed = |error: sendense_block::Error| of_block("restore onto the machine", &error);
        let found = copy::differential(&differential).map_err(failed)?;
        // The last disk makes the machine whole; what comes after is not stopped by anybody.
        let go_on = if is_last { cancel.commit() } else { cancel.check() };
        go_on.and_then(|()| marked.finish()).map_err(failed)?;
        Ok(found)
    }
}
