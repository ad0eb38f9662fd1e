//! Random work on a repository beside a stupid model of it: for each point, the bytes its disks had.
//!
//! Guests write, zero, grow and shrink wherever they like; points are made in full, by comparison and by change tracking,
//! of all disks or of one; they are deleted, alone and with all that stands on them; processes die in the middle. After
//! each step some point is read back, and in the end all are, by this program and by QEMU's.

use crate::delete::Extent as Reach;
use crate::error::Kind;
use crate::repository::Repository;
use crate::testing::stage::{Fault, Faults, Renames, Stage};
use crate::testing::world::{self, Amnesia, Disk, Point, Tracking, WAYS, back_up_tracked, pattern, tree, tree_of};
use crate::testing::{now, qemu};
use crate::verify::Depth;
use proptest::prelude::*;
use sendense_block::{ByteLen, ByteOffset, Extent, ExtentSet};
use sendense_types::{BackupId, DiskNumber};
use std::collections::{BTreeMap, BTreeSet};

const MACHINES: [(&str, &[u32]); 2] = [("vm-a", &[0, 1]), ("vm-b", &[0])];
/// Five blocks and a bit: a first, a last, an odd tail, and some between.
const DISK_BYTES_MAX: usize = 5 * 65536 + 1000;

#[derive(Debug, Clone)]
enum Work {
    /// Bytes of a guest's disk change; without a seed they become zero.
    Write {
        disk: usize,
        at: usize,
        len: usize,
        seed: Option<u64>,
    },
    Resize {
        disk: usize,
        len: usize,
    },
    /// Which disks are in it: one bit each.
    Backup {
        machine: usize,
        full: bool,
        disks: u8,
    },
    /// The newest point that nothing stands on.
    DeleteNewest {
        machine: usize,
    },
    /// Any point with all that stands on it.
    Cascade {
        point: usize,
    },
    /// The process dies at that step of a backup, and another starts up.
    BackupDies {
        machine: usize,
        full: bool,
        at: u64,
    },
    DeleteDies {
        point: usize,
        at: u64,
    },
    /// A point goes, and the one that stands on it takes over what it held.
    Merge {
        point: usize,
        way: usize,
    },
    MergeDies {
        point: usize,
        at: u64,
        way: usize,
    },
    /// A point becomes a full.
    Full {
        point: usize,
        way: usize,
    },
    /// The process is restarted for no reason.
    Restart,
    Verify {
        point: usize,
    },
}

fn works() -> impl Strategy<Value = Work> {
    let len = || prop_oneof![Just(65536usize), 1..200usize, 1..150_000usize];
    let size = prop_oneof![1..DISK_BYTES_MAX, (0..=5usize).prop_map(|blocks| (blocks * 65536).max(512))];
    let seed = prop::option::weighted(0.7, any::<u64>());
    prop_oneof![
        6 => (0..3usize, 0..DISK_BYTES_MAX, len(), seed)
            .prop_map(|(disk, at, len, seed)| Work::Write { disk, at, len, seed }),
        2 => (0..3usize, size).prop_map(|(disk, len)| Work::Resize { disk, len }),
        7 => (0..2usize, prop::bool::weighted(0.2), 1..4u8)
            .prop_map(|(machine, full, disks)| Work::Backup { machine, full, disks }),
        1 => (0..2usize).prop_map(|machine| Work::DeleteNewest { machine }),
        1 => any::<usize>().prop_map(|point| Work::Cascade { point }),
        2 => (0..2usize, any::<bool>(), 0..120u64)
            .prop_map(|(machine, full, at)| Work::BackupDies { machine, full, at }),
        1 => (any::<usize>(), 0..40u64).prop_map(|(point, at)| Work::DeleteDies { point, at }),
        3 => (any::<usize>(), 0..WAYS.len()).prop_map(|(point, way)| Work::Merge { point, way }),
        2 => (any::<usize>(), 0..80u64, 0..WAYS.len())
            .prop_map(|(point, at, way)| Work::MergeDies { point, at, way }),
        1 => (any::<usize>(), 0..WAYS.len()).prop_map(|(point, way)| Work::Full { point, way }),
        1 => Just(Work::Restart),
        1 => any::<usize>().prop_map(|point| Work::Verify { point }),
    ]
}

/// A disk as its guest sees it now.
struct Guest {
    machine: usize,
    number: DiskNumber,
    bytes: Vec<u8>,
    /// What changed since that point was made; lost when the disk is resized, and when a point was not seen to succeed.
    since: Option<(BackupId, ExtentSet)>,
}

struct Model {
    folder: tempfile::TempDir,
    repository: Repository,
    guests: Vec<Guest>,
    points: Vec<Point>,
    made: usize,
}

