//! Merges whose hub dies between the repository and the catalog.

use super::house::{House, until};
use crate::{Hub, HubConfig, RunningHub};
use parking_lot::{Condvar, Mutex};
use sendense_api::{Client, ClientOptions, MergeQuery, RestoreBackup};
use sendense_catalog::Catalog;
use sendense_repo::testing::stage::{Act, EIO, Script};
use sendense_types::{BackupId, BackupType, ProblemCode, SourceKind};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const BLOCK: usize = 1 << 16;

/// Stops a merge right after one of its steps is done in the repository, until the hub is dead: then nothing reaches the repository.
struct Death {
    /// The folder of a step goes when its names are changed: after so many of them.
    steps: AtomicU32,
    is_reached: AtomicBool,
    is_dead: Mutex<bool>,
    died: Condvar,
}

impl Script for Death {
    fn before(&self, _act: &Act<'_>) -> io::Result<()> {
        if *self.is_dead.lock() { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn after(&self, act: &Act<'_>) {
        let Act::RemoveDir(path) = act else { return };
        let is_step = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".merge-"));
        if is_step && self.steps.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.is_reached.store(true, Ordering::SeqCst);
            self.died.wait_while(&mut self.is_dead.lock(), |is_dead| !*is_dead);
        }
    }
}

/// A point, and what its disks are to give back.
struct Point {
    id: BackupId,
    disks: Vec<Vec<u8>>,
}

/// What a dead hub has left.
struct Left {
    folder: tempfile::TempDir,
    vm: String,
    points: Vec<Point>,
}

impl Left {
    /// A machine of four points, whose second disk was away for the second one: that stands on the first one with its first disk, the
    /// third one with its second. The first one is merged, and its hub dies when so many steps of that are done.
    async fn after(steps: u32) -> Self {
        let death = Arc::new(Death {
            steps: AtomicU32::new(steps),
            is_reached: AtomicBool::new(false),
            is_dead: Mutex::new(false),
            died: Condvar::new(),
        });
        let script = death.clone();
        let house = House::new(move |config| config.script = Some(script)).await;
        let mut disks = [vec![1; 16 * BLOCK], vec![2; 8 * BLOCK]];
        house.disk("web", &disks[0]);
        let second = house.fixture.folder.path().join("vms/web/disk1.raw");
        std::fs::write(&second, &disks[1]).unwrap();
        let vm = house.machine("images", SourceKind::Image, house.path("vms")).await;
        let mut points = Vec::new();
        for number in 0..4_u8 {
            let at = usize::from(number);
            disks[0][at * BLOCK..][..BLOCK].fill(10 + number);
            disks[1][(at + 1) * BLOCK..][..BLOCK].fill(20 + number);
            house.disk("web", &disks[0]);
            let is_away = number == 1;
            match is_away {
                true => std::fs::remove_file(&second).unwrap(),
                false => std::fs::write(&second, &disks[1]).unwrap(),
            }
            let backup = house.start_as(&vm, "one", BackupType::Incremental, None).await.unwrap();
            let task = house.client.wait_for_task(&backup.task_id.unwrap(), |_| {}).await.unwrap();
            assert!(task.error.is_none(), "{task:?}");
            let disks = disks[..if is_away { 1 } else { 2 }].to_vec();
            points.push(Point { id: backup.backup_id, disks });
        }
        let merge = house.client.merge_backup(&points[0].id, &MergeQuery::default()).await.unwrap();
        assert_eq!((&merge.successor_id, &merge.copied_to), (&points[1].id, &vec![points[2].id.clone()]));
        until("the step is done", async || death.is_reached.load(Ordering::SeqCst)).await;
        // What the step has changed cannot be written down any more.
        house.fixture.hub.app().core.catalog.close().await.unwrap();
        *death.is_dead.lock() = true;
        death.died.notify_all();
        let super::Fixture { hub, folder, .. } = house.fixture;
        hub.shutdown().await;
        Self { folder, vm, points }
    }

    /// What the catalog says stands on the first point.
    async fn standing_on_it(&self, catalog: &Catalog) -> Vec<BackupId> {
        let mut children = catalog.backups().children(&self.points[0].id).await.unwrap();
        children.sort_by_key(|id| self.points.iter().position(|point| point.id == *id));
        children
    }

