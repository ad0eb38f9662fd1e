//! ext2, ext3 and ext4.
//!
//! What lives here: superblock, inodes, folders and links. How a file's bytes are found is in `extents`, those that lie in the
//! inode itself in `inline`, the log in `journal`. Written from the on-disk format; metadata checksums are verified where the file system has them.

mod extents;
mod inline;
mod journal;

use super::bytes::{label_text, le16, le32, slice, u8_at, uuid_text};
use super::crc32c;
use super::device::Device;
use super::volume::{Map, MappedFile, Name, Visit, Volume};
use crate::error::{Error, Result};
use crate::meta::{Consistency, Facts, FileType, GuestTime, Meta};
use crate::native::FileRead;
use sendense_block::ReadAt;
use std::ops::ControlFlow;
use std::sync::Arc;

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;
const ROOT_INODE: u64 = 2;

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
/// Those that ext3 knows: FILETYPE, RECOVER, META_BG; and SPARSE_SUPER, LARGE_FILE, BTREE_DIR.
const EXT3_INCOMPAT: u32 = 0x2 | INCOMPAT_RECOVER | INCOMPAT_META_BG;
const EXT3_RO_COMPAT: u32 = 0x7;
/// What changes the layout, by bit, and whether this reader knows it. Encryption is refused per file;
/// multi-mount protection and attributes in inodes of their own do not touch what is read here.
const INCOMPAT: [(u32, &str, bool); 17] = [
    (0x1, "compression", false),
    (0x2, "filetype", true),
    (INCOMPAT_RECOVER, "needs_recovery", true),
    (0x8, "journal_dev", false),
    (INCOMPAT_META_BG, "meta_bg", true),
    (0x40, "extent", true),
    (INCOMPAT_64BIT, "64bit", true),
    (0x100, "mmp", true),
    (0x200, "flex_bg", true),
    (0x400, "ea_inode", true),
    (0x1000, "dirdata", false),
    (INCOMPAT_CSUM_SEED, "metadata_csum_seed", true),
    (0x4000, "large_dir", true),
    (0x8000, "inline_data", true),
    (0x10000, "encrypt", true),
    (0x20000, "casefold", true),
    (0x40000, "unknown feature 0x40000", false),
];

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_INDEX: u32 = 0x1000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;
/// Longer than any target that Linux accepts (PATH_MAX).
const LINK_BYTES_MAX: u64 = 4096;

/// The numbers of a superblock that readers need.
#[derive(Debug, Clone)]
struct Superblock {
    block_bytes: u64,
    blocks: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    inodes: u64,
    inodes_per_group: u64,
    inode_bytes: usize,
    descriptor_bytes: u64,
    first_meta_group: u64,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    checksum_seed: u32,
    journal_inode: u64,
    unmounted: bool,
    label: Option<String>,
    uuid: [u8; 16],
}

/// An inode as it lies on the disk.
#[derive(Debug, Clone)]
pub struct Inode {
    number: u64,
    mode: u16,
    uid: u32,
    gid: u32,
    links: u16,
    size: u64,
    modified: GuestTime,
    flags: u32,
    /// The map's root, or a short link's target.
    block: [u8; 60],
    /// Start value of the checksums of its folder and extent blocks.
    seed: u32,
    /// All of its bytes, where its content is among them.
    body: Vec<u8>,
}

/// An open file system.
pub struct Ext4 {
    device: Device,
    sb: Superblock,
    facts: Facts,
}

/// Whether the device begins as one of these.
pub fn detect(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    let Some(bytes) = super::read_start(device, SUPERBLOCK_AT, SUPERBLOCK_BYTES)? else { return Ok(None) };
    if le16(&bytes, 0x38)? != MAGIC {
        return Ok(None);
    }
    Ok(Some(kind(le32(&bytes, 0x5c)?, le32(&bytes, 0x60)?, le32(&bytes, 0x64)?)))
}

