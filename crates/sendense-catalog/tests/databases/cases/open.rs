//! Opening, reopening, migrating, and what a database must promise.

use crate::fixture::*;
use crate::support::{TestDb, raw};
use sea_orm::{ConnectionTrait, Statement};
use sendense_catalog::*;
use sendense_types::*;
use std::time::Duration;

const MIGRATIONS: [&str; 20] = [
    "m0001_initial",
    "m0002_counts",
    "m0003_holds",
    "m0004_notes",
    "m0005_tracking_audit",
    "m0006_schedules",
    "m0007_nodes",
    "m0009_verification",
    "m0010_no_task_deadline",
    "m0011_repository_modes",
    "m0015_repository_space",
    "m0016_repository_reports",
    "m0017_node_limits",
    "m0019_vm_tags",
    "m0020_deep_proof",
    "m0021_turns",
    "m0022_generations",
    "m0023_time_to_open",
    "m0024_looks",
    "m0026_unproved_since",
];

async fn migrations(url: &str) -> Vec<String> {
    let raw = raw(url).await;
    let statement =
        Statement::from_string(raw.get_database_backend(), "SELECT version FROM seaql_migrations ORDER BY version");
    let rows = raw.query_all_raw(statement).await.expect("read the migrations");
    raw.close().await.expect("close");
    rows.iter().map(|row| row.try_get("", "version").expect("a version")).collect()
}

pub async fn migrating_twice_is_migrating_once(db: TestDb) {
    let first = db.open().await;
    let repository = add_repository(&first, "repo").await;
    let second = db.open().await;
    assert_eq!(second.repositories().get(&repository.repository_id).await.expect("get"), repository);
    assert_eq!(migrations(db.url()).await, MIGRATIONS);
    second.ping().await.expect("ping");
    let version = second.database_version().await.expect("version");
    assert!(version.contains(|digit: char| digit.is_ascii_digit()), "{version}");
}

pub async fn hubs_that_start_together_migrate_once(db: TestDb) {
    let mut hubs = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let url = db.url().to_owned();
        hubs.spawn(async move {
            let catalog = Catalog::open(&url).await?;
            catalog.hubs().deployment_id(at(0)).await
        });
    }
    let ids = hubs.join_all().await.into_iter().collect::<Result<Vec<_>>>().expect("all open");
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(migrations(db.url()).await, MIGRATIONS);
}

/// A catalog of a release that knew nothing of holds, with what it held.
pub async fn a_catalog_from_before_holds_is_migrated(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let point = world.point(&world.vms[0], None, 2, at(10)).await;
    let before = world.catalog.backups().get(&point).await.expect("get");
    let raw = raw(db.url()).await;
    for statement in [
        "ALTER TABLE backups DROP COLUMN protected",
        "ALTER TABLE backups DROP COLUMN hold_until",
        "DELETE FROM seaql_migrations WHERE version = 'm0003_holds'",
    ] {
        raw.execute_unprepared(statement).await.expect(statement);
    }
    raw.close().await.expect("close");
    let catalog = db.open().await;
    assert_eq!(migrations(db.url()).await, MIGRATIONS);
    let after = catalog.backups().get(&point).await.expect("get");
    assert_eq!((after.protected, after.hold_until), (false, None));
    assert_eq!(after, before);
    catalog.backups().set_hold(&point, true, Some(at(99))).await.expect("hold");
}

/// A catalog of a release whose tasks had a column for a deadline.
pub async fn a_catalog_from_before_tasks_lost_their_deadline_is_migrated(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let claim = world.running(&world.new_backup(&world.vms[0], BackupType::Full), at(10)).await;
    let before = world.catalog.tasks().get(&claim.task_id).await.expect("get");
    let raw = raw(db.url()).await;
    for statement in [
        "ALTER TABLE tasks ADD COLUMN deadline BIGINT",
        "UPDATE tasks SET deadline = 7",
        "DELETE FROM seaql_migrations WHERE version = 'm0010_no_task_deadline'",
    ] {
        raw.execute_unprepared(statement).await.expect(statement);
    }
    let catalog = db.open().await;
    assert_eq!(migrations(db.url()).await, MIGRATIONS);
    assert_eq!(catalog.tasks().get(&claim.task_id).await.expect("get"), before);
    raw.execute_unprepared("SELECT deadline FROM tasks").await.expect_err("the column is gone");
    raw.close().await.expect("close");
}

/// A catalog of a release whose machines had neither folders nor tags.
pub async fn a_catalog_from_before_tags_is_migrated(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let before = world.catalog.vms().get(&world.vms[0]).await.expect("get");
    let raw = raw(db.url()).await;
    for statement in [
        "DROP TABLE vm_tags",
        "ALTER TABLE vm_contexts DROP COLUMN folder",
        "DELETE FROM seaql_migrations WHERE version = 'm0019_vm_tags'",
    ] {
        raw.execute_unprepared(statement).await.expect(statement);
    }
    raw.close().await.expect("close");
    let catalog = db.open().await;
    assert_eq!(migrations(db.url()).await, MIGRATIONS);
    let after = catalog.vms().get(&world.vms[0]).await.expect("get");
    assert_eq!(after, sendense_catalog::VmContext { folder: None, ..before });
    catalog.vms().change_tags(&after.vm_context_id, &[id("prod")].into(), &Default::default()).await.expect("hang");
}

