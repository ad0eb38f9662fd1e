//! MBR partition tables with logical partitions.
//!
//! Invariant: the chain of extended boot records is followed at most [`LOGICAL_MAX`] times and only forwards.

use super::bytes::{le16, le32, read};
use super::{Partition, PartitionRole};
use crate::error::Result;
use sendense_block::ReadAt;

const SECTOR: u64 = 512;
/// The most logical partitions; Linux numbers them up to 255 on a disk at most, tools stop at 60.
const LOGICAL_MAX: u32 = 128;
/// Types of a container of logical partitions: CHS, LBA, Linux.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type that says "look for a GPT".
pub const PROTECTIVE: u8 = 0xee;

/// One of the four records of a boot sector.
#[derive(Clone, Copy)]
struct Record {
    kind: u8,
    first: u64,
    sectors: u64,
}

/// The partitions, when the first sector is a sound table: a signature, boot flags of 0 or 128, nothing beyond the disk, no
/// overlap, at least one partition.
///
/// # Errors
/// The disk cannot be read.
pub fn read_table(disk: &dyn ReadAt) -> Result<Option<Vec<Partition>>> {
    let Some(records) = read(disk, 0, SECTOR as usize)?.and_then(|sector| parse(&sector)) else { return Ok(None) };
    if !sound(&records, disk.size().0 / SECTOR) || records.iter().any(|record| record.kind == PROTECTIVE) {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, record) in (1..).zip(records) {
        if EXTENDED.contains(&record.kind) {
            extended.get_or_insert(record);
        } else if record.kind != 0 && record.sectors > 0 {
            partitions.push(partition(number, record.first, record.sectors));
        }
    }
    if let Some(extended) = extended {
        logical(disk, extended, &mut partitions)?;
    }
    Ok(Some(partitions))
}

fn partition(number: u32, first: u64, sectors: u64) -> Partition {
    let (start, len) = (first.saturating_mul(SECTOR), sectors.saturating_mul(SECTOR));
    Partition { number, start, len, name: None, role: PartitionRole::Files }
}

fn parse(sector: &[u8]) -> Option<[Record; 4]> {
    if le16(sector, 510)? != 0xaa55 {
        return None;
    }
    let mut records = [Record { kind: 0, first: 0, sectors: 0 }; 4];
    for (index, record) in records.iter_mut().enumerate() {
        let at = 446 + index * 16;
        if !matches!(sector.get(at)?, 0 | 0x80) {
            return None;
        }
        *record = Record {
            kind: *sector.get(at + 4)?,
            first: le32(sector, at + 8)?.into(),
            sectors: le32(sector, at + 12)?.into(),
        };
    }
    Some(records)
}

fn sound(records: &[Record; 4], disk_sectors: u64) -> bool {
    let mut used: Vec<_> = records.iter().filter(|record| record.kind != 0 && record.sectors > 0).collect();
    used.sort_by_key(|record| record.first);
    let inside = used.iter().all(|record| record.first > 0 && record.first + record.sectors <= disk_sectors);
    let apart = used.windows(2).all(|pair| pair[0].first + pair[0].sectors <= pair[1].first);
    !used.is_empty() && inside && apart
}

/// Follows the extended boot records: in each, the first record is a partition (relative to the record's own sector), the
/// second the next boot record (relative to the container).
fn logical(disk: &dyn ReadAt, container: Record, partitions: &mut Vec<Partition>) -> Result<()> {
    let container_end = container.first + container.sectors;
    let mut here = container.first;
    for number in 5..5 + LOGICAL_MAX {
        let Some(records) = read(disk, here.saturating_mul(SECTOR), SECTOR as usize)?.and_then(|sector| parse(&sector))
        else {
            return Ok(());
        };
        let [data, next, ..] = records;
        let first = here + data.first;
        if data.kind != 0 && data.sectors > 0 && first > here && first + data.sectors <= container_end {
            partitions.push(partition(number, first, data.sectors));
        }
        let following = container.first + next.first;
        if !EXTENDED.contains(&next.kind) || following <= here || following >= container_end {
            return Ok(());
        }
        here = following;
    }
    Ok(())
}
