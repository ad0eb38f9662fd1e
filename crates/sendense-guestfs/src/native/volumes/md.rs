//! Members of Linux software RAID: superblock version 1, where a mirror's member is read like the array.
//!
//! Invariant: only a member that is in sync stands for the array.

use super::bytes::{array, le16, le32, le64, read, uuid};
use super::mapping::Mapping;
use crate::error::{Error, Result};
use sendense_block::ReadAt;
use std::sync::Arc;

const MAGIC: u32 = 0xa92b_4efc;
const SECTOR: u64 = 512;
/// Superblock with room for 384 roles; more members than a mirror ever has.
const SUPERBLOCK_BYTES: usize = 1024;
/// `MD_FEATURE_RECOVERY_OFFSET`: this member is only partly rebuilt.
const FEATURE_RECOVERY: u32 = 2;
/// Roles from here on are "spare", "faulty" or "journal".
const ROLE_ACTIVE_MAX: u16 = 0xff00;

/// What a member of an array gives.
pub struct Member {
    /// The array's name.
    pub name: Option<String>,
    /// The array's UUID as `mdadm` and `blkid` print it, in the form of other UUIDs.
    pub uuid: String,
    /// The array's content, or why it cannot be read from this member.
    pub content: Result<Arc<dyn ReadAt>>,
}

/// Finds a superblock.
///
/// # Errors
/// The device cannot be read.
pub fn find(device: &Arc<dyn ReadAt>) -> Result<Option<Member>> {
    Ok(superblock(device.as_ref())?.and_then(|bytes| parse(&bytes, device)))
}

/// Whether there is a superblock.
///
/// # Errors
/// The device cannot be read.
pub fn detect(device: &dyn ReadAt) -> Result<bool> {
    Ok(superblock(device)?.is_some())
}

/// Version 1.2 lies at 4 KiB, 1.1 at the begin, 1.0 near the end.
fn superblock(device: &dyn ReadAt) -> Result<Option<Vec<u8>>> {
    let sectors = device.size().0 / SECTOR;
    let near_end = (sectors.saturating_sub(16) & !7) * SECTOR;
    for at in [4096, 0, near_end] {
        let Some(bytes) = read(device, at, SUPERBLOCK_BYTES)? else { continue };
        if le32(&bytes, 0) == Some(MAGIC) && le64(&bytes, 144) == Some(at / SECTOR) {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn parse(bytes: &[u8], device: &Arc<dyn ReadAt>) -> Option<Member> {
    let name = array::<32>(bytes, 32)?;
    let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let content = content(bytes, device).unwrap_or_else(|| Err(Error::corrupt("the RAID superblock is cut off")));
    Some(Member { name: crate::volume::shown(&name), uuid: uuid(array(bytes, 16)?), content })
}

fn content(bytes: &[u8], device: &Arc<dyn ReadAt>) -> Option<Result<Arc<dyn ReadAt>>> {
    let (level, features) = (le32(bytes, 72)? as i32, le32(bytes, 8)?);
    if le32(bytes, 4)? != 1 {
        return Some(Err(Error::unsupported("RAID superblock that is not version 1")));
    }
    if checksum(bytes)? != le32(bytes, 216)? {
        return Some(Err(Error::corrupt("the RAID superblock's checksum is wrong")));
    }
    if level != 1 {
        return Some(Err(Error::unsupported(format!("Linux RAID level {level}"))));
    }
    let number = le32(bytes, 160)? as usize;
    let role = number.checked_mul(2).and_then(|at| at.checked_add(256)).and_then(|at| le16(bytes, at));
    if features & FEATURE_RECOVERY != 0 || role.is_none_or(|role| role >= ROLE_ACTIVE_MAX) {
        return Some(Err(Error::unsupported("a RAID member that is not in sync")));
    }
    let (offset, array_sectors) = (le64(bytes, 128)?, le64(bytes, 80)?);
    // `data_size` may be larger than what the array uses of the member.
    let sectors = le64(bytes, 136)?.min(array_sectors);
    Some(Mapping::slice(device.clone(), offset.saturating_mul(SECTOR), sectors.saturating_mul(SECTOR)))
}

/// The sum of the superblock's 32-bit words with the checksum's own as zero, folded once.
fn checksum(bytes: &[u8]) -> Option<u32> {
    let len = 256usize.checked_add(le32(bytes, 220)? as usize * 2)?;
    let mut covered = bytes.get(..len)?.to_vec();
    covered[216..220].fill(0);
    let words = covered.chunks_exact(4);
    let tail = words.remainder();
    let tail = if tail.len() == 2 { u64::from(u16::from_le_bytes([tail[0], tail[1]])) } else { 0 };
    let sum: u64 = words.map(|word| u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let sum = sum + tail;
    Some(((sum & 0xffff_ffff) + (sum >> 32)) as u32)
}
