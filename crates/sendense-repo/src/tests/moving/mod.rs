//! Moving a machine's points to another repository: what it refuses, what it waits for, what it costs, and that it goes on.

mod faults;
mod no_room;
mod overlap;
mod takeover;

use crate::delete::Extent;
use crate::error::{Kind, Result};
use crate::layout;
use crate::lock::Operation;
use crate::moving::{Done, Ends, Finished, Ledger, Options};
use crate::repository::Repository;
use crate::survey::Moving;
use crate::testing::before::{Before, delete};
use crate::testing::stage::{Act, Renames, Script, Stage};
use crate::testing::world::{self, Amnesia, Point, back_up, tree, tree_of};
use crate::testing::{now, qemu};
use crate::verify::{Depth, Progress};
use parking_lot::Mutex;
use sendense_block::Cancel;
use sendense_types::{BackupId, DiskNumber, Timestamp, VmContextId};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A caller that writes down what it is told.
#[derive(Default)]
struct Book {
    switched: Mutex<BTreeSet<BackupId>>,
    is_away: bool,
    goes_on: bool,
    /// Somebody has begun to use the points where they were.
    is_in_use: bool,
}

impl Ledger for Book {
    fn now(&self) -> Timestamp {
        now()
    }

    fn refuse(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        match self.is_in_use {
            true => Err(crate::Error::new(Kind::Conflict { holders: Vec::new() }, "a recovery runs on them")),
            false => Ok(()),
        }
    }

    fn switch(&self, points: &BTreeSet<BackupId>) -> Result<()> {
        if self.is_away {
            return Err(crate::Error::new(Kind::Unavailable, "the database is away"));
        }
        self.switched.lock().extend(points.iter().cloned());
        Ok(())
    }

    fn goes_on(&self) -> bool {
        self.goes_on
    }
}

/// Two repositories on one disk: a chain of three and another machine in the first, nothing in the second.
struct World {
    before: Before,
    third: Point,
}

const TARGET: &str = "target";
const SOURCE: &str = "repository";

impl World {
    /// Of disks so small that a thousand such worlds are made in seconds, and still of several clusters, a size that is cut and a tail.
    fn small() -> Self {
        let first = Point::full("vm-a", "bk-1", &[&world::pattern(1, 65536 + 700), &world::pattern(2, 100)]);
        let mut second = first.child("bk-2");
        second.disk(0)[65_000..66_000].fill(7);
        let mut third = second.child("bk-3");
        third.disk(0).truncate(65536 + 5);
        third.disks.insert(DiskNumber(2), world::Disk { bytes: world::pattern(4, 700), parent: None });
        let before = Before::with(first, second);
        back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
        let world = Self { before, third };
        world::open(&world.folder().join(TARGET)).unwrap();
        world
    }

    fn new() -> Self {
        let before = Before::new();
        let third = before.third();
        back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
        let world = Self { before, third };
        world::open(&world.folder().join(TARGET)).unwrap();
        world
    }

    fn folder(&self) -> std::path::PathBuf {
        self.before.root().parent().unwrap().to_owned()
    }

    fn open(&self) -> (Repository, Repository) {
        open(&self.folder())
    }

    fn vm(&self) -> &VmContextId {
        &self.third.vm
    }

    fn chain(&self) -> [&Point; 3] {
        [&self.before.first, &self.before.second, &self.third]
    }
}

fn open(folder: &Path) -> (Repository, Repository) {
    (world::open(&folder.join(SOURCE)).unwrap(), world::open(&folder.join(TARGET)).unwrap())
}

fn ends(from: &str, to: &str) -> Ends {
    Ends { from: from.into(), to: to.into(), who: "test".into() }
}

fn options() -> Options {
    let ends = ends("old", "new");
    Options { ends, threads: 2, patience: Duration::ZERO, humble: false, bytes_per_second: None }
}

fn go(source: &Repository, target: &Repository, vm: &VmContextId, book: &Book) -> Result<Done> {
    let plan = source.plan_move(vm, target)?;
    source.execute_move(target, &plan, &options(), &Progress::default(), &Cancel::new(), book)
}

/// What the two say when everything is in order again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Source,
    Target,
}

