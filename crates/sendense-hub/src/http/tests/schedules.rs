//! Schedules by a clock that is set: what is due begins by itself, once, and what was missed is made up for once.

use super::house::{House, MORNING_MICROS, Stuck, until};
use super::{Fixture, PATIENCE};
use sendense_api::{Role, UpdateBackup};
use sendense_types::{BackupStatus, BackupType, SourceKind, Timestamp};
use serde_json::{Value, json};
use std::time::Instant;

const HOUR: i64 = 3600;

/// The executions of a schedule with their machines, newest first, once there are so many and all have ended.
async fn ended(fixture: &Fixture, schedule: &str, number: usize) -> Vec<Value> {
    let patience = Instant::now() + PATIENCE;
    loop {
        let list = fixture.call("GET", &format!("/api/v1/schedules/{schedule}/executions"), Some(Role::Viewer)).await;
        let executions = list.body["executions"].as_array().unwrap();
        if executions.len() >= number && executions.iter().all(|execution| execution["state"] != "running") {
            return executions.clone();
        }
        assert!(Instant::now() < patience, "never {number}: {:#}", list.body);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn trigger(fixture: &Fixture, schedule: &str) {
    let begun = fixture.call("POST", &format!("/api/v1/schedules/{schedule}/trigger"), Some(Role::Operator)).await;
    assert!(begun.status.is_success(), "{begun:?}");
}

/// The newest execution of a schedule, with its machines; null before the first.
async fn newest(fixture: &Fixture, schedule: &str) -> Value {
    let list = fixture.call("GET", &format!("/api/v1/schedules/{schedule}/executions"), Some(Role::Viewer)).await;
    let Some(id) = list.body["executions"][0]["execution_id"].as_str() else { return Value::Null };
    let answer = fixture.call("GET", &format!("/api/v1/executions/{id}"), Some(Role::Viewer)).await;
    assert!(answer.body["execution"]["vms"].is_array(), "{answer:?}");
    answer.body["execution"].clone()
}

fn due(executions: &[Value]) -> Vec<(&str, &str)> {
    executions.iter().map(|one| (one["due_at"].as_str().unwrap(), one["state"].as_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_begins_by_itself_and_once() {
    let (house, clock) = House::clocked(|_| ()).await;
    let fixture = &house.fixture;
    house.web(vec![7; 1 << 20]).await;
    house.post("policies", json!({"name": "all", "vms": ["*"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "hourly", "policy_id": "all", "cron": "0 * * * *"})).await;
    house.post("schedules", json!({"name": "nightly", "policy_id": "all", "cron": "0 3 * * *"})).await;
    house.post("schedules", json!({"name": "off", "policy_id": "all", "cron": "* * * * *", "enabled": false})).await;

    clock.advance_seconds(HOUR);
    let hourly = ended(fixture, "hourly", 1).await;
    assert_eq!(due(&hourly), [("2027-01-15T09:00:00Z", "completed")], "{hourly:#?}");
    assert_eq!(hourly[0]["triggered_by"], Value::Null);
    // The pass that began the one has looked at the others, too.
    for other in ["nightly", "off"] {
        assert!(ended(fixture, other, 0).await.is_empty(), "{other}");
    }

    // A day later what was missed is made up for once, and says so; what is due now is begun as always.
    let off = fixture.call("POST", "/api/v1/schedules/nightly/disable", Some(Role::Admin)).await;
    assert!(off.status.is_success(), "{off:?}");
    clock.advance_seconds(24 * HOUR + 1800);
    let hourly = ended(fixture, "hourly", 2).await;
    assert_eq!(due(&hourly)[0], ("2027-01-16T09:00:00Z", "completed"), "{hourly:#?}");
    assert!(hourly[0]["reason"].as_str().unwrap().contains("caught up"), "{hourly:#?}");
    let off = fixture.call("POST", "/api/v1/schedules/hourly/disable", Some(Role::Admin)).await;
    assert!(off.status.is_success(), "{off:?}");
    let on = fixture.call("POST", "/api/v1/schedules/nightly/enable", Some(Role::Admin)).await;
    assert_eq!(on.body["schedule"]["next_at"], "2027-01-17T03:00:00Z", "{on:?}");
    clock.advance_seconds(17 * HOUR + 1800);
    let nightly = ended(fixture, "nightly", 1).await;
    assert_eq!(due(&nightly), [("2027-01-17T03:00:00Z", "completed")], "{nightly:#?}");
    assert_eq!(ended(fixture, "hourly", 2).await.len(), 2);
    house.fixture.hub.shutdown().await;
}

/// A policy without fulls takes points away by merging: the plan says how many before anybody says yes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_what_would_be_merged_away() {
    let house = House::new(|_| ()).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let mut points = Vec::new();
    for number in 0..4 {
        let sort = if number == 0 { BackupType::Full } else { BackupType::Incremental };
        points.push(house.back_up(&vm, "one", sort).await);
    }
    let rules = |full_every: Option<u32>| {
        json!({"name": "one", "vms": ["*"], "repository_id": "one", "full_every": full_every,
            "retention": {"keep_last": 1}})
    };
    let plan = async |rules: Value| {
        let answer = house.fixture.json("POST", "/api/v1/policies/plan", &rules.to_string()).await;
        assert!(answer.status.is_success(), "{answer:?}");
        let plan = &answer.body["plan"];
        let of_plan = ["deleted", "merged", "kept"].map(|of| plan[of].as_u64().unwrap());
        (of_plan, plan["vms"][0]["merged"].as_u64().unwrap())
    };
    assert_eq!(plan(rules(None)).await, ([0, 3, 1], 3));
    assert_eq!(plan(rules(Some(7))).await, ([0, 0, 4], 0), "whole chains go there, and no point of this one");
    // What a person keeps stays, and what is before it is merged into it.
    let keep = UpdateBackup { protected: Some(true), hold_until: None };
    house.client.update_backup(&points[1], &keep).await.unwrap();
    assert_eq!(plan(rules(None)).await, ([0, 2, 2], 2));
    house.fixture.hub.shutdown().await;
}

/// Three machines of a source that is stuck, of which the hub backs up one at a time: one runs, one waits in the queue, and for the
/// third nothing was asked yet when the window closes.
async fn machines_when_the_window_closes(stop_running: bool) -> Vec<(String, String)> {
    let (house, clock) = House::clocked(|config| config.limits.running_per_hub = 1).await;
    let stuck = Stuck::start(house.fixture.folder.path(), "s", "pattern", &["64M", "rdelay=3600"]).await;
    for name in ["a", "b", "c"] {
        house.machine(name, SourceKind::Nbd, stuck.uri.clone()).await;
    }
    let window = json!({"from": "09:00", "until": "09:01", "stop_running": stop_running});
    house.post("policies", json!({"name": "all", "vms": ["*"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "short", "policy_id": "all", "cron": "0 9 * * *", "window": window})).await;
    clock.advance_seconds(HOUR);
    let backups = async |status: BackupStatus| {
        let all = house.client.list_backups(&Default::default()).await.unwrap().items;
        all.into_iter().filter(|backup| backup.status == status).collect::<Vec<_>>()
    };
    let full =
        async || backups(BackupStatus::Running).await.len() == 1 && backups(BackupStatus::Pending).await.len() == 1;
    until("one runs and one waits", full).await;
    let running = backups(BackupStatus::Running).await.remove(0);
    house.until_running(&running.backup_id).await;

    clock.advance_seconds(61);
    until("nothing waits", async || backups(BackupStatus::Pending).await.is_empty()).await;
    if !stop_running {
        // The one that waited was not begun in the place of the one that runs, which goes on until a person stops it.
        until("it was told", async || backups(BackupStatus::Cancelled).await.len() == 1).await;
        assert_eq!(house.status(&running.backup_id).await, BackupStatus::Running);
        house.cancel(running.task_id.as_ref().unwrap()).await;
    }
    ended(&house.fixture, "short", 1).await;
    let of = |vm: &Value, field: &str| vm[field].as_str().unwrap_or_default().to_owned();
    let vms = newest(&house.fixture, "short").await["vms"].as_array().unwrap().clone();
    assert_eq!(backups(BackupStatus::Cancelled).await.len(), 2, "{vms:#?}");
    house.fixture.hub.shutdown().await;
    vms.iter().map(|vm| (of(vm, "outcome"), of(vm, "reason"))).collect()
}

fn pairs(said: [(&str, &str); 3]) -> Vec<(String, String)> {
    said.iter().map(|(outcome, reason)| (outcome.to_string(), reason.to_string())).collect()
}

const TOO_LATE: (&str, &str) = ("skipped", "the window closed before its turn came");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_closes_stops_what_waits_in_the_queue() {
    let vms = Box::pin(machines_when_the_window_closes(false)).await;
    assert_eq!(vms, pairs([("failed", "stopped by a person"), TOO_LATE, TOO_LATE]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_closes_stops_what_runs_if_asked() {
    let vms = Box::pin(machines_when_the_window_closes(true)).await;
    assert_eq!(vms, pairs([("skipped", "stopped when the window closed"), TOO_LATE, TOO_LATE]));
}

/// Three machines, one at a time: each begins when the one before it has ended, in the order that the policy says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_says_whose_turn_comes_first_and_how_many_have_theirs() {
    let house = House::new(|_| ()).await;
    for (name, blocks) in [("a", 1), ("b", 3), ("c", 2)] {
        house.disk(name, vec![7; blocks << 16]);
    }
    let vms = house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    // The first has a newer point than the second, and the third none in the beginning.
    for vm in [&vms[1], &vms[0]] {
        house.back_up(vm, "two", BackupType::Full).await;
    }
    let rules = |order: &str| {
        json!({"name": "gold", "vms": ["c", "*"], "repository_id": "two", "order": order, "vms_at_once": 1,
            "bytes_per_second_max": 1 << 20})
    };
    house.post("policies", rules("name")).await;
    house.post("schedules", json!({"name": "yearly", "policy_id": "gold", "cron": "0 0 1 1 *"})).await;
    // Its own runs change whose point is the oldest, so that one goes first.
    for (number, (order, expected)) in
        [("oldest_first", "cba"), ("listed", "cab"), ("largest_first", "bca")].into_iter().enumerate()
    {
        let told = house.fixture.json("PUT", "/api/v1/policies/gold", &rules(order).to_string()).await;
        assert!(told.status.is_success(), "{told:?}");
        trigger(&house.fixture, "yearly").await;
        ended(&house.fixture, "yearly", number + 1).await;
        let turns = newest(&house.fixture, "yearly").await["vms"].as_array().unwrap().clone();
        let names: String = turns.iter().map(|vm| vm["vm_name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{order}");
        let mut last = None;
        for vm in &turns {
            let backup = house.client.get_backup(&vm["backup_id"].as_str().unwrap().parse().unwrap()).await.unwrap();
            assert_eq!(backup.status, BackupStatus::Completed, "{backup:#?}");
            assert!(last <= Some(backup.created_at), "{order}: two at once");
            last = backup.completed_at;
            let task = backup.task_id.unwrap();
            let asked = house.fixture.hub.app().core.catalog.tasks().get(&task).await.unwrap().request;
            assert_eq!(asked["bytes_per_second_max"], 1 << 20, "{asked:#}");
        }
    }
    house.fixture.hub.shutdown().await;
}

/// What has ended long ago goes, and nothing that a point needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_long_ago_is_forgotten() {
    let (house, clock) = House::clocked(|_| ()).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let made = house.start(&vm, "two").await.unwrap();
    house.client.wait_for_task(made.task_id.as_ref().unwrap(), |_| {}).await.unwrap();
    let how = sendense_api::VerifyBackup { deep: false, own_files_only: false };
    let verified = house.client.verify_backup(&made.backup_id, &how).await.unwrap().task_id;
    house.client.wait_for_task(&verified, |_| {}).await.unwrap();
    let core = &house.fixture.hub.app().core;
    clock.advance_seconds(90 * 24 * HOUR);
    assert_eq!(crate::history::forget(core).await.unwrap(), crate::history::Forgotten::default());
    clock.advance_seconds(24 * HOUR);
    let gone = crate::history::forget(core).await.unwrap();
    assert_eq!((gone.executions, gone.attempts, gone.tasks), (0, 0, 1));
    assert!(house.client.get_task(&verified).await.is_err(), "a verification is no part of the point");
    assert!(house.client.get_task(made.task_id.as_ref().unwrap()).await.is_ok(), "the point's task stays");
    assert_eq!(house.status(&made.backup_id).await, BackupStatus::Completed);
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_vanishes_is_told_as_long_as_it_has_points() {
    let house = House::new(|_| ()).await;
    let folder = house.fixture.folder.path().join("vms");
    for name in ["db", "other", "web"] {
        house.disk(name, vec![7; 1 << 20]);
    }
    let vms = house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    house.post("policies", json!({"name": "gold", "vms": ["db", "web", "new"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "yearly", "policy_id": "gold", "cron": "0 0 1 1 *"})).await;
    let run = async |number| {
        trigger(&house.fixture, "yearly").await;
        ended(&house.fixture, "yearly", number).await[0].clone()
    };
    let health = async || {
        let answer = house.fixture.call("GET", "/api/v1/debug/health", Some(Role::Viewer)).await;
        let checks = answer.body["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"] == "vanished machines").unwrap()
    };
    let first = run(1).await;
    assert_eq!((&first["state"], &first["reason"]), (&json!("completed"), &Value::Null), "{first:#}");
    assert_eq!(health().await["status"], "ok");

    // One that no policy means goes, too, and nobody misses it.
    for name in ["other", "web"] {
        std::fs::remove_dir_all(folder.join(name)).unwrap();
    }
    house.client.discover_source("images").await.unwrap();
    let second = run(2).await;
    assert_eq!(second["state"], "completed", "{second:#}");
    assert_eq!(second["reason"], "not found any more: web");
    let plan = house.fixture.call("GET", "/api/v1/policies/gold/plan", Some(Role::Viewer)).await;
    let vanished = plan.body["plan"]["vanished"].as_array().unwrap_or_else(|| panic!("{:#}", plan.body));
    assert_eq!(vanished.len(), 1, "{vanished:#?}");
    assert_eq!((&vanished[0]["vm_name"], &vanished[0]["vm_context_id"]), (&json!("web"), &json!(vms[2])));
    assert_eq!(plan.body["plan"]["unmatched"], json!(["web", "new"]));
    let told = health().await;
    assert_eq!(
        (&told["status"], &told["detail"]),
        (&json!("degraded"), &json!("policy gold: not found any more: web"))
    );

    // Who deletes its points has decided.
    let filter = sendense_api::BackupFilter { vm_name: Some("web".to_owned()), ..Default::default() };
    for point in house.client.list_backups(&filter).await.unwrap().items {
        house.client.delete_backup(&point.backup_id, &Default::default()).await.unwrap();
    }
    assert_eq!(health().await["status"], "ok");
    assert_eq!(run(3).await["reason"], Value::Null);
    house.fixture.hub.shutdown().await;
}

/// A policy says which machines it means, and its schedule when they should have had a point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_are_told_that_no_policy_means_and_that_are_overdue() {
    let (house, clock) = House::clocked(|_| ()).await;
    for name in ["db", "web"] {
        house.disk(name, vec![7; 1 << 16]);
    }
    house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    house.post("policies", json!({"name": "gold", "vms": ["web"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "hourly", "policy_id": "gold", "cron": "0 * * * *"})).await;
    let vms = async || {
        let list = house.fixture.call("GET", "/api/v1/vms", Some(Role::Viewer)).await;
        let of = |vm: &Value| {
            let word = |field: &str| vm[field].as_str().map(str::to_owned);
            (word("vm_name").unwrap(), vm["policies"].clone(), word("protection_state").unwrap(), word("overdue_since"))
        };
        list.body["vms"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let (db, web) = (json!([]), json!(["gold"]));
    let told = |state: &str, since: Option<&str>| {
        let of = |name: &str, policies: &Value, state: &str, since: Option<&str>| {
            (name.to_owned(), policies.clone(), state.to_owned(), since.map(str::to_owned))
        };
        vec![of("db", &db, "unprotected", None), of("web", &web, state, since)]
    };
    // Whom somebody should look after, by name, and how many there are.
    let wanted = async |query: &str| {
        let list = house.fixture.call("GET", &format!("/api/v1/vms?{query}"), Some(Role::Viewer)).await;
        let names = list.body["vms"].as_array().unwrap_or_else(|| panic!("{:#}", list.body)).iter();
        (names.map(|vm| vm["vm_name"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), list.body["total"].as_u64())
    };
    let these = |names: &[&str], total| (names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), Some(total));
    assert_eq!(vms().await, told("unprotected", None));
    assert_eq!(wanted("unprotected=true").await, these(&["db", "web"], 2));
    assert_eq!(wanted("unprotected=true&limit=1&offset=1").await, these(&["web"], 2));
    assert_eq!(wanted("unprotected=true&vm_name=db").await, these(&["db"], 1));
    assert_eq!(wanted("overdue=true").await, these(&[], 0));
    assert_eq!(wanted("overdue=false&unprotected=false").await, these(&["db", "web"], 2));
    clock.advance_seconds(HOUR);
    ended(&house.fixture, "hourly", 1).await;
    assert_eq!(vms().await, told("protected", None));
    assert_eq!(wanted("unprotected=true").await, these(&["db"], 1));
    // Its disk is gone: the next occurrence comes to nothing.
    std::fs::remove_file(house.fixture.folder.path().join("vms/web/disk0.raw")).unwrap();
    clock.advance_seconds(HOUR);
    let executions = ended(&house.fixture, "hourly", 2).await;
    assert_eq!(executions[0]["state"], "failed", "{executions:#?}");
    assert_eq!(vms().await, told("failing", Some("2027-01-15T10:00:00Z")));
    assert_eq!(wanted("overdue=true").await, these(&["web"], 1));
    assert_eq!(wanted("overdue=true&unprotected=true").await, these(&["db", "web"], 2), "either");
    // One that has gone is nobody's to protect.
    std::fs::remove_dir_all(house.fixture.folder.path().join("vms/db")).unwrap();
    house.client.discover_source("images").await.unwrap();
    assert_eq!(wanted("unprotected=true").await, these(&[], 0));
    house.fixture.hub.shutdown().await;
}

/// A machine has a point and gets no other one: nothing carries its policy out, or what does never may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_no_schedule_backs_up_and_those_that_none_ever_can_are_told() {
    let (house, clock) = House::clocked(|_| ()).await;
    for name in ["bare", "late", "shut"] {
        house.disk(name, vec![7; 1 << 16]);
    }
    let machines = house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    for vm in &machines {
        house.back_up(vm, "two", BackupType::Full).await;
    }
    let window = json!({"from": "22:00", "until": "23:00"});
    house.post("policies", json!({"name": "bare", "vms": ["bare"], "repository_id": "two"})).await;
    house.post("policies", json!({"name": "late", "vms": ["late"], "repository_id": "two"})).await;
    house.post("policies", json!({"name": "shut", "vms": ["shut"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "late", "policy_id": "late", "cron": "0 9 * * *"})).await;
    house.post("schedules", json!({"name": "shut", "policy_id": "shut", "cron": "0 9 * * *", "window": window})).await;
    house.post("schedules/late/disable", json!({})).await;
    let vms = async |query: &str| {
        let list = house.fixture.call("GET", &format!("/api/v1/vms?{query}"), Some(Role::Viewer)).await;
        let of = |vm: &Value| {
            let since = vm["overdue_since"].as_str().map(str::to_owned);
            (vm["vm_name"].as_str().unwrap().to_owned(), vm["unscheduled"].as_bool().unwrap(), since)
        };
        list.body["vms"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let told =
        |name: &str, unscheduled: bool, since: Option<&str>| (name.to_owned(), unscheduled, since.map(str::to_owned));
    let bare = [told("bare", true, None), told("late", true, None)];
    assert_eq!(vms("").await, [bare.as_slice(), &[told("shut", false, None)]].concat());
    assert_eq!(vms("unprotected=true").await, bare);
    assert_eq!(vms("overdue=true").await, []);
    // The occurrence is left out, for its window is shut.
    clock.advance_seconds(HOUR);
    let executions = ended(&house.fixture, "shut", 1).await;
    assert_eq!(due(&executions), [("2027-01-15T09:00:00Z", "skipped")], "{executions:#?}");
    clock.advance_seconds(HOUR);
    assert_eq!(vms("overdue=true").await, [told("shut", false, Some("2027-01-15T09:00:00Z"))]);
    // What is enabled backs it up.
    let on = house.fixture.call("POST", "/api/v1/schedules/late/enable", Some(Role::Admin)).await;
    assert!(on.status.is_success(), "{on:?}");
    assert_eq!(vms("unprotected=true").await, [told("bare", true, None)]);
    house.fixture.hub.shutdown().await;
}

/// What failed and may pass is tried again after pauses that grow, and not for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_source_does_not_answer_is_tried_again_four_times() {
    let (house, clock) = House::clocked(|_| ()).await;
    let server = Stuck::start(house.fixture.folder.path(), "s", "memory", &["1M"]).await;
    house.machine("a", SourceKind::Nbd, server.uri.clone()).await;
    drop(server);
    house.post("policies", json!({"name": "gold", "vms": ["*"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "daily", "policy_id": "gold", "cron": "0 9 * * *"})).await;
    house.post("policies", json!({"name": "nobody", "vms": ["x"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "none", "policy_id": "nobody", "cron": "0 0 1 1 *"})).await;
    let failed = async || {
        let filter = sendense_api::BackupFilter { status: Some(BackupStatus::Failed), ..Default::default() };
        let mut at: Vec<_> = house.client.list_backups(&filter).await.unwrap().items;
        at.sort_by_key(|backup| backup.created_at);
        at.into_iter()
            .map(|backup| backup.created_at.seconds_since(Timestamp::from_micros(MORNING_MICROS)) as i64 - HOUR)
            .collect::<Vec<_>>()
    };
    let mut tries = vec![0];
    clock.advance_seconds(HOUR);
    for pause in [30, 300, 900, 1800] {
        let number = tries.len();
        until("it waits for its next try", async || {
            let vm = newest(&house.fixture, "daily").await["vms"][0].clone();
            vm["outcome"] == "waiting" && vm["attempts"] == number
        })
        .await;
        assert_eq!(failed().await, tries);
        // A second earlier nothing happens: the pass that has ended another execution has looked at this one, too.
        clock.advance_seconds(pause - 1);
        trigger(&house.fixture, "none").await;
        ended(&house.fixture, "none", number).await;
        assert_eq!(newest(&house.fixture, "daily").await["vms"][0]["attempts"], number);
        clock.advance_seconds(1);
        tries.push(tries[number - 1] + pause);
    }
    let executions = ended(&house.fixture, "daily", 1).await;
    assert_eq!(executions[0]["state"], "failed", "{executions:#?}");
    assert_eq!(failed().await, tries);
    let vm = newest(&house.fixture, "daily").await["vms"][0].clone();
    assert_eq!((&vm["outcome"], &vm["attempts"]), (&json!("failed"), &json!(5)), "{vm:#}");
    house.fixture.hub.shutdown().await;
}

/// Says something to the catalog beside the hub, as no hub of this version would.
fn spoil(catalog: &std::path::Path, statement: &str) {
    let program = "import sqlite3, sys\nwith sqlite3.connect(sys.argv[1], timeout=60) as db: db.execute(sys.argv[2])";
    // Its module is one of Debian's Python, which another one may hide.
    let mut python = std::process::Command::new("python3");
    python.args(["-c", program]).arg(catalog).arg(statement).env("PATH", "/usr/bin:/bin");
    let done = python.output().unwrap_or_else(|error| panic!("python3: {error}; install the Debian package python3"));
    assert!(done.status.success(), "{done:?}");
}

/// One whose row cannot be read costs the others nothing, though all are begun together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_cannot_be_read_keeps_no_other_from_beginning() {
    let (house, clock) = House::clocked(|_| ()).await;
    for name in ["a", "b", "c"] {
        house.disk(name, vec![7; 1 << 16]);
    }
    house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    let mode = async |mode: &str| {
        let answer = house.fixture.json("PATCH", "/api/v1/repositories/two", &json!({"mode": mode}).to_string()).await;
        assert!(answer.status.is_success(), "{answer:?}");
    };
    // They stand ready together.
    mode("read_only").await;
    house.post("policies", json!({"name": "gold", "vms": ["*"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "daily", "policy_id": "gold", "cron": "0 9 * * *"})).await;
    let vms = async || newest(&house.fixture, "daily").await["vms"].as_array().cloned().unwrap_or_default();
    clock.advance_seconds(HOUR);
    until("all wait for the repository", async || {
        let vms = vms().await;
        vms.len() == 3 && vms.iter().all(|vm| vm["outcome"] == "waiting" && vm["reason"].is_string())
    })
    .await;
    let catalog = house.fixture.hub.app().core.data_dir.catalog_path();
    spoil(&catalog, "UPDATE vm_contexts SET power_state = 'nonsense' WHERE vm_name = 'b'");
    mode("normal").await;
    clock.advance_seconds(60);
    let outcome = async |number: usize| vms().await[number]["outcome"].clone();
    until("the others have points", async || outcome(0).await == "completed" && outcome(2).await == "completed").await;
    let spoiled = vms().await[1].clone();
    assert_eq!((&spoiled["vm_name"], &spoiled["attempts"]), (&json!("b"), &json!(1)), "{spoiled:#}");
    assert_ne!(spoiled["outcome"], "completed");
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_is_left_out_where_a_schedule_says_so() {
    let (house, clock) = House::clocked(|_| ()).await;
    house.web(vec![7; 1 << 16]).await;
    house.post("policies", json!({"name": "gold", "vms": ["*"], "repository_id": "two"})).await;
    house
        .post("schedules", json!({"name": "hourly", "policy_id": "gold", "cron": "0 * * * *", "catch_up": "skip"}))
        .await;
    clock.advance_seconds(24 * HOUR + 1800);
    let missed = ended(&house.fixture, "hourly", 1).await;
    assert_eq!(due(&missed), [("2027-01-16T08:00:00Z", "skipped")], "{missed:#?}");
    assert!(missed[0]["reason"].is_string(), "{missed:#?}");
    assert_eq!(house.client.list_backups(&Default::default()).await.unwrap().items.len(), 0);
    clock.advance_seconds(1800);
    let next = ended(&house.fixture, "hourly", 2).await;
    assert_eq!(due(&next)[0], ("2027-01-16T09:00:00Z", "completed"), "{next:#?}");
    house.fixture.hub.shutdown().await;
}

/// Nobody names it anywhere: its name matches, the next look finds it, and the next occurrence backs it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_machine_is_protected_without_anyones_doing() {
    let (house, clock) = House::clocked(|_| ()).await;
    let make = |name: &str| {
        house.disk(name, vec![7; 1 << 16]);
    };
    make("web-1");
    house.machine("images", SourceKind::Image, house.path("vms")).await;
    house.post("policies", json!({"name": "gold", "vms": ["web-*"], "repository_id": "two"})).await;
    house.post("schedules", json!({"name": "hourly", "policy_id": "gold", "cron": "0 * * * *"})).await;
    for name in ["db-1", "web-2"] {
        make(name);
    }
    crate::schedule::discover_all(house.fixture.hub.app()).await.unwrap();
    clock.advance_seconds(HOUR);
    let executions = ended(&house.fixture, "hourly", 1).await;
    assert_eq!(due(&executions), [("2027-01-15T09:00:00Z", "completed")], "{executions:#?}");
    let mut names: Vec<String> = house
        .client
        .list_backups(&Default::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|one| one.vm_name)
        .collect();
    names.sort();
    assert_eq!(names, ["web-1", "web-2"]);
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalog_is_copied_once_a_day_by_itself() {
    let (house, clock) = House::clocked(|_| ()).await;
    let core = house.fixture.hub.app().core.clone();
    let copies = async || house.client.list_catalog_copies("one").await.unwrap().len();
    for (hours, expected) in [(0, 1), (0, 1), (23, 1), (1, 2), (24, 3)] {
        clock.advance_seconds(hours * HOUR);
        crate::catalog_copy::keep::pass(&core).await;
        assert_eq!(copies().await, expected, "{hours}");
    }
    house.fixture.hub.shutdown().await;
}
