//! Chains and the deletion of their points.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;

fn ids(chain: &Chain) -> Vec<BackupId> {
    chain.backups.iter().map(|backup| backup.backup_id.clone()).collect()
}

pub async fn a_point_that_is_needed_stays(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups) = (&world.vms[0], world.catalog.backups());
    let full = world.point(vm, None, 2, at(0)).await;
    let one = world.point(vm, Some(&full), 2, at(10)).await;
    let two = world.point(vm, Some(&one), 2, at(20)).await;

    assert_eq!(backups.children(&full).await.expect("children"), std::slice::from_ref(&one));
    let mut expected = vec![one.clone(), two.clone()];
    expected.sort_unstable();
    assert_eq!(backups.dependents(&full).await.expect("dependents"), expected);
    let refused = backups.delete(std::slice::from_ref(&full), at(30)).await.expect_err("two points need it");
    let Error::Conflict(Conflict::HasDependents { dependents }) = &refused else { panic!("{refused:?}") };
    assert_eq!(*dependents, expected);
    assert!(refused.to_string().contains(two.as_str()), "{refused}");
    // A middle point with what it builds on, but without what builds on it.
    let refused = backups.delete(&[full.clone(), one.clone()], at(30)).await.expect_err("one point needs them");
    let Error::Conflict(Conflict::HasDependents { dependents }) = &refused else { panic!("{refused:?}") };
    assert_eq!(*dependents, std::slice::from_ref(&two));
    assert_eq!(
        ids(&backups.chain(vm, DiskNumber(0), None).await.expect("chain")),
        [full.clone(), one.clone(), two.clone()]
    );

    assert_eq!(backups.delete(std::slice::from_ref(&two), at(30)).await.expect("the newest may go"), 1);
    let chain = backups.chain(vm, DiskNumber(1), None).await.expect("chain");
    assert_eq!((chain.latest_backup_id.clone(), ids(&chain)), (one.clone(), vec![full.clone(), one.clone()]));
    assert_eq!(backups.delete(&[one, full.clone(), two], at(31)).await.expect("all may go together"), 2);
    assert_eq!(backups.get(&full).await.expect_err("gone").problem_code(), ProblemCode::BackupNotFound);
}

pub async fn a_chain_follows_its_links(db: TestDb) {
    let mut world = World::new(db.open().await, 1).await;
    let vm = world.vms[0].clone();
    // The clock runs backwards: links decide.
    let full = world.point(&vm, None, 1, at(500)).await;
    let one = world.point(&vm, Some(&full), 1, at(400)).await;
    let two = world.point(&vm, Some(&one), 1, at(300)).await;
    let first = world.repository_id.clone();
    let chain = world.catalog.backups().chain(&vm, DiskNumber(0), None).await.expect("chain");
    assert_eq!(
        (chain.repository_id.clone(), ids(&chain)),
        (first.clone(), vec![full.clone(), one.clone(), two.clone()])
    );
    assert_eq!((&chain.full_backup_id, &chain.latest_backup_id), (&full, &two));

    // A second repository has a chain of its own.
    world.repository_id = add_repository(&world.catalog, "second").await.repository_id;
    let elsewhere = world.point(&vm, None, 1, at(600)).await;
    let backups = world.catalog.backups();
    let refused = {
        let new = world.new_backup(&vm, BackupType::Incremental);
        let claim = world.running(&new, at(610)).await;
        let refused = backups.plan(&claim, &plan_of(&new.backup_id, Some(&two), 1)).await;
        backups.finish_cancelled(&claim, at(611)).await.expect("cancel");
        refused.expect_err("a parent in another repository")
    };
    assert_eq!(refused.problem_code(), ProblemCode::BackupNotFound);
    assert_eq!(ids(&backups.chain(&vm, DiskNumber(0), Some(&first)).await.expect("chain")).len(), 3);
    assert_eq!(ids(&backups.chain(&vm, DiskNumber(0), Some(&world.repository_id)).await.expect("chain")), [elsewhere]);

    // A second full begins a new chain; the first one's points stay, and are the chain again when it goes.
    world.repository_id = first.clone();
    let second_full = world.point(&vm, None, 1, at(700)).await;
    let chain = world.catalog.backups().chain(&vm, DiskNumber(0), Some(&first)).await.expect("chain");
    assert_eq!(ids(&chain), std::slice::from_ref(&second_full));
    world.catalog.backups().delete(&[second_full], at(710)).await.expect("delete");
    let newest = world.catalog.backups().newest_completed(&vm, &first, DiskNumber(0)).await.expect("newest");
    assert_eq!(newest.map(|point| point.backup_id), Some(two));
}

