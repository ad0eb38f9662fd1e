//! The ext3/ext4 journal (JBD2), replayed in memory.
//!
//! Replay does not copy blocks: it notes where in the journal the newest contents of each block lie. Invariant: a journal
//! that holds committed changes is replayed whole or the volume is refused; nothing is skipped.

use super::{Ext4, Inode};
use crate::error::{Error, Result};
use crate::native::fs::bytes::{array, be16, be32, le16, le32};
use crate::native::fs::crc32c;
use crate::native::fs::device::{Moved, Patch};
use crate::native::fs::volume::{Map, Volume};
use std::collections::BTreeMap;

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x3f;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;
const FAST_COMMIT_HEAD: u16 = 9;

/// Blocks that a replay may move, and revocations it may hold: 24 MiB together at worst, and what a journal of 1 GiB, the
/// largest that mke2fs makes by itself, holds in 4 KiB blocks.
const BLOCKS_MAX: usize = 256 * 1024;

struct Journal<'v> {
    volume: &'v Ext4,
    inode: Inode,
    map: Map,
    map_from: u64,
    /// Blocks of the ring, from `first` to before `end`.
    first: u32,
    end: u32,
    sequence: u32,
    start: u32,
    wide: bool,
    checksums: Option<Checksums>,
    seed: u32,
    fast_commit_at: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksums {
    V2,
    V3,
}

/// One block that a transaction changes.
struct Tag {
    block: u64,
    escaped: bool,
    checksum: u32,
}

/// Reads the journal and says what it puts over the device; none when it is empty.
pub(super) fn replay(volume: &Ext4) -> Result<Option<Patch>> {
    if volume.sb.journal_inode == 0 {
        return Err(Error::unsupported("ext4 with its journal on another device, not cleanly unmounted"));
    }
    let Some(mut journal) = Journal::open(volume)? else { return Ok(None) };
    let (end, revoked) = journal.scan()?;
    journal.check_fast_commits(end)?;
    let blocks = journal.collect(end, &revoked)?;
    Ok(Some(Patch::Moved { block_bytes: volume.sb.block_bytes, blocks }))
}

fn refuse(why: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("ext4 journal that must be replayed: {why}"))
}

