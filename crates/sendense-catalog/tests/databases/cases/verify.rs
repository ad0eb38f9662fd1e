//! What verifications found.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;
use std::collections::BTreeMap;

fn sound(seconds: i64) -> Option<Verification> {
    Some(Verification {
        state: VerifyState::Sound,
        depth: Some(VerifyDepth::Deep),
        at: at(seconds),
        bytes: 5 << 30,
        took_ms: 4321,
        open_ms: Some(12),
        finding: None,
    })
}

fn said(backup_id: &BackupId, verification: Option<Verification>) -> Verified {
    Verified { backup_id: backup_id.clone(), verification, lost: Lost::new(), generation: None }
}

fn corrupt(backup_id: &BackupId, lost: Lost, seconds: i64) -> Verified {
    let finding = Some(format!("segment 0 is not what was written{}", "\0".repeat(2)));
    let state = VerifyState::Corrupt;
    let verification = sound(seconds).map(|found| Verification { state, finding, ..found });
    Verified { backup_id: backup_id.clone(), verification, lost, generation: None }
}

pub async fn what_was_found_is_kept_with_the_point(db: TestDb) {
    let world = World::new(db.open().await, 2).await;
    let backups = world.catalog.backups();
    let (vm, repository) = (&world.vms[0], &world.repository_id);
    let full = world.point(vm, None, 2, at(10)).await;
    let child = world.point(vm, Some(&full), 2, at(20)).await;
    let other = world.point(&world.vms[1], None, 1, at(30)).await;
    assert_eq!(backups.get(&full).await.expect("get").verification, None);
    assert_eq!(backups.damaged(vm, repository).await.expect("damaged"), [].into());

    let gone: BackupId = id("bk-gone");
    backups.set_verified(&[said(&child, sound(99)), said(&gone, sound(99))]).await.expect("set");
    let kept = backups.get(&child).await.expect("get");
    assert_eq!(kept.verification, sound(99));

    // A block of disk 0 is lost, and of disk 1 a file is damaged that costs none.
    let lost: Lost = [(DiskNumber(0), vec![(7, 1), (8192, 8192)]), (DiskNumber(1), vec![])].into();
    let affected = sound(100).map(|found| Verification {
        state: VerifyState::Affected,
        depth: None,
        bytes: 0,
        took_ms: 0,
        open_ms: None,
        finding: Some("it needs what bk-1 has lost".to_owned()),
        ..found
    });
    let marks = [said(&child, affected.clone()), corrupt(&full, lost.clone(), 100), corrupt(&other, lost.clone(), 100)];
    backups.set_verified(&marks).await.expect("set");
    let damaged = backups.damaged(vm, repository).await.expect("damaged");
    assert_eq!(damaged, [(full.clone(), lost.clone())].into());
    // Its own files were not looked at for that.
    let finding = affected.and_then(|said| said.finding);
    let still = sound(99).map(|found| Verification { state: VerifyState::Affected, finding, ..found });
    assert_eq!(backups.get(&child).await.expect("get").verification, still);
    let found = backups.get(&full).await.expect("get").verification.expect("verified");
    assert_eq!(found.finding.as_deref(), Some("segment 0 is not what was written\u{fffd}\u{fffd}"));

    // Of what is good again nothing is lost.
    backups.set_verified(&[said(&full, sound(200)), said(&child, None)]).await.expect("set");
    assert_eq!(backups.damaged(vm, repository).await.expect("damaged"), [].into());
    assert_eq!(backups.get(&child).await.expect("get").verification, sound(99), "as it was found itself");
    backups.set_verified(&[said(&child, None)]).await.expect("set");
    assert_eq!(backups.get(&child).await.expect("get").verification, None, "nothing is known any more");
    backups.set_verified(&[corrupt(&other, lost, 300)]).await.expect("set");
    assert_eq!(backups.delete(std::slice::from_ref(&other), at(400)).await.expect("delete"), 1);
    assert_eq!(backups.damaged(&world.vms[1], repository).await.expect("damaged"), [].into(), "it goes with the point");
}

