//! The main job: full, incremental, chain, delete, restore, offline, import.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, SENDENSE, cli, field, path, text, tool, tree};
use std::path::Path;
use std::process::{Command, Stdio};

/// Odd on purpose: neither a multiple of a block nor of a sector.
const SIZE: usize = 40 * 1024 * 1024 + 12345;

fn restore(hub: &Hub, backup: &str, to: &Path, more: &[&str]) {
    hub.ok(&[&["restore", "disk", backup, "--to", path(to), "--wait"], more].concat());
}

#[test]
fn a_disk_goes_through_full_incrementals_and_every_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(1);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), SIZE, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);

    let mut points = Vec::new();
    for round in 0..4 {
        match round {
            0 => {}
            2 => disk.resize(SIZE / 2 + 777),
            3 => disk.resize(SIZE + 3 * 65536 + 1),
            _ => disk.write_somewhere(2 << 20, &mut random),
        }
        disk.write_somewhere(1 << 20, &mut random);
        let level = ["default", "off", "fast", "high"][round];
        let backup = hub.backup("web", &["--compression", level, "--tag", "round=x"]);
        assert_eq!(field(&backup, "status"), "completed");
        assert_eq!(field(&backup, "backup_type"), if round == 0 { "full" } else { "incremental" });
        assert_eq!(backup["tags"]["round"], "x");
        points.push((field(&backup, "backup_id").to_owned(), disk.bytes.clone()));
    }

    let chain = hub.json(&["backup", "chain", "web"]);
    assert_eq!(chain["backup_count"], 4);
    let ids: Vec<_> = chain["backups"].as_array().unwrap().iter().map(|point| field(point, "backup_id")).collect();
    assert_eq!(ids, points.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), "oldest first");
    assert_eq!(field(&chain, "full_backup_id"), points[0].0);
    assert_eq!(field(&chain, "latest_backup_id"), points[3].0);

    // Every point, every way back.
    let moved = dir.join("moved");
    tool("coreutils", "cp", &["-r", path(&dir.join("repo")), path(&moved)]);
    for (number, (id, bytes)) in points.iter().enumerate() {
        let out = |kind: &str| dir.join(format!("out-{number}-{kind}"));
        restore(&hub, id, &out("raw"), &[]);
        assert_holds(&out("raw"), bytes);
        restore(&hub, id, &out("qcow2"), &["--format", "qcow2"]);
        tool("qemu-utils", "qemu-img", &["check", "-q", path(&out("qcow2"))]);
        tool("qemu-utils", "qemu-img", &["convert", "-O", "raw", path(&out("qcow2")), path(&out("converted"))]);
        assert_padded(&out("converted"), bytes);
        // Without Sendense, from a moved folder.
        let image = tree(&moved).into_iter().find(|file| file.ends_with(&format!("{id}.qcow2"))).unwrap();
        let image = moved.join(image);
        tool("qemu-utils", "qemu-img", &["check", "-q", path(&image)]);
        tool("qemu-utils", "qemu-img", &["convert", "-O", "raw", path(&image), path(&out("alone"))]);
        assert_padded(&out("alone"), bytes);
        // Without a hub.
        let offline = Command::new(SENDENSE)
            .args(["offline", "restore", "--repo-path", path(&moved), id, "--to", path(&out("offline"))])
            .output()
            .unwrap();
        assert!(offline.status.success(), "{}", text(&offline.stderr));
        assert_holds(&out("offline"), bytes);
        hub.ok(&["backup", "verify", id, "--deep"]);
    }
    // Nothing existing is overwritten.
    hub.fails(4, &["restore", "disk", &points[0].0, "--to", path(&dir.join("out-0-raw")), "--wait"]);

    // The middle of a chain is needed by what follows.
    let refusal = hub.fails(4, &["backup", "delete", &points[1].0, "--yes"]);
    assert!(refusal.contains(&points[2].0) && refusal.contains(&points[3].0), "{refusal}");
    let plan = hub.json(&["backup", "delete", &points[2].0, "--cascade", "--dry-run"]);
    assert_eq!(plan["deletion"]["backups"].as_array().unwrap().len(), 2);
    hub.ok(&["backup", "delete", &points[2].0, "--cascade", "--yes"]);
    assert_eq!(hub.json(&["backup", "chain", "web"])["backup_count"], 2);
    assert!(!tree(&dir.join("repo")).iter().any(|file| file.contains(&points[2].0) || file.contains(&points[3].0)));
    hub.fails(3, &["backup", "show", &points[3].0]);

    // And the chain goes on from what is left.
    let backup = hub.backup("web", &[]);
    assert_eq!(field(&backup, "backup_type"), "incremental");
    assert_eq!(field(&backup, "parent_backup_id"), points[1].0);
    let last = dir.join("out-last");
    restore(&hub, field(&backup, "backup_id"), &last, &[]);
    assert_holds(&last, &disk.bytes);
    assert_eq!(hub.stop(), Some(0));
}

/// QEMU rounds a size up to a sector.
fn assert_padded(file: &Path, bytes: &[u8]) {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().div_ceil(512) * 512, 0);
    assert_holds(file, &padded);
}

