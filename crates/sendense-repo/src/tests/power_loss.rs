//! Power loss at every step of every change, with whatever was not synced dropped, torn or reordered.

use crate::delete::Extent;
use crate::draft::DraftSpec;
use crate::merge::Way;
use crate::repository::Repository;
use crate::testing::before::{Before, delete};
use crate::testing::medium::{Change, Medium, Store};
use crate::testing::record::{Record, Step};
use crate::testing::stage::{Renames, Stage};
use crate::testing::world::{self, Amnesia, Care, Point, back_up, pattern};
use crate::testing::{Dice, now};
use sendense_types::DiskNumber;
use std::path::Path;

/// What was done, and to what.
struct Recording {
    before: Medium,
    steps: Vec<Step>,
}

/// Opens the repository, does the work, and keeps what it did.
fn record(root: &Path, renames: Renames, work: impl FnOnce(&Repository)) -> Recording {
    record_on(root, (renames, false), work)
}

/// The same where files can, or cannot, be clones.
fn record_on(root: &Path, (renames, clones): (Renames, bool), work: impl FnOnce(&Repository)) -> Recording {
    let record = Record::of(root);
    work(&world::open_on(Stage::sharing(record.clone(), renames, clones), root));
    let (before, steps) = record.take();
    Recording { before, steps }
}

/// How many fates are tried after a step: a write into a draft, which nobody reads, has fewer to tell than a name.
fn samples(step: &Step) -> usize {
    let names = step.changes.iter().any(|change| !matches!(change, Change::Write { .. } | Change::SetLen { .. }));
    if names { 6 } else { 1 }
}

/// With the first fate after each step (nothing kept, where there are many) the next backup is tried too.
fn cares() -> impl Iterator<Item = Care> {
    std::iter::once(Care::Next).chain(std::iter::repeat(Care::Now))
}