/// What a hub does at its start, for both repositories, in one order or the other.
fn settle(source: &Repository, target: &Repository, target_first: bool) -> Result<(), String> {
    let told = |error| sendense_block::error::chain(&error);
    let book = Book::default();
    let order = if target_first { [target, source] } else { [source, target] };
    for repository in order {
        let report = repository.recover(&Amnesia, now()).map_err(told)?;
        if !report.problems.is_empty() || !report.strangers.is_empty() {
            return Err(format!("{report:?}"));
        }
        for (vm, from) in &report.arriving {
            assert_eq!(from, "old");
            assert!(repository.finish_arrival(vm, &book).map_err(told)?);
        }
        for (vm, to) in &report.leaving {
            assert_eq!(to, "new");
            repository.finish_move(vm, target, &ends("old", "new"), &book).map_err(told)?;
        }
        for (vm, from) in &report.arrived {
            assert_eq!(from, "old");
            source.finish_move(vm, target, &ends("old", "new"), &book).map_err(told)?;
        }
    }
    Ok(())
}

/// After whatever happened: the points are in one of the two, whole, and nothing else is in either.
fn survive(folder: &Path, chain: &[&Point], other: &Point, target_first: bool) -> Result<Place, String> {
    let (source, target) = open(folder);
    settle(&source, &target, target_first)?;
    let (here, there) = (world::listed(&source)?, world::listed(&target)?);
    let of_chain = chain[0].vm.clone();
    let ids: BTreeSet<&BackupId> = chain.iter().map(|point| &point.id).collect();
    let in_source: BTreeSet<&BackupId> = here.iter().filter(|(vm, _)| *vm == of_chain).map(|(_, id)| id).collect();
    let in_target: BTreeSet<&BackupId> = there.iter().map(|(_, id)| id).collect();
    let (place, repository) = match (in_source == ids, in_target == ids) {
        (true, false) if in_target.is_empty() => (Place::Source, &source),
        (false, true) if in_source.is_empty() => (Place::Target, &target),
        _ => return Err(format!("here {in_source:?}, there {in_target:?}")),
    };
    for point in chain {
        world::check_bytes(repository, point)?;
        // Of the source no file has been written.
        if place == Place::Target {
            world::check_sound(repository, point, Depth::AtRest)?;
        }
    }
    world::check_bytes(&source, other)?;
    let (all, moved): (Vec<&Point>, Vec<&Point>) = match place {
        Place::Source => (chain.iter().copied().chain([other]).collect(), Vec::new()),
        Place::Target => (vec![other], chain.to_vec()),
    };
    for (repository, points) in [(&source, all), (&target, moved)] {
        let (found, wanted) = (tree(repository.root()), tree_of(points));
        if found != wanted {
            let more: Vec<_> = found.difference(&wanted).collect();
            return Err(format!("left behind: {more:?}; missing: {:?}", wanted.difference(&found).collect::<Vec<_>>()));
        }
    }
    let trees = [tree(source.root()), tree(target.root())];
    settle(&source, &target, target_first)?;
    if [tree(source.root()), tree(target.root())] != trees {
        return Err("settling again did something".into());
    }
    Ok(place)
}

