//! A disk of a point at the hub, read from here: blocks as they are stored there, each checked against its digest.
//!
//! ```text
//! copy's lanes --read_at--> Read calls --> hub: frame as it lies in the image, digest from the digests file
//!      ^                                        |
//!      '------ decoded, digest compared <-------'
//! ```
//!
//! Whoever reads holds the buffer, so a slow hypervisor holds the lanes and they ask for nothing more. A call that was cut off is
//! made again: reading changes nothing.
//!
//! Invariant: [`RemoteDisk::read_at`] gives well only bytes whose digests are those that the point has.

use super::batch;
use super::link::Link;
use super::message::{Call, OrderId, READ_BLOCKS_MAX, unpack};
use super::ways::Ways;
use sendense_block::codec::Decoder;
use sendense_block::device::check_range;
use sendense_block::{
    AllocationMap, BLOCK_BYTES, Block, BlockIndex, ByteLen, ByteOffset, Cancel, Content, Digest, Error, Extent, Kind,
    MappedExtent, Payload, ReadAt, Result, block_count,
};
use sendense_types::DiskNumber;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Runs of one answer: every second block of 16 GiB, which is what the copy asks about at once.
const RUNS_MAX: usize = 128 << 10;

/// What a disk needs.
#[derive(Clone)]
pub(super) struct Options {
    /// The way to the hub.
    pub link: Arc<Link>,
    /// How many calls of the restore are under way at once.
    pub ways: Arc<Ways>,
    /// The restore.
    pub order: OrderId,
    /// The disk.
    pub disk: DiskNumber,
    /// Its size.
    pub size: ByteLen,
    /// How long a hub that is away is waited for.
    pub patience: Duration,
    /// Ends it.
    pub cancel: Cancel,
}

/// A disk of a point at the hub.
pub(super) struct RemoteDisk(Options);

impl RemoteDisk {
    /// Nothing is asked yet.
    pub fn new(options: Options) -> Self {
        Self(options)
    }

    /// Asks for blocks, and gives each, decoded and checked, to `take`.
    fn ask(&self, first: u64, count: u64, mut take: impl FnMut(u64, &[u8])) -> Result<()> {
        let Options { link, ways, order, disk, patience, cancel, .. } = &self.0;
        let way = ways.take(cancel).ok_or_else(|| Error::new(Kind::Cancelled, "stopped on request"))?;
        // `count` is at most `READ_BLOCKS_MAX`.
        let call = Call::Read { order: order.clone(), disk: *disk, first, count: count as u32 };
        let answer = link.fetch(&call, count as usize * BLOCK, &way, *patience, cancel)?;
        drop(way);
        let mut checked = Checked::default();
        let blocks = batch::parse(&answer)?;
        if blocks.len() as u64 != count {
            return Err(odd("the hub gave another number of blocks than was asked"));
        }
        for (index, block) in (first..).zip(&blocks) {
            if block.index.0 != index {
                return Err(odd("the hub gave other blocks than was asked"));
            }
            take(index, checked.bytes(block)?);
        }
        Ok(())
    }

    fn held(&self, from: u64, end: u64) -> Result<Vec<(u64, u64)>> {
        let Options { link, order, disk, patience, cancel, .. } = &self.0;
        let call = Call::Held { order: order.clone(), disk: *disk, from, end };
        let answer = link.call(&call, &[], *patience, cancel)?;
        let (runs, _) = unpack::<Vec<(u64, u64)>>(&answer).map_err(|error| odd(error.to_string()))?;
        let mut next = from;
        for (first, count) in &runs {
            let past = first.checked_add(*count).filter(|past| *first >= next && *count > 0 && *past <= end);
            next = past.ok_or_else(|| odd("the hub tells of blocks that were not asked for, or twice"))?;
        }
        if runs.len() > RUNS_MAX {
            return Err(odd("the hub tells of more runs than there can be"));
        }
        Ok(runs)
    }
}

/// Gives the bytes of blocks, once they have the digest that was said.
#[derive(Default)]
struct Checked {
    decoder: Decoder,
    block: Vec<u8>,
}