pub async fn tokens_of_the_newest_points_are_in_use(db: TestDb) {
    let mut world = World::new(db.open().await, 1).await;
    let vm = world.vms[0].clone();
    let first = world.repository_id.clone();
    let full = world.point(&vm, None, 2, at(0)).await;
    let one = world.point(&vm, Some(&full), 2, at(10)).await;
    world.repository_id = add_repository(&world.catalog, "second").await.repository_id;
    let other = world.point(&vm, None, 1, at(20)).await;
    let mut tokens = world.catalog.backups().tokens_in_use(&vm).await.expect("tokens");
    tokens.sort_unstable_by(|a, b| (a.backup_id.as_str(), a.disk_id).cmp(&(b.backup_id.as_str(), b.disk_id)));
    let token = |repository: &RepositoryId, backup: &BackupId, disk: u32| TokenInUse {
        repository_id: repository.clone(),
        disk_id: DiskNumber(disk),
        backup_id: backup.clone(),
        token: TrackingToken(format!("{backup}/{disk}")),
    };
    let mut expected = [token(&first, &one, 0), token(&first, &one, 1), token(&world.repository_id, &other, 0)];
    expected.sort_unstable_by(|a, b| (a.backup_id.as_str(), a.disk_id).cmp(&(b.backup_id.as_str(), b.disk_id)));
    assert_eq!(tokens, expected);
    // When the newest point goes, the one before it is the newest, and its token is needed again.
    world.catalog.backups().delete(&[one], at(30)).await.expect("delete");
    let tokens = world.catalog.backups().tokens_in_use(&vm).await.expect("tokens");
    assert!(tokens.contains(&token(&first, &full, 1)), "{tokens:?}");
    assert_eq!(tokens.len(), 3);
}

pub async fn a_new_disk_begins_a_chain(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups) = (&world.vms[0], world.catalog.backups());
    let full = world.point(vm, None, 1, at(0)).await;
    // Disk 0 goes on, disk 1 is new.
    let new = world.new_backup(vm, BackupType::Incremental);
    let claim = world.running(&new, at(10)).await;
    let mut done = completed(&new.backup_id, Some(&full), 1);
    done.disks.push(BackupDisk { type_reason: Some("new disk".to_owned()), ..backup_disk(&new.backup_id, None, 1) });
    backups.finish_completed(&claim, &done, at(11)).await.expect("finish");
    let of_disk = async |disk| ids(&backups.chain(vm, DiskNumber(disk), None).await.expect("chain"));
    assert_eq!(of_disk(0).await, [full.clone(), new.backup_id.clone()]);
    assert_eq!(of_disk(1).await, std::slice::from_ref(&new.backup_id));
    // Disk 0 alone goes on; the newest point of disk 1 stays the one before.
    let last = world.point(vm, Some(&new.backup_id), 1, at(20)).await;
    assert_eq!(of_disk(0).await, [full, new.backup_id.clone(), last.clone()]);
    assert_eq!(of_disk(1).await, std::slice::from_ref(&new.backup_id));
    let refused = backups.delete(&[new.backup_id], at(30)).await.expect_err("disk 0 of the last point needs it");
    assert_eq!(refused, HasDependents(vec![last]));
}

/// Lets a refusal be compared in one line.
#[derive(Debug)]
struct HasDependents(Vec<BackupId>);

impl PartialEq<HasDependents> for Error {
    fn eq(&self, other: &HasDependents) -> bool {
        matches!(self, Error::Conflict(Conflict::HasDependents { dependents }) if *dependents == other.0)
    }
}

