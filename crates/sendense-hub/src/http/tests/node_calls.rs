//! What a node says over the wire, sent by hand: what is taken, and what is refused whoever says it.

use super::nodes::Site;
use crate::HubConfig;
use crate::reconcile::sweep::{Due, pass, sweep};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sendense_api::{Client, CreateBackup, CreateRepository, CreateSource, RepositoryConfig, Role, Task};
use sendense_block::codec::{Encoder, Level};
use sendense_block::{BLOCK_BYTES, Block, BlockIndex, ByteLen, Cancel, Digest, Payload};
use sendense_node::remote::batch;
use sendense_node::remote::message::{
    Answer, BackupOrder, BeginDisk, Call, Fault, MovedDisk, OrderId, Orders, PROTOCOL, PROTOCOL_MIN, Poll, Work, pack,
    unpack,
};
use sendense_source::{
    Artefact, ArtefactKind, DiscoveredDisk, DiscoveredVm, FrozenDisk, FrozenFacts, ReadHints, VmRef,
};
use sendense_types::*;
use std::sync::Arc;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Three blocks and a bit.
pub(super) const CAPACITY: u64 = 3 * BLOCK_BYTES + 512;

/// A node of which every word is said by the test.
pub(super) struct Node {
    client: Client,
    pub working: Vec<OrderId>,
    /// Tells its lives apart.
    pub process: String,
    pub protocol: u32,
}

impl Node {
    async fn enrol(site: &Site, name: &str) -> Self {
        let client = site.client(Some(site.enrol(name).await), None);
        let mut node = Self { client, working: Vec::new(), process: "one".to_owned(), protocol: PROTOCOL };
        assert!(node.poll().await.start.is_empty());
        node
    }

    async fn say_bytes(&self, body: Vec<u8>) -> Result<Vec<u8>, (u16, ProblemCode)> {
        let answer = self.client.node_call(body).await;
        answer.map_err(|error| (error.status().unwrap_or(0), error.code().unwrap_or_else(|| panic!("{error}"))))
    }

    pub async fn say(&self, call: &Call, tail: &[u8]) -> Result<Vec<u8>, (u16, ProblemCode)> {
        self.say_bytes(pack(call, tail).unwrap()).await
    }

    pub async fn poll(&mut self) -> Orders {
        let (process, version, host) = (self.process.clone(), "1".to_owned(), "esx".to_owned());
        let poll = Poll { protocol: self.protocol, process, version, host, working: self.working.clone() };
        unpack(&self.say(&Call::Poll(poll), &[]).await.unwrap()).unwrap().0
    }

    /// A poll that is answered at once: the hub knows nothing of what it is said to work at.
    pub async fn poll_now(&mut self) {
        self.working.push(OrderId("nothing".to_owned()));
        self.poll().await;
        self.working.pop();
    }

    /// The next order that is not being worked at.
    pub async fn order(&mut self) -> (OrderId, Work) {
        loop {
            if let Some(order) = self.poll().await.start.into_iter().next() {
                self.working.push(order.id.clone());
                return (order.id, order.work);
            }
        }
    }

    pub async fn answer(&mut self, order: &OrderId, outcome: Result<Answer, Fault>) {
        self.say(&Call::Answer { order: order.clone(), outcome }, &[]).await.unwrap();
        self.working.retain(|known| known != order);
    }
}

fn binding() -> DiskBinding {
    DiskBinding("disk-a of web".to_owned())
}

pub(super) fn vm() -> DiscoveredVm {
    let disk = DiscoveredDisk {
        key: "a".to_owned(),
        label: "first".to_owned(),
        binding: binding(),
        capacity: ByteLen(CAPACITY),
        format: "raw".to_owned(),
        datastore: None,
        mode: None,
        path: None,
        unsupported: None,
    };
    DiscoveredVm {
        vm: VmRef { instance_uuid: "uuid-web".to_owned(), name: "web".to_owned() },
        path: None,
        folder: None,
        power_state: PowerState::On,
        guest_os: None,
        cpu_count: None,
        memory_bytes: None,
        disks: vec![disk],
        networks: Vec::new(),
        hardware: None,
        snapshots: Vec::new(),
        change_tracking: Err("none".to_owned()),
        unsupported: None,
    }
}