impl Checked {
    fn bytes<'s>(&'s mut self, block: &'s Block<'_>) -> Result<&'s [u8]> {
        self.block.resize(BLOCK, 0);
        let damaged = |error: Error| error.at(block.index.offset());
        let bytes: &[u8] = match block.payload {
            Payload::Zero => {
                self.block.fill(0);
                &self.block
            }
            Payload::Raw(bytes) => bytes,
            Payload::Zstd(frame) => {
                self.decoder.decode(frame, &mut self.block).map_err(damaged)?;
                &self.block
            }
        };
        let found = if matches!(block.payload, Payload::Zero) { Digest::of_zero_block() } else { Digest::of(bytes) };
        if found != block.digest {
            let context = "the point does not hold what its digests say; nothing of that block was written";
            return Err(damaged(Error::new(Kind::Corrupt, context)));
        }
        Ok(bytes)
    }
}

fn odd(why: impl Into<String>) -> Error {
    Error::new(Kind::Protocol, why.into())
}

impl ReadAt for RemoteDisk {
    fn size(&self) -> ByteLen {
        self.0.size
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        check_range("the restore point's disk", self.0.size, at, buf.len())?;
        // `check_range` has shown that the end is inside the number space.
        let end = at.0 + buf.len() as u64;
        let (mut first, past) = (at.0 / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        while first < past && !buf.is_empty() {
            let count = (past - first).min(READ_BLOCKS_MAX.into());
            self.ask(first, count, |index, bytes| {
                // The part of the block that was asked for: both lie inside of the block and of the buffer.
                let start = index * BLOCK_BYTES;
                let (from, to) = (at.0.max(start), end.min(start + BLOCK_BYTES));
                buf[(from - at.0) as usize..(to - at.0) as usize]
                    .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            })?;
            first += count;
        }
        Ok(())
    }
}

impl AllocationMap for RemoteDisk {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        let len = usize::try_from(within.len().0).unwrap_or(usize::MAX);
        check_range("the restore point's disk", self.0.size, within.start(), len)?;
        if within.is_empty() {
            return Ok(Vec::new());
        }
        let first = BlockIndex::holding(within.start()).0;
        let past = within.end().0.div_ceil(BLOCK_BYTES).min(block_count(self.0.size));
        let mut map = Vec::new();
        let mut push = |from: u64, to: u64, content| {
            let extent = Extent::between(ByteOffset(from), ByteOffset(to)).intersect(within);
            if !extent.is_empty() {
                map.push(MappedExtent { extent, content });
            }
        };
        let mut next = within.start().0;
        for (run, count) in self.held(first, past)? {
            // Runs lie before `past`, which is a number of blocks of the disk.
            let (start, end) = (run * BLOCK_BYTES, (run + count) * BLOCK_BYTES);
            push(next, start.max(next), Content::Zero);
            push(start, end, Content::Data);
            next = end;
        }
        push(next, within.end().0.max(next), Content::Zero);
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_block::codec::{Encoder, Level};

    #[track_caller]
    fn check(digest: Digest, payload: Payload<'_>, expected: std::result::Result<&[u8], Kind>) {
        let block = Block { index: BlockIndex(7), digest, payload };
        let mut checked = Checked { block: vec![0xee; BLOCK], ..Checked::default() };
        let found = checked.bytes(&block);
        assert_eq!(found.map_err(|error| error.kind), expected);
    }

    #[test]
    fn bytes_are_given_only_with_the_digest_that_was_said() {
        let content: Vec<u8> = (0..BLOCK).map(|at| (at / 64) as u8).collect();
        let (digest, other) = (Digest::of(&content), Digest::of(b"another"));
        let mut frame = vec![0; Encoder::FRAME_BYTES_MAX];
        let len = Encoder::new(Level::Fast).unwrap().encode(&content, &mut frame).unwrap();
        let frame = &frame[..len];
        check(digest, Payload::Zstd(frame), Ok(&content));
        check(digest, Payload::Raw(&content), Ok(&content));
        check(Digest::of_zero_block(), Payload::Zero, Ok(&[0; BLOCK]));
        for payload in [Payload::Zstd(frame), Payload::Raw(&content), Payload::Zero] {
            check(other, payload, Err(Kind::Corrupt));
        }
        check(digest, Payload::Zero, Err(Kind::Corrupt));
        check(digest, Payload::Zstd(&frame[..len - 1]), Err(Kind::Corrupt));
    }
}
