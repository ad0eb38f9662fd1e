//! Maintenance modes as callers meet them: what each call and each task does in each mode, and what becomes of what runs.

use super::house::{House, Stuck, until};
use sendense_api::{CreateExport, ListQuery, UpdateRepository};
use sendense_types::{
    BackupStatus, BackupType, ExecutionState, ProblemCode, RepositoryMode, SourceKind, TaskState, VmOutcome,
};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

impl House {
    async fn set_mode(&self, repository: &str, mode: RepositoryMode) {
        let reason = (mode != RepositoryMode::Normal).then(|| "the shelf moves".to_owned());
        let change = UpdateRepository { mode: Some(mode), mode_reason: reason, ..Default::default() };
        assert_eq!(self.client.update_repository(repository, &change).await.unwrap().mode, mode);
    }

    async fn image(&self, name: &str) -> String {
        std::fs::create_dir_all(self.path(name)).unwrap();
        std::fs::write(Path::new(&self.path(name)).join("disk.raw"), vec![7; 1 << 20]).unwrap();
        self.machine(name, SourceKind::Image, self.path(name)).await
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let path = format!("/api/v1/{path}");
        let answer = match body {
            Some(body) => self.fixture.json(method, &path, &body.to_string()).await,
            None => self.fixture.call(method, &path, Some(sendense_api::Role::Admin)).await,
        };
        if answer.code() == "repository_maintenance" {
            let text = answer.body.to_string();
            assert!(text.contains("the shelf moves") && text.contains("sendense repo mode two normal"), "{text}");
        }
        (answer.status.as_u16(), answer.body)
    }
}

