//! A machine's configuration as it goes into the manifest: what a restore needs to make it anew, as JSON with names of ours.

use crate::model::ConfigDocument;
use sendense_vsphere::inventory::Machine;
use serde_json::json;
use std::collections::BTreeMap;

/// The facts, and what could not be had. `groups` are the names of distributed port groups by their keys.
pub(super) fn documents(machine: &Machine, groups: &BTreeMap<String, String>) -> Vec<ConfigDocument> {
    let devices = &machine.devices;
    let disks = devices.disks.iter().map(|disk| {
        json!({
            "key": disk.key, "label": disk.label, "capacity_bytes": disk.capacity_bytes, "uuid": disk.backing.uuid,
            "controller_key": disk.controller_key, "unit_number": disk.unit_number, "file": disk.backing.file_name,
            "mode": disk.backing.mode, "thin": disk.backing.thin, "encrypted": disk.backing.encrypted,
        })
    });
    let controllers = devices.controllers.iter().map(
        |one| json!({ "key": one.key, "type": one.kind, "bus_number": one.bus_number, "shared_bus": one.shared_bus }),
    );
    let cards = devices.cards.iter().map(|card| {
        json!({
            "key": card.key, "type": card.kind, "label": card.label, "network": card.network,
            // Of a distributed port group's card only its key is known; people know its name.
            "network_name": card.network.as_ref().map(|network| groups.get(network).unwrap_or(network)),
            "network_id": card.network_ref.as_ref().map(|network| &network.id), "mac": card.mac,
        })
    });
    let facts = json!({
        "source": "vsphere",
        "name": machine.name,
        "instance_uuid": machine.instance_uuid,
        "bios_uuid": machine.bios_uuid,
        "guest_id": machine.guest_id,
        "guest_name": machine.guest_name,
        "firmware": machine.firmware,
        "hardware_version": machine.hardware_version,
        "cpu_count": machine.cpu_count,
        "cores_per_socket": machine.cores_per_socket,
        "memory_mb": machine.memory_mb,
        "vmx_path": machine.vmx_path,
        "controllers": controllers.collect::<Vec<_>>(),
        "disks": disks.collect::<Vec<_>>(),
        "networks": cards.collect::<Vec<_>>(),
    });
    let missing =
        |kind: &str, why: &str| ConfigDocument { kind: kind.into(), content: None, missing: Some(why.into()) };
    let mut documents = vec![ConfigDocument { kind: "facts".into(), content: Some(facts.to_string()), missing: None }];
    if machine.firmware.as_deref() == Some("efi") {
        documents.push(missing("nvram", "the firmware's variables are not read: boot entries are made anew"));
    }
    if devices.has_tpm {
        let why = "the state of a virtual TPM cannot be read: what it has sealed is lost with the machine";
        documents.push(missing("vtpm-state", why));
    }
    documents
}
