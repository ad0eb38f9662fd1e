//! Tasks: claims, fencing, logs.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;
use serde_json::json;
use std::collections::BTreeMap;

fn new_task(number: i64) -> NewTask {
    NewTask {
        task_id: id(&format!("task-{number:04}")),
        kind: TaskKind::Verify,
        subject: TaskSubject::None,
        request: json!({"number": number}),
        created_by: None,
    }
}

pub async fn two_hundred_tasks_are_claimed_once_each(db: TestDb) {
    const TASKS: i64 = 200;
    let catalog = db.open().await;
    for number in 0..TASKS {
        catalog.tasks().create(&new_task(number), at(number)).await.expect("create");
    }
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let catalog = catalog.clone();
        workers.spawn(async move {
            let hub = catalog.hubs().acquire(&id(&format!("hub-{worker}")), at(9_000), at(0)).await?;
            let mut won = Vec::new();
            loop {
                // All look at the same few, so that they collide.
                let waiting = catalog.tasks().pending(10).await?;
                if waiting.is_empty() {
                    return Ok::<_, Error>(won);
                }
                for task in waiting {
                    match catalog.tasks().claim(&task.claim(), &hub, at(9_000), at(1)).await {
                        Ok(task) => won.push(task.task_id),
                        Err(Error::Conflict(Conflict::LeaseLost { .. })) => {}
                        Err(other) => return Err(other),
                    }
                }
            }
        });
    }
    let mut claimed = Vec::new();
    for won in workers.join_all().await {
        claimed.extend(won.expect("no worker fails"));
    }
    claimed.sort_unstable();
    assert_eq!(claimed, (0..TASKS).map(|number| new_task(number).task_id).collect::<Vec<_>>());
    let running = TaskFilter { state: Some(TaskState::Running), ..Default::default() };
    let (rows, total) = catalog.tasks().list(&running, Page { limit: 1000, offset: 0 }).await.expect("list");
    assert_eq!(total, 200);
    assert!(rows.iter().all(|task| (task.attempts, task.version) == (1, 2)));
}

pub async fn a_late_holder_is_fenced_off(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (tasks, backups) = (world.catalog.tasks(), world.catalog.backups());
    let new = world.new_backup(&world.vms[0], BackupType::Full);
    let old = world.running(&new, at(0)).await;
    let other = world.catalog.hubs().acquire(&id("hub-2"), at(9_000), at(0)).await.expect("acquire");

    let early = tasks.take_over(&old, &other, at(200), at(60)).await.expect_err("the holder lives until 60");
    assert!(matches!(&early, Error::Conflict(Conflict::LeaseHeld { .. })), "{early:?}");
    let taken = tasks.take_over(&old, &other, at(200), at(61)).await.expect("its lease has run out");
    assert_eq!((taken.attempts, taken.hub_id.as_ref()), (2, Some(&other.hub_id)));
    assert_eq!(taken.started_at, Some(at(0)));

    // The former holder wakes up: nothing of what it says counts.
    let beat = Heartbeat { lease_until: at(999), progress: None, bytes_done: 9, bytes_total: 9 };
    let progress = Progress {
        phase: Phase::Finalizing,
        bytes_done: 9,
        total_bytes: 9,
        bytes_transferred: 9,
        bytes_stored: 9,
        disks: Vec::new(),
        lease_until: at(999),
        details: None,
    };
    let problem = Problem::new(ProblemCode::Internal, "late", "");
    let refusals = [
        tasks.heartbeat(&old, &beat).await.map(drop),
        backups.progress(&old, &progress).await.map(drop),
        backups.plan(&old, &plan_of(&new.backup_id, None, 1)).await.map(drop),
        backups.finish_completed(&old, &completed(&new.backup_id, None, 1), at(62)).await.map(drop),
        backups.finish_failed(&old, &problem, at(62)).await.map(drop),
        tasks.finish_failed(&old, &problem, at(62)).await.map(drop),
        tasks.take_over(&old, &world.hub, at(999), at(500)).await.map(drop),
    ];
    for refusal in refusals {
        let error = refusal.expect_err("a former holder was heard");
        assert!(matches!(&error, Error::Conflict(Conflict::LeaseLost { .. })), "{error:?}");
    }
    assert_eq!(tasks.get(&new.task_id).await.expect("get"), taken);
    assert_eq!(backups.get(&new.backup_id).await.expect("get").bytes_done, 0);
    backups.progress(&taken.claim(), &progress).await.expect("the new holder is heard");
    assert_eq!(tasks.get(&new.task_id).await.expect("get").lease_until, Some(at(999)));
}

