//! Every step fails once, or is the last that the process does, or finds the disk full.

use crate::delete::Extent;
use crate::error::{Kind, Result};
use crate::layout;
use crate::repository::{Options, Repository};
use crate::testing::before::{Before, delete};
use crate::testing::medium::{Medium, Store};
use crate::testing::now;
use crate::testing::record::Record;
use crate::testing::stage::{EIO, ENOSPC, Fault, Faults, Renames, Stage};
use crate::testing::world::{self, Amnesia, Care, Point, back_up, tree, tree_of};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Far more than the machines have, so that every byte is counted and none is refused.
const LIMIT_BYTES: u64 = 1 << 30;

/// A repository, again and again as it was.
pub(super) struct Copies {
    medium: Medium,
    store: Store,
}

impl Copies {
    pub(super) fn of(root: &Path) -> Self {
        Self { medium: Record::of(root).take().0, store: Store::new() }
    }

    pub(super) fn next(&mut self) -> PathBuf {
        let root = self.store.place("copy");
        if root.exists() {
            std::fs::remove_dir_all(&root).unwrap();
        }
        let fate = self.medium.fates(1, &mut crate::testing::Dice(0)).remove(0);
        self.medium.build(&fate, &root, &mut self.store);
        root
    }
}

/// One try with a fault at one step.
pub(super) struct Try<'a> {
    pub(super) root: &'a Path,
    /// None when the fault was met before the repository was open.
    pub(super) repository: Option<Repository>,
    pub(super) result: Result<()>,
    /// The step that met the fault.
    pub(super) met: String,
}

