//! Made-up machines: points with the bytes that they must give back, and what must hold of a repository after any crash.

use super::stage::{self, Stage};
use super::{claim, now};
use crate::crashsafe::Fs;
use crate::draft::{DiskFacts, DiskSpec, Draft, DraftSpec, PointFacts};
use crate::error::Result;
use crate::layout;
use crate::manifest::{Manifest, Vm};
use crate::merge::{self, Way};
use crate::recover::{Catalog, Report};
use crate::repository::{Create, Options, Repository};
use crate::verify::{self, Depth};
use sendense_block::backend::Memory;
use sendense_block::codec::Level;
use sendense_block::copy::{self, Mode};
use sendense_block::{ByteOffset, Cancel, ChangeMap, Extent, ExtentSet, ReadAt};
use sendense_types::{BackupId, BackupType, Consistency, DiskBinding, DiskNumber, SourceKind, Timestamp, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A disk of a point: its bytes, and the point below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub bytes: Vec<u8>,
    pub parent: Option<BackupId>,
}

/// A point and what it must give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    pub vm: VmContextId,
    pub id: BackupId,
    pub disks: BTreeMap<DiskNumber, Disk>,
}

impl Point {
    /// A full of disks with these bytes.
    pub fn full(vm: &str, id: &str, disks: &[&[u8]]) -> Self {
        let disk = |bytes: &&[u8]| Disk { bytes: bytes.to_vec(), parent: None };
        Self {
            vm: vm.parse().unwrap(),
            id: id.parse().unwrap(),
            disks: (0..).map(DiskNumber).zip(disks.iter().map(disk)).collect(),
        }
    }

    /// A point of the same disks that stands on this one; the bytes can be changed afterwards.
    pub fn child(&self, id: &str) -> Self {
        let mut child = Self { id: id.parse().unwrap(), ..self.clone() };
        for disk in child.disks.values_mut() {
            disk.parent = Some(self.id.clone());
        }
        child
    }

    pub fn disk(&mut self, number: u32) -> &mut Vec<u8> {
        &mut self.disks.get_mut(&DiskNumber(number)).unwrap().bytes
    }

    /// The points it stands on directly.
    pub fn parents(&self) -> BTreeSet<BackupId> {
        self.disks.values().filter_map(|disk| disk.parent.clone()).collect()
    }
}

/// Bytes that are told apart by their seed: blocks of text, of noise and of zeros, by turns.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = super::Dice(seed);
    let mut bytes = Vec::with_capacity(len);
    for number in 0.. {
        let left = len - bytes.len();
        match number % 3 {
            _ if left == 0 => break,
            0 => bytes.extend(std::iter::repeat_n(dice.roll() as u8 | 1, left.min(65536))),
            1 => bytes.extend(std::iter::repeat_with(|| dice.roll().to_le_bytes()).take(8192).flatten().take(left)),
            _ => bytes.resize(bytes.len() + left.min(65536), 0),
        }
    }
    bytes
}

pub fn options() -> Options {
    Options { claim: claim(), limit_bytes: None, floor_bytes: None, create: Create::IfMissing }
}

/// Opens a repository on a file system where nothing goes wrong.
pub fn open(root: &Path) -> Result<Repository> {
    Repository::open_on(Stage::calm(), root, options(), now())
}

/// Ways to merge that must come to the same, and whether files can be clones there.
pub const WAYS: [(Way, bool); 3] = [(Way::Rewrite, false), (Way::Patch, false), (Way::Patch, true)];

/// Opens a repository where files can, or cannot, be clones, and nothing goes wrong.
pub fn open_sharing(root: &Path, clones: bool) -> Result<Repository> {
    let stage = Stage::sharing(Arc::new(stage::Calm), stage::Renames::AtOnce, clones);
    Repository::open_on(stage, root, options(), now())
}