/// All of a chain goes, with what keeps its points; it reads the same, here and with QEMU, and goes on there.
#[test]
fn a_chain_lies_in_the_other_repository_and_goes_on_there() {
    let world = World::new();
    let (source, target) = world.open();
    let held = source.change_hold(world.vm(), &world.before.first.id, |hold| hold.protected = true, "test", now());
    let manifests: Vec<_> = world.chain().iter().map(|point| source.manifest(world.vm(), &point.id).unwrap()).collect();
    let images = |root: &Path| {
        let paths = world.chain().map(|point| layout::image(&point.vm, DiskNumber(0), &point.id));
        paths.map(|path| std::fs::read(root.join(path)).unwrap())
    };
    let before = images(source.root());
    let (book, progress) = (Book::default(), Progress::default());
    let plan = source.plan_move(world.vm(), &target).unwrap();
    let done = source.execute_move(&target, &plan, &options(), &progress, &Cancel::new(), &book).unwrap();
    assert_eq!((done.points, done.left.is_none()), (3, true));
    let counted = [&progress.done_bytes, &progress.total_bytes].map(|n| n.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(counted, [2 * done.bytes; 2], "every byte was copied and read back");
    assert_eq!(*book.switched.lock(), plan.ids());
    assert_eq!(images(target.root()), before, "files as they were");
    for (point, manifest) in world.chain().into_iter().zip(&manifests) {
        assert_eq!(target.manifest(world.vm(), &point.id).unwrap(), *manifest);
        world::check_bytes(&target, point).unwrap();
        world::check_sound(&target, point, Depth::Deep).unwrap();
    }
    assert_eq!(target.hold(world.vm(), &world.before.first.id).unwrap(), held.unwrap());
    qemu::check(target.root(), &world.chain());
    assert_eq!(tree(source.root()), tree_of([&world.before.other]));
    assert_eq!((source.locks().held(), target.locks().held()), (vec![], vec![]));
    let mut next = world.third.child("bk-4");
    next.disk(0)[100..200].fill(3);
    back_up(&target, &next, now()).unwrap();
    world::check_bytes(&target, &next).unwrap();
    // And back again, with what has come since.
    go(&target, &source, world.vm(), &Book::default()).unwrap();
    world::check_bytes(&source, &next).unwrap();
    assert_eq!(tree(target.root()), tree_of([]));
}

#[test]
fn what_cannot_be_moved_is_said() {
    let world = World::new();
    let (source, target) = world.open();
    let refused = |vm: &str| source.plan_move(&vm.parse().unwrap(), &target).unwrap_err();
    assert_eq!(refused("vm-none").kind, Kind::NotFound);
    assert_eq!(source.plan_move(world.vm(), &source).unwrap_err().kind, Kind::Invalid);
    let new = Point::full("vm-a", "bk-new", &[&world::pattern(5, 100)]);
    back_up(&target, &new, now()).unwrap();
    let there = refused("vm-a");
    assert_eq!(there.kind, Kind::Exists);
    assert_eq!(there.to_string(), "points of vm-a lie in the other repository already: vm-a/bk-new.json");
    delete(&target, &new, Extent::Named).unwrap();
    // Somebody who died in the middle of something.
    let draft = source.at(layout::draft_dir(world.vm(), &new.id));
    std::fs::create_dir(&draft).unwrap();
    assert!(refused("vm-a").to_string().starts_with("something is unfinished here"), "{}", refused("vm-a"));
    std::fs::remove_dir(&draft).unwrap();
    std::fs::remove_file(source.at(layout::manifest(world.vm(), &world.before.first.id))).unwrap();
    assert!(matches!(refused("vm-a").kind, Kind::Corrupt { .. }));
}

/// Readers and backups are in its way, and it is in theirs, in both repositories.
#[test]
fn nobody_else_has_the_points_meanwhile() {
    let world = World::new();
    let (source, target) = world.open();
    let there = [tree(source.root()), tree(target.root())];
    let reader = source.open_disk(world.vm(), &world.before.first.id, DiskNumber(0), "a reader").unwrap();
    let error = go(&source, &target, world.vm(), &Book::default()).unwrap_err();
    let Kind::Conflict { holders } = &error.kind else { panic!("{error:?}") };
    assert_eq!(holders[0].who, "a reader");
    drop(reader);
    for repository in [&source, &target] {
        let backup = repository.lock(Operation::Backup, world.vm(), BTreeSet::new(), "a backup").unwrap();
        assert!(matches!(go(&source, &target, world.vm(), &Book::default()).unwrap_err().kind, Kind::Conflict { .. }));
        drop(backup);
    }
    assert_eq!([tree(source.root()), tree(target.root())], there);

    /// Whoever comes while the points are between the two.
    struct Curious<'a>(&'a World, &'a Repository, &'a Repository);
    impl Ledger for Curious<'_> {
        fn now(&self) -> Timestamp {
            now()
        }

        fn refuse(&self, _: &BTreeSet<BackupId>) -> Result<()> {
            let Self(world, source, target) = self;
            let next = world.third.child("bk-4");
            for repository in [source, target] {
                let refused = back_up(repository, &next, now()).unwrap_err();
                assert!(matches!(refused.kind, Kind::Conflict { .. } | Kind::NotFound), "{refused:?}");
                let survey = repository.survey(now()).unwrap();
                let found = survey.vms[world.vm()].as_ref().unwrap();
                let expected = if std::ptr::eq(*repository, *target) { Some(Moving::UnderWay) } else { None };
                assert_eq!((found.moving, found.strangers.len()), (expected, 0));
                // Start-up of another part of the house leaves it alone.
                let report = repository.recover(&Amnesia, now()).unwrap();
                let others = (report.unmoved.len(), report.strangers.len(), report.problems.len());
                assert_eq!(others, (0, 0, 0), "{report:?}");
            }
            assert!(source.open_disk(world.vm(), &world.third.id, DiskNumber(0), "a reader").is_err());
            Ok(())
        }

        fn switch(&self, _: &BTreeSet<BackupId>) -> Result<()> {
            let Self(world, source, target) = self;
            let report = (source.recover(&Amnesia, now()).unwrap(), target.recover(&Amnesia, now()).unwrap());
            assert!(report.0.leaving.is_empty() && report.1.arriving.is_empty(), "{report:?}");
            for repository in [source, target] {
                let found = repository.survey(now()).unwrap().vms[world.vm()].clone().unwrap();
                assert_eq!(found.moving, Some(Moving::UnderWay));
            }
            Ok(())
        }

        fn goes_on(&self) -> bool {
            false
        }
    }
    let plan = source.plan_move(world.vm(), &target).unwrap();
    let curious = Curious(&world, &source, &target);
    source.execute_move(&target, &plan, &options(), &Progress::default(), &Cancel::new(), &curious).unwrap();
    assert_eq!(survive(&world.folder(), &world.chain(), &world.before.other, true), Ok(Place::Target));
}

