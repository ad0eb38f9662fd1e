//! Two points of one machine, with the same ids and the same volume group, open at once: XFS whose log is dirty, btrfs, FAT and a
//! logical volume, and each point gives its own.

use crate::files::{ask, json, point, sh, sha256};
use crate::hub::{Hub, field, path, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Where the partitions begin, in MiB, as [`DISK`] lays them out.
const XFS: u64 = 1;
const BTRFS: u64 = 321;
const FAT: u64 = 481;
const LVM: u64 = 497;

const DISK: &str = r#"mkdir -p vms/web tree/folder; echo guest > tree/state; seq 1 100000 > tree/folder/numbers
    truncate -s 530M vms/web/disk0.raw
    printf 'label: gpt\nstart=1M, size=320M\nsize=160M\nsize=16M\nsize=32M, type=lvm\n' | sfdisk -q vms/web/disk0.raw
    truncate -s 320M xfs; mkfs.xfs -q -L lab-xfs xfs
    truncate -s 160M btrfs; mkfs.btrfs -q -L lab-btrfs -r tree btrfs
    truncate -s 16M fat; mkfs.vfat -n LAB fat > fat.log; mcopy -s -i fat tree/* ::/"#;

/// A volume group by LVM's own tools, without this machine's device mapper; its volume's first byte is printed.
const GROUP: &str = r#"truncate -s 32M lvm; exec 2> lvm.log
    loop=$(losetup -f --show lvm); trap 'losetup -d $loop' EXIT
    lvm() { LVM_SUPPRESS_FD_WARNINGS=1 command lvm "$@" --driverloaded n --config 'devices{scan_lvs=0 use_devicesfile=0} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0}' --devices $loop; }
    lvm pvcreate -ff -y $loop >&2
    lvm vgcreate vg0 $loop >&2
    lvm lvcreate -an -Zn -Wn -y -n root -l 5 vg0 >&2
    lvm pvs --noheadings --nosuffix --units b -o pe_start | tr -d ' '"#;

fn put(dir: &Path, image: &str, mib: u64) {
    let script = format!("dd if={image} of=vms/web/disk0.raw bs=1M seek={mib} conv=notrunc,sparse status=none");
    sh(dir, &script);
}

/// The guest writes: into XFS, which stays mounted while the disk is copied, and into the logical volume.
fn guest_writes(dir: &Path, state: &str, root_at: u64) {
    sh(
        dir,
        &format!(
            "mkdir -p at; mount -o loop xfs at; trap 'umount at' EXIT
             cp -r tree/. at/; echo {state} > at/state; mkdir -p at/{state}; seq 1 500 | sed 's|^|at/{state}/|' | xargs touch; sync -f at
             echo {state} > tree/state; truncate -s 20M root
             mkfs.ext4 -q -F -U 6a1dbb3e-41c8-4d5b-9a6e-0f8a9d4f1c11 -d tree root
             dd if=root of=lvm bs=64K oflag=seek_bytes seek={root_at} conv=notrunc status=none
             cp --sparse=always xfs xfs.dirty"
        ),
    );
    // Whole, for what was written before may have to go.
    sh(dir, &format!("dd if=xfs.dirty of=vms/web/disk0.raw bs=1M seek={XFS} conv=notrunc status=none"));
    sh(dir, &format!("dd if=lvm of=vms/web/disk0.raw bs=1M seek={LVM} conv=notrunc status=none"));
}

fn volumes(of: &Value) -> BTreeMap<String, (String, String, Value)> {
    let volumes = of["volumes"].as_array().unwrap().iter();
    let told = |volume: &Value| {
        let (kind, state) = (field(volume, "type").to_owned(), field(volume, "state").to_owned());
        (field(volume, "volume_id").to_owned(), (kind, state, volume["consistency"].clone()))
    };
    volumes.map(told).collect()
}

#[test]
fn two_points_of_one_machine_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sh(dir, DISK);
    let root_at: u64 = sh(dir, GROUP).trim().parse().unwrap();
    for (image, mib) in [("btrfs", BTRFS), ("fat", FAT)] {
        put(dir, image, mib);
    }
    let hub = Hub::start(dir);
    guest_writes(dir, "one", root_at);
    hub.set_up_images(dir);
    let first = point(&hub);
    guest_writes(dir, "two", root_at);
    let second = point(&hub);

    let mounts = [&first, &second].map(|point| hub.json(&["mount", point]));
    let known = |kind: &str, state: &str, log: Value| (kind.to_owned(), state.to_owned(), log);
    for mount in &mounts {
        let told = volumes(mount);
        assert_eq!(told["p1"], known("xfs", "readable", "replayed".into()), "{mount:#}");
        assert_eq!(told["p2"], known("btrfs", "readable", "clean".into()), "{mount:#}");
        assert_eq!(told["p3"], known("vfat", "readable", "clean".into()), "{mount:#}");
        assert_eq!(told["lvm:vg0/root"], known("ext4", "readable", "clean".into()), "{mount:#}");
        assert!(
            mount["volumes"].as_array().unwrap().iter().all(|volume| volume["backend"] != "appliance"),
            "{mount:#}"
        );
    }

    let ids = mounts.each_ref().map(|mount| field(mount, "mount_id").to_owned());
    // The same question of every volume, in turns, and the right answer from each.
    let numbers = sha256(&dir.join("tree/folder/numbers"));
    for (mount, state) in ids.iter().zip(["one\n", "two\n"]) {
        for (volume, state) in [("p1", state), ("p2", "guest\n"), ("p3", "guest\n"), ("lvm:vg0/root", state)] {
            let got = dir.join("got");
            hub.ok(&["get", mount, "/folder/numbers", "--volume", volume, "--to", path(&got), "--force"]);
            assert_eq!(sha256(&got), numbers, "{volume}");
            let (status, _, body) = ask(&hub, &[], &format!("/restore/{mount}/download?path=/state&volume={volume}"));
            assert_eq!((status, text(&body).as_str()), (200, state), "{volume}");
        }
    }
    // What only the log knows.
    let listed =
        |mount: &str, path: &str| json(&ask(&hub, &[], &format!("/restore/{mount}/files?path={path}&volume=p1")).2);
    assert_eq!(listed(&ids[0], "/one")["total"], 500);
    assert_eq!((&listed(&ids[1], "/two")["total"], &listed(&ids[1], "/one")["total"]), (&500.into(), &500.into()));
    assert_eq!(listed(&ids[0], "/two")["code"], "file_not_found");
    assert_eq!(hub.stop(), Some(0));
}
