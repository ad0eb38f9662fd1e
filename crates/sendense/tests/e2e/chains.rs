//! Chains that are too long: shorter on demand, and bounded by themselves.

use crate::disk::{Disk, Random, assert_holds};
use crate::files::point;
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

fn restored(hub: &Hub, dir: &Path, id: &str, bytes: &[u8]) {
    let out = dir.join(format!("out-{id}"));
    hub.ok(&["restore", "disk", id, "--disk", "0", "--to", path(&out), "--wait"]);
    assert_holds(&out, bytes);
    std::fs::remove_file(out).unwrap();
}

fn chain(hub: &Hub) -> Vec<String> {
    let chain = hub.json(&["backup", "chain", "web"]);
    chain["backups"].as_array().unwrap().iter().map(|one| field(one, "backup_id").to_owned()).collect()
}

fn ids(of: &Value) -> Vec<&str> {
    of.as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect()
}

#[test]
fn a_chain_is_made_shorter_on_demand_and_a_full_is_made_without_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(61);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 3 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut known = Vec::new();
    for _ in 0..6 {
        disk.write_somewhere(200_000, &mut random);
        known.push((point(&hub), disk.bytes.clone()));
    }
    let id = |number: usize| known[number].0.as_str();
    hub.ok(&["backup", "protect", id(1)]);
    let plan = hub.json(&["chain", "consolidate", "web", "--keep", "3", "--dry-run"])["consolidation"].clone();
    assert_eq!((ids(&plan["going"]), ids(&plan["held"])), (vec![id(2), id(0)], vec![id(1)]), "{plan:#}");
    assert_eq!((&plan["task_id"], &plan["backup_count"]), (&Value::Null, &6.into()));
    assert_eq!(chain(&hub).len(), 6, "a plan changes nothing");
    hub.ok(&["chain", "consolidate", "web", "--keep", "3", "--yes"]);
    assert_eq!(chain(&hub), [id(1), id(3), id(4), id(5)]);
    let said = hub.ok(&["chain", "consolidate", "web", "--keep", "4", "--yes"]);
    assert!(said.contains("nothing is to be done"), "{said}");

    // The machine is gone: what lies there is enough for a full.
    std::fs::remove_dir_all(dir.join("vms/web")).unwrap();
    hub.ok(&["chain", "consolidate", "web", "--full", "--yes"]);
    assert_eq!(chain(&hub), [id(5)]);
    let newest = hub.json(&["backup", "show", id(5)])["backup"].clone();
    assert_eq!((field(&newest, "backup_type"), &newest["parent_backup_id"]), ("full", &Value::Null));
    for number in [1, 3, 4, 5] {
        hub.ok(&["backup", "verify", id(number), "--deep"]);
        restored(&hub, dir, id(number), &known[number].1);
    }
    // Nothing stands on the old chain any more.
    hub.ok(&["backup", "unprotect", id(1)]);
    hub.ok(&["backup", "delete", id(1), "--cascade", "--yes"]);
    restored(&hub, dir, id(5), &known[5].1);
    for file in tree(&dir.join("repo")).iter().filter(|file| file.ends_with(".qcow2")) {
        tool("qemu-utils", "qemu-img", &["check", "-q", path(&dir.join("repo").join(file))]);
    }
    hub.fails(2, &["chain", "consolidate", "web", "--full", "--keep", "3"]);
    hub.fails(3, &["chain", "consolidate", "nobody"]);
    assert_eq!(hub.json(&["repo", "check", "main"])["report"]["findings_total"], 0);
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn a_chain_that_is_too_long_ends_by_itself_and_no_point_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(62);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut random);
    let hub = Hub::launch(dir, "hub", &["--chain-points-max", "3"]).unwrap();
    hub.set_up_images(dir);
    // However full the file system of the tests is, it is not what keeps a chain long here.
    hub.ok(&["repo", "update", "main", "--low-percent", "100", "--critical-percent", "100"]);
    let mut known = Vec::new();
    for number in 1..=8 {
        disk.write_somewhere(100_000, &mut random);
        known.push((point(&hub), disk.bytes.clone()));
        // The fourth and the seventh: a chain of three, and one more.
        let expected = if number % 3 == 1 { 1 } else { (number - 1) % 3 + 1 };
        let patience = Instant::now() + PATIENCE;
        while chain(&hub).len() != expected {
            assert!(Instant::now() < patience, "{number}: {:?}\n{}", chain(&hub), hub.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(hub.json(&["backup", "list", "--status", "completed"])["total"], known.len());
    for (id, bytes) in &known {
        restored(&hub, dir, id, bytes);
    }
    let tasks = hub.json(&["task", "list"]);
    let made = tasks["tasks"].as_array().unwrap().iter().filter(|task| task["kind"] == "consolidate");
    let made: Vec<_> = made.map(|task| (field(task, "state"), field(task, "requested_by"))).collect();
    assert_eq!(made, [("completed", "chain bound"); 2]);
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn a_policy_bounds_the_chains_that_it_makes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(63);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 1 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.ok(&["repo", "update", "main", "--low-percent", "100", "--critical-percent", "100"]);
    hub.ok(&["policy", "create", "short", "--vm", "*", "--repo", "main", "--chain-points-max", "2"]);
    for (option, wrong) in [("--chain-points-max", "0"), ("--chain-points-max", "1"), ("--verify-deep", "4000")] {
        let told = hub.fails(2, &["policy", "create", "none", "--vm", "*", "--repo", "main", option, wrong]);
        assert!(told.contains(option), "{told}");
    }
    let shown = hub.ok(&["policy", "show", "short"]);
    assert!(shown.lines().any(|line| line.starts_with("chain points:") && line.ends_with(" 2")), "{shown}");
    assert!(shown.lines().any(|line| line.ends_with("after 30 days (as the hub says)")), "{shown}");
    let planned = |bound: &str| {
        let plan = hub.json(&["policy", "plan", "--vm", "*", "--repo", "main", "--chain-points-max", bound]);
        let vm = &plan["plan"]["vms"][0];
        (vm["chain_points"].as_u64(), vm["ends_chain"].as_bool(), plan["plan"]["chains_ended"].as_u64())
    };
    hub.ok(&["schedule", "create", "yearly", "--policy", "short", "--cron", "0 0 1 1 *"]);
    // The hub's own bound is sixty points; the third of the policy becomes a full.
    for expected in [1, 2, 1] {
        disk.write_somewhere(100_000, &mut random);
        hub.ok(&["schedule", "trigger", "yearly"]);
        let patience = Instant::now() + PATIENCE;
        while hub.json(&["schedule", "executions", "yearly"])["executions"][0]["state"] == "running"
            || chain(&hub).len() != expected
        {
            assert!(Instant::now() < patience, "{expected}: {}", hub.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let ends = expected == 2;
        assert_eq!(planned("2"), (Some(expected as u64), Some(ends), Some(ends.into())));
        assert_eq!(planned("3"), (Some(expected as u64), Some(false), Some(0)));
    }
    let newest = hub.json(&["backup", "list", "--vm", "web"])["backups"][0].clone();
    assert_eq!(field(&newest, "backup_type"), "full");
    restored(&hub, dir, field(&newest, "backup_id"), &disk.bytes);

    // The same from a file, where what is left out is as the hub says.
    let file = dir.join("policies.toml");
    let write = |said: &str| {
        let text = format!("[[policies]]\nname = \"short\"\nvms = [\"*\"]\nrepository_id = \"main\"\n{said}\n");
        std::fs::write(&file, text).unwrap();
    };
    write("chain_points_max = 9\n[policies.verification]\ndeep_days = 90");
    let apply = || hub.json(&["policy", "apply", "-f", path(&file), "--yes"])["changes"].as_array().unwrap().len();
    assert_eq!((apply(), apply()), (1, 0));
    let policy = hub.json(&["policy", "show", "short"])["policy"].clone();
    assert_eq!(policy["rules"]["verification"], serde_json::json!({ "deep_days": 90 }));
    let in_force = serde_json::json!({ "chain_points_max": 9, "at_rest_days": 30, "deep_days": 90 });
    assert_eq!(policy["in_force"], in_force);
    for (wrong, named) in [("chain_points_max = 0", "chain_points_max"), ("verification = {}", "verification")] {
        write(wrong);
        let told = hub.fails(2, &["policy", "apply", "-f", path(&file), "--yes"]);
        assert!(told.contains(named), "{told}");
    }
    assert_eq!(hub.json(&["policy", "show", "short"])["policy"]["in_force"], in_force);
    assert_eq!(hub.stop(), Some(0));
}
