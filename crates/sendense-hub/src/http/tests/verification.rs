//! Verification by a clock that is set: what nobody has looked at for a month is looked at, and nothing has to wait for it.

use super::house::{House, Stuck, until};
use super::merges_due::{merges_that_wait, set_mode};
use crate::HubConfig;
use crate::verification::{Tried, look};
use parking_lot::{Condvar, Mutex};
use sendense_api::{CheckStatus, DeleteQuery, ListQuery, MergeQuery, Task, TaskFilter, VerifyBackup};
use sendense_catalog::{Lost, Verification, Verified};
use sendense_repo::testing::stage::{Act, Script};
use sendense_types::{
    BackupId, BackupStatus, BackupType, Clock, DiskNumber, ManualClock, ProblemCode, RepositoryMode, SourceKind,
    TaskKind, TaskState, Timestamp, VerifyDepth, VerifyState,
};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const DAY: i64 = 86_400;

/// At such a rate a look at a mebibyte of noise takes a quarter of an hour: longer than a test.
fn slowly(config: &mut HubConfig) {
    config.limits.verify_bytes_per_second = 1 << 10;
}

/// A mebibyte in which nothing repeats.
fn noise(seed: u64) -> Vec<u8> {
    let numbers = (0..1_u64 << 17).map(|number| number.wrapping_add(seed << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    numbers.flat_map(|number| number.to_le_bytes()).collect()
}

/// The verifications that there were, newest first.
async fn looks(house: &House) -> Vec<Task> {
    let filter = TaskFilter { kind: Some(TaskKind::Verify), ..TaskFilter::default() };
    house.client.list_tasks(&filter).await.unwrap().items
}

/// No point is looked at.
async fn is_idle(house: &House) -> bool {
    let have_ended = looks(house).await.iter().all(|task| task.state.is_final());
    have_ended && !house.fixture.hub.app().core.running.is_at_work_aside()
}

/// What a look at rest that ends now may say.
fn found(house: &House, state: VerifyState) -> Verification {
    let (depth, at) = (Some(VerifyDepth::AtRest), house.fixture.hub.app().core.now());
    Verification { state, depth, at, bytes: 1, took_ms: 1, open_ms: None, finding: None }
}

/// Notes that a look at the point has found this.
async fn note(house: &House, point: &BackupId, found: Verification, lost: Lost) {
    let mark = Verified { backup_id: point.clone(), verification: Some(found), lost, generation: None };
    house.fixture.hub.app().core.catalog.backups().set_verified(&[mark]).await.unwrap();
}

/// Merges the point into its successor; gives the task once it has ended.
async fn merge(house: &House, point: &BackupId) -> Task {
    let merge = house.client.merge_backup(point, &MergeQuery::default()).await.unwrap();
    house.client.wait_for_task(&merge.task_id.unwrap(), |_| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_point_and_what_nobody_has_looked_at_for_a_month_are_verified() {
    let (house, clock) = House::clocked(|config| config.limits.verify_deep = true).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let first = house.back_up(&vm, "one", BackupType::Full).await;
    let stands = async |id| house.client.get_backup(id).await.unwrap();
    clock.advance_seconds(DAY + 60);
    until("the first is verified", async || stands(&first).await.verify_state.is_some()).await;
    let second = house.back_up(&vm, "one", BackupType::Full).await;
    let found = stands(&first).await;
    assert_eq!((found.verify_state, found.verify_depth), (Some(VerifyState::Sound), Some(VerifyDepth::Deep)));
    assert!(found.verify_speed_bps.is_some_and(|speed| speed > 0), "{found:?}");
    assert!(found.verify_open_ms.is_some_and(|ms| ms > 0), "{found:?}");
    assert_eq!(stands(&second).await.verify_state, None, "its day is not over");
    let made = looks(&house).await;
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(made[0].requested_by.as_deref(), Some("verification"));

    // A bit of the second rots before it is looked at: it is marked, and whoever looks at the log of its task sees where.
    let image = house.path(&format!("one/{vm}/disk-0/{second}.qcow2"));
    let file = std::fs::File::options().write(true).open(image).unwrap();
    file.write_all_at(&[1], file.metadata().unwrap().len() - 1).unwrap();
    clock.advance_seconds(DAY + 60);
    until("the second is verified", async || stands(&second).await.verify_state.is_some()).await;
    let found = stands(&second).await;
    assert_eq!(found.verify_state, Some(VerifyState::Corrupt), "{found:?}");
    assert!(found.verify_finding.as_deref().is_some_and(|finding| !finding.is_empty()));
    let made = looks(&house).await;
    let task = house.client.wait_for_task(&made[0].task_id, |_| {}).await.unwrap();
    assert!(task.error.is_some_and(|error| error.message.contains("is damaged")), "{made:?}");
    let log = house.client.task_log(&made[0].task_id, &ListQuery::default()).await.unwrap();
    assert!(log.items.iter().any(|line| line.message.contains(&format!("{second}.qcow2"))), "{:?}", log.items);
    let before = stands(&first).await;
    assert_eq!(before.verify_state, Some(VerifyState::Sound));
    assert_eq!(made.len(), 2, "{made:?}");
    // A month after its look, and before that of the other one, the first has its turn again.
    clock.advance_seconds(29 * DAY);
    until("the first is verified again", async || stands(&first).await.verified_at > before.verified_at).await;
    assert_eq!(stands(&second).await.verified_at, found.verified_at);
    house.fixture.hub.shutdown().await;
}

/// Where no more tasks may wait, no point is put off for a day: the next look asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_list_of_tasks_puts_no_look_off() {
    let (house, clock) = House::clocked(|config| config.limits.pending_max = 1).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let point = house.back_up(&vm, "one", BackupType::Full).await;
    merges_that_wait(&house, 1).await;
    clock.advance_seconds(DAY + 60);
    let (app, mut tried) = (house.fixture.hub.app(), Tried::default());
    assert_eq!(look(app, &mut tried).await.unwrap(), None);
    assert!(looks(&house).await.is_empty());
    set_mode(&house, RepositoryMode::Normal).await;
    until("the list is empty", async || app.core.catalog.tasks().pending(1).await.unwrap().is_empty()).await;
    // Or the hub was faster, which looks each ten seconds.
    let begun = look(app, &mut tried).await.unwrap();
    assert!(begun.is_none_or(|begun| begun == point) && looks(&house).await.len() == 1);
    house.fixture.hub.shutdown().await;
}

/// While verification is behind, a look that a point waits for since its last one does not keep the first look at another one waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_for_the_longest_is_looked_at_first() {
    let (house, clock) = House::clocked(|_| ()).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let old = house.back_up(&vm, "one", BackupType::Full).await;
    note(&house, &old, found(&house, VerifyState::Sound), Lost::new()).await;
    clock.advance_seconds(27 * DAY);
    let new = house.back_up(&vm, "one", BackupType::Full).await;
    // The one is due for a day now, the other one for three.
    clock.advance_seconds(4 * DAY);
    let mut tried = Tried::default();
    // The hub looks, too, each ten seconds.
    while looks(&house).await.len() < 2 {
        look(house.fixture.hub.app(), &mut tried).await.unwrap();
        until("it was looked at", async || is_idle(&house).await).await;
    }
    let looks: Vec<_> = looks(&house).await.into_iter().rev().map(|task| task.backup_id).collect();
    assert_eq!(looks, [Some(new), Some(old)]);
    house.fixture.hub.shutdown().await;
}

/// A machine that is backed up each day and keeps three points; what is older is merged.
struct Daily {
    house: House,
    clock: Arc<ManualClock>,
    vm: String,
    points: Vec<BackupId>,
}

impl Daily {
    async fn new(configure: impl FnOnce(&mut HubConfig)) -> Self {
        let (house, clock) = House::clocked(configure).await;
        let vm = house.web(noise(0)).await;
        Self { house, clock, vm, points: Vec::new() }
    }

    async fn next(&mut self, day: u64) {
        self.clock.advance_seconds(DAY + 60);
        self.house.disk("web", noise(day));
        let kind = if self.points.is_empty() { BackupType::Full } else { BackupType::Incremental };
        self.points.push(self.house.back_up(&self.vm, "one", kind).await);
        if self.points.len() > 3 {
            let task = merge(&self.house, &self.points.remove(0)).await;
            assert!(task.error.is_none(), "{task:?}");
        }
    }
}

/// Retention lets every point go within days, and merges give its bytes to the next one: all of them are looked at all the same, and no
/// more often than the rule says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_days_only_is_proved() {
    let mut daily = Daily::new(|_| {}).await;
    let (mut tried, mut looks_at_the_first) = (Tried::default(), 0);
    for day in 0..40 {
        daily.next(day).await;
        // The hub looks, too, each ten seconds.
        let is_idle = async || is_idle(&daily.house).await;
        loop {
            let point = look(daily.house.fixture.hub.app(), &mut tried).await.unwrap();
            if point.is_none() && is_idle().await {
                break;
            }
            looks_at_the_first += u32::from(point.as_ref() == Some(&daily.points[0]));
            until("it was looked at", is_idle).await;
        }
        let vm = daily.house.client.get_vm(&daily.vm).await.unwrap();
        assert_eq!(vm.proof_overdue_since, None, "day {day}");
        let now = daily.clock.now();
        // A day after it was made, and from then on: neither a new point nor a merge takes the proof back.
        let proved =
            vm.last_proved.map(|proved| (proved.backup_id, now.seconds_since(proved.proved_at) < 31.5 * DAY as f64));
        // The second waits since the first does, for nobody had looked at that when it was made.
        let expected = match day {
            0 => None,
            1 => daily.points.last(),
            _ => daily.points.iter().nth_back(1),
        };
        assert_eq!(proved, expected.map(|point| (point.clone(), true)), "day {day}");
    }
    assert!(looks_at_the_first <= 3, "it has the most bytes: {looks_at_the_first} in 40 days");
    daily.house.fixture.hub.shutdown().await;
}

/// Where nobody gets to look, that is told, although no point is ever older than three days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_days_only_and_never_proved_is_told() {
    // Each look makes way for a merge.
    let mut daily = Daily::new(slowly).await;
    let mut told = Vec::new();
    for day in 0..11 {
        daily.next(day).await;
        told.push(daily.house.client.get_vm(&daily.vm).await.unwrap().proof_overdue_since.is_some());
    }
    assert_eq!(told, [[false; 8].as_slice(), &[true; 3]].concat(), "due after a day, and a week late");
    daily.house.fixture.hub.shutdown().await;
}