/// A merge replaces a point's files between the look at them and what is said of them.
pub async fn what_was_found_of_files_that_were_replaced_is_not_kept(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let full = world.point(&world.vms[0], None, 1, at(10)).await;
    let child = world.point(&world.vms[0], Some(&full), 1, at(20)).await;
    let looked_at = backups.generations(&[full.clone(), child.clone(), id("bk-gone")]).await.expect("generations");
    assert_eq!(looked_at, [(full.clone(), 0), (child.clone(), 0)].into());
    let successor = standing_alone(&backups, &child).await;
    backups.merged(&successor, &full, at(30)).await.expect("merge");
    let of = |mark: Verified| Verified { generation: looked_at.get(&mark.backup_id).copied(), ..mark };
    let lost: Lost = [(DiskNumber(0), vec![(7, 1)])].into();
    for mark in [said(&child, sound(40)), corrupt(&child, lost, 40)] {
        assert_eq!(
            backups.set_verified(&[of(mark), of(said(&full, sound(40)))]).await.expect("set"),
            [child.clone()].into()
        );
        assert_eq!(backups.get(&child).await.expect("get").verification, None);
        assert_eq!(backups.damaged(&world.vms[0], &world.repository_id).await.expect("damaged"), [].into());
    }
    // Of its new files it may be said.
    let now = backups.generations(std::slice::from_ref(&child)).await.expect("generations");
    let mark = Verified { generation: now.get(&child).copied(), ..said(&child, sound(50)) };
    assert_eq!(backups.set_verified(&[mark]).await.expect("set"), [].into());
    assert_eq!(backups.get(&child).await.expect("get").verification, sound(50));
}

pub async fn a_failed_attempt_is_no_point_to_verify(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let new = world.new_backup(&world.vms[0], BackupType::Full);
    world.running(&new, at(10)).await;
    backups.set_verified(&[corrupt(&new.backup_id, [(DiskNumber(0), vec![(1, 1)])].into(), 20)]).await.expect("set");
    assert_eq!(backups.get(&new.backup_id).await.expect("get").verification, None);
    assert_eq!(backups.damaged(&world.vms[0], &world.repository_id).await.expect("damaged"), [].into());
}

fn any(repository_id: &RepositoryId) -> Unproved<'_> {
    let (depth, before) = (VerifyDepth::AtRest, at(1000));
    Unproved {
        repository_id,
        made_by: MadeBy::NoneOf(&[]),
        depth,
        before,
        waiting_before: before,
        first_looks_since: at(0),
    }
}

pub async fn a_deep_proof_outlasts_looks_at_rest(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let point = world.point(&world.vms[0], None, 1, at(10)).await;
    let since = async |depth| {
        let which = Unproved { depth, ..any(&world.repository_id) };
        let found = backups.longest_overdue(&which, 10).await.expect("find");
        found.into_iter().map(|due| due.since).collect::<Vec<_>>()
    };
    use VerifyDepth::{AtRest, Deep};
    assert_eq!((since(AtRest).await, since(Deep).await), (vec![at(11)], vec![at(11)]), "when it was made");
    let of = |depth, seconds| sound(seconds).map(|found| Verification { depth: Some(depth), ..found });
    for (depth, seconds, at_rest, deep) in [(Deep, 100, 100, 100), (AtRest, 200, 200, 100), (Deep, 300, 300, 300)] {
        backups.set_verified(&[said(&point, of(depth, seconds))]).await.expect("set");
        assert_eq!((since(AtRest).await, since(Deep).await), (vec![at(at_rest)], vec![at(deep)]), "{depth} {seconds}");
    }
    // What was found corrupt was decoded; what depends on it was not even looked at.
    let lost: Lost = [(DiskNumber(0), vec![(1, 1)])].into();
    backups.set_verified(&[corrupt(&point, lost, 400)]).await.expect("set");
    assert_eq!(since(Deep).await, [at(400)]);
    let affected = sound(500).map(|found| Verification { state: VerifyState::Affected, depth: None, ..found });
    backups.set_verified(&[said(&point, affected.clone())]).await.expect("set");
    assert_eq!((since(AtRest).await, since(Deep).await), (vec![at(400)], vec![at(400)]));
    backups.set_verified(&[said(&point, None)]).await.expect("set");
    assert_eq!((since(AtRest).await, since(Deep).await), (vec![at(11)], vec![at(11)]));
    // Another one's damage takes no look back, nor does its end.
    backups.set_verified(&[said(&point, sound(450))]).await.expect("set");
    for said_of_it in [affected.clone(), None] {
        backups.set_verified(&[said(&point, said_of_it)]).await.expect("set");
        assert_eq!((since(AtRest).await, since(Deep).await), (vec![at(450)], vec![at(450)]));
    }
    // Where nobody ever looked, another one's damage is no look.
    let other = world.point(&world.vms[0], Some(&point), 1, at(600)).await;
    for (said_of_it, state) in [(affected, Some(VerifyState::Affected)), (None, None)] {
        backups.set_verified(&[said(&other, said_of_it)]).await.expect("set");
        let found = backups.get(&other).await.expect("get").verification;
        assert_eq!(found.as_ref().map(|found| (found.state, found.depth)), state.map(|state| (state, None)));
        assert_eq!(since(AtRest).await, [at(450), at(601)], "{state:?}");
    }
}

