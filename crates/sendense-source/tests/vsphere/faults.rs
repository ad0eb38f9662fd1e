//! What goes wrong, and what must not remain of it.

use crate::lab::{Lab, MIB, PASSWORD, Trouble};
use crate::world::{Machine, Memory, Points, back_up, copy};
use sendense_block::{ByteOffset, Cancel};
use sendense_source::{Changes, Kind, Source};
use serde_json::json;
use std::time::{Duration, Instant};

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_session_that_expires_during_the_copy_is_renewed() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[2 * MIB]);
    let source = lab.source();
    let points = back_up(&machine, &*source, &Points::new());
    machine.write(0, 0, b"x");
    let calls = || ["Login", "CreateSnapshot_Task", "RemoveSnapshot_Task"].map(|method| lab.proxy.count(method));
    let counted = |before: [usize; 3]| calls().iter().zip(before).map(|(now, then)| now - then).collect::<Vec<_>>();
    let before = calls();
    let points = back_up(&machine, &*source, &points);
    let undisturbed = counted(before);
    assert_eq!(undisturbed[1..], [1, 1], "one snapshot, and its removal");

    machine.write(0, 70_000, b"y");
    lab.proxy.arm("QueryChangedDiskAreas", 1, 1, Trouble::Fault("NotAuthenticated"));
    lab.proxy.arm("RemoveSnapshot_Task", 1, 1, Trouble::Fault("NotAuthenticated"));
    let before = calls();
    let points = back_up(&machine, &*source, &points);
    machine.assert_points(&points);
    assert_eq!(points["disk-2000"].reason, None);
    assert_eq!(
        counted(before),
        [undisturbed[0] + 2, 1, 2],
        "a log-in for each session that ended, and no second snapshot"
    );
}

#[test]
fn no_snapshot_stays_whatever_its_making_says() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let source = lab.source();
    for (method, trouble) in [
        ("CreateSnapshot_Task", Trouble::Lose),
        ("CreateSnapshot_Task", Trouble::Drop),
        ("CreateSnapshot_Task", Trouble::Task("SnapshotFault")),
        ("CreateSnapshot_Task", Trouble::Fault("NoPermission")),
    ] {
        let journal = Memory::new();
        let request = machine.request(&*source, &Points::new());
        lab.proxy.arm(method, 1, 1, trouble.clone());
        let error = source.freeze(&request, &journal.door(), &Cancel::new()).err().unwrap();
        assert!(matches!(error.kind, Kind::Unavailable | Kind::Failed | Kind::Denied), "{trouble:?}: {error}");
        assert!(journal.open().is_empty(), "{trouble:?}");
        lab.assert_clean();
    }
}

#[test]
fn a_removal_that_fails_is_tried_again_and_then_journaled() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let source = lab.source();
    lab.proxy.arm("RemoveSnapshot_Task", 1, 1, Trouble::Task("FileLocked"));
    back_up(&machine, &*source, &Points::new());
    lab.control("leave-deltas", "");
    lab.control("locked", "1");
    back_up(&machine, &*source, &Points::new());
    let needed = || machine.vim.machine(&machine.guest.machine, &Cancel::new()).unwrap().consolidation_needed;
    assert!(!needed(), "what a removal leaves is brought together");
    lab.uncontrol("leave-deltas");

    let journal = Memory::new();
    let request = machine.request(&*source, &Points::new());
    let frozen = source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();
    lab.proxy.arm("RemoveSnapshot_Task", 1, 100, Trouble::Task("FileLocked"));
    assert_eq!(frozen.release().unwrap_err().kind, Kind::Busy);
    let left = journal.open();
    assert_eq!((left.len(), lab.snapshots().len()), (1, 1), "{left:?}");
    assert!(!source.reap(&left[0], &Cancel::new()).unwrap(), "it is still locked");
    lab.proxy.disarm();
    assert!(source.reap(&left[0], &Cancel::new()).unwrap());
    assert!(source.reap(&left[0], &Cancel::new()).unwrap(), "twice does no harm");
    lab.assert_clean();
    // The journal cannot be made to name what is somebody else's.
    let mut theirs = left[0].clone();
    theirs.details["mark"] = json!("sendense-5-dep-x-task-1");
    assert_eq!(source.reap(&theirs, &Cancel::new()).unwrap_err().kind, Kind::Unsafe);
}

