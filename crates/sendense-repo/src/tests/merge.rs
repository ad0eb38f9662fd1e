//! Merging a point into its successor: what it refuses, what every fault leaves, what it costs.

use super::faults::{at_each_step, at_each_step_on, gone_at};
use crate::delete::Extent;
use crate::error::{Kind, Result};
use crate::layout;
use crate::manifest::Manifest;
use crate::merge::{MergePlan, Options, Way};
use crate::repository::Repository;
use crate::testing::before::{Before, delete};
use crate::testing::stage::{Calm, EIO, ENOSPC, Fault, Renames, Stage};
use crate::testing::world::{self, Amnesia, Care, Point, WAYS, back_up, pattern, tree, tree_of};
use crate::testing::{now, qemu};
use crate::verify::{Depth, Progress};
use sendense_block::Cancel;
use sendense_types::{BackupId, BackupType, DiskNumber, VmContextId};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A chain of three, and another machine.
pub(super) fn chain() -> (Before, Point) {
    let before = Before::new();
    let third = before.third();
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    (before, third)
}

/// The plan of a point on which one stands.
pub(super) fn plan(repository: &Repository, point: &Point) -> Result<MergePlan> {
    let mut steps = repository.plan_merge(&point.vm, &point.id, now())?;
    assert_eq!(steps.len(), 1, "{steps:?}");
    Ok(steps.remove(0))
}

pub(super) fn execute(repository: &Repository, plan: &MergePlan, cancel: &Cancel) -> Result<Manifest> {
    execute_by(Way::Fitting, repository, plan, cancel)
}

pub(super) fn execute_by(way: Way, repository: &Repository, plan: &MergePlan, cancel: &Cancel) -> Result<Manifest> {
    let options = world::merging(way, 2);
    repository.execute_merge(plan, &options, &Progress::default(), cancel, now, || Ok(()))
}

/// All of a chain but the last, from either end: what is left reads the same, here and with QEMU, and is a full in the end.
#[test]
fn a_chain_becomes_one_full() {
    for (way, clones) in WAYS {
        one_full(way, clones);
    }
}

fn one_full(way: Way, clones: bool) {
    let (before, third) = chain();
    let repository = world::open_sharing(&before.root(), clones).unwrap();
    let execute =
        |repository: &Repository, plan: &MergePlan, cancel: &Cancel| execute_by(way, repository, plan, cancel);
    let merged = execute(&repository, &plan(&repository, &before.first).unwrap(), &Cancel::new()).unwrap();
    assert_eq!((merged.backup_id.clone(), merged.backup_type), (before.second.id.clone(), BackupType::Full));
    assert_eq!(merged, repository.manifest(&before.second.vm, &before.second.id).unwrap());
    for point in [&before.second, &third] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&before.root(), &[&before.second, &third]);
    let merged = execute(&repository, &plan(&repository, &before.second).unwrap(), &Cancel::new()).unwrap();
    assert_eq!(merged.backup_type, BackupType::Full);
    assert!(merged.disks.iter().all(|disk| disk.image.zero_blocks == 0), "a full has no need to flag zeros");
    world::check_bytes(&repository, &third).unwrap();
    world::check_sound(&repository, &third, Depth::Deep).unwrap();
    qemu::check(&before.root(), &[&third]);
    assert_eq!(tree(&before.root()), tree_of([&third, &before.other]));
    // The chain goes on.
    let mut next = third.child("bk-4");
    next.disk(0)[100..200].fill(3);
    back_up(&repository, &next, now()).unwrap();
    world::check_bytes(&repository, &next).unwrap();
}

/// The middle one was shorter: what the first holds beyond its end must not show through the image that takes its place.
#[test]
fn what_a_shorter_disk_hid_stays_hidden() {
    for (way, clones) in WAYS {
        stays_hidden(way, clones);
    }
}

fn stays_hidden(way: Way, clones: bool) {
    let folder = tempfile::tempdir().unwrap();
    let repository = world::open_sharing(&folder.path().join("repository"), clones).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 6 * 65536)]);
    let mut second = first.child("bk-2");
    second.disk(0).truncate(2 * 65536 + 100);
    let mut third = second.child("bk-3");
    third.disk(0).resize(6 * 65536, 0);
    for point in [&first, &second, &third] {
        back_up(&repository, point, now()).unwrap();
    }
    execute_by(way, &repository, &plan(&repository, &second).unwrap(), &Cancel::new()).unwrap();
    for point in [&first, &third] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(repository.root(), &[&first, &third]);
}

