//! Disks that the native readers refuse, read by the appliance and compared with what was put on them.

use super::Test;
use super::images::{Served, digest, digests, digests_of, folder, kit, open, path, read, sh, volume};
use sendense_guestfs::meta::{Consistency, State};
use sendense_guestfs::{Error, Reason, Session};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("a_volume_that_the_native_reader_refuses", a_volume_that_the_native_reader_refuses),
    ("checksums_that_the_native_reader_does_not_know", checksums_that_the_native_reader_does_not_know),
    ("what_is_readable_or_damaged_stays_native", what_is_readable_or_damaged_stays_native),
    ("logs_are_replayed_and_the_image_stays_as_it_is", logs_are_replayed_and_the_image_stays_as_it_is),
    ("a_striped_logical_volume", a_striped_logical_volume),
    ("pages_links_and_holes", pages_links_and_holes),
    ("both_backends_show_the_same", both_backends_show_the_same),
    ("file_systems_that_only_a_kernel_knows", file_systems_that_only_a_kernel_knows),
];

/// A tree with the names and kinds that matter; left in `dir/tree`.
pub const TREE: &str = r#"mkdir -p tree/etc tree/data/www tree/many; echo guest > tree/etc/passwd; ln -s /etc/passwd tree/evil
    ln -s ../../../../etc/shadow tree/up; ln -s data/www tree/www; echo index > tree/data/www/index; mkfifo tree/fifo
    echo odd > "tree/$(printf 'a\nb\xff')"; seq 1 200000 > tree/data/numbers; : > tree/empty
    truncate -s 20M tree/sparse; printf x | dd of=tree/sparse bs=1 seek=10M conv=notrunc status=none
    (cd tree/many; seq -f 'entry-%05g' 1 2500 | xargs touch)"#;

/// A volume whose log the native reader refuses, as a snapshot of a running machine leaves it.
fn a_volume_that_the_native_reader_refuses() {
    kit();
    let dir = folder();
    sh(dir.path(), TREE);
    let script = r#"truncate -s 256M disk.img; mkfs.btrfs -q -L named -r tree disk.img; mkdir at
        mount -o loop,commit=300 disk.img at; trap 'umount at' EXIT; sync -f at
        seq 1 5000 > at/etc/synced; sync at/etc/synced
        rm -rf expected; cp -a at expected; cp --sparse=always disk.img dirty.img"#;
    sh(dir.path(), script);
    let image = dir.path().join("dirty.img");
    let before = digest(&image);
    let served = Arc::new(Served::raw(&image));
    let begun = Instant::now();
    let session = open(&image, &served);
    let volumes = session.volumes().unwrap();
    let first = session.list(&volume("disk"), &path("/"), None, 100).unwrap();
    let took = begun.elapsed();
    let level = session.appliance().unwrap().level().unwrap();
    println!("  {} entries after {} ms, {level}", first.entries.len(), took.as_millis());
    assert!(took < Duration::from_secs(20), "{took:?}");
    let told = (volumes.len(), &volumes[0].state, volumes[0].kind.as_str(), volumes[0].label.as_deref());
    assert_eq!(told, (1, &State::Readable, "btrfs", Some("named")), "{volumes:?}");
    assert_eq!(volumes[0].consistency, Some(Consistency::Replayed));
    assert_eq!(digests(&session, "disk"), digests_of(&dir.path().join("expected")));
    Box::new(session).close();
    assert_eq!(digest(&image), before);
}

/// The reader refuses them by name, and the guest's kernel reads them: with the modules that no table says it needs.
fn checksums_that_the_native_reader_does_not_know() {
    let dir = folder();
    sh(dir.path(), &format!("{TREE}; rm -r tree/sparse tree/fifo"));
    for (option, name) in [("xxhash", "xxhash64"), ("blake2", "blake2b")] {
        sh(
            dir.path(),
            &format!("rm -f disk.img; truncate -s 128M disk.img; mkfs.btrfs -q --csum {option} -r tree disk.img"),
        );
        let image = dir.path().join("disk.img");
        let served = Arc::new(Served::raw(&image));
        let session = open(&image, &served);
        let refused = session.native().volumes().unwrap().remove(0).state;
        assert_eq!(refused, State::Unsupported(Reason(format!("btrfs checksums {name}"))));
        let volume = session.volumes().unwrap().remove(0);
        let told = (&*volume.kind, &volume.state, volume.consistency, session.is_taken(&volume.id));
        assert_eq!(told, ("btrfs", &State::Readable, Some(Consistency::Clean), true), "{volume:?}");
        assert_eq!(digests(&session, "disk"), digests_of(&dir.path().join("tree")), "{name}");
    }
}

