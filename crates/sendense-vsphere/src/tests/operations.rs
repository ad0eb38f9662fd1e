//! Every operation once, against a server that agrees to everything: used by the schema's check.

use super::{Script, object};
use crate::change::Question;
use crate::machine::{CardNetwork, NewCard, NewController, NewDisk, NewMachine};
use crate::{Ref, Result};
use sendense_block::{ByteLen, Cancel};
use std::sync::Arc;

/// A machine with everything that a specification may have.
pub fn new_machine() -> NewMachine {
    let card = |key, network, mac: Option<&str>| NewCard {
        key,
        kind: "VirtualVmxnet3".into(),
        network,
        mac: mac.map(Into::into),
        connected: false,
    };
    NewMachine {
        name: "web <1>".into(),
        uuid: Some("564d".into()),
        instance_uuid: Some("502c".into()),
        datastore: "ds & co".into(),
        hardware_version: Some(9),
        guest_id: "debian12_64Guest".into(),
        firmware: Some("efi".into()),
        cpu_count: 2,
        cores_per_socket: Some(1),
        memory_mb: 512,
        controllers: ["ParaVirtualSCSIController", "VirtualLsiLogicSASController", "VirtualAHCIController"]
            .iter()
            .chain(&["VirtualNVMEController", "VirtualBusLogicController", "VirtualLsiLogicController"])
            .zip(0..)
            .map(|(kind, n)| NewController { key: 1000 + n, kind: (*kind).into(), bus_number: n })
            .collect(),
        disks: vec![NewDisk {
            key: -1,
            controller_key: 1000,
            unit_number: 0,
            datastore: "ds".into(),
            capacity_bytes: 1 << 20,
        }],
        cards: vec![
            card(-2, CardNetwork::Standard("VM Network".into()), Some("00:50:56:00:00:01")),
            card(
                -3,
                CardNetwork::Distributed { switch_uuid: "50 2c".into(), portgroup_key: "dvportgroup-7".into() },
                None,
            ),
        ],
        annotation: "restored".into(),
    }
}

/// Answers whatever is asked with what is asked for.
fn agreeable(method: &str) -> String {
    let machine = object("VirtualMachine", "vm-1", &[("name", "web")]);
    let task = object("Task", "task-1", &[("info.state", "success")]).replace(
        "</objects>",
        "<propSet><name>info.result</name><val type=\"VirtualMachine\">vm-9</val></propSet></objects>",
    );
    match method {
        "CreateContainerView" => "<returnval type=\"ContainerView\">session[1]view</returnval>".into(),
        "RetrievePropertiesEx" => {
            let snapshot = object("VirtualMachineSnapshot", "snap-1", &[("config.hardware.device", "")]);
            format!("<returnval><token>1</token>{machine}{task}{snapshot}</returnval>")
        }
        "ContinueRetrievePropertiesEx" => format!("<returnval>{machine}</returnval>"),
        "QueryChangedDiskAreas" => "<returnval><startOffset>0</startOffset><length>1048576</length></returnval>".into(),
        "FindByUuid" => "<returnval type=\"VirtualMachine\">vm-1</returnval>".into(),
        "HasPrivilegeOnEntities" => "<returnval><entity type=\"Folder\">group-d1</entity><privAvailability>\
             <privId>a</privId><isGranted>true</isGranted></privAvailability></returnval>"
            .into(),
        task if task.ends_with("_Task") => "<returnval type=\"Task\">task-1</returnval>".into(),
        _ => String::new(),
    }
}

/// Calls everything; gives what was sent.
pub fn everything() -> Vec<(String, String)> {
    let script = Script::new(|method, _| Ok(agreeable(method)));
    call_all(&script).unwrap();
    // A task that nobody waits for any more is cancelled.
    let stop = Cancel::new();
    let stopped = stop.clone();
    let waiting = Script::new(move |method, _| {
        if method != "RetrievePropertiesEx" {
            return Ok(agreeable(method));
        }
        stop.cancel();
        Ok(format!("<returnval>{}</returnval>", object("Task", "task-1", &[("info.state", "running")])))
    });
    let machine = Ref::new("VirtualMachine", "vm-1");
    assert!(waiting.connect().create_snapshot(&machine, "n", "d", false, &stopped).is_err());
    let both = [script.sent.lock().clone(), waiting.sent.lock().clone()];
    both.concat()
}

fn call_all(script: &Arc<Script>) -> Result<()> {
    let cancel = &Cancel::new();
    let vim = script.connect();
    let (machine, snapshot) = (Ref::new("VirtualMachine", "vm-1"), Ref::new("VirtualMachineSnapshot", "snap-1"));
    vim.keep_alive(cancel)?;
    assert_eq!(vim.machines(cancel)?.len(), 4);
    assert_eq!(vim.machine(&machine, cancel)?.name, "web");
    vim.folders(cancel)?;
    vim.port_groups(cancel)?;
    vim.name_of(&machine, cancel)?;
    vim.named(&machine, "datastore", cancel)?;
    assert_eq!(vim.find_machine("uuid", cancel)?, Some(machine.clone()));
    vim.snapshot_devices(&snapshot, cancel)?;
    vim.set_change_tracking(&machine, true, cancel)?;
    assert_eq!(vim.create_snapshot(&machine, "n", "d", true, cancel)?.id, "vm-9");
    vim.remove_snapshot(&snapshot, cancel)?;
    vim.consolidate(&machine, cancel)?;
    let question =
        Question { machine: &machine, snapshot: &snapshot, disk_key: 2000, capacity: ByteLen(1 << 20), since: "*" };
    assert!(vim.changed_areas(&question, cancel)?.is_empty());
    let pool = Ref::new("ResourcePool", "pool-1");
    vim.create_machine(&Ref::new("Folder", "v"), &pool, Some(&Ref::new("HostSystem", "h")), &new_machine(), cancel)?;
    vim.is_named("web", cancel)?;
    assert_eq!(vim.marks(cancel)?.len(), 4);
    vim.annotate(&machine, "restored & whole", cancel)?;
    vim.datacenters(cancel)?;
    vim.datastores(cancel)?;
    vim.computes(cancel)?;
    vim.hosts(cancel)?;
    vim.networks(cancel)?;
    vim.power_on(&machine, cancel)?;
    vim.power_off(&machine, cancel)?;
    vim.destroy(&machine, cancel)?;
    vim.unregister(&machine, cancel)?;
    assert_eq!(vim.missing_privileges(vim.root_folder(), &["a", "b"], cancel)?, ["b"]);
    vim.log_out(cancel);
    Ok(())
}
