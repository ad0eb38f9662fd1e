//! The mover with a scripted source and a sink in memory: what each disk's backup becomes, and that the source is always
//! let go.

#![allow(clippy::unwrap_used)]

use parking_lot::Mutex;
use sendense_block::backend::{Fault, Faulty, Memory, Operation};
use sendense_block::codec::Level;
use sendense_block::copy::{Progress, SAMPLE_BLOCKS_MIN, Sampling};
use sendense_block::{
    AllocationMap, Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Cancel, ChangeMap, Digest, DigestMap, Disk,
    Extent, ExtentSet, Known, MappedExtent, ReadAt, WriteAt,
};
use sendense_node::{
    Assignment, DiskAssignment, DiskStart, Error, FileJournal, Landing, LaneBudget, Outcome, Parent, Parentage, mover,
};
use sendense_source::{
    Artefact, Changes, DiscoveredVm, DiskRequest, FreezeRequest, Frozen, FrozenDisk, FrozenFacts, Journal, Kind,
    ReadHints, Source, TestReport, TrackingReset, VmRef,
};
use sendense_types::{
    BackupId, BackupType, Consistency, DeploymentId, DiskBinding, DiskNumber, OnTrackingLoss, Phase, SourceKind,
    TaskId, TrackingAudit, TrackingToken,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

const B: usize = 65536;

/// What the scripted source plays.
#[derive(Clone)]
struct Script {
    disks: Vec<Arc<dyn Disk>>,
    /// Byte ranges changed; none plays lost tracking.
    changed: Option<Vec<(u64, u64)>>,
    disturbed: bool,
    released: Arc<AtomicUsize>,
    /// What it says when tracking is to begin anew.
    reset: Result<TrackingReset, &'static str>,
    /// The tokens that were called fresh, each time it was asked to.
    resets: Arc<Mutex<Vec<Vec<TrackingToken>>>>,
}

struct Changed(ExtentSet);

impl ChangeMap for Changed {
    fn changed(&self, within: Extent) -> sendense_block::Result<ExtentSet> {
        Ok(self.0.within(within))
    }
}

struct FrozenScript(Script, FrozenFacts);

impl Frozen for FrozenScript {
    fn facts(&self) -> &FrozenFacts {
        &self.1
    }
    fn changes(&self, _: &str) -> sendense_source::Result<Changes> {
        Ok(match &self.0.changed {
            None => Changes::Unknown { reason: "checkpoint missing".into() },
            Some(ranges) => Changes::Delta(Arc::new(Changed(
                ranges.iter().map(|(start, end)| Extent::between(ByteOffset(*start), ByteOffset(*end))).collect(),
            ))),
        })
    }
    fn open(&self, key: &str, _: &Cancel) -> sendense_source::Result<Arc<dyn Disk>> {
        Ok(self.0.disks[key.parse::<usize>().unwrap()].clone())
    }
    fn check(&self) -> sendense_source::Result<()> {
        if self.0.disturbed {
            Err(sendense_source::Error::new(Kind::Disturbed, "the domain was started"))
        } else {
            Ok(())
        }
    }
    fn release(self: Box<Self>) -> sendense_source::Result<()> {
        self.0.released.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Source for Script {
    fn kind(&self) -> SourceKind {
        SourceKind::Image
    }
    fn test(&self, _: &Cancel) -> sendense_source::Result<TestReport> {
        unreachable!("the mover does not test")
    }
    fn discover(&self, _: &Cancel) -> sendense_source::Result<Vec<DiscoveredVm>> {
        unreachable!("the mover does not discover")
    }
    fn inspect(&self, _: &VmRef, _: &Cancel) -> sendense_source::Result<DiscoveredVm> {
        unreachable!("the mover does not inspect")
    }
    fn freeze(
        &self,
        request: &FreezeRequest,
        _: &Arc<dyn Journal>,
        _: &Cancel,
    ) -> sendense_source::Result<Box<dyn Frozen>> {
        let disks = request.disks.iter().zip(&self.disks).map(|(request, disk)| FrozenDisk {
            key: request.key.clone(),
            binding: request.binding.clone(),
            label: request.key.clone(),
            capacity: disk.size(),
            token: Some(TrackingToken("new".into())),
        });
        let facts = FrozenFacts {
            disks: disks.collect(),
            consistency: Consistency::Crash,
            consistency_note: None,
            config: Vec::new(),
            hints: ReadHints { lanes: 3, request_bytes: 2 * B },
        };
        Ok(Box::new(FrozenScript(self.clone(), facts)))
    }
    fn retire(
        &self,
        _: &VmRef,
        _: &[TrackingToken],
        _: &Arc<dyn Journal>,
        _: &Cancel,
    ) -> sendense_source::Result<Vec<TrackingToken>> {
        unreachable!("the mover does not retire")
    }
    fn reset_tracking(
        &self,
        _: &FreezeRequest,
        fresh: &[TrackingToken],
        _: &Arc<dyn Journal>,
        _: &Cancel,
    ) -> sendense_source::Result<TrackingReset> {
        assert_eq!(self.released.load(Ordering::SeqCst), 1, "the machine is let go first");
        self.resets.lock().push(fresh.to_vec());
        self.reset.map_err(|why| sendense_source::Error::new(Kind::Busy, why))
    }
    fn reap(&self, _: &Artefact, _: &Cancel) -> sendense_source::Result<bool> {
        unreachable!("the mover does not reap")
    }
}

/// Counts what arrives, by disk.
#[derive(Default)]
struct Place {
    starts: Mutex<Vec<(u32, BackupType, Option<String>)>>,
    blocks: Arc<Mutex<Vec<(u32, u64)>>>,
    phases: Mutex<Vec<Phase>>,
    notes: Mutex<Vec<String>>,
    alerts: Mutex<Vec<(u32, String)>>,
    given_up: bool,
    /// A block of the parent that is lost.
    lost: Option<u64>,
    bytes_per_second_max: Option<u64>,
}

struct DiskSink(u32, Arc<Mutex<Vec<(u32, u64)>>>);

impl BlockSink for DiskSink {
    fn put(&self, batch: &[Block<'_>]) -> sendense_block::Result<()> {
        self.1.lock().extend(batch.iter().map(|block| (self.0, block.index.0)));
        Ok(())
    }
}

impl Landing for Place {
    fn begin_disk(&self, start: &DiskStart<'_>) -> sendense_block::Result<Arc<dyn BlockSink>> {
        self.starts.lock().push((start.number.0, start.backup_type, start.type_reason.map(str::to_owned)));
        Ok(Arc::new(DiskSink(start.number.0, self.blocks.clone())))
    }
    fn phase(&self, phase: Phase) {
        self.phases.lock().push(phase);
    }
    fn letting_go(&self) -> bool {
        !self.given_up
    }
    fn note(&self, message: &str) {
        self.notes.lock().push(message.into());
    }
    fn tracking_is_wrong(&self, disk: DiskNumber, message: &str) {
        self.alerts.lock().push((disk.0, message.into()));
    }
}

/// A parent whose every block is `byte`s.
struct Filled(u8, u64);

impl DigestMap for Filled {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> sendense_block::Result<()> {
        for (number, known) in out.iter_mut().enumerate() {
            let inside = first.0 + (number as u64) < self.1;
            *known = if inside { Known::Data(Digest::of(&[self.0; B])) } else { Known::Zero };
        }
        Ok(())
    }
}

/// The same, with a block that is lost.
struct Losing(Filled, Option<u64>);

impl DigestMap for Losing {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> sendense_block::Result<()> {
        self.0.known(first, out)?;
        if let Some(known) = self.1.and_then(|lost| out.get_mut(usize::try_from(lost.checked_sub(first.0)?).ok()?)) {
            *known = Known::Data(Digest([0; 16]));
        }
        Ok(())
    }
}

fn filled(byte: u8, blocks: usize) -> Arc<Memory> {
    Arc::new(Memory::from_bytes(vec![byte; blocks * B]))
}

fn script(disks: Vec<Arc<dyn Disk>>, changed: Option<Vec<(u64, u64)>>) -> Script {
    let reset = Ok(TrackingReset::Begun);
    Script { disks, changed, disturbed: false, released: Arc::default(), reset, resets: Arc::default() }
}

fn run(
    script: &Script,
    place: &Place,
    parent: Option<u64>,
    loss: OnTrackingLoss,
    cancel: &Cancel,
) -> Result<Outcome, Error> {
    run_audited(script, place, parent, loss, Sampling::NONE, cancel)
}

fn run_audited(
    script: &Script,
    place: &Place,
    parent: Option<u64>,
    loss: OnTrackingLoss,
    audit: Sampling,
    cancel: &Cancel,
) -> Result<Outcome, Error> {
    let dir = tempfile::tempdir().unwrap();
    let journal: Arc<dyn Journal> = Arc::new(FileJournal::open(dir.path()).unwrap());
    let numbers = 0..script.disks.len() as u32;
    let assignment = Assignment {
        freeze: FreezeRequest {
            vm: VmRef { instance_uuid: "u".into(), name: "web".into() },
            disks: numbers
                .clone()
                .map(|number| DiskRequest {
                    key: number.to_string(),
                    binding: DiskBinding(number.to_string()),
                    since: parent.map(|_| TrackingToken("old".into())),
                    since_capacity: None,
                })
                .collect(),
            quiesce: false,
            quiesce_or_fail: false,
            deployment_id: DeploymentId::generate(),
            task_id: TaskId::generate(),
        },
        disks: numbers
            .map(|number| DiskAssignment {
                number: DiskNumber(number),
                key: number.to_string(),
                parentage: match parent {
                    None => Parentage::None { reason: None },
                    Some(blocks) => Parentage::Parent(Parent {
                        backup_id: "bk-parent".parse::<BackupId>().unwrap(),
                        digests: Arc::new(Losing(Filled(1, blocks), place.lost)),
                        lost: place.lost.map(|index| format!("block {index} is lost")),
                    }),
                },
            })
            .collect(),
        level: Level::Off,
        on_tracking_loss: loss,
        parallel_disks: 2,
        audit,
        bytes_per_second_max: place.bytes_per_second_max,
    };
    let outcome = mover::run(&assignment, script, place, &journal, &LaneBudget::new(4), &Progress::default(), cancel);
    assert_eq!(script.released.load(Ordering::SeqCst), 1, "the source is let go exactly once");
    outcome
}

fn compare(script: &Script, place: &Place, parent: Option<u64>) -> Result<Outcome, Error> {
    run(script, place, parent, OnTrackingLoss::Compare, &Cancel::new())
}

#[test]
fn a_full_takes_every_disk_and_goes_through_the_phases() {
    let place = Place::default();
    let outcome = compare(&script(vec![filled(1, 5), filled(2, 3)], None), &place, None).unwrap();
    assert_eq!(outcome.disks.iter().map(|disk| disk.summary.stored.0 / B as u64).collect::<Vec<_>>(), [5, 3]);
    assert_eq!(*place.phases.lock(), [Phase::Snapshot, Phase::Transferring]);
    assert!(outcome.disks.iter().all(|disk| disk.backup_type == BackupType::Full && disk.type_reason.is_none()));
}

/// At a byte in a second a megabyte takes twelve days: it is cancelled while it waits.
#[test]
fn a_bandwidth_holds_the_reads_of_all_disks() {
    let place = Place { bytes_per_second_max: Some(1), ..Place::default() };
    let (script, cancel) = (script(vec![filled(1, 64), filled(2, 64)], None), Cancel::new());
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| run(&script, &place, None, OnTrackingLoss::Compare, &cancel));
        while place.blocks.lock().is_empty() && !moved.is_finished() {
            std::thread::yield_now();
        }
        cancel.cancel();
        let moved = moved.join().unwrap();
        assert!(matches!(moved, Err(Error::Cancelled)), "{moved:?}");
    });
    assert!(place.blocks.lock().len() < 128);
}

#[test]
fn a_delta_reads_only_what_changed() {
    let (disk, place) = (filled(1, 8), Place::default());
    disk.write_at(ByteOffset(3 * B as u64 + 5), &[9]).unwrap();
    // Block 6 is marked but holds what it held: it is read and not stored.
    let changed = vec![(3 * B as u64 + 5, 3 * B as u64 + 6), (6 * B as u64, 7 * B as u64)];
    let outcome = compare(&script(vec![disk], Some(changed)), &place, Some(8)).unwrap();
    assert_eq!(*place.blocks.lock(), [(0, 3)]);
    assert_eq!(outcome.disks[0].summary.read, ByteLen(2 * B as u64));
    assert_eq!(outcome.disks[0].backup_type, BackupType::Incremental);
    assert_eq!(outcome.disks[0].type_reason, None);
}

#[test]
fn what_the_parent_has_lost_is_stored_again_whatever_changed() {
    let (disk, place) = (filled(1, 8), Place { lost: Some(6), ..Place::default() });
    disk.write_at(ByteOffset(3 * B as u64 + 5), &[9]).unwrap();
    let changed = vec![(3 * B as u64 + 5, 3 * B as u64 + 6)];
    // Nothing is wrong with its tracking, so that a request which wants no comparison for that reason gets it all the same.
    let outcome = run(&script(vec![disk], Some(changed)), &place, Some(8), OnTrackingLoss::Fail, &Cancel::new());
    let outcome = outcome.unwrap();
    let mut stored = place.blocks.lock().clone();
    stored.sort_unstable();
    assert_eq!(stored, [(0, 3), (0, 6)]);
    assert_eq!(outcome.disks[0].summary.read, ByteLen(8 * B as u64));
    assert_eq!(outcome.disks[0].backup_type, BackupType::Incremental);
    assert_eq!(outcome.disks[0].type_reason.as_deref(), Some("read completely and compared: block 6 is lost"));
    assert_eq!(*place.alerts.lock(), []);
}

#[test]
fn lost_tracking_costs_what_the_request_says() {
    let changed = || {
        let disk = filled(1, 4);
        disk.write_at(ByteOffset(0), &[9]).unwrap();
        script(vec![disk], None)
    };
    let place = Place::default();
    let outcome = compare(&changed(), &place, Some(4)).unwrap();
    assert_eq!(*place.blocks.lock(), [(0, 0)]);
    let reason = outcome.disks[0].type_reason.as_deref();
    assert_eq!(reason, Some("read completely and compared: checkpoint missing"));

    let place = Place::default();
    let outcome = run(&changed(), &place, Some(4), OnTrackingLoss::Full, &Cancel::new()).unwrap();
    assert_eq!((outcome.disks[0].backup_type, place.blocks.lock().len()), (BackupType::Full, 4));
    assert_eq!(outcome.disks[0].parent, None);

    let error = run(&changed(), &Place::default(), Some(4), OnTrackingLoss::Fail, &Cancel::new()).unwrap_err();
    assert_eq!(error.to_string(), "change tracking of disk 0 is lost: checkpoint missing");
}

#[test]
fn a_doubtful_delta_becomes_a_comparison() {
    let (disk, place) = (Arc::new(Memory::zeroed(ByteLen(4 * B as u64))), Place::default());
    let outcome = compare(&script(vec![disk], Some(vec![])), &place, Some(4)).unwrap();
    assert_eq!(place.blocks.lock().len(), 4, "four blocks became zero");
    let reason = outcome.disks[0].type_reason.clone().unwrap();
    assert!(reason.contains("contradicts the parent: block 0"), "{reason}");
}

#[test]
fn a_disturbed_source_gives_no_point() {
    let disturbed = Script { disturbed: true, ..script(vec![filled(1, 4)], None) };
    let error = compare(&disturbed, &Place::default(), None).unwrap_err();
    assert!(matches!(&error, Error::Source { source, .. } if source.kind == Kind::Disturbed), "{error:?}");
}

#[test]
fn one_disk_that_fails_ends_the_backup_and_is_named() {
    let bad = Faulty::new(filled(1, 2), false, |_, operation| {
        matches!(operation, Operation::Read(_)).then_some(Fault::Fail(sendense_block::Kind::Io))
    });
    let error = compare(&script(vec![filled(1, 2), Arc::new(bad)], None), &Place::default(), None).unwrap_err();
    assert!(matches!(error, Error::Copy { number: DiskNumber(1), .. }), "{error:?}");
}

/// A disk whose first read waits until as many disks are being read as the meeting wants.
struct Meeting {
    disk: Arc<Memory>,
    barrier: Arc<Barrier>,
    met: AtomicBool,
}

impl ReadAt for Meeting {
    fn size(&self) -> ByteLen {
        self.disk.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        if !self.met.swap(true, Ordering::SeqCst) {
            self.barrier.wait();
        }
        self.disk.read_at(at, buf)
    }
}

impl AllocationMap for Meeting {
    fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
        self.disk.allocation(within)
    }
}