/// The first of three goes and then the middle one: the chain is shorter, its ends are right, the counters too.
pub async fn a_merged_point_leaves_its_successor(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups) = (&world.vms[0], world.catalog.backups());
    let full = world.point(vm, None, 2, at(0)).await;
    let one = world.point(vm, Some(&full), 2, at(10)).await;
    let two = world.point(vm, Some(&one), 2, at(20)).await;
    let three = world.point(vm, Some(&two), 2, at(30)).await;
    let standing_on = |mut point: Backup, parent: Option<&BackupId>| {
        let backup_type = if parent.is_some() { BackupType::Incremental } else { BackupType::Full };
        (point.backup_type, point.parent_backup_id, point.bytes_stored) = (backup_type, parent.cloned(), 777);
        for disk in &mut point.disks {
            (disk.backup_type, disk.parent_backup_id) = (backup_type, parent.cloned());
            disk.backing_file = None;
        }
        point
    };
    // What another point still needs does not go by mistake, and nothing is changed then.
    let wrong = standing_on(backups.get(&three).await.expect("three"), Some(&full));
    let refused = backups.merged(&wrong, &one, at(40)).await.expect_err("two needs it");
    assert!(matches!(refused, Error::Conflict(Conflict::HasDependents { .. })), "{refused:?}");
    assert_eq!(backups.get(&three).await.expect("three").parent_backup_id.as_ref(), Some(&two));

    // It is proved no better than what it took over.
    let sound = |id: &BackupId, depth, seconds| Verified {
        backup_id: id.clone(),
        verification: Some(Verification {
            state: VerifyState::Sound,
            depth: Some(depth),
            at: at(seconds),
            bytes: 1,
            took_ms: 1,
            open_ms: Some(7),
            finding: None,
        }),
        lost: Lost::new(),
        generation: None,
    };
    let proofs = [sound(&two, VerifyDepth::Deep, 35), sound(&one, VerifyDepth::AtRest, 32)];
    backups.set_verified(&proofs).await.expect("proofs");
    let successor = standing_on(backups.get(&two).await.expect("two"), Some(&full));
    backups.merged(&successor, &one, at(40)).await.expect("the middle goes");
    backups.merged(&successor, &one, at(41)).await.expect("once more does no harm");
    let proof = backups.get(&two).await.expect("two").verification.expect("still proved");
    assert_eq!((proof.state, proof.depth, proof.at), (VerifyState::Sound, Some(VerifyDepth::AtRest), at(32)));
    assert_eq!(proof.open_ms, None, "its chain is another one now");
    let chain = backups.chain(vm, DiskNumber(1), None).await.expect("chain");
    assert_eq!(ids(&chain), [full.clone(), two.clone(), three.clone()]);
    assert_eq!(chain.backups[1].bytes_stored, 777);

    let successor = standing_on(backups.get(&two).await.expect("two"), None);
    backups.merged(&successor, &full, at(42)).await.expect("the first goes");
    let chain = backups.chain(vm, DiskNumber(0), None).await.expect("chain");
    assert_eq!((chain.full_backup_id.clone(), ids(&chain)), (two.clone(), vec![two.clone(), three]));
    let fulls = BackupFilter { backup_type: Some(BackupType::Full), ..BackupFilter::default() };
    let (rows, total) = backups.list(&fulls, Page::default()).await.expect("list");
    assert_eq!((rows.len(), total), (1, 1), "the counters know of it");
    assert_eq!(rows[0].backup_id, two);
    assert_eq!(rows[0].verification, None, "what the full held was never proved");
    assert_eq!(backups.get(&full).await.expect_err("gone").problem_code(), ProblemCode::BackupNotFound);
}

