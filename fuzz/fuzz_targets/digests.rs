//! A digests file: header, index, groups; and two of them as a chain.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::backend::Memory;
use sendense_block::{BlockIndex, DigestMap, Extent, ExtentSet, Known};
use sendense_fuzz::digests::{sealed, seeds};
use sendense_repo::digests::{ChainDigests, DigestFile, Group, Layer, State};

fuzz_target!(init: sendense_fuzz::write_seeds(seeds), |bytes: &[u8]| {
    walk(open(bytes.to_vec()));
    let (top, base) = bytes.split_at(bytes.len() / 2);
    walk(open(sealed(bytes)));
    let layer = |digests| Layer { path: "layer".into(), digests, lost: lost(bytes) };
    let layers = [top, base].map(|half| open(sealed(half)).map(layer));
    let layers: Vec<_> = layers.into_iter().flatten().collect();
    if layers.is_empty() {
        return;
    }
    let chain = ChainDigests::new(layers);
    // Around one end of the disk, or where a group ends: everywhere would be the same again, and each group that is resolved
    // costs a walk over 8192 blocks.
    let places = [0, 8160, chain.blocks().saturating_sub(32)];
    let at = places[usize::from(bytes.first().copied().unwrap_or_default()) % places.len()];
    let mut known = [Known::Zero; 64];
    let _ = chain.known(BlockIndex(at), &mut known);
    if bytes.len().is_multiple_of(2) {
        let _ = chain.next_data(BlockIndex(at), BlockIndex(at + 64));
    }
});

/// A few blocks that are said to be lost, around the places that are looked at.
fn lost(bytes: &[u8]) -> ExtentSet {
    let mut lost = ExtentSet::new();
    for pair in bytes.chunks_exact(2).take(4) {
        let first = u64::from(pair[0]) + if pair[0] >= 128 { 8064 } else { 0 };
        let end = BlockIndex(first + u64::from(pair[1] % 8));
        lost.insert(Extent::between(BlockIndex(first).offset(), end.offset()));
    }
    lost
}

fn open(bytes: Vec<u8>) -> Option<DigestFile> {
    DigestFile::open(Box::new(Memory::from_bytes(bytes)), None).ok()
}

fn walk(file: Option<DigestFile>) {
    let Some(file) = file else { return };
    let mut group = Group::default();
    for number in (0..file.groups()).take(64) {
        let entry = file.entry(number).expect("a group of the file has an entry");
        if let Ok(held) = file.group(number, &mut group) {
            assert_eq!(held, !entry.is_empty());
            if held {
                let data = group.states().filter(|state| matches!(state, State::Data(_))).count();
                assert_eq!(data, entry.data_blocks as usize, "a digest for each block of data");
            }
        }
    }
}
