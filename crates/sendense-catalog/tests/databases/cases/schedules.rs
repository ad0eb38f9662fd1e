//! Policies, schedules, executions.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;
use serde_json::json;

async fn policy(catalog: &Catalog, text: &str) -> Policy {
    let body = json!({"keep": {"last": 3}});
    catalog.policies().create(&PolicyId::generate(), &name(text), &body, at(0)).await.expect("create a policy")
}

fn nightly(policy: &Policy) -> NewSchedule {
    NewSchedule {
        schedule_id: id("sch-1"),
        name: name("nightly"),
        policy_id: policy.policy_id.clone(),
        enabled: true,
        body: json!({"cron": "0 3 * * *"}),
    }
}

fn occurrence(schedule: &Schedule, execution: &str, due: Timestamp) -> NewExecution {
    NewExecution {
        execution_id: id(execution),
        schedule_id: schedule.schedule_id.clone(),
        policy_id: schedule.policy_id.clone(),
        due,
        triggered_by: None,
        reason: None,
        vms: vec![(id("vm-b"), name("web")), (id("vm-a"), name("db"))],
    }
}

fn is_wrong_state(error: &Error) -> bool {
    matches!(error, Error::Conflict(Conflict::WrongState { .. }))
}

async fn begin_one(
    catalog: &Catalog,
    execution_id: &ExecutionId,
    hub: &HubLease,
    new: &NewBackup,
    now: Timestamp,
) -> Result<Begun> {
    let begun = catalog.executions().begin_backups(execution_id, hub, std::slice::from_ref(new), now).await?;
    begun.into_iter().next().expect("one was asked for")
}

pub async fn policies_are_kept_while_schedules_need_them(db: TestDb) {
    let catalog = db.open().await;
    let (policies, schedules) = (catalog.policies(), catalog.schedules());
    let gold = policy(&catalog, "gold").await;
    let silver = policy(&catalog, "silver").await;
    let taken = policies.create(&PolicyId::generate(), &name("gold"), &json!({}), at(1)).await.expect_err("taken");
    assert!(matches!(&taken, Error::Conflict(Conflict::NameTaken { .. })), "{taken:?}");
    assert_eq!(policies.find("gold").await.expect("by name"), gold);
    assert_eq!(policies.find(gold.policy_id.as_str()).await.expect("by id"), gold);
    assert_eq!(policies.find("Gold").await.expect_err("exact").problem_code(), ProblemCode::PolicyNotFound);
    let renamed = policies.replace(&silver.policy_id, &name("gold"), &json!({}), at(2)).await.expect_err("taken");
    assert!(matches!(&renamed, Error::Conflict(Conflict::NameTaken { .. })), "{renamed:?}");
    let bronze = policies.replace(&silver.policy_id, &name("bronze"), &json!({"a": 1}), at(2)).await.expect("replace");
    assert_eq!((bronze.name.as_str(), &bronze.body, bronze.updated_at), ("bronze", &json!({"a": 1}), at(2)));
    let (listed, total) = policies.list(Page::default()).await.expect("list");
    assert_eq!((listed, total), (vec![bronze.clone(), gold.clone()], 2));

    let made = schedules.create(&nightly(&gold), at(10)).await.expect("create");
    assert_eq!((made.since, made.handled, made.enabled), (at(10), None, true));
    assert_eq!(schedules.find("nightly").await.expect("find"), made);
    let again = schedules.create(&nightly(&gold), at(11)).await.expect_err("known");
    assert_eq!(again.kind(), Kind::Conflict);
    let orphan = NewSchedule { schedule_id: id("sch-2"), name: name("x"), policy_id: id("pol-x"), ..nightly(&gold) };
    assert_eq!(schedules.create(&orphan, at(11)).await.expect_err("no policy").kind(), Kind::NotFound);
    let needed = policies.delete(&gold.policy_id).await.expect_err("needed");
    assert!(matches!(&needed, Error::Conflict(Conflict::InUse { .. })), "{needed:?}");
    let other = NewSchedule { enabled: false, policy_id: bronze.policy_id, ..nightly(&gold) };
    let changed = schedules.replace(&other, at(12)).await.expect("replace");
    assert_eq!((changed.since, changed.enabled, changed.created_at), (at(12), false, at(10)));
    policies.delete(&gold.policy_id).await.expect("free");
    schedules.delete(&made.schedule_id).await.expect("delete");
    assert_eq!(schedules.find("nightly").await.expect_err("gone").problem_code(), ProblemCode::ScheduleNotFound);
    assert_eq!(schedules.list(Page::default()).await.expect("list"), (vec![], 0));
}