/// Whatever a call began is brought to its end, so that the next one and the next mode find nothing in their way.
async fn settle(house: &House, body: &Value) {
    if let Some(task) = [&body["task"]["task_id"], &body["backup"]["task_id"], &body["merge"]["task_id"]]
        .into_iter()
        .find_map(Value::as_str)
    {
        house.client.wait_for_task(&task.parse().unwrap(), |_| {}).await.unwrap();
    }
    for (path, id) in [
        ("exports", &body["export"]["export_id"]),
        ("restore", &body["mount_id"]),
        ("recoveries", &body["recovery"]["recovery_id"]),
    ] {
        if let Some(id) = id.as_str() {
            let (status, answer) = house.ask("DELETE", &format!("{path}/{id}"), None).await;
            assert_eq!(status, 200, "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_obeys_the_mode() {
    let house = House::new(|config| config.recovery.floor_bytes = 0).await;
    let vm = house.image("web").await;
    let first = house.back_up(&vm, "two", BackupType::Full).await;
    let second = house.back_up(&vm, "two", BackupType::Incremental).await;
    let files = tree(&house.path("two"));
    let modes = [RepositoryMode::ReadOnly, RepositoryMode::Draining, RepositoryMode::Offline, RepositoryMode::Normal];
    let mut table = String::new();
    for mode in modes {
        house.set_mode("two", mode).await;
        let target = json!({"kind": "file", "path": house.path(&format!("out-{mode}")), "format": "raw"});
        let backup = json!({"vm_context_id": vm, "repository_id": "two", "backup_type": "incremental"});
        for (method, path, body) in [
            ("GET", "repositories/two".to_owned(), None),
            ("GET", "repositories".to_owned(), None),
            ("GET", "repositories/two/storage".to_owned(), None),
            ("GET", format!("backups/{second}"), None),
            ("GET", format!("backups/{vm}/chain?disk_id=0"), None),
            ("POST", format!("backups/{second}/verify"), Some(json!({}))),
            ("POST", format!("backups/{second}/restore"), Some(json!({"disk_id": 0, "target": target}))),
            ("POST", "exports".to_owned(), Some(json!({"backup_id": second}))),
            ("POST", "recoveries".to_owned(), Some(json!({"backup_id": second, "name": "r"}))),
            ("POST", "repositories/two/import".to_owned(), None),
            ("POST", format!("backups/{first}/merge?dry_run=true"), None),
            ("POST", format!("vms/{vm}/prune?dry_run=true"), Some(json!({"keep_last": 9}))),
            ("DELETE", format!("backups/{second}?dry_run=true"), None),
            ("PATCH", format!("backups/{first}"), Some(json!({"protected": false}))),
            ("POST", format!("vms/{vm}/prune"), Some(json!({"keep_last": 9}))),
            ("POST", "backups".to_owned(), Some(backup)),
            ("DELETE", "repositories/two".to_owned(), None),
            ("POST", format!("backups/{first}/merge"), None),
            ("DELETE", format!("backups/{second}"), None),
        ] {
            let (status, answer) = house.ask(method, &path, body).await;
            settle(&house, &answer).await;
            let code = answer["code"].as_str().unwrap_or("");
            let path = path.replace(&vm, "VM").replace(first.as_str(), "FIRST").replace(second.as_str(), "SECOND");
            let row = format!("{mode:<9} {status} {method:<6} {path:<32} {code}");
            writeln!(table, "{}", row.trim_end()).unwrap();
        }
        if mode != RepositoryMode::Normal {
            assert_eq!(tree(&house.path("two")), files, "{mode}: no file came or went");
        }
    }
    expect_test::expect![[r#"
        read_only 200 GET    repositories/two
        read_only 200 GET    repositories
        read_only 200 GET    repositories/two/storage
        read_only 200 GET    backups/SECOND
        read_only 200 GET    backups/VM/chain?disk_id=0
        read_only 202 POST   backups/SECOND/verify
        read_only 202 POST   backups/SECOND/restore
        read_only 201 POST   exports
        read_only 201 POST   recoveries
        read_only 202 POST   repositories/two/import
        read_only 200 POST   backups/FIRST/merge?dry_run=true
        read_only 200 POST   vms/VM/prune?dry_run=true
        read_only 200 DELETE backups/SECOND?dry_run=true
        read_only 409 PATCH  backups/FIRST                    repository_maintenance
        read_only 409 POST   vms/VM/prune                     repository_maintenance
        read_only 409 POST   backups                          repository_maintenance
        read_only 409 DELETE repositories/two                 conflict
        read_only 409 POST   backups/FIRST/merge              repository_maintenance
        read_only 409 DELETE backups/SECOND                   repository_maintenance
        draining  200 GET    repositories/two
        draining  200 GET    repositories
        draining  200 GET    repositories/two/storage
        draining  200 GET    backups/SECOND
        draining  200 GET    backups/VM/chain?disk_id=0
        draining  409 POST   backups/SECOND/verify            repository_maintenance
        draining  409 POST   backups/SECOND/restore           repository_maintenance
        draining  409 POST   exports                          repository_maintenance
        draining  409 POST   recoveries                       repository_maintenance
        draining  409 POST   repositories/two/import          repository_maintenance
        draining  409 POST   backups/FIRST/merge?dry_run=true repository_maintenance
        draining  409 POST   vms/VM/prune?dry_run=true        repository_maintenance
        draining  409 DELETE backups/SECOND?dry_run=true      repository_maintenance
        draining  409 PATCH  backups/FIRST                    repository_maintenance
        draining  409 POST   vms/VM/prune                     repository_maintenance
        draining  409 POST   backups                          repository_maintenance
        draining  409 DELETE repositories/two                 conflict
        draining  409 POST   backups/FIRST/merge              repository_maintenance
        draining  409 DELETE backups/SECOND                   repository_maintenance
        offline   200 GET    repositories/two
        offline   200 GET    repositories
        offline   409 GET    repositories/two/storage         repository_maintenance
        offline   200 GET    backups/SECOND
        offline   200 GET    backups/VM/chain?disk_id=0
        offline   409 POST   backups/SECOND/verify            repository_maintenance
        offline   409 POST   backups/SECOND/restore           repository_maintenance
        offline   409 POST   exports                          repository_maintenance
        offline   409 POST   recoveries                       repository_maintenance
        offline   409 POST   repositories/two/import          repository_maintenance
        offline   409 POST   backups/FIRST/merge?dry_run=true repository_maintenance
        offline   409 POST   vms/VM/prune?dry_run=true        repository_maintenance
        offline   409 DELETE backups/SECOND?dry_run=true      repository_maintenance
        offline   409 PATCH  backups/FIRST                    repository_maintenance
        offline   409 POST   vms/VM/prune                     repository_maintenance
        offline   409 POST   backups                          repository_maintenance
        offline   409 DELETE repositories/two                 conflict
        offline   409 POST   backups/FIRST/merge              repository_maintenance
        offline   409 DELETE backups/SECOND                   repository_maintenance
        normal    200 GET    repositories/two
        normal    200 GET    repositories
        normal    200 GET    repositories/two/storage
        normal    200 GET    backups/SECOND
        normal    200 GET    backups/VM/chain?disk_id=0
        normal    202 POST   backups/SECOND/verify
        normal    202 POST   backups/SECOND/restore
        normal    201 POST   exports
        normal    201 POST   recoveries
        normal    202 POST   repositories/two/import
        normal    200 POST   backups/FIRST/merge?dry_run=true
        normal    200 POST   vms/VM/prune?dry_run=true
        normal    200 DELETE backups/SECOND?dry_run=true
        normal    200 PATCH  backups/FIRST
        normal    200 POST   vms/VM/prune
        normal    202 POST   backups
        normal    409 DELETE repositories/two                 conflict
        normal    202 POST   backups/FIRST/merge
        normal    409 DELETE backups/SECOND                   has_dependents
    "#]]
    .assert_eq(&table);
    house.fixture.hub.shutdown().await;
}

/// The files of points below a folder.
fn tree(folder: &str) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![std::path::PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_ends_what_waits_waits_and_offline_lets_the_folder_go() {
    let house = House::new(|config| config.limits.running_per_hub = 1).await;
    let vm = house.image("web").await;
    let point = house.back_up(&vm, "two", BackupType::Full).await;
    let export = house.client.create_export(&CreateExport { backup_id: point, disk_id: None }).await.unwrap();
    // The hub's only place is taken, so a backup into the repository waits when somebody begins to look after it.
    let stuck = Stuck::start(house.fixture.folder.path(), "s", "pattern", &["64M", "rdelay=3600"]).await;
    let slow = house.machine("slow", SourceKind::Nbd, stuck.uri.clone()).await;
    let hanging = house.start(&slow, "one").await.unwrap();
    house.until_running(&hanging.backup_id).await;
    let waits = house.start(&vm, "two").await.unwrap();
    house.set_mode("two", RepositoryMode::Draining).await;
    house.cancel(hanging.task_id.as_ref().unwrap()).await;
    // Its place is free, and one that came later takes it.
    let other = house.image("other").await;
    let passes = house.start(&other, "one").await.unwrap();
    house.client.wait_for_task(&passes.task_id.unwrap(), |_| {}).await.unwrap();
    assert_eq!(house.status(&waits.backup_id).await, BackupStatus::Pending);
    // What ran goes on, and is in the way of going offline.
    assert_eq!(house.client.list_exports(&ListQuery::default()).await.unwrap().total, 1);
    let offline = UpdateRepository { mode: Some(RepositoryMode::Offline), ..Default::default() };
    let refused = house.client.update_repository("two", &offline).await.unwrap_err();
    assert_eq!(refused.code(), Some(ProblemCode::Conflict), "{refused:?}");
    assert!(format!("{refused:?}").contains(export.export_id.as_str()), "{refused:?}");
    assert_eq!(house.client.get_repository("two").await.unwrap().mode, RepositoryMode::Draining);

    house.client.delete_export(&export.export_id).await.unwrap();
    let away = house.client.update_repository("two", &offline).await.unwrap();
    assert!(away.storage.is_none() && away.problem.is_some_and(|problem| problem.contains("is offline")));
    // Somebody takes the folder away; nobody looks for it, and nothing is forgotten.
    std::fs::rename(house.path("two"), house.path("elsewhere")).unwrap();
    let health = house.client.debug_health().await.unwrap();
    let check = health.checks.iter().find(|check| check.name == "repository two").unwrap();
    assert_eq!(check.status, sendense_api::CheckStatus::Ok, "{check:?}");
    assert!(!Path::new(&house.path("two")).exists());
    std::fs::rename(house.path("elsewhere"), house.path("two")).unwrap();
    house.set_mode("two", RepositoryMode::Normal).await;
    let task = house.client.wait_for_task(waits.task_id.as_ref().unwrap(), |_| {}).await.unwrap();
    assert_eq!(task.state, TaskState::Completed, "{task:?}");
    assert_eq!(house.client.get_repository("two").await.unwrap().backup_count, 2);
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_execution_waits_for_the_end_of_maintenance_and_says_so() {
    let (house, clock) = House::clocked(|_| ()).await;
    house.image("web").await;
    house.set_mode("two", RepositoryMode::ReadOnly).await;
    for (path, body) in [
        ("policies", json!({"name": "all", "vms": ["*"], "repository_id": "two"})),
        ("schedules", json!({"name": "daily", "policy_id": "all", "cron": "0 9 * * *"})),
    ] {
        let (status, answer) = house.ask("POST", path, Some(body)).await;
        assert_eq!(status, 201, "{answer}");
    }
    let newest = async || {
        let (_, list) = house.ask("GET", "schedules/daily/executions", None).await;
        let Some(id) = list["executions"][0]["execution_id"].as_str().map(str::to_owned) else { return Value::Null };
        house.ask("GET", &format!("executions/{id}"), None).await.1["execution"].clone()
    };
    let vm_is = |execution: &Value, outcome: VmOutcome| execution["vms"][0]["outcome"] == outcome.as_str();
    let waits = async || {
        let execution = newest().await;
        vm_is(&execution, VmOutcome::Waiting) && execution["vms"][0]["reason"].is_string()
    };
    clock.advance_seconds(2 * 3600);
    until("it waits", waits).await;
    let execution = newest().await;
    let reason = execution["vms"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("repository two is read-only: the shelf moves"), "{reason}");
    assert_eq!(execution["vms"][0]["attempts"], 0, "it is no attempt: {execution}");

    house.set_mode("two", RepositoryMode::Normal).await;
    clock.advance_seconds(120);
    let ended = async |state: ExecutionState| newest().await["state"] == state.as_str();
    until("it is made up for", async || ended(ExecutionState::Completed).await).await;

    // The shelf is never put back: the next one waits for a day, and leaves its machine out.
    house.set_mode("two", RepositoryMode::Draining).await;
    clock.advance_seconds(23 * 3600);
    until("the next one waits", waits).await;
    clock.advance_seconds(25 * 3600);
    let left_out = async || {
        let (_, list) = house.ask("GET", "schedules/daily/executions", None).await;
        list["executions"].as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "failed"))
    };
    until("its machine is left out", left_out).await;
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_hub_has_open_is_not_said_to_be_offline() {
    use sendense_repo::owner::{Adopt, Claim};
    use sendense_repo::repository::{Create, Options};
    let house = House::new(|_| ()).await;
    let core = house.fixture.hub.app().core.clone();
    let id = house.client.get_repository("two").await.unwrap().repository_id;
    let other: sendense_types::HubId = "hub-other".parse().unwrap();
    let claim = Claim {
        deployment_id: core.deployment_id.clone(),
        hub_id: other.clone(),
        lease_seconds: 3600,
        adopt: Adopt::Never,
    };
    let options = || Options { claim: claim.clone(), limit_bytes: None, floor_bytes: None, create: Create::Never };
    let path = std::path::PathBuf::from(house.path("two"));
    let taken = std::sync::Mutex::new(None);
    // This hub takes it back now and then, until the other one is quicker.
    let take = async || {
        core.repositories.close(&core, &id).await.unwrap();
        *taken.lock().unwrap() = sendense_repo::Repository::open(&path, options(), core.now()).ok();
        taken.lock().unwrap().is_some()
    };
    until("another hub has it", take).await;
    let offline = UpdateRepository { mode: Some(RepositoryMode::Offline), ..Default::default() };
    let refused = house.client.update_repository("two", &offline).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(409), Some(ProblemCode::Conflict)), "{refused:?}");
    assert!(format!("{refused:?}").contains("hub-other has it open"), "{refused:?}");
    assert_eq!(house.client.get_repository("two").await.unwrap().mode, RepositoryMode::Normal);
    taken.lock().unwrap().take().unwrap().release(core.now()).unwrap();
    assert_eq!(house.client.update_repository("two", &offline).await.unwrap().mode, RepositoryMode::Offline);
    house.fixture.hub.shutdown().await;
}
