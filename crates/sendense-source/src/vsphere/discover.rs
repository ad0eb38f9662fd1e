//! Machines as found: the words of [`DiscoveredVm`] made of what the server says.
//!
//! What lives here: which disks can be backed up and what they are, and why not. What does not: asking (`sendense_vsphere`).

use crate::error::{Error, Kind, Result};
use crate::model::{DiscoveredDisk, DiscoveredVm, Network, VmRef};
use sendense_block::{ByteLen, Cancel};
use sendense_types::{DiskBinding, PowerState};
use sendense_vsphere::Vim;
use sendense_vsphere::device::{Card, Devices, Disk};
use sendense_vsphere::inventory::{Machine, Power};
use std::collections::BTreeMap;

/// The oldest hardware that tracks changes.
const HARDWARE_MIN: u32 = 7;

/// All machines, templates too.
pub(super) fn all(vim: &Vim, cancel: &Cancel) -> Result<Vec<DiscoveredVm>> {
    let machines = vim.machines(cancel)?;
    let (folders, groups) = (vim.folders(cancel)?, groups(vim, &machines, cancel)?);
    let told = machines.iter().filter_map(|machine| {
        let path = folders.path(machine.parent.as_ref(), &machine.name);
        let told = describe(machine, &groups);
        let told =
            told.map(|vm| DiscoveredVm { path: Some(path), folder: folders.folder(machine.parent.as_ref()), ..vm });
        if told.is_none() {
            tracing::warn!(machine = machine.name, "a machine has no instance uuid and is left out");
        }
        told
    });
    Ok(told.collect())
}

/// The machine with that uuid as the server has it now.
pub(super) fn look(vim: &Vim, instance_uuid: &str, cancel: &Cancel) -> Result<Machine> {
    let gone = || Error::new(Kind::NotFound, format!("{} has no machine {instance_uuid}", vim.address()));
    let found = vim.find_machine(instance_uuid, cancel)?.ok_or_else(gone)?;
    Ok(vim.machine(&found, cancel)?)
}

/// The words for one machine.
pub(super) fn one(vim: &Vim, machine: &Machine, cancel: &Cancel) -> Result<DiscoveredVm> {
    let groups = groups(vim, std::slice::from_ref(machine), cancel)?;
    describe(machine, &groups)
        .ok_or_else(|| Error::new(Kind::NotFound, format!("the machine {} has no instance uuid", machine.name)))
}

/// Names of distributed port groups, where a card asks for them.
pub(super) fn groups(vim: &Vim, machines: &[Machine], cancel: &Cancel) -> Result<BTreeMap<String, String>> {
    let by_key = |card: &Card| card.network.is_some() && card.network_ref.is_none();
    match machines.iter().flat_map(|machine| &machine.devices.cards).any(by_key) {
        true => Ok(vim.port_groups(cancel)?),
        false => Ok(BTreeMap::new()),
    }
}

/// A machine without its place, which the machine itself does not tell.
fn describe(machine: &Machine, groups: &BTreeMap<String, String>) -> Option<DiscoveredVm> {
    let devices = &machine.devices;
    let disks: Vec<DiscoveredDisk> = devices.disks.iter().map(|disk| describe_disk(devices, disk)).collect();
    let unsupported = unsupported(machine).map(str::to_owned).or_else(|| {
        disks.iter().all(|disk| disk.unsupported.is_some()).then(|| "it has no disk that can be read".to_owned())
    });
    Some(DiscoveredVm {
        vm: VmRef { instance_uuid: machine.instance_uuid.clone()?, name: machine.name.clone() },
        path: None,
        folder: None,
        power_state: match machine.power {
            // A suspended machine's memory is on disk: it cannot be quiesced, but it is not off either.
            Power::On | Power::Suspended => PowerState::On,
            Power::Off => PowerState::Off,
            Power::Unknown => PowerState::Unknown,
        },
        guest_os: machine.guest_name.clone().or_else(|| machine.guest_id.clone()),
        cpu_count: machine.cpu_count,
        memory_bytes: machine.memory_mb.and_then(|mb| mb.checked_mul(1 << 20)),
        disks,
        networks: devices.cards.iter().map(|card| describe_card(card, groups)).collect(),
        hardware: machine.hardware_version.map(|version| format!("vmx-{version:02}")),
        snapshots: machine.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
        change_tracking: tracking(machine),
        unsupported,
    })
}

/// Why a machine cannot be backed up as it is, or none.
pub(super) fn unsupported(machine: &Machine) -> Option<&'static str> {
    if machine.is_template {
        return Some("it is a template, of which no snapshot can be made; convert it to a machine");
    }
    match machine.connection.as_str() {
        "connected" => None,
        "disconnected" => Some("its host is not connected to the vCenter"),
        "inaccessible" => Some("its files cannot be reached by its host"),
        "orphaned" => Some("the vCenter has lost its host"),
        _ => Some("its configuration is not valid"),
    }
}

/// Whether changes are tracked at the next snapshot, and if not, why.
pub(super) fn tracking(machine: &Machine) -> Result<(), String> {
    match (machine.change_tracking, can_be_switched_on(machine)) {
        (true, _) | (false, Ok(())) => Ok(()),
        (false, Err(reason)) => Err(reason.to_owned()),
    }
}

