//! A full repository, rotten bits, a source that changes while it is read, work that is cancelled.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use crate::servers::slow_nbd;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// A small file system; unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// A tmpfs.
    pub fn mount(at: &Path, size: &str) -> Self {
        Self::mounted(at, &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    /// An ext4 on a disk of its own: a file beside the folder, which takes what is written to it.
    pub fn ext4(at: &Path, bytes: u64) -> Self {
        let image = at.with_extension("ext4");
        fs::File::create_new(&image).unwrap().set_len(bytes).unwrap();
        tool("e2fsprogs", "mkfs.ext4", &["-q", "-F", "-m", "0", path(&image)]);
        let disk = Self::mounted(at, &["-o", "loop", path(&image)]);
        fs::remove_dir(at.join("lost+found")).unwrap();
        disk
    }

    /// Mounting needs root; without it the test cannot be made and says so.
    fn mounted(at: &Path, how: &[&str]) -> Self {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(how).arg(at).output().unwrap();
        assert!(
            mounted.status.success(),
            "this test mounts a small file system and must run as root: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", path(&self.0)]).status();
    }
}

#[test]
fn a_full_repository_fails_the_backup_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _small = SmallDisk::mount(&dir.join("repo"), "128m");
    let mut random = Random::new(6);
    let small = Disk::create(&dir.join("vms/small.raw"), 4 << 20, &mut random);
    // Noise does not compress; 64 MiB of the 128 are kept free for what must always be possible (a deletion).
    let big = dir.join("vms/big.raw");
    let noise: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).take(100 << 17).flatten().collect();
    fs::write(&big, &noise).unwrap();
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let first = hub.backup("small", &[]);
    let before = tree(&dir.join("repo"));

    let output = hub.run(&["backup", "start", "big", "--repo", "main", "--wait"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no space"), "{said}");
    assert_eq!(tree(&dir.join("repo")), before, "nothing is left of it");
    let row = hub.json(&["backup", "list", "--vm", "big"])["backups"][0].clone();
    assert_eq!((field(&row, "status"), field(&row, "error_code")), ("failed", "no_space"), "{row:#}");

    hub.ok(&["backup", "verify", field(&first, "backup_id"), "--deep"]);
    let second = hub.backup("small", &[]);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", field(&second, "backup_id"), "--to", path(&out), "--wait"]);
    assert_holds(&out, &small.bytes);
}

/// Writes until the kernel refuses.
pub fn fill(file: &Path) {
    let mut file = fs::File::create_new(file).unwrap();
    // Large pieces first, so that it is quick, and then to the last page.
    for piece in [1 << 20, 4096] {
        let zeros = vec![0; piece];
        let error = loop {
            if let Err(error) = file.write_all(&zeros) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }
}

/// The status that the hub answers to a request for a backup.
fn asked_by_curl(hub: &Hub, vm: &str) -> String {
    let token = fs::read_to_string(hub.data_dir.join("admin-token")).unwrap();
    let (bearer, url) = (format!("Authorization: Bearer {}", token.trim()), format!("{}/api/v1/backups", hub.url));
    let body = format!(r#"{{"vm_name": "{vm}", "repository_id": "main", "backup_type": "full"}}"#);
    let ask = ["-sS", "-w", "\n%{http_code}", "-H", &bearer, "-H", "Content-Type: application/json", "-d", &body, &url];
    tool("curl", "curl", &ask)
}

#[test]
fn a_file_system_that_fills_up_in_mid_backup_fails_it_and_the_next_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // 64 MiB are read in 64 requests, so that there is a middle, and fit when the backup begins.
    let (_server, uri) = slow_nbd(dir, "slow", "250ms");
    let _small = SmallDisk::mount(&dir.join("repo"), "192m");
    let small = Disk::create(&dir.join("vms/small.raw"), 4 << 20, &mut Random::new(61));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.backup("small", &[]);
    let before = tree(&dir.join("repo"));
    hub.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    let found = hub.json(&["source", "discover", "slow"]);
    let vm = field(&found["vms"][0], "vm_context_id");
    let started = hub.json(&["backup", "start", vm, "--repo", "main", "--compression", "off"]);
    let id = field(&started["backup"], "backup_id");
    let patience = Instant::now() + PATIENCE;
    while hub.json(&["backup", "show", id])["backup"]["bytes_transferred"].as_u64() == Some(0) {
        assert!(Instant::now() < patience, "nothing is transferred");
    }
    // Somebody else takes the room that was promised.
    let ballast = dir.join("repo/ballast");
    fill(&ballast);
    let failed = loop {
        let backup = hub.json(&["backup", "show", id])["backup"].clone();
        if backup["completed_at"].is_string() {
            break backup;
        }
        assert!(Instant::now() < patience, "it goes on without room: {backup:#}");
    };
    assert_eq!((field(&failed, "status"), field(&failed, "error_code")), ("failed", "no_space"), "{failed:#}");
    let answer = asked_by_curl(&hub, "small");
    assert!(answer.ends_with("\n507") && answer.contains("no_space"), "{answer}");
    assert!(!tree(&dir.join("repo")).iter().any(|file| file.contains(id)), "something is left of it");

    fs::remove_file(&ballast).unwrap();
    assert_eq!(tree(&dir.join("repo")), before);
    let second = hub.backup("small", &[]);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", field(&second, "backup_id"), "--to", path(&out), "--wait"]);
    assert_holds(&out, &small.bytes);
}

#[test]
fn a_rotten_bit_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web/disk0.raw"), 8 << 20, &mut Random::new(7));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let backup = hub.backup("web", &[]);
    let id = field(&backup, "backup_id");
    hub.ok(&["backup", "verify", id]);
    let image = tree(&dir.join("repo")).into_iter().find(|file| file.ends_with(".qcow2")).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(dir.join("repo").join(&image)).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let said = hub.fails(6, &["backup", "verify", id]);
    assert!(said.contains("corrupt") && said.contains(&format!("{id}.qcow2")) && said.contains("segment"), "{said}");
}

#[test]
fn an_image_that_changes_while_it_is_read_gives_no_point() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 64 << 20, &mut Random::new(8));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    // A guest that never stops writing: some write falls between freeze and check, whatever the timing.
    let (done, path_of_disk) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), disk.path.clone());
    let stop = done.clone();
    let guest = std::thread::spawn(move || {
        let file = fs::OpenOptions::new().write(true).open(path_of_disk).unwrap();
        let mut count = 0u64;
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            count += 1;
            file.write_all_at(&count.to_le_bytes(), 4096).unwrap();
        }
    });
    let said = hub.fails(6, &["backup", "start", "web", "--repo", "main", "--compression", "high", "--wait"]);
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    guest.join().unwrap();
    assert!(said.contains("changed") || said.contains("is being written"), "{said}");
    assert!(!tree(&dir.join("repo")).iter().any(|file| file.ends_with(".qcow2") || file.contains("draft")));
    disk.bytes = fs::read(&disk.path).unwrap();
    let backup = hub.backup("web", &[]);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", field(&backup, "backup_id"), "--to", path(&out), "--wait"]);
    assert_holds(&out, &disk.bytes);
}

