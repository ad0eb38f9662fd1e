//! Points that go although later ones need them.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, field, path, tree};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

fn files_of(dir: &Path, id: &str) -> usize {
    tree(&dir.join("repo")).iter().filter(|file| file.contains(id)).count()
}

fn ids(chain: &Value) -> Vec<String> {
    chain["backups"].as_array().unwrap().iter().map(|backup| field(backup, "backup_id").to_owned()).collect()
}

/// Restores disk 0 of a point and compares it.
fn restores(hub: &Hub, dir: &Path, id: &str, bytes: &[u8]) {
    restores_disk(hub, dir, (id, "0"), bytes);
}

fn restores_disk(hub: &Hub, dir: &Path, (id, disk): (&str, &str), bytes: &[u8]) {
    let out = dir.join(format!("out-{id}"));
    let _ = std::fs::remove_file(&out);
    hub.ok(&["restore", "disk", id, "--disk", disk, "--to", path(&out), "--wait"]);
    assert_holds(&out, bytes);
    std::fs::remove_file(&out).unwrap();
}

/// A chain of a full and three incrementals with what each must give back.
fn chain(hub: &Hub, disk: &mut Disk, random: &mut Random) -> Vec<(String, Vec<u8>)> {
    let mut points = Vec::new();
    for kind in ["full", "incremental", "incremental", "incremental"] {
        disk.write_somewhere(300_000, random);
        let id = field(&hub.backup("web", &["--type", kind]), "backup_id").to_owned();
        points.push((id, disk.bytes.clone()));
    }
    points
}

#[test]
fn a_point_in_the_middle_goes_and_every_other_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(31);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 6 << 20, &mut random);
    Disk::create(&dir.join("vms/web/disk1.raw"), 3 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let points = chain(&hub, &mut disk, &mut random);
    let [a, b, c, d] = points.as_slice() else { panic!("four points") };

    // The plan changes nothing, and without a terminal nothing is asked and nothing done.
    let plan = hub.json(&["backup", "merge", &b.0, "--dry-run"]);
    assert_eq!((field(&plan["merge"], "successor_id"), &plan["merge"]["task_id"]), (c.0.as_str(), &Value::Null));
    assert_eq!(plan["merge"]["disk_ids"], serde_json::json!([0, 1]));
    hub.fails(1, &["backup", "merge", &b.0]);
    assert!(points.iter().all(|(id, _)| files_of(dir, id) > 0));
    let refused = hub.fails(4, &["backup", "merge", &d.0, "--yes"]);
    assert!(refused.contains("nothing stands on it"), "{refused}");
    hub.ok(&["backup", "protect", &b.0]);
    hub.fails(4, &["backup", "merge", &b.0, "--yes"]);
    hub.ok(&["backup", "unprotect", &b.0]);

    hub.ok(&["backup", "merge", &b.0, "--yes"]);
    assert_eq!(files_of(dir, &b.0), 0);
    hub.fails(3, &["backup", "show", &b.0]);
    assert_eq!(ids(&hub.json(&["backup", "chain", "web"])), [a.0.as_str(), &c.0, &d.0]);
    // The full goes too: its successor is one now.
    hub.ok(&["backup", "merge", &a.0, "--yes"]);
    let full = hub.json(&["backup", "show", &c.0]);
    assert_eq!((field(&full["backup"], "backup_type"), &full["backup"]["parent_backup_id"]), ("full", &Value::Null));
    assert_eq!(ids(&hub.json(&["backup", "chain", "web", "--disk", "1"])), [c.0.as_str(), &d.0]);
    for (id, bytes) in [c, d] {
        hub.ok(&["backup", "verify", id, "--deep"]);
        restores(&hub, dir, id, bytes);
    }
    // The chain goes on.
    disk.write_somewhere(100_000, &mut random);
    let next = hub.backup("web", &[]);
    assert_eq!(field(&next, "backup_type"), "incremental");
    restores(&hub, dir, field(&next, "backup_id"), &disk.bytes);
    assert_eq!(hub.stop(), Some(0));

    // A catalog that is made of the manifests alone says the same.
    let other = tempfile::tempdir().unwrap();
    let second = Hub::launch(other.path(), "second", &["--allow-path", path(dir)]).unwrap();
    second.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    second.ok(&["repo", "import", "main"]);
    assert_eq!(ids(&second.json(&["backup", "chain", "web"])), [c.0.as_str(), &d.0, field(&next, "backup_id")]);
    assert_eq!(second.stop(), Some(0));
}

