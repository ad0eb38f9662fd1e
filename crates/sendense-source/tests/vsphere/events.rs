//! What happens to machines between backups: tracking begins anew, disks come, grow and go, snapshots of others.

use crate::lab::{Lab, MIB};
use crate::world::{Machine, Memory, Points, back_up};
use sendense_block::Cancel;
use sendense_source::Kind;

#[test]
fn tracking_that_begins_anew_is_noticed() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[4 * MIB]);
    let source = lab.source();
    machine.write(0, 0, b"one");
    let points = back_up(&machine, &*source, &Points::new());
    machine.write(0, 1 << 20, b"two");
    lab.control("reset", "");
    let points = back_up(&machine, &*source, &points);
    lab.uncontrol("reset");
    machine.assert_points(&points);
    assert_eq!(points["disk-2000"].reason.as_deref(), Some("change tracking began anew since the parent"));
    machine.write(0, 2 << 20, b"three");
    let points = back_up(&machine, &*source, &points);
    machine.assert_points(&points);
    assert_eq!((points["disk-2000"].reason.as_deref(), points["disk-2000"].data), (None, 65536));
}

#[test]
fn tracking_is_not_switched_on_beside_a_snapshot_of_somebody_else() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[4 * MIB]);
    let (source, cancel) = (lab.source(), Cancel::new());
    machine.write(0, 0, b"one");
    let theirs = machine.vim.create_snapshot(&machine.guest.machine, "before the update", "", false, &cancel).unwrap();
    let told = machine.inspect(&*source).change_tracking.unwrap_err();
    assert!(told.contains("must not be switched on while the machine has snapshots"), "{told}");
    let journal = Memory::new();
    let request = machine.request(&*source, &Points::new());
    let frozen = source.freeze(&request, &journal.door(), &cancel).unwrap();
    assert_eq!(frozen.facts().disks[0].token, None);
    frozen.release().unwrap();
    assert!(!machine.vim.machine(&machine.guest.machine, &cancel).unwrap().change_tracking);
    assert_eq!(lab.snapshots(), std::slice::from_ref(&theirs.id), "theirs stays, ours is gone");
    machine.vim.remove_snapshot(&theirs, &cancel).unwrap();
    let points = back_up(&machine, &*source, &Points::new());
    assert!(points["disk-2000"].token.is_some());
}

#[test]
fn a_disk_that_is_another_one_by_now_is_not_read() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB, MIB]);
    let source = lab.source();
    let journal = Memory::new();
    let mut request = machine.request(&*source, &Points::new());
    request.disks[1].binding = request.disks[0].binding.clone();
    let error = source.freeze(&request, &journal.door(), &Cancel::new()).err().unwrap();
    assert_eq!(error.kind, Kind::Disturbed);
    request.disks[1].key = "disk-2009".into();
    let error = source.freeze(&request, &journal.door(), &Cancel::new()).err().unwrap();
    assert!(error.kind == Kind::Disturbed && error.to_string().contains("removed"), "{error}");
    assert!(journal.open().is_empty());
    lab.assert_clean();
}

#[test]
fn disks_come_grow_and_go() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[2 * MIB, MIB]);
    let source = lab.source();
    machine.write(0, 5, b"first");
    let mut points = back_up(&machine, &*source, &Points::new());

    machine.guest.grow(&machine.vim, 0, 3 * MIB);
    machine.model[0].resize(3 << 20, 0);
    machine.write(0, (5 << 19) + 1, b"in the new part");
    points = back_up(&machine, &*source, &points);
    machine.assert_points(&points);
    assert!(points["disk-2000"].reason.as_deref().unwrap().contains("3145728 bytes and had 2097152"));
    assert_eq!(points["disk-2001"].reason, None);

    machine.guest.add(&machine.vim, 2, 5 * MIB);
    machine.model.push(vec![0; 5 << 20]);
    machine.write(2, 1000, b"third");
    points = back_up(&machine, &*source, &points);
    machine.assert_points(&points);
    assert_eq!((points["disk-2000"].reason.as_deref(), points["disk-2001"].reason.as_deref()), (None, None));
    assert_eq!(points["disk-2002"].reason.as_deref(), Some("the parent was made without change tracking"));

    machine.guest.remove(&machine.vim, 1);
    machine.model.remove(1);
    let kept = points.remove("disk-2001");
    points = back_up(&machine, &*source, &points);
    machine.assert_points(&points);
    // Another disk takes the place: it has the key, but it is not the one.
    machine.guest.add(&machine.vim, 1, MIB);
    machine.model.insert(1, vec![0; 1 << 20]);
    machine.write(1, 0, b"another");
    points.extend(kept.map(|point| ("disk-2001".to_owned(), point)));
    points = back_up(&machine, &*source, &points);
    machine.assert_points(&points);
    assert_eq!(points["disk-2001"].reason.as_deref(), Some("the disk was exchanged since the parent"));
}