#[test]
fn what_cannot_be_merged_is_said() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let refused = |point: &Point| plan(&repository, point).unwrap_err();
    let last = refused(&third);
    assert_eq!(last.kind, Kind::Invalid);
    assert_eq!(last.to_string(), "bk-3 cannot be merged into a successor: nothing stands on it: delete it");
    let missing = Point { id: "bk-none".parse().unwrap(), ..third };
    assert_eq!(refused(&missing).kind, Kind::NotFound);
    let hold = repository
        .change_hold(&before.second.vm, &before.second.id, |hold| hold.protected = true, "test", now())
        .unwrap();
    assert_eq!(refused(&before.second).kind, Kind::Held { backup_id: before.second.id.clone(), hold });
}

/// A backup, a reader and a verification go on while the new files are made; the change itself waits for them.
#[test]
fn a_reader_is_in_the_way_of_the_change_and_nothing_is_lost() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let planned = plan(&repository, &before.second).unwrap();
    let there = tree(&before.root());
    let reader = repository.open_disk(&third.vm, &third.id, DiskNumber(0), "a reader").unwrap();
    let error = execute(&repository, &planned, &Cancel::new()).unwrap_err();
    let Kind::Conflict { holders } = &error.kind else { panic!("{error:?}") };
    assert_eq!(holders[0].who, "a reader");
    assert_eq!(tree(&before.root()), there, "what was prepared is gone");
    drop(reader);
    execute(&repository, &planned, &Cancel::new()).unwrap();
    assert_eq!(repository.locks().held(), []);
    // The plan is used up.
    let error = execute(&repository, &planned, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error:?}");
}

/// A reader that comes while it prepares is waited for.
#[test]
fn a_merge_waits_for_a_reader() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let planned = plan(&repository, &before.second).unwrap();
    let who_came = parking_lot::Mutex::new(None);
    // It asks for the time when it begins, when it has claimed the points as a reader itself, and at its end.
    let came = || {
        let mut came = who_came.lock();
        if came.is_none() && repository.is_merging(&third.vm, &third.id) {
            let reader = repository.open_disk(&third.vm, &third.id, DiskNumber(0), "a reader").unwrap();
            *came = Some(std::time::Instant::now());
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(600));
                drop(reader);
            });
        }
        now()
    };
    let options = Options { patience: Duration::from_secs(60), ..world::merging(Way::Fitting, 1) };
    repository.execute_merge(&planned, &options, &Progress::default(), &Cancel::new(), came, || Ok(())).unwrap();
    assert!(who_came.lock().is_some(), "a reader came");
    world::check_bytes(&repository, &third).unwrap();
}

/// The point is protected in the very moment in which it would go: it stays, and nobody is told that it went.
#[test]
fn a_hold_at_the_last_moment_counts() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let planned = plan(&repository, &before.second).unwrap();
    let options = world::merging(Way::Fitting, 1);
    let hold = before.root().join(layout::hold(&before.second.vm, &before.second.id));
    // It is asked after the last look at the holds.
    let protect = || {
        std::fs::write(&hold, r#"{"format":"sendense-hold","version":1,"protected":true}"#).unwrap();
        Ok(())
    };
    let refused = repository.execute_merge(&planned, &options, &Progress::default(), &Cancel::new(), now, protect);
    assert!(matches!(refused.unwrap_err().kind, Kind::Conflict { .. }));
    assert_eq!(repository.locks().held(), []);
    for point in [&before.first, &before.second, &third] {
        world::check_bytes(&repository, point).unwrap();
    }
    assert!(!before.root().join(layout::merge_dir(&third.vm, &third.id)).exists());
}

/// What only the caller knows may refuse it, at the last moment.
#[test]
fn a_merge_that_is_refused_at_its_end_leaves_both() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let there = tree(&before.root());
    let planned = plan(&repository, &before.second).unwrap();
    let options = world::merging(Way::Fitting, 1);
    let refuse = || Err(crate::Error::invalid("a recovery runs on it"));
    let refused = repository.execute_merge(&planned, &options, &Progress::default(), &Cancel::new(), now, refuse);
    assert_eq!(refused.unwrap_err().kind, Kind::Invalid);
    assert_eq!(tree(&before.root()), there);
    assert_eq!(repository.locks().held(), []);
    world::check_bytes(&repository, &third).unwrap();
}

