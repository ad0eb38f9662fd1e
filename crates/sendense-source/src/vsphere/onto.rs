//! The disks of a machine that exists, opened so that a point is written onto them.
//!
//! What lives here: what must hold before and while that is done, and that no changeId of before is believed after it. What
//! does not: comparing and writing (whoever has the point).
//!
//! Invariant: the machine is off and has no snapshot whenever a disk of it is opened, and its change tracking was switched
//! off before the first byte was written. So the next backup begins a new epoch and compares all blocks, also when this
//! process dies on the way.

use super::held::{self, Held};
use super::kit::{Access, Kit, Owner};
use super::limits::{self, Places};
use super::{Settings, discover, session, snapshot};
use crate::error::{Error, Kind, Result};
use crate::journal::Journal;
use crate::model::{FreezeRequest, VmRef};
use crate::remote::{Overwriting, RemoteDisk, Volume};
use sendense_block::{Cancel, ReadAt};
use sendense_types::TaskId;
use sendense_vsphere::device::Disk;
use sendense_vsphere::inventory::{Machine, Power};
use sendense_vsphere::{KeptAlive, Ref};
use std::sync::Arc;

struct OntoVm {
    settings: Settings,
    vim: KeptAlive,
    machine: Ref,
    wanted: Vec<RemoteDisk>,
    owner: Owner,
    _held: Held,
    _places: (Places, Option<Places>),
}

/// Takes the machine.
pub(super) fn onto(
    settings: &Settings,
    vm: &VmRef,
    wanted: &[RemoteDisk],
    task_id: &TaskId,
    journal: &Arc<dyn Journal>,
    cancel: &Cancel,
) -> Result<Box<dyn Overwriting>> {
    let held = held::take(settings.server(), &vm.instance_uuid, &vm.name)?;
    // Disks are written one after the other.
    let places = limits::take(settings.server(), 1, settings.sessions_max, cancel)?;
    let vim = session::hold(settings, cancel)?;
    let machine = discover::look(&vim, &vm.instance_uuid, cancel)?;
    let on_host = limits::take_on_host(settings.server(), machine.host.as_ref(), 1, cancel)?;
    disks(&machine, wanted)?;
    if machine.change_tracking {
        vim.set_change_tracking(&machine.reference, false, cancel)?;
        let request = FreezeRequest {
            vm: vm.clone(),
            disks: Vec::new(),
            quiesce: false,
            quiesce_or_fail: false,
            deployment_id: settings.deployment_id.clone(),
            task_id: task_id.clone(),
        };
        snapshot::pass(settings, &vim, &machine, &request, journal, cancel)?;
    }
    let owner = Owner {
        run_dir: settings.run_dir.clone(),
        source_id: settings.source_id.clone(),
        task_id: task_id.clone(),
        vm_key: vm.instance_uuid.clone(),
        journal: journal.clone(),
    };
    Ok(Box::new(OntoVm {
        settings: settings.clone(),
        vim,
        machine: machine.reference,
        wanted: wanted.to_vec(),
        owner,
        _held: held,
        _places: (places, on_host),
    }))
}

/// The wanted disks of the machine, in their order, if they may be written onto.
fn disks(machine: &Machine, wanted: &[RemoteDisk]) -> Result<Vec<Disk>> {
    let name = &machine.name;
    let busy = |why: &str, hint: &str| Err(Error::new(Kind::Busy, format!("{name} {why}")).hint(hint));
    if let Some(reason) = discover::unsupported(machine) {
        return Err(Error::new(Kind::Unsupported, format!("{name}: {reason}")));
    }
    if machine.power != Power::Off {
        return busy("is not switched off", "switch it off; it is written onto only then");
    }
    if !machine.snapshots.is_empty() {
        return busy("has snapshots", "remove them; what is written below a snapshot breaks it");
    }
    if machine.consolidation_needed {
        return busy("has files of removed snapshots", "consolidate its disks first");
    }
    let find = |wanted: &RemoteDisk| {
        let found = machine.devices.disks.iter().find(|disk| discover::key(disk) == wanted.key);
        let disk = found.ok_or_else(|| Error::new(Kind::NotFound, format!("{name} has no {}", wanted.key)))?;
        if let Some(reason) = discover::disk_unsupported(&machine.devices, disk) {
            return Err(Error::new(Kind::Unsupported, format!("{} of {name}: {reason}", disk.label)));
        }
        if disk.capacity_bytes != wanted.capacity_bytes {
            let (has, had) = (disk.capacity_bytes, wanted.capacity_bytes);
            let message = format!("{} of {name} has {has} bytes, the point's {had}", disk.label);
            return Err(Error::new(Kind::Invalid, message).hint("restore into a new machine, or that disk to a file"));
        }
        Ok(disk.clone())
    };
    wanted.iter().map(find).collect()
}

impl OntoVm {
    /// The disks as they are now; nobody may have started the machine or made a snapshot meanwhile.
    fn look(&self, cancel: &Cancel) -> Result<Vec<Disk>> {
        disks(&self.vim.machine(&self.machine, cancel)?, &self.wanted)
    }
}

impl Overwriting for OntoVm {
    fn open(&self, disk: usize, cancel: &Cancel) -> Result<Volume> {
        let disks = self.look(cancel)?;
        let found = disks.get(disk).ok_or_else(|| Error::new(Kind::NotFound, format!("there is no disk {disk}")))?;
        let access = Access::new(&self.settings, &self.vim, &self.machine, None)?;
        let kit = Kit::start(&self.owner, &access, found.backing.file_name.as_deref().unwrap_or_default(), cancel)?;
        let served = kit.size();
        if served.0 != found.capacity_bytes {
            let message = format!("VDDK serves {served} where the server says {}", found.capacity_bytes);
            return Err(Error::new(Kind::Disturbed, message));
        }
        Ok(Volume::new(Arc::new(kit)))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let looked = self.look(&Cancel::new()).map(drop);
        self.vim.log_out(&Cancel::new());
        looked
    }
}
