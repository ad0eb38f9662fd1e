//! Which machine is which: two folders that hold machines of the same name, and a catalog that was lost.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, field, path};

#[test]
fn machines_of_the_same_name_in_two_folders_are_two_also_after_an_import() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(31);
    let mut disks: Vec<Disk> =
        ["one", "two"].map(|folder| Disk::create(&dir.join(folder).join("web/disk0.raw"), 3 << 20, &mut random)).into();
    let add = |hub: &Hub, name: &str| {
        hub.ok(&["source", "add", "image", "--name", name, "--path", path(&dir.join(name))]);
        let found = hub.json(&["source", "discover", name]);
        (field(&found["vms"][0], "vm_context_id").to_owned(), found["added"].as_u64().unwrap())
    };
    let mut hub = Hub::start(dir);
    std::fs::create_dir(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    let ids = ["one", "two"].map(|name| add(&hub, name).0);
    assert_ne!(ids[0], ids[1]);
    // The name is that of both: the refusal names the ids, the list shows them, and an id works.
    let refused = hub.fails(4, &["backup", "start", "web", "--repo", "main"]);
    assert!(ids.iter().all(|id| refused.contains(id)) && refused.contains("ambiguous_name"), "{refused}");
    assert!(ids.iter().all(|id| hub.ok(&["vm", "list"]).contains(id)));
    let fulls = [0, 1].map(|number| hub.backup(&ids[number], &[]));

    // The catalog is lost. Whichever folder is discovered first, each machine finds its own past.
    for order in [[0, 1], [1, 0]] {
        assert_eq!(hub.stop(), Some(0));
        std::fs::remove_dir_all(dir.join("hub")).unwrap();
        hub = Hub::start(dir);
        hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
        hub.ok(&["repo", "import", "main"]);
        for number in order {
            assert_eq!(add(&hub, ["one", "two"][number]), (ids[number].clone(), 0));
        }
    }
    for number in [0, 1] {
        disks[number].write_somewhere(1 << 20, &mut random);
        let next = hub.backup(&ids[number], &[]);
        assert_eq!(field(&next, "parent_backup_id"), field(&fulls[number], "backup_id"));
        let out = dir.join(format!("out-{number}"));
        hub.ok(&["restore", "disk", field(&next, "backup_id"), "--to", path(&out), "--wait"]);
        assert_holds(&out, &disks[number].bytes);
    }

    // A folder that takes the place of a forgotten one is not taken for it: its `web` is a new machine.
    hub.ok(&["source", "delete", "one"]);
    std::fs::create_dir_all(dir.join("three/web")).unwrap();
    std::fs::copy(dir.join("two/web/disk0.raw"), dir.join("three/web/disk0.raw")).unwrap();
    let (third, added) = add(&hub, "three");
    assert!(!ids.contains(&third) && added == 1, "{third} was known");
}
