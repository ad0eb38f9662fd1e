//! The image source against files that `qemu-img` made, and against people who plant things in a folder.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use common::{Lab, convert, discover, pattern, qemu_img, read_all, request, vm, vm_ref};
use sendense_block::{Cancel, Kind as BlockKind};
use sendense_source::{Changes, Journal, Kind};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::sync::Arc;

const MIB: usize = 1 << 20;

#[test]
fn a_folder_of_machines_is_listed_and_read() {
    let lab = Lab::new();
    let (system, data, mail) = (pattern(3 * MIB + 512, 1), pattern(2 * MIB, 2), pattern(MIB + 100, 3));
    fs::create_dir(lab.images.join("web")).unwrap();
    convert(&system, &lab.images.join("web/disk2.qcow2"), "qcow2", &[]);
    fs::write(lab.images.join("web/disk10.raw"), &data).unwrap();
    fs::write(lab.images.join("mail.img"), &mail).unwrap();
    fs::write(lab.images.join("notes.txt"), "no image").unwrap();
    fs::create_dir(lab.images.join("empty")).unwrap();
    let source = lab.source();
    let vms = discover(&*source);
    assert_eq!(vms.iter().map(|vm| vm.vm.name.as_str()).collect::<Vec<_>>(), ["mail", "web"]);
    let web = &vms[1];
    assert_eq!(web.disks.iter().map(|disk| disk.key.as_str()).collect::<Vec<_>>(), ["disk2.qcow2", "disk10.raw"]);
    assert_eq!(web.disks[0].binding.0, "image:web/disk2.qcow2:qcow2");
    assert_eq!(vms[0].disks[0].binding.0, "image:mail.img:raw");

    let frozen = lab.freeze(&*source, web).unwrap();
    assert_eq!(frozen.facts().disks[0].capacity.0, system.len() as u64);
    assert!(frozen.facts().disks.iter().all(|disk| disk.token.is_none()));
    for (disk, bytes) in web.disks.iter().zip([&system, &data]) {
        assert!(matches!(frozen.changes(&disk.key).unwrap(), Changes::Unknown { .. }));
        assert_eq!(&read_all(&*frozen.open(&disk.key, &Cancel::new()).unwrap()), bytes, "{}", disk.key);
    }
    frozen.check().unwrap();
    frozen.release().unwrap();
    let frozen = lab.freeze(&*source, &vms[0]).unwrap();
    assert_eq!(read_all(&*frozen.open("mail.img", &Cancel::new()).unwrap()), mail);
    let facts: serde_json::Value = serde_json::from_str(frozen.facts().config[0].content.as_ref().unwrap()).unwrap();
    assert_eq!(facts["disks"][0]["capacity_bytes"], mail.len());
    let report = source.test(&Cancel::new()).unwrap();
    assert_eq!((report.product.as_str(), report.warnings.len()), ("image folder, 2 machines, 3 disks", 0));
}

