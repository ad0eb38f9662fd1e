//! Pruning: the plan, exactly the plan, and what stands in its way.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, cli, field, path, tree};
use serde_json::Value;
use std::path::Path;

/// What a prune says of a point: its fate and the reason.
fn said<'a>(prune: &'a Value, id: &str) -> (&'a str, &'a str) {
    let backups = prune["prune"]["backups"].as_array().unwrap();
    let entry = backups.iter().find(|entry| entry["backup_id"] == id).unwrap();
    (field(entry, "fate"), field(entry, "reason"))
}

fn files_of(dir: &Path, id: &str) -> usize {
    tree(&dir.join("repo")).iter().filter(|file| file.contains(id)).count()
}

#[test]
fn a_prune_deletes_what_its_plan_says_and_nothing_that_is_needed_or_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(23);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 6 << 20, &mut random);
    Disk::create(&dir.join("vms/web/disk1.raw"), 3 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    // Three chains of two points, and one point of a single disk on top of the last.
    let mut points = Vec::new();
    for kind in ["full", "incremental", "full", "incremental", "full", "incremental"] {
        disk.write_somewhere(300_000, &mut random);
        points.push(field(&hub.backup("web", &["--type", kind]), "backup_id").to_owned());
    }
    let bytes = disk.bytes.clone();
    disk.write_somewhere(300_000, &mut random);
    points.push(field(&hub.backup("web", &["--disk", "1"]), "backup_id").to_owned());
    let [a, a1, b, b1, c, c1, partial] = points.as_slice() else { panic!("seven points") };

    let keep_last_1 = ["prune", "web", "--keep-last", "1"];
    let plan = hub.json(&[&keep_last_1[..], &["--dry-run"]].concat());
    for id in [a, a1, b, b1] {
        assert_eq!(said(&plan, id), ("delete", "no rule keeps it"));
    }
    assert_eq!(said(&plan, c), ("needed", format!("needed by {c1}").as_str()));
    assert_eq!(said(&plan, c1), ("keep", "keep-last 1 of 1"));
    assert_eq!(said(&plan, partial), ("keep", "keep-last 1 of 1"));
    assert_eq!((&plan["prune"]["deleted"], &plan["prune"]["kept"]), (&4.into(), &3.into()));
    assert!(points.iter().all(|id| files_of(dir, id) > 0), "a plan deletes nothing");
    let shown = hub.ok(&[&keep_last_1[..], &["--dry-run"]].concat());
    assert!(shown.contains(&format!("needed by {c1}")), "{shown}");
    // Without a terminal nothing is asked, and nothing is done unasked.
    hub.fails(1, &keep_last_1);
    assert!(points.iter().all(|id| files_of(dir, id) > 0));

    // Another plan than the one that was seen is not carried out.
    let seen = field(&plan["prune"], "plan_id").to_owned();
    let other = hub.json(&["prune", "web", "--keep-last", "3", "--dry-run"])["prune"]["plan_id"].clone();
    assert_ne!(other, seen.as_str());
    let refused = hub.fails(4, &["prune", "web", "--keep-last", "3", "--plan", &seen, "--yes"]);
    assert!(refused.contains("the plan is out of date"), "{refused}");

    // What is exported stays, and what it stands on; the rest goes, though not under the name of the plan from before.
    let export = hub.json(&["export", b1, "--disk", "0"])["export"].clone();
    hub.fails(4, &[&keep_last_1[..], &["--plan", &seen, "--yes"]].concat());
    assert!(points.iter().all(|id| files_of(dir, id) > 0));
    let done = hub.json(&[&keep_last_1[..], &["--yes"]].concat());
    let (fate, reason) = said(&done, b1);
    assert!(fate == "in_use" && reason.contains(field(&export, "export_id")), "{fate}: {reason}");
    assert_eq!(said(&done, b), ("needed", format!("needed by {b1}").as_str()));
    assert_eq!((said(&done, a).0, said(&done, a1).0), ("delete", "delete"));
    assert_eq!((files_of(dir, a), files_of(dir, a1)), (0, 0));
    hub.fails(3, &["backup", "show", a]);
    hub.ok(&["backup", "show", b1]);
    hub.ok(&["unexport", field(&export, "export_id")]);

    // Nor does one whose files somebody browses, or that such a one stands on.
    let mount = hub.json(&["mount", b1, "--disk", "0"]);
    let mount_id = field(&mount, "mount_id").to_owned();
    let done = hub.json(&[&keep_last_1[..], &["--yes"]].concat());
    let (fate, reason) = said(&done, b1);
    assert!(fate == "in_use" && reason.contains(&mount_id), "{fate}: {reason}");
    assert_eq!(said(&done, b), ("needed", format!("needed by {b1}").as_str()));
    assert!(files_of(dir, b) > 0 && files_of(dir, b1) > 0);
    hub.ok(&["umount", &mount_id]);

    // Nor does a point go on which a recovery runs.
    hub.ok(&["recover", "instant", b, "--name", "r"]);
    let recovered = hub.json(&[&keep_last_1[..], &["--dry-run"]].concat());
    assert_eq!(said(&recovered, b).0, "in_use", "{recovered}");
    assert_eq!(said(&recovered, b1).0, "delete");
    hub.ok(&["recover", "discard", "r", "--yes"]);

    // Once it is free it goes too, and doing it again does nothing.
    let done = hub.json(&[&keep_last_1[..], &["--yes"]].concat());
    assert_eq!((said(&done, b).0, said(&done, b1).0), ("delete", "delete"));
    let backups = done["prune"]["backups"].as_array().unwrap().iter();
    let going = backups.filter(|entry| entry["fate"] == "delete").map(|entry| entry["bytes_stored"].as_u64().unwrap());
    assert_eq!(done["prune"]["freed_bytes"].as_u64().unwrap(), going.sum::<u64>());
    assert_eq!((files_of(dir, b), files_of(dir, b1)), (0, 0));
    let again = hub.json(&[&keep_last_1[..], &["--yes"]].concat());
    assert_eq!((&again["prune"]["deleted"], &again["prune"]["kept"]), (&0.into(), &3.into()));
    assert_eq!(hub.json(&["backup", "list", "--vm", "web"])["total"], 3);

    // What stays is whole, and the next backup goes on from it.
    hub.ok(&["backup", "verify", c1, "--deep"]);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", c1, "--disk", "0", "--to", path(&out), "--wait"]);
    assert_holds(&out, &bytes);
    let next = hub.backup("web", &[]);
    assert_eq!(field(&next, "backup_type"), "incremental");

    // A policy that keeps nothing, a zone that is none, a repository and a machine that are none.
    let refused = hub.fails(2, &["prune", "web", "--keep-last", "0", "--yes"]);
    assert!(refused.contains("a rule that keeps something"), "{refused}");
    let refused = hub.fails(2, &["prune", "web", "--keep-last", "1", "--time-zone", "Mars/Base", "--yes"]);
    assert!(refused.contains("Mars/Base"), "{refused}");
    hub.fails(3, &["prune", "nobody", "--keep-last", "1", "--yes"]);
    hub.fails(3, &["prune", "web", "--keep-last", "1", "--repo", "none", "--yes"]);
    // All of today's points are of one day, month and year, and young.
    let days = hub.json(&["prune", "web", "--keep-yearly", "3", "--minimum-age-hours", "1", "--dry-run"]);
    assert_eq!(days["prune"]["deleted"], 0);
    assert_eq!(said(&days, field(&next, "backup_id")), ("keep", "keep-yearly 1 of 3"));
    assert!(said(&days, c).1.starts_with("younger than the minimum age until "));
    assert_eq!(hub.stop(), Some(0));
}

