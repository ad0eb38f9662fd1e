//! Jobs that hang where nothing can end them: in a read of a device that does not answer. A read of these tests' own hangs as
//! deaf to cancellation as one in the kernel, until the test lets it go.

use super::PATIENCE;
use super::house::{House, until};
use parking_lot::Mutex;
use sendense_api::{Backup, CheckStatus};
use sendense_block::{AllocationMap, ByteLen, ByteOffset, Cancel, Disk, Extent, MappedExtent, ReadAt};
use sendense_catalog::Catalog;
use sendense_source::{
    Artefact, Changes, DiscoveredVm, FreezeRequest, Frozen, FrozenFacts, Journal, Source, TestReport, VmRef,
};
use sendense_types::{
    BackupStatus, ManualClock, ProblemCode, SourceKind, TaskState, Timestamp, TrackingToken, VmContextId,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// True while reads hang.
type Stuck = Arc<AtomicBool>;

/// Disks that are opened while it is shut hang in every read until they are let go.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<Option<Stuck>>>);

struct Hangs {
    disk: Arc<dyn Disk>,
    stuck: Option<Stuck>,
}

impl Gate {
    fn shut(&self) {
        *self.0.lock() = Some(Arc::new(AtomicBool::new(true)));
    }

    /// Disks that are opened from now on are read; those that hang, hang.
    fn shut_no_more(&self) -> LetGo {
        LetGo(self.0.lock().take())
    }

    /// The same when something has come to hang.
    async fn shut_no_more_when(&self, hangs: impl AsyncFnOnce()) -> LetGo {
        hangs().await;
        self.shut_no_more()
    }
}

/// Lets reads go, at the latest when the test ends: the test's runtime waits for them.
struct LetGo(Option<Stuck>);

impl Drop for LetGo {
    fn drop(&mut self) {
        if let Some(stuck) = &self.0 {
            stuck.store(false, Ordering::SeqCst);
        }
    }
}

impl ReadAt for Hangs {
    fn size(&self) -> ByteLen {
        self.disk.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        while self.stuck.as_ref().is_some_and(|stuck| stuck.load(Ordering::SeqCst)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.disk.read_at(at, buf)
    }
}

impl AllocationMap for Hangs {
    fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
        self.disk.allocation(within)
    }
}

/// A source whose disks hang when the gate is shut, and that is otherwise what it is.
struct HangingSource(Arc<dyn Source>, Gate);
struct HangingFrozen(Box<dyn Frozen>, Gate);

impl Source for HangingSource {
    fn kind(&self) -> SourceKind {
        self.0.kind()
    }
    fn test(&self, cancel: &Cancel) -> sendense_source::Result<TestReport> {
        self.0.test(cancel)
    }
    fn discover(&self, cancel: &Cancel) -> sendense_source::Result<Vec<DiscoveredVm>> {
        self.0.discover(cancel)
    }
    fn inspect(&self, vm: &VmRef, cancel: &Cancel) -> sendense_source::Result<DiscoveredVm> {
        self.0.inspect(vm, cancel)
    }
    fn freeze(
        &self,
        request: &FreezeRequest,
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> sendense_source::Result<Box<dyn Frozen>> {
        Ok(Box::new(HangingFrozen(self.0.freeze(request, journal, cancel)?, self.1.clone())))
    }
    fn retire(
        &self,
        vm: &VmRef,
        keep: &[TrackingToken],
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> sendense_source::Result<Vec<TrackingToken>> {
        self.0.retire(vm, keep, journal, cancel)
    }
    fn reap(&self, artefact: &Artefact, cancel: &Cancel) -> sendense_source::Result<bool> {
        self.0.reap(artefact, cancel)
    }
}

impl Frozen for HangingFrozen {
    fn facts(&self) -> &FrozenFacts {
        self.0.facts()
    }
    fn changes(&self, disk_key: &str) -> sendense_source::Result<Changes> {
        self.0.changes(disk_key)
    }
    fn open(&self, disk_key: &str, cancel: &Cancel) -> sendense_source::Result<Arc<dyn Disk>> {
        let (disk, stuck) = (self.0.open(disk_key, cancel)?, self.1.0.lock().clone());
        Ok(Arc::new(Hangs { disk, stuck }))
    }
    fn check(&self) -> sendense_source::Result<()> {
        self.0.check()
    }
    fn release(self: Box<Self>) -> sendense_source::Result<()> {
        self.0.release()
    }
}

/// A house with one machine, whose disk hangs when the gate is shut.
async fn house(configure: impl FnOnce(&mut crate::HubConfig)) -> (House, Gate, VmContextId) {
    let house = House::new(|config| {
        config.limits.running_per_hub = 1;
        config.limits.stop_grace = Duration::from_millis(300);
        configure(config);
    })
    .await;
    let gate = Gate::default();
    let given = gate.clone();
    let between = Box::new(move |source| Arc::new(HangingSource(source, given.clone())) as Arc<dyn Source>);
    *house.fixture.hub.app().core.between.lock() = Some(between);
    std::fs::create_dir(house.path("images")).unwrap();
    std::fs::write(house.path("images/web.raw"), vec![7; 3 << 20]).unwrap();
    let vm = house.machine("images", SourceKind::Image, house.path("images")).await;
    (house, gate, vm.parse().unwrap())
}

async fn done(house: &House, backup: &Backup) -> TaskState {
    house.client.wait_for_task(backup.task_id.as_ref().unwrap(), |_| {}).await.unwrap().state
}

async fn stuck_work(house: &House) -> (CheckStatus, u64) {
    let health = house.client.debug_health().await.unwrap();
    let check = health.checks.iter().find(|check| check.name == "stuck work").unwrap();
    (check.status, health.tasks.running)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_hangs_is_left_behind_and_in_nobodys_way() {
    let (house, gate, vm) = house(|_| ()).await;
    let first = house.start(vm.as_str(), "two").await.unwrap();
    assert_eq!(done(&house, &first).await, TaskState::Completed);

    gate.shut();
    let hanging = house.start_as(vm.as_str(), "two", sendense_types::BackupType::Incremental, None).await.unwrap();
    house.until_running(&hanging.backup_id).await;
    let held = house.client.delete_backup(&first.backup_id, &Default::default()).await.unwrap_err();
    assert_eq!(held.status(), Some(409), "its parent is held: {held:?}");
    let task_id = hanging.task_id.clone().unwrap();
    let (task, _) = house.cancel(&task_id).await;
    assert_eq!(task.state, TaskState::Cancelled, "{task:?}");
    let log = house.client.task_log(&task_id, &Default::default()).await.unwrap();
    assert!(log.items.iter().any(|line| line.message.contains("was left behind")), "{log:?}");
    assert_eq!(house.left_of(&hanging.backup_id), [""; 0]);
    assert_eq!(stuck_work(&house).await, (CheckStatus::Degraded, 0));

    // The parent, the machine and the hub's only place are free.
    house.client.delete_backup(&first.backup_id, &Default::default()).await.unwrap();
    let let_go = gate.shut_no_more();
    let second = house.start(vm.as_str(), "two").await.unwrap();
    assert_eq!(done(&house, &second).await, TaskState::Completed);
    assert_eq!(stuck_work(&house).await, (CheckStatus::Degraded, 0), "the first one hangs still");

    // It comes back, and changes nothing.
    drop(let_go);
    until("it comes back", async || stuck_work(&house).await == (CheckStatus::Ok, 0)).await;
    assert_eq!(house.status(&hanging.backup_id).await, BackupStatus::Cancelled);
    assert_eq!(house.left_of(&hanging.backup_id), [""; 0]);
    let third = house.start_as(vm.as_str(), "two", sendense_types::BackupType::Incremental, None).await.unwrap();
    assert_eq!(done(&house, &third).await, TaskState::Completed);
    let third = house.client.get_backup(&third.backup_id).await.unwrap();
    assert_eq!(third.parent_backup_id.as_ref(), Some(&second.backup_id));
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_hangs_for_four_hours_fails_and_says_so() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
    let given = clock.clone();
    let (house, gate, vm) = house(move |config| config.clock = given).await;
    gate.shut();
    let hanging = house.start(vm.as_str(), "two").await.unwrap();
    let _let_go = gate.shut_no_more_when(async || house.until_running(&hanging.backup_id).await).await;
    clock.advance_seconds(4 * 3600 + 60);
    assert_eq!(done(&house, &hanging).await, TaskState::Failed);
    let ended = house.client.get_backup(&hanging.backup_id).await.unwrap();
    assert_eq!((ended.status, ended.error_code), (BackupStatus::Failed, Some(ProblemCode::DeadlineExceeded)));
    assert!(ended.error_message.as_deref().unwrap().contains("was left behind"), "{ended:?}");
    assert_eq!(house.left_of(&hanging.backup_id), [""; 0]);
    // The hub ends although it hangs.
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_stops_ends_what_hangs() {
    let (house, gate, vm) = house(|_| ()).await;
    gate.shut();
    let hanging = house.start(vm.as_str(), "two").await.unwrap();
    let _let_go = gate.shut_no_more_when(async || house.until_running(&hanging.backup_id).await).await;
    let catalog = house.fixture.hub.app().core.data_dir.catalog_path();
    let stopped = tokio::time::timeout(PATIENCE, house.fixture.hub.shutdown()).await;
    assert!(stopped.is_ok(), "the hub waits for what hangs");
    let catalog = Catalog::open(&format!("sqlite://{}", catalog.display())).await.unwrap();
    let row = catalog.backups().get(&hanging.backup_id).await.unwrap();
    assert_eq!((row.status, row.error_code), (BackupStatus::Failed, Some(ProblemCode::Interrupted)));
    catalog.close().await.unwrap();
}
