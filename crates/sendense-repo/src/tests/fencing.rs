//! Two hubs of one deployment: the one that was away too long changes nothing more, and the next one cleans up after it.

use crate::delete::Extent;
use crate::draft::{Draft, DraftSpec};
use crate::error::{Kind, Result};
use crate::layout;
use crate::owner::Claim;
use crate::repository::{Options, Repository};
use crate::testing::before::Before;
use crate::testing::stage::Stage;
use crate::testing::world::{self, Amnesia, Point, Tracking, back_up, check_bytes, tree, tree_of};
use crate::testing::{claim, now};
use sendense_types::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Opens the repository as this hub.
fn hub(root: &Path, name: &str, at: Timestamp) -> Result<Repository> {
    let claim = Claim { hub_id: name.parse().unwrap(), ..claim() };
    Repository::open_on(Stage::calm(), root, Options { claim, ..world::options() }, at)
}

/// When the lease of a hub that has done nothing since [`now`] is out.
fn lease_out() -> Timestamp {
    now().plus_seconds(i64::from(claim().lease_seconds))
}

fn draft(repository: &Repository, point: &Point) -> Draft {
    let spec = DraftSpec {
        backup_id: point.id.clone(),
        vm_context_id: point.vm.clone(),
        parents: point.parents(),
        expected_bytes: 1 << 20,
        who: "task-test".into(),
    };
    let mut draft = repository.begin_draft(spec, now()).unwrap();
    world::copy_disks(&mut draft, point, &Tracking::new()).unwrap();
    draft
}

/// What lies below a folder, with the bytes of every file.
fn content(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    tree(root).into_iter().map(|path| (path.clone(), std::fs::read(root.join(path)).ok())).collect()
}

#[test]
fn a_fenced_hub_publishes_nothing_and_leaves_its_draft_to_the_next_owner() {
    let before = Before::new();
    let (root, third) = (before.root(), before.third());
    let away = hub(&root, "hub-test", now()).unwrap();
    let sealed = draft(&away, &third).seal().unwrap();
    assert_eq!(hub(&root, "hub-b", now()).err().unwrap().kind, Kind::Owned, "the lease still runs");

    let owner = hub(&root, "hub-b", lease_out()).unwrap();
    let left = content(&root);
    let drafts = root.join(layout::draft_dir(&third.vm, &third.id));
    assert!(drafts.is_dir(), "{left:?}");
    // Also when its clock stood still while it was away: the record counts, not the lease that it remembers.
    let error = sealed.publish(world::facts(&third), now()).unwrap_err();
    assert_eq!(error.kind, Kind::Fenced, "{error:?}");
    assert_eq!(content(&root), left, "a hub that is fenced touched the repository");

    // The next owner undoes the draft, and goes on from the newest point.
    let report = owner.recover(&Amnesia, lease_out()).unwrap();
    assert_eq!(report.undone, [(third.vm.clone(), third.id.clone())]);
    assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}");
    assert_eq!(tree(&root), tree_of(before.points()));
    back_up(&owner, &third, lease_out()).unwrap();
    check_bytes(&owner, &third).unwrap();
}

#[test]
fn a_fenced_hub_deletes_nothing() {
    let before = Before::new();
    let (root, second) = (before.root(), &before.second);
    let away = hub(&root, "hub-test", now()).unwrap();
    // Planned while it was the owner; the plan alone is no right to carry it out.
    let named = BTreeSet::from([second.id.clone()]);
    let plan = away.plan_delete(&second.vm, &named, Extent::Named).unwrap();
    let owner = hub(&root, "hub-b", lease_out()).unwrap();
    let left = content(&root);
    for at in [now(), lease_out(), lease_out().plus_seconds(3600)] {
        let error = away.execute_delete(plan.clone(), "test", at).unwrap_err();
        assert_eq!(error.kind, Kind::Fenced, "{error:?}");
    }
    assert_eq!(away.recover(&Amnesia, now()).unwrap_err().kind, Kind::Fenced);
    assert_eq!(content(&root), left, "a hub that is fenced touched the repository");
    for point in before.points() {
        check_bytes(&owner, point).unwrap();
    }
    // The same plan is the owner's to carry out.
    owner.execute_delete(plan, "test", lease_out()).unwrap();
    assert_eq!(tree(&root), tree_of([&before.first, &before.other]));
}
