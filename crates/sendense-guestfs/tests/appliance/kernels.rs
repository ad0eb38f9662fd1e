//! File systems that this machine's kernel need not know: User Mode Linux, started here as a plain program with a folder of
//! this machine as its root, fills them as a guest would, and lets go of them with or without unmounting.

use super::Test;
use super::disks::TREE;
use super::images::{Served, digest, digests, digests_of, folder, open, path, read, sh, volume};
use sendense_guestfs::Session;
use sendense_guestfs::meta::{Consistency, State};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const TESTS: &[Test] = &[
    ("file_systems_filled_by_a_guest", file_systems_filled_by_a_guest),
    ("file_systems_that_were_not_unmounted", file_systems_that_were_not_unmounted),
    ("the_log_of_an_old_xfs", the_log_of_an_old_xfs),
    ("every_sort_of_logical_volume", every_sort_of_logical_volume),
    ("hfsplus_of_another_maker", hfsplus_of_another_maker),
];

/// Kinds, how an empty one is made, and the modules that the guest needs for it.
const KINDS: [(&str, &str, &[&str]); 5] = [
    ("jfs", "mkfs.jfs -q disk.img", &[]),
    ("reiserfs", "mkfs.reiserfs -q -ff disk.img", &[]),
    ("nilfs2", "mkfs.nilfs2 -q disk.img", &["nilfs2"]),
    ("udf", "mkudffs --media-type=hd --label=named disk.img", &["crc-itu-t", "cdrom", "udf"]),
    ("f2fs", "mkfs.f2fs -q disk.img", &["crc32_generic", "f2fs"]),
];

/// An image of the kind, filled by a guest with the tree, which is left in `dir/tree` as it must be read.
fn fill(dir: &Path, (kind, make, modules): (&str, &str, &[&str]), unmounted: bool) {
    sh(dir, &format!("rm -rf tree; {TREE}"));
    // No name of UDF is arbitrary bytes. A folder of some pages is enough.
    sh(dir, "rm -r tree/sparse tree/fifo tree/a* tree/many/entry-0[1-9]* tree/many/entry-00[3-9]*; mkdir tree/late");
    sh(
        dir,
        &format!(
            "rm -f disk.img; truncate -s 160M disk.img; {make} > make.log 2>&1 || {{ cat make.log >&2; exit 1; }}"
        ),
    );
    let copy = "rm -rf guest; mkdir -p guest/proc guest/dev guest/at guest/modules; cp /bin/busybox guest/; cp -a tree guest/tree";
    sh(dir, copy);
    for module in modules {
        sh(dir, &format!("find /usr/lib/uml/modules -name {module}.ko | head -n 1 | xargs -I % cp % guest/modules/"));
    }
    let load: String = modules.iter().map(|module| format!("insmod /modules/{module}.ko\n")).collect();
    let end = if unmounted {
        "umount /at"
    } else {
        // What a program was told is on the disk. UDF tells it of the file and means no more than that.
        match kind {
            "udf" => "seq 1 5000 > /at/late/synced\nsync",
            _ => "seq 1 5000 | dd of=/at/late/synced conv=fsync",
        }
    };
    let script = format!("{load}mount -t {kind} /dev/ubda /at\ncp -a /tree/. /at/\nsync\n{end}\n");
    run(dir, &script);
    if !unmounted {
        sh(dir, "seq 1 5000 > tree/late/synced");
    }
}

/// Runs a shell script in a guest whose root is `dir/guest` and whose disk is `dir/disk.img`.
fn run(dir: &Path, script: &str) {
    let tools = "sh mount insmod cp sync seq dd umount poweroff echo true mke2fs mkdir";
    sh(dir, &format!("for tool in {tools}; do ln -sf busybox guest/$tool; done"));
    let script = format!(
        "#!/busybox sh\nset -e\nPATH=/\ntrap 'poweroff -n -f' EXIT\nmount -t proc proc /proc\n{script}\necho filled > /filled\n"
    );
    let init = dir.join("guest/init");
    std::fs::write(&init, script).unwrap();
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755)).unwrap();
    let at = dir.to_str().unwrap();
    let run = Command::new("linux.uml")
        .args(["mem=128M", "rootfstype=hostfs", &format!("rootflags={at}/guest"), "rw", "init=/init"])
        .args([&format!("ubd0={at}/disk.img"), "con=null", "con0=null,fd:1", "ssl=null", "noreboot"])
        .arg(format!("uml_dir={at}"))
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("linux.uml: {error}: install the Debian package user-mode-linux"));
    assert!(dir.join("guest/filled").exists(), "{}", String::from_utf8_lossy(&run.stdout));
}

/// What is in the volume, without the file system's own file.
fn told(session: &dyn Session) -> BTreeMap<Vec<u8>, String> {
    let mut digests = digests(session, "disk");
    digests.remove(b"/.nilfs".as_slice());
    digests
}

