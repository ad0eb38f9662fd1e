//! The hub on a database server: the whole journey, and two hubs on one database and one repository folder.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, field, path, tree};
use crate::servers::{self, PASSWORD};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn the_whole_journey_on_mariadb() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, url) = servers::mariadb(dir.path());
    journey(dir.path(), &url);
}

#[test]
fn the_whole_journey_on_postgresql() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, url) = servers::postgres(dir.path());
    journey(dir.path(), &url);
}

fn journey(dir: &Path, url: &str) {
    let mut random = Random::new(21);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 12 << 20, &mut random);
    let (_stuck, uri) = servers::stuck_nbd(dir, "stuck", "rdelay");
    let start = || Hub::launch(dir, "hub", &["--database-url", url]).unwrap_or_else(|log| panic!("{log}"));
    let mut hub = start();
    hub.set_up_images(dir);
    let mut points = Vec::new();
    let mut take = |hub: &Hub, disk: &Disk, kind: &str| {
        let backup = hub.backup("web", &["--type", kind]);
        assert_eq!((field(&backup, "status"), field(&backup, "backup_type")), ("completed", kind), "{backup:#}");
        points.push((field(&backup, "backup_id").to_owned(), disk.bytes.clone()));
        field(&backup, "backup_id").to_owned()
    };
    let full = take(&hub, &disk, "full");
    disk.write_somewhere(2 << 20, &mut random);
    let second = take(&hub, &disk, "incremental");

    // Killed in the midst of a backup: the next start ends it, and everything before is there.
    let stuck = slow_machine(&hub, &uri);
    let running = start_backup(&hub, &stuck);
    wait_for(&hub, &running, |backup| field(backup, "status") == "running");
    hub.kill_9();
    hub = start();
    let backup = wait_for(&hub, &running, |backup| !backup["completed_at"].is_null());
    assert_eq!((field(&backup, "status"), field(&backup, "error_code")), ("failed", "interrupted"), "{backup:#}");
    disk.write_somewhere(1 << 20, &mut random);
    let third = take(&hub, &disk, "incremental");

    let chain = hub.json(&["backup", "chain", "web"]);
    let chained: Vec<_> = chain["backups"].as_array().unwrap().iter().map(|point| field(point, "backup_id")).collect();
    assert_eq!(chained, [&full, &second, &third]);
    let said = hub.fails(4, &["backup", "delete", &second, "--yes"]);
    assert!(said.contains(&third), "the message names what is in the way: {said}");
    for (number, (id, bytes)) in points.iter().enumerate() {
        hub.ok(&["backup", "verify", id, "--deep"]);
        let out = dir.join(format!("out{number}"));
        hub.ok(&["restore", "disk", id, "--to", path(&out), "--wait"]);
        assert_holds(&out, bytes);
    }
    hub.ok(&["backup", "delete", &third, "--yes"]);
    let listed = |status: &str| hub.json(&["backup", "list", "--status", status])["total"].clone();
    assert_eq!((listed("completed"), listed("failed"), listed("running")), (2.into(), 1.into(), 0.into()));
    assert!(!tree(&dir.join("repo")).iter().any(|file| file.contains(&third) || file.contains("draft")));

    // The catalog is in the database alone, and the database's password nowhere.
    assert!(!hub.data_dir.join("catalog.db").exists());
    let log = hub.log();
    assert!(!log.contains(PASSWORD) && !log.contains("s3cret"), "{log}");
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn two_hubs_share_a_database_and_a_repository_and_one_outlives_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, url) = servers::mariadb(dir);
    let mut random = Random::new(22);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 8 << 20, &mut random);
    let (_stuck, uri) = servers::stuck_nbd(dir, "stuck", "rdelay");
    let start = |name: &str| Hub::launch(dir, name, &["--database-url", &url, "--lease-seconds", "6"]);
    let mut first = start("first").unwrap_or_else(|log| panic!("{log}"));
    first.set_up_images(dir);

    // A second hub needs the key of the deployment, and says where it is to be had.
    let log = start("second").err().expect("a hub without the deployment's key starts");
    assert!(log.contains("second/key is not there") && log.contains("another hub"), "{log}");
    assert!(!dir.join("second/key").exists(), "it made a key of its own");
    fs::copy(dir.join("first/key"), dir.join("second/key")).unwrap();
    let second = start("second").unwrap_or_else(|log| panic!("{log}"));

    let before = first.backup("web", &[]);
    let stuck = slow_machine(&first, &uri);
    let running = start_backup(&first, &stuck);
    wait_for(&second, &running, |backup| field(backup, "status") == "running");
    let said = second.fails(4, &["backup", "start", &stuck, "--repo", "main"]);
    assert!(said.contains(&running), "the message names what is running: {said}");
    assert_eq!(owner(dir), hub_id(dir, "first"));

    // It is cancelled there, too, and the next one that is asked for there begins at the first hub.
    second.ok(&["backup", "cancel", &running]);
    let backup = wait_for(&second, &running, |backup| !backup["completed_at"].is_null());
    assert_eq!(field(&backup, "status"), "cancelled", "{backup:#}");
    assert!(!tree(&dir.join("repo")).iter().any(|file| file.contains(&running)), "the draft stays");
    let running = start_backup(&second, &stuck);
    wait_for(&second, &running, |backup| field(backup, "status") == "running");

    // What is asked of the second hub is done by the first, which owns the repository.
    disk.write_somewhere(1 << 20, &mut random);
    let there = second.backup("web", &["--type", "incremental"]);
    assert_eq!((field(&there, "status"), field(&there, "backup_type")), ("completed", "incremental"));
    assert_eq!(owner(dir), hub_id(dir, "first"));
    assert_eq!(first.json(&["backup", "chain", "web"])["backup_count"], 2);

    // The first hub dies. When its leases are out, the second ends what it had begun and goes on in the repository.
    first.kill_9();
    let backup = wait_for(&second, &running, |backup| !backup["completed_at"].is_null());
    assert_eq!((field(&backup, "status"), field(&backup, "error_code")), ("failed", "interrupted"), "{backup:#}");
    disk.write_somewhere(1 << 20, &mut random);
    let after = second.backup("web", &["--type", "incremental"]);
    assert_eq!((field(&after, "status"), field(&after, "backup_type")), ("completed", "incremental"), "{after:#}");
    assert_eq!(owner(dir), hub_id(dir, "second"));
    let patience = Instant::now() + PATIENCE;
    while tree(&dir.join("repo")).iter().any(|file| file.contains(&running)) {
        assert!(Instant::now() < patience, "the draft of the dead hub stays\n{}", second.log());
        std::thread::sleep(Duration::from_millis(20));
    }

    // The first hub comes back as a hub among two: the repository stays where it is.
    let first = start("first").unwrap_or_else(|log| panic!("{log}"));
    let last = first.backup("web", &["--type", "incremental"]);
    assert_eq!(field(&last, "backup_type"), "incremental");
    assert_eq!(owner(dir), hub_id(dir, "second"));
    let chain = first.json(&["backup", "chain", "web"]);
    let chained: Vec<_> = chain["backups"].as_array().unwrap().iter().map(|point| field(point, "backup_id")).collect();
    assert_eq!(chained, [&before, &there, &after, &last].map(|backup| field(backup, "backup_id")));
    for backup in [&before, &there, &after, &last] {
        second.ok(&["backup", "verify", field(backup, "backup_id"), "--deep"]);
    }
    let out = dir.join("out");
    first.ok(&["restore", "disk", field(&last, "backup_id"), "--to", path(&out), "--wait"]);
    assert_holds(&out, &disk.bytes);

    // A hub of another deployment is refused the folder, whatever it asks for.
    let stranger = Hub::launch(dir, "stranger", &[]).unwrap_or_else(|log| panic!("{log}"));
    let said = stranger.fails(4, &["repo", "add", "local", "--name", "taken", "--path", path(&dir.join("repo"))]);
    assert!(said.contains("owned by"), "{said}");
    assert_eq!(stranger.json(&["repo", "list"])["total"], 0);
    assert_eq!(owner(dir), hub_id(dir, "second"));
}

