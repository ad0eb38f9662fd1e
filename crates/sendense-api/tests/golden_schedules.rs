//! The shapes of policies, schedules and executions on the wire, written out: a change of them is a change of the contract and
//! must be seen in review.

#![allow(clippy::unwrap_used, reason = "a test that fails to make its own input should stop there")]

use expect_test::{Expect, expect};
use sendense_api::reply::{ExecutionReply, PolicyReply, ScheduleReply};
use sendense_api::{
    Day, Execution, ExecutionVm, Policy, PolicyHooks, PolicyInForce, PolicyOrder, PolicyRules, PolicyVerification,
    Retention, Schedule, ScheduleRules, ScheduleWindow,
};
use sendense_types::{ExecutionState, Timestamp, VmOutcome};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_780_000_000_000_000).plus_seconds(seconds)
}

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, expected: Expect) {
    let text = serde_json::to_string_pretty(value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value);
    expected.assert_eq(&text);
}

fn policy_rules() -> PolicyRules {
    PolicyRules {
        name: "gold".to_owned(),
        vms: vec!["web-*".to_owned()],
        tags: vec!["prod".parse().unwrap()],
        folders: vec!["DC/vm/web".to_owned()],
        exclude: vec!["web-test".to_owned()],
        exclude_tags: vec!["scratch".parse().unwrap()],
        exclude_folders: vec!["DC/vm/web/old".to_owned()],
        sources: Vec::new(),
        repository_id: "repo-1".to_owned(),
        full_every: Some(28),
        quiesce: true,
        quiesce_or_fail: true,
        compression: None,
        on_tracking_loss: None,
        time_limit_seconds: Some(21_600),
        bytes_per_second_max: Some(50 << 20),
        vms_at_once: Some(2),
        order: Some(PolicyOrder::LargestFirst),
        chain_points_max: Some(30),
        verification: Some(PolicyVerification { at_rest_days: Some(7), deep_days: Some(90) }),
        hooks: Some(PolicyHooks { after: Some("start-db".to_owned()), ..PolicyHooks::default() }),
        retention: Some(Retention { keep_daily: 14, ..Retention::default() }),
    }
}

fn schedule_rules() -> ScheduleRules {
    ScheduleRules {
        name: "nightly".to_owned(),
        policy_id: "pol-1".to_owned(),
        cron: Some("30 22 * * *".to_owned()),
        every_seconds: None,
        time_zone: Some("Europe/Berlin".to_owned()),
        jitter_seconds: 600,
        catch_up: sendense_api::CatchUp::Once,
        window: Some(ScheduleWindow {
            from: "22:00".to_owned(),
            until: "06:00".to_owned(),
            days: vec![Day::Friday],
            stop_running: false,
        }),
        enabled: true,
    }
}

