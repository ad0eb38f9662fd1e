//! What a dirty XFS log changes, computed in memory.
//!
//! Linux replays everything; a reader needs only what it reads: superblock, inodes, extent trees, folder data and link
//! targets. Free space, inode and reverse-mapping trees, quotas and folder indexes are passed over. The rules are Linux's:
//! committed transactions in order; a buffer that is cancelled later is left alone; what is newer on the disk stays; what
//! follows the cancel counts. Invariant: a log that cannot be replayed whole refuses the volume.

use super::log::{Live, Log, Record, refuse};
use super::{Xfs, checksum_holds};
use crate::error::Result;
use crate::native::fs::bytes::{array, be16, be64, le16, le32, le64, slice, u8_at};
use crate::native::fs::crc32c;
use crate::native::fs::device::Patch;
use crate::native::fs::sectors::{SECTOR_BYTES, Sectors};
use std::collections::{BTreeMap, BTreeSet};

/// Memory for what a replay changes: half of what a worker may use, and 150,000 new inodes.
const CHANGED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Cancelled buffers and unfinished changes that are remembered, 2 MiB: a log of 64 MiB has less than half as many.
const NOTES_MAX: usize = 64 * 1024;
/// Bytes of transactions that are not committed yet. Linux ends one at 8 MiB with its default settings.
const PENDING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a region costs beside its bytes: where it ends, and its place in the list that is made when it is committed.
const REGION_BYTES: usize = 24;
/// The largest buffer: a folder block of 64 KiB.
const BUFFER_SECTORS_MAX: u64 = 128;

const CLIENT_TRANSACTION: u8 = 0x69;
const CLIENT_LOG: u8 = 0xaa;
const OPERATION_START: u8 = 0x01;
const OPERATION_COMMIT: u8 = 0x02;
const OPERATION_CONTINUES: u8 = 0x04;
const OPERATION_CONTINUED: u8 = 0x08;
const OPERATION_UNMOUNT: u8 = 0x20;
const TRANSACTION_MAGIC: u32 = 0x5452_414e;

const ITEM_FIRST: u16 = 0x1236;
const ITEM_LAST: u16 = 0x1249;
const ITEM_INODE: u16 = 0x123b;
const ITEM_BUFFER: u16 = 0x123c;
/// Changes of file mappings in several steps: the promise and its fulfilment.
const MAPPING_INTENTS: [(u16, u16); 2] = [(0x1244, 0x1245), (0x1248, 0x1249)];
/// Logged changes of extended attributes, which are not read here.
const LOG_INCOMPAT_ATTRIBUTES: u32 = 0x1;

const BUFFER_CANCEL: u16 = 0x2;
const BUFFER_CHUNK: usize = 128;

const INODE_CORE: usize = 176;
const LOGGED_DATA_FORK: u32 = 0x2 | 0x4 | 0x8;
const LOGGED_ROOT: u32 = 0x8;

/// Transactions by number, until they commit.
#[derive(Default)]
struct Pending {
    open: BTreeMap<u32, Transaction>,
    bytes: usize,
}

struct Transaction {
    lsn: u64,
    /// All regions, one behind the other: there may be a hundred thousand small ones, and memory of their own would cost
    /// each as much as it holds, and would be given back in pieces.
    bytes: Vec<u8>,
    /// Where each region ends.
    ends: Vec<u32>,
    /// The last region goes on in the next record.
    continues: bool,
}

/// A change of one thing: what kind, and its regions, the description first.
struct Item<'t> {
    kind: u16,
    regions: &'t [&'t [u8]],
}

/// A buffer's place: first sector and number of sectors.
type Place = (u64, u64);

#[derive(Default)]
struct Replay {
    /// Cancels still ahead, by place.
    cancels: BTreeMap<Place, u32>,
    intents: BTreeSet<(u16, u64)>,
    sectors: Sectors,
}