/// The newest point that is sound may stand on one that nobody looked at; the one below it is proved all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_point_that_is_proved_with_all_below_it_is_told() {
    let house = House::new(|_| {}).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let mut points = Vec::new();
    for backup_type in [BackupType::Full, BackupType::Incremental, BackupType::Incremental] {
        points.push(house.back_up(&vm, "one", backup_type).await);
    }
    let look = async |point: &BackupId, state| {
        note(&house, point, found(&house, state), Lost::new()).await;
        let vm = house.client.get_vm(&vm).await.unwrap();
        vm.last_proved.map(|proved| (proved.backup_id, proved.is_newest))
    };
    assert_eq!(look(&points[2], VerifyState::Sound).await, None);
    assert_eq!(look(&points[0], VerifyState::Sound).await, Some((points[0].clone(), false)));
    assert_eq!(look(&points[1], VerifyState::Affected).await, Some((points[2].clone(), true)), "it needs nothing lost");
    assert_eq!(look(&points[2], VerifyState::Affected).await, Some((points[0].clone(), false)));
    house.fixture.hub.shutdown().await;
}

/// Points that nobody gets to look at are told of, by the machine, until somebody has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_that_are_overdue_are_told() {
    let (house, clock) = House::clocked(slowly).await;
    let vm = house.web(noise(0)).await;
    let point = house.back_up(&vm, "one", BackupType::Full).await;
    let made = house.client.get_backup(&point).await.unwrap().completed_at.unwrap();
    let told = async || {
        let health = house.client.debug_health().await.unwrap();
        let check = health.checks.into_iter().find(|check| check.name == "overdue proofs").unwrap();
        let vm = house.client.get_vm(&vm).await.unwrap();
        (check.status, check.detail, vm.proof_overdue_since)
    };
    let well = (CheckStatus::Ok, "every point was verified when it should have been".to_owned(), None);
    assert_eq!(told().await, well);
    // First due after a day, and a week late.
    let late = async |due: Timestamp| {
        assert_eq!(told().await, well);
        clock.advance_seconds(2 * DAY);
        let (status, detail, since) = told().await;
        assert_eq!((status, since), (CheckStatus::Degraded, Some(due)), "{detail}");
        assert!(detail.ends_with(&format!(": web since {due}")), "{detail}");
    };
    clock.advance_seconds(7 * DAY);
    late(made.plus_seconds(DAY)).await;
    let found = found(&house, VerifyState::Sound);
    let looked_at = found.at;
    note(&house, &point, found, Lost::new()).await;
    // And then thirty days after that look.
    clock.advance_seconds(36 * DAY);
    late(looked_at.plus_seconds(30 * DAY)).await;
    house.fixture.hub.shutdown().await;
}

