//! Partition tables, volume groups, encrypted and mirrored volumes, made by the tools that people use and read by a worker.

use super::Test;
use super::images::{ext4, folder, open, read, sh, volume};
use sendense_guestfs::meta::{Consistency, State};
use sendense_guestfs::{Error, Key, Session, Volume};
use std::path::Path;

pub const TESTS: &[Test] = &[
    ("gpt_with_what_people_have_in_it", gpt_with_what_people_have_in_it),
    ("gpt_is_read_from_its_second_copy", gpt_is_read_from_its_second_copy),
    ("an_old_second_copy_of_a_gpt_is_not_believed", an_old_second_copy_of_a_gpt_is_not_believed),
    ("mbr_with_logical_partitions", mbr_with_logical_partitions),
    ("logical_partitions_that_fill_a_gap_are_found", logical_partitions_that_fill_a_gap_are_found),
    ("lvm_with_several_segments", lvm_with_several_segments),
    ("luks_opens_with_its_key", luks_opens_with_its_key),
    ("a_mirror_is_read_from_one_member", a_mirror_is_read_from_one_member),
    ("what_no_reader_knows_is_named", what_no_reader_knows_is_named),
    ("a_disk_cut_short_still_shows_the_rest", a_disk_cut_short_still_shows_the_rest),
];

fn brief(volumes: &[Volume]) -> Vec<(&str, &str, &State)> {
    volumes.iter().map(|volume| (volume.id.as_str(), volume.kind.as_str(), &volume.state)).collect()
}

/// Writes an image into another at a byte offset.
fn put(dir: &Path, from: &str, to: &str, at: u64) {
    sh(dir, &format!("dd if={from} of={to} bs=64K oflag=seek_bytes seek={at} conv=notrunc,sparse status=none"));
}

fn gpt_disk(dir: &Path) {
    ext4(dir, "fs", 16, "-L wurzel", "echo hello > file");
    sh(
        dir,
        "truncate -s 64M disk
         printf 'label: gpt\nstart=1M, size=16M, name=\"root \u{e9}\"\nsize=4M, type=swap\nsize=4M\nsize=1M, type=21686148-6449-6E6F-744E-656564454649\nsize=4M\n' | sfdisk -q disk
         truncate -s 4M swap; mkswap -q -L ruhe swap >/dev/null; truncate -s 4M noise; printf 'something else' > noise; truncate -s 4M noise",
    );
    put(dir, "fs", "disk", 1 << 20);
    put(dir, "swap", "disk", 17 << 20);
    put(dir, "noise", "disk", 26 << 20);
}

fn gpt_with_what_people_have_in_it() {
    let dir = folder();
    gpt_disk(dir.path());
    let worker = open(&dir.path().join("disk"));
    let volumes = worker.volumes().unwrap();
    let [p1, p2, p3, p4, p5] = &brief(&volumes)[..] else { panic!("{volumes:#?}") };
    assert_eq!(
        (*p1, *p2, *p3),
        (("p1", "ext4", &State::Readable), ("p2", "swap", &State::Empty), ("p3", "", &State::Empty))
    );
    assert_eq!(*p4, ("p4", "bios-boot", &State::Empty));
    assert!(p5.0 == "p5" && matches!(p5.2, State::Unsupported(_)), "{p5:?}");
    assert_eq!((volumes[0].label.as_deref(), volumes[0].size_bytes), (Some("wurzel"), 16 << 20));
    assert_eq!((volumes[1].label.as_deref(), volumes[0].consistency), (Some("ruhe"), Some(Consistency::Clean)));
    let uuid = |file: &str| sh(dir.path(), &format!("blkid -p -o value -s UUID {file}")).trim().to_owned();
    assert_eq!((volumes[0].uuid.clone(), volumes[1].uuid.clone()), (Some(uuid("fs")), Some(uuid("swap"))));
    assert_eq!(read(&worker, "p1", "/file").unwrap(), b"hello\n");
    assert!(matches!(read(&worker, "p2", "/file"), Err(Error::Unsupported(_))));
    // The same again: ids and order hang on the disk alone.
    assert_eq!(open(&dir.path().join("disk")).volumes().unwrap(), volumes);
}

