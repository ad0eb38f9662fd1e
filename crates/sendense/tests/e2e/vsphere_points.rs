//! What a point of a vCenter's machine says of itself: disks that are not in it, and what its guest was told before.

use crate::disk::assert_holds;
use crate::hub::{Hub, PATIENCE, field, path, text};
use crate::vsphere::lab::{Lab, MIB, Trouble};
use crate::vsphere::set_up;
use crate::vsphere::triggered;
use sendense_block::Cancel;
use serde_json::Value;
use std::time::{Duration, Instant};

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

#[test]
fn a_guest_that_cannot_be_quiesced_costs_what_its_policy_says() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let vim = lab.vim();
    let guest = lab.machine(&vim, "web", &[MIB]);
    lab.control("tools", "");
    vim.power_on(&guest.machine, &Cancel::new()).unwrap();
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    for (name, more) in [("lenient", "--quiesce"), ("strict", "--quiesce-or-fail")] {
        hub.ok(&["policy", "create", name, "--vm", "web", "--repo", "main", more]);
        hub.ok(&["schedule", "create", name, "--policy", name, "--cron", "@yearly"]);
    }
    assert!(hub.ok(&["policy", "show", "strict"]).contains("or fail"));
    let of_policy = |name: &str| {
        let vm = triggered(&hub, name)["vms"][0].clone();
        hub.json(&["backup", "show", field(&vm, "backup_id")])["backup"].clone()
    };
    let told = |point: &Value| {
        let word = |name: &str| point[name].as_str().unwrap_or_default().to_owned();
        (word("status"), word("consistency"), word("consistency_note") + &word("error_message"))
    };
    let quiet = || ("completed".to_owned(), "filesystem".to_owned(), String::new());
    assert_eq!(told(&of_policy("lenient")), quiet());
    assert_eq!(told(&of_policy("strict")), quiet());
    assert_eq!(told(&hub.backup("web", &["--quiesce-or-fail"])), quiet());

    let refuse = || lab.proxy.arm("CreateSnapshot_Task", 1, 1, Trouble::Task("FilesystemQuiesceFault"));
    refuse();
    let (status, consistency, note) = told(&of_policy("lenient"));
    assert_eq!((status.as_str(), consistency.as_str()), ("completed", "crash"));
    assert!(note.contains("FilesystemQuiesceFault"), "{note}");
    refuse();
    let asked = hub.run(&["backup", "start", "web", "--repo", "main", "--quiesce-or-fail", "--wait"]);
    let said = text(&asked.stdout) + &text(&asked.stderr);
    assert!(!asked.status.success() && said.contains(DEMANDED) && said.contains("FilesystemQuiesceFault"), "{said}");
    assert_eq!(
        told(&hub.backup("web", &[])),
        ("completed".to_owned(), "crash".to_owned(), String::new()),
        "nobody asked"
    );

    // The schedule tries again later, which is not waited for.
    refuse();
    hub.ok(&["schedule", "trigger", "strict"]);
    let failed = || {
        let listed = hub.json(&["backup", "list", "--vm", "web", "--status", "failed"])["backups"].clone();
        let of_policy = |point: &&Value| !point["policy_id"].is_null();
        listed.as_array().unwrap().iter().find(of_policy).cloned()
    };
    let patience = Instant::now() + PATIENCE;
    let failed = loop {
        if let Some(point) = failed() {
            break point;
        }
        assert!(Instant::now() < patience, "the policy's backup does not fail\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(field(&failed, "error_message").contains(DEMANDED), "{failed:#}");
    assert_eq!(lab.snapshots(), Vec::<String>::new());
}

/// What is said where less than a quiesced point is not wanted.
const DEMANDED: &str = "web cannot be quiesced, which is demanded";
