//! A QCOW2 image: header, tables, clusters, bitmaps, bookkeeping.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_fuzz::qcow2::{repaired, seeds};

fuzz_target!(init: sendense_fuzz::write_seeds(seeds), |bytes: &[u8]| {
    sendense_qcow2::fuzz::exercise(bytes);
    if let Some(image) = repaired(bytes) {
        sendense_qcow2::fuzz::exercise(&image);
    }
});