/// A release that looks at points sooner than the one before makes none of those overdue that are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_there_before_first_looks_is_overdue_when_it_would_have_been() {
    let (house, clock) = House::clocked(slowly).await;
    let vm = house.web(noise(0)).await;
    // Made before this hub began to look at new points sooner.
    clock.advance_seconds(-20 * DAY);
    let point = house.back_up(&vm, "one", BackupType::Full).await;
    let made = house.client.get_backup(&point).await.unwrap().completed_at.unwrap();
    clock.advance_seconds(20 * DAY);
    let overdue = async || house.client.get_vm(&vm).await.unwrap().proof_overdue_since;
    for (days, due) in [(0, None), (16, None), (2, Some(made.plus_seconds(30 * DAY)))] {
        clock.advance_seconds(days * DAY);
        assert_eq!(overdue().await, due, "{days} days later");
    }
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_nobody_asked_for_makes_way() {
    let (house, clock) = House::clocked(|config| {
        config.limits.running_per_hub = 1;
        slowly(config);
    })
    .await;
    let vm = house.web(noise(0)).await;
    let first = house.back_up(&vm, "one", BackupType::Full).await;
    clock.advance_seconds(31 * DAY);
    let running = &house.fixture.hub.app().core.running;
    until("it is looked at", async || running.is_at_work_aside()).await;
    // The one place of the hub and of the repository is free for a backup.
    let second = house.back_up(&vm, "one", BackupType::Full).await;
    assert!(running.is_at_work_aside(), "it goes on beside it");
    let deleted = house.client.delete_backup(&first, &DeleteQuery::default()).await.unwrap();
    assert_eq!(deleted.backups.len(), 1);
    assert!(house.client.get_backup(&first).await.is_err());
    assert_eq!(house.status(&second).await, BackupStatus::Completed);
    house.fixture.hub.shutdown().await;
}