#[test]
fn a_cancelled_merge_leaves_both() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let there = tree(&before.root());
    let cancel = Cancel::new();
    cancel.cancel();
    let error = execute(&repository, &plan(&repository, &before.second).unwrap(), &cancel).unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    assert_eq!(tree(&before.root()), there);
    world::check_bytes(&repository, &third).unwrap();
}

/// Stopped before the intent is durable it did not happen; stopped after that it did, and nobody is told otherwise.
#[test]
fn a_merge_that_is_stopped_at_its_end_says_what_became_of_it() {
    let options = world::merging(Way::Fitting, 1);
    for is_late in [false, true] {
        let (before, third) = chain();
        let repository = world::open(&before.root()).unwrap();
        let planned = plan(&repository, &before.second).unwrap();
        let intent = before.root().join(layout::merge_dir(&third.vm, &third.id)).join(layout::INTENT_FILE);
        let (cancel, was_late) = (Cancel::new(), std::cell::Cell::new(false));
        // The time is asked for once more when the names are about to change.
        let time = || {
            if intent.exists() {
                was_late.set(true);
                cancel.cancel();
            }
            now()
        };
        let stop = || {
            if !is_late {
                cancel.cancel();
            }
            Ok(())
        };
        let done = repository.execute_merge(&planned, &options, &Progress::default(), &cancel, time, stop);
        assert_eq!((cancel.is_cancelled(), was_late.get()), (!is_late, is_late), "it was asked for in this moment");
        let is_there = repository.manifest(&before.second.vm, &before.second.id).is_ok();
        match done {
            Ok(manifest) => assert!(is_late && !is_there && manifest.backup_id == third.id),
            Err(error) => assert!(!is_late && is_there && error.kind == Kind::Cancelled, "{error:?}"),
        }
        world::check_bytes(&repository, &third).unwrap();
        assert!(!intent.exists());
    }
}

/// Damage in either image is met before anything is touched, and is not written into the new one.
#[test]
fn damaged_blocks_are_not_moved() {
    for (way, clones) in WAYS {
        are_not_moved(way, clones);
    }
}

fn are_not_moved(way: Way, clones: bool) {
    let (before, third) = chain();
    let repository = world::open_sharing(&before.root(), clones).unwrap();
    let execute =
        |repository: &Repository, plan: &MergePlan, cancel: &Cancel| execute_by(way, repository, plan, cancel);
    let there = tree(&before.root());
    for point in [&before.first, &before.second] {
        let path = before.root().join(layout::image(&point.vm, DiskNumber(0), &point.id));
        // Behind the header lie the data, raw and compressed; the tables behind them stay as they are.
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let data = repository.manifest(&point.vm, &point.id).unwrap().disks[0].image.stored_bytes as usize;
        let mut bytes = vec![0; data];
        file.read_exact_at(&mut bytes, 65536).unwrap();
        let wrong: Vec<u8> = bytes.iter().map(|byte| byte ^ 0x55).collect();
        file.write_all_at(&wrong, 65536).unwrap();
        let error = execute(&repository, &plan(&repository, &before.first).unwrap(), &Cancel::new()).unwrap_err();
        assert!(matches!(error.kind, Kind::Corrupt { .. }), "{}: {error:?}", point.id);
        assert_eq!(tree(&before.root()), there);
        file.write_all_at(&bytes, 65536).unwrap();
    }
    world::check_bytes(&repository, &third).unwrap();
    execute(&repository, &plan(&repository, &before.first).unwrap(), &Cancel::new()).unwrap();
}

/// A failed write, a full disk, a process that is gone: at every step the points left are whole, and a merge that did not
/// happen can be made again.
fn faults(renames: Renames, (way, clones): (Way, bool), faults: &[Fault]) {
    let (before, third) = chain();
    faults_of((&before, &[third]), renames, (way, clones), faults);
}

