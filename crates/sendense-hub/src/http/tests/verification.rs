//! Verification by a clock that is set: what nobody has looked at for a month is looked at, and nothing has to wait for it.

use super::house::{House, until};
use sendense_api::{DeleteQuery, ListQuery, TaskFilter};
use sendense_types::{BackupStatus, ManualClock, SourceKind, TaskKind, Timestamp, VerifyDepth, VerifyState};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const DAY: i64 = 86_400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_looked_at_for_a_month_is_verified_oldest_first() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
    let given = clock.clone();
    let house = House::new(move |config| {
        config.clock = given;
        config.limits.verify_deep = true;
    })
    .await;
    let folder = house.fixture.folder.path().join("vms/web");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("disk0.raw"), vec![7; 1 << 20]).unwrap();
    let vm = house.machine("images", SourceKind::Image, house.path("vms")).await;
    let back_up = async || {
        let backup = house.start(&vm, "one").await.unwrap();
        house.client.wait_for_task(&backup.task_id.unwrap(), |_| {}).await.unwrap();
        backup.backup_id
    };
    let first = back_up().await;
    clock.advance_seconds(5 * DAY);
    let second = back_up().await;
    let stands = async |id| house.client.get_backup(id).await.unwrap();
    clock.advance_seconds(26 * DAY);
    until("the first is verified", async || stands(&first).await.verify_state.is_some()).await;
    let found = stands(&first).await;
    assert_eq!((found.verify_state, found.verify_depth), (Some(VerifyState::Sound), Some(VerifyDepth::Deep)));
    assert!(found.verify_speed_bps.is_some_and(|speed| speed > 0), "{found:?}");
    let tasks = async || {
        let filter = TaskFilter { kind: Some(TaskKind::Verify), ..TaskFilter::default() };
        house.client.list_tasks(&filter).await.unwrap().items
    };
    assert_eq!(stands(&second).await.verify_state, None, "its month is not over");
    let made = tasks().await;
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(made[0].requested_by.as_deref(), Some("verification"));

    // A bit of the second rots before it is looked at: it is marked, and whoever looks at the log of its task sees where.
    let image = house.path(&format!("one/{vm}/disk-0/{second}.qcow2"));
    let file = std::fs::File::options().write(true).open(image).unwrap();
    file.write_all_at(&[1], file.metadata().unwrap().len() - 1).unwrap();
    clock.advance_seconds(6 * DAY);
    until("the second is verified", async || stands(&second).await.verify_state.is_some()).await;
    let found = stands(&second).await;
    assert_eq!(found.verify_state, Some(VerifyState::Corrupt), "{found:?}");
    assert!(found.verify_finding.is_some_and(|finding| !finding.is_empty()));
    let made = tasks().await;
    let task = house.client.wait_for_task(&made[0].task_id, |_| {}).await.unwrap();
    assert!(task.error.is_some_and(|error| error.message.contains("is damaged")), "{made:?}");
    let log = house.client.task_log(&made[0].task_id, &ListQuery::default()).await.unwrap();
    assert!(log.items.iter().any(|line| line.message.contains(&format!("{second}.qcow2"))), "{:?}", log.items);
    assert_eq!(stands(&first).await.verify_state, Some(VerifyState::Sound));
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_nobody_asked_for_makes_way() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
    let given = clock.clone();
    let house = House::new(move |config| {
        config.clock = given;
        config.limits.running_per_hub = 1;
        // A mebibyte of noise takes a quarter of an hour.
        config.limits.verify_bytes_per_second = 1 << 10;
    })
    .await;
    let folder = house.fixture.folder.path().join("vms/web");
    std::fs::create_dir_all(&folder).unwrap();
    let noise = (0..1_u64 << 17).flat_map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    std::fs::write(folder.join("disk0.raw"), noise.collect::<Vec<_>>()).unwrap();
    let vm = house.machine("images", SourceKind::Image, house.path("vms")).await;
    let back_up = async || {
        let backup = house.start(&vm, "one").await.unwrap();
        let task = house.client.wait_for_task(&backup.task_id.unwrap(), |_| {}).await.unwrap();
        assert!(task.error.is_none(), "{task:?}");
        backup.backup_id
    };
    let first = back_up().await;
    clock.advance_seconds(31 * DAY);
    let running = &house.fixture.hub.app().core.running;
    until("it is looked at", async || running.is_at_work_aside()).await;
    // The one place of the hub and of the repository is free for a backup.
    let second = back_up().await;
    assert!(running.is_at_work_aside(), "it goes on beside it");
    let deleted = house.client.delete_backup(&first, &DeleteQuery::default()).await.unwrap();
    assert_eq!(deleted.backups.len(), 1);
    assert!(house.client.get_backup(&first).await.is_err());
    assert_eq!(house.status(&second).await, BackupStatus::Completed);
    house.fixture.hub.shutdown().await;
}
