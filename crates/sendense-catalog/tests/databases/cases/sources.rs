//! Sources and repositories.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;
use serde_json::json;

pub async fn names_are_unique_and_exact(db: TestDb) {
    let catalog = db.open().await;
    let source = add_source(&catalog, "kvm").await;
    add_source(&catalog, "KVM").await;
    add_source(&catalog, "kvm ").await;
    assert_eq!(catalog.sources().find("kvm").await.expect("find"), source);
    assert_eq!(catalog.sources().find(source.source_id.as_str()).await.expect("find"), source);
    let again = NewSource {
        source_id: SourceId::generate(),
        name: name("kvm"),
        kind: SourceKind::Image,
        config: json!({}),
        secret: None,
    };
    let taken = catalog.sources().create(&again, at(1)).await.expect_err("taken");
    assert!(matches!(&taken, Error::Conflict(Conflict::NameTaken { what: Noun::Source, .. })), "{taken:?}");
    let free = NewSource { source_id: source.source_id.clone(), name: name("free"), ..again };
    let taken = catalog.sources().create(&free, at(1)).await.expect_err("taken");
    assert!(matches!(&taken, Error::Conflict(Conflict::Exists { .. })), "{taken:?}");

    let change = SourceChange { name: Some(name("KVM")), ..Default::default() };
    let taken = catalog.sources().update(&source.source_id, &change).await.expect_err("taken");
    assert!(matches!(&taken, Error::Conflict(Conflict::NameTaken { .. })), "{taken:?}");
    let change = SourceChange { name: Some(name("qemu")), secret: Some(None), config: None };
    let changed = catalog.sources().update(&source.source_id, &change).await.expect("update");
    assert_eq!(changed, Source { name: name("qemu"), secret: None, ..source.clone() });
    assert_eq!(catalog.sources().get(&source.source_id).await.expect("get"), changed);

    catalog.sources().note_failed_discovery(&source.source_id, "no route\0to host").await.expect("note");
    let noted = catalog.sources().get(&source.source_id).await.expect("get").last_error;
    assert_eq!(noted.as_deref(), Some("no route\u{fffd}to host"));
    let (listed, total) = catalog.sources().list(Page { limit: 2, offset: 1 }).await.expect("list");
    assert_eq!((listed.len(), total), (2, 3));
}

pub async fn a_source_goes_and_its_points_stay(db: TestDb) {
    let world = World::new(db.open().await, 3).await;
    let (sources, vms) = (world.catalog.sources(), world.catalog.vms());
    let point = world.point(&world.vms[0], None, 1, at(10)).await;
    let claim = world.running(&world.new_backup(&world.vms[1], BackupType::Full), at(20)).await;
    let busy = sources.delete(&world.source_id).await.expect_err("a backup runs");
    assert_eq!(busy.problem_code(), ProblemCode::BackupRunning);
    world.catalog.backups().finish_cancelled(&claim, at(21)).await.expect("cancel");

    assert_eq!(sources.delete(&world.source_id).await.expect("delete"), 2);
    let kept = vms.get(&world.vms[0]).await.expect("the machine with a point stays");
    assert_eq!((kept.source_id, kept.disks.len()), (None, 2));
    assert_eq!(vms.get(&world.vms[2]).await.expect_err("no backup, no machine").kind(), Kind::NotFound);
    assert_eq!(world.catalog.backups().get(&point).await.expect("get").status, BackupStatus::Completed);

    let again = add_source(&world.catalog, "kvm").await;
    let told: Vec<_> = (0..3).map(|number| machine(&format!("vm{number}"), 2)).collect();
    let found = vms.upsert_discovered(&again.source_id, &told, at(30)).await.expect("discover");
    assert_eq!((found.bound, found.added, found.vanished), (2, 1, 0));
    assert_eq!(found.vm_context_ids[..2], world.vms[..2]);
}

pub async fn a_repository_in_use_stays(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let repositories = world.catalog.repositories();
    let point = world.point(&world.vms[0], None, 1, at(10)).await;
    let in_use = repositories.delete(&world.repository_id).await.expect_err("in use");
    assert!(matches!(&in_use, Error::Conflict(Conflict::InUse { .. })), "{in_use:?}");
    world.catalog.backups().delete(&[point], at(20)).await.expect("delete the point");
    repositories.delete(&world.repository_id).await.expect("delete");
    assert_eq!(repositories.get(&world.repository_id).await.expect_err("gone").kind(), Kind::NotFound);
    let new = world.new_backup(&world.vms[0], BackupType::Full);
    let unknown = world.catalog.backups().begin(&new, at(30)).await.expect_err("no repository");
    assert_eq!(unknown.problem_code(), ProblemCode::RepositoryNotFound);

    let one = add_repository(&world.catalog, "one").await;
    let two = add_repository(&world.catalog, "two").await;
    let change = RepositoryChange { settings: Some(json!({"compression": "off"})), ..Default::default() };
    let changed = repositories.update(&one.repository_id, &change).await.expect("update");
    assert_eq!(changed.settings, json!({"compression": "off"}));
    // A mode is kept, another change leaves it, and who sets it learns what was before.
    let away = Maintenance {
        mode: RepositoryMode::ReadOnly,
        reason: Some("the shelf moves".to_owned()),
        since: Some(at(40)),
        by: Some("anna".to_owned()),
    };
    assert_eq!(changed.maintenance, Maintenance::NONE);
    assert_eq!(repositories.set_maintenance(&one.repository_id, &away).await.expect("set"), Maintenance::NONE);
    let changed = repositories.update(&one.repository_id, &change).await.expect("update");
    assert_eq!(changed.maintenance, away);
    assert_eq!(repositories.get(&one.repository_id).await.expect("get"), changed);
    let back = Maintenance { since: Some(at(50)), ..Maintenance::NONE };
    assert_eq!(repositories.set_maintenance(&one.repository_id, &back).await.expect("set"), away);
    let changed = repositories.get(&one.repository_id).await.expect("get");
    assert_eq!(changed.maintenance, back);
    let unknown = repositories.set_maintenance(&id("repo-none"), &back).await.expect_err("no such repository");
    assert_eq!(unknown.kind(), Kind::NotFound);

    let change = RepositoryChange { name: Some(two.name.clone()), ..Default::default() };
    assert_eq!(repositories.update(&one.repository_id, &change).await.expect_err("taken").kind(), Kind::Conflict);
    assert_eq!(repositories.find("two").await.expect("find"), two);
    let (listed, total) = repositories.list(Page::default()).await.expect("list");
    assert_eq!((listed, total), (vec![changed, two], 2));
}