/// Does the work with the fault at its first step, its second, and so on, until it is done before the fault is met.
pub(super) fn at_each_step(
    root: &Path,
    fault: Fault,
    work: impl Fn(&Repository) -> Result<()>,
    check: impl Fn(&Try<'_>),
) {
    at_each_step_of(root, Renames::AtOnce, fault, work, check);
}

/// The same on a file system that renames like this.
pub(super) fn at_each_step_of(
    root: &Path,
    renames: Renames,
    fault: Fault,
    work: impl Fn(&Repository) -> Result<()>,
    check: impl Fn(&Try<'_>),
) {
    at_each_step_on(root, (renames, false), fault, work, check);
}

/// The same where files can, or cannot, be clones.
pub(super) fn at_each_step_on(
    root: &Path,
    (renames, clones): (Renames, bool),
    fault: Fault,
    work: impl Fn(&Repository) -> Result<()>,
    check: impl Fn(&Try<'_>),
) {
    let mut copies = Copies::of(root);
    // A work of this many steps does not end.
    for at in 0..1000 {
        let root = copies.next();
        let faults = Faults::new(fault, at);
        let stage = Stage::sharing(faults.clone(), renames, clones);
        let options = Options { limit_bytes: Some(LIMIT_BYTES), ..world::options() };
        let opened = Repository::open_on(stage, &root, options, now());
        let (repository, result) = match opened {
            Ok(repository) => (Some(repository.clone()), work(&repository)),
            Err(error) => (None, Err(error)),
        };
        let Some(met) = faults.met() else {
            result.unwrap();
            assert!(at > 10, "the work has more than ten steps");
            return;
        };
        check(&Try { root: &root, repository, result, met });
    }
    panic!("the work does not end");
}

impl Try<'_> {
    /// Who was told that it failed, and finds the point free, has it as it was. `before` is its manifest of then.
    pub(super) fn check_word(&self, point: &Point, before: &[u8]) {
        let Some(repository) = &self.repository else { return };
        let manifest = std::fs::read(self.root.join(layout::manifest(&point.vm, &point.id))).unwrap();
        let is_free = repository.locks().held().is_empty();
        match &self.result {
            Ok(()) => assert!(manifest != before && is_free, "{}", self.met),
            Err(error) => assert!(manifest == before || !is_free, "{}: {error:?}", self.met),
        }
    }
}

/// What lies in the folder, without a record that was cut off while it was written: the next one takes its place.
fn tree_without_half_record(root: &Path) -> BTreeSet<PathBuf> {
    let mut tree = tree(root);
    tree.remove(Path::new(&format!("{}.new", layout::OWNER_FILE)));
    tree
}

/// A failed publication in a process that lives on: nothing is left of it, nothing is held, and work goes on.
fn publication_is_taken_back(fault: Fault, kind: &Kind) {
    let before = Before::new();
    let third = before.third();
    let held_bytes = {
        let options = Options { limit_bytes: Some(LIMIT_BYTES), ..world::options() };
        Repository::open(&before.root(), options, now()).unwrap().storage().unwrap().used_bytes
    };
    at_each_step(
        &before.root(),
        fault,
        |repository| back_up(repository, &third, now().plus_seconds(40)).map(drop),
        |tried| {
            let met = &tried.met;
            let published = tried.root.join(layout::manifest(&third.vm, &third.id)).exists();
            match &tried.result {
                Ok(()) => assert!(published, "{met}"),
                Err(error) => assert_eq!(error.kind, *kind, "{met}: {error:?}"),
            }
            if let Some(repository) = &tried.repository {
                assert_eq!(repository.locks().held(), [], "{met}");
                let storage = repository.storage().unwrap();
                if published {
                    assert!(storage.used_bytes > held_bytes, "{met}");
                } else {
                    assert_eq!(storage.used_bytes, held_bytes, "{met}");
                    assert_eq!(storage.available_bytes, LIMIT_BYTES - held_bytes, "{met}");
                }
            }
            if !published {
                assert_eq!(tree_without_half_record(tried.root), tree_of(before.points()), "{met}");
            }
            if let (Some(repository), Fault::Once(_), false) = (&tried.repository, fault, published) {
                let mut again = third.clone();
                again.id = "bk-again".parse().unwrap();
                back_up(repository, &again, now()).unwrap_or_else(|error| panic!("after {met}: {error:?}"));
                world::check_bytes(repository, &again).unwrap();
                delete(repository, &again, Extent::Named).unwrap();
            }
            survived(tried, &before.points(), &third, if tried.result.is_ok() { Is::There } else { Is::InDoubt });
        },
    );
}

/// What is known of a point after the work on it ended.
#[derive(PartialEq, Eq)]
enum Is {
    There,
    Gone,
    InDoubt,
}

fn survived(tried: &Try<'_>, others: &[&Point], point: &Point, is: Is) {
    let with: Vec<&Point> = others.iter().copied().chain([point]).collect();
    let survived = match is {
        Is::There => world::survive(tried.root, &with, &[], Care::Next),
        Is::Gone => world::survive(tried.root, others, &[], Care::Next),
        Is::InDoubt => world::survive(tried.root, others, &[point], Care::Next),
    };
    survived.unwrap_or_else(|why| panic!("{why}\nafter the fault at: {}", tried.met));
}

#[test]
fn a_publication_that_meets_an_error_is_taken_back() {
    publication_is_taken_back(Fault::Once(EIO), &Kind::Io);
}

#[test]
fn a_publication_on_a_full_disk_says_no_space_and_is_taken_back() {
    publication_is_taken_back(Fault::Full, &Kind::NoSpace);
}

#[test]
fn a_process_that_is_gone_during_a_publication_leaves_nothing_in_the_way() {
    let before = Before::new();
    let third = before.third();
    at_each_step(
        &before.root(),
        Fault::Gone,
        |repository| back_up(repository, &third, now().plus_seconds(40)).map(drop),
        |tried| {
            let is = if tried.result.is_ok() { Is::There } else { Is::InDoubt };
            survived(tried, &before.points(), &third, is);
        },
    );
}

#[test]
fn a_deletion_that_meets_an_error_can_be_done_again() {
    let before = Before::new();
    for fault in [Fault::Once(EIO), Fault::Once(ENOSPC)] {
        at_each_step(
            &before.root(),
            fault,
            |repository| delete(repository, &before.second, Extent::Named),
            |tried| {
                let wanted = if fault == Fault::Once(EIO) { Kind::Io } else { Kind::NoSpace };
                if let Err(error) = &tried.result {
                    assert_eq!(error.kind, wanted, "{}: {error:?}", tried.met);
                }
                let others = [&before.first, &before.other];
                let Some(repository) = &tried.repository else {
                    return survived(tried, &others, &before.second, Is::InDoubt);
                };
                assert_eq!(repository.locks().held(), [], "{}", tried.met);
                // The plan is the one of before: it is told what is there, not what was to be done.
                let named = [before.second.id.clone()].into();
                match repository.plan_delete(&before.second.vm, &named, Extent::Named) {
                    Ok(plan) => repository.execute_delete(plan, "test", now()).unwrap(),
                    Err(error) => assert_eq!(error.kind, Kind::NotFound, "{}", tried.met),
                }
                survived(tried, &others, &before.second, Is::Gone);
            },
        );
    }
}

/// There is no room, and others take what the repository has spared too: the points are whole, and go when there is room again.
#[test]
fn a_deletion_without_any_room_loses_nothing() {
    let before = Before::new();
    at_each_step(
        &before.root(),
        Fault::Full,
        |repository| delete(repository, &before.second, Extent::Named),
        |tried| {
            let others = [&before.first, &before.other];
            let may = match &tried.result {
                Ok(()) => &[][..],
                Err(error) => {
                    assert_eq!(error.kind, Kind::NoSpace, "{}: {error:?}", tried.met);
                    &[&before.second][..]
                }
            };
            let survived = world::survive(tried.root, &others, may, Care::Now);
            survived.unwrap_or_else(|why| panic!("{why}\nafter the fault at: {}", tried.met));
            let repository = world::open(tried.root).unwrap();
            if repository.manifest(&before.second.vm, &before.second.id).is_ok() {
                delete(&repository, &before.second, Extent::Named).unwrap();
            }
            self::survived(tried, &others, &before.second, Is::Gone);
        },
    );
}

/// The last block is taken, from whatever step on: a deletion needs no room that it cannot get. As little as the lease that runs out
/// meanwhile, or a start in such a moment.
#[test]
fn a_deletion_on_a_full_disk_makes_room() {
    let before = Before::new();
    at_each_step(
        &before.root(),
        Fault::Tight,
        |repository| {
            repository.recover(&Amnesia, now())?;
            let plan = repository.plan_delete(&before.first.vm, &[before.first.id.clone()].into(), Extent::Cascade)?;
            repository.execute_delete(plan, "test", now().plus_seconds(40))
        },
        |tried| {
            if let Err(error) = &tried.result {
                panic!("{}: {error:?}", tried.met);
            }
            assert!(tried.root.join(layout::SPARE_FILE).exists(), "{}: it is kept for the next time", tried.met);
            let survived = world::survive(tried.root, &[&before.other], &[], Care::Next);
            survived.unwrap_or_else(|why| panic!("{why}\nafter the fault at: {}", tried.met));
        },
    );
}

/// A start on a full disk finishes a deletion that was cut off, and there is room again.
#[test]
fn start_up_on_a_full_disk_finishes_a_deletion() {
    let before = Before::new();
    let root = gone_at(&before.root(), "remove disk-0/bk-2.qcow2", |repository| {
        delete(repository, &before.second, Extent::Named)
    });
    at_each_step(
        root.path(),
        Fault::Tight,
        |repository| {
            let report = repository.recover(&Amnesia, now().plus_seconds(40))?;
            assert_eq!(report.deleted.len(), 1, "{report:?}");
            report.problems.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
        },
        |tried| {
            if let Err(error) = &tried.result {
                panic!("{}: {error:?}", tried.met);
            }
            survived(tried, &[&before.first, &before.other], &before.second, Is::Gone);
        },
    );
}

#[test]
fn a_process_that_is_gone_during_a_deletion_leaves_a_point_or_none() {
    let before = Before::new();
    at_each_step(
        &before.root(),
        Fault::Gone,
        |repository| delete(repository, &before.first, Extent::Cascade),
        |tried| {
            let doubted = [&before.first, &before.second];
            let (must, may) = (&[&before.other][..], if tried.result.is_ok() { &[][..] } else { &doubted[..] });
            let survived = world::survive(tried.root, must, may, Care::Next);
            survived.unwrap_or_else(|why| panic!("{why}\nafter the fault at: {}", tried.met));
        },
    );
}

/// What a dead process wrote counts against the limit when the next one opens the repository, and not any more when it is
/// gone.
#[test]
fn start_up_gives_back_the_room_of_what_it_removes() {
    let before = Before::new();
    let third = before.third();
    let limited = Options { limit_bytes: Some(LIMIT_BYTES), ..world::options() };
    let used = |root: &Path| {
        let repository = Repository::open_on(Stage::calm(), root, limited.clone(), now()).unwrap();
        (repository.storage().unwrap().used_bytes, repository)
    };
    let (free, _) = used(&before.root());
    let root = Copies::of(&before.root()).next_gone_at("rename .draft-bk-3/disk-2.qcow2", &third);
    let (held, repository) = used(root.path());
    assert!(held > free, "the draft is counted: {held}, {free} without");
    repository.recover(&Amnesia, now()).unwrap();
    // The owner record and the folders' own blocks are as they were.
    assert_eq!(repository.storage().unwrap().used_bytes, free);
    // While somebody writes, the count is his.
    let spec = crate::DraftSpec {
        backup_id: "bk-4".parse().unwrap(),
        vm_context_id: third.vm,
        parents: [].into(),
        expected_bytes: 0,
        who: "test".into(),
    };
    let draft = repository.begin_draft(spec, now()).unwrap();
    std::fs::write(root.path().join("stranger"), [1; 100_000]).unwrap();
    repository.recover(&Amnesia, now()).unwrap();
    assert_eq!(repository.storage().unwrap().used_bytes, free);
    draft.abandon().unwrap();
}

/// Where there is no time to count the files the repository is open all the same, backups are made in it, and start-up counts.
#[test]
fn what_is_not_counted_when_it_is_opened_is_counted_by_start_up() {
    let before = Before::new();
    let third = before.third();
    let limited = Options { limit_bytes: Some(LIMIT_BYTES), ..world::options() };
    let open = |seconds| {
        let time = Duration::from_secs(seconds);
        Repository::open_counting(Stage::calm(), &before.root(), limited.clone(), time, now()).unwrap()
    };
    let used = |repository: &Repository| repository.storage().unwrap().used_bytes;
    let held = used(&open(3600));
    let repository = open(0);
    assert!(held > 0 && used(&repository) == 0, "nothing was counted");
    let spec = crate::DraftSpec {
        backup_id: "bk-4".parse().unwrap(),
        vm_context_id: third.vm.clone(),
        parents: [].into(),
        expected_bytes: 0,
        who: "test".into(),
    };
    let draft = repository.begin_draft(spec, now()).unwrap();
    repository.recover(&Amnesia, now()).unwrap();
    assert!(used(&repository) >= held, "at the least, while somebody writes");
    draft.abandon().unwrap();
    let repository = open(0);
    back_up(&repository, &third, now()).unwrap();
    assert!(used(&repository) < held);
    repository.recover(&Amnesia, now()).unwrap();
    assert_eq!(used(&repository), used(&open(3600)));
}

/// A start-up that fails, or whose process is gone too, is done again by the next.
#[test]
fn start_up_that_is_cut_off_is_done_by_the_next() {
    let before = Before::new();
    let third = before.third();
    // Gone in the middle of the moves, when there is most to undo.
    let root = Copies::of(&before.root()).next_gone_at("rename .draft-bk-3/disk-2.qcow2", &third);
    for fault in [Fault::Once(EIO), Fault::Gone] {
        at_each_step(
            root.path(),
            fault,
            |repository| {
                let report = repository.recover(&Amnesia, now())?;
                report.problems.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
            },
            |tried| survived(tried, &before.points(), &third, Is::Gone),
        );
    }
}

/// A repository whose process was gone when it came to the step that begins like this.
pub(super) fn gone_at(root: &Path, step: &str, work: impl Fn(&Repository) -> Result<()>) -> tempfile::TempDir {
    Copies::of(root).gone_at(step, work)
}

impl Copies {
    /// A repository whose process was gone when it came to the step that begins like this while it made the point.
    fn next_gone_at(self, step: &str, point: &Point) -> tempfile::TempDir {
        self.gone_at(step, |repository| back_up(repository, point, now()).map(drop))
    }

    fn gone_at(mut self, step: &str, work: impl Fn(&Repository) -> Result<()>) -> tempfile::TempDir {
        for at in 0..1000 {
            let root = self.next();
            let faults = Faults::new(Fault::Gone, at);
            let repository =
                Repository::open_on(Stage::new(faults.clone(), Renames::AtOnce), &root, world::options(), now());
            let result = repository.and_then(|repository| work(&repository));
            if faults.met().is_some_and(|met| met.starts_with(step)) {
                assert!(result.is_err());
                let kept = tempfile::tempdir().unwrap();
                std::fs::remove_dir(kept.path()).unwrap();
                std::fs::rename(&root, kept.path()).unwrap();
                return kept;
            }
        }
        panic!("no step {step:?}");
    }
}
