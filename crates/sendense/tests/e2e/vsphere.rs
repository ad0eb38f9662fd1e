//! A vCenter (the lab's simulator, the real nbdkit and plugin, a VDDK of the tests' own) from `source add` to a compared
//! restore, and a hub that is killed again and again: no snapshot of ours stays.

#[path = "../../../../lab/vsphere/mod.rs"]
pub mod lab;

use crate::disk::{Random, assert_holds};
use crate::hub::{Hub, PATIENCE, cli, field, holders, path, text};
use crate::nodes::TlsHub;
use crate::remote_backup::{Node, enrolled};
use lab::{Guest, Lab, MIB, PASSWORD, USERNAME, write};
use sendense_block::Cancel;
use sendense_vsphere::Vim;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A machine with a model of its only disk.
pub struct Machine<'lab> {
    pub file: PathBuf,
    pub bytes: Vec<u8>,
    pub vim: Vim,
    pub guest: Guest<'lab>,
}

impl<'lab> Machine<'lab> {
    pub fn new(lab: &'lab Lab, size: u64) -> Self {
        let vim = lab.vim();
        let guest = lab.machine(&vim, "web", &[size]);
        Self { file: guest.file(&vim, 0), bytes: vec![0; size as usize], vim, guest }
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        write(&self.file, at as u64, bytes);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

pub fn set_up(hub: &Hub, dir: &Path, lab: &Lab) {
    std::fs::create_dir_all(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    let password = dir.join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let address = lab.address();
    let add = [
        &["source", "add", "vsphere", "--name", "vc", "--address", &address, "--username", USERNAME][..],
        &["--password-file", path(&password), "--vddk-libdir", path(&lab.libdir)],
        &["--nbdkit-plugin", path(&lab.plugin)],
    ]
    .concat();
    // Nobody has confirmed the certificate: it is shown, and nobody who is not believed gets the password.
    let refused = hub.run(&add);
    let complaint = text(&refused.stderr);
    let shown = sendense_vsphere::probe(&address, None, &Cancel::new()).unwrap().fingerprint().to_string();
    assert!(
        !refused.status.success() && complaint.contains(&shown) && complaint.contains("--thumbprint"),
        "{complaint}"
    );
    hub.ok(&[&add[..], &["--thumbprint", &shown]].concat());
    hub.ok(&["source", "discover", "vc"]);
}

/// Adds the lab as a source that is bound to the node.
pub fn add_behind_node(hub: &TlsHub, dir: &Path, lab: &Lab) {
    let (address, password) = (lab.address(), dir.join("password"));
    std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let shown = sendense_vsphere::probe(&address, None, &Cancel::new()).unwrap().fingerprint().to_string();
    let add = [
        &["source", "add", "vsphere", "--name", "vc", "--address", &address, "--username", USERNAME][..],
        &["--password-file", path(&password), "--vddk-libdir", path(&lab.libdir), "--node", "SITE-A"],
        &["--nbdkit-plugin", path(&lab.plugin), "--thumbprint", &shown],
    ]
    .concat();
    hub.ok(&add);
    hub.ok(&["source", "discover", "vc"]);
}

#[test]
fn a_vcenter_is_added_backed_up_and_restored_from() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 16 * MIB);
    machine.write(3 << 20, &[7; 1 << 20]);
    let hub = Hub::start_talkative(dir);
    set_up(&hub, dir, &lab);

    let tested =
        cli(&hub.url, Some(&hub.data_dir.join("admin-token"))).args(["source", "test", "vc"]).output().unwrap();
    assert!(text(&tested.stdout).contains("vCenter") && tested.stderr.is_empty(), "{}", text(&tested.stderr));
    let shown = hub.json(&["source", "show", "vc"]);
    assert_eq!(shown["source"]["vsphere"]["vddk_libdir"], path(&lab.libdir));
    assert!(!shown.to_string().contains(PASSWORD));
    assert_eq!(holders(&hub.data_dir, PASSWORD), [""; 0], "the password is kept in clear");
    let vm = hub.json(&["vm", "show", "web"]);
    let disk = &vm["vm"]["disks"][0];
    assert_eq!((field(disk, "label"), &disk["capacity_bytes"]), ("Hard disk 1", &(16 * MIB).into()), "{vm:#}");
    assert_eq!((field(disk, "path"), field(disk, "mode")), ("[LocalDS_0] web/web.vmdk", "persistent"), "{vm:#}");
    assert_eq!((field(&vm["vm"], "hardware"), &vm["vm"]["snapshots"]), ("vmx-13", &serde_json::json!([])));
    let theirs = machine.vim.create_snapshot(&machine.guest.machine, "before", "", false, &Cancel::new()).unwrap();
    hub.ok(&["source", "discover", "vc"]);
    let shown = hub.ok(&["vm", "show", "web"]);
    for told in
        ["vmx-13", "before", "no: change tracking is off, and must not", "[LocalDS_0] web/web.vmdk", "persistent"]
    {
        assert!(shown.contains(told), "{told}: {shown}");
    }
    machine.vim.remove_snapshot(&theirs, &Cancel::new()).unwrap();

    let full = hub.backup("web", &[]);
    assert_eq!((field(&full, "backup_type"), field(&full, "consistency")), ("full", "crash"), "{full:#}");
    machine.write(9 << 20, &[8; 70_000]);
    machine.write(0, b"boot");
    let second = hub.backup("web", &[]);
    assert_eq!((field(&second, "backup_type"), &second["type_reason"]), ("incremental", &serde_json::Value::Null));
    assert_eq!(second["bytes_transferred"], 3 * 65536, "only what changed was sent");
    lab.control("reset", "");
    machine.write(5 << 20, b"unseen");
    let third = hub.backup("web", &[]);
    assert!(field(&third, "type_reason").contains("began anew"), "{third:#}");
    assert_eq!(third["bytes_transferred"], 65536, "all was read, and what differs was sent");

    let restored = dir.join("restored.raw");
    hub.ok(&["restore", "disk", field(&third, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &machine.bytes);
    assert_eq!(lab.snapshots(), Vec::<String>::new());
    let log = hub.log();
    assert!(log.contains("TRACE"), "the hub does not log all");
    assert!(!log.contains(PASSWORD) && !log.contains("p&amp;ss"), "the log holds the password");
    drop(machine.vim);
}

/// The machine of the hub is gone: what is left are the repository and a key that somebody wrote down.
#[test]
fn a_hub_is_recovered_from_its_repository_on_a_bare_machine() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 8 * MIB);
    machine.write(1 << 20, &[7; 1 << 20]);
    let mut hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    hub.ok(&["policy", "create", "gold", "--vm", "web", "--repo", "main", "--keep-last", "9"]);
    hub.ok(&["schedule", "create", "yearly", "--policy", "gold", "--cron", "@yearly"]);
    let first = triggered(&hub, "yearly");
    let older = field(&hub.json(&["repo", "copy-catalog", "main"])["catalog_copy"], "name").to_owned();
    hub.ok(&["policy", "create", "silver", "--vm", "*", "--repo", "main"]);
    let newest = field(&hub.json(&["repo", "copy-catalog", "main"])["catalog_copy"], "name").to_owned();
    let listed = hub.json(&["repo", "catalog-copies", "main"])["catalog_copies"].clone();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|copy| field(copy, "name")).collect();
    assert_eq!(names, [newest.as_str(), &older]);
    let offline = |args: &[&str]| cli("http://127.0.0.1:1", None).arg("hub").args(args).output().unwrap();
    let data = hub.data_dir.clone();
    let key = text(&offline(&["recovery-key", "--data-dir", path(&data)]).stdout).trim().to_owned();
    let repo = dir.join("repo");
    for secret in [PASSWORD, key.as_str()] {
        assert_eq!(holders(&repo, secret), [""; 0], "a secret lies in the repository in clear");
    }
    // Nor under the compression: what follows the header is encrypted.
    let sealed = std::fs::read(repo.join(".sendense-catalog").join(&newest)).unwrap();
    let len = u32::from_le_bytes(sealed[12..16].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&sealed[16..16 + len]).unwrap();
    assert!(newest.contains(field(&header, "deployment_id")) && header["key_id"].is_string(), "{header:#}");
    let tail = dir.join("tail.gz");
    std::fs::write(&tail, &sealed[16 + len..]).unwrap();
    let unpacked = std::process::Command::new("gzip").args(["-dc", path(&tail)]).output();
    let unpacked = unpacked.unwrap_or_else(|error| panic!("gzip: {error}; install the Debian package gzip"));
    assert!(!unpacked.status.success() && unpacked.stdout.is_empty(), "what is in a copy is not encrypted");
    let token = std::fs::read(data.join("admin-token")).unwrap();
    hub.kill_9();
    drop(hub);
    std::fs::remove_dir_all(&data).unwrap();

