//! XFS, versions 4 and 5.
//!
//! What lives here: superblock, inodes, links and the extent map. Folders are in `folder`, the log's records in `log`, and
//! what a dirty log changes in `replay`. Written from the on-disk format; version 5 checksums are verified.

mod folder;
mod log;
mod replay;

use super::bytes::{array, be16, be32, be64, label_text, slice, u8_at, uuid_text};
use super::crc32c;
use super::device::Device;
use super::volume::{Map, MappedFile, Segment, Visit, Volume};
use crate::error::{Error, Result};
use crate::meta::{Consistency, Facts, FileType, GuestTime, Meta};
use crate::native::FileRead;
use sendense_block::ReadAt;
use std::sync::Arc;

const MAGIC: &[u8] = b"XFSB";
/// The largest sector that the format allows; the superblock's checksum covers a sector.
const SECTOR_BYTES_MAX: usize = 32768;

const VERSION_MASK: u16 = 0xf;
const VERSION_FTYPE: u32 = 0x200;
const INCOMPAT_FTYPE: u32 = 0x1;
const INCOMPAT_META_UUID: u32 = 0x4;
const INCOMPAT_NEEDS_REPAIR: u32 = 0x10;
/// FTYPE, sparse inodes, META_UUID, BIGTIME, NREXT64, exchange-range, parent pointers. A metadata tree (0x100) and zones
/// (0x200) come with realtime devices.
const INCOMPAT_KNOWN: u32 = 0xef;

const FLAG_REALTIME: u16 = 0x1;
const FLAG2_BIGTIME: u64 = 0x8;
const FLAG2_NREXT64: u64 = 0x10;

const FORMAT_LOCAL: u8 = 1;
const FORMAT_EXTENTS: u8 = 2;
const FORMAT_BTREE: u8 = 3;

/// The format's limit for a link's target.
const LINK_BYTES_MAX: u64 = 1024;
/// More levels than 2^54 blocks need.
const BTREE_LEVELS_MAX: u16 = 9;

#[derive(Debug, Clone)]
struct Superblock {
    version: u16,
    block_bytes: u64,
    blocks: u64,
    ag_blocks: u64,
    ag_count: u64,
    ag_block_log: u32,
    inode_bytes: usize,
    inodes_per_block_log: u32,
    folder_block_bytes: usize,
    root: u64,
    log_start: u64,
    log_blocks: u64,
    ftype: bool,
    log_incompat: u32,
    label: Option<String>,
    uuid: [u8; 16],
    /// The one that metadata carries.
    meta_uuid: [u8; 16],
}

/// An inode as it lies on the disk.
#[derive(Debug, Clone)]
pub struct Inode {
    number: u64,
    mode: u16,
    format: u8,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    modified: GuestTime,
    realtime: bool,
    extents: u64,
    /// The data fork.
    fork: Arc<[u8]>,
}

/// An open file system.
pub struct Xfs {
    device: Device,
    sb: Superblock,
    facts: Facts,
}

/// Whether the device begins as one.
pub fn detect(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    let start = super::read_start(device, 0, 512)?;
    Ok(start.filter(|bytes| bytes.starts_with(MAGIC)).map(|_| "xfs"))
}

/// Opens the file system, its log replayed in memory.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Xfs> {
    let device = Device::while_replaying(device);
    let sb = Superblock::read(&device)?;
    let facts = sb.facts(Consistency::Clean);
    let mut volume = Xfs { device, sb, facts };
    let patch = replay::replay(&volume)?;
    let replayed = patch.is_some();
    volume.device = volume.device.patched(patch.unwrap_or_default());
    if replayed {
        volume.sb = Superblock::read(&volume.device)?;
        volume.facts = volume.sb.facts(Consistency::Replayed);
    }
    Ok(volume)
}

