//! Points that must stay: whoever deletes is refused, whatever his catalog says.

use crate::delete::Extent;
use crate::hold::Hold;
use crate::layout;
use crate::lock::Operation;
use crate::repository::Repository;
use crate::testing::now;
use crate::testing::world::{self, Amnesia, Point, back_up, pattern, tree, tree_of};
use crate::{Kind, Result};
use sendense_types::Timestamp;
use std::path::PathBuf;

fn delete(repository: &Repository, point: &Point, extent: Extent, now: Timestamp) -> Result<()> {
    let plan = repository.plan_delete(&point.vm, &[point.id.clone()].into(), extent)?;
    repository.execute_delete(plan, "test", now)
}

fn two_points(root: &std::path::Path) -> (Repository, Point, Point) {
    let repository = world::open(root).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 70_000)]);
    let second = first.child("bk-2");
    for point in [&first, &second] {
        back_up(&repository, point, now()).unwrap();
    }
    (repository, first, second)
}

#[test]
fn a_protected_point_stays_until_it_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let (repository, first, second) = two_points(&root);
    let protect = |on: bool| move |hold: &mut Hold| hold.protected = on;
    let hold = repository.change_hold(&second.vm, &second.id, protect(true), "test", now()).unwrap();
    assert_eq!(repository.holds(&second.vm).unwrap(), [(second.id.clone(), hold)].into());
    let before = tree(&root);
    // By itself, and as a dependent that would go along.
    for (point, extent) in [(&second, Extent::Named), (&first, Extent::Cascade)] {
        let error = delete(&repository, point, extent, now()).unwrap_err();
        assert_eq!(error.kind, Kind::Held { backup_id: second.id.clone(), hold });
        assert_eq!(error.to_string(), "bk-2 is protected");
    }
    assert_eq!(tree(&root), before);
    // Another program's catalog finds it too.
    drop(repository);
    let repository = world::open(&root).unwrap();
    assert!(repository.recover(&Amnesia, now()).unwrap().strangers.is_empty());
    assert_eq!(repository.hold(&second.vm, &second.id).unwrap(), hold);
    let free = repository.change_hold(&second.vm, &second.id, protect(false), "test", now()).unwrap();
    assert_eq!(free, Hold::default());
    assert_eq!(tree(&root), tree_of([&first, &second]), "nothing is left of it");
    delete(&repository, &second, Extent::Named, now()).unwrap();
    assert_eq!(tree(&root), tree_of([&first]));
}

#[test]
fn a_point_is_held_until_its_date_and_takes_its_hold_along() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let (repository, first, second) = two_points(&root);
    let until = now().plus_seconds(3600);
    repository.change_hold(&second.vm, &second.id, |hold| hold.until = Some(until), "test", now()).unwrap();
    let early = delete(&repository, &second, Extent::Named, until.plus_seconds(-1)).unwrap_err();
    assert!(matches!(early.kind, Kind::Held { .. }), "{early:?}");
    delete(&repository, &second, Extent::Named, until).unwrap();
    assert_eq!(tree(&root), tree_of([&first]));
}

#[test]
fn a_hold_that_cannot_be_read_holds() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let (repository, first, second) = two_points(&root);
    let file = root.join(layout::hold(&second.vm, &second.id));
    std::fs::write(&file, "{").unwrap();
    let error = delete(&repository, &second, Extent::Named, now()).unwrap_err();
    assert!(matches!(error.kind, Kind::Corrupt { .. }), "{error:?}");
    assert!(repository.holds(&second.vm).is_err());
    repository.change_hold(&second.vm, &second.id, |_| (), "test", now()).unwrap();
    delete(&repository, &second, Extent::Named, now()).unwrap();
    assert_eq!(tree(&root), tree_of([&first]));
}

#[test]
fn a_hold_needs_a_point_that_is_not_on_its_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let (repository, first, _) = two_points(&root);
    let protect = |hold: &mut Hold| hold.protected = true;
    let unknown = repository.change_hold(&first.vm, &"bk-9".parse().unwrap(), protect, "test", now()).unwrap_err();
    assert_eq!(unknown.kind, Kind::NotFound);
    let deletion = repository.lock(Operation::Delete, &first.vm, [first.id.clone()].into(), "deletion").unwrap();
    let busy = repository.change_hold(&first.vm, &first.id, protect, "test", now()).unwrap_err();
    assert!(matches!(busy.kind, Kind::Conflict { .. }), "{busy:?}");
    drop(deletion);
    // A reader is not in the way.
    let _reader = repository.lock(Operation::Read, &first.vm, [first.id.clone()].into(), "mount").unwrap();
    repository.change_hold(&first.vm, &first.id, protect, "test", now()).unwrap();
}

/// A process dies while it deletes a point, or while it writes a hold; a hold without a point is told.
#[test]
fn what_a_crash_leaves_of_a_hold_goes_with_its_point() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let (repository, first, second) = two_points(&root);
    let until = |hold: &mut Hold| hold.until = Some(now());
    repository.change_hold(&second.vm, &second.id, until, "test", now()).unwrap();
    std::fs::write(root.join(layout::hold_half(&second.vm, &second.id)), "{\"for").unwrap();
    std::fs::write(root.join("vm-a/bk-0.hold"), "{}").unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!(report.strangers, [PathBuf::from("vm-a/bk-0.hold")]);
    std::fs::remove_file(root.join("vm-a/bk-0.hold")).unwrap();

    let deletion = root.join(layout::delete_dir(&second.vm, &second.id));
    std::fs::create_dir(&deletion).unwrap();
    let taken_back = deletion.join(layout::MANIFEST_IN_FOLDER);
    std::fs::rename(root.join(layout::manifest(&second.vm, &second.id)), taken_back).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!(report.deleted, [(second.vm, second.id)]);
    assert!(report.strangers.is_empty(), "{report:?}");
    assert_eq!(tree(&root), tree_of([&first]));
}