fn frozen() -> FrozenDisk {
    FrozenDisk {
        key: "a".to_owned(),
        binding: binding(),
        label: "first".to_owned(),
        capacity: ByteLen(CAPACITY),
        token: None,
    }
}

pub(super) fn begin() -> BeginDisk {
    let (backup_type, type_reason) = (BackupType::Full, None);
    BeginDisk { number: DiskNumber(0), disk: frozen(), backup_type, type_reason, read: CAPACITY, audit: None }
}

pub(super) fn moved(batches: u64) -> Answer {
    let hints = ReadHints { lanes: 1, request_bytes: BLOCK };
    let (consistency, consistency_note, config) = (Consistency::Crash, None, Vec::new());
    let facts = FrozenFacts { disks: vec![frozen()], consistency, consistency_note, config, hints };
    let disk = MovedDisk {
        number: DiskNumber(0),
        backup_type: BackupType::Full,
        type_reason: None,
        parent: None,
        audit: None,
        batches,
        // More than any disk has: what a node says of amounts is cut to what can be.
        summary: [u64::MAX; 5],
    };
    Answer::Moved { facts, disks: vec![disk] }
}

/// A block of data as a batch of its own.
pub(super) fn one(index: u64, content: &[u8], digest: Digest) -> Vec<u8> {
    let mut frame = vec![0; Encoder::FRAME_BYTES_MAX];
    let len = Encoder::new(Level::Default).unwrap().encode(content, &mut frame).unwrap();
    let mut bytes = Vec::new();
    batch::append(&mut bytes, &Block { index: BlockIndex(index), digest, payload: Payload::Zstd(&frame[..len]) });
    bytes
}

pub(super) fn content() -> Vec<u8> {
    (0..BLOCK).map(|at| (at / 100) as u8).collect()
}

pub(super) struct House {
    pub site: Site,
    pub admin: Client,
    pub node: Node,
    pub other: Node,
}

impl House {
    /// A hub with two nodes, and a machine behind the first of them.
    pub async fn new() -> Self {
        Self::configured(|_| ()).await
    }

    /// With settings of the test's own.
    async fn configured(configure: impl FnOnce(&mut HubConfig)) -> Self {
        let site = Box::pin(Site::configured(configure)).await;
        let admin = site.client(None, Some(Role::Admin));
        let path = site.fixture.folder.path().join("repository").to_string_lossy().into_owned();
        let (config, kind) = (RepositoryConfig { path }, RepositoryKind::Local);
        let repository =
            CreateRepository { name: "main".to_owned(), kind, config, compression: None, running_tasks_max: None };
        admin.create_repository(&repository).await.unwrap();
        let mut node = Node::enrol(&site, "SITE-A").await;
        let other = Node::enrol(&site, "SITE-B").await;
        let source = CreateSource {
            name: "far".to_owned(),
            kind: SourceKind::Image,
            address: "/far/away".to_owned(),
            credentials: None,
            thumbprint: None,
            scratch_path: None,
            scratch_floor_bytes: None,
            nbd: None,
            vsphere: None,
            running_tasks_max: None,
            node: Some("SITE-A".to_owned()),
        };
        admin.create_source(&source).await.unwrap();
        let discovered = admin.discover_source("far");
        let (found, ()) = tokio::join!(discovered, async {
            let (order, work) = node.order().await;
            assert!(matches!(work, Work::Discover), "{work:?}");
            node.answer(&order, Ok(Answer::Discovered(vec![vm()]))).await;
        });
        assert_eq!(found.unwrap().total, 1);
        Self { site, admin, node, other }
    }

