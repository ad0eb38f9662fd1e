//! Policies and schedules: who is protected, when, and what became of it.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, cli, field, path};
use crate::servers;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long something may take on a machine that has other things to do: a lease, a pause before another try, and the backup of
/// some MiB.
const PATIENCE: Duration = Duration::from_secs(240);

/// The execution, once it has ended.
fn ended(hub: &Hub, execution_id: &str) -> Value {
    let patience = Instant::now() + PATIENCE;
    loop {
        let execution = hub.json(&["schedule", "execution", execution_id])["execution"].clone();
        if execution["state"] != "running" {
            return execution;
        }
        assert!(Instant::now() < patience, "{execution}\nhub log:\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn triggered(hub: &Hub, schedule: &str) -> Value {
    let execution = hub.json(&["schedule", "trigger", schedule])["execution"].clone();
    ended(hub, field(&execution, "execution_id"))
}

/// Name and outcome of each machine.
fn outcomes(execution: &Value) -> Vec<(&str, &str)> {
    let vms = execution["vms"].as_array().unwrap();
    vms.iter().map(|vm| (field(vm, "vm_name"), field(vm, "outcome"))).collect()
}

#[test]
fn a_policy_protects_what_bears_a_tag_or_lies_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(43);
    for vm in ["web-1", "web-2", "db-1"] {
        Disk::create(&dir.join(format!("vms/{vm}/disk0.raw")), 1 << 20, &mut random);
    }
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let vms = path(&dir.join("vms")).to_owned();
    assert_eq!(hub.json(&["vm", "show", "db-1"])["vm"]["folder"], vms.as_str());

    hub.ok(&["vm", "tag", "web-1", "+prod", "+env=eu"]);
    assert_eq!(hub.ok(&["vm", "tag", "web-1", "-env=eu", "+eu"]).trim(), "eu prod");
    hub.fails(2, &["vm", "tag", "web-1", "prod"]);
    hub.fails(2, &["vm", "tag", "web-1", "+a b"]);
    hub.fails(3, &["vm", "tag", "web-9", "+prod"]);
    // What is protected follows tags, so who only operates cannot change them.
    let token = dir.join("operator");
    std::fs::write(&token, hub.ok(&["token", "create", "--name", "o", "--role", "operator"])).unwrap();
    let refused = cli(&hub.url, Some(&token)).args(["vm", "tag", "web-2", "+prod"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let listed = hub.json(&["vm", "list", "--tag", "prod"]);
    assert_eq!((&listed["total"], field(&listed["vms"][0], "vm_name")), (&serde_json::json!(1), "web-1"));

    let planned = |args: &[&str]| {
        let plan = hub.json(&[&["policy", "plan", "--repo", "main"], args].concat())["plan"].clone();
        let names = plan["vms"].as_array().unwrap().iter().map(|vm| field(vm, "vm_name").to_owned());
        (names.collect::<Vec<_>>(), plan["unmatched"].clone())
    };
    let nothing = serde_json::json!([]);
    assert_eq!(planned(&["--tag", "prod"]), (vec!["web-1".to_owned()], nothing));
    assert_eq!(planned(&["--vm", "db*", "--tag", "prod", "--tag", "x"]), (Vec::new(), serde_json::json!(["tag x"])));
    assert_eq!(planned(&["--folder", path(dir), "--exclude-tag", "prod"]).0, ["db-1", "web-2"]);
    let other = format!("folder {vms}x");
    assert_eq!(planned(&["--folder", &format!("{vms}x")]), (Vec::new(), serde_json::json!([other])));
    hub.fails(2, &["policy", "plan", "--repo", "main"]);
    hub.fails(2, &["policy", "plan", "--repo", "main", "--folder", "//"]);

    // From a file, twice; and what comes to bear the tag later is protected without a word to the policy.
    let file = dir.join("policies.toml");
    let text = "[[policies]]\nname = \"gold\"\nvms = [\"*\"]\ntags = [\"prod\"]\nrepository_id = \"main\"\n\
                [[schedules]]\nname = \"yearly\"\npolicy_id = \"gold\"\ncron = \"0 0 1 1 *\"\n";
    std::fs::write(&file, text).unwrap();
    let apply = || hub.json(&["policy", "apply", "-f", path(&file), "--yes"])["changes"].as_array().unwrap().len();
    assert_eq!((apply(), apply()), (2, 0));
    assert_eq!(outcomes(&triggered(&hub, "yearly")), [("web-1", "completed")]);
    hub.ok(&["vm", "tag", "web-1", "-prod"]);
    hub.ok(&["vm", "tag", "db-1", "+prod"]);
    // A machine keeps its tags through a discovery, and under another name.
    std::fs::write(dir.join("vms/db-1/vm.toml"), "name = \"database\"\n").unwrap();
    hub.ok(&["source", "discover", "images"]);
    assert_eq!(outcomes(&triggered(&hub, "yearly")), [("database", "completed")]);
    assert_eq!(hub.json(&["vm", "show", "database"])["vm"]["tags"], serde_json::json!(["prod"]));
}

#[test]
fn a_policy_protects_what_matches_also_what_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(41);
    for vm in ["web-1", "web-2", "test-1"] {
        Disk::create(&dir.join(format!("vms/{vm}/disk0.raw")), 2 << 20, &mut random);
    }
    let hub = Hub::start(dir);
    hub.set_up_images(dir);

    // What it would do is told before it is saved, and nothing of it is done.
    let gold = ["--vm", "*", "--exclude", "test-*", "--repo", "main", "--full-every", "2", "--keep-last", "1"];
    let plan = hub.json(&[&["policy", "plan", "--vm", "db-*"], &gold[..]].concat());
    let planned = plan["plan"]["vms"].as_array().unwrap();
    assert_eq!(planned.iter().map(|vm| field(vm, "vm_name")).collect::<Vec<_>>(), ["web-1", "web-2"]);
    assert!(planned.iter().all(|vm| vm["next_type"] == "full"), "{plan}");
    assert_eq!(plan["plan"]["unmatched"], serde_json::json!(["db-*"]));
    assert_eq!(hub.json(&["policy", "list"])["total"], 0);
    hub.ok(&[&["policy", "create", "gold"], &gold[..]].concat());
    hub.fails(4, &[&["policy", "create", "gold"], &gold[..]].concat());
    // A change is planned, and done after a yes only.
    let narrower = ["--vm", "web-1", "--repo", "main"];
    let plan = hub.json(&[&["policy", "plan", "--policy", "gold"], &narrower[..]].concat())["plan"].clone();
    assert_eq!(plan["no_longer"][0]["vm_name"], "web-2", "{plan:#}");
    let told = hub.fails(1, &[&["policy", "update", "gold"], &narrower[..]].concat());
    assert!(told.contains("1 VMs would not be meant any more: web-2") && told.contains("--yes"), "{told}");
    let meant = || hub.json(&["policy", "show", "gold"])["policy"]["rules"]["vms"].clone();
    assert_eq!(meant(), serde_json::json!(["*"]));
    hub.ok(&[&["policy", "update", "gold", "--yes"], &narrower[..]].concat());
    assert_eq!(meant(), serde_json::json!(["web-1"]));
    hub.ok(&[&["policy", "update", "gold", "--yes"], &gold[..]].concat());
    hub.fails(3, &["policy", "create", "other", "--vm", "*", "--repo", "none"]);
    hub.fails(
        2,
        &["policy", "create", "other", "--vm", "*", "--repo", "main", "--keep-last", "1", "--time-zone", "X/Y"],
    );

    hub.ok(&[
        "schedule",
        "create",
        "yearly",
        "--policy",
        "gold",
        "--cron",
        "0 0 1 1 *",
        "--time-zone",
        "Europe/Berlin",
    ]);
    hub.fails(2, &["schedule", "create", "never", "--policy", "gold", "--cron", "0 0 30 2 *"]);
    hub.fails(3, &["schedule", "create", "x", "--policy", "none", "--every", "1d"]);
    hub.fails(4, &["policy", "delete", "gold", "--yes"]);
    let needed = hub.fails(4, &["repo", "delete", "main"]);
    assert!(needed.contains("policy gold"), "{needed}");
    let preview = hub.json(&["schedule", "preview", "yearly", "--days", "366"]);
    let due: Vec<&str> = preview["occurrences"].as_array().unwrap().iter().map(|one| field(one, "due_at")).collect();
    assert!(due.len() == 1 && due[0].ends_with("-12-31T23:00:00Z"), "midnight in Berlin: {due:?}");

    let first = triggered(&hub, "yearly");
    assert_eq!(field(&first, "state"), "completed", "{first}");
    assert_eq!(outcomes(&first), [("web-1", "completed"), ("web-2", "completed")]);
    let point = field(&first["vms"][0], "backup_id").to_owned();
    let made = hub.json(&["backup", "show", &point])["backup"].clone();
    assert_eq!((field(&made, "backup_type"), &made["policy_id"]), ("full", &first["policy_id"]));

    // A machine that was not there is protected without anyone's doing; one that is gone is not asked for.
    let new = Disk::create(&dir.join("vms/web-3/disk0.raw"), 2 << 20, &mut random);
    std::fs::remove_dir_all(dir.join("vms/web-2")).unwrap();
    hub.ok(&["source", "discover", "images"]);
    let second = triggered(&hub, "yearly");
    assert_eq!(outcomes(&second), [("web-1", "completed"), ("web-3", "completed")]);
    let types = |vm: &str| {
        let backups = hub.json(&["backup", "list", "--vm", vm])["backups"].clone();
        let types = backups.as_array().unwrap().iter().map(|backup| field(backup, "backup_type").to_owned());
        types.collect::<Vec<_>>()
    };
    assert_eq!(types("web-1"), ["incremental", "full"], "the newer needs the older: nothing goes");
    // A full is due again, and then the chain before it goes.
    let third = triggered(&hub, "yearly");
    assert_eq!(field(&third, "state"), "completed", "{third}");
    let patience = Instant::now() + PATIENCE;
    while types("web-1") != ["full"] {
        assert!(Instant::now() < patience, "{:?}\nhub log:\n{}", types("web-1"), hub.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let point = field(&second["vms"][1], "backup_id").to_owned();
    let newest = hub.json(&["backup", "list", "--vm", "web-3"])["backups"][0].clone();
    assert_ne!(field(&newest, "backup_id"), point);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", field(&newest, "backup_id"), "--to", path(&out), "--wait"]);
    assert_holds(&out, &new.bytes);

    // What failed is told, machine by machine, and does not keep the others from being protected.
    std::fs::remove_dir_all(dir.join("vms/web-1")).unwrap();
    let failed = triggered(&hub, "yearly");
    assert_eq!(field(&failed, "state"), "failed");
    assert_eq!(outcomes(&failed), [("web-1", "failed"), ("web-3", "completed")]);
    assert!(!field(&failed["vms"][0], "reason").is_empty());
    assert_eq!(field(&failed, "reason"), "of 2 VMs 1 failed and 0 were left out; not found any more: web-2");

    let plans = hub.json(&["policy", "prune", "gold", "--dry-run"]);
    assert!(plans["prunes"].as_array().unwrap().iter().all(|prune| prune["dry_run"] == true));
    let executions = hub.json(&["schedule", "executions", "yearly"]);
    assert_eq!(executions["total"], 4);
    hub.ok(&["schedule", "delete", "yearly"]);
    // What becomes of machines and points is told, and only then it is done.
    let plan = hub.json(&["policy", "delete", "gold", "--dry-run"])["deletion"].clone();
    assert_eq!(plan["no_longer"].as_array().unwrap().len(), 2, "{plan:#}");
    let told = hub.fails(1, &["policy", "delete", "gold"]);
    for words in ["2 of them no other policy means, nothing would back them up", "no rules judge", "--yes"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(hub.json(&["policy", "list"])["total"], 1);
    hub.ok(&["policy", "delete", "gold", "--yes"]);
    assert_eq!(hub.json(&["policy", "list"])["total"], 0);
    assert_eq!(hub.stop(), Some(0));
}

/// Policies that are kept in a file: shown as a difference, applied once, and then as they are.
#[test]
fn a_file_of_policies_is_applied_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web/disk0.raw"), 1 << 20, &mut Random::new(44));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let file = dir.join("policies.toml");
    let write = |keep: u32| {
        let text = format!(
            "[[policies]]\nname = \"gold\"\nvms = [\"w*\"]\nsources = [\"images\"]\nrepository_id = \"main\"\n\
             [policies.retention]\nkeep_daily = {keep}\n\n\
             [[schedules]]\nname = \"nightly\"\npolicy_id = \"gold\"\ncron = \"30 1 * * *\"\nenabled = false\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    write(7);
    let apply = |more: &[&str]| hub.json(&[&["policy", "apply", "-f", path(&file)], more].concat());
    let names = |done: &Value| {
        let changes = done["changes"].as_array().unwrap().iter();
        changes.map(|one| format!("{} {} {}", field(one, "change"), field(one, "kind"), field(one, "name"))).collect()
    };
    let made: [String; 2] = ["make policy gold", "make schedule nightly"].map(str::to_owned);
    let shown: Vec<String> = names(&apply(&["--dry-run"]));
    assert_eq!(shown, made);
    assert_eq!(hub.json(&["policy", "list"])["total"], 0, "nothing was done");
    // Without a terminal nothing is asked and nothing done.
    hub.fails(1, &["policy", "apply", "-f", path(&file)]);
    assert_eq!(hub.json(&["policy", "list"])["total"], 0);
    let done: Vec<String> = names(&apply(&["--yes"]));
    assert_eq!(done, made);
    let again: Vec<String> = names(&apply(&["--yes"]));
    assert_eq!(again, [""; 0], "what is applied twice is applied once");

    write(3);
    let told = hub.ok(&["policy", "apply", "-f", path(&file), "--yes"]);
    assert!(told.contains("-keep_daily = 7\n+keep_daily = 3"), "{told}");
    let policy = hub.json(&["policy", "list"])["policies"][0].clone();
    assert_eq!(policy["rules"]["retention"]["keep_daily"], 3);
    // What another file does not name stays.
    std::fs::write(&file, "{\"policies\": []}").unwrap();
    let none: Vec<String> = names(&apply(&["--yes"]));
    assert_eq!(none, [""; 0]);
    assert_eq!(hub.json(&["schedule", "list"])["total"], 1);
    std::fs::write(&file, "[[policies]]\nnames = \"gold\"\n").unwrap();
    let wrong = hub.fails(1, &["policy", "apply", "-f", path(&file)]);
    assert!(wrong.contains("names"), "{wrong}");
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn what_was_begun_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(42);
    for vm in ["a", "b", "c", "d", "e", "f"] {
        Disk::create(&dir.join(format!("vms/{vm}/disk0.raw")), 2 << 20, &mut random);
    }
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.ok(&["policy", "create", "all", "--vm", "*", "--repo", "main"]);
    hub.ok(&["schedule", "create", "yearly", "--policy", "all", "--cron", "@yearly"]);
    let begun = hub.json(&["schedule", "trigger", "yearly"])["execution"].clone();
    hub.kill_9();
    // The next life of the hub carries it to its end: no machine is forgotten, none is backed up twice for it.
    let hub = Hub::start(dir);
    let execution = ended(&hub, field(&begun, "execution_id"));
    assert_eq!(field(&execution, "state"), "completed", "{execution}\nhub log:\n{}", hub.log());
    let vms = execution["vms"].as_array().unwrap();
    assert_eq!(vms.len(), 6);
    for vm in vms {
        let name = field(vm, "vm_name");
        let backups = hub.json(&["backup", "list", "--vm", name])["backups"].clone();
        let completed: Vec<&Value> =
            backups.as_array().unwrap().iter().filter(|backup| backup["status"] == "completed").collect();
        assert_eq!(completed.len(), 1, "{name}: {backups:#}");
        assert_eq!((&completed[0]["backup_id"], &vm["outcome"]), (&vm["backup_id"], &"completed".into()), "{name}");
        assert_eq!(vm["attempts"], backups.as_array().unwrap().len(), "{name}: every backup is an attempt");
    }
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn of_two_hubs_on_one_database_the_other_goes_on_when_one_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, url) = servers::mariadb(dir);
    Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut Random::new(43));
    let (_stuck, uri) = servers::stuck_nbd(dir, "stuck", "rdelay");
    let start = |name: &str| {
        let hub = Hub::launch(dir, name, &["--database-url", &url, "--lease-seconds", "6"]);
        hub.unwrap_or_else(|log| panic!("{log}"))
    };
    let mut first = start("first");
    first.set_up_images(dir);
    first.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    first.ok(&["source", "discover", "slow"]);
    std::fs::create_dir_all(dir.join("second")).unwrap();
    std::fs::copy(dir.join("first/key"), dir.join("second/key")).unwrap();
    let second = start("second");
    first.ok(&["policy", "create", "all", "--vm", "*", "--repo", "main"]);
    first.ok(&["schedule", "create", "yearly", "--policy", "all", "--cron", "@yearly"]);
    let begun = first.json(&["schedule", "trigger", "yearly"])["execution"].clone();
    let id = field(&begun, "execution_id");
    let said = second.fails(4, &["schedule", "trigger", "yearly"]);
    assert!(said.contains("runs"), "{said}");

    let wait = |is: &dyn Fn(&Value, &Value) -> bool| {
        let patience = Instant::now() + PATIENCE;
        loop {
            let execution = second.json(&["schedule", "execution", id])["execution"].clone();
            let vms = execution["vms"].as_array().unwrap();
            let [web, slow] = if vms[0]["vm_name"] == "web" { [&vms[0], &vms[1]] } else { [&vms[1], &vms[0]] };
            if is(web, slow) {
                return (web.clone(), slow.clone());
            }
            assert!(Instant::now() < patience, "{execution:#}\n{}", second.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let (web, slow) = wait(&|web, slow| web["outcome"] == "completed" && !slow["backup_id"].is_null());
    first.kill_9();
    // The second takes the execution over, finds the backup that died with the first, and tries that machine again.
    let (web_then, slow_then) = wait(&|_, slow| slow["attempts"] == 2 && !slow["backup_id"].is_null());
    assert_eq!((&web_then["backup_id"], &web_then["attempts"]), (&web["backup_id"], &1.into()));
    assert_ne!(slow_then["backup_id"], slow["backup_id"]);
    second.ok(&["backup", "cancel", field(&slow_then, "backup_id")]);
    let execution = ended(&second, id);
    assert_eq!(field(&execution, "state"), "failed", "{execution:#}");
    assert_eq!(field(&execution, "reason"), "of 2 VMs 1 failed and 0 were left out");
    assert_eq!(second.json(&["backup", "list", "--vm", "web"])["total"], 1, "no machine was backed up twice");
    assert_eq!(second.stop(), Some(0));
}
