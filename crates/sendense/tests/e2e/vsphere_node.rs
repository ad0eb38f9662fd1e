//! A vCenter behind a node of its own, when node or hub die: no snapshot stays, hub or no hub, and what can be gone on with is.

use crate::disk::{Random, assert_holds};
use crate::hub::{PATIENCE, field, path, tree};
use crate::nodes::TlsHub;
use crate::remote_backup::{Node, enrolled};
use crate::resumed::{durable, until_durable};
use crate::vsphere::lab::{Lab, MIB, Trouble};
use crate::vsphere::{Machine, add_behind_node};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

fn start(hub: &TlsHub, kind: &str) -> String {
    let started = hub.json(&["backup", "start", "web", "--repo", "main", "--type", kind]);
    field(&started["backup"], "backup_id").to_owned()
}

fn show(hub: &TlsHub, id: &str) -> Value {
    hub.json(&["backup", "show", id])["backup"].clone()
}

fn status(hub: &TlsHub, id: &str) -> String {
    field(&show(hub, id), "status").to_owned()
}

fn has_ended(hub: &TlsHub, id: &str) -> bool {
    ["completed", "failed"].contains(&status(hub, id).as_str())
}

/// Waits until something is so.
fn wait(what: &str, logs: &dyn Fn() -> String, mut is: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < patience, "{what}\n{}", logs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The newest point, restored, is what the machine's disk held.
fn holds(hub: &TlsHub, dir: &Path, id: &str, bytes: &[u8]) {
    let restored = dir.join(format!("restored-{id}.raw"));
    hub.ok(&["restore", "disk", id, "--to", path(&restored), "--wait"]);
    assert_holds(&restored, bytes);
}

/// Kills of the node. Each costs a start of the node, of nbdkit and of the library.
const ROUNDS: usize = 20;

/// The node that dies at the armed call; 0 for none.
static VICTIM: AtomicU32 = AtomicU32::new(0);

/// The server still does the call: its answer finds nobody.
fn kill_the_victim(_call: &str) {
    if let Some(pid) = Pid::from_raw(VICTIM.swap(0, Ordering::SeqCst) as i32) {
        kill_process(pid, Signal::KILL).unwrap();
    }
}

/// A node is killed at calls of vSphere that a seed chooses, from the first of a backup to the last, and at moments of the copy
/// between them.
#[test]
fn a_node_that_is_killed_at_twenty_moments_leaves_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 8 * MIB);
    let mut random = Random::new(77);
    let hub = enrolled(dir, &[], &[]);
    let mut node = Node::start(dir, &[]);
    add_behind_node(&hub, dir, &lab);
    hub.backup("web");
    let before = lab.proxy.calls();
    machine.write(0, b"counted");
    hub.backup("web");
    let calls = (lab.proxy.calls() - before) as u64;
    let (mut met, mut interrupted) = (0, 0);
    for round in 0..ROUNDS {
        machine.write(random.below(7 << 20) as usize, &random.bytes(300_000));
        if round % 2 == 0 {
            VICTIM.store(node.id(), Ordering::SeqCst);
            lab.proxy.arm("*", 1 + random.below(calls) as usize, 1, Trouble::Call(kill_the_victim));
        }
        let id = start(&hub, "incremental");
        if round % 2 == 0 {
            // Another backup may make fewer calls; then it dies when all is done.
            wait("neither dies", &|| node_log(dir), || node.has_ended() || has_ended(&hub, &id));
        } else {
            wait("no snapshot", &|| node_log(dir), || !lab.snapshots().is_empty() || has_ended(&hub, &id));
            std::thread::sleep(Duration::from_millis(random.below(300)));
        }
        lab.proxy.disarm();
        VICTIM.store(0, Ordering::SeqCst);
        node.kill_9();
        met += usize::from(!lab.snapshots().is_empty());
        node = Node::start(dir, &[]);
        let left = || (lab.snapshots(), node.open_entries());
        let told = || format!("round {round}: {:?}, {:#}\n{}", left(), show(&hub, &id), node.log());
        wait("something stays", &told, || left() == (Vec::new(), Vec::new()) && has_ended(&hub, &id));
        interrupted += usize::from(status(&hub, &id) == "failed");
    }
    println!("{met} of {ROUNDS} kills met a snapshot, {interrupted} a backup; a backup makes {calls} calls");
    assert!(met > 0 && interrupted > 0, "no kill ever met anything");
    let last = hub.backup("web");
    holds(&hub, dir, field(&last, "backup_id"), &machine.bytes);
    assert_eq!((lab.snapshots(), node.open_entries()), (Vec::new(), Vec::new()));
}

