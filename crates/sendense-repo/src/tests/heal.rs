//! What damage has cost, and that the next point stores it again: whatever bit of a parent rots, the point that is compared with
//! what is left of it can be restored whole.

use crate::digests::LOST;
use crate::error::{Kind, Result};
use crate::layout;
use crate::repository::Repository;
use crate::testing::before::{Before, delete};
use crate::testing::world::{self, Point};
use crate::testing::{Dice, now};
use crate::verify::{Depth, Options, PointReport, Progress, Scope};
use crate::{DiskSpec, DraftSpec, PointDigests};
use sendense_block::backend::Memory;
use sendense_block::codec::Level;
use sendense_block::copy::{self, Mode};
use sendense_block::{BlockIndex, ByteLen, Cancel, DigestMap, Extent, ExtentSet, Known, ReadAt};
use sendense_types::{BackupId, DiskBinding, DiskNumber};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;

type Lost = BTreeMap<DiskNumber, ExtentSet>;

/// A machine of two disks. Of the first disk's blocks 1, 4 and 7 are noise, each third one is zero; the second point holds block 1
/// itself and takes the others from the first.
struct House {
    folder: tempfile::TempDir,
    repository: Repository,
    first: Point,
    second: Point,
}

const BLOCKS: u64 = 9;

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let first = Point::full("vm-a", "bk-1", &[&world::pattern(1, 8 * 65536 + 700), &world::pattern(2, 2 * 65536)]);
        let mut second = first.child("bk-2");
        second.disk(0)[70_000..90_000].fill(7);
        let repository = world::open(&folder.path().join("repository")).unwrap();
        for point in [&first, &second] {
            world::back_up(&repository, point, now()).unwrap();
        }
        Self { folder, repository, first, second }
    }

    fn path(&self, file: impl AsRef<Path>) -> std::path::PathBuf {
        self.folder.path().join("repository").join(file)
    }
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

fn verify(repository: &Repository, point: &Point, depth: Depth) -> PointReport {
    let options = Options { depth, scope: Scope::Point, threads: 2, bytes_per_second: None, who: "test".into() };
    let report = repository.verify(&point.vm, &point.id, None, &options, &Progress::default(), &Cancel::new()).unwrap();
    report.points[&point.id].clone()
}

/// The digests of a disk of a point, with what `damaged` has lost.
fn digests(
    repository: &Repository,
    point: &Point,
    disk: DiskNumber,
    damaged: &BackupId,
    lost: &Lost,
) -> Result<PointDigests> {
    let lost = lost.get(&disk).cloned().unwrap_or_default();
    repository.open_digests_knowing(&point.vm, &point.id, disk, "test", &[(damaged.clone(), lost)].into())
}

/// Backs a point up by comparing each disk with what is left of its parent; false where the parent's chain cannot be built on.
fn heal(repository: &Repository, parent: &Point, point: &Point, damaged: &BackupId, lost: &Lost) -> bool {
    for number in point.disks.keys() {
        match repository.check_chain(&parent.vm, &parent.id, *number) {
            Err(error) if matches!(error.kind, Kind::Corrupt { .. }) => return false,
            checked => checked.unwrap(),
        }
    }
    let spec = DraftSpec {
        backup_id: point.id.clone(),
        vm_context_id: point.vm.clone(),
        parents: point.parents(),
        expected_bytes: 1 << 20,
        who: "task-test".into(),
    };
    let mut draft = repository.begin_draft(spec, now()).unwrap();
    for (number, disk) in &point.disks {
        let known = digests(repository, parent, *number, damaged, lost).unwrap();
        let source = Memory::from_bytes(disk.bytes.clone());
        let spec = DiskSpec {
            number: *number,
            binding: DiskBinding(format!("disk {number}")),
            capacity: source.size(),
            parent: disk.parent.clone(),
        };
        let sink = draft.begin_disk(spec).unwrap();
        let (mode, cancel) = (Mode::Compare { parent: &known }, Cancel::new());
        let work = copy::survey("the disk", &source, mode, &cancel).unwrap();
        let job = copy::Backup {
            name: "the disk",
            disk: &source,
            mode,
            sink: &*sink,
            options: copy::Options { lanes: 1, request_bytes: 4 * 65536, level: Level::Fast },
            progress: &copy::Progress::default(),
            cancel: &cancel,
        };
        copy::backup(&job, work).unwrap();
    }
    draft.seal().unwrap().publish(world::facts(point), now()).unwrap();
    true
}

