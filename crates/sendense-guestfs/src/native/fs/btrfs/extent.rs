//! The contents of btrfs files: inline, plain and compressed extents, holes between them.

use super::tree::Key;
use super::{Btrfs, Inode, kind};
use crate::error::{Error, Result};
use crate::native::FileRead;
use crate::native::fs::bytes::{le16, le64, u8_at};
use crate::native::fs::unpack;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Extents asked for at a time: 64 KiB of them, and 128 MiB of a compressed file.
const EXTENTS_MAX: usize = 1024;
/// The largest compressed extent, on the disk and unpacked: Linux writes 128 KiB.
const COMPRESSED_BYTES_MAX: u64 = 1 << 20;

const INLINE: u8 = 0;
const REGULAR: u8 = 1;
const HEADER: usize = 21;

#[derive(Debug, Clone)]
struct Extent {
    start: u64,
    len: u64,
    contents: Contents,
}

#[derive(Debug, Clone)]
enum Contents {
    Zeros,
    /// At a logical address.
    Plain(u64),
    Compressed {
        algorithm: u8,
        logical: u64,
        disk_bytes: u64,
        /// Length when unpacked, and where in that the extent begins.
        unpacked_bytes: u64,
        offset: u64,
    },
    /// In the tree: the item's key says where.
    Inline,
}

/// An open file.
pub(super) struct File {
    volume: Arc<Btrfs>,
    inode: Inode,
    window: Vec<Extent>,
    window_range: Range<u64>,
    /// The extent that was unpacked last, by the place of its data.
    unpacked: Option<(u64, Vec<u8>)>,
}

impl File {
    pub(super) fn new(volume: Arc<Btrfs>, inode: Inode) -> File {
        File { volume, inode, window: Vec::new(), window_range: 0..0, unpacked: None }
    }

    fn load(&mut self, offset: u64) -> Result<()> {
        if self.window_range.contains(&offset) {
            return Ok(());
        }
        let wanted = Key { object: self.inode.object, kind: kind::EXTENT_DATA, offset };
        let of_file = |key: Key| (key.object, key.kind) == (wanted.object, wanted.kind);
        let before = self.volume.trees.floor(self.inode.root, wanted)?.map(|(key, _)| key).filter(|key| of_file(*key));
        let (mut window, mut until): (Vec<Extent>, u64) = (Vec::new(), u64::MAX);
        self.volume.trees.walk(self.inode.root, before.unwrap_or(wanted), &mut |key, item| {
            if !of_file(key) {
                return Ok(ControlFlow::Break(()));
            }
            if window.len() >= EXTENTS_MAX {
                until = key.offset;
                return Ok(ControlFlow::Break(()));
            }
            let extent = Extent::read(key.offset, item)?;
            if window.last().is_some_and(|last| last.start.saturating_add(last.len) > extent.start) {
                return Err(Error::corrupt("two extents of a btrfs file overlap"));
            }
            window.push(extent);
            Ok(ControlFlow::Continue(()))
        })?;
        if until <= offset {
            return Err(Error::corrupt("extents of a btrfs file lead nowhere"));
        }
        (self.window, self.window_range) = (window, offset..until);
        Ok(())
    }

    /// The extent that holds `offset` or else the next one in the window.
    fn extent(&self, offset: u64) -> Option<&Extent> {
        let index = self.window.partition_point(|extent| extent.start.saturating_add(extent.len) <= offset);
        self.window.get(index)
    }

    fn read_extent(&mut self, extent: &Extent, within: u64, buf: &mut [u8]) -> Result<()> {
        match extent.contents {
            Contents::Zeros => buf.fill(0),
            Contents::Plain(logical) => {
                let at = logical.checked_add(within).ok_or_else(|| Error::corrupt("a btrfs address beyond all"))?;
                self.volume.trees.read(at, buf, 0)?;
            }
            Contents::Compressed { logical, offset, .. } => {
                self.unpack(extent, logical)?;
                copy(self.unpacked.as_ref(), offset.saturating_add(within), buf);
            }
            Contents::Inline => {
                // No data lies at an address with its highest bit set, so that it can stand for the item.
                self.unpack(extent, 1 << 63 | extent.start)?;
                copy(self.unpacked.as_ref(), within, buf);
            }
        }
        Ok(())
    }

