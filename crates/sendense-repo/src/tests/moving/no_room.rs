//! File systems that are full to the last block, on loop devices: away from one a machine moves, and towards one it comes as far as
//! the points are still the source's, or all the way.

use super::*;
use crate::tests::no_room::fill;
use crate::tests::shared::Mounted;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};

const MIB: usize = 1 << 20;

/// Books of somebody who takes all room of a file system as soon as a path is there; each look at the clock comes most of a lease after
/// the one before, so that the owner record is written again and again.
struct Filling {
    once: PathBuf,
    taken: PathBuf,
    seconds: AtomicI64,
}

impl Filling {
    /// As soon as this is in the repository, beside which the room is taken.
    fn once(repository: &Repository, path: &Path) -> Self {
        let taken = repository.root().parent().unwrap().join("taken");
        Self { once: repository.at(path), taken, seconds: AtomicI64::new(0) }
    }

    fn look(&self) {
        if self.once.symlink_metadata().is_ok() && !self.is_full() {
            std::fs::create_dir(&self.taken).unwrap();
            fill(&self.taken, "all");
        }
    }

    fn is_full(&self) -> bool {
        self.taken.is_dir()
    }
}

impl Ledger for Filling {
    fn now(&self) -> Timestamp {
        self.look();
        now().plus_seconds(self.seconds.fetch_add(40, Ordering::SeqCst))
    }

    fn refuse(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        self.look();
        Ok(())
    }

    fn switch(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        self.look();
        Ok(())
    }

    fn goes_on(&self) -> bool {
        false
    }
}

fn chain() -> [Point; 3] {
    let first = Point::full("vm-a", "bk-1", &[&world::pattern(1, 3 * MIB)]);
    let mut second = first.child("bk-2");
    second.disk(0)[MIB..2 * MIB].copy_from_slice(&world::pattern(2, MIB));
    let mut third = second.child("bk-3");
    third.disk(0)[..MIB].copy_from_slice(&world::pattern(3, MIB));
    [first, second, third]
}

fn check(repository: &Repository, points: &[Point]) {
    for point in points {
        world::check_bytes(repository, point).unwrap();
        world::check_sound(repository, point, Depth::Deep).unwrap();
    }
    qemu::check(repository.root(), &points.iter().collect::<Vec<_>>());
    assert_eq!(tree(repository.root()), tree_of(points));
}

fn told(error: &crate::Error) -> String {
    sendense_block::error::chain(error)
}

fn moved(source: &Repository, target: &Repository, ledger: &dyn Ledger) -> Result<Done> {
    let plan = source.plan_move(&"vm-a".parse().unwrap(), target)?;
    source.execute_move(target, &plan, &options(), &Progress::default(), &Cancel::new(), ledger)
}

/// Of a full file system nothing can be asked but to let go: that is why its machines are moved away.
fn a_full_source_lets_its_points_go(mkfs: &[&str], mib: u64) {
    let (mounted, elsewhere) = (Mounted::sized(mkfs, mib << 20), tempfile::tempdir().unwrap());
    let source = Repository::open(&mounted.root(), world::options(), now()).unwrap();
    let target = Repository::open(&elsewhere.path().join(TARGET), world::options(), now()).unwrap();
    let points = chain();
    points.iter().for_each(|point| drop(back_up(&source, point, now()).unwrap()));
    let filling = Filling::once(&source, Path::new(""));
    let done = moved(&source, &target, &filling).unwrap_or_else(|error| panic!("{}", told(&error)));
    assert!(filling.is_full());
    assert!(done.left.is_none(), "{:?}", done.left.as_ref().map(told));
    assert_eq!(tree(source.root()), tree_of([]));
    check(&target, &points);
}

/// The room goes as soon as a path is there. Then the points are all here or all there, nothing half is listed, and with room the same
/// move comes to its end.
fn a_full_target_has_all_or_nothing(mkfs: &[&str], mib: u64) {
    let vm: VmContextId = "vm-a".parse().unwrap();
    let copy = layout::image(&vm, DiskNumber(0), &"bk-2".parse().unwrap());
    let laid_down = layout::move_in_dir(&vm).join(layout::manifest_name(&"bk-3".parse().unwrap()));
    let intent = layout::move_in_dir(&vm).join(layout::INTENT_FILE);
    let named = layout::manifest(&vm, &"bk-3".parse().unwrap());
    for (once, goes_over) in [(copy, false), (laid_down, false), (intent, true), (named, true)] {
        let met = once.display();
        let (mounted, elsewhere) = (Mounted::sized(mkfs, mib << 20), tempfile::tempdir().unwrap());
        let source = Repository::open(&elsewhere.path().join(SOURCE), world::options(), now()).unwrap();
        let target = Repository::open(&mounted.root(), world::options(), now()).unwrap();
        let points = chain();
        points.iter().for_each(|point| drop(back_up(&source, point, now()).unwrap()));
        let filling = Filling::once(&target, &once);
        let went = moved(&source, &target, &filling);
        assert!(filling.is_full(), "{met}");
        if goes_over {
            let done = went.unwrap_or_else(|error| panic!("{met}: {}", told(&error)));
            assert!(done.left.is_none(), "{met}: {:?}", done.left.as_ref().map(told));
        } else {
            let error = went.unwrap_err();
            assert_eq!(error.kind, Kind::NoSpace, "{met}: {}", told(&error));
            check(&source, &points);
            assert_eq!(tree(target.root()), tree_of([]), "{met}");
            // As long as there is no room it is refused before anything is begun.
            assert_eq!(moved(&source, &target, &filling).unwrap_err().kind, Kind::NoSpace, "{met}");
            check(&source, &points);
            std::fs::remove_dir_all(&filling.taken).unwrap();
            // XFS gives the room of removed files back when it comes to it, and at the latest then.
            qemu::run("sync", &["-f", target.root().to_str().unwrap()]);
            moved(&source, &target, &Book::default()).unwrap_or_else(|error| panic!("{met}: {}", told(&error)));
        }
        check(&target, &points);
        assert_eq!(tree(source.root()), tree_of([]), "{met}");
    }
}

#[test]
fn a_full_ext4_lets_its_points_go() {
    a_full_source_lets_its_points_go(&["mkfs.ext4", "-q", "-m", "0"], 160);
}

#[test]
fn a_full_xfs_lets_its_points_go() {
    a_full_source_lets_its_points_go(&["mkfs.xfs", "-q"], 320);
}

#[test]
fn a_full_btrfs_lets_its_points_go() {
    a_full_source_lets_its_points_go(&["mkfs.btrfs", "-q"], 320);
}

#[test]
fn an_ext4_that_fills_up_has_all_or_nothing() {
    a_full_target_has_all_or_nothing(&["mkfs.ext4", "-q", "-m", "0"], 160);
}

#[test]
fn an_xfs_that_fills_up_has_all_or_nothing() {
    a_full_target_has_all_or_nothing(&["mkfs.xfs", "-q"], 320);
}

#[test]
fn a_btrfs_that_fills_up_has_all_or_nothing() {
    a_full_target_has_all_or_nothing(&["mkfs.btrfs", "-q"], 320);
}