    let recover = |key: &str, more: &[&str]| {
        let mut command = cli("http://127.0.0.1:1", None);
        command.env("SENDENSE_RECOVERY_KEY", key).args(["hub", "recover", "--from", path(&repo)]).args(more);
        let output = command.output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let into = ["--data-dir", path(&data)];
    // A digit is wrong; the key of somebody else; a copy with one bit that is not as it was; half of one.
    let (code, _, said) = recover(&key.replace(&key[4..6], if &key[4..6] == "00" { "11" } else { "00" }), &into);
    assert!(code == Some(1) && said.contains("was not copied correctly"), "{said}");
    let (code, _, said) = recover(OTHER_KEY, &into);
    assert!(code == Some(1) && said.contains("sealed with another recovery key"), "{said}");
    let file = repo.join(".sendense-catalog").join(&newest);
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&flipped, &whole[..whole.len() / 2]] {
        std::fs::write(&file, damaged).unwrap();
        let (code, _, said) = recover(&key, &into);
        assert!(
            code == Some(1) && said.contains(&newest) && said.contains("damaged") && said.contains("--copy"),
            "{said}"
        );
        assert!(!data.exists(), "nothing is written before a copy was read");
    }
    // The one before is used when that is asked for.
    let other = dir.join("other");
    let into_other = ["--data-dir", path(&other), "--copy", &older, "--json"];
    // Nobody can tell yet that the old hub is dead.
    let (code, _, said) = recover(&key, &into_other);
    assert!(code == Some(1) && said.contains("--old-hub-is-gone") && !other.exists(), "{said}");
    let (code, told, said) = recover(&key, &[&into_other[..], &["--old-hub-is-gone"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["policies"], &told["sources"], &told["vms"]), (&1.into(), &1.into(), &1.into()), "{told:#}");
    std::fs::write(&file, &whole).unwrap();
    // A lease later. What is left of it is not waited for.
    let owner = repo.join(".sendense-repository.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&owner).unwrap()).unwrap();
    record["lease_until"] = "2026-01-01T00:00:00Z".into();
    std::fs::write(&owner, record.to_string()).unwrap();
    let (code, told, said) = recover(&key, &into);
    assert!(code == Some(0) && told.contains(&newest), "{told}{said}");
    let (code, _, said) = recover(&key, &into);
    assert!(code == Some(1) && said.contains("is not empty"), "{said}");
    assert_eq!(text(&offline(&["recovery-key", "--data-dir", path(&data)]).stdout).trim(), key);

    // It does what the old hub did: who had a token has it, the password of the vCenter opens it, and the chain goes on.
    let hub = Hub::start(dir);
    assert_eq!(std::fs::read(data.join("admin-token")).unwrap(), token);
    assert_eq!(hub.json(&["policy", "list"])["total"], 2);
    hub.ok(&["source", "test", "vc"]);
    let point = field(&first["vms"][0], "backup_id");
    let patience = Instant::now() + Duration::from_secs(60);
    while hub.json(&["backup", "list", "--vm", "web"])["total"] != 1 {
        assert!(Instant::now() < patience, "the point is not taken in\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    machine.write(3 << 20, &[9; 70_000]);
    let second = triggered(&hub, "yearly");
    assert_eq!(field(&second, "state"), "completed", "{second:#}");
    let made = hub.json(&["backup", "show", field(&second["vms"][0], "backup_id")])["backup"].clone();
    assert_eq!((field(&made, "backup_type"), field(&made, "parent_backup_id")), ("incremental", point));
    let restored = dir.join("restored.raw");
    hub.ok(&["restore", "disk", field(&made, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &machine.bytes);
    drop(machine.vim);
    assert_eq!(hub.stop(), Some(0));
}

/// A recovery key of another deployment: that of 32 bytes of which each is 7.
const OTHER_KEY: &str = "SRK-665b-91fe-463f-01e2-be97-4a74-6075-720a-dd8f-12b0-6d43-e3c4-bd28-9713-6e2a-b208-0320";

/// Triggers a schedule and waits for the end of its execution.
pub fn triggered(hub: &Hub, schedule: &str) -> Value {
    let begun = hub.json(&["schedule", "trigger", schedule])["execution"].clone();
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let execution = hub.json(&["schedule", "execution", field(&begun, "execution_id")])["execution"].clone();
        if execution["state"] != "running" {
            return execution;
        }
        assert!(Instant::now() < patience, "{execution:#}\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An audit of all blocks, so that one block is found.
const AUDIT_ALL: [&str; 2] = ["--audit-per-million", "1000000"];

#[test]
fn a_cbt_that_lies_is_found_out_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 8 * MIB);
    machine.write(1 << 20, &[7; 2 << 20]);
    let hub = Hub::launch(dir, "hub", &AUDIT_ALL).unwrap();
    set_up(&hub, dir, &lab);
    let full = hub.backup("web", &[]);
    assert!(full["cbt_audit"].is_null(), "{full:#}");
    machine.write(1 << 20, b"changed");
    let honest = hub.backup("web", &[]);
    assert_eq!(honest["type_reason"], serde_json::Value::Null);
    assert_eq!(honest["cbt_audit"], serde_json::json!({"blocks_checked": 31, "blocks_different": 0}), "{honest:#}");

    let events = hub.listen(dir);
    lab.control("lie", "");
    machine.write(2 << 20, b"unseen");
    let saved = hub.backup("web", &[]);
    lab.uncontrol("lie");
    let id = field(&saved, "backup_id");
    assert!(field(&saved, "type_reason").contains("change tracking is wrong: 1 of 32 blocks"), "{saved:#}");
    assert_eq!(saved["cbt_audit"], serde_json::json!({"blocks_checked": 32, "blocks_different": 1}));
    assert_eq!((&saved["disks"][0]["cbt_audit"], &saved["change_id"]), (&saved["cbt_audit"], &serde_json::Value::Null));
    assert_eq!(saved["bytes_transferred"], 65536, "what CBT kept silent about is in the point");
    let alert = &events.event("alert")["alert"];
    assert_eq!((field(alert, "kind"), field(alert, "backup_id")), ("change_tracking_wrong", id), "{alert:#}");
    assert!(
        hub.ok(&["backup", "show", id]).contains("1 of 32 blocks that change tracking calls unchanged had changed")
    );
    let restored = dir.join("restored.raw");
    hub.ok(&["restore", "disk", id, "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &machine.bytes);
    assert_eq!(lab.snapshots(), Vec::<String>::new(), "the snapshot that begins CBT anew is gone");

    // Nothing is asked against what was before; from then on CBT is used again, and is in a new epoch.
    machine.write(3 << 20, b"after");
    let anew = hub.backup("web", &[]);
    assert!(field(&anew, "type_reason").contains("without change tracking"), "{anew:#}");
    machine.write(0, b"tracked");
    let tracked = hub.backup("web", &[]);
    assert_eq!((&tracked["type_reason"], &tracked["bytes_transferred"]), (&serde_json::Value::Null, &65536.into()));
    let epoch = |point: &serde_json::Value| {
        let mark: serde_json::Value = serde_json::from_str(field(point, "change_id")).unwrap();
        field(&mark, "change_id").split('/').next().unwrap().to_owned()
    };
    assert_ne!(epoch(&honest), epoch(&tracked));
    assert_eq!(epoch(&anew), epoch(&tracked));
}

/// The machines of that name.
pub fn named(vim: &Vim, name: &str) -> Vec<sendense_vsphere::inventory::Machine> {
    vim.machines(&Cancel::new()).unwrap().into_iter().filter(|machine| machine.name == name).collect()
}

#[test]
fn a_machine_of_three_disks_is_restored_into_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let vim = lab.vim();
    let guest = lab.machine(&vim, "web", &[8 * MIB, 3 * MIB, MIB]);
    let mut model = Vec::new();
    for (disk, size) in [8 << 20, 3 << 20, 1 << 20].into_iter().enumerate() {
        let mut bytes: Vec<u8> = vec![0; size];
        let held = size / 3..size / 2;
        bytes[held.clone()].iter_mut().zip((1..=251).cycle()).for_each(|(byte, value)| *byte = value);
        guest.write(&vim, disk, held.start as u64, &bytes[held]);
        model.push(bytes);
    }
    let mut hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    hub.backup("web", &[]);
    guest.write(&vim, 1, 0, b"later");
    model[1][..5].copy_from_slice(b"later");
    let point = hub.backup("web", &[]);
    let id = field(&point, "backup_id");
    let restore = ["restore", "vm", id, "--vsphere", "vc", "--name"];
    let task = hub.json(&[&restore[..], &["web again", "--datastore", "LocalDS_1", "--wait"]].concat());
    assert!(field(&task["task"], "summary").contains("with 3 disks, switched off"), "{task:#}");
    let made = named(&vim, "web again").remove(0);
    for (disk, bytes) in made.devices.disks.iter().zip(&model) {
        let name = disk.backing.file_name.as_deref().unwrap();
        let (store, file) = name[1..].split_once("] ").unwrap();
        assert_eq!(store, "LocalDS_1");
        assert_holds(&lab.root.join(store).join(file), bytes);
    }
    assert_eq!(made.devices.disks.len(), 3);
    // It is a machine like any other, and is backed up as one: a full, because no chain is its own.
    hub.ok(&["source", "discover", "vc"]);
    let first = hub.backup("web again", &[]);
    assert_eq!(field(&first, "backup_type"), "full", "{first:#}");
    let refused = hub.fails(6, &[&restore[..], &["web again", "--wait"]].concat());
    assert!(refused.contains("exists already"), "{refused}");
    assert_eq!(named(&vim, "web again").len(), 1, "nothing is replaced");

    // A datastore without room: told as that, and nothing stays.
    lab.control("full-from", "3000000");
    let full = hub.fails(6, &[&restore[..], &["no room", "--wait"]].concat());
    assert!(full.contains("The disk is full"), "{full}");
    assert_eq!(named(&vim, "no room").len(), 0);
    lab.uncontrol("full-from");

    // Stopped by a person in the middle, and by the death of the hub.
    lab.control("write-delay-ms", "300");
    let until = |what: &str, hub: &Hub, is: &dyn Fn() -> bool| {
        let patience = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < patience, "{what} does not happen\n{}", hub.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let task = hub.json(&[&restore[..], &["stopped"]].concat());
    until("the machine", &hub, &|| !named(&vim, "stopped").is_empty());
    hub.ok(&["task", "cancel", field(&task["task"], "task_id")]);
    until("its removal", &hub, &|| named(&vim, "stopped").is_empty());
    hub.ok(&[&restore[..], &["dead"]].concat());
    until("the machine", &hub, &|| !named(&vim, "dead").is_empty());
    hub.kill_9();
    lab.uncontrol("write-delay-ms");
    hub = Hub::start(dir);
    until("its removal", &hub, &|| named(&vim, "dead").is_empty());
    assert_eq!(named(&vim, "web again").len(), 1, "what is whole stays");
}

#[test]
fn a_point_is_restored_onto_the_machine_that_it_is_of() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 8 * MIB);
    machine.write(0, b"boot");
    machine.write(2 << 20, &[3; 200_000]);
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    let point = hub.backup("web", &[]);
    let good = machine.bytes.clone();
    machine.write(0, b"lost");
    machine.write(5 << 20, &[9; 70_000]);
    hub.backup("web", &[]);
    let restore = ["restore", "vm", field(&point, "backup_id"), "--vsphere", "vc", "--onto", "web"];
    assert!(hub.fails(2, &restore).contains("--force"));
    let running = |on: bool| match on {
        true => machine.vim.power_on(&machine.guest.machine, &Cancel::new()).unwrap(),
        false => machine.vim.power_off(&machine.guest.machine, &Cancel::new()).unwrap(),
    };
    running(true);
    let refused = hub.fails(6, &[&restore[..], &["--force", "--wait"]].concat());
    assert!(refused.contains("is not switched off"), "{refused}");
    running(false);

    // A write that fails: the disk says of itself that it is unfinished, and the next attempt goes on.
    lab.control("full-from", "5000000");
    let full = hub.fails(6, &[&restore[..], &["--force", "--wait"]].concat());
    assert!(full.contains("The disk is full"), "{full}");
    assert!(std::fs::read(&machine.file).unwrap().starts_with(b"SENDENSE UNFINISHED RESTORE"));
    lab.uncontrol("full-from");
    let task = hub.json(&[&restore[..], &["--force", "--wait"]].concat());
    assert!(field(&task["task"], "summary").contains("onto web"), "{task:#}");
    assert_holds(&machine.file, &good);
    let next = hub.backup("web", &[]);
    assert!(field(&next, "type_reason").contains("began anew"), "{next:#}");
    let restored = dir.join("restored.raw");
    hub.ok(&["restore", "disk", field(&next, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &good);
    assert_eq!(lab.snapshots(), Vec::<String>::new());
}

#[test]
fn a_machine_behind_a_node_is_backed_up_and_a_killed_node_leaves_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 16 * MIB);
    machine.write(3 << 20, &[7; 1 << 20]);
    let hub = enrolled(dir, &[], &[]);
    let mut node = Node::start(dir, &[]);
    add_behind_node(&hub, dir, &lab);
    let full = hub.backup("web");
    assert_eq!((field(&full, "status"), field(&full, "backup_type")), ("completed", "full"), "{full:#}");
    machine.write(9 << 20, &[8; 4096]);
    let second = hub.backup("web");
    assert_eq!((field(&second, "backup_type"), &second["type_reason"]), ("incremental", &Value::Null), "{second:#}");
    assert_eq!(second["bytes_transferred"], 65536, "only what changed was sent");
    assert_eq!((lab.snapshots(), node.open_entries()), (Vec::new(), Vec::new()));

    // The node dies while it reads, and takes its snapshot away when it is started again.
    machine.write(2 << 20, &[9; 1 << 20]);
    lab.control("read-delay-ms", "500");
    let started = hub.json(&["backup", "start", "web", "--repo", "main"]);
    let id = field(&started["backup"], "backup_id").to_owned();
    let patience = Instant::now() + PATIENCE;
    while lab.snapshots().is_empty() {
        assert!(Instant::now() < patience, "no snapshot\n{}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    node.kill_9();
    assert!(!node.open_entries().is_empty(), "what was made is written down");
    lab.uncontrol("read-delay-ms");
    let node = Node::start(dir, &[]);
    let patience = Instant::now() + PATIENCE;
    let show = || hub.json(&["backup", "show", &id])["backup"].clone();
    while !lab.snapshots().is_empty() || !node.open_entries().is_empty() || field(&show(), "status") != "failed" {
        assert!(Instant::now() < patience, "{:?}\n{:#}\n{}", lab.snapshots(), show(), node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let last = hub.backup("web");
    let restored = dir.join("restored.raw");
    hub.ok(&["restore", "disk", field(&last, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &machine.bytes);
    assert_eq!((lab.snapshots(), node.open_entries()), (Vec::new(), Vec::new()));
    assert!(!node.log().contains(PASSWORD) && !hub.hub.log().contains(PASSWORD), "a log holds the password");
}

#[test]
fn a_snapshot_of_ours_that_no_journal_knows_is_swept_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let machine = Machine::new(&lab, 8 * MIB);
    let mut hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    // What a task of this deployment calls its snapshot.
    lab.control("read-delay-ms", "500");
    hub.ok(&["backup", "start", "web", "--repo", "main"]);
    let (vim, at) = (&machine.vim, &machine.guest.machine);
    let patience = Instant::now() + PATIENCE;
    let ours = loop {
        if let Some(found) = vim.snapshots(at, &Cancel::new()).unwrap().pop() {
            break found.description;
        }
        assert!(Instant::now() < patience, "no snapshot\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(20));
    };
    hub.kill_9();
    lab.uncontrol("read-delay-ms");
    // The journal is lost with it, and somebody else has snapshots too.
    std::fs::remove_dir_all(hub.data_dir.join("journal")).unwrap();
    let theirs = ["sendense-5-dep-x-task-1", "before the upgrade"];
    for description in theirs {
        vim.create_snapshot(at, "s", description, false, &Cancel::new()).unwrap();
    }
    hub = Hub::start(dir);
    let left = || vim.snapshots(at, &Cancel::new()).unwrap();
    while left().iter().any(|snapshot| snapshot.description == ours) {
        assert!(Instant::now() < patience, "it stays\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let descriptions: Vec<_> = left().into_iter().map(|snapshot| snapshot.description).collect();
    assert_eq!(descriptions, theirs);
}

/// Journals of hub and node are looked at every second, and sources every six.
const LEASE: [&str; 2] = ["--lease-seconds", "6"];

/// What is told of a snapshot that the server does not remove because of a fault, from the backup on until the server does;
/// `backup` makes one.
fn stays_until_it_is_removed(
    (hub, dir, lab): (&Hub, &Path, &Lab),
    (fault, reason): (&'static str, &str),
    backup: &dyn Fn() -> Value,
) {
    let events = hub.listen(dir);
    lab.proxy.arm("RemoveSnapshot_Task", 1, usize::MAX, lab::Trouble::Task(fault));
    let point = backup();
    assert_eq!(field(&point, "status"), "completed", "the point is as good as any: {point:#}");
    let stays = events.event("left_over")["left_over"].clone();
    let told = (field(&stays, "state"), field(&stays, "kind"), field(&stays, "vm_name"));
    assert_eq!(told, ("stays", "snapshot", "web"), "{stays:#}");
    let message = field(&stays, "message");
    for word in ["a snapshot of web on vc", reason, "cannot be removed", field(&stays, "task_id")] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert_eq!(lab.snapshots().len(), 1);
    // A node's hub has a certificate of its own making.
    let get = |what: &str| text(&crate::files::curl(hub, &["--insecure", "--fail"], what).stdout);
    let metrics = || get("/metrics");
    let check = || {
        let health: Value = serde_json::from_str(&get("/debug/health")).unwrap();
        let checks = health["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"] == "left over").unwrap()
    };
    assert!(metrics().lines().any(|line| line == "sendense_left_over 1"), "{}", metrics());
    assert_eq!((field(&check(), "status"), field(&check(), "detail")), ("degraded", message));

    lab.proxy.disarm();
    let gone = events.nth_event("left_over", 2)["left_over"].clone();
    assert_eq!((field(&gone, "state"), field(&gone, "message")), ("gone", "a snapshot of web is gone"), "{gone:#}");
    assert_eq!((&gone["task_id"], &gone["vm_key"]), (&stays["task_id"], &stays["vm_key"]));
    assert_eq!((lab.snapshots(), field(&check(), "status")), (Vec::new(), "ok"));
    assert!(metrics().lines().any(|line| line == "sendense_left_over 0"), "{}", metrics());
}

#[test]
fn a_snapshot_that_cannot_be_removed_raises_an_alarm_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let _machine = Machine::new(&lab, 8 * MIB);
    let hub = Hub::launch(dir, "hub", &LEASE).unwrap();
    set_up(&hub, dir, &lab);
    stays_until_it_is_removed((&hub, dir, &lab), ("NoPermission", "NoPermission"), &|| hub.backup("web", &[]));
}

#[test]
fn a_snapshot_that_a_node_cannot_remove_raises_an_alarm_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let _machine = Machine::new(&lab, 8 * MIB);
    let hub = enrolled(dir, &LEASE, &[]);
    let _node = Node::start(dir, &[]);
    add_behind_node(&hub, dir, &lab);
    let lock = ("FileLocked", "somebody else works on the machine");
    stays_until_it_is_removed((&hub.hub, dir, &lab), lock, &|| hub.backup("web"));
}

#[test]
fn the_doctor_needs_no_hub_and_says_what_to_do() {
    let lab = Lab::new();
    let doctor = |more: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sendense"))
            .args(["node", "doctor", "--nbdkit-plugin", path(&lab.plugin)])
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let libdir = path(&lab.libdir);
    let (code, told) = doctor(&["--vddk-libdir", libdir]);
    assert_eq!(code, Some(0), "{told}");
    for what in ["nbdkit", "filters", "vddk plugin", "libvixDiskLib.so.8", "VDDK loads", "nbdssl of file:nbdssl:nbd"] {
        assert!(told.contains(what), "{what}: {told}");
    }
    let (code, told) = doctor(&["--vddk-libdir", libdir, "--transports", "nbdssl:hotadd"]);
    assert!(code == Some(1) && told.contains("hotadd not among") && told.contains("--transports"), "{told}");
    let (code, told) = doctor(&["--vddk-libdir", "/nonexistent", "--json"]);
    assert_eq!(code, Some(1), "{told}");
    let found: serde_json::Value = serde_json::from_str(&told).unwrap();
    let last = found["findings"].as_array().unwrap().last().unwrap().clone();
    assert!(last["ok"] == false && field(&last, "advice").contains("VMware"), "{found:#}");
    assert_eq!(found["success"], false);
    let (code, told) = doctor(&["--vddk-libdir", libdir, "--transports", "pigeon"]);
    assert!(code != Some(0) && told.contains("pigeon"), "{told}");

    // VDDK 9 has a name that the plugin does not know.
    let lib64 = lab.libdir.join("lib64");
    std::fs::rename(lib64.join("libvixDiskLib.so.8"), lib64.join("libvixDiskLib.so.9")).unwrap();
    let (code, told) = doctor(&["--vddk-libdir", libdir]);
    assert!(code == Some(0) && told.contains("libvixDiskLib.so.9; the plugin gets it"), "{told}");
    // What is no library.
    std::fs::remove_file(lib64.join("libvixDiskLib.so.9")).unwrap();
    std::fs::write(lib64.join("libvixDiskLib.so.8"), "no library").unwrap();
    let (code, told) = doctor(&["--vddk-libdir", libdir]);
    assert!(code == Some(1) && told.contains("cannot load it") && told.contains("ldd"), "{told}");
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let ours = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("sendense-doctor-"));
    assert_eq!(ours.count(), 0, "its folder stays");
}

/// Kills of the hub. Each costs a start of the hub, of nbdkit and of the library.
const ROUNDS: usize = 20;

#[test]
fn a_hub_that_is_killed_leaves_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 8 * MIB);
    let mut random = Random::new(7);
    let mut hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    hub.backup("web", &[]);
    let mut met = 0;
    for round in 0..ROUNDS {
        machine.write(random.below(7 << 20) as usize, &random.bytes(300_000));
        // A backup that had not begun when the hub died begins when the next one serves.
        let waits = |task: &Value| ["pending", "running"].contains(&field(task, "state"));
        let patience = Instant::now() + PATIENCE;
        while hub.json(&["task", "list"])["tasks"].as_array().unwrap().iter().any(waits) {
            assert!(Instant::now() < patience, "round {round}: a task does not end\n{}", hub.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let started = hub.json(&["backup", "start", "web", "--repo", "main"]);
        if round % 2 == 0 {
            // Any moment from before the snapshot to after its removal.
            std::thread::sleep(Duration::from_millis(random.below(700)));
        } else {
            // While it is there, which on a fast machine is not for long.
            let id = field(&started["backup"], "backup_id");
            let ended = || !hub.json(&["backup", "show", id])["backup"]["completed_at"].is_null();
            while lab.snapshots().is_empty() && !ended() {}
        }
        hub.kill_9();
        met += usize::from(!lab.snapshots().is_empty());
        hub = Hub::start(dir);
        let patience = Instant::now() + PATIENCE;
        while !lab.snapshots().is_empty() {
            assert!(Instant::now() < patience, "round {round}: a snapshot stays\n{}", hub.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    println!("{met} of {ROUNDS} kills met a snapshot");
    assert!(met > 0, "no kill ever met a snapshot");
    let last = hub.backup("web", &[]);
    let restored = dir.join("restored.raw");
    hub.ok(&["restore", "disk", field(&last, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &machine.bytes);
    let left = machine.vim.snapshots(&machine.guest.machine, &Cancel::new()).unwrap();
    assert!(left.is_empty() && lab.snapshots().is_empty(), "{left:?}");
}
