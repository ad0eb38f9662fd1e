//! Machines as the server knows them, and where they lie.
//!
//! What lives here: which properties are read and what they are called for us. What does not: judging them.

use crate::client::Vim;
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::property::Object;
use crate::reply::{reference, reference_at, short};
use crate::request::{Method, Ref};
use crate::xml::Element;
use sendense_block::Cancel;
use std::collections::{BTreeMap, HashMap};

/// What is read of a machine.
const MACHINE: [&str; 26] = [
    "name",
    "parent",
    "parentVApp",
    "config.uuid",
    "config.instanceUuid",
    "config.template",
    "config.version",
    "config.guestId",
    "config.guestFullName",
    "config.firmware",
    "config.annotation",
    "config.changeTrackingEnabled",
    "config.hardware.numCPU",
    "config.hardware.numCoresPerSocket",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "capability.changeTrackingSupported",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.host",
    "snapshot",
    "summary.config.instanceUuid",
    "summary.config.vmPathName",
    "guest.toolsRunningStatus",
    "resourcePool",
];

/// How deep folders nest at the most when a path is made; a cycle in hostile data ends here.
const PATH_PARTS_MAX: usize = 50;
/// Snapshots of one machine that are read: ESXi allows 32 in a chain, trees have more.
const SNAPSHOTS_MAX: usize = 1000;

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It runs.
    On,
    /// It is off.
    Off,
    /// Its memory is on disk.
    Suspended,
    /// The server does not know.
    Unknown,
}

/// A snapshot in a machine's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The object.
    pub reference: Ref,
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The object; valid on this server until the machine is registered anew.
    pub reference: Ref,
    /// Its name.
    pub name: String,
    /// The folder or vApp that it lies in.
    pub parent: Option<Ref>,
    /// What it *is* within a vCenter.
    pub instance_uuid: Option<String>,
    /// What it is for its BIOS.
    pub bios_uuid: Option<String>,
    /// True for a template.
    pub is_template: bool,
    /// The hardware's version: 19 of `vmx-19`.
    pub hardware_version: Option<u32>,
    /// The guest as the server's lists call it: `debian12_64Guest`.
    pub guest_id: Option<String>,
    /// The guest for people.
    pub guest_name: Option<String>,
    /// `bios` or `efi`.
    pub firmware: Option<String>,
    /// Its notes, as far as they are kept.
    pub annotation: Option<String>,
    /// Whether changes are tracked.
    pub change_tracking: bool,
    /// Whether they can be.
    pub change_tracking_supported: bool,
    /// Virtual processors.
    pub cpu_count: Option<u32>,
    /// Processors per socket.
    pub cores_per_socket: Option<u32>,
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Its devices.
    pub devices: Devices,
    /// Whether it runs.
    pub power: Power,
    /// `connected`, `disconnected`, `orphaned`, `inaccessible`, `invalid`.
    pub connection: String,
    /// True when deltas lie about that belong to no snapshot.
    pub consolidation_needed: bool,
    /// The host that it runs on.
    pub host: Option<Ref>,
    /// Its resource pool.
    pub pool: Option<Ref>,
    /// Its snapshots, oldest first in each branch.
    pub snapshots: Vec<Snapshot>,
    /// `[datastore1] vm/vm.vmx`.
    pub vmx_path: Option<String>,
    /// True when the guest's tools run.
    pub tools_running: bool,
}

impl Machine {
    fn read(object: &Object) -> Self {
        let text = |name: &str| object.text(name).map(short);
        let version = |text: &str| text.strip_prefix("vmx-")?.parse().ok();
        Self {
            reference: object.reference.clone(),
            name: unescaped(object.text("name").unwrap_or(&object.reference.id)),
            parent: object.reference("parent").or_else(|| object.reference("parentVApp")),
            // The configuration is missing while the host does not answer; the summary is the vCenter's own.
            instance_uuid: text("config.instanceUuid").or_else(|| text("summary.config.instanceUuid")),
            bios_uuid: text("config.uuid"),
            is_template: object.flag("config.template").unwrap_or(false),
            hardware_version: object.text("config.version").and_then(version),
            guest_id: text("config.guestId"),
            guest_name: text("config.guestFullName"),
            firmware: text("config.firmware"),
            annotation: text("config.annotation"),
            change_tracking: object.flag("config.changeTrackingEnabled").unwrap_or(false),
            // Only servers before 5.0 do not say it.
            change_tracking_supported: object.flag("capability.changeTrackingSupported").unwrap_or(true),
            cpu_count: object.number("config.hardware.numCPU"),
            cores_per_socket: object.number("config.hardware.numCoresPerSocket"),
            memory_mb: object.number("config.hardware.memoryMB"),
            devices: object.get("config.hardware.device").map(Devices::read).unwrap_or_default(),
            power: match object.text("runtime.powerState") {
                Some("poweredOn") => Power::On,
                Some("poweredOff") => Power::Off,
                Some("suspended") => Power::Suspended,
                _ => Power::Unknown,
            },
            connection: text("runtime.connectionState").unwrap_or_else(|| "connected".into()),
            consolidation_needed: object.flag("runtime.consolidationNeeded").unwrap_or(false),
            host: object.reference("runtime.host"),
            pool: object.reference("resourcePool"),
            snapshots: object.get("snapshot").map(snapshots).unwrap_or_default(),
            vmx_path: text("summary.config.vmPathName"),
            tools_running: object.text("guest.toolsRunningStatus") == Some("guestToolsRunning"),
        }
    }
}