fn what_is_readable_or_damaged_stays_native() {
    let dir = folder();
    sh(dir.path(), "mkdir tree; echo a > tree/a; truncate -s 16M disk.img; mkfs.ext4 -q -F -d tree disk.img");
    let image = dir.path().join("disk.img");
    let served = Arc::new(Served::raw(&image));
    let session = open(&image, &served);
    assert_eq!(session.volumes().unwrap()[0].state, State::Readable);
    assert!(session.appliance().is_none());
    // A superblock whose checksum is wrong.
    sh(dir.path(), r"printf '\xff' | dd of=disk.img bs=1 seek=$((1024 + 0x3fc)) conv=notrunc status=none");
    let session = open(&image, &served);
    let volumes = session.volumes().unwrap();
    assert!(matches!(volumes[0].state, State::Corrupt(_)), "{volumes:?}");
    assert!(session.appliance().is_none());
}

/// Copies of mounted file systems, as a snapshot of a running machine makes them: what was synced is there, and the log says it.
fn logs_are_replayed_and_the_image_stays_as_it_is() {
    let dir = folder();
    let fill = |mount: &str| {
        format!(
            r#"trap 'umount at' EXIT; mkdir at; {mount}; cp -a tree/. at/; sync -f at
            rm -r at/data/www; mkdir at/late; seq 1 5000 > at/late/synced; mv at/etc/passwd at/etc/moved; sync -f at/late
            rm -rf expected; cp -a at expected; rm -rf expected/lost+found; cp --sparse=always disk.img dirty.img"#
        )
    };
    sh(dir.path(), TREE);
    for (make, mount) in [
        ("mkfs.ext4 -q -F -O inline_data disk.img", "mount -o loop,commit=600 disk.img at"),
        ("mkfs.xfs -q -f disk.img", "mount -o loop disk.img at"),
    ] {
        sh(dir.path(), &format!("rm -rf disk.img dirty.img at; truncate -s 400M disk.img; {make}"));
        sh(dir.path(), &fill(mount));
        let image = dir.path().join("dirty.img");
        let before = digest(&image);
        let served = Served::raw(&image);
        let appliance = served.boot();
        let volumes = appliance.volumes().unwrap();
        assert_eq!(volumes[0].state, State::Readable, "{make}: {volumes:?}");
        assert_eq!(volumes[0].consistency, Some(Consistency::Replayed), "{make}");
        assert_eq!(digests(&appliance, "disk"), digests_of(&dir.path().join("expected")), "{make}");
        Box::new(appliance).close();
        assert_eq!(digest(&image), before, "{make}");
        // Twice the same: nothing of the first session is in the second.
        let again = served.boot();
        assert_eq!(again.volumes().unwrap()[0].consistency, Some(Consistency::Replayed), "{make}");
        // Unmounted, it is clean.
        let clean = Served::raw(&dir.path().join("disk.img"));
        let clean = clean.boot();
        assert_eq!(clean.volumes().unwrap()[0].consistency, Some(Consistency::Clean), "{make}");
    }
}

