//! A QCOW2 image: header, tables, clusters, bitmaps, bookkeeping.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| sendense_qcow2::fuzz::exercise(bytes));
