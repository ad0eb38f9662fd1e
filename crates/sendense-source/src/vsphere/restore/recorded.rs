//! A machine's recorded configuration, read back from a point: what a restore may believe of it.
//!
//! What lives here: the words of `facts`, and which of their values a new machine may have. What does not: where it goes.
//! Pure. Invariant: the document comes from a repository's folder. What is not known to be harmless is replaced and told,
//! and a value that makes no sense is refused before anything is made.

use crate::error::{Error, Kind, Result};
use crate::model::ConfigDocument;
use sendense_vsphere::machine::NewController;
use serde::Deserialize;

/// The controllers that disks can hang on, with the number of places on each. IDE's two are in every machine.
const CONTROLLERS: [(&str, i32); 7] = [
    ("ParaVirtualSCSIController", 64),
    ("VirtualLsiLogicController", 16),
    ("VirtualLsiLogicSASController", 16),
    ("VirtualBusLogicController", 16),
    ("VirtualAHCIController", 30),
    ("VirtualNVMEController", 15),
    (IDE, 2),
];
/// What every machine has by itself.
const IDE: &str = "VirtualIDEController";
/// The keys of the two that every machine has.
const IDE_KEYS: [i32; 2] = [200, 201];
/// Network cards that a new machine gets as they were; others become the one that every system of today knows.
const CARDS: [&str; 4] = ["VirtualVmxnet3", "VirtualVmxnet2", "VirtualE1000", "VirtualE1000e"];
const CARD_DEFAULT: &str = "VirtualE1000e";
/// VMware's configuration maximums for vSphere 8, and what a name may have.
const CPUS_MAX: u32 = 768;
const MEMORY_MB_MAX: u64 = 24 << 20;
const CARDS_MAX: usize = 10;
const DISKS_MAX: usize = 256;
const CONTROLLERS_MAX: usize = 16;

/// What is recorded, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Recorded {
    pub source: String,
    pub instance_uuid: Option<String>,
    pub bios_uuid: Option<String>,
    pub guest_id: Option<String>,
    pub firmware: Option<String>,
    pub hardware_version: Option<u32>,
    pub cpu_count: Option<u32>,
    pub cores_per_socket: Option<u32>,
    pub memory_mb: Option<u64>,
    pub vmx_path: Option<String>,
    pub controllers: Vec<RecordedController>,
    pub disks: Vec<RecordedDisk>,
    pub networks: Vec<RecordedCard>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct RecordedController {
    pub key: i32,
    #[serde(rename = "type")]
    pub kind: String,
    pub bus_number: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct RecordedDisk {
    pub key: i32,
    pub label: String,
    pub controller_key: Option<i32>,
    pub unit_number: Option<i32>,
    pub file: Option<String>,
    pub encrypted: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct RecordedCard {
    #[serde(rename = "type")]
    pub kind: String,
    pub label: String,
    pub network: Option<String>,
    pub network_name: Option<String>,
    pub mac: Option<String>,
}

impl RecordedCard {
    /// The network's name as people know it.
    pub fn network(&self) -> Option<&str> {
        self.network_name.as_deref().or(self.network.as_deref())
    }
}

/// A disk's place in the new machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub controller_key: i32,
    pub unit_number: i32,
}

/// The hardware of the new machine, but for what depends on where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hardware {
    pub guest_id: String,
    pub firmware: Option<String>,
    pub hardware_version: Option<u32>,
    pub cpu_count: u32,
    pub cores_per_socket: Option<u32>,
    pub memory_mb: u64,
    pub controllers: Vec<NewController>,
    /// In the order of the disks that were asked for.
    pub slots: Vec<Slot>,
    /// What is not as it was.
    pub notes: Vec<String>,
}

/// Reads the facts of a point.
pub(super) fn read(documents: &[ConfigDocument]) -> Result<Recorded> {
    let text = documents.iter().find(|document| document.kind == "facts").and_then(|facts| facts.content.as_deref());
    let recorded: Option<Recorded> = text.and_then(|text| serde_json::from_str(text).ok());
    match recorded {
        Some(recorded) if recorded.source == "vsphere" => Ok(recorded),
        _ => Err(Error::new(Kind::Unsupported, "the point holds no configuration of a vSphere machine")
            .hint("restore its disks by themselves and make a machine around them")),
    }
}

impl Recorded {
    /// The recorded disk with this key of a point: `disk-2000`.
    pub fn disk(&self, key: &str) -> Option<&RecordedDisk> {
        let number: i32 = key.strip_prefix("disk-")?.parse().ok()?;
        self.disks.iter().find(|disk| disk.key == number)
    }

    /// The datastore that most of the machine was on: that of its configuration.
    pub fn datastore(&self) -> Option<&str> {
        let files = self.vmx_path.iter().chain(self.disks.iter().filter_map(|disk| disk.file.as_ref()));
        files.filter_map(|file| file.strip_prefix('[')?.split_once(']')).map(|(name, _)| name).next()
    }