/// Whether tracking may be switched on now. With a snapshot there the host would say too little without an error (VMware's
/// KB 1020128), so it is not.
pub(super) fn can_be_switched_on(machine: &Machine) -> Result<(), &'static str> {
    if !machine.change_tracking_supported {
        Err("the host cannot track the changes of this machine")
    } else if machine.hardware_version.is_some_and(|version| version < HARDWARE_MIN) {
        Err("its virtual hardware is older than version 7")
    } else if !machine.snapshots.is_empty() {
        Err("change tracking is off, and must not be switched on while the machine has snapshots")
    } else {
        Ok(())
    }
}

/// The key of a disk within the machine.
pub(super) fn key(disk: &Disk) -> String {
    format!("disk-{}", disk.key)
}

/// What a disk is: its key together with its backing's uuid, which snapshots, renames and moves leave alone.
pub(super) fn binding(disk: &Disk) -> Option<DiskBinding> {
    Some(DiskBinding(format!("{}:{}", disk.key, disk.backing.uuid.as_deref()?)))
}

/// Why a disk cannot be backed up, or none.
pub(super) fn disk_unsupported(devices: &Devices, disk: &Disk) -> Option<String> {
    let backing = &disk.backing;
    let shared = |mode: &str| matches!(mode, "virtualSharing" | "physicalSharing");
    // A raw device in physical mode is independent, too, and cannot be made dependent.
    if backing.compatibility_mode.as_deref() == Some("physicalMode") {
        Some("it is a raw device in physical mode, which snapshots leave out".into())
    } else if backing.mode.as_deref().is_some_and(|mode| mode.starts_with("independent")) {
        Some("it is independent: snapshots leave it out".into())
    } else if backing.sharing.as_deref() == Some("sharingMultiWriter") {
        Some("several machines write to it".into())
    } else if devices.controller_of(disk).and_then(|one| one.shared_bus.as_deref()).is_some_and(shared) {
        Some("its controller is shared with other machines".into())
    } else if backing.uuid.is_none() {
        Some("it has no uuid by which it could be known again".into())
    } else if backing.file_name.is_none() {
        Some("the server does not say where it lies".into())
    } else if !disk.capacity_bytes.is_multiple_of(512) {
        Some("its size is no multiple of 512".into())
    } else {
        None
    }
}

fn describe_disk(devices: &Devices, disk: &Disk) -> DiscoveredDisk {
    DiscoveredDisk {
        key: key(disk),
        label: disk.label.clone(),
        // One without uuid is told, and never asked for.
        binding: binding(disk).unwrap_or_else(|| DiskBinding(key(disk))),
        capacity: ByteLen(disk.capacity_bytes),
        format: "vmdk".into(),
        datastore: disk.backing.datastore().map(str::to_owned),
        path: disk.backing.file_name.clone(),
        mode: disk.backing.mode.clone(),
        unsupported: disk_unsupported(devices, disk),
    }
}

fn describe_card(card: &Card, groups: &BTreeMap<String, String>) -> Network {
    let named = card.network.clone().unwrap_or_default();
    Network {
        key: card.key.to_string(),
        network: groups.get(&named).cloned().unwrap_or(named),
        mac: card.mac.clone(),
        model: Some(card.kind.strip_prefix("Virtual").unwrap_or(&card.kind).to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_vsphere::device::Backing;

    #[test]
    fn disks_that_snapshots_leave_out_are_shown_with_the_reason() {
        let good = Backing {
            kind: "VirtualDiskFlatVer2BackingInfo".into(),
            file_name: Some("[ds] web/web.vmdk".into()),
            uuid: Some("6000C29f".into()),
            mode: Some("persistent".into()),
            ..Backing::default()
        };
        let told = |change: &dyn Fn(&mut Backing)| {
            let mut disk = Disk {
                key: 2000,
                label: "Hard disk 1".into(),
                capacity_bytes: 1 << 20,
                controller_key: Some(1000),
                unit_number: Some(0),
                backing: good.clone(),
            };
            change(&mut disk.backing);
            let told = describe_disk(&Devices::default(), &disk);
            assert_eq!((&told.path, &told.mode), (&disk.backing.file_name, &disk.backing.mode));
            told.unsupported
        };
        assert_eq!(told(&|_| {}), None);
        for (change, reason) in [
            (
                &(|disk: &mut Backing| disk.mode = Some("independent_persistent".into())) as &dyn Fn(&mut _),
                "independent",
            ),
            (&|disk: &mut Backing| disk.mode = Some("independent_nonpersistent".into()), "independent"),
            (&|disk: &mut Backing| disk.compatibility_mode = Some("physicalMode".into()), "physical mode"),
            (&|disk: &mut Backing| disk.sharing = Some("sharingMultiWriter".into()), "several machines"),
            (&|disk: &mut Backing| disk.uuid = None, "no uuid"),
            (&|disk: &mut Backing| disk.file_name = None, "where it lies"),
        ] {
            let found = told(change).unwrap();
            assert!(found.contains(reason), "{found}");
        }
        assert_eq!(told(&|disk: &mut Backing| disk.compatibility_mode = Some("virtualMode".into())), None);
    }
}