/// Replays the log; none when it is clean.
pub(super) fn replay(volume: &Xfs) -> Result<Option<Patch>> {
    let log = Log::open(volume)?;
    let Some(live) = log.live()? else { return Ok(None) };
    if volume.sb.version != 5 {
        return Err(refuse("XFS version 4"));
    }
    if volume.sb.log_incompat & !LOG_INCOMPAT_ATTRIBUTES != 0 {
        return Err(refuse(format!("features {:#x}", volume.sb.log_incompat)));
    }
    let mut replay = Replay::default();
    transactions(&log, live, |_, items| replay.note(items))?;
    if !replay.intents.is_empty() {
        return Err(refuse("a change of a file's extents was interrupted"));
    }
    transactions(&log, live, |lsn, items| replay.apply(volume, lsn, items))?;
    Ok(Some(Patch::Sectors(replay.sectors)))
}

/// Calls `each` with the committed transactions in the order of their commits.
fn transactions(log: &Log<'_>, live: Live, mut each: impl FnMut(u64, &[Item<'_>]) -> Result<()>) -> Result<()> {
    let mut pending = Pending::default();
    log.records(live, |record| {
        pending.add(&record, &mut |transaction| each(transaction.lsn, &items(&transaction.regions())?))?;
        Ok(())
    })
}

impl Pending {
    fn add(&mut self, record: &Record, commit: &mut dyn FnMut(&Transaction) -> Result<()>) -> Result<()> {
        for operation in record.operations()? {
            let (id, flags) = (operation.transaction, operation.flags);
            if operation.client == CLIENT_LOG || flags & OPERATION_UNMOUNT != 0 {
                continue;
            }
            if operation.client != CLIENT_TRANSACTION {
                return Err(refuse("an operation of an unknown client"));
            }
            if flags & OPERATION_START != 0 {
                self.remove(id);
                self.open
                    .insert(id, Transaction { lsn: record.lsn, bytes: Vec::new(), ends: Vec::new(), continues: false });
            } else if flags & OPERATION_COMMIT != 0 {
                if let Some(transaction) = self.remove(id) {
                    commit(&transaction)?;
                }
            } else if let Some(transaction) = self.open.get_mut(&id) {
                // One that is not known began before the live part: all of it is in place.
                let joins = flags & OPERATION_CONTINUED != 0 && transaction.continues;
                self.bytes += operation.bytes.len() + REGION_BYTES;
                if self.bytes > PENDING_BYTES_MAX {
                    return Err(refuse("a transaction is larger than memory is given"));
                }
                transaction.bytes.extend_from_slice(operation.bytes);
                // Below the bound on all bytes, so that 32 bits hold it.
                let end = transaction.bytes.len() as u32;
                match transaction.ends.last_mut() {
                    Some(last) if joins => *last = end,
                    _ => transaction.ends.push(end),
                }
                transaction.continues = flags & OPERATION_CONTINUES != 0;
            }
        }
        Ok(())
    }

