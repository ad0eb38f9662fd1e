//! Block digests: the first 16 bytes of BLAKE3 over a block's 64 KiB, the tail block padded with zeros.
//!
//! 128 bits: against accidents the chance of a missed change is 2^-128 per block; a forger of *second preimages* faces
//! 2^128 work. A guest that can make *collisions* (2^64 work) only hurts its own backup.

use crate::error::Result;
use crate::units::{BLOCK_BYTES, BlockIndex};
use std::fmt;
use std::sync::LazyLock;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 16;

/// The first 16 bytes of a BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
static ZERO_BLOCK: LazyLock<Digest> = LazyLock::new(|| Digest::of(&ZEROS));

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut short = [0; DIGEST_BYTES];
        short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..DIGEST_BYTES]);
        Self(short)
    }

    /// The digest of a block that is zeros from the end of these bytes on.
    pub fn of_block(bytes: &[u8]) -> Self {
        let Some(missing) = ZEROS.len().checked_sub(bytes.len()).filter(|missing| *missing > 0) else {
            return Self::of(bytes);
        };
        let mut short = [0; DIGEST_BYTES];
        let hash = blake3::Hasher::new().update(bytes).update(&ZEROS[..missing]).finalize();
        short.copy_from_slice(&hash.as_bytes()[..DIGEST_BYTES]);
        Self(short)
    }

    /// The digest of a block of zeros.
    pub fn of_zero_block() -> Self {
        *ZERO_BLOCK
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a restore point is known to hold in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Zeros: flagged so, beyond the image's end, or held by no image of the chain.
    Zero,
    /// A block with this digest.
    Data(Digest),
}

impl Known {
    /// True when a block of these bytes, and zeros to its end, is what is known of it. Looks at every byte.
    pub fn is_of(self, block: &[u8]) -> bool {
        match self {
            Self::Zero => is_zero(block),
            Self::Data(digest) => Digest::of_block(block) == digest,
        }
    }
}

/// The digests of a restore point, resolved over its chain as QEMU resolves reads.
pub trait DigestMap: Send + Sync {
    /// Fills `out` with what the blocks from `first` on hold; blocks beyond the point's end are [`Known::Zero`].
    /// Meant to be asked in rising order, and then costs one pass over the digest files whatever the size of the disk.
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> Result<()>;

    /// The first block in `from..end` that holds data. Maps that can skip empty stretches without filling a slice for
    /// them should: a sparse terabyte has sixteen million blocks.
    fn next_data(&self, from: BlockIndex, end: BlockIndex) -> Result<Option<BlockIndex>> {
        let mut known = [Known::Zero; 1024];
        let mut at = from.0;
        while at < end.0 {
            let count = (end.0 - at).min(known.len() as u64) as usize;
            self.known(BlockIndex(at), &mut known[..count])?;
            if let Some(found) = known[..count].iter().position(|known| *known != Known::Zero) {
                return Ok(Some(BlockIndex(at + found as u64)));
            }
            at += count as u64;
        }
        Ok(None)
    }
}

/// True when every byte is zero. Looks at every byte: never by sampling.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Whole lines first: the compiler turns the fold over a line into wide ORs, and a line of data ends the search.
    let (lines, rest) = bytes.as_chunks::<256>();
    lines.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_set_bit_is_found_wherever_it_is(len in 1usize..2000, seed in any::<usize>(), bit in 0u8..8) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            bytes[seed % len] = 1 << bit;
            prop_assert!(!is_zero(&bytes));
        }
    }

    #[test]
    fn digest_is_truncated_blake3() {
        // `printf '' | b3sum` starts so.
        assert_eq!(Digest::of(b"").to_string(), "af1349b9f5f9a1a6a0404dea36dcc949");
        assert_eq!(Digest::of_zero_block(), Digest::of(&vec![0; 65536]));
    }

    #[test]
    fn a_last_block_is_digested_with_zeros_to_its_end() {
        for len in [0, 1, 512, 65535, 65536] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 + 1).collect();
            let padded = [&*bytes, &vec![0; 65536 - len]].concat();
            assert_eq!(Digest::of_block(&bytes), Digest::of(&padded), "{len}");
            assert!(Known::Data(Digest::of(&padded)).is_of(&bytes) && Known::Zero.is_of(&bytes) == (len == 0), "{len}");
            assert!(!Known::Data(Digest::of(b"another")).is_of(&bytes), "{len}");
        }
    }
}