impl Model {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = world::open(&folder.path().join("repository")).unwrap();
        let mut guests = Vec::new();
        for (machine, (_, disks)) in MACHINES.iter().enumerate() {
            for number in *disks {
                let bytes = pattern(u64::from(*number), 3 * 65536 + 100 * machine + 1);
                guests.push(Guest { machine, number: DiskNumber(*number), bytes, since: None });
            }
        }
        Self { folder, repository, guests, points: Vec::new(), made: 0 }
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("repository")
    }

    fn run(&mut self, work: Work) {
        match work {
            Work::Write { disk, at, len, seed } => self.guests[disk].write(at, len, seed),
            Work::Resize { disk, len } => {
                self.guests[disk].bytes.resize(len, 0);
                self.guests[disk].since = None;
            }
            Work::Backup { machine, full, disks } => {
                let (point, tracking) = self.next(machine, full, disks);
                back_up_tracked(&self.repository, &point, &tracking, now()).unwrap();
                for guest in self.guests.iter_mut().filter(|guest| guest.machine == machine) {
                    if point.disks.contains_key(&guest.number) {
                        guest.since = Some((point.id.clone(), ExtentSet::new()));
                    }
                }
                self.points.push(point);
            }
            Work::DeleteNewest { machine } => {
                let vm = MACHINES[machine].0;
                if let Some(at) = self.points.iter().rposition(|point| point.vm.as_str() == vm) {
                    let point = self.points.remove(at);
                    delete(&self.repository, &point, Reach::Named).unwrap();
                }
            }
            Work::Cascade { point } => self.cascade(point),
            Work::BackupDies { machine, full, at } => {
                let (point, tracking) = self.next(machine, full, 3);
                self.die(at, |repository| back_up_tracked(repository, &point, &tracking, now()).map(drop));
                self.points.push(point);
                self.start_up();
            }
            Work::DeleteDies { point, at } => {
                if let Some(point) = pick(&self.points, point) {
                    self.die(at, |repository| delete(repository, point, Reach::Cascade));
                    self.start_up();
                }
            }
            Work::Merge { point, way } => self.merge(point, way),
            Work::Full { point, way } => self.make_full(point, way),
            Work::MergeDies { point, at, way } => {
                if let Some(point) = pick(&self.points, point).cloned() {
                    let (way, clones) = WAYS[way];
                    self.die_on(clones, at, |repository| world::merge_by(way, repository, &point));
                    self.start_up();
                    self.take_over(&point);
                }
            }
            Work::Restart => self.start_up(),
            Work::Verify { point } => {
                if let Some(point) = pick(&self.points, point) {
                    world::check_sound(&self.repository, point, Depth::Deep).unwrap();
                }
            }
        }
    }

    /// The point that a backup now would make, and what is known to have changed.
    fn next(&mut self, machine: usize, full: bool, disks: u8) -> (Point, Tracking) {
        self.made += 1;
        let vm = MACHINES[machine].0;
        let mut point = Point::full(vm, &format!("bk-{}", self.made), &[]);
        let mut tracking = Tracking::new();
        for guest in self.guests.iter().filter(|guest| guest.machine == machine) {
            // A machine with one disk has it in every point.
            if MACHINES[machine].1.len() > 1 && disks >> guest.number.0 & 1 == 0 {
                continue;
            }
            let newest =
                self.points.iter().rfind(|point| point.vm.as_str() == vm && point.disks.contains_key(&guest.number));
            let parent = newest.filter(|_| !full).map(|point| point.id.clone());
            if let Some((since, changed)) = &guest.since
                && parent.as_ref() == Some(since)
            {
                tracking.insert(guest.number, changed.clone());
            }
            point.disks.insert(guest.number, Disk { bytes: guest.bytes.clone(), parent });
        }
        (point, tracking)
    }

    fn cascade(&mut self, number: usize) {
        let Some(point) = pick(&self.points, number).cloned() else { return };
        let mut going = BTreeSet::from([point.id.clone()]);
        // A parent is made before its children.
        for other in &self.points {
            if !other.parents().is_disjoint(&going) {
                going.insert(other.id.clone());
            }
        }
        let alone = self.repository.plan_delete(&point.vm, &[point.id.clone()].into(), Reach::Named);
        if going.len() > 1 {
            let Err(error) = alone else { panic!("{} goes although others stand on it", point.id) };
            let Kind::HasDependents { ids } = error.kind else { panic!("{error:?}") };
            let all: BTreeSet<BackupId> = ids.into_iter().chain([point.id.clone()]).collect();
            assert_eq!(all, going);
        } else {
            alone.unwrap();
        }
        delete(&self.repository, &point, Reach::Cascade).unwrap();
        self.points.retain(|point| !going.contains(&point.id));
    }

    fn make_full(&mut self, number: usize, way: usize) {
        let Some(point) = pick(&self.points, number).cloned() else { return };
        let (way, clones) = WAYS[way];
        let repository = world::open_sharing(&self.root(), clones).unwrap();
        match world::make_full_by(way, &repository, &point) {
            Ok(()) => {
                let point = self.points.iter_mut().find(|other| other.id == point.id).unwrap();
                point.disks.values_mut().for_each(|disk| disk.parent = None);
            }
            Err(error) => {
                assert_eq!(error.kind, Kind::Invalid, "{error:?}");
                assert!(point.parents().is_empty());
            }
        }
        self.start_up();
    }

    fn merge(&mut self, number: usize, way: usize) {
        let Some(point) = pick(&self.points, number).cloned() else { return };
        let may = self.points.iter().any(|other| other.parents().contains(&point.id));
        let (way, clones) = WAYS[way];
        let repository = world::open_sharing(&self.root(), clones).unwrap();
        let merged = world::merge_by(way, &repository, &point);
        self.start_up();
        match merged {
            Ok(()) => {
                assert!(may);
                self.points.retain(|other| other.id != point.id);
                self.take_over(&point);
            }
            Err(error) => {
                assert_eq!(error.kind, Kind::Invalid, "{error:?}");
                assert!(!may);
            }
        }
    }

    /// What stood on a point stands on what that stood on, if the point is gone; some may where several stood on it and it is there.
    fn take_over(&mut self, going: &Point) {
        let is_there = self.points.iter().any(|point| point.id == going.id);
        for point in &mut self.points {
            let stays = is_there && {
                let manifest = self.repository.manifest(&point.vm, &point.id).unwrap();
                manifest.parents().any(|parent| *parent == going.id)
            };
            for (number, disk) in &mut point.disks {
                if !stays && disk.parent.as_ref() == Some(&going.id) {
                    disk.parent = going.disks.get(number).and_then(|disk| disk.parent.clone());
                }
            }
        }
    }

    /// Does something in another process, which dies at that step: when it opens the repository, or later.
    fn die(&self, at: u64, work: impl FnOnce(&Repository) -> crate::Result<()>) {
        self.die_on(false, at, work);
    }

    /// The same where files can, or cannot, be clones.
    fn die_on(&self, clones: bool, at: u64, work: impl FnOnce(&Repository) -> crate::Result<()>) {
        let stage = Stage::sharing(Faults::new(Fault::Gone, at), Renames::AtOnce, clones);
        let opened = Repository::open_on(stage, &self.root(), world::options(), now());
        // One that dies behind its last step does not know that it was done.
        let _ = opened.and_then(|repository| work(&repository));
    }

    /// A new process. Which of the points whose fate was not known are there is now known; the others never were.
    fn start_up(&mut self) {
        self.repository = world::open(&self.root()).unwrap();
        let report = self.repository.recover(&Amnesia, now()).unwrap();
        assert!(report.problems.is_empty() && report.strangers.is_empty() && report.live.is_empty(), "{report:?}");
        let there: BTreeSet<_> = world::listed(&self.repository).unwrap().into_iter().collect();
        let known = self.points.len();
        self.points.retain(|point| there.contains(&(point.vm.clone(), point.id.clone())));
        assert_eq!(there.len(), self.points.len(), "of {known}");
    }

    fn check(&self, some: usize) {
        if let Some(point) = pick(&self.points, some) {
            world::check_bytes(&self.repository, point).unwrap();
        }
    }

    fn check_all(&self) {
        for point in &self.points {
            world::check_bytes(&self.repository, point).unwrap();
            world::check_sound(&self.repository, point, Depth::Deep).unwrap();
        }
        assert_eq!(tree(&self.root()), tree_of(&self.points));
    }
}