pub async fn points_of_a_policy_are_found_by_themselves(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let both: [PolicyId; 2] = [id("pol-gold"), id("pol-silver")];
    let gold = &both[..1];
    let mut made = Vec::new();
    for (number, policy) in [Some(&both[0]), Some(&both[1]), None].into_iter().enumerate() {
        let policy_id = policy.map(|policy| policy.to_string());
        let new = NewBackup { policy_id, ..world.new_backup(&world.vms[0], BackupType::Full) };
        let now = at(10 * (number as i64 + 1));
        let claim = world.running(&new, now).await;
        backups.finish_completed(&claim, &completed(&new.backup_id, None, 1), now).await.expect("finish");
        made.push(new.backup_id);
    }
    let found = async |made_by| {
        let which = Unproved { made_by, ..any(&world.repository_id) };
        let found = backups.longest_overdue(&which, 10).await.expect("find");
        found.into_iter().map(|due| due.point.backup_id).collect::<Vec<_>>()
    };
    assert_eq!(found(MadeBy::AnyOf(gold)).await, made[..1]);
    assert_eq!(found(MadeBy::NoneOf(&[])).await, made);
    assert_eq!(found(MadeBy::NoneOf(gold)).await, made[1..]);
    assert_eq!(found(MadeBy::AnyOf(&both)).await, made[..2]);
    assert_eq!(found(MadeBy::NoneOf(&both)).await, made[2..]);
    assert_eq!(found(MadeBy::AnyOf(&[])).await, []);
    // By machine and repository; what failed is none.
    let failed =
        NewBackup { policy_id: Some("pol-gold".to_owned()), ..world.new_backup(&world.vms[0], BackupType::Full) };
    let claim = world.running(&failed, at(50)).await;
    backups.finish_cancelled(&claim, at(51)).await.expect("cancel");
    let one = backups.made_for(&both[0]).await.expect("look").remove(0);
    assert_eq!((&one.vm_context_id, &one.repository_id, one.points), (&world.vms[0], &world.repository_id, 1));
    assert_eq!(backups.made_for(&id("pol-none")).await.expect("look"), []);
}

