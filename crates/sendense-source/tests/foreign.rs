//! Images that a supervised `qemu-nbd` reads: what `qemu-img` makes comes back byte for byte, and what a descriptor could
//! make a tool open stays closed.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Lab, convert, discover, pattern, qemu_img, read_all, vm};
use sendense_block::{Cancel, ReadAt};
use sendense_source::{Journal, Kind, Source, child};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const MIB: usize = 1 << 20;

fn read(lab: &Lab, source: &dyn Source, name: &str, key: &str) -> Vec<u8> {
    let frozen = lab.freeze(source, &vm(source, name)).unwrap();
    let bytes = read_all(&*frozen.open(key, &Cancel::new()).unwrap());
    frozen.check().unwrap();
    frozen.release().unwrap();
    bytes
}

#[test]
fn every_format_of_other_hypervisors_is_read() {
    let lab = Lab::new();
    let bytes = pattern(5 * MIB, 11);
    let kinds: [(&str, &str, &str, &[&str]); 7] = [
        ("sparse", "disk.vmdk", "vmdk", &["-o", "subformat=monolithicSparse"]),
        ("flat", "disk.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]),
        ("pieces", "disk.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
        ("flat-pieces", "disk.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
        ("stream", "disk.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
        ("hyper-v", "disk, with a comma.vhdx", "vhdx", &[]),
        ("virtualbox", "disk.VDI", "vdi", &[]),
    ];
    for (folder, file, format, options) in kinds {
        fs::create_dir(lab.images.join(folder)).unwrap();
        convert(&bytes, &lab.images.join(folder).join(file), format, options);
    }
    convert(&bytes, &lab.images.join("top.vmdk"), "vmdk", &["-o", "subformat=monolithicFlat"]);
    let source = lab.source();
    let names: Vec<_> = discover(&*source).into_iter().map(|vm| vm.vm.name).collect();
    assert_eq!(names, ["flat", "flat-pieces", "hyper-v", "pieces", "sparse", "stream", "top", "virtualbox"]);
    for (folder, file, format, _) in kinds {
        let vm = vm(&*source, folder);
        assert_eq!(vm.disks.len(), 1, "{folder}: an extent is not a disk");
        assert_eq!((vm.disks[0].key.as_str(), vm.disks[0].format.as_str()), (file, format));
        assert_eq!(vm.disks[0].capacity.0, bytes.len() as u64, "{folder}");
        assert!(read(&lab, &*source, folder, file) == bytes, "{folder} differs");
    }
    assert!(read(&lab, &*source, "top", "top.vmdk") == bytes);
    assert_eq!(lab.journal.open_entries().unwrap(), []);
    assert_eq!(fs::read_dir(lab.base.join("run")).unwrap().count(), 0, "a socket was left");
}

#[test]
fn a_large_disk_of_several_pieces_has_its_size() {
    let lab = Lab::new();
    fs::create_dir(lab.images.join("big")).unwrap();
    let path = lab.images.join("big/disk.vmdk");
    let args = ["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"].map(OsStr::new);
    qemu_img(args.into_iter().chain([path.as_os_str(), OsStr::new("5G")]));
    let source = lab.source();
    let big = vm(&*source, "big");
    assert_eq!((big.disks.len(), big.disks[0].capacity.0), (1, 5 << 30));
    let frozen = lab.freeze(&*source, &big).unwrap();
    assert_eq!(frozen.open("disk.vmdk", &Cancel::new()).unwrap().size().0, 5 << 30);
}

#[test]
fn a_parent_is_followed_inside_the_folder_only() {
    let lab = Lab::new();
    let bytes = pattern(2 * MIB, 3);
    fs::create_dir(lab.images.join("golden")).unwrap();
    fs::create_dir(lab.images.join("clone")).unwrap();
    let golden = lab.images.join("golden/golden.vmdk");
    convert(&bytes, &golden, "vmdk", &[]);
    convert(&bytes, &lab.outside.join("secret.vmdk"), "vmdk", &[]);
    let child = |name: &str, parent: &Path| {
        let path = lab.images.join("clone").join(name);
        let args = ["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b"].map(OsStr::new);
        qemu_img(args.into_iter().chain([parent.as_os_str(), path.as_os_str()]));
        path
    };
    let clone = child("clone.vmdk", &golden);
    let write = ["-f", "vmdk", "-c", "write -P 99 1M 64k"].map(OsStr::new);
    common::tool("qemu-io", "qemu-utils", write.into_iter().chain([clone.as_os_str()]));
    child("leak.vmdk", &lab.outside.join("secret.vmdk"));
    let source = lab.source();
    let clone = vm(&*source, "clone");
    assert_eq!(clone.disks[0].unsupported, None);
    let why = clone.disks[1].unsupported.as_ref().unwrap();
    assert!(why.contains("parent") && why.contains("outside"), "{why}");
    let mut request = common::request(&clone);
    request.disks.truncate(1);
    let journal: std::sync::Arc<dyn Journal> = lab.journal.clone();
    let frozen = source.freeze(&request, &journal, &Cancel::new()).unwrap();
    let mut expected = bytes;
    expected[MIB..MIB + (64 << 10)].fill(99);
    assert!(read_all(&*frozen.open("clone.vmdk", &Cancel::new()).unwrap()) == expected);
    // A change below is a change of the disk.
    common::tool("qemu-io", "qemu-utils", write.into_iter().chain([golden.as_os_str()]));
    assert_eq!(frozen.check().unwrap_err().kind, Kind::Disturbed);
}

#[test]
fn descriptors_that_reach_for_the_host_are_refused_before_any_tool_runs() {
    let lab = Lab::new();
    let header = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n";
    fs::write(lab.outside.join("secret"), vec![7; 4096]).unwrap();
    symlink(lab.outside.join("secret"), lab.images.join("link")).unwrap();
    fs::write(lab.images.join("flat.bin"), vec![7; 4096]).unwrap();
    symlink("flat.bin", lab.images.join("inner-link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, lab.images.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    let plant = |name: &str, text: String| fs::write(lab.images.join(name), text).unwrap();
    plant("passwd.vmdk", format!("{header}RW 4 FLAT \"/etc/passwd\" 0\n"));
    plant("dots.vmdk", format!("{header}RW 4 FLAT \"../outside/secret\" 0\n"));
    plant("link.vmdk", format!("{header}RW 4 FLAT \"link\" 0\n"));
    plant("inner.vmdk", format!("{header}RW 4 FLAT \"inner-link\" 0\n"));
    plant("fifo.vmdk", format!("{header}RW 4 FLAT \"fifo\" 0\n"));
    plant("lines.vmdk", format!("{header}RW\n4 FLAT \"/etc/passwd\" 0\n"));
    plant("nbd.vmdk", format!("{header}RW 4 FLAT \"nbd:localhost:1\" 0\n"));
    plant("hint.vmdk", format!("{header}parentFileNameHint=\"/etc/passwd\"\nRW 4 FLAT \"flat.bin\" 0\n"));
    plant("comment.vmdk", format!("{header}# parentFileNameHint=\"json:{{}}\"\nRW 4 FLAT \"flat.bin\" 0\n"));
    plant("huge.vmdk", format!("{header}{}", "# padding\n".repeat(1 << 20)));
    plant("short.vmdk", format!("{header}RW 9 FLAT \"flat.bin\" 0\n"));
    plant("good.vmdk", format!("{header}RW 8 FLAT \"flat.bin\" 0\n"));
    // A sparse file of no capacity makes QEMU take its text for a descriptor.
    let mut sparse = vec![0; 64 << 10];
    sparse[..4].copy_from_slice(b"KDMV");
    (sparse[28], sparse[36]) = (1, 20);
    let text = format!("{header}RW 4 FLAT \"/etc/passwd\" 0\n");
    sparse[512..512 + text.len()].copy_from_slice(text.as_bytes());
    fs::write(lab.images.join("sparse.vmdk"), &sparse).unwrap();
    // The same with capacity and a parent where only QEMU looks.
    sparse[12] = 8;
    let hint = b"parentFileNameHint=\"/etc/passwd\"";
    sparse[512..].fill(0);
    sparse[512..512 + hint.len()].copy_from_slice(hint);
    (sparse[28], sparse[36]) = (64, 1);
    fs::write(lab.images.join("hidden.vmdk"), &sparse).unwrap();

    let source = lab.source();
    for (name, kind) in [
        ("passwd", Kind::Unsafe),
        ("dots", Kind::Unsafe),
        ("link", Kind::Unsafe),
        ("inner", Kind::Unsafe),
        ("fifo", Kind::Unsafe),
        ("lines", Kind::Unsafe),
        ("nbd", Kind::Unsafe),
        ("hint", Kind::Unsafe),
        ("comment", Kind::Unsafe),
        ("huge", Kind::Unsupported),
        ("short", Kind::Failed),
        ("sparse", Kind::Unsafe),
        ("hidden", Kind::Unsafe),
    ] {
        let vm = vm(&*source, name);
        assert!(vm.disks[0].unsupported.is_some(), "{name} was taken");
        let error = lab.freeze(&*source, &vm).err().unwrap_or_else(|| panic!("{name} was frozen"));
        assert_eq!(error.kind, kind, "{name}: {error}");
    }
    assert_eq!(read(&lab, &*source, "good", "good.vmdk"), vec![7; 4096]);
    assert_eq!(lab.journal.open_entries().unwrap(), []);
}

#[test]
fn a_swap_between_check_and_open_is_found() {
    let lab = Lab::new();
    fs::create_dir(lab.images.join("web")).unwrap();
    let disk = lab.images.join("web/disk.vmdk");
    convert(&pattern(MIB, 1), &disk, "vmdk", &["-o", "subformat=monolithicFlat"]);
    let flat = lab.images.join("web/disk-flat.vmdk");
    fs::write(lab.outside.join("secret"), vec![7; MIB]).unwrap();
    let source = lab.source();
    let web = vm(&*source, "web");

    // The extent becomes a link: the tool follows it, its handles tell.
    let frozen = lab.freeze(&*source, &web).unwrap();
    fs::rename(&flat, lab.images.join("web/kept")).unwrap();
    symlink(lab.outside.join("secret"), &flat).unwrap();
    assert_eq!(frozen.open("disk.vmdk", &Cancel::new()).err().unwrap().kind, Kind::Unsafe);
    fs::rename(lab.images.join("web/kept"), &flat).unwrap();

    // The descriptor is written anew, in place, after it was read.
    let frozen = lab.freeze(&*source, &web).unwrap();
    let text = fs::read_to_string(&disk).unwrap();
    fs::write(&disk, text.replace("disk-flat.vmdk", lab.outside.join("secret").to_str().unwrap())).unwrap();
    assert_eq!(frozen.open("disk.vmdk", &Cancel::new()).err().unwrap().kind, Kind::Unsafe);
    assert_eq!(frozen.check().unwrap_err().kind, Kind::Disturbed);
    assert_eq!(lab.journal.open_entries().unwrap(), []);
}

#[test]
fn differencing_images_are_refused() {
    let lab = Lab::new();
    let bytes = pattern(MIB, 1);
    convert(&bytes, &lab.images.join("box.vdi"), "vdi", &[]);
    let path = lab.images.join("box.vdi");
    let mut image = fs::read(&path).unwrap();
    image[0x4c] = 4;
    fs::write(&path, image).unwrap();
    convert(&bytes, &lab.images.join("hyper.vhdx"), "vhdx", &[]);
    let path = lab.images.join("hyper.vhdx");
    let mut image = fs::read(&path).unwrap();
    // The flags of the file parameters: found by their GUID in the metadata table, then through the item's offset.
    let guid = [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d];
    let entry = image.windows(8).position(|window| window == guid).unwrap();
    let table = image.windows(8).position(|window| window == b"metadata").unwrap();
    let item = table + u32::from_le_bytes(*image[entry + 16..].first_chunk().unwrap()) as usize;
    image[item + 4] |= 2;
    fs::write(&path, image).unwrap();
    let source = lab.source();
    for name in ["box", "hyper"] {
        let why = vm(&*source, name).disks[0].unsupported.clone().unwrap();
        assert!(why.contains("differences to a parent"), "{why}");
    }
}

#[test]
fn the_tool_ends_with_the_backup_and_is_found_after_a_crash() {
    let lab = Lab::new();
    convert(&pattern(MIB, 1), &lab.images.join("box.vdi"), "vdi", &[]);
    let source = lab.source();
    let frozen = lab.freeze(&*source, &vm(&*source, "box")).unwrap();
    let disk = frozen.open("box.vdi", &Cancel::new()).unwrap();
    let entries = lab.journal.open_entries().unwrap();
    let artefact = &entries[0].1;
    let socket = Path::new(artefact.details["socket"].as_str().unwrap()).to_owned();
    assert!(socket.exists() && entries.len() == 1);
    // What a successor of a killed process does; twice is once.
    assert!(source.reap(artefact, &Cancel::new()).unwrap());
    assert!(source.reap(artefact, &Cancel::new()).unwrap());
    assert!(!socket.exists());
    assert!(disk.read_at(sendense_block::ByteOffset(0), &mut [0; 512]).is_err());
    // Another disk of the same backup; the release ends it though somebody holds the disk.
    let disk = frozen.open("box.vdi", &Cancel::new()).unwrap();
    frozen.release().unwrap();
    assert!(disk.read_at(sendense_block::ByteOffset(0), &mut [0; 512]).is_err());
    assert_eq!(lab.journal.open_entries().unwrap(), []);
    // An entry that is not ours is left alone.
    let mut foreign = artefact.clone();
    foreign.details = serde_json::json!({ "socket": "/run/docker.sock" });
    assert_eq!(source.reap(&foreign, &Cancel::new()).unwrap_err().kind, Kind::Invalid);
}

#[test]
fn a_machine_can_start_while_its_image_is_read() {
    let lab = Lab::new();
    for (name, format) in [("box.vdi", "vdi"), ("web.qcow2", "qcow2"), ("esx.vmdk", "vmdk")] {
        let path = lab.images.join(name);
        convert(&pattern(MIB, 1), &path, format, &[]);
        let source = lab.source();
        let frozen = lab.freeze(&*source, &vm(&*source, name.split('.').next().unwrap())).unwrap();
        let _disk = frozen.open(name, &Cancel::new()).unwrap();
        // QEMU takes its write lock: whoever starts the machine must not be stopped by us. The point fails instead.
        let write = ["-f", format, "-c", "write -P 1 0 64k"].map(OsStr::new);
        common::tool("qemu-io", "qemu-utils", write.into_iter().chain([path.as_os_str()]));
        assert_eq!(frozen.check().unwrap_err().kind, Kind::Disturbed, "{name}");
    }
}

/// Plays two roles: the test starts its own program again as the process that is killed in mid-backup.
#[test]
fn killing_the_backup_kills_the_tool() {
    const ROLE: &str = "SENDENSE_TEST_IMAGES";
    if let Some(base) = std::env::var_os(ROLE) {
        let lab = Lab::new();
        fs::copy(Path::new(&base).join("box.vdi"), lab.images.join("box.vdi")).unwrap();
        let source = lab.source();
        let frozen = lab.freeze(&*source, &vm(&*source, "box")).unwrap();
        let _disk = frozen.open("box.vdi", &Cancel::new()).unwrap();
        println!("\nSOCKET {}", lab.journal.open_entries().unwrap()[0].1.details["socket"].as_str().unwrap());
        loop {
            std::thread::park();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    convert(&pattern(MIB, 1), &dir.path().join("box.vdi"), "vdi", &[]);
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killing_the_backup_kills_the_tool", "--nocapture"])
        .env(ROLE, dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(parent.stdout.take().unwrap()));
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("SOCKET ")).unwrap();
    let socket = Path::new(line.trim_start_matches("SOCKET ")).to_owned();
    assert!(common::accepts(&socket), "the tool serves");
    parent.kill().unwrap();
    parent.wait().unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while common::accepts(&socket) {
        assert!(std::time::Instant::now() < until, "the tool outlived the backup");
        std::thread::yield_now();
    }
    assert!(child::reap_marked(socket.as_os_str()).unwrap());
    // The killed process could not remove its temporary folder.
    let base = socket.parent().and_then(Path::parent).unwrap();
    fs::remove_dir_all(base).unwrap();
}