#[test]
fn several_disks_are_read_at_the_same_time() {
    // The first read of each waits for the other's: a mover that takes one disk after the other never comes back.
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let barrier = Arc::new(Barrier::new(2));
        let meeting = |byte, blocks| -> Arc<dyn Disk> {
            Arc::new(Meeting { disk: filled(byte, blocks), barrier: barrier.clone(), met: AtomicBool::new(false) })
        };
        let place = Place::default();
        let outcome = compare(&script(vec![meeting(1, 5), meeting(2, 3)], None), &place, None);
        let stored = outcome.map(|outcome| outcome.disks.iter().map(|disk| disk.summary.stored.0).collect::<Vec<_>>());
        done.send(stored).unwrap();
    });
    let stored = ended.recv_timeout(Duration::from_secs(60)).expect("the disks are read one after the other");
    assert_eq!(stored.unwrap(), [5 * B as u64, 3 * B as u64]);
}

#[test]
fn a_cancelled_backup_says_so() {
    let cancel = Cancel::new();
    cancel.cancel();
    let error = run(&script(vec![filled(1, 2)], None), &Place::default(), None, OnTrackingLoss::Compare, &cancel);
    assert!(matches!(error.unwrap_err(), Error::Cancelled));
}

const ALL: Sampling = Sampling { per_million: 1_000_000, blocks_min: 0, seed: 0 };