/// A volume over two partitions, which the native readers refuse. Made without the device mapper of this machine: the group by
/// LVM's own tools, the volume's content laid out by hand.
fn a_striped_logical_volume() {
    let dir = folder();
    let at = dir.path();
    sh(at, &format!("{TREE}; truncate -s 80M root; mkfs.ext4 -q -F -L root -d tree root"));
    let group = r#"truncate -s 64M pv1 pv2
        exec 2>lvm.log
        one=$(losetup -f --show pv1); two=$(losetup -f --show pv2); trap 'losetup -d $one $two' EXIT
        lvm() { LVM_SUPPRESS_FD_WARNINGS=1 command lvm "$@" --driverloaded n --config 'devices{scan_lvs=0 use_devicesfile=0} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0}' --devices $one,$two; }
        lvm pvcreate -ff -y $one $two >&2
        lvm vgcreate vg-0 $one $two >&2
        lvm lvcreate -an -Zn -Wn -y -n root --stripes 2 --stripesize 64k -l 20 vg-0 >&2
        lvm lvs --noheadings -o seg_pe_ranges vg-0"#;
    let ranges = sh(at, group);
    assert_eq!(ranges.matches(":0-9").count(), 2, "{ranges}");
    let mut partitions = [std::fs::read(at.join("pv1")).unwrap(), std::fs::read(at.join("pv2")).unwrap()];
    for (number, stripe) in std::fs::read(at.join("root")).unwrap().chunks(64 << 10).enumerate() {
        // The first extent of a physical volume is at 1 MiB.
        let place = (1 << 20) + number / 2 * (64 << 10);
        partitions[number % 2][place..place + stripe.len()].copy_from_slice(stripe);
    }
    for (name, content) in ["pv1", "pv2"].into_iter().zip(&partitions) {
        std::fs::write(at.join(name), content).unwrap();
    }
    let disk = r#"truncate -s 130M disk.img
        printf 'label: gpt\nstart=2048, size=131072, type=lvm\nstart=133120, size=131072, type=lvm\n' | sfdisk -q disk.img
        dd if=pv1 of=disk.img bs=1M seek=1 conv=notrunc,sparse status=none
        dd if=pv2 of=disk.img bs=1M seek=65 conv=notrunc,sparse status=none"#;
    sh(at, disk);
    let image = at.join("disk.img");
    let before = digest(&image);
    let served = Arc::new(Served::raw(&image));
    let session = open(&image, &served);
    let volumes = session.volumes().unwrap();
    let told: Vec<_> = volumes.iter().map(|volume| (volume.id.as_str(), &volume.state)).collect();
    assert!(told.contains(&("lvm:vg-0/root", &State::Readable)), "{told:#?}");
    assert_eq!(digests(&session, "lvm:vg-0/root"), digests_of(&at.join("tree")));
    Box::new(session).close();
    assert_eq!(digest(&image), before);
}