#[test]
fn a_copied_data_folder_stops_the_earlier_of_two_hubs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, url) = servers::mariadb(dir);
    let start = |name: &str| {
        let hub = Hub::launch(dir, name, &["--database-url", &url, "--lease-seconds", "3"]);
        hub.unwrap_or_else(|log| panic!("{log}"))
    };
    let original = start("original");
    fs::create_dir(dir.join("copy")).unwrap();
    for file in ["hub.json", "key", "admin-token"] {
        fs::copy(dir.join("original").join(file), dir.join("copy").join(file)).unwrap();
    }
    let copy = start("copy");
    let (code, log) = original.ended();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("another process has started as the same hub"), "{log}");
    copy.ok(&["vm", "list"]);
}

fn slow_machine(hub: &Hub, uri: &str) -> String {
    hub.ok(&["source", "add", "nbd", "--name", "slow", "--uri", uri]);
    let found = hub.json(&["source", "discover", "slow"]);
    field(&found["vms"][0], "vm_context_id").to_owned()
}

fn start_backup(hub: &Hub, vm: &str) -> String {
    let started = hub.json(&["backup", "start", vm, "--repo", "main"]);
    field(&started["backup"], "backup_id").to_owned()
}

fn wait_for(hub: &Hub, id: &str, is: impl Fn(&Value) -> bool) -> Value {
    let patience = Instant::now() + PATIENCE;
    loop {
        let backup = hub.json(&["backup", "show", id])["backup"].clone();
        if is(&backup) {
            return backup;
        }
        assert!(Instant::now() < patience, "{backup:#}\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Who owns the repository, by its own record.
fn owner(dir: &Path) -> String {
    let record = fs::read(dir.join("repo/.sendense-repository.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    field(&record, "hub_id").to_owned()
}

fn hub_id(dir: &Path, name: &str) -> String {
    let identity: Value = serde_json::from_slice(&fs::read(dir.join(name).join("hub.json")).unwrap()).unwrap();
    field(&identity, "hub_id").to_owned()
}