fn gpt_is_read_from_its_second_copy() {
    let dir = folder();
    gpt_disk(dir.path());
    sh(dir.path(), "dd if=/dev/zero of=disk bs=512 seek=1 count=1 conv=notrunc status=none");
    assert_eq!(read(&open(&dir.path().join("disk")), "p1", "/file").unwrap(), b"hello\n");
}

/// The disk was emptied at its beginning only, and then used otherwise.
fn an_old_second_copy_of_a_gpt_is_not_believed() {
    let dir = folder();
    ext4(dir.path(), "whole", 64, "", "echo whole > file");
    ext4(dir.path(), "new", 32, "", "echo new > file");
    let emptied = |name: &str| {
        gpt_disk(dir.path());
        sh(dir.path(), &format!("mv disk {name}; dd if=/dev/zero of={name} bs=1M count=1 conv=notrunc status=none"));
        dir.path().join(name)
    };
    // Nothing else is there: it is what is left of the table.
    assert_eq!(read(&open(&emptied("lost")), "p1", "/file").unwrap(), b"hello\n");

    let dos = emptied("dos");
    sh(dir.path(), "printf 'label: dos\nstart=2M, size=32M\n' | sfdisk -q --wipe never dos");
    put(dir.path(), "new", "dos", 2 << 20);
    let last = sh(dir.path(), "tail -c 512 dos | head -c 8");
    assert_eq!(last, "EFI PART", "sfdisk has removed the second copy");
    let worker = open(&dos);
    assert_eq!(brief(&worker.volumes().unwrap()), [("p1", "ext4", &State::Readable)]);
    assert_eq!(read(&worker, "p1", "/file").unwrap(), b"new\n");

    let ext = emptied("ext");
    sh(dir.path(), "head -c 63M whole | dd of=ext bs=1M conv=notrunc status=none");
    assert_eq!(sh(dir.path(), "tail -c 512 ext | head -c 8"), "EFI PART");
    assert_eq!(read(&open(&ext), "disk", "/file").unwrap(), b"whole\n");

    let locked = emptied("locked");
    sh(
        dir.path(),
        "printf key | cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 locked -",
    );
    assert_eq!(sh(dir.path(), "tail -c 512 locked | head -c 8"), "EFI PART");
    let volumes = open(&locked).volumes().unwrap();
    assert_eq!(brief(&volumes), [("luks:disk", "crypto_LUKS", &State::Locked)]);
}

/// sfdisk puts the boot record of a partition that fills a gap at the end of the chain, which leads back then.
fn logical_partitions_that_fill_a_gap_are_found() {
    let dir = folder();
    ext4(dir.path(), "gap", 8, "", "echo gap > file");
    ext4(dir.path(), "last", 8, "", "echo last > file");
    sh(
        dir.path(),
        "truncate -s 64M disk
         printf 'label: dos\nstart=1M, type=5\nstart=2M, size=8M\nstart=40M, size=8M\n' | sfdisk -q disk
         printf 'start=20M, size=8M\n' | sfdisk -q --append disk",
    );
    let starts = sh(dir.path(), "sfdisk --json disk | tr -d ' ,' | grep start | cut -d: -f2");
    let starts: Vec<u64> = starts.lines().map(|line| line.parse::<u64>().unwrap() * 512).collect();
    let [_, first, second, third] = starts[..] else { panic!("{starts:?}") };
    assert!(third < second && first < third, "sfdisk has sorted them: {starts:?}");
    put(dir.path(), "last", "disk", second);
    put(dir.path(), "gap", "disk", third);
    let worker = open(&dir.path().join("disk"));
    let volumes = worker.volumes().unwrap();
    let expected = [("p5", "", &State::Empty), ("p6", "ext4", &State::Readable), ("p7", "ext4", &State::Readable)];
    assert_eq!(brief(&volumes), expected);
    assert_eq!(read(&worker, "p6", "/file").unwrap(), b"last\n");
    assert_eq!(read(&worker, "p7", "/file").unwrap(), b"gap\n");
}

