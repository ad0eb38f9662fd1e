//! The guest's file systems are frozen for the moment of the checkpoint, and thawed whatever happens.

use crate::lab::agent::{Event, start_with_agent};
use crate::lab::child::{Victim, play};
use crate::lab::{Guest, Lab, MIB, Memory, Points, lab, until};
use rustix::process::{Pid, Signal, kill_process};
use sendense_block::Cancel;
use sendense_source::{ArtefactKind, Frozen, FrozenFacts, Source};
use sendense_types::Consistency;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn freeze(guest: &Guest<'_>, source: &Arc<dyn Source>, journal: &Arc<Memory>) -> Box<dyn Frozen> {
    let mut request = guest.request(&**source, &Points::new());
    request.quiesce = true;
    source.freeze(&request, &journal.door(), &Cancel::new()).unwrap()
}

/// Nothing less than a quiesced point is wanted: there is none, and nothing is left of the attempt.
#[track_caller]
fn assert_refused(guest: &Guest<'_>, source: &Arc<dyn Source>, why: &str) {
    let journal = Memory::new();
    let mut request = guest.request(&**source, &Points::new());
    (request.quiesce, request.quiesce_or_fail) = (true, true);
    let error = source.freeze(&request, &journal.door(), &Cancel::new()).err().unwrap().to_string();
    assert!(error.contains("cannot be quiesced, which is demanded") && error.contains(why), "{error}");
    assert_eq!(journal.open(), []);
}

#[track_caller]
fn assert_crash_consistent(facts: &FrozenFacts, why: &str) {
    assert_eq!(facts.consistency, Consistency::Crash);
    let note = facts.consistency_note.as_deref().unwrap_or_default();
    assert!(note.contains(why), "{note:?} does not say {why:?}");
}

#[test]
fn a_guest_with_an_agent_is_frozen_for_the_moment() {
    let lab = lab();
    let (guest, agent) = start_with_agent(lab);
    let (source, journal) = (lab.source(), Memory::new());
    let frozen = freeze(&guest, &source, &journal);
    assert_eq!(agent.events(), [Event::Frozen, Event::Thawed], "thawed when the freeze returns, not at the end");
    assert_eq!(frozen.facts().consistency, Consistency::Filesystem);
    assert_eq!(frozen.facts().consistency_note, None);
    assert_eq!(journal.open().len(), 1, "the guest's entry is closed, the job's is not");
    frozen.release().unwrap();
    assert_eq!(journal.open(), []);
    assert!(agent.frozen_for().unwrap() < Duration::from_secs(60));
    // Nobody thaws a second time later.
    assert_eq!(agent.events().len(), 2);
}

#[test]
fn without_an_agent_the_point_is_crash_consistent_and_says_so() {
    let lab = lab();
    let (source, journal) = (lab.source(), Memory::new());
    let plain = Guest::start_new(lab, &[("vda", "qcow2", MIB)]);
    let frozen = freeze(&plain, &source, &journal);
    assert_crash_consistent(frozen.facts(), "no channel");
    frozen.release().unwrap();
    assert_refused(&plain, &source, "no channel");
    let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
    let silent = Guest::define_with(lab, &[("vda", "qcow2", MIB)], channel, "");
    silent.start();
    let frozen = freeze(&silent, &source, &journal);
    assert_crash_consistent(frozen.facts(), "no guest agent is connected");
    frozen.release().unwrap();
    assert_eq!(journal.open(), []);
}