/// Two disks like the parent, whose tracking names block 1 of each; the second had a write to block 5 that it forgot.
fn lying() -> Script {
    let disks = [filled(1, 8), filled(1, 8)];
    disks.iter().for_each(|disk| disk.write_at(ByteOffset(B as u64), &[9]).unwrap());
    disks[1].write_at(ByteOffset(5 * B as u64), &[9]).unwrap();
    script(disks.map(|disk| disk as Arc<dyn Disk>).to_vec(), Some(vec![(B as u64, B as u64 + 1)]))
}

#[test]
fn tracking_that_is_wrong_costs_that_disk_a_comparison_and_is_begun_anew() {
    let (script, place) = (lying(), Place::default());
    let outcome = run_audited(&script, &place, Some(8), OnTrackingLoss::Compare, ALL, &Cancel::new()).unwrap();
    let mut blocks = place.blocks.lock().clone();
    blocks.sort_unstable();
    assert_eq!(blocks, [(0, 1), (1, 1), (1, 5)], "what tracking forgot is in the point");
    let [told, untrue] = &outcome.disks[..] else { panic!("{outcome:?}") };
    assert_eq!(told.audit, Some(TrackingAudit { blocks_checked: 7, blocks_different: 0 }));
    assert_eq!((told.type_reason.as_deref(), told.summary.read), (None, ByteLen(B as u64)));
    assert_eq!(untrue.audit, Some(TrackingAudit { blocks_checked: 7, blocks_different: 1 }));
    assert_eq!((untrue.backup_type, untrue.summary.read), (BackupType::Incremental, ByteLen(8 * B as u64)));
    let reason = untrue.type_reason.as_deref().unwrap();
    assert!(reason.contains("1 of 7 blocks checked had changed") && reason.ends_with("is block 5"), "{reason}");
    let [(1, alert)] = &place.alerts.lock()[..] else { panic!("{:?}", place.alerts) };
    assert!(reason.ends_with(alert.as_str()), "{alert}");
    assert_eq!(*script.resets.lock(), [[TrackingToken("new".into()), TrackingToken("new".into())]]);
    let tokens: Vec<_> = outcome.facts.disks.iter().map(|disk| disk.token.is_some()).collect();
    assert_eq!(tokens, [true, false], "nothing is asked against what was not tracked rightly");
}

