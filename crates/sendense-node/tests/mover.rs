//! The mover with a scripted source and a sink in memory: what each disk's backup becomes, and that the source is always
//! let go.

#![allow(clippy::unwrap_used)]

use parking_lot::Mutex;
use sendense_block::backend::{Fault, Faulty, Memory, Operation};
use sendense_block::codec::Level;
use sendense_block::copy::Progress;
use sendense_block::{
    AllocationMap, Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Cancel, ChangeMap, Digest, DigestMap, Disk,
    Extent, ExtentSet, Known, MappedExtent, ReadAt, WriteAt,
};
use sendense_node::{
    Assignment, DiskAssignment, DiskStart, Error, FileJournal, Landing, LaneBudget, Outcome, Parent, Parentage, mover,
};
use sendense_source::{
    Artefact, Changes, DiscoveredVm, DiskRequest, FreezeRequest, Frozen, FrozenDisk, FrozenFacts, Journal, Kind,
    ReadHints, Source, TestReport, VmRef,
};
use sendense_types::{
    BackupId, BackupType, Consistency, DeploymentId, DiskBinding, DiskNumber, OnTrackingLoss, Phase, SourceKind,
    TaskId, TrackingToken,
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
    fn note(&self, _: &str) {}
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

fn filled(byte: u8, blocks: usize) -> Arc<Memory> {
    Arc::new(Memory::from_bytes(vec![byte; blocks * B]))
}

fn script(disks: Vec<Arc<dyn Disk>>, changed: Option<Vec<(u64, u64)>>) -> Script {
    Script { disks, changed, disturbed: false, released: Arc::default() }
}

fn run(
    script: &Script,
    place: &Place,
    parent: Option<u64>,
    loss: OnTrackingLoss,
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
                        digests: Arc::new(Filled(1, blocks)),
                    }),
                },
            })
            .collect(),
        level: Level::Off,
        on_tracking_loss: loss,
        parallel_disks: 2,
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