pub async fn the_oldest_proof_is_found_first(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let mut points = Vec::new();
    for number in 0..5 {
        // Each ends one second after it began.
        points.push(world.point(&world.vms[0], points.last(), 1, at(10 * number)).await);
        // So that no other one waits since this one does.
        backups.set_verified(&[said(&points[0], sound(1))]).await.expect("set");
    }
    let oldest = async |before: i64, limit: u64| {
        let which = Unproved { before: at(before), waiting_before: at(before), ..any(&world.repository_id) };
        let found = backups.longest_overdue(&which, limit).await.expect("find");
        let position = |due: &Due| points.iter().position(|id| *id == due.point.backup_id).expect("known");
        found.iter().map(position).collect::<Vec<_>>()
    };
    assert_eq!(oldest(1000, 10).await, [0, 1, 2, 3, 4]);
    assert_eq!(oldest(1000, 2).await, [0, 1]);
    assert_eq!(oldest(21, 10).await, [0, 1], "the third ended at 21");
    backups.set_verified(&[said(&points[0], sound(35)), said(&points[3], sound(5))]).await.expect("set");
    assert_eq!(oldest(1000, 10).await, [3, 1, 2, 0, 4]);
    assert_eq!(oldest(35, 10).await, [3, 1, 2]);
    let machines = async |before: i64| {
        let which = Unproved { before: at(before), waiting_before: at(before), ..any(&world.repository_id) };
        backups.unproved_machines(&which).await.expect("machines")
    };
    let vm = &world.vms[0];
    let of = |looked_at, waits_since| [(vm.clone(), Oldest { looked_at, waits_since, waited_before: None })].into();
    assert_eq!(machines(1000).await, of(Some(at(5)), Some(at(11))), "the oldest of both sorts");
    set_all(&backups, &points, 900).await;
    assert_eq!((machines(1000).await, machines(900).await), (of(Some(at(900)), None), [].into()));
    // Who waits for a first look has a time of its own.
    let sixth = world.point(&world.vms[0], points.last(), 1, at(950)).await;
    for (before, waiting_before, expected) in [(0, 960, true), (960, 0, false)] {
        let which = Unproved { before: at(before), waiting_before: at(waiting_before), ..any(&world.repository_id) };
        let found = backups.longest_overdue(&which, 10).await.expect("find");
        assert_eq!(found.iter().any(|due| due.point.backup_id == sixth), expected);
    }
    let elsewhere = backups.longest_overdue(&any(&id("repo-none")), 10).await.expect("find");
    assert_eq!(elsewhere, []);
}

/// A look that is a month late must not keep a first one waiting that is late for longer.
pub async fn what_is_late_for_the_longest_is_found_first(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    // When each was made, and when it was looked at.
    let lives = [
        (100, Some(900)),
        (110, Some(700)),
        (1700, None),
        (1850, None),
        (120, Some(800)),
        (1701, Some(800)),
        (1800, None),
        (1950, None),
        (130, Some(1000)),
    ];
    let mut points = Vec::new();
    for (made, looked_at) in lives {
        let point = world.point(&world.vms[0], None, 1, at(made - 1)).await;
        if let Some(looked_at) = looked_at {
            backups.set_verified(&[said(&point, sound(looked_at))]).await.expect("set");
        }
        points.push(point);
    }
    let which = Unproved { before: at(1000), waiting_before: at(1900), ..any(&world.repository_id) };
    // Of those that are late by the same the one first that was made first.
    let expected = [(1, 300), (4, 200), (2, 200), (5, 200), (0, 100), (6, 100), (3, 50)];
    for limit in 0..=lives.len() {
        let found = backups.longest_overdue(&which, limit as u64).await.expect("find");
        let position = |due: &Due| points.iter().position(|id| *id == due.point.backup_id).expect("known");
        let found: Vec<_> = found.iter().map(|due| (position(due), due.overdue.as_secs())).collect();
        assert_eq!(found, expected[..limit.min(expected.len())], "at most {limit}");
    }
    for (position, point) in points.iter().enumerate() {
        let is_due = backups.is_due(&which, point).await.expect("ask");
        assert_eq!(is_due, expected.iter().any(|(due, _)| *due == position), "{position}");
    }
}

/// As a merge leaves it: it stands on nothing any more.
async fn standing_alone(backups: &Backups<'_>, id: &BackupId) -> Backup {
    let mut point = backups.get(id).await.expect("get");
    (point.backup_type, point.parent_backup_id) = (BackupType::Full, None);
    for disk in &mut point.disks {
        (disk.backup_type, disk.parent_backup_id) = (BackupType::Full, None);
    }
    point
}

/// Of each point how long it is unproved at rest, and deep.
async fn unproved(world: &World) -> BTreeMap<BackupId, (Timestamp, Timestamp)> {
    let backups = world.catalog.backups();
    let since = async |depth| {
        let which = Unproved { depth, ..any(&world.repository_id) };
        let found = backups.longest_overdue(&which, 10).await.expect("find");
        found.into_iter().map(|due| (due.point.backup_id, due.since)).collect::<BTreeMap<_, _>>()
    };
    let deep = since(VerifyDepth::Deep).await;
    since(VerifyDepth::AtRest).await.into_iter().map(|(id, at_rest)| (id.clone(), (at_rest, deep[&id]))).collect()
}

