//! Makes the digests file, in one pass, from the spill.

use super::{GROUP_BLOCKS, GROUP_STATE_BYTES, Header, Spill};
use crate::error::Result;
use sendense_block::{BlockIndex, ByteLen, ByteOffset, Digest, WriteAt};

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
pub(crate) fn write(target: &(impl WriteAt + ?Sized), capacity: ByteLen, spill: &Spill) -> Result<Written> {
    let header = Header::of(capacity);
    let mut target = Hashed { inner: target, hasher: blake3::Hasher::new(), bytes: 0 };
    target.append(&header.to_bytes())?;
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
        target.append(&group)?;
        data_blocks += u64::from(counts.0);
        zero_blocks += u64::from(counts.1);
    }
    root.update(&index);
    target.append(&index)?;
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

/// Writes one part behind the other, and hashes them.
struct Hashed<'a, W: ?Sized> {
    inner: &'a W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: WriteAt + ?Sized> Hashed<'_, W> {
    fn append(&mut self, part: &[u8]) -> Result<()> {
        self.inner.write_at(ByteOffset(self.bytes), part)?;
        self.hasher.update(part);
        self.bytes += part.len() as u64;
        Ok(())
    }
}