/// Opens a repository on the given file system.
pub fn open_on(fs: Arc<dyn Fs>, root: &Path) -> Repository {
    Repository::open_on(fs, root, options(), now()).unwrap()
}

/// Makes a point, the way a hub does; gives the draft up when something fails.
pub fn back_up(repository: &Repository, point: &Point, now: Timestamp) -> Result<Manifest> {
    back_up_tracked(repository, point, &Tracking::new(), now)
}

/// What changed on the disks since their parents were made; a disk that is not in it is compared as a whole.
pub type Tracking = BTreeMap<DiskNumber, ExtentSet>;

struct Changes<'a>(&'a ExtentSet);

impl ChangeMap for Changes<'_> {
    fn changed(&self, within: Extent) -> sendense_block::Result<ExtentSet> {
        Ok(self.0.within(within))
    }
}

/// Makes a point, reading only what changed where that is known.
pub fn back_up_tracked(
    repository: &Repository,
    point: &Point,
    tracking: &Tracking,
    now: Timestamp,
) -> Result<Manifest> {
    let expected_bytes = point.disks.values().map(|disk| disk.bytes.len() as u64).sum();
    let spec = DraftSpec {
        backup_id: point.id.clone(),
        vm_context_id: point.vm.clone(),
        parents: point.parents(),
        expected_bytes,
        who: "task-test".into(),
    };
    let mut draft = repository.begin_draft(spec, now)?;
    if let Err(error) = copy_disks(&mut draft, point, tracking) {
        // What cannot be removed now is the next start's.
        let _ = draft.abandon();
        return Err(error);
    }
    draft.seal()?.publish(facts(point), now)
}

/// Copies the disks of a point into its draft.
pub fn copy_disks(draft: &mut Draft, point: &Point, tracking: &Tracking) -> Result<()> {
    for (number, disk) in &point.disks {
        let source = Memory::from_bytes(disk.bytes.clone());
        let spec = DiskSpec {
            number: *number,
            binding: DiskBinding(format!("disk {number}")),
            capacity: source.size(),
            parent: disk.parent.clone(),
        };
        let sink = draft.begin_disk(spec)?;
        let changes = tracking.get(number).map(Changes);
        let mode = match (sink.parent(), &changes) {
            (None, _) => Mode::Full,
            (Some(parent), None) => Mode::Compare { parent },
            (Some(parent), Some(changes)) => Mode::Tracked { parent, changes },
        };
        let cancel = Cancel::new();
        let work = copy::survey("the disk", &source, mode, &cancel)?;
        assert_eq!(work.doubt, None, "what was tracked is true");
        let job = copy::Backup {
            name: "the disk",
            disk: &source,
            mode,
            sink: &*sink,
            options: copy::Options { lanes: 1, request_bytes: 4 * 65536, level: Level::Fast },
            progress: &copy::Progress::default(),
            cancel: &cancel,
        };
        copy::backup(&job, work)?;
    }
    Ok(())
}

/// What the manifest of a point says beyond its disks.
pub fn facts(point: &Point) -> PointFacts {
    let told = |number: &DiskNumber| {
        let facts =
            DiskFacts { disk_key: format!("vd{number}"), label: format!("disk {number}"), ..DiskFacts::default() };
        (*number, facts)
    };
    let full = point.parents().is_empty();
    PointFacts {
        vm: Vm {
            name: "machine".to_owned().try_into().unwrap(),
            kind: SourceKind::Image,
            instance_uuid: None,
            source: "somewhere".into(),
        },
        created_at: now(),
        consistency: Consistency::Crash,
        partial: false,
        requested_type: if full { BackupType::Full } else { BackupType::Incremental },
        policy_id: None,
        tags: BTreeMap::new(),
        documents: Vec::new(),
        notes: Vec::new(),
        disks: point.disks.keys().map(told).collect(),
    }
}

/// Merges a point into those that stand on it.
pub fn merge(repository: &Repository, going: &Point) -> Result<()> {
    merge_by(Way::Fitting, repository, going)
}

