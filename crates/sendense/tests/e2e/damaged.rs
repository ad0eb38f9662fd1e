//! A block rots in the repository and nobody has looked since: no restore gives it away as what was backed up.

use crate::disk::{Random, assert_holds};
use crate::hub::{Hub, PATIENCE, field, path, text, tool, tree};
use crate::verification::{id, noise, rot, shown, write};
use crate::vsphere::lab::{Lab, MIB};
use crate::vsphere::{self, Machine};
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BLOCK: usize = 65536;

/// A file that anybody can write to over NBD; ends with the test.
struct Server(Child);

impl Server {
    fn over(file: &Path, socket: &Path) -> Self {
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=4", "--format=raw", "--export-name=disk", "--socket"])
            .args([socket, file])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-nbd: {error}; install the Debian package qemu-utils"));
        let patience = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < patience, "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine of three points. Block 7 of its disk is the first one's, and the third one hides it.
struct House {
    dir: tempfile::TempDir,
    hub: Hub,
    points: [Value; 3],
    /// What each of them holds.
    bytes: [Vec<u8>; 3],
}

impl House {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut web = noise(&dir.path().join("vms/web/disk0.raw"), 24, &mut Random::new(seed));
        let hub = Hub::start(dir.path());
        hub.set_up_images(dir.path());
        let (first, first_bytes) = (hub.backup("web", &[]), web.bytes.clone());
        write(&mut web, 3 * BLOCK + 100, b"what the guest wrote");
        let (second, second_bytes) = (hub.backup("web", &[]), web.bytes.clone());
        write(&mut web, 5 * BLOCK, &[7; 10 * BLOCK]);
        let third = hub.backup("web", &[]);
        // It was all right when somebody looked.
        hub.ok(&["backup", "verify", id(&third), "--deep"]);
        Self { dir, hub, points: [first, second, third], bytes: [first_bytes, second_bytes, web.bytes] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self, point: usize) -> String {
        let name = format!("disk-0/{}.qcow2", id(&self.points[point]));
        tree(&self.path("repo")).into_iter().find(|file| file.ends_with(&name)).unwrap()
    }

    /// A bit of a block of the first point flips.
    fn rot(&self, block: usize) {
        rot(&self.path("repo").join(self.image(0)), &self.bytes[0][block * BLOCK..][..BLOCK]);
    }

    fn restore<'a>(&'a self, point: usize, to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["restore", "disk", id(&self.points[point]), "--to", to], more, &["--wait"]].concat()
    }

    fn states(&self) -> [String; 3] {
        [0, 1, 2].map(|point| field(&shown(&self.hub, &self.points[point]), "verify_state").to_owned())
    }
}

