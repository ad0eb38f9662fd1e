//! A hub is stopped at any step of its work, another takes the repository and works in it, and the first goes on.
//!
//! Invariant: wherever it was stopped, it publishes nothing, deletes nothing and changes no file of the other's; or the other
//! could not take the repository, because the stopped one was in the middle of a change.

use super::faults::Copies;
use crate::delete::Extent;
use crate::draft::DraftSpec;
use crate::error::{Kind, Result};
use crate::layout;
use crate::owner::{self, Claim};
use crate::repository::{Options, Repository};
use crate::testing::before::Before;
use crate::testing::stage::{Act, Fault, Faults, Renames, Script, Stage, told};
use crate::testing::world::{self, Amnesia, Point, back_up, listed};
use crate::testing::{claim, now};
use crate::verify::Depth;
use parking_lot::Mutex;
use sendense_types::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// When the lease of a hub that has done nothing since [`now`] is out.
fn lease_out() -> Timestamp {
    now().plus_seconds(i64::from(claim().lease_seconds))
}

/// What the other hub does with the repository that it took, in which `there` was left; gives what it must hold from then on.
type Reign = dyn Fn(&Repository, &BTreeSet<String>) -> Vec<Point> + Send + Sync;

/// What came of the attempt.
enum Met {
    Refused,
    Taken { there: BTreeSet<String>, holds: Vec<Point>, left: BTreeMap<PathBuf, Option<Vec<u8>>> },
}

/// Lets another hub take the repository before one step.
struct TakeOver {
    at: u64,
    count: AtomicU64,
    root: PathBuf,
    reign: Arc<Reign>,
    met: Mutex<Option<(String, Met)>>,
}

impl Script for TakeOver {
    fn before(&self, act: &Act<'_>) -> io::Result<()> {
        if self.count.fetch_add(1, Ordering::SeqCst) == self.at {
            let met = self.take_over();
            *self.met.lock() = Some((told(act), met));
        }
        Ok(())
    }

    fn after(&self, _act: &Act<'_>) {}
}

impl TakeOver {
    fn take_over(&self) -> Met {
        let owner = match owner::hurrying(|| other(&self.root)) {
            Err(error) if error.kind == Kind::Owned => return Met::Refused,
            owner => owner.unwrap(),
        };
        let report = owner.recover(&Amnesia, lease_out()).unwrap();
        assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}");
        let there = ids(&owner);
        let holds = (self.reign)(&owner, &there);
        Met::Taken { there, holds, left: content(&self.root) }
    }
}

/// The other hub, on a file system where nothing goes wrong.
fn other(root: &Path) -> Result<Repository> {
    let claim = Claim { hub_id: "hub-b".parse().unwrap(), ..claim() };
    Repository::open_on(Stage::calm(), root, Options { claim, ..world::options() }, lease_out())
}

fn ids(repository: &Repository) -> BTreeSet<String> {
    listed(repository).unwrap().into_iter().map(|(_, id)| id.to_string()).collect()
}

fn content(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    world::tree(root).into_iter().map(|path| (path.clone(), std::fs::read(root.join(path)).ok())).collect()
}

/// How often the other hub could take the repository, and how often it could not.
#[derive(Debug, Default)]
struct Tally {
    taken: u64,
    refused: u64,
}

/// Does the work and stops it at its first step, its second, and so on. `is_done` tells by the points that were found whether the
/// work had been done when it was stopped.
fn at_each_step(
    root: &Path,
    work: impl Fn(&Repository) -> Result<()>,
    is_done: impl Fn(&BTreeSet<String>) -> bool,
    reign: Arc<Reign>,
) -> Tally {
    let mut copies = Copies::of(root);
    let mut tally = Tally::default();
    // A work of this many steps does not end.
    for at in 0..1000 {
        let root = copies.next();
        let script = Arc::new(TakeOver {
            at,
            count: AtomicU64::new(0),
            root: root.clone(),
            reign: reign.clone(),
            met: Mutex::new(None),
        });
        let away = Repository::open_on(Stage::new(script.clone(), Renames::AtOnce), &root, world::options(), now());
        let result = away.and_then(|away| work(&away));
        match script.met.lock().take() {
            None => {
                result.unwrap();
                return tally;
            }
            Some((step, Met::Refused)) => {
                tally.refused += 1;
                result.unwrap_or_else(|error| panic!("nobody took it at step {at} ({step}): {error:?}"));
            }
            Some((step, Met::Taken { there, holds, left })) => {
                tally.taken += 1;
                let step = format!("taken at step {at}: {step}; it ended with {result:?}");
                assert_eq!(result.is_ok(), is_done(&there), "{step}");
                check(&root, &holds, &left, &step);
            }
        }
    }
    panic!("the work does not end");
}

