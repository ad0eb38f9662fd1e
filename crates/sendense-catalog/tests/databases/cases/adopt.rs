//! Points that only their manifests know of.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;

pub async fn adopting_is_idempotent(db: TestDb) {
    let catalog = db.open().await;
    let repository = add_repository(&catalog, "repo").await.repository_id;
    let vm = known_vm("vm-1", "web", 2);
    let full = point_of(&vm, &repository, "bk-1", None, at(10));
    let one = point_of(&vm, &repository, "bk-2", Some("bk-1"), at(20));
    let backups = catalog.backups();
    let orphan = backups.adopt(&vm, &one, at(30)).await.expect_err("the parent comes first");
    assert_eq!(orphan.problem_code(), ProblemCode::BackupNotFound);
    assert_eq!(catalog.vms().get(&vm.vm_context_id).await.expect_err("nothing stays of it").kind(), Kind::NotFound);

    assert!(backups.adopt(&vm, &full, at(30)).await.expect("adopt"));
    assert!(backups.adopt(&vm, &one, at(30)).await.expect("adopt"));
    assert!(!backups.adopt(&vm, &full, at(31)).await.expect("adopt again"));
    assert!(!backups.adopt(&vm, &one, at(31)).await.expect("adopt again"));
    assert_eq!(backups.get(&id("bk-1")).await.expect("get"), full);
    assert_eq!(backups.get(&id("bk-2")).await.expect("get"), one);

    let failed = Backup { status: BackupStatus::Failed, ..full.clone() };
    assert_eq!(backups.adopt(&vm, &failed, at(32)).await.expect_err("no point").kind(), Kind::Invalid);
    let other = known_vm("vm-2", "web2", 1);
    let theirs = Backup { vm_context_id: other.vm_context_id.clone(), ..full.clone() };
    let taken = backups.adopt(&other, &theirs, at(32)).await.expect_err("the id is another machine's");
    assert!(matches!(&taken, Error::Conflict(Conflict::Exists { .. })), "{taken:?}");
    let nowhere = Backup { backup_id: id("bk-3"), repository_id: id("repo-x"), ..full };
    let unknown = backups.adopt(&vm, &nowhere, at(32)).await.expect_err("no repository");
    assert_eq!(unknown.problem_code(), ProblemCode::RepositoryNotFound);
}

pub async fn a_published_point_overrules_a_failed_row(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups) = (&world.vms[0], world.catalog.backups());
    let known = KnownVm { vm_context_id: vm.clone(), ..known_vm("vm-x", "vm0", 2) };
    let new = world.new_backup(vm, BackupType::Full);
    let claim = world.running(&new, at(0)).await;
    let published = point_of(&known, &world.repository_id, new.backup_id.as_str(), None, at(0));
    let busy = backups.adopt(&known, &published, at(1)).await.expect_err("its task is at work");
    assert!(matches!(&busy, Error::Conflict(Conflict::WrongState { .. })), "{busy:?}");
    let problem = Problem::new(ProblemCode::Interrupted, "interrupted", "");
    backups.finish_failed(&claim, &problem, at(2)).await.expect("fail");
    assert!(backups.adopt(&known, &published, at(3)).await.expect("the repository is the truth"));
    assert_eq!(backups.get(&new.backup_id).await.expect("get"), published);
    let chain = backups.chain(vm, DiskNumber(1), None).await.expect("chain");
    assert_eq!(chain.latest_backup_id, new.backup_id);
}

pub async fn adopted_points_form_their_chains(db: TestDb) {
    let catalog = db.open().await;
    let repository = add_repository(&catalog, "repo").await.repository_id;
    let vm = known_vm("vm-1", "web", 1);
    let backups = catalog.backups();
    let latest = async || {
        let newest = backups.newest_completed(&vm.vm_context_id, &repository, DiskNumber(0)).await.expect("newest");
        newest.map(|point| point.backup_id.to_string())
    };
    let adopt = async |backup: &str, parent: Option<&str>, time: i64| {
        let point = point_of(&vm, &repository, backup, parent, at(time));
        assert!(backups.adopt(&vm, &point, at(1_000)).await.expect("adopt"));
    };
    // The younger chain is found first; the older one does not take its place.
    adopt("bk-new-full", None, 100).await;
    adopt("bk-old-full", None, 10).await;
    adopt("bk-old-1", Some("bk-old-full"), 20).await;
    assert_eq!(latest().await.as_deref(), Some("bk-new-full"));
    // A link counts more than a clock that was wrong.
    adopt("bk-new-1", Some("bk-new-full"), 5).await;
    assert_eq!(latest().await.as_deref(), Some("bk-new-1"));
    adopt("bk-newest", None, 200).await;
    assert_eq!(latest().await.as_deref(), Some("bk-newest"));
    backups.delete(&[id("bk-newest")], at(1_001)).await.expect("delete");
    let chain = backups.chain(&vm.vm_context_id, DiskNumber(0), Some(&repository)).await.expect("chain");
    // No link says which of the two that are left is newer, so the time does.
    assert_eq!((chain.full_backup_id.as_str(), chain.latest_backup_id.as_str()), ("bk-old-full", "bk-old-1"));
}

pub async fn a_bound_disk_number_is_not_rebound(db: TestDb) {
    let catalog = db.open().await;
    let repository = add_repository(&catalog, "repo").await.repository_id;
    let vm = known_vm("vm-1", "web", 2);
    let backups = catalog.backups();
    backups.adopt(&vm, &point_of(&vm, &repository, "bk-1", None, at(10)), at(30)).await.expect("adopt");
    let mut other = vm.clone();
    other.disks[1].binding = DiskBinding("another".to_owned());
    let mut swapped = vm.clone();
    swapped.disks[1].disk_id = DiskNumber(7);
    for (number, vm) in [other, swapped].iter().enumerate() {
        let point = point_of(vm, &repository, &format!("bk-x{number}"), None, at(20));
        let refused = backups.adopt(vm, &point, at(31)).await.expect_err("a number was rebound");
        assert!(matches!(&refused, Error::Conflict(Conflict::DiskBound { .. })), "{refused:?}");
    }
    assert_eq!(catalog.vms().get(&vm.vm_context_id).await.expect("get").disks.len(), 2);
}