pub async fn an_occurrence_is_handled_once(db: TestDb) {
    let catalog = db.open().await;
    let hub = catalog.hubs().acquire(&id("hub-1"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(&catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(10)).await.expect("create");
    let executions = catalog.executions();
    let early =
        executions.begin(&occurrence(&schedule, "exec-0", at(9)), &hub, at(20)).await.expect_err("before it was");
    assert!(is_wrong_state(&early), "{early:?}");
    let begun = executions.begin(&occurrence(&schedule, "exec-1", at(100)), &hub, at(100)).await.expect("begin");
    assert_eq!((begun.state, begun.due, begun.finished_at), (ExecutionState::Running, at(100), None));
    assert_eq!(catalog.schedules().find("nightly").await.expect("find").handled, Some(at(100)));
    for due in [at(99), at(100)] {
        let handled = executions.skip(&occurrence(&schedule, "exec-2", due), &hub, at(101)).await.expect_err("handled");
        assert!(is_wrong_state(&handled), "{handled:?}");
    }
    // The next one finds the first still running: it can only be skipped.
    let busy = executions.begin(&occurrence(&schedule, "exec-2", at(200)), &hub, at(200)).await.expect_err("busy");
    assert!(is_wrong_state(&busy), "{busy:?}");
    assert_eq!(catalog.schedules().find("nightly").await.expect("find").handled, Some(at(100)), "nothing was changed");
    let why = NewExecution { reason: Some("busy".to_owned()), ..occurrence(&schedule, "exec-2", at(200)) };
    let skipped = executions.skip(&why, &hub, at(200)).await.expect("skip");
    assert_eq!((skipped.state, skipped.finished_at), (ExecutionState::Skipped, Some(at(200))));

    let (_, vms) = executions.get(&begun.execution_id).await.expect("get");
    let names: Vec<&str> = vms.iter().map(|vm| vm.vm_name.as_str()).collect();
    assert_eq!(names, ["web", "db"], "as they are to have their turns");
    assert!(vms.iter().all(|vm| vm.outcome == VmOutcome::Waiting && vm.attempts == 0));
    let failed = ExecutionVm {
        outcome: VmOutcome::Failed,
        backup_id: Some(id("bk-1")),
        attempts: 2,
        not_before: Some(at(150)),
        reason: Some("no space".to_owned()),
        ..vms[0].clone()
    };
    executions.set_vms(&begun.execution_id, &hub, std::slice::from_ref(&failed)).await.expect("set");
    assert_eq!(executions.get(&begun.execution_id).await.expect("get").1[0], failed);
    let stranger = ExecutionVm { vm_context_id: id("vm-x"), ..failed.clone() };
    let waits = ExecutionVm { outcome: VmOutcome::Waiting, ..failed.clone() };
    let strange = executions.set_vms(&begun.execution_id, &hub, &[waits, stranger]).await.expect_err("none");
    assert_eq!(strange.kind(), Kind::NotFound);
    assert_eq!(executions.get(&begun.execution_id).await.expect("get").1[0], failed, "of all or of none");
    assert_eq!(executions.running().await.expect("running"), std::slice::from_ref(&begun));
    let id_1 = &begun.execution_id;
    let no_end = executions.finish(id_1, &hub, ExecutionState::Running, None, at(300)).await.expect_err("no end");
    assert_eq!(no_end.kind(), Kind::Invalid);
    executions.finish(id_1, &hub, ExecutionState::Failed, Some("1 of 2 failed"), at(300)).await.expect("finish");
    let twice = executions.finish(id_1, &hub, ExecutionState::Completed, None, at(301)).await.expect_err("ended");
    assert!(is_wrong_state(&twice), "{twice:?}");
    let (listed, total) = executions.list(&schedule.schedule_id, Page::default()).await.expect("list");
    let told: Vec<_> = listed.iter().map(|one| (one.state, one.reason.as_deref())).collect();
    assert_eq!(told, [(ExecutionState::Skipped, Some("busy")), (ExecutionState::Failed, Some("1 of 2 failed"))]);
    assert_eq!(total, 2);

    // What a person asks for is not an occurrence: none is handled by it, and a disabled schedule does not mind.
    let off = NewSchedule { enabled: false, ..nightly(&gold) };
    let schedule = catalog.schedules().replace(&off, at(400)).await.expect("disable");
    let disabled = executions.begin(&occurrence(&schedule, "exec-3", at(500)), &hub, at(500)).await.expect_err("off");
    assert!(is_wrong_state(&disabled), "{disabled:?}");
    let asked = NewExecution { triggered_by: Some("admin".to_owned()), ..occurrence(&schedule, "exec-3", at(500)) };
    executions.begin(&asked, &hub, at(500)).await.expect("begin");
    assert_eq!(catalog.schedules().find("nightly").await.expect("find").handled, Some(at(200)));
    catalog.schedules().delete(&schedule.schedule_id).await.expect("delete");
    assert_eq!(executions.get(id_1).await.expect_err("gone").problem_code(), ProblemCode::ExecutionNotFound);
}

pub async fn of_eight_hubs_one_carries_an_occurrence_out(db: TestDb) {
    const ROUNDS: i64 = 5;
    let catalog = db.open().await;
    let gold = policy(&catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(0)).await.expect("create");
    for round in 1..=ROUNDS {
        let mut hubs = tokio::task::JoinSet::new();
        for number in 0..8 {
            let (catalog, schedule) = (catalog.clone(), schedule.clone());
            hubs.spawn(async move {
                let hub = catalog.hubs().acquire(&id(&format!("hub-{number}")), at(9_000), at(0)).await?;
                let new = occurrence(&schedule, &format!("exec-{round}-{number}"), at(100 * round));
                let begun = catalog.executions().begin(&new, &hub, at(100 * round)).await?;
                Ok::<_, Error>((begun, hub))
            });
        }
        let (won, lost): (Vec<_>, Vec<_>) = hubs.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 7));
        for error in lost.into_iter().map(|lost| lost.expect_err("lost")) {
            assert!(is_wrong_state(&error), "{error:?}");
        }
        let (begun, hub) = won.into_iter().next().expect("a winner").expect("a winner");
        let executions = catalog.executions();
        let end = executions.finish(&begun.execution_id, &hub, ExecutionState::Completed, None, at(1));
        end.await.expect("finish");
    }
    let (_, total) = catalog.executions().list(&schedule.schedule_id, Page::default()).await.expect("list");
    assert_eq!(total, ROUNDS.unsigned_abs());
}