pub async fn tasks_of_dead_hubs_are_found(db: TestDb) {
    let catalog = db.open().await;
    let tasks = catalog.tasks();
    let mut claims = BTreeMap::new();
    for (number, hub, lease) in [(0, "hub-1", 60), (1, "hub-1", 600), (2, "hub-2", 600), (3, "hub-2", 60)] {
        let lease_of_hub = match catalog.hubs().list().await.expect("list").iter().find(|known| known.hub_id == id(hub))
        {
            Some(known) => HubLease { hub_id: known.hub_id.clone(), epoch: known.epoch },
            None => catalog.hubs().acquire(&id(hub), at(9_000), at(0)).await.expect("acquire"),
        };
        let task = tasks.create(&new_task(number), at(number)).await.expect("create");
        let task = tasks.claim(&task.claim(), &lease_of_hub, at(lease), at(10)).await.expect("claim");
        claims.insert(number, task.claim());
    }
    tasks.create(&new_task(9), at(9)).await.expect("create one that waits");
    let dead = async |now| {
        let found = tasks.running_tasks_of_dead_hubs(at(now)).await.expect("dead");
        found.iter().map(|task| task.request["number"].as_i64().expect("a number")).collect::<Vec<_>>()
    };
    assert_eq!(dead(60).await, Vec::<i64>::new());
    assert_eq!(dead(61).await, [0, 3]);
    // hub-2 was killed and starts again: all it held is orphaned at once.
    catalog.hubs().acquire(&id("hub-2"), at(9_000), at(20)).await.expect("acquire");
    assert_eq!(dead(21).await, [2, 3]);
    tasks.finish_completed(&claims[&3], Some(&json!({"ok": true})), at(22)).await.expect("finish");
    assert_eq!(dead(21).await, [2]);
}

pub async fn a_cancel_reaches_the_holder(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (tasks, backups) = (world.catalog.tasks(), world.catalog.backups());
    let new = world.new_backup(&world.vms[0], BackupType::Full);
    let claim = world.running(&new, at(0)).await;
    let beat = Heartbeat { lease_until: at(70), progress: Some(json!({"p": 1})), bytes_done: 1, bytes_total: 2 };
    assert!(!tasks.heartbeat(&claim, &beat).await.expect("heartbeat"));
    assert!(tasks.request_cancel(&new.task_id).await.expect("cancel").cancel_requested);
    tasks.request_cancel(&new.task_id).await.expect("cancel again");
    let later = Heartbeat { progress: None, ..beat };
    assert!(tasks.heartbeat(&claim, &later).await.expect("heartbeat"));
    assert_eq!(tasks.get(&new.task_id).await.expect("get").progress, Some(json!({"p": 1})));
    let cancelled = backups.finish_cancelled(&claim, at(5)).await.expect("cancel");
    assert_eq!((cancelled.status, cancelled.completed_at), (BackupStatus::Cancelled, Some(at(5))));
    assert_eq!(tasks.get(&new.task_id).await.expect("get").state, TaskState::Cancelled);
    let late = tasks.request_cancel(&new.task_id).await.expect_err("it has ended");
    assert!(matches!(&late, Error::Conflict(Conflict::WrongState { .. })), "{late:?}");
    assert_eq!(
        tasks.request_cancel(&id("task-x")).await.expect_err("unknown").problem_code(),
        ProblemCode::TaskNotFound
    );
}

pub async fn logs_are_bounded_and_lose_nothing(db: TestDb) {
    let catalog = db.open().await;
    let tasks = catalog.tasks();
    let task = tasks.create(&new_task(0), at(0)).await.expect("create").task_id;
    let line =
        |text: String| NewLogLine { at: at(1), level: LogLevel::Warning, message: text, fields: json!({"disk_id": 0}) };
    // Eight writers count on one row: a lost update would give two lines one number.
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (catalog, task) = (catalog.clone(), task.clone());
        let lines: Vec<_> = (0..10).map(|number| line(format!("{writer}-{number}"))).collect();
        writers.spawn(async move {
            for line in lines {
                catalog.tasks().append_log(&task, &[line]).await?;
            }
            Ok::<_, Error>(())
        });
    }
    writers.join_all().await.into_iter().collect::<Result<Vec<_>>>().expect("all write");
    let log = tasks.log(&task, 0, 1000).await.expect("log");
    assert_eq!(log.iter().map(|line| line.seq).collect::<Vec<_>>(), (0..80).collect::<Vec<u64>>());
    let mut texts: Vec<&str> = log.iter().map(|line| line.message.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), 80);

    let many: Vec<_> = (0..2_500).map(|number| line(format!("line {number}"))).collect();
    tasks.append_log(&task, &many).await.expect("append");
    let log = tasks.log(&task, 0, 5_000).await.expect("log");
    assert_eq!((log.len(), log[0].seq, log[999].seq), (1000, 1580, 2579));
    assert_eq!(tasks.get(&task).await.expect("get").log_lines, 2580);
    assert_eq!((log[999].message.as_str(), log[999].level), ("line 2499", LogLevel::Warning));
    assert_eq!(tasks.log(&task, 2_578, 10).await.expect("log").len(), 2);
    tasks.append_log(&task, &[line("x".repeat(100_000))]).await.expect("append");
    let last = tasks.log(&task, 2_580, 10).await.expect("log").pop().expect("a line");
    assert_eq!(last.message.len(), 4000);
    let unknown = tasks.append_log(&id("task-x"), &many[..1]).await.expect_err("no task");
    assert_eq!(unknown.problem_code(), ProblemCode::TaskNotFound);
}

