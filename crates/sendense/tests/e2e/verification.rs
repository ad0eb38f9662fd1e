//! What rots is found, marked, told, and stored again by the next backup.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, field, path, tool, tree};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = 65536;

/// A disk of noise: each of its blocks lies in the image as it is.
pub fn noise(path: &Path, blocks: usize, random: &mut Random) -> Disk {
    let mut disk = Disk::create(path, blocks * BLOCK, random);
    let bytes: Vec<u8> = (0..blocks * BLOCK / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    write(&mut disk, 0, &bytes);
    disk
}

/// The guest writes.
pub fn write(disk: &mut Disk, at: usize, bytes: &[u8]) {
    File::options().write(true).open(&disk.path).unwrap().write_all_at(bytes, at as u64).unwrap();
    disk.bytes[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Flips a bit of a block of a disk where it lies in an image.
pub fn rot(image: &Path, block: &[u8]) {
    let stored = fs::read(image).unwrap();
    let at = stored.windows(BLOCK).step_by(512).position(|part| part == block).expect("the block lies as it is") * 512;
    let file = File::options().read(true).write(true).open(image).unwrap();
    file.write_all_at(&[block[777] ^ 4], (at + 777) as u64).unwrap();
}

pub fn shown(hub: &Hub, backup: &Value) -> Value {
    hub.json(&["backup", "show", field(backup, "backup_id")])["backup"].clone()
}

pub fn id(backup: &Value) -> &str {
    field(backup, "backup_id")
}

#[test]
fn what_rots_is_marked_told_and_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(51);
    let mut web = noise(&dir.join("vms/web/disk0.raw"), 24, &mut random);
    noise(&dir.join("vms/web/disk1.raw"), 4, &mut random);
    noise(&dir.join("vms/db/disk0.raw"), 4, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let full = hub.backup("web", &[]);
    let full_of_db = hub.backup("db", &[]);
    write(&mut web, 3 * BLOCK + 100, b"what the guest wrote");
    let second = hub.backup("web", &[]);
    write(&mut web, 5 * BLOCK, &[7; 10 * BLOCK]);
    let third = hub.backup("web", &[]);

    // Proved good: when, how and how fast is known of every point that was looked at.
    assert_eq!(hub.json(&["vm", "show", "web"])["vm"]["last_proved"], Value::Null);
    hub.ok(&["backup", "verify", id(&third), "--deep"]);
    for point in [&full, &second, &third] {
        let point = shown(&hub, point);
        assert_eq!((&point["verify_state"], &point["verify_depth"]), (&"sound".into(), &"deep".into()), "{point:#}");
        assert!(point["verify_speed_bps"].as_u64().is_some_and(|speed| speed > 0), "{point:#}");
    }
    let proved = hub.json(&["vm", "show", "web"])["vm"]["last_proved"].clone();
    assert_eq!((id(&proved), &proved["is_newest"], &proved["depth"]), (id(&third), &true.into(), &"deep".into()));
    assert!(proved["speed_bps"].as_u64().is_some_and(|speed| speed > 0), "{proved:#}");
    assert!(proved["open_ms"].as_u64().is_some_and(|ms| ms > 0), "{proved:#}");
    let told = hub.ok(&["vm", "show", "web"]);
    assert!(told.contains("the newest point (deep, ") && told.contains(", open in "), "{told}");

    // Two blocks of the first point rot. The second takes one of them from it, and the third none: it holds block 7 itself.
    let image = tree(&dir.join("repo")).into_iter().find(|file| file.ends_with(&format!("disk-0/{}.qcow2", id(&full))));
    let image = dir.join("repo").join(image.unwrap());
    let was = |block: usize| {
        let mut bytes = fs::read(&web.path).unwrap();
        bytes.truncate((block + 1) * BLOCK);
        bytes.split_off(block * BLOCK)
    };
    let block_7 = fs::read(&image).unwrap();
    let first_bytes = dir.join("first");
    hub.ok(&["restore", "disk", id(&full), "--disk", "0", "--to", path(&first_bytes), "--wait"]);
    let first_bytes = fs::read(&first_bytes).unwrap();
    rot(&image, &first_bytes[7 * BLOCK..8 * BLOCK]);
    assert_ne!(fs::read(&image).unwrap(), block_7);
    let events = hub.listen(dir);
    hub.ok(&["backup", "verify", id(&third)]);
    let states =
        |points: &[&Value]| points.iter().map(|point| shown(&hub, point)["verify_state"].clone()).collect::<Vec<_>>();
    assert_eq!(
        states(&[&full, &second, &third]),
        ["corrupt", "affected", "sound"],
        "who holds the block itself is whole"
    );
    let alert = events.event("alert")["alert"].clone();
    assert_eq!((&alert["kind"], id(&alert), &alert["disk_id"]), (&"point_damaged".into(), id(&full), &0.into()));
    let message = field(&alert, "message");
    assert!(
        message.contains("1 blocks are lost") && message.contains(&format!("needed by {}", id(&second))),
        "{message}"
    );
    drop(events);

    rot(&image, &was(20));
    let said = hub.fails(6, &["backup", "verify", id(&third)]);
    assert!(said.contains("needs what a point below it has lost"), "{said}");
    assert_eq!(states(&[&full, &second, &third]), ["corrupt", "affected", "affected"]);
    let finding = shown(&hub, &third)["verify_finding"].clone();
    assert!(
        finding.as_str().unwrap().contains(&format!("1 blocks of disk 0 are lost, which it takes from {}", id(&full)))
    );
    assert_eq!(
        shown(&hub, &full_of_db)["verify_state"],
        Value::Null,
        "another machine's point has nothing to do with it"
    );
    assert_eq!(hub.json(&["vm", "show", "web"])["vm"]["last_proved"], Value::Null);

    let list = hub.ok(&["backup", "list", "--vm", "web"]);
    let of = |point: &Value| list.lines().find(|line| line.contains(id(point))).unwrap().to_owned();
    assert!(of(&full).contains(" corrupt ") && of(&third).contains(" affected "), "{list}");

    // The next backup stores what is lost again, and is whole.
    write(&mut web, 23 * BLOCK, b"and what it wrote since");
    let healed = hub.backup("web", &[]);
    assert_eq!(healed["backup_type"], "incremental");
    let reason = field(&healed["disks"][0], "type_reason");
    assert!(reason.contains(&format!("1 blocks of {} are lost and are stored again", id(&third))), "{reason}");
    assert_eq!(healed["disks"][0]["bytes_transferred"], 2 * BLOCK, "the block that was lost, and the one that changed");
    assert_eq!(healed["disks"][1]["bytes_transferred"], 0);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", id(&healed), "--disk", "0", "--to", path(&out), "--wait"]);
    assert_holds(&out, &web.bytes);
    let top = image.with_file_name(format!("{}.qcow2", id(&healed)));
    tool("qemu-utils", "qemu-img", &["compare", "-f", "qcow2", "-F", "raw", path(&top), path(&web.path)]);
    hub.ok(&["backup", "verify", id(&healed), "--deep"]);
    assert_eq!(states(&[&full, &third, &healed]), ["corrupt", "affected", "sound"]);
    let proved = hub.json(&["vm", "show", "web"])["vm"]["last_proved"].clone();
    assert_eq!((id(&proved), &proved["is_newest"]), (id(&healed), &true.into()));

    // After that nothing is stored twice any more, also by a hub that has started anew.
    assert_eq!(hub.stop(), Some(0));
    let hub = Hub::start(dir);
    let last = hub.backup("web", &[]);
    assert_eq!(last["bytes_transferred"], 0);
    assert!(!field(&last["disks"][0], "type_reason").contains("lost"), "{last:#}");
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn a_chain_whose_beginning_is_gone_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let web = noise(&dir.join("vms/web/disk0.raw"), 8, &mut Random::new(52));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let full = hub.backup("web", &[]);
    let second = hub.backup("web", &[]);
    let digests = tree(&dir.join("repo")).into_iter().find(|file| file.ends_with(&format!("{}.digests", id(&full))));
    fs::remove_file(dir.join("repo").join(digests.unwrap())).unwrap();
    hub.fails(6, &["backup", "verify", id(&second)]);
    assert_eq!(shown(&hub, &full)["verify_state"], "corrupt");
    assert_eq!(shown(&hub, &second)["verify_state"], "affected");
    let third = hub.backup("web", &[]);
    assert_eq!(third["backup_type"], "full");
    assert!(field(&third, "type_reason").contains("is damaged"), "{third:#}");
    hub.ok(&["backup", "verify", id(&third), "--deep"]);
    let out = dir.join("out");
    hub.ok(&["restore", "disk", id(&third), "--to", path(&out), "--wait"]);
    assert_holds(&out, &web.bytes);
    assert_eq!(hub.stop(), Some(0));
}
