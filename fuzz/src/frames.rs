//! Frames of real blocks, and what the fuzzer is told of decoding one.
//!
//! The decoder is C that is compiled without coverage. So the features of a run (the error, how many bytes came out before
//! it, what the frame claims) are counted by hand, in the section where libFuzzer looks for such counters.

use crate::point::{noise, text};
use sendense_block::codec::{Encoder, Level};
use std::sync::atomic::{AtomicU8, Ordering};

const COUNTERS: usize = 4096;

/// The counters, aligned as libFuzzer clears them.
#[repr(align(8))]
struct Counters([AtomicU8; COUNTERS]);

// SAFETY: libFuzzer reads and clears the section's bytes between two runs, while no code of ours is running. `used`, because
// nobody else reads them and the compiler would take them away.
#[used]
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static SEEN: Counters = Counters([const { AtomicU8::new(0) }; COUNTERS]);

/// Tells the fuzzer that this run had a feature: a kind of feature (below 8) and its value.
pub fn seen(kind: usize, value: u64) {
    let value = usize::try_from(value).unwrap_or(usize::MAX) % (COUNTERS / 8);
    SEEN.0[kind % 8 * (COUNTERS / 8) + value].store(1, Ordering::Relaxed);
}

/// A number by its size: what is twice as large is another feature.
pub fn magnitude(value: u64) -> u64 {
    u64::from(64 - value.leading_zeros())
}

/// Frames of each level, of blocks and of shorter pieces, and two frames one behind the other.
pub fn seeds() -> Vec<Vec<u8>> {
    let mixed = [&text(0)[..40_000], &noise(3)[..20_000], &[0; 5536]].concat();
    let mut seeds = Vec::new();
    for level in [Level::Fast, Level::Default, Level::High] {
        let mut encoder = Encoder::new(level).expect("an encoder");
        let mut out = vec![0; Encoder::FRAME_BYTES_MAX];
        for block in [&text(1)[..], &mixed, &text(0)[..1000], &[7; 65536]] {
            let len = encoder.encode(block, &mut out).expect("these shrink");
            seeds.push(out[..len].to_vec());
        }
    }
    let two = [&seeds[0][..], &seeds[3]].concat();
    seeds.push(two);
    seeds
}