/// How a merge is done by these tests, by so many threads.
pub fn merging(way: Way, threads: usize) -> merge::Options {
    merge::Options { threads, who: "test".into(), patience: Duration::ZERO, way, humble: false, bytes_per_second: None }
}

/// Merges a point into those that stand on it, in this way.
pub fn merge_by(way: Way, repository: &Repository, going: &Point) -> Result<()> {
    let (options, progress, cancel) = (merging(way, 1), verify::Progress::default(), Cancel::new());
    for plan in repository.plan_merge(&going.vm, &going.id, now())? {
        repository.execute_merge(&plan, &options, &progress, &cancel, now, || Ok(()))?;
    }
    Ok(())
}

/// Makes a point a full.
pub fn make_full(repository: &Repository, point: &Point) -> Result<()> {
    make_full_by(Way::Fitting, repository, point)
}

/// Makes a point a full, in this way.
pub fn make_full_by(way: Way, repository: &Repository, point: &Point) -> Result<()> {
    let plan = repository.plan_full(&point.vm, &point.id)?;
    let options = merging(way, 2);
    repository.execute_merge(&plan, &options, &verify::Progress::default(), &Cancel::new(), now, || Ok(())).map(drop)
}

/// Compares every byte of a point.
pub fn check_bytes(repository: &Repository, point: &Point) -> Result<(), String> {
    for (number, disk) in &point.disks {
        let told = |error: &dyn std::error::Error| {
            format!("read disk {number} of {}: {}", point.id, sendense_block::error::chain(error))
        };
        let reader = repository.open_disk(&point.vm, &point.id, *number, "test").map_err(|error| told(&error))?;
        if reader.size().0 != disk.bytes.len() as u64 {
            return Err(format!("disk {number} of {} has {}, not {}", point.id, reader.size(), disk.bytes.len()));
        }
        let mut bytes = vec![0xEE; disk.bytes.len()];
        reader.read_at(ByteOffset(0), &mut bytes).map_err(|error| told(&error))?;
        if bytes != disk.bytes {
            let at = bytes.iter().zip(&disk.bytes).position(|(got, wanted)| got != wanted);
            return Err(format!("byte {at:?} of disk {number} of {} is not what was backed up", point.id));
        }
    }
    Ok(())
}

/// Verifies a point.
pub fn check_sound(repository: &Repository, point: &Point, depth: Depth) -> Result<(), String> {
    let options =
        verify::Options { depth, scope: verify::Scope::Point, threads: 1, bytes_per_second: None, who: "test".into() };
    let report = repository
        .verify(&point.vm, &point.id, None, &options, &verify::Progress::default(), &Cancel::new())
        .map_err(|error| format!("verify {}: {}", point.id, sendense_block::error::chain(&error)))?;
    if report.is_sound() { Ok(()) } else { Err(format!("verify {}: {report:?}", point.id)) }
}

/// A catalog that lost everything: no draft is live, no point is known.
pub struct Amnesia;

impl Catalog for Amnesia {
    fn is_live(&self, _vm: &VmContextId, _draft: &BackupId) -> bool {
        false
    }

    fn is_moving(&self, _vm: &VmContextId) -> bool {
        false
    }

    fn knows(&self, _vm: &VmContextId, _point: &BackupId) -> bool {
        false
    }
}

/// Every file and folder below a folder, but for the spare room.
pub fn tree(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // It may be absent at any time.
            if path == root.join(layout::SPARE_FILE) {
                continue;
            }
            found.insert(path.strip_prefix(root).unwrap().to_owned());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

/// What a repository with these points holds, and nothing else.
pub fn tree_of<'a>(points: impl IntoIterator<Item = &'a Point>) -> BTreeSet<PathBuf> {
    let mut wanted = BTreeSet::from([layout::OWNER_FILE.into(), layout::OWNER_LOCK_FILE.into()]);
    for Point { vm, id, disks } in points {
        wanted.extend([layout::vm_dir(vm), layout::manifest(vm, id)]);
        for disk in disks.keys() {
            wanted.extend([layout::disk_dir(vm, *disk), layout::image(vm, *disk, id), layout::digests(vm, *disk, id)]);
        }
    }
    wanted
}

