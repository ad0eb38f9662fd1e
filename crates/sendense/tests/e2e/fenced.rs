//! Two hubs on one database, one of them stopped (SIGSTOP) for longer than its lease and then continued: what it was doing is
//! the other's by then, and it must publish nothing and delete nothing.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, SENDENSE, cli, field, path, tree};
use crate::servers;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How long something may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short, and yet a hub that only has to wait for a processor is not taken for dead.
const LEASE_SECONDS: &str = "10";

pub struct Pair {
    pub hubs: [Hub; 2],
}

impl Pair {
    /// Two hubs of one deployment. Sources and repositories are added through the first.
    pub fn start(dir: &Path, url: &str) -> Self {
        let start = |name: &str| {
            let hub = Hub::launch(dir, name, &["--database-url", url, "--lease-seconds", LEASE_SECONDS]);
            hub.unwrap_or_else(|log| panic!("{log}"))
        };
        let first = start("first");
        std::fs::create_dir_all(dir.join("second")).unwrap();
        std::fs::copy(dir.join("first/key"), dir.join("second/key")).unwrap();
        Self { hubs: [first, start("second")] }
    }

    /// The hub that has the repository, and the other one.
    fn owner_and_other(&self, dir: &Path) -> (&Hub, &Hub) {
        let owner = owner(dir);
        let [first, second] = &self.hubs;
        if owner == id_of(first) { (first, second) } else { (second, first) }
    }
}

pub fn id_of(hub: &Hub) -> String {
    let text = std::fs::read_to_string(hub.data_dir.join("hub.json")).unwrap();
    field(&serde_json::from_str(&text).unwrap(), "hub_id").to_owned()
}

fn owner(dir: &Path) -> String {
    owner_of(&dir.join("repo"))
}

/// The hub that a repository's owner record names.
pub fn owner_of(repository: &Path) -> String {
    let text = std::fs::read_to_string(repository.join(".sendense-repository.json")).unwrap();
    field(&serde_json::from_str(&text).unwrap(), "hub_id").to_owned()
}

pub fn until(hubs: [&Hub; 2], what: &str, mut done: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !done() {
        let logs = || hubs.map(Hub::log).join("\n----\n");
        assert!(Instant::now() < patience, "{what}\nhub logs:\n{}", logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn is_idle(hub: &Hub) -> bool {
    let at_work = |task: &Value| ["pending", "running"].contains(&field(task, "state"));
    !hub.json(&["task", "list"])["tasks"].as_array().unwrap().iter().any(at_work)
}

/// True when nothing in the repository is half done.
fn is_tidy(dir: &Path) -> bool {
    !tree(&dir.join("repo"))
        .iter()
        .any(|file| [".draft-", ".delete-", ".merge-"].iter().any(|half| file.contains(half)))
}

/// What lies in the repository, but for the owner record, which hubs renew.
fn files(dir: &Path) -> Vec<(String, u64)> {
    let repo = dir.join("repo");
    let points = tree(&repo).into_iter().filter(|file| !file.starts_with('.'));
    points.map(|file| (file.clone(), repo.join(file).metadata().unwrap().len())).collect()
}

pub fn restores(hub: &Hub, dir: &Path, id: &str, bytes: &[u8]) {
    let out = dir.join(format!("out-{id}"));
    hub.ok(&["restore", "disk", id, "--disk", "0", "--to", path(&out), "--wait"]);
    assert_holds(&out, bytes);
    std::fs::remove_file(&out).unwrap();
}

#[test]
fn a_hub_that_was_stopped_in_mid_backup_publishes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, url) = servers::mariadb(dir);
    Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut Random::new(51));
    let (_slow, uri) = servers::slow_nbd(dir, "slow", "100ms");
    let pair = Pair::start(dir, &url);
    let [away, other] = &pair.hubs;
    away.set_up_images(dir);
    away.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    away.ok(&["source", "discover", "slow"]);
    assert_eq!(owner(dir), id_of(away));
    let begun = away.json(&["backup", "start", "slow", "--repo", "main"])["backup"].clone();
    let id = field(&begun, "backup_id");
    let state = |hub: &Hub| hub.json(&["backup", "show", id])["backup"].clone();
    until([away, other], "the backup moves", || state(away)["bytes_transferred"].as_u64().is_some_and(|done| done > 0));
    away.pause();
    until([away, other], "the other hub takes the repository", || owner(dir) == id_of(other));
    until([away, other], "the other hub ends the backup", || state(other)["status"] == "failed");
    until([away, other], "its draft goes", || is_tidy(dir));
    let made = other.backup("web", &[]);
    let there = files(dir);

    away.resume();
    // By its task or by the repository, whichever it asks first.
    let noticed = ["task was taken over by another hub", "another hub took the repository"];
    until([away, other], "it notices", || noticed.iter().any(|words| away.log().contains(words)));
    until([away, other], "its task ends", || is_idle(away) && is_tidy(dir));
    assert_eq!(files(dir), there, "it changed the repository\n{}", away.log());
    assert_eq!(state(other)["status"], "failed");
    assert_eq!(owner(dir), id_of(other));
    // It lives on beside the other, takes requests, and leaves what is to be done in the repository to its owner.
    let next = away.backup("web", &[]);
    assert_eq!((field(&next, "backup_type"), &next["parent_backup_id"]), ("incremental", &made["backup_id"]));
    for hub in pair.hubs {
        assert_eq!(hub.stop(), Some(0));
    }
}

