//! Disks on which the guest's kernel sees partitions that are not there: its reader of Acorn's tables believes any sector 6 whose
//! last byte is the sum of the others and that tells a length, as one in 256 is that holds anything at all.

use super::Test;
use super::images::{Served, digest, digests, digests_of, folder, sh};
use sendense_guestfs::Session;
use sendense_guestfs::meta::State;
use std::path::Path;

pub const TESTS: &[Test] = &[
    (
        "a_file_system_on_the_whole_disk_is_found_behind_a_phantom",
        a_file_system_on_the_whole_disk_is_found_behind_a_phantom,
    ),
    ("partitions_are_those_of_the_table_and_not_a_phantom", partitions_are_those_of_the_table_and_not_a_phantom),
    ("a_group_on_the_whole_disk_is_started_behind_a_phantom", a_group_on_the_whole_disk_is_started_behind_a_phantom),
];

const TREE: &str =
    "mkdir -p tree/etc; echo guest > tree/etc/passwd; seq 1 200000 > tree/numbers; ln -s etc/passwd tree/link";

/// Sector 6 of a disk, such that an Acorn partition of 1 MiB begins at the disk's first sector.
fn add_phantom(image: &Path) {
    use std::os::unix::fs::FileExt;
    let mut sector = [0; 512];
    // The length in bytes, in the record that begins at 0x1c0; and the sum.
    sector[0x1d2] = 0x10;
    sector[0x1ff] = 0x10;
    std::fs::File::options().write(true).open(image).unwrap().write_all_at(&sector, 6 * 512).unwrap();
}

/// What the guest finds on the disk: one volume, called `id`, with the tree beside the image.
fn check(image: &Path, id: &str) {
    let before = digest(image);
    let served = Served::raw(image);
    let session = served.boot();
    let volumes = session.volumes().unwrap();
    let told: Vec<_> = volumes.iter().map(|volume| (volume.id.as_str(), &volume.state)).collect();
    assert_eq!(told, [(id, &State::Readable)], "{volumes:#?}");
    let mut found = digests(&session, id);
    found.retain(|path, _| !path.starts_with(b"/lost+found"));
    assert_eq!(found, digests_of(&image.with_file_name("tree")));
    assert_eq!(digest(image), before);
}

fn a_file_system_on_the_whole_disk_is_found_behind_a_phantom() {
    let dir = folder();
    let image = dir.path().join("disk.img");
    // Nothing of it lies in that sector: its blocks have 4 KiB, and the first holds nothing but the superblock.
    sh(dir.path(), TREE);
    sh(dir.path(), "truncate -s 64M disk.img; mkfs.ext4 -q -F -b 4096 -d tree disk.img");
    add_phantom(&image);
    check(&image, "disk");
}

fn partitions_are_those_of_the_table_and_not_a_phantom() {
    let dir = folder();
    // A boot loader lies in that sector of many a disk. With a GPT it belongs to the table, of which there is a second copy.
    let script = r#"truncate -s 64M part; mkfs.ext4 -q -F -d tree part
        for table in dos gpt; do
            truncate -s 80M $table.img; printf "label: $table\nstart=2048, size=131072\n" | sfdisk -q $table.img
            dd if=part of=$table.img bs=1M seek=1 conv=notrunc,sparse status=none
        done
        truncate -s 80M logical.img
        printf 'label: dos\nstart=2048, size=160000, type=5\nstart=4096, size=131072, type=83\n' | sfdisk -q logical.img
        dd if=part of=logical.img bs=1M seek=2 conv=notrunc,sparse status=none"#;
    sh(dir.path(), TREE);
    sh(dir.path(), script);
    for (name, id) in [("dos.img", "p1"), ("logical.img", "p5"), ("gpt.img", "p1")] {
        let image = dir.path().join(name);
        add_phantom(&image);
        check(&image, id);
    }
}

fn a_group_on_the_whole_disk_is_started_behind_a_phantom() {
    let dir = folder();
    let image = dir.path().join("disk.img");
    let script = r#"truncate -s 24M root; mkfs.ext4 -q -F -d tree root; truncate -s 64M disk.img
        exec 2>lvm.log
        disk=$(losetup -f --show disk.img); trap 'losetup -d $disk' EXIT
        lvm() { LVM_SUPPRESS_FD_WARNINGS=1 command lvm "$@" --driverloaded n --config 'devices{scan_lvs=0 use_devicesfile=0} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0}' --devices $disk; }
        lvm pvcreate -ff -y $disk >&2
        lvm vgcreate vg $disk >&2
        lvm lvcreate -an -Zn -Wn -y -n root -l 6 vg >&2
        dd if=root of=$disk bs=1M seek=1 conv=notrunc,fsync status=none"#;
    sh(dir.path(), TREE);
    sh(dir.path(), script);
    add_phantom(&image);
    check(&image, "lvm:vg/root");
}
