//! A machine's points go to another repository: planned, refused, done, and settled after whatever cut it off.

use super::house::{House, until};
use crate::jobs::work::{MoveWork, Work};
use crate::{HubConfig, RunningHub};
use sendense_api::{
    Client, ClientError, ClientOptions, CreateExport, CreateRepository, DeleteQuery, DeleteRepository, FindingKind,
    ListQuery, MoveQuery, MoveVm, PolicyRules, ReconcileQuery, RepositoryConfig, RepositoryReport, Task, TaskFilter,
};
use sendense_catalog::{Catalog, NewTask, TaskSubject};
use sendense_repo::layout;
use sendense_repo::testing::stage::{Act, Script};
use sendense_types::{BackupId, BackupType, ProblemCode, RepositoryKind, TaskId, TaskKind, TaskState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// While it is shut no image is removed below a folder, or no point that has come gets its name.
#[derive(Default)]
struct Gate {
    below: std::sync::Mutex<PathBuf>,
    is_shut: AtomicBool,
    at_names: AtomicBool,
}

impl Script for Gate {
    fn before(&self, act: &Act<'_>) -> io::Result<()> {
        let ends = |path: &Path, with: &str| path.extension().is_some_and(|extension| extension == with);
        let is_stuck = match act {
            Act::RemoveFile(path) if !self.at_names.load(Ordering::SeqCst) => {
                path.starts_with(&*self.below.lock().unwrap()) && ends(path, "qcow2")
            }
            Act::CreateFile(path, _) if self.at_names.load(Ordering::SeqCst) => ends(path, "naming"),
            _ => false,
        };
        match is_stuck && self.is_shut.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }

    fn after(&self, _: &Act<'_>) {}
}

/// A house with a machine of which repository `one` has a full and an incremental.
async fn with_two_points(gate: Option<Arc<Gate>>) -> (House, String, [BackupId; 2]) {
    let house = House::new(|config| {
        if let Some(gate) = gate.clone() {
            config.script = Some(gate);
        }
    })
    .await;
    if let Some(gate) = gate {
        *gate.below.lock().unwrap() = house.path("one").into();
    }
    let vm = house.web(vec![7; 1 << 20]).await;
    let full = house.back_up(&vm, "one", BackupType::Full).await;
    let next = house.back_up(&vm, "one", BackupType::Incremental).await;
    (house, vm, [full, next])
}

const NOW: MoveQuery = MoveQuery { dry_run: false };
const PLAN: MoveQuery = MoveQuery { dry_run: true };

fn to(name: &str) -> MoveVm {
    MoveVm { to_repository_id: name.to_owned(), ..MoveVm::default() }
}

async fn move_to(house: &House, vm: &str, name: &str) -> Task {
    let begun = house.client.move_chain(vm, &to(name), &NOW).await.unwrap();
    house.client.wait_for_task(&begun.task_id.unwrap(), |_| {}).await.unwrap()
}

async fn refused(house: &House, vm: &str, how: &MoveVm) -> (String, String) {
    match house.client.move_chain(vm, how, &NOW).await {
        Err(ClientError::Problem { problem, .. }) => (problem.code, format!("{}: {}", problem.error, problem.details)),
        other => panic!("{other:?}"),
    }
}

/// The ids of a machine's points, by the repository that they lie in.
async fn lie_in(house: &House, ids: &[BackupId]) -> Vec<String> {
    let mut names = Vec::new();
    for id in ids {
        let repository = house.client.get_backup(id).await.unwrap().repository_id;
        names.push(house.client.get_repository(repository.as_str()).await.unwrap().name);
    }
    names
}

async fn findings(house: &House) -> Vec<String> {
    let mut told = Vec::new();
    for name in ["one", "two"] {
        let report = house.client.reconcile_repository(name, &Default::default()).await.unwrap();
        told.extend(report.findings.iter().map(|finding| format!("{name}: {:?} {}", finding.kind, finding.subject)));
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn points_move_with_all_that_is_known_of_them_and_the_chain_goes_on_there() {
    let (house, vm, ids) = with_two_points(None).await;
    let path = format!("/api/v1/backups/{}", ids[0]);
    assert!(house.fixture.json("PATCH", &path, r#"{"protected": true}"#).await.status.is_success());
    let verified = house.client.verify_backup(&ids[1], &Default::default()).await.unwrap();
    house.client.wait_for_task(&verified.task_id, |_| {}).await.unwrap();

    let plan = house.client.move_chain(&vm, &to("two"), &PLAN).await.unwrap();
    let planned: Vec<&BackupId> = plan.backups.iter().map(|point| &point.backup_id).collect();
    assert_eq!((planned, plan.task_id.clone()), (ids.iter().collect(), None));
    assert!(plan.needed_bytes >= plan.bytes_stored && plan.available_bytes > plan.needed_bytes, "{plan:?}");
    assert_eq!(lie_in(&house, &ids).await, ["one", "one"], "a plan changes nothing");

    let task = move_to(&house, &vm, "two").await;
    assert!(task.error.is_none(), "{task:?}");
    assert_eq!(task.summary.as_deref(), Some("2 points of web were moved from one to two"));
    assert_eq!((task.kind, task.progress_percent), (TaskKind::Move, 100.0));
    assert_eq!(lie_in(&house, &ids).await, ["two", "two"]);
    assert!(!std::path::Path::new(&house.path("one")).join(layout::vm_dir(&vm.parse().unwrap())).exists());
    assert_eq!(findings(&house).await, [""; 0]);
    assert!(house.client.get_backup(&ids[0]).await.unwrap().protected, "the hold went along");
    assert!(house.client.get_backup(&ids[1]).await.unwrap().verify_state.is_some(), "so did what is proved of them");
    let held = house.client.delete_backup(&ids[0], &DeleteQuery { cascade: true, ..DeleteQuery::default() }).await;
    assert!(matches!(held, Err(ClientError::Problem { problem, .. }) if problem.code == "backup_held"));

    let next = house.back_up(&vm, "two", BackupType::Incremental).await;
    let next = house.client.get_backup(&next).await.unwrap();
    assert_eq!((next.backup_type, next.parent_backup_id), (BackupType::Incremental, Some(ids[1].clone())));
    // And back.
    assert!(move_to(&house, &vm, "one").await.error.is_none());
    assert_eq!(findings(&house).await, [""; 0]);
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_way_of_a_move_is_said() {
    let (house, vm, ids) = with_two_points(None).await;
    let told = refused(&house, &vm, &to("one")).await;
    assert_eq!(told.0, "invalid_input", "{told:?}");
    assert_eq!(refused(&house, &vm, &to("none")).await.0, "repository_not_found");
    let slow = MoveVm { bytes_per_second_max: Some((1 << 20) - 1), ..to("two") };
    assert_eq!(refused(&house, &vm, &slow).await.0, "invalid_input");
    assert_eq!(refused(&house, "nobody", &to("two")).await.0, "vm_not_found");
    let from_two = MoveVm { repository_id: Some("two".to_owned()), ..to("one") };
    assert_eq!(refused(&house, &vm, &from_two).await.0, "backup_not_found");

    // A policy that would go on where the points lie now.
    let rules: PolicyRules =
        serde_json::from_value(serde_json::json!({ "name": "nightly", "vms": ["*"], "repository_id": "one" })).unwrap();
    house.client.create_policy(&rules).await.unwrap();
    let plan = house.client.move_chain(&vm, &to("two"), &PLAN).await.unwrap();
    assert_eq!(plan.policies, ["nightly"]);
    let told = refused(&house, &vm, &to("two")).await;
    assert!(told.0 == "conflict" && told.1.contains("nightly would go on elsewhere"), "{told:?}");

    // Somebody who reads: the task says who.
    let export = house.client.create_export(&CreateExport { backup_id: ids[0].clone(), disk_id: None }).await.unwrap();
    let how = MoveVm { leave_policies: true, ..to("two") };
    let begun = house.client.move_chain(&vm, &how, &NOW).await.unwrap();
    let task = house.client.wait_for_task(&begun.task_id.unwrap(), |_| {}).await.unwrap();
    assert!(task.error.as_ref().is_some_and(|error| error.message.contains("in the way: read")), "{task:?}");
    house.client.delete_export(&export.export_id).await.unwrap();
    assert_eq!(findings(&house).await, [""; 0]);

    // Points there already.
    house.back_up(&vm, "two", BackupType::Full).await;
    let told = refused(&house, &vm, &how).await;
    assert!(told.0 == "conflict" && told.1.contains("lie in the other repository already"), "{told:?}");
    assert_eq!(lie_in(&house, &ids).await, ["one", "one"]);
    house.fixture.hub.shutdown().await;
}

/// What lay in the old place could not be removed. The points are in the new one all the same, nothing of them moves on, and the next
/// look removes the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_not_settled_is_settled_by_the_next_look() {
    let gate = Arc::new(Gate::default());
    let (house, vm, ids) = with_two_points(Some(gate.clone())).await;
    gate.is_shut.store(true, Ordering::SeqCst);
    let task = move_to(&house, &vm, "two").await;
    assert!(task.error.is_none(), "{task:?}");
    let log = house.client.task_log(&task.task_id, &ListQuery::default()).await.unwrap().items;
    assert!(log.iter().any(|line| line.message.contains("could not all be removed yet")), "{log:?}");
    assert_eq!(lie_in(&house, &ids).await, ["two", "two"]);
    let told = refused(&house, &vm, &to("one")).await;
    assert!(told.0 == "conflict" && told.1.contains("unfinished"), "{told:?}");
    let told = findings(&house).await;
    assert_eq!(told, [format!("one: MoveUnfinished {vm}"), format!("two: MoveUnfinished {vm}")]);
    // Neither repository goes: the other would not know whose the points are.
    let kept = house.client.delete_repository("one", &DeleteRepository::default()).await.unwrap_err();
    assert!(format!("{kept:?}").contains("was cut off"), "{kept:?}");
    // The chain goes on meanwhile.
    let next = house.back_up(&vm, "two", BackupType::Incremental).await;
    assert_eq!(house.client.get_backup(&next).await.unwrap().parent_backup_id, Some(ids[1].clone()));

    gate.is_shut.store(false, Ordering::SeqCst);
    until("the old place is empty", async || {
        findings(&house).await.is_empty() && house.left_of(&ids[0]).iter().all(|path| !path.contains("/one/"))
    })
    .await;
    assert_eq!(lie_in(&house, &[ids[0].clone(), ids[1].clone(), next]).await, ["two"; 3]);
    assert!(move_to(&house, &vm, "one").await.error.is_none());
    house.fixture.hub.shutdown().await;
}

/// Two are asked for: one is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_has_one_move_at_a_time() {
    let (house, vm, ids) = with_two_points(None).await;
    let how = to("two");
    let both = tokio::join!(house.client.move_chain(&vm, &how, &NOW), house.client.move_chain(&vm, &how, &NOW));
    let mut begun = Vec::new();
    for answer in [both.0, both.1] {
        match answer {
            Ok(answer) => begun.push(answer.task_id.unwrap()),
            Err(ClientError::Problem { problem, .. }) => {
                assert!(["conflict", "invalid_input"].contains(&problem.code.as_str()), "{problem:?}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let mut ended = Vec::new();
    for task_id in &begun {
        ended.push(house.client.wait_for_task(task_id, |_| {}).await.unwrap());
    }
    let done = ended.iter().filter(|task| task.error.is_none()).count();
    assert_eq!(done, 1, "{ended:?}");
    assert_eq!(lie_in(&house, &ids).await, ["two", "two"]);
    assert_eq!(findings(&house).await, [""; 0]);
    let running = TaskFilter { kind: Some(TaskKind::Move), state: Some(TaskState::Running), ..TaskFilter::default() };
    assert!(house.client.list_tasks(&running).await.unwrap().items.is_empty());
    house.fixture.hub.shutdown().await;
}

/// A hub of another deployment beside the folder of the first one, which is gone.
async fn made_anew(folder: &Path, name: &str) -> (RunningHub, Client) {
    let mut config = HubConfig::new(folder.join(name));
    config.listen.set_port(0);
    config.allow_paths.push(folder.to_owned());
    let hub = crate::Hub::start(config).await.unwrap();
    let token = std::fs::read_to_string(hub.admin_token_path()).unwrap().trim().to_owned();
    let client = Client::new(ClientOptions::new(hub.url()).with_token(token)).unwrap();
    (hub, client)
}

async fn take_in(client: &Client, folder: &Path, name: &str) {
    let repository = CreateRepository {
        name: name.to_owned(),
        kind: RepositoryKind::Local,
        config: RepositoryConfig { path: folder.join(name).to_string_lossy().into_owned() },
        compression: None,
        running_tasks_max: None,
    };
    client.create_repository(&repository).await.unwrap();
    let task = client.import_repository(name).await.unwrap();
    let task = client.wait_for_task(&task.task_id, |_| {}).await.unwrap();
    assert!(task.error.is_none(), "{task:?}");
}

async fn looked(client: &Client, name: &str, forget_moves: bool) -> RepositoryReport {
    client.reconcile_repository(name, &ReconcileQuery { dry_run: false, forget_moves }).await.unwrap()
}

fn unsettled(report: &RepositoryReport) -> usize {
    let left =
        |finding: &&sendense_api::ReportFinding| finding.kind == FindingKind::MoveUnfinished && !finding.repaired;
    report.findings.iter().filter(left).count()
}

/// A move that was cut off, before the points had their names or before the old place was empty, whose hub is then lost.
async fn cut_off_for_good(at_names: bool) -> (tempfile::TempDir, String, [BackupId; 2]) {
    let gate = Arc::new(Gate::default());
    gate.at_names.store(at_names, Ordering::SeqCst);
    let (house, vm, ids) = with_two_points(Some(gate.clone())).await;
    gate.is_shut.store(true, Ordering::SeqCst);
    let task = move_to(&house, &vm, "two").await;
    assert_eq!(task.error.is_some(), at_names, "{task:?}");
    let crate::http::tests::Fixture { hub, folder, .. } = house.fixture;
    hub.shutdown().await;
    (folder, vm, ids)
}

fn lies_in(folder: &Path, name: &str, vm: &str) -> bool {
    folder.join(name).join(layout::vm_dir(&vm.parse().unwrap())).exists()
}

/// The catalog is made anew from the repositories, one after the other, in the middle of a move: both have other names now. The first
/// one waits for the second, whichever it is, and the points are in one place then, and in the books.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_that_is_made_anew_finds_the_other_end_of_a_move() {
    for (at_names, order) in
        [(true, ["one", "two"]), (true, ["two", "one"]), (false, ["one", "two"]), (false, ["two", "one"])]
    {
        let told = format!("at names: {at_names}, {order:?}");
        let (folder, vm, ids) = cut_off_for_good(at_names).await;
        let (hub, client) = made_anew(folder.path(), "anew").await;
        take_in(&client, folder.path(), order[0]).await;
        assert_eq!(unsettled(&looked(&client, order[0], false).await), 1, "nothing is given up; {told}");
        assert!(lies_in(folder.path(), "one", &vm) && lies_in(folder.path(), "two", &vm), "{told}");
        take_in(&client, folder.path(), order[1]).await;
        until("the move is settled", async || !lies_in(folder.path(), "one", &vm)).await;
        for name in ["one", "two"] {
            assert_eq!(unsettled(&looked(&client, name, false).await), 0, "{told}");
        }
        let two = client.get_repository("two").await.unwrap().repository_id;
        for id in &ids {
            let row = client.get_backup(id).await.unwrap();
            assert_eq!(row.repository_id, two, "{told}");
            let verified = client.verify_backup(id, &Default::default()).await.unwrap();
            let task = client.wait_for_task(&verified.task_id, |_| {}).await.unwrap();
            assert!(task.error.is_none(), "{told}: {task:?}");
        }
        for name in ["one", "two"] {
            let report = looked(&client, name, false).await;
            assert_eq!(report.findings_total, 0, "{told}: {report:?}");
        }
        hub.shutdown().await;
    }
}

/// The other repository is lost with the catalog. A person says so, and what is left is a repository like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_other_end_is_lost_is_given_up_by_a_person() {
    for left in ["one", "two"] {
        let (folder, vm, ids) = cut_off_for_good(false).await;
        let lost = if left == "one" { "two" } else { "one" };
        std::fs::remove_dir_all(folder.path().join(lost)).unwrap();
        let (hub, client) = made_anew(folder.path(), "anew").await;
        take_in(&client, folder.path(), left).await;
        assert_eq!(unsettled(&looked(&client, left, false).await), 1);
        assert_eq!(unsettled(&looked(&client, left, true).await), 0);
        // What was on its way out of the old one goes its way.
        looked(&client, left, false).await;
        let report = looked(&client, left, false).await;
        assert_eq!(report.findings_total, 0, "{report:?}");
        assert!(lies_in(folder.path(), left, &vm));
        // In the old one the newest had gone already.
        assert_eq!(client.get_backup(&ids[0]).await.unwrap().vm_context_id.as_str(), vm);
        hub.shutdown().await;
    }
}

/// A repository that is not mounted is not lost, whatever a person says in a hurry: its points would belong to two repositories.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_other_end_is_merely_away_is_not_given_up() {
    for (left, is_new) in [("one", false), ("two", false), ("one", true), ("two", true)] {
        let (folder, vm, _) = cut_off_for_good(false).await;
        let away = if left == "one" { "two" } else { "one" };
        let (there, aside) = (folder.path().join(away), folder.path().join("aside"));
        // By a hub that knows both as the move does, and by one that knows them by other names.
        let (hub, client) = if is_new {
            let (hub, client) = made_anew(folder.path(), "anew").await;
            take_in(&client, folder.path(), left).await;
            std::fs::create_dir(folder.path().join("empty")).unwrap();
            take_in(&client, folder.path(), "empty").await;
            std::fs::rename(folder.path().join("empty"), &aside).unwrap();
            (hub, client)
        } else {
            std::fs::rename(&there, &aside).unwrap();
            std::fs::create_dir(&there).unwrap();
            made_anew(folder.path(), "data").await
        };
        let away = if is_new { "empty" } else { away };
        let told = format!("{left} is left, a new catalog: {is_new}");
        let how = ReconcileQuery { dry_run: false, forget_moves: true };
        let refused = client.reconcile_repository(left, &how).await.unwrap_err();
        let words = format!("{refused:?}");
        assert!(words.contains("repo delete --lost") && words.contains("bring it back"), "{told}: {words}");
        assert_eq!(unsettled(&looked(&client, left, false).await), 1, "{told}");
        // Lost it is only when it is out of the catalog, which takes no repository that is there for lost.
        let lost = DeleteRepository { lost: true };
        assert!(client.delete_repository(left, &lost).await.is_err(), "{told}");
        client.delete_repository(away, &lost).await.unwrap();
        assert_eq!(unsettled(&looked(&client, left, true).await), 0, "{told}");
        assert!(lies_in(folder.path(), left, &vm), "{told}");
        hub.shutdown().await;
    }
}

/// A task that moves the points of a machine, begun or not by a hub that then died; where it was done before, or where there is nothing
/// to be done.
async fn left_by_the_dead(has_moved: bool, has_begun: bool) -> (tempfile::TempDir, TaskId) {
    let (house, vm, ids) = with_two_points(None).await;
    match has_moved {
        true => assert!(move_to(&house, &vm, "two").await.error.is_none()),
        false => {
            let all = DeleteQuery { cascade: true, ..DeleteQuery::default() };
            house.client.delete_backup(&ids[0], &all).await.unwrap();
        }
    }
    let id_of = async |name: &str| house.client.get_repository(name).await.unwrap().repository_id;
    let (one, two) = (id_of("one").await, id_of("two").await);
    let work = Work::Move(MoveWork {
        vm_context_id: vm.parse().unwrap(),
        vm_name: "web".to_owned(),
        repository_id: one.clone(),
        to_repository_id: two,
        bytes_per_second_max: None,
    });
    let core = house.fixture.hub.app().core.clone();
    let (lease, path, now) = (core.lease.clone(), core.data_dir.catalog_path(), core.now());
    drop(core);
    let crate::http::tests::Fixture { hub, folder, .. } = house.fixture;
    hub.shutdown().await;
    let catalog = Catalog::open(&format!("sqlite://{}", path.display())).await.unwrap();
    let new = NewTask {
        task_id: TaskId::generate(),
        kind: TaskKind::Move,
        subject: TaskSubject::Repository(one),
        request: work.write().unwrap(),
        created_by: None,
    };
    let task = catalog.tasks().create(&new, now).await.unwrap();
    if has_begun {
        catalog.tasks().claim(&task.claim(), &lease, now.plus_seconds(60), now).await.unwrap();
    }
    catalog.close().await.unwrap();
    (folder, new.task_id)
}

/// A hub died when all of its move was done and nobody had been told: the task that goes on finds it so. What nobody has begun, or what
/// has come to nothing, is not taken for done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_was_done_when_its_hub_died_is_told_as_done() {
    for (has_moved, has_begun) in [(true, true), (true, false), (false, true)] {
        let (folder, task_id) = left_by_the_dead(has_moved, has_begun).await;
        let (hub, client) = made_anew(folder.path(), "data").await;
        let task = client.wait_for_task(&task_id, |_| {}).await.unwrap();
        let told = format!("moved: {has_moved}, begun: {has_begun}: {task:?}");
        match has_moved && has_begun {
            true => assert_eq!(task.summary.as_deref(), Some("the points of web lie in two now"), "{told}"),
            false => assert_eq!(task.error.map(|error| error.code), Some(ProblemCode::BackupNotFound), "{told}"),
        }
        hub.shutdown().await;
    }
}

/// Whoever wants to delete or prune points that go to another repository in that moment is told so, and the books keep them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn points_that_went_over_meanwhile_are_not_forgotten() {
    let (house, vm, ids) = with_two_points(None).await;
    let app = house.fixture.hub.app().clone();
    let row = app.core.catalog.backups().get(&ids[1]).await.unwrap();
    assert!(move_to(&house, &vm, "two").await.error.is_none());
    // Its row was read before the move, and all else comes after.
    let query = DeleteQuery { cascade: true, ..DeleteQuery::default() };
    let refused = app.delete_point(row, query, "test".to_owned()).await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.message.as_str()),
        ("conflict", "the point is elsewhere"),
        "{refused:?}"
    );
    assert!(refused.details.contains("was moved to another repository"), "{refused:?}");
    assert_eq!(lie_in(&house, &ids).await, ["two", "two"]);
    assert_eq!(findings(&house).await, [""; 0]);
    house.fixture.hub.shutdown().await;
}
