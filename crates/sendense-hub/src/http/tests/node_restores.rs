//! What a node says over the wire of a restore, by hand: what it is lent, what it is not, and what is believed of it.

use super::node_calls::{CAPACITY, House, Node, begin, content, moved, one, vm, walk};
use sendense_api::{
    CreateSource, Credentials, ImageFormat, RestoreBackup, RestoreTarget, Secret, Task, VsphereOptions,
};
use sendense_block::codec::Encoder;
use sendense_block::{BLOCK_BYTES, BlockIndex, Digest, Known, Payload};
use sendense_node::remote::batch::{self, Checked};
use sendense_node::remote::digests;
use sendense_node::remote::message::{
    Answer, Call, Fault, HELD_BLOCKS_MAX, OrderId, PROTOCOL, PROTOCOL_MIN, READ_BLOCKS_MAX, Work, unpack,
};
use sendense_node::remote::restore::{RestoreAnswer, RestoreOrder};
use sendense_node::restore::To;
use sendense_source::VmRef;
use sendense_types::*;
use std::os::unix::fs::FileExt;
use std::path::Path;

const DISK: DiskNumber = DiskNumber(0);

/// A house with a point of its machine, and a vCenter behind the first node.
struct Restores {
    house: House,
    backup_id: BackupId,
}

impl Restores {
    async fn new() -> Self {
        let mut house = House::new().await;
        let (task, order, _) = house.ordered().await;
        house.node.say(&Call::BeginDisk { order: order.clone(), disk: begin() }, &[]).await.unwrap();
        let blocks = Call::Blocks { order: order.clone(), disk: DISK, batch: 0 };
        let digest = Digest::of(&content());
        house.node.say(&blocks, &[one(1, &content(), digest), tail_block()].concat()).await.unwrap();
        house.node.answer(&order, Ok(moved(1))).await;
        let ended = house.ends(&task).await;
        assert_eq!(ended.state, TaskState::Completed, "{ended:?}");
        let vcenter = CreateSource {
            name: "vc".to_owned(),
            kind: SourceKind::Vsphere,
            address: "vc.example".to_owned(),
            credentials: Some(Credentials {
                username: Some("sendense".to_owned()),
                password: Some(Secret::new("hunter2".to_owned())),
                ..Credentials::default()
            }),
            thumbprint: Some("ab".repeat(32)),
            scratch_path: None,
            scratch_floor_bytes: None,
            nbd: None,
            vsphere: Some(VsphereOptions::default()),
            running_tasks_max: None,
            node: Some("SITE-A".to_owned()),
        };
        house.admin.create_source(&vcenter).await.unwrap();
        Self { house, backup_id: ended.backup_id.unwrap() }
    }

    fn request(&self, name: &str, onto: bool) -> RestoreBackup {
        let target = RestoreTarget::Vm {
            source_id: "vc".to_owned(),
            name: name.to_owned(),
            onto,
            force: onto,
            pool: "default".to_owned(),
            format: ImageFormat::Qcow2,
            networks: [].into(),
            keep_identity: false,
            folder: None,
            cluster: None,
        };
        RestoreBackup { target, disk_id: None, allow_damaged: false }
    }

    /// Asks for a restore, and gives what the node is told.
    async fn ordered(&mut self, request: &RestoreBackup) -> (Task, OrderId, RestoreOrder) {
        let task = self.house.admin.restore_backup(&self.backup_id, request).await.unwrap();
        loop {
            let (order, work) = self.house.node.order().await;
            match work {
                Work::Restore(restore) => return (task, order, restore),
                Work::Leftovers => self.house.node.answer(&order, Ok(Answer::Leftovers(Vec::new()))).await,
                Work::Retire { .. } => self.house.node.answer(&order, Ok(Answer::Retired(Vec::new()))).await,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn new_machine(&mut self) -> (Task, OrderId, RestoreOrder) {
        let request = self.request("again", false);
        self.ordered(&request).await
    }

    async fn ends(&mut self, task: &Task) -> Task {
        let (admin, node) = (self.house.admin.clone(), &mut self.house.node);
        let ended = admin.wait_for_task(&task.task_id, |_| {});
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => return ended.unwrap(),
                (order, _) = node.order() => node.answer(&order, Ok(Answer::Leftovers(Vec::new()))).await,
            }
        }
    }
}

/// The last block, of which the disk has 512 bytes.
fn tail_block() -> Vec<u8> {
    let block = tail_content();
    one(3, &block, Digest::of(&block))
}

fn tail_content() -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    block[..512].fill(9);
    block
}

fn read(order: &OrderId, disk: DiskNumber, first: u64, count: u32) -> Call {
    Call::Read { order: order.clone(), disk, first, count }
}

fn hand_over(order: &OrderId) -> Call {
    Call::HandOver { order: order.clone() }
}

