//! The shape of a prune on the wire, written out: a change of it is a change of the contract and must be seen in review.

#![allow(clippy::unwrap_used, reason = "a test that fails to make its own input should stop there")]

use expect_test::expect;
use sendense_api::reply::PruneReply;
use sendense_api::{Prune, PruneFate, PruneVm, PrunedBackup};
use sendense_types::{BackupType, Timestamp};

#[test]
fn a_prune_says_why_points_stay() {
    let prune = Prune {
        dry_run: true,
        plan_id: "0f".to_owned(),
        vm_context_id: "vm-1".parse().unwrap(),
        vm_name: "web".to_owned(),
        backups: vec![PrunedBackup {
            backup_id: "bk-1".parse().unwrap(),
            repository_id: "repo-1".parse().unwrap(),
            backup_type: Some(BackupType::Full),
            completed_at: Some(Timestamp::from_micros(1_780_000_000_000_000)),
            bytes_stored: 4096,
            fate: PruneFate::InUse,
            reason: "in use: read by mount mnt-1".to_owned(),
            kept_by_another: false,
        }],
        deleted: 0,
        kept: 1,
        freed_bytes: 0,
    };
    let reply = PruneReply::new(prune);
    let text = serde_json::to_string_pretty(&reply).unwrap();
    assert_eq!(serde_json::from_str::<PruneReply>(&text).unwrap(), reply);
    expect![[r#"
            {
              "success": true,
              "prune": {
                "dry_run": true,
                "plan_id": "0f",
                "vm_context_id": "vm-1",
                "vm_name": "web",
                "backups": [
                  {
                    "backup_id": "bk-1",
                    "repository_id": "repo-1",
                    "backup_type": "full",
                    "completed_at": "2026-05-28T20:26:40Z",
                    "bytes_stored": 4096,
                    "fate": "in_use",
                    "reason": "in use: read by mount mnt-1",
                    "kept_by_another": false
                  }
                ],
                "deleted": 0,
                "kept": 1,
                "freed_bytes": 0
              }
            }"#]]
    .assert_eq(&text);
    for fate in [PruneFate::Delete, PruneFate::Keep, PruneFate::Needed, PruneFate::InUse, PruneFate::Unknown] {
        assert_eq!(serde_json::to_value(fate).unwrap(), fate.as_str());
    }
}

#[test]
fn a_prune_refuses_what_it_does_not_know() {
    for (text, word) in [(r#"{"keep_lots": 1}"#, "keep_lots"), (r#"{"keep_last": -1}"#, "-1")] {
        let error = serde_json::from_str::<PruneVm>(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
