//! The `.digests` file: the digest of every block that an image holds, in order.
//!
//! What lives here: the format. [`spill`] keeps digests while blocks arrive in any order, [`mod@write`] makes the file of them,
//! [`read`] checks and reads one file, [`resolve`] answers for a whole chain.
//!
//! ```text
//! | header, 64 bytes | group | group | ... | index: 32 bytes per group of the disk |
//!
//! header   0  8  magic "SENDIGST"
//!          8  4  version, 1
//!         12  4  bytes per block, 65536
//!         16  4  blocks per group, 8192 (one QCOW2 L2 table: 512 MiB of disk)
//!         20  4  bytes per digest, 16
//!         24  8  blocks of the disk
//!         32  8  groups of the disk
//!         40 24  zero
//! group    0  2048  two bits per block, the first block in the lowest: 0 absent, 1 zero, 2 data
//!       2048  16 per block of data, in order: the first 16 bytes of BLAKE3 of the block
//! index    0  8  where the group starts; 0 when no block of it is held (and then no bytes of it are stored)
//!          8  4  blocks of data
//!         12  4  blocks flagged zero
//!         16 16  the first 16 bytes of BLAKE3 of the group
//! ```
//!
//! Numbers are little-endian. Groups lie without gaps, by rising number. The *root*, kept in the manifest, is the first 16
//! bytes of BLAKE3 over header and index; with it every byte of the file can be checked when it is needed, group by group.
//!
//! Invariant: nothing is believed of a group before its digest was checked: a flipped bit in a state map would turn a
//! block of data into zeros, and the next incremental would leave it out.

mod read;
mod resolve;
mod spill;
mod write;

pub(crate) use read::says_damaged;
pub use read::{DigestFile, Group, IndexEntry, State};
pub use resolve::{ChainDigests, LOST, Layer};
pub(crate) use spill::{Spill, check};
pub(crate) use write::write;

use crate::error::{Error, Kind, Result};
use sendense_block::digest::DIGEST_BYTES;
use sendense_block::{BLOCK_BYTES, ByteLen, Digest, block_count};

/// Bytes of the header.
pub const DIGEST_FILE_HEADER_BYTES: u64 = 64;
/// Bytes of an index entry.
pub const DIGEST_INDEX_ENTRY_BYTES: u64 = 32;
/// Blocks of a group.
pub const GROUP_BLOCKS: u64 = 8192;
/// Bytes of a group's state map.
pub const GROUP_STATE_BYTES: u64 = GROUP_BLOCKS / 4;

const MAGIC: [u8; 8] = *b"SENDIGST";
const VERSION: u32 = 1;

/// What the header says beyond what every header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub blocks: u64,
}

impl Header {
    pub(crate) fn of(capacity: ByteLen) -> Self {
        Self { blocks: block_count(capacity) }
    }

    pub(crate) fn groups(self) -> u64 {
        self.blocks.div_ceil(GROUP_BLOCKS)
    }

    pub(crate) fn to_bytes(self) -> [u8; DIGEST_FILE_HEADER_BYTES as usize] {
        let mut bytes = [0; DIGEST_FILE_HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        let words = [VERSION, BLOCK_BYTES as u32, GROUP_BLOCKS as u32, DIGEST_BYTES as u32];
        for (at, word) in words.into_iter().enumerate() {
            bytes[8 + 4 * at..][..4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[24..32].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.groups().to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; DIGEST_FILE_HEADER_BYTES as usize]) -> Result<Self> {
        let version = u32_at(bytes, 8);
        if bytes[..8] == MAGIC && version != VERSION {
            let context = format!("the digests file has version {version}; this program knows {VERSION}");
            return Err(Error::new(Kind::Unsupported, context));
        }
        let header = Self { blocks: u64_at(bytes, 24) };
        // Every field but one is fixed or follows from it.
        if header.to_bytes() != *bytes {
            return Err(Error::invalid("the header of the digests file is damaged"));
        }
        Ok(header)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Bytes from outside, taken from the front; `None` when there are not enough.
pub(crate) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn digest(&mut self) -> Option<Digest> {
        self.array().map(Digest)
    }

    /// Bytes behind their length.
    pub(crate) fn part(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }
}