    /// Asks for a backup, and gives what the node is told.
    pub async fn ordered(&mut self) -> (Task, OrderId, Box<BackupOrder>) {
        let asked = CreateBackup {
            vm_name: Some("web".to_owned()),
            vm_context_id: None,
            repository_id: "main".to_owned(),
            backup_type: BackupType::Full,
            disk_id: None,
            policy_id: None,
            tags: [].into(),
            quiesce: false,
            quiesce_or_fail: false,
            compression: None,
            on_tracking_loss: None,
            time_limit_seconds: None,
            bytes_per_second_max: None,
            exclude_disks: Vec::new(),
        };
        let backup = self.admin.create_backup(&asked).await.unwrap();
        let task = self.admin.get_task(backup.task_id.as_ref().unwrap()).await.unwrap();
        // What a task asks of its machine before and after is answered, too.
        loop {
            let (order, work) = self.node.order().await;
            match work {
                Work::Backup(backup) => return (task, order, Box::new(backup)),
                Work::Inspect(_) => self.node.answer(&order, Ok(Answer::Inspected(Box::new(vm())))).await,
                Work::Retire { .. } => self.node.answer(&order, Ok(Answer::Retired(Vec::new()))).await,
                Work::Leftovers => self.node.answer(&order, Ok(Answer::Leftovers(Vec::new()))).await,
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn ends(&mut self, task: &Task) -> Task {
        let (admin, node) = (self.admin.clone(), &mut self.node);
        let ended = admin.wait_for_task(&task.task_id, |_| {});
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => return ended.unwrap(),
                (order, _) = node.order() => node.answer(&order, Ok(Answer::Retired(Vec::new()))).await,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_writes_what_it_was_told_to_and_no_other_node_does() {
    let mut house = House::new().await;
    let (task, order, backup) = house.ordered().await;
    assert_eq!((backup.disks.len(), backup.disks[0].key.as_str()), (1, "a"));
    let (disk, digest) = (DiskNumber(0), Digest::of(&content()));
    let blocks = |batch| Call::Blocks { order: order.clone(), disk, batch };
    let data = one(1, &content(), digest);
    // Nothing is written that was not begun.
    assert_eq!(house.node.say(&blocks(0), &data).await.unwrap_err().1, ProblemCode::Forbidden);
    let other_disk = FrozenDisk { binding: DiskBinding("another".to_owned()), ..frozen() };
    let other_key = FrozenDisk { key: "b".to_owned(), ..frozen() };
    for wrong in [
        BeginDisk { number: DiskNumber(7), ..begin() },
        BeginDisk { disk: other_disk, ..begin() },
        BeginDisk { disk: other_key, ..begin() },
        BeginDisk { backup_type: BackupType::Incremental, ..begin() },
        BeginDisk { disk: FrozenDisk { token: Some(TrackingToken("x".repeat(5000))), ..frozen() }, ..begin() },
    ] {
        let refused = house.node.say(&Call::BeginDisk { order: order.clone(), disk: wrong }, &[]).await;
        assert_eq!(refused.unwrap_err(), (403, ProblemCode::Forbidden));
    }
    let begin = Call::BeginDisk { order: order.clone(), disk: begin() };
    let calls = [
        begin.clone(),
        blocks(0),
        Call::Digests { order: order.clone(), disk, first: 0, count: 1 },
        Call::NextData { order: order.clone(), disk, from: 0, end: 9 },
        Call::TrackingIsWrong { order: order.clone(), disk, message: "x".to_owned() },
        Call::Report {
            order: order.clone(),
            phase: Phase::Transferring,
            progress: [1; 6],
            notes: Vec::new(),
            lines: Vec::new(),
        },
        Call::LettingGo { order: order.clone() },
    ];
    // The certificate of another node, and the right order: as if there were none.
    for call in &calls {
        let refused = house.other.say(call, &data).await;
        assert_eq!(refused.unwrap_err(), (404, ProblemCode::TaskNotFound), "{call:?}");
    }
    house.other.answer(&order, Ok(moved(0))).await;
    assert_eq!(house.other.poll_once_with(&order).await, std::slice::from_ref(&order));

    // Repeated, as after an answer that got lost.
    for _ in 0..2 {
        house.node.say(&begin, &[]).await.unwrap();
    }
    // A full has no parent to be told of.
    for call in &calls[2..5] {
        assert_eq!(house.node.say(call, &[]).await.unwrap_err(), (403, ProblemCode::Forbidden), "{call:?}");
    }
    let report = |progress| Call::Report {
        order: order.clone(),
        phase: Phase::Transferring,
        progress,
        notes: vec!["a\u{1b}[31m line".to_owned(); 1000],
        lines: Vec::new(),
    };
    house.node.say(&report([u64::MAX; 6]), &[]).await.unwrap();
    for _ in 0..2 {
        house.node.say(&blocks(1), &data).await.unwrap();
    }
    let far = Call::Blocks { order: order.clone(), disk, batch: u64::MAX };
    assert_eq!(house.node.say(&far, &data).await.unwrap_err().1, ProblemCode::InvalidInput);
    house.node.say(&blocks(0), &one(3, &content(), digest)).await.unwrap();
    let awaited = house.node.say(&Call::LettingGo { order: order.clone() }, &[]).await.unwrap();
    assert!(unpack::<bool>(&awaited).unwrap().0, "the hub waits for the source's release");
    house.node.answer(&order, Ok(moved(2))).await;
    let ended = house.ends(&task).await;
    assert_eq!((ended.state, ended.error), (TaskState::Completed, None));
    let backup = house.admin.get_backup(ended.backup_id.as_ref().unwrap()).await.unwrap();
    assert!(backup.disks[0].bytes_transferred <= 4 * BLOCK_BYTES, "{backup:?}");
    // It is over: nothing is written any more.
    assert_eq!(house.node.say(&blocks(2), &data).await.unwrap_err(), (404, ProblemCode::TaskNotFound));
    house.site.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_what_was_said_is_no_point() {
    let mut house = House::new().await;
    let digest = Digest::of(&content());
    let beyond = one(4, &content(), digest);
    let twice = [one(1, &content(), digest), one(1, &content(), digest)].concat();
    let false_digest = one(1, &content(), Digest::of(b"another"));
    let odd = b"no batch at all".to_vec();
    // Blocks that are no blocks of this disk; and a whole answer where something is missing.
    let cases: [(&[Vec<u8>], u64); 6] = [
        (&[beyond], 1),
        (&[twice], 1),
        (&[false_digest], 1),
        (&[odd], 1),
        (&[], 1),
        (&[one(1, &content(), digest)], 2),
    ];
    for (batches, said) in cases {
        let (task, order, _) = house.ordered().await;
        house.node.say(&Call::BeginDisk { order: order.clone(), disk: begin() }, &[]).await.unwrap();
        for (batch, bytes) in (0..).zip(batches) {
            let _ = house.node.say(&Call::Blocks { order: order.clone(), disk: DiskNumber(0), batch }, bytes).await;
        }
        house.node.answer(&order, Ok(moved(said))).await;
        let ended = house.ends(&task).await;
        assert_eq!(ended.state, TaskState::Failed, "{ended:?}");
    }
    // Another capacity at the end than at the beginning; another disk; and a disk that was never begun.
    let grown = FrozenDisk { capacity: ByteLen(CAPACITY * 2), ..frozen() };
    let invented = FrozenDisk { token: Some(TrackingToken("never told".to_owned())), ..frozen() };
    for (begins, disk) in [(true, grown), (true, invented), (false, frozen())] {
        let (task, order, _) = house.ordered().await;
        if begins {
            house.node.say(&Call::BeginDisk { order: order.clone(), disk: begin() }, &[]).await.unwrap();
        }
        let Answer::Moved { mut facts, disks } = moved(0) else { unreachable!() };
        facts.disks = vec![disk];
        house.node.answer(&order, Ok(Answer::Moved { facts, disks })).await;
        assert_eq!(house.ends(&task).await.state, TaskState::Failed);
    }
    let repository = house.site.fixture.folder.path().join("repository");
    let left = walk(&repository).into_iter().filter(|path| path.contains("bk-")).collect::<Vec<_>>();
    assert_eq!(left, Vec::<String>::new(), "something is left of a point that is none");
    house.site.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_answered_and_harms_nobody() {
    let house = House::new().await;
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let bodies = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        // A head of the right length with words that are not ours.
        "[ -~]{0,100}".prop_map(|text| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()),
    ];
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        runner.run(&bodies, |body| {
            let refused = runtime.block_on(house.node.say_bytes(body)).unwrap_err();
            prop_assert_eq!(refused, (400, ProblemCode::InvalidInput));
            Ok(())
        })
    })
    .unwrap();
    for protocol in [PROTOCOL_MIN - 1, PROTOCOL + 1] {
        let other = Poll { protocol, ..poll_of_nobody() };
        assert_eq!(house.node.say(&Call::Poll(other), &[]).await.unwrap_err().1, ProblemCode::Conflict);
    }
    let longer = Poll { process: "x".repeat(100), ..poll_of_nobody() };
    assert_eq!(house.node.say(&Call::Poll(longer), &[]).await.unwrap_err().1, ProblemCode::InvalidInput);
    // Credentials are for the node that a source is bound to.
    let sources = house.node.say(&Call::Sources, &[]).await.unwrap();
    assert!(String::from_utf8_lossy(&sources).contains("/far/away"));
    let sources = house.other.say(&Call::Sources, &[]).await.unwrap();
    assert!(!String::from_utf8_lossy(&sources).contains("/far/away"));
    house.site.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_looks_for_leftovers_and_the_hub_says_which_go() {
    let mut house = House::new().await;
    let core = house.site.fixture.hub.app().core.clone();
    let row = core.catalog.sources().list(sendense_catalog::Page::default()).await.unwrap().0.remove(0);
    let snapshot = |task: &str, source_id: SourceId, kind| Artefact {
        source_id,
        task_id: task.parse().unwrap(),
        kind,
        vm_key: "vm-1".to_owned(),
        details: serde_json::json!({"snapshot": task}),
    };
    let dead = snapshot("task-dead", row.source_id.clone(), ArtefactKind::Snapshot);
    let found = vec![
        snapshot("task-file", row.source_id.clone(), ArtefactKind::File),
        snapshot("task-elsewhere", "src-other".parse().unwrap(), ArtefactKind::Snapshot),
        dead.clone(),
    ];
    let cancel = Cancel::new();
    let (swept, ()) = tokio::join!(sweep(&core, &row, &cancel), async {
        let (order, work) = house.node.order().await;
        assert!(matches!(work, Work::Leftovers), "{work:?}");
        house.node.answer(&order, Ok(Answer::Leftovers(found))).await;
        // Neither a file of the node's machine nor what is on another source: the first order is for the snapshot.
        let (order, work) = house.node.order().await;
        assert!(matches!(&work, Work::Reap(artefact) if *artefact == dead), "{work:?}");
        house.node.answer(&order, Ok(Answer::Reaped(true))).await;
    });
    swept.unwrap();
    house.site.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_swept_at_the_start_and_once_a_day() {
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let given = clock.clone();
    let mut house = House::configured(move |config| config.clock = given).await;
    let core = house.site.fixture.hub.app().core.clone();
    let (mut due, cancel) = (Due::new(), Cancel::new());
    // Who is asked what may be left says that nothing is; whether anybody was asked.
    let mut asked = async |due: &mut Due| {
        let pass = pass(&core, due, &cancel);
        tokio::pin!(pass);
        tokio::select! {
            biased;
            () = &mut pass => return false,
            (order, work) = house.node.order() => {
                assert!(matches!(work, Work::Leftovers), "{work:?}");
                house.node.answer(&order, Ok(Answer::Leftovers(Vec::new()))).await;
            }
        }
        pass.await;
        true
    };
    assert!(asked(&mut due).await, "at the start");
    assert!(!asked(&mut due).await, "it was only now");
    clock.advance_seconds(24 * 3600 - 1);
    assert!(!asked(&mut due).await, "not yet");
    clock.advance_seconds(1);
    assert!(asked(&mut due).await, "a day later");
    assert!(!asked(&mut due).await, "it was only now");
    house.site.server.shutdown().await;
}

fn poll_of_nobody() -> Poll {
    let (version, host) = ("1".to_owned(), "esx".to_owned());
    Poll { protocol: PROTOCOL, process: "one".to_owned(), version, host, working: Vec::new() }
}

impl Node {
    /// What a node is told to give up that claims to work at an order.
    async fn poll_once_with(&mut self, order: &OrderId) -> Vec<OrderId> {
        let poll = Poll { working: vec![order.clone()], ..poll_of_nobody() };
        unpack::<Orders>(&self.say(&Call::Poll(poll), &[]).await.unwrap()).unwrap().0.stop
    }
}

pub(super) fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        found.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}