/// Retention lets each point go before it is of age, and its bytes go on in the next one: these are as old as ever.
pub async fn what_a_point_took_over_is_no_younger_in_it(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (backups, vm) = (world.catalog.backups(), &world.vms[0]);
    let mut oldest = world.point(vm, None, 1, at(10)).await;
    // Never looked at: as old as they are. The next point of such a machine waits since then, too.
    for seconds in [20, 30] {
        let next = world.point(vm, Some(&oldest), 1, at(seconds)).await;
        let same = (at(11), at(11));
        assert_eq!(unproved(&world).await, [(oldest.clone(), same), (next.clone(), same)].into());
        backups.merged(&standing_alone(&backups, &next).await, &oldest, at(seconds + 5)).await.expect("merge");
        assert_eq!(unproved(&world).await, [(next.clone(), same)].into());
        oldest = next;
    }
    // Looked at: as old as the look is, although nothing is said of the successor.
    let at_rest = sound(100).map(|found| Verification { depth: Some(VerifyDepth::AtRest), ..found });
    backups.set_verified(&[said(&oldest, at_rest)]).await.expect("set");
    let next = world.point(vm, Some(&oldest), 1, at(200)).await;
    assert_eq!(unproved(&world).await[&next], (at(201), at(201)), "one was looked at: it waits for its own");
    for again in [300, 301] {
        backups.merged(&standing_alone(&backups, &next).await, &oldest, at(again)).await.expect("merge");
        assert_eq!(backups.get(&next).await.expect("get").verification, None, "not all of it was looked at");
        assert_eq!(unproved(&world).await, [(next.clone(), (at(100), at(11)))].into());
    }
    // Not before its turn, as one would that nobody ever looked at.
    let which = Unproved { before: at(0), ..any(&world.repository_id) };
    assert_eq!(backups.longest_overdue(&which, 10).await.expect("find"), []);
    backups.set_verified(&[said(&next, sound(400))]).await.expect("set");
    assert_eq!(unproved(&world).await, [(next, (at(400), at(400)))].into());
}

/// All points of a machine go before the first of them is due: it waits since the first one did all the same.
pub async fn a_machine_that_nobody_looked_at_waits_since_its_first_point(db: TestDb) {
    let world = World::new(db.open().await, 2).await;
    let backups = world.catalog.backups();
    let mut points = Vec::new();
    for seconds in [10, 20, 30, 40] {
        points.push(world.point(&world.vms[0], None, 1, at(seconds)).await);
        if points.len() > 2 {
            backups.delete(&[points.remove(0)], at(seconds + 2)).await.expect("delete");
        }
    }
    let other = world.point(&world.vms[1], None, 1, at(50)).await;
    let known = unproved(&world).await;
    assert_eq!((known.len(), known[&points[0]].0, known[&points[1]].0), (3, at(11), at(11)));
    assert_eq!(known[&other].0, at(51), "of another machine");
    backups.set_verified(&[said(&points[1], sound(60))]).await.expect("set");
    let next = world.point(&world.vms[0], None, 1, at(70)).await;
    assert_eq!(unproved(&world).await[&next].0, at(71));
}

