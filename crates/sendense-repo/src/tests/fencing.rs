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

/// Its writer hangs in a read of its source and comes back when nobody counts on it any more.
#[test]
fn a_draft_that_is_taken_back_is_in_nobodys_way_and_its_writer_comes_too_late() {
    let before = Before::new();
    let (root, third) = (before.root(), before.third());
    // With a limit of its own, so that nothing else on the file system counts.
    let options = Options { limit_bytes: Some(256 << 20), ..world::options() };
    let repository = Repository::open_on(Stage::calm(), &root, options, now()).unwrap();
    let available = || repository.storage().unwrap().available_bytes;
    let free = available();
    let stuck = draft(&repository, &third);
    let (recall, writer) = (stuck.recall(), stuck.disk(sendense_types::DiskNumber(0)).unwrap().clone());
    assert_eq!(stuck.expect(100 << 20).unwrap(), 0);
    assert_eq!(available(), free - (100 << 20));

    recall.take_back().unwrap();
    repository.locks().release_of("task-test");
    assert_eq!(tree(&root), tree_of(before.points()), "its files are gone");
    assert_eq!(available(), free);
    // The machine's next backup, under way when the other one comes back.
    let next = Point { id: "bk-next".parse().unwrap(), ..third };
    let under_way = draft(&repository, &next);
    let data = vec![1; sendense_block::BLOCK_BYTES as usize];
    let late = sendense_block::Block {
        index: sendense_block::BlockIndex(0),
        digest: sendense_block::Digest::of(&data),
        payload: sendense_block::Payload::Raw(&data),
    };
    let error = sendense_block::BlockSink::put(&*writer, &[late]).unwrap_err();
    assert_eq!(error.kind, sendense_block::Kind::Cancelled, "{error:?}");
    assert!(stuck.seal().is_err(), "there is nothing to seal any more");
    recall.take_back().unwrap();
    under_way.seal().unwrap().publish(world::facts(&next), now()).unwrap();
    check_bytes(&repository, &next).unwrap();
    assert_eq!(tree(&root), tree_of(before.points().into_iter().chain([&next])));
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
