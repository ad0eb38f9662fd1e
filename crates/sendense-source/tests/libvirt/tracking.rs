//! What becomes of change tracking when something happens between two backups: each disk says why it is read completely,
//! and no change is ever missed.

use crate::lab::{Guest, LabDisk, MIB, Memory, Points, back_up, back_up_beside, disk_xml, lab, qemu_img};
use sendense_block::Cancel;
use sendense_source::Kind;
use std::path::Path;
use std::time::{Duration, Instant};

const TWO: [(&str, &str, u64); 2] = [("vda", "qcow2", 8 * MIB), ("vdb", "qcow2", 4 * MIB)];

#[track_caller]
fn assert_reason(points: &Points, disk: &str, part: &str) {
    let reason = points[disk].reason.as_deref().unwrap_or_else(|| panic!("{disk} is a delta"));
    assert!(reason.contains(part), "{disk}: {reason:?} does not say {part:?}");
}

#[test]
fn a_checkpoint_that_somebody_deleted_costs_a_full_read() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    for options in [vec![], vec!["--metadata"]] {
        let points = back_up(&guest, &*source, &Points::new());
        let mut args = vec!["checkpoint-delete", &guest.uuid];
        let token = points["vda"].token.clone().unwrap().0;
        args.push(&token);
        args.extend(options);
        lab.virsh(&args);
        guest.write("vda", 5, MIB, 4096);
        let next = back_up(&guest, &*source, &points);
        assert_reason(&next, "vda", "is missing");
        guest.assert_points(&next);
    }
}

#[test]
fn a_lost_bitmap_costs_its_own_disk_only() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    let points = back_up(&guest, &*source, &Points::new());
    let token = points["vdb"].token.clone().unwrap().0;
    let nodes = lab.virsh(&["qemu-monitor-command", &guest.uuid, r#"{"execute":"query-named-block-nodes"}"#]);
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let node =
        nodes["return"].as_array().unwrap().iter().find(|node| {
            node["drv"] == "qcow2" && node["file"].as_str().is_some_and(|file| file.ends_with("-vdb.qcow2"))
        });
    let arguments = serde_json::json!({"node": node.unwrap()["node-name"], "name": token});
    let command = serde_json::json!({"execute": "block-dirty-bitmap-remove", "arguments": arguments});
    lab.virsh(&["qemu-monitor-command", &guest.uuid, &command.to_string()]);
    guest.write("vda", 5, MIB, 4096);
    guest.write("vdb", 6, MIB, 4096);
    let next = back_up(&guest, &*source, &points);
    assert_eq!(next["vda"].reason, None);
    assert_reason(&next, "vdb", "missing or broken bitmap");
    guest.assert_points(&next);
    // The broken checkpoint is gone, and the next one is whole.
    assert_eq!(guest.checkpoints(), [next["vdb"].token.clone().unwrap().0]);
    guest.write("vdb", 7, 2 * MIB, 4096);
    let last = back_up(&guest, &*source, &next);
    assert_eq!(last["vdb"].reason, None);
    guest.assert_points(&last);
}

#[test]
fn broken_bitmaps_are_taken_away_with_their_checkpoint() {
    let lab = lab();
    let guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    let points = back_up(&guest, &*source, &Points::new());
    guest.power_off();
    // One disk loses its bitmap, the other's breaks.
    let token = points["vdb"].token.clone().unwrap().0;
    qemu_img(&["bitmap", "--remove", guest.disks[1].path.to_str().unwrap(), &token]);
    guest.start();
    guest.kill_qemu();
    guest.start();
    let resize = ["blockresize", &guest.uuid, "vda", "9M"];
    let refused = lab.try_virsh(&resize).unwrap_err();
    assert!(refused.contains("inconsistent"), "{refused}");
    source.retire(&guest.vm(), &[], &Memory::new().door(), &Cancel::new()).unwrap();
    assert_eq!(guest.checkpoints(), Vec::<String>::new());
    lab.virsh(&resize);
}

#[test]
fn after_a_crash_of_qemu_bitmaps_are_not_believed() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    let points = back_up(&guest, &*source, &Points::new());
    // Stored once, so that the image has a bitmap that is marked as in use after the crash.
    guest.power_off();
    guest.start();
    guest.write("vda", 5, MIB, MIB);
    guest.try_qemu_io("vda", "flush");
    guest.kill_qemu();
    // Off: our own reader looks at the bitmap.
    let off = back_up(&guest, &*source, &points);
    assert_reason(&off, "vda", "not stored completely");
    assert_eq!(off["vda"].token, None);
    guest.assert_points(&off);
    // Running again: libvirt does.
    guest.start();
    let on = back_up(&guest, &*source, &points);
    assert_reason(&on, "vda", "missing or broken");
    guest.assert_points(&on);
    assert_eq!(guest.checkpoints(), [on["vda"].token.clone().unwrap().0]);
    guest.write("vda", 6, 2 * MIB, 4096);
    let last = back_up(&guest, &*source, &on);
    assert_eq!(last["vda"].reason, None);
    guest.assert_points(&last);
}