/// What was there before first looks had a time of their own is due when it was to be then, and not all at once.
pub async fn what_waited_before_there_were_first_looks_is_due_as_it_was(db: TestDb) {
    let world = World::new(db.open().await, 3).await;
    let backups = world.catalog.backups();
    let mut points = Vec::new();
    for (vm, made) in [(0, 100), (0, 150), (1, 450), (1, 790), (2, 800), (2, 1850), (2, 1950)] {
        let point = world.point(&world.vms[vm], None, 1, at(made - 1)).await;
        // Each waits for itself.
        db.execute(&format!(
            "UPDATE backups SET unproved_since = {} WHERE backup_id = '{point}'",
            at(made).as_micros()
        ))
        .await;
        points.push(point);
    }
    let which = |first_looks_since: i64| Unproved {
        before: at(500),
        waiting_before: at(1900),
        first_looks_since: at(first_looks_since),
        ..any(&world.repository_id)
    };
    for (since, expected) in [
        (0, [(0, 1800), (1, 1750), (2, 1450), (3, 1110), (4, 1100), (5, 50)].as_slice()),
        (150, &[(1, 1750), (2, 1450), (3, 1110), (4, 1100), (0, 400), (5, 50)]),
        (800, &[(4, 1100), (0, 400), (1, 350), (2, 50), (5, 50)]),
        (1900, &[(0, 400), (1, 350), (2, 50)]),
    ] {
        for limit in 0..=points.len() {
            let found = backups.longest_overdue(&which(since), limit as u64).await.expect("find");
            let position = |due: &Due| points.iter().position(|id| *id == due.point.backup_id).expect("known");
            let found: Vec<_> = found.iter().map(|due| (position(due), due.overdue.as_secs())).collect();
            assert_eq!(found, expected[..limit.min(expected.len())], "first looks since {since}, at most {limit}");
        }
    }
    let machines = backups.unproved_machines(&which(800)).await.expect("machines");
    let of = |waits_since, waited_before| Oldest { looked_at: None, waits_since, waited_before };
    let expected = [
        (world.vms[0].clone(), of(None, Some(at(100)))),
        (world.vms[1].clone(), of(None, Some(at(450)))),
        (world.vms[2].clone(), of(Some(at(800)), None)),
    ];
    assert_eq!(machines, expected.into());
}

/// Points that go within hours, beside one that is kept and was looked at: about once a day one of them is due all the same.
pub async fn what_goes_unproved_hands_its_waiting_on(db: TestDb) {
    const HOUR: i64 = 3600;
    let world = World::new(db.open().await, 2).await;
    let (backups, vm) = (world.catalog.backups(), &world.vms[0]);
    let kept = world.point(vm, None, 1, at(0)).await;
    backups.set_verified(&[said(&kept, sound(2))]).await.expect("set");
    let of_another = world.point(&world.vms[1], None, 1, at(0)).await;
    let (mut points, mut looks) = (Vec::new(), Vec::new());
    for hour in 1..=100 {
        points.push(world.point(vm, None, 1, at(hour * HOUR)).await);
        let now = at(hour * HOUR + 2);
        if points.len() > 3 {
            backups.delete(&[points.remove(0)], now).await.expect("delete");
        }
        let waiting_before = now.plus_seconds(-24 * HOUR);
        let which = Unproved { before: at(-1), waiting_before, ..any(&world.repository_id) };
        for due in backups.longest_overdue(&which, 10).await.expect("find") {
            let point = due.point.backup_id;
            if point != of_another {
                assert_eq!(Some(&point), points.last(), "the newest is there for the longest");
                looks.push(hour);
                backups.set_verified(&[said(&point, sound(hour * HOUR + 3))]).await.expect("set");
            }
        }
    }
    assert_eq!(looks, [25, 50, 75, 100]);
    let all = Unproved { waiting_before: at(1000 * HOUR), ..any(&world.repository_id) };
    let waits = async |id: &BackupId| {
        let found = backups.longest_overdue(&all, 10).await.expect("find");
        found.into_iter().find(|due| due.point.backup_id == *id).map(|due| due.since)
    };
    assert_eq!(waits(&of_another).await, Some(at(1)), "another machine's");
    // A point that was looked at leaves nothing to hand on, nor does one that is older than such a point.
    let newest = world.point(vm, None, 1, at(101 * HOUR)).await;
    points.push(newest.clone());
    backups.set_verified(&[said(&points[1], sound(102 * HOUR))]).await.expect("set");
    backups.delete(&[points[0].clone(), points[1].clone(), points[2].clone()], at(103 * HOUR)).await.expect("delete");
    assert_eq!(waits(&newest).await, Some(at(101 * HOUR + 1)));
}