/// Somebody cancels the move just before the points go over; true when the next start goes on with it.
struct Stopped(Cancel, bool);
impl Ledger for Stopped {
    fn now(&self) -> Timestamp {
        now()
    }

    fn refuse(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        self.0.cancel();
        Ok(())
    }

    fn switch(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        panic!("the points did not go over");
    }

    fn goes_on(&self) -> bool {
        self.1
    }
}

/// Stopped before the points went over it did not happen. When the next start goes on with it, the copies stay and are not made anew.
#[test]
fn a_cancelled_move_leaves_nothing_unless_it_goes_on() {
    for goes_on in [false, true] {
        let world = World::new();
        let limited = crate::Options { limit_bytes: Some(1 << 30), ..world::options() };
        let source = world.open().0;
        let open_target = || {
            let at = world.folder().join(TARGET);
            Repository::open_on(Stage::calm(), &at, limited.clone(), now()).unwrap()
        };
        let target = open_target();
        let there = [tree(source.root()), tree(target.root())];
        let used_bytes = target.storage().unwrap().used_bytes;
        let plan = source.plan_move(world.vm(), &target).unwrap();
        let stopped = Stopped(Cancel::new(), goes_on);
        let error =
            source.execute_move(&target, &plan, &options(), &Progress::default(), &stopped.0, &stopped).unwrap_err();
        assert_eq!(error.kind, Kind::Cancelled);
        assert_eq!([source.locks().held(), target.locks().held()], [vec![], vec![]]);
        let after = [tree(source.root()), tree(target.root())];
        if !goes_on {
            assert_eq!(after, there);
            assert_eq!(target.storage().unwrap().used_bytes, used_bytes);
            continue;
        }
        assert_eq!(after[0], there[0]);
        // A copy that is half there is made whole, one with wrong bytes is made anew.
        let image = |point: &Point| target.at(layout::image(&point.vm, DiskNumber(0), &point.id));
        let half = std::fs::OpenOptions::new().write(true).open(image(&world.before.first)).unwrap();
        half.set_len(70_000).unwrap();
        let wrong = std::fs::OpenOptions::new().write(true).open(image(&world.before.second)).unwrap();
        wrong.write_all_at(&[0x55; 100], 300).unwrap();
        let kept = image(&world.third).metadata().unwrap();
        // The next life of the hub.
        let target = open_target();
        go(&source, &target, world.vm(), &Book::default()).unwrap();
        let now_there = image(&world.third).metadata().unwrap();
        assert_eq!(
            (now_there.ino(), now_there.mtime_nsec()),
            (kept.ino(), kept.mtime_nsec()),
            "it was not written again"
        );
        let counted = target.storage().unwrap().used_bytes;
        let found = open_target().storage().unwrap().used_bytes;
        assert!(counted.abs_diff(found) < 256 * 1024, "counted {counted}, found {found}");
        assert_eq!(survive(&world.folder(), &world.chain(), &world.before.other, true), Ok(Place::Target));
    }
}