#[test]
fn what_belongs_to_others_is_left_alone() {
    let lab = lab();
    let guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    let others = ["c1", "sendense-9-dep-lab-b-task-1", "virtnbdbackup.0"];
    for name in others {
        lab.virsh(&["checkpoint-create-as", &guest.uuid, name]);
    }
    let points = back_up(&guest, &*source, &Points::new());
    back_up(&guest, &*source, &points);
    let left = guest.checkpoints();
    assert!(others.iter().all(|name| left.iter().any(|found| found == name)), "{left:?}");
    assert_eq!(left.len(), others.len() + 1);

    // Another's job makes us wait for another day, at once and not after libvirt's 30 s, and goes on.
    let job = lab.dir.join(format!("{}-job.xml", guest.name));
    let socket = lab.dir.join("scratch").join(format!("{}.sock", guest.name));
    std::fs::write(
        &job,
        format!("<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>", socket.display()),
    )
    .unwrap();
    lab.virsh(&["backup-begin", &guest.uuid, job.to_str().unwrap()]);
    let (journal, begun) = (Memory::new(), Instant::now());
    let request = guest.request(&*source, &Points::new());
    let error = source.freeze(&request, &journal.door(), &Cancel::new()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, Kind::Busy, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(29));
    assert_eq!(journal.open(), []);
    // Reaping a job of ours that has ended long since does not end the other.
    let record = serde_json::json!({"folder": lab.dir.join("scratch/sd-0123456789abcdef"), "checkpoint": "x"});
    let artefact = sendense_source::Artefact {
        source_id: "src-lab".parse().unwrap(),
        task_id: request.task_id,
        kind: sendense_source::ArtefactKind::BackupJob,
        vm_key: guest.uuid.clone(),
        details: record,
    };
    assert!(source.reap(&artefact, &Cancel::new()).unwrap());
    assert!(lab.virsh(&["backup-dumpxml", &guest.uuid]).contains(socket.to_str().unwrap()));
    lab.virsh(&["domjobabort", &guest.uuid]);
}

#[test]
fn external_snapshots_and_commits_lose_nothing() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    let binding = guest.inspect(&*source).disks[0].binding.clone();
    guest.write("vda", 1, 0, MIB);
    let mut points = back_up(&guest, &*source, &Points::new());
    guest.write("vda", 2, MIB, 100_000);
    let overlay = lab.dir.join("images").join(format!("{}-s1.qcow2", guest.name));
    let spec = format!("vda,snapshot=external,file={}", overlay.display());
    lab.virsh(&[
        "snapshot-create-as",
        &guest.uuid,
        "s1",
        "--disk-only",
        "--no-metadata",
        "--diskspec",
        &spec,
        "--diskspec",
        "vdb,snapshot=no",
    ]);
    guest.write("vda", 3, 2 * MIB, 100_000);
    for round in 0..3 {
        assert_eq!(guest.inspect(&*source).disks[0].binding, binding, "another disk, in round {round}");
        points = back_up(&guest, &*source, &points);
        match round {
            // The layer that the checkpoint began on is gone, and with it what would tell of all that it did.
            2 => assert_reason(&points, "vda", &format!("file:{} is gone", overlay.display())),
            _ => assert_eq!(points["vda"].reason, None, "round {round}"),
        }
        guest.assert_points(&points);
        match round {
            0 => {
                // Off, with both layers, each with its own bitmap.
                guest.write("vda", 4, 3 * MIB, 100_000);
                guest.power_off();
            }
            1 => {
                guest.start();
                guest.write("vda", 5, 4 * MIB, 100_000);
                lab.virsh(&["blockcommit", &guest.uuid, "vda", "--active", "--pivot", "--wait"]);
                guest.write("vda", 6, 5 * MIB, 100_000);
            }
            _ => {}
        }
    }
}

fn snapshot(guest: &Guest<'_>, overlay: &Path) {
    let spec = format!("vda,snapshot=external,file={}", overlay.display());
    let only = ["--disk-only", "--no-metadata", "--diskspec", &spec, "--diskspec", "vdb,snapshot=no"];
    guest.lab.virsh(&[&["snapshot-create-as", &guest.uuid, "s"][..], &only].concat());
}

