//! What tasks of a removed source left behind: ended where that is possible, kept and shown where it is not.

use super::house::House;
use super::{Fixture, PATIENCE, router};
use crate::reconcile;
use futures::StreamExt as _;
use sendense_api::{Event, LeftOverKind, LeftOverState, Role};
use sendense_catalog::Page;
use sendense_repo::layout;
use sendense_repo::lock::{Claim, Operation};
use sendense_source::{Artefact, ArtefactKind};
use sendense_types::{BackupId, TaskState, VmContextId};
use std::process::{Command, Stdio};
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_removed_source_left_ends_here_and_stays_in_the_list_elsewhere() {
    let fixture = Fixture::new().await;
    let core = fixture.hub.app().core.clone();
    // A child as an image source starts them: its socket's path is one of its arguments. It waits for a line.
    let socket = fixture.folder.path().join("nbd-left.sock");
    let mut command = Command::new("sh");
    command.args(["-c", "read line; exit 1"]).arg(&socket).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let artefact = |kind, vm_key: &str, details| Artefact {
        source_id: "src-removed".parse().unwrap(),
        task_id: "task-ended".parse().unwrap(),
        kind,
        vm_key: vm_key.to_owned(),
        details,
    };
    let details = serde_json::json!({ "socket": socket });
    core.journal.record(&artefact(ArtefactKind::ChildProcess, "", details)).unwrap();
    let job = artefact(ArtefactKind::BackupJob, "23b7165e", serde_json::json!({}));
    let entry = core.journal.record(&job).unwrap();

    let patience = Instant::now() + PATIENCE;
    let kept = loop {
        // The hub does the same by itself, every few seconds.
        reconcile::reap_orphans(&core).await;
        let kept = core.journal.open_entries().unwrap();
        if kept.len() < 2 {
            break kept;
        }
        assert!(Instant::now() < patience, "{kept:?}");
    };
    assert_eq!(kept, [(entry, job)], "what its hypervisor still holds is on record");
    assert!(child.wait().unwrap().code().is_none(), "it was killed");
    let answer = fixture.call("GET", "/api/v1/debug/health", Some(Role::Viewer)).await;
    let checks = answer.body["checks"].as_array().unwrap();
    let journal = checks.iter().find(|check| check["name"] == "journal").unwrap();
    let detail = journal["detail"].as_str().unwrap();
    assert_eq!(journal["status"], "degraded");
    for told in ["1 things", "a backup job of 23b7165e on src-removed, which was removed", "task-ended"] {
        assert!(detail.contains(told), "{told}: {detail}");
    }
}

