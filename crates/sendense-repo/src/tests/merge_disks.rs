//! Merging points whose disks are not all the same: removed ones, and such as came back.

use super::faults::gone_at;
use super::merge::{chain, execute, execute_by, faults_of, plan};
use crate::delete::Extent;
use crate::error::Kind;
use crate::layout;
use crate::merge::{Aim, Way};
use crate::repository::Repository;
use crate::testing::before::{Before, delete};
use crate::testing::stage::{Calm, EIO, ENOSPC, Fault, Renames, Stage};
use crate::testing::world::{self, Amnesia, Disk, Point, WAYS, back_up, pattern, tree, tree_of};
use crate::testing::{now, qemu};
use crate::verify::{Depth, Progress};
use sendense_block::Cancel;
use sendense_types::{BackupType, DiskNumber};
use std::sync::Arc;

/// A chain of three, of which the last does not have the second disk any more.
fn chain_that_loses_a_disk() -> (Before, Point) {
    let before = Before::new();
    let mut third = before.third();
    third.disks.remove(&DiskNumber(1));
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    (before, third)
}

/// The same with a fourth point, which has the disk again: it goes on where it ended.
fn chain_with_a_disk_that_came_back() -> (Before, Point, Point) {
    let (before, third) = chain_that_loses_a_disk();
    let mut fourth = third.child("bk-4");
    fourth.disk(0)[..70_000].fill(6);
    let mut bytes = before.second.disks[&DiskNumber(1)].bytes.clone();
    bytes[100..2000].fill(3);
    fourth.disks.insert(DiskNumber(1), Disk { bytes, parent: Some(before.second.id.clone()) });
    back_up(&world::open(&before.root()).unwrap(), &fourth, now()).unwrap();
    (before, third, fourth)
}

/// The disk that the successor has not goes with the point, whenever that goes, and never without it.
#[test]
fn every_fault_leaves_whole_points_where_a_disk_is_gone() {
    let all = [Fault::Once(EIO), Fault::Once(ENOSPC), Fault::Full, Fault::Tight, Fault::Gone];
    let (before, third) = chain_that_loses_a_disk();
    let later = [third];
    faults_of((&before, &later), Renames::AtOnce, (Way::Rewrite, false), &all);
    faults_of((&before, &later), Renames::NoLinks, (Way::Patch, true), &[Fault::Gone]);
}

/// The same where it came back: what its point after the gap needs is copied first, and then it is as if it had never been away.
#[test]
fn every_fault_leaves_whole_points_where_a_disk_came_back() {
    let all = [Fault::Once(EIO), Fault::Once(ENOSPC), Fault::Full, Fault::Tight, Fault::Gone];
    let (before, third, fourth) = chain_with_a_disk_that_came_back();
    let later = [third, fourth];
    faults_of((&before, &later), Renames::AtOnce, (Way::Rewrite, false), &all);
    faults_of((&before, &later), Renames::AtOnce, (Way::Patch, true), &[Fault::Gone, Fault::Full]);
    faults_of((&before, &later), Renames::NoLinks, (Way::Patch, false), &[Fault::Gone]);
}

/// A disk that the successor has for the first time goes along; one that it has not goes with the point.
#[test]
fn disks_come_and_go() {
    for (way, clones) in WAYS {
        come_and_go(way, clones);
    }
}