/// Killed at any moment of a merge: the next start ends it or removes it, and no point that stays has lost a byte.
#[test]
fn a_merge_that_is_killed_is_whole_or_never_was() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(32);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 24 << 20, &mut random);
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut points = chain(&hub, &mut disk, &mut random);
    for delay_ms in [0, 20, 60, 120, 250, 500] {
        let going = points[1].0.clone();
        hub.ok(&["backup", "merge", &going, "--yes", "--no-wait"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        hub.kill_9();
        drop(hub);
        hub = Hub::start(dir);
        // One that had not begun when the hub died begins now.
        let waits = |task: &Value| ["pending", "running"].contains(&field(task, "state"));
        until(&hub, || !hub.json(&["task", "list"])["tasks"].as_array().unwrap().iter().any(waits));
        // What the dead one left is put in order while the next one serves already.
        until(&hub, || {
            let is_there = ids(&hub.json(&["backup", "chain", "web"])).contains(&going);
            let prepared = tree(&dir.join("repo")).iter().any(|file| file.contains(".merge-"));
            !prepared && is_there == (files_of(dir, &going) > 0)
        });
        let left = ids(&hub.json(&["backup", "chain", "web"]));
        let whole: Vec<String> = points.iter().map(|(id, _)| id.clone()).collect();
        if left != whole {
            points.remove(1);
        }
        assert_eq!(left, points.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
        for (id, bytes) in &points {
            restores(&hub, dir, id, bytes);
        }
        if points.len() == 4 {
            continue;
        }
        disk.write_somewhere(200_000, &mut random);
        points.push((field(&hub.backup("web", &[]), "backup_id").to_owned(), disk.bytes.clone()));
    }
    assert_eq!(hub.stop(), Some(0));
}

/// Incrementals for ever under a policy that keeps the last two: the chain does not grow, and gives space back.
#[test]
fn a_policy_merges_what_no_rule_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(33);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 4 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.ok(&["policy", "create", "two", "--vm", "web", "--repo", "main", "--keep-last", "2"]);
    hub.ok(&["schedule", "create", "yearly", "--policy", "two", "--cron", "0 0 1 1 *"]);
    let mut newest = Vec::new();
    for _ in 0..5 {
        disk.write_somewhere(100_000, &mut random);
        let begun = hub.json(&["schedule", "trigger", "yearly"])["execution"].clone();
        let id = field(&begun, "execution_id").to_owned();
        until(&hub, || hub.json(&["schedule", "execution", &id])["execution"]["state"] != "running");
        newest.push((
            field(&hub.json(&["backup", "list", "--vm", "web", "--limit", "1"])["backups"][0], "backup_id").to_owned(),
            disk.bytes.clone(),
        ));
        // The merge comes after the execution, and the next backup must not need to wait for it.
        until(&hub, || ids(&hub.json(&["backup", "chain", "web"])).len() <= 2);
    }
    let kept = &newest[3..];
    assert_eq!(ids(&hub.json(&["backup", "chain", "web"])), [kept[0].0.as_str(), &kept[1].0]);
    for (id, bytes) in kept {
        hub.ok(&["backup", "verify", id, "--deep"]);
        restores(&hub, dir, id, bytes);
    }
    assert_eq!(hub.stop(), Some(0));
}

/// A disk was removed from the machine: its last point goes like any other, and its files with it.
#[test]
fn a_disk_that_was_removed_goes_with_its_last_point() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(34);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 4 << 20, &mut random);
    Disk::create(&dir.join("vms/web/disk1.raw"), 2 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut points = Vec::new();
    for number in 0..4 {
        if number == 2 {
            std::fs::remove_file(dir.join("vms/web/disk1.raw")).unwrap();
        }
        disk.write_somewhere(200_000, &mut random);
        points.push((field(&hub.backup("web", &[]), "backup_id").to_owned(), disk.bytes.clone()));
    }
    let [a, b, c, d] = points.as_slice() else { panic!("four points") };
    // Who shortens the chain of one disk does not give the other up.
    let plan = hub.json(&["chain", "consolidate", "web", "--keep", "1", "--dry-run"]);
    let plan = &plan["consolidation"];
    assert_eq!((&plan["going"], &plan["held"]), (&serde_json::json!([c.0, a.0]), &serde_json::json!([b.0])));
    let plan = hub.json(&["backup", "merge", &b.0, "--dry-run"]);
    assert_eq!(plan["merge"]["dropped_disk_ids"], serde_json::json!([1]));
    assert_eq!(plan["merge"]["disk_ids"], serde_json::json!([0]));
    hub.ok(&["backup", "merge", &b.0, "--yes"]);
    assert_eq!(files_of(dir, &b.0), 0);
    assert_eq!(ids(&hub.json(&["backup", "chain", "web"])), [a.0.as_str(), &c.0, &d.0]);
    assert_eq!(ids(&hub.json(&["backup", "chain", "web", "--disk", "1"])), [a.0.as_str()]);
    hub.ok(&["backup", "merge", &a.0, "--yes"]);
    hub.fails(3, &["backup", "chain", "web", "--disk", "1"]);
    for (id, bytes) in [c, d] {
        hub.ok(&["backup", "verify", id, "--deep"]);
        restores(&hub, dir, id, bytes);
    }
    let left = tree(&dir.join("repo")).into_iter().filter(|file| file.contains("disk-1")).collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?}");
    let found = hub.json(&["repo", "check", "main"]);
    assert_eq!(found["report"]["findings_total"], 0, "{found}");
    assert_eq!(hub.stop(), Some(0));
}

