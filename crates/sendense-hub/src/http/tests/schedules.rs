//! Schedules by a clock that is set: what is due begins by itself, once, and what was missed is made up for once.

use super::{Fixture, PATIENCE};
use crate::http::router;
use sendense_api::Role;
use sendense_types::{ManualClock, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// 2027-01-15T08:00:00Z.
const MORNING_MICROS: i64 = 1_800_000_000_000_000;
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

fn due(executions: &[Value]) -> Vec<(&str, &str)> {
    executions.iter().map(|one| (one["due_at"].as_str().unwrap(), one["state"].as_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_begins_by_itself_and_once() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(MORNING_MICROS)));
    let given = clock.clone();
    let fixture = Fixture::configured(router::documented(), |config| config.clock = given).await;
    let folder = fixture.folder.path();
    std::fs::create_dir_all(folder.join("vms/web")).unwrap();
    std::fs::write(folder.join("vms/web/disk0.raw"), vec![7; 1 << 20]).unwrap();
    for (path, body) in [
        ("repositories", json!({"name": "main", "type": "local", "config": {"path": folder.join("repo")}})),
        ("sources", json!({"name": "images", "kind": "image", "address": folder.join("vms")})),
        ("policies", json!({"name": "all", "vms": ["*"], "repository_id": "main"})),
        ("schedules", json!({"name": "hourly", "policy_id": "all", "cron": "0 * * * *"})),
        ("schedules", json!({"name": "nightly", "policy_id": "all", "cron": "0 3 * * *"})),
        ("schedules", json!({"name": "off", "policy_id": "all", "cron": "* * * * *", "enabled": false})),
    ] {
        let answer = fixture.json("POST", &format!("/api/v1/{path}"), &body.to_string()).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
    }
    let found = fixture.call("POST", "/api/v1/sources/images/discover", Some(Role::Admin)).await;
    assert!(found.status.is_success(), "{found:?}");

    clock.advance_seconds(HOUR);
    let hourly = ended(&fixture, "hourly", 1).await;
    assert_eq!(due(&hourly), [("2027-01-15T09:00:00Z", "completed")], "{hourly:#?}");
    assert_eq!(hourly[0]["triggered_by"], Value::Null);
    // The pass that began the one has looked at the others, too.
    for other in ["nightly", "off"] {
        assert!(ended(&fixture, other, 0).await.is_empty(), "{other}");
    }

    // A day later what was missed is made up for once, and says so; what is due now is begun as always.
    let off = fixture.call("POST", "/api/v1/schedules/nightly/disable", Some(Role::Admin)).await;
    assert!(off.status.is_success(), "{off:?}");
    clock.advance_seconds(24 * HOUR + 1800);
    let hourly = ended(&fixture, "hourly", 2).await;
    assert_eq!(due(&hourly)[0], ("2027-01-16T09:00:00Z", "completed"), "{hourly:#?}");
    assert!(hourly[0]["reason"].as_str().unwrap().contains("caught up"), "{hourly:#?}");
    let off = fixture.call("POST", "/api/v1/schedules/hourly/disable", Some(Role::Admin)).await;
    assert!(off.status.is_success(), "{off:?}");
    let on = fixture.call("POST", "/api/v1/schedules/nightly/enable", Some(Role::Admin)).await;
    assert_eq!(on.body["schedule"]["next_at"], "2027-01-17T03:00:00Z", "{on:?}");
    clock.advance_seconds(17 * HOUR + 1800);
    let nightly = ended(&fixture, "nightly", 1).await;
    assert_eq!(due(&nightly), [("2027-01-17T03:00:00Z", "completed")], "{nightly:#?}");
    assert_eq!(ended(&fixture, "hourly", 2).await.len(), 2);
    fixture.hub.shutdown().await;
}
