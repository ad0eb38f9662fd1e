//! Makes the digests file, in one pass, from the spill.

use super::{GROUP_BLOCKS, GROUP_STATE_BYTES, Header, Spill};
use crate::error::{Error, Result};
use sendense_block::{BlockIndex, ByteLen, Digest};
use std::io::{self, BufWriter, Write};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub file_bytes: u64,
    pub blake3: String,
    pub root: Digest,
    pub data_blocks: u64,
    pub zero_blocks: u64,
}

/// Writes the file. Memory: one group (130 KiB) and the index (32 bytes per 512 MiB of disk).
pub(crate) fn write(target: impl Write, capacity: ByteLen, spill: &Spill) -> Result<Written> {
    let header = Header::of(capacity);
    let mut target = Hashed { inner: BufWriter::new(target), hasher: blake3::Hasher::new(), bytes: 0 };
    let failed = |error: io::Error| Error::io("write the digests file", error);
    target.write_all(&header.to_bytes()).map_err(failed)?;
    let mut root = blake3::Hasher::new();
    root.update(&header.to_bytes());
    let mut index = Vec::new();
    let (mut data_blocks, mut zero_blocks) = (0, 0);
    let (mut digests, mut group) = (Vec::new(), Vec::new());
    let mut next_held = spill.next_held(0)?;
    for number in 0..header.groups() {
        let (first, end) = (number * GROUP_BLOCKS, ((number + 1) * GROUP_BLOCKS).min(header.blocks));
        if next_held.is_some_and(|next| next < first) {
            next_held = spill.next_held(first)?;
        }
        let mut counts = (0, 0);
        if next_held.is_some_and(|next| next < end) {
            let count = usize::try_from(end - first).expect("a group's blocks are counted in memory");
            spill.get(BlockIndex(first), &mut digests, count)?;
            counts = encode(&digests, &mut group);
        }
        if counts == (0, 0) {
            index.extend_from_slice(&[0; 32]);
            continue;
        }
        index.extend_from_slice(&target.bytes.to_le_bytes());
        index.extend_from_slice(&counts.0.to_le_bytes());
        index.extend_from_slice(&counts.1.to_le_bytes());
        index.extend_from_slice(&Digest::of(&group).0);
        target.write_all(&group).map_err(failed)?;
        data_blocks += u64::from(counts.0);
        zero_blocks += u64::from(counts.1);
    }
    root.update(&index);
    target.write_all(&index).map_err(failed)?;
    target.flush().map_err(failed)?;
    let mut short = Digest([0; 16]);
    short.0.copy_from_slice(&root.finalize().as_bytes()[..16]);
    Ok(Written {
        file_bytes: target.bytes,
        blake3: target.hasher.finalize().to_hex().to_string(),
        root: short,
        data_blocks,
        zero_blocks,
    })
}

/// A group's bytes; returns how many blocks of data and of zeros are in it.
fn encode(digests: &[Option<Digest>], group: &mut Vec<u8>) -> (u32, u32) {
    group.clear();
    group.resize(GROUP_STATE_BYTES as usize, 0);
    let (mut data, mut zero) = (0, 0);
    for (at, digest) in digests.iter().enumerate() {
        let Some(digest) = digest else { continue };
        let state = if *digest == Digest::of_zero_block() {
            zero += 1;
            1
        } else {
            data += 1;
            group.extend_from_slice(&digest.0);
            2
        };
        group[at / 4] |= state << (at % 4 * 2);
    }
    (data, zero)
}

/// Hashes and counts what passes.
struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