/// As blkid tells them apart.
fn kind(compat: u32, incompat: u32, ro_compat: u32) -> &'static str {
    if incompat & !EXT3_INCOMPAT != 0 || ro_compat & !EXT3_RO_COMPAT != 0 {
        "ext4"
    } else if compat & COMPAT_HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    }
}

/// Opens the file system, its journal replayed in memory.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Ext4> {
    let device = Device::new(device);
    let sb = Superblock::read(&device)?;
    let facts = sb.facts(Consistency::Clean);
    let mut volume = Ext4 { device, sb, facts };
    if volume.sb.incompat & INCOMPAT_RECOVER == 0 {
        if !volume.sb.unmounted && volume.sb.compat & COMPAT_HAS_JOURNAL == 0 {
            // No log to make the last changes whole.
            volume.facts.consistency = Consistency::LogNotReplayed;
        }
        return Ok(volume);
    }
    if let Some(patch) = journal::replay(&volume)? {
        volume.device = volume.device.patched(patch);
        volume.sb = Superblock::read(&volume.device)?;
        volume.facts = volume.sb.facts(Consistency::Replayed);
    }
    Ok(volume)
}

impl Superblock {
    fn read(device: &Device) -> Result<Superblock> {
        let bytes = device.read_vec(SUPERBLOCK_AT, SUPERBLOCK_BYTES)?;
        if le16(&bytes, 0x38)? != MAGIC {
            return Err(Error::corrupt("ext superblock without its magic"));
        }
        let (compat, incompat, ro_compat) = (le32(&bytes, 0x5c)?, le32(&bytes, 0x60)?, le32(&bytes, 0x64)?);
        for (bit, name, readable) in INCOMPAT {
            if incompat & bit != 0 && !readable {
                return Err(Error::unsupported(format!("ext4 feature {name}")));
            }
        }
        let unknown = incompat & !INCOMPAT.iter().fold(0, |all, (bit, ..)| all | bit);
        if unknown != 0 {
            return Err(Error::unsupported(format!("ext4 features {unknown:#x}, which are newer than this reader")));
        }
        if ro_compat & RO_COMPAT_METADATA_CSUM != 0 && crc32c::update(!0, &bytes[..0x3fc]) != le32(&bytes, 0x3fc)? {
            return Err(Error::corrupt("ext4 superblock fails its checksum"));
        }
        let log_block = le32(&bytes, 0x18)?;
        if log_block > 6 {
            return Err(Error::corrupt("ext block size"));
        }
        let old = le32(&bytes, 0x4c)? == 0;
        let uuid: [u8; 16] = super::bytes::array(&bytes, 0x68)?;
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(le32(&bytes, 0x150)?) << 32 } else { 0 };
        let sb = Superblock {
            block_bytes: 1024 << log_block,
            blocks: high | u64::from(le32(&bytes, 0x4)?),
            first_data_block: le32(&bytes, 0x14)?.into(),
            blocks_per_group: le32(&bytes, 0x20)?.into(),
            inodes: le32(&bytes, 0)?.into(),
            inodes_per_group: le32(&bytes, 0x28)?.into(),
            inode_bytes: if old { 128 } else { le16(&bytes, 0x58)?.into() },
            descriptor_bytes: if wide { le16(&bytes, 0xfe)?.into() } else { 32 },
            first_meta_group: le32(&bytes, 0x104)?.into(),
            compat,
            incompat,
            ro_compat,
            checksum_seed: if incompat & INCOMPAT_CSUM_SEED != 0 {
                le32(&bytes, 0x270)?
            } else {
                crc32c::update(!0, &uuid)
            },
            journal_inode: le32(&bytes, 0xe0)?.into(),
            unmounted: le16(&bytes, 0x3a)? & 1 != 0,
            label: label_text(slice(&bytes, 0x78, 16)?),
            uuid,
        };
        let sound = sb.inodes_per_group > 0
            && sb.blocks_per_group > 0
            && sb.blocks_per_group <= sb.block_bytes * 8 * 1024
            && sb.inode_bytes.is_power_of_two()
            && (128..=sb.block_bytes as usize).contains(&sb.inode_bytes)
            && sb.descriptor_bytes.is_power_of_two()
            && (32..=1024).contains(&sb.descriptor_bytes)
            && sb.blocks.checked_mul(sb.block_bytes).is_some();
        if sound { Ok(sb) } else { Err(Error::corrupt("ext superblock contradicts itself")) }
    }

    fn facts(&self, consistency: Consistency) -> Facts {
        Facts {
            kind: kind(self.compat, self.incompat, self.ro_compat),
            label: self.label.clone(),
            uuid: uuid_text(&self.uuid),
            size_bytes: self.blocks * self.block_bytes,
            consistency,
        }
    }

    fn has_checksums(&self) -> bool {
        self.ro_compat & RO_COMPAT_METADATA_CSUM != 0
    }

    /// Whether a group holds a copy of the superblock before its descriptors.
    fn has_superblock(&self, group: u64) -> bool {
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return group == 0;
        }
        if group <= 1 || self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 {
            return true;
        }
        [3, 5, 7].iter().any(|base| {
            let mut power: u64 = *base;
            while power < group {
                power *= base;
            }
            power == group
        })
    }
}

