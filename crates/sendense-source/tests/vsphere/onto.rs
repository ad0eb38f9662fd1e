//! Points written onto the disks of machines that exist: when that is refused, and what the next backup believes.

use crate::lab::{Lab, MIB};
use crate::world::{Machine, Memory, Points, back_up};
use sendense_block::{ByteLen, ByteOffset, Cancel, Flush, ReadAt, WriteAt};
use sendense_source::{Kind, Overwriting, RemoteDisk, Result, Source};
use std::sync::Arc;

fn wanted(points: &Points) -> Vec<RemoteDisk> {
    let disk = |(key, point): (&String, &crate::points::Point)| RemoteDisk {
        key: key.clone(),
        capacity_bytes: point.bytes.len() as u64,
    };
    points.iter().map(disk).collect()
}

fn onto(machine: &Machine<'_>, source: &dyn Source, disks: &[RemoteDisk]) -> Result<Box<dyn Overwriting>> {
    let (journal, task) = (Memory::new(), "task-onto".parse().unwrap());
    let taken = source.remote_target().unwrap().onto(&machine.vm(), disks, &task, &journal.door(), &Cancel::new());
    assert!(journal.open().is_empty(), "nothing is left to be undone");
    taken
}

#[test]
fn a_machine_is_written_onto_and_its_next_backup_believes_no_changeid_of_before() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[4 * MIB, MIB]);
    machine.write(0, 0, b"boot");
    machine.write(1, 70_000, &[7; 70_000]);
    let (source, cancel) = (lab.source(), Cancel::new());
    let points = back_up(&machine, &*source, &Points::new());
    machine.write(0, 0, b"lost");
    machine.write(0, 3 << 20, &[9; 100]);
    let newer = back_up(&machine, &*source, &points);
    assert_eq!(newer["disk-2000"].reason, None, "changes are tracked");

    let taken = onto(&machine, &*source, &wanted(&points)).unwrap();
    assert_eq!(onto(&machine, &*source, &wanted(&points)).err().unwrap().kind, Kind::Busy, "one at a time");
    let request = machine.request(&*source, &newer);
    let beside = source.freeze(&request, &Memory::new().door(), &cancel).err().unwrap();
    assert_eq!(beside.kind, Kind::Busy, "and no backup meanwhile: {beside}");
    for (number, point) in points.values().enumerate() {
        let disk = taken.open(number, &cancel).unwrap();
        assert_eq!(disk.size(), ByteLen(point.bytes.len() as u64));
        let mut held = vec![0; 65536];
        for (block, at) in point.bytes.chunks(65536).zip((0..).step_by(65536)) {
            disk.read_at(ByteOffset(at), &mut held).unwrap();
            if held != block {
                disk.write_at(ByteOffset(at), block).unwrap();
            }
        }
        disk.flush().unwrap();
    }
    taken.finish().unwrap();
    lab.assert_clean();
    for (number, point) in points.values().enumerate() {
        let file = machine.guest.file(&machine.vim, number);
        assert!(std::fs::read(file).unwrap() == point.bytes, "disk {number} differs");
        machine.model[number] = point.bytes.clone();
    }
    let after = back_up(&machine, &*source, &newer);
    machine.assert_points(&after);
    assert!(after.values().all(|point| point.reason.is_some()), "all blocks are compared");
    machine.write(1, 0, b"x");
    let next = back_up(&machine, &*source, &after);
    assert_eq!(next["disk-2001"].reason, None, "and changes are tracked again");
}

#[test]
fn what_must_not_be_written_onto_is_refused_and_one_that_was_started_is_told() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB, MIB]);
    let (source, cancel): (Arc<dyn Source>, _) = (lab.source(), Cancel::new());
    let points = back_up(&machine, &*source, &Points::new());
    let disks = wanted(&points);
    let kind = |disks: &[RemoteDisk]| onto(&machine, &*source, disks).err().map(|error| error.kind);
    let with = |key: &str, capacity_bytes| [RemoteDisk { key: key.into(), capacity_bytes }];
    assert_eq!(kind(&with("disk-2000", 2 * MIB)), Some(Kind::Invalid), "another size");
    assert_eq!(kind(&with("disk-2007", MIB)), Some(Kind::NotFound));
    let (vim, at) = (&machine.vim, &machine.guest.machine);
    let tracked = || vim.machine(at, &cancel).unwrap().change_tracking;
    assert!(tracked(), "what is refused changes nothing");

    let snapshot = vim.create_snapshot(at, "theirs", "", false, &cancel).unwrap();
    assert_eq!(kind(&disks), Some(Kind::Busy), "a snapshot");
    vim.remove_snapshot(&snapshot, &cancel).unwrap();
    vim.power_on(at, &cancel).unwrap();
    assert_eq!(kind(&disks), Some(Kind::Busy), "it runs");
    vim.power_off(at, &cancel).unwrap();
    assert!(tracked());

    let taken = onto(&machine, &*source, &disks).unwrap();
    assert!(!tracked(), "from here on no changeId of before is believed");
    drop(taken.open(0, &cancel).unwrap());
    vim.power_on(at, &cancel).unwrap();
    assert_eq!(taken.open(1, &cancel).err().unwrap().kind, Kind::Busy);
    assert_eq!(taken.finish().unwrap_err().kind, Kind::Busy, "nobody says that it is restored");
    lab.assert_clean();
}
