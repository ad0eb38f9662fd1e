//! Points that go although later ones need them.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, field, path, tree};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn ids(chain: &Value) -> Vec<String> {
    chain["backups"].as_array().unwrap().iter().map(|backup| field(backup, "backup_id").to_owned()).collect()
}

/// A hub that backs up `web`, whose first disk is written to.
struct House {
    hub: Hub,
    disks: Vec<Disk>,
    random: Random,
    dir: TempDir,
}

impl House {
    /// With disks of so many mebibytes.
    fn new(seed: u64, disks_mib: &[usize]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new(seed);
        let path = |number| dir.path().join(format!("vms/web/disk{number}.raw"));
        let disks = disks_mib.iter().enumerate();
        let disks = disks.map(|(number, mib)| Disk::create(&path(number), mib << 20, &mut random)).collect();
        let hub = Hub::start(dir.path());
        hub.set_up_images(dir.path());
        Self { hub, disks, random, dir }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn write(&mut self, len_max: usize) {
        self.disks[0].write_somewhere(len_max, &mut self.random);
    }

    /// The first disk is written to and the machine backed up: the point's id and what that disk holds in it.
    fn point(&mut self, len_max: usize, more: &[&str]) -> (String, Vec<u8>) {
        self.write(len_max);
        let id = field(&self.hub.backup("web", more), "backup_id").to_owned();
        (id, self.disks[0].bytes.clone())
    }

    /// A chain of a full and three incrementals with what each must give back.
    fn chain(&mut self) -> Vec<(String, Vec<u8>)> {
        let kinds = ["full", "incremental", "incremental", "incremental"];
        kinds.map(|kind| self.point(300_000, &["--type", kind])).into()
    }

    /// The points that there are now, of which disk is said by `more`.
    fn points(&self, more: &[&str]) -> Vec<String> {
        ids(&self.hub.json(&[&["backup", "chain", "web"], more].concat()))
    }

    fn files_of(&self, id: &str) -> usize {
        tree(&self.dir().join("repo")).iter().filter(|file| file.contains(id)).count()
    }

    /// Restores disk 0 of a point and compares it.
    fn restores(&self, id: &str, bytes: &[u8]) {
        self.restores_disk((id, "0"), bytes);
    }

    fn restores_disk(&self, (id, disk): (&str, &str), bytes: &[u8]) {
        let out = self.dir().join(format!("out-{id}"));
        let _ = std::fs::remove_file(&out);
        self.hub.ok(&["restore", "disk", id, "--disk", disk, "--to", path(&out), "--wait"]);
        assert_holds(&out, bytes);
        std::fs::remove_file(&out).unwrap();
    }

    fn until(&self, mut done: impl FnMut() -> bool) {
        let patience = Instant::now() + Duration::from_secs(120);
        while !done() {
            assert!(Instant::now() < patience, "hub log:\n{}", self.hub.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_point_in_the_middle_goes_and_every_other_stays_whole() {
    let mut house = House::new(31, &[6, 3]);
    let points = house.chain();
    let hub = &house.hub;
    let [a, b, c, d] = points.as_slice() else { panic!("four points") };

    // The plan changes nothing, and without a terminal nothing is asked and nothing done.
    let plan = hub.json(&["backup", "merge", &b.0, "--dry-run"]);
    assert_eq!((field(&plan["merge"], "successor_id"), &plan["merge"]["task_id"]), (c.0.as_str(), &Value::Null));
    assert_eq!(plan["merge"]["disk_ids"], serde_json::json!([0, 1]));
    hub.fails(1, &["backup", "merge", &b.0]);
    assert!(points.iter().all(|(id, _)| house.files_of(id) > 0));
    let refused = hub.fails(4, &["backup", "merge", &d.0, "--yes"]);
    assert!(refused.contains("nothing stands on it"), "{refused}");
    hub.ok(&["backup", "protect", &b.0]);
    hub.fails(4, &["backup", "merge", &b.0, "--yes"]);
    hub.ok(&["backup", "unprotect", &b.0]);

    hub.ok(&["backup", "merge", &b.0, "--yes"]);
    assert_eq!(house.files_of(&b.0), 0);
    hub.fails(3, &["backup", "show", &b.0]);
    assert_eq!(house.points(&[]), [a.0.as_str(), &c.0, &d.0]);
    // The full goes too: its successor is one now.
    hub.ok(&["backup", "merge", &a.0, "--yes"]);
    let full = hub.json(&["backup", "show", &c.0]);
    assert_eq!((field(&full["backup"], "backup_type"), &full["backup"]["parent_backup_id"]), ("full", &Value::Null));
    assert_eq!(house.points(&["--disk", "1"]), [c.0.as_str(), &d.0]);
    for (id, bytes) in [c, d] {
        hub.ok(&["backup", "verify", id, "--deep"]);
        house.restores(id, bytes);
    }
    // The chain goes on.
    house.write(100_000);
    let next = house.hub.backup("web", &[]);
    assert_eq!(field(&next, "backup_type"), "incremental");
    house.restores(field(&next, "backup_id"), &house.disks[0].bytes);
    assert_eq!(house.hub.stop(), Some(0));

    // A catalog that is made of the manifests alone says the same.
    let other = tempfile::tempdir().unwrap();
    let second = Hub::launch(other.path(), "second", &["--allow-path", path(house.dir.path())]).unwrap();
    second.ok(&["repo", "add", "local", "--name", "main", "--path", path(&house.dir.path().join("repo"))]);
    second.ok(&["repo", "import", "main"]);
    assert_eq!(ids(&second.json(&["backup", "chain", "web"])), [c.0.as_str(), &d.0, field(&next, "backup_id")]);
    assert_eq!(second.stop(), Some(0));
}

/// Killed at any moment of a merge: the next start ends it or removes it, and no point that stays has lost a byte.
#[test]
fn a_merge_that_is_killed_is_whole_or_never_was() {
    let mut house = House::new(32, &[24]);
    let mut points = house.chain();
    for delay_ms in [0, 20, 60, 120, 250, 500] {
        let going = points[1].0.clone();
        house.hub.ok(&["backup", "merge", &going, "--yes", "--no-wait"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        house.hub.kill_9();
        house.hub = Hub::start(house.dir());
        // One that had not begun when the hub died begins now.
        let waits = |task: &Value| ["pending", "running"].contains(&field(task, "state"));
        house.until(|| !house.hub.json(&["task", "list"])["tasks"].as_array().unwrap().iter().any(waits));
        // What the dead one left is put in order while the next one serves already.
        house.until(|| {
            let is_there = house.points(&[]).contains(&going);
            let prepared = tree(&house.dir().join("repo")).iter().any(|file| file.contains(".merge-"));
            !prepared && is_there == (house.files_of(&going) > 0)
        });
        let left = house.points(&[]);
        let whole: Vec<String> = points.iter().map(|(id, _)| id.clone()).collect();
        if left != whole {
            points.remove(1);
        }
        assert_eq!(left, points.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
        for (id, bytes) in &points {
            house.restores(id, bytes);
        }
        if points.len() == 4 {
            continue;
        }
        points.push(house.point(200_000, &[]));
    }
    assert_eq!(house.hub.stop(), Some(0));
}

/// Incrementals for ever under a policy that keeps the last two: the chain does not grow, and gives space back.
#[test]
fn a_policy_merges_what_no_rule_keeps() {
    let mut house = House::new(33, &[4]);
    house.hub.ok(&["policy", "create", "two", "--vm", "web", "--repo", "main", "--keep-last", "2"]);
    house.hub.ok(&["schedule", "create", "yearly", "--policy", "two", "--cron", "0 0 1 1 *"]);
    let mut newest = Vec::new();
    for _ in 0..5 {
        house.write(100_000);
        let hub = &house.hub;
        let begun = hub.json(&["schedule", "trigger", "yearly"])["execution"].clone();
        let id = field(&begun, "execution_id").to_owned();
        house.until(|| hub.json(&["schedule", "execution", &id])["execution"]["state"] != "running");
        newest.push((
            field(&hub.json(&["backup", "list", "--vm", "web", "--limit", "1"])["backups"][0], "backup_id").to_owned(),
            house.disks[0].bytes.clone(),
        ));
        // The merge comes after the execution, and the next backup must not need to wait for it.
        house.until(|| house.points(&[]).len() <= 2);
    }
    let kept = &newest[3..];
    assert_eq!(house.points(&[]), [kept[0].0.as_str(), &kept[1].0]);
    for (id, bytes) in kept {
        house.hub.ok(&["backup", "verify", id, "--deep"]);
        house.restores(id, bytes);
    }
    assert_eq!(house.hub.stop(), Some(0));
}

/// A disk was removed from the machine: its last point goes like any other, and its files with it.
#[test]
fn a_disk_that_was_removed_goes_with_its_last_point() {
    let mut house = House::new(34, &[4, 2]);
    let mut points = Vec::new();
    for number in 0..4 {
        if number == 2 {
            std::fs::remove_file(&house.disks[1].path).unwrap();
        }
        points.push(house.point(200_000, &[]));
    }
    let hub = &house.hub;
    let [a, b, c, d] = points.as_slice() else { panic!("four points") };
    // Who shortens the chain of one disk does not give the other up.
    let plan = hub.json(&["chain", "consolidate", "web", "--keep", "1", "--dry-run"]);
    let plan = &plan["consolidation"];
    assert_eq!((&plan["going"], &plan["held"]), (&serde_json::json!([c.0, a.0]), &serde_json::json!([b.0])));
    let plan = hub.json(&["backup", "merge", &b.0, "--dry-run"]);
    assert_eq!(plan["merge"]["dropped_disk_ids"], serde_json::json!([1]));
    assert_eq!(plan["merge"]["disk_ids"], serde_json::json!([0]));
    hub.ok(&["backup", "merge", &b.0, "--yes"]);
    assert_eq!(house.files_of(&b.0), 0);
    assert_eq!(house.points(&[]), [a.0.as_str(), &c.0, &d.0]);
    assert_eq!(house.points(&["--disk", "1"]), [a.0.as_str()]);
    hub.ok(&["backup", "merge", &a.0, "--yes"]);
    hub.fails(3, &["backup", "chain", "web", "--disk", "1"]);
    for (id, bytes) in [c, d] {
        hub.ok(&["backup", "verify", id, "--deep"]);
        house.restores(id, bytes);
    }
    let left = tree(&house.dir().join("repo")).into_iter().filter(|file| file.contains("disk-1")).collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?}");
    let found = hub.json(&["repo", "check", "main"]);
    assert_eq!(found["report"]["findings_total"], 0, "{found}");
    assert_eq!(house.hub.stop(), Some(0));
}

/// A disk was away for a backup, and stands on an older point than the other one since: that point goes all the same.
#[test]
fn a_disk_that_came_back_keeps_no_point() {
    let mut house = House::new(35, &[4, 2]);
    let (file, parked) = (house.disks[1].path.clone(), house.dir().join("disk1.raw"));
    let mut points = Vec::new();
    for number in 0..4 {
        house.write(900_000);
        match number {
            2 => std::fs::rename(&file, &parked).unwrap(),
            3 => {
                std::fs::rename(&parked, &file).unwrap();
                house.disks[1].write_somewhere(1000, &mut house.random);
            }
            _ => {}
        }
        let id = field(&house.hub.backup("web", &[]), "backup_id").to_owned();
        points.push((id, house.disks[0].bytes.clone(), house.disks[1].bytes.clone()));
    }
    let hub = &house.hub;
    let [a, b, c, d] = points.as_slice() else { panic!("four points") };
    let chain = |disk| house.points(&["--disk", disk]);
    assert_eq!(chain("1"), [a.0.as_str(), &b.0, &d.0]);
    let plan = hub.json(&["backup", "merge", &b.0, "--dry-run"])["merge"].clone();
    assert_eq!((field(&plan, "successor_id"), &plan["copied_to"]), (c.0.as_str(), &serde_json::json!([d.0])));
    assert_eq!((&plan["disk_ids"], &plan["dropped_disk_ids"]), (&serde_json::json!([0, 1]), &serde_json::json!([])));
    hub.ok(&["backup", "merge", &b.0, "--yes"]);
    assert_eq!(house.files_of(&b.0), 0);
    assert_eq!((chain("0"), chain("1")), (vec![a.0.clone(), c.0.clone(), d.0.clone()], vec![a.0.clone(), d.0.clone()]));
    hub.ok(&["backup", "merge", &a.0, "--yes"]);
    assert_eq!((chain("0"), chain("1")), (vec![c.0.clone(), d.0.clone()], vec![d.0.clone()]));
    let begins = hub.json(&["backup", "chain", "web", "--disk", "1"])["full_backup_id"].clone();
    for (id, first, _) in [c, d] {
        hub.ok(&["backup", "verify", id, "--deep"]);
        house.restores(id, first);
    }
    house.restores_disk((&d.0, "1"), &d.2);
    assert_eq!(hub.json(&["repo", "check", "main"])["report"]["findings_total"], 0);
    assert_eq!(begins, serde_json::json!(d.0));
    assert_eq!(house.hub.stop(), Some(0));
}