    /// The hardware with these disks.
    pub fn hardware(&self, keys: &[&str]) -> Result<Hardware> {
        let wrong = |what: String| Error::new(Kind::Invalid, format!("the recorded configuration: {what}"));
        let bounded = |what: &str, count: usize, max: usize| match count > max {
            true => Err(wrong(format!("{count} {what}"))),
            false => Ok(()),
        };
        bounded("disks", keys.len(), DISKS_MAX)?;
        bounded("controllers", self.controllers.len(), CONTROLLERS_MAX)?;
        bounded("network cards", self.networks.len(), CARDS_MAX)?;
        let mut notes = Vec::new();
        let plain = |text: &String| {
            text.len() <= 64
                && !text.is_empty()
                && text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
        };
        let guest_id = self.guest_id.clone().filter(plain).unwrap_or_else(|| {
            notes.push("the guest's system is not recorded; it is set to \"other\"".to_owned());
            "otherGuest64".to_owned()
        });
        let cpu_count = self.cpu_count.unwrap_or(1);
        let memory_mb = self.memory_mb.unwrap_or(1024);
        if !(1..=CPUS_MAX).contains(&cpu_count) || !(4..=MEMORY_MB_MAX).contains(&memory_mb) {
            return Err(wrong(format!("{cpu_count} processors, {memory_mb} MiB of memory")));
        }
        let cores = self.cores_per_socket.filter(|cores| *cores > 0 && cpu_count.is_multiple_of(*cores));
        let (controllers, slots) = self.places(keys, &mut notes)?;
        Ok(Hardware {
            guest_id,
            firmware: self.firmware.clone().filter(|firmware| matches!(firmware.as_str(), "bios" | "efi")),
            hardware_version: self.hardware_version.filter(|version| (7..=99).contains(version)),
            cpu_count,
            cores_per_socket: cores,
            memory_mb,
            controllers,
            slots,
            notes,
        })
    }

    /// Controllers and the disks' places on them: the recorded ones where they make sense.
    fn places(&self, keys: &[&str], notes: &mut Vec<String>) -> Result<(Vec<NewController>, Vec<Slot>)> {
        let known = |kind: &str| CONTROLLERS.iter().find(|(name, _)| *name == kind).map(|(_, places)| *places);
        let mut used: Vec<NewController> = Vec::new();
        let mut slots: Vec<Slot> = Vec::new();
        for key in keys {
            let disk = self.disk(key);
            let controller =
                disk.and_then(|disk| self.controllers.iter().find(|one| Some(one.key) == disk.controller_key));
            let recorded = match (disk, controller) {
                (Some(disk), Some(controller)) => known(&controller.kind)
                    .zip(disk.unit_number)
                    // Unit 7 of a SCSI controller is the controller itself.
                    .filter(|(places, unit)| (0..*places).contains(unit) && (*unit != 7 || !is_scsi(&controller.kind)))
                    .filter(|_| controller.kind != IDE || IDE_KEYS.contains(&controller.key))
                    .filter(|_| (0..4).contains(&controller.bus_number))
                    .map(|(_, unit)| (controller, unit)),
                _ => None,
            };
            let Some((controller, unit_number)) = recorded else {
                let message = format!("it does not say where {key} was plugged in, or in what");
                return Err(Error::new(Kind::Unsupported, format!("the recorded configuration: {message}")));
            };
            let slot = Slot { controller_key: controller.key, unit_number };
            if slots.contains(&slot) {
                return Err(Error::new(Kind::Invalid, "the recorded configuration has two disks in one place"));
            }
            slots.push(slot);
            let is_there = used.iter().any(|one| one.key == controller.key);
            if controller.kind != IDE && !is_there {
                used.push(NewController {
                    key: controller.key,
                    kind: controller.kind.clone(),
                    bus_number: controller.bus_number,
                });
            }
        }
        for disk in &self.disks {
            if !keys.contains(&format!("disk-{}", disk.key).as_str()) {
                notes.push(format!("{} is not in the point and is left out", disk.label));
            } else if disk.encrypted {
                notes.push(format!("{} was encrypted and is not any more", disk.label));
            }
        }
        Ok((used, slots))
    }
}

fn is_scsi(kind: &str) -> bool {
    kind.contains("SCSI") || kind.contains("Logic")
}