/// A merge is not refused because a point is verified that nobody asked for, nor waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_nobody_asked_for_makes_way_for_a_merge() {
    let (house, clock) = House::clocked(slowly).await;
    let vm = house.web(noise(0)).await;
    let full = house.back_up(&vm, "one", BackupType::Full).await;
    clock.advance_seconds(5 * DAY);
    let next = house.back_up(&vm, "one", BackupType::Incremental).await;
    clock.advance_seconds(26 * DAY);
    let running = &house.fixture.hub.app().core.running;
    until("the full is looked at", async || running.is_at_work_aside()).await;
    let task = merge(&house, &full).await;
    assert!(task.error.is_none(), "{task:?}");
    assert!(house.client.get_backup(&full).await.is_err());
    assert_eq!(house.status(&next).await, BackupStatus::Completed);
    assert_eq!(looks(&house).await.last().map(|task| task.state), Some(TaskState::Cancelled));
    house.fixture.hub.shutdown().await;
}

/// A machine whose points go sooner than they can be read always has another one that is due. The other machines do not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_that_come_to_nothing_hold_up_no_other_machine() {
    let (house, clock) = House::clocked(slowly).await;
    house.disk("web", noise(0));
    house.disk("mail", noise(1));
    house.machine("images", SourceKind::Image, house.path("vms")).await;
    let back_up = async |name: &str| {
        let vm = house.client.get_vm(name).await.unwrap().vm_context_id;
        house.back_up(vm.as_str(), "one", BackupType::Full).await
    };
    let (first, second) = (back_up("web").await, back_up("web").await);
    clock.advance_seconds(60);
    let other = back_up("mail").await;
    clock.advance_seconds(2 * DAY);
    let looked_at =
        async || looks(&house).await.into_iter().rev().filter_map(|task| task.backup_id).collect::<Vec<_>>();
    let running = &house.fixture.hub.app().core.running;
    until("the first is looked at", async || running.is_at_work_aside()).await;
    house.client.delete_backup(&first, &DeleteQuery::default()).await.unwrap();
    until("another one is looked at", async || looked_at().await.len() > 1).await;
    assert_eq!(looked_at().await, [first, other.clone()], "the second is due for longer than the other machine's");
    // Where there is no other one, it has its turn again.
    house.client.delete_backup(&other, &DeleteQuery::default()).await.unwrap();
    until("the next is looked at", async || looked_at().await.len() > 2).await;
    assert_eq!(looked_at().await.last(), Some(&second));
    house.fixture.hub.shutdown().await;
}