#[test]
fn several_disks_are_one_point_and_one_disk_may_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(2);
    let disks: Vec<_> = (0..3)
        .map(|n| Disk::create(&dir.join(format!("vms/db/disk{n}.raw")), (n + 1) * 5_000_000, &mut random))
        .collect();
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let backup = hub.backup("db", &["--type", "full"]);
    assert_eq!(backup["disks"].as_array().unwrap().len(), 3);
    assert!(backup["disk_id"].is_null() && backup["file_path"].is_null());
    let id = field(&backup, "backup_id");
    for (number, disk) in disks.iter().enumerate() {
        let out = dir.join(format!("out{number}"));
        restore(&hub, id, &out, &["--disk", &number.to_string()]);
        assert_holds(&out, &disk.bytes);
    }
    let message = hub.fails(2, &["restore", "disk", id, "--to", path(&dir.join("x"))]);
    assert!(message.contains("disk_id"), "{message}");
    let partial = hub.backup("db", &["--exclude-disk", "1"]);
    assert_eq!((partial["partial"].as_bool(), partial["disks"].as_array().unwrap().len()), (Some(true), 2));
    let single = hub.backup("db", &["--disk", "1"]);
    assert_eq!(single["disk_id"], 1);
    // Disk 1 goes onto the full, which is the newest point that holds it.
    assert_eq!(field(&single, "parent_backup_id"), id);
    hub.fails(3, &["backup", "start", "db", "--repo", "main", "--disk", "7"]);
}

#[test]
fn an_empty_catalog_is_rebuilt_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(3);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 9_000_000, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let strict = hub.fails(6, &["backup", "start", "web", "--repo", "main", "--quiesce-or-fail", "--wait"]);
    assert!(strict.contains("web cannot be quiesced, which is demanded: an image has no guest"), "{strict}");
    let full = hub.backup("web", &["--quiesce"]);
    let first = disk.bytes.clone();
    // An image has nobody to be asked, and the point says so, also when the catalog was rebuilt.
    let says = |hub: &Hub| {
        let shown = hub.json(&["backup", "show", field(&full, "backup_id")])["backup"].clone();
        assert_eq!(field(&shown, "consistency"), "crash");
        assert!(field(&shown, "consistency_note").contains("no guest that could be asked"), "{shown:#}");
    };
    says(&hub);
    assert_eq!(hub.stop(), Some(0));

    // The hub's folder is lost. The repository's owner record names the deployment that is gone; its lease is
    // out, so that an import may take it over.
    std::fs::remove_dir_all(dir.join("hub")).unwrap();
    let hub = Hub::start(dir);
    let repository = dir.join("repo");
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&repository)]);
    hub.ok(&["repo", "import", "main"]);
    assert_eq!(hub.json(&["backup", "list"])["total"], 1);
    says(&hub);
    let out = dir.join("out-imported");
    restore(&hub, field(&full, "backup_id"), &out, &[]);
    assert_holds(&out, &first);

    hub.ok(&["source", "add", "image", "--name", "images", "--path", path(&dir.join("vms"))]);
    hub.ok(&["source", "discover", "images"]);
    assert_eq!(hub.json(&["vm", "list"])["total"], 1, "the machine is bound to its imported self");
    disk.write_somewhere(1 << 20, &mut random);
    let next = hub.backup("web", &[]);
    assert_eq!(field(&next, "backup_type"), "incremental");
    assert_eq!(field(&next, "parent_backup_id"), field(&full, "backup_id"));
    let out = dir.join("out-next");
    restore(&hub, field(&next, "backup_id"), &out, &[]);
    assert_holds(&out, &disk.bytes);
}

#[test]
fn a_disk_is_restored_over_nbd() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(4);
    let disk = Disk::create(&dir.join("vms/web.raw"), 8 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let backup = hub.backup("web", &[]);
    let (target, socket) = (dir.join("target.raw"), dir.join("nbd.sock"));
    // What lies there before must not shine through.
    std::fs::write(&target, vec![0xee; 8 << 20]).unwrap();
    let mut server = Command::new("qemu-nbd")
        .args(["--format=raw", "--persistent", "--shared=8", "-x", "out", "-k", path(&socket), path(&target)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("qemu-nbd: {error}; install the Debian package qemu-utils"));
    let patience = std::time::Instant::now() + crate::hub::PATIENCE;
    while !crate::servers::listens(&socket) && std::time::Instant::now() < patience {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let uri = format!("nbd+unix:///out?socket={}", path(&socket));
    let result = hub.run(&["restore", "disk", field(&backup, "backup_id"), "--to", &uri, "--wait"]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(result.status.success(), "{}", text(&result.stderr));
    assert_holds(&target, &disk.bytes);
}

#[test]
fn the_command_line_speaks_to_people_and_to_programs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web/disk0.raw"), 1 << 20, &mut Random::new(5));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.backup("web", &[]);
    assert!(hub.ok(&["backup", "list"]).contains("BACKUP"));
    assert!(hub.ok(&["vm", "show", "web"]).contains("disk0"));
    assert!(hub.ok(&["repo", "list"]).contains("main"));
    assert_eq!(hub.json(&["backup", "list", "--vm", "web", "--status", "completed"])["total"], 1);
    assert_eq!(hub.json(&["backup", "list", "--vm", "nobody"])["total"], 0);
    assert!(hub.fails(3, &["backup", "start", "nobody", "--repo", "main"]).contains("nobody"));
    assert!(hub.fails(2, &["backup", "start", "web", "--repo", "nowhere"]).contains("nowhere"));
    let closed = cli("http://127.0.0.1:1", None).args(["vm", "list"]).output().unwrap();
    assert_eq!(closed.status.code(), Some(5), "{}", text(&closed.stderr));
}

#[test]
fn a_libvirt_source_takes_all_of_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let hub = Hub::start(dir.path());
    let uri = "qemu:///session?socket=/nonexistent";
    hub.ok(&[
        "source",
        "add",
        "libvirt",
        "--name",
        "kvm",
        "--uri",
        uri,
        "--scratch",
        path(&scratch),
        "--scratch-floor",
        "2GiB",
    ]);
    let source = hub.json(&["source", "show", "kvm"])["source"].clone();
    assert_eq!(
        (field(&source, "scratch_path"), source["scratch_floor_bytes"].as_u64()),
        (path(&scratch), Some(2 << 30))
    );
}