/// The sort of card that the new machine gets.
pub(super) fn card_kind<'k>(recorded: &'k str, notes: &mut Vec<String>) -> &'k str {
    if CARDS.contains(&recorded) {
        return recorded;
    }
    notes.push(format!("a network card of type {recorded:?} becomes {CARD_DEFAULT}"));
    CARD_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn facts(text: &str) -> Vec<ConfigDocument> {
        vec![ConfigDocument { kind: "facts".into(), content: Some(text.into()), missing: None }]
    }

    fn three() -> serde_json::Value {
        json!({
            "source": "vsphere", "guest_id": "debian12_64Guest", "firmware": "efi", "hardware_version": 19,
            "cpu_count": 4, "cores_per_socket": 2, "memory_mb": 2048, "vmx_path": "[ds 1] web/web.vmx",
            "controllers": [
                {"key": 200, "type": "VirtualIDEController", "bus_number": 0},
                {"key": 1000, "type": "ParaVirtualSCSIController", "bus_number": 0, "shared_bus": "noSharing"},
                {"key": 15000, "type": "VirtualAHCIController", "bus_number": 0},
                {"key": 1001, "type": "VirtualLsiLogicController", "bus_number": 1},
            ],
            "disks": [
                {"key": 2000, "label": "Hard disk 1", "controller_key": 1000, "unit_number": 0},
                {"key": 16000, "label": "Hard disk 2", "controller_key": 15000, "unit_number": 3},
                {"key": 3000, "label": "Hard disk 3", "controller_key": 200, "unit_number": 1},
            ],
            "networks": [],
        })
    }

    #[test]
    fn hardware_is_as_it_was() {
        let recorded = read(&facts(&three().to_string())).unwrap();
        assert_eq!(recorded.datastore(), Some("ds 1"));
        let hardware = recorded.hardware(&["disk-2000", "disk-16000", "disk-3000"]).unwrap();
        let kinds: Vec<_> = hardware.controllers.iter().map(|one| (one.key, one.kind.as_str())).collect();
        assert_eq!(kinds, [(1000, "ParaVirtualSCSIController"), (15000, "VirtualAHCIController")], "IDE is there");
        let slots: Vec<_> = hardware.slots.iter().map(|slot| (slot.controller_key, slot.unit_number)).collect();
        assert_eq!(slots, [(1000, 0), (15000, 3), (200, 1)]);
        assert_eq!((hardware.cpu_count, hardware.cores_per_socket, hardware.memory_mb), (4, Some(2), 2048));
        assert_eq!(
            (hardware.firmware.as_deref(), hardware.hardware_version, hardware.notes.len()),
            (Some("efi"), Some(19), 0)
        );
        let fewer = recorded.hardware(&["disk-2000"]).unwrap();
        assert!(fewer.notes.iter().any(|note| note.contains("Hard disk 2 is not in the point")), "{fewer:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_what_is_unknown_replaced() {
        let with = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut facts_ = three();
            change(&mut facts_);
            read(&facts(&facts_.to_string())).unwrap().hardware(&["disk-2000"])
        };
        let found = with(&|facts| facts["guest_id"] = json!("x<y>")).unwrap();
        assert!(found.guest_id == "otherGuest64" && !found.notes.is_empty());
        assert_eq!(with(&|facts| facts["cores_per_socket"] = json!(3)).unwrap().cores_per_socket, None);
        assert_eq!(with(&|facts| facts["firmware"] = json!("coreboot")).unwrap().firmware, None);
        for (change, kind) in [
            (&(|facts: &mut serde_json::Value| facts["cpu_count"] = json!(100_000)) as &dyn Fn(&mut _), Kind::Invalid),
            (&|facts: &mut serde_json::Value| facts["memory_mb"] = json!(1), Kind::Invalid),
            (
                &|facts: &mut serde_json::Value| facts["controllers"][1]["type"] = json!("VirtualUSBController"),
                Kind::Unsupported,
            ),
            (&|facts: &mut serde_json::Value| facts["disks"][0]["unit_number"] = json!(7), Kind::Unsupported),
            (&|facts: &mut serde_json::Value| facts["disks"][0]["controller_key"] = json!(9), Kind::Unsupported),
        ] {
            assert_eq!(with(change).unwrap_err().kind, kind);
        }
        let twice = read(&facts(&three().to_string())).unwrap().hardware(&["disk-2000", "disk-2000"]);
        assert_eq!(twice.unwrap_err().kind, Kind::Invalid);
        for text in ["", "{}", "[]", r#"{"source":"libvirt"}"#] {
            assert_eq!(read(&facts(text)).unwrap_err().kind, Kind::Unsupported);
        }
        let mut notes = Vec::new();
        assert_eq!(
            (card_kind("VirtualVmxnet3", &mut notes), card_kind("VirtualPCNet32", &mut notes)),
            ("VirtualVmxnet3", CARD_DEFAULT)
        );
        assert_eq!(notes.len(), 1);
    }

    proptest! {
        #[test]
        fn any_document_is_judged(text in ".{0,200}", key in ".{0,12}", numbers in any::<[i32; 6]>()) {
            let _ = read(&facts(&text));
            let mut wild = three();
            wild["disks"][0]["key"] = json!(numbers[0]);
            wild["disks"][0]["controller_key"] = json!(numbers[1]);
            wild["disks"][0]["unit_number"] = json!(numbers[2]);
            wild["controllers"][0]["key"] = json!(numbers[3]);
            wild["controllers"][0]["bus_number"] = json!(numbers[4]);
            let recorded = read(&facts(&wild.to_string())).unwrap();
            let _ = recorded.hardware(&[&key, &format!("disk-{}", numbers[0])]);
        }
    }
}