fn same(told: BTreeMap<Vec<u8>, String>, dir: &Path, kind: &str) {
    let expected = digests_of(&dir.join("tree"));
    let shown = |map: &BTreeMap<Vec<u8>, String>, other: &BTreeMap<Vec<u8>, String>| {
        let odd = map.iter().filter(|(name, digest)| other.get(*name) != Some(digest)).take(9);
        odd.map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    };
    assert!(told == expected, "{kind}: read {:?}, put there {:?}", shown(&told, &expected), shown(&expected, &told));
}

/// A job for each kind, two at a time: a guest mostly waits.
fn for_each_kind(job: impl Fn(&Path, (&str, &str, &[&str])) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let dir = folder();
                while let Some(kind) = KINDS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    job(dir.path(), *kind);
                }
            });
        }
    });
}

fn file_systems_filled_by_a_guest() {
    for_each_kind(|dir, kind| {
        fill(dir, kind, true);
        let image = dir.join("disk.img");
        let before = digest(&image);
        let served = Arc::new(Served::raw(&image));
        let session = open(&image, &served);
        let volume = session.volumes().unwrap().remove(0);
        assert_eq!((&*volume.kind, &volume.state), (kind.0, &State::Readable), "{volume:?}");
        assert_eq!(volume.consistency, Some(Consistency::Clean), "{volume:?}");
        assert!(session.is_taken(&volume.id));
        same(told(&session), dir, kind.0);
        Box::new(session).close();
        assert_eq!(digest(&image), before, "{}", kind.0);
    });
}

fn file_systems_that_were_not_unmounted() {
    for_each_kind(|dir, kind| {
        fill(dir, kind, false);
        let image = dir.join("disk.img");
        let before = digest(&image);
        let served = Arc::new(Served::raw(&image));
        let session = open(&image, &served);
        let volume = session.volumes().unwrap().remove(0);
        if kind.0 == "jfs" {
            // Its kernel would read past the log without a word.
            let State::Unsupported(why) = &volume.state else { panic!("{volume:?}") };
            assert!(why.0.contains("repair tool"), "{why:?}");
            return;
        }
        assert_eq!((&*volume.kind, &volume.state), (kind.0, &State::Readable), "{volume:?}");
        let expected = if kind.0 == "udf" { Consistency::LogNotReplayed } else { Consistency::Replayed };
        assert_eq!(volume.consistency, Some(expected), "{volume:?}");
        same(told(&session), dir, kind.0);
        Box::new(session).close();
        assert_eq!(digest(&image), before, "{}", kind.0);
    });
}

/// The readers read version 4 of XFS, but not its log.
fn the_log_of_an_old_xfs() {
    let dir = folder();
    let make = "truncate -s 320M disk.img
        mkfs.xfs -q -f -m crc=0,finobt=0,reflink=0,rmapbt=0,bigtime=0,inobtcount=0 disk.img";
    for unmounted in [true, false] {
        fill(dir.path(), ("xfs", make, &[]), unmounted);
        let image = dir.path().join("disk.img");
        let served = Arc::new(Served::raw(&image));
        let session = open(&image, &served);
        let volume = session.volumes().unwrap().remove(0);
        let consistency = if unmounted { Consistency::Clean } else { Consistency::Replayed };
        assert_eq!((&volume.state, volume.consistency), (&State::Readable, Some(consistency)), "{volume:?}");
        assert_eq!(session.is_taken(&volume.id), !unmounted, "{volume:?}");
        same(told(&session), dir.path(), "xfs");
    }
}

