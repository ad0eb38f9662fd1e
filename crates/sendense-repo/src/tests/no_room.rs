//! File systems that are full to the last block, on loop devices: what can be done on them, and what is refused.

use super::shared::Mounted;
use crate::delete::Extent;
use crate::error::Kind;
use crate::repository::Repository;
use crate::testing::before::delete;
use crate::testing::world::{self, Amnesia, Point, back_up, pattern, tree, tree_of};
use crate::testing::{now, qemu};
use crate::verify::Depth;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: usize = 1 << 20;

/// Somebody else takes all that is left, down to a single block and what a small file takes beside it.
pub(super) fn fill(folder: &Path, name: &str) {
    let last = std::fs::File::create(folder.join(name)).unwrap();
    let mut number = 0;
    for bytes in [64 * MIB, MIB, 64 * 1024, 4096] {
        loop {
            number += 1;
            let Ok(file) = std::fs::File::create_new(folder.join(format!("{name}-{number}"))) else { break };
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64) {
                Ok(()) => {}
                Err(Errno::NOSPC) => break,
                Err(errno) => panic!("{errno}"),
            }
        }
    }
    // What is written counts, not only what is promised.
    let mut at = 0;
    while last.write_all_at(&[7; 4096], at).is_ok() && last.sync_all().is_ok() {
        at += 4096;
    }
    qemu::run("sync", &["-f", folder.to_str().unwrap()]);
}

/// Also a start in such a moment, with a lease to be taken and a record to be written.
fn a_prune_makes_room(mkfs: &[&str], mib: u64) {
    let mounted = Mounted::sized(mkfs, mib << 20);
    let root = mounted.root();
    let repository = Repository::open(&root, world::options(), now()).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 3 * MIB)]);
    let mut second = first.child("bk-2");
    second.disk(0)[MIB..2 * MIB].copy_from_slice(&pattern(2, MIB));
    let mut third = second.child("bk-3");
    third.disk(0)[..MIB].copy_from_slice(&pattern(3, MIB));
    let mut fourth = third.child("bk-4");
    fourth.disk(0)[MIB / 2..MIB].copy_from_slice(&pattern(4, MIB / 2));
    for point in [&first, &second, &third, &fourth] {
        back_up(&repository, point, now()).unwrap();
    }
    let taken = root.parent().unwrap().join("taken");
    std::fs::create_dir(&taken).unwrap();
    fill(&taken, "first");
    // Nothing is merged without room, and nothing is left of the try.
    let there = tree(&root);
    for refused in [world::merge(&repository, &second), world::make_full(&repository, &third)] {
        assert_eq!(refused.unwrap_err().kind, Kind::NoSpace);
    }
    assert_eq!(tree(&root), there);
    repository.renew(now().plus_seconds(40)).unwrap();
    delete(&repository, &fourth, Extent::Named)
        .unwrap_or_else(|error| panic!("{}", sendense_block::error::chain(&error)));
    drop(repository);
    fill(&taken, "second");
    // A start, hours later.
    let later = now().plus_seconds(4000);
    let repository = Repository::open(&root, world::options(), later).unwrap();
    let report = repository.recover(&Amnesia, later).unwrap();
    assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}");
    let plan = repository.plan_delete(&third.vm, &[third.id.clone()].into(), Extent::Named).unwrap();
    repository.execute_delete(plan, "test", later.plus_seconds(40)).unwrap();
    for point in [&first, &second] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&root, &[&first, &second]);
    assert_eq!(tree(&root), tree_of([&first, &second]));
    // There is room again.
    std::fs::remove_dir_all(&taken).unwrap();
    world::merge(&repository, &first).unwrap();
    world::check_bytes(&repository, &second).unwrap();
}

#[test]
fn a_prune_on_a_full_ext4_makes_room() {
    a_prune_makes_room(&["mkfs.ext4", "-q", "-m", "0"], 160);
}

#[test]
fn a_prune_on_a_full_xfs_makes_room() {
    a_prune_makes_room(&["mkfs.xfs", "-q"], 320);
}

#[test]
fn a_prune_on_a_full_btrfs_makes_room() {
    a_prune_makes_room(&["mkfs.btrfs", "-q"], 320);
}