pub async fn an_execution_of_a_dead_hub_is_taken_over(db: TestDb) {
    let catalog = db.open().await;
    let (hubs, executions) = (catalog.hubs(), catalog.executions());
    let first = hubs.acquire(&id("hub-1"), at(160), at(0)).await.expect("acquire");
    let second = hubs.acquire(&id("hub-2"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(&catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(10)).await.expect("create");
    let begun = executions.begin(&occurrence(&schedule, "exec-1", at(100)), &first, at(100)).await.expect("begin");
    let lives = executions.take_over(&begun.execution_id, &second, at(160)).await.expect_err("it lives");
    assert!(matches!(&lives, Error::Conflict(Conflict::LeaseHeld { .. })), "{lives:?}");
    let taken = executions.take_over(&begun.execution_id, &second, at(161)).await.expect("its lease is out");
    assert_eq!(taken.hub, second);
    // The first was only stopped for a while: it changes nothing any more.
    let (_, vms) = executions.get(&begun.execution_id).await.expect("get");
    let lost = executions.set_vms(&begun.execution_id, &first, &vms[..1]).await.expect_err("lost");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
    let end = ExecutionState::Completed;
    let lost = executions.finish(&begun.execution_id, &first, end, None, at(162)).await.expect_err("lost");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
    // A hub that starts anew takes its own back at once.
    let third = hubs.acquire(&id("hub-2"), at(9_000), at(170)).await.expect("acquire");
    executions.take_over(&begun.execution_id, &third, at(171)).await.expect("an older epoch is dead");
    executions.finish(&begun.execution_id, &third, end, None, at(172)).await.expect("finish");
    let ended = executions.take_over(&begun.execution_id, &third, at(173)).await.expect_err("ended");
    assert!(is_wrong_state(&ended), "{ended:?}");
}

pub async fn of_eight_people_that_ask_at_once_one_is_heard(db: TestDb) {
    let catalog = db.open().await;
    let hub = catalog.hubs().acquire(&id("hub-1"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(&catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(0)).await.expect("create");
    let mut begins = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (catalog, hub, schedule) = (catalog.clone(), hub.clone(), schedule.clone());
        begins.spawn(async move {
            // The schedule is due in the same moment.
            let triggered_by = (number > 0).then(|| format!("person {number}"));
            let new = NewExecution { triggered_by, ..occurrence(&schedule, &format!("exec-{number}"), at(100)) };
            catalog.executions().begin(&new, &hub, at(100)).await
        });
    }
    let (won, lost): (Vec<_>, Vec<_>) = begins.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 7));
    assert!(lost.into_iter().all(|lost| is_wrong_state(&lost.expect_err("lost"))));
    assert_eq!(catalog.executions().running().await.expect("running").len(), 1);
}

pub async fn a_machine_is_begun_once(db: TestDb) {
    let world = World::new(db.open().await, 2).await;
    let catalog = &world.catalog;
    let (hubs, executions) = (catalog.hubs(), catalog.executions());
    let first = hubs.acquire(&id("hub-a"), at(160), at(0)).await.expect("acquire");
    let second = hubs.acquire(&id("hub-b"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(10)).await.expect("create");
    let vms = world.vms.iter().zip(["vm0", "vm1"]).map(|(vm, text)| (vm.clone(), name(text))).collect();
    let new = NewExecution { vms, ..occurrence(&schedule, "exec-1", at(100)) };
    let execution_id = executions.begin(&new, &first, at(100)).await.expect("begin").execution_id;

    // Passes that meet, as those of a hub that is asked to hurry.
    let mut begins = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (catalog, hub, execution_id) = (catalog.clone(), first.clone(), execution_id.clone());
        let new = world.new_backup(&world.vms[0], BackupType::Incremental);
        begins.spawn(async move { begin_one(&catalog, &execution_id, &hub, &new, at(101)).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = begins.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 7));
    assert!(lost.into_iter().all(|lost| is_wrong_state(&lost.expect_err("lost"))));
    let (backup, task, vm) = won.into_iter().next().expect("one").expect("begun");
    assert_eq!((backup.status, task.state), (BackupStatus::Pending, TaskState::Pending));
    let noted = (vm.outcome, vm.backup_id.as_ref(), vm.attempts);
    assert_eq!(noted, (VmOutcome::Running, Some(&backup.backup_id), 1));
    assert_eq!(executions.get(&execution_id).await.expect("get").1[0], vm);

    // A hub that is only stopped for a while, and followed meanwhile, begins nothing any more.
    executions.take_over(&execution_id, &second, at(161)).await.expect("its lease is out");
    let late = world.new_backup(&world.vms[1], BackupType::Incremental);
    let lost = begin_one(catalog, &execution_id, &first, &late, at(162)).await.expect_err("lost");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
    assert_eq!(catalog.backups().get(&late.backup_id).await.expect_err("none was made").kind(), Kind::NotFound);

    // What stands in the way of the backup leaves the machine waiting.
    let by_hand = world.new_backup(&world.vms[1], BackupType::Full);
    catalog.backups().begin(&by_hand, at(163)).await.expect("begin");
    let busy = begin_one(catalog, &execution_id, &second, &late, at(164)).await.expect_err("busy");
    assert!(matches!(&busy, Error::Conflict(Conflict::BackupActive { .. })), "{busy:?}");
    let (_, vms) = executions.get(&execution_id).await.expect("get");
    assert_eq!((vms[1].outcome, vms[1].attempts, &vms[1].backup_id), (VmOutcome::Waiting, 0, &None));
    let stranger = NewBackup { vm_context_id: id("vm-x"), ..late };
    let unknown = begin_one(catalog, &execution_id, &second, &stranger, at(165)).await.expect_err("unknown");
    assert_eq!(unknown.kind(), Kind::NotFound);
}

pub async fn only_what_waits_is_left_out(db: TestDb) {
    let world = World::new(db.open().await, 2).await;
    let catalog = &world.catalog;
    let executions = catalog.executions();
    let hub = catalog.hubs().acquire(&id("hub-a"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(10)).await.expect("create");
    let vms = world.vms.iter().zip(["vm0", "vm1"]).map(|(vm, text)| (vm.clone(), name(text))).collect();
    let new = NewExecution { vms, ..occurrence(&schedule, "exec-1", at(100)) };
    let execution_id = executions.begin(&new, &hub, at(100)).await.expect("begin").execution_id;
    let mut begun = Vec::new();
    for vm in &world.vms {
        let new = world.new_backup(vm, BackupType::Full);
        begun.push(begin_one(catalog, &execution_id, &hub, &new, at(101)).await.expect("begin"));
    }
    let too_late = |vm: &ExecutionVm| ExecutionVm { reason: Some("too late".to_owned()), ..vm.clone() };

    // The first has been taken by a hub, though its backup's row does not say so yet.
    let (backup, task, vm) = &begun[0];
    catalog.tasks().claim(&task.claim(), &hub, at(9_000), at(102)).await.expect("claim");
    assert_eq!(catalog.backups().get(&backup.backup_id).await.expect("get").status, BackupStatus::Pending);
    assert!(!executions.cancel_waiting(&execution_id, &hub, &too_late(vm)).await.expect("it has begun"));
    assert!(!catalog.tasks().get(&task.task_id).await.expect("get").cancel_requested);
    let (_, task, waits) = &begun[1];
    assert!(executions.cancel_waiting(&execution_id, &hub, &too_late(waits)).await.expect("it waits"));
    assert!(catalog.tasks().get(&task.task_id).await.expect("get").cancel_requested);
    let (_, noted) = executions.get(&execution_id).await.expect("get");
    assert_eq!(noted, [vm.clone(), too_late(waits)]);

    let stranger = ExecutionVm { backup_id: Some(id("bk-x")), ..vm.clone() };
    assert!(!executions.cancel_waiting(&execution_id, &hub, &stranger).await.expect("no such backup"));
    let later = catalog.hubs().acquire(&id("hub-a"), at(9_000), at(103)).await.expect("acquire");
    let lost = executions.cancel_waiting(&execution_id, &later, vm).await.expect_err("not its execution");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
}

pub async fn old_executions_are_forgotten(db: TestDb) {
    let catalog = db.open().await;
    let hub = catalog.hubs().acquire(&id("hub-1"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(&catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(0)).await.expect("create");
    let executions = catalog.executions();
    for number in 1..=6_i64 {
        let new = occurrence(&schedule, &format!("exec-{number}"), at(100 * number));
        let begun = executions.begin(&new, &hub, at(100 * number)).await.expect("begin");
        if number < 6 {
            let end =
                executions.finish(&begun.execution_id, &hub, ExecutionState::Completed, None, at(100 * number + 10));
            end.await.expect("finish");
        }
    }
    let left = async || {
        let (listed, _) = executions.list(&schedule.schedule_id, Page::default()).await.expect("list");
        listed.iter().map(|one| one.execution_id.to_string()).collect::<Vec<_>>()
    };
    let forget = async |before, newest, most| {
        executions.forget_ended(&schedule.schedule_id, at(before), newest, most).await.expect("forget")
    };
    assert_eq!(forget(9_000, 10, 10).await, 0, "the newest stay whatever their age");
    assert_eq!(forget(110, 0, 10).await, 0, "it ended in that very moment");
    assert_eq!(forget(111, 0, 10).await, 1);
    // However many of the others are younger.
    assert_eq!(forget(111, 0, 1).await, 0);
    assert_eq!(left().await, ["exec-6", "exec-5", "exec-4", "exec-3", "exec-2"]);
    assert_eq!(forget(9_000, 3, 1).await, 1);
    assert_eq!(forget(9_000, 3, 9).await, 1);
    assert_eq!(left().await, ["exec-6", "exec-5", "exec-4"]);
    let last = executions.last_ended().await.expect("look");
    let last: Vec<_> = last.iter().map(|one| one.execution_id.as_str()).collect();
    assert_eq!(last, ["exec-5"], "the newest runs");
    // What runs is not forgotten, however old it is.
    assert_eq!(forget(9_000, 0, 9).await, 2);
    assert_eq!(left().await, ["exec-6"]);
    assert_eq!(executions.get(&id("exec-6")).await.expect("get").1.len(), 2, "and its machines are there");
}

pub async fn each_schedule_tells_what_ended_last(db: TestDb) {
    let catalog = db.open().await;
    let hub = catalog.hubs().acquire(&id("hub-1"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(&catalog, "gold").await;
    let executions = catalog.executions();
    for number in 0..4 {
        let (schedule_id, text) = (id(&format!("sch-{number}")), name(&format!("number{number}")));
        let new = NewSchedule { schedule_id, name: text, ..nightly(&gold) };
        let schedule = catalog.schedules().create(&new, at(0)).await.expect("create");
        // The last one has no execution that ended, and the one before it is disabled afterwards.
        for turn in 1..=if number == 3 { 0 } else { number + 1 } {
            let due = at(100 * i64::from(turn));
            let new = occurrence(&schedule, &format!("exec-{number}-{turn}"), due);
            let begun = executions.begin(&new, &hub, due).await.expect("begin");
            executions.finish(&begun.execution_id, &hub, ExecutionState::Failed, None, due).await.expect("finish");
        }
        let skipped = occurrence(&schedule, &format!("exec-{number}-skipped"), at(1000));
        executions.skip(&skipped, &hub, at(1000)).await.expect("skip");
        if number == 2 {
            let off = NewSchedule { enabled: false, ..new };
            catalog.schedules().replace(&off, at(1001)).await.expect("disable");
        }
    }
    let mut last: Vec<_> = executions.last_ended().await.expect("look");
    last.sort_by(|a, b| a.schedule_id.cmp(&b.schedule_id));
    let last: Vec<_> = last.iter().map(|one| one.execution_id.as_str()).collect();
    assert_eq!(last, ["exec-0-1", "exec-1-2"]);
}

pub async fn a_look_reads_what_runs_and_whose_turn_is_next(db: TestDb) {
    let catalog = db.open().await;
    let hub = catalog.hubs().acquire(&id("hub-1"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(&catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(0)).await.expect("create");
    let executions = catalog.executions();
    let vms = (0..6).rev().map(|number| (id(&format!("vm-{number}")), name(&format!("name{number}")))).collect();
    let new = NewExecution { vms, ..occurrence(&schedule, "exec-1", at(100)) };
    let execution_id = executions.begin(&new, &hub, at(100)).await.expect("begin").execution_id;
    let other = NewSchedule { schedule_id: id("sch-2"), name: name("other"), ..nightly(&gold) };
    let other = catalog.schedules().create(&other, at(0)).await.expect("create");
    executions.begin(&occurrence(&other, "exec-2", at(100)), &hub, at(100)).await.expect("begin");

    let (_, all) = executions.get(&execution_id).await.expect("get");
    let set = |place: usize, outcome, not_before: Option<i64>, reason: Option<&str>| ExecutionVm {
        outcome,
        not_before: not_before.map(at),
        reason: reason.map(str::to_owned),
        ..all[place].clone()
    };
    let noted = [
        set(0, VmOutcome::Running, None, None),
        set(1, VmOutcome::Completed, None, None),
        set(2, VmOutcome::Waiting, Some(150), Some("busy")),
        set(4, VmOutcome::Waiting, Some(120), None),
    ];
    executions.set_vms(&execution_id, &hub, &noted).await.expect("set");
    let names = |vms: Vec<ExecutionVm>| vms.into_iter().map(|vm| vm.vm_name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(executions.vms_running(&execution_id).await.expect("running")), ["name5"]);
    let due = async |now, limit| names(executions.vms_due(&execution_id, at(now), limit).await.expect("due"));
    assert_eq!(due(119, 9).await, ["name2", "name0"]);
    assert_eq!(due(120, 9).await, ["name2", "name1", "name0"], "in that very moment, in its turn");
    assert_eq!(due(150, 2).await, ["name3", "name2"]);
    let counted = async || executions.outcomes(&execution_id).await.expect("count").into_iter().collect::<Vec<_>>();
    let (waiting, running, completed) = (VmOutcome::Waiting, VmOutcome::Running, VmOutcome::Completed);
    assert_eq!(counted().await, [(waiting, 4), (running, 1), (completed, 1)]);

    // Those that are due, and no other.
    let put_off = executions.put_off_due(&execution_id, &hub, at(120), at(180), "the repository is offline").await;
    assert_eq!(put_off.expect("put off"), 3);
    assert_eq!(due(149, 9).await, Vec::<String>::new());
    assert_eq!(due(150, 9).await, ["name3"]);
    let (_, vms) = executions.get(&execution_id).await.expect("get");
    let told: Vec<_> = vms.iter().map(|vm| vm.reason.as_deref()).collect();
    let offline = Some("the repository is offline");
    assert_eq!(told, [None, None, Some("busy"), offline, offline, offline]);

    // All that wait, whatever for; each is told of what.
    let why = |waited_for: Option<&str>| format!("too late: {}", waited_for.unwrap_or("no place"));
    assert_eq!(executions.leave_out_waiting(&execution_id, &hub, &why).await.expect("leave out"), 4);
    assert_eq!(executions.leave_out_waiting(&execution_id, &hub, &why).await.expect("none waits"), 0);
    assert_eq!(counted().await, [(running, 1), (completed, 1), (VmOutcome::Skipped, 4)]);
    let (_, vms) = executions.get(&execution_id).await.expect("get");
    let told: Vec<_> = vms.iter().map(|vm| vm.reason.as_deref()).collect();
    let offline = Some("too late: the repository is offline");
    assert_eq!(told, [None, None, Some("too late: busy"), offline, offline, offline]);
    assert_eq!(
        executions.outcomes(&id("exec-2")).await.expect("count").into_iter().collect::<Vec<_>>(),
        [(waiting, 2)]
    );

    let later = catalog.hubs().acquire(&id("hub-1"), at(9_000), at(200)).await.expect("acquire");
    let lost = executions.put_off_due(&execution_id, &later, at(200), at(260), "x").await.expect_err("not its own");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
    let lost = executions.leave_out_waiting(&execution_id, &later, &why).await.expect_err("not its own");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
}

pub async fn what_stands_in_the_way_of_one_machine_leaves_the_others_alone(db: TestDb) {
    let world = World::new(db.open().await, 4).await;
    let catalog = &world.catalog;
    let executions = catalog.executions();
    let hub = catalog.hubs().acquire(&id("hub-a"), at(9_000), at(0)).await.expect("acquire");
    let gold = policy(catalog, "gold").await;
    let schedule = catalog.schedules().create(&nightly(&gold), at(10)).await.expect("create");
    let named = |(number, vm): (usize, &VmContextId)| (vm.clone(), name(&format!("vm{number}")));
    let vms = world.vms.iter().enumerate().map(named).collect();
    let new = NewExecution { vms, ..occurrence(&schedule, "exec-1", at(100)) };
    let execution_id = executions.begin(&new, &hub, at(100)).await.expect("begin").execution_id;
    let by_hand = world.new_backup(&world.vms[1], BackupType::Full);
    catalog.backups().begin(&by_hand, at(100)).await.expect("begin");

    // Asked for against the order of their ids.
    let asked: Vec<NewBackup> =
        [2, 1, 0].map(|place| world.new_backup(&world.vms[place], BackupType::Incremental)).into();
    let told = executions.begin_backups(&execution_id, &hub, &asked, at(101)).await.expect("begin");
    let begun: Vec<Option<&BackupId>> = told.iter().map(|one| Some(&one.as_ref().ok()?.0.backup_id)).collect();
    assert_eq!(begun, [Some(&asked[0].backup_id), None, Some(&asked[2].backup_id)]);
    assert!(matches!(&told[1], Err(Error::Conflict(Conflict::BackupActive { .. }))), "{:?}", told[1]);
    let outcomes = async || {
        let (_, vms) = executions.get(&execution_id).await.expect("get");
        vms.into_iter().map(|vm| vm.outcome).collect::<Vec<_>>()
    };
    use VmOutcome::{Running, Waiting};
    assert_eq!(outcomes().await, [Running, Waiting, Running, Waiting]);
    // Lists tell numbers by counters.
    let pending = TaskFilter { state: Some(TaskState::Pending), ..TaskFilter::default() };
    assert_eq!(catalog.tasks().list(&pending, Page::default()).await.expect("list").1, 3);
    let pending = BackupFilter { status: Some(BackupStatus::Pending), ..BackupFilter::default() };
    assert_eq!(catalog.backups().list(&pending, Page::default()).await.expect("list").1, 3);

    // One that runs already is a sign that somebody else is at it: nothing is begun at all.
    let again: Vec<NewBackup> = [3, 2].map(|place| world.new_backup(&world.vms[place], BackupType::Full)).into();
    let met = executions.begin_backups(&execution_id, &hub, &again, at(102)).await.expect_err("one does not wait");
    assert!(is_wrong_state(&met), "{met:?}");
    assert_eq!(outcomes().await, [Running, Waiting, Running, Waiting]);
}
