//! What can go wrong around a backup: the domain is started or powered off, the scratch space fills, the daemon hangs, we
//! are killed. The guest always goes on, and nothing of ours stays.

use crate::lab::child::{Victim, play};
use crate::lab::{Guest, Lab, MIB, Memory, Points, back_up, copy, lab, until};
use rustix::process::{Pid, Signal, kill_process};
use sendense_block::{ByteOffset, Cancel, ReadAt};
use sendense_source::{Frozen, Kind, Result, Source};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ONE: [(&str, &str, u64); 1] = [("vda", "qcow2", 8 * MIB)];

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

fn freeze(guest: &Guest<'_>, source: &Arc<dyn Source>, journal: &Arc<Memory>) -> Box<dyn Frozen> {
    let request = guest.request(&**source, &Points::new());
    source.freeze(&request, &journal.door(), &Cancel::new()).unwrap()
}

#[test]
fn a_domain_that_starts_while_its_images_are_read_starts_and_spoils_the_point() {
    let lab = lab();
    let mut guest = Guest::define(lab, &ONE);
    let (source, journal) = (lab.source(), Memory::new());
    let frozen = freeze(&guest, &source, &journal);
    let disk = frozen.open("vda", &Cancel::new()).unwrap();
    disk.read_at(ByteOffset(0), &mut [0; 4096]).unwrap();
    frozen.check().unwrap();
    guest.start();
    assert_eq!(kind(frozen.check()), Some(Kind::Disturbed));
    disk.read_at(ByteOffset(0), &mut [0; 4096]).unwrap();
    guest.write("vda", 1, 0, MIB);
    guest.power_off();
    // Off again, but not what it was.
    assert_eq!(kind(frozen.check()), Some(Kind::Disturbed));
    frozen.release().unwrap();
    assert_eq!(journal.open(), []);
}

#[test]
fn a_power_off_in_the_middle_fails_the_point_and_its_checkpoint_goes_later() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &ONE);
    let (source, journal) = (lab.source(), Memory::new());
    guest.write("vda", 1, 0, MIB);
    let points = back_up(&guest, &*source, &Points::new());
    let keep = [points["vda"].token.clone().unwrap()];
    let frozen = freeze(&guest, &source, &journal);
    let disk = frozen.open("vda", &Cancel::new()).unwrap();
    disk.read_at(ByteOffset(0), &mut [0; 4096]).unwrap();
    assert_eq!(guest.checkpoints().len(), 2);
    guest.power_off();
    let error = frozen.check().unwrap_err();
    assert_eq!(error.kind, Kind::Disturbed);
    assert!(error.to_string().contains("powered off"), "{error}");
    disk.read_at(ByteOffset(MIB), &mut [0; 4096]).unwrap_err();
    frozen.release().unwrap();
    assert_eq!(journal.open(), []);
    // libvirt refuses to delete it now, which is no error.
    assert_eq!(source.retire(&guest.vm(), &keep, &journal.door(), &Cancel::new()).unwrap(), []);
    assert_eq!(guest.checkpoints().len(), 2);
    // The bitmaps were stored: a backup of the domain that is off goes on from the parent's token, and keeps it.
    let off = back_up(&guest, &*source, &points);
    assert_eq!((off["vda"].reason.as_deref(), off["vda"].token.as_ref()), (None, Some(&keep[0])));
    guest.assert_points(&off);
    guest.start();
    guest.write("vda", 2, 3 * MIB, 4096);
    let next = back_up(&guest, &*source, &off);
    assert_eq!(next["vda"].reason, None);
    guest.assert_points(&next);
    assert_eq!(guest.checkpoints(), [next["vda"].token.clone().unwrap().0]);
}

#[test]
fn a_job_that_somebody_ends_fails_the_point() {
    let lab = lab();
    let guest = Guest::start_new(lab, &ONE);
    let (source, journal) = (lab.source(), Memory::new());
    let frozen = freeze(&guest, &source, &journal);
    frozen.check().unwrap();
    lab.virsh(&["domjobabort", &guest.uuid]);
    until("the job has ended", || (kind(frozen.check()) == Some(Kind::Disturbed)).then_some(()));
    frozen.release().unwrap();
    assert_eq!(journal.open(), []);
}

#[test]
fn scratch_space_that_runs_low_ends_the_backup_and_not_the_guest() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &ONE);
    guest.write("vda", 1, 0, 8 * MIB);
    let scratch = lab.dir.join("scratch");
    let free = rustix::fs::statvfs(&scratch).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();

    // Too little from the beginning: nothing is made.
    let (full, journal) = (lab.source_with(serde_json::json!({"scratch_floor_bytes": free * 2})), Memory::new());
    let request = guest.request(&*full, &Points::new());
    assert_eq!(kind(full.freeze(&request, &journal.door(), &Cancel::new()).map(drop)), Some(Kind::ScratchFull));
    assert_eq!((guest.checkpoints().len(), journal.open()), (0, vec![]));

    // In the middle: the space above the floor is smaller than what somebody writes there. The margin is for what other
    // programs write on this file system meanwhile.
    let floor = free.saturating_sub(8 << 30);
    let source = lab.source_with(serde_json::json!({"scratch_floor_bytes": floor}));
    let frozen = freeze(&guest, &source, &journal);
    let disk = frozen.open("vda", &Cancel::new()).unwrap();
    disk.read_at(ByteOffset(0), &mut [0; 4096]).unwrap();
    let ballast = std::fs::File::create(scratch.join("ballast")).unwrap();
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, 10 << 30).unwrap();
    until("the backup is given up", || (kind(frozen.check()) == Some(Kind::ScratchFull)).then_some(()));
    until("the job has ended", || lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_err().then_some(()));
    std::fs::remove_file(scratch.join("ballast")).unwrap();
    let error = disk.read_at(ByteOffset(0), &mut [0; 4096]).unwrap_err();
    assert!(error.to_string().contains("bytes are free"), "{error}");
    guest.write("vda", 2, 0, 8 * MIB);
    frozen.release().unwrap();
    assert_eq!(journal.open(), []);
}