#[test]
fn an_agent_that_refuses_or_hangs_costs_consistency_only() {
    let lab = lab();
    let (guest, agent) = start_with_agent(lab);
    let (source, journal) = (lab.source_with(serde_json::json!({"agent_timeout_s": 1})), Memory::new());
    agent.manners.refuses.store(true, Ordering::SeqCst);
    let frozen = freeze(&guest, &source, &journal);
    assert_crash_consistent(frozen.facts(), "disabled");
    frozen.release().unwrap();
    assert_refused(&guest, &source, "disabled");
    assert_eq!(journal.open(), []);
    // It freezes and does not say so until long after we gave up waiting.
    agent.manners.refuses.store(false, Ordering::SeqCst);
    agent.manners.freeze_delay_ms.store(2500, Ordering::SeqCst);
    let begun = Instant::now();
    let frozen = freeze(&guest, &source, &journal);
    assert_crash_consistent(frozen.facts(), "did not freeze");
    until("the guest is thawed", || (!agent.is_frozen()).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(agent.frozen_for().unwrap() < Duration::from_secs(10), "{:?}", agent.frozen_for());
    frozen.release().unwrap();
    // If it was not certain that the guest was thawed, the journal still has it, and reaping settles it.
    for artefact in journal.open() {
        assert_eq!(artefact.kind, ArtefactKind::FrozenGuest);
        assert!(source.reap(&artefact, &Cancel::new()).unwrap());
    }
    assert!(!agent.is_frozen());
}

/// Freezes in another process, does `harm` to it while the guest is frozen, and sees the guest thawed in time.
fn a_guest_is_thawed_after(test: &str, harm: Signal) {
    let lab = lab();
    let (guest, agent) = start_with_agent(lab);
    let source = lab.source();
    // The freeze lasts long enough to do harm in it, and the agent does not answer meanwhile.
    agent.manners.freeze_delay_ms.store(2000, Ordering::SeqCst);
    let mut victim = Victim::start(test, &guest, &*source, true);
    let artefacts = victim.recorded(2);
    until("the guest is frozen", || agent.is_frozen().then_some(()));
    kill_process(Pid::from_raw(victim.child.id() as i32).unwrap(), harm).unwrap();
    until("the guest is thawed", || (!agent.is_frozen()).then_some(()));
    assert!(agent.frozen_for().unwrap() < Duration::from_secs(10), "frozen for {:?}", agent.frozen_for());
    drop(victim);
    for artefact in &artefacts {
        until("it is reaped", || source.reap(artefact, &Cancel::new()).ok().filter(|gone| *gone));
    }
    assert!(lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_err());
    assert_eq!(agent.events(), [Event::Frozen, Event::Thawed]);
}

#[test]
fn a_guest_is_thawed_when_we_are_killed() {
    play();
    a_guest_is_thawed_after("agent::a_guest_is_thawed_when_we_are_killed", Signal::KILL);
}

#[test]
fn a_guest_is_thawed_when_we_hang() {
    play();
    a_guest_is_thawed_after("agent::a_guest_is_thawed_when_we_hang", Signal::STOP);
}

/// libvirt is the only road to the agent: while its daemon is dead nobody can thaw. The watcher goes on trying, so that the
/// guest is thawed as soon as there is a daemon again.
#[test]
fn a_guest_is_thawed_when_libvirt_dies_and_comes_back() {
    let lab = Lab::new();
    let (guest, agent) = start_with_agent(&lab);
    let (source, journal) = (lab.source(), Memory::new());
    agent.manners.freeze_delay_ms.store(1000, Ordering::SeqCst);
    let mut request = guest.request(&*source, &Points::new());
    request.quiesce = true;
    let door = journal.door();
    let frozen = std::thread::scope(|scope| {
        let freeze = scope.spawn(|| source.freeze(&request, &door, &Cancel::new()).map(drop));
        until("the guest is frozen", || agent.is_frozen().then_some(()));
        lab.kill_daemon();
        // Far longer than ten tries at a dead socket take.
        until("the source gives up", || freeze.is_finished().then_some(()));
        freeze.join().unwrap()
    });
    let error = frozen.unwrap_err();
    assert!(error.kind.is_transient(), "{error:?}");
    assert!(agent.is_frozen(), "there is no road to the agent");
    lab.restart_daemon();
    let back = Instant::now();
    until("the guest is thawed", || (!agent.is_frozen()).then_some(()));
    assert!(back.elapsed() < Duration::from_secs(10), "{:?} after libvirt came back", back.elapsed());
    for artefact in journal.open() {
        until("it is reaped", || source.reap(&artefact, &Cancel::new()).ok().filter(|gone| *gone));
    }
    assert!(!agent.is_frozen());
}
