//! Changing machines: change tracking, making one anew, power, removal.
//!
//! What lives here: the specifications of VMware's schema, in its order. What does not: what a restored machine should look
//! like; whoever restores fills in [`NewMachine`].

use crate::client::Vim;
use crate::error::{Error, Result};
use crate::reply::reference;
use crate::request::{Body, Method, Ref};
use crate::task::OnStop;
use sendense_block::Cancel;
use std::time::Duration;

/// How long a change of a machine may take: a reconfiguration waits for its host.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// How long making one may take: thick disks are written before they are there, which is not asked for, but datastores may
/// insist.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// A machine to be made; it is powered off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachine {
    /// Its name.
    pub name: String,
    /// What it is for its BIOS; the server makes one when none.
    pub uuid: Option<String>,
    /// What it is within the vCenter; the server makes one when none.
    pub instance_uuid: Option<String>,
    /// The datastore that holds its configuration.
    pub datastore: String,
    /// The hardware's version; the host's newest when none.
    pub hardware_version: Option<u32>,
    /// The guest, as VMware's lists call it.
    pub guest_id: String,
    /// `bios` or `efi`.
    pub firmware: Option<String>,
    /// Virtual processors.
    pub cpu_count: u32,
    /// Processors per socket.
    pub cores_per_socket: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Controllers, with keys that the disks name.
    pub controllers: Vec<NewController>,
    /// Disks.
    pub disks: Vec<NewDisk>,
    /// Network cards.
    pub cards: Vec<NewCard>,
    /// A line for people.
    pub annotation: String,
}

/// A controller of a machine to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewController {
    /// Its key within the specification.
    pub key: i32,
    /// The schema's type: `ParaVirtualSCSIController`. Those whose name ends in `SATAController` or is
    /// `VirtualNVMEController` have no shared bus.
    pub kind: String,
    /// Its number among those of its sort.
    pub bus_number: i32,
}

/// A disk of a machine to be made: thin, empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// Its key within the specification; negative, so that the server chooses.
    pub key: i32,
    /// The controller.
    pub controller_key: i32,
    /// The place on it.
    pub unit_number: i32,
    /// The datastore.
    pub datastore: String,
    /// Its size; a multiple of 1024.
    pub capacity_bytes: u64,
}

/// A network card of a machine to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCard {
    /// Its key within the specification; negative.
    pub key: i32,
    /// The schema's type: `VirtualVmxnet3`.
    pub kind: String,
    /// What it is on.
    pub network: CardNetwork,
    /// A MAC address to keep; the server makes one when none.
    pub mac: Option<String>,
    /// Connected when the machine is powered on. A restored machine beside its original had better not be.
    pub connected: bool,
}

/// What a card is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CardNetwork {
    /// A standard network, by name.
    Standard(String),
    /// A port group of a distributed switch.
    Distributed {
        /// The switch's uuid.
        switch_uuid: String,
        /// The port group's key.
        portgroup_key: String,
    },
}

impl Vim {
    /// Switches change tracking on or off. It takes effect at the next stun: a snapshot, a power cycle.
    pub fn set_change_tracking(&self, machine: &Ref, on: bool, cancel: &Cancel) -> Result<()> {
        let spec = |body: &mut Body| {
            body.object("spec", |body| _ = body.value("changeTrackingEnabled", on));
        };
        self.run(Method::ReconfigVM, machine, spec, (CHANGE_TIMEOUT, OnStop::Cancel), cancel).map(drop)
    }

    /// Sets a machine's notes.
    pub fn annotate(&self, machine: &Ref, text: &str, cancel: &Cancel) -> Result<()> {
        let spec = |body: &mut Body| {
            body.object("spec", |body| _ = body.value("annotation", text));
        };
        self.run(Method::ReconfigVM, machine, spec, (CHANGE_TIMEOUT, OnStop::Cancel), cancel).map(drop)
    }

    /// Makes a machine in a folder, run by a pool (and a host, where the pool has several and one is wanted).
    pub fn create_machine(
        &self,
        folder: &Ref,
        pool: &Ref,
        host: Option<&Ref>,
        new: &NewMachine,
        cancel: &Cancel,
    ) -> Result<Ref> {
        const METHOD: Method = Method::CreateVM;
        let parameters = |body: &mut Body| {
            body.object("config", |body| config(body, new)).reference("pool", pool);
            if let Some(host) = host {
                body.reference("host", host);
            }
        };
        let made = self.run(METHOD, folder, parameters, (CREATE_TIMEOUT, OnStop::Cancel), cancel)?;
        made.as_ref()
            .and_then(reference)
            .ok_or_else(|| Error::Reply { method: METHOD.name().into(), problem: "the task names no machine".into() })
    }

