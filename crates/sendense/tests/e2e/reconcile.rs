//! Each disorder of a repository is made for real, found, and put right where that is safe.

use crate::disk::{Disk, Random, assert_holds};
use crate::files::{ext4, open, point, workers};
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use crate::servers::slow_nbd;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Kind, subject and whether it was repaired, of each finding.
fn found(report: &Value) -> Vec<(&str, &str, bool)> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings.map(|one| (field(one, "kind"), field(one, "subject"), one["repaired"] == true)).collect()
}

fn check(hub: &Hub, more: &[&str]) -> Value {
    hub.json(&[&["repo", "check", "main"][..], more].concat())["report"].clone()
}

/// The files of a folder beside those of another.
fn put_back(from: &Path, to: &Path) {
    tool("coreutils", "cp", &["-an", "-T", path(from), path(to)]);
}

#[test]
fn what_only_one_of_folder_and_catalog_knows_is_brought_together() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(31);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let first = point(&hub);
    disk.write_somewhere(100_000, &mut random);
    let second = point(&hub);
    assert_eq!(found(&check(&hub, &[])), []);

    // Files without a row: the point was deleted, and its files were brought back from elsewhere.
    let (repo, copy) = (dir.join("repo"), dir.join("copy"));
    tool("coreutils", "cp", &["-a", path(&repo), path(&copy)]);
    hub.ok(&["backup", "delete", &second, "--yes"]);
    put_back(&copy, &repo);
    let seen = check(&hub, &["--dry-run"]);
    assert_eq!(found(&seen), [("files_without_row", second.as_str(), false)]);
    hub.fails(3, &["backup", "show", &second]);
    assert_eq!(found(&check(&hub, &[])), [("files_without_row", second.as_str(), true)]);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", &second, "--to", path(&out), "--wait"]);
    assert_holds(&out, &disk.bytes);

    // A row without files: somebody has removed them by hand. What else he left there is told and stays.
    for file in tree(&repo).iter().filter(|file| file.contains(&second)) {
        fs::remove_file(repo.join(file)).unwrap();
    }
    fs::write(repo.join("notes.txt"), "do not touch").unwrap();
    let seen = check(&hub, &["--dry-run"]);
    assert_eq!(found(&seen), [("stranger", "notes.txt", false), ("row_without_files", second.as_str(), false)]);
    hub.ok(&["backup", "show", &second]);
    let shown = hub.ok(&["repo", "check", "main"]);
    assert!(shown.contains("row without files") && shown.contains("look yourself"), "{shown}");
    hub.fails(3, &["backup", "show", &second]);
    assert_eq!(found(&check(&hub, &[])), [("stranger", "notes.txt", false)]);
    assert_eq!(fs::read(repo.join("notes.txt")).unwrap(), b"do not touch");
    hub.ok(&["backup", "verify", &first]);

    // All of it was kept, newest first.
    let kept = hub.json(&["repo", "reports", "main"]);
    let kept = kept["reports"].as_array().unwrap();
    assert!(kept.len() >= 6, "{kept:#?}");
    assert_eq!(found(&kept[0]), [("stranger", "notes.txt", false)]);
    hub.fails(3, &["repo", "check", "nowhere"]);
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn what_a_dead_hub_left_is_found_at_the_start_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, uri) = slow_nbd(dir, "slow", "200ms");
    let mut hub = Hub::start(dir);
    fs::create_dir_all(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    hub.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    let vm = field(&hub.json(&["source", "discover", "slow"])["vms"][0], "vm_name").to_owned();
    let started = hub.json(&["backup", "start", &vm, "--repo", "main"])["backup"].clone();
    let (backup, task) = (field(&started, "backup_id"), field(&started, "task_id"));
    let patience = Instant::now() + PATIENCE;
    while !tree(&dir.join("repo")).iter().any(|file| file.contains(&format!(".draft-{backup}"))) {
        assert!(Instant::now() < patience, "no draft:\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    // While its task works on it, a draft is nothing to worry about.
    assert_eq!(found(&check(&hub, &[])), []);
    hub.kill_9();
    drop(hub);

    let hub = Hub::start(dir);
    let report = loop {
        let reports = hub.json(&["repo", "reports", "main"]);
        let reports = reports["reports"].as_array().unwrap().clone();
        if let Some(report) = reports.into_iter().find(|report| !found(report).is_empty()) {
            break report;
        }
        assert!(Instant::now() < patience, "nothing was found:\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(found(&report), [("draft_without_task", backup, true), ("lease_out", task, true)]);
    assert_eq!(field(&report, "made_by"), "start");
    assert_eq!(found(&check(&hub, &[])), [], "it is told once");
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn an_open_point_whose_reader_has_died_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(dir, 16, "", "echo hello > hello");
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let id = point(&hub);
    let (dead, lives) = (open(&hub, &id), open(&hub, &id));
    let first = *workers(hub.id()).iter().min().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(first as i32).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let patience = Instant::now() + PATIENCE;
    let mut report = check(&hub, &["--dry-run"]);
    while found(&report).is_empty() {
        assert!(Instant::now() < patience, "nobody has seen that the reader is gone");
        std::thread::sleep(Duration::from_millis(20));
        report = check(&hub, &["--dry-run"]);
    }
    // Which of the two it was the numbers of processes do not tell.
    let forgotten = field(&report["findings"][0], "subject").to_owned();
    assert!([&dead, &lives].contains(&&forgotten));
    assert_eq!(found(&check(&hub, &[])), [("mount_forgotten", forgotten.as_str(), true)]);
    let left = hub.json(&["mounts"])["mounts"].as_array().unwrap().clone();
    assert!(left.len() == 1 && field(&left[0], "mount_id") != forgotten, "{left:?}");
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn a_folder_that_cannot_be_listed_changes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(32);
    Disk::create(&dir.join("vms/web/disk0.raw"), 1 << 20, &mut random);
    Disk::create(&dir.join("vms/db/disk0.raw"), 1 << 20, &mut random);
    let hub = Hub::start_as_nobody(dir);
    hub.set_up_images(dir);
    let hidden = point(&hub);
    let gone = field(&hub.backup("db", &[]), "backup_id").to_owned();
    let repo = dir.join("repo");
    let vm = field(&hub.json(&["backup", "show", &hidden])["backup"], "vm_context_id").to_owned();
    let lock = |mode| fs::set_permissions(repo.join(&vm), fs::Permissions::from_mode(mode)).unwrap();
    lock(0o000);
    for file in tree(&repo).iter().filter(|file| file.contains(&gone)) {
        fs::remove_file(repo.join(file)).unwrap();
    }
    let report = check(&hub, &[]);
    assert_eq!(found(&report), [("unlisted", vm.as_str(), false)], "{report:#}");
    for id in [&hidden, &gone] {
        hub.ok(&["backup", "show", id]);
    }
    // Once it can be listed, what is really gone is told from what was hidden.
    lock(0o755);
    assert_eq!(found(&check(&hub, &[])), [("row_without_files", gone.as_str(), true)]);
    hub.ok(&["backup", "verify", &hidden]);
    assert_eq!(hub.stop(), Some(0));
}