/// A read did not come back for so long that the machine may be another backup's by now.
#[test]
fn a_backup_that_nobody_waits_for_touches_no_marks() {
    let (script, place) = (lying(), Place { given_up: true, ..Place::default() });
    run_audited(&script, &place, Some(8), OnTrackingLoss::Compare, ALL, &Cancel::new()).unwrap();
    assert_eq!(script.resets.lock().len(), 0);
}

#[test]
fn what_becomes_of_the_marks_is_the_sources_word() {
    for (reset, kept, note) in [
        (Ok(TrackingReset::FreshMarks), true, "was begun anew"),
        (Ok(TrackingReset::NotOurs), false, "not ours"),
        (Err("it has snapshots"), false, "it has snapshots"),
    ] {
        let (script, place) = (Script { reset, ..lying() }, Place::default());
        let outcome = run_audited(&script, &place, Some(8), OnTrackingLoss::Compare, ALL, &Cancel::new()).unwrap();
        assert_eq!(outcome.facts.disks[1].token.is_some(), kept, "{reset:?}");
        assert!(place.notes.lock().iter().any(|told| told.contains(note)), "{reset:?}: {:?}", place.notes);
    }
}

#[test]
fn tracking_is_begun_anew_also_where_no_point_comes_of_it() {
    let (script, place) = (lying(), Place::default());
    let error = run_audited(&script, &place, Some(8), OnTrackingLoss::Fail, ALL, &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::TrackingLost { number: DiskNumber(1), .. }), "{error:?}");
    assert_eq!(*script.resets.lock(), [[]; 1]);
    assert_eq!(place.alerts.lock().len(), 1);
}