/// One group over two partitions, with a volume of each kind: mirrored, thin, one with a cache that was not written back, one
/// with a snapshot, and the snapshot.
fn every_sort_of_logical_volume() {
    let dir = folder();
    let at = dir.path();
    sh(at, &format!("{TREE}; rm -r tree/sparse tree/fifo tree/many"));
    let script = r#"truncate -s 520M disk.img
        printf 'label: gpt\nsize=256M, type=lvm\nsize=256M, type=lvm\n' | sfdisk -q disk.img
        mkdir -p guest/proc guest/dev guest/sys guest/run guest/etc guest/at guest/modules guest/sbin
        cp /bin/busybox guest/; cp -a tree guest/tree; cp /sbin/lvm guest/sbin/
        for library in $(ldd /sbin/lvm | grep -o '/[^ ]*'); do mkdir -p "guest${library%/*}"; cp "$library" "guest$library"; done
        folder=$(echo /usr/lib/uml/modules/*/); : > order
        for module in dm-mod raid1 dm-raid dm-thin-pool dm-snapshot dm-cache dm-cache-smq; do
            needs=$(sed -n "s#^\(.*/$module\.ko\): *\(.*\)#\2 \1#p" $folder/modules.dep)
            # What is needed by others stands behind them.
            for file in $(echo ${needs% *} | tr ' ' '\n' | tac) ${needs##* }; do
                grep -qx "${file##*/}" order || { cp $folder/$file guest/modules/; echo "${file##*/}" >> order; }
            done
        done"#;
    sh(at, script);
    let order = std::fs::read_to_string(at.join("order")).unwrap();
    let load: String = order.lines().map(|module| format!("insmod /modules/{module}\n")).collect();
    let script = r#"mount -t sysfs sys /sys
        config='activation{udev_sync=0 udev_rules=0 monitoring=0} devices{use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none"} global{use_lvmpolld=0 thin_check_executable="" cache_check_executable=""} backup{backup=0 archive=0}'
        lvm() { command=$1; shift; /sbin/lvm $command --config "$config" "$@"; }
        lvm pvcreate /dev/ubda1 /dev/ubda2
        lvm vgcreate vg /dev/ubda1 /dev/ubda2
        lvm lvcreate -y --type raid1 --mirrors 1 --size 40M --name mirrored vg
        lvm lvcreate -y --type thin-pool --size 60M --name pool vg
        lvm lvcreate -y --type thin --virtualsize 500M --thinpool pool --name thin vg
        lvm lvcreate -y --size 40M --name origin vg
        lvm lvcreate -y --size 40M --name cached vg
        lvm lvcreate -y --size 24M --name fast vg
        lvm lvconvert -y --type cache --cachevol fast --cachemode writeback vg/cached
        for name in mirrored thin origin cached; do
            mke2fs /dev/vg/$name; mount -t ext2 /dev/vg/$name /at; cp -a /tree/. /at/; umount /at
        done
        lvm lvcreate -y --snapshot --size 24M --name before vg/origin
        mount -t ext2 /dev/vg/origin /at; echo later > /at/later; echo other > /at/etc/passwd; umount /at
        lvm vgchange --activate n vg"#;
    run(at, &format!("{load}{script}"));
    let image = at.join("disk.img");
    let before = digest(&image);
    let served = Arc::new(Served::raw(&image));
    let session = open(&image, &served);
    let volumes = session.volumes().unwrap();
    // The native readers say of each which it is; the origin of a snapshot they read themselves.
    for (name, kind) in [("mirrored", "raid1"), ("thin", "thin"), ("cached", "cache"), ("before", "snapshot")] {
        let alone = session.native().volumes().unwrap();
        let id = format!("lvm:vg/{name}");
        let refused = alone.into_iter().find(|volume| volume.id.as_str() == id).map(|volume| volume.state);
        let Some(State::Unsupported(why)) = &refused else { panic!("{name}: {refused:?}") };
        assert!(why.0.contains(kind), "{name}: {why:?}");
    }
    for name in ["lvm:vg/mirrored", "lvm:vg/thin", "lvm:vg/cached", "lvm:vg/before"] {
        let volume = volumes.iter().find(|volume| volume.id.as_str() == name).unwrap_or_else(|| panic!("{volumes:#?}"));
        assert_eq!((&volume.state, session.is_taken(&volume.id)), (&State::Readable, true), "{volume:?}");
        let mut told = digests(&session, name);
        told.retain(|path, _| !path.starts_with(b"/lost+found"));
        same(told, at, name);
    }
    assert!(!session.is_taken(&volume("lvm:vg/origin")));
    let content = |file: &str| read(&session, "lvm:vg/origin", &path(file)).unwrap();
    assert_eq!((content("/later"), content("/etc/passwd")), (b"later\n".to_vec(), b"other\n".to_vec()));
    Box::new(session).close();
    assert_eq!(digest(&image), before);
}

/// No tool of Debian makes one alone; xorriso puts one into an ISO, where it begins at a fixed place.
fn hfsplus_of_another_maker() {
    let dir = folder();
    sh(dir.path(), TREE);
    sh(dir.path(), "rm -r tree/sparse tree/fifo tree/a* tree/many");
    // It ends behind the second copy of its header.
    let script = r#"xorriso -as mkisofs -quiet -hfsplus -o disk.iso tree 2> make.log
        mapfile -t at < <(grep -obUaP 'H\+\x00\x04' disk.iso | cut -d: -f1)
        [ "${at[0]}" = $((65536 + 1024)) ]
        head -c $((${at[-1]} + 1024)) disk.iso | tail -c +65537 > disk.img"#;
    sh(dir.path(), script);
    let image = dir.path().join("disk.img");
    let served = Arc::new(Served::raw(&image));
    let session = open(&image, &served);
    let volume = session.volumes().unwrap().remove(0);
    assert_eq!((&*volume.kind, &volume.state), ("hfsplus", &State::Readable), "{volume:?}");
    same(told(&session), dir.path(), "hfsplus");
}
