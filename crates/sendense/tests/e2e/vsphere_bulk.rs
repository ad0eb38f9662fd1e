//! A vCenter's machines in bulk: a full beside `nbdcopy` of the same nbdkit export, and the memory that eight disks at once take.
//!
//! How fast depends on the machine and is never asserted; `bench/run.sh` runs this with a large disk and reads what it prints.

use crate::hub::{Hub, field, path, tool};
use crate::memory::peak_mib;
use crate::remote_backup::{Node, enrolled};
use crate::vsphere::lab::{Guest, Lab, MIB, PASSWORD, USERNAME};
use crate::vsphere::{add_behind_node, set_up};
use sendense_block::Cancel;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a node may use, whatever it does.
const BOUND_MIB: u64 = 256;

/// The lab's nbdkit on a machine's first disk, as the hub starts it for a snapshot.
struct Kit {
    child: Child,
    uri: String,
}

impl Kit {
    fn start(dir: &Path, lab: &Lab, guest: &Guest<'_>) -> Self {
        let (socket, password) = (dir.join("kit"), dir.join("kit-password"));
        std::fs::write(&password, PASSWORD).unwrap();
        let thumbprint = sendense_vsphere::probe(&lab.address(), None, &Cancel::new()).unwrap().vddk_thumbprint();
        let child = Command::new("nbdkit")
            .args(["--foreground", "--readonly", "--filter=cacheextents", "--unix", path(&socket), path(&lab.plugin)])
            .arg(format!("libdir={}", lab.libdir.display()))
            .args(["server=127.0.0.1", &format!("port={}", lab.proxy.port), &format!("user={USERNAME}")])
            .args([format!("password=+{}", password.display()), format!("thumbprint={thumbprint}")])
            .args(["transports=nbdssl", &format!("vm=moref={}", guest.machine.id), "file=[LocalDS_0] bulk/bulk.vmdk"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("nbdkit: {error}; install the Debian package nbdkit"));
        let patience = Instant::now() + Duration::from_secs(60);
        while !crate::servers::listens(&socket) {
            assert!(Instant::now() < patience, "nbdkit does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The image of a guest's disk: what `SENDENSE_BULK_DISK` names, else a small one, half of it noise.
fn image(dir: &Path) -> (PathBuf, bool) {
    if let Some(named) = std::env::var_os("SENDENSE_BULK_DISK") {
        return (named.into(), true);
    }
    let image = dir.join("small.raw");
    let mut random = crate::disk::Random::new(8);
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).take(2 << 20).flatten().collect();
    bytes.resize(32 << 20, 0);
    std::fs::write(&image, bytes).unwrap();
    (image, false)
}

#[test]
fn a_full_of_a_vcenter_beside_nbdcopy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (image, is_measured) = image(dir);
    let lab = Lab::new();
    let vim = lab.vim();
    let guest = lab.machine(&vim, "bulk", &[std::fs::metadata(&image).unwrap().len()]);
    let disk = guest.file(&vim, 0);
    tool("coreutils", "cp", &["--sparse=always", path(&image), path(&disk)]);
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    let kit = Kit::start(dir, &lab, &guest);
    // The simulator copies a disk for its snapshot, which no host does: once, and then it is told that no guest writes.
    let first = hub.backup("bulk", &["--compression", "off"]);
    hub.ok(&["backup", "delete", field(&first, "backup_id"), "--yes"]);
    lab.control("idle", "");
    for _ in 0..if is_measured { 5 } else { 1 } {
        let began = Instant::now();
        let point = hub.backup("bulk", &["--type", "full", "--compression", "off"]);
        println!("ours {:.3}", began.elapsed().as_secs_f64());
        let id = field(&point, "backup_id");
        let restored = dir.join("restored.raw");
        if !is_measured {
            hub.ok(&["restore", "disk", id, "--to", path(&restored), "--wait"]);
            tool("diffutils", "cmp", &[path(&restored), path(&disk)]);
        }
        hub.ok(&["backup", "delete", id, "--yes"]);
        let copied = dir.join("copied.raw");
        let began = Instant::now();
        tool("libnbd-bin", "nbdcopy", &[&kit.uri, path(&copied)]);
        println!("nbdcopy {:.3}", began.elapsed().as_secs_f64());
        tool("diffutils", "cmp", &[path(&copied), path(&disk)]);
        std::fs::remove_file(&copied).unwrap();
    }
    assert_eq!(lab.snapshots(), Vec::<String>::new());
}

/// Disks at once.
const DISKS: usize = 8;

/// A machine with that many disks, of which a quarter each is noise.
fn with_disks<'lab>(lab: &'lab Lab, vim: &sendense_vsphere::Vim, name: &str, disks: usize) -> Guest<'lab> {
    let guest = lab.machine(vim, name, &vec![BOUND_MIB * MIB; disks]);
    // One noise for all: each disk is read, digested and compressed by itself.
    let mut random = crate::disk::Random::new(64);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(MIB as usize / 8).flatten().collect();
    for disk in 0..disks {
        (0..BOUND_MIB / 4).for_each(|at| guest.write(vim, disk, at * 4 * MIB, &noise));
    }
    guest
}

fn is_whole(point: &serde_json::Value, disks: usize) {
    assert_eq!(point["disks"].as_array().map(Vec::len), Some(disks), "{point:#}");
    assert_eq!(point["bytes_transferred"], disks as u64 * BOUND_MIB / 4 * MIB);
}

/// Eight disks, which hold twice as much as the memory that a node may take.
#[test]
fn eight_disks_of_a_machine_at_once_stay_within_a_nodes_memory() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let vim = lab.vim();
    let _guest = with_disks(&lab, &vim, "bulk", DISKS);
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    is_whole(&hub.backup("bulk", &["--type", "full", "--compression", "high"]), DISKS);
    let peak = peak_mib(hub.id());
    println!("peak {peak}");
    assert!(peak <= BOUND_MIB, "the hub and its node held {peak} MiB at once");
}

/// As many on a node of its own, where what was read also waits for the line. A backup reads four disks of its machine at a time,
/// so there are two.
#[test]
fn eight_disks_of_two_machines_at_once_stay_within_the_memory_of_a_node_of_its_own() {
    const NAMES: [&str; 2] = ["bulk", "mass"];
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let vim = lab.vim();
    let _guests = NAMES.map(|name| with_disks(&lab, &vim, name, DISKS / 2));
    let hub = enrolled(dir, &[], &[]);
    let node = Node::start(dir, &[]);
    add_behind_node(&hub, dir, &lab);
    let backup = &|name| {
        let args = ["backup", "start", name, "--repo", "main", "--type", "full", "--compression", "high", "--wait"];
        hub.json(&args)["backup"].clone()
    };
    let points = std::thread::scope(|scope| {
        let started = NAMES.map(|name| scope.spawn(move || backup(name)));
        started.map(|thread| thread.join().unwrap())
    });
    for (point, other) in [(&points[0], &points[1]), (&points[1], &points[0])] {
        is_whole(point, DISKS / 2);
        // Both are texts of one form, so their order is that of the moments.
        assert!(field(point, "started_at") < field(other, "completed_at"), "they were not at once: {points:#?}");
    }
    let (peak, hubs) = (peak_mib(node.id()), peak_mib(hub.hub.id()));
    println!("peak {peak}, of the hub {hubs}");
    assert!(peak <= BOUND_MIB, "the node held {peak} MiB at once");
    assert!(hubs <= BOUND_MIB, "the hub held {hubs} MiB at once");
    assert_eq!((lab.snapshots(), node.open_entries()), (Vec::new(), Vec::new()));
}