pub async fn what_was_committed_is_there_after_reopening(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let vm = world.vms[0].clone();
    let point = world.point(&vm, None, 2, at(10)).await;
    let claim = world.running(&world.new_backup(&vm, BackupType::Incremental), at(20)).await;
    let before = world.catalog.backups().list(&BackupFilter::default(), Page::default()).await.expect("list");
    // The first pool is left as a killed process leaves it: not closed, nothing told to the database.
    let copy = db.as_a_crash_leaves_it();
    let catalog = copy.as_ref().unwrap_or(&db).open().await;
    let after = catalog.backups().list(&BackupFilter::default(), Page::default()).await.expect("list");
    assert_eq!(after, before);
    assert_eq!(catalog.backups().chain(&vm, DiskNumber(0), None).await.expect("chain").latest_backup_id, point);
    // The next start of the hub finds what was running and says so.
    let hub = catalog.hubs().acquire(&id("hub-1"), at(2_000), at(21)).await.expect("acquire");
    let dead = catalog.tasks().running_tasks_of_dead_hubs(at(21)).await.expect("dead");
    assert_eq!(dead.iter().map(Task::claim).collect::<Vec<_>>(), std::slice::from_ref(&claim));
    let task = catalog.tasks().take_over(&claim, &hub, at(100), at(21)).await.expect("take over");
    let problem = Problem::new(ProblemCode::Interrupted, "interrupted", "the hub ended while the backup ran");
    let failed = catalog.backups().finish_failed(&task.claim(), &problem, at(22)).await.expect("fail");
    assert_eq!((failed.status, failed.error_code), (BackupStatus::Failed, Some(ProblemCode::Interrupted)));
}

pub async fn a_call_that_is_dropped_is_all_or_nothing(db: TestDb) {
    const ROUNDS: u64 = 40;
    let world = World::new(db.open().await, 40).await;
    let mut tried = Vec::new();
    for (round, vm) in (0..ROUNDS).zip(&world.vms) {
        let new = world.new_backup(vm, BackupType::Full);
        let limit = Duration::from_micros(200 * round);
        let finished = tokio::time::timeout(limit, world.catalog.backups().begin(&new, at(10))).await;
        let said_done =
            finished.is_ok_and(|begun| begun.map(drop).map_err(|error| panic!("{limit:?}: {error}")).is_ok());
        // Questions are abandoned too.
        let filter = BackupFilter::default();
        let backups = world.catalog.backups();
        let list = backups.list(&filter, Page::default());
        drop(tokio::time::timeout(Duration::from_micros(50 * round), list).await);
        tried.push((new, said_done));
    }
    // No connection is left within a transaction that nobody ends: all of them serve.
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..24 {
        let catalog = world.catalog.clone();
        let vm = world.vms[number].clone();
        calls.spawn(async move {
            catalog.settings().set(&format!("key {number}"), &number.into(), at(20)).await?;
            let kept = catalog.settings().get(&format!("key {number}")).await?;
            assert_eq!(kept, Some(number.into()), "another one's answer");
            assert_eq!(catalog.vms().get(&vm).await?.vm_context_id, vm, "another one's answer");
            Ok::<_, Error>(())
        });
    }
    calls.join_all().await.into_iter().collect::<Result<Vec<_>>>().expect("all connections serve");
    // Closing waits for what is still at work.
    world.catalog.close().await.expect("close");
    let catalog = db.open().await;
    for (new, said_done) in tried {
        let backup = catalog.backups().get(&new.backup_id).await.is_ok();
        let task = catalog.tasks().get(&new.task_id).await.is_ok();
        assert_eq!(backup, task, "half of a backup");
        assert!(backup || !said_done, "what was said to be done is not there");
    }
}

pub async fn references_hold_on_every_connection(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let new = world.new_backup(&world.vms[0], BackupType::Full);
    let claim = world.running(&new, at(10)).await;
    let mut plan = plan_of(&new.backup_id, None, 1);
    plan.disks[0].disk_id = DiskNumber(9);
    // More at once than the pool has connections, so that each of them is asked.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let (catalog, claim, plan) = (world.catalog.clone(), claim.clone(), plan.clone());
        calls.spawn(async move { catalog.backups().plan(&claim, &plan).await });
    }
    for call in calls.join_all().await {
        let error = call.expect_err("a disk that the machine does not have");
        assert!(matches!(&error, Error::NotFound { what: Noun::Disk, .. }), "{error:?}");
    }
    assert_eq!(world.catalog.backups().get(&new.backup_id).await.expect("get").disks, []);
}

pub async fn a_counter_that_is_wrong_is_right_after_a_start(db: TestDb) {
    let world = World::new(db.open().await, 2).await;
    let parent = world.point(&world.vms[0], None, 1, at(10)).await;
    world.point(&world.vms[0], Some(&parent), 1, at(20)).await;
    world.running(&world.new_backup(&world.vms[1], BackupType::Full), at(30)).await;
    world.catalog.close().await.expect("close");
    db.execute("DELETE FROM backup_counts WHERE status = 'running'").await;
    db.execute("UPDATE backup_counts SET backups = 70").await;
    db.execute("UPDATE task_counts SET tasks = -3").await;
    let catalog = db.open().await;
    let one = Page { limit: 1, offset: 0 };
    for (status, expected) in [(BackupStatus::Pending, 0), (BackupStatus::Running, 1), (BackupStatus::Completed, 2)] {
        let filter = BackupFilter { status: Some(status), ..Default::default() };
        assert_eq!(catalog.backups().list(&filter, one).await.expect("list").1, expected, "{status}");
    }
    assert_eq!(catalog.tasks().list(&TaskFilter::default(), one).await.expect("list").1, 3);
    catalog.backups().delete(&[parent], at(40)).await.expect_err("a point builds on it");
    assert_eq!(catalog.backups().list(&BackupFilter::default(), one).await.expect("list").1, 3);
}