#[test]
fn what_an_earlier_task_left_is_swept_and_nobody_elses() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let (source, cancel) = (lab.source(), Cancel::new());
    let make = |description: &str| {
        machine.vim.create_snapshot(&machine.guest.machine, "s", description, false, &cancel).unwrap().id
    };
    let _orphan = make("sendense-7-dep-lab-task-99");
    let others = [make("sendense-9-dep-lab-2-task-99"), make("sendense-7-dep-lab-task-99 (a copy)"), make("")];
    let journal = Memory::new();
    let request = machine.request(&*source, &Points::new());
    let frozen = source.freeze(&request, &journal.door(), &cancel).unwrap();
    frozen.release().unwrap();
    let (mut left, mut expected) = (lab.snapshots(), others.to_vec());
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn leftovers_are_found_by_their_marks_whatever_the_journal_knows() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let (source, cancel) = (lab.source(), Cancel::new());
    let make = |description: &str| {
        machine.vim.create_snapshot(&machine.guest.machine, "s", description, false, &cancel).unwrap().id
    };
    let orphan = make("sendense-7-dep-lab-task-99");
    let others = [make("sendense-9-dep-lab-2-task-99"), make("sendense-7-dep-lab-task-99 (a copy)"), make("")];
    machine.vim.annotate(&machine.guest.machine, "sendense-7-dep-lab-task-98", &cancel).unwrap();
    let found = source.leftovers(&cancel).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].task_id.as_str(), &found[0].vm_key), ("task-99", &machine.uuid));
    assert!(lab.snapshots().contains(&orphan), "finding removes nothing");
    assert!(source.reap(&found[0], &cancel).unwrap());
    let (mut left, mut expected) = (lab.snapshots(), others.to_vec());
    left.sort();
    expected.sort();
    assert_eq!(left, expected);

    // A machine that is not whole bears the mark in its notes, in our words.
    let notes = "Sendense is restoring this machine, and removes it if that fails: sendense-7-dep-lab-task-97";
    let unfinished = lab.machine(&machine.vim, "unfinished", &[MIB]);
    machine.vim.annotate(&unfinished.machine, notes, &cancel).unwrap();
    let found = source.leftovers(&cancel).unwrap();
    assert_eq!((found.len(), found[0].task_id.as_str()), (1, "task-97"));
    assert!(source.reap(&found[0], &cancel).unwrap());
    let names: Vec<_> = machine.vim.machines(&cancel).unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["web"]);
}

#[test]
fn a_bad_sector_and_a_dead_nbdkit_fail_the_read_and_leave_nothing() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[4 * MIB]);
    let source = lab.source();
    machine.write(0, 1 << 20, &[1; 1 << 20]);
    let journal = Memory::new();
    let request = machine.request(&*source, &Points::new());
    let open = || source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();

    let frozen = open();
    let disk = frozen.open("disk-2000", &Cancel::new()).unwrap();
    lab.control("bad-offset", "1500000");
    let mut buffer = vec![0; 1 << 20];
    disk.read_at(ByteOffset(2 << 20), &mut buffer).unwrap();
    let error = disk.read_at(ByteOffset(1 << 20), &mut buffer).unwrap_err();
    assert!(sendense_block::error::chain(&error).contains("asynchronous read failed"), "{error}");
    lab.uncontrol("bad-offset");
    drop(disk);
    frozen.release().unwrap();
    lab.assert_clean();

    let frozen = open();
    let disk = frozen.open("disk-2000", &Cancel::new()).unwrap();
    let kits = lab.kits();
    assert_eq!(kits.len(), 1, "one process per disk");
    let line = std::fs::read(format!("/proc/{}/cmdline", kits[0])).unwrap();
    assert!(!String::from_utf8_lossy(&line).contains(PASSWORD), "the password is in the process list");
    rustix::process::kill_process(rustix::process::Pid::from_raw(kits[0]).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    until("the end of nbdkit", || disk.read_at(ByteOffset(0), &mut [0; 512]).is_err());
    drop(disk);
    frozen.release().unwrap();
    assert!(journal.open().is_empty());
    lab.assert_clean();
}

#[test]
fn a_host_without_sessions_is_told_as_busy() {
    let lab = Lab::with(&[], &["handles=1"]);
    let machine = Machine::new(&lab, "web", &[MIB, MIB]);
    let source = lab.source();
    let journal = Memory::new();
    let request = machine.request(&*source, &Points::new());
    let frozen = source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();
    let error = copy(&*frozen, &request, &Points::new()).unwrap_err();
    assert!(error.kind == Kind::Busy && error.to_string().contains("sessions"), "{error}");
    drop(frozen);
    assert!(journal.open().is_empty());
    lab.assert_clean();
}

/// What a host bears, whatever its vCenter gives.
const HOST_SESSIONS_MAX: usize = 20;