#[test]
fn the_blocks_that_are_lost_are_known_and_who_needs_them() {
    let house = House::new();
    let (repository, first, second) = (&house.repository, &house.first, &house.second);
    let image = house.path(layout::image(&first.vm, DiskNumber(0), &first.id));
    assert_eq!(verify(repository, first, Depth::AtRest).lost, Lost::new());

    let bytes = std::fs::read(&image).unwrap();
    let (mut needed, whole) = (BTreeSet::new(), Extent::whole(ByteLen(BLOCKS * 65536)));
    for at in (0..bytes.len() as u64).step_by(997) {
        flip(&image, at, 3);
        let found = [Depth::AtRest, Depth::Deep].map(|depth| verify(repository, first, depth));
        assert!(found[0].damage.is_some() && !found[0].is_unreadable, "byte {at}");
        assert_eq!(found[0].lost, found[1].lost, "byte {at}");
        assert!(found[0].lost.keys().eq(&[DiskNumber(0)]));
        let lost = &found[0].lost[&DiskNumber(0)];
        if let Ok(known) = digests(repository, second, DiskNumber(0), &first.id, &found[0].lost) {
            let of_second = lost.difference(&[Extent::block(BlockIndex(1))].into_iter().collect());
            let blocks = known.lost_blocks().unwrap();
            assert_eq!(blocks, of_second.within(whole).byte_len().0 / 65536, "byte {at}: {lost:?}");
            needed.insert(blocks);
            let mut told = [Known::Zero; BLOCKS as usize];
            known.known(BlockIndex(0), &mut told).unwrap();
            for (index, told) in (0..).zip(told) {
                let is_lost = of_second.contains(Extent::block(BlockIndex(index)));
                assert_eq!(told == LOST, is_lost, "block {index} after byte {at}");
            }
        }
        flip(&image, at, 3);
    }
    assert!(needed.contains(&0) && needed.contains(&1), "{needed:?}");
    assert_eq!(std::fs::read(&image).unwrap(), bytes);
}

#[test]
fn whatever_rots_the_next_point_is_whole() {
    let house = House::new();
    let (repository, first, second) = (&house.repository, &house.first, &house.second);
    let mut third = second.child("bk-3");
    third.disk(0)[..10].fill(9);
    let mut dice = Dice(5);
    let (mut healed, mut restored_wrong) = (0, 0);
    for file in [
        layout::image(&first.vm, DiskNumber(0), &first.id),
        layout::image(&first.vm, DiskNumber(1), &first.id),
        layout::digests(&first.vm, DiskNumber(0), &first.id),
    ] {
        let path = house.path(file);
        let len = path.metadata().unwrap().len();
        // The tables are small among data: every place of a digests file, and of an image some of each cluster.
        let places: Vec<u64> = match path.extension().is_some_and(|suffix| suffix == "digests") {
            true => (0..len).step_by(53).collect(),
            false => (0..len).step_by(8192).map(|at| (at + dice.roll() % 8192).min(len - 1)).chain(0..40).collect(),
        };
        for at in places {
            let bit = dice.below(8) as u8;
            flip(&path, at, bit);
            let lost = verify(repository, first, Depth::AtRest).lost;
            let was_wrong = world::check_bytes(repository, second).is_err();
            if heal(repository, second, &third, &first.id, &lost) {
                world::check_bytes(repository, &third)
                    .unwrap_or_else(|what| panic!("{}: byte {at}: {what}", path.display()));
                for number in third.disks.keys() {
                    // Nothing of the damage is needed any more, neither for its bytes nor for its digests.
                    let known = digests(repository, &third, *number, &first.id, &lost).unwrap();
                    assert_eq!(known.lost_blocks().unwrap(), 0, "{}: byte {at}", path.display());
                    let known = repository.open_digests(&third.vm, &third.id, *number, "test").unwrap();
                    let mut all = vec![Known::Zero; 64];
                    known.known(BlockIndex(0), &mut all).unwrap();
                    assert!(!all.contains(&LOST));
                }
                healed += 1;
                restored_wrong += u32::from(was_wrong);
                delete(repository, &third, crate::delete::Extent::Named).unwrap();
            } else {
                assert!(at < 65536 || path.extension().is_some_and(|suffix| suffix == "digests"), "byte {at}");
            }
            flip(&path, at, bit);
        }
    }
    assert!(healed > 20 && restored_wrong > 5, "{healed} {restored_wrong}");
    world::check_bytes(repository, second).unwrap();
}

#[test]
fn a_pace_is_kept() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let point = &before.first;
    let options = Options {
        depth: Depth::Deep,
        scope: Scope::Point,
        threads: 4,
        bytes_per_second: Some(1 << 20),
        who: "test".into(),
    };
    let began = std::time::Instant::now();
    let report = repository.verify(&point.vm, &point.id, None, &options, &Progress::default(), &Cancel::new()).unwrap();
    let (took, bytes) = (began.elapsed().as_secs_f64(), report.checked_bytes as f64);
    assert!(report.is_sound() && bytes > 300_000.0, "{report:?}");
    assert!(took >= bytes / f64::from(1 << 20), "{bytes} bytes in {took} s");
    let figures = &report.points[&point.id];
    assert_eq!(figures.read.bytes + figures.decoded.bytes, report.checked_bytes);
    assert!(figures.decoded.bytes_per_second().is_some(), "{figures:?}");
}