/// Damage that a merge meets is not forgotten with it: the point that has it is marked, and the one that needs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_a_merge_meets_is_marked() {
    let house = House::new(|_| {}).await;
    let mut disk = noise(0);
    let vm = house.web(&disk).await;
    let mut points = Vec::new();
    for backup_type in [BackupType::Full, BackupType::Incremental] {
        house.disk("web", &disk);
        points.push(house.back_up(&vm, "one", backup_type).await);
        disk[..100].fill(3);
    }
    let (full, next) = (&points[0], &points[1]);
    let image =
        std::fs::File::options().write(true).open(house.path(&format!("one/{vm}/disk-0/{full}.qcow2"))).unwrap();
    // Of a block that the second point did not write anew.
    image.write_all_at(&[1, 2, 3], 4 * 65536 + 100).unwrap();
    let task = merge(&house, full).await;
    assert_eq!(task.error.map(|error| error.code), Some(ProblemCode::Corrupt));
    let stands = async |id| house.client.get_backup(id).await.unwrap().verify_state;
    assert_eq!(stands(full).await, Some(VerifyState::Corrupt));
    assert_eq!(stands(next).await, Some(VerifyState::Affected));
    house.fixture.hub.shutdown().await;
}

/// Stops whoever makes a merge's first file until it is let go on.
#[derive(Default)]
struct Turnpike {
    is_reached: AtomicBool,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Script for Turnpike {
    fn before(&self, act: &Act<'_>) -> std::io::Result<()> {
        if let Act::CreateFile(path, _) = act
            && path.to_string_lossy().contains(".merge-")
        {
            self.is_reached.store(true, Ordering::SeqCst);
            self.opened.wait_while(&mut self.is_open.lock(), |is_open| !*is_open);
        }
        Ok(())
    }

    fn after(&self, _act: &Act<'_>) {}
}

/// What of an image is shared or copied unread may be just what was found damaged since the merge began: it is given up, and the next
/// one reads every block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_of_points_that_are_found_damaged_meanwhile_is_given_up() {
    let turnpike = Arc::new(Turnpike::default());
    let script = turnpike.clone();
    let house = House::new(move |config| config.script = Some(script)).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let mut points = Vec::new();
    for backup_type in [BackupType::Full, BackupType::Incremental] {
        points.push(house.back_up(&vm, "one", backup_type).await);
    }
    let (full, next) = (&points[0], &points[1]);
    let merge = async || house.client.merge_backup(full, &MergeQuery::default()).await.unwrap().task_id.unwrap();
    let first = merge().await;
    until("it prepares its files", async || turnpike.is_reached.load(Ordering::SeqCst)).await;
    let finding = Some("segment 0 is not what was written".to_owned());
    let found = Verification { finding, ..found(&house, VerifyState::Corrupt) };
    note(&house, full, found, Lost::new()).await;
    *turnpike.is_open.lock() = true;
    turnpike.opened.notify_all();
    let error = house.client.wait_for_task(&first, |_| {}).await.unwrap().error.unwrap();
    assert_eq!(error.code, ProblemCode::Conflict, "{error:?}");
    assert!(format!("{error:?}").contains("damage of the points became known"), "{error:?}");
    assert_eq!(house.status(full).await, BackupStatus::Completed);
    assert_eq!(house.client.get_backup(next).await.unwrap().parent_backup_id.as_ref(), Some(full));
    assert!(!Path::new(&house.path(&format!("one/{vm}/.merge-{next}"))).exists());
    let task = house.client.wait_for_task(&merge().await, |_| {}).await.unwrap();
    assert!(task.error.is_none(), "every block was as it was written: {task:?}");
    assert!(house.client.get_backup(full).await.is_err());
    house.fixture.hub.shutdown().await;
}

/// What only decoding every block has found is not taken back by a look at the files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_at_rest_calls_no_point_sound_that_is_known_to_be_damaged() {
    let house = House::new(|_| ()).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let point = house.back_up(&vm, "one", BackupType::Full).await;
    let (depth, finding) = (Some(VerifyDepth::Deep), Some("block 0 is not what was backed up".to_owned()));
    let found = Verification { depth, finding, ..found(&house, VerifyState::Corrupt) };
    note(&house, &point, found, Lost::from([(DiskNumber(0), vec![(0, 1)])])).await;
    let verify = async |deep| {
        let how = VerifyBackup { deep, own_files_only: false };
        let task = house.client.verify_backup(&point, &how).await.unwrap();
        house.client.wait_for_task(&task.task_id, |_| {}).await.unwrap().error
    };
    let error = verify(false).await.expect("it is not sound");
    assert_eq!(error.code, ProblemCode::Corrupt, "{error:?}");
    assert!(error.message.contains("is damaged") && error.message.contains("with all blocks"), "{error:?}");
    let stands = async || house.client.get_backup(&point).await.unwrap().verify_state;
    assert_eq!(stands().await, Some(VerifyState::Corrupt));
    let healed = verify(true).await;
    assert_eq!((healed, stands().await), (None, Some(VerifyState::Sound)));
    house.fixture.hub.shutdown().await;
}