/// The tree of `snapshot.rootSnapshotList`, flattened.
fn snapshots(info: &Element) -> Vec<Snapshot> {
    let mut found = Vec::new();
    let mut open: Vec<&Element> = info.children("rootSnapshotList").collect();
    open.reverse();
    while let (Some(tree), true) = (open.pop(), found.len() < SNAPSHOTS_MAX) {
        if let Some(reference) = reference_at(tree, "snapshot") {
            found.push(Snapshot {
                reference,
                name: unescaped(tree.text_at("name").unwrap_or_default()),
                description: short(tree.text_at("description").unwrap_or_default()),
            });
        }
        let mut below: Vec<&Element> = tree.children("childSnapshotList").collect();
        below.reverse();
        open.extend(below);
    }
    found
}

/// Names come with `/`, `\` and `%` percent-encoded, and nothing else.
pub(crate) fn unescaped(name: &str) -> String {
    let name = short(name);
    name.replace("%2f", "/").replace("%2F", "/").replace("%5c", "\\").replace("%5C", "\\").replace("%25", "%")
}

/// Where things lie: names and parents of folders, datacenters and vApps.
#[derive(Debug, Clone, Default)]
pub struct Folders(HashMap<Ref, (String, Option<Ref>)>);

impl Folders {
    /// The path of something whose parent is known: `Datacenter/vm/web`. The root folder's name means nothing to people.
    pub fn path(&self, parent: Option<&Ref>, name: &str) -> String {
        let mut parts = vec![name];
        let mut at = parent;
        while let (Some((name, parent)), true) = (at.and_then(|at| self.0.get(at)), parts.len() < PATH_PARTS_MAX) {
            if parent.is_some() {
                parts.push(name);
            }
            at = parent.as_ref();
        }
        parts.reverse();
        parts.join("/")
    }

    /// The path of the folder (or vApp) that something lies in, with a `/` in a name written `%2f`, as the server itself
    /// writes it: so a name cannot pretend to be two folders. None for what lies nowhere.
    pub fn folder(&self, parent: Option<&Ref>) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = parent;
        while let (Some((name, parent)), true) = (at.and_then(|at| self.0.get(at)), parts.len() < PATH_PARTS_MAX) {
            if parent.is_some() {
                parts.push(name.replace('/', "%2f"));
            }
            at = parent.as_ref();
        }
        parts.reverse();
        (!parts.is_empty()).then(|| parts.join("/"))
    }

    /// The folder with that path; paths of two are never the same.
    pub fn find(&self, path: &str) -> Option<Ref> {
        let is_it = |(at, (name, parent)): &(&Ref, &(String, Option<Ref>))| {
            at.kind == "Folder" && parent.is_some() && self.path(parent.as_ref(), name) == path
        };
        self.0.iter().find(is_it).map(|(at, _)| at.clone())
    }

    /// The datacenter that something lies in; none above all of them.
    pub fn datacenter_of(&self, at: &Ref) -> Option<Ref> {
        let (mut at, mut steps) = (at.clone(), 0);
        while at.kind != "Datacenter" && steps < PATH_PARTS_MAX {
            at = self.0.get(&at)?.1.clone()?;
            steps += 1;
        }
        (at.kind == "Datacenter").then_some(at)
    }
}

/// What is read of a machine to find marks in its notes and its snapshots: few bytes, for there may be thousands of them.
const MARKS: [&str; 5] =
    ["name", "config.instanceUuid", "config.annotation", "runtime.consolidationNeeded", "snapshot"];

impl Vim {
    /// All machines with what may bear a mark, and nothing else of them.
    pub fn marks(&self, cancel: &Cancel) -> Result<Vec<Machine>> {
        Ok(self.all("VirtualMachine", &MARKS, cancel)?.iter().map(Machine::read).collect())
    }

    /// All machines, templates too.
    pub fn machines(&self, cancel: &Cancel) -> Result<Vec<Machine>> {
        Ok(self.all("VirtualMachine", &MACHINE, cancel)?.iter().map(Machine::read).collect())
    }

    /// One machine; `ManagedObjectNotFound` when it is gone.
    pub fn machine(&self, machine: &Ref, cancel: &Cancel) -> Result<Machine> {
        Ok(Machine::read(&self.properties(machine, &MACHINE, cancel)?))
    }

