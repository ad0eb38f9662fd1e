//! Bodies and batches as nodes and hubs send them, and batches whose digests are right.

use crate::point::{noise, text};
use sendense_block::codec::{Decoder, Encoder, Level};
use sendense_block::{Block, BlockIndex, Digest, Known, Payload};
use sendense_node::remote::batch::{append, parse};
use sendense_node::remote::digests;
use sendense_node::remote::message::{Answer, Call, Fault, OrderId, Orders, PROTOCOL, Poll, Stored, pack};
use sendense_types::{DiskNumber, Phase};
use serde::Serialize;

/// A disk of 64 MiB.
pub const BLOCKS: u64 = 1024;

/// A batch with a block of each sort.
fn batch() -> Vec<u8> {
    let (text, noise) = (text(0), noise(5));
    let mut frame = vec![0; Encoder::FRAME_BYTES_MAX];
    let len = Encoder::new(Level::Default).expect("an encoder").encode(&text, &mut frame).expect("text shrinks");
    let mut batch = Vec::new();
    for (index, digest, payload) in [
        (1, Digest::of(&text), Payload::Zstd(&frame[..len])),
        (3, Digest::of_zero_block(), Payload::Zero),
        (9, Digest::of(&noise), Payload::Raw(&noise)),
    ] {
        append(&mut batch, &Block { index: BlockIndex(index), digest, payload });
    }
    batch
}

/// The input as a batch, with the digests that its blocks have, on a disk of so many blocks.
pub fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut decoder, mut content, mut repaired) = (Decoder::default(), vec![0; 65536], Vec::new());
    for block in parse(bytes).ok()? {
        let digest = match block.payload {
            Payload::Zero => Digest::of_zero_block(),
            Payload::Raw(bytes) => Digest::of(bytes),
            Payload::Zstd(frame) => {
                decoder.decode(frame, &mut content).ok()?;
                Digest::of(&content)
            }
        };
        append(&mut repaired, &Block { index: BlockIndex(block.index.0 % BLOCKS), digest, ..block });
    }
    Some(repaired)
}

/// The input as the head of a body, behind the length that it has.
pub fn as_head(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("an input is short");
    [&len.to_be_bytes(), bytes].concat()
}

/// Calls with and without blocks, orders, answers, a batch, digests.
pub fn seeds() -> Vec<Vec<u8>> {
    let (order, disk) = (|| OrderId("task-seed".to_owned()), DiskNumber(1));
    let poll = Poll {
        protocol: PROTOCOL,
        process: "node-seed".to_owned(),
        version: "1".to_owned(),
        host: "esx".to_owned(),
        working: vec![order()],
    };
    fn body(head: &impl Serialize, tail: &[u8]) -> Vec<u8> {
        pack(head, tail).expect("what is ours can be written")
    }
    let said = |what: &str| what.to_owned();
    let fault = Fault::Source { what: said("freeze"), kind: said("Busy"), message: said("another snapshot") };
    let call = |call: Call| body(&call, &[]);
    let notes = vec![said("a line")];
    vec![
        call(Call::Poll(poll)),
        body(&Call::Blocks { order: order(), disk, batch: 7 }, &batch()),
        call(Call::Settle { order: order(), disk }),
        call(Call::Digests { order: order(), disk, first: 0, count: 8192 }),
        call(Call::NextData { order: order(), disk, from: 1, end: 9 }),
        call(Call::Report {
            order: order(),
            phase: Phase::Transferring,
            progress: [1, 2, 3, 4, 5, 6],
            notes,
            lines: Vec::new(),
        }),
        call(Call::Read { order: order(), disk, first: 3, count: 8 }),
        call(Call::Held { order: order(), disk, from: 0, end: 262_144 }),
        call(Call::HandOver { order: order() }),
        call(Call::Answer { order: order(), outcome: Err(fault) }),
        call(Call::Answer { order: order(), outcome: Ok(Answer::Discovered(Vec::new())) }),
        RESTORED.as_bytes().to_vec(),
        call(Call::TrackingIsWrong { order: order(), disk, message: said("a block had changed") }),
        call(Call::Sources),
        body(&Orders { stop: vec![order()], bytes_per_second: Some(9), ..Orders::default() }, &[]),
        TOLD.as_bytes().to_vec(),
        BEGUN.as_bytes().to_vec(),
        body(&Stored { life: 1, floor: 2, beyond: vec![4] }, &[]),
        body(&Some(5_u64), &[]),
        body(&[(1_u64, 2_u64), (9, 1)], &[]),
        batch(),
        digests::encode(&[Known::Zero, Known::Data(Digest([3; 16]))]),
    ]
}

/// Orders with one of each sort.
const TOLD: &str = r#"{"start":[{"id":"task-1","source":{"source_id":"src-1","kind":"libvirt","config":{"uri":"qemu:///system"},
"secret":"s","deployment_id":"dep-1"},"work":"discover"}],"stop":["task-2"],"bytes_per_second":9999}"#;
/// A restore that came to its end.
const RESTORED: &str = r#"{"answer":{"order":"task-1","outcome":{"Ok":{"restored":{"vm":{"instance_uuid":"u","name":"again"},
"notes":["a line"],"difference":[4,3,2,1,0]}}}}}"#;
/// A disk that is begun.
const BEGUN: &str = r#"{"begin_disk":{"order":"task-1","disk":{"number":0,"disk":{"key":"vda","label":"vda","capacity":1048576,
"binding":"vda","token":null},"backup_type":"full","type_reason":null,"read":1048576,"audit":null}}}"#;
