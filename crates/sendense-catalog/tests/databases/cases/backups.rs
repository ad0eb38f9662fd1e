//! Backups, chains, deletion.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;

pub async fn a_backup_lives_from_begin_to_deletion(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups) = (&world.vms[0], world.catalog.backups());
    let new = world.new_backup(vm, BackupType::Full);

    let (pending, task) = backups.begin(&new, at(10)).await.expect("begin");
    assert_eq!((pending.status, pending.vm_name.as_str()), (BackupStatus::Pending, "vm0"));
    assert_eq!(backups.get(&new.backup_id).await.expect("get"), pending);
    assert_eq!(task.subject, TaskSubject::Backup(new.backup_id.clone()));

    let task = world.catalog.tasks().claim(&task.claim(), &world.hub, at(70), at(11)).await.expect("claim");
    let running = backups.start(&task.claim(), at(11)).await.expect("start");
    assert_eq!((running.status, running.phase), (BackupStatus::Running, Some(Phase::Snapshot)));
    assert_eq!(running.started_at, Some(at(11)));

    let plan = BackupPlan {
        backup_type: BackupType::Full,
        type_reason: Some("no parent".to_owned()),
        parent_backup_id: None,
        total_bytes: 2 << 30,
        consistency: Some(Consistency::Crash),
        partial: false,
        disks: vec![backup_disk(&new.backup_id, None, 0), backup_disk(&new.backup_id, None, 1)],
    };
    let planned = backups.plan(&task.claim(), &plan).await.expect("plan");
    assert_eq!(planned.disks.iter().map(|disk| disk.status).collect::<Vec<_>>(), vec![BackupStatus::Running; 2]);

    let progress = Progress {
        phase: Phase::Transferring,
        bytes_done: 1 << 20,
        total_bytes: 2 << 30,
        bytes_transferred: 900,
        bytes_stored: 400,
        disks: vec![DiskProgress { disk_id: DiskNumber(1), bytes_transferred: 77, bytes_stored: 66 }],
        lease_until: at(130),
        details: None,
    };
    assert!(!backups.progress(&task.claim(), &progress).await.expect("progress"));
    let seen = backups.get(&new.backup_id).await.expect("get");
    assert_eq!((seen.bytes_done, seen.disks[1].bytes_transferred), (1 << 20, 77));

    let completed = completed(&new.backup_id, None, 2);
    let point = backups.finish_completed(&task.claim(), &completed, at(20)).await.expect("finish");
    assert_eq!((point.status, point.phase, point.completed_at), (BackupStatus::Completed, None, Some(at(20))));
    assert_eq!(point.disks, completed.disks);
    let task = world.catalog.tasks().get(&new.task_id).await.expect("get the task");
    assert_eq!((task.state, task.finished_at), (TaskState::Completed, Some(at(20))));

    let chain = backups.chain(vm, DiskNumber(1), None).await.expect("chain");
    assert_eq!((&chain.full_backup_id, &chain.latest_backup_id), (&new.backup_id, &new.backup_id));
    assert_eq!(chain.backups, vec![point]);

    assert_eq!(backups.delete(std::slice::from_ref(&new.backup_id), at(30)).await.expect("delete"), 1);
    assert_eq!(backups.delete(&[new.backup_id], at(30)).await.expect("delete again"), 0);
    let gone = backups.chain(vm, DiskNumber(1), None).await.expect_err("the chain went");
    assert_eq!(gone.problem_code(), ProblemCode::DiskNotFound);
}
