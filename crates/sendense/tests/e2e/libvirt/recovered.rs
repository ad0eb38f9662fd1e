//! A machine runs straight from a restore point: through a hub that is killed under it, until it is discarded.

use super::lab::guest::Guest;
use super::lab::{Lab, lab, until};
use super::{back_up, scratch, start_hub};
use crate::hub::{Hub, field, path, tool, tree};
use crate::recover::until_ready;

const MIB: u64 = 1 << 20;
const MAC: &str = "52:54:00:0d:0e:0f";

/// What the machine's own disk says to a command of qemu-io.
fn io(lab: &Lab, domain: &str, disk: &str, command: &str) -> String {
    let line = format!("qemu-io -d /machine/peripheral/{disk}/virtio-backend \"{command}\"");
    lab.virsh(&["qemu-monitor-command", domain, "--hmp", &line])
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
    assert!(!io(lab, &name, "virtio-disk0", "read -P 17 64k 3M").contains("ailed"));
    for command in ["write -P 51 1M 1M", "write -z 2M 64k", "flush"] {
        assert!(!io(lab, &name, "virtio-disk0", command).contains("ailed"), "{command}");
    }
    assert!(!io(lab, &name, "virtio-disk1", "write -P 52 0 512").contains("ailed"));
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
    for (disk, command) in [
        ("virtio-disk0", "read -P 51 1M 1M"),
        ("virtio-disk0", "read -P 0 2M 64k"),
        ("virtio-disk0", "read -P 17 64k 960k"),
        ("virtio-disk1", "read -P 52 0 512"),
        ("virtio-disk1", "read -P 34 1M 1M"),
    ] {
        let said = io(lab, &name, disk, command);
        assert!(said.contains("read ") && !said.contains("ailed"), "{command}: {said}");
    }
    // Others see the same: the socket's owner may be another user, but we may do anything.
    let uri = field(&served["disks"][1], "uri");
    assert_eq!(uri, field(&begun["disks"][1], "uri"));
    tool("qemu-utils", "qemu-io", &["-r", "-f", "raw", "-c", "read -P 52 0 512", uri]);

    // A second one goes at once with what it wrote.
    let other = format!("{name}-2");
    hub.json(&["recover", "instant", &id, "--name", &other, "--libvirt", "lab"]);
    hub.ok(&["recover", "discard", &other, "--yes"]);
    assert!(lab.try_virsh(&["dominfo", &other]).is_err(), "the machine is gone");
    // Shut down, the first becomes the next point.
    lab.virsh(&["destroy", &name]);
    let made = hub.json(&["recover", "commit", &name, "--wait"])["backup"].clone();
    let mut written = vec![0; 8 * MIB as usize];
    written[65536..65536 + 3 * MIB as usize].fill(0x11);
    written[MIB as usize..2 * MIB as usize].fill(51);
    written[2 * MIB as usize..2 * MIB as usize + 65536].fill(0);
    let out = dir.path().join("committed");
    let args = ["restore", "disk", field(&made, "backup_id"), "--disk", "0", "--to", path(&out), "--wait"];
    hub.ok(&args);
    assert!(std::fs::read(&out).unwrap() == written);
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
