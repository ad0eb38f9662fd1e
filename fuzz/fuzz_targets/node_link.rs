//! What a node may send to its hub, and a hub to its node: heads, batches of blocks, digests.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::Payload;
use sendense_fuzz::node_link::{BLOCKS, as_head, repaired, seeds};
use sendense_node::remote::batch::{self, Checked};
use sendense_node::remote::digests;
use sendense_node::remote::message::{Answer, Call, Fault, Orders, SourceSpec, Stored, pack, unpack};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A body that is taken is written as it was read, and read again; gives the head and what follows.
fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, tail) = unpack::<T>(bytes).ok()?;
    assert!(tail.len() + 4 <= bytes.len());
    let written = pack(&head, tail).expect("what was read can be written");
    let (_, rest) = unpack::<T>(&written).expect("what was written can be read");
    assert_eq!(rest, tail);
    Some((head, tail))
}

/// Words of the other side end in tables and logs.
fn tell(fault: Fault) {
    let told = fault.clone().into_source().to_string();
    assert!(!told.contains(char::is_control), "{told:?}");
    let _ = fault.clone().into_restore();
    let _ = fault.into_mover();
}

fn blocks(bytes: &[u8]) {
    let mut checked = Checked::default();
    if let Ok(blocks) = checked.parse(bytes, BLOCKS) {
        let rising = blocks.windows(2).all(|pair| pair[0].index < pair[1].index);
        assert!(rising && blocks.iter().all(|block| block.index.0 < BLOCKS), "a batch that is taken is in order");
        let mut again = Vec::new();
        blocks.iter().for_each(|block| batch::append(&mut again, block));
        assert_eq!(again.len(), bytes.len(), "every byte of a batch belongs to a block");
        assert_eq!(checked.parse(&again, BLOCKS).expect("what was taken is taken again").len(), blocks.len());
        let told = blocks.iter().map(|block| match block.payload {
            Payload::Zero => 0,
            Payload::Raw(bytes) | Payload::Zstd(bytes) => bytes.len(),
        });
        assert!(told.sum::<usize>() <= bytes.len(), "no block has more bytes than came");
    }
    if let Ok(known) = digests::decode(bytes) {
        let again = digests::decode(&digests::encode(&known)).expect("what was written can be read");
        assert_eq!(again, known);
    }
}

/// To the hub, and from it.
fn bodies(bytes: &[u8]) {
    if let Some((call, tail)) = read::<Call>(bytes) {
        blocks(tail);
        if let Call::Answer { outcome: Err(fault), .. } = call {
            tell(fault);
        }
    }
    read::<Orders>(bytes);
    read::<Stored>(bytes);
    read::<Vec<SourceSpec>>(bytes);
    read::<Option<u64>>(bytes);
    read::<Vec<(u64, u64)>>(bytes);
    read::<bool>(bytes);
    // As it lies in the hub's record of a backup.
    read::<Answer>(bytes);
}

fuzz_target!(init: sendense_fuzz::write_seeds(seeds), |bytes: &[u8]| {
    bodies(bytes);
    // A length that fits is found by chance once in four thousand million.
    bodies(&as_head(bytes));
    blocks(bytes);
    if let Some(bytes) = repaired(bytes) {
        blocks(&bytes);
    }
});
