//! Machines restored to a vCenter that only a node reaches: new ones, and onto their own disks; on a line that breaks, and
//! when node or hub die.

use crate::disk::{Random, assert_holds};
use crate::hub::{PATIENCE, field, tree};
use crate::nodes::{TlsHub, ended};
use crate::proxy::Proxy;
use crate::remote_backup::{Node, enrolled};
use crate::vsphere::lab::{Lab, MIB, write};
use crate::vsphere::{Machine, add_behind_node, named};
use sendense_block::Cancel;
use sendense_vsphere::inventory::Power;
use serde_json::Value;
use std::iter::repeat_with;
use std::path::Path;
use std::time::{Duration, Instant};

/// A hub, a node at a vCenter, and there a machine of three disks of which a point was taken through the node.
struct Site<'lab> {
    dir: tempfile::TempDir,
    lab: &'lab Lab,
    hub: TlsHub,
    node: Node,
    /// What the point holds.
    model: Vec<Vec<u8>>,
    point: String,
}

impl<'lab> Site<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        Self::with(lab, &[], &[], None)
    }

    /// With more arguments for the hub and for the node, and a line between them.
    fn with(lab: &'lab Lab, hub_more: &[&str], node_more: &[&str], proxy: Option<&Proxy>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let through = proxy.map(|proxy| format!("http://{}", proxy.address));
        let proxy: Vec<&str> = through.iter().flat_map(|through| ["--proxy", through]).collect();
        let hub = enrolled(dir.path(), hub_more, &proxy);
        let node = Node::start(dir.path(), node_more);
        let vim = lab.vim();
        let guest = lab.machine(&vim, "web", &[8 * MIB, 3 * MIB, MIB + 1024]);
        let mut random = Random::new(91);
        let mut model = Vec::new();
        for (disk, size) in [8 << 20, 3 << 20, (1 << 20) + 1024].into_iter().enumerate() {
            let mut bytes: Vec<u8> = vec![0; size];
            // Text, noise, nothing, and the last bytes.
            bytes[size / 8..size / 4].iter_mut().zip((1..=251).cycle()).for_each(|(byte, value)| *byte = value);
            let noise: Vec<u8> = repeat_with(|| random.next().to_le_bytes()).take(size / 64).flatten().collect();
            bytes[size / 2..][..noise.len()].copy_from_slice(&noise);
            bytes[size - 7..].copy_from_slice(b"the end");
            guest.write(&vim, disk, 0, &bytes);
            model.push(bytes);
        }
        add_behind_node(&hub, dir.path(), lab);
        hub.backup("web");
        // The point that is restored stands on another one.
        guest.write(&vim, 1, 0, b"later");
        model[1][..5].copy_from_slice(b"later");
        guest.write(&vim, 0, MIB, &[0; 300_000]);
        model[0][1 << 20..][..300_000].fill(0);
        let point = field(&hub.backup("web"), "backup_id").to_owned();
        Self { dir, lab, hub, node, model, point }
    }

    fn logs(&self) -> String {
        format!("{}\n{}", self.hub.hub.log(), self.node.log())
    }

    /// Asks for the point as a new machine; gives the task.
    fn start(&self, name: &str) -> String {
        let task = self.hub.json(&["restore", "vm", &self.point, "--vsphere", "vc", "--name", name]);
        field(&task["task"], "task_id").to_owned()
    }

    fn task(&self, id: &str) -> Value {
        self.hub.json(&["task", "show", id])["task"].clone()
    }

    /// Waits until something is so.
    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < patience, "{what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_there(&self, name: &str) -> bool {
        !named(&self.lab.vim(), name).is_empty()
    }

    fn has_ended(&self, task: &str) -> bool {
        ["completed", "failed", "cancelled"].contains(&field(&self.task(task), "state"))
    }

    /// Waits for a task's end.
    fn ends(&self, task: &str, state: &str) -> Value {
        self.until(&format!("{task} does not end"), || self.has_ended(task));
        let shown = self.task(task);
        assert_eq!(field(&shown, "state"), state, "{shown:#}\n{}", self.logs());
        shown
    }

    /// Nothing is left of a restore, at the vCenter or in the node's journal.
    fn is_gone(&self, name: &str) {
        self.until(&format!("{name} stays"), || !self.is_there(name) && self.node.open_entries().is_empty());
    }

    /// The machine holds what the point does, on disks of its own, switched off, and bears no mark.
    #[track_caller]
    fn is_whole(&self, name: &str) {
        let vim = self.lab.vim();
        let found = named(&vim, name);
        assert_eq!(found.len(), 1, "{found:?}");
        let made = &found[0];
        assert_eq!((made.power, made.devices.disks.len()), (Power::Off, self.model.len()));
        assert!(made.annotation.as_deref().is_some_and(|note| note.contains("Restored by Sendense from")), "{made:?}");
        for (disk, bytes) in made.devices.disks.iter().zip(&self.model) {
            let name = disk.backing.file_name.as_deref().unwrap();
            let (store, file) = name[1..].split_once("] ").unwrap();
            assert_holds(&self.lab.root.join(store).join(file), bytes);
        }
    }
}