#[test]
fn a_running_backup_refuses_a_second_one_and_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, uri) = slow_nbd(dir, "slow", "2");
    let quick = Disk::create(&dir.join("vms/quick.raw"), 1 << 20, &mut Random::new(9));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    let found = hub.json(&["source", "discover", "slow"]);
    let vm = field(&found["vms"][0], "vm_context_id").to_owned();
    let started = hub.json(&["backup", "start", &vm, "--repo", "main"]);
    let id = field(&started["backup"], "backup_id").to_owned();
    let said = hub.fails(4, &["backup", "start", &vm, "--repo", "main"]);
    assert!(said.contains(&id), "the message names what is running: {said}");
    // Another machine is not in its way.
    let other = hub.backup("quick", &[]);
    assert_eq!(field(&other, "status"), "completed");

    wait_for(&hub, &id, "transferring");
    hub.ok(&["backup", "cancel", &id]);
    let patience = Instant::now() + PATIENCE;
    loop {
        let backup = hub.json(&["backup", "show", &id])["backup"].clone();
        match field(&backup, "status") {
            "cancelled" => break,
            "running" => assert!(Instant::now() < patience, "it was not cancelled: {backup:#}"),
            other => panic!("a cancelled backup is {other}: {backup:#}"),
        }
    }
    assert!(!tree(&dir.join("repo")).iter().any(|file| file.contains(&id)), "the draft is removed");
    assert_eq!(quick.bytes.len(), 1 << 20);
}

pub fn wait_for(hub: &Hub, id: &str, phase: &str) {
    let patience = Instant::now() + PATIENCE;
    loop {
        let backup = hub.json(&["backup", "show", id])["backup"].clone();
        if backup["phase"] == phase {
            return;
        }
        assert!(backup["completed_at"].is_null() && Instant::now() < patience, "{phase} never came: {backup:#}");
    }
}
