//! A machine runs straight from a restore point: through a hub that is killed under it, until it is discarded.

use super::lab::guest::Guest;
use super::lab::{Lab, lab, until};
use super::restored::{Rotten, disks, pool};
use super::{back_up, scratch, start_hub};
use crate::hub::{Hub, field, path, tool, tree};
use crate::recover::{set_state, until_ready};
use serde_json::Value;
use std::path::Path;

const MIB: u64 = 1 << 20;
const MAC: &str = "52:54:00:0d:0e:0f";

/// A command of qemu-io on the machine's own disk. What comes of it is seen elsewhere: the monitor does not tell.
fn io(lab: &Lab, domain: &str, disk: &str, command: &str) {
    let line = format!("qemu-io -d /machine/peripheral/{disk}/virtio-backend \"{command}\"");
    lab.virsh(&["qemu-monitor-command", domain, "--hmp", &line]);
}

/// What a disk of a recovery holds, as another client sees it.
fn served_bytes(dir: &Path, recovery: &Value, disk: usize) -> Vec<u8> {
    let copy = dir.join("copy");
    tool("libnbd-bin", "nbdcopy", &[field(&recovery["disks"][disk], "uri"), path(&copy)]);
    std::fs::read(&copy).unwrap()
}

fn state(lab: &Lab, domain: &str) -> String {
    lab.try_virsh(&["domstate", "--reason", domain]).unwrap_or_default().trim().to_owned()
}