/// Two points stand on one: the one that gets a copy leaves it to the other, which may then take over the point itself.
pub async fn a_copy_leaves_a_point_to_the_other(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups) = (&world.vms[0], world.catalog.backups());
    let full = world.point(vm, None, 2, at(0)).await;
    let one = world.point(vm, Some(&full), 2, at(10)).await;
    let mut last = backups.get(&world.point(vm, Some(&one), 2, at(20)).await).await.expect("last");
    // Its second disk was away when the one before it was made.
    let second = |point: &mut Backup, parent: Option<&BackupId>| {
        let backup_type = if parent.is_some() { BackupType::Incremental } else { BackupType::Full };
        let disk = point.disks.iter_mut().find(|disk| disk.disk_id == DiskNumber(1)).expect("second disk");
        (disk.backup_type, disk.parent_backup_id) = (backup_type, parent.cloned());
    };
    second(&mut last, Some(&full));
    backups.took_over(&last, at(30)).await.expect("as it was made");
    assert_eq!(backups.children(&full).await.expect("children").len(), 2);
    let known = Verified {
        backup_id: last.backup_id.clone(),
        verification: Some(Verification {
            state: VerifyState::Sound,
            depth: Some(VerifyDepth::Deep),
            at: at(40),
            bytes: 1,
            took_ms: 1,
            open_ms: None,
            finding: None,
        }),
        lost: Lost::new(),
        generation: None,
    };
    backups.set_verified(&[known]).await.expect("a proof");
    second(&mut last, None);
    for seconds in [50, 51] {
        backups.took_over(&last, at(seconds)).await.expect("also a second time");
        assert_eq!(backups.children(&full).await.expect("children"), std::slice::from_ref(&one));
        let verification = backups.get(&last.backup_id).await.expect("last").verification;
        assert_eq!(verification, None, "nobody has looked at what it got");
    }
    let chain = backups.chain(vm, DiskNumber(1), None).await.expect("chain");
    assert_eq!((chain.full_backup_id.clone(), ids(&chain)), (last.backup_id.clone(), vec![last.backup_id.clone()]));
    let chain = backups.chain(vm, DiskNumber(0), None).await.expect("chain");
    assert_eq!(ids(&chain), [full.clone(), one.clone(), last.backup_id.clone()]);
    let mut successor = backups.get(&one).await.expect("one");
    (successor.backup_type, successor.parent_backup_id) = (BackupType::Full, None);
    for disk in &mut successor.disks {
        (disk.backup_type, disk.parent_backup_id) = (BackupType::Full, None);
    }
    backups.merged(&successor, &full, at(60)).await.expect("nothing else builds on it");
    let chain = backups.chain(vm, DiskNumber(0), None).await.expect("chain");
    assert_eq!(ids(&chain), [one, last.backup_id]);
}