fn node_log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("node.log")).unwrap_or_default()
}

#[test]
fn a_hub_that_is_killed_goes_on_with_the_snapshot_that_its_node_holds() {
    const SIZE: usize = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, SIZE as u64);
    let mut random = Random::new(78);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).take(SIZE / 8).flatten().collect();
    machine.write(0, &noise);
    let mut hub = enrolled(dir, &[], &[]);
    let node = Node::start(dir, &["--bandwidth", "2MB"]);
    add_behind_node(&hub, dir, &lab);
    let id = start(&hub, "full");
    until_durable(&hub, dir, &id, &node, 4 * MIB);
    let held = lab.snapshots();
    assert_eq!(held.len(), 1);
    hub.hub.kill_9();
    // The guest writes on: what is read again must come from the snapshot.
    let frozen = machine.bytes.clone();
    for at in (0..SIZE).step_by(64 << 10) {
        machine.write(at, b"later");
    }
    hub.start_again(dir, &[]);
    let logs = || format!("{}\n{}", hub.hub.log(), node.log());
    wait("it does not go on", &logs, || !durable(&hub, &id).is_empty());
    assert!(has_ended(&hub, &id) || lab.snapshots() == held, "{:?}, not {held:?}", lab.snapshots());
    wait("it does not end", &logs, || has_ended(&hub, &id));
    let done = show(&hub, &id);
    assert_eq!((field(&done, "status"), &done["bytes_transferred"]), ("completed", &SIZE.into()), "{done:#}");
    let found = durable(&hub, &id);
    assert!(matches!(found[..], [bytes] if bytes >= 3 * MIB), "{found:?}");
    let made_and_removed = ["CreateSnapshot_Task", "RemoveSnapshot_Task"].map(|method| lab.proxy.count(method));
    assert_eq!(made_and_removed, [1, 1], "one snapshot, from the beginning to the end");
    holds(&hub, dir, &id, &frozen);
    assert_eq!((lab.snapshots(), node.open_entries()), (Vec::new(), Vec::new()));
    assert_eq!(tree(&hub.hub.data_dir.join("transfers")), [""; 0]);
    let next = hub.backup("web");
    assert_eq!((field(&next, "backup_type"), &next["type_reason"]), ("incremental", &Value::Null), "{next:#}");
    holds(&hub, dir, field(&next, "backup_id"), &machine.bytes);
}

#[test]
fn a_node_removes_its_snapshot_while_the_hub_is_dead() {
    const LEASE: [&str; 2] = ["--node-lease-seconds", "5"];
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 8 * MIB);
    machine.write(MIB as usize, &[7; 1 << 20]);
    let mut hub = enrolled(dir, &LEASE, &[]);
    let mut node = Node::start(dir, &[]);
    add_behind_node(&hub, dir, &lab);
    // A second for every read, so that neither backup comes to its end.
    lab.control("read-delay-ms", "1000");

    // The node dies with it, comes back, and knows by itself how to reach the vCenter; then it forgets that.
    let id = start(&hub, "full");
    wait("no snapshot", &|| node_log(dir), || !lab.snapshots().is_empty());
    hub.hub.kill_9();
    node.kill_9();
    assert_eq!((lab.snapshots().len(), node.open_entries().is_empty()), (1, false));
    let node = Node::spawn(dir, &[]);
    wait("the snapshot stays", &|| node.log(), || lab.snapshots().is_empty() && node.open_entries().is_empty());
    wait("credentials stay", &|| node.log(), || tree(&node.folder.join("sources")).is_empty());
    hub.start_again(dir, &LEASE);
    wait("it does not end", &|| node.log(), || status(&hub, &id) == "failed");
    wait("the node does not come back", &|| node.log(), || hub.admin(&["source", "test", "vc"]).status.success());

    // The node lives, and has waited for its hub for as long as the lease.
    let id = start(&hub, "full");
    wait("no snapshot", &|| node.log(), || !lab.snapshots().is_empty());
    hub.hub.kill_9();
    wait("the snapshot stays", &|| node.log(), || lab.snapshots().is_empty() && node.open_entries().is_empty());
    assert!(node.log().contains("give the order up"), "{}", node.log());
    lab.uncontrol("read-delay-ms");
    hub.start_again(dir, &LEASE);
    wait("it does not end", &|| node.log(), || status(&hub, &id) == "failed");
    wait("the node does not come back", &|| node.log(), || hub.admin(&["source", "test", "vc"]).status.success());
    let next = hub.backup("web");
    holds(&hub, dir, field(&next, "backup_id"), &machine.bytes);
    assert_eq!((lab.snapshots(), node.open_entries()), (Vec::new(), Vec::new()));
}