/// The same of a chain whose second point goes, and that has these behind it, the first of which takes over last.
pub(super) fn faults_of(
    (before, later): (&Before, &[Point]),
    renames: Renames,
    (way, clones): (Way, bool),
    faults: &[Fault],
) {
    let third = &later[0];
    let manifest = std::fs::read(before.root().join(layout::manifest(&third.vm, &third.id))).unwrap();
    let others: Vec<&Point> = later.iter().chain([&before.first, &before.other]).collect();
    let chain: Vec<&Point> = later.iter().chain([&before.first]).collect();
    for fault in faults {
        at_each_step_on(
            &before.root(),
            (renames, clones),
            *fault,
            |repository| world::merge_by(way, repository, &before.second),
            |tried| {
                tried.check_word(third, &manifest);
                if let Some(repository) = &tried.repository {
                    let all = [chain.as_slice(), &[&before.second]].concat();
                    on_a_full_disk(*fault, repository, &all, &tried.met, || {
                        repository.plan_merge(&before.second.vm, &before.second.id, now())?;
                        world::merge_by(way, repository, &before.second)
                    });
                }
                let may = if tried.result.is_ok() { Vec::new() } else { vec![&before.second] };
                let survived = world::survive(tried.root, &others, &may, Care::Now);
                survived.unwrap_or_else(|why| panic!("{why}\nafter {fault:?} at: {}", tried.met));
                let repository = world::open(tried.root).unwrap();
                if repository.plan_merge(&before.second.vm, &before.second.id, now()).is_ok() {
                    world::merge_by(way, &repository, &before.second).unwrap();
                    chain.iter().for_each(|point| world::check_bytes(&repository, point).unwrap());
                }
                assert_eq!(tree(tried.root), tree_of(others.iter().copied()), "{fault:?} at {}", tried.met);
                // Once for each step that is no write: what was written in between differs in nothing that QEMU could see.
                if matches!(fault, Fault::Full | Fault::Tight) && !tried.met.starts_with("write") {
                    qemu::check(tried.root, &chain);
                }
            },
        );
    }
}

/// What holds in the process that met a full disk, before anybody starts it again: what can be read is right, whatever had to be done
/// when there was no way back was done with the room that is spared for it, and where there is room again all goes on.
pub(super) fn on_a_full_disk(
    fault: Fault,
    repository: &Repository,
    points: &[&Point],
    met: &str,
    again: impl FnOnce() -> Result<()>,
) {
    let read = || {
        for point in points {
            if repository.manifest(&point.vm, &point.id).is_ok() {
                world::check_bytes(repository, point).unwrap_or_else(|why| panic!("{why}\nafter {fault:?} at: {met}"));
            }
        }
    };
    let is_free = repository.locks().held().is_empty();
    match fault {
        Fault::Full if is_free => read(),
        Fault::Tight => {
            assert!(is_free, "{met}: set aside, although there is room");
            read();
        }
        Fault::Once(ENOSPC) => {
            let report = repository.recover(&Amnesia, now()).unwrap();
            assert!(report.problems.is_empty(), "{met}: {report:?}");
            read();
            match again() {
                Ok(()) => {}
                // It has been done.
                Err(error) => assert!(matches!(error.kind, Kind::NotFound | Kind::Invalid), "{met}: {error:?}"),
            }
            read();
        }
        _ => {}
    }
}

#[test]
fn every_fault_leaves_whole_points() {
    let all = [Fault::Once(EIO), Fault::Once(ENOSPC), Fault::Full, Fault::Tight, Fault::Gone];
    faults(Renames::AtOnce, (Way::Rewrite, false), &all);
}

#[test]
fn every_fault_leaves_whole_points_where_an_image_is_cloned() {
    let all = [Fault::Once(EIO), Fault::Once(ENOSPC), Fault::Full, Fault::Tight, Fault::Gone];
    faults(Renames::AtOnce, (Way::Patch, true), &all);
}

#[test]
fn every_fault_leaves_whole_points_where_an_image_is_copied() {
    let all = [Fault::Once(EIO), Fault::Once(ENOSPC), Fault::Full, Fault::Tight, Fault::Gone];
    faults(Renames::AtOnce, (Way::Patch, false), &all);
}

#[test]
fn every_fault_leaves_whole_points_where_files_have_one_name() {
    faults(Renames::NoLinks, (Way::Rewrite, false), &[Fault::Once(EIO), Fault::Gone]);
    faults(Renames::NoLinks, (Way::Patch, true), &[Fault::Gone]);
}