fn commit(guest: &Guest<'_>) {
    guest.lab.virsh(&["blockcommit", &guest.uuid, "vda", "--active", "--pivot", "--wait"]);
}

/// Snapshots that others take and commit between two points are no business of a checkpoint's.
#[test]
fn a_snapshot_that_came_and_went_since_the_parent_costs_nothing() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    guest.write("vda", 1, 0, MIB);
    let points = back_up(&guest, &*source, &Points::new());
    guest.write("vda", 2, MIB, 100_000);
    snapshot(&guest, &lab.dir.join("images").join(format!("{}-s1.qcow2", guest.name)));
    guest.write("vda", 3, 2 * MIB, 100_000);
    commit(&guest);
    guest.write("vda", 4, 3 * MIB, 100_000);
    let next = back_up(&guest, &*source, &points);
    assert_eq!(next["vda"].reason, None);
    guest.assert_points(&next);
}

/// What no bitmap tells: an overlay is shrunk below its base and committed into it, which gives the disk back its old size and
/// what the base holds there.
#[test]
fn what_a_shrunk_overlay_uncovers_when_it_is_committed_is_noticed() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    guest.write("vda", 1, 0, 8 * MIB);
    let overlay = lab.dir.join("images").join(format!("{}-s1.qcow2", guest.name));
    snapshot(&guest, &overlay);
    // The parent holds what the overlay says of the second half, and keeps its token however many points come between.
    guest.write("vda", 2, 6 * MIB, MIB);
    let parent = back_up(&guest, &*source, &Points::new());
    guest.write("vda", 3, MIB, 4096);
    guest.power_off();
    let off = back_up_beside(&guest, &*source, &parent, &[&parent]);
    assert_eq!((&off["vda"].reason, &off["vda"].token), (&None, &parent["vda"].token));
    qemu_img(&["resize", "-q", "-f", "qcow2", "--shrink", overlay.to_str().unwrap(), "4M"]);
    guest.model.get_mut("vda").unwrap().truncate(4 << 20);
    // Nothing of a disk like that is handed on, off or running.
    for running in [false, true] {
        if running {
            guest.start();
        }
        let between = back_up_beside(&guest, &*source, &parent, &[&parent]);
        assert_reason(&between, "vda", "size has changed");
        assert_eq!(between["vda"].token, None, "running: {running}");
        guest.assert_points(&between);
        assert!(running || between["vdb"].token.is_some());
    }
    commit(&guest);
    guest.model.get_mut("vda").unwrap().resize(8 << 20, 1);
    for since in [&parent, &off] {
        let next = back_up_beside(&guest, &*source, since, &[&parent, &off]);
        assert_reason(&next, "vda", "is gone");
        assert_eq!(next["vdb"].reason, None);
        guest.assert_points(&next);
    }
}

/// The same with an overlay of the same name in its place: the name says nothing.
#[test]
fn another_overlay_of_the_same_name_is_not_the_one_that_was_committed() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    guest.write("vda", 1, 0, 8 * MIB);
    let overlay = lab.dir.join("images").join(format!("{}-s1.qcow2", guest.name));
    snapshot(&guest, &overlay);
    guest.write("vda", 2, 6 * MIB, MIB);
    let parent = back_up(&guest, &*source, &Points::new());
    guest.power_off();
    qemu_img(&["resize", "-q", "-f", "qcow2", "--shrink", overlay.to_str().unwrap(), "4M"]);
    guest.start();
    commit(&guest);
    guest.model.get_mut("vda").unwrap()[4 << 20..].fill(1);
    std::fs::remove_file(&overlay).unwrap();
    snapshot(&guest, &overlay);
    let next = back_up(&guest, &*source, &parent);
    assert_reason(&next, "vda", "is another file");
    guest.assert_points(&next);
}

/// What is written to an overlay that is younger than the checkpoint is in a point of a domain that is off; when the overlay
/// goes away, the checkpoint's layers are all there, and yet it does not tell.
#[test]
fn a_point_of_a_domain_that_is_off_hands_on_no_token_that_knows_fewer_layers() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    guest.write("vda", 1, 0, 8 * MIB);
    let parent = back_up(&guest, &*source, &Points::new());
    let overlay = lab.dir.join("images").join(format!("{}-s1.qcow2", guest.name));
    snapshot(&guest, &overlay);
    guest.write("vda", 2, 6 * MIB, MIB);
    guest.power_off();
    let off = back_up(&guest, &*source, &parent);
    assert_eq!((&off["vda"].reason, &off["vda"].token), (&None, &None));
    assert_eq!(off["vdb"].token, parent["vdb"].token, "the other disk goes on");
    guest.assert_points(&off);
    qemu_img(&["resize", "-q", "-f", "qcow2", "--shrink", overlay.to_str().unwrap(), "4M"]);
    guest.start();
    commit(&guest);
    guest.model.get_mut("vda").unwrap()[4 << 20..].fill(1);
    let next = back_up(&guest, &*source, &off);
    assert_reason(&next, "vda", "at the parent");
    guest.assert_points(&next);
}

