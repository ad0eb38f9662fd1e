//! Restoring a machine to a hypervisor that keeps its disks itself: into a new one, or onto the disks of one that exists.
//!
//! What lives here: what is asked for, the point as this hub reads it, and what is told at the end. What does not: the steps
//! ([`sendense_node::restore`]).

use super::damage::{self, Passed};
use super::handle::Handle;
use super::work::RestoreWork;
use crate::app::vms;
use crate::core::{Core, blocking};
use crate::fault::{Result, invalid, of_repo, of_restore};
use crate::nodes;
use crate::nodes::source::RemoteSource;
use crate::restore::{LANES, documents};
use parking_lot::Mutex;
use sendense_api::RestoreTarget;
use sendense_block::{DigestMap, Disk};
use sendense_node::restore::{self, Assignment, DiskAssignment, NewMachine, Point, Restored, To};
use sendense_repo::manifest::{self, Manifest};
use sendense_repo::{ComparedDisk, Repository};
use sendense_source::{Source, VmRef};
use sendense_types::{DiskNumber, Problem};
use std::sync::Arc;

/// Who does it.
pub(super) enum By {
    /// This hub, which reaches the source.
    Hub(Arc<dyn Source>),
    /// The node that the source is bound to.
    Node(RemoteSource),
}

/// Restores the machine.
pub(super) async fn run(
    core: Arc<Core>,
    handle: Arc<Handle>,
    by: By,
    repository: Repository,
    work: RestoreWork,
) -> Result<serde_json::Value> {
    let RestoreTarget::Vm { name, onto, .. } = &work.target else { return Err(invalid("the target is no machine")) };
    let existing = match onto {
        true => {
            let found = vms::find(&core, name).await?;
            Some(VmRef { instance_uuid: found.instance_uuid, name: found.vm_name.into() })
        }
        false => None,
    };
    blocking(move || {
        let manifest = repository.manifest(&work.vm_context_id, &work.backup_id).map_err(|error| of_repo(&error))?;
        let assignment = assignment(&handle, &manifest, &work, existing)?;
        let restored = match &by {
            By::Hub(source) => {
                let opened = Mutex::default();
                let point = Here { handle: &handle, repository: &repository, work: &work, opened };
                let (progress, cancel) = (&handle.progress, &handle.cancel);
                restore::run(&assignment, &**source, &point, &core.journal, &core.budget, progress, cancel)
                    .map_err(|error| point.told(of_restore(&error)))
                    .map(|restored| (restored, point.passed()))
            }
            By::Node(node) => {
                let lease_seconds = core.limits.node_lease_seconds;
                let (vm, on_damage) = (&work.vm_context_id, work.on_damage());
                let restored =
                    nodes::restore::run(node, &repository, vm, &assignment, on_damage, &handle, lease_seconds);
                if let (Err(_), Some(source_id)) = (&restored, &work.source_id) {
                    // What a node could not take away is in its own journal; reason to see what is left.
                    handle.look_after(source_id.clone());
                }
                restored
            }
        };
        let (restored, passed) = restored?;
        Ok(damage::with_what_passed(&handle, told(&handle, &work, &assignment, restored), &passed))
    })
    .await?
}

fn assignment(handle: &Handle, manifest: &Manifest, work: &RestoreWork, existing: Option<VmRef>) -> Result<Assignment> {
    let RestoreTarget::Vm { name, pool, folder, cluster, networks, keep_identity, .. } = &work.target else {
        return Err(invalid("the target is no machine"));
    };
    let asked = |disk: &&manifest::Disk| work.disk_id.is_none_or(|number| number == disk.disk_id);
    let disks = manifest.disks.iter().filter(asked).map(|disk| DiskAssignment {
        number: disk.disk_id,
        key: disk.disk_key.clone(),
        capacity_bytes: disk.capacity_bytes,
    });
    let to = match existing {
        Some(vm) => To::Existing(vm),
        None => To::New(NewMachine {
            name: name.clone(),
            documents: documents(manifest),
            // The default of libvirt's means nothing here: the original's datastore does.
            datastore: Some(pool.clone()).filter(|pool| *pool != sendense_api::POOL_DEFAULT),
            folder: folder.clone(),
            cluster: cluster.clone(),
            networks: networks.clone(),
            keep_identity: *keep_identity,
            note: format!("Restored by Sendense from {} of {}", work.backup_id, work.vm_name),
        }),
    };
    let (task_id, backup_id) = (handle.task_id.clone(), work.backup_id.clone());
    Ok(Assignment { task_id, backup_id, disks: disks.collect(), to, lanes: LANES })
}