/// What the other hub had is there to the last byte, and nothing else is.
fn check(root: &Path, holds: &[Point], left: &BTreeMap<PathBuf, Option<Vec<u8>>>, step: &str) {
    let found = content(root);
    for (path, bytes) in left {
        assert!(found.get(path) == Some(bytes), "{} was changed or removed; {step}", path.display());
    }
    let owner = other(root).unwrap();
    let wanted: BTreeSet<String> = holds.iter().map(|point| point.id.to_string()).collect();
    assert_eq!(ids(&owner), wanted, "{step}");
    let report = owner.recover(&Amnesia, lease_out()).unwrap();
    assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}; {step}");
    for point in holds {
        world::check_bytes(&owner, point).unwrap_or_else(|error| panic!("{error}; {step}"));
        world::check_sound(&owner, point, Depth::Deep).unwrap_or_else(|error| panic!("{error}; {step}"));
    }
    assert_eq!(world::tree(root), world::tree_of(holds), "{step}");
}

fn delete(repository: &Repository, point: &Point, at: Timestamp) -> Result<()> {
    let plan = repository.plan_delete(&point.vm, &[point.id.clone()].into(), Extent::Named)?;
    repository.execute_delete(plan, "test", at)
}

/// The other hub deletes the very point that the stopped one's draft stands on.
#[test]
fn a_backup_that_was_stopped_is_not_published_over_a_point_that_is_gone() {
    let before = Before::new();
    let (first, second, third, other) =
        (before.first.clone(), before.second.clone(), before.third(), before.other.clone());
    let new = third.clone();
    let tally = at_each_step(
        &before.root(),
        |away| back_up(away, &third, now()).map(drop),
        |there| there.contains("bk-3"),
        Arc::new(move |owner, there| {
            if there.contains("bk-3") {
                return vec![first.clone(), second.clone(), new.clone(), other.clone()];
            }
            delete(owner, &second, lease_out()).unwrap();
            let next = first.child("bk-b");
            back_up(owner, &next, lease_out()).unwrap();
            vec![first.clone(), next, other.clone()]
        }),
    );
    assert!(tally.taken > 20 && tally.refused > 10, "{tally:?}");
}

/// The other hub makes a point that stands on the very one that the stopped one deletes.
#[test]
fn a_deletion_that_was_stopped_takes_nothing_that_is_needed_now() {
    let before = Before::new();
    let (first, second, other) = (before.first.clone(), before.second.clone(), before.other.clone());
    let going = second.clone();
    let tally = at_each_step(
        &before.root(),
        |away| delete(away, &going, now()),
        |there| !there.contains("bk-2"),
        Arc::new(move |owner, there| {
            let mut holds = vec![first.clone(), other.clone()];
            if there.contains("bk-2") {
                holds.push(second.clone());
            }
            let next = if there.contains("bk-2") { second.child("bk-b") } else { first.child("bk-b") };
            back_up(owner, &next, lease_out()).unwrap();
            holds.push(next);
            holds
        }),
    );
    assert!(tally.refused > 5, "{tally:?}");
}

/// Several points are deleted: between two of them the other hub takes the repository and makes one that stands on what is left.
#[test]
fn a_prune_that_was_stopped_between_two_points_goes_no_further() {
    let before = Before::new();
    let third = before.third();
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    let points = [before.first.clone(), before.second.clone(), third.clone(), before.other.clone()];
    let going = BTreeSet::from([before.second.id.clone(), third.id.clone()]);
    let tally = at_each_step(
        &before.root(),
        |away| {
            let plan = away.plan_delete(&third.vm, &going, Extent::Named)?;
            away.execute_delete(plan, "test", now())
        },
        |there| !there.contains("bk-2"),
        Arc::new(move |owner, there| {
            let mut holds: Vec<Point> =
                points.iter().filter(|point| there.contains(point.id.as_str())).cloned().collect();
            let newest = holds.iter().rfind(|point| point.vm.as_str() == "vm-a").unwrap().clone();
            let next = newest.child("bk-b");
            back_up(owner, &next, lease_out()).unwrap();
            holds.push(next);
            holds
        }),
    );
    assert!(tally.refused > 10, "{tally:?}");
}

