//! A block's frame, as a node sends it.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::codec::Decoder;

fuzz_target!(|bytes: &[u8]| {
    let _ = Decoder::default().decode(bytes, &mut [0; 65536]);
});