fn come_and_go(way: Way, clones: bool) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let limited = crate::Options { limit_bytes: Some(1 << 30), ..world::options() };
    let stage = Stage::sharing(Arc::new(Calm), Renames::AtOnce, clones);
    let repository = Repository::open_on(stage, &root, limited, now()).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 100_000)]);
    let mut second = first.child("bk-2");
    second.disk(0)[..1000].fill(5);
    second.disks.insert(DiskNumber(7), Disk { bytes: pattern(3, 200_000), parent: None });
    let mut third = second.child("bk-3");
    third.disk(7)[..90_000].fill(8);
    let mut fourth = third.child("bk-4");
    fourth.disk(0)[..70_000].fill(4);
    fourth.disks.remove(&DiskNumber(7));
    let mut fifth = fourth.child("bk-5");
    fifth.disks.insert(DiskNumber(7), Disk { bytes: pattern(6, 300_000), parent: None });
    for point in [&first, &second, &third, &fourth, &fifth] {
        back_up(&repository, point, now()).unwrap();
    }
    let planned = plan(&repository, &first).unwrap();
    assert_eq!((planned.disks, planned.dropped), ([DiskNumber(0)].into(), [].into()));
    world::merge_by(way, &repository, &first).unwrap();
    let planned = plan(&repository, &third).unwrap();
    let words = format!(
        "merge bk-3 into bk-4 (disks 0, at most {} bytes written); nothing needs its disks 7, which go too\n",
        planned.needed_bytes
    );
    assert_eq!(planned.to_string(), words);
    let of_disk = |disk: &crate::manifest::Disk| disk.image.file_bytes + disk.digests.file_bytes;
    let manifest = |point: &Point| repository.manifest(&point.vm, &point.id).unwrap();
    let both = of_disk(&manifest(&third).disks[0]) + of_disk(&manifest(&fourth).disks[0]);
    assert_eq!(planned.needed_bytes, both, "nothing is written of a disk that goes");
    let (used_bytes, dropped_bytes) = (repository.storage().unwrap().used_bytes, of_disk(&manifest(&third).disks[1]));
    let merged = execute_by(way, &repository, &planned, &Cancel::new()).unwrap();
    let kept_bytes = merged.file_bytes();
    assert_eq!(repository.storage().unwrap().used_bytes, used_bytes + kept_bytes - both - dropped_bytes);
    // What the disk was before its last point goes with that, as one that came back has begun anew.
    for point in [&second, &fourth, &fifth] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&root, &[&second, &fourth, &fifth]);
    world::merge_by(way, &repository, &second).unwrap();
    world::merge_by(way, &repository, &fourth).unwrap();
    world::check_bytes(&repository, &fifth).unwrap();
    world::check_sound(&repository, &fifth, Depth::Deep).unwrap();
    qemu::check(&root, &[&fifth]);
    assert_eq!(tree(&root), tree_of([&fifth]));
    assert!(repository.recover(&Amnesia, now()).unwrap().strangers.is_empty());
}

/// Of two points that stand on one each gets what it needs, disk by disk, and the point goes.
#[test]
fn a_disk_that_came_back_keeps_no_point() {
    for (way, clones) in WAYS {
        keeps_no_point(way, clones);
    }
}

fn keeps_no_point(way: Way, clones: bool) {
    let (before, third, fourth) = chain_with_a_disk_that_came_back();
    let repository = world::open_sharing(&before.root(), clones).unwrap();
    let steps = repository.plan_merge(&before.second.vm, &before.second.id, now()).unwrap();
    let told: Vec<_> = steps.iter().map(|step| (step.aim, &step.successor, step.disks.clone())).collect();
    let (zero, one) = ([DiskNumber(0)].into(), [DiskNumber(1)].into());
    assert_eq!(told, [(Aim::Copy, &fourth.id, one), (Aim::Merge, &third.id, zero)]);
    assert!(steps.iter().all(|step| step.dropped.is_empty()), "{steps:?}");
    assert!(steps[0].to_string().starts_with("copy what bk-4 needs of bk-2 (disks 1, at most "), "{}", steps[0]);
    // The last step alone would take away what the other point needs.
    let refused = execute_by(way, &repository, &steps[1], &Cancel::new()).unwrap_err();
    assert!(matches!(refused.kind, Kind::Conflict { .. }), "{refused:?}");
    let there = tree(&before.root());
    let copied = execute_by(way, &repository, &steps[0], &Cancel::new()).unwrap();
    assert_eq!(copied.backup_id, fourth.id);
    let parents = |disk| copied.disk(DiskNumber(disk)).unwrap().parent_backup_id.clone();
    assert_eq!((parents(0), parents(1)), (Some(third.id.clone()), Some(before.first.id.clone())));
    assert_eq!(tree(&before.root()), there, "no file came or went");
    let all = [&before.first, &before.second, &third, &fourth];
    for point in all {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&before.root(), &all);
    let refused = execute_by(way, &repository, &steps[0], &Cancel::new()).unwrap_err();
    assert!(matches!(refused.kind, Kind::Conflict { .. }), "it needs nothing of it any more: {refused:?}");
    execute_by(way, &repository, &steps[1], &Cancel::new()).unwrap();
    world::merge_by(way, &repository, &before.first).unwrap();
    for point in [&third, &fourth] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&before.root(), &[&third, &fourth]);
    assert_eq!(tree(&before.root()), tree_of([&third, &fourth, &before.other]));
    // The disk is nobody's now but the last point's.
    let full = repository.manifest(&fourth.vm, &fourth.id).unwrap();
    assert_eq!(full.disk(DiskNumber(1)).unwrap().backup_type, BackupType::Full);
}