impl Superblock {
    fn read(device: &Device) -> Result<Superblock> {
        let bytes = device.read_vec(0, SECTOR_BYTES_MAX)?;
        if !bytes.starts_with(MAGIC) {
            return Err(Error::corrupt("XFS superblock without its magic"));
        }
        let version_bits = be16(&bytes, 100)?;
        let version = version_bits & VERSION_MASK;
        if !matches!(version, 4 | 5) {
            return Err(Error::unsupported(format!("XFS version {version}")));
        }
        let features2 = be32(&bytes, 200)?;
        let (incompat, log_incompat) = if version == 5 { (be32(&bytes, 216)?, be32(&bytes, 220)?) } else { (0, 0) };
        if version == 5 {
            let sector = usize::from(be16(&bytes, 102)?).clamp(512, SECTOR_BYTES_MAX);
            if !checksum_holds(&bytes[..sector], 224) {
                return Err(Error::corrupt("XFS superblock fails its checksum"));
            }
        }
        if incompat & INCOMPAT_NEEDS_REPAIR != 0 {
            return Err(Error::unsupported("XFS that must be repaired first"));
        }
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Error::unsupported(format!("XFS features {:#x}", incompat & !INCOMPAT_KNOWN)));
        }
        if u8_at(&bytes, 126)? != 0 {
            return Err(Error::corrupt("XFS that was never finished making"));
        }
        let (block_log, folder_log) = (u8_at(&bytes, 120)?, u8_at(&bytes, 192)?);
        let (inode_log, per_block_log) = (u8_at(&bytes, 122)?, u8_at(&bytes, 123)?);
        let ag_block_log = u32::from(u8_at(&bytes, 124)?);
        let uuid = array(&bytes, 32)?;
        let sb = Superblock {
            version,
            block_bytes: be32(&bytes, 4)?.into(),
            blocks: be64(&bytes, 8)?,
            ag_blocks: be32(&bytes, 84)?.into(),
            ag_count: be32(&bytes, 88)?.into(),
            ag_block_log,
            inode_bytes: be16(&bytes, 104)?.into(),
            inodes_per_block_log: per_block_log.into(),
            folder_block_bytes: 1 << (block_log.min(16) + folder_log.min(8)),
            root: be64(&bytes, 56)?,
            log_start: be64(&bytes, 48)?,
            log_blocks: be32(&bytes, 96)?.into(),
            ftype: if version == 5 { incompat & INCOMPAT_FTYPE != 0 } else { features2 & VERSION_FTYPE != 0 },
            log_incompat,
            label: label_text(slice(&bytes, 108, 12)?),
            uuid,
            meta_uuid: if incompat & INCOMPAT_META_UUID != 0 { array(&bytes, 248)? } else { uuid },
        };
        let sound = (9..=16).contains(&block_log)
            && sb.block_bytes == 1 << block_log
            && (8..=11).contains(&inode_log)
            && sb.inode_bytes == 1 << inode_log
            && block_log - inode_log.min(block_log) == per_block_log
            && sb.folder_block_bytes <= 65536
            && sb.ag_blocks > 0
            && ag_block_log <= 31
            && sb.ag_blocks <= 1 << ag_block_log
            && sb.ag_count > 0
            && sb.blocks <= sb.ag_blocks * sb.ag_count
            && sb.blocks.checked_mul(sb.block_bytes).is_some();
        if sound { Ok(sb) } else { Err(Error::corrupt("XFS superblock contradicts itself")) }
    }

    fn facts(&self, consistency: Consistency) -> Facts {
        Facts {
            kind: "xfs",
            label: self.label.clone(),
            uuid: uuid_text(&self.uuid),
            size_bytes: self.blocks * self.block_bytes,
            consistency,
        }
    }

    /// Where a block, numbered with its group in the high bits, begins on the device.
    fn block_at(&self, block: u64) -> Result<u64> {
        let (group, within) = (block >> self.ag_block_log, block & ((1 << self.ag_block_log) - 1));
        if group >= self.ag_count || within >= self.ag_blocks {
            return Err(Error::corrupt(format!("XFS block {block:#x} lies outside its group")));
        }
        Ok((group * self.ag_blocks + within) * self.block_bytes)
    }

    fn inode_at(&self, number: u64) -> Result<u64> {
        let at = self.block_at(number >> self.inodes_per_block_log)?;
        Ok(at + (number & ((1 << self.inodes_per_block_log) - 1)) * self.inode_bytes as u64)
    }
}

/// Whether a block passes the little-endian checksum at `at`, which counts as zeros itself.
fn checksum_holds(block: &[u8], at: usize) -> bool {
    let Some(stored) = block.get(at..at + 4) else { return false };
    crc32c::checksum(&[&block[..at], &[0; 4], &block[at + 4..]]).to_le_bytes() == stored
}