/// What a move that was cut off has copied is taken away when there is no room for the rest.
#[test]
fn a_move_that_goes_on_without_room_leaves_nothing() {
    let world = World::new();
    let (source, target) = world.open();
    let there = [tree(source.root()), tree(target.root())];
    let plan = source.plan_move(world.vm(), &target).unwrap();
    let stopped = Stopped(Cancel::new(), true);
    source.execute_move(&target, &plan, &options(), &Progress::default(), &stopped.0, &stopped).unwrap_err();
    let image = target.at(layout::image(world.vm(), DiskNumber(0), &world.before.first.id));
    std::fs::OpenOptions::new().write(true).open(image).unwrap().set_len(70_000).unwrap();
    assert_ne!(tree(target.root()), there[1]);
    drop(target);
    let limited = crate::Options { limit_bytes: Some(300_000), ..world::options() };
    let target = Repository::open_on(Stage::calm(), &world.folder().join(TARGET), limited, now()).unwrap();
    let error = go(&source, &target, world.vm(), &Book::default()).unwrap_err();
    assert_eq!(error.kind, Kind::NoSpace, "{error:?}");
    assert_eq!([tree(source.root()), tree(target.root())], there);
}

/// Damage is met before anything is switched, in the source or on the way.
#[test]
fn damaged_files_are_not_moved() {
    let world = World::new();
    let (source, target) = world.open();
    let there = [tree(source.root()), tree(target.root())];
    let path = source.at(layout::image(world.vm(), DiskNumber(0), &world.before.second.id));
    let file = std::fs::OpenOptions::new().write(true).read(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 70_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 70_000).unwrap();
    let error = go(&source, &target, world.vm(), &Book::default()).unwrap_err();
    assert!(matches!(error.kind, Kind::Corrupt { .. }), "{error:?}");
    assert_eq!([tree(source.root()), tree(target.root())], there);
    file.write_all_at(&byte, 70_000).unwrap();
    go(&source, &target, world.vm(), &Book::default()).unwrap();
}

/// Where the room is not there nothing is begun.
#[test]
fn room_is_asked_for_first() {
    let world = World::new();
    let source = world.open().0;
    let at = world.folder().join(TARGET);
    let limited = crate::Options { limit_bytes: Some(300_000), ..world::options() };
    let target = Repository::open_on(Stage::calm(), &at, limited, now()).unwrap();
    let there = tree(target.root());
    let error = go(&source, &target, world.vm(), &Book::default()).unwrap_err();
    assert_eq!(error.kind, Kind::NoSpace);
    assert_eq!(tree(target.root()), there);
}

/// The caller's books are away at the very moment: the points are the target's, and the next look says so.
#[test]
fn books_that_are_away_are_written_later() {
    let world = World::new();
    let (source, target) = world.open();
    let away = Book { is_away: true, ..Book::default() };
    let error = go(&source, &target, world.vm(), &away).unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.to_string().contains("move the points of vm-a"), "{error}");
    // Neither takes a backup, and what looks at them finds a move that was cut off and nothing else.
    for repository in [&source, &target] {
        let next = world.third.child("bk-4");
        assert!(matches!(back_up(repository, &next, now()).unwrap_err().kind, Kind::Conflict { .. }));
        let found = repository.survey(now()).unwrap().vms[world.vm()].clone().unwrap();
        assert_eq!((found.moving, found.strangers.len()), (Some(Moving::CutOff), 0));
        for point in world.chain() {
            world::check_bytes(repository, point).unwrap();
        }
        // What keeps a point was laid down with it: it is not changed where it would be lost.
        let until = |hold: &mut crate::Hold| hold.until = Some(now());
        let kept = repository.change_hold(world.vm(), &world.third.id, until, "test", now());
        assert!(matches!(kept.unwrap_err().kind, Kind::Conflict { .. } | Kind::NotFound));
        assert!(repository.is_move_unsettled(world.vm()).unwrap());
    }
    assert!(source.has_moved_to(world.vm(), &target).unwrap());
    assert!(!target.has_moved_to(world.vm(), &source).unwrap());
    // The source is not there: the target goes forward by itself, and the chain goes on.
    let book = Book::default();
    assert!(target.finish_arrival(world.vm(), &book).unwrap());
    assert_eq!(book.switched.lock().len(), 3);
    assert!(!target.finish_arrival(world.vm(), &book).unwrap());
    let next = world.third.child("bk-4");
    back_up(&target, &next, now()).unwrap();
    // It comes back after a point was deleted in the target: nothing rises from the dead.
    delete(&target, &next, Extent::Named).unwrap();
    delete(&target, &world.third, Extent::Named).unwrap();
    // Nor is anything removed where somebody uses it, as nothing told them that it had gone.
    let (in_use, there) = (Book { is_in_use: true, ..Book::default() }, tree(source.root()));
    let refused = source.finish_move(world.vm(), &target, &ends("old", "new"), &in_use).unwrap_err();
    assert!(matches!(refused.kind, Kind::Conflict { .. }) && tree(source.root()) == there, "{refused:?}");
    assert_eq!(source.finish_move(world.vm(), &target, &ends("old", "new"), &book).unwrap(), Finished::Moved);
    assert_eq!(tree(source.root()), tree_of([&world.before.other]));
    assert_eq!(tree(target.root()), tree_of([&world.before.first, &world.before.second]));
}

