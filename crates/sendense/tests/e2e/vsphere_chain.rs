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

    let repo = dir.join("repo");
    let images = tree(&repo);
    for (number, (id, states)) in points.iter().enumerate() {
        for (disk, (_, snapshot)) in states.iter().enumerate() {
            let image = images.iter().find(|file| file.ends_with(&format!("disk-{disk}/{id}.qcow2"))).unwrap();
            let (image, out) = (repo.join(image), dir.join("out"));
            let held = std::fs::read(snapshot).unwrap();
            tool("qemu-utils", "qemu-img", &["check", "-q", path(&image)]);
            tool(
                "qemu-utils",
                "qemu-img",
                &["compare", "-q", "-f", "qcow2", "-F", "raw", path(&image), path(snapshot)],
            );
            hub.ok(&["restore", "disk", id, "--disk", &disk.to_string(), "--to", path(&out), "--wait"]);
            assert_holds(&out, &held);
            if number == INCREMENTALS {
                tool("qemu-utils", "qemu-img", &["convert", "-f", "qcow2", "-O", "raw", path(&image), path(&out)]);
                assert_holds(&out, &held);
            }
            std::fs::remove_file(&out).unwrap();
        }
    }
    assert_eq!(hub.stop(), Some(0));
}
