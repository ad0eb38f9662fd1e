//! A vCenter's machine, backed up again and again: every point of the chains is what its snapshot held.
//!
//! The simulator keeps what each snapshot froze, so that a point is compared with the snapshot's disk and not with what the
//! guest made of it since. The guest writes on while the snapshot is read.

use crate::disk::{Random, assert_holds};
use crate::hub::{Hub, field, path, tool, tree};
use crate::vsphere::lab::{Guest, Lab, MIB, Trouble, write};
use crate::vsphere::set_up;
use sendense_block::Cancel;
use sendense_vsphere::Vim;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The second is no multiple of a block.
const SIZES: [u64; 2] = [8 * MIB, 2 * MIB + 3 * 1024];
const INCREMENTALS: usize = 20;

/// What the guest writes between the snapshot and the reading of it.
static MEANWHILE: Mutex<Vec<(PathBuf, u64, Vec<u8>)>> = Mutex::new(Vec::new());

fn meanwhile(_call: &str) {
    for (file, at, bytes) in MEANWHILE.lock().unwrap().drain(..) {
        write(&file, at, &bytes);
    }
}

/// A few writes anywhere, of zeros too, aligned to nothing.
fn writes(files: &[PathBuf], random: &mut Random) -> Vec<(PathBuf, u64, Vec<u8>)> {
    let one = |random: &mut Random| {
        let disk = random.below(2) as usize;
        let at = random.below(SIZES[disk]);
        let most = (SIZES[disk] - at).min(100_000);
        let bytes = random.below(most) as usize + 1;
        (files[disk].clone(), at, random.bytes(bytes))
    };
    (0..1 + random.below(8)).map(|_| one(random)).collect()
}

/// What the newest snapshot froze of each disk, and the number of that snapshot.
fn frozen(lab: &Lab, vim: &Vim, guest: &Guest<'_>) -> Vec<(u64, PathBuf)> {
    let machine = vim.machine(&guest.machine, &Cancel::new()).unwrap();
    let newest = |uuid: &str| {
        let states = std::fs::read_dir(lab.root.join(".cbt").join(uuid)).unwrap().map(|entry| entry.unwrap().path());
        let number = |state: &Path| path(state).rsplit_once('-').unwrap().1.parse::<u64>().unwrap();
        states.map(|state| (number(&state), state)).max().unwrap()
    };
    machine.devices.disks.iter().map(|disk| newest(disk.backing.uuid.as_deref().unwrap())).collect()
}

#[test]
fn each_of_twenty_incrementals_is_what_its_snapshot_held() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    // Some answers about changes end before the disk does.
    lab.control("areas-max", "3");
    let vim = lab.vim();
    let guest = lab.machine(&vim, "web", &SIZES);
    let files = [guest.file(&vim, 0), guest.file(&vim, 1)];
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    let mut random = Random::new(20);
    let mut points = Vec::new();
    for round in 0..=INCREMENTALS {
        for (file, at, bytes) in writes(&files, &mut random) {
            write(&file, at, &bytes);
        }
        *MEANWHILE.lock().unwrap() = writes(&files, &mut random);
        lab.proxy.arm("QueryChangedDiskAreas", 1, 1, Trouble::Call(meanwhile));
        let snapshots = lab.proxy.count("CreateSnapshot_Task");
        let point = hub.backup("web", &[]);
        assert_eq!(lab.proxy.count("CreateSnapshot_Task") - snapshots, 1, "one for both disks");
        assert_eq!(field(&point, "backup_type"), if round == 0 { "full" } else { "incremental" }, "{point:#}");
        if round > 0 {
            assert!(point["type_reason"].is_null(), "{point:#}");
            assert!(MEANWHILE.lock().unwrap().is_empty(), "the guest has not written while it was read");
        }
        let states = frozen(&lab, &vim, &guest);
        assert!(states.iter().all(|(number, _)| *number == round as u64 + 1), "{states:?}");
        points.push((field(&point, "backup_id").to_owned(), states));
    }
    assert_eq!(lab.snapshots(), Vec::<String>::new());

    for (number, (id, states)) in points.iter().enumerate() {
        for (disk, (_, snapshot)) in states.iter().enumerate() {
            is_kept(&hub, dir, id, disk as u64, snapshot);
            if number == INCREMENTALS {
                let out = dir.join("out");
                let image = image_of(dir, id, disk as u64);
                tool("qemu-utils", "qemu-img", &["convert", "-f", "qcow2", "-O", "raw", path(&image), path(&out)]);
                assert_holds(&out, &std::fs::read(snapshot).unwrap());
                std::fs::remove_file(&out).unwrap();
            }
        }
    }
    assert_eq!(hub.stop(), Some(0));
}

/// The image of a point's disk, in the repository that lies in `dir`.
fn image_of(dir: &Path, id: &str, disk: u64) -> PathBuf {
    let repo = dir.join("repo");
    let name = format!("disk-{disk}/{id}.qcow2");
    let image = tree(&repo).into_iter().find(|file| file.ends_with(&name)).unwrap_or_else(|| panic!("no {name}"));
    repo.join(image)
}