/// Another hub has taken one of the two by now: nothing is touched there.
#[test]
fn a_hub_that_lost_a_repository_moves_nothing() {
    for lost in [SOURCE, TARGET] {
        let world = World::new();
        let (source, target) = world.open();
        let plan = source.plan_move(world.vm(), &target).unwrap();
        let mut claim = crate::testing::claim();
        claim.hub_id = "hub-other".parse().unwrap();
        let taken = crate::Options { claim, ..world::options() };
        let later = now().plus_seconds(3600);
        let _other = Repository::open_on(Stage::calm(), &world.folder().join(lost), taken, later).unwrap();
        let there = [tree(source.root()), tree(target.root())];
        let moved =
            source.execute_move(&target, &plan, &options(), &Progress::default(), &Cancel::new(), &Book::default());
        assert_eq!(moved.unwrap_err().kind, Kind::Fenced);
        assert_eq!([tree(source.root()), tree(target.root())], there);
    }
}

/// Readers go on while the points are copied, and are waited for at the end; nobody makes, changes or takes away a point meanwhile.
#[test]
fn readers_go_on_while_the_points_are_copied() {
    /// Comes when the first file has been written.
    #[derive(Default)]
    struct Visitor {
        to: Mutex<Option<(Repository, Point)>>,
        reader: Mutex<Option<crate::ChainReader>>,
    }
    impl Script for Visitor {
        fn before(&self, _: &Act<'_>) -> io::Result<()> {
            Ok(())
        }

        fn after(&self, act: &Act<'_>) {
            let Act::SyncFile(_) = act else { return };
            // The owner record is a file, too, and is synced before anything is claimed.
            let mut to = self.to.lock();
            let Some((source, third)) = &*to else { return };
            if !source.locks().held().iter().any(|claim| claim.operation == Operation::Copy) {
                return;
            }
            let refused =
                [back_up(source, &third.child("bk-4"), now()).map(drop), delete(source, third, Extent::Named)];
            for refused in refused.map(Result::unwrap_err) {
                assert!(matches!(refused.kind, Kind::Conflict { .. }), "{refused:?}");
            }
            *self.reader.lock() = Some(source.open_disk(&third.vm, &third.id, DiskNumber(0), "a reader").unwrap());
            source.change_hold(&third.vm, &third.id, |hold| hold.protected = true, "a person", now()).unwrap();
            *to = None;
        }
    }
    for patience in [Duration::ZERO, Duration::from_secs(60)] {
        let world = World::new();
        let source = world.open().0;
        let visitor = Arc::new(Visitor::default());
        let at = world.folder().join(TARGET);
        let target =
            Repository::open_on(Stage::new(visitor.clone(), Renames::AtOnce), &at, world::options(), now()).unwrap();
        *visitor.to.lock() = Some((source.clone(), world.third.clone()));
        let plan = source.plan_move(world.vm(), &target).unwrap();
        let options = Options { patience, ..options() };
        let (progress, cancel, book) = (Progress::default(), Cancel::new(), Book::default());
        let moved = std::thread::scope(|scope| {
            let moving = scope.spawn(|| source.execute_move(&target, &plan, &options, &progress, &cancel, &book));
            if !patience.is_zero() {
                // It waits now, or comes to it.
                while visitor.reader.lock().is_none() {
                    std::thread::yield_now();
                }
                *visitor.reader.lock() = None;
            }
            moving.join().unwrap()
        });
        if patience.is_zero() {
            let error = moved.unwrap_err();
            let Kind::Conflict { holders } = &error.kind else { panic!("{error:?}") };
            assert_eq!(holders[0].who, "a reader");
            assert_eq!(tree(target.root()), tree_of([]));
            continue;
        }
        moved.unwrap();
        assert!(target.hold(world.vm(), &world.third.id).unwrap().protected, "what was said meanwhile went along");
        assert_eq!(tree(source.root()), tree_of([&world.before.other]));
    }
}
