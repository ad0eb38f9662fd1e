//! A hub with a client, two repositories and sources that may be stuck: what several tests begin with.

use super::{Fixture, PATIENCE};
use crate::HubConfig;
use crate::http::router;
use sendense_api::{
    Backup, Client, ClientError, ClientOptions, CreateBackup, CreateRepository, CreateSource, RepositoryConfig, Role,
    Task,
};
use sendense_types::{
    BackupId, BackupStatus, BackupType, ManualClock, Phase, RepositoryKind, SourceKind, TaskId, TaskState, Timestamp,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// 2027-01-15T08:00:00Z: where a clock that a test sets begins.
pub(super) const MORNING_MICROS: i64 = 1_800_000_000_000_000;

/// An NBD server that answers no request of this kind within an hour. One thread serves a client: with several, nbdkit 1.32 may
/// abort when a client goes away with requests in flight, and the next one finds no server.
pub(super) struct Stuck {
    child: Child,
    pub uri: String,
}

impl Stuck {
    pub async fn start(folder: &Path, name: &str, plugin: &str, more: &[&str]) -> Self {
        // The socket is there a moment before nbdkit listens; its pid file is not.
        let (socket, serves) = (folder.join(name), folder.join(format!("{name}.pid")));
        let child = Command::new("nbdkit")
            .args(["-f", "-t", "1", "-U"])
            .arg(&socket)
            .arg("-P")
            .arg(&serves)
            .args(["--filter=delay", plugin])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("nbdkit: {error}; install the Debian package nbdkit"));
        let stuck = Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()) };
        until("nbdkit serves", async || serves.exists()).await;
        stuck
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A hub with a client, repositories `one` (one task at a time) and `two`.
pub(super) struct House {
    pub fixture: Fixture,
    pub client: Client,
}

impl House {
    pub async fn new(configure: impl FnOnce(&mut HubConfig)) -> Self {
        let patient = |config: &mut HubConfig| {
            // A job that does not come back by itself is to be seen, unless a test is about that.
            config.limits.stop_grace = Duration::from_secs(3600);
            configure(config);
        };
        let fixture = Box::pin(Fixture::configured(router::documented(), patient)).await;
        let options = ClientOptions::new(fixture.hub.url()).with_token(fixture.token(Role::Admin));
        let house = Self { client: Client::new(options).unwrap(), fixture };
        for (name, running_tasks_max) in [("one", Some(1)), ("two", None)] {
            let repository = CreateRepository {
                name: name.to_owned(),
                kind: RepositoryKind::Local,
                config: RepositoryConfig { path: house.path(name) },
                compression: None,
                running_tasks_max,
            };
            house.client.create_repository(&repository).await.unwrap();
        }
        house
    }

    /// With a clock that the test sets.
    pub async fn clocked(configure: impl FnOnce(&mut HubConfig)) -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(MORNING_MICROS)));
        let given = clock.clone();
        let configure = move |config: &mut HubConfig| {
            config.clock = given;
            configure(config);
        };
        (Self::new(configure).await, clock)
    }

    /// Writes the only disk of a machine of the folder `vms`; gives its path.
    pub fn disk(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let folder = self.fixture.folder.path().join("vms").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let disk = folder.join("disk0.raw");
        std::fs::write(&disk, bytes).unwrap();
        disk
    }

    pub fn path(&self, name: &str) -> String {
        self.fixture.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// Makes `web` the only machine of the folder `vms`, with this on its disk; gives its id.
    pub async fn web(&self, bytes: impl AsRef<[u8]>) -> String {
        self.disk("web", bytes);
        self.machine("images", SourceKind::Image, self.path("vms")).await
    }

    /// Adds a source and gives the id of its first machine.
    pub async fn machine(&self, name: &str, kind: SourceKind, address: String) -> String {
        self.machines(name, kind, address, None).await.remove(0)
    }

    /// Adds a source that bears so many tasks at once and gives the ids of its machines.
    pub async fn machines(&self, name: &str, kind: SourceKind, address: String, max: Option<u32>) -> Vec<String> {
        let source = CreateSource {
            name: name.to_owned(),
            kind,
            address,
            credentials: None,
            thumbprint: None,
            scratch_path: None,
            scratch_floor_bytes: None,
            nbd: None,
            vsphere: None,
            running_tasks_max: max,
            node: None,
        };
        self.client.create_source(&source).await.unwrap();
        let found = self.client.discover_source(name).await.unwrap().vms;
        found.iter().map(|vm| vm.vm_context_id.to_string()).collect()
    }

    /// Posts this as an administrator does; gives the answer, for it is taken.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.fixture.json("POST", &format!("/api/v1/{path}"), &body.to_string()).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
        answer.body
    }

    pub async fn start(&self, vm: &str, repository: &str) -> Result<Backup, ClientError> {
        self.start_as(vm, repository, BackupType::Full, None).await
    }

    /// Of this type, and with a limit on how long it may take.
    pub async fn start_as(
        &self,
        vm: &str,
        repository: &str,
        backup_type: BackupType,
        limit: Option<u32>,
    ) -> Result<Backup, ClientError> {
        let request = CreateBackup {
            vm_name: None,
            vm_context_id: Some(vm.parse().unwrap()),
            repository_id: repository.to_owned(),
            backup_type,
            disk_id: None,
            policy_id: None,
            tags: Default::default(),
            quiesce: false,
            quiesce_or_fail: false,
            compression: None,
            on_tracking_loss: None,
            time_limit_seconds: limit,
            bytes_per_second_max: None,
            exclude_disks: Vec::new(),
        };
        self.client.create_backup(&request).await
    }

    /// A point of this type, once it is there.
    pub async fn back_up(&self, vm: &str, repository: &str, backup_type: BackupType) -> BackupId {
        let backup = self.start_as(vm, repository, backup_type, None).await.unwrap();
        let task = self.client.wait_for_task(&backup.task_id.unwrap(), |_| {}).await.unwrap();
        assert_eq!((task.state, &task.error), (TaskState::Completed, &None), "{task:?}");
        backup.backup_id
    }

    pub async fn status(&self, id: &BackupId) -> BackupStatus {
        self.client.get_backup(id).await.unwrap().status
    }

    pub async fn until_running(&self, id: &BackupId) {
        let running = async || self.client.get_backup(id).await.unwrap().phase == Some(Phase::Transferring);
        until("the backup reads", running).await;
    }

    /// Cancels a task and gives how long it took to end.
    pub async fn cancel(&self, task_id: &TaskId) -> (Task, Duration) {
        let begun = Instant::now();
        self.client.cancel_task(task_id).await.unwrap();
        let task = self.client.wait_for_task(task_id, |_| {}).await.unwrap();
        (task, begun.elapsed())
    }

    /// Whatever lies in the repositories and bears this id.
    pub fn left_of(&self, id: &BackupId) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.fixture.folder.path().join("one"), self.fixture.folder.path().join("two")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                if path.to_string_lossy().contains(id.as_str()) {
                    found.push(path.display().to_string());
                }
            }
        }
        found
    }
}

/// Polls until it is so.
pub(super) async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < patience, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
