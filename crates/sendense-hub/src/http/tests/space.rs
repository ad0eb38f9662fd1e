//! The room of repositories: what is told of it, and what is refused before it is gone.

use super::PATIENCE;
use super::house::{House, until};
use futures::{Stream, StreamExt as _};
use sendense_api::{
    ClientError, Event, FindingKind, ListQuery, ReconcileQuery, Repository, Role, SpaceAlert, UpdateRepository,
};
use sendense_types::{BackupType, ProblemCode, SourceKind, SpaceState, TaskState};
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;

async fn change(house: &House, change: UpdateRepository) -> Repository {
    house.client.update_repository("two", &change).await.unwrap()
}

/// The next word on the room of the repository.
async fn told(events: &mut (impl Stream<Item = Result<Event, ClientError>> + Unpin)) -> SpaceAlert {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("nothing is told");
        let event = event.unwrap().unwrap();
        if let Event::Space { space } = event
            && space.name == "two"
        {
            return space;
        }
    }
}

fn noise(seed: u64) -> Vec<u8> {
    (0..1_u64 << 17).flat_map(|n| (n ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_that_becomes_scarce_is_told_once_and_a_backup_without_room_is_refused() {
    let house = House::new(|config| config.limits.upkeep_period = Duration::from_millis(50)).await;
    let events = house.client.events().await.unwrap();
    let mut events = std::pin::pin!(events);
    // Whatever the file system of the tests holds, it is more than a hundredth and less than nearly all.
    let asked = UpdateRepository { low_percent: Some(1), critical_percent: Some(100), ..Default::default() };
    assert_eq!(change(&house, asked).await.space.unwrap().state, SpaceState::Low);
    let SpaceAlert { state, message, .. } = told(&mut events).await;
    assert_eq!(state, SpaceState::Low);
    assert!(message.starts_with("repository two: ") && message.contains("bytes may still be written"), "{message}");
    let metrics = house.fixture.call("GET", "/api/v1/metrics", Some(Role::Viewer)).await;
    assert_eq!(metrics.status, 200);

    // All that is free is kept free: refused before a byte is written.
    std::fs::create_dir_all(house.path("web")).unwrap();
    std::fs::write(Path::new(&house.path("web")).join("disk.raw"), noise(0)).unwrap();
    let vm = house.machine("web", SourceKind::Image, house.path("web")).await;
    change(&house, UpdateRepository { floor_bytes: Some(1 << 62), ..Default::default() }).await;
    let refused = house.start(&vm, "two").await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(507), Some(ProblemCode::NoSpace)), "{refused:?}");
    assert_eq!(told(&mut events).await.state, SpaceState::Critical, "nothing was told in between");
    let asked = UpdateRepository { floor_bytes: Some(0), low_percent: Some(100), ..Default::default() };
    assert_eq!(change(&house, asked).await.floor_bytes, None);
    assert_eq!(told(&mut events).await.state, SpaceState::Ok);
    let backup = house.start(&vm, "two").await.unwrap();
    let task = house.client.wait_for_task(&backup.task_id.unwrap(), |_| {}).await.unwrap();
    assert_eq!(task.state, TaskState::Completed, "{task:?}");

    // So is what would pass a limit of the operator's, by whatever a running backup finds out.
    change(&house, UpdateRepository { limit_bytes: Some(MIB + MIB / 2), ..Default::default() }).await;
    std::fs::write(Path::new(&house.path("web")).join("disk.raw"), noise(1)).unwrap();
    let backup = house.start(&vm, "two").await.unwrap();
    let task = house.client.wait_for_task(&backup.task_id.unwrap(), |_| {}).await.unwrap();
    assert_eq!(task.error.map(|error| error.code), Some(ProblemCode::NoSpace));
    assert_eq!(house.left_of(&backup.backup_id), [""; 0]);
    for wrong in [(Some(90), Some(80)), (Some(101), None), (None, Some(0))] {
        let asked = UpdateRepository { low_percent: wrong.0, critical_percent: wrong.1, ..Default::default() };
        let refused = house.client.update_repository("two", &asked).await.unwrap_err();
        assert_eq!(refused.status(), Some(400), "{wrong:?}: {refused:?}");
    }
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_is_kept_and_says_when_a_repository_is_full() {
    let (house, clock) = House::clocked(|config| config.limits.upkeep_period = Duration::from_millis(50)).await;
    // With a limit its own points count, and nothing else that happens to the file system.
    change(&house, UpdateRepository { limit_bytes: Some(512 * MIB), ..Default::default() }).await;
    std::fs::create_dir_all(house.path("web")).unwrap();
    std::fs::write(Path::new(&house.path("web")).join("disk.raw"), noise(0)).unwrap();
    let vm = house.machine("web", SourceKind::Image, house.path("web")).await;
    for day in 0..4 {
        house.back_up(&vm, "two", BackupType::Full).await;
        clock.advance_seconds(if day == 0 { 3600 } else { 86_400 });
        let days = async || {
            let samples = house.client.repository_space("two", &ListQuery::default()).await.unwrap().items;
            samples.last().is_some_and(|last| last.used_bytes > (day + 1) * MIB)
        };
        until("the day is noted", days).await;
    }
    let samples = house.client.repository_space("two", &ListQuery::default()).await.unwrap();
    assert_eq!(samples.total, 4, "{samples:?}");
    let space = house.client.get_repository("two").await.unwrap().space.unwrap();
    let grows = space.bytes_per_day.unwrap();
    assert!((MIB as i64..2 * MIB as i64).contains(&grows), "{space:?}");
    // About 508 of 512 MiB are left, of which each day takes a little more than one.
    assert!(space.full_in_days.is_some_and(|days| (250.0..=508.0).contains(&days)), "{space:?}");
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_looked_through_each_day() {
    let (house, clock) = House::clocked(|config| config.limits.upkeep_period = Duration::from_millis(50)).await;
    let reports = async |made_by: &str| {
        let all = house.client.repository_reports("two", &ListQuery::default()).await.unwrap().items;
        all.into_iter().filter(|report| report.made_by == made_by).collect::<Vec<_>>()
    };
    house.client.reconcile_repository("two", &ReconcileQuery::default()).await.unwrap();
    std::fs::write(Path::new(&house.path("two")).join("notes.txt"), "").unwrap();
    clock.advance_seconds(25 * 3600);
    until("a day has passed", async || reports("daily").await.len() == 1).await;
    let found = reports("daily").await.remove(0).findings;
    assert_eq!(
        found.iter().map(|one| (one.kind, one.subject.as_str())).collect::<Vec<_>>(),
        [(FindingKind::Stranger, "notes.txt")]
    );
    clock.advance_seconds(25 * 3600);
    until("another day has passed", async || reports("daily").await.len() == 2).await;
    house.fixture.hub.shutdown().await;
}
