//! GUID partition tables, with 512 or 4096 bytes per sector, from the first copy or, when that is damaged, the second.
//!
//! Invariant: a table whose checksums are wrong is not a table; its announced size bounds nothing we allocate.

use super::bytes::{array, crc32, guid, le32, le64, read};
use super::{Partition, PartitionRole};
use crate::error::Result;
use crate::volume::shown;
use sendense_block::ReadAt;

/// The most entries that are read. The standard says at least 128; no tool makes more than a few hundred.
const ENTRIES_MAX: u32 = 1024;
/// The largest entry. The standard's is 128 bytes; larger powers of two are allowed.
const ENTRY_BYTES_MAX: u32 = 1024;

/// Types of partitions that hold no file system: BIOS boot, Microsoft reserved, LDM metadata, swap is left to its signature.
const WITHOUT_FILES: [(&str, &str); 3] = [
    ("21686148-6449-6e6f-744e-656564454649", "bios-boot"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "microsoft-reserved"),
    ("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", "ldm-metadata"),
];

/// The partitions, when the disk has a sound table.
///
/// # Errors
/// The disk cannot be read.
pub fn read_table(disk: &dyn ReadAt) -> Result<Option<Vec<Partition>>> {
    for sector in [512u64, 4096] {
        let last = (disk.size().0 / sector).saturating_sub(1);
        for at in [1, last] {
            if let Some(table) = read_copy(disk, sector, at)? {
                return Ok(Some(table));
            }
        }
    }
    Ok(None)
}

fn read_copy(disk: &dyn ReadAt, sector: u64, lba: u64) -> Result<Option<Vec<Partition>>> {
    let Some(at) = lba.checked_mul(sector) else { return Ok(None) };
    let Some(header) = read(disk, at, sector as usize)? else { return Ok(None) };
    let Some((entries_lba, count, entry_bytes, entries_crc)) = parse_header(&header, lba) else { return Ok(None) };
    let Some(entries_at) = entries_lba.checked_mul(sector) else { return Ok(None) };
    let Some(entries) = read(disk, entries_at, count as usize * entry_bytes as usize)? else { return Ok(None) };
    if !crc32(!0, &entries) != entries_crc {
        return Ok(None);
    }
    let parse = |(index, entry)| parse_entry(entry, index, sector);
    Ok(Some(entries.chunks_exact(entry_bytes as usize).enumerate().filter_map(parse).collect()))
}

/// Where the entries are, how many, how large, their checksum.
fn parse_header(header: &[u8], lba: u64) -> Option<(u64, u32, u32, u32)> {
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let header_bytes = le32(header, 12)? as usize;
    if !(92..=header.len()).contains(&header_bytes) {
        return None;
    }
    // The checksum covers the header with its own field as zeros.
    let mut covered = header[..header_bytes].to_vec();
    covered[16..20].fill(0);
    let sound = !crc32(!0, &covered) == le32(header, 16)? && le64(header, 24)? == lba;
    let (count, entry_bytes) = (le32(header, 80)?, le32(header, 84)?);
    if !sound || count > ENTRIES_MAX || !(128..=ENTRY_BYTES_MAX).contains(&entry_bytes) {
        return None;
    }
    Some((le64(header, 72)?, count, entry_bytes, le32(header, 88)?))
}

/// An entry in use. One that ends before it begins is kept with length zero, so that the numbers of the others stay.
fn parse_entry(entry: &[u8], index: usize, sector: u64) -> Option<Partition> {
    let kind = array::<16>(entry, 0)?;
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let sectors = last.checked_add(1).and_then(|end| end.checked_sub(first)).unwrap_or(0);
    let name: Vec<u16> =
        entry.get(56..128)?.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    let name = String::from_utf16_lossy(name.split(|unit| *unit == 0).next().unwrap_or_default());
    let kind = guid(kind);
    let role = WITHOUT_FILES.iter().find(|(guid, _)| *guid == kind);
    Some(Partition {
        number: index as u32 + 1,
        start: first.saturating_mul(sector),
        len: sectors.saturating_mul(sector),
        name: shown(&name),
        role: role.map_or(PartitionRole::Files, |(_, name)| PartitionRole::Other(name)),
    })
}
