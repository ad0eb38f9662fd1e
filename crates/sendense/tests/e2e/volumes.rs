//! One disk with every sort of volume that servers have: each gives its files through the hub, the encrypted one after it was
//! unlocked, and the key is kept nowhere.

use crate::files::{open, point, sh, sha256};
use crate::hub::{Hub, field, path, tree};
use serde_json::Value;
use std::path::Path;

const KEY: &str = "open-sesame-7f3a";

/// A disk with XFS, NTFS, ext4 in LUKS and ext4 in LVM, made without a mount; each holds `numbers`.
fn disk(dir: &Path) {
    // The lines of LVM work without the device mapper: where the volume lies is asked, and its content is written there.
    let script = format!(
        r#"
        seq 1 300000 > numbers; echo inner > name
        mkdir tree; cp numbers name tree
        truncate -s 320M xfs
        printf 'dummy\n0 0\nd--755 0 0\nnumbers ---644 0 0 numbers\nfolder d--750 0 0\nname ---600 0 0 name\n$\n$\n' > proto
        mkfs.xfs -q -p proto xfs
        truncate -s 32M ntfs; mkntfs -q -F ntfs 2>/dev/null; ntfscp -q ntfs numbers numbers >/dev/null
        truncate -s 16M ext4; mkfs.ext4 -q -F -d tree ext4
        truncate -s 18M luks; printf {KEY} | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 luks -
        qemu-img convert -n --object secret,id=key,data={KEY} --image-opts --target-image-opts \
            driver=raw,file.filename=ext4 driver=luks,file.filename=luks,key-secret=key
        truncate -s 32M lvm
        loop=$(losetup -f --show lvm); trap 'losetup -d $loop' EXIT
        lvm() {{ LVM_SUPPRESS_FD_WARNINGS=1 command lvm "$@" --driverloaded n --config 'devices{{scan_lvs=0 use_devicesfile=0}} activation{{udev_sync=0 udev_rules=0}} backup{{backup=0 archive=0}}' 2>>lvm.log; }}
        lvm pvcreate -ff -y $loop >>lvm.log
        lvm vgcreate vg-0 $loop >>lvm.log
        lvm lvcreate -an -Zn -Wn -y -n data -l 4 vg-0 >>lvm.log
        first=$(lvm lvs --noheadings --segments -o seg_pe_ranges vg-0 | sed 's/.*:\([0-9]*\)-.*/\1/')
        put() {{ dd if=$1 of=$2 bs=64K oflag=seek_bytes seek=$3 conv=notrunc,sparse status=none; }}
        put ext4 lvm $(((1 << 20) + first * (4 << 20)))
        mkdir -p vms/web; truncate -s 412M vms/web/disk0.raw
        printf 'label: gpt\nstart=1M, size=320M\nsize=32M\nsize=24M\nsize=32M\n' | sfdisk -q vms/web/disk0.raw
        put xfs vms/web/disk0.raw $((1 << 20)); put ntfs vms/web/disk0.raw $((321 << 20))
        put luks vms/web/disk0.raw $((353 << 20)); put lvm vms/web/disk0.raw $((377 << 20))
        rm xfs ntfs luks lvm"#
    );
    sh(dir, &script);
}

/// Id, kind and state of the volumes.
fn told(volumes: &Value) -> Vec<(&str, &str, &str)> {
    let volumes = volumes["volumes"].as_array().unwrap().iter();
    volumes.map(|volume| (field(volume, "volume_id"), field(volume, "type"), field(volume, "state"))).collect()
}

#[test]
fn every_sort_of_volume_gives_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disk(dir);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let id = point(&hub);
    let mount = open(&hub, &id);
    let volumes = hub.json(&["volumes", &mount]);
    for volume in [
        ("p1", "xfs", "readable"),
        ("p2", "ntfs", "readable"),
        ("luks:p3", "crypto_LUKS", "locked"),
        ("lvm:vg-0/data", "ext4", "readable"),
    ] {
        assert!(told(&volumes).contains(&volume), "{volume:?} is not in {volumes:#}");
    }
    let want = sha256(&dir.join("numbers"));
    let numbers = |mount: &str, volume: &str| {
        let to = dir.join(format!("numbers-{}", volume.replace(['/', ':'], "-")));
        hub.ok(&["get", mount, "/numbers", "--volume", volume, "--to", path(&to)]);
        assert_eq!(sha256(&to), want, "{volume}");
    };
    for volume in ["p1", "p2", "lvm:vg-0/data"] {
        numbers(&mount, volume);
    }
    let name = dir.join("inner");
    hub.ok(&["get", &mount, "/folder/name", "--volume", "p1", "--to", path(&name)]);
    assert_eq!(std::fs::read_to_string(name).unwrap(), "inner\n");
    assert!(hub.fails(2, &["ls", &mount, "/"]).contains("volume is required"));

    let nothing = dir.join("nothing");
    let early = ["get", &mount, "/numbers", "--volume", "luks:p3", "--to", path(&nothing)];
    assert!(hub.fails(4, &early).contains("locked") && !nothing.exists());
    let key = dir.join("key");
    std::fs::write(&key, "not-the-key").unwrap();
    assert!(hub.fails(2, &["unlock", &mount, "luks:p3", "--key-file", path(&key)]).contains("does not open"));
    std::fs::write(&key, KEY).unwrap();
    let volumes = hub.json(&["unlock", &mount, "luks:p3", "--key-file", path(&key)]);
    assert!(told(&volumes).contains(&("luks:p3", "ext4", "readable")), "{volumes:#}");
    numbers(&mount, "luks:p3");

    // Another mount of the same point, and a history, know nothing of the key.
    let other = open(&hub, &id);
    assert!(told(&hub.json(&["volumes", &other])).contains(&("luks:p3", "crypto_LUKS", "locked")));
    let locked = hub.run(&["history", "web", "/numbers", "--volume", "luks:p3"]);
    assert!(String::from_utf8_lossy(&locked.stdout).contains("locked"), "{locked:?}");
    let history = hub.json(&["history", "web", "/numbers", "--volume", "lvm:vg-0/data"]);
    assert_eq!(field(&history["versions"][0], "sha256"), want);
    assert!(hub.fails(2, &["history", "web", "/numbers"]).contains("volume is required"));

    // Neither the log nor anything that the hub keeps holds it.
    assert!(!hub.log().contains(KEY));
    for file in tree(&hub.data_dir) {
        let bytes = std::fs::read(hub.data_dir.join(&file)).unwrap_or_default();
        assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "{file} holds the key");
    }
}
