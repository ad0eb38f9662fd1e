//! Points that must stay: protected, or held until a date.

use crate::disk::{Disk, Random};
use crate::hub::{Hub, cli, field, path, tree};
use serde_json::Value;

/// What a prune that keeps the newest point would do with a point, and why.
fn judged(hub: &Hub, id: &str) -> (String, String) {
    let plan: Value = hub.json(&["prune", "web", "--keep-last", "1", "--dry-run"]);
    let backups = plan["prune"]["backups"].as_array().unwrap();
    let entry = backups.iter().find(|entry| entry["backup_id"] == id).unwrap();
    (field(entry, "fate").to_owned(), field(entry, "reason").to_owned())
}

fn fate(fate: &str, reason: &str) -> (String, String) {
    (fate.to_owned(), reason.to_owned())
}

#[test]
fn what_must_stay_is_neither_deleted_nor_pruned_and_survives_the_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(31);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 3 << 20, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut points = Vec::new();
    for kind in ["full", "incremental", "full"] {
        disk.write_somewhere(200_000, &mut random);
        points.push(field(&hub.backup("web", &["--type", kind]), "backup_id").to_owned());
    }
    let [a, b, c] = points.as_slice() else { panic!("three points") };
    let files = tree(&dir.join("repo"));

    // Nothing deletes a protected point: not by itself, not with what it stands on, not even in a plan.
    let protected = hub.json(&["backup", "protect", b]);
    assert_eq!((&protected["backup"]["protected"], &protected["backup"]["hold_until"]), (&true.into(), &Value::Null));
    for delete in [vec!["backup", "delete", b, "--yes"], vec!["backup", "delete", a, "--cascade", "--dry-run"]] {
        let refused = hub.fails(4, &delete);
        assert!(refused.contains(&format!("{b} is protected")), "{refused}");
    }
    assert_eq!(judged(&hub, b), fate("keep", "protected"));
    assert_eq!(judged(&hub, a), fate("needed", &format!("needed by {b}")));
    assert_eq!(tree(&dir.join("repo")).len(), files.len() + 1, "one file says so");

    // A date that has passed holds nothing; one to come does.
    let past = hub.fails(2, &["backup", "hold", c, "--until", "2001-01-01"]);
    assert!(past.contains("in the past"), "{past}");
    hub.ok(&["backup", "hold", c, "--until", "2199-01-31"]);
    assert_eq!(judged(&hub, c), fate("keep", "held until 2199-01-31T00:00:00Z"));
    let shown = hub.ok(&["backup", "show", c]);
    assert!(shown.contains("held until 2199-01-31 00:00:00Z"), "{shown}");
    assert!(hub.fails(4, &["backup", "delete", c, "--yes"]).contains("held until"));
    hub.fails(3, &["backup", "protect", "bk-none"]);

    // Who makes points may keep them; to let them go is for those who may delete.
    let token = hub.json(&["token", "create", "--name", "op", "--role", "operator"]);
    let as_operator = |args: &[&str]| {
        let mut command = cli(&hub.url, None);
        command.env("SENDENSE_TOKEN", field(&token, "secret")).args(args).output().unwrap().status.code()
    };
    assert_eq!(as_operator(&["backup", "protect", a]), Some(0));
    for release in [["backup", "unprotect", a].as_slice(), &["backup", "hold", c, "--release"]] {
        assert_eq!(as_operator(release), Some(7), "{release:?}");
    }
    hub.ok(&["backup", "unprotect", a]);
    assert_eq!(hub.stop(), Some(0));

    // The catalog is lost; the repository knows.
    std::fs::remove_dir_all(dir.join("hub")).unwrap();
    let hub = Hub::start(dir);
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    hub.ok(&["repo", "import", "main"]);
    let states = [a, b, c].map(|id| {
        let backup = hub.json(&["backup", "show", id])["backup"].clone();
        (backup["protected"].as_bool().unwrap(), backup["hold_until"].as_str().map(str::to_owned))
    });
    let until = Some("2199-01-31T00:00:00Z".to_owned());
    assert_eq!(states, [(false, None), (true, None), (false, until)]);
    hub.fails(4, &["backup", "delete", c, "--yes"]);
    hub.ok(&["backup", "hold", c, "--release"]);
    hub.ok(&["backup", "delete", c, "--yes"]);
    hub.ok(&["backup", "unprotect", b]);
    hub.ok(&["backup", "delete", a, "--cascade", "--yes"]);
    let left = tree(&dir.join("repo"));
    assert!(points.iter().all(|id| !left.iter().any(|file| file.contains(id.as_str()))), "{left:?}");
    assert_eq!(hub.stop(), Some(0));
}
