//! A repository whose folder is gone for good: forgotten with all that is known of its points, and only then.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, field, path, tree};

#[test]
fn a_repository_that_is_lost_is_forgotten_with_its_points_and_none_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut Random::new(36));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let other = dir.join("other");
    std::fs::create_dir(&other).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "other", "--path", path(&other)]);
    let full = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let next = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let kept = hub.json(&["backup", "start", "web", "--repo", "other", "--wait"])["backup"].clone();
    let listed = || {
        let backups = hub.json(&["backup", "list"])["backups"].clone();
        let ids = backups.as_array().unwrap().iter().map(|backup| field(backup, "backup_id").to_owned());
        ids.collect::<Vec<_>>()
    };
    let all = listed();
    assert_eq!(all.len(), 3);

    // One that is there is not lost, and nothing of it goes.
    let forget = ["repo", "delete", "main", "--lost", "--yes"];
    let files = tree(&dir.join("repo"));
    let refused = hub.fails(4, &forget);
    assert!(refused.contains("the repository is not lost") && refused.contains("main is there"), "{refused}");
    assert_eq!((listed(), tree(&dir.join("repo"))), (all.clone(), files));

    std::fs::remove_dir_all(dir.join("repo")).unwrap();
    // What cannot be read as who owns it may be a newer version's, or half of a copy: then points may be there.
    std::fs::create_dir(dir.join("repo")).unwrap();
    for record in [r#"{"format":"#, r#"{"format": "sendense-repository", "version": 99}"#] {
        std::fs::write(dir.join("repo/.sendense-repository.json"), record).unwrap();
        let refused = hub.fails(4, &forget);
        assert!(refused.contains("main is there, and who owns it cannot be read"), "{refused}");
        assert_eq!(listed(), all);
    }
    std::fs::remove_dir_all(dir.join("repo")).unwrap();
    // Who does not say that it is lost is told that this can be said.
    let refused = hub.fails(4, &["repo", "delete", "main"]);
    assert!(
        refused.contains("2 points are in the catalog") && refused.contains("repo delete main --lost"),
        "{refused}"
    );
    // Without a terminal nothing is asked, and nothing is done unasked.
    let refused = hub.fails(1, &forget[..4]);
    assert!(refused.contains("--yes"), "{refused}");
    hub.ok(&["policy", "create", "gold", "--vm", "web", "--repo", "main", "--keep-last", "1"]);
    let refused = hub.fails(4, &forget);
    assert!(refused.contains("policy gold puts points into it"), "{refused}");
    assert_eq!(listed(), all);
    hub.ok(&["policy", "delete", "gold", "--yes"]);

    hub.ok(&forget);
    let kept = field(&kept, "backup_id");
    assert_eq!(listed(), [kept]);
    for id in [&full, &next] {
        hub.fails(3, &["backup", "show", id]);
    }
    hub.fails(3, &["repo", "show", "main"]);
    let repositories = hub.json(&["repo", "list"])["repositories"].clone();
    let names: Vec<&str> = repositories.as_array().unwrap().iter().map(|repo| field(repo, "name")).collect();
    assert_eq!(names, ["other"]);
    assert!(!dir.join("repo").exists(), "nothing makes the folder again");
    let chain = hub.json(&["backup", "chain", "web"]);
    assert_eq!((field(&chain, "latest_backup_id"), &chain["backup_count"]), (kept, &1.into()));
    let out = dir.join("out");
    hub.ok(&["restore", "disk", kept, "--to", path(&out), "--wait"]);
    assert_holds(&out, &disk.bytes);

    // The name is free, and what is begun under it stands on nothing that is gone.
    std::fs::create_dir(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    assert_eq!(field(&hub.backup("web", &[]), "backup_type"), "full");
    assert_eq!(hub.stop(), Some(0));
}
