//! Where the bytes of an ext file lie: the extent tree of ext4 and the block map of ext2 and ext3.

use super::{Ext4, Inode};
use crate::error::{Error, Result};
use crate::native::fs::bytes::{le16, le32};
use crate::native::fs::crc32c;
use crate::native::fs::volume::{Map, Segment};

const EXTENT_MAGIC: u16 = 0xf30a;
/// What the kernel allows: five levels hold more blocks than 32 bits can number.
const DEPTH_MAX: u16 = 5;
/// An extent longer than this is allocated but not written, and reads as zeros.
const WRITTEN_MAX: u16 = 32768;

impl Ext4 {
    pub(super) fn map_extents(&self, inode: &Inode, from: u64, max: usize) -> Result<Map> {
        let mut map = Map { segments: Vec::new(), until: u64::MAX };
        let depth = le16(&inode.block, 6)?;
        if depth > DEPTH_MAX {
            return Err(Error::corrupt(format!("extent tree of inode {} is {depth} deep", inode.number)));
        }
        self.walk_extents(inode, &inode.block, depth, from / self.sb.block_bytes, max, &mut map)?;
        Ok(map)
    }

    /// Adds a node's extents from block `from` on; false when the map is full.
    fn walk_extents(
        &self,
        inode: &Inode,
        node: &[u8],
        depth: u16,
        from: u64,
        max: usize,
        map: &mut Map,
    ) -> Result<bool> {
        let damaged = |what: &str| Error::corrupt(format!("extent tree of inode {}: {what}", inode.number));
        let (entries, declared) = (usize::from(le16(node, 2)?), le16(node, 6)?);
        if le16(node, 0)? != EXTENT_MAGIC || declared != depth {
            return Err(damaged("a node is none"));
        }
        let bytes = node.get(12..12 + entries * 12).ok_or_else(|| damaged("a node is too full"))?;
        let entries: Vec<&[u8]> = bytes.chunks_exact(12).collect();
        let mut starts = Vec::with_capacity(entries.len());
        for entry in &entries {
            starts.push(u64::from(le32(entry, 0)?));
        }
        if starts.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(damaged("a node is not sorted"));
        }
        // The last entry that begins at or before `from` may reach over it.
        let first = starts.partition_point(|start| *start <= from).saturating_sub(1);
        let block_bytes = self.sb.block_bytes;
        for (entry, start) in entries.iter().zip(&starts).skip(first) {
            if map.segments.len() >= max {
                map.until = start * block_bytes;
                return Ok(false);
            }
            if depth > 0 {
                let block = u64::from(le16(entry, 8)?) << 32 | u64::from(le32(entry, 4)?);
                let child = self.read_extent_block(inode, block)?;
                // An empty child would let a tree of many levels be walked for hours without a result.
                if le16(&child, 2)? == 0 {
                    return Err(damaged("a node is empty"));
                }
                if !self.walk_extents(inode, &child, depth - 1, from, max, map)? {
                    return Ok(false);
                }
                continue;
            }
            let len = le16(entry, 4)?;
            let (len, written) = if len > WRITTEN_MAX { (len - WRITTEN_MAX, false) } else { (len, true) };
            if len == 0 {
                return Err(damaged("an extent is empty"));
            }
            if written && start + u64::from(len) > from {
                let block = u64::from(le16(entry, 6)?) << 32 | u64::from(le32(entry, 8)?);
                self.block_at(block.saturating_add(u64::from(len) - 1))?;
                let len = u64::from(len) * block_bytes;
                map.push(Segment { start: start * block_bytes, len, at: self.block_at(block)? })?;
            }
        }
        Ok(true)
    }

    fn read_extent_block(&self, inode: &Inode, block: u64) -> Result<Vec<u8>> {
        let node = self.read_block(block)?;
        if self.sb.has_checksums() {
            // The checksum follows the room for entries.
            let tail = 12 + usize::from(le16(&node, 4)?) * 12;
            let stored = le32(&node, tail)?;
            if crc32c::update(inode.seed, &node[..tail]) != stored {
                return Err(Error::corrupt(format!(
                    "extent block {block} of inode {} fails its checksum",
                    inode.number
                )));
            }
        }
        Ok(node)
    }

    /// The map of ext2 and ext3: twelve blocks, then one, two and three levels of blocks of block numbers.
    pub(super) fn map_blocks(&self, inode: &Inode, from: u64, max: usize) -> Result<Map> {
        let mut walk = BlockWalk {
            volume: self,
            from: from / self.sb.block_bytes,
            end: inode.size.div_ceil(self.sb.block_bytes),
            max,
            map: Map { segments: Vec::new(), until: u64::MAX },
        };
        let mut start = 0;
        for slot in 0..15 {
            let block = le32(&inode.block, slot * 4)?.into();
            let level = slot.saturating_sub(11) as u32;
            if !walk.add(block, level, start)? {
                break;
            }
            start += walk.span(level);
        }
        Ok(walk.map)
    }
}

struct BlockWalk<'v> {
    volume: &'v Ext4,
    from: u64,
    end: u64,
    max: usize,
    map: Map,
}

impl BlockWalk<'_> {
    /// Blocks of the file below one pointer of `level`. At most 16384³, for blocks of 64 KiB.
    fn span(&self, level: u32) -> u64 {
        (self.volume.sb.block_bytes / 4).pow(level)
    }

    /// Adds what lies under a pointer whose first block is `start`; false when the map is full or the file ends.
    fn add(&mut self, block: u64, level: u32, start: u64) -> Result<bool> {
        if start >= self.end {
            return Ok(false);
        }
        if block == 0 || start + self.span(level) <= self.from {
            return Ok(true);
        }
        let block_bytes = self.volume.sb.block_bytes;
        if level == 0 {
            if self.map.segments.len() >= self.max {
                self.map.until = start * block_bytes;
                return Ok(false);
            }
            let at = self.volume.block_at(block)?;
            self.map.push(Segment { start: start * block_bytes, len: block_bytes, at })?;
            // A file in one piece would otherwise be walked to its end for one answer.
            if start - self.from >= 64 * 1024 {
                self.map.until = (start + 1) * block_bytes;
                return Ok(false);
            }
            return Ok(true);
        }
        let pointers = self.volume.read_block(block)?;
        let below = self.span(level - 1);
        let first = self.from.saturating_sub(start) / below;
        for (index, pointer) in pointers.chunks_exact(4).enumerate().skip(first as usize) {
            if !self.add(le32(pointer, 0)?.into(), level - 1, start + index as u64 * below)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