#[test]
fn a_machine_runs_on_a_point_and_waits_for_a_hub_that_was_killed() {
    let lab = lab();
    let devices = format!(
        "<interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>
         <serial type='file'><source path='{0}/serial.log'/></serial>",
        lab.dir.display()
    );
    let mut guest = Guest::define_with(lab, &[("vda", "qcow2", 8 * MIB), ("vdb", "raw", 3 * MIB)], &devices, "");
    guest.start();
    guest.write("vda", 0x11, 65536, 3 * MIB);
    guest.write("vdb", 0x22, MIB, MIB);
    let dir = tempfile::tempdir().unwrap();
    let mut hub = start_hub(dir.path(), &guest);
    let id = field(&back_up(&hub, &guest, "main", &[]), "backup_id").to_owned();
    let before = tree(&scratch(lab, &guest));

    // A name that is taken: nothing is made.
    hub.fails(4, &["recover", "instant", &id, "--name", &guest.name, "--libvirt", "lab"]);
    assert_eq!(hub.json(&["recover", "list"])["total"], 0);
    let name = format!("{}-instant", guest.name);
    let begun = hub.json(&["recover", "instant", &id, "--name", &name, "--libvirt", &lab.uri])["recovery"].clone();
    assert!(state(lab, &name).starts_with("running"), "{}", state(lab, &name));
    assert_eq!(lab.virsh(&["domuuid", &name]).trim(), field(&begun["machine"], "instance_uuid"));
    let document = lab.virsh(&["dumpxml", "--inactive", &name]);
    for gone in [guest.uuid.as_str(), MAC, "serial.log", "type='file' device='disk'"] {
        assert!(!document.contains(gone), "{gone} is in {document}");
    }
    // Both machines run; each has its own disks.
    let mut models = [guest.model["vda"].clone(), guest.model["vdb"].clone()];
    for command in ["write -P 51 1M 1M", "write -z 2M 64k", "flush"] {
        io(lab, &name, "virtio-disk0", command);
    }
    io(lab, &name, "virtio-disk1", "write -P 52 0 512");
    models[0][MIB as usize..2 * MIB as usize].fill(51);
    models[0][2 * MIB as usize..2 * MIB as usize + 65536].fill(0);
    models[1][..512].fill(52);
    for (disk, model) in models.iter().enumerate() {
        assert!(served_bytes(dir.path(), &begun, disk) == *model, "disk {disk} differs");
    }
    guest.write("vda", 0x44, 0, MIB);
    hub.fails(4, &["backup", "delete", &id, "--cascade", "--yes"]);
    hub.fails(4, &["source", "delete", "lab"]);

    let said = hub.fails(4, &["recover", "commit", &name]);
    assert!(said.contains("machine is on"), "{said}");

    // Without the hub a disk gives errors, and the machine is stopped instead of being told of them: its firmware looks for
    // something to boot.
    hub.kill_9();
    lab.virsh(&["reset", &name]);
    until("the machine waits", || (state(lab, &name) == "paused (I/O error)").then_some(()));
    hub = Hub::start(dir.path());
    until("the machine goes on", || state(lab, &name).starts_with("running").then_some(()));
    let served = until_ready(&hub, &name);
    for (disk, model) in models.iter().enumerate() {
        assert_eq!(served["disks"][disk]["uri"], begun["disks"][disk]["uri"]);
        assert!(served_bytes(dir.path(), &served, disk) == *model, "disk {disk} differs after the kill");
    }
    // The machine is connected again; QEMU answers with an error as long as it is not.
    models[1][512..1024].fill(53);
    until("the machine writes again", || {
        io(lab, &name, "virtio-disk1", "write -P 53 512 512");
        (served_bytes(dir.path(), &served, 1) == models[1]).then_some(())
    });

    // A second one goes at once with what it wrote.
    let other = format!("{name}-2");
    hub.json(&["recover", "instant", &id, "--name", &other, "--libvirt", "lab"]);
    hub.ok(&["recover", "discard", &other, "--yes"]);
    assert!(lab.try_virsh(&["dominfo", &other]).is_err(), "the machine is gone");
    // Shut down, the first becomes the next point.
    lab.virsh(&["destroy", &name]);
    let made = hub.json(&["recover", "commit", &name, "--wait"])["backup"].clone();
    let out = dir.path().join("committed");
    let args = ["restore", "disk", field(&made, "backup_id"), "--disk", "0", "--to", path(&out), "--wait"];
    hub.ok(&args);
    assert!(std::fs::read(&out).unwrap() == models[0]);
    assert!(lab.try_virsh(&["dominfo", &name]).is_err(), "the machine is gone");
    assert_eq!(tree(&scratch(lab, &guest)), before);
    assert_eq!(tree(&hub.data_dir.join("recoveries")), Vec::<String>::new());
    // The point was not touched, nor the old machine.
    let out = dir.path().join("out");
    hub.ok(&["restore", "disk", &id, "--disk", "0", "--to", path(&out), "--wait"]);
    let mut model = vec![0; 8 * MIB as usize];
    model[65536..65536 + 3 * MIB as usize].fill(0x11);
    assert!(std::fs::read(&out).unwrap() == model);
    assert!(state(lab, &guest.name).starts_with("running"));

    // A machine that somebody took away is no obstacle; one that somebody moved to disks of his own is his.
    let again = hub.json(&["recover", "instant", &id, "--name", &name, "--libvirt", "lab"])["recovery"].clone();
    lab.virsh(&["destroy", &name]);
    let uuid = field(&again["machine"], "instance_uuid");
    let kept = format!(
        "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"
    );
    let file = dir.path().join("kept.xml");
    std::fs::write(&file, kept).unwrap();
    lab.virsh(&["define", path(&file)]);
    hub.ok(&["recover", "discard", &name, "--yes"]);
    assert!(state(lab, &name).starts_with("shut off"), "it is not ours any more");
    lab.virsh(&["undefine", &name]);
    assert_eq!(tree(&scratch(lab, &guest)), before);
    hub.ok(&["source", "delete", "lab"]);
}