/// What the task's row says of a restore that came to its end.
fn told(handle: &Handle, work: &RestoreWork, assignment: &Assignment, restored: Restored) -> serde_json::Value {
    let Restored { vm, notes, difference } = restored;
    let (count, of, name, uuid) = (assignment.disks.len(), &work.vm_name, &vm.name, &vm.instance_uuid);
    match difference {
        None => serde_json::json!({
            "summary": format!("{of} is restored as {name} ({uuid}), with {count} disks, switched off"),
            "written_bytes": handle.progress.snapshot().stored.0,
            "vm_name": name,
            "instance_uuid": uuid,
            "notes": notes,
        }),
        Some(found) => serde_json::json!({
            "summary": format!(
                "{count} disks of {of} are restored onto {name}: {} differed; its next backup compares all blocks",
                found.differing
            ),
            "vm_name": name,
            "instance_uuid": uuid,
            "compared_bytes": found.compared.0,
            "differing_bytes": found.differing.0,
            "written_bytes": found.written.0,
            "zeroed_bytes": found.zeroed.0,
            "unreadable_bytes": found.unreadable.0,
        }),
    }
}

/// A point in a repository that this hub reads, restored by this hub.
struct Here<'a> {
    handle: &'a Handle,
    repository: &'a Repository,
    work: &'a RestoreWork,
    opened: Mutex<Opened>,
}

/// The disks of a point, which are restored one after the other.
#[derive(Default)]
struct Opened {
    now: Option<(DiskNumber, Arc<ComparedDisk>)>,
    /// Of those before.
    passed: Vec<Passed>,
}

impl Here<'_> {
    fn open(&self, number: DiskNumber) -> sendense_block::Result<Arc<ComparedDisk>> {
        let mut opened = self.opened.lock();
        if let Some((_, disk)) = opened.now.as_ref().filter(|(open, _)| *open == number) {
            return Ok(disk.clone());
        }
        let before = opened.now.take().map(|(_, disk)| Passed::of(&disk));
        opened.passed.extend(before);
        let (work, who) = (self.work, self.handle.task_id.as_str());
        let (vm, backup) = (&work.vm_context_id, &work.backup_id);
        let disk = Arc::new(self.repository.open_compared(vm, backup, number, who, work.on_damage())?);
        opened.now = Some((number, disk.clone()));
        Ok(disk)
    }

    fn told(&self, problem: Problem) -> Problem {
        match &self.opened.lock().now {
            Some((_, disk)) => damage::told(disk, problem),
            None => problem,
        }
    }

    /// What was written of all disks though it is damaged.
    fn passed(self) -> Vec<Passed> {
        let Opened { now, mut passed } = self.opened.into_inner();
        passed.extend(now.map(|(_, disk)| Passed::of(&disk)));
        passed
    }
}

impl Point for Here<'_> {
    fn disk(&self, number: DiskNumber) -> sendense_block::Result<Arc<dyn Disk>> {
        Ok(self.open(number)?)
    }

    fn digests(&self, number: DiskNumber) -> sendense_block::Result<Arc<dyn DigestMap>> {
        Ok(self.open(number)?)
    }

    fn note(&self, message: &str) {
        self.handle.info(message);
    }

    fn warn(&self, message: &str) {
        self.handle.warn(message);
    }

    fn hand_over(&self) -> sendense_block::Result<()> {
        self.handle.cancel.commit()
    }

    fn letting_go(&self) {
        self.handle.letting_go();
    }
}