/// The points that a repository lists, of all VMs.
pub fn listed(repository: &Repository) -> Result<Vec<(VmContextId, BackupId)>, String> {
    let told = |error| sendense_block::error::chain(&error);
    let mut points = Vec::new();
    for vm in repository.vms().map_err(told)? {
        let all = repository.list(&vm).and_then(|listing| listing.complete()).map_err(told)?;
        points.extend(all.into_iter().map(|point| (vm.clone(), point.backup_id)));
    }
    Ok(points)
}

/// How much is looked at after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// What is there now.
    Now,
    /// Also the points that nobody touched, and whether the work goes on.
    Next,
}

/// Starts up in a folder that a crash left behind and checks everything that must hold then.
///
/// The points of `must` are there, those of `may` are there whole or not at all, nothing else is there; starting up again
/// changes nothing. With [`Care::Next`] the points of `must` are verified too, and the next backup succeeds.
pub fn survive(root: &Path, must: &[&Point], may: &[&Point], care: Care) -> Result<(), String> {
    let told = |verb: &str, error: crate::Error| format!("{verb}: {}", sendense_block::error::chain(&error));
    let repository = open(root).map_err(|error| told("open", error))?;
    let recover = || repository.recover(&Amnesia, now()).map_err(|error| told("recover", error));
    let first = recover()?;
    check_report(&first)?;
    let there = listed(&repository)?;
    let find = |(vm, id): &(VmContextId, BackupId)| {
        let known = must.iter().chain(may).find(|point| point.vm == *vm && point.id == *id);
        known.copied().ok_or_else(|| format!("{id} exists, which was never published"))
    };
    let points = there.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    if let Some(lost) = must.iter().find(|point| !points.contains(point)) {
        return Err(format!("{} is lost", lost.id));
    }
    for point in &points {
        check_bytes(&repository, point)?;
        match (may.contains(point), care) {
            (true, _) => check_sound(&repository, point, Depth::Deep)?,
            (false, Care::Next) => check_sound(&repository, point, Depth::AtRest)?,
            (false, Care::Now) => {}
        }
    }
    let files = tree(root);
    let wanted = tree_of(points.iter().copied());
    if files != wanted {
        let (more, less): (Vec<_>, Vec<_>) = (files.difference(&wanted).collect(), wanted.difference(&files).collect());
        return Err(format!("left behind: {more:?}; missing: {less:?}"));
    }
    let second = recover()?;
    check_report(&second)?;
    if !second.undone.is_empty()
        || !second.deleted.is_empty()
        || !second.merged.is_empty()
        || second.unknown != first.unknown
        || tree(root) != files
    {
        return Err(format!("starting up again did something: {second:?}"));
    }
    if care == Care::Now {
        return Ok(());
    }
    // Parents come before children, so nothing stands on the last one.
    let next = match points.last() {
        Some(newest) => {
            let mut next = newest.child("bk-next");
            next.disks
                .values_mut()
                .for_each(|disk| disk.bytes.iter_mut().step_by(70_000).for_each(|byte| *byte ^= 0xFF));
            next
        }
        None => Point::full("vm-a", "bk-next", &[&pattern(9, 100_000)]),
    };
    back_up(&repository, &next, now()).map_err(|error| told("make the next backup", error))?;
    check_bytes(&repository, &next)
}

fn check_report(report: &Report) -> Result<(), String> {
    let clean = report.problems.is_empty() && report.strangers.is_empty() && report.live.is_empty();
    if clean { Ok(()) } else { Err(format!("start-up met trouble: {report:?}")) }
}