/// Stops a hub that is not in the middle of a change of names in any of these repositories: there it keeps it, stopped or not, and
/// nobody takes it.
pub fn pause_between_changes(hub: &Hub, repositories: &[&Path]) {
    let patience = Instant::now() + PATIENCE;
    loop {
        hub.pause();
        let is_free = |repository: &&Path| {
            let lock = std::fs::File::open(repository.join(".sendense-repository.lock")).unwrap();
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
        };
        if repositories.iter().all(is_free) {
            return;
        }
        hub.resume();
        assert!(Instant::now() < patience, "a change does not end\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs the command line in the background.
fn spawn(hub: &Hub, args: &[&str]) -> Child {
    let mut command = cli(&hub.url, Some(&hub.data_dir.join("admin-token")));
    assert_eq!(command.get_program(), SENDENSE);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A merge, a deletion of several points and a backup are under way when it is stopped.
#[test]
fn a_hub_that_was_stopped_in_a_merge_or_a_deletion_changes_nothing_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, url) = servers::mariadb(dir);
    let mut random = Random::new(52);
    let mut web = Disk::create(&dir.join("vms/web/disk0.raw"), 12 << 20, &mut random);
    let mut old = Disk::create(&dir.join("vms/old/disk0.raw"), 2 << 20, &mut random);
    Disk::create(&dir.join("vms/new/disk0.raw"), 24 << 20, &mut random);
    let pair = Pair::start(dir, &url);
    pair.hubs[0].set_up_images(dir);
    for delay_ms in [40, 240] {
        let (away, other) = pair.owner_and_other(dir);
        let both = [away, other];
        let mut points = Vec::new();
        for _ in 0..3 {
            web.write_somewhere(400_000, &mut random);
            old.write_somewhere(100_000, &mut random);
            points.push((field(&away.backup("web", &[]), "backup_id").to_owned(), web.bytes.clone()));
            points.push((field(&away.backup("old", &[]), "backup_id").to_owned(), old.bytes.clone()));
        }
        // The middle one of the machine's last three goes; of the other machine all but its oldest of these.
        away.ok(&["backup", "merge", &points[2].0, "--yes", "--no-wait"]);
        away.ok(&["backup", "start", "new", "--repo", "main"]);
        let mut deletion = spawn(away, &["backup", "delete", &points[3].0, "--cascade", "--yes"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        pause_between_changes(away, &[&dir.join("repo")]);
        until(both, "the other hub takes the repository", || owner(dir) == id_of(other));
        until(both, "the other hub puts all in order", || is_idle(other) && is_tidy(dir));
        // The chains go on, on whatever the stopped one left of them.
        for (vm, disk) in [("web", &mut web), ("old", &mut old)] {
            disk.write_somewhere(200_000, &mut random);
            points.push((field(&other.backup(vm, &[]), "backup_id").to_owned(), disk.bytes.clone()));
        }
        until(both, "the other hub has nothing to do", || is_idle(other) && is_tidy(dir));
        let there = files(dir);
        away.resume();
        until(both, "the deletion ends", || deletion.try_wait().unwrap().is_some());
        until(both, "it has given up", || is_idle(away) && is_tidy(dir));
        assert_eq!(files(dir), there, "it changed the repository\n{}", away.log());
        assert_eq!(owner(dir), id_of(other));
        // Every point that is left gives back what it should.
        let listed = other.json(&["backup", "list", "--status", "completed", "--limit", "1000"])["backups"].clone();
        let is_listed = |id: &str| listed.as_array().unwrap().iter().any(|backup| backup["backup_id"] == id);
        for (id, bytes) in points.iter().filter(|(id, _)| is_listed(id)) {
            restores(other, dir, id, bytes);
        }
        for (id, _) in points.iter().rev().take(2) {
            assert!(is_listed(id), "the newest points are there");
            other.ok(&["backup", "verify", id, "--deep"]);
        }
    }
    for hub in pair.hubs {
        assert_eq!(hub.stop(), Some(0));
    }
}
