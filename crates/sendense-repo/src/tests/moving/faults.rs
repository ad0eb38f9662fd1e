//! Every step of a move fails, finds the disk full or is the last that the process does, in either repository; and power fails behind it.

use super::*;
use crate::testing::Dice;
use crate::testing::medium::{Change, Medium, Store};
use crate::testing::record::{Record, Step};
use crate::testing::stage::{EIO, ENOSPC, Fault, Faults};
use crate::tests::faults::Copies;

pub(super) fn open_on(stage: &Arc<Stage>, folder: &Path) -> Result<(Repository, Repository)> {
    let open = |name| Repository::open_on(stage.clone(), &folder.join(name), world::options(), now());
    Ok((open(SOURCE)?, open(TARGET)?))
}

/// A failed write, a full disk, a process that is gone, at every step of the move, in either repository.
fn faults(renames: Renames, faults: &[Fault]) {
    let world = World::small();
    let (chain, other) = (world.chain(), &world.before.other);
    let mut copies = Copies::of(&world.folder());
    for fault in faults {
        let mut places = BTreeSet::new();
        for at in 0.. {
            assert!(at < 2000, "the work does not end");
            let folder = copies.next();
            let script = Faults::new(*fault, at);
            let stage = Stage::new(script.clone(), renames);
            let book = Book::default();
            let opened = open_on(&stage, &folder);
            let result = match &opened {
                Ok((source, target)) => go(source, target, world.vm(), &book).map(drop),
                Err(error) => Err(crate::Error::new(error.kind.clone(), "open")),
            };
            let Some(met) = script.met() else {
                result.unwrap();
                break;
            };
            if let Ok((source, target)) = &opened {
                assert_eq!((source.locks().held(), target.locks().held()), (vec![], vec![]), "{met}");
            }
            // At this very moment whoever lists points reads them rightly, wherever they are.
            let (source, target) = open(&folder);
            for repository in [&source, &target] {
                for (_, id) in world::listed(repository).unwrap() {
                    let point = chain.iter().copied().chain([other]).find(|point| point.id == id).unwrap();
                    world::check_bytes(repository, point)
                        .unwrap_or_else(|why| panic!("{why}\nafter {fault:?} at {met}"));
                }
            }
            drop((source, target));
            let place = survive(&folder, &chain, other, at % 2 == 0)
                .unwrap_or_else(|why| panic!("{why}\nafter {fault:?} at {met}: {result:?}"));
            if result.is_ok() {
                assert_eq!(place, Place::Target, "{met}");
            }
            if !book.switched.lock().is_empty() {
                assert_eq!(place, Place::Target, "whose books say so has them there: {met}");
            }
            places.insert(place == Place::Target);
            // Every third time, which costs as much as all the rest.
            if place == Place::Source && at % 3 == 0 {
                let (source, target) = open(&folder);
                go(&source, &target, world.vm(), &Book::default()).unwrap();
                let place = survive(&folder, &chain, other, true).unwrap_or_else(|why| panic!("{why}\n{met}"));
                assert_eq!(place, Place::Target);
            }
        }
        assert_eq!(places.len(), 2, "{fault:?} before and after the points went over");
    }
}

#[test]
fn every_failed_step_leaves_whole_points_in_one_place() {
    faults(Renames::AtOnce, &[Fault::Once(EIO)]);
}

#[test]
fn a_full_disk_at_every_step_leaves_whole_points_in_one_place() {
    faults(Renames::AtOnce, &[Fault::Once(ENOSPC), Fault::Full]);
}

#[test]
fn a_process_that_is_gone_at_every_step_leaves_whole_points_in_one_place() {
    faults(Renames::AtOnce, &[Fault::Gone]);
}

#[test]
fn every_fault_leaves_whole_points_on_a_file_system_that_renames_by_links() {
    faults(Renames::ByLink, &[Fault::Gone]);
}

/// Power fails after every step, with whatever was not synced dropped, torn or reordered, in both repositories.
#[test]
fn a_loss_of_power_leaves_whole_points_in_one_place() {
    let world = World::small();
    let folder = world.folder();
    let record = Record::of(&folder);
    let (source, target) = open_on(&Stage::new(record.clone(), Renames::AtOnce), &folder).unwrap();
    go(&source, &target, world.vm(), &Book::default()).unwrap();
    drop((source, target));
    let (mut medium, steps): (Medium, Vec<Step>) = record.take();
    let (mut store, mut dice) = (Store::new(), Dice(steps.len() as u64));
    let (chain, other) = (world.chain(), &world.before.other);
    for (number, step) in steps.iter().enumerate() {
        step.changes.iter().for_each(|change| medium.apply(change));
        let names = step.changes.iter().any(|change| !matches!(change, Change::Write { .. } | Change::SetLen { .. }));
        let is_last = number + 1 == steps.len();
        for fate in medium.fates(if names { 4 } else { 1 }, &mut dice) {
            let met = store.place("met");
            medium.build(&fate, &met, &mut store);
            let place = survive(&met, &chain, other, dice.below(2) == 0).unwrap_or_else(|why| {
                let steps: Vec<&str> = steps[..=number].iter().map(|step| step.what.as_str()).collect();
                panic!("{why}\nafter power loss behind step {number}, fate {fate:?}, of\n{}", steps.join("\n"));
            });
            assert!(!is_last || place == Place::Target);
            std::fs::remove_dir_all(&met).unwrap();
        }
    }
}