/// Two programs wrote into one folder, and two points stand on one disk of a third: each has all of it afterwards.
#[test]
fn a_fork_is_resolved() {
    for (way, clones) in WAYS {
        let (before, third) = chain();
        let repository = world::open_sharing(&before.root(), clones).unwrap();
        let mut fork = before.second.child("bk-fork");
        fork.disk(0)[5] ^= 1;
        back_up(&repository, &fork, now()).unwrap();
        let steps = repository.plan_merge(&before.second.vm, &before.second.id, now()).unwrap();
        assert_eq!(steps.iter().map(|step| step.aim).collect::<Vec<_>>(), [Aim::Copy, Aim::Merge]);
        for going in [&before.second, &before.first] {
            world::merge_by(way, &repository, going).unwrap();
            for point in [&third, &fork] {
                world::check_bytes(&repository, point).unwrap();
                world::check_sound(&repository, point, Depth::Deep).unwrap();
            }
            qemu::check(&before.root(), &[&third, &fork]);
        }
        assert_eq!(tree(&before.root()), tree_of([&third, &fork, &before.other]));
    }
}

/// While a point gets its copy, what the going one stands on may not be merged into that: the copy is to stand on it.
#[test]
fn what_a_copy_will_stand_on_stays() {
    let (before, third, fourth) = chain_with_a_disk_that_came_back();
    let repository = world::open(&before.root()).unwrap();
    let steps = repository.plan_merge(&before.second.vm, &before.second.id, now()).unwrap();
    let below = plan(&repository, &before.first).unwrap();
    let tried = std::cell::Cell::new(false);
    let meanwhile = || {
        tried.set(true);
        let refused = execute(&repository, &below, &Cancel::new()).unwrap_err();
        assert!(matches!(refused.kind, Kind::Conflict { .. }), "{refused:?}");
        Ok(())
    };
    let options = world::merging(Way::Fitting, 1);
    repository.execute_merge(&steps[0], &options, &Progress::default(), &Cancel::new(), now, meanwhile).unwrap();
    assert!(tried.get());
    // An intent that was left, and what it says it will stand on is gone.
    let copy = |repository: &Repository| world::merge(repository, &before.second);
    delete(&repository, &fourth, Extent::Named).unwrap();
    back_up(&repository, &fourth, now()).unwrap();
    let root = gone_at(&before.root(), "link .merge-bk-4/disk-1.qcow2", copy);
    let repository = world::open(root.path()).unwrap();
    world::merge(&repository, &before.first).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!((report.merged.len(), report.problems.len()), (0, 0), "{report:?}");
    for point in [&before.second, &third, &fourth] {
        world::check_bytes(&repository, point).unwrap();
    }
}

/// Damage of a disk that goes is in nobody's way.
#[test]
fn a_damaged_disk_goes_like_any_other() {
    let (before, third) = chain_that_loses_a_disk();
    let repository = world::open(&before.root()).unwrap();
    let image = before.root().join(layout::image(&before.second.vm, DiskNumber(1), &before.second.id));
    std::fs::remove_file(image).unwrap();
    execute(&repository, &plan(&repository, &before.second).unwrap(), &Cancel::new()).unwrap();
    for point in [&before.first, &third] {
        world::check_bytes(&repository, point).unwrap();
    }
    assert_eq!(tree(&before.root()), tree_of([&before.first, &third, &before.other]));
}

/// The disk came back while the merge prepared its files, and stands on the point: all stay.
#[test]
fn a_disk_that_comes_back_in_the_meantime_keeps_the_point() {
    let (before, third) = chain_that_loses_a_disk();
    let repository = world::open(&before.root()).unwrap();
    let planned = plan(&repository, &before.second).unwrap();
    let mut fourth = third.child("bk-4");
    let back = Disk { bytes: pattern(9, 65536), parent: Some(before.second.id.clone()) };
    fourth.disks.insert(DiskNumber(1), back);
    // It asks for the time when it begins, when it has claimed the points as a reader, and at its end.
    let is_made = std::cell::Cell::new(false);
    let came = || {
        if !is_made.get() && repository.is_merging(&third.vm, &third.id) {
            is_made.set(true);
            back_up(&repository, &fourth, now()).unwrap();
        }
        now()
    };
    let options = world::merging(Way::Fitting, 1);
    let refused = repository.execute_merge(&planned, &options, &Progress::default(), &Cancel::new(), came, || Ok(()));
    assert!(is_made.get() && refused.is_err());
    for point in [&before.first, &before.second, &third, &fourth] {
        world::check_bytes(&repository, point).unwrap();
    }
    assert!(!before.root().join(layout::merge_dir(&third.vm, &third.id)).exists());
    // Between the intent and the start that reads it.
    delete(&repository, &fourth, Extent::Named).unwrap();
    let merge = |repository: &Repository| world::merge(repository, &before.second);
    let root = gone_at(&before.root(), "link .merge-bk-3/disk-0.qcow2", merge);
    let repository = world::open(root.path()).unwrap();
    back_up(&repository, &fourth, now()).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!((report.merged.len(), report.problems.len()), (0, 0), "{report:?}");
    for point in [&before.first, &before.second, &third, &fourth] {
        world::check_bytes(&repository, point).unwrap();
    }
}
