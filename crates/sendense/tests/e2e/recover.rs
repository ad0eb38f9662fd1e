//! Machines straight from restore points: written to by other people's programs, through kills, until they are discarded.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, cli, field, path, text, tool, tree};
use crate::verification::{noise, rot};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const SIZE: usize = 24 << 20;
/// What a writer writes at once; not a block on purpose, so that blocks are shared by writes.
const SLOT: usize = 24 << 10;

/// Waits until a recovery is served; gives it.
pub fn until_ready(hub: &Hub, name: &str) -> Value {
    let patience = Instant::now() + PATIENCE;
    loop {
        let found = hub.json(&["recover", "show", name])["recovery"].clone();
        if found["status"] == "ready" {
            return found;
        }
        assert!(Instant::now() < patience, "not served: {found:#}\n{}", hub.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn uri(recovery: &Value, disk: usize) -> String {
    field(&recovery["disks"][disk], "uri").to_owned()
}

/// Writes slot after slot, flushing now and then, and says of each when it is done.
fn writer(uri: &str) -> Child {
    let program = format!(
        "import sys\n\
         slot, size = {SLOT}, h.get_size()\n\
         for n in range(size // slot):\n\
        \x20   h.pwrite(bytes([n % 255 + 1]) * slot, n * slot)\n\
        \x20   if n % 16 == 15: h.flush()\n\
        \x20   print(n, flush=True)\n"
    );
    let args = ["-u", uri, "-c", &program];
    // Its module is one of Debian's Python, which another one may hide.
    let child = Command::new("nbdsh")
        .args(args)
        .env("PATH", "/usr/bin:/bin")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    child.unwrap_or_else(|error| panic!("nbdsh: {error}; install the Debian packages libnbd-bin and python3-libnbd"))
}

#[test]
fn what_was_written_outlives_the_hub_until_it_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(41);
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), SIZE, &mut random);
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let point = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let recoveries = hub.data_dir.join("recoveries");
    hub.fails(3, &["recover", "instant", "bk-none", "--name", "r"]);

    let begun = hub.json(&["recover", "instant", &point, "--name", "r"])["recovery"].clone();
    let first = uri(&begun, 0);
    assert_eq!((begun["status"].as_str(), begun["disks"][0]["held_bytes"].as_u64()), (Some("ready"), Some(0)));
    assert!(!begun["documents"].as_array().unwrap().is_empty(), "the recorded configuration is told: {begun:#}");
    let said = hub.fails(4, &["recover", "instant", &point, "--name", "r"]);
    assert!(said.contains("taken"), "{said}");
    let copy = dir.join("copy");
    let mut model = disk.bytes.clone();
    let assert_serves = |uri: &str, model: &[u8]| {
        tool("libnbd-bin", "nbdcopy", &[uri, path(&copy)]);
        assert_holds(&copy, model);
    };
    assert_serves(&first, &model);
    let io = ["-f", "raw", "-c", "write -P 7 100k 300k", "-c", "write -z 1M 2M", "-c", "flush", &first];
    tool("qemu-utils", "qemu-io", &io);
    model[100 << 10..400 << 10].fill(7);
    model[1 << 20..3 << 20].fill(0);
    assert_serves(&first, &model);

    // The point is held, and is what it was.
    for args in [&["backup", "delete", &point, "--yes"][..], &["backup", "delete", &point, "--cascade", "--yes"]] {
        let said = hub.fails(4, args);
        assert!(said.contains("recovery rcv-"), "{said}");
    }
    let restored = dir.join("restored");
    hub.ok(&["restore", "disk", &point, "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &disk.bytes);
    // What is secret stays so.
    let token = dir.join("viewer");
    std::fs::write(&token, hub.ok(&["token", "create", "--name", "v", "--role", "viewer"])).unwrap();
    for words in [&["recover", "list", "--json"][..], &["recover", "show", "r", "--json"]] {
        let viewed = text(&cli(&hub.url, Some(&token)).args(words).output().unwrap().stdout);
        assert!(viewed.contains("rcv-") && !viewed.contains("nbd+unix"), "{viewed}");
    }
    let record = recoveries.join(format!("{}.json", field(&begun, "recovery_id")));
    assert_eq!(std::fs::metadata(&record).unwrap().permissions().mode() & 0o777, 0o600);

    // Killed in the middle of writes: what was told to be done is there, flushed or not, for the kernel lives on.
    let mut child = writer(&first);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut done = 0;
    for line in lines.by_ref().take(200) {
        done = line.unwrap().parse::<usize>().unwrap() + 1;
    }
    hub.kill_9();
    for line in lines {
        done = line.unwrap().parse::<usize>().unwrap() + 1;
    }
    assert!(!child.wait().unwrap().success() && done >= 200, "it was killed too late: {done}");
    // Held although nobody serves it: a hub without its recovery's claim yet still knows of it.
    hub = Hub::start(dir);
    hub.fails(4, &["backup", "delete", &point, "--cascade", "--yes"]);
    assert_eq!(uri(&until_ready(&hub, "r"), 0), first, "the URI is the same");
    for n in 0..done {
        model[n * SLOT..(n + 1) * SLOT].fill((n % 255 + 1) as u8);
    }
    tool("libnbd-bin", "nbdcopy", &[&first, path(&copy)]);
    let found = std::fs::read(&copy).unwrap();
    // The one that was under way may be there, in part or not at all.
    let under_way = done * SLOT..((done + 1) * SLOT).min(SIZE);
    assert!(found[..under_way.start] == model[..under_way.start], "a write that was told to be done is lost");
    assert!(found[under_way.end..] == model[under_way.end..], "what nobody wrote to has changed");
    model[under_way.clone()].copy_from_slice(&found[under_way]);

    // The same after an orderly end.
    tool("qemu-utils", "qemu-io", &["-f", "raw", "-c", "write -P 9 20M 1M", &first]);
    model[20 << 20..21 << 20].fill(9);
    assert_eq!(hub.stop(), Some(0));
    hub = Hub::start(dir);
    let listed = until_ready(&hub, "r");
    assert!(listed["disks"][0]["held_bytes"].as_u64() > Some(4 << 20), "{listed:#}");
    assert_serves(&first, &model);

    hub.ok(&["recover", "discard", "r", "--yes"]);
    assert_eq!(tree(&recoveries), Vec::<String>::new());
    assert!(!Command::new("nbdinfo").args(["--size", &first]).output().unwrap().status.success());
    hub.fails(3, &["recover", "show", "r"]);
    hub.ok(&["backup", "delete", &point, "--yes"]);
    assert_eq!(hub.stop(), Some(0));
}

/// Records that another state was reached when the hub died.
pub fn set_state(record: &Path, state: impl Into<Value>) {
    let mut found: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    found["state"] = state.into();
    std::fs::write(record, found.to_string()).unwrap();
}

#[test]
fn what_was_only_begun_or_half_ended_goes_and_room_is_left_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut Random::new(42));
    let elsewhere = dir.join("elsewhere");
    let there = ["--recovery-dir", path(&elsewhere)];
    let mut hub = Hub::launch(dir, "hub", &there).unwrap();
    hub.set_up_images(dir);
    let point = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let recoveries = hub.data_dir.join("recoveries");
    for state in ["creating", "ending"] {
        let begun = hub.json(&["recover", "instant", &point, "--name", state])["recovery"].clone();
        tool("qemu-utils", "qemu-io", &["-f", "raw", "-c", "write -P 7 0 1M", &uri(&begun, 0)]);
        assert!(tree(&elsewhere).iter().any(|file| file.ends_with("disk-0/journal")), "{:?}", tree(&elsewhere));
        hub.kill_9();
        set_state(&recoveries.join(format!("{}.json", field(&begun, "recovery_id"))), state);
        hub = Hub::launch(dir, "hub", &there).unwrap();
        let patience = Instant::now() + PATIENCE;
        while !(tree(&recoveries).is_empty() && tree(&elsewhere).is_empty()) {
            assert!(Instant::now() < patience, "{:?} is left\n{}", tree(&elsewhere), hub.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(hub.json(&["recover", "list"])["total"], 0);
    }
    // Nobody restores into what recovered machines write.
    let inside = elsewhere.join("x");
    hub.fails(2, &["restore", "disk", &point, "--to", path(&inside), "--wait"]);
    assert_eq!(hub.stop(), Some(0));

    // More than there is must stay free.
    let hub = Hub::launch(dir, "hub", &["--recovery-floor", "1000TiB"]).unwrap();
    let said = hub.fails(1, &["recover", "instant", &point, "--name", "r"]);
    assert!(said.contains("no space"), "{said}");
    assert_eq!(tree(&recoveries), Vec::<String>::new());
    drop(hub);
    // One at a time.
    let hub = Hub::launch(dir, "hub", &["--recoveries-max", "1"]).unwrap();
    let begun = hub.json(&["recover", "instant", &point, "--name", "one"])["recovery"].clone();
    hub.fails(5, &["recover", "instant", &point, "--name", "two"]);
    let copy = dir.join("copy");
    tool("libnbd-bin", "nbdcopy", &[&uri(&begun, 0), path(&copy)]);
    assert_holds(&copy, &disk.bytes);
}

#[test]
fn what_was_written_becomes_the_next_point() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(43);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 8 << 20, &mut random);
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let recoveries = hub.data_dir.join("recoveries");
    let old = field(&hub.backup("web", &[]), "backup_id").to_owned();
    disk.write_somewhere(1 << 20, &mut random);
    let point = field(&hub.backup("web", &[]), "backup_id").to_owned();

    // Of an older point nothing can be committed.
    hub.ok(&["recover", "instant", &old, "--name", "old"]);
    let said = hub.fails(4, &["recover", "commit", "old"]);
    assert!(said.contains("newest"), "{said}");
    hub.ok(&["recover", "discard", "old", "--yes"]);

    let begun = hub.json(&["recover", "instant", &point, "--name", "r"])["recovery"].clone();
    let served = uri(&begun, 0);
    let io = ["-f", "raw", "-c", "write -P 7 100k 300k", "-c", "write -z 4M 1M", "-c", "flush", &served];
    tool("qemu-utils", "qemu-io", &io);
    let mut model = disk.bytes.clone();
    model[100 << 10..400 << 10].fill(7);
    model[4 << 20..5 << 20].fill(0);
    // Whoever is connected may write.
    let mut client = writer_that_waits(&served);
    let said = hub.fails(4, &["recover", "commit", "r"]);
    assert!(said.contains("connected"), "{said}");
    client.kill().unwrap();
    client.wait().unwrap();

    // A commit that was cut off before the point was there is none.
    let record = recoveries.join(format!("{}.json", field(&begun, "recovery_id")));
    let committing = |backup_id: &str| serde_json::json!({ "committing": { "backup_id": backup_id } });
    hub.kill_9();
    set_state(&record, committing("bk-none"));
    hub = Hub::start(dir);
    assert_eq!(uri(&until_ready(&hub, "r"), 0), served);

    let patience = Instant::now() + PATIENCE;
    while until_ready(&hub, "r")["disks"][0]["clients"] != 0 {
        assert!(Instant::now() < patience, "a client that was killed is still there");
    }
    let made = hub.json(&["recover", "commit", "r", "--wait"])["backup"].clone();
    let committed = field(&made, "backup_id").to_owned();
    assert_eq!((field(&made, "status"), field(&made, "parent_backup_id")), ("completed", point.as_str()));
    assert_eq!(made["disks"][0]["type_reason"], Value::Null, "only what was written was read: {made:#}");
    assert!(made["bytes_transferred"].as_u64() < Some(1 << 20), "{made:#}");
    assert_eq!(tree(&recoveries), Vec::<String>::new());
    hub.fails(3, &["recover", "show", "r"]);
    let restored = dir.join("restored");
    for (id, want) in [(&committed, &model), (&point, &disk.bytes)] {
        hub.ok(&["restore", "disk", id, "--to", path(&restored), "--wait"]);
        assert_holds(&restored, want);
        std::fs::remove_file(&restored).unwrap();
    }
    hub.ok(&["backup", "verify", &committed, "--deep"]);

    // The machine itself has not seen it: its next backup reads all, and says why.
    disk.write_somewhere(1 << 20, &mut random);
    let next = hub.backup("web", &[]);
    assert_eq!(field(&next, "parent_backup_id"), committed);
    hub.ok(&["restore", "disk", field(&next, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &disk.bytes);

    // A commit that was cut off when the point was there has been one.
    let newest = field(&next, "backup_id").to_owned();
    let begun = hub.json(&["recover", "instant", &newest, "--name", "r"])["recovery"].clone();
    hub.kill_9();
    set_state(&recoveries.join(format!("{}.json", field(&begun, "recovery_id"))), committing(&newest));
    let hub = Hub::start(dir);
    let patience = Instant::now() + PATIENCE;
    while !tree(&recoveries).is_empty() {
        assert!(Instant::now() < patience, "{}", hub.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// What rotted in the point is not taken for what a machine has written, nor for what it has not.
#[test]
fn what_rotted_below_a_recovery_becomes_no_point() {
    const BLOCK: usize = 65536;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = noise(&dir.join("vms/web/disk0.raw"), 24, &mut Random::new(48));
    let hub = Hub::launch(dir, "hub", &["--audit-per-million", "0"]).unwrap();
    hub.set_up_images(dir);
    let point = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let name = format!("disk-0/{point}.qcow2");
    let image = tree(&dir.join("repo")).into_iter().find(|file| file.ends_with(&name)).unwrap();
    let rot = |block: usize| rot(&dir.join("repo").join(&image), &disk.bytes[block * BLOCK..][..BLOCK]);
    let recover = |hub: &Hub, of: &str| uri(&hub.json(&["recover", "instant", of, "--name", "r"])["recovery"], 0);
    let io = |command: &str, uri: &str| {
        tool("qemu-utils", "qemu-io", &["-f", "raw", "-c", command, "-c", "flush", uri]);
    };
    let refused = |hub: &Hub, of: &str, block: usize| {
        let said = hub.fails(6, &["recover", "commit", "r", "--wait"]);
        let told = format!("block {block} (bytes {}..{}) of disk 0 of {of}", block * BLOCK, (block + 1) * BLOCK);
        assert!(said.contains(&told) && said.contains(&image) && said.contains("nothing was committed"), "{said}");
        until_ready(hub, "r");
    };

    // The rest of a block of which a part was written comes from below.
    rot(7);
    let served = recover(&hub, &point);
    io("write -P 1 450k 4k", &served);
    refused(&hub, &point, 7);
    // The hub has the point looked at by itself.
    let patience = Instant::now() + PATIENCE;
    while hub.json(&["backup", "show", &point])["backup"]["verify_state"] != "corrupt" {
        assert!(Instant::now() < patience, "{}", hub.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // One that was written as a whole has nothing of it.
    io("write -P 1 448k 64k", &served);
    let made = hub.json(&["recover", "commit", "r", "--wait"])["backup"].clone();
    let committed = field(&made, "backup_id").to_owned();
    let mut model = disk.bytes.clone();
    model[7 * BLOCK..8 * BLOCK].fill(1);
    let restored = dir.join("restored");
    hub.ok(&["restore", "disk", &committed, "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &model);

    // Where all of a disk is looked at, what nobody wrote to is none of what differs.
    assert_eq!(hub.stop(), Some(0));
    rot(3);
    let hub = Hub::launch(dir, "hub", &["--audit-per-million", "1000000"]).unwrap();
    let served = recover(&hub, &committed);
    io("write -P 2 1M 64k", &served);
    refused(&hub, &committed, 3);
    assert_eq!(hub.json(&["backup", "list", "--vm", "web", "--status", "completed"])["total"], 2);
}

/// A client that stays.
fn writer_that_waits(uri: &str) -> Child {
    let mut child = Command::new("qemu-io")
        .args(["-f", "raw", uri])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("qemu-io: {error}; install the Debian package qemu-utils"));
    // Its prompt comes when it is connected.
    let mut prompt = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
    child
}
