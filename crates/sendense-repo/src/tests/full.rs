//! Making an incremental a full: what it keeps, what every fault leaves.

use super::faults::at_each_step_on;
use super::merge::on_a_full_disk;
use crate::delete::Extent;
use crate::error::Kind;
use crate::layout;
use crate::lock::Operation;
use crate::merge::Way;
use crate::testing::before::{Before, delete};
use crate::testing::stage::{EIO, ENOSPC, Fault, Renames};
use crate::testing::world::{
    self, Amnesia, Care, Disk, Point, WAYS, back_up, make_full, make_full_by, pattern, tree, tree_of,
};
use crate::testing::{now, qemu};
use crate::verify::Depth;
use sendense_types::{BackupType, DiskNumber};
use std::collections::BTreeSet;

/// A chain of three, and another machine.
fn chain() -> (Before, Point) {
    let before = Before::new();
    let third = before.third();
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    (before, third)
}

#[test]
fn a_point_stands_alone_and_the_others_stay() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let there = tree(&before.root());
    make_full(&repository, &third).unwrap();
    let manifest = repository.manifest(&third.vm, &third.id).unwrap();
    assert_eq!((manifest.backup_type, manifest.parents().next()), (BackupType::Full, None));
    assert!(manifest.disks.iter().all(|disk| disk.image.zero_blocks == 0), "a full has no need to flag zeros");
    assert_eq!(tree(&before.root()), there, "no file came or went");
    for point in [&before.first, &before.second, &third] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&before.root(), &[&before.first, &before.second, &third]);
    // A chain begins with it, and the old one may go.
    let mut next = third.child("bk-4");
    next.disk(0)[100..200].fill(3);
    back_up(&repository, &next, now()).unwrap();
    delete(&repository, &before.first, Extent::Cascade).unwrap();
    for point in [&third, &next] {
        world::check_bytes(&repository, point).unwrap();
    }
    assert_eq!(tree(&before.root()), tree_of([&third, &next, &before.other]));
    let again = repository.plan_full(&third.vm, &third.id).unwrap_err();
    assert_eq!((again.kind.clone(), again.to_string().as_str()), (Kind::Invalid, "bk-3 is a full already"));
}

/// One in the middle becomes a full: what stands on it reads the same.
#[test]
fn a_point_in_the_middle_stands_alone() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    make_full(&repository, &before.second).unwrap();
    delete(&repository, &before.first, Extent::Named).unwrap();
    for point in [&before.second, &third] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&before.root(), &[&before.second, &third]);
}

/// Disks that shrank and grew, came, and stood on nothing: of each block the nearest image that holds it counts, and beyond an
/// image's end there are zeros.
#[test]
fn shapes_of_chains() {
    for (way, clones) in WAYS {
        shapes(way, clones);
    }
}

fn shapes(way: Way, clones: bool) {
    let folder = tempfile::tempdir().unwrap();
    let repository = world::open_sharing(&folder.path().join("repository"), clones).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 6 * 65536)]);
    let mut second = first.child("bk-2");
    second.disk(0).truncate(2 * 65536 + 100);
    let mut third = second.child("bk-3");
    third.disk(0).resize(6 * 65536, 0);
    third.disks.insert(DiskNumber(7), Disk { bytes: pattern(3, 5000), parent: None });
    let mut fourth = third.child("bk-4");
    fourth.disk(0)[5 * 65536..].fill(9);
    for point in [&first, &second, &third, &fourth] {
        back_up(&repository, point, now()).unwrap();
    }
    make_full_by(way, &repository, &fourth).unwrap();
    for point in [&first, &second, &third, &fourth] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(repository.root(), &[&first, &second, &third, &fourth]);
}

/// At every step the points are whole, and what did not happen can be done again.
fn faults(renames: Renames, (way, clones): (Way, bool), faults: &[Fault]) {
    let (before, third) = chain();
    let manifest = std::fs::read(before.root().join(layout::manifest(&third.vm, &third.id))).unwrap();
    for fault in faults {
        at_each_step_on(
            &before.root(),
            (renames, clones),
            *fault,
            |repository| make_full_by(way, repository, &third),
            |tried| {
                tried.check_word(&third, &manifest);
                let all = [&before.first, &before.second, &third, &before.other];
                if let Some(repository) = &tried.repository {
                    on_a_full_disk(*fault, repository, &all, &tried.met, || make_full_by(way, repository, &third));
                }
                let survived = world::survive(tried.root, &all, &[], Care::Now);
                survived.unwrap_or_else(|why| panic!("{why}\nafter {fault:?} at: {}", tried.met));
                let repository = world::open(tried.root).unwrap();
                if repository.plan_full(&third.vm, &third.id).is_ok() {
                    make_full_by(way, &repository, &third).unwrap();
                    world::check_bytes(&repository, &third).unwrap();
                }
                assert_eq!(tree(tried.root), tree_of(all), "{fault:?} at {}", tried.met);
                if matches!(fault, Fault::Full | Fault::Tight) && !tried.met.starts_with("write") {
                    qemu::check(tried.root, &[&before.second, &third]);
                }
            },
        );
    }
}

#[test]
fn every_fault_leaves_whole_points() {
    let all = [Fault::Once(EIO), Fault::Once(ENOSPC), Fault::Full, Fault::Tight, Fault::Gone];
    faults(Renames::AtOnce, (Way::Rewrite, false), &all);
}

#[test]
fn a_full_disk_leaves_whole_points_where_an_image_is_copied() {
    for clones in [false, true] {
        faults(Renames::AtOnce, (Way::Patch, clones), &[Fault::Once(ENOSPC), Fault::Full, Fault::Tight]);
    }
}

#[test]
fn every_fault_leaves_whole_points_where_files_have_one_name() {
    faults(Renames::NoLinks, (Way::Patch, true), &[Fault::Once(EIO), Fault::Full, Fault::Gone]);
}

/// The chain below is read, and may not go meanwhile; whoever reads the point itself is waited for.
#[test]
fn a_reader_is_in_its_way_and_is_told() {
    let (before, third) = chain();
    let repository = world::open(&before.root()).unwrap();
    let reader = repository.open_disk(&third.vm, &third.id, DiskNumber(0), "a restore").unwrap();
    let refused = make_full(&repository, &third).unwrap_err();
    assert!(matches!(refused.kind, Kind::Conflict { .. }) && refused.to_string().contains("make"), "{refused:?}");
    drop(reader);
    // One who reads an older point shares it.
    let points = BTreeSet::from([before.first.id.clone()]);
    let _reader = repository.lock(Operation::Read, &before.first.vm, points, "a mount").unwrap();
    make_full(&repository, &third).unwrap();
    assert!(repository.recover(&Amnesia, now()).unwrap().strangers.is_empty());
}