/// A machine's points go to another repository: chains, counters and what is known of damage go along, and the next point builds on them.
pub async fn moved_points_take_along_what_is_known_of_them(db: TestDb) {
    let mut world = World::new(db.open().await, 2).await;
    let (vm, other) = (world.vms[0].clone(), world.vms[1].clone());
    let full = world.point(&vm, None, 2, at(0)).await;
    let one = world.point(&vm, Some(&full), 2, at(10)).await;
    let stays = world.point(&other, None, 1, at(15)).await;
    let lost = Lost::from([(DiskNumber(1), vec![(3, 2)])]);
    let damage = Verified {
        backup_id: one.clone(),
        verification: Some(Verification {
            state: VerifyState::Corrupt,
            depth: Some(VerifyDepth::AtRest),
            at: at(20),
            bytes: 1,
            took_ms: 1,
            open_ms: None,
            finding: Some("a segment".to_owned()),
        }),
        lost: lost.clone(),
        generation: None,
    };
    world.catalog.backups().set_verified(std::slice::from_ref(&damage)).await.expect("damage");
    let first = world.repository_id.clone();
    let second = add_repository(&world.catalog, "second").await.repository_id;
    let points = [full.clone(), one.clone(), "bk-unheard-of".parse().expect("id")].into();

    let unheard: RepositoryId = "repo-unheard-of".parse().expect("id");
    let refused = world.catalog.backups().moved(&vm, &points, &unheard, at(30)).await.expect_err("no such place");
    assert_eq!(refused.kind(), Kind::NotFound);
    let nobody = "vm-unheard-of".parse().expect("id");
    assert_eq!(world.catalog.backups().moved(&nobody, &points, &second, at(30)).await.expect("nothing is known"), 0);
    // Another machine's are not touched, whoever names them.
    let named = points.iter().cloned().chain([stays.clone()]).collect();
    assert_eq!(world.catalog.backups().moved(&vm, &named, &second, at(30)).await.expect("moved"), 2);
    assert_eq!(world.catalog.backups().moved(&vm, &named, &second, at(31)).await.expect("again"), 0);

    let backups = world.catalog.backups();
    for disk in [DiskNumber(0), DiskNumber(1)] {
        let chain = backups.chain(&vm, disk, None).await.expect("chain");
        assert_eq!((&chain.repository_id, ids(&chain)), (&second, vec![full.clone(), one.clone()]));
        let newest = backups.newest_completed(&vm, &second, disk).await.expect("newest").expect("one");
        assert_eq!(newest.backup_id, one);
        assert_eq!(backups.newest_completed(&vm, &first, disk).await.expect("none"), None);
        assert!(backups.chain(&vm, disk, Some(&first)).await.is_err());
    }
    assert_eq!(backups.damaged(&vm, &second).await.expect("damage"), [(one.clone(), lost)].into());
    assert!(backups.damaged(&vm, &first).await.expect("none").is_empty());
    assert_eq!(backups.get(&one).await.expect("one").verification, damage.verification);
    for (repository, expected) in [(&first, vec![stays]), (&second, vec![one.clone(), full])] {
        let filter = BackupFilter { repository_id: Some(repository.clone()), ..BackupFilter::default() };
        let (rows, total) = backups.list(&filter, Page::default()).await.expect("list");
        assert_eq!(rows.into_iter().map(|row| row.backup_id).collect::<Vec<_>>(), expected);
        assert_eq!(total, expected.len() as u64, "the counters know of it");
    }
    // The next one stands on them there.
    world.repository_id = second;
    let next = world.point(&vm, Some(&one), 2, at(40)).await;
    let chain = world.catalog.backups().chain(&vm, DiskNumber(0), None).await.expect("chain");
    assert_eq!(chain.latest_backup_id, next);
}

pub async fn the_longest_chains_agree_with_each_chain(db: TestDb) {
    let world = World::new(db.open().await, 4).await;
    let backups = world.catalog.backups();
    // Three points of both disks; then a new full, and a point of one disk on it.
    let first = world.point(&world.vms[0], None, 2, at(10)).await;
    let second = world.point(&world.vms[0], Some(&first), 2, at(20)).await;
    world.point(&world.vms[0], Some(&second), 2, at(30)).await;
    let old = world.point(&world.vms[1], None, 2, at(10)).await;
    let old = world.point(&world.vms[1], Some(&old), 2, at(20)).await;
    world.point(&world.vms[1], Some(&old), 2, at(30)).await;
    let full = world.point(&world.vms[1], None, 1, at(40)).await;
    world.point(&world.vms[1], Some(&full), 1, at(50)).await;
    world.point(&world.vms[2], None, 2, at(10)).await;
    let found = backups.longest_chains(&world.vms, &world.repository_id).await.expect("look");
    let mut expected = std::collections::HashMap::new();
    for vm in &world.vms {
        let filter = BackupFilter {
            vm_context_id: Some(vm.clone()),
            status: Some(BackupStatus::Completed),
            ..BackupFilter::default()
        };
        let (points, _) = backups.list(&filter, Page { limit: 1, offset: 0 }).await.expect("list");
        for disk in points.iter().flat_map(|point| &point.disks) {
            let chain = backups.chain(vm, disk.disk_id, Some(&world.repository_id)).await.expect("chain");
            let longest = expected.entry(vm.clone()).or_insert(0);
            *longest = chain.backups.len().max(*longest as usize) as u64;
        }
    }
    assert_eq!(found, expected);
    let lengths = world.vms.iter().map(|vm| found.get(vm).copied()).collect::<Vec<_>>();
    assert_eq!(lengths, [Some(3), Some(2), Some(1), None], "what its newest point does not hold does not count");
    assert_eq!(backups.longest_chains(&world.vms, &id("repo-x")).await.expect("look").len(), 0);
}