#[test]
fn a_machine_behind_a_node_is_restored_into_a_new_one() {
    let lab = Lab::new();
    let mut site = Site::new(&lab);
    let restore = ["restore", "vm", &site.point.clone(), "--vsphere", "vc", "--name"];
    let task = site.hub.json(&[&restore[..], &["web again", "--datastore", "LocalDS_1", "--wait"]].concat());
    assert!(field(&task["task"], "summary").contains("with 3 disks, switched off"), "{task:#}");
    site.is_whole("web again");
    assert_eq!(site.node.open_entries(), [""; 0]);
    let log = site.hub.ok(&["task", "log", field(&task["task"], "task_id")]);
    assert!(log.contains("disk 1 is restored"), "{log}");
    // The name is taken: told as the request's, and nothing is replaced.
    let refused = ended(&site.hub.admin(&[&restore[..], &["web again", "--wait"]].concat()), 6);
    assert!(refused.contains("exists already"), "{refused}");
    site.is_whole("web again");
    // A datastore without room.
    lab.control("full-from", "3000000");
    let full = ended(&site.hub.admin(&[&restore[..], &["no room", "--wait"]].concat()), 6);
    assert!(full.contains("The disk is full"), "{full}");
    site.is_gone("no room");
    lab.uncontrol("full-from");

    // Stopped by a person in the middle.
    lab.control("write-delay-ms", "300");
    let task = site.start("stopped");
    site.until("no machine", || site.is_there("stopped"));
    site.hub.ok(&["task", "cancel", &task]);
    site.ends(&task, "cancelled");
    site.is_gone("stopped");

    // The node dies. It takes the machine away when it comes back, and the task does not go on.
    let task = site.start("dead");
    site.until("no machine", || site.is_there("dead"));
    site.node.kill_9();
    assert!(site.is_there("dead") && !site.node.open_entries().is_empty());
    site.node = Node::start(site.dir.path(), &[]);
    site.is_gone("dead");
    let failed = site.ends(&task, "failed");
    assert!(failed.to_string().contains("the node was restarted"), "{failed:#}");

    // The hub dies: the task is marked, and the node learns that nobody wants the machine.
    let task = site.start("orphan");
    site.until("no machine", || site.is_there("orphan"));
    site.hub.hub.kill_9();
    let dir = site.dir.path().to_owned();
    site.hub.start_again(&dir, &[]);
    site.is_gone("orphan");
    let interrupted = site.ends(&task, "failed");
    assert_eq!(field(&interrupted["error"], "code"), "interrupted", "{interrupted:#}");

    // Revoked in the middle: it is lent nothing more, and still takes away what it made.
    let task = site.start("revoked");
    site.until("no machine", || site.is_there("revoked"));
    site.hub.ok(&["node", "revoke", "SITE-A"]);
    site.is_gone("revoked");
    let failed = site.ends(&task, "failed");
    assert!(failed.to_string().contains("was revoked"), "{failed:#}");
    lab.uncontrol("write-delay-ms");
    site.is_whole("web again");
}

#[test]
fn a_restore_behind_a_node_goes_on_over_a_line_that_breaks_and_ends_with_the_lease() {
    const LEASE: [&str; 2] = ["--node-lease-seconds", "5"];
    let (lab, proxy) = (Lab::new(), Proxy::start());
    // A MiB and a half of noise takes three seconds and more.
    let site = Site::with(&lab, &LEASE, &["--bandwidth", "500KB"], Some(&proxy));
    let task = site.start("cut");
    let (mut cuts, mut done) = (0, 0);
    while cuts < 3 {
        let moved = || site.task(&task)["bytes_done"].as_u64().unwrap_or(0);
        site.until("nothing moves", || moved() > done || site.has_ended(&task));
        if site.has_ended(&task) {
            break;
        }
        done = moved();
        proxy.cut();
        std::thread::sleep(Duration::from_millis(700));
        proxy.mend();
        cuts += 1;
    }
    site.ends(&task, "completed");
    assert!(cuts > 0, "it was over before the line broke");
    site.is_whole("cut");

    // Away for longer than the lease: both sides give it up, each by itself.
    lab.control("write-delay-ms", "1000");
    let task = site.start("away");
    site.until("no machine", || site.is_there("away"));
    proxy.cut();
    let failed = site.ends(&task, "failed");
    assert!(failed.to_string().contains("not heard"), "{failed:#}");
    lab.uncontrol("write-delay-ms");
    site.is_gone("away");
    assert!(site.node.log().contains("give the order up"), "{}", site.node.log());
    proxy.mend();
    site.until("the node does not come back", || site.hub.admin(&["source", "test", "vc"]).status.success());
    site.is_whole("cut");
}