fn pages_links_and_holes() {
    let dir = folder();
    sh(dir.path(), TREE);
    sh(dir.path(), "truncate -s 96M disk.img; mkfs.ext4 -q -F -O inline_data -d tree disk.img");
    let served = Served::raw(&dir.path().join("disk.img"));
    let session = served.boot();
    let (mut after, mut names) = (None, std::collections::BTreeSet::new());
    loop {
        let page = session.list(&volume("disk"), &path("/many"), after, 300).unwrap();
        for entry in page.entries {
            assert!(names.insert(entry.name));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(names.len(), 2500);
    // Links stay in the volume, and nothing but files is opened.
    assert_eq!(session.resolve(&volume("disk"), &path("/evil")).unwrap(), path("/etc/passwd"));
    assert_eq!(session.resolve(&volume("disk"), &path("/up")), Err(Error::NotFound));
    assert_eq!(session.readlink(&volume("disk"), &path("/up")).unwrap(), b"../../../../etc/shadow");
    assert_eq!(read(&session, "disk", &path("/www/index")).unwrap(), b"index\n");
    for (name, error) in [
        ("/evil", Error::NotRegular),
        ("/fifo", Error::NotRegular),
        ("/data", Error::NotRegular),
        ("/gone", Error::NotFound),
        ("/etc/passwd/x", Error::NotDirectory),
    ] {
        assert_eq!(read(&session, "disk", &path(name)), Err(error), "{name}");
    }
    assert_eq!(session.readlink(&volume("disk"), &path("/data")), Err(Error::NotRegular));
    let page = session.data_ranges(&volume("disk"), &path("/sparse"), 0).unwrap();
    let data: u64 = page.ranges.iter().map(|range| range.end - range.start).sum();
    assert!(page.ranges.iter().any(|range| range.contains(&(10 << 20))) && data < 1 << 20, "{page:?}");
    let numbers = sh(dir.path(), "seq 1 200000").into_bytes();
    let size = numbers.len() as u64;
    for range in [0..1, size - 1..size, 300_000..900_001, size..size + 9, 9..9] {
        let mut stream = session.read(&volume("disk"), &path("/data/numbers"), range.clone()).unwrap();
        assert_eq!(stream.file_size_bytes(), size);
        let mut got = Vec::new();
        while let Some(piece) = stream.next_piece().unwrap() {
            got.extend_from_slice(&piece);
        }
        let expected = numbers.get(range.start.min(size) as usize..range.end.min(size) as usize).unwrap_or_default();
        assert!(got == expected, "{range:?}: {} bytes", got.len());
    }
}

/// Made by their own tools without a mount, so that they are whole whatever this machine's kernel knows.
fn file_systems_that_only_a_kernel_knows() {
    let dir = folder();
    sh(dir.path(), &format!("{TREE}; rm -r tree/sparse tree/fifo tree/many"));
    for (kind, make) in [
        ("f2fs", "truncate -s 64M disk.img; mkfs.f2fs -q disk.img > log; sload.f2fs -f tree disk.img >> log"),
        ("squashfs", "mksquashfs tree disk.img -no-progress -quiet > log; truncate -s %1M disk.img"),
    ] {
        sh(dir.path(), &format!("rm -f disk.img; {make}"));
        let image = dir.path().join("disk.img");
        let served = Arc::new(Served::raw(&image));
        let session = open(&image, &served);
        let volume = session.volumes().unwrap().remove(0);
        assert_eq!(
            (&*volume.kind, &volume.state, session.is_taken(&volume.id)),
            (kind, &State::Readable, true),
            "{volume:?}"
        );
        assert_eq!(digests(&session, volume.id.as_str()), digests_of(&dir.path().join("tree")), "{kind}");
    }
}

/// What both can read, one partition each: native readers and guest give every file the same content, which is what was put there.
fn both_backends_show_the_same() {
    let dir = folder();
    let at = dir.path();
    // Names that every one of them can hold.
    let tree = r#"mkdir -p tree/etc tree/data/www; echo guest > tree/etc/passwd; seq 1 200000 > tree/data/numbers; : > tree/empty
        (cd tree/data/www; for n in {1..200}; do echo $n > page-$n.html; done)"#;
    sh(at, tree);
    let make = r#"truncate -s 48M p1 p2 p3 p6; mkfs.ext2 -q -d tree p1; mkfs.ext3 -q -d tree p2; mkfs.ext4 -q -d tree p3
        truncate -s 320M p4; mkfs.xfs -q p4; mkdir at; mount -o loop p4 at; cp -a tree/. at/; umount at
        truncate -s 128M p5; mkfs.btrfs -q -r tree p5 2> made
        mkfs.vfat p6 >> made; mcopy -s -i p6 tree/* ::
        genisoimage -quiet -R -o p7 tree; truncate -s 16M p7
        truncate -s 680M disk.img
        printf 'label: gpt\nstart=1M, size=48M\nsize=48M\nsize=48M\nsize=320M\nsize=128M\nsize=48M\nsize=16M\n' | sfdisk -q disk.img
        begin=1; for part in p1:48 p2:48 p3:48 p4:320 p5:128 p6:48 p7:16; do
            dd if=${part%:*} of=disk.img bs=1M seek=$begin conv=notrunc,sparse status=none; begin=$((begin + ${part#*:}))
        done; rm p?"#;
    sh(at, make);
    let image = at.join("disk.img");
    let served = Arc::new(Served::raw(&image));
    let fallback = open(&image, &served);
    let (native, guest) = (fallback.native(), served.boot());
    let expected = digests_of(&at.join("tree"));
    let kinds = ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "iso9660"];
    let (seen, guests) = (native.volumes().unwrap(), guest.volumes().unwrap());
    assert_eq!(seen.iter().map(|volume| volume.kind.as_str()).collect::<Vec<_>>(), kinds);
    assert_eq!(guests.len(), kinds.len(), "{guests:#?}");
    for (volume, other) in seen.iter().zip(&guests) {
        assert_eq!((&volume.state, &other.state, &volume.id), (&State::Readable, &State::Readable, &other.id));
        assert_eq!(volume.consistency, other.consistency, "{volume:?}");
        for (session, who) in [(native as &dyn Session, "native"), (&guest, "guest")] {
            let mut told = digests(session, volume.id.as_str());
            told.retain(|path, _| !path.starts_with(b"/lost+found"));
            assert!(told == expected, "{who} of {volume:?}: {} files, not {}", told.len(), expected.len());
        }
    }
    // Nothing of it needed the guest.
    assert!(fallback.volumes().is_ok() && fallback.appliance().is_none());
}