    /// The machine with that instance uuid; none when there is none.
    pub fn find_machine(&self, instance_uuid: &str, cancel: &Cancel) -> Result<Option<Ref>> {
        let index = self.service.search_index.as_ref().ok_or_else(|| Error::Reply {
            method: "RetrieveServiceContent".into(),
            problem: "it names no search index".into(),
        })?;
        let answer = self.ask(
            Method::FindByUuid,
            index,
            |body| {
                body.value("uuid", instance_uuid).value("vmSearch", true).value("instanceUuid", true);
            },
            cancel,
        )?;
        Ok(reference_at(&answer, "returnval"))
    }

    /// Whether any machine, anywhere on the server, has the name.
    pub fn is_named(&self, name: &str, cancel: &Cancel) -> Result<bool> {
        let machines = self.all("VirtualMachine", &["name"], cancel)?;
        Ok(machines.iter().any(|machine| machine.text("name").map(unescaped).as_deref() == Some(name)))
    }

    /// Folders, datacenters and vApps, for paths.
    pub fn folders(&self, cancel: &Cancel) -> Result<Folders> {
        let mut found = HashMap::new();
        for kind in ["Folder", "Datacenter", "VirtualApp"] {
            for object in self.all(kind, &["name", "parent"], cancel)? {
                let name = unescaped(object.text("name").unwrap_or(&object.reference.id));
                found.insert(object.reference.clone(), (name, object.reference("parent")));
            }
        }
        // The root itself is not in its own view.
        found.entry(self.service.root_folder.clone()).or_insert_with(|| (String::new(), None));
        Ok(Folders(found))
    }

    /// Names of distributed port groups by their keys, for network cards that tell a key only.
    pub fn port_groups(&self, cancel: &Cancel) -> Result<BTreeMap<String, String>> {
        let found = self.all("DistributedVirtualPortgroup", &["key", "name"], cancel)?;
        let pair = |object: &Object| Some((object.text("key")?.to_owned(), unescaped(object.text("name")?)));
        Ok(found.iter().filter_map(pair).collect())
    }

    /// The devices as they were when the snapshot was made; the changeIds for the next time are only here.
    pub fn snapshot_devices(&self, snapshot: &Ref, cancel: &Cancel) -> Result<Devices> {
        let found = self.properties(snapshot, &["config.hardware.device"], cancel)?;
        let devices = found.get("config.hardware.device").ok_or_else(|| Error::Reply {
            method: "RetrievePropertiesEx".into(),
            problem: format!("the snapshot {snapshot} has no devices"),
        })?;
        Ok(Devices::read(devices))
    }

    /// The name of an object: a host, a datastore, a network.
    pub fn name_of(&self, object: &Ref, cancel: &Cancel) -> Result<String> {
        let found = self.properties(object, &["name"], cancel)?;
        Ok(unescaped(found.text("name").unwrap_or(&object.id)))
    }

    /// The objects that a property of an object names: the datastores of a host, the pool of a cluster.
    pub fn named(&self, object: &Ref, property: &str, cancel: &Cancel) -> Result<Vec<Ref>> {
        let found = self.properties(object, &[property], cancel)?;
        let Some(value) = found.get(property) else { return Ok(Vec::new()) };
        Ok(reference(value).into_iter().chain(value.children.iter().filter_map(reference)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_leave_out_the_root_and_survive_cycles() {
        let (root, dc, vm, a) =
            (Ref::new("Folder", "r"), Ref::new("Datacenter", "d"), Ref::new("Folder", "v"), Ref::new("Folder", "a"));
        let folders = Folders(HashMap::from([
            (root.clone(), ("Datacenters".to_owned(), None)),
            (dc.clone(), ("DC".to_owned(), Some(root))),
            (vm.clone(), ("vm".to_owned(), Some(dc))),
            (a.clone(), ("loop".to_owned(), Some(a.clone()))),
        ]));
        assert_eq!(folders.path(Some(&vm), "web"), "DC/vm/web");
        assert_eq!(folders.path(None, "web"), "web");
        assert_eq!((folders.folder(Some(&vm)).as_deref(), folders.folder(None)), (Some("DC/vm"), None));
        assert_eq!((folders.find("DC/vm"), folders.find("DC")), (Some(vm.clone()), None), "a datacenter is no folder");
        assert_eq!(folders.datacenter_of(&vm), Some(Ref::new("Datacenter", "d")));
        assert_eq!(folders.datacenter_of(&a), None);
        assert_eq!(folders.path(Some(&a), "web").split('/').count(), PATH_PARTS_MAX);
    }

    #[test]
    fn a_folder_cannot_pretend_to_be_two() {
        let (root, sly) = (Ref::new("Folder", "r"), Ref::new("Folder", "s"));
        let folders = Folders(HashMap::from([
            (root.clone(), ("Datacenters".to_owned(), None)),
            (sly.clone(), ("vm/prod".to_owned(), Some(root.clone()))),
        ]));
        assert_eq!(folders.folder(Some(&sly)).as_deref(), Some("vm%2fprod"));
        assert_eq!(folders.folder(Some(&root)), None);
    }

    #[test]
    fn names_lose_their_three_escapes_only() {
        assert_eq!(unescaped("a%2fb%5Cc%25d%20e"), "a/b\\c%d%20e");
    }
}