impl Guest {
    fn write(&mut self, at: usize, len: usize, seed: Option<u64>) {
        let start = at.min(self.bytes.len());
        let end = start.saturating_add(len).min(self.bytes.len());
        match seed {
            Some(seed) => self.bytes[start..end].copy_from_slice(&pattern(seed, end - start)),
            None => self.bytes[start..end].fill(0),
        }
        if let Some((_, changed)) = &mut self.since {
            changed.insert(Extent::new(ByteOffset(start as u64), ByteLen((end - start) as u64)).unwrap());
        }
    }
}

fn pick(points: &[Point], number: usize) -> Option<&Point> {
    points.get(number.checked_rem(points.len())?)
}

fn delete(repository: &Repository, point: &Point, reach: Reach) -> crate::Result<()> {
    let plan = repository.plan_delete(&point.vm, &[point.id.clone()].into(), reach)?;
    repository.execute_delete(plan, "test", now())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_point_gives_back_its_bytes(works in prop::collection::vec(works(), 1..40), some in any::<usize>()) {
        let mut model = Model::new();
        for (number, work) in works.into_iter().enumerate() {
            model.run(work);
            model.check(some.wrapping_add(number));
        }
        model.check_all();
        // A process takes 30 ms: two points of a case are enough, for there are many cases.
        let asked: BTreeMap<_, _> =
            [some, some / 7].iter().filter_map(|n| pick(&model.points, *n)).map(|point| (&point.id, point)).collect();
        qemu::check(&model.root(), &asked.into_values().collect::<Vec<_>>());
    }
}
