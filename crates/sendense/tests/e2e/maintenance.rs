//! Looking after a repository by the command line.

use crate::bad_day::SmallDisk;
use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, field, path, tool, tree};

#[test]
fn a_repository_is_looked_after_and_its_mode_outlives_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut Random::new(29));
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let repo = field(&hub.json(&["repo", "list"])["repositories"][0], "name").to_owned();
    let point = field(&hub.backup("web", &[]), "backup_id").to_owned();

    let said = hub.ok(&["repo", "mode", &repo, "read-only", "--reason", "new disks"]);
    assert!(said.contains("is read-only"), "{said}");
    hub.kill_9();
    drop(hub);
    let hub = Hub::start(dir);
    let shown = hub.ok(&["repo", "show", &repo]);
    assert!(shown.contains("read-only since") && shown.contains("new disks"), "{shown}");
    assert!(hub.ok(&["repo", "list"]).contains("read-only"));
    let refused = hub.fails(4, &["backup", "start", "web", "--repo", &repo]);
    assert!(refused.contains("new disks") && refused.contains("normal"), "{refused}");
    hub.fails(4, &["backup", "delete", &point, "--yes"]);
    hub.ok(&["backup", "verify", &point]);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", &point, "--disk", "0", "--to", path(&out), "--wait"]);
    assert_holds(&out, &disk.bytes);

    hub.fails(2, &["repo", "mode", &repo, "broken"]);
    hub.fails(2, &["repo", "mode", &repo, "normal", "--reason", "none is needed"]);
    hub.fails(3, &["repo", "mode", "nowhere", "offline"]);
    assert_eq!(hub.json(&["repo", "mode", &repo, "offline"])["repository"]["mode"], "offline");
    hub.fails(4, &["restore", "disk", &point, "--disk", "0", "--to", path(&dir.join("no")), "--wait"]);
    hub.ok(&["repo", "mode", &repo, "normal"]);
    hub.backup("web", &[]);
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn a_backup_is_refused_while_its_file_system_has_the_room_that_is_kept_free() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let repo = dir.join("repo");
    let _small = SmallDisk::mount(&repo, "256m");
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), 8 << 20, &mut Random::new(30));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let files = tree(&repo);
    let free = || {
        let figures = tool("coreutils", "stat", &["-f", "-c", "%a %S", path(&repo)]);
        figures.split_whitespace().map(|figure| figure.parse::<u64>().unwrap()).product::<u64>()
    };
    // A part of what is asked for is there, then nothing.
    hub.ok(&["repo", "update", "main", "--keep-free", "200MiB"]);
    let full = ["backup", "start", "web", "--repo", "main", "--type", "full", "--wait"];
    let said = hub.fails(6, &full);
    assert!(said.contains("no_space"), "{said}");
    hub.ok(&["repo", "update", "main", "--keep-free", "300MiB"]);
    let said = hub.fails(1, &full);
    assert!(said.contains("no_space") && free() > 250 << 20, "{said}");
    assert_eq!(tree(&repo), files, "not a byte was written");
    let shown = hub.ok(&["repo", "show", "main"]);
    assert!(shown.contains("critical") && shown.contains("300"), "{shown}");
    assert!(hub.ok(&["repo", "list"]).contains("hardly any room"));

    hub.ok(&["repo", "update", "main", "--keep-free", "0"]);
    let point = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let out = dir.join("out");
    hub.ok(&["restore", "disk", &point, "--disk", "0", "--to", path(&out), "--wait"]);
    assert_holds(&out, &disk.bytes);
    assert_eq!(hub.json(&["repo", "show", "main"])["repository"]["space"]["state"], "ok");
    hub.fails(2, &["repo", "update", "main", "--low-percent", "101"]);
    hub.fails(2, &["repo", "update", "main", "--low-percent", "97"]);
    assert_eq!(hub.stop(), Some(0));
}