/// A hub of an earlier release, at work beside this one while hubs are replaced, does not write down since when its points wait.
pub async fn what_an_earlier_release_made_waits_since_it_was_made(db: TestDb) {
    let world = World::new(db.open().await, 3).await;
    let (backups, repository) = (world.catalog.backups(), &world.repository_id);
    let forgets = "UPDATE backups SET unproved_since = NULL";
    let first = world.point(&world.vms[0], None, 1, at(10)).await;
    let other = world.point(&world.vms[1], None, 1, at(20)).await;
    let new = world.new_backup(&world.vms[2], BackupType::Full);
    let running = world.running(&new, at(25)).await;
    db.execute(forgets).await;
    // Who comes after it, or takes it over, knows all the same.
    let next = world.point(&world.vms[0], Some(&first), 1, at(30)).await;
    assert_eq!(unproved(&world).await, [(next.clone(), (at(11), at(11)))].into());
    db.execute(forgets).await;
    backups.merged(&standing_alone(&backups, &next).await, &first, at(40)).await.expect("merge");
    assert_eq!(unproved(&world).await, [(next.clone(), (at(11), at(11)))].into());
    // Two hubs may begin at once.
    let (one, two) = tokio::join!(backups.settle_waiting(repository), backups.settle_waiting(repository));
    assert_eq!(one.expect("settle") + two.expect("settle"), 1);
    assert_eq!(unproved(&world).await, [(next.clone(), (at(11), at(11))), (other.clone(), (at(21), at(21)))].into());
    // What was looked at, and is not proved any more.
    db.execute(forgets).await;
    backups.set_verified(&[said(&other, sound(50))]).await.expect("set");
    assert_eq!(backups.settle_waiting(repository).await.expect("settle"), 1, "the other one was decoded");
    backups.set_verified(&[said(&other, None)]).await.expect("set");
    assert_eq!(backups.settle_waiting(repository).await.expect("settle"), 1);
    assert_eq!(
        unproved(&world).await,
        [(next, (at(31), at(31))), (other, (at(21), at(21)))].into(),
        "when they were made"
    );
    assert_eq!(backups.settle_waiting(repository).await.expect("settle"), 0);
    backups.finish_completed(&running, &completed(&new.backup_id, None, 1), at(60)).await.expect("finish");
    assert_eq!(unproved(&world).await.len(), 3);
}

/// A point that became a full holds bytes of all that it stood on.
pub async fn a_point_that_became_a_full_is_proved_as_its_chain_was(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let (backups, vm) = (world.catalog.backups(), &world.vms[0]);
    let full = world.point(vm, None, 1, at(10)).await;
    let middle = world.point(vm, Some(&full), 1, at(20)).await;
    let newest = world.point(vm, Some(&middle), 1, at(30)).await;
    let at_rest = sound(200).map(|found| Verification { depth: Some(VerifyDepth::AtRest), ..found });
    backups
        .set_verified(&[said(&full, sound(100)), said(&middle, at_rest), said(&newest, sound(300))])
        .await
        .expect("set");
    for again in [400, 401] {
        backups.became_full(&standing_alone(&backups, &newest).await, at(again)).await.expect("full");
        let found = backups.get(&newest).await.expect("get").verification.expect("proved");
        assert_eq!((found.state, found.depth, found.at), (VerifyState::Sound, Some(VerifyDepth::AtRest), at(100)));
        assert_eq!(unproved(&world).await[&newest], (at(100), at(11)));
    }
}

async fn set_all(backups: &Backups<'_>, points: &[BackupId], seconds: i64) {
    let marks: Vec<Verified> = points.iter().map(|point| said(point, sound(seconds))).collect();
    backups.set_verified(&marks).await.expect("set");
}

pub async fn all_that_a_point_builds_on_is_found(db: TestDb) {
    let world = World::new(db.open().await, 1).await;
    let backups = world.catalog.backups();
    let vm = &world.vms[0];
    let full = world.point(vm, None, 2, at(10)).await;
    let second = world.point(vm, Some(&full), 2, at(20)).await;
    let third = world.point(vm, Some(&second), 2, at(30)).await;
    let beside = world.point(vm, None, 2, at(40)).await;
    let below = async |id: &BackupId| {
        let found = backups.with_all_below(id).await.expect("below");
        found.into_iter().map(|point| point.backup_id).collect::<Vec<_>>()
    };
    assert_eq!(below(&third).await, [third.clone(), second, full.clone()]);
    assert_eq!(below(&full).await, [full]);
    assert_eq!(below(&beside).await, [beside]);
    assert_eq!(backups.with_all_below(&id("bk-x")).await.expect_err("none").kind(), Kind::NotFound);
}
