//! The XFS log as a ring of records: where it ends, where the live part begins, and its records one by one.
//!
//! Every 512-byte block carries the number of the pass over the ring in which it was written, so that the end is where that
//! number steps back. The last record before the end says where the oldest change begins that may not have reached its
//! place. Invariant: only one record, at most 256 KiB, is in memory at a time.

use super::Xfs;
use crate::error::{Error, Result};
use crate::native::fs::bytes::{array, be32, be64, slice, u8_at};
use crate::native::fs::crc32c;

const BLOCK: u64 = 512;
const HEADER_MAGIC: u32 = 0xfeed_babe;
/// Data of the largest record.
const RECORD_BYTES_MAX: u32 = 256 * 1024;
/// Blocks of the largest record with its headers.
const RECORD_BLOCKS_MAX: u64 = RECORD_BYTES_MAX as u64 / BLOCK + 8;
/// Record data whose pass numbers one header block keeps.
const HEADER_DATA_BYTES: u32 = 32 * 1024;
/// Records that Linux has in flight; only these can be torn.
const IN_FLIGHT: u64 = 8;
/// The only byte order of items that is read here: what x86 and ARM guests write.
const FORMAT_LITTLE_ENDIAN: u32 = 1;
const OPERATION_UNMOUNT: u8 = 0x20;

pub(super) struct Log<'v> {
    volume: &'v Xfs,
    base: u64,
    blocks: u64,
}

/// The live part of a log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    tail: u64,
    head: u64,
}

/// One record, its data as it was before the log stamped it.
pub(super) struct Record {
    pub(super) lsn: u64,
    pub(super) operations: u32,
    pub(super) body: Vec<u8>,
    tail_lsn: u64,
    next: u64,
    whole: bool,
    little_endian: bool,
}

impl Record {
    /// What a clean unmount writes last.
    fn is_unmount(&self) -> bool {
        self.operations == 1 && self.body.get(9).is_some_and(|flags| flags & OPERATION_UNMOUNT != 0)
    }
}

/// Why a log that must be replayed is not.
pub(super) fn refuse(why: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("XFS log that must be replayed: {why}"))
}

impl<'v> Log<'v> {
    pub(super) fn open(volume: &'v Xfs) -> Result<Log<'v>> {
        let sb = &volume.sb;
        if sb.log_start == 0 {
            return Err(Error::unsupported("XFS with its log on another device"));
        }
        let blocks = sb.log_blocks * (sb.block_bytes / BLOCK);
        let base = sb.block_at(sb.log_start)?;
        if blocks == 0 || base + blocks * BLOCK > volume.device.size() {
            return Err(Error::corrupt("the XFS log lies outside the device"));
        }
        Ok(Log { volume, base, blocks })
    }

    /// The part that must be replayed; none when the log is clean.
    pub(super) fn live(&self) -> Result<Option<Live>> {
        let Some(mut head) = self.head()? else { return Ok(None) };
        // A torn record moves the end back to it, and the beginning then comes from the last whole one.
        for _ in 0..=IN_FLIGHT {
            let last = self.last_before(head)?;
            if last.next == head && last.whole && last.is_unmount() {
                return Ok(None);
            }
            let live = Live { tail: (last.tail_lsn & 0xffff_ffff) % self.blocks, head };
            match self.first_torn(live)? {
                None => return Ok(Some(live)),
                Some(torn) if self.distance(torn, head) <= IN_FLIGHT * RECORD_BLOCKS_MAX => head = torn,
                Some(_) => return Err(refuse("it is damaged in the middle")),
            }
        }
        Err(refuse("more of its end is torn than Linux has in flight"))
    }

    /// Calls `each` with the live records, oldest first.
    pub(super) fn records(&self, live: Live, mut each: impl FnMut(Record) -> Result<()>) -> Result<()> {
        let mut at = live.tail;
        while at != live.head {
            let record = self.record(at)?.ok_or_else(|| refuse("a record is missing"))?;
            if !record.little_endian && !record.is_unmount() {
                return Err(refuse("it was written by a big-endian machine"));
            }
            at = record.next;
            each(record)?;
        }
        Ok(())
    }

    /// The first record of the live part that is missing, reaches over its end or fails its checksum.
    fn first_torn(&self, live: Live) -> Result<Option<u64>> {
        let mut at = live.tail;
        let whole = self.distance(live.tail, live.head);
        // Each record takes at least two blocks, so that this ends within the ring.
        while at != live.head {
            match self.record(at)? {
                Some(record) if record.whole && (1..=whole).contains(&self.distance(live.tail, record.next)) => {
                    if self.distance(live.tail, record.next) <= self.distance(live.tail, at) {
                        return Ok(Some(at));
                    }
                    at = record.next;
                }
                _ => return Ok(Some(at)),
            }
        }
        Ok(None)
    }

    fn distance(&self, from: u64, to: u64) -> u64 {
        (to + self.blocks - from) % self.blocks
    }

    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>> {
        let before_wrap = count.min(self.blocks - block);
        let mut bytes = self.volume.device.read_vec(self.base + block * BLOCK, (before_wrap * BLOCK) as usize)?;
        if count > before_wrap {
            bytes.extend(self.volume.device.read_vec(self.base, ((count - before_wrap) * BLOCK) as usize)?);
        }
        Ok(bytes)
    }

    /// The pass in which a block was written.
    fn pass(&self, block: u64) -> Result<u32> {
        let bytes = self.read(block, 1)?;
        match be32(&bytes, 0)? {
            HEADER_MAGIC => be32(&bytes, 4),
            pass => Ok(pass),
        }
    }

    /// Where the next record would be written; none for a log that was never written.
    fn head(&self) -> Result<Option<u64>> {
        let (first, last) = (self.pass(0)?, self.pass(self.blocks - 1)?);
        if first == 0 {
            return Ok(None);
        }
        if first == last {
            return Ok(Some(0));
        }
        if last != 0 && last.wrapping_add(1) != first {
            return Err(refuse("its passes do not follow each other"));
        }
        // The first block of the pass that its last block is of.
        let (mut before, mut after) = (0, self.blocks - 1);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            if self.pass(middle)? == last { after = middle } else { before = middle }
        }
        Ok(Some(after))
    }