fn restored(name: &str) -> Answer {
    let vm = VmRef { instance_uuid: "uuid\u{1b}-again".to_owned(), name: name.to_owned() };
    Answer::Restored(RestoreAnswer { vm, notes: vec!["x".repeat(5000); 300], difference: None })
}

async fn refused(node: &Node, call: &Call) -> (u16, ProblemCode) {
    node.say(call, &[]).await.expect_err("it was answered")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_lent_the_point_that_its_order_names_and_no_other_node_is() {
    let mut restores = Restores::new().await;
    let (task, order, told) = restores.new_machine().await;
    assert_eq!((told.backup_id.clone(), told.disks.len()), (restores.backup_id.clone(), 1));
    assert_eq!((told.disks[0].number, told.disks[0].capacity_bytes), (DISK, CAPACITY));
    assert!(matches!(&told.to, To::New(new) if new.name == "again"), "{told:?}");
    let House { node, other, .. } = &restores.house;

    // What it holds, where, and with which digests.
    let batch = node.say(&read(&order, DISK, 0, 4), &[]).await.unwrap();
    let blocks = Checked::default().parse(&batch, 4).unwrap();
    assert_eq!(blocks.iter().map(|block| block.index).collect::<Vec<_>>(), [0, 1, 2, 3].map(BlockIndex));
    assert!(matches!(blocks[1].payload, Payload::Zstd(frame) if frame.len() < Encoder::FRAME_BYTES_MAX));
    assert_eq!((blocks[1].digest, blocks[3].digest), (Digest::of(&content()), Digest::of(&tail_content())));
    assert!([0, 2].iter().all(|zero: &usize| matches!(blocks[*zero].payload, Payload::Zero)));
    let held = Call::Held { order: order.clone(), disk: DISK, from: 0, end: 4 };
    let runs = node.say(&held, &[]).await.unwrap();
    assert_eq!(unpack::<Vec<(u64, u64)>>(&runs).unwrap().0, [(1, 1), (3, 1)]);
    let asked = Call::Digests { order: order.clone(), disk: DISK, first: 0, count: 3 };
    let known = digests::decode(&node.say(&asked, &[]).await.unwrap()).unwrap();
    assert_eq!(known, [Known::Zero, Known::Data(Digest::of(&content())), Known::Zero]);
    let next = Call::NextData { order: order.clone(), disk: DISK, from: 2, end: 4 };
    assert_eq!(unpack::<Option<u64>>(&node.say(&next, &[]).await.unwrap()).unwrap().0, Some(3));

    // Nothing beyond it, and nothing without measure.
    let wide = |end| Call::Held { order: order.clone(), disk: DISK, from: 0, end };
    for call in [
        read(&order, DISK, 0, 0),
        read(&order, DISK, 3, 2),
        read(&order, DISK, u64::MAX, 1),
        read(&order, DISK, 0, READ_BLOCKS_MAX + 1),
        wide(0),
        wide(5),
        wide(HELD_BLOCKS_MAX + 1),
        wide(u64::MAX),
    ] {
        assert_eq!(refused(node, &call).await, (400, ProblemCode::InvalidInput), "{call:?}");
    }
    let another = DiskNumber(7);
    for call in [
        read(&order, another, 0, 1),
        Call::Held { order: order.clone(), disk: another, from: 0, end: 1 },
        Call::Digests { order: order.clone(), disk: another, first: 0, count: 1 },
        Call::NextData { order: order.clone(), disk: another, from: 0, end: 1 },
    ] {
        assert_eq!(refused(node, &call).await, (403, ProblemCode::Forbidden), "{call:?}");
    }
    // What is for backups is not for restores, and an order is its node's.
    let calls = [read(&order, DISK, 0, 1), held, asked, next, hand_over(&order), report(&order)];
    let writes = [
        Call::BeginDisk { order: order.clone(), disk: begin() },
        Call::Blocks { order: order.clone(), disk: DISK, batch: 0 },
        Call::Settle { order: order.clone(), disk: DISK },
        Call::TrackingIsWrong { order: order.clone(), disk: DISK, message: "x".to_owned() },
    ];
    for call in &writes {
        assert_eq!(refused(node, call).await, (404, ProblemCode::TaskNotFound), "{call:?}");
    }
    for call in calls.iter().chain(&writes) {
        assert_eq!(refused(other, call).await, (404, ProblemCode::TaskNotFound), "{call:?}");
    }
    for id in ["", "1", task.task_id.as_str(), restores.backup_id.as_str()] {
        let guessed = OrderId(id.to_owned());
        assert_eq!(refused(node, &read(&guessed, DISK, 0, 1)).await, (404, ProblemCode::TaskNotFound), "{id}");
    }

    // Asked again, as after an answer that got lost; then nobody can stop it.
    for _ in 0..2 {
        node.say(&hand_over(&order), &[]).await.unwrap();
    }
    restores.house.admin.cancel_task(&task.task_id).await.unwrap();
    restores.house.node.answer(&order, Ok(restored("again"))).await;
    let ended = restores.ends(&task).await;
    assert_eq!(ended.state, TaskState::Completed, "{ended:?}");
    assert!(ended.summary.as_deref().is_some_and(|summary| summary.contains("again (uuid-again)")), "{ended:?}");
    for call in &calls {
        let ended = refused(&restores.house.node, call).await;
        assert_eq!(ended, (404, ProblemCode::TaskNotFound), "{call:?}");
    }
    restores.house.site.server.shutdown().await;
}

/// The entry of a block in the image of the only point says that nothing is there.
fn forget(repository: &Path, block: u64) {
    let image = walk(repository).into_iter().find(|path| path.ends_with(".qcow2")).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(repository.join(image)).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00
    };
    // The header's L1 table, its first L2 table: QCOW2's specification.
    let mut entry = [0; 8];
    file.read_exact_at(&mut entry, 40).unwrap();
    let table = number(u64::from_be_bytes(entry));
    file.write_all_at(&[0; 8], table + 8 * block).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_image_has_lost_is_lent_as_damaged_and_not_as_nothing() {
    let mut restores = Restores::new().await;
    forget(&restores.house.site.fixture.folder.path().join("repository"), 1);
    let (_, order, _) = restores.new_machine().await;
    let node = &restores.house.node;
    let held = Call::Held { order: order.clone(), disk: DISK, from: 0, end: 4 };
    let runs = node.say(&held, &[]).await.unwrap();
    assert_eq!(unpack::<Vec<(u64, u64)>>(&runs).unwrap().0, [(1, 1), (3, 1)]);
    let batch = node.say(&read(&order, DISK, 0, 4), &[]).await.unwrap();
    let blocks = Checked::default().parse(&batch, 4).map(|blocks| blocks.len());
    assert!(blocks.is_err(), "{blocks:?} blocks are taken for what was backed up");
    restores.house.node.answer(&order, Err(Fault::Cancelled)).await;
    restores.house.site.server.shutdown().await;
}

fn report(order: &OrderId) -> Call {
    let (phase, notes, lines) = (Phase::Transferring, vec!["a\u{1b}[31m note".to_owned(); 1000], Vec::new());
    Call::Report { order: order.clone(), phase, progress: [u64::MAX; 6], notes, lines }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_nobody_wants_any_more_is_not_handed_over() {
    let mut restores = Restores::new().await;
    let (task, order, _) = restores.new_machine().await;
    restores.house.node.say(&report(&order), &[]).await.unwrap();
    restores.house.admin.cancel_task(&task.task_id).await.unwrap();
    // Told to give it up, and not asked whether it is whole.
    let told = loop {
        let told = restores.house.node.poll().await.stop;
        if !told.is_empty() {
            break told;
        }
    };
    assert_eq!(told, std::slice::from_ref(&order));
    assert_eq!(refused(&restores.house.node, &hand_over(&order)).await.1, ProblemCode::Cancelled);
    let awaited = restores.house.node.say(&Call::LettingGo { order: order.clone() }, &[]).await.unwrap();
    assert!(unpack::<bool>(&awaited).unwrap().0, "the hub does not wait for the machine's removal");
    restores.house.node.answer(&order, Err(Fault::Cancelled)).await;
    assert_eq!(restores.ends(&task).await.state, TaskState::Cancelled);
    assert_eq!(refused(&restores.house.node, &read(&order, DISK, 0, 1)).await.0, 404);

    // What the node says at the end must be what was ordered, and what it asked about.
    let cases = [
        (false, restored("again"), "unasked"),
        (true, restored("another"), "another machine"),
        (true, Answer::Reaped(true), "something else"),
    ];
    for (asks, answer, why) in cases {
        let (task, order, _) = restores.new_machine().await;
        if asks {
            restores.house.node.say(&hand_over(&order), &[]).await.unwrap();
        }
        restores.house.node.answer(&order, Ok(answer)).await;
        let ended = restores.ends(&task).await;
        assert_eq!(ended.state, TaskState::Failed, "{ended:?}");
        assert!(ended.error.as_ref().is_some_and(|error| format!("{error:?}").contains(why)), "{why}: {ended:?}");
    }
    // What is in the way of a machine is told as the request's.
    let (task, order, _) = restores.new_machine().await;
    let (kind, message) = ("Busy".to_owned(), "a machine again exists already".to_owned());
    restores.house.node.answer(&order, Err(Fault::Planning { kind, message })).await;
    let ended = restores.ends(&task).await;
    assert_eq!(ended.error.map(|error| error.code), Some(ProblemCode::Conflict));
    restores.house.site.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_revoked_or_started_anew_has_lost_its_restore() {
    let mut restores = Restores::new().await;
    let (task, order, _) = restores.new_machine().await;
    restores.house.node.say(&read(&order, DISK, 1, 1), &[]).await.unwrap();
    // Its next life is not told of what the former one has begun.
    restores.house.node.process = "two".to_owned();
    restores.house.node.working.clear();
    let ended = restores.ends(&task).await;
    assert!(ended.error.is_some_and(|error| error.message.contains("restarted")), "{:?}", ended.state);
    assert_eq!(refused(&restores.house.node, &read(&order, DISK, 1, 1)).await, (404, ProblemCode::TaskNotFound));

    let (task, order, _) = restores.new_machine().await;
    restores.house.node.say(&read(&order, DISK, 1, 1), &[]).await.unwrap();
    restores.house.admin.revoke_node("SITE-A").await.unwrap();
    for call in [read(&order, DISK, 1, 1), hand_over(&order)] {
        assert_eq!(refused(&restores.house.node, &call).await.0, 401, "{call:?}");
    }
    let ended = restores.house.admin.wait_for_task(&task.task_id, |_| {}).await.unwrap();
    assert!(ended.error.is_some_and(|error| error.message.contains("revoked")), "{:?}", ended.state);
    restores.house.site.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_an_earlier_release_backs_up_and_restores_nothing() {
    let mut restores = Restores::new().await;
    restores.house.node.protocol = PROTOCOL_MIN;
    restores.house.node.poll_now().await;
    let request = restores.request("again", false);
    let refused = restores.house.admin.restore_backup(&restores.backup_id, &request).await.unwrap_err();
    assert_eq!(refused.code(), Some(ProblemCode::Conflict));
    let told = refused.to_string();
    assert!(told.contains("earlier release") && told.contains("install this hub's release"), "{told}");
    let (task, order, _) = restores.house.ordered().await;
    restores.house.node.say(&Call::BeginDisk { order: order.clone(), disk: begin() }, &[]).await.unwrap();
    restores.house.node.answer(&order, Ok(moved(0))).await;
    assert_eq!(restores.house.ends(&task).await.state, TaskState::Completed);
    restores.house.node.protocol = PROTOCOL;
    restores.house.node.poll_now().await;
    let (task, order, _) = restores.new_machine().await;
    restores.house.node.answer(&order, Err(Fault::Cancelled)).await;
    assert_eq!(restores.ends(&task).await.state, TaskState::Failed);
    restores.house.site.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_exists_is_named_as_its_source_knows_it() {
    let mut restores = Restores::new().await;
    let discovered = restores.house.admin.discover_source("vc");
    let (found, ()) = tokio::join!(discovered, async {
        loop {
            let (order, work) = restores.house.node.order().await;
            match work {
                Work::Discover => {
                    break restores.house.node.answer(&order, Ok(Answer::Discovered(vec![there()]))).await;
                }
                _ => restores.house.node.answer(&order, Ok(Answer::Leftovers(Vec::new()))).await,
            }
        }
    });
    assert_eq!(found.unwrap().total, 1);
    let request = restores.request("there", true);
    let (task, order, told) = restores.ordered(&request).await;
    assert!(matches!(&told.to, To::Existing(machine) if *machine == there().vm), "{told:?}");
    restores.house.node.say(&hand_over(&order), &[]).await.unwrap();
    let answer = RestoreAnswer { vm: there().vm, notes: Vec::new(), difference: Some([4, 2, 1, 1, 0]) };
    restores.house.node.answer(&order, Ok(Answer::Restored(answer))).await;
    let ended = restores.ends(&task).await;
    assert_eq!(ended.state, TaskState::Completed, "{ended:?}");
    assert!(ended.summary.as_deref().is_some_and(|summary| summary.contains("onto there: 2 bytes")), "{ended:?}");
    restores.house.site.server.shutdown().await;
}

fn there() -> sendense_source::DiscoveredVm {
    let machine = VmRef { instance_uuid: "uuid-there".to_owned(), name: "there".to_owned() };
    sendense_source::DiscoveredVm { vm: machine, ..vm() }
}

#[test]
fn what_a_node_is_lent_fits_into_an_answer() {
    let noise: Vec<u8> = vec![1; BLOCK_BYTES as usize];
    let mut most = Vec::new();
    for index in 0..u64::from(READ_BLOCKS_MAX) {
        let payload = Payload::Raw(&noise);
        batch::append(&mut most, &sendense_block::Block { index: BlockIndex(index), digest: Digest::of(b""), payload });
    }
    assert!(most.len() <= crate::nodes::ANSWER_BYTES_MAX);
}