/// A hub that is never idle proves its points all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_hub_verifies_beside_its_work() {
    let (house, clock) = House::clocked(|config| config.limits.running_per_hub = 1).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let point = house.back_up(&vm, "one", BackupType::Full).await;
    let stuck = Stuck::start(house.fixture.folder.path(), "s", "pattern", &["64M", "rdelay=3600"]).await;
    let slow = house.machine("slow", SourceKind::Nbd, stuck.uri.clone()).await;
    let other = house.machine("other", SourceKind::Nbd, stuck.uri.clone()).await;
    // What moves nothing for four hours would be ended.
    clock.advance_seconds(DAY - 600);
    let runs = house.start(&slow, "two").await.unwrap();
    house.until_running(&runs.backup_id).await;
    let waits = house.start(&other, "two").await.unwrap();
    clock.advance_seconds(1200);
    let proved = async || house.client.get_backup(&point).await.unwrap().verify_state.is_some();
    until("the point is verified", proved).await;
    assert_eq!(house.status(&waits.backup_id).await, BackupStatus::Pending, "it took no place, and gave none");
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_says_how_often_its_points_are_looked_at() {
    // The hub itself looks at nothing.
    let (house, clock) = House::clocked(|config| config.limits.verify_after_days = 0).await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let rules = serde_json::json!({
        "name": "gold", "vms": ["*"], "repository_id": "one", "verification": { "at_rest_days": 7, "deep_days": 30 }
    });
    let answer = house.fixture.json("POST", "/api/v1/policies", &rules.to_string()).await;
    let policy = answer.body["policy"]["policy_id"].as_str().unwrap().to_owned();
    let back_up = async |policy_id: Option<&str>| {
        let asked = serde_json::json!({
            "vm_context_id": vm, "repository_id": "one", "backup_type": "full", "policy_id": policy_id
        });
        let answer = house.fixture.json("POST", "/api/v1/backups", &asked.to_string()).await;
        let id = answer.body["backup"]["backup_id"].as_str().unwrap().parse().unwrap();
        let backup = house.client.get_backup(&id).await.unwrap();
        let task = house.client.wait_for_task(&backup.task_id.unwrap(), |_| {}).await.unwrap();
        assert!(task.error.is_none(), "{task:?}");
        backup.backup_id
    };
    let by_hand = back_up(None).await;
    let by_policy = back_up(Some("gold")).await;
    let kept = house.client.get_backup(&by_policy).await.unwrap().policy_id;
    assert_eq!(kept, Some(policy), "asked for by name, kept by id");
    let depth = async |id| house.client.get_backup(id).await.unwrap().verify_depth;
    // The first look is the one that serves for both.
    clock.advance_seconds(2 * DAY);
    until("it is decoded", async || depth(&by_policy).await == Some(VerifyDepth::Deep)).await;
    clock.advance_seconds(8 * DAY);
    until("it is looked at", async || depth(&by_policy).await == Some(VerifyDepth::AtRest)).await;
    clock.advance_seconds(23 * DAY);
    until("it is decoded again", async || depth(&by_policy).await == Some(VerifyDepth::Deep)).await;
    assert_eq!((looks(&house).await.len(), depth(&by_hand).await), (3, None), "nobody asked for the other one");
    house.fixture.hub.shutdown().await;
}