fn mbr_with_logical_partitions() {
    let dir = folder();
    ext4(dir.path(), "one", 8, "", "echo one > file");
    ext4(dir.path(), "six", 8, "", "echo six > file");
    sh(
        dir.path(),
        "truncate -s 64M disk
         printf 'label: dos\nstart=1M, size=8M, bootable\nstart=16M, type=5\nstart=17M, size=8M\nstart=32M, size=8M\n' | sfdisk -q disk",
    );
    put(dir.path(), "one", "disk", 1 << 20);
    put(dir.path(), "six", "disk", 32 << 20);
    let worker = open(&dir.path().join("disk"));
    let volumes = worker.volumes().unwrap();
    let expected = [("p1", "ext4", &State::Readable), ("p5", "", &State::Empty), ("p6", "ext4", &State::Readable)];
    assert_eq!(brief(&volumes), expected);
    assert_eq!(read(&worker, "p1", "/file").unwrap(), b"one\n");
    assert_eq!(read(&worker, "p6", "/file").unwrap(), b"six\n");
}

/// LVM's own tools make the group, without the device mapper; where the segments lie is asked of them too.
fn lvm_with_several_segments() {
    let dir = folder();
    ext4(dir.path(), "root", 28, "-L root", "seq 1 1000000 > numbers; echo root > file");
    ext4(dir.path(), "data", 12, "", "echo data > file");
    let script = r#"
        truncate -s 64M disk
        exec 2>lvm.log
        loop=$(losetup -f --show disk); trap 'losetup -d $loop' EXIT
        lvm() { LVM_SUPPRESS_FD_WARNINGS=1 command lvm "$@" --driverloaded n --config 'devices{scan_lvs=0 use_devicesfile=0} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0}'; }
        lvm pvcreate -ff -y $loop >&2
        lvm vgcreate vg-0 $loop >&2
        for size in root:5 data:3; do lvm lvcreate -an -Zn -Wn -y -n ${size%:*} -l ${size#*:} vg-0 >&2; done
        lvm lvextend -y -l +2 vg-0/root >&2
        lvm lvcreate -an -Zn -Wn -y --type thin-pool -n pool -l 2 vg-0 >&2 || true
        lvm lvs --noheadings --segments -o lv_name,seg_start_pe,seg_size_pe,seg_pe_ranges vg-0"#;
    let segments = sh(dir.path(), script);
    let mut several = 0;
    for line in segments.lines() {
        let [name @ ("root" | "data"), start, size, ranges] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            continue;
        };
        let extent: u64 = ranges.split_once(':').unwrap().1.split_once('-').unwrap().0.parse().unwrap();
        // Extents of 4 MiB, the first one at 1 MiB.
        let at = (1 << 20) + extent * (4 << 20);
        sh(
            dir.path(),
            &format!(
                "dd if={name} of=disk bs=4M skip={start} count={size} oflag=seek_bytes seek={at} conv=notrunc status=none"
            ),
        );
        several += usize::from(name == "root");
    }
    assert_eq!(several, 2, "{segments}");
    let worker = open(&dir.path().join("disk"));
    let volumes = worker.volumes().unwrap();
    let listed = brief(&volumes);
    assert!(listed.contains(&("lvm:vg-0/data", "ext4", &State::Readable)), "{listed:?}");
    assert!(listed.contains(&("lvm:vg-0/root", "ext4", &State::Readable)), "{listed:?}");
    assert_eq!(read(&worker, "lvm:vg-0/data", "/file").unwrap(), b"data\n");
    assert_eq!(read(&worker, "lvm:vg-0/root", "/file").unwrap(), b"root\n");
    assert_eq!(read(&worker, "lvm:vg-0/root", "/numbers").unwrap(), sh(dir.path(), "seq 1 1000000").into_bytes());
}