/// The room is that of what is there, by the count and by the files.
#[test]
fn room_is_counted_and_given_back() {
    let (before, _) = chain();
    let limited = crate::Options { limit_bytes: Some(1 << 30), ..world::options() };
    let open = || Repository::open_on(Stage::calm(), &before.root(), limited.clone(), now()).unwrap();
    let repository = open();
    world::merge(&repository, &before.second).unwrap();
    let counted = repository.storage().unwrap();
    let found = open().storage().unwrap();
    // Files are counted by their length, and found by what they take.
    assert!(counted.used_bytes.abs_diff(found.used_bytes) < 64 * 1024, "{counted:?} {found:?}");
    assert_eq!(counted.available_bytes, (1 << 30) - counted.used_bytes, "no promise is left");
    let tight = crate::Options { limit_bytes: Some(found.used_bytes + 1000), ..world::options() };
    let repository = Repository::open_on(Stage::calm(), &before.root(), tight, now()).unwrap();
    let error = world::merge(&repository, &before.first).unwrap_err();
    assert_eq!(error.kind, Kind::NoSpace);
}

/// Of a disk that shrank the smaller image is gone on with: what its clone does not share is promised before the first byte.
#[test]
fn room_that_a_clone_does_not_share_is_promised() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let open = |limit| {
        let options = crate::Options { limit_bytes: Some(limit), ..world::options() };
        let stage = Stage::sharing(Arc::new(Calm), Renames::AtOnce, true);
        Repository::open_on(stage, &root, options, now()).unwrap()
    };
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 60 * 65536)]);
    let mut second = first.child("bk-2");
    second.disk(0).truncate(12 * 65536);
    second.disk(0)[..65536].fill(9);
    let repository = open(1 << 30);
    for point in [&first, &second] {
        back_up(&repository, point, now()).unwrap();
    }
    let planned = plan(&repository, &first).unwrap();
    let shared_bytes = repository.manifest(&second.vm, &second.id).unwrap().disks[0].image.file_bytes;
    let needed_bytes = planned.needed_bytes - shared_bytes;
    // Counted from the files, as it will be then.
    let held_bytes = open(1 << 30).storage().unwrap().used_bytes;
    for missing_bytes in [1, 0] {
        let repository = open(held_bytes + needed_bytes - missing_bytes);
        let progress = Progress::default();
        let options = world::merging(Way::Patch, 1);
        let merged = repository.execute_merge(&planned, &options, &progress, &Cancel::new(), now, || Ok(()));
        match merged {
            Ok(_) => assert_eq!(missing_bytes, 0),
            Err(error) => {
                assert_eq!((missing_bytes, &error.kind), (1, &Kind::NoSpace), "{error:?}");
                assert_eq!(progress.done_bytes.load(Ordering::Relaxed), 0, "refused before anything was moved");
            }
        }
    }
    world::check_bytes(&open(1 << 30), &second).unwrap();
    qemu::check(&root, &[&second]);
}

/// An intent that was left by a merge that was given up does nothing to a successor that is another by now.
#[test]
fn an_old_intent_is_not_carried_out() {
    let (before, third) = chain();
    // Gone just before the first file takes its name: the intent is there.
    let root =
        gone_at(&before.root(), "link .merge-bk-3/disk-0.qcow2", |repository| world::merge(repository, &before.second));
    let folder = root.path().join(layout::merge_dir(&third.vm, &third.id));
    assert!(folder.join(layout::INTENT_FILE).exists());
    // Without start-up the hub would not do this; a person with another program might.
    let repository = world::open(root.path()).unwrap();
    delete(&repository, &third, Extent::Named).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!((report.merged.len(), report.problems.len()), (0, 0), "{report:?}");
    assert_eq!(tree(root.path()), tree_of(before.points()));
    world::check_bytes(&repository, &before.second).unwrap();
}