    /// Powers a machine on.
    pub fn power_on(&self, machine: &Ref, cancel: &Cancel) -> Result<()> {
        self.run(Method::PowerOnVM, machine, |_| {}, (CHANGE_TIMEOUT, OnStop::Cancel), cancel).map(drop)
    }

    /// Powers a machine off, as by its switch.
    pub fn power_off(&self, machine: &Ref, cancel: &Cancel) -> Result<()> {
        self.run(Method::PowerOffVM, machine, |_| {}, (CHANGE_TIMEOUT, OnStop::Cancel), cancel).map(drop)
    }

    /// Removes a machine and its files.
    pub fn destroy(&self, machine: &Ref, cancel: &Cancel) -> Result<()> {
        self.run(Method::Destroy, machine, |_| {}, (CHANGE_TIMEOUT, OnStop::Cancel), cancel).map(drop)
    }

    /// Forgets a machine and leaves its files.
    pub fn unregister(&self, machine: &Ref, cancel: &Cancel) -> Result<()> {
        self.call(Method::UnregisterVM, machine, |_| {}, cancel).map(drop)
    }
}

fn config(body: &mut Body, new: &NewMachine) {
    body.value("name", &new.name);
    body.value_if("version", new.hardware_version.map(|version| format!("vmx-{version:02}")));
    body.value_if("uuid", new.uuid.as_ref()).value_if("instanceUuid", new.instance_uuid.as_ref());
    body.value("guestId", &new.guest_id).value("annotation", &new.annotation);
    body.object("files", |body| _ = body.value("vmPathName", format!("[{}]", new.datastore)));
    body.value("numCPUs", new.cpu_count).value_if("numCoresPerSocket", new.cores_per_socket);
    body.value("memoryMB", new.memory_mb);
    for controller in &new.controllers {
        added(body, None, &controller.kind, |body| {
            body.value("key", controller.key).value("busNumber", controller.bus_number);
            if controller.kind.contains("SCSI") || controller.kind.contains("Logic") {
                body.value("sharedBus", "noSharing");
            }
        });
    }
    for disk in &new.disks {
        added(body, Some("create"), "VirtualDisk", |body| {
            body.value("key", disk.key);
            body.typed("backing", "VirtualDiskFlatVer2BackingInfo", |body| {
                body.value("fileName", format!("[{}]", disk.datastore)).value("diskMode", "persistent");
                body.value("thinProvisioned", true);
            });
            body.value("controllerKey", disk.controller_key).value("unitNumber", disk.unit_number);
            body.value("capacityInKB", disk.capacity_bytes.div_ceil(1024));
            body.value("capacityInBytes", disk.capacity_bytes);
        });
    }
    for card in &new.cards {
        added(body, None, &card.kind, |body| {
            body.value("key", card.key);
            match &card.network {
                CardNetwork::Standard(name) => {
                    body.typed("backing", "VirtualEthernetCardNetworkBackingInfo", |body| {
                        body.value("deviceName", name);
                    });
                }
                CardNetwork::Distributed { switch_uuid, portgroup_key } => {
                    body.typed("backing", "VirtualEthernetCardDistributedVirtualPortBackingInfo", |body| {
                        body.object("port", |body| {
                            body.value("switchUuid", switch_uuid).value("portgroupKey", portgroup_key);
                        });
                    });
                }
            }
            body.object("connectable", |body| {
                body.value("startConnected", card.connected).value("allowGuestControl", true);
                body.value("connected", card.connected);
            });
            body.value("addressType", if card.mac.is_some() { "manual" } else { "generated" });
            body.value_if("macAddress", card.mac.as_ref());
        });
    }
    body.value_if("firmware", new.firmware.as_ref());
}

/// A device that is added, with its file where it has one.
fn added(body: &mut Body, file: Option<&str>, kind: &str, fields: impl FnOnce(&mut Body)) {
    body.object("deviceChange", |body| {
        body.value("operation", "add").value_if("fileOperation", file);
        body.typed("device", kind, fields);
    });
}