#[test]
fn a_rotten_block_reaches_no_target_and_is_told() {
    let house = House::new(81);
    let hub = &house.hub;
    assert_eq!(house.states(), ["sound"; 3]);
    let events = hub.listen(house.dir.path());
    house.rot(7);
    let told = |said: &str, point: usize| {
        let name = format!("disk 0 of {}", id(&house.points[point]));
        let block = format!("block 7 (bytes {}..{}) of {name}, which lies in {}", 7 * BLOCK, 8 * BLOCK, house.image(0));
        assert!(said.contains(&format!("{name} is damaged")) && said.contains(&block), "{said}");
        assert!(said.contains("take another point") && said.contains("--allow-damaged"), "{said}");
    };
    let targets = house.path("targets");
    fs::create_dir(&targets).unwrap();
    let out = targets.join("out");
    for (point, format) in [(0, "raw"), (1, "raw"), (1, "qcow2"), (1, "vmdk"), (1, "vmdk-stream")] {
        told(&hub.fails(6, &house.restore(point, path(&out), &["--format", format])), point);
    }
    assert_eq!(fs::read_dir(&targets).unwrap().count(), 0, "something is left of a restore");

    // Nobody has asked for a verification: it is done because of the restore, and marks who needs the block.
    let alert = events.event("alert")["alert"].clone();
    assert_eq!((field(&alert, "kind"), id(&alert)), ("point_damaged", id(&house.points[0])));
    let patience = Instant::now() + PATIENCE;
    while house.states() != ["corrupt", "affected", "sound"] {
        assert!(Instant::now() < patience, "{:?}\n{}", house.states(), hub.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let tasks = hub.json(&["task", "list"]);
    let restores = tasks["tasks"].as_array().unwrap().iter().filter(|task| task["kind"] == "restore");
    let said: Vec<String> = restores.map(|task| hub.ok(&["task", "log", field(task, "task_id")])).collect();
    assert_eq!(said.len(), 5);
    assert!(said.iter().all(|log| log.contains("block by block by task-")), "{said:#?}");

    // The target that was there already: what the server has is not the disk, and the task says that it failed.
    let target = house.path("target");
    fs::write(&target, vec![0xee; house.bytes[1].len()]).unwrap();
    let socket = house.path("nbd.sock");
    let server = Server::over(&target, &socket);
    let uri = format!("nbd+unix:///disk?socket={}", path(&socket));
    told(&hub.fails(6, &house.restore(1, &uri, &[])), 1);
    drop(server);
    let held = fs::read(&target).unwrap();
    let block_7 = &house.bytes[0][7 * BLOCK..8 * BLOCK];
    let rotten: Vec<u8> =
        block_7.iter().enumerate().map(|(at, byte)| if at == 777 { byte ^ 4 } else { *byte }).collect();
    assert!(held[7 * BLOCK..8 * BLOCK] != rotten, "the rotten block is written");
    // Onto a file: nothing was written yet, or it bears the mark.
    fs::write(&target, vec![0xee; house.bytes[1].len()]).unwrap();
    let onto = ["restore", "disk", id(&house.points[1]), "--onto", path(&target), "--wait"];
    told(&hub.fails(6, &onto), 1);
    let held = fs::read(&target).unwrap();
    assert!(held.iter().all(|byte| *byte == 0xee) || held.starts_with(b"SENDENSE UNFINISHED RESTORE"));

    // What hides the block is not hurt by it, wherever it goes.
    hub.ok(&["restore", "disk", id(&house.points[2]), "--onto", path(&target), "--wait"]);
    assert_holds(&target, &house.bytes[2]);
    hub.ok(&house.restore(2, path(&out), &[]));
    assert_holds(&out, &house.bytes[2]);

    // Without a hub it is the same.
    let offline = |point: usize, to: &Path| {
        let mut command = Command::new(crate::hub::SENDENSE);
        command.args(["offline", "restore", "--repo-path", path(&house.path("repo")), id(&house.points[point])]);
        command.args(["--to", path(to)]).output().unwrap()
    };
    let failed = offline(1, &house.path("offline"));
    assert!(!failed.status.success() && text(&failed.stderr).contains("block 7 "), "{failed:?}");
    assert!(!house.path("offline").exists());
    assert!(offline(2, &house.path("offline")).status.success());
    assert_holds(&house.path("offline"), &house.bytes[2]);
}

#[test]
fn what_is_left_of_a_damaged_point_is_restored_when_that_is_said() {
    let house = House::new(82);
    let hub = &house.hub;
    house.rot(7);
    house.rot(20);
    let mut left = house.bytes[1].clone();
    [7, 20].into_iter().for_each(|block| left[block * BLOCK + 777] ^= 4);
    let warning =
        "WARNING: 2 blocks are damaged in the point and were restored all the same: 2 as they were read, 0 as zeros";
    let told = |answer: &Value| {
        let task = &answer["task"];
        assert_eq!(field(task, "state"), "completed", "{task:#}");
        assert!(field(task, "summary").contains(warning), "{task:#}");
        let log = hub.ok(&["task", "log", field(task, "task_id")]);
        let name = format!("disk 0 of {}", id(&house.points[1]));
        for block in [7, 20] {
            let bytes = format!("(bytes {}..{})", block * BLOCK, (block + 1) * BLOCK);
            let line = format!("what {name} holds in blocks {block} to {block} {bytes} is not what was backed up");
            assert!(log.contains(&line), "{log}");
        }
        assert!(log.contains(warning) && log.contains("block by block by task-"), "{log}");
    };
    let out = house.path("out");
    hub.fails(6, &house.restore(1, path(&out), &[]));
    for format in ["raw", "qcow2", "vmdk"] {
        told(&hub.json(&house.restore(1, path(&out), &["--format", format, "--allow-damaged"])));
        let raw = house.path("raw");
        tool("qemu-utils", "qemu-img", &["convert", "-f", format, "-O", "raw", path(&out), path(&raw)]);
        assert_holds(&raw, &left);
        fs::remove_file(&out).unwrap();
    }
    let target = house.path("target");
    fs::write(&target, vec![0xee; left.len()]).unwrap();
    let socket = house.path("nbd.sock");
    let server = Server::over(&target, &socket);
    let uri = format!("nbd+unix:///disk?socket={}", path(&socket));
    told(&hub.json(&house.restore(1, &uri, &["--allow-damaged"])));
    drop(server);
    assert_holds(&target, &left);
    // Onto what holds another state, the rest of it right already.
    fs::write(&target, &house.bytes[2]).unwrap();
    let onto = ["restore", "disk", id(&house.points[1]), "--onto", path(&target), "--allow-damaged", "--wait"];
    told(&hub.json(&onto));
    assert_holds(&target, &left);

    // What newer points hide is not damaged in them: block 7 is the third point's own.
    let third = hub.json(&house.restore(2, path(&out), &["--allow-damaged"]));
    assert!(field(&third["task"], "summary").contains("WARNING: 1 blocks"), "{third:#}");

    // Without a hub.
    let offline = house.path("offline");
    let mut command = Command::new(crate::hub::SENDENSE);
    command.args(["offline", "restore", "--repo-path", path(&house.path("repo")), id(&house.points[1])]);
    let said = command.args(["--to", path(&offline), "--allow-damaged"]).output().unwrap();
    let (said, succeeded) = (text(&said.stderr), said.status.success());
    assert!(succeeded && said.contains("WARNING: 2 blocks") && said.contains("written as they were read"), "{said}");
    assert_holds(&offline, &left);
}

/// Flips bits of a block of noise, wherever it lies in the repository.
fn rot_in(repository: &Path, noise: &[u8]) {
    let images = tree(repository).into_iter().filter(|file| file.ends_with(".qcow2"));
    let holding: Vec<PathBuf> = images
        .map(|image| repository.join(image))
        .filter(|image| fs::read(image).unwrap().windows(BLOCK).step_by(512).any(|part| part == noise))
        .collect();
    let [image] = &holding[..] else { panic!("{holding:?} hold it") };
    rot(image, noise);
}

#[test]
fn a_rotten_block_makes_no_machine_of_a_vcenter() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, 4 * MIB);
    let mut random = Random::new(83);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).take(BLOCK / 8).flatten().collect();
    machine.write(3 << 20, &noise);
    machine.write(0, b"boot");
    let hub = Hub::start(dir);
    vsphere::set_up(&hub, dir, &lab);
    let point = hub.backup("web", &[]);
    let mut left = machine.bytes.clone();
    left[(3 << 20) + 777] ^= 4;
    rot_in(&dir.join("repo"), &noise);
    let restore = ["restore", "vm", id(&point), "--vsphere", "vc", "--wait"];
    let said = hub.fails(6, &[&restore[..], &["--name", "rotten"]].concat());
    assert!(said.contains(&format!("disk 0 of {} is damaged", id(&point))) && said.contains("block 48 "), "{said}");
    assert_eq!(vsphere::named(&machine.vim, "rotten").len(), 0, "a machine of damaged disks stays");
    machine.write(3 << 20, &[1; BLOCK]);
    let said = hub.fails(6, &[&restore[..], &["--onto", "web", "--force"]].concat());
    assert!(said.contains("block 48 "), "{said}");

    let task = hub.json(&[&restore[..], &["--name", "left", "--allow-damaged"]].concat());
    assert!(field(&task["task"], "summary").contains("WARNING: 1 blocks are damaged"), "{task:#}");
    let made = vsphere::named(&machine.vim, "left").remove(0);
    let file = made.devices.disks[0].backing.file_name.as_deref().unwrap();
    let (store, file) = file[1..].split_once("] ").unwrap();
    assert_holds(&lab.root.join(store).join(file), &left);
    let task = hub.json(&[&restore[..], &["--onto", "web", "--force", "--allow-damaged"]].concat());
    assert!(field(&task["task"], "summary").contains("WARNING: 1 blocks are damaged"), "{task:#}");
    assert_holds(&machine.file, &left);
}