    fn last_before(&self, head: u64) -> Result<Record> {
        for back in 1..=RECORD_BLOCKS_MAX.min(self.blocks) {
            if let Some(record) = self.record((head + self.blocks - back) % self.blocks)? {
                return Ok(record);
            }
        }
        Err(refuse("it has no last record"))
    }

    /// The record whose header is at `block`; none when there is no header.
    fn record(&self, block: u64) -> Result<Option<Record>> {
        let sb = &self.volume.sb;
        let header = self.read(block, 1)?;
        if be32(&header, 0)? != HEADER_MAGIC {
            return Ok(None);
        }
        let (version, len, size) = (be32(&header, 8)?, be32(&header, 12)?, be32(&header, 320)?);
        if len > RECORD_BYTES_MAX || size > RECORD_BYTES_MAX || array::<16>(&header, 304)? != sb.uuid {
            return Err(refuse("a record's header contradicts itself"));
        }
        let headers = if version & 2 != 0 { size.div_ceil(HEADER_DATA_BYTES).max(1) } else { 1 };
        let body_blocks = u64::from(len).div_ceil(BLOCK);
        let whole_blocks = u64::from(headers) + body_blocks;
        if whole_blocks >= self.blocks {
            return Err(refuse("a record is longer than the log"));
        }
        let all = self.read(block, whole_blocks)?;
        let (headers, stamped) = all.split_at(headers as usize * BLOCK as usize);
        let stored = array::<4>(&header, 32)?;
        let mut sum = crc32c::update(crc32c::update(!0, &header[..32]), &[0; 4]);
        sum = crc32c::update(sum, &header[36..328]);
        // Of the further headers the checksum covers the pass numbers, and only those that the data needs.
        let needed = len.div_ceil(HEADER_DATA_BYTES).max(1) as usize;
        for further in headers.chunks_exact(BLOCK as usize).take(needed).skip(1) {
            sum = crc32c::update(sum, &further[..260]);
        }
        sum = !crc32c::update(sum, slice(stamped, 0, len as usize)?);
        let mut body = stamped.to_vec();
        for (index, data) in body.chunks_exact_mut(BLOCK as usize).enumerate() {
            let (which, word) = (index / 64, index % 64);
            let at = if which == 0 { 44 } else { which * BLOCK as usize + 4 };
            data[..4].copy_from_slice(slice(headers, at + word * 4, 4)?);
        }
        body.truncate(len as usize);
        let mut record = Record {
            lsn: be64(&header, 16)?,
            operations: be32(&header, 40)?,
            tail_lsn: be64(&header, 24)?,
            next: (block + whole_blocks) % self.blocks,
            whole: sb.version == 4 || sum.to_le_bytes() == stored,
            little_endian: be32(&header, 300)? == FORMAT_LITTLE_ENDIAN,
            body,
        };
        // mkfs writes its unmount record without a checksum.
        if stored == [0; 4] && record.is_unmount() {
            record.whole = true;
        }
        Ok(Some(record))
    }
}

/// One operation of a record: transaction, flags, and the bytes it carries.
pub(super) struct Operation<'r> {
    pub(super) transaction: u32,
    pub(super) client: u8,
    pub(super) flags: u8,
    pub(super) bytes: &'r [u8],
}

impl Record {
    /// Its operations, in order.
    pub(super) fn operations(&self) -> Result<Vec<Operation<'_>>> {
        let mut operations = Vec::new();
        let mut at = 0;
        for _ in 0..self.operations {
            let len = be32(&self.body, at + 4)? as usize;
            operations.push(Operation {
                transaction: be32(&self.body, at)?,
                client: u8_at(&self.body, at + 8)?,
                flags: u8_at(&self.body, at + 9)?,
                bytes: slice(&self.body, at + 12, len)?,
            });
            at += 12 + len;
        }
        Ok(operations)
    }
}