/// Two look at a repository at once, and the other ends the merge that both found: nobody is locked out of its points.
#[test]
fn a_merge_that_ended_since_it_was_listed_is_in_nobodys_way() {
    /// Whoever is asked of a draft, which is listed before the merge, ends the merge.
    struct Other<'a>(&'a Repository);
    impl crate::recover::Catalog for Other<'_> {
        fn is_live(&self, _vm: &VmContextId, _draft: &BackupId) -> bool {
            let report = self.0.recover(&Amnesia, now()).unwrap();
            assert_eq!((report.merged.len(), report.problems.len()), (1, 0), "{report:?}");
            true
        }

        fn is_moving(&self, _: &VmContextId) -> bool {
            false
        }

        fn knows(&self, _vm: &VmContextId, _point: &BackupId) -> bool {
            true
        }
    }
    let (before, third) = chain();
    let root =
        gone_at(&before.root(), "link .merge-bk-3/disk-0.qcow2", |repository| world::merge(repository, &before.second));
    let repository = world::open(root.path()).unwrap();
    std::fs::create_dir(root.path().join(layout::draft_dir(&third.vm, &"bk-4".parse().unwrap()))).unwrap();
    let report = repository.recover(&Other(&repository), now()).unwrap();
    assert_eq!((report.live.len(), report.merged.len(), report.problems.len()), (1, 0, 0), "{report:?}");
    assert_eq!(repository.locks().held(), []);
    world::check_bytes(&repository, &third).unwrap();
}

/// Where it is certain that nothing was moved, trouble with the folder locks nobody out; the next look removes it.
#[test]
fn a_folder_without_an_intent_that_cannot_be_removed_is_in_nobodys_way() {
    let (before, third) = chain();
    let root =
        gone_at(&before.root(), "sync folder vm-a/.merge-bk-3", |repository| world::merge(repository, &before.second));
    let recover = |repository: &Repository| {
        let report = repository.recover(&Amnesia, now())?;
        report.problems.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    };
    at_each_step(root.path(), Fault::Once(EIO), recover, |tried| {
        let Some(repository) = &tried.repository else { return };
        assert_eq!(repository.locks().held(), [], "{}", tried.met);
        recover(repository).unwrap_or_else(|error| panic!("{}: {error:?}", tried.met));
        world::check_bytes(repository, &third).unwrap();
        assert_eq!(tree(tried.root), tree_of(before.points().into_iter().chain([&third])), "{}", tried.met);
    });
}

/// Points that could not be set right are nobody's until a look at the repository, in the same process, has gone on.
#[test]
fn what_was_set_aside_is_taken_up_by_the_next_look() {
    let (before, third) = chain();
    let root =
        gone_at(&before.root(), "link .merge-bk-3/disk-0.qcow2", |repository| world::merge(repository, &before.second));
    // What keeps it from going on, and goes away again.
    let image = root.path().join(layout::image(&third.vm, DiskNumber(0), &third.id));
    let repository = world::open(root.path()).unwrap();
    let kept = image.with_extension("kept");
    std::fs::rename(&image, &kept).unwrap();
    std::fs::create_dir(&image).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!((report.merged.len(), report.problems.len()), (0, 1), "{report:?}");
    assert_eq!(repository.locks().held().len(), 1);
    std::fs::remove_dir(&image).unwrap();
    std::fs::rename(&kept, &image).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!((report.merged.len(), report.problems.len()), (1, 0), "{report:?}");
    assert_eq!(repository.locks().held(), []);
    world::check_bytes(&repository, &third).unwrap();
    assert_eq!(tree(root.path()), tree_of([&before.first, &third, &before.other]));
}

/// Between the intent and the start that reads it somebody said that the point must stay, or took away what lies below.
#[test]
fn an_intent_is_weighed_again_before_the_first_name_changes() {
    let (before, third) = chain();
    let cut_off = || {
        gone_at(&before.root(), "link .merge-bk-3/disk-0.qcow2", |repository| world::merge(repository, &before.second))
    };
    let root = cut_off();
    let repository = world::open(root.path()).unwrap();
    let protect = |hold: &mut crate::Hold| hold.protected = true;
    repository.change_hold(&before.second.vm, &before.second.id, protect, "test", now()).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!((report.merged.len(), report.problems.len()), (0, 0), "{report:?}");
    world::check_bytes(&repository, &before.second).unwrap();
    // Another point came to stand on the one that goes.
    let root = cut_off();
    let repository = world::open(root.path()).unwrap();
    let mut fork = before.second.child("bk-fork");
    fork.disk(0)[1] ^= 1;
    back_up(&repository, &fork, now()).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!((report.merged.len(), report.problems.len()), (0, 0), "{report:?}");
    for point in [&before.first, &before.second, &third, &fork] {
        world::check_bytes(&repository, point).unwrap();
    }
}
