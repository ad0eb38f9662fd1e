//! What the two ends of a link say, as a hostile or broken other end would: cut, changed, and made up.
//!
//! The same as the fuzz target `node_link`, in a second. Invariant: nothing panics, and what is taken can be said again.

use proptest::prelude::*;
use sendense_block::{Block, BlockIndex, Digest, Payload};
use sendense_node::remote::batch::{self, Checked};
use sendense_node::remote::digests;
use sendense_node::remote::message::{Answer, Call, Fault, OrderId, Orders, PROTOCOL, Poll, Stored, pack, unpack};
use sendense_types::{DiskNumber, Phase};
use serde::Serialize;
use serde::de::DeserializeOwned;

const BLOCKS: u64 = 1024;

/// Bodies of both directions.
fn bodies() -> Vec<Vec<u8>> {
    let (order, disk) = (|| OrderId("task-1".to_owned()), DiskNumber(1));
    let said = |what: &str| what.to_owned();
    let poll =
        Poll { protocol: PROTOCOL, process: said("p"), version: said("1"), host: said("h"), working: vec![order()] };
    let fault = Fault::Source { what: said("freeze"), kind: said("Busy"), message: said("another\u{1b}[31m snapshot") };
    let mut blocks = Vec::new();
    let raw = vec![7; 65536];
    for (index, payload) in [(3, Payload::Zero), (4, Payload::Raw(&raw))] {
        let digest = if index == 3 { Digest::of_zero_block() } else { Digest::of(&raw) };
        batch::append(&mut blocks, &Block { index: BlockIndex(index), digest, payload });
    }
    let call = |call: &Call, tail: &[u8]| pack(call, tail).expect("it can be written");
    let (phase, progress, notes, lines) = (Phase::Transferring, [1; 6], vec![said("a line")], vec![said("another")]);
    let report = Call::Report { order: order(), phase, progress, notes, lines };
    vec![
        call(&Call::Poll(poll), &[]),
        call(&Call::Blocks { order: order(), disk, batch: 7 }, &blocks),
        call(&Call::Digests { order: order(), disk, first: 0, count: 8192 }, &[]),
        call(&Call::Read { order: order(), disk, first: 7, count: 8 }, &[]),
        call(&Call::Held { order: order(), disk, from: 0, end: 8192 }, &[]),
        call(&Call::HandOver { order: order() }, &[]),
        call(&report, &[]),
        call(&Call::Answer { order: order(), outcome: Err(fault) }, &[]),
        call(&Call::Sources, &[]),
        pack(&Orders { stop: vec![order()], bytes_per_second: Some(9), ..Orders::default() }, &[])
            .expect("it can be written"),
        pack(&Stored { life: 1, floor: 2, beyond: vec![4] }, &[]).expect("it can be written"),
    ]
}

fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, tail) = unpack::<T>(bytes).ok()?;
    let written = pack(&head, tail).expect("what was read can be written");
    assert_eq!(unpack::<T>(&written).expect("what was written can be read").1, tail);
    Some((head, tail))
}

/// Takes bytes in as either end does.
fn take(bytes: &[u8]) {
    if let Some((call, tail)) = read::<Call>(bytes) {
        let taken = Checked::default().parse(tail, BLOCKS).unwrap_or_default();
        assert!(taken.iter().all(|block| block.index.0 < BLOCKS));
        if let Call::Answer { outcome: Err(fault), .. } = call {
            assert!(!fault.clone().into_source().to_string().contains(char::is_control));
            drop(fault.clone().into_restore());
            drop(fault.into_mover());
        }
    }
    let _ = (read::<Orders>(bytes), read::<Stored>(bytes), read::<Option<u64>>(bytes), read::<Answer>(bytes));
    let _ = read::<Vec<(u64, u64)>>(bytes);
    let _ = digests::decode(bytes);
}

#[test]
fn what_is_whole_is_taken() {
    let taken = bodies().iter().filter(|body| read::<Call>(body).is_some()).count();
    assert_eq!(taken, 9);
    bodies().iter().for_each(|body| take(body));
}

proptest! {
    #[test]
    fn what_was_changed_or_cut_panics_nobody(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let bodies = bodies();
        let mut body = which.get(&bodies).clone();
        for (at, byte) in changes {
            let at = at.index(body.len().min(300));
            body[at] = byte;
        }
        if let Some(cut) = cut {
            body.truncate(cut.index(body.len()));
        }
        take(&body);
    }

    /// The head is text that almost is what is expected, and the length says so.
    #[test]
    fn made_up_heads_panic_nobody(head in r#"\{"(poll|answer|blocks|begin_disk|report|start|stop|life|moved)":[\[{"0-9a-z:,}\]]{0,60}\}?"#) {
        let body = [&(head.len() as u32).to_be_bytes()[..], head.as_bytes()].concat();
        take(&body);
    }
}