fn key(text: &str) -> Key {
    Key::new(text.as_bytes().to_vec()).unwrap()
}

fn luks_opens_with_its_key() {
    let dir = folder();
    ext4(dir.path(), "fs", 16, "-L inside", "echo secret > file; seq 1 100000 > numbers");
    // LUKS1 with content, which QEMU writes, because it needs no device mapper for that.
    sh(
        dir.path(),
        "truncate -s 18M disk; printf open-sesame | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 disk -
         qemu-img convert -n --object secret,id=key,data=open-sesame --image-opts --target-image-opts driver=raw,file.filename=fs driver=luks,file.filename=disk,key-secret=key",
    );
    let worker = open(&dir.path().join("disk"));
    assert_eq!(brief(&worker.volumes().unwrap()), [("luks:disk", "crypto_LUKS", &State::Locked)]);
    assert_eq!(read(&worker, "luks:disk", "/file"), Err(Error::Locked));
    assert_eq!(worker.unlock(&volume("luks:disk"), &key("wrong")), Err(Error::WrongKey));
    assert_eq!(worker.unlock(&volume("p1"), &key("open-sesame")), Err(Error::NoVolume));
    let volumes = worker.unlock(&volume("luks:disk"), &key("open-sesame")).unwrap();
    assert_eq!(brief(&volumes), [("luks:disk", "ext4", &State::Readable)]);
    assert_eq!(volumes[0].label.as_deref(), Some("inside"));
    assert_eq!(read(&worker, "luks:disk", "/file").unwrap(), b"secret\n");
    assert_eq!(read(&worker, "luks:disk", "/numbers").unwrap(), sh(dir.path(), "seq 1 100000").into_bytes());
    // LUKS2 as it is made today: Argon2, with less memory than usual, which would take a busy machine minutes.
    sh(
        dir.path(),
        "truncate -s 24M two; printf open-sesame | cryptsetup luksFormat -q --type luks2 --label zwei --pbkdf argon2id \
         --pbkdf-memory 32768 --pbkdf-parallel 1 --pbkdf-force-iterations 4 two -",
    );
    let worker = open(&dir.path().join("two"));
    let volumes = worker.volumes().unwrap();
    assert_eq!(
        (brief(&volumes), volumes[0].label.as_deref()),
        (vec![("luks:disk", "crypto_LUKS", &State::Locked)], Some("zwei"))
    );
    assert_eq!(volumes[0].uuid, Some(sh(dir.path(), "cryptsetup luksUUID two").trim().to_owned()));
    assert_eq!(worker.unlock(&volume("luks:disk"), &key("wrong")), Err(Error::WrongKey));
    // Nothing was ever written through it, so what it holds is noise; that it opens is the point.
    let volumes = worker.unlock(&volume("luks:disk"), &key("open-sesame")).unwrap();
    assert!(matches!(volumes[0].state, State::Unsupported(_)), "{volumes:?}");
    assert_eq!(volumes[0].size_bytes, 8 << 20);
}