#[test]
fn a_policy() {
    let policy = Policy {
        policy_id: "pol-1".parse().unwrap(),
        name: "gold".to_owned(),
        rules: policy_rules(),
        in_force: PolicyInForce { chain_points_max: 30, at_rest_days: 7, deep_days: 90 },
        created_at: at(0),
        updated_at: at(1),
    };
    check(
        &PolicyReply::new(policy),
        expect![[r#"
        {
          "success": true,
          "policy": {
            "policy_id": "pol-1",
            "name": "gold",
            "rules": {
              "name": "gold",
              "vms": [
                "web-*"
              ],
              "tags": [
                "prod"
              ],
              "folders": [
                "DC/vm/web"
              ],
              "exclude": [
                "web-test"
              ],
              "exclude_tags": [
                "scratch"
              ],
              "exclude_folders": [
                "DC/vm/web/old"
              ],
              "repository_id": "repo-1",
              "full_every": 28,
              "quiesce": true,
              "quiesce_or_fail": true,
              "time_limit_seconds": 21600,
              "bytes_per_second_max": 52428800,
              "vms_at_once": 2,
              "order": "largest_first",
              "chain_points_max": 30,
              "verification": {
                "at_rest_days": 7,
                "deep_days": 90
              },
              "hooks": {
                "after": "start-db"
              },
              "retention": {
                "keep_last": 0,
                "keep_hourly": 0,
                "keep_daily": 14,
                "keep_weekly": 0,
                "keep_monthly": 0,
                "keep_yearly": 0,
                "minimum_age_seconds": 0
              }
            },
            "in_force": {
              "chain_points_max": 30,
              "at_rest_days": 7,
              "deep_days": 90
            },
            "created_at": "2026-05-28T20:26:40Z",
            "updated_at": "2026-05-28T20:26:41Z"
          }
        }"#]],
    );
}

#[test]
fn a_schedule() {
    let schedule = Schedule {
        schedule_id: "sch-1".parse().unwrap(),
        name: "nightly".to_owned(),
        policy_id: "pol-1".parse().unwrap(),
        enabled: true,
        rules: schedule_rules(),
        next_at: Some(at(60)),
        handled_at: None,
        created_at: at(0),
    };
    check(
        &ScheduleReply::new(schedule),
        expect![[r#"
        {
          "success": true,
          "schedule": {
            "schedule_id": "sch-1",
            "name": "nightly",
            "policy_id": "pol-1",
            "enabled": true,
            "rules": {
              "name": "nightly",
              "policy_id": "pol-1",
              "cron": "30 22 * * *",
              "time_zone": "Europe/Berlin",
              "jitter_seconds": 600,
              "catch_up": "once",
              "window": {
                "from": "22:00",
                "until": "06:00",
                "days": [
                  "friday"
                ],
                "stop_running": false
              },
              "enabled": true
            },
            "next_at": "2026-05-28T20:27:40Z",
            "handled_at": null,
            "created_at": "2026-05-28T20:26:40Z"
          }
        }"#]],
    );
}

#[test]
fn an_execution() {
    let execution = Execution {
        execution_id: "exec-1".parse().unwrap(),
        schedule_id: "sch-1".parse().unwrap(),
        policy_id: "pol-1".parse().unwrap(),
        due_at: at(0),
        state: ExecutionState::Failed,
        reason: Some("of 1 VMs 1 failed and 0 were left out".to_owned()),
        triggered_by: None,
        started_at: at(1),
        finished_at: Some(at(2)),
        vms: Some(vec![ExecutionVm {
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web-1".to_owned(),
            outcome: VmOutcome::Failed,
            backup_id: Some("bk-1".parse().unwrap()),
            attempts: 5,
            reason: Some("the source cannot be reached".to_owned()),
        }]),
    };
    check(
        &ExecutionReply::new(execution),
        expect![[r#"
        {
          "success": true,
          "execution": {
            "execution_id": "exec-1",
            "schedule_id": "sch-1",
            "policy_id": "pol-1",
            "due_at": "2026-05-28T20:26:40Z",
            "state": "failed",
            "reason": "of 1 VMs 1 failed and 0 were left out",
            "triggered_by": null,
            "started_at": "2026-05-28T20:26:41Z",
            "finished_at": "2026-05-28T20:26:42Z",
            "vms": [
              {
                "vm_context_id": "vm-1",
                "vm_name": "web-1",
                "outcome": "failed",
                "backup_id": "bk-1",
                "attempts": 5,
                "reason": "the source cannot be reached"
              }
            ]
          }
        }"#]],
    );
}

#[test]
fn what_is_not_known_is_refused_and_what_may_be_left_out_has_its_meaning() {
    fn refused<'de, T: Deserialize<'de> + std::fmt::Debug>(text: &'de str, word: &str) {
        let error = serde_json::from_str::<T>(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    refused::<PolicyRules>(r#"{"name": "a", "repository_id": "r"}"#, "vms");
    refused::<PolicyRules>(r#"{"name": "a", "vms": ["*"], "repository_id": "r", "folder": "x"}"#, "folder");
    refused::<ScheduleRules>(r#"{"name": "a", "policy_id": "p", "cron": "@daily", "zone": "UTC"}"#, "zone");
    refused::<ScheduleWindow>(r#"{"from": "22:00", "until": "23:00", "days": ["someday"]}"#, "someday");
    let least: ScheduleRules = serde_json::from_str(r#"{"name": "a", "policy_id": "p", "cron": "@daily"}"#).unwrap();
    assert!(least.enabled && least.catch_up == sendense_api::CatchUp::Once && least.window.is_none());
}