    fn remove(&mut self, id: u32) -> Option<Transaction> {
        let transaction = self.open.remove(&id)?;
        if self.open.is_empty() {
            self.bytes = 0;
        } else {
            let bytes = transaction.bytes.len() + transaction.ends.len() * REGION_BYTES;
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        Some(transaction)
    }
}

impl Transaction {
    fn regions(&self) -> Vec<&[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let places = starts.zip(&self.ends).map(|(start, end)| *start as usize..*end as usize);
        places.map(|place| &self.bytes[place]).collect()
    }
}

/// The changes that a transaction's regions tell of.
fn items<'t>(regions: &'t [&'t [u8]]) -> Result<Vec<Item<'t>>> {
    let Some((header, mut rest)) = regions.split_first() else { return Ok(Vec::new()) };
    if le32(header, 0)? != TRANSACTION_MAGIC {
        return Err(refuse("a transaction without its header"));
    }
    let mut items = Vec::new();
    while let Some(first) = rest.first() {
        let (kind, count) = (le16(first, 0)?, usize::from(le16(first, 2)?));
        if !(ITEM_FIRST..=ITEM_LAST).contains(&kind) {
            return Err(refuse(format!("a change of unknown kind {kind:#x}")));
        }
        if count == 0 || count > rest.len() {
            return Err(refuse("a change lacks a part"));
        }
        let (regions, after) = rest.split_at(count);
        items.push(Item { kind, regions });
        rest = after;
    }
    Ok(items)
}

impl Item<'_> {
    /// Place and flags of a buffer.
    fn buffer(&self) -> Result<(Place, u16)> {
        let format = &self.regions[0];
        Ok(((le64(format, 8)?, le16(format, 6)?.into()), le16(format, 4)?))
    }

    fn is_cancel(&self) -> Result<bool> {
        Ok(self.kind == ITEM_BUFFER && self.buffer()?.1 & BUFFER_CANCEL != 0)
    }
}

impl Replay {
    /// The first pass: what is cancelled, and which changes were left half done.
    fn note(&mut self, items: &[Item<'_>]) -> Result<()> {
        for item in items {
            if item.is_cancel()? {
                *self.cancels.entry(item.buffer()?.0).or_default() += 1;
            }
            for (intent, done) in MAPPING_INTENTS {
                if item.kind == intent {
                    self.intents.insert((intent, le64(item.regions[0], 8)?));
                } else if item.kind == done {
                    self.intents.remove(&(intent, le64(item.regions[0], 8)?));
                }
            }
            if self.cancels.len() + self.intents.len() > NOTES_MAX {
                return Err(refuse("more cancelled buffers than memory is given"));
            }
        }
        Ok(())
    }

    /// The second pass. Cancels come last in their transaction.
    fn apply(&mut self, volume: &Xfs, lsn: u64, items: &[Item<'_>]) -> Result<()> {
        for item in items {
            match item.kind {
                ITEM_BUFFER if !item.is_cancel()? => self.apply_buffer(volume, lsn, item)?,
                ITEM_INODE => self.apply_inode(volume, lsn, item)?,
                _ => {}
            }
        }
        for item in items {
            if item.is_cancel()?
                && let Some(left) = self.cancels.get_mut(&item.buffer()?.0)
            {
                *left -= 1;
                if *left == 0 {
                    self.cancels.remove(&item.buffer()?.0);
                }
            }
        }
        Ok(())
    }

    fn apply_buffer(&mut self, volume: &Xfs, lsn: u64, item: &Item<'_>) -> Result<()> {
        let (place, flags) = item.buffer()?;
        // The type of the buffer, in the flags' upper bits: B-tree, link, folder block, folder data, superblock.
        if !matches!(flags >> 11, 4 | 9 | 10 | 11 | 18) || self.cancels.contains_key(&place) {
            return Ok(());
        }
        let before = self.load(volume, place)?;
        let mut block = before.clone();
        if newer(volume, &block, lsn)? {
            return Ok(());
        }
        let format = &item.regions[0];
        let map = slice(format, 20, le32(format, 16)? as usize * 4)?;
        let dirty = |chunk: usize| map.get(chunk / 8).is_some_and(|byte| byte >> (chunk % 8) & 1 == 1);
        let mut chunk = 0;
        for region in &item.regions[1..] {
            while chunk < map.len() * 8 && !dirty(chunk) {
                chunk += 1;
            }
            let at = chunk * BUFFER_CHUNK;
            let target = block.get_mut(at..).and_then(|rest| rest.get_mut(..region.len()));
            match target {
                Some(target) if !region.is_empty() => target.copy_from_slice(region),
                _ => return Err(refuse("a change lies outside its buffer")),
            }
            chunk += region.len().div_ceil(BUFFER_CHUNK);
        }
        let Some(kind) = BlockKind::of(&block) else { return Ok(()) };
        seal(&mut block, kind.checksum);
        self.store(place.0, &before, &block)
    }

    fn apply_inode(&mut self, volume: &Xfs, lsn: u64, item: &Item<'_>) -> Result<()> {
        let format = &item.regions[0];
        if format.len() < 56 {
            return Err(refuse("an inode is described in the 32-bit form"));
        }
        let (fields, number) = (le32(format, 4)?, le64(format, 16)?);
        if self.cancels.contains_key(&(le64(format, 40)?, le32(format, 48)?.into())) {
            return Ok(());
        }
        let (at, size) = (volume.sb.inode_at(number)?, volume.sb.inode_bytes);
        let place = (at / SECTOR_BYTES, (size as u64).div_ceil(SECTOR_BYTES));
        let before = self.load(volume, place)?;
        let mut sectors = before.clone();
        let offset = (at % SECTOR_BYTES) as usize;
        let inode = sectors.get_mut(offset..offset + size).ok_or_else(|| refuse("an inode lies between sectors"))?;
        let on_disk = inode.starts_with(b"IN")
            && checksum_holds(inode, 100)
            && be64(inode, 152)? == number
            && array::<16>(inode, 160)? == volume.sb.meta_uuid;
        if on_disk && is_set(be64(inode, 112)?) && be64(inode, 112)? > lsn {
            return Ok(());
        }
        if !on_disk {
            // Its chunk was allocated in the log too; the disk holds what was there before.
            inode.fill(0);
        }
        let logged = item.regions.get(1).ok_or_else(|| refuse("an inode without its core"))?;
        inode[..INODE_CORE].copy_from_slice(&core(logged)?);
        if !inode.starts_with(b"IN") || inode[4] != 3 || be64(inode, 152)? != number {
            return Err(refuse("an inode's core is none"));
        }
        let fork_end = match usize::from(u8_at(inode, 82)?) * 8 {
            0 => size,
            offset => INODE_CORE + offset,
        };
        if fields & LOGGED_DATA_FORK != 0 {
            let region = item.regions.get(2).ok_or_else(|| refuse("an inode without its fork"))?;
            let fork = inode.get_mut(INODE_CORE..fork_end).ok_or_else(|| refuse("an inode's forks overlap"))?;
            if fields & LOGGED_ROOT != 0 {
                put_root(fork, region)?;
            } else {
                let len = region.len().min(fork.len());
                fork[..len].copy_from_slice(&region[..len]);
            }
        }
        inode[112..120].copy_from_slice(&lsn.to_be_bytes());
        seal(inode, 100);
        self.store(place.0, &before, &sectors)
    }

    fn load(&self, volume: &Xfs, place: Place) -> Result<Vec<u8>> {
        let (first, count) = place;
        if count == 0 || count > BUFFER_SECTORS_MAX {
            return Err(refuse("a buffer of a wrong size"));
        }
        let at = first.checked_mul(SECTOR_BYTES).ok_or_else(|| refuse("a buffer beyond the device"))?;
        let mut bytes = volume.device.read_vec(at, (count * SECTOR_BYTES) as usize)?;
        self.sectors.lay_over(at, &mut bytes);
        Ok(bytes)
    }

    /// Keeps those sectors that are not as they were: of a folder's block a change often touches two.
    fn store(&mut self, first: u64, before: &[u8], after: &[u8]) -> Result<()> {
        const SECTOR: usize = SECTOR_BYTES as usize;
        let both = before.as_chunks::<SECTOR>().0.iter().zip(after.as_chunks::<SECTOR>().0);
        for (sector, (before, after)) in (first..).zip(both) {
            if before != after {
                self.sectors.insert(sector, after);
            }
        }
        if self.sectors.bytes() > CHANGED_BYTES_MAX {
            return Err(refuse("it changes more than memory is given"));
        }
        Ok(())
    }
}

/// Where a block that is read later keeps its own facts.
struct BlockKind {
    lsn: usize,
    uuid: usize,
    checksum: usize,
}

impl BlockKind {
    fn of(block: &[u8]) -> Option<BlockKind> {
        match block.first_chunk::<4>()? {
            b"XFSB" => Some(BlockKind { lsn: 240, uuid: 32, checksum: 224 }),
            b"XDB3" | b"XDD3" => Some(BlockKind { lsn: 16, uuid: 24, checksum: 4 }),
            b"BMA3" => Some(BlockKind { lsn: 32, uuid: 40, checksum: 64 }),
            b"XSLM" => Some(BlockKind { lsn: 48, uuid: 16, checksum: 12 }),
            _ => None,
        }
    }
}

/// Whether a block already holds this change or a later one. What is none of this file system's blocks does not.
fn newer(volume: &Xfs, block: &[u8], lsn: u64) -> Result<bool> {
    let Some(kind) = BlockKind::of(block) else { return Ok(false) };
    let uuid = array::<16>(block, kind.uuid)?;
    let stored = be64(block, kind.lsn)?;
    Ok((uuid == volume.sb.meta_uuid || uuid == volume.sb.uuid) && is_set(stored) && stored >= lsn)
}

/// Zero and all ones mean "never written through the log".
fn is_set(lsn: u64) -> bool {
    lsn != 0 && lsn != u64::MAX
}

fn seal(block: &mut [u8], at: usize) {
    block[at..at + 4].fill(0);
    let sum = crc32c::checksum(&[block]);
    block[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// The core of an inode as it lies on the disk, from the logged one, whose numbers are in the writer's byte order.
fn core(logged: &[u8]) -> Result<[u8; INODE_CORE]> {
    /// Offset and width of each number; single bytes, padding and the UUID stay as they are.
    const NUMBERS: [(usize, usize); 25] = [
        (0, 2),   // magic
        (2, 2),   // mode
        (6, 2),   // links of version 1
        (8, 4),   // owner
        (12, 4),  // group
        (16, 4),  // links
        (20, 2),  // project
        (22, 2),  // project, upper half
        (24, 8),  // extents, with NREXT64
        (56, 8),  // size
        (64, 8),  // blocks
        (72, 4),  // extent size hint
        (76, 4),  // extents, or attribute extents with NREXT64
        (80, 2),  // attribute extents
        (84, 4),  // DMAPI
        (88, 2),  // DMAPI
        (90, 2),  // flags
        (92, 4),  // generation
        (96, 4),  // next unlinked
        (100, 4), // checksum
        (104, 8), // change count
        (112, 8), // LSN
        (120, 8), // flags2
        (128, 4), // copy-on-write hint
        (152, 8), // own number
    ];
    let mut core = array::<INODE_CORE>(logged, 0)?;
    let big_times = le64(logged, 120)? & super::FLAG2_BIGTIME != 0;
    for (at, width) in NUMBERS {
        core[at..at + width].reverse();
    }
    for at in [32, 40, 48, 144] {
        if big_times {
            core[at..at + 8].reverse();
        } else {
            core[at..at + 4].reverse();
            core[at + 4..at + 8].reverse();
        }
    }
    Ok(core)
}

/// A logged extent tree's root is a block with a header; in the inode it is four bytes, keys and pointers.
fn put_root(fork: &mut [u8], region: &[u8]) -> Result<()> {
    const HEADER: usize = 72;
    let overflow = || refuse("an extent tree's root does not fit its inode");
    let count = usize::from(be16(region, 6)?);
    let logged_room = region.len().saturating_sub(HEADER) / 16;
    let room = fork.len().saturating_sub(4) / 16;
    if count > room || count > logged_room {
        return Err(overflow());
    }
    let keys = slice(region, HEADER, count * 8)?;
    let pointers = slice(region, HEADER + logged_room * 8, count * 8)?;
    fork[..4].copy_from_slice(slice(region, 4, 4)?);
    fork[4..4 + keys.len()].copy_from_slice(keys);
    let at = 4 + room * 8;
    fork[at..at + pointers.len()].copy_from_slice(pointers);
    Ok(())
}
