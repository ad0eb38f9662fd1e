//! MBR partition tables with logical partitions.
//!
//! Invariant: no more than [`LOGICAL_MAX`] extended boot records are read, and none of them twice.

use super::bytes::{le16, le32, read};
use super::{Partition, PartitionRole};
use crate::error::Result;
use sendense_block::ReadAt;
use std::collections::BTreeSet;

const SECTOR: u64 = 512;
/// The most logical partitions; Linux numbers them up to 255 on a disk at most, tools stop at 60.
const LOGICAL_MAX: u32 = 128;
/// Types of a container of logical partitions: CHS, LBA, Linux.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type that says "look for a GPT".
const PROTECTIVE: u8 = 0xee;

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
    let Some(sector) = read(disk, 0, SECTOR as usize)? else { return Ok(None) };
    let Some(records) = records_of(&sector).filter(|_| flags_are_sound(&sector)) else { return Ok(None) };
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

/// Whether the first sector says that a GPT is there; none when it is no boot sector at all.
///
/// # Errors
/// The disk cannot be read.
pub fn announces_gpt(disk: &dyn ReadAt) -> Result<Option<bool>> {
    let records = read(disk, 0, SECTOR as usize)?.and_then(|sector| records_of(&sector));
    Ok(records.map(|records| records.iter().any(|record| record.kind == PROTECTIVE)))
}

/// The records of a sector with a boot sector's signature.
fn records_of(sector: &[u8]) -> Option<[Record; 4]> {
    if le16(sector, 510)? != 0xaa55 {
        return None;
    }
    let mut records = [Record { kind: 0, first: 0, sectors: 0 }; 4];
    for (index, record) in records.iter_mut().enumerate() {
        let at = 446 + index * 16;
        *record = Record {
            kind: *sector.get(at + 4)?,
            first: le32(sector, at + 8)?.into(),
            sectors: le32(sector, at + 12)?.into(),
        };
    }
    Some(records)
}

/// What tells a table from the code of a boot sector that has none.
fn flags_are_sound(sector: &[u8]) -> bool {
    (0..4).all(|index| matches!(sector.get(446 + index * 16), Some(0 | 0x80)))
}

fn sound(records: &[Record; 4], disk_sectors: u64) -> bool {
    let mut used: Vec<_> = records.iter().filter(|record| record.kind != 0 && record.sectors > 0).collect();
    used.sort_by_key(|record| record.first);
    let inside = used.iter().all(|record| record.first > 0 && record.first + record.sectors <= disk_sectors);
    let apart = used.windows(2).all(|pair| pair[0].first + pair[0].sectors <= pair[1].first);
    !used.is_empty() && inside && apart
}

/// Follows the extended boot records as Linux does (`block/partitions/msdos.c`, `parse_extended`): a partition lies relative to its
/// record's sector, the next boot record relative to the container, before this one where a gap was filled later. The third and
/// fourth record may hold anything: they count where they stay inside.
fn logical(disk: &dyn ReadAt, container: Record, partitions: &mut Vec<Partition>) -> Result<()> {
    let container_end = container.first + container.sectors;
    let mut numbers = 5..5 + LOGICAL_MAX;
    let (mut here, mut seen) = (container.first, BTreeSet::new());
    while seen.len() < LOGICAL_MAX as usize && seen.insert(here) {
        let sector = read(disk, here.saturating_mul(SECTOR), SECTOR as usize)?;
        let Some(records) = sector.and_then(|sector| records_of(&sector)) else { return Ok(()) };
        for record in records.iter().filter(|record| record.sectors > 0 && !EXTENDED.contains(&record.kind)) {
            let first = here + record.first;
            let is_inside = first > here && first + record.sectors <= container_end;
            if record.kind != 0
                && is_inside
                && let Some(number) = numbers.next()
            {
                partitions.push(partition(number, first, record.sectors));
            }
        }
        let Some(next) = records.iter().find(|record| record.sectors > 0 && EXTENDED.contains(&record.kind)) else {
            return Ok(());
        };
        here = container.first + next.first;
        if here >= container_end {
            return Ok(());
        }
    }
    Ok(())
}
