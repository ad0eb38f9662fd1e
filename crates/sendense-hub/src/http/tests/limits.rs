//! What may run at once, what waits, what is refused; what a person or the clock stops; what is told of it meanwhile.

use super::PATIENCE;
use super::house::{House, Stuck, until};
use futures::StreamExt as _;
use sendense_api::{ClientError, Event, RestoreBackup, RestoreTarget, Role, UpdateSource, VerifyBackup};
use sendense_catalog::Page;
use sendense_types::{BackupStatus, BackupType, ProblemCode, SourceKind, TaskState, Timestamp};
use std::path::Path;
use std::time::{Duration, Instant};

/// A cancellation takes effect within a second on a machine of one's own. What is stuck here would take an hour, so that a
/// busy machine may take its time without hiding a cancellation that does not work.
const SOON: Duration = PATIENCE;

fn refused(error: &ClientError) {
    assert_eq!((error.status(), error.code()), (Some(503), Some(ProblemCode::Busy)), "{error:?}");
    assert!(matches!(error, ClientError::Problem { retry_after_seconds: Some(1..), .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_make_tasks_wait_and_a_full_queue_says_when_to_come_back() {
    let house = House::new(|config| {
        config.limits.running_per_hub = 2;
        config.limits.pending_max = 2;
    })
    .await;
    let stuck = Stuck::start(house.fixture.folder.path(), "s", "pattern", &["64M", "rdelay=3600"]).await;
    let mut vms = Vec::new();
    for number in 0..5 {
        vms.push(house.machine(&format!("slow{number}"), SourceKind::Nbd, stuck.uri.clone()).await);
    }
    let first = house.start(&vms[0], "one").await.unwrap();
    house.until_running(&first.backup_id).await;
    // The repository bears one task: the second waits, and does not hold up those of another repository.
    let second = house.start(&vms[1], "one").await.unwrap();
    let third = house.start(&vms[2], "two").await.unwrap();
    house.until_running(&third.backup_id).await;
    assert_eq!(house.status(&second.backup_id).await, BackupStatus::Pending);
    // The hub bears two.
    let fourth = house.start(&vms[3], "two").await.unwrap();
    let busy = house.start(&vms[1], "two").await.unwrap_err();
    assert_eq!(busy.status(), Some(503), "a queue that is full is told before a machine that is busy: {busy:?}");
    refused(&house.start(&vms[4], "two").await.unwrap_err());
    refused(&house.client.import_repository("two").await.unwrap_err());
    assert_eq!(house.status(&fourth.backup_id).await, BackupStatus::Pending);

    // One that waits is cancelled at once, and its place in the queue is free.
    let cancelled = house.client.cancel_backup(&second.backup_id).await.unwrap();
    assert_eq!(cancelled.status, BackupStatus::Cancelled);
    let fifth = house.start(&vms[4], "two").await.unwrap();
    let again = house.start(&vms[4], "two").await.unwrap_err();
    assert_eq!(again.status(), Some(503), "the queue is full again");
    assert_eq!(house.status(&fifth.backup_id).await, BackupStatus::Pending);

    // One that runs ends soon, leaves nothing behind, and its place goes to the one that has waited longest.
    let (task, took) = house.cancel(third.task_id.as_ref().unwrap()).await;
    println!("a running backup is cancelled in {took:?}");
    assert!(task.state == TaskState::Cancelled && took < SOON, "{task:?} after {took:?}");
    assert_eq!(house.left_of(&third.backup_id), [""; 0]);
    house.until_running(&fourth.backup_id).await;
    assert_eq!(house.status(&fifth.backup_id).await, BackupStatus::Pending);
    let late = house.client.cancel_task(third.task_id.as_ref().unwrap()).await.unwrap_err();
    assert_eq!(late.status(), Some(409), "{late:?}");
    // The machine is free for the next one.
    house.client.cancel_backup(&fifth.backup_id).await.unwrap();
    assert_eq!(house.start(&vms[2], "two").await.unwrap().status, BackupStatus::Pending);
    house.fixture.hub.shutdown().await;
}

/// A server of several exports, each as stuck as the others.
async fn stuck_exports(folder: &Path, socket: &str, names: &[&str]) -> Stuck {
    let exports = folder.join(format!("{socket}-exports"));
    std::fs::create_dir(&exports).unwrap();
    for name in names {
        // No hole, of which nothing would be read.
        std::fs::write(exports.join(name), vec![1; 1 << 20]).unwrap();
    }
    let plugin = format!("dir={}", exports.display());
    Stuck::start(folder, socket, "file", &[&plugin, "rdelay=3600"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_with_a_limit_of_its_own_makes_its_machines_wait_and_no_others() {
    let house = House::new(|config| config.limits.running_per_hub = 4).await;
    let folder = house.fixture.folder.path();
    let (narrow, wide) = (stuck_exports(folder, "n", &["a", "b"]).await, stuck_exports(folder, "w", &["c", "d"]).await);
    let of_narrow = house.machines("narrow", SourceKind::Nbd, narrow.uri.clone(), Some(1)).await;
    let of_wide = house.machines("wide", SourceKind::Nbd, wide.uri.clone(), None).await;
    assert_eq!((of_narrow.len(), of_wide.len()), (2, 2));

    let first = house.start(&of_narrow[0], "two").await.unwrap();
    house.until_running(&first.backup_id).await;
    let second = house.start(&of_narrow[1], "two").await.unwrap();
    // Those of another source pass it by, though they came later.
    for vm in &of_wide {
        let other = house.start(vm, "two").await.unwrap();
        house.until_running(&other.backup_id).await;
    }
    assert_eq!(house.status(&second.backup_id).await, BackupStatus::Pending);

    // Its place is free when the first has ended.
    house.cancel(first.task_id.as_ref().unwrap()).await;
    house.until_running(&second.backup_id).await;
    // A limit that is raised counts for those that wait already.
    let third = house.start(&of_narrow[0], "two").await.unwrap();
    assert_eq!(third.status, BackupStatus::Pending);
    let change = UpdateSource { running_tasks_max: Some(2), ..UpdateSource::default() };
    assert_eq!(house.client.update_source("narrow", &change).await.unwrap().running_tasks_max, Some(2));
    house.until_running(&third.backup_id).await;
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_how_far_a_task_is_and_every_state_it_goes_through() {
    let house = House::new(|_| ()).await;
    let folder = house.fixture.folder.path();
    // It answers slowly enough that progress is seen, and one request at a time.
    let slow = Stuck::start(folder, "s", "pattern", &["64M", "rdelay=50ms"]).await;
    let vm = house.machine("slow", SourceKind::Nbd, slow.uri.clone()).await;
    let mut events = house.client.events().await.unwrap();
    let backup = house.start(&vm, "two").await.unwrap();
    let task_id = backup.task_id.clone().unwrap();

    let (mut states, mut done, mut statuses) = (Vec::new(), Vec::new(), Vec::new());
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            match events.next().await.expect("the stream goes on").unwrap() {
                Event::Task { task } if task.task_id == task_id => {
                    if states.last() != Some(&task.state) {
                        states.push(task.state);
                    }
                    if task.state == TaskState::Running && task.bytes_done > 0 {
                        done.push((task.bytes_done, task.progress_percent));
                    }
                    // Seen moving twice, it has been seen enough.
                    if done.len() == 2 {
                        house.client.cancel_task(&task_id).await.unwrap();
                    }
                }
                Event::Backup { backup: told }
                    if told.backup_id == backup.backup_id && statuses.last() != Some(&told.status) =>
                {
                    statuses.push(told.status);
                }
                _ => {}
            }
            let ended = |state: &TaskState| !matches!(state, TaskState::Pending | TaskState::Running);
            if states.last().is_some_and(ended) && statuses.last() == Some(&BackupStatus::Cancelled) {
                break;
            }
        }
    });
    told.await.unwrap_or_else(|_| panic!("told no more than {states:?}, {statuses:?}, {done:?}"));
    assert_eq!(states.last(), Some(&TaskState::Cancelled), "{states:?}");
    assert!(states.contains(&TaskState::Running), "{states:?}");
    assert!(statuses.contains(&BackupStatus::Running), "{statuses:?}");
    let total = 64.0 * 1024.0 * 1024.0;
    assert!(done.is_sorted() && done[0].0 < done[1].0, "it goes on: {done:?}");
    assert!(done.iter().all(|(bytes, percent)| (percent - *bytes as f64 * 100.0 / total).abs() < 1.0), "{done:?}");
    drop(events);
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_and_a_verification_that_run_are_cancelled() {
    let house = House::new(|_| ()).await;
    // Noise, so that verifying takes a moment.
    let mut state = 7_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u8
    });
    std::fs::create_dir(house.path("images")).unwrap();
    std::fs::write(house.path("images/web.raw"), noise.take(48 << 20).collect::<Vec<u8>>()).unwrap();
    let vm = house.machine("images", SourceKind::Image, house.path("images")).await;
    let backup = house.start(&vm, "two").await.unwrap();
    let task = house.client.wait_for_task(backup.task_id.as_ref().unwrap(), |_| {}).await.unwrap();
    assert_eq!((task.state, task.error), (TaskState::Completed, None));

    let stuck = Stuck::start(house.fixture.folder.path(), "s", "memory", &["64M", "wdelay=3600"]).await;
    let request =
        RestoreBackup { target: RestoreTarget::Nbd { uri: stuck.uri.clone() }, disk_id: None, allow_damaged: false };
    let restore = house.client.restore_backup(&backup.backup_id, &request).await.unwrap();
    let is_at_work = async || {
        let task = house.client.get_task(&restore.task_id).await.unwrap();
        task.state == TaskState::Running && task.bytes_total.is_some()
    };
    until("the restore writes", is_at_work).await;
    let (task, took) = house.cancel(&restore.task_id).await;
    println!("a running restore is cancelled in {took:?}");
    assert!(task.state == TaskState::Cancelled && took < SOON, "{task:?} after {took:?}");

    // A file system cannot be made to stand still, so a fast machine may be done before the cancellation comes.
    let mut cancelled = false;
    for _ in 0..20 {
        let verify = house
            .client
            .verify_backup(&backup.backup_id, &VerifyBackup { deep: true, own_files_only: false })
            .await
            .unwrap();
        let running = async || house.client.get_task(&verify.task_id).await.unwrap().state != TaskState::Pending;
        until("the verification begins", running).await;
        let begun = Instant::now();
        match house.client.cancel_task(&verify.task_id).await {
            Ok(_) => {
                let task = house.client.wait_for_task(&verify.task_id, |_| {}).await.unwrap();
                println!("a running verification is cancelled in {:?}", begun.elapsed());
                assert!(begun.elapsed() < SOON, "{task:?}");
                if task.state == TaskState::Cancelled {
                    cancelled = true;
                    break;
                }
                assert_eq!(task.state, TaskState::Completed, "{task:?}");
            }
            Err(error) => assert_eq!(error.status(), Some(409), "{error:?}"),
        }
    }
    assert!(cancelled, "no verification was ever cancelled");
    house.fixture.hub.shutdown().await;
}

/// What a policy says holds for what its schedules begin, and nobody tries it again by himself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_says_how_long_its_backups_may_take() {
    let (house, clock) = House::clocked(|_| ()).await;
    let stuck = Stuck::start(house.fixture.folder.path(), "s", "pattern", &["64M", "rdelay=3600"]).await;
    let vm = house.machine("slow", SourceKind::Nbd, stuck.uri.clone()).await;
    let app = house.fixture.hub.app();
    let rules = serde_json::json!({ "name": "short", "vms": ["*"], "repository_id": "two", "time_limit_seconds": 600 });
    house.post("policies", rules).await;
    house.post("schedules", serde_json::json!({ "name": "short", "policy_id": "short", "cron": "0 3 1 1 *" })).await;
    house.post("schedules/short/trigger", serde_json::json!({})).await;
    let page = Page { limit: 10, offset: 0 };
    let begun = async || app.core.catalog.backups().list(&Default::default(), page).await.unwrap().0;
    until("the schedule begins its backup", async || !begun().await.is_empty()).await;
    let backup = begun().await.remove(0);
    assert_eq!(backup.vm_context_id.as_str(), vm);
    house.until_running(&backup.backup_id).await;
    clock.advance_seconds(590);
    assert_eq!(house.status(&backup.backup_id).await, BackupStatus::Running);
    clock.advance_seconds(30);
    let failed = async || house.status(&backup.backup_id).await == BackupStatus::Failed;
    until("its time is over", failed).await;
    let ended = house.client.get_backup(&backup.backup_id).await.unwrap();
    assert_eq!(ended.error_code, Some(ProblemCode::DeadlineExceeded));
    let executions = async || house.fixture.call("GET", "/api/v1/schedules/short/executions", Some(Role::Viewer)).await;
    until("the execution has ended", async || executions().await.body["executions"][0]["state"] == "failed").await;
    assert_eq!(begun().await.len(), 1, "only a person knows whether it is worth another try");
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_nothing_for_four_hours_is_ended() {
    let (house, clock) = House::clocked(|_| ()).await;
    let stuck = Stuck::start(house.fixture.folder.path(), "s", "pattern", &["64M", "rdelay=3600"]).await;
    let vm = house.machine("slow", SourceKind::Nbd, stuck.uri.clone()).await;
    let backup = house.start(&vm, "two").await.unwrap();
    house.until_running(&backup.backup_id).await;
    let task_id = backup.task_id.clone().unwrap();

    clock.advance_seconds(4 * 3600 - 60);
    // Its next report renews the lease from the new time, so that it has been looked at.
    let row = async || house.fixture.hub.app().core.catalog.tasks().get(&task_id).await.unwrap();
    let reported =
        async || row().await.lease_until.is_some_and(|until| until > Timestamp::from_micros(1_800_014_000_000_000));
    until("the task has reported since", reported).await;
    assert_eq!(house.status(&backup.backup_id).await, BackupStatus::Running);

    clock.advance_seconds(120);
    let task = house.client.wait_for_task(&task_id, |_| {}).await.unwrap();
    assert_eq!(task.state, TaskState::Failed);
    assert_eq!(task.error.as_ref().map(|error| error.code), Some(ProblemCode::DeadlineExceeded), "{task:?}");
    let ended = house.client.get_backup(&backup.backup_id).await.unwrap();
    assert_eq!((ended.status, ended.error_code), (BackupStatus::Failed, Some(ProblemCode::DeadlineExceeded)));
    assert_eq!(house.left_of(&backup.backup_id), [""; 0]);
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_than_it_may_is_ended() {
    let (house, clock) = House::clocked(|_| ()).await;
    let stuck = Stuck::start(house.fixture.folder.path(), "s", "pattern", &["64M", "rdelay=3600"]).await;
    let vm = house.machine("slow", SourceKind::Nbd, stuck.uri.clone()).await;
    for wrong in [0, u32::MAX] {
        let refused = house.start_as(&vm, "two", BackupType::Full, Some(wrong)).await.unwrap_err();
        assert_eq!(refused.status(), Some(400), "{refused:?}");
    }
    let backup = house.start_as(&vm, "two", BackupType::Full, Some(600)).await.unwrap();
    house.until_running(&backup.backup_id).await;
    clock.advance_seconds(601);
    let task = house.client.wait_for_task(&backup.task_id.clone().unwrap(), |_| {}).await.unwrap();
    let error = task.error.as_ref().expect("it failed");
    assert_eq!(error.code, ProblemCode::DeadlineExceeded, "{task:?}");
    assert!(error.message.starts_with("it took longer than it may"), "{task:?}");
    assert_eq!(house.left_of(&backup.backup_id), [""; 0]);
    house.fixture.hub.shutdown().await;
}
