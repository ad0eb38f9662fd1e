//! What is due when as many merges wait as may: it is begun when they have ended, and not only after the next backup.

use super::house::{House, until};
use crate::jobs::work::{MergeWork, Work};
use sendense_api::{BackupFilter, Role, UpdateRepository};
use sendense_catalog::{NewTask, TaskSubject};
use sendense_types::{BackupStatus, BackupType, RepositoryMode, SourceKind, TaskId};
use serde_json::json;

/// Merges that wait: of a repository that is read-only, until it is in use again. Of machines without points nothing can be merged then.
pub(super) async fn merges_that_wait(house: &House, count: usize) {
    set_mode(house, RepositoryMode::ReadOnly).await;
    let repository_id = house.client.get_repository("two").await.unwrap().repository_id;
    let core = &house.fixture.hub.app().core;
    for number in 0..count {
        let work = Work::Merge(MergeWork {
            vm_context_id: format!("vm-{number}").parse().unwrap(),
            vm_name: format!("other-{number}"),
            repository_id: repository_id.clone(),
            backup_ids: vec!["bk-gone".parse().unwrap()],
            full: None,
            aside: true,
        });
        let task = NewTask {
            task_id: TaskId::generate(),
            kind: work.kind(),
            subject: TaskSubject::Repository(repository_id.clone()),
            request: work.write().unwrap(),
            created_by: None,
        };
        core.catalog.tasks().create(&task, core.now()).await.unwrap();
    }
}

pub(super) async fn set_mode(house: &House, mode: RepositoryMode) {
    let change = UpdateRepository { mode: Some(mode), ..Default::default() };
    house.client.update_repository("two", &change).await.unwrap();
}

/// Backs up what a policy means, until that and what comes after it have ended.
async fn back_up(house: &House, policy: &str, nights: usize) {
    let begun = house.fixture.call("POST", &format!("/api/v1/schedules/{policy}/trigger"), Some(Role::Operator)).await;
    assert!(begun.status.is_success(), "{begun:?}");
    let core = &house.fixture.hub.app().core;
    until("the backup has ended", async || {
        let points = points(house, policy).await;
        let running = core.catalog.executions().running().await.unwrap();
        points.made == nights && running.is_empty() && core.running.count() == 0
    })
    .await;
}

/// The machine's points, newest first.
#[derive(Debug, PartialEq)]
struct Points {
    types: Vec<BackupType>,
    /// Backups that were ever made.
    made: usize,
}

async fn points(house: &House, vm: &str) -> Points {
    let executions = house.fixture.call("GET", &format!("/api/v1/schedules/{vm}/executions"), Some(Role::Viewer)).await;
    let filter =
        BackupFilter { vm_name: Some(vm.to_owned()), status: Some(BackupStatus::Completed), ..BackupFilter::default() };
    let types = house.client.list_backups(&filter).await.unwrap().items.iter().map(|one| one.backup_type).collect();
    Points { types, made: executions.body["executions"].as_array().unwrap().len() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_found_no_place_among_the_merges_is_begun_when_they_have_ended() {
    use BackupType::{Full, Incremental};
    let house = House::new(|config| config.limits.pending_max = 20).await;
    // One keeps a single point, the other's chains end after two.
    house.disk("web", vec![7; 1 << 20]);
    house.disk("db", vec![8; 1 << 20]);
    house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    for (name, more) in [("web", json!({"retention": {"keep_last": 1}})), ("db", json!({"chain_points_max": 2}))] {
        let mut policy = json!({"name": name, "vms": [name], "repository_id": "one"});
        policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let schedule = json!({"name": name, "policy_id": name, "cron": "0 0 1 1 *"});
        for (path, body) in [("policies", policy), ("schedules", schedule)] {
            let answer = house.fixture.json("POST", &format!("/api/v1/{path}"), &body.to_string()).await;
            assert!(answer.status.is_success(), "{path}: {answer:?}");
        }
    }
    for name in ["web", "db"] {
        back_up(&house, name, 1).await;
    }
    back_up(&house, "db", 2).await;

    // Half of the tasks that may wait are as many merges as may.
    merges_that_wait(&house, 10).await;
    back_up(&house, "web", 2).await;
    back_up(&house, "db", 3).await;
    let due = &house.fixture.hub.app().core.merges_due;
    until("both wait", async || due.hindered() == 2).await;
    assert_eq!(points(&house, "web").await, Points { types: vec![Incremental, Full], made: 2 });
    assert_eq!(points(&house, "db").await, Points { types: vec![Incremental, Incremental, Full], made: 3 });
    set_mode(&house, RepositoryMode::Normal).await;
    until("both were done", async || {
        let (web, db) = (points(&house, "web").await, points(&house, "db").await);
        web.types == [Full] && db.types == [Full, Incremental, Full]
    })
    .await;
    assert!(due.is_idle());
    let made = [points(&house, "web").await.made, points(&house, "db").await.made];
    assert_eq!(made, [2, 3], "nothing was backed up for it");
    house.fixture.hub.shutdown().await;
}