/// A disk was away for a backup, and stands on an older point than the other one since: that point goes all the same.
#[test]
fn a_disk_that_came_back_keeps_no_point() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(35);
    let (file, parked) = (dir.join("vms/web/disk1.raw"), dir.join("disk1.raw"));
    let mut first = Disk::create(&dir.join("vms/web/disk0.raw"), 4 << 20, &mut random);
    let mut second = Disk::create(&file, 2 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut points = Vec::new();
    for number in 0..4 {
        first.write_somewhere(900_000, &mut random);
        match number {
            2 => std::fs::rename(&file, &parked).unwrap(),
            3 => {
                std::fs::rename(&parked, &file).unwrap();
                second.write_somewhere(1000, &mut random);
            }
            _ => {}
        }
        let id = field(&hub.backup("web", &[]), "backup_id").to_owned();
        points.push((id, first.bytes.clone(), second.bytes.clone()));
    }
    let [a, b, c, d] = points.as_slice() else { panic!("four points") };
    let chain = |disk| ids(&hub.json(&["backup", "chain", "web", "--disk", disk]));
    assert_eq!(chain("1"), [a.0.as_str(), &b.0, &d.0]);
    let plan = hub.json(&["backup", "merge", &b.0, "--dry-run"])["merge"].clone();
    assert_eq!((field(&plan, "successor_id"), &plan["copied_to"]), (c.0.as_str(), &serde_json::json!([d.0])));
    assert_eq!((&plan["disk_ids"], &plan["dropped_disk_ids"]), (&serde_json::json!([0, 1]), &serde_json::json!([])));
    hub.ok(&["backup", "merge", &b.0, "--yes"]);
    assert_eq!(files_of(dir, &b.0), 0);
    assert_eq!((chain("0"), chain("1")), (vec![a.0.clone(), c.0.clone(), d.0.clone()], vec![a.0.clone(), d.0.clone()]));
    hub.ok(&["backup", "merge", &a.0, "--yes"]);
    assert_eq!((chain("0"), chain("1")), (vec![c.0.clone(), d.0.clone()], vec![d.0.clone()]));
    let begins = hub.json(&["backup", "chain", "web", "--disk", "1"])["full_backup_id"].clone();
    for (id, first, _) in [c, d] {
        hub.ok(&["backup", "verify", id, "--deep"]);
        restores(&hub, dir, id, first);
    }
    restores_disk(&hub, dir, (&d.0, "1"), &d.2);
    assert_eq!(hub.json(&["repo", "check", "main"])["report"]["findings_total"], 0);
    assert_eq!(begins, serde_json::json!(d.0));
    assert_eq!(hub.stop(), Some(0));
}

fn until(hub: &Hub, mut done: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < patience, "hub log:\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}