#[test]
fn a_block_that_rotted_in_the_repository_makes_no_machine_behind_a_node() {
    let lab = Lab::new();
    let mut site = Site::new(&lab);
    // Noise is stored as it is, so it can be found.
    let noise = &site.model[0][(4 << 20) + 100_000..][..64].to_vec();
    let mut rotted = 0;
    for name in tree(&site.dir.path().join("repo")).iter().filter(|name| name.ends_with(".qcow2")) {
        let path = site.dir.path().join("repo").join(name);
        let image = std::fs::read(&path).unwrap();
        if let Some(at) = image.windows(noise.len()).position(|bytes| bytes == noise) {
            write(&path, at as u64, &[!noise[0]]);
            rotted += 1;
        }
    }
    assert_eq!(rotted, 1);
    let task = site.start("rotten");
    let failed = site.ends(&task, "failed");
    assert_eq!(field(&failed["error"], "code"), "corrupt", "{failed:#}");
    site.is_gone("rotten");

    // What is left of it, where that is said: into a new machine, and onto the one that it is of.
    let restore = ["restore", "vm", &site.point, "--vsphere", "vc", "--wait", "--allow-damaged"];
    let task = site.hub.json(&[&restore[..], &["--name", "left"]].concat());
    assert!(field(&task["task"], "summary").contains("WARNING: 1 blocks are damaged"), "{task:#}");
    site.model[0][(4 << 20) + 100_000] ^= 0xff;
    site.is_whole("left");
    let task = site.hub.json(&[&restore[..], &["--onto", "web", "--force"]].concat());
    assert!(field(&task["task"], "summary").contains("65536 bytes differed"), "{task:#}");
    assert!(field(&task["task"], "summary").contains("WARNING: 1 blocks are damaged"), "{task:#}");
}

#[test]
fn a_point_is_restored_onto_the_machine_that_it_is_of_through_its_node() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 8 * MIB);
    machine.write(0, b"boot");
    machine.write(2 << 20, &[3; 200_000]);
    let dir = tempfile::tempdir().unwrap();
    let dir: &Path = dir.path();
    let hub = enrolled(dir, &[], &[]);
    let mut node = Node::start(dir, &[]);
    add_behind_node(&hub, dir, &lab);
    let point = hub.backup("web");
    let good = machine.bytes.clone();
    machine.write(0, b"lost");
    machine.write(5 << 20, &[9; 70_000]);
    hub.backup("web");
    let restore = ["restore", "vm", field(&point, "backup_id"), "--vsphere", "vc", "--onto", "web"];
    let refused = ended(&hub.admin(&restore), 2);
    assert!(refused.contains("--force"), "{refused}");
    let restore = [&restore[..], &["--force", "--wait"]].concat();
    machine.vim.power_on(&machine.guest.machine, &Cancel::new()).unwrap();
    let refused = ended(&hub.admin(&restore), 6);
    assert!(refused.contains("is not switched off"), "{refused}");
    machine.vim.power_off(&machine.guest.machine, &Cancel::new()).unwrap();

    // A write that fails, and a node that dies: the disk says of itself that it is unfinished, and the next attempt goes on.
    let is_marked = || std::fs::read(&machine.file).unwrap().starts_with(b"SENDENSE UNFINISHED RESTORE");
    lab.control("full-from", "5000000");
    let full = ended(&hub.admin(&restore), 6);
    assert!(full.contains("The disk is full") && is_marked(), "{full}");
    lab.uncontrol("full-from");
    lab.control("write-delay-ms", "1000");
    let task = hub.json(&restore[..restore.len() - 1]);
    let patience = Instant::now() + PATIENCE;
    while node.open_entries().is_empty() {
        assert!(Instant::now() < patience, "{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    node.kill_9();
    lab.uncontrol("write-delay-ms");
    assert!(is_marked());
    let node = Node::start(dir, &[]);
    let task = hub.admin(&["task", "wait", field(&task["task"], "task_id")]);
    assert!(!task.status.success() && is_marked());
    let task = hub.json(&restore);
    assert!(field(&task["task"], "summary").contains("onto web"), "{task:#}");
    assert_holds(&machine.file, &good);
    let next = hub.backup("web");
    assert!(field(&next, "type_reason").contains("began anew"), "{next:#}");
    assert_eq!((lab.snapshots(), node.open_entries()), (Vec::new(), Vec::new()));
}
