//! The life of open points with a clock that is turned by hand and a reader without a process.

#![allow(clippy::unwrap_used)]

use super::*;
use sendense_guestfs::meta::{Consistency, Entry, FileType, Meta, Page, State};
use sendense_guestfs::session::{ByteStream, RangePage, Walk, WalkOptions};
use sendense_guestfs::{GuestPath, Key, Volume, volume};
use sendense_repo::lock::{ChainLocks, Claim, Operation};
use sendense_types::{BackupId, DiskNumber, ManualClock};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

type StoppedOn = Arc<Mutex<Vec<std::thread::ThreadId>>>;

/// One volume, whose root holds `files` files.
struct Paper {
    files: u64,
    stopped: AtomicBool,
    /// The threads that stopped it and its like.
    stopped_on: StoppedOn,
}

fn meta(file_type: FileType) -> Meta {
    Meta { inode: 1, file_type, size_bytes: 0, mode: 0o644, uid: 0, gid: 0, links: 1, modified: None }
}

impl Session for Paper {
    fn volumes(&self) -> sendense_guestfs::Result<Vec<Volume>> {
        Ok(vec![Volume {
            id: volume::VolumeId::parse("disk").unwrap(),
            kind: "ext4".into(),
            label: None,
            uuid: None,
            size_bytes: 1,
            state: State::Readable,
            consistency: Some(Consistency::Clean),
        }])
    }
    fn unlock(&self, _: &VolumeId, _: &Key) -> sendense_guestfs::Result<Vec<Volume>> {
        Err(Error::WrongKey)
    }
    fn resolve(&self, _: &VolumeId, path: &GuestPath) -> sendense_guestfs::Result<GuestPath> {
        Ok(path.clone())
    }
    fn stat(&self, _: &VolumeId, _: &GuestPath) -> sendense_guestfs::Result<Meta> {
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Error::WorkerDied("stopped".into()));
        }
        Ok(meta(FileType::Directory))
    }
    fn readlink(&self, _: &VolumeId, _: &GuestPath) -> sendense_guestfs::Result<Vec<u8>> {
        Err(Error::NotRegular)
    }
    fn list(&self, _: &VolumeId, _: &GuestPath, after: Option<u64>, limit: usize) -> sendense_guestfs::Result<Page> {
        // Numbers whose order on the disk is not that of their names.
        let from = after.unwrap_or(0);
        let until = self.files.min(from + limit as u64);
        let entry = |n: u64| Entry {
            name: format!("f{:07}", (n * 7919) % self.files).into_bytes(),
            meta: meta(FileType::File),
            target: None,
        };
        Ok(Page { entries: (from..until).map(entry).collect(), next: (until < self.files).then_some(until) })
    }
    fn read(&self, _: &VolumeId, _: &GuestPath, _: Range<u64>) -> sendense_guestfs::Result<Box<dyn ByteStream>> {
        Err(Error::NotRegular)
    }
    fn data_ranges(&self, _: &VolumeId, _: &GuestPath, _: u64) -> sendense_guestfs::Result<RangePage> {
        Err(Error::NotRegular)
    }
    fn walk(&self, _: &VolumeId, _: &GuestPath, _: &WalkOptions) -> sendense_guestfs::Result<Box<dyn Walk>> {
        Err(Error::NotDirectory)
    }
    fn level(&self) -> Option<sendense_guestfs::sandbox::Level> {
        None
    }
    fn close(self: Box<Self>) {}
}

impl Reader for Paper {
    fn ended(&self) -> Option<Error> {
        self.stopped.load(Ordering::SeqCst).then(|| Error::WorkerDied("stopped".into()))
    }
    fn stop(&self) {
        self.stopped_on.lock().push(std::thread::current().id());
        self.stopped.store(true, Ordering::SeqCst);
    }
    fn backend(&self, _: &VolumeId) -> dto::Backend {
        dto::Backend::Native
    }
    fn confinement(&self) -> Option<String> {
        None
    }
}

struct World {
    clock: Arc<ManualClock>,
    locks: ChainLocks,
    mounts: Mounts,
    stopped_on: StoppedOn,
}

fn world(files: u64) -> World {
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(0)));
    let stopped_on = StoppedOn::default();
    let noted = stopped_on.clone();
    let open = move |_: Vec<OwnedFd>, _: Vec<u8>| -> sendense_guestfs::Result<Arc<dyn Reader>> {
        Ok(Arc::new(Paper { files, stopped: AtomicBool::new(false), stopped_on: noted.clone() }))
    };
    let mounts = Mounts::new(Arc::new(open), clock.clone(), 8, 3600);
    World { clock, locks: ChainLocks::default(), mounts, stopped_on }
}

impl World {
    fn claim(&self, operation: Operation) -> sendense_repo::Result<sendense_repo::lock::ChainGuard> {
        let points = [backup()].into();
        self.locks.acquire(Claim { operation, vm: "vm-1".parse().unwrap(), points, who: "mount mnt-1".into() })
    }

