//! The door for fuzzers: everything that parses, driven over arbitrary bytes.

use crate::chain::{Chain, Layer};
use crate::check::check;
use crate::image::Image;
use sendense_block::backend::Memory;
use sendense_block::{AllocationMap, BlockIndex, ByteLen, ByteOffset, Extent, ReadAt};
use std::sync::Arc;

/// Opens `bytes` as an image and asks it all it can tell of both ends of its disk. Must return, whatever the bytes are: no
/// panic, no loop, no memory beyond a few MiB.
pub fn exercise(bytes: &[u8]) {
    let Ok(image) = Image::open(Arc::new(Memory::from_bytes(bytes.to_vec()))) else { return };
    let image = Arc::new(image);
    let _ = check(&image);
    // 1 MiB at each end: enough for every sort of entry in a small input, whatever size the header claims.
    let window = ByteLen(image.size().0.min(1 << 20));
    let ends = [0, image.size().0 - window.0];
    for bitmap in image.bitmaps().unwrap_or_default() {
        for at in ends {
            let _ = image.dirty(&bitmap, Extent::new(ByteOffset(at), window).unwrap_or_default());
        }
    }
    let Ok(chain) = Chain::new(vec![Layer::Qcow2(image.clone())]) else { return };
    let mut buffer = vec![0; window.0 as usize];
    for at in ends {
        let _ = chain.allocation(Extent::new(ByteOffset(at), window).unwrap_or_default());
        let _ = chain.locate_block(BlockIndex::holding(ByteOffset(at)));
        // A damaged cluster must not hide what comes behind it: piece by piece, across cluster borders.
        for (n, piece) in buffer.chunks_mut(100_000).enumerate() {
            let _ = chain.read_at(ByteOffset(at + n as u64 * 100_000), piece);
        }
        if let Ok(mapping) = image.locate(ByteOffset(at), window) {
            let _ = image.read_frame(&mapping, &mut Vec::new());
        }
    }
}