/// Cuts the power after each step. `must` are there whatever happens, `may` whole or not at all; once all is done, exactly
/// `must` and `done` are there.
fn cut_everywhere(recording: &Recording, must: &[&Point], may: &[&Point], done: &[&Point]) {
    let mut store = Store::new();
    let mut dice = Dice(recording.steps.len() as u64);
    let mut medium = recording.before.clone();
    let after_all: Vec<&Point> = must.iter().chain(done).copied().collect();
    for (number, step) in recording.steps.iter().enumerate() {
        step.changes.iter().for_each(|change| medium.apply(change));
        let last = number + 1 == recording.steps.len();
        for (fate, care) in medium.fates(samples(step), &mut dice).iter().zip(cares()) {
            let root = store.place("met");
            medium.build(fate, &root, &mut store);
            let (must, may) = if last { (&after_all[..], &[][..]) } else { (must, may) };
            if let Err(why) = world::survive(&root, must, may, care) {
                let steps: Vec<&str> = recording.steps[..=number].iter().map(|step| step.what.as_str()).collect();
                panic!("{why}\nafter power loss behind step {number}, fate {fate:?}, of\n{}", steps.join("\n"));
            }
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
}

fn publication(renames: Renames) {
    let before = Before::new();
    let third = before.third();
    // Later than half of the lease, so that the owner record is renewed on the way.
    let recording = record(&before.root(), renames, |repository| {
        back_up(repository, &third, now().plus_seconds(40)).unwrap();
    });
    cut_everywhere(&recording, &[&before.first, &before.second, &before.other], &[&third], &[&third]);
}

#[test]
fn a_publication_is_whole_or_absent() {
    publication(Renames::AtOnce);
}

#[test]
fn a_publication_by_links_is_whole_or_absent() {
    publication(Renames::ByLink);
}

#[test]
fn the_first_point_of_a_machine_is_whole_or_absent() {
    let before = Before::new();
    let new = Point::full("vm-new", "bk-new", &[&pattern(5, 1)]);
    let recording = record(&before.root(), Renames::AtOnce, |repository| {
        back_up(repository, &new, now()).unwrap();
    });
    cut_everywhere(&recording, &[&before.first, &before.second, &before.other], &[&new], &[&new]);
}

#[test]
fn a_draft_that_is_given_up_never_existed() {
    let before = Before::new();
    let third = before.third();
    let recording = record(&before.root(), Renames::AtOnce, |repository| {
        let spec = DraftSpec {
            backup_id: third.id.clone(),
            vm_context_id: third.vm.clone(),
            parents: third.parents(),
            expected_bytes: 0,
            who: "test".into(),
        };
        let mut draft = repository.begin_draft(spec, now()).unwrap();
        world::copy_disks(&mut draft, &third, &world::Tracking::new()).unwrap();
        draft.seal().unwrap().abandon().unwrap();
    });
    cut_everywhere(&recording, &[&before.first, &before.second, &before.other], &[], &[]);
}

fn deletion(renames: Renames) {
    let before = Before::new();
    let recording =
        record(&before.root(), renames, |repository| delete(repository, &before.second, Extent::Named).unwrap());
    cut_everywhere(&recording, &[&before.first, &before.other], &[&before.second], &[]);
}

#[test]
fn a_deletion_happens_or_not() {
    deletion(Renames::AtOnce);
}

#[test]
fn a_deletion_by_links_happens_or_not() {
    deletion(Renames::ByLink);
}

#[test]
fn a_deletion_with_all_that_stands_on_it_ends_between_two_points() {
    let before = Before::new();
    let recording = record(&before.root(), Renames::AtOnce, |repository| {
        delete(repository, &before.first, Extent::Cascade).unwrap()
    });
    cut_everywhere(&recording, &[&before.other], &[&before.first, &before.second], &[]);
}

/// The middle of a chain goes, of two disks that both stand on it; later points stay as they are.
fn merge(renames: Renames, (way, clones): (Way, bool)) {
    let (before, third) = with_a_third();
    let work = |repository: &Repository| world::merge_by(way, repository, &before.second).unwrap();
    let recording = record_on(&before.root(), (renames, clones), work);
    cut_everywhere(&recording, &[&before.first, &third, &before.other], &[&before.second], &[]);
}

/// A chain of three.
fn with_a_third() -> (Before, Point) {
    let (before, third) = (Before::new(), Before::new().third());
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    (before, third)
}

#[test]
fn a_merge_loses_nothing() {
    merge(Renames::AtOnce, (Way::Rewrite, false));
}

#[test]
fn a_merge_by_a_clone_loses_nothing() {
    merge(Renames::AtOnce, (Way::Patch, true));
}

#[test]
fn a_merge_by_a_copy_loses_nothing() {
    merge(Renames::AtOnce, (Way::Patch, false));
}

#[test]
fn a_merge_by_links_loses_nothing() {
    merge(Renames::ByLink, (Way::Rewrite, false));
}

#[test]
fn a_merge_of_the_first_point_loses_nothing() {
    let (before, third) = with_a_third();
    let work = |repository: &Repository| world::merge_by(Way::Patch, repository, &before.first).unwrap();
    let recording = record_on(&before.root(), (Renames::AtOnce, true), work);
    cut_everywhere(&recording, &[&before.second, &third, &before.other], &[&before.first], &[]);
}

/// A disk that the last point does not have any more goes with the one before it, as a whole or not at all.
#[test]
fn a_merge_that_drops_a_disk_loses_nothing_else() {
    let (before, mut third) = (Before::new(), Before::new().third());
    third.disks.remove(&DiskNumber(1));
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    let recording =
        record(&before.root(), Renames::AtOnce, |repository| world::merge(repository, &before.second).unwrap());
    cut_everywhere(&recording, &[&before.first, &third, &before.other], &[&before.second], &[]);
}

/// A copy for one of two that stand on a point, and then the merge into the other.
#[test]
fn a_merge_of_a_point_on_which_two_stand_loses_nothing() {
    let (before, mut third) = (Before::new(), Before::new().third());
    third.disks.remove(&DiskNumber(1));
    let mut fourth = third.child("bk-4");
    let mut back = before.second.disks[&DiskNumber(1)].clone();
    back.bytes[..10].fill(3);
    back.parent = Some(before.second.id.clone());
    fourth.disks.insert(DiskNumber(1), back);
    let repository = world::open(&before.root()).unwrap();
    for point in [&third, &fourth] {
        back_up(&repository, point, now()).unwrap();
    }
    drop(repository);
    let recording =
        record(&before.root(), Renames::AtOnce, |repository| world::merge(repository, &before.second).unwrap());
    cut_everywhere(&recording, &[&before.first, &third, &fourth, &before.other], &[&before.second], &[]);
}

#[test]
fn a_synthetic_full_loses_nothing() {
    // Once done it cannot be done again to the same point: each way has a chain of its own.
    let ways = [(Way::Rewrite, false), (Way::Patch, true)];
    for (renames, (way, clones)) in [Renames::AtOnce, Renames::ByLink].into_iter().zip(ways) {
        let (before, third) = with_a_third();
        let work = |repository: &Repository| world::make_full_by(way, repository, &third).unwrap();
        let recording = record_on(&before.root(), (renames, clones), work);
        cut_everywhere(&recording, &[&before.first, &before.second, &third, &before.other], &[], &[]);
    }
}

#[test]
fn start_up_may_be_cut_off_while_it_finishes_a_merge() {
    let (before, third) = with_a_third();
    let recording =
        record(&before.root(), Renames::AtOnce, |repository| world::merge(repository, &before.second).unwrap());
    // It is three times as long as the others, and goes through their steps at its end.
    twice(&recording, &[&before.first, &third, &before.other], &[&before.second], 4);
}

/// Power fails in the middle of a change, and again while start-up sets things right.
/// Of the steps that change names, each `every`th is the first cut.
fn twice(recording: &Recording, must: &[&Point], may: &[&Point], every: usize) {
    let mut store = Store::new();
    let mut dice = Dice(7);
    let mut medium = recording.before.clone();
    for (number, step) in recording.steps.iter().enumerate() {
        step.changes.iter().for_each(|change| medium.apply(change));
        let names = step.changes.iter().any(|change| matches!(change, Change::Name { .. }));
        if !names || number % every != 0 {
            continue;
        }
        let fates = medium.fates(3, &mut dice);
        let fate = &fates[dice.below(fates.len())];
        let root = store.place("again");
        medium.build(fate, &root, &mut store);
        let again = self::record(&root, Renames::AtOnce, |repository| {
            repository.recover(&Amnesia, now()).unwrap();
        });
        let mut medium = again.before.clone();
        for (second, step) in again.steps.iter().enumerate() {
            step.changes.iter().for_each(|change| medium.apply(change));
            let care = if second + 1 == again.steps.len() { Care::Next } else { Care::Now };
            for fate in medium.fates(2, &mut dice) {
                let root = store.place("met");
                medium.build(&fate, &root, &mut store);
                if let Err(why) = world::survive(&root, must, may, care) {
                    let steps: Vec<&str> = again.steps[..=second].iter().map(|step| step.what.as_str()).collect();
                    panic!("{why}\nafter step {number} and then, while starting up, {}", steps.join("\n"));
                }
                std::fs::remove_dir_all(&root).unwrap();
            }
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn start_up_may_be_cut_off_while_it_undoes_a_draft() {
    let before = Before::new();
    let third = before.third();
    let recording = record(&before.root(), Renames::AtOnce, |repository| {
        back_up(repository, &third, now()).unwrap();
    });
    twice(&recording, &[&before.first, &before.second, &before.other], &[&third], 1);
}

#[test]
fn start_up_may_be_cut_off_while_it_finishes_a_deletion() {
    let before = Before::new();
    let recording = record(&before.root(), Renames::AtOnce, |repository| {
        delete(repository, &before.first, Extent::Cascade).unwrap()
    });
    twice(&recording, &[&before.other], &[&before.first, &before.second], 1);
}
