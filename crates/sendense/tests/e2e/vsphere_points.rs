//! What a point of a vCenter's machine says of itself: disks that are not in it.

use crate::disk::assert_holds;
use crate::hub::{Hub, field, path, text};
use crate::vsphere::lab::{Lab, MIB};
use crate::vsphere::set_up;
use serde_json::Value;

#[test]
fn what_a_snapshot_leaves_out_is_shown_and_the_rest_is_backed_up() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let vim = lab.vim();
    let guest = lab.machine(&vim, "web", &[4 * MIB]);
    guest.add_sort(&vim, 1, MIB, "independent_persistent");
    guest.add_sort(&vim, 2, MIB, "physical");
    guest.add(&vim, 3, 2 * MIB);
    let lonely = lab.machine(&vim, "lonely", &[]);
    lonely.add_sort(&vim, 0, MIB, "independent_nonpersistent");
    let golden = lab.machine(&vim, "golden", &[MIB]);
    golden.make_template(&vim, true);
    guest.write(&vim, 0, MIB, &[7; 100_000]);
    guest.write(&vim, 3, MIB, &[8; 100_000]);
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);

    let vm = hub.json(&["vm", "show", "web"])["vm"].clone();
    assert!(vm["unsupported"].is_null(), "{vm:#}");
    let told: Vec<_> = vm["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| (field(disk, "disk_key"), disk["unsupported"].as_str()))
        .collect();
    let (independent, raw) =
        ("it is independent: snapshots leave it out", "it is a raw device in physical mode, which snapshots leave out");
    assert_eq!(
        told,
        [("disk-2000", None), ("disk-2001", Some(independent)), ("disk-2002", Some(raw)), ("disk-2003", None)]
    );
    let list = hub.ok(&["vm", "list"]);
    assert!(list.contains("it is a template, of which no snapshot can be made"), "{list}");
    assert!(hub.ok(&["vm", "show", "web"]).contains(raw));

    // The others are backed up, as one point that says what it lacks: also when its repository is read by another hub.
    let point = hub.backup("web", &[]);
    assert_eq!((field(&point, "status"), &point["partial"]), ("completed", &true.into()), "{point:#}");
    let keys: Vec<_> = point["disks"].as_array().unwrap().iter().map(|disk| field(disk, "disk_key")).collect();
    assert_eq!(keys, ["disk-2000", "disk-2003"]);
    let note =
        format!("disk-2001 (Hard disk 2) is left out: {independent}; disk-2002 (Hard disk 3) is left out: {raw}");
    assert_eq!(field(&point, "consistency_note"), note);
    assert!(hub.ok(&["backup", "show", field(&point, "backup_id")]).contains(&note));
    for disk in [0, 3] {
        let out = dir.join("out");
        let args =
            ["restore", "disk", field(&point, "backup_id"), "--disk", &disk.to_string(), "--to", path(&out), "--wait"];
        hub.ok(&args);
        assert_holds(&out, &std::fs::read(guest.file(&vim, disk)).unwrap());
        std::fs::remove_file(&out).unwrap();
    }
    // One that is left out on purpose needs no line.
    let point = hub.backup("web", &["--exclude-disk", "disk-2001", "--exclude-disk", "disk-2002"]);
    assert_eq!((&point["partial"], &point["consistency_note"]), (&true.into(), &Value::Null), "{point:#}");

    // What has nothing that can be read is refused with the reason, and nothing is begun.
    let snapshots = lab.proxy.count("CreateSnapshot_Task");
    let refused = |name: &str| hub.fails(CONFLICT, &["backup", "start", name, "--repo", "main"]);
    assert!(refused("golden").contains("it is a template"));
    assert!(refused("lonely").contains("it has no disk that can be read"));
    let asked = hub.fails(CONFLICT, &["backup", "start", "web", "--repo", "main", "--disk", "2"]);
    assert!(asked.contains(raw), "{asked}");
    // One that has become a template since the hub looked.
    guest.make_template(&vim, true);
    let late = hub.run(&["backup", "start", "web", "--repo", "main", "--wait"]);
    let said = text(&late.stderr) + &text(&late.stdout);
    assert!(!late.status.success() && said.contains("it is a template"), "{said}");
    assert_eq!(lab.proxy.count("CreateSnapshot_Task"), snapshots);
}

/// The exit code of a request that does not fit what is there.
const CONFLICT: i32 = 4;