    /// Those of the points that its manifest says stand on the first one.
    fn standing_on_it_there(&self) -> Vec<BackupId> {
        let manifest = |id: &BackupId| self.folder.path().join("one").join(&self.vm).join(format!("{id}.json"));
        let names_it = |path: &Path| std::fs::read_to_string(path).unwrap().contains(self.points[0].id.as_str());
        let standing = self.points[1..].iter().filter(|point| names_it(&manifest(&point.id)));
        standing.map(|point| point.id.clone()).collect()
    }

    fn ids(&self, of: impl IntoIterator<Item = usize>) -> Vec<BackupId> {
        of.into_iter().map(|at| self.points[at].id.clone()).collect()
    }

    async fn started_again(&self) -> (RunningHub, Client) {
        let mut config = HubConfig::new(self.folder.path().join("data"));
        config.listen.set_port(0);
        config.allow_paths.push(self.folder.path().to_owned());
        let hub = Hub::start(config).await.unwrap();
        let token = std::fs::read_to_string(hub.admin_token_path()).unwrap().trim().to_owned();
        let client = Client::new(ClientOptions::new(hub.url()).with_token(token)).unwrap();
        (hub, client)
    }

    /// Each of these points gives back what it was made of, and nothing else is listed or lies there.
    async fn check(&self, client: &Client, points: std::ops::Range<usize>) {
        let mut listed: Vec<_> = client
            .list_backups(&Default::default())
            .await
            .unwrap()
            .items
            .into_iter()
            .map(|point| point.backup_id)
            .collect();
        let mut expected = self.ids(points.clone());
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
        for point in &self.points[points] {
            for (number, bytes) in point.disks.iter().enumerate() {
                let out = self.folder.path().join("out");
                let target = serde_json::json!({"target": {"kind": "file", "path": out}, "disk_id": number});
                let request: RestoreBackup = serde_json::from_value(target).unwrap();
                let task = client.restore_backup(&point.id, &request).await.unwrap();
                let task = client.wait_for_task(&task.task_id, |_| {}).await.unwrap();
                assert!(task.error.is_none(), "{task:?}");
                assert!(std::fs::read(&out).unwrap() == *bytes, "disk {number} of {} is another one", point.id);
                std::fs::remove_file(&out).unwrap();
            }
        }
        let report = client.reconcile_repository("one", &Default::default()).await.unwrap();
        assert_eq!(report.findings_total, 0, "{report:?}");
    }
}

/// The catalog of a hub that is dead.
async fn catalog_in(folder: &Path) -> Catalog {
    Catalog::open(&crate::hub::sqlite_url(&folder.join("data/catalog.db"))).await.unwrap()
}

/// The copy is made, and the catalog does not know of it: the next life sees that, and the merge is done when somebody asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_not_written_down_is_written_down_by_the_next_life() {
    let left = Left::after(1).await;
    let catalog = catalog_in(left.folder.path()).await;
    assert_eq!(left.standing_on_it(&catalog).await, left.ids([1, 2]), "the catalog is behind");
    assert_eq!(left.standing_on_it_there(), left.ids([1]));
    catalog.close().await.unwrap();

    let (hub, client) = left.started_again().await;
    let catalog = &hub.app().core.catalog;
    until("the catalog follows", async || left.standing_on_it(catalog).await == left.ids([1])).await;
    left.check(&client, 0..4).await;
    let merge = client.merge_backup(&left.points[0].id, &MergeQuery::default()).await.unwrap();
    assert_eq!((&merge.successor_id, &merge.copied_to), (&left.points[1].id, &Vec::new()), "no second copy");
    let task = client.wait_for_task(&merge.task_id.unwrap(), |_| {}).await.unwrap();
    assert!(task.error.is_none(), "{task:?}");
    left.check(&client, 1..4).await;
    hub.shutdown().await;
}

/// All of it is done in the repository, and the catalog does not know: the next life sees that, too, and there is nothing left to ask for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_that_was_not_written_down_is_written_down_by_the_next_life() {
    let left = Left::after(2).await;
    let catalog = catalog_in(left.folder.path()).await;
    assert_eq!(left.standing_on_it(&catalog).await, left.ids([1]), "the catalog is behind");
    assert_eq!(left.standing_on_it_there(), []);
    catalog.close().await.unwrap();

    let (hub, client) = left.started_again().await;
    let gone = &left.points[0].id;
    until("the catalog follows", async || client.get_backup(gone).await.is_err()).await;
    let refused = client.merge_backup(gone, &MergeQuery::default()).await.unwrap_err();
    assert_eq!(refused.code(), Some(ProblemCode::BackupNotFound), "{refused:?}");
    left.check(&client, 1..4).await;
    hub.shutdown().await;
}
