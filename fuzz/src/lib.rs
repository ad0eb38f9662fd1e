//! What the fuzz targets share: seeds made by our own writers, and repairs of what chance never gets right.
//!
//! A parser that checks a digest first hides everything behind it from a fuzzer. So each target runs over the bytes as
//! they came and over a repaired copy, in which magic numbers, digests and tables that must agree do agree.

pub mod digests;
pub mod frames;
pub mod guest;
pub mod manifest;
pub mod nbd;
pub mod node_link;
pub mod point;
pub mod qcow2;

use std::path::Path;

/// Where `run.sh` wants the seeds of a target.
const FOLDER: &str = "SENDENSE_FUZZ_SEEDS";

/// Writes the seeds into the folder that `run.sh` named, if it did. Called by a target when it starts, before libFuzzer
/// reads its corpus.
pub fn write_seeds(seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    for (number, seed) in seeds().into_iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed)
            .expect("the seeds' folder can be written");
    }
}