    async fn open(&self) -> Result<Arc<Mount>> {
        let guard = self.claim(Operation::Read).unwrap();
        let point = Point {
            backup_id: backup(),
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web".into(),
            disk_id: DiskNumber(0),
        };
        let words = sendense_repo::Words { capacity_bytes: 1, images: Vec::new() };
        self.mounts
            .open(MountId::generate(), point, None, move || Ok(Detached { files: Vec::new(), words, guard }))
            .await
    }
}

fn backup() -> BackupId {
    "bk-1".parse().unwrap()
}

#[tokio::test]
async fn the_ninth_is_told_to_wait_and_an_end_makes_room() {
    let world = world(1);
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(world.open().await.unwrap());
    }
    let problem = world.open().await.map(drop).unwrap_err();
    assert_eq!(problem.code, ProblemCode::Busy);
    assert!(problem.details.contains(open[0].id.as_str()), "{problem:?}");
    assert_eq!(world.mounts.resources().available_slots, 0);
    world.mounts.close(&open[3].id).await.unwrap();
    assert_eq!(world.mounts.close(&open[3].id).await.unwrap_err().code, ProblemCode::MountNotFound);
    world.open().await.unwrap();
    assert_eq!(world.mounts.resources().device_utilization_percent, 100.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_place_is_taken_until_the_process_is_gone_and_not_only_while_somebody_waits_for_it() {
    let (begun, heard) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (begun, wait) = (Mutex::new(begun), Mutex::new(wait));
    let open = move |_: Vec<OwnedFd>, _: Vec<u8>| -> sendense_guestfs::Result<Arc<dyn Reader>> {
        begun.lock().send(()).unwrap();
        let _ = wait.lock().recv();
        Ok(Arc::new(Paper { files: 1, stopped: AtomicBool::new(false), stopped_on: StoppedOn::default() }))
    };
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(0)));
    let mounts = Mounts::new(Arc::new(open), clock.clone(), 8, 3600);
    let world = Arc::new(World { clock, locks: ChainLocks::default(), mounts, stopped_on: StoppedOn::default() });
    let asked = tokio::spawn({
        let world = world.clone();
        async move { world.open().await.map(drop) }
    });
    heard.recv().unwrap();
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    assert_eq!(world.mounts.resources().available_slots, 7);
    drop(go);
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    while world.mounts.resources().available_slots < 8 {
        assert!(std::time::Instant::now() < patience, "the place is taken for good");
        tokio::task::yield_now().await;
    }
    assert!(world.mounts.all().is_empty());
    world.claim(Operation::Delete).unwrap();
}

#[tokio::test]
async fn an_hour_without_use_closes_and_a_stream_is_use() {
    let world = world(1);
    let (idle, used, streaming) =
        (world.open().await.unwrap(), world.open().await.unwrap(), world.open().await.unwrap());
    let stream = streaming.begin(1).unwrap();
    world.clock.advance_seconds(3599);
    assert!(world.mounts.clean_up().await.is_empty());
    let root = VolumeId::parse("disk").unwrap();
    used.ask(move |reader| reader.stat(&root, &GuestPath::root())).await.unwrap();
    assert_eq!(world.mounts.expires_at(&used).as_micros(), (3599 + 3600) * 1_000_000);
    world.clock.advance_seconds(1);
    assert_eq!(world.mounts.clean_up().await, vec![idle.id.clone()]);
    assert!(idle.closed.is_cancelled());
    assert_eq!(world.mounts.get(&idle.id).map(drop).unwrap_err().code, ProblemCode::MountNotFound);
    world.clock.advance_seconds(100_000);
    assert_eq!(world.mounts.clean_up().await, vec![used.id.clone()], "a stream in progress is not idle");
    drop(stream);
    world.clock.advance_seconds(3599);
    assert!(world.mounts.clean_up().await.is_empty(), "the hour begins at the stream's end");
    world.clock.advance_seconds(1);
    assert_eq!(world.mounts.clean_up().await, vec![streaming.id.clone()]);
    assert_eq!(world.mounts.cleanup_status(true).total_cleaned, 3);
}

#[tokio::test]
async fn an_open_point_keeps_its_chain_and_a_closed_one_does_not() {
    let world = world(1);
    let mount = world.open().await.unwrap();
    let error = world.claim(Operation::Delete).unwrap_err();
    assert!(error.to_string().contains("mount mnt-1"), "{error}");
    // Also while somebody still holds it.
    let held = mount.begin(1).unwrap();
    world.mounts.close(&mount.id).await.unwrap();
    world.claim(Operation::Delete).unwrap();
    let last = world.open().await.unwrap();
    world.mounts.close_all().await;
    // A test's runtime has one thread, which answers everybody: killing processes there would take its time.
    let stopped_on = world.stopped_on.lock().clone();
    assert!(stopped_on.len() == 2 && !stopped_on.contains(&std::thread::current().id()), "{stopped_on:?}");
    assert_eq!(last.status().0, sendense_api::MountStatus::Failed);
    assert_eq!(mount.status().0, sendense_api::MountStatus::Failed);
    let root = VolumeId::parse("disk").unwrap();
    let problem = mount.ask(move |reader| reader.stat(&root, &GuestPath::root())).await.unwrap_err();
    assert_eq!(problem.code, ProblemCode::ReaderFailed);
    drop(held);
}