impl Ext4 {
    /// Where a block begins on the device.
    fn block_at(&self, block: u64) -> Result<u64> {
        if block >= self.sb.blocks {
            return Err(Error::corrupt(format!("ext block {block} of {}", self.sb.blocks)));
        }
        Ok(block * self.sb.block_bytes)
    }

    fn read_block(&self, block: u64) -> Result<Vec<u8>> {
        self.device.read_vec(self.block_at(block)?, self.sb.block_bytes as usize)
    }

    /// The first block of a group's inode table.
    fn inode_table(&self, group: u64) -> Result<u64> {
        let sb = &self.sb;
        let per_block = sb.block_bytes / sb.descriptor_bytes;
        let meta_group = group / per_block;
        let block = if sb.incompat & INCOMPAT_META_BG != 0 && meta_group >= sb.first_meta_group {
            let first = meta_group * per_block;
            sb.first_data_block + first * sb.blocks_per_group + u64::from(sb.has_superblock(first))
        } else {
            sb.first_data_block + 1 + meta_group
        };
        let at = self.block_at(block)? + group % per_block * sb.descriptor_bytes;
        let descriptor = self.device.read_vec(at, sb.descriptor_bytes as usize)?;
        let high = if sb.descriptor_bytes >= 64 { u64::from(le32(&descriptor, 0x28)?) << 32 } else { 0 };
        Ok(high | u64::from(le32(&descriptor, 0x8)?))
    }

    fn read_inode(&self, number: u64) -> Result<Inode> {
        let sb = &self.sb;
        if number == 0 || number > sb.inodes {
            return Err(Error::corrupt(format!("ext inode {number} of {}", sb.inodes)));
        }
        let (group, index) = ((number - 1) / sb.inodes_per_group, (number - 1) % sb.inodes_per_group);
        let at = self.block_at(self.inode_table(group)?)? + index * sb.inode_bytes as u64;
        let bytes = self.device.read_vec(at, sb.inode_bytes)?;
        let extra = if sb.inode_bytes > 128 { usize::from(le16(&bytes, 0x80)?) } else { 0 };
        let generation = le32(&bytes, 0x64)?;
        let mut seed = sb.checksum_seed;
        if sb.has_checksums() {
            seed = crc32c::update(seed, &(number as u32).to_le_bytes());
            seed = crc32c::update(seed, &generation.to_le_bytes());
            check_inode(&bytes, extra, seed, number)?;
        }
        let modified = GuestTime { seconds: i64::from(le32(&bytes, 0x10)? as i32), nanoseconds: 0 };
        let modified = if extra >= 12 && bytes.len() >= 0x8c {
            let extra = le32(&bytes, 0x88)?;
            GuestTime {
                seconds: modified.seconds + (i64::from(extra & 3) << 32),
                nanoseconds: (extra >> 2).min(999_999_999),
            }
        } else {
            modified
        };
        let mode = le16(&bytes, 0)?;
        let flags = le32(&bytes, 0x20)?;
        let high_size = if matches!(mode & 0xf000, 0x8000 | 0x4000) { u64::from(le32(&bytes, 0x6c)?) << 32 } else { 0 };
        Ok(Inode {
            number,
            mode,
            uid: u32::from(le16(&bytes, 0x78)?) << 16 | u32::from(le16(&bytes, 0x2)?),
            gid: u32::from(le16(&bytes, 0x7a)?) << 16 | u32::from(le16(&bytes, 0x18)?),
            links: le16(&bytes, 0x1a)?,
            size: high_size | u64::from(le32(&bytes, 0x4)?),
            modified,
            flags,
            block: super::bytes::array(&bytes, 0x28)?,
            seed,
            body: if flags & FLAG_INLINE_DATA != 0 { bytes } else { Vec::new() },
        })
    }

