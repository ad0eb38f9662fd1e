//! The shapes on the wire, written out: a change of any of them is a change of the contract and must be seen in review.

#![allow(clippy::unwrap_used, reason = "a test that fails to make its own input should stop there")]

use expect_test::{Expect, expect};
use sendense_api::reply::{
    BackupListReply, BackupReply, ChainReply, DeletionReply, DiscoveryReply, RepositoryReply, StorageReply, TaskReply,
};
use sendense_api::*;
use sendense_types::*;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// The value's JSON is as expected, and reads back as the same value.
fn check<T: serde::Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, expect: Expect) {
    let text = serde_json::to_string_pretty(value).unwrap();
    expect.assert_eq(&text);
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value);
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_780_000_000_000_000).plus_seconds(seconds)
}

fn backup() -> Backup {
    Backup {
        backup_id: "bk-2".parse().unwrap(),
        task_id: Some("task-1".parse().unwrap()),
        vm_context_id: "vm-1".parse().unwrap(),
        vm_name: "web".to_owned(),
        disk_id: Some(DiskNumber(0)),
        backup_type: BackupType::Incremental,
        requested_type: BackupType::Incremental,
        type_reason: None,
        repository_id: "repo-1".parse().unwrap(),
        policy_id: None,
        parent_backup_id: Some("bk-1".parse().unwrap()),
        status: BackupStatus::Running,
        phase: Some(Phase::Transferring),
        file_path: None,
        bytes_transferred: 1 << 20,
        bytes_stored: 0,
        total_bytes: 8 << 30,
        bytes_read: Some(1 << 21),
        bytes_to_read: Some(1 << 22),
        progress_percent: 12.5,
        transfer_speed_bps: 200_000_000,
        eta_seconds: Some(35),
        change_id: None,
        cbt_audit: None,
        consistency: Some(Consistency::Crash),
        consistency_note: Some("no guest agent".to_owned()),
        partial: false,
        excluded_disks: Vec::new(),
        error_code: None,
        error_message: None,
        verify_state: Some(VerifyState::Affected),
        verify_depth: None,
        verified_at: Some(at(7)),
        verify_speed_bps: None,
        verify_open_ms: Some(12),
        verify_finding: Some("it needs what bk-1 has lost".to_owned()),
        tags: [("team".to_owned(), "web".to_owned())].into(),
        protected: true,
        hold_until: None,
        created_at: at(0),
        started_at: Some(at(1)),
        completed_at: None,
        disks: vec![BackupDisk {
            disk_id: DiskNumber(0),
            disk_key: "disk-2000".to_owned(),
            label: "Hard disk 1".to_owned(),
            backup_type: BackupType::Incremental,
            type_reason: Some("change tracking was lost".to_owned()),
            file_path: None,
            capacity_bytes: 8 << 30,
            bytes_transferred: 1 << 20,
            bytes_stored: 0,
            backing_file: Some("bk-1.qcow2".to_owned()),
            change_id: None,
            cbt_audit: None,
            status: BackupStatus::Running,
        }],
    }
}

fn task() -> Task {
    let task_id: TaskId = "task-1".parse().unwrap();
    Task {
        log_url: Task::log_url(&task_id),
        task_id,
        kind: TaskKind::Verify,
        state: TaskState::Failed,
        backup_id: Some("bk-2".parse().unwrap()),
        vm_context_id: Some("vm-1".parse().unwrap()),
        vm_name: Some("web".to_owned()),
        repository_id: Some("repo-1".parse().unwrap()),
        source_id: None,
        requested_by: Some("admin".to_owned()),
        phase: None,
        progress_percent: 40.0,
        bytes_done: 40,
        bytes_total: Some(100),
        transfer_speed_bps: 0,
        eta_seconds: None,
        summary: None,
        error: Some(TaskError {
            code: ProblemCode::Corrupt,
            message: "stored data is damaged".to_owned(),
            details: "vm-1/disk-0/bk-2.qcow2, segment 3".to_owned(),
        }),
        cancel_requested: false,
        created_at: at(0),
        started_at: Some(at(1)),
        completed_at: Some(at(2)),
    }
}