#[tokio::test]
async fn pages_of_a_folder_are_whole_and_sorted_and_a_huge_one_is_not_kept() {
    for files in [0, 1, 2_503, 250_007] {
        let world = world(files.max(1));
        let mount = world.open().await.unwrap();
        let root = VolumeId::parse("disk").unwrap();
        let (mut names, mut offset) = (std::collections::BTreeSet::new(), 0);
        // All of a small folder; a few pages of a huge one, each of which goes through it anew.
        let until = if files > 200_000 { 3000 } else { u64::MAX };
        while offset < until {
            let folder = mount.folder(root.clone(), GuestPath::root(), offset, 1000).await.unwrap();
            assert_eq!(folder.total, files.max(1));
            let page = folder.page(offset, 1000);
            if page.is_empty() {
                break;
            }
            if until == u64::MAX {
                assert!(page.is_sorted_by(|one, other| one.name < other.name));
            }
            offset += page.len() as u64;
            names.extend(page.iter().map(|entry| entry.name.clone()));
        }
        assert_eq!(names.len() as u64, offset, "no name comes twice");
        assert_eq!(offset, files.max(1).min(until));
    }
}

#[tokio::test]
async fn a_volume_is_named_or_the_only_one() {
    let world = world(1);
    let mount = world.open().await.unwrap();
    assert_eq!(mount.volume(None).unwrap().as_str(), "disk");
    assert_eq!(mount.volume(Some("p7")).unwrap_err().code, ProblemCode::VolumeNotFound);
    assert_eq!(mount.volume(Some("a b")).unwrap_err().code, ProblemCode::VolumeNotFound);
    let too_many: Vec<_> = std::iter::from_fn(|| mount.begin(1).ok()).take(100).collect();
    assert_eq!(too_many.len(), sendense_guestfs::wire::REQUESTS_MAX - 4);
    assert_eq!(mount.begin(1).map(drop).unwrap_err().code, ProblemCode::Busy);
}

/// Looks until the process is stopped; tells when it has begun and when it has seen its end.
async fn look_until_stopped(
    looker: look::Looker,
    guard: sendense_repo::lock::ChainGuard,
    time_max: Duration,
    begun: std::sync::mpsc::Sender<&'static str>,
) -> Result<()> {
    let words = sendense_repo::Words { capacity_bytes: 1, images: Vec::new() };
    let ask = move |reader: &dyn Reader, _: &[Volume]| {
        begun.send("begun").unwrap();
        while reader.ended().is_none() {
            std::thread::yield_now();
        }
        begun.send("stopped").unwrap();
        Ok(())
    };
    looker.look(time_max, move || Ok(Detached { files: Vec::new(), words, guard }), ask).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_look_ends_with_the_one_who_waits_for_it() {
    let world = world(1);
    let (looker, other) = (world.mounts.begin_looking().unwrap(), world.mounts.begin_looking().unwrap());
    assert_eq!(world.mounts.begin_looking().map(drop).unwrap_err().code, ProblemCode::Busy);
    assert_eq!(world.mounts.resources().available_slots, 8, "they take no place of those who browse");

    let (begun, heard) = std::sync::mpsc::channel();
    let guard = world.claim(Operation::Read).unwrap();
    let long = Duration::from_secs(3600);
    let look = tokio::spawn(look_until_stopped(looker, guard, long, begun));
    assert_eq!(heard.recv().unwrap(), "begun");
    world.claim(Operation::Delete).unwrap_err();
    look.abort();
    assert_eq!(heard.recv().unwrap(), "stopped");
    // The thread gives everything back when it ends, which is soon.
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    let looker = loop {
        assert!(std::time::Instant::now() < patience, "the place or the chain is taken for good");
        match (world.mounts.begin_looking(), world.claim(Operation::Delete)) {
            (Ok(looker), Ok(_)) => break looker,
            _ => tokio::task::yield_now().await,
        }
    };

    let (begun, heard) = std::sync::mpsc::channel();
    let guard = world.claim(Operation::Read).unwrap();
    let problem = look_until_stopped(looker, guard, Duration::from_millis(50), begun).await.unwrap_err();
    assert_eq!(problem.code, ProblemCode::ReaderFailed);
    assert_eq!((heard.recv().unwrap(), heard.recv().unwrap()), ("begun", "stopped"));
    drop(other);
}

#[test]
fn a_folder_without_end_ends() {
    let paper = |files| Paper { files, stopped: AtomicBool::new(false), stopped_on: StoppedOn::default() };
    let (volume, bound) = (VolumeId::parse("disk").unwrap(), 10_000);
    assert_eq!(listing::read_at_most(&paper(9_999), &volume, bound).unwrap(), 9_999);
    let error = listing::read_at_most(&paper(u64::from(u32::MAX)), &volume, bound).unwrap_err();
    assert!(matches!(error, Error::Limit(_)), "{error}");
}