#[test]
fn a_frozen_domain_that_is_only_dropped_is_let_go() {
    let lab = lab();
    let guest = Guest::start_new(lab, &ONE);
    let (source, journal) = (lab.source(), Memory::new());
    drop(freeze(&guest, &source, &journal));
    assert_eq!(journal.open(), []);
    assert!(lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_err());
}

#[test]
fn the_guest_may_write_while_it_is_read() {
    let lab = lab();
    let mut guest = Guest::start_new(lab, &ONE);
    let (source, journal) = (lab.source(), Memory::new());
    guest.write("vda", 1, 0, 8 * MIB);
    let before = guest.model.clone();
    let request = guest.request(&*source, &Points::new());
    let frozen = source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();
    guest.write("vda", 2, MIB, 5 * MIB);
    let points = copy(&*frozen, &request, &Points::new()).unwrap();
    frozen.check().unwrap();
    frozen.release().unwrap();
    assert!(points["vda"].bytes == before["vda"], "the frozen bytes were overwritten");
    let next = back_up(&guest, &*source, &points);
    assert_eq!(next["vda"].reason, None);
    guest.assert_points(&next);
}

#[test]
fn a_hung_daemon_does_not_hang_us() {
    let lab = Lab::new();
    let guest = Guest::start_new(&lab, &ONE);
    let (source, journal) = (lab.source(), Memory::new());
    let frozen = freeze(&guest, &source, &journal);
    let daemon = Pid::from_raw(lab.daemon_pid()).unwrap();
    kill_process(daemon, Signal::STOP).unwrap();
    // A person who gives up is heard at once.
    let (cancel, begun) = (Cancel::new(), Instant::now());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| kind(source.inspect(&guest.vm(), &cancel)));
        cancel.cancel();
        assert_eq!(call.join().unwrap(), Some(Kind::Cancelled));
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "cancelling took {:?}", begun.elapsed());
    // Others wait for the deadline.
    let begun = Instant::now();
    assert_eq!(kind(frozen.check()), Some(Kind::Unavailable));
    assert!(begun.elapsed() < Duration::from_secs(50), "the deadline took {:?}", begun.elapsed());
    // The job cannot be ended now: it stays in the journal and is reaped when the daemon answers again.
    assert_eq!(kind(frozen.release()), Some(Kind::Unavailable));
    let left = journal.open();
    assert_eq!(left.len(), 1);
    kill_process(daemon, Signal::CONT).unwrap();
    until("the job can be reaped", || source.reap(&left[0], &Cancel::new()).ok().filter(|gone| *gone));
    assert!(lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_err());
}

#[test]
fn a_freeze_that_is_cancelled_at_any_moment_leaves_nothing() {
    let lab = lab();
    let guest = Guest::start_new(lab, &ONE);
    let (source, journal) = (lab.source(), Memory::new());
    // A whole freeze takes about 100 ms: these moments lie in all of its steps.
    for delay_ms in [0, 5, 15, 25, 35, 45, 60, 80, 120, 200] {
        let (cancel, request) = (Cancel::new(), guest.request(&*source, &Points::new()));
        let frozen = std::thread::scope(|scope| {
            let call = scope.spawn(|| source.freeze(&request, &journal.door(), &cancel));
            std::thread::sleep(Duration::from_millis(delay_ms));
            cancel.cancel();
            call.join().unwrap()
        });
        match frozen {
            Ok(frozen) => frozen.release().unwrap(),
            Err(error) => assert_eq!(error.kind, Kind::Cancelled, "{error}"),
        }
        // Where it was not certain that nothing began, the journal says so.
        for (entry, artefact) in sendense_source::Journal::open_entries(&*journal).unwrap() {
            until("it is reaped", || source.reap(&artefact, &Cancel::new()).ok().filter(|gone| *gone));
            sendense_source::Journal::close(&*journal, entry).unwrap();
        }
        assert!(lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_err(), "a job runs after {delay_ms} ms");
    }
    source.retire(&guest.vm(), &[], &journal.door(), &Cancel::new()).unwrap();
    assert_eq!(guest.checkpoints(), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_leaves_is_reaped() {
    play();
    let lab = lab();
    let guest = Guest::start_new(lab, &ONE);
    let source = lab.source();
    let mut victim = Victim::start("faults::what_a_killed_process_leaves_is_reaped", &guest, &*source, false);
    let artefacts = victim.recorded(1);
    victim.frozen();
    drop(victim);
    assert!(lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_ok(), "the job ended with the process");
    assert_eq!(guest.checkpoints().len(), 1);
    // Twice is as good as once.
    for _ in 0..2 {
        assert!(source.reap(&artefacts[0], &Cancel::new()).unwrap());
        assert!(lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_err());
    }
    let folder = artefacts[0].details["folder"].as_str().unwrap();
    assert!(!std::path::Path::new(folder).exists());
    // Its checkpoint is no published point's.
    source.retire(&guest.vm(), &[], &Memory::new().door(), &Cancel::new()).unwrap();
    assert_eq!(guest.checkpoints(), Vec::<String>::new());
    back_up(&guest, &*source, &Points::new());
}