impl<'v> Journal<'v> {
    fn open(volume: &'v Ext4) -> Result<Option<Journal<'v>>> {
        let inode = volume.inode(volume.sb.journal_inode)?;
        let mut journal = Journal {
            volume,
            inode,
            map: Map::default(),
            map_from: 0,
            first: 0,
            end: 0,
            sequence: 0,
            start: 0,
            wide: false,
            checksums: None,
            seed: 0,
            fast_commit_at: None,
        };
        let sb = journal.block(0)?;
        if be32(&sb, 0)? != MAGIC || !matches!(be32(&sb, 4)?, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
            return Err(refuse("its superblock is none"));
        }
        if be32(&sb, 12)? != volume.sb.block_bytes as u32 {
            return Err(refuse("its blocks have another size"));
        }
        let blocks = be32(&sb, 16)?;
        (journal.first, journal.sequence, journal.start) = (be32(&sb, 20)?, be32(&sb, 24)?, be32(&sb, 28)?);
        let incompat = if be32(&sb, 4)? == SUPERBLOCK_V2 { be32(&sb, 40)? } else { 0 };
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(refuse(format!("features {incompat:#x}")));
        }
        journal.wide = incompat & INCOMPAT_64BIT != 0;
        journal.checksums = match incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) {
            0 => None,
            INCOMPAT_CSUM_V2 => Some(Checksums::V2),
            INCOMPAT_CSUM_V3 => Some(Checksums::V3),
            _ => return Err(refuse("two kinds of checksums")),
        };
        if incompat & INCOMPAT_ASYNC_COMMIT != 0 && journal.checksums.is_none() {
            return Err(refuse("asynchronous commits without block checksums"));
        }
        if journal.checksums.is_some() {
            let sum = crc32c::update(crc32c::update(crc32c::update(!0, &sb[..0xfc]), &[0; 4]), &sb[0x100..1024]);
            if sum != be32(&sb, 0xfc)? {
                return Err(refuse("its superblock fails its checksum"));
            }
        }
        journal.seed = crc32c::update(!0, &array::<16>(&sb, 48)?);
        journal.end = blocks;
        if incompat & INCOMPAT_FAST_COMMIT != 0 {
            let fast = match be32(&sb, 0x54)? {
                0 => 256,
                count => count,
            };
            journal.end = blocks.checked_sub(fast).ok_or_else(|| refuse("more fast commit blocks than blocks"))?;
            // Linux leaves one block between the ring and them.
            journal.fast_commit_at = Some(journal.end.saturating_add(1));
        }
        let inside = |block: u32| (journal.first..journal.end).contains(&block);
        if journal.first == 0 || u64::from(blocks) > journal.inode.size / volume.sb.block_bytes {
            return Err(refuse("its superblock contradicts itself"));
        }
        match journal.start {
            // Emptied, but fast commits may follow the last full one.
            0 if journal.fast_commit_at.is_none() => Ok(None),
            0 => {
                journal.check_fast_commits(journal.sequence)?;
                Ok(None)
            }
            start if inside(start) => Ok(Some(journal)),
            _ => Err(refuse("it starts outside itself")),
        }
    }

    /// Where a journal block lies on the device.
    fn at(&mut self, block: u32) -> Result<u64> {
        let offset = u64::from(block) * self.volume.sb.block_bytes;
        if !(self.map_from..self.map.until).contains(&offset) {
            (self.map, self.map_from) = (self.volume.map(&self.inode, offset, 256)?, offset);
        }
        let index = self.map.segments.partition_point(|segment| segment.start + segment.len <= offset);
        match self.map.segments.get(index) {
            Some(segment) if segment.start <= offset => Ok(segment.at + (offset - segment.start)),
            _ => Err(refuse("a part of it was never written")),
        }
    }

    fn block(&mut self, block: u32) -> Result<Vec<u8>> {
        let at = self.at(block)?;
        self.volume.device.read_vec(at, self.volume.sb.block_bytes as usize)
    }

    fn after(&self, block: u32, count: u32) -> u32 {
        let ring = u64::from(self.end - self.first);
        let index = (u64::from(block - self.first) + u64::from(count)) % ring;
        // Less than the ring, whose numbers have 32 bits.
        self.first + index as u32
    }

    /// Calls `each` with every log block from the start while sequence numbers go on: the block's place, its bytes, its
    /// transaction. Ends where the log does, or when `each` says so.
    fn walk(&mut self, mut each: impl FnMut(&mut Self, u32, &[u8], u32) -> Result<Step>) -> Result<()> {
        let (mut place, mut sequence) = (self.start, self.sequence);
        let mut passed: u64 = 0;
        while passed < u64::from(self.end - self.first) {
            let bytes = self.block(place)?;
            if be32(&bytes, 0)? != MAGIC || be32(&bytes, 8)? != sequence {
                return Ok(());
            }
            let len = match each(self, place, &bytes, sequence)? {
                Step::Over(data) => data.checked_add(1).ok_or_else(|| refuse("too many tags"))?,
                Step::Commit => {
                    sequence = sequence.wrapping_add(1);
                    1
                }
                Step::End => return Ok(()),
            };
            place = self.after(place, len);
            passed += u64::from(len);
        }
        Ok(())
    }

    /// The first pass: which transaction is the first that was not committed, and what was revoked by which.
    fn scan(&mut self) -> Result<(u32, BTreeMap<u64, u32>)> {
        let mut end = self.sequence;
        let mut revoked: BTreeMap<u64, u32> = BTreeMap::new();
        let mut pending: Vec<u64> = Vec::new();
        // A transaction that was being written at the crash may be torn; only one with its commit must be whole.
        let mut torn = false;
        self.walk(|journal, _, bytes, sequence| match be32(bytes, 4)? {
            DESCRIPTOR => {
                torn |= !journal.tail_holds(bytes);
                Ok(Step::Over(journal.tags(bytes)?.len() as u32))
            }
            REVOKE => {
                torn |= !journal.tail_holds(bytes);
                journal.revocations(bytes, &mut pending)?;
                if pending.len() + revoked.len() > BLOCKS_MAX {
                    return Err(refuse("more revocations than memory is given"));
                }
                Ok(Step::Over(0))
            }
            COMMIT => {
                journal.check_commit(bytes)?;
                if torn {
                    return Err(refuse("a committed transaction fails its checksums"));
                }
                end = sequence.wrapping_add(1);
                for block in pending.drain(..) {
                    revoked.insert(block, sequence);
                }
                Ok(Step::Commit)
            }
            _ => Ok(Step::End),
        })?;
        Ok((end, revoked))
    }

    /// The second pass: the newest contents of each block that committed transactions wrote.
    fn collect(&mut self, end: u32, revoked: &BTreeMap<u64, u32>) -> Result<BTreeMap<u64, Moved>> {
        let mut blocks = BTreeMap::new();
        self.walk(|journal, place, bytes, sequence| {
            if sequence == end {
                return Ok(Step::End);
            }
            match be32(bytes, 4)? {
                DESCRIPTOR => {
                    let tags = journal.tags(bytes)?;
                    let count = tags.len() as u32;
                    for (index, tag) in (1..).zip(tags) {
                        let at = journal.at(journal.after(place, index))?;
                        journal.check_data(at, &tag, sequence)?;
                        // A revocation covers its own transaction and all before it.
                        if revoked.get(&tag.block).is_some_and(|by| by.wrapping_sub(sequence) as i32 >= 0) {
                            continue;
                        }
                        journal.volume.block_at(tag.block)?;
                        blocks.insert(tag.block, Moved { at, escaped: tag.escaped });
                    }
                    if blocks.len() > BLOCKS_MAX {
                        return Err(refuse("it changes more blocks than memory is given"));
                    }
                    Ok(Step::Over(count))
                }
                REVOKE => Ok(Step::Over(0)),
                COMMIT => Ok(Step::Commit),
                _ => Ok(Step::End),
            }
        })?;
        Ok(blocks)
    }

    fn tags(&self, descriptor: &[u8]) -> Result<Vec<Tag>> {
        let tag_bytes = match (self.checksums, self.wide) {
            (Some(Checksums::V3), _) => 16,
            (Some(Checksums::V2), true) => 14,
            (Some(Checksums::V2), false) => 10,
            (None, true) => 12,
            (None, false) => 8,
        };
        let end = descriptor.len() - if self.checksums.is_some() { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut at = 12;
        while at + tag_bytes <= end {
            let (flags, checksum, high) = if self.checksums == Some(Checksums::V3) {
                (be32(descriptor, at + 4)?, be32(descriptor, at + 12)?, be32(descriptor, at + 8)?)
            } else {
                let high = if self.wide { be32(descriptor, at + 8)? } else { 0 };
                (be16(descriptor, at + 6)?.into(), be16(descriptor, at + 4)?.into(), high)
            };
            let high = if self.wide { u64::from(high) << 32 } else { 0 };
            let block = high | u64::from(be32(descriptor, at)?);
            tags.push(Tag { block, escaped: flags & TAG_ESCAPED != 0, checksum });
            at += tag_bytes;
            if flags & TAG_SAME_UUID == 0 {
                at += 16;
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn revocations(&self, bytes: &[u8], into: &mut Vec<u64>) -> Result<()> {
        let end = (be32(bytes, 12)? as usize).min(bytes.len());
        let record = if self.wide { 8 } else { 4 };
        let mut at = 16;
        while at + record <= end {
            let high = if self.wide { u64::from(be32(bytes, at)?) << 32 } else { 0 };
            into.push(high | u64::from(be32(bytes, at + record - 4)?));
            at += record;
        }
        Ok(())
    }

    /// Whether a descriptor or a revocation passes its checksum.
    fn tail_holds(&self, bytes: &[u8]) -> bool {
        let Some((body, stored)) = bytes.split_last_chunk::<4>() else { return true };
        let sum = crc32c::update(crc32c::update(self.seed, body), &[0; 4]);
        self.checksums.is_none() || sum == u32::from_be_bytes(*stored)
    }

    fn check_commit(&self, bytes: &[u8]) -> Result<()> {
        let sum = crc32c::update(crc32c::update(crc32c::update(self.seed, &bytes[..16]), &[0; 4]), &bytes[20..]);
        match self.checksums {
            Some(_) if sum != be32(bytes, 16)? => Err(refuse("a commit fails its checksum")),
            _ => Ok(()),
        }
    }

    fn check_data(&self, at: u64, tag: &Tag, sequence: u32) -> Result<()> {
        let Some(checksums) = self.checksums else { return Ok(()) };
        let data = self.volume.device.read_vec(at, self.volume.sb.block_bytes as usize)?;
        let sum = crc32c::update(crc32c::update(self.seed, &sequence.to_be_bytes()), &data);
        let expected = if checksums == Checksums::V2 { sum & 0xffff } else { sum };
        if expected != tag.checksum { Err(refuse("a block in it fails its checksum")) } else { Ok(()) }
    }

    /// Fast commits are small logical records behind the ring; replaying them needs a writer's knowledge.
    fn check_fast_commits(&mut self, next: u32) -> Result<()> {
        let Some(block) = self.fast_commit_at else { return Ok(()) };
        let bytes = self.block(block)?;
        if le16(&bytes, 0)? == FAST_COMMIT_HEAD && le32(&bytes, 8)? == next {
            return Err(Error::unsupported("ext4 fast commits that must be replayed"));
        }
        Ok(())
    }
}

/// What a block of the log was.
enum Step {
    /// Descriptor or revocation, followed by this many blocks of data.
    Over(u32),
    /// The end of a transaction.
    Commit,
    /// Not a part of the log.
    End,
}
