//! Starting on a bad day: keys and tokens that are lost or open to others, folders and databases that are away.

use crate::disk::{Disk, Random};
use crate::hub::{Hub, PATIENCE, field, path, text, tree};
use crate::servers;
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a hub says that does not start.
fn refused(dir: &Path, more: &[&str]) -> String {
    let before = fs::read_to_string(dir.join("hub.log")).unwrap_or_default().len();
    let log = Hub::launch(dir, "hub", more).err().expect("the hub started");
    log[before..].to_owned()
}

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_lost_key_is_missed_at_the_start_and_never_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let hub = Hub::start(dir);
    let key = hub.data_dir.join("key");
    assert_eq!(hub.stop(), Some(0));
    let kept = fs::read(&key).unwrap();

    fs::remove_file(&key).unwrap();
    let said = refused(dir, &[]);
    assert!(
        said.contains("key is not there") && said.contains("from a copy") && said.contains("--accept-new-key"),
        "{said}"
    );
    assert!(!key.exists(), "a new key was made silently");

    fs::write(&key, [1; 32]).unwrap();
    set_mode(&key, 0o600);
    let said = refused(dir, &[]);
    assert!(said.contains("are sealed with key") && said.contains("from a copy"), "{said}");

    fs::write(&key, &kept[..20]).unwrap();
    let said = refused(dir, &[]);
    assert!(said.contains("is damaged") && said.contains("from a copy"), "{said}");

    fs::write(&key, &kept).unwrap();
    set_mode(&key, 0o644);
    let said = refused(dir, &[]);
    assert!(said.contains("mode 644") && said.contains("nobody but its owner"), "{said}");

    set_mode(&key, 0o600);
    assert_eq!(Hub::start(dir).stop(), Some(0), "the key is back");

    // Given up for good: once with the option, and ever after without.
    fs::remove_file(&key).unwrap();
    let hub = Hub::launch(dir, "hub", &["--accept-new-key"]).unwrap_or_else(|log| panic!("{log}"));
    assert_eq!(hub.stop(), Some(0));
    assert_ne!(fs::read(&key).unwrap(), kept);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Hub::start(dir).stop(), Some(0));
}

#[test]
fn an_admin_token_that_others_can_read_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let hub = Hub::start(dir);
    let token = hub.data_dir.join("admin-token");
    assert_eq!(hub.stop(), Some(0));
    set_mode(&token, 0o640);
    let said = refused(dir, &[]);
    assert!(said.contains("admin-token") && said.contains("640") && said.contains("nobody but its owner"), "{said}");
    set_mode(&token, 0o600);
    Hub::start(dir).ok(&["vm", "list"]);
}

#[test]
fn a_repository_that_is_away_is_shown_and_comes_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web/disk0.raw"), 4 << 20, &mut Random::new(31));
    Disk::create(&dir.join("vms/db/disk0.raw"), 4 << 20, &mut Random::new(32));
    let (_stuck, uri) = servers::stuck_nbd(dir, "stuck", "rdelay");
    let quick = ["--lease-seconds", "4"];
    let start = || Hub::launch(dir, "hub", &quick).unwrap_or_else(|log| panic!("{log}"));
    let mut hub = start();
    hub.set_up_images(dir);
    fs::create_dir(dir.join("other")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "other", "--path", path(&dir.join("other"))]);
    hub.backup("web", &[]);
    hub.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    let found = hub.json(&["source", "discover", "slow"]);
    let started = hub.json(&["backup", "start", field(&found["vms"][0], "vm_context_id"), "--repo", "main"]);
    let running = field(&started["backup"], "backup_id").to_owned();
    until(&hub, "the draft is there", || tree(&dir.join("repo")).iter().any(|file| file.contains(&running)));
    hub.kill_9();

    // The share is not mounted: its mount point is an empty folder, or not there at all.
    let (repo, elsewhere) = (dir.join("repo"), dir.join("elsewhere"));
    fs::rename(&repo, &elsewhere).unwrap();
    for is_empty in [true, false] {
        if is_empty {
            fs::create_dir(&repo).unwrap();
        } else {
            fs::remove_dir(&repo).expect("nothing was written into the empty folder");
        }
        let mut hub = start();
        until(&hub, "the repository is shown as away", || problem(&hub, "main").contains("is not there"));
        assert_eq!(problem(&hub, "other"), "");
        let output = hub.run(&["backup", "start", "web", "--repo", "main", "--wait"]);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(6) && said.contains("repository main is not there"), "{said}");
        let args = ["backup", "start", "db", "--repo", "other", "--wait"];
        assert_eq!(field(&hub.json(&args)["backup"], "status"), "completed", "another repository works");
        hub.kill_9();
    }

    // It comes back: nobody asks for it, and yet what the killed hub left in it is removed.
    let hub = start();
    until(&hub, "the repository is shown as away", || problem(&hub, "main").contains("is not there"));
    fs::rename(&elsewhere, &repo).unwrap();
    until(&hub, "the draft of the killed hub is gone", || !tree(&repo).iter().any(|file| file.contains(&running)));
    until(&hub, "the repository is at work again", || problem(&hub, "main").is_empty());
    let backup = hub.backup("web", &["--type", "incremental"]);
    assert_eq!(field(&backup, "backup_type"), "incremental");
}

#[test]
fn a_database_that_is_away_stops_the_start_and_is_waited_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let absent = format!("mysql://sendense:s3cret@localhost/sendense?socket={}", path(&dir.join("absent.sock")));
    let said = refused(dir, &["--database-url", &absent]);
    assert!(said.contains("open the catalog") && !said.contains("s3cret"), "{said}");

    Disk::create(&dir.join("vms/web/disk0.raw"), 4 << 20, &mut Random::new(33));
    let (server, url) = servers::mariadb(dir);
    let hub = Hub::launch(dir, "hub", &["--database-url", &url]).unwrap_or_else(|log| panic!("{log}"));
    hub.set_up_images(dir);
    hub.backup("web", &[]);
    drop(server);
    let said = hub.fails(5, &["vm", "list"]);
    assert!(!said.contains("s3cret"), "{said}");
    let (_server, _) = servers::mariadb(dir);
    until(&hub, "the hub works on the database again", || hub.run(&["vm", "list"]).status.success());
    assert_eq!(field(&hub.backup("web", &["--type", "incremental"]), "backup_type"), "incremental");
    assert_eq!(hub.stop(), Some(0));
}

/// What is wrong with a repository, as the list tells it.
fn problem(hub: &Hub, name: &str) -> String {
    let list = hub.json(&["repo", "list"]);
    let rows = list["repositories"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == name).unwrap();
    assert_eq!(row["problem"].is_null(), !row["storage"].is_null(), "{row:#}");
    match &row["problem"] {
        Value::String(problem) => problem.clone(),
        _ => String::new(),
    }
}

fn until(hub: &Hub, what: &str, is: impl Fn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < patience, "never: {what}\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
