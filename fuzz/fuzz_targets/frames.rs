//! A block's frame, as a node sends it: decoded; and the input as a block: there and back.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::codec::{Decoder, Encoder, Level};
use sendense_fuzz::frames::{magnitude, seeds, seen};
use std::cell::RefCell;

const BLOCK: usize = 65536;

thread_local! {
    static STATE: RefCell<(Decoder, Encoder, Vec<u8>, Vec<u8>)> = RefCell::new((
        Decoder::default(),
        Encoder::new(Level::Default).expect("an encoder"),
        vec![0; BLOCK],
        vec![0; BLOCK],
    ));
}

fuzz_target!(init: sendense_fuzz::write_seeds(seeds), |bytes: &[u8]| STATE.with_borrow_mut(|state| {
    let (decoder, encoder, block, frame) = state;
    block.fill(0xa5);
    match decoder.decode(bytes, block) {
        Ok(()) => seen(0, 0),
        // The words tell which check refused it.
        Err(error) => seen(0, 1 + error.context.bytes().fold(0u64, |sum, byte| sum * 31 % 509 + u64::from(byte))),
    }
    let written = block.iter().rposition(|byte| *byte != 0xa5).map_or(0, |at| at as u64 + 1);
    seen(1, magnitude(written));
    seen(2, written / 256);
    match zstd_safe::find_frame_compressed_size(bytes) {
        Ok(len) => seen(3, magnitude(len as u64)),
        Err(code) => seen(4, code.wrapping_neg() as u64),
    }
    if let Ok(Some(claimed)) = zstd_safe::get_frame_content_size(bytes) {
        seen(5, magnitude(claimed));
    }
    // A context that has just refused a frame must decode the next one rightly.
    let content = &bytes[..bytes.len().min(BLOCK)];
    if let Some(len) = encoder.encode(content, frame) {
        let back = &mut block[..content.len()];
        decoder.decode(&frame[..len], back).expect("a frame of ours decodes");
        assert_eq!(back, content);
    }
}));