/// The superblock is written here, because `mdadm` needs the kernel's driver; `blkid` says whether it is one.
fn a_mirror_is_read_from_one_member() {
    let dir = folder();
    ext4(dir.path(), "fs", 16, "", "echo mirrored > file");
    for (at, data) in [(4096u64, 2048u64), (0, 2048), ((20 << 20) - 8192, 0)] {
        sh(dir.path(), "rm -f disk; truncate -s 20M disk");
        put(dir.path(), "fs", "disk", data * 512);
        let mut block = vec![0u8; 1024];
        let mut set = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &0xa92b_4efcu32.to_le_bytes());
        set(4, &1u32.to_le_bytes());
        set(16, &[7; 16]);
        set(32, b"host:0");
        set(72, &1u32.to_le_bytes());
        set(80, &(16u64 << 11).to_le_bytes());
        set(92, &2u32.to_le_bytes());
        set(128, &data.to_le_bytes());
        set(136, &(16u64 << 11).to_le_bytes());
        set(144, &(at / 512).to_le_bytes());
        set(220, &384u32.to_le_bytes());
        let covered = &block[..256 + 2 * 384];
        let sum: u64 =
            covered.chunks_exact(4).map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap()))).sum();
        let sum = ((sum & 0xffff_ffff) + (sum >> 32)) as u32;
        block[216..220].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(dir.path().join("superblock"), &block).unwrap();
        put(dir.path(), "superblock", "disk", at);
        assert_eq!(sh(dir.path(), "blkid -p -o value -s TYPE disk").trim(), "linux_raid_member");
        let worker = open(&dir.path().join("disk"));
        let volumes = worker.volumes().unwrap();
        assert_eq!(brief(&volumes), [("md:disk", "ext4", &State::Readable)], "superblock at {at}");
        assert_eq!(read(&worker, "md:disk", "/file").unwrap(), b"mirrored\n");
        // Another level, the same superblock otherwise.
        block[72] = 5;
        block[216] = block[216].wrapping_add(4);
        std::fs::write(dir.path().join("superblock"), &block).unwrap();
        put(dir.path(), "superblock", "disk", at);
        let volumes = open(&dir.path().join("disk")).volumes().unwrap();
        assert!(matches!(&volumes[0].state, State::Unsupported(why) if why.0.contains("level 5")), "{volumes:?}");
    }
}

fn a_disk_cut_short_still_shows_the_rest() {
    let dir = folder();
    gpt_disk(dir.path());
    sh(dir.path(), "truncate -s 20M disk");
    let worker = open(&dir.path().join("disk"));
    let volumes = worker.volumes().unwrap();
    assert_eq!(volumes.len(), 5);
    assert!(matches!(volumes[1].state, State::Corrupt(_)), "{volumes:#?}");
    assert_eq!(read(&worker, "p1", "/file").unwrap(), b"hello\n");
}

/// Each by its kind, in a partition of its own; none hides the file system beside them.
fn what_no_reader_knows_is_named() {
    let dir = folder();
    ext4(dir.path(), "fs", 8, "", "echo beside > file");
    // Made by the tools that make them, and by their marks where there is no such tool.
    let script = r#"truncate -s 160M disk
        printf 'label: gpt\nstart=1M, size=8M\nsize=16M\nsize=16M\nsize=8M\nsize=8M\nsize=8M\nsize=64M\n' | sfdisk -q disk
        truncate -s 16M udf exfat; mkudffs --media-type=hd udf > made; mkfs.exfat exfat >> made
        for kind in BitLocker:-FVE-FS- ReFS:'ReFS\0\0\0\0'; do
            truncate -s 8M ${kind%%:*}; printf "\xeb\x58\x90${kind#*:}" | dd of=${kind%%:*} conv=notrunc status=none
        done
        truncate -s 8M apfs; printf NXSB | dd of=apfs bs=1 seek=32 conv=notrunc status=none
        seq 1 100000 > other; truncate -s 64M other"#;
    sh(dir.path(), script);
    let parts = [("udf", 9), ("exfat", 25), ("BitLocker", 41), ("ReFS", 49), ("apfs", 57), ("other", 65)];
    put(dir.path(), "fs", "disk", 1 << 20);
    for (name, at) in parts {
        put(dir.path(), name, "disk", at << 20);
    }
    let worker = open(&dir.path().join("disk"));
    let volumes = worker.volumes().unwrap();
    assert_eq!(brief(&volumes)[0], ("p1", "ext4", &State::Readable));
    for ((name, _), volume) in parts.iter().zip(&volumes[1..]) {
        let State::Unsupported(why) = &volume.state else { panic!("{name}: {volume:?}") };
        let said = if *name == "other" { "no file system that these readers know" } else { *name };
        let kind = if *name == "other" { "" } else { *name };
        assert_eq!((volume.kind.as_str(), why.0.contains(said)), (kind, true), "{name}: {why:?}");
    }
    assert_eq!(volumes.len(), 7, "{volumes:#?}");
    assert_eq!(read(&worker, "p1", "/file").unwrap(), b"beside\n");
}