    fn unpack(&mut self, extent: &Extent, place: u64) -> Result<()> {
        if self.unpacked.as_ref().is_some_and(|(known, _)| *known == place) {
            return Ok(());
        }
        let sector_bytes = self.volume.trees.sector_bytes;
        let bytes = match extent.contents {
            Contents::Compressed { algorithm, logical, disk_bytes, unpacked_bytes, .. } => {
                if disk_bytes.max(unpacked_bytes) > COMPRESSED_BYTES_MAX {
                    return Err(Error::corrupt("a compressed btrfs extent is too long"));
                }
                let mut packed = vec![0; disk_bytes as usize];
                self.volume.trees.read(logical, &mut packed, 0)?;
                unpack::extent(algorithm, &packed, unpacked_bytes as usize, sector_bytes)?
            }
            _ => {
                let key = Key { object: self.inode.object, kind: kind::EXTENT_DATA, offset: extent.start };
                let item = self.volume.trees.find(self.inode.root, key)?.unwrap_or_default();
                let data = item.get(HEADER..).unwrap_or_default();
                // An inline extent fits in a node, packed and unpacked.
                let len = usize::try_from(le64(&item, 8)?).unwrap_or(usize::MAX).min(65536);
                unpack::extent(u8_at(&item, 16)?, data, len, sector_bytes)?
            }
        };
        self.unpacked = Some((place, bytes));
        Ok(())
    }
}

/// Copies from unpacked bytes; what is missing is zeros.
fn copy(unpacked: Option<&(u64, Vec<u8>)>, from: u64, buf: &mut [u8]) {
    let bytes = unpacked.map(|(_, bytes)| &bytes[..]).unwrap_or_default();
    let bytes = usize::try_from(from).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
    let len = bytes.len().min(buf.len());
    buf[..len].copy_from_slice(&bytes[..len]);
    buf[len..].fill(0);
}

impl Extent {
    fn read(start: u64, item: &[u8]) -> Result<Extent> {
        let (algorithm, kind) = (u8_at(item, 16)?, u8_at(item, 20)?);
        if u8_at(item, 17)? != 0 || le16(item, 18)? != 0 {
            return Err(Error::unsupported("btrfs file that is encrypted or otherwise encoded"));
        }
        if kind == INLINE {
            return Ok(Extent { start, len: le64(item, 8)?, contents: Contents::Inline });
        }
        let (logical, disk_bytes) = (le64(item, HEADER)?, le64(item, HEADER + 8)?);
        let (offset, len) = (le64(item, HEADER + 16)?, le64(item, HEADER + 24)?);
        let contents = match (kind, algorithm) {
            // A hole; or allocated, not written.
            _ if logical == 0 || kind != REGULAR => Contents::Zeros,
            (_, 0) => {
                let at = logical.checked_add(offset).ok_or_else(|| Error::corrupt("a btrfs address beyond all"))?;
                Contents::Plain(at)
            }
            _ => Contents::Compressed { algorithm, logical, disk_bytes, unpacked_bytes: le64(item, 8)?, offset },
        };
        Ok(Extent { start, len, contents })
    }
}

impl FileRead for File {
    fn size(&self) -> u64 {
        self.inode.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            self.load(at)?;
            let part = &mut buf[done..wanted];
            let end = self.window_range.end;
            let within = |end: u64| usize::try_from(end - at).unwrap_or(usize::MAX).min(part.len());
            match self.extent(at).cloned() {
                Some(extent) if extent.start <= at => {
                    let len = within(extent.start.saturating_add(extent.len).min(end));
                    self.read_extent(&extent, at - extent.start, &mut part[..len])?;
                    done += len;
                }
                next => {
                    let len = within(next.map_or(end, |extent| extent.start.min(end)));
                    part[..len].fill(0);
                    done += len;
                }
            }
        }
        Ok(wanted)
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        let mut at = offset;
        while at < self.size() {
            self.load(at)?;
            match self.extent(at) {
                None => at = self.window_range.end,
                Some(Extent { start, len, contents: Contents::Zeros }) => at = start.saturating_add(*len),
                Some(extent) => {
                    let range = extent.start.max(at)..extent.start.saturating_add(extent.len).min(self.size());
                    return Ok((!range.is_empty()).then_some(range));
                }
            }
        }
        Ok(None)
    }
}