#[test]
fn a_backup_has_every_field_also_when_it_is_null() {
    check(
        &BackupReply::done("backup started", backup()),
        expect![[r#"
            {
              "success": true,
              "message": "backup started",
              "backup": {
                "backup_id": "bk-2",
                "task_id": "task-1",
                "vm_context_id": "vm-1",
                "vm_name": "web",
                "disk_id": 0,
                "backup_type": "incremental",
                "requested_type": "incremental",
                "type_reason": null,
                "repository_id": "repo-1",
                "policy_id": null,
                "parent_backup_id": "bk-1",
                "status": "running",
                "phase": "transferring",
                "file_path": null,
                "bytes_transferred": 1048576,
                "bytes_stored": 0,
                "total_bytes": 8589934592,
                "bytes_read": 2097152,
                "bytes_to_read": 4194304,
                "progress_percent": 12.5,
                "transfer_speed_bps": 200000000,
                "eta_seconds": 35,
                "change_id": null,
                "cbt_audit": null,
                "consistency": "crash",
                "consistency_note": "no guest agent",
                "partial": false,
                "excluded_disks": [],
                "error_code": null,
                "error_message": null,
                "verify_state": "affected",
                "verify_depth": null,
                "verified_at": "2026-05-28T20:26:47Z",
                "verify_speed_bps": null,
                "verify_open_ms": 12,
                "verify_finding": "it needs what bk-1 has lost",
                "tags": {
                  "team": "web"
                },
                "protected": true,
                "hold_until": null,
                "created_at": "2026-05-28T20:26:40Z",
                "started_at": "2026-05-28T20:26:41Z",
                "completed_at": null,
                "disks": [
                  {
                    "disk_id": 0,
                    "disk_key": "disk-2000",
                    "label": "Hard disk 1",
                    "backup_type": "incremental",
                    "type_reason": "change tracking was lost",
                    "file_path": null,
                    "capacity_bytes": 8589934592,
                    "bytes_transferred": 1048576,
                    "bytes_stored": 0,
                    "backing_file": "bk-1.qcow2",
                    "change_id": null,
                    "cbt_audit": null,
                    "status": "running"
                  }
                ]
              }
            }"#]],
    );
}

#[test]
fn a_list_stands_under_its_plural() {
    check(
        &BackupListReply::from(Page { items: Vec::new(), total: 12 }),
        expect![[r#"
        {
          "success": true,
          "backups": [],
          "total": 12
        }"#]],
    );
}

#[test]
fn a_chain_stands_beside_success() {
    let vm = "vm-1".parse().unwrap();
    let chain = Chain {
        chain_id: Chain::id(&vm, DiskNumber(0)),
        vm_context_id: vm,
        vm_name: "web".to_owned(),
        disk_id: DiskNumber(0),
        repository_id: "repo-1".parse().unwrap(),
        full_backup_id: Some("bk-1".parse().unwrap()),
        latest_backup_id: Some("bk-2".parse().unwrap()),
        backups: vec![ChainBackup {
            backup: Backup { disks: Vec::new(), ..backup() },
            kind: BackupType::Incremental,
            size_bytes: 4096,
            backing_file: Some("bk-1.qcow2".to_owned()),
        }],
        backup_count: 2,
        total_size_bytes: 8192,
    };
    check(
        &ChainReply::from(chain),
        expect![[r#"
            {
              "success": true,
              "chain_id": "vm-1-disk0-chain",
              "vm_context_id": "vm-1",
              "vm_name": "web",
              "disk_id": 0,
              "repository_id": "repo-1",
              "full_backup_id": "bk-1",
              "latest_backup_id": "bk-2",
              "backups": [
                {
                  "backup_id": "bk-2",
                  "task_id": "task-1",
                  "vm_context_id": "vm-1",
                  "vm_name": "web",
                  "disk_id": 0,
                  "backup_type": "incremental",
                  "requested_type": "incremental",
                  "type_reason": null,
                  "repository_id": "repo-1",
                  "policy_id": null,
                  "parent_backup_id": "bk-1",
                  "status": "running",
                  "phase": "transferring",
                  "file_path": null,
                  "bytes_transferred": 1048576,
                  "bytes_stored": 0,
                  "total_bytes": 8589934592,
                  "bytes_read": 2097152,
                  "bytes_to_read": 4194304,
                  "progress_percent": 12.5,
                  "transfer_speed_bps": 200000000,
                  "eta_seconds": 35,
                  "change_id": null,
                  "cbt_audit": null,
                  "consistency": "crash",
                  "consistency_note": "no guest agent",
                  "partial": false,
                  "excluded_disks": [],
                  "error_code": null,
                  "error_message": null,
                  "verify_state": "affected",
                  "verify_depth": null,
                  "verified_at": "2026-05-28T20:26:47Z",
                  "verify_speed_bps": null,
                  "verify_open_ms": 12,
                  "verify_finding": "it needs what bk-1 has lost",
                  "tags": {
                    "team": "web"
                  },
                  "protected": true,
                  "hold_until": null,
                  "created_at": "2026-05-28T20:26:40Z",
                  "started_at": "2026-05-28T20:26:41Z",
                  "completed_at": null,
                  "disks": [],
                  "type": "incremental",
                  "size_bytes": 4096,
                  "backing_file": "bk-1.qcow2"
                }
              ],
              "backup_count": 2,
              "total_size_bytes": 8192
            }"#]],
    );
}

#[test]
fn a_task_says_why_it_failed() {
    check(
        &TaskReply::new(task()),
        expect![[r#"
        {
          "success": true,
          "task": {
            "task_id": "task-1",
            "kind": "verify",
            "state": "failed",
            "backup_id": "bk-2",
            "vm_context_id": "vm-1",
            "vm_name": "web",
            "repository_id": "repo-1",
            "source_id": null,
            "requested_by": "admin",
            "phase": null,
            "progress_percent": 40.0,
            "bytes_done": 40,
            "bytes_total": 100,
            "transfer_speed_bps": 0,
            "eta_seconds": null,
            "summary": null,
            "error": {
              "code": "corrupt",
              "message": "stored data is damaged",
              "details": "vm-1/disk-0/bk-2.qcow2, segment 3"
            },
            "cancel_requested": false,
            "log_url": "/api/v1/tasks/task-1/log",
            "created_at": "2026-05-28T20:26:40Z",
            "started_at": "2026-05-28T20:26:41Z",
            "completed_at": "2026-05-28T20:26:42Z"
          }
        }"#]],
    );
}

#[test]
fn an_event_carries_the_whole_object() {
    let event = Event::Task { task: Box::new(task()) };
    assert_eq!(event.name(), "task");
    let json = serde_json::to_value(&event).unwrap();
    assert_eq!(json["type"], "task");
    assert_eq!(json["task"]["task_id"], "task-1");
    check(
        &Event::Lagged { missed: 3 },
        expect![[r#"
        {
          "type": "lagged",
          "missed": 3
        }"#]],
    );
}

#[test]
fn a_deletion_is_a_plan() {
    let deletion = Deletion {
        dry_run: true,
        cascade: true,
        backups: vec![DeletedBackup {
            backup_id: "bk-2".parse().unwrap(),
            backup_type: BackupType::Incremental,
            created_at: at(0),
            bytes_stored: 4096,
            files: vec!["vm-1/bk-2.json".to_owned(), "vm-1/disk-0/bk-2.qcow2".to_owned()],
        }],
        freed_bytes: 4096,
    };
    check(
        &DeletionReply::new(deletion),
        expect![[r#"
        {
          "success": true,
          "deletion": {
            "dry_run": true,
            "cascade": true,
            "backups": [
              {
                "backup_id": "bk-2",
                "backup_type": "incremental",
                "created_at": "2026-05-28T20:26:40Z",
                "bytes_stored": 4096,
                "files": [
                  "vm-1/bk-2.json",
                  "vm-1/disk-0/bk-2.qcow2"
                ]
              }
            ],
            "freed_bytes": 4096
          }
        }"#]],
    );
}

#[test]
fn repositories_and_their_space() {
    let storage = Storage { total_bytes: 10, used_bytes: 4, available_bytes: 5, mount_point: "/backup".to_owned() };
    check(
        &StorageReply::from(storage.clone()),
        expect![[r#"
        {
          "success": true,
          "total_bytes": 10,
          "used_bytes": 4,
          "available_bytes": 5,
          "mount_point": "/backup"
        }"#]],
    );
    let repository = Repository {
        repository_id: "repo-1".parse().unwrap(),
        name: "main".to_owned(),
        kind: RepositoryKind::Local,
        config: RepositoryConfig { path: "/backup/main".to_owned() },
        compression: Compression::Default,
        running_tasks_max: None,
        mode: RepositoryMode::ReadOnly,
        mode_reason: Some("the shelf moves".to_owned()),
        mode_since: Some(at(0)),
        mode_by: Some("admin".to_owned()),
        backup_count: 2,
        storage: Some(storage),
        space: Some(RepositorySpace {
            state: SpaceState::Low,
            used_percent: 87.5,
            low_percent: 85,
            critical_percent: 95,
            bytes_per_day: Some(-3),
            full_in_days: Some(23.0),
            full_at: Some(at(0)),
        }),
        limit_bytes: None,
        floor_bytes: Some(7),
        problem: None,
        created_at: at(0),
    };
    check(
        &RepositoryReply::new(repository),
        expect![[r#"
        {
          "success": true,
          "repository": {
            "repository_id": "repo-1",
            "name": "main",
            "type": "local",
            "config": {
              "path": "/backup/main"
            },
            "compression": "default",
            "running_tasks_max": null,
            "mode": "read_only",
            "mode_reason": "the shelf moves",
            "mode_since": "2026-05-28T20:26:40Z",
            "mode_by": "admin",
            "backup_count": 2,
            "storage": {
              "total_bytes": 10,
              "used_bytes": 4,
              "available_bytes": 5,
              "mount_point": "/backup"
            },
            "space": {
              "state": "low",
              "used_percent": 87.5,
              "low_percent": 85,
              "critical_percent": 95,
              "bytes_per_day": -3,
              "full_in_days": 23.0,
              "full_at": "2026-05-28T20:26:40Z"
            },
            "limit_bytes": null,
            "floor_bytes": 7,
            "problem": null,
            "created_at": "2026-05-28T20:26:40Z"
          }
        }"#]],
    );
}

fn vm() -> Vm {
    Vm {
        vm_context_id: "vm-1".parse().unwrap(),
        vm_name: "web".to_owned(),
        source_id: Some("src-1".parse().unwrap()),
        instance_uuid: "6f1c".to_owned(),
        path: None,
        folder: Some("DC/vm/web".to_owned()),
        tags: ["prod".parse().unwrap()].into(),
        power_state: PowerState::On,
        guest_os: Some("Debian 12".to_owned()),
        cpu_count: Some(2),
        memory_bytes: Some(2 << 30),
        disks: vec![VmDisk {
            disk_id: DiskNumber(0),
            disk_key: "disk-2000".to_owned(),
            label: "Hard disk 1".to_owned(),
            capacity_bytes: 8 << 30,
            size_gb: 8.0,
            datastore: Some("ssd".to_owned()),
            path: Some("[ssd] web/web.vmdk".to_owned()),
            mode: Some("persistent".to_owned()),
            job_id: None,
            format: Some("raw".to_owned()),
            unsupported: None,
            removed: false,
        }],
        networks: vec![VmNetwork {
            key: "nic-0".to_owned(),
            network: "default".to_owned(),
            mac: Some("52:54:00:00:00:01".to_owned()),
            model: None,
        }],
        last_backup: Some(LastBackup {
            backup_id: "bk-2".parse().unwrap(),
            backup_type: BackupType::Full,
            status: BackupStatus::Completed,
            created_at: at(0),
            completed_at: Some(at(9)),
        }),
        last_proved: Some(ProvedBackup {
            backup_id: "bk-1".parse().unwrap(),
            created_at: at(-9),
            proved_at: at(5),
            depth: VerifyDepth::AtRest,
            speed_bps: Some(1 << 30),
            open_ms: Some(3),
            is_newest: false,
        }),
        proof_overdue_since: Some(at(8)),
        protection_state: ProtectionState::Protected,
        policies: vec!["gold".to_owned()],
        unscheduled: false,
        overdue_since: None,
        change_tracking: false,
        no_change_tracking: Some("it has snapshots".to_owned()),
        hardware: Some("vmx-19".to_owned()),
        snapshots: vec!["before".to_owned()],
        unsupported: None,
        missing: false,
        discovered_at: Some(at(0)),
    }
}

#[test]
fn a_discovery_lists_vms() {
    let source_id = "src-1".parse().unwrap();
    check(
        &DiscoveryReply::from(Discovery { source_id, vms: vec![vm()], total: 1, added: 1, missing: 0 }),
        expect![[r#"
            {
              "success": true,
              "source_id": "src-1",
              "vms": [
                {
                  "vm_context_id": "vm-1",
                  "vm_name": "web",
                  "source_id": "src-1",
                  "instance_uuid": "6f1c",
                  "path": null,
                  "folder": "DC/vm/web",
                  "tags": [
                    "prod"
                  ],
                  "power_state": "on",
                  "guest_os": "Debian 12",
                  "cpu_count": 2,
                  "memory_bytes": 2147483648,
                  "disks": [
                    {
                      "disk_id": 0,
                      "disk_key": "disk-2000",
                      "label": "Hard disk 1",
                      "capacity_bytes": 8589934592,
                      "size_gb": 8.0,
                      "datastore": "ssd",
                      "path": "[ssd] web/web.vmdk",
                      "mode": "persistent",
                      "job_id": null,
                      "format": "raw",
                      "unsupported": null,
                      "removed": false
                    }
                  ],
                  "networks": [
                    {
                      "key": "nic-0",
                      "network": "default",
                      "mac": "52:54:00:00:00:01",
                      "model": null
                    }
                  ],
                  "last_backup": {
                    "backup_id": "bk-2",
                    "backup_type": "full",
                    "status": "completed",
                    "created_at": "2026-05-28T20:26:40Z",
                    "completed_at": "2026-05-28T20:26:49Z"
                  },
                  "last_proved": {
                    "backup_id": "bk-1",
                    "created_at": "2026-05-28T20:26:31Z",
                    "proved_at": "2026-05-28T20:26:45Z",
                    "depth": "at_rest",
                    "speed_bps": 1073741824,
                    "open_ms": 3,
                    "is_newest": false
                  },
                  "proof_overdue_since": "2026-05-28T20:26:48Z",
                  "protection_state": "protected",
                  "policies": [
                    "gold"
                  ],
                  "unscheduled": false,
                  "overdue_since": null,
                  "change_tracking": false,
                  "no_change_tracking": "it has snapshots",
                  "hardware": "vmx-19",
                  "snapshots": [
                    "before"
                  ],
                  "unsupported": null,
                  "missing": false,
                  "discovered_at": "2026-05-28T20:26:40Z"
                }
              ],
              "total": 1,
              "added": 1,
              "missing": 0
            }"#]],
    );
}

#[test]
fn a_problem_has_five_fields() {
    let problem = Problem::new(ProblemCode::VmNotFound, "VM not found", "no VM named 'x' is known");
    check(
        &ProblemBody::new(problem, at(0)),
        expect![[r#"
        {
          "success": false,
          "error": "VM not found",
          "code": "vm_not_found",
          "details": "no VM named 'x' is known",
          "timestamp": "2026-05-28T20:26:40Z"
        }"#]],
    );
}

#[test]
fn requests_refuse_what_they_do_not_know() {
    fn refused<T: DeserializeOwned + Debug>(text: &str, word: &str) {
        let error = serde_json::from_str::<T>(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    refused::<CreateBackup>(r#"{"vm_name": "x", "bogus": 1}"#, "bogus");
    refused::<CreateBackup>(r#"{"repository_id": "r", "backup_type": "full"}"#, "vm_name is required");
    refused::<CreateRepository>(r#"{"name": "x", "type": "local", "config": {"path": "/", "bogus": 1}}"#, "bogus");
    refused::<CreateSource>(r#"{"name": "x", "kind": "image", "path": "/", "bogus": 1}"#, "bogus");
    refused::<CreateSource>(r#"{"name": "x", "kind": "nbd", "uri": "nbd://x", "nbd": {"bogus": 1}}"#, "bogus");
    refused::<CreateSource>(r#"{"name": "x", "kind": "nbd", "uri": "u", "credentials": {"bogus": 1}}"#, "bogus");
    refused::<CreateToken>(r#"{"name": "x", "role": "root"}"#, "root");
    refused::<RestoreBackup>(r#"{"target": {"kind": "nbd", "uri": "nbd://x", "bogus": 1}}"#, "bogus");
    refused::<UpdateSource>(r#"{"kind": "nbd"}"#, "kind");
    refused::<VerifyBackup>(r#"{"deeper": true}"#, "deeper");
}