#[test]
fn a_layer_that_libvirt_does_not_know_costs_a_full_read() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    guest.write("vda", 1, 0, MIB);
    let points = back_up(&guest, &*source, &Points::new());
    guest.power_off();
    // An overlay from outside: it has no bitmap, so what is written to it is tracked by nobody.
    let overlay = lab.dir.join("images").join(format!("{}-over.qcow2", guest.name));
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        guest.disks[0].path.to_str().unwrap(),
        overlay.to_str().unwrap(),
    ]);
    lab.give(&overlay);
    let document = lab
        .virsh(&["dumpxml", &guest.uuid, "--inactive"])
        .replace(guest.disks[0].path.to_str().unwrap(), overlay.to_str().unwrap());
    let file = lab.dir.join(format!("{}-over.xml", guest.name));
    std::fs::write(&file, document).unwrap();
    lab.virsh(&["define", file.to_str().unwrap()]);
    let off = back_up(&guest, &*source, &points);
    assert_reason(&off, "vda", "no bitmap");
    guest.assert_points(&off);
    guest.start();
    guest.write("vda", 7, 4 * MIB, MIB);
    let on = back_up(&guest, &*source, &points);
    assert_reason(&on, "vda", "missing or broken");
    guest.assert_points(&on);
}

#[test]
fn resized_disks_are_read_completely() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    guest.write("vda", 1, 0, MIB);
    let points = back_up(&guest, &*source, &Points::new());
    lab.virsh(&["blockresize", &guest.uuid, "vda", "12M"]);
    guest.model.get_mut("vda").unwrap().resize(12 << 20, 0);
    guest.write("vda", 2, 10 * MIB, MIB);
    guest.write("vdb", 2, 0, MIB);
    let next = back_up(&guest, &*source, &points);
    assert_reason(&next, "vda", "size has changed");
    assert_eq!(next["vdb"].reason, None);
    guest.assert_points(&next);
    guest.write("vda", 3, 11 * MIB, 4096);
    let last = back_up(&guest, &*source, &next);
    assert_eq!(last["vda"].reason, None);
    guest.assert_points(&last);
}

#[test]
fn a_shrunk_and_grown_disk_shows_holes_where_its_bitmap_says_clean() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    guest.write("vda", 1, 0, 8 * MIB);
    let points = back_up(&guest, &*source, &Points::new());
    guest.power_off();
    let path = guest.disks[0].path.to_str().unwrap();
    qemu_img(&["resize", "-q", "-f", "qcow2", "--shrink", path, "4M"]);
    qemu_img(&["resize", "-q", "-f", "qcow2", path, "8M"]);
    for running in [false, true] {
        if running {
            guest.start();
        }
        let request = guest.request(&*source, &points);
        let frozen = source.freeze(&request, &Memory::new().door(), &Cancel::new()).unwrap();
        let second_half =
            sendense_block::Extent::between(sendense_block::ByteOffset(4 * MIB), sendense_block::ByteOffset(8 * MIB));
        // Either the bitmap says that the half changed, or the map says that it is a hole: the mover compares the two.
        let told = match frozen.changes("vda").unwrap() {
            sendense_source::Changes::Unknown { .. } => true,
            sendense_source::Changes::Delta(map) => {
                let holes = frozen.open("vda", &Cancel::new()).unwrap().allocation(second_half).unwrap();
                map.changed(second_half).unwrap().contains(second_half)
                    || holes.iter().all(|part| part.content == sendense_block::Content::Zero)
            }
        };
        assert!(told, "running: {running}");
        frozen.release().unwrap();
    }
}