#[test]
fn a_sample_finds_what_it_looks_at() {
    // 1024 blocks of data, of which 128 were written and not tracked: a look at 64 misses them all once in five thousand
    // times. Which 64 is the seed's choice, so these two always find them.
    for seed in [1, 2] {
        let disk = filled(1, 1024);
        for block in (0..1024).step_by(8) {
            disk.write_at(ByteOffset(block * B as u64), &[9]).unwrap();
        }
        let (script, place) = (script(vec![disk], Some(vec![])), Place::default());
        let sampling = Sampling { per_million: 1000, blocks_min: SAMPLE_BLOCKS_MIN, seed };
        let outcome =
            run_audited(&script, &place, Some(1024), OnTrackingLoss::Compare, sampling, &Cancel::new()).unwrap();
        let audit = outcome.disks[0].audit.unwrap();
        assert!(audit.blocks_checked == 64 && audit.blocks_different > 0, "{audit:?}");
        assert_eq!(place.blocks.lock().len(), 128, "and then all of them are backed up");
    }
}

#[test]
fn a_comparison_and_a_full_are_not_audited() {
    for parent in [None, Some(4)] {
        let script = script(vec![filled(1, 4)], None);
        let outcome =
            run_audited(&script, &Place::default(), parent, OnTrackingLoss::Compare, ALL, &Cancel::new()).unwrap();
        assert_eq!((outcome.disks[0].audit, script.resets.lock().len()), (None, 0));
    }
}