/// A libvirt job and a checkpoint that nobody can reach any more: told once each, shown as long as they stay, told when they are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_is_told_once_and_again_when_it_is_gone() {
    let fixture = Fixture::new().await;
    let core = fixture.hub.app().core.clone();
    let mut events = std::pin::pin!(core.events.listen());
    let artefact = |kind| Artefact {
        source_id: "src-removed".parse().unwrap(),
        task_id: "task-ended".parse().unwrap(),
        kind,
        vm_key: "23b7165e".to_owned(),
        details: serde_json::json!({}),
    };
    let job = core.journal.record(&artefact(ArtefactKind::BackupJob)).unwrap();
    let checkpoint = core.journal.record(&artefact(ArtefactKind::Checkpoint)).unwrap();
    // The hub does the same by itself, every few seconds.
    for _ in 0..6 {
        reconcile::reap_orphans(&core).await;
    }
    let mut told = async || loop {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("nothing is told");
        if let Event::LeftOver { left_over } = event.unwrap() {
            break left_over;
        }
    };
    let shown = async || {
        let answer = fixture.call("GET", "/api/v1/debug/health", Some(Role::Viewer)).await;
        let checks = answer.body["checks"].as_array().unwrap().clone();
        let check = checks.into_iter().find(|check| check["name"] == "left over").unwrap();
        (check["status"].as_str().unwrap().to_owned(), check["detail"].as_str().unwrap().to_owned())
    };
    let (first, second) = (told().await, told().await);
    assert_eq!((first.kind, second.kind), (LeftOverKind::BackupJob, LeftOverKind::Checkpoint));
    for alert in [&first, &second] {
        assert_eq!((alert.state, alert.vm_key.as_str(), &alert.vm_name), (LeftOverState::Stays, "23b7165e", &None));
        assert!(alert.message.contains("its source was removed"), "{}", alert.message);
        assert!(shown().await.1.contains(&alert.message));
    }
    assert_eq!(shown().await.0, "degraded");
    for (entry, kind) in [(job, LeftOverKind::BackupJob), (checkpoint, LeftOverKind::Checkpoint)] {
        core.journal.close(entry).unwrap();
        reconcile::reap_orphans(&core).await;
        let gone = told().await;
        assert_eq!((gone.kind, gone.state), (kind, LeftOverState::Gone), "nothing was told twice");
    }
    assert_eq!(shown().await.0, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_made_is_left_alone_while_the_task_lives_on_any_hub() {
    let fixture = Fixture::new().await;
    let core = fixture.hub.app().core.clone();
    let task_id: sendense_types::TaskId = "task-of-somebody".parse().unwrap();
    assert!(!reconcile::is_alive(&core, &task_id).await.unwrap(), "nobody knows it");
    let new = sendense_catalog::NewTask {
        task_id: task_id.clone(),
        kind: sendense_types::TaskKind::Verify,
        subject: sendense_catalog::TaskSubject::None,
        request: serde_json::json!({}),
        created_by: None,
    };
    let tasks = core.catalog.tasks();
    tasks.create(&new, core.now()).await.unwrap();
    // This hub's dispatcher may take it at any moment, and ends it because it asks for nothing: until then it lives.
    let seen = reconcile::is_alive(&core, &task_id).await.unwrap();
    let has_ended =
        async || !matches!(tasks.get(&task_id).await.unwrap().state, TaskState::Pending | TaskState::Running);
    assert!(seen || has_ended().await);
    let patience = Instant::now() + PATIENCE;
    core.running.wake.notify_one();
    while !has_ended().await {
        assert!(Instant::now() < patience, "the task does not end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    while core.running.get(&task_id).is_some() {
        assert!(Instant::now() < patience, "the task does not go");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!reconcile::is_alive(&core, &task_id).await.unwrap(), "it has ended");
}

/// The state in which a hub finds itself that was recovered from a copy while the old one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_swept_while_a_hub_that_the_catalog_does_not_know_has_a_repository() {
    let fixture = Fixture::configured(router::documented(), |config| config.limits.lease_seconds = 2).await;
    let core = fixture.hub.app().core.clone();
    assert!(reconcile::knows_all_hubs(&core).await, "there is no repository");
    let root = fixture.folder.path().join("repo");
    std::fs::create_dir(&root).unwrap();
    let asked = serde_json::json!({ "name": "main", "type": "local", "config": { "path": root } });
    let answer = fixture.json("POST", "/api/v1/repositories", &asked.to_string()).await;
    assert!(answer.status.is_success(), "{answer:?}");
    assert!(reconcile::knows_all_hubs(&core).await, "it is open");
    let until = async |wanted: bool, what: &str| {
        let patience = Instant::now() + PATIENCE;
        while reconcile::knows_all_hubs(&core).await != wanted {
            assert!(Instant::now() < patience, "{what}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let file = root.join(layout::OWNER_FILE);
    let record = std::fs::read(&file).unwrap();
    let taken = |hub_id: &str, lease_s: i64| {
        let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["hub_id"] = hub_id.into();
        record["epoch"] = (record["epoch"].as_u64().unwrap() + 7).into();
        record["lease_until"] = core.now().plus_seconds(lease_s).to_string().into();
        // The hub reads it while it renews its lease.
        let half = root.join(".record");
        std::fs::write(&half, record.to_string()).unwrap();
        std::fs::rename(&half, &file).unwrap();
    };
    taken("hub-old", 3600);
    until(false, "the old hub is at work").await;
    // Another hub of this catalog tells its tasks there.
    core.catalog.hubs().acquire(&"hub-old".parse().unwrap(), core.now(), core.now()).await.unwrap();
    until(true, "the catalog knows it").await;
    taken("hub-gone", 0);
    until(true, "its lease is out").await;
}

/// A new backup of the machine may be quicker than the look of the start, which then has to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draft_that_could_not_be_taken_back_at_the_start_is_looked_for_again() {
    let house = House::new(|_| ()).await;
    let core = house.fixture.hub.app().core.clone();
    let id = house.client.get_repository("two").await.unwrap().repository_id;
    drop(core.repositories.checking(&id, PATIENCE).await.expect("the look of the hub itself ends"));
    let repository = core.repositories.opened(&id).unwrap();
    let (vm, draft) = (VmContextId::generate(), BackupId::generate());
    let folder = repository.root().join(layout::draft_dir(&vm, &draft));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("disk-0.qcow2"), "half").unwrap();
    let points = Default::default();
    let claim = Claim { operation: Operation::Backup, vm, points, who: "a backup".to_owned() };
    let at_work = repository.locks().acquire(claim).unwrap();
    for _ in 0..2 {
        assert!(!reconcile::repository(&core, &id, PATIENCE).await, "it counts as done");
        assert!(folder.exists(), "the machine is at work");
    }
    let reports = core.catalog.reports().list(&id, Page { limit: 10, offset: 0 }).await.unwrap().0;
    let vain = reports.iter().filter(|report| report.body["findings_total"] == 1).count();
    assert_eq!(vain, 1, "what is tried again in vain is told once: {reports:?}");
    drop(at_work);
    assert!(reconcile::repository(&core, &id, PATIENCE).await);
    assert!(!folder.exists());
    house.fixture.hub.shutdown().await;
}