/// A point's disk is what the snapshot held: for QEMU, and restored.
fn is_kept(hub: &Hub, dir: &Path, id: &str, disk: u64, snapshot: &Path) {
    let (image, out) = (image_of(dir, id, disk), dir.join("out"));
    tool("qemu-utils", "qemu-img", &["check", "-q", path(&image)]);
    tool("qemu-utils", "qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", path(&image), path(snapshot)]);
    hub.ok(&["restore", "disk", id, "--disk", &disk.to_string(), "--to", path(&out), "--wait"]);
    assert_holds(&out, &std::fs::read(snapshot).unwrap());
    std::fs::remove_file(&out).unwrap();
}

/// Backs a machine up; keeps what the snapshot held of each disk that the point has. Gives the point too.
fn back_up(hub: &Hub, dir: &Path, lab: &Lab, vim: &Vim, guest: &Guest<'_>) -> (Value, Vec<(u64, PathBuf)>) {
    let point = hub.backup("web", &[]);
    let machine = vim.machine(&guest.machine, &Cancel::new()).unwrap();
    let states = frozen(lab, vim, guest);
    let disks = point["disks"].as_array().unwrap();
    assert_eq!(disks.len(), machine.devices.disks.len(), "{point:#}");
    let mut held = Vec::new();
    for (device, (_, state)) in machine.devices.disks.iter().zip(states) {
        let key = format!("disk-{}", device.key);
        let disk = disks.iter().find(|disk| disk["disk_key"] == *key).unwrap_or_else(|| panic!("{key}: {point:#}"));
        let number = disk["disk_id"].as_u64().unwrap();
        let copy = dir.join(format!("{}-{number}", field(&point, "backup_id")));
        // The simulator forgets the snapshots of a disk that is taken away.
        std::fs::copy(state, &copy).unwrap();
        held.push((number, copy));
    }
    (point, held)
}

/// Why a disk of a point was compared instead of read by its changes.
fn reason<'a>(point: &'a Value, key: &str) -> Option<&'a str> {
    let disk = point["disks"].as_array().unwrap().iter().find(|disk| disk["disk_key"] == key).unwrap();
    disk["type_reason"].as_str()
}

#[test]
fn disks_that_come_grow_and_go_stay_in_every_point_that_had_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let vim = lab.vim();
    let guest = lab.machine(&vim, "web", &[2 * MIB, MIB]);
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    let mut points = Vec::new();
    guest.write(&vim, 0, 5, &[1; 100_000]);
    guest.write(&vim, 1, 70_000, &[2; 100_000]);
    points.push(back_up(&hub, dir, &lab, &vim, &guest));

    // One grows, by half a block too, and is written in the old part, across the old end, and in the new part.
    guest.grow(&vim, 0, 3 * MIB + 512);
    for (at, len) in [(MIB, 10), (2 * MIB - 1000, 2000), (3 * MIB + 100, 412)] {
        guest.write(&vim, 0, at, &vec![3; len]);
    }
    points.push(back_up(&hub, dir, &lab, &vim, &guest));
    let told = reason(&points[1].0, "disk-2000").unwrap();
    assert!(told.contains("3146240 bytes and had 2097152"), "{told}");
    assert_eq!(reason(&points[1].0, "disk-2001"), None);

    // One comes.
    guest.add(&vim, 2, 5 * MIB);
    guest.write(&vim, 2, 1000, &[4; 200_000]);
    guest.write(&vim, 0, 3 * MIB, &[5; 512]);
    points.push(back_up(&hub, dir, &lab, &vim, &guest));
    assert_eq!((reason(&points[2].0, "disk-2000"), reason(&points[2].0, "disk-2001")), (None, None));

    // One goes, and another takes its place and its key.
    guest.remove(&vim, 1);
    guest.write(&vim, 0, 0, &[6; 70_000]);
    points.push(back_up(&hub, dir, &lab, &vim, &guest));
    guest.add(&vim, 1, MIB);
    let disks = vim.machine(&guest.machine, &Cancel::new()).unwrap().devices.disks;
    let another = disks.iter().position(|disk| disk.key == 2001).unwrap();
    guest.write(&vim, another, 3, &[7; 300]);
    points.push(back_up(&hub, dir, &lab, &vim, &guest));
    guest.write(&vim, another, MIB - 300, &[8; 300]);
    points.push(back_up(&hub, dir, &lab, &vim, &guest));

    assert_eq!(points.iter().map(|(_, held)| held.len()).collect::<Vec<_>>(), [2, 2, 3, 2, 3, 3]);
    for (point, held) in &points {
        assert_eq!((field(point, "status"), &point["partial"]), ("completed", &false.into()), "{point:#}");
        for (disk, snapshot) in held {
            is_kept(&hub, dir, field(point, "backup_id"), *disk, snapshot);
        }
    }
    // With the start of each chain merged away they are still the same.
    for _ in 0..2 {
        let (gone, _) = points.remove(0);
        hub.ok(&["backup", "merge", field(&gone, "backup_id"), "--yes"]);
        for (point, held) in &points {
            held.iter().for_each(|(disk, snapshot)| is_kept(&hub, dir, field(point, "backup_id"), *disk, snapshot));
        }
    }
    assert_eq!(lab.snapshots(), Vec::<String>::new());
    assert_eq!(hub.stop(), Some(0));
}