    /// Refuses what this reader would misread.
    fn check_plain(&self, inode: &Inode) -> Result<()> {
        if inode.flags & FLAG_ENCRYPTED != 0 {
            return Err(Error::unsupported("ext4 encrypted file or folder"));
        }
        Ok(())
    }

    /// The names of a folder that lies in its inode: behind its parent's number, and behind the first part.
    fn inline_names(&self, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
        let inline::Inline { mut bytes, first } = inline::read(folder)?;
        bytes.truncate(usize::try_from(folder.size).unwrap_or(usize::MAX));
        let rest = bytes.split_off(first.min(bytes.len()));
        let start = inline::PARENT_BYTES.min(bytes.len());
        for (start, part) in [(start, &bytes[start..]), (first, &rest[..])] {
            if names_of(folder.number, part, start as u64, from, visit)? == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn check_folder_block(&self, folder: &Inode, start: u64, block: &[u8]) -> Result<()> {
        // The index of a hashed folder, which holds no names but `.` and `..`, may still end in what was a leaf's tail.
        let root = start == 0 && folder.flags & FLAG_INDEX != 0;
        let node = le32(block, 0)? == 0 && usize::from(le16(block, 4)?) == block.len() % 65536;
        if !self.sb.has_checksums() || root || node {
            return Ok(());
        }
        // A leaf ends in an entry without an inode, 12 bytes long, of type 0xde, that holds the checksum.
        let Some((body, tail)) = block.split_last_chunk::<12>() else { return Ok(()) };
        let is_tail = tail[..4] == [0; 4] && tail[4..8] == [12, 0, 0, 0xde];
        if is_tail && crc32c::update(folder.seed, body) != le32(tail, 8)? {
            return Err(Error::corrupt(format!("folder {} fails its checksum", folder.number)));
        }
        Ok(())
    }
}

/// Visits the names in one block of a folder, or what stands for one; `start` is where it begins in the folder.
fn names_of(folder: u64, block: &[u8], start: u64, from: u64, visit: &mut Visit<'_>) -> Result<ControlFlow<()>> {
    let mut at = 0;
    while at + 8 <= block.len() {
        let inode = le32(block, at)?;
        let len = match usize::from(le16(block, at + 4)?) {
            // 64 KiB do not fit in the field.
            0 | 0xffff if block.len() == 65536 => 65536,
            len => len,
        };
        if len < 8 || len % 4 != 0 || at + len > block.len() {
            return Err(Error::corrupt(format!("folder {folder} has an entry of {len} bytes")));
        }
        let next = start + (at + len) as u64;
        if inode != 0 && start + at as u64 >= from {
            let bytes = slice(&block[..at + len], at + 8, u8_at(block, at + 6)?.into())?;
            if visit(Name { bytes, inode: inode.into(), next }) == ControlFlow::Break(()) {
                return Ok(ControlFlow::Break(()));
            }
        }
        at += len;
    }
    Ok(ControlFlow::Continue(()))
}

fn check_inode(bytes: &[u8], extra: usize, seed: u32, number: u64) -> Result<()> {
    let wide = extra >= 4 && bytes.len() > 0x84;
    let mut sum = crc32c::update(seed, &bytes[..0x7c]);
    sum = crc32c::update(sum, &[0; 2]);
    if wide {
        sum = crc32c::update(sum, &bytes[0x7e..0x82]);
        sum = crc32c::update(sum, &[0; 2]);
        sum = crc32c::update(sum, &bytes[0x84..]);
    } else {
        sum = crc32c::update(sum, &bytes[0x7e..]);
    }
    let mut stored = u32::from(le16(bytes, 0x7c)?);
    if wide {
        stored |= u32::from(le16(bytes, 0x82)?) << 16;
    } else {
        sum &= 0xffff;
    }
    // An inode that was never written is all zeros and has no checksum.
    if sum == stored || bytes.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(Error::corrupt(format!("inode {number} fails its checksum")))
}

impl Volume for Ext4 {
    type Inode = Inode;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn root(&self) -> u64 {
        ROOT_INODE
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
            links: inode.links.into(),
            modified: Some(inode.modified),
        }
    }

    fn names(&self, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
        self.check_plain(folder)?;
        if folder.flags & FLAG_INLINE_DATA != 0 {
            return self.inline_names(folder, from, visit);
        }
        let block_bytes = self.sb.block_bytes;
        let mut map = Map::default();
        let mut start = from / block_bytes * block_bytes;
        let mut map_from = start;
        while start < folder.size {
            if start >= map.until || start < map_from {
                (map, map_from) = (self.map(folder, start, 64)?, start);
            }
            let index = map.segments.partition_point(|segment| segment.start + segment.len <= start);
            // A hole holds no names. It ends with the next segment, or this part of the map.
            let segment = map.segments.get(index).filter(|segment| segment.start <= start);
            let Some(segment) = segment else {
                let next = map.segments.get(index).map_or(map.until, |segment| segment.start);
                start = next.max(start + block_bytes);
                continue;
            };
            let block = self.device.read_vec(segment.at + (start - segment.start), block_bytes as usize)?;
            self.check_folder_block(folder, start, &block)?;
            if names_of(folder.number, &block, start, from, visit)? == ControlFlow::Break(()) {
                return Ok(());
            }
            start += block_bytes;
        }
        Ok(())
    }

    fn link(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.flags & FLAG_EXTENTS == 0 && inode.size < 60 && inode.flags & FLAG_ENCRYPTED == 0 {
            return Ok(inode.block[..inode.size as usize].to_vec());
        }
        self.check_plain(inode)?;
        if inode.size > LINK_BYTES_MAX {
            return Err(Error::corrupt(format!("link {} of {} bytes", inode.number, inode.size)));
        }
        if inode.flags & FLAG_INLINE_DATA != 0 {
            let target = inline::read(inode)?.bytes;
            return super::bytes::slice(&target, 0, inode.size as usize).map(<[u8]>::to_vec);
        }
        let map = self.map(inode, 0, 1)?;
        let segment = map.segments.first().filter(|segment| segment.start == 0 && segment.len >= inode.size);
        let segment = segment.ok_or_else(|| Error::corrupt(format!("link {} without its target", inode.number)))?;
        self.device.read_vec(segment.at, inode.size as usize)
    }

    fn map(&self, inode: &Inode, from: u64, max: usize) -> Result<Map> {
        if inode.flags & FLAG_EXTENTS != 0 {
            self.map_extents(inode, from, max)
        } else {
            self.map_blocks(inode, from, max)
        }
    }

    fn open(self: &Arc<Self>, inode: Inode) -> Result<Box<dyn FileRead>> {
        self.check_plain(&inode)?;
        if inode.flags & FLAG_INLINE_DATA != 0 {
            return Ok(Box::new(inline::InlineFile::open(&inode)?));
        }
        Ok(Box::new(MappedFile::new(self.clone(), inode)))
    }
}