/// What is wrong with one machine's files is told of that machine, and the others' points go.
#[test]
fn a_policy_prunes_past_a_machine_whose_manifest_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(24);
    for vm in ["db", "web"] {
        Disk::create(&dir.join(format!("vms/{vm}/disk0.raw")), 1 << 20, &mut random);
    }
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.ok(&["policy", "create", "gold", "--vm", "*", "--repo", "main", "--keep-last", "1"]);
    let made = |vm: &str| field(&hub.backup(vm, &["--type", "full"]), "backup_id").to_owned();
    let [db, web] = ["db", "web"].map(|vm| [made(vm), made(vm)]);
    let name = tree(&dir.join("repo")).into_iter().find(|file| file.ends_with(&format!("/{}.json", db[0]))).unwrap();
    let manifest = dir.join("repo").join(&name);
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();

    let prune = |how: &[&'static str]| [&["policy", "prune", "gold"], how].concat();
    let told = hub.fails(1, &prune(&["--dry-run"]));
    assert!(told.contains("would delete 1 points of 1 VMs"), "{told}");
    let of_db = |told: &str| {
        let line = told.lines().find(|line| line.contains("db is not pruned: ")).unwrap_or_else(|| panic!("{told}"));
        let says =
            ["code corrupt: whoever runs the hub, the repository", manifest.file_name().unwrap().to_str().unwrap()];
        assert!(says.iter().all(|words| line.contains(words)), "{line}");
    };
    of_db(&told);
    let output = hub.run(&prune(&["--yes", "--json"]));
    assert_eq!(output.status.code(), Some(1));
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = |list: &str| {
        let of = done[list].as_array().unwrap().iter();
        of.map(|vm| field(vm, "vm_name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((names("prunes"), names("not_pruned")), (vec!["web".to_owned()], vec!["db".to_owned()]), "{done:#}");
    assert_eq!(done["not_pruned"][0]["code"], "corrupt");
    let left = |[older, newer]: &[String; 2]| (files_of(dir, older) > 0, files_of(dir, newer) > 0);
    assert_eq!((left(&web), left(&db)), ((false, true), (true, true)));
    of_db(&hub.fails(1, &prune(&["--yes"])));

    // Once somebody has acted, nothing is left.
    std::fs::write(&manifest, &whole).unwrap();
    let done = hub.json(&prune(&["--yes"]));
    assert_eq!(done["not_pruned"], serde_json::json!([]), "{done:#}");
    assert_eq!((left(&web), left(&db)), ((false, true), (false, true)));
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn rules_are_played_ahead_without_a_hub() {
    let nowhere =
        |args: &[&str]| cli("http://127.0.0.1:9", None).args(["retention", "simulate"]).args(args).output().unwrap();
    let sizes = ["--full", "1000", "--incremental", "10", "--years", "1"];
    let output = nowhere(&[&["--keep-last", "3", "--full-every", "1", "--points", "--json"], &sizes[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let played: Value = serde_json::from_slice(&output.stdout).unwrap();
    let days = played["standings"].as_array().unwrap();
    assert_eq!(days.len(), 13, "twelve months of 30 days, and the last day");
    let last = days.last().unwrap();
    assert_eq!((&last["kept"], &last["needed"], &last["bytes_stored"]), (&3.into(), &0.into(), &3000.into()));
    assert_eq!(played["peak"]["bytes_stored"], 3000);
    let reasons: Vec<&str> = played["points"].as_array().unwrap().iter().map(|point| field(point, "reason")).collect();
    assert_eq!(reasons, ["keep-last 3 of 3", "keep-last 2 of 3", "keep-last 1 of 3"]);
    // Of incrementals for ever what no rule keeps is merged; where fulls are made, it stays until its chain goes. A person is told what is
    // not in the figures.
    let last_of = |args: &[&str]| {
        let output = nowhere(&[args, &sizes[..]].concat());
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let last: Vec<String> = table.lines().last().unwrap().split_whitespace().map(str::to_owned).collect();
        (last[1..4].to_vec(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (last, said) = last_of(&["--keep-last", "3"]);
    assert_eq!(last, ["3", "0", "3"]);
    assert!(said.contains("while a merge works, it needs room"), "{said}");
    let (last, said) = last_of(&["--keep-last", "3", "--full-every", "1000", "--chain-points", "0"]);
    assert_eq!(last, ["3", "362", "365"]);
    assert!(said.contains("without --full-every they are merged") && !said.contains("while a merge works"), "{said}");
    assert_eq!(nowhere(&[&["--keep-last", "0"], &sizes[..]].concat()).status.code(), Some(1));
}
