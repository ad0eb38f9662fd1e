//! NTFS folders: a tree of index blocks by name. They are read in the order in which they lie, not in that of names, so
//! that a position is a place: the index root first, then block by block.

use super::record::fix_up;
use super::{File, Ntfs, RECORD_FIRST_USER};
use crate::error::{Error, Result};
use crate::native::fs::bytes::{le16, le32, le64, slice, u8_at, utf16_le, wtf8};
use crate::native::fs::volume::{Name, Visit};
use std::ops::ControlFlow;

/// `$I30` in UTF-16: the index by name.
pub(super) const INDEX_NAME: &[u8] = b"$\0I\x003\x000\0";
/// The short alias of a name.
pub(super) const NAMESPACE_DOS: u8 = 2;
/// A position is the number of the block, from one on, and the place in it.
const PLACE_BITS: u32 = 20;
const ENTRY_LAST: u16 = 0x2;

pub(super) fn names(volume: &Ntfs, folder: &File, from: u64, visit: &mut Visit<'_>) -> Result<()> {
    let root = &folder.index_root;
    let block_bytes = le32(root, 8)? as usize;
    if from >> PLACE_BITS == 0 && entries(slice(root, 16, root.len().saturating_sub(16))?, 0, from, visit)?.is_break() {
        return Ok(());
    }
    if folder.index.parts.is_empty() {
        return Ok(());
    }
    if !block_bytes.is_power_of_two() || !(512..=65536).contains(&block_bytes) {
        return Err(Error::corrupt(format!("NTFS folder {} has index blocks of {block_bytes} bytes", folder.number)));
    }
    let blocks = folder.index.size / block_bytes as u64;
    // 8 MiB of a bitmap would be 64 million blocks; more than a folder can have.
    let mut bitmap = vec![0; folder.index_bitmap.size.min(blocks.div_ceil(8)).min(8 << 20) as usize];
    volume.read_stream(&folder.index_bitmap, 0, &mut bitmap)?;
    // A size is only a claim: without this end a damaged one would be counted through for days.
    let blocks = blocks.min(bitmap.len() as u64 * 8);
    for number in (from >> PLACE_BITS).saturating_sub(1)..blocks {
        if bitmap[(number / 8) as usize] >> (number % 8) & 1 == 0 {
            continue;
        }
        let mut block = vec![0; block_bytes];
        volume.read_stream(&folder.index, number * block_bytes as u64, &mut block)?;
        if !block.starts_with(b"INDX") {
            return Err(Error::corrupt(format!("NTFS folder {} has an index block that is none", folder.number)));
        }
        fix_up(&mut block, 512)?;
        if entries(&block[24..], number + 1, from, visit)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The entries behind an index header.
fn entries(index: &[u8], block: u64, from: u64, visit: &mut Visit<'_>) -> Result<ControlFlow<()>> {
    let (mut at, end) = (le32(index, 0)? as usize, le32(index, 4)? as usize);
    let index = slice(index, 0, end)?;
    let position = |at: usize| block << PLACE_BITS | at as u64;
    while at + 16 <= index.len() {
        let (len, flags) = (usize::from(le16(index, at + 8)?), le16(index, at + 12)?);
        if flags & ENTRY_LAST != 0 {
            break;
        }
        let entry = slice(index, at, len)?;
        if len < 16 {
            return Err(Error::corrupt("an NTFS index entry is too short"));
        }
        let reference = le64(entry, 0)?;
        let user = reference & 0xffff_ffff_ffff >= RECORD_FIRST_USER;
        if position(at) >= from && user && u8_at(entry, 16 + 65)? != NAMESPACE_DOS {
            let bytes = wtf8(utf16_le(slice(entry, 16 + 66, usize::from(u8_at(entry, 16 + 64)?) * 2)?));
            let next = position(at + len);
            if visit(Name { bytes: &bytes, inode: reference, next }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        at += len;
    }
    Ok(ControlFlow::Continue(()))
}
