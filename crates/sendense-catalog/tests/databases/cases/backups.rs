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

pub async fn of_eight_that_begin_one_wins(db: TestDb) {
    let world = World::new(db.open().await, 2).await;
    // Two hubs: pools of their own.
    let hubs = [world.catalog.clone(), db.open().await];
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (catalog, new) = (hubs[number % 2].clone(), world.new_backup(&world.vms[0], BackupType::Full));
        starts.spawn(async move { catalog.backups().begin(&new, at(10)).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = starts.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 7));
    let (winner, task) = won.into_iter().next().expect("one").expect("won");
    for error in lost.into_iter().map(|lost| lost.expect_err("lost")) {
        assert_eq!(error.problem_code(), ProblemCode::BackupRunning);
        let Error::Conflict(Conflict::BackupActive { backup_id, task_id, .. }) = error else { panic!("{error:?}") };
        assert_eq!((backup_id, task_id), (winner.backup_id.clone(), Some(task.task_id.clone())));
    }
    // Another machine is backed up beside it.
    world.catalog.backups().begin(&world.new_backup(&world.vms[1], BackupType::Full), at(10)).await.expect("begin");
}

/// A hypervisor that is registered twice, by its own name and behind a node, say.
pub async fn a_machine_of_two_sources_is_one(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let again = add_source(&world.catalog, "kvm-again").await.source_id;
    let told = [machine("vm0", 2), machine("other", 1)];
    let seen = world.catalog.vms().upsert_discovered(&again, &told, at(0)).await.expect("discover").vm_context_ids;
    assert_ne!(seen[0], world.vms[0]);
    for vm in [&world.vms[0], &seen[0]] {
        let same = world.catalog.vms().same_machine(vm).await.expect("look");
        assert_eq!(same.iter().collect::<std::collections::BTreeSet<_>>(), [&world.vms[0], &seen[0]].into());
    }
    assert_eq!(world.catalog.vms().same_machine(&seen[1]).await.expect("look"), [seen[1].clone()]);
    let hubs = [world.catalog.clone(), db.open().await];
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..8 {
        let vm = [&world.vms[0], &seen[0]][number / 2 % 2];
        let (catalog, new) = (hubs[number % 2].clone(), world.new_backup(vm, BackupType::Full));
        starts.spawn(async move { catalog.backups().begin(&new, at(10)).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = starts.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 7));
    let (winner, task) = won.into_iter().next().expect("one").expect("won");
    for error in lost.into_iter().map(|lost| lost.expect_err("lost")) {
        let Error::Conflict(Conflict::BackupActive { backup_id, vm_context_id, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!((backup_id, vm_context_id), (winner.backup_id.clone(), winner.vm_context_id.clone()));
    }
    world.catalog.backups().begin(&world.new_backup(&seen[1], BackupType::Full), at(10)).await.expect("another one");
    let claim = world.catalog.tasks().claim(&task.claim(), &world.hub, at(70), at(10)).await.expect("claim").claim();
    world.catalog.backups().start(&claim, at(10)).await.expect("start");
    world.catalog.backups().finish_cancelled(&claim, at(11)).await.expect("cancel");
    let other = [&world.vms[0], &seen[0]].into_iter().find(|vm| **vm != winner.vm_context_id).expect("the other");
    world.catalog.backups().begin(&world.new_backup(other, BackupType::Full), at(12)).await.expect("it is free");
}

pub async fn a_failed_backup_frees_the_machine(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups) = (&world.vms[0], world.catalog.backups());
    let full = world.point(vm, None, 1, at(0)).await;
    let new = world.new_backup(vm, BackupType::Incremental);
    let claim = world.running(&new, at(10)).await;
    backups.plan(&claim, &plan_of(&new.backup_id, Some(&full), 1)).await.expect("plan");
    assert_eq!(backups.children(&full).await.expect("children"), std::slice::from_ref(&new.backup_id));
    let busy = backups.delete(std::slice::from_ref(&full), at(11)).await.expect_err("it is being built on");
    assert_eq!(busy.problem_code(), ProblemCode::HasDependents);
    let busy = backups.delete(std::slice::from_ref(&new.backup_id), at(11)).await.expect_err("it runs");
    assert_eq!(busy.problem_code(), ProblemCode::BackupRunning);

    let problem = Problem::new(ProblemCode::NoSpace, "no space in the repository", "\0é".repeat(3_000));
    let failed = backups.finish_failed(&claim, &problem, at(12)).await.expect("fail");
    assert_eq!((failed.status, failed.error_code), (BackupStatus::Failed, Some(ProblemCode::NoSpace)));
    let message = failed.error_message.expect("a message");
    assert!(message.starts_with("no space in the repository: \u{fffd}é") && message.len() <= 4000, "{message}");
    assert_eq!(failed.disks[0].status, BackupStatus::Failed);
    let task = world.catalog.tasks().get(&new.task_id).await.expect("get");
    assert_eq!((task.state, task.error_code), (TaskState::Failed, Some(ProblemCode::NoSpace)));
    let chain = backups.chain(vm, DiskNumber(0), None).await.expect("chain");
    assert_eq!(chain.latest_backup_id, full);

    // A failed attempt needs nothing: its would-be parent may go, and the machine may be backed up again.
    assert_eq!(backups.delete(&[full], at(13)).await.expect("delete"), 1);
    let kept = backups.get(&new.backup_id).await.expect("the attempt stays listed");
    assert_eq!((kept.parent_backup_id, kept.disks[0].parent_backup_id.as_ref()), (None, None));
    world.point(vm, None, 1, at(20)).await;
}

pub async fn steps_out_of_order_are_refused(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (vm, backups, tasks) = (&world.vms[0], world.catalog.backups(), world.catalog.tasks());
    let new = world.new_backup(vm, BackupType::Full);
    let (_, task) = backups.begin(&new, at(0)).await.expect("begin");
    let wrong = |error: Error| {
        assert!(matches!(&error, Error::Conflict(Conflict::WrongState { .. })), "{error:?}");
    };
    // Not claimed yet.
    wrong(backups.start(&task.claim(), at(1)).await.expect_err("not claimed"));
    wrong(tasks.take_over(&task.claim(), &world.hub, at(9), at(1)).await.expect_err("not running"));
    let claim = tasks.claim(&task.claim(), &world.hub, at(60), at(1)).await.expect("claim").claim();
    wrong(tasks.claim(&claim, &world.hub, at(60), at(1)).await.expect_err("claimed"));
    // Claimed, but the backup was not started.
    wrong(backups.plan(&claim, &plan_of(&new.backup_id, None, 1)).await.expect_err("not started"));
    wrong(backups.finish_completed(&claim, &completed(&new.backup_id, None, 1), at(2)).await.expect_err("not started"));
    backups.start(&claim, at(2)).await.expect("start");
    wrong(backups.start(&claim, at(2)).await.expect_err("started"));
    backups.finish_completed(&claim, &completed(&new.backup_id, None, 1), at(3)).await.expect("finish");
    // Final states stay: the claim is worth nothing any more, and neither is the present version.
    let lost = backups.finish_cancelled(&claim, at(4)).await.expect_err("ended");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
    let now = tasks.get(&new.task_id).await.expect("get").claim();
    wrong(backups.finish_failed(&now, &Problem::new(ProblemCode::Internal, "x", ""), at(4)).await.expect_err("ended"));
    assert_eq!(backups.get(&new.backup_id).await.expect("get").status, BackupStatus::Completed);

    let known = NewBackup { task_id: TaskId::generate(), ..new };
    let known = backups.begin(&known, at(5)).await.expect_err("the id is known");
    assert!(matches!(&known, Error::Conflict(Conflict::Exists { what: Noun::Backup, .. })), "{known:?}");
    let unknown = NewBackup { vm_context_id: id("vm-x"), ..world.new_backup(vm, BackupType::Full) };
    let unknown = backups.begin(&unknown, at(5)).await.expect_err("no such machine");
    assert_eq!(unknown.problem_code(), ProblemCode::VmNotFound);
}

pub async fn a_plan_is_checked(db: TestDb) {
    let world = World::new(db.open().await, 2).await;
    let backups = world.catalog.backups();
    let others = world.point(&world.vms[1], None, 2, at(0)).await;
    let one_disk = world.point(&world.vms[0], None, 1, at(5)).await;
    let new = world.new_backup(&world.vms[0], BackupType::Incremental);
    let claim = world.running(&new, at(10)).await;
    let before = backups.get(&new.backup_id).await.expect("get");
    for parent in [&others, &id("bk-x"), &new.backup_id] {
        let refused = backups.plan(&claim, &plan_of(&new.backup_id, Some(parent), 1)).await.expect_err("a bad parent");
        assert_eq!(refused.problem_code(), ProblemCode::BackupNotFound, "{parent}: {refused}");
    }
    let refused = backups.plan(&claim, &plan_of(&new.backup_id, Some(&one_disk), 2)).await.expect_err("no such disk");
    assert_eq!(refused.problem_code(), ProblemCode::DiskNotFound);
    let mut twice = plan_of(&new.backup_id, None, 1);
    twice.disks.extend(twice.disks.clone());
    assert_eq!(backups.plan(&claim, &twice).await.expect_err("a disk twice").kind(), Kind::Invalid);
    let huge = BackupPlan { total_bytes: u64::MAX, ..plan_of(&new.backup_id, None, 1) };
    assert_eq!(backups.plan(&claim, &huge).await.expect_err("too large").kind(), Kind::Invalid);
    assert_eq!(backups.get(&new.backup_id).await.expect("get"), before, "a refused plan left a trace");
    backups.plan(&claim, &plan_of(&new.backup_id, Some(&one_disk), 1)).await.expect("a good plan");
    backups.plan(&claim, &plan_of(&new.backup_id, None, 2)).await.expect("another good plan");
    assert_eq!(backups.get(&new.backup_id).await.expect("get").disks.len(), 2);
}

pub async fn filters_are_combined(db: TestDb) {
    let world = World::new(db.open().await, 3).await;
    let backups = world.catalog.backups();
    for round in 0..4 {
        for (number, vm) in world.vms.iter().enumerate() {
            let now = at(100 * round + i64::try_from(number).expect("small"));
            let newest = backups.newest_completed(vm, &world.repository_id, DiskNumber(0)).await.expect("newest");
            world.point(vm, newest.map(|point| point.backup_id).as_ref(), 2, now).await;
        }
    }
    let claim = world.running(&world.new_backup(&world.vms[2], BackupType::Incremental), at(999)).await;
    backups.finish_cancelled(&claim, at(1000)).await.expect("cancel");

    let (all, total) = backups.list(&BackupFilter::default(), Page { limit: 1000, offset: 0 }).await.expect("list");
    assert_eq!((all.len(), total), (13, 13));
    assert!(all.is_sorted_by_key(|backup| std::cmp::Reverse(backup.created_at)), "newest first");
    assert!(all[1..].iter().all(|backup| backup.disks.len() == 2));
    // Every combination of filters against the stupid oracle.
    for bits in 0..32_u32 {
        let filter = BackupFilter {
            vm_name: (bits & 1 > 0).then(|| "vm2".to_owned()),
            vm_context_id: (bits & 2 > 0).then(|| world.vms[2].clone()),
            repository_id: (bits & 4 > 0).then(|| world.repository_id.clone()),
            status: (bits & 8 > 0).then_some(BackupStatus::Completed),
            backup_type: (bits & 16 > 0).then_some(BackupType::Incremental),
        };
        let expected: Vec<&Backup> = all
            .iter()
            .filter(|backup| filter.vm_name.as_deref().is_none_or(|name| name == backup.vm_name.as_str()))
            .filter(|backup| filter.vm_context_id.as_ref().is_none_or(|id| *id == backup.vm_context_id))
            .filter(|backup| filter.status.is_none_or(|status| status == backup.status))
            .filter(|backup| filter.backup_type.is_none_or(|kind| kind == backup.backup_type))
            .collect();
        let (page, total) = backups.list(&filter, Page { limit: 3, offset: 1 }).await.expect("list");
        assert_eq!(total, expected.len() as u64, "{filter:?}");
        assert_eq!(page.iter().collect::<Vec<_>>(), expected.iter().skip(1).take(3).copied().collect::<Vec<_>>());
    }
    let nowhere = BackupFilter { repository_id: Some(id("repo-x")), ..Default::default() };
    assert_eq!(backups.list(&nowhere, Page::default()).await.expect("list"), (vec![], 0));

    let newest = backups.newest_of_vms(&world.vms).await.expect("newest");
    for vm in &world.vms {
        let expected = all.iter().find(|b| b.vm_context_id == *vm && b.status == BackupStatus::Completed);
        assert_eq!(newest.get(vm), expected);
    }
    let attempts = backups.newest_attempts_of_vms(&world.vms).await.expect("attempts");
    for vm in &world.vms {
        assert_eq!(attempts.get(vm), all.iter().find(|backup| backup.vm_context_id == *vm));
        let of_vm = TaskFilter { vm_context_id: Some(vm.clone()), ..Default::default() };
        let (tasks, total) = world.catalog.tasks().list(&of_vm, Page::default()).await.expect("list tasks");
        let tasks: Vec<_> = tasks.into_iter().map(|task| Some(task.task_id)).collect();
        let expected = all.iter().filter(|backup| backup.vm_context_id == *vm).map(|backup| backup.task_id.clone());
        assert_eq!((&tasks, total), (&expected.collect(), tasks.len() as u64));
    }
}

pub async fn what_keeps_a_point_is_told(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let point = world.point(&world.vms[0], None, 1, at(10)).await;
    let held = async || {
        let row = backups.get(&point).await.expect("get");
        (row.protected, row.hold_until)
    };
    assert_eq!(held().await, (false, None));
    for (protected, until) in [(true, None), (true, None), (true, Some(at(50))), (false, Some(at(50))), (false, None)] {
        backups.set_hold(&point, protected, until).await.expect("hold");
        assert_eq!(held().await, (protected, until));
    }
    assert_eq!(backups.set_hold(&id("bk-none"), true, None).await.expect_err("unknown").kind(), Kind::NotFound);
    // A point that is taken in brings its own along.
    let known = known_vm("vm-9", "far", 1);
    let imported = Backup {
        protected: true,
        hold_until: Some(at(70)),
        ..point_of(&known, &world.repository_id, "bk-9", None, at(20))
    };
    assert!(backups.adopt(&known, &imported, at(30)).await.expect("adopt"));
    assert_eq!(backups.get(&imported.backup_id).await.expect("get"), imported);
}

/// Rows and number are of one moment, whatever is written between the two.
pub async fn a_list_agrees_with_its_number_while_points_come_and_go(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let vm = &world.vms[0];
    world.point(vm, None, 1, at(1)).await;
    let writer = async {
        for n in 0..40 {
            let point = world.point(vm, None, 1, at(100 + n)).await;
            backups.delete(&[point], at(200 + n)).await.expect("delete");
        }
    };
    let all = Page { limit: 100, offset: 0 };
    let reader = async {
        for n in 0..400 {
            let filter = BackupFilter { vm_context_id: (n % 2 == 0).then(|| vm.clone()), ..BackupFilter::default() };
            let (rows, total) = backups.list(&filter, all).await.expect("list");
            assert_eq!(rows.len() as u64, total, "{filter:?}");
        }
    };
    tokio::join!(writer, reader);
}

pub async fn what_a_turn_is_decided_by_agrees_with_lists(db: TestDb) {
    let world = World::new(db.open().await, 3).await;
    let backups = world.catalog.backups();
    let (vm, other) = (&world.vms[0], &world.vms[1]);
    let full = world.point(vm, None, 2, at(10)).await;
    let second = world.point(vm, Some(&full), 2, at(20)).await;
    let third = world.point(vm, Some(&second), 2, at(30)).await;
    let elsewhere = world.point(other, None, 1, at(40)).await;
    // A failed attempt, though newer, is no point.
    let failed = world.running(&world.new_backup(vm, BackupType::Full), at(50)).await;
    let problem = Problem::new(ProblemCode::NoSpace, "no space", "");
    backups.finish_failed(&failed, &problem, at(51)).await.expect("fail");

    let since = async |vm, most| backups.points_since_full(vm, &world.repository_id, most).await.expect("look");
    assert_eq!((since(vm, 9).await, since(vm, 3).await, since(vm, 2).await), (Some(2), Some(2), None));
    assert_eq!((since(other, 9).await, since(&world.vms[2], 9).await), (Some(0), None));
    assert_eq!(backups.points_since_full(vm, &id("repo-x"), 9).await.expect("look"), None);

    let times = backups.newest_times_of_vms(&world.vms).await.expect("look");
    let newest = backups.newest_of_vms(&world.vms).await.expect("look");
    assert_eq!(newest.len(), 2);
    let expected = newest.iter().map(|(vm, point)| (vm.clone(), point.created_at)).collect();
    assert_eq!(times, expected);
    let found = backups.of_ids(&[full.clone(), id("bk-x"), elsewhere.clone(), third]).await.expect("look up");
    assert_eq!(found.len(), 3);
    assert_eq!(found.first(), Some(&backups.get(&elsewhere).await.expect("get")), "newest first");
    assert_eq!(found.last(), Some(&backups.get(&full).await.expect("get")));
}
