//! Looking after a repository by the command line.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, field, path};

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
