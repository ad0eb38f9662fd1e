//! A machine's devices: disks with their backings, controllers, network cards.
//!
//! What lives here: reading them from `config.hardware.device`, of a machine or of a snapshot. What does not: which disk can
//! be backed up; that is the source's business. A device that lacks what every device has is left out.

use crate::reply::{reference_at, short};
use crate::request::Ref;
use crate::xml::Element;

/// The devices that matter to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// Disks, by their keys.
    pub disks: Vec<Disk>,
    /// Controllers that disks hang on.
    pub controllers: Vec<Controller>,
    /// Network cards.
    pub cards: Vec<Card>,
    /// True when there is a virtual TPM.
    pub has_tpm: bool,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its key: 2000 and up. It names controller and unit, not the disk: see `backing`.
    pub key: i32,
    /// `Hard disk 1`.
    pub label: String,
    /// Its size.
    pub capacity_bytes: u64,
    /// The controller that it hangs on.
    pub controller_key: Option<i32>,
    /// Its place there.
    pub unit_number: Option<i32>,
    /// Where its bytes are.
    pub backing: Backing,
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backing {
    /// The schema's type: `VirtualDiskFlatVer2BackingInfo`.
    pub kind: String,
    /// `[datastore1] vm/vm.vmdk`; with a snapshot, the newest delta.
    pub file_name: Option<String>,
    /// What the disk is, through snapshots, renames and moves between datastores.
    pub uuid: Option<String>,
    /// `persistent`, `independent_persistent` …
    pub mode: Option<String>,
    /// What changes are asked against; none where changes are not tracked.
    pub change_id: Option<String>,
    /// True where blocks are allocated as they are written.
    pub thin: Option<bool>,
    /// Raw device mappings: `physicalMode` or `virtualMode`.
    pub compatibility_mode: Option<String>,
    /// `sharingMultiWriter` where several machines write.
    pub sharing: Option<String>,
    /// True for an encrypted disk.
    pub encrypted: bool,
    /// The files below the newest delta, newest first.
    pub parents: Vec<String>,
}

impl Backing {
    /// The datastore's name, from the file's.
    pub fn datastore(&self) -> Option<&str> {
        let rest = self.file_name.as_deref()?.strip_prefix('[')?;
        rest.split_once(']').map(|(name, _)| name)
    }
}

/// A controller of disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Its key.
    pub key: i32,
    /// The schema's type: `ParaVirtualSCSIController`.
    pub kind: String,
    /// Its number among those of its sort.
    pub bus_number: i32,
    /// `noSharing`, `virtualSharing`, `physicalSharing`.
    pub shared_bus: Option<String>,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its key.
    pub key: i32,
    /// The schema's type: `VirtualVmxnet3`.
    pub kind: String,
    /// `Network adapter 1`.
    pub label: String,
    /// The network's name, or a distributed port group's key.
    pub network: Option<String>,
    /// The network as an object, where it is a standard one.
    pub network_ref: Option<Ref>,
    /// Its MAC address.
    pub mac: Option<String>,
}

/// Files below a delta that are told at the most: ESXi allows 32 snapshots (KB 1025279), linked clones some more.
const PARENTS_MAX: usize = 100;

/// The types that are network cards; there is no other way to know them in a reply.
const CARDS: [&str; 7] = [
    "VirtualE1000",
    "VirtualE1000e",
    "VirtualPCNet32",
    "VirtualSriovEthernetCard",
    "VirtualVmxnet",
    "VirtualVmxnet2",
    "VirtualVmxnet3",
];

impl Devices {
    /// Reads the value of `config.hardware.device`.
    pub fn read(devices: &Element) -> Self {
        let mut found = Self::default();
        for device in &devices.children {
            let Some(kind) = device.xsi_type.as_deref() else { continue };
            match kind {
                "VirtualDisk" => found.disks.extend(disk(device)),
                "VirtualTPM" => found.has_tpm = true,
                kind if CARDS.contains(&kind) || kind.ends_with("EthernetCard") => {
                    found.cards.extend(card(device, kind));
                }
                kind if kind.ends_with("Controller") => found.controllers.extend(controller(device, kind)),
                _ => {}
            }
        }
        // A disk that was changed comes last in some answers; people and tests want it at its place.
        found.disks.sort_by_key(|disk| disk.key);
        found
    }

    /// The disk with that key.
    pub fn disk(&self, key: i32) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.key == key)
    }

    /// The controller that a disk hangs on.
    pub fn controller_of(&self, disk: &Disk) -> Option<&Controller> {
        self.controllers.iter().find(|controller| Some(controller.key) == disk.controller_key)
    }
}

fn disk(device: &Element) -> Option<Disk> {
    let key = device.number_at("key")?;
    let kilobytes = || device.number_at::<u64>("capacityInKB")?.checked_mul(1024);
    Some(Disk {
        key,
        label: label(device, key),
        // The one in KB is rounded, and the only one that old servers know.
        capacity_bytes: device.number_at("capacityInBytes").filter(|bytes| *bytes > 0).or_else(kilobytes)?,
        controller_key: device.number_at("controllerKey"),
        unit_number: device.number_at("unitNumber"),
        backing: device.child("backing").map(backing).unwrap_or_default(),
    })
}

fn backing(backing: &Element) -> Backing {
    let text = |name: &str| backing.text_at(name).map(str::to_owned);
    let mut parents = Vec::new();
    let mut below = backing.child("parent");
    while let (Some(parent), true) = (below, parents.len() < PARENTS_MAX) {
        parents.extend(parent.text_at("fileName").map(str::to_owned));
        below = parent.child("parent");
    }
    Backing {
        kind: backing.xsi_type.clone().unwrap_or_default(),
        file_name: text("fileName"),
        uuid: text("uuid"),
        mode: text("diskMode"),
        change_id: text("changeId"),
        thin: backing.flag_at("thinProvisioned"),
        compatibility_mode: text("compatibilityMode"),
        sharing: text("sharing"),
        encrypted: backing.child("keyId").is_some(),
        parents,
    }
}

fn controller(device: &Element, kind: &str) -> Option<Controller> {
    Some(Controller {
        key: device.number_at("key")?,
        kind: kind.to_owned(),
        bus_number: device.number_at("busNumber")?,
        shared_bus: device.text_at("sharedBus").map(str::to_owned),
    })
}

fn card(device: &Element, kind: &str) -> Option<Card> {
    let key = device.number_at("key")?;
    let named = device.text_at("backing.deviceName").or_else(|| device.text_at("backing.port.portgroupKey"));
    Some(Card {
        key,
        kind: kind.to_owned(),
        label: label(device, key),
        network: named.map(short),
        network_ref: reference_at(device, "backing.network"),
        mac: device.text_at("macAddress").map(short),
    })
}

fn label(device: &Element, key: i32) -> String {
    device.text_at("deviceInfo.label").map_or_else(|| format!("device {key}"), short)
}