impl Xfs {
    fn read_inode(&self, number: u64) -> Result<Inode> {
        let bytes = self.device.read_vec(self.sb.inode_at(number)?, self.sb.inode_bytes)?;
        let damaged = |what: &str| Error::corrupt(format!("XFS inode {number}: {what}"));
        if !bytes.starts_with(b"IN") {
            return Err(damaged("it is none"));
        }
        let version = u8_at(&bytes, 4)?;
        if (version == 3) != (self.sb.version == 5) {
            return Err(damaged("its version is not the file system's"));
        }
        let flags2 = if version == 3 { be64(&bytes, 120)? } else { 0 };
        if version == 3 {
            if !checksum_holds(&bytes, 100) {
                return Err(damaged("it fails its checksum"));
            }
            if be64(&bytes, 152)? != number || array::<16>(&bytes, 160)? != self.sb.meta_uuid {
                return Err(damaged("it belongs elsewhere"));
            }
        }
        let core = if version == 3 { 176 } else { 100 };
        let fork_end = match u8_at(&bytes, 82)? {
            0 => bytes.len(),
            offset => core + usize::from(offset) * 8,
        };
        let fork = bytes.get(core..fork_end).ok_or_else(|| damaged("its forks overlap"))?;
        let modified = if flags2 & FLAG2_BIGTIME != 0 {
            // Nanoseconds since the earliest 32-bit time.
            let since = be64(&bytes, 40)?;
            GuestTime {
                seconds: (since / 1_000_000_000) as i64 + i64::from(i32::MIN),
                nanoseconds: (since % 1_000_000_000) as u32,
            }
        } else {
            GuestTime { seconds: (be32(&bytes, 40)? as i32).into(), nanoseconds: be32(&bytes, 44)?.min(999_999_999) }
        };
        Ok(Inode {
            number,
            mode: be16(&bytes, 2)?,
            format: u8_at(&bytes, 5)?,
            uid: be32(&bytes, 8)?,
            gid: be32(&bytes, 12)?,
            links: if version == 1 { be16(&bytes, 6)?.into() } else { be32(&bytes, 16)? },
            size: be64(&bytes, 56)?,
            modified,
            realtime: be16(&bytes, 90)? & FLAG_REALTIME != 0,
            extents: if flags2 & FLAG2_NREXT64 != 0 { be64(&bytes, 24)? } else { be32(&bytes, 76)?.into() },
            fork: fork.into(),
        })
    }

    /// Adds the extents among `records` that reach beyond block `from`; false when the map is full.
    fn add_extents(&self, records: &[u8], from: u64, max: usize, map: &mut Map) -> Result<bool> {
        for record in records.chunks_exact(16) {
            let (high, low) = (be64(record, 0)?, be64(record, 8)?);
            let start = high >> 9 & ((1 << 54) - 1);
            let block = (high & 0x1ff) << 43 | low >> 21;
            let len = low & 0x1f_ffff;
            if map.segments.len() >= max {
                map.until = start.saturating_mul(self.sb.block_bytes);
                return Ok(false);
            }
            // The top bit says: allocated, not written.
            if high >> 63 == 1 || start + len <= from {
                continue;
            }
            if len == 0 {
                return Err(Error::corrupt("an XFS extent is empty"));
            }
            let at = self.sb.block_at(block)?;
            self.sb.block_at(block + len - 1)?;
            let bytes = |blocks: u64| {
                let bytes = blocks.checked_mul(self.sb.block_bytes);
                bytes.ok_or_else(|| Error::corrupt("an XFS extent lies beyond all files"))
            };
            map.push(Segment { start: bytes(start)?, len: bytes(len)?, at })?;
        }
        Ok(true)
    }

    fn walk_btree(&self, inode: &Inode, block: u64, level: u16, from: u64, max: usize, map: &mut Map) -> Result<bool> {
        let damaged = || Error::corrupt(format!("extent tree of XFS inode {}", inode.number));
        let node = self.device.read_vec(self.sb.block_at(block)?, self.sb.block_bytes as usize)?;
        let header = if self.sb.version == 5 { 72 } else { 24 };
        let magic: &[u8] = if self.sb.version == 5 { b"BMA3" } else { b"BMAP" };
        if !node.starts_with(magic) || be16(&node, 4)? != level {
            return Err(damaged());
        }
        if self.sb.version == 5 && !checksum_holds(&node, 64) {
            return Err(Error::corrupt(format!("an extent block of XFS inode {} fails its checksum", inode.number)));
        }
        let count = usize::from(be16(&node, 6)?);
        // An empty node would let a tree of many levels be walked for hours without a result.
        if count == 0 || count > (node.len() - header) / 16 {
            return Err(damaged());
        }
        if level == 0 {
            let records = slice(&node, header, count * 16)?;
            let end = |record: &[u8]| {
                Ok::<u64, Error>((be64(record, 0)? >> 9 & ((1 << 54) - 1)) + (be64(record, 8)? & 0x1f_ffff))
            };
            // Skipping what lies before keeps a window at the end of a long file cheap.
            let mut first = 0;
            while first < count && end(&records[first * 16..])? <= from {
                first += 1;
            }
            return self.add_extents(&records[first * 16..], from, max, map);
        }
        let pointers = header + (node.len() - header) / 16 * 8;
        let keys = slice(&node, header, count * 8)?;
        self.walk_children(inode, keys, slice(&node, pointers, count * 8)?, level, from, max, map)
    }