#[test]
fn a_machine_moves_to_storage_of_its_own_while_it_runs() {
    let lab = lab();
    let mut guest = Guest::define(lab, &[("vda", "qcow2", 6 * MIB), ("vdb", "raw", 3 * MIB)]);
    guest.start();
    guest.write("vda", 0x61, 0, 2 * MIB);
    guest.write("vdb", 0x62, MIB, MIB);
    let dir = tempfile::tempdir().unwrap();
    let mut hub = start_hub(dir.path(), &guest);
    let pool = pool(lab, dir.path());
    let id = field(&back_up(&hub, &guest, "main", &[]), "backup_id").to_owned();
    let before = tree(&scratch(lab, &guest));
    let name = format!("{}-moves", guest.name);
    let to = ["--pool", path(&pool), "--wait"];

    hub.json(&["recover", "instant", &id, "--name", "served-only"]);
    hub.fails(4, &[&["recover", "migrate", "served-only"][..], &to].concat());
    hub.ok(&["recover", "discard", "served-only", "--yes"]);
    let begun = hub.json(&["recover", "instant", &id, "--name", &name, "--libvirt", "lab"])["recovery"].clone();
    io(lab, &name, "virtio-disk0", "write -P 99 4M 1M");
    // Not below an allowed folder.
    hub.fails(2, &["recover", "migrate", &name, "--pool", "/var/tmp", "--wait"]);
    // One that cannot be finished: the second disk finds no place, and the machine goes on with what it had.
    let full = dir.path().join("nowhere");
    std::fs::create_dir(&full).unwrap();
    if rustix::process::geteuid().is_root() {
        // QEMU's user cannot write there.
        hub.fails(6, &["recover", "migrate", &name, "--pool", path(&full), "--wait"]);
        assert_eq!(tree(&full), Vec::<String>::new());
        until_ready(&hub, &name);
    }
    // One that was cut off: the copy is given up, its file goes, and the machine goes on with what it had.
    let (cut, record) = (pool.join("cut.qcow2"), field(&begun, "recovery_id"));
    lab.virsh(&["blockcopy", &name, "vda", "--dest", path(&cut), "--format", "qcow2", "--transient-job"]);
    hub.kill_9();
    let migrating = serde_json::json!({ "migrating": { "files": { "vda": path(&cut) } } });
    set_state(&hub.data_dir.join("recoveries").join(format!("{record}.json")), migrating);
    hub = Hub::start(dir.path());
    until_ready(&hub, &name);
    assert!(!cut.exists() && lab.virsh(&["blockjob", &name, "vda", "--info", "--raw"]).trim().is_empty());
    until("the machine goes on", || state(lab, &name).starts_with("running").then_some(()));

    let said = hub.json(&[&["recover", "migrate", &name][..], &to].concat());
    assert!(field(&said["task"], "summary").contains("2 disks"), "{said:#}");
    hub.fails(3, &["recover", "show", &name]);
    assert_eq!(tree(&hub.data_dir.join("recoveries")), Vec::<String>::new());
    assert_eq!(tree(&scratch(lab, &guest)), before);
    assert!(state(lab, &name).starts_with("running"), "it never stopped");
    io(lab, &name, "virtio-disk1", "write -P 100 0 512");
    // It starts again without the hub.
    assert_eq!(hub.stop(), Some(0));
    lab.virsh(&["destroy", &name]);
    let document = lab.virsh(&["dumpxml", "--inactive", &name]);
    assert!(!document.contains("nbd") && document.contains(path(&pool)), "{document}");
    let mut models = [guest.model["vda"].clone(), guest.model["vdb"].clone()];
    models[0][4 * MIB as usize..5 * MIB as usize].fill(99);
    models[1][..512].fill(100);
    for ((target, file), model) in disks(lab, &name).iter().zip(&models) {
        let out = dir.path().join("out");
        tool("qemu-utils", "qemu-img", &["convert", "-f", "qcow2", "-O", "raw", file, path(&out)]);
        assert!(std::fs::read(&out).unwrap() == *model, "{target} differs");
    }
    lab.virsh(&["start", &name]);
    lab.virsh(&["destroy", &name]);
    lab.virsh(&["undefine", &name]);
}

/// The hypervisor is given no block that is not what was backed up, and the machine goes on as it was.
#[test]
fn a_rotten_block_moves_to_no_storage() {
    let Rotten { guest, dir: _dir, hub, pool, id, image } = Rotten::new();
    let lab = guest.lab;
    let name = format!("{}-rotten", guest.name);
    hub.json(&["recover", "instant", &id, "--name", &name, "--libvirt", "lab"]);
    let said = hub.fails(6, &["recover", "migrate", &name, "--pool", path(&pool), "--wait"]);
    let block = format!("block 16 (bytes {MIB}..{}) of disk 1 of {id}", MIB + 65536);
    assert!(said.contains(&block) && said.contains(&image), "{said}");
    let moved = tree(&pool);
    assert!(
        moved.len() == 1 && moved[0].contains("-vda-"),
        "what has moved stays, and nothing of the other disk: {moved:?}"
    );
    until("the point is looked at", || {
        (hub.json(&["backup", "show", &id])["backup"]["verify_state"] == "corrupt").then_some(())
    });
    until_ready(&hub, &name);
    until("the machine goes on", || state(lab, &name).starts_with("running").then_some(()));
    hub.ok(&["recover", "discard", &name, "--yes"]);
    assert_eq!(tree(&pool), [""; 0]);
}