#[test]
fn two_machines_of_one_host_wait_for_its_sessions_before_their_snapshots() {
    let lab = Lab::with(&[], &[&format!("handles={HOST_SESSIONS_MAX}")]);
    let disks = [MIB; HOST_SESSIONS_MAX / 2 + 1];
    let machines = ["one", "two"].map(|name| Machine::new(&lab, name, &disks));
    let source = lab.source_with(json!({ "sessions_max": 52 }));
    let (journal, cancel) = (Memory::new(), Cancel::new());
    let [one, two] = machines.each_ref().map(|machine| machine.request(&*source, &Points::new()));
    let frozen = source.freeze(&one, &journal.door(), &cancel).unwrap();
    copy(&*frozen, &one, &Points::new()).unwrap();
    assert_eq!((lab.kits().len(), lab.snapshots().len()), (disks.len(), 1));
    std::thread::scope(|scope| {
        let found = lab.proxy.count("FindByUuid");
        let waiting = scope.spawn(|| {
            let frozen = source.freeze(&two, &journal.door(), &cancel).unwrap();
            // The first has let go of all of its own by now.
            copy(&*frozen, &two, &Points::new()).unwrap();
            assert_eq!((lab.kits().len(), lab.snapshots().len()), (disks.len(), 1));
            frozen.release().unwrap();
        });
        // It knows its host by now, and nothing of it is made.
        until("a look at the second machine", || lab.proxy.count("FindByUuid") > found);
        assert_eq!((lab.proxy.count("CreateSnapshot_Task"), lab.snapshots().len()), (1, 1));
        frozen.release().unwrap();
        waiting.join().unwrap();
    });
    assert!(journal.open().is_empty());
    lab.assert_clean();
}

#[test]
fn a_snapshot_that_somebody_removes_makes_no_point() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let source = lab.source();
    let journal = Memory::new();
    let request = machine.request(&*source, &Points::new());
    let frozen = source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();
    frozen.check().unwrap();
    let ours = machine.vim.snapshots(&machine.guest.machine, &Cancel::new()).unwrap().remove(0);
    machine.vim.remove_snapshot(&ours.reference, &Cancel::new()).unwrap();
    assert_eq!(frozen.check().unwrap_err().kind, Kind::Disturbed);
    frozen.release().unwrap();
    assert!(journal.open().is_empty());
}

#[test]
fn answers_that_cannot_be_used_cost_a_comparison_and_not_a_gap() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let source = lab.source();
    let points = back_up(&machine, &*source, &Points::new());
    let answer = |start: u64, length: u64| {
        Trouble::Answer(format!("<returnval><startOffset>{start}</startOffset><length>{length}</length></returnval>"))
    };
    let troubles = [
        answer(0, 0),
        answer(512, MIB),
        Trouble::Fault("FileFault"),
        Trouble::Fault("InvalidArgument"),
        Trouble::Answer(String::new()),
    ];
    for trouble in troubles {
        let journal = Memory::new();
        let request = machine.request(&*source, &points);
        let frozen = source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();
        lab.proxy.arm("QueryChangedDiskAreas", 1, 1, trouble.clone());
        match frozen.changes("disk-2000").unwrap() {
            Changes::Unknown { reason } => assert!(reason.contains("QueryChangedDiskAreas"), "{reason}"),
            Changes::Delta(_) => panic!("{trouble:?} was believed"),
        }
        frozen.release().unwrap();
    }
    lab.assert_clean();
}

#[test]
fn a_wrong_password_and_another_certificate_are_told() {
    let (lab, other) = (Lab::new(), Lab::new());
    let shown = sendense_source::vsphere::certificate(&other.address(), None, &Cancel::new()).unwrap();
    let source = lab.source_with(json!({ "thumbprint": shown.fingerprint().to_string() }));
    let error = source.test(&Cancel::new()).unwrap_err();
    let found = sendense_source::vsphere::certificate(&lab.address(), None, &Cancel::new()).unwrap();
    assert!(error.kind == Kind::Denied && error.to_string().contains(&found.fingerprint().to_string()), "{error}");
    assert_eq!(lab.proxy.count("Login"), 0, "nobody who is not believed gets a password");
}

#[test]
fn a_node_that_died_leaves_nothing_that_reaping_does_not_take() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[2 * MIB]);
    let source: std::sync::Arc<dyn Source> = lab.source();
    machine.write(0, 0, b"x");
    // As after `kill -9`: what was made is there, and nobody has let go of it.
    let journal = Memory::new();
    let request = machine.request(&*source, &Points::new());
    let frozen = source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();
    frozen.open("disk-2000", &Cancel::new()).unwrap();
    let (entries, kits) = (journal.open(), lab.kits());
    assert_eq!((entries.len(), kits.len()), (2, 1));
    std::mem::forget(frozen);
    let again = lab.source();
    for artefact in entries.iter().rev() {
        assert!(again.reap(artefact, &Cancel::new()).unwrap(), "{artefact:?}");
        assert!(again.reap(artefact, &Cancel::new()).unwrap(), "twice does no harm");
    }
    // The supervisor of this process reaps what was killed.
    until("the end of nbdkit", || lab.kits().is_empty());
    lab.assert_clean();
}