#[test]
fn disks_come_and_go() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &TWO);
    let source = lab.source();
    let points = back_up(&guest, &*source, &Points::new());
    let attach = |name: &str, target| {
        let disk =
            LabDisk { target, format: "qcow2", path: lab.image(&format!("{}-{name}", guest.name), "qcow2", 2 * MIB) };
        let file = lab.dir.join(format!("{}-{name}.xml", guest.name));
        std::fs::write(&file, disk_xml(&disk)).unwrap();
        lab.virsh(&["attach-device", &guest.uuid, file.to_str().unwrap(), "--live"]);
        disk
    };
    let added = attach("added.qcow2", "vdc");
    guest.model.insert("vdc", vec![0; 2 * MIB as usize]);
    guest.write("vdc", 4, 0, 4096);
    guest.write("vda", 4, 0, 4096);
    // The new disk has no parent; the others go on.
    let next = back_up(&guest, &*source, &points);
    assert_eq!(next["vda"].reason, None);
    assert_reason(&next, "vdc", "at the parent");
    guest.assert_points(&next);
    let request = guest.request(&*source, &next);
    drop(added);
    // The guest has no system that would let its disk go: it goes at the next start.
    let document = lab.virsh(&["dumpxml", &guest.uuid, "--inactive"]);
    assert!(!document.contains("vdc"));
    guest.power_off();
    let error = source.freeze(&request, &Memory::new().door(), &Cancel::new()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, Kind::Disturbed, "{error}");
    // Another image under the same target is another disk.
    guest.start();
    guest.model.remove("vdc");
    let attach = |name: &str| {
        let disk = LabDisk {
            target: "vdc",
            format: "qcow2",
            path: lab.image(&format!("{}-{name}", guest.name), "qcow2", 2 * MIB),
        };
        let file = lab.dir.join(format!("{}-{name}.xml", guest.name));
        std::fs::write(&file, disk_xml(&disk)).unwrap();
        lab.virsh(&["attach-device", &guest.uuid, file.to_str().unwrap(), "--live"]);
    };
    attach("other.qcow2");
    let error = source.freeze(&request, &Memory::new().door(), &Cancel::new()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, Kind::Disturbed, "{error}");
    assert!(error.to_string().contains("another disk"), "{error}");
}

#[test]
fn an_old_image_is_backed_up_without_tracking() {
    let lab = lab();
    let mut guest = Guest::define(lab, &TWO);
    let path = guest.disks[1].path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "4M"]);
    lab.give(&guest.disks[1].path);
    guest.start();
    guest.write("vdb", 1, MIB, MIB);
    let source = lab.source();
    let points = back_up(&guest, &*source, &Points::new());
    guest.assert_points(&points);
    assert!(points["vda"].token.is_some());
    assert_eq!(points["vdb"].token, None);
    guest.write("vdb", 2, MIB, MIB);
    let next = back_up(&guest, &*source, &points);
    assert_eq!(next["vda"].reason, None);
    assert_reason(&next, "vdb", "at the parent");
    guest.assert_points(&next);
}

#[test]
fn a_disk_that_is_a_volume_of_a_pool_is_backed_up() {
    let lab = lab();
    let mut guest = Guest::define(lab, &TWO);
    let pool = format!("{}-pool", guest.name);
    let folder = lab.dir.join("images").join(&pool);
    std::fs::create_dir(&folder).unwrap();
    lab.give(&folder);
    lab.virsh(&["pool-create-as", &pool, "dir", "--target", folder.to_str().unwrap()]);
    // Not by `vol-create-as`, which makes version 2, without bitmaps.
    lab.image(&format!("{pool}/disk"), "qcow2", 4 * MIB);
    lab.virsh(&["pool-refresh", &pool]);
    let document = lab.virsh(&["dumpxml", &guest.uuid, "--inactive"]);
    let source_element = format!("<source file='{}'/>", guest.disks[1].path.display());
    assert!(document.contains(&source_element));
    let document = document
        .replace(&source_element, &format!("<source pool='{pool}' volume='disk'/>"))
        .replacen("<disk type='file' device='disk'>", "<disk type='@' device='disk'>", 1)
        .replacen("<disk type='file' device='disk'>", "<disk type='volume' device='disk'>", 1)
        .replace("type='@'", "type='file'");
    let file = lab.dir.join(format!("{pool}.xml"));
    std::fs::write(&file, document).unwrap();
    lab.virsh(&["define", file.to_str().unwrap()]);
    let source = lab.source();
    let bound = |guest: &Guest<'_>| guest.inspect(&*source).disks[1].binding.0.clone();
    assert_eq!(bound(&guest), format!("vdb volume:{pool}/disk"));
    guest.start();
    assert_eq!(bound(&guest), format!("vdb volume:{pool}/disk"));
    guest.write("vdb", 1, MIB, MIB);
    let points = back_up(&guest, &*source, &Points::new());
    guest.assert_points(&points);
    guest.write("vdb", 2, 2 * MIB, MIB);
    guest.power_off();
    let next = back_up(&guest, &*source, &points);
    assert_eq!(next["vdb"].reason, None);
    guest.assert_points(&next);
    lab.virsh(&["pool-destroy", &pool]);
}