    #[expect(clippy::too_many_arguments, reason = "a recursion's state, used in two places")]
    fn walk_children(
        &self,
        inode: &Inode,
        keys: &[u8],
        pointers: &[u8],
        level: u16,
        from: u64,
        max: usize,
        map: &mut Map,
    ) -> Result<bool> {
        let mut starts = Vec::with_capacity(keys.len() / 8);
        for key in keys.chunks_exact(8) {
            starts.push(be64(key, 0)?);
        }
        if starts.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::corrupt(format!("extent tree of XFS inode {} is not sorted", inode.number)));
        }
        let first = starts.partition_point(|start| *start <= from).saturating_sub(1);
        for (start, pointer) in starts.iter().zip(pointers.chunks_exact(8)).skip(first) {
            if map.segments.len() >= max {
                map.until = start.saturating_mul(self.sb.block_bytes);
                return Ok(false);
            }
            if !self.walk_btree(inode, be64(pointer, 0)?, level - 1, from, max, map)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Volume for Xfs {
    type Inode = Inode;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn root(&self) -> u64 {
        self.sb.root
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        self.read_inode(number)
    }

    fn meta(&self, inode: &Inode) -> Meta {
        Meta {
            inode: inode.number,
            file_type: match inode.mode & 0xf000 {
                0x8000 => FileType::File,
                0x4000 => FileType::Directory,
                0xa000 => FileType::Symlink,
                _ => FileType::Other,
            },
            size_bytes: inode.size,
            mode: u32::from(inode.mode & 0o7777),
            uid: inode.uid,
            gid: inode.gid,
            links: inode.links,
            modified: Some(inode.modified),
        }
    }

    fn names(&self, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
        folder::names(self, folder, from, visit)
    }

    fn link(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.size > LINK_BYTES_MAX {
            return Err(Error::corrupt(format!("XFS link {} of {} bytes", inode.number, inode.size)));
        }
        let size = inode.size as usize;
        if inode.format == FORMAT_LOCAL {
            return Ok(slice(&inode.fork, 0, size)?.to_vec());
        }
        let mut target = Vec::with_capacity(size);
        for segment in self.map(inode, 0, 16)?.segments {
            let mut at = segment.at;
            while at < segment.at + segment.len && target.len() < size {
                let block = self.device.read_vec(at, self.sb.block_bytes as usize)?;
                let body = if self.sb.version == 5 {
                    if !block.starts_with(b"XSLM") || !checksum_holds(&block, 12) {
                        return Err(Error::corrupt(format!("target of XFS link {} fails its checksum", inode.number)));
                    }
                    &block[56..]
                } else {
                    &block[..]
                };
                target.extend_from_slice(&body[..body.len().min(size - target.len())]);
                at += self.sb.block_bytes;
            }
        }
        if target.len() == size { Ok(target) } else { Err(Error::corrupt("an XFS link without its whole target")) }
    }

    fn map(&self, inode: &Inode, from: u64, max: usize) -> Result<Map> {
        let from = from / self.sb.block_bytes;
        let mut map = Map { segments: Vec::new(), until: u64::MAX };
        match inode.format {
            FORMAT_EXTENTS => {
                let len = usize::try_from(inode.extents).ok().and_then(|count| count.checked_mul(16));
                let len = len.ok_or_else(|| Error::corrupt("an XFS inode has too many extents"))?;
                self.add_extents(slice(&inode.fork, 0, len)?, from, max, &mut map)?;
            }
            FORMAT_BTREE => {
                let (level, count) = (be16(&inode.fork, 0)?, usize::from(be16(&inode.fork, 2)?));
                let room = inode.fork.len().saturating_sub(4) / 16;
                if level == 0 || level > BTREE_LEVELS_MAX || count > room {
                    return Err(Error::corrupt(format!("extent tree of XFS inode {}", inode.number)));
                }
                let keys = slice(&inode.fork, 4, count * 8)?;
                let pointers = slice(&inode.fork, 4 + room * 8, count * 8)?;
                self.walk_children(inode, keys, pointers, level, from, max, &mut map)?;
            }
            format => return Err(Error::corrupt(format!("XFS inode {} has format {format}", inode.number))),
        }
        Ok(map)
    }

    fn open(self: &Arc<Self>, inode: Inode) -> Result<Box<dyn FileRead>> {
        if inode.realtime {
            return Err(Error::unsupported("XFS file on a realtime device"));
        }
        Ok(Box::new(MappedFile::new(self.clone(), inode)))
    }
}