#[test]
fn a_machine_is_its_place_whatever_happens_around_it() {
    let lab = Lab::new();
    fs::write(lab.images.join("web.raw"), "x").unwrap();
    let source = lab.source();
    let before = vm(&*source, "web");
    fs::write(lab.images.join("a.raw"), "x").unwrap();
    fs::rename(&lab.images, lab.base.join("moved")).unwrap();
    symlink(lab.base.join("moved"), &lab.images).unwrap();
    let after = source.inspect(&before.vm, &Cancel::new()).unwrap();
    assert_eq!((after.vm, &after.disks[0].binding), (before.vm.clone(), &before.disks[0].binding));
    // A second machine with the same short name: both get long ones, neither becomes another machine.
    fs::write(lab.base.join("moved/web.qcow2"), "x").unwrap();
    let names: Vec<_> = discover(&*source).into_iter().map(|vm| vm.vm.name).collect();
    assert_eq!(names, ["a", "web.qcow2", "web.raw"]);
    assert_eq!(source.inspect(&before.vm, &Cancel::new()).unwrap().vm.instance_uuid, before.vm.instance_uuid);
    assert_eq!(source.inspect(&vm_ref("gone"), &Cancel::new()).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn what_cannot_be_read_is_told_per_machine_and_hides_nothing() {
    let lab = Lab::new();
    fs::write(lab.outside.join("secret.raw"), "secret").unwrap();
    fs::write(lab.images.join("good.raw"), "x").unwrap();
    fs::write(lab.images.join("lying.qcow2"), "not a qcow2 image").unwrap();
    fs::write(lab.images.join(OsStr::from_bytes(b"odd\xff\n.raw")), "x").unwrap();
    symlink(lab.outside.join("secret.raw"), lab.images.join("leak.raw")).unwrap();
    symlink(&lab.outside, lab.images.join("folder-leak")).unwrap();
    symlink("nowhere", lab.images.join("dangling.raw")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, lab.images.join("fifo.raw"), rustix::fs::Mode::RWXU).unwrap();
    fs::create_dir(lab.images.join("broken")).unwrap();
    fs::write(lab.images.join("broken/vm.toml"), "disks = 3").unwrap();
    let source = lab.source();
    let vms = discover(&*source);
    let why = |name: &str| {
        let vm = vms.iter().find(|vm| vm.vm.name == name).unwrap_or_else(|| panic!("{name} is missing"));
        vm.unsupported.clone().or_else(|| vm.disks[0].unsupported.clone())
    };
    assert_eq!(why("good"), None);
    for (name, part) in [
        ("lying", "declared qcow2, but begins like nothing known"),
        ("leak", "outside"),
        ("folder-leak", "outside"),
        ("dangling", "outside"),
        ("fifo", "FIFO"),
        ("broken", "vm.toml"),
    ] {
        let why = why(name).unwrap_or_else(|| panic!("{name} was taken"));
        assert!(why.contains(part), "{name}: {why}");
    }
    assert_eq!(vms.len(), 8);
    let odd = vms.iter().find(|vm| vm.vm.name.starts_with("odd")).unwrap();
    assert!(odd.disks[0].unsupported.is_none() && !odd.vm.name.contains('\n'));
    let frozen = lab.freeze(&*source, odd).unwrap();
    assert_eq!(read_all(&*frozen.open(&odd.disks[0].key, &Cancel::new()).unwrap()), b"x");
    // A forged request for what discovery refuses is refused too.
    for name in ["leak", "fifo", "lying"] {
        assert!(lab.freeze(&*source, &vm(&*source, name)).is_err(), "{name}");
    }
    assert!(!source.test(&Cancel::new()).unwrap().warnings.is_empty());
}

#[test]
fn raw_stays_raw_whatever_a_guest_writes_into_it() {
    let lab = Lab::new();
    let path = lab.images.join("guest.raw");
    qemu_img([
        OsStr::new("create"),
        OsStr::new("-q"),
        OsStr::new("-f"),
        OsStr::new("qcow2"),
        path.as_os_str(),
        OsStr::new("1G"),
    ]);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.starts_with(b"QFI\xfb"));
    let source = lab.source();
    let guest = vm(&*source, "guest");
    assert_eq!(guest.disks[0].capacity.0, bytes.len() as u64);
    let frozen = lab.freeze(&*source, &guest).unwrap();
    assert_eq!(read_all(&*frozen.open("guest.raw", &Cancel::new()).unwrap()), bytes);
}

#[test]
fn a_qcow2_chain_is_read_within_the_folder_only() {
    let lab = Lab::new();
    let base = pattern(2 * MIB, 7);
    convert(&base, &lab.images.join("golden.qcow2"), "qcow2", &[]);
    fs::create_dir(lab.images.join("web")).unwrap();
    fs::write(lab.images.join("web/base.raw"), &base).unwrap();
    fs::write(lab.outside.join("secret.raw"), &base).unwrap();
    symlink(&lab.outside, lab.images.join("web/link")).unwrap();
    let overlay = |name: &str, backing: &str, format: &str| {
        let path = lab.images.join(name);
        let args = ["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format];
        qemu_img(args.iter().map(OsStr::new).chain([path.as_os_str(), OsStr::new("2M")]));
        path
    };
    // Good ones: below it, beside it, by an absolute name.
    overlay("web/disk.qcow2", "base.raw", "raw");
    overlay("web/disk-b.qcow2", "../golden.qcow2", "qcow2");
    overlay("web/disk-c.qcow2", lab.images.join("golden.qcow2").to_str().unwrap(), "qcow2");
    let io = ["-c", "write -P 171 64k 128k"];
    let disk = lab.images.join("web/disk.qcow2");
    common::tool("qemu-io", "qemu-utils", io.iter().map(OsStr::new).chain([disk.as_os_str()]));
    // Bad ones.
    overlay("out.qcow2", "../outside/secret.raw", "raw");
    overlay("absolute.qcow2", "/etc/passwd", "raw");
    overlay("through-a-link.qcow2", "web/link/secret.raw", "raw");
    overlay("protocol.qcow2", "nbd:localhost:10809", "raw");
    overlay("json.qcow2", "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "raw");
    overlay("other-format.qcow2", "golden.qcow2", "vmdk");
    overlay("loop.qcow2", "loop.qcow2", "qcow2");
    let undeclared = overlay("undeclared.qcow2", "golden.qcow2", "qcow2");
    let mut bytes = fs::read(&undeclared).unwrap();
    let at = bytes.windows(4).position(|window| window == 0xE2792ACA_u32.to_be_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    fs::write(&undeclared, bytes).unwrap();
    let external = lab.images.join("external.qcow2");
    let option = format!("data_file={}", lab.outside.join("data.raw").display());
    let args = ["create", "-q", "-f", "qcow2", "-o", &option].map(OsStr::new);
    qemu_img(args.into_iter().chain([external.as_os_str(), OsStr::new("1M")]));

    let source = lab.source();
    let web = vm(&*source, "web");
    let keys: Vec<_> = web.disks.iter().map(|disk| disk.key.as_str()).collect();
    assert_eq!(keys, ["disk-b.qcow2", "disk-c.qcow2", "disk.qcow2"], "a backing file is not a disk of its own");
    let frozen = lab.freeze(&*source, &web).unwrap();
    let mut written = base.clone();
    written[64 << 10..192 << 10].fill(171);
    for (key, bytes) in [("disk.qcow2", &written), ("disk-b.qcow2", &base), ("disk-c.qcow2", &base)] {
        assert_eq!(&read_all(&*frozen.open(key, &Cancel::new()).unwrap()), bytes, "{key}");
    }
    frozen.check().unwrap();
    // A change of the file below is a change of the disk.
    fs::write(lab.images.join("golden.qcow2"), "x").unwrap();
    assert_eq!(frozen.check().unwrap_err().kind, Kind::Disturbed);
    convert(&base, &lab.images.join("golden.qcow2"), "qcow2", &[]);

    for (name, kind, part) in [
        ("out", Kind::Unsafe, "outside"),
        ("absolute", Kind::Unsafe, "outside"),
        ("through-a-link", Kind::Unsafe, "outside"),
        ("protocol", Kind::Unsafe, "not a plain path"),
        ("json", Kind::Unsafe, "not a plain path"),
        ("undeclared", Kind::Unsafe, "does not declare"),
        ("other-format", Kind::Unsupported, "vmdk"),
        ("external", Kind::Unsupported, "external data file"),
        ("loop", Kind::Failed, "its own backing file"),
    ] {
        let vm = vm(&*source, name);
        let why = vm.disks[0].unsupported.clone().unwrap_or_else(|| panic!("{name} was taken"));
        assert!(why.contains(part), "{name}: {why}");
        let error = lab.freeze(&*source, &vm).err().unwrap_or_else(|| panic!("{name} was frozen"));
        assert_eq!(error.kind, kind, "{name}: {error}");
    }
}

#[test]
fn vm_toml_names_disks_below_allowed_folders_only() {
    let lab = Lab::new();
    fs::create_dir(lab.images.join("db")).unwrap();
    fs::write(lab.images.join("db/b"), "second").unwrap();
    fs::write(lab.outside.join("a.img"), "first").unwrap();
    let outside = lab.outside.join("a.img");
    fs::write(
        lab.images.join("db/vm.toml"),
        format!(
            "name = 'Data base'\nguest_os = 'Debian 12'\n\
             disks = [{{path = '{}', format = 'raw'}}, {{path = 'b', format = 'raw'}}]",
            outside.display()
        ),
    )
    .unwrap();
    let refused = vm(&*lab.source(), "Data base");
    assert!(refused.disks[0].unsupported.as_ref().unwrap().contains("outside"));
    assert_eq!(refused.guest_os.as_deref(), Some("Debian 12"));
    let source = lab.source_allowing(std::slice::from_ref(&lab.outside));
    let db = vm(&*source, "Data base");
    assert_eq!(db.disks[0].binding.0, format!("image:{}:raw", outside.display()));
    assert_eq!(db.disks[1].binding.0, "image:db/b:raw");
    let frozen = lab.freeze(&*source, &db).unwrap();
    for (disk, text) in db.disks.iter().zip(["first", "second"]) {
        assert_eq!(read_all(&*frozen.open(&disk.key, &Cancel::new()).unwrap()), text.as_bytes());
    }
    assert_eq!(frozen.facts().config[1].kind, "vm-toml");
}

#[test]
fn a_change_during_the_backup_is_found() {
    let lab = Lab::new();
    let path = lab.images.join("web.raw");
    fs::write(&path, pattern(MIB, 1)).unwrap();
    let source = lab.source();
    let web = vm(&*source, "web");
    let frozen = lab.freeze(&*source, &web).unwrap();
    let disk = frozen.open("web.raw", &Cancel::new()).unwrap();
    read_all(&*disk);
    frozen.check().unwrap();
    // One byte, and the time stamp put back as a tool that "preserves times" does.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"!", 4096).unwrap();
    file.set_modified(before).unwrap();
    let error = frozen.check().unwrap_err();
    assert_eq!(error.kind, Kind::Disturbed);
    assert!(error.message.contains("web.raw") && error.kind.is_transient());

    // A file that shrinks gives an error and no zeros.
    let frozen = lab.freeze(&*source, &web).unwrap();
    let disk = frozen.open("web.raw", &Cancel::new()).unwrap();
    file.set_len(10).unwrap();
    let error = disk.read_at(sendense_block::ByteOffset(4096), &mut [0; 512]).unwrap_err();
    assert_ne!(error.kind, BlockKind::Corrupt);
    assert_eq!(frozen.check().unwrap_err().kind, Kind::Disturbed);

    // Another disk by now.
    let mut request = request(&vm(&*source, "web"));
    request.disks[0].binding.0.push('x');
    let journal: Arc<dyn Journal> = lab.journal.clone();
    let error = source.freeze(&request, &journal, &Cancel::new()).err().unwrap();
    assert_eq!(error.kind, Kind::Disturbed);
}

#[test]
fn a_block_device_is_read_through_its_name() {
    assert!(rustix::process::geteuid().is_root(), "this test attaches a loop device, which needs root");
    let lab = Lab::new();
    let bytes = pattern(MIB, 9);
    let backing = lab.outside.join("device.img");
    fs::write(&backing, &bytes).unwrap();
    let attached =
        std::process::Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(&backing).output();
    let attached = attached.unwrap_or_else(|error| panic!("losetup: {error}; install the Debian package mount"));
    let why = String::from_utf8_lossy(&attached.stderr);
    assert!(
        attached.status.success(),
        "this test attaches a loop device, which needs root and the kernel's loop: {why}"
    );
    let path = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
    let _detach = Detach(path.clone());
    assert!(fs::metadata(&path).unwrap().file_type().is_block_device(), "{path}");
    fs::create_dir(lab.images.join("db")).unwrap();
    fs::write(lab.images.join("db/vm.toml"), format!("disks = [{{path = '{path}', format = 'raw'}}]")).unwrap();
    let source = lab.source_allowing(&[Path::new(&path).to_owned()]);
    let db = vm(&*source, "db");
    assert_eq!(db.disks[0].unsupported, None);
    let frozen = lab.freeze(&*source, &db).unwrap();
    assert_eq!(read_all(&*frozen.open(&db.disks[0].key, &Cancel::new()).unwrap()), bytes);
    frozen.check().unwrap();
}

/// Gives a loop device back, also when the test fails.
struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_running_machine_is_seen() {
    let lab = Lab::new();
    let path = lab.images.join("web.qcow2");
    convert(&pattern(MIB, 1), &path, "qcow2", &[]);
    let source = lab.source();
    assert_eq!(vm(&*source, "web").power_state, sendense_types::PowerState::Unknown);
    // A writable server locks the image as a machine does.
    let socket = lab.outside.join("sock");
    let args = ["--persistent", "--format=qcow2", "--socket"].map(OsStr::new);
    let args: Vec<&OsStr> = args.into_iter().chain([socket.as_os_str(), path.as_os_str()]).collect();
    // Its socket is there before it has opened the image.
    let is_on = || vm(&*source, "web").power_state == sendense_types::PowerState::On;
    let server = common::Server::start("qemu-nbd", "qemu-utils", &args, is_on);
    let web = vm(&*source, "web");
    let frozen = lab.freeze(&*source, &web).unwrap();
    assert!(frozen.facts().consistency_note.as_ref().unwrap().contains("web.qcow2 open"));
    drop(server);
    assert_eq!(lab.freeze(&*source, &web).unwrap().facts().consistency_note, None);
}

#[test]
fn a_folder_of_thousands_is_listed() {
    let lab = Lab::new();
    for number in 0..3000 {
        let file = fs::File::create(lab.images.join(format!("vm{number}.raw"))).unwrap();
        file.set_len(1 << 30).unwrap();
    }
    let source = lab.source();
    let vms = discover(&*source);
    assert_eq!((vms.len(), vms[2].vm.name.as_str(), vms[2999].vm.name.as_str()), (3000, "vm2", "vm2999"));
    let uuids: std::collections::HashSet<_> = vms.iter().map(|vm| &vm.vm.instance_uuid).collect();
    assert_eq!(uuids.len(), 3000);
    assert_eq!(source.inspect(&vms[1500].vm, &Cancel::new()).unwrap(), vms[1500]);
    let stopped = Cancel::new();
    stopped.cancel();
    assert_eq!(source.discover(&stopped).unwrap_err().kind, Kind::Cancelled);
}

#[test]
fn settings_and_secrets_are_checked() {
    let lab = Lab::new();
    let open = |config, secret| {
        let opened = sendense_source::open(sendense_types::SourceKind::Image, &config, secret, lab.context(&[]));
        opened.err().map(|error| (error.kind, error.message))
    };
    let (kind, message) = open(serde_json::json!({"path": "/x", "pth": 1}), None).unwrap();
    assert!(kind == Kind::Invalid && message.contains("unknown field `pth`"), "{message}");
    assert_eq!(open(serde_json::json!({"path": "x"}), None).unwrap().0, Kind::Invalid);
    assert_eq!(open(serde_json::json!({"path": "/x"}), Some("s")).unwrap().0, Kind::Invalid);
    assert_eq!(open(serde_json::json!({"path": "/x"}), Some("")), None);
    let config = serde_json::json!({"path": "/etc"});
    let source = sendense_source::open(sendense_types::SourceKind::Image, &config, None, lab.context(&[])).unwrap();
    assert_eq!(source.discover(&Cancel::new()).unwrap_err().kind, Kind::Unsafe);
}
