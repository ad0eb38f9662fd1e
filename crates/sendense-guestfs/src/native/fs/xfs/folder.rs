//! XFS folders: inside the inode, in one block, or in data blocks beside their index. Only the data is read, in its order.

use super::{FORMAT_LOCAL, Inode, Xfs, checksum_holds};
use crate::error::{Error, Result};
use crate::native::fs::bytes::{be16, be32, be64, slice, u8_at};
use crate::native::fs::volume::{Map, Name, Visit, Volume};
use std::ops::ControlFlow;

/// Where the index of a folder begins in its file; its data lies before.
const DATA_END: u64 = 1 << 35;
const FREE: u16 = 0xffff;

pub(super) fn names(volume: &Xfs, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
    if folder.format == FORMAT_LOCAL {
        return short(volume, folder, from, visit);
    }
    let block_bytes = volume.sb.folder_block_bytes as u64;
    let mut start = from / block_bytes * block_bytes;
    let (mut map, mut map_from) = (Map::default(), 0);
    while start < DATA_END {
        if !(map_from..map.until).contains(&start) {
            (map, map_from) = (volume.map(folder, start, 64)?, start);
        }
        let index = map.segments.partition_point(|segment| segment.start + segment.len <= start);
        let Some(segment) = map.segments.get(index) else {
            if map.until == u64::MAX {
                break;
            }
            start = map.until.div_ceil(block_bytes) * block_bytes;
            continue;
        };
        if segment.start > start {
            start = segment.start / block_bytes * block_bytes;
            if start >= DATA_END {
                break;
            }
        }
        let block = read_block(volume, folder, &map, start)?;
        if block_names(volume, folder, &block, start, from, visit)?.is_break() {
            return Ok(());
        }
        start += block_bytes;
    }
    Ok(())
}

/// A folder block, which may be made of several blocks of the file system that lie apart.
fn read_block(volume: &Xfs, folder: &Inode, map: &Map, start: u64) -> Result<Vec<u8>> {
    let damaged = || Error::corrupt(format!("XFS folder {} lacks a part of a block", folder.number));
    let mut block = vec![0; volume.sb.folder_block_bytes];
    let mut done = 0;
    let mut longer = None;
    while done < block.len() {
        let at = start + done as u64;
        let known = longer.as_ref().unwrap_or(map);
        let index = known.segments.partition_point(|segment| segment.start + segment.len <= at);
        let Some(segment) = known.segments.get(index).filter(|segment| segment.start <= at) else {
            if longer.is_some() || map.until == u64::MAX {
                return Err(damaged());
            }
            // The window ended inside the block.
            longer = Some(volume.map(folder, start, 256)?);
            continue;
        };
        let len = ((segment.start + segment.len - at) as usize).min(block.len() - done);
        volume.device.read(segment.at + (at - segment.start), &mut block[done..done + len])?;
        done += len;
    }
    Ok(block)
}

fn block_names(
    volume: &Xfs,
    folder: &Inode,
    block: &[u8],
    start: u64,
    from: u64,
    visit: &mut Visit<'_>,
) -> Result<ControlFlow<()>> {
    let damaged = |what: &str| Error::corrupt(format!("XFS folder {}: {what}", folder.number));
    let checked = volume.sb.version == 5;
    let alone = match &block[..4] {
        b"XDB3" if checked => true,
        b"XDD3" if checked => false,
        b"XD2B" if !checked => true,
        b"XD2D" if !checked => false,
        _ => return Err(damaged("a block is none")),
    };
    if checked && (!checksum_holds(block, 4) || be64(block, 40)? != folder.number) {
        return Err(damaged("a block fails its checksum"));
    }
    let mut end = block.len();
    if alone {
        // The index of a folder of one block grows from its end.
        let entries = be32(block, block.len() - 8)? as usize;
        end = entries
            .checked_mul(8)
            .and_then(|len| (block.len() - 8).checked_sub(len))
            .ok_or_else(|| damaged("its index"))?;
    }
    let mut at = if checked { 64 } else { 16 };
    while at + 8 <= end {
        if be16(block, at)? == FREE {
            let len = usize::from(be16(block, at + 2)?);
            if len < 8 || len % 8 != 0 {
                return Err(damaged("a free part of a wrong length"));
            }
            at += len;
            continue;
        }
        let inode = be64(block, at)?;
        let len = usize::from(u8_at(block, at + 8)?);
        // Number, length, name, type, and its own place in two bytes, in steps of eight.
        let whole = (8 + 1 + len + usize::from(volume.sb.ftype) + 2).next_multiple_of(8);
        if len == 0 || at + whole > end {
            return Err(damaged("an entry of a wrong length"));
        }
        let next = start + (at + whole) as u64;
        if start + at as u64 >= from {
            let bytes = slice(block, at + 9, len)?;
            if visit(Name { bytes, inode, next }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        at += whole;
    }
    Ok(ControlFlow::Continue(()))
}

/// A folder inside its inode; positions count its entries.
fn short(volume: &Xfs, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
    let fork = &folder.fork;
    let (count, wide) = (u64::from(u8_at(fork, 0)?), u8_at(fork, 1)? > 0);
    let number_bytes = if wide { 8 } else { 4 };
    let mut at = 2 + number_bytes;
    for index in 0..count {
        let len = usize::from(u8_at(fork, at)?);
        let bytes = slice(fork, at + 3, len)?;
        at += 3 + len + usize::from(volume.sb.ftype);
        let inode = if wide { be64(fork, at)? } else { be32(fork, at)?.into() };
        at += number_bytes;
        if index >= from && visit(Name { bytes, inode, next: index + 1 }).is_break() {
            break;
        }
    }
    Ok(())
}