/// The other hub merges the same point, so that both work in a folder of the same name.
#[test]
fn a_merge_that_was_stopped_changes_nothing_of_the_one_that_came_after() {
    let before = Before::new();
    let third = before.third();
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    let (first, second, other) = (before.first.clone(), before.second.clone(), before.other.clone());
    let going = first.clone();
    let tally = at_each_step(
        &before.root(),
        |away| world::merge(away, &going),
        |there| !there.contains("bk-1"),
        Arc::new(move |owner, there| {
            if there.contains("bk-1") {
                world::merge(owner, &first).unwrap();
            }
            let next = third.child("bk-b");
            back_up(owner, &next, lease_out()).unwrap();
            // Once more into the same successor's folder, this time the other way round: the successor itself goes.
            world::merge(owner, &second).unwrap();
            vec![third.clone(), next, other.clone()]
        }),
    );
    assert!(tally.taken > 20 && tally.refused > 20, "{tally:?}");
}

/// The other hub is in the middle of the same merge: its folder has the stopped one's name.
#[test]
fn a_merge_that_was_stopped_leaves_the_folder_of_another_alone() {
    let before = Before::new();
    let third = before.third();
    back_up(&world::open(&before.root()).unwrap(), &third, now()).unwrap();
    let points = [before.first.clone(), before.second.clone(), third, before.other.clone()];
    let going = before.first.clone();
    let root = Mutex::new(PathBuf::new());
    let root = Arc::new(root);
    let (seen, there) = (root.clone(), points);
    let tally = at_each_step(
        &before.root(),
        |away| {
            *root.lock() = away.root().to_owned();
            world::merge(away, &going)
        },
        |there| !there.contains("bk-1"),
        Arc::new(move |owner, left| {
            let holds: Vec<Point> = there.iter().filter(|point| left.contains(point.id.as_str())).cloned().collect();
            if left.contains("bk-1") {
                // It dies somewhere in its work; as far as the stopped one can see, it is at it still.
                let at = seen.lock().clone();
                let claim = Claim { hub_id: "hub-b".parse().unwrap(), ..claim() };
                let options = Options { claim, ..world::options() };
                let dying = Stage::new(Faults::new(Fault::Gone, 14), Renames::AtOnce);
                let dying = Repository::open_on(dying, &at, options, lease_out()).unwrap();
                world::merge(&dying, &there[0]).unwrap_err();
                assert!(at.join(layout::merge_dir(&there[1].vm, &there[1].id)).is_dir());
            }
            let _ = owner;
            holds
        }),
    );
    assert!(tally.taken > 20 && tally.refused > 20, "{tally:?}");
}

/// A start-up that was stopped does not undo what the next owner writes.
#[test]
fn a_start_that_was_stopped_undoes_nothing_of_the_next_owners() {
    let before = Before::new();
    let (second, third) = (before.second.clone(), before.third());
    let dead = world::open(&before.root()).unwrap();
    let spec = DraftSpec {
        backup_id: third.id.clone(),
        vm_context_id: third.vm.clone(),
        parents: third.parents(),
        expected_bytes: 1 << 20,
        who: "test".into(),
    };
    drop(dead.begin_draft(spec, now()).unwrap());
    let points = before.points().map(Point::clone);
    let tally = at_each_step(
        &before.root(),
        |away| away.recover(&Amnesia, now()).map(drop),
        |_| true,
        Arc::new(move |owner, _| {
            let next = second.child("bk-b");
            back_up(owner, &next, lease_out()).unwrap();
            points.iter().cloned().chain([next]).collect()
        }),
    );
    assert!(tally.refused > 2, "{tally:?}");
}