pub async fn tasks_are_listed(db: TestDb) {
    let catalog = db.open().await;
    let tasks = catalog.tasks();
    let repository: RepositoryId = id("repo-1");
    for number in 0..30 {
        let kind = if number % 3 == 0 { TaskKind::Import } else { TaskKind::Discover };
        let subject = match number % 2 {
            0 => TaskSubject::Repository(repository.clone()),
            _ => TaskSubject::Source(id("src-1")),
        };
        tasks.create(&NewTask { kind, subject, ..new_task(number) }, at(number / 2)).await.expect("create");
    }
    let numbers =
        |rows: &[Task]| rows.iter().map(|task| task.request["number"].as_i64().expect("n")).collect::<Vec<_>>();
    let (page, total) = tasks.list(&TaskFilter::default(), Page { limit: 4, offset: 3 }).await.expect("list");
    assert_eq!((numbers(&page), total), (vec![26, 25, 24, 23], 30));
    let filter = TaskFilter {
        kind: Some(TaskKind::Import),
        state: Some(TaskState::Pending),
        subject_id: Some(repository.to_string()),
        vm_context_id: None,
    };
    let (page, total) = tasks.list(&filter, Page::default()).await.expect("list");
    assert_eq!((numbers(&page), total), (vec![24, 18, 12, 6, 0], 5));
    assert!(page.iter().all(|task| task.subject == TaskSubject::Repository(repository.clone())));
    let known = tasks.create(&new_task(3), at(99)).await.expect_err("the id is known");
    assert!(matches!(&known, Error::Conflict(Conflict::Exists { what: Noun::Task, .. })), "{known:?}");
}

pub async fn old_tasks_are_forgotten(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (tasks, backups) = (world.catalog.tasks(), world.catalog.backups());
    let vm = &world.vms[0];
    // A point, an attempt that failed, and one that failed last.
    let point = world.point(vm, None, 1, at(100)).await;
    let mut failed = Vec::new();
    for when in [200, 300] {
        let new = world.new_backup(vm, BackupType::Incremental);
        let claim = world.running(&new, at(when)).await;
        let problem = Problem::new(ProblemCode::SourceFailed, "it does not answer", "");
        backups.finish_failed(&claim, &problem, at(when + 1)).await.expect("fail");
        failed.push((new.backup_id, claim.task_id));
    }
    // A verification of the point that has ended, and one that runs.
    let mut verifications = Vec::new();
    for _ in 0..2 {
        let new = NewTask {
            task_id: TaskId::generate(),
            kind: TaskKind::Verify,
            subject: TaskSubject::Backup(point.clone()),
            request: serde_json::json!({}),
            created_by: None,
        };
        let task = tasks.create(&new, at(400)).await.expect("create");
        verifications.push(tasks.claim(&task.claim(), &world.hub, at(9_000), at(400)).await.expect("claim"));
    }
    let line =
        NewLogLine { at: at(400), level: LogLevel::Info, message: "x".to_owned(), fields: serde_json::json!({}) };
    tasks.append_log(&verifications[0].task_id, &[line]).await.expect("log");
    tasks.finish_completed(&verifications[0].claim(), None, at(401)).await.expect("finish");

    assert_eq!(backups.old_failures(at(201), 9).await.expect("look"), [], "it ended in that very moment");
    let old = backups.old_failures(at(9_000), 9).await.expect("look");
    assert_eq!(old, [failed[0].0.clone()], "what failed last says how the machine is");
    let forget = async |before, behind, most| tasks.forget_ended(at(before), behind, most).await.expect("forget");
    assert_eq!(forget(401, None, 9).await.0, 0, "all that is older belongs to backups");
    backups.delete(&old, at(500)).await.expect("delete");
    let (went, place) = forget(9_000, None, 1).await;
    assert_eq!(went, 1, "the oldest first");
    assert_eq!(tasks.get(&failed[0].1).await.expect_err("gone").kind(), Kind::NotFound);
    let (went, place) = forget(9_000, place, 9).await;
    assert_eq!(went, 1, "what lies behind that");
    assert_eq!(tasks.get(&verifications[0].task_id).await.expect_err("gone").kind(), Kind::NotFound);
    assert!(matches!(forget(9_000, place, 9).await, (0, None)));
    assert!(matches!(forget(9_000, None, 9).await, (0, None)));

    // The point's task, that of the last attempt, and what runs. The counters know.
    let (left, total) = tasks.list(&TaskFilter::default(), Page::default()).await.expect("list");
    assert_eq!((left.len(), total), (3, 3));
    assert!(left.iter().any(|task| task.task_id == verifications[1].task_id));
    assert!(left.iter().any(|task| task.task_id == failed[1].1));
    let states = async |state| {
        let filter = TaskFilter { state: Some(state), ..TaskFilter::default() };
        tasks.list(&filter, Page::default()).await.expect("list").1
    };
    assert_eq!(
        [states(TaskState::Completed).await, states(TaskState::Failed).await, states(TaskState::Running).await],
        [1, 1, 1]
    );
}
