//! The door for fuzzers: everything that parses, driven over arbitrary bytes.

use crate::chain::{Chain, Layer};
use crate::check::check;
use crate::image::Image;
use crate::writer::{Deaf, Held, Patch, Spec, Writer};
use parking_lot::RwLock;
use sendense_block::backend::Memory;
use sendense_block::{
    AllocationMap, BlockIndex, ByteLen, ByteOffset, Error, Extent, Flush, Kind, ReadAt, Result, WriteAt,
};
use std::sync::Arc;

/// Largest disk of which a copy is gone on with: its tables, 16 of them, are kept in memory.
const PATCHED_BYTES_MAX: u64 = 8 << 30;

/// Opens `bytes` as an image and asks it all it can tell of both ends of its disk. Must return, whatever the bytes are: no
/// panic, no loop, no memory beyond a few MiB.
pub fn exercise(bytes: &[u8]) {
    let Ok(image) = Image::open(Arc::new(Memory::from_bytes(bytes.to_vec()))) else { return };
    let image = Arc::new(image);
    let _ = check(&image);
    patch(&image, bytes);
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

/// Goes on with a copy of it that keeps every second block. What comes out is in order, or nothing does.
fn patch(image: &Image, bytes: &[u8]) {
    if !image.is_ours() || image.size().0 > PATCHED_BYTES_MAX {
        return;
    }
    let copy = Arc::new(Growing(RwLock::new(bytes.to_vec())));
    let mut keep = |_: BlockIndex, held: &mut [Held]| {
        held.iter_mut().step_by(2).for_each(|held| *held = Held::Absent);
        Ok(())
    };
    let patch = Patch { base: image, keep: &mut keep, part: &mut |_| Ok(()) };
    let spec = Spec { capacity: image.size(), backing: None };
    let scratch = Arc::new(Growing::default());
    let Ok((writer, _)) = Writer::patch(copy.clone(), scratch, spec, Arc::new(Deaf), patch) else { return };
    if writer.seal().is_ok() {
        let patched = Image::open(copy).expect("the header was just written");
        assert!(check(&patched).is_ok_and(|report| report.is_clean()), "a patched image is in order");
    }
}

/// A file in memory that grows by writes beyond its end.
#[derive(Default)]
struct Growing(RwLock<Vec<u8>>);

impl ReadAt for Growing {
    fn size(&self) -> ByteLen {
        ByteLen(self.0.read().len() as u64)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let bytes = self.0.read();
        let there = bytes.get(at.0 as usize..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(there.ok_or_else(|| Error::new(Kind::OutOfRange, "read beyond the end"))?);
        Ok(())
    }
}

impl WriteAt for Growing {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let (mut bytes, start) = (self.0.write(), at.0 as usize);
        let end = start + data.len();
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[start..end].copy_from_slice(data);
        Ok(())
    }
}

impl Flush for Growing {
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
