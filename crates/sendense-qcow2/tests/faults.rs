//! A draft on a file that fails: the error is told, nothing hangs, and what is left cannot be taken for an image.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use sendense_block::backend::{Fault, Faulty, File, Operation};
use sendense_block::{
    BLOCK_BYTES, Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Digest, Error, Kind, Payload, ReadAt,
};
use sendense_qcow2::writer::Deaf;
use sendense_qcow2::{Sealed, Spec, Writer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::*;

/// Fails the write of this number.
fn fail_write(file: Arc<File>, number: usize) -> Arc<Faulty<File>> {
    let writes = AtomicUsize::new(0);
    Arc::new(Faulty::new(file, false, move |_, operation| match operation {
        Operation::Write(..) if writes.fetch_add(1, Ordering::Relaxed) == number => Some(Fault::Fail(Kind::NoSpace)),
        _ => None,
    }))
}

/// Puts 60 blocks one by one, whatever happens, and seals.
fn journey(writer: &Writer) -> (Vec<Error>, Result<Sealed, Error>) {
    let mut errors = Vec::new();
    for n in 0..60 {
        let block = content(n);
        let frame = zstd::bulk::compress(&block, 1).unwrap();
        let small = n % 3 != 0 && frame.len() < block.len();
        let payload = if small { Payload::Zstd(&frame) } else { Payload::Raw(&block) };
        errors.extend(writer.put(&[Block { index: BlockIndex(n), digest: Digest::of(&block), payload }]).err());
    }
    (errors, writer.seal())
}

#[test]
fn each_write_of_a_draft_may_fail() {
    for spill_fails in [false, true] {
        let mut number = 0;
        loop {
            let dir = tempfile::tempdir().unwrap();
            let (image, spill) = (create(&at(&dir, "image")), create(&at(&dir, "spill")));
            let spec = Spec { capacity: ByteLen(64 * BLOCK_BYTES), backing: None };
            let writer = if spill_fails {
                Writer::create(image.clone(), fail_write(spill, number), spec, Arc::new(Deaf))
            } else {
                Writer::create(fail_write(image.clone(), number), spill, spec, Arc::new(Deaf))
            };
            let (errors, sealed) = journey(&writer.unwrap());
            if errors.is_empty() && sealed.is_ok() {
                // There are no more writes than this; the journey has many.
                assert!(number > 20, "only {number} writes");
                break;
            }
            let first = errors.first().or(sealed.as_ref().err()).unwrap();
            assert_eq!(first.kind, Kind::NoSpace, "{first}");
            // After the first failure everything is refused.
            assert!(errors.iter().skip(1).all(|error| error.kind == Kind::Invalid));
            assert!(sealed.is_err());
            let mut magic = vec![0; image.size().0.min(4) as usize];
            image.read_at(ByteOffset(0), &mut magic).unwrap();
            assert!(magic.iter().all(|byte| *byte == 0), "the header of an unfinished image is written");
            number += 1;
        }
    }
}
