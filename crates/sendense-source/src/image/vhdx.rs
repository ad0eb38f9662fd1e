//! VHDX metadata: the disk's size, and the refusal of images that hold differences to another.
//!
//! Structures and GUIDs are those of Microsoft's [MS-VHDX], sections 2.2 and 2.6. Both copies of the region table are
//! looked at, since a reader may take either.

use crate::error::{Error, Kind, Result};
use sendense_block::{ByteOffset, ReadAt};

const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// A region table, and the table at the start of the metadata region.
const TABLE_BYTES: usize = 64 << 10;
const ENTRY_BYTES: usize = 32;
/// Sections 2.2.3.1 and 2.6.1.1: not more entries than this.
const ENTRIES_MAX: usize = 2047;

/// GUIDs as they lie in the file.
const METADATA_REGION: [u8; 16] = *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
const FILE_PARAMETERS: [u8; 16] = *b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
const VIRTUAL_DISK_SIZE: [u8; 16] = *b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8";
const PARENT_LOCATOR: [u8; 16] = *b"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c";

/// The disk's size in bytes.
pub fn parse(file: &dyn ReadAt) -> Result<u64> {
    let mut size = None;
    for at in REGION_TABLES {
        let table = read(file, at, TABLE_BYTES)?;
        if !table.starts_with(b"regi") {
            continue;
        }
        let found = metadata(file, region(&table)?)?;
        if size.is_some_and(|size| size != found) {
            return Err(damaged("its two region tables contradict each other"));
        }
        size = Some(found);
    }
    size.filter(|size| *size <= i64::MAX as u64).ok_or_else(|| damaged("it has no region table"))
}

/// Where the metadata region begins.
fn region(table: &[u8]) -> Result<u64> {
    let count = u32_at(table, 8)? as usize;
    for entry in entries(table, 16, count)? {
        if entry.starts_with(&METADATA_REGION) {
            return u64_at(entry, 16);
        }
    }
    Err(damaged("it has no metadata region"))
}

fn metadata(file: &dyn ReadAt, at: u64) -> Result<u64> {
    let table = read(file, at, TABLE_BYTES)?;
    if !table.starts_with(b"metadata") {
        return Err(damaged("its metadata table has no signature"));
    }
    let count = table.get(10..).and_then(|rest| rest.first_chunk::<2>()).map(|bytes| u16::from_le_bytes(*bytes));
    let (mut parameters, mut size) = (false, None);
    for entry in entries(&table, 32, count.unwrap_or(0).into())? {
        let item = || {
            let offset =
                at.checked_add(u32_at(entry, 16)?.into()).ok_or_else(|| damaged("an item lies beyond its end"))?;
            read(file, offset, 8)
        };
        if entry.starts_with(&PARENT_LOCATOR) {
            return Err(differencing());
        } else if entry.starts_with(&FILE_PARAMETERS) {
            // Bit 1: has a parent.
            if u32_at(&item()?, 4)? & 2 != 0 {
                return Err(differencing());
            }
            parameters = true;
        } else if entry.starts_with(&VIRTUAL_DISK_SIZE) {
            size = Some(u64_at(&item()?, 0)?);
        }
    }
    size.filter(|_| parameters).ok_or_else(|| damaged("its metadata lacks the size or the file parameters"))
}

fn entries(table: &[u8], first: usize, count: usize) -> Result<impl Iterator<Item = &[u8]>> {
    if count > ENTRIES_MAX {
        return Err(damaged("a table has too many entries"));
    }
    let bytes = table.get(first..).and_then(|rest| rest.get(..count * ENTRY_BYTES));
    Ok(bytes.ok_or_else(|| damaged("a table is cut short"))?.chunks_exact(ENTRY_BYTES))
}

fn read(file: &dyn ReadAt, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    match file.read_at(ByteOffset(at), &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind == sendense_block::Kind::OutOfRange => Err(damaged("it is cut short")),
        Err(error) => Err(Error::of_device("read the VHDX metadata", error)),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    chunk.map(|bytes| u32::from_le_bytes(*bytes)).ok_or_else(|| damaged("a table is cut short"))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    chunk.map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(|| damaged("a table is cut short"))
}

fn damaged(why: &str) -> Error {
    Error::new(Kind::Failed, format!("the VHDX image is damaged: {why}"))
}

fn differencing() -> Error {
    Error::new(Kind::Unsupported, "the VHDX holds differences to a parent; merge it in Hyper-V first")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sendense_block::backend::Memory;

    const METADATA_AT: usize = 512 << 10;

    fn image(region_entries: &[[u8; 32]], items: &[([u8; 16], [u8; 8])]) -> Vec<u8> {
        let mut bytes = vec![0; METADATA_AT + (128 << 10)];
        for at in REGION_TABLES {
            let at = at as usize;
            bytes[at..at + 4].copy_from_slice(b"regi");
            bytes[at + 8] = region_entries.len() as u8;
            bytes[at + 16..at + 16 + 32 * region_entries.len()].copy_from_slice(region_entries.as_flattened());
        }
        let table = &mut bytes[METADATA_AT..];
        table[..8].copy_from_slice(b"metadata");
        table[10] = items.len() as u8;
        for (number, (guid, value)) in items.iter().enumerate() {
            let (entry, offset) = (32 + number * 32, (64 << 10) + number * 8);
            table[entry..entry + 16].copy_from_slice(guid);
            table[entry + 16..entry + 20].copy_from_slice(&(offset as u32).to_le_bytes());
            table[offset..offset + 8].copy_from_slice(value);
        }
        bytes
    }

    fn region_entry() -> [u8; 32] {
        let mut entry = [0; 32];
        entry[..16].copy_from_slice(&METADATA_REGION);
        entry[16..24].copy_from_slice(&(METADATA_AT as u64).to_le_bytes());
        entry
    }

    fn kind(items: &[([u8; 16], [u8; 8])]) -> Result<u64, Kind> {
        parse(&Memory::from_bytes(image(&[region_entry()], items))).map_err(|error| error.kind)
    }

    #[test]
    fn the_size_is_found_and_parents_are_refused() {
        let size = (VIRTUAL_DISK_SIZE, (5_u64 << 30).to_le_bytes());
        let plain = (FILE_PARAMETERS, [0, 0, 16, 0, 1, 0, 0, 0]);
        let child = (FILE_PARAMETERS, [0, 0, 16, 0, 2, 0, 0, 0]);
        assert_eq!(kind(&[size, plain]), Ok(5 << 30));
        assert_eq!(kind(&[size, child]), Err(Kind::Unsupported));
        assert_eq!(kind(&[size, plain, (PARENT_LOCATOR, [0; 8])]), Err(Kind::Unsupported));
        assert_eq!(kind(&[size]), Err(Kind::Failed));
        assert_eq!(kind(&[plain]), Err(Kind::Failed));
        assert_eq!(parse(&Memory::from_bytes(vec![0; 100])).unwrap_err().kind, Kind::Failed);
        assert_eq!(parse(&Memory::from_bytes(image(&[], &[size, plain]))).unwrap_err().kind, Kind::Failed);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn arbitrary_tables_never_panic(at in 0usize..400, region in any::<[u8; 16]>(), value in any::<u64>()) {
            let mut entry = region_entry();
            entry[16..].copy_from_slice(&region);
            let _ = parse(&Memory::from_bytes(image(&[entry], &[])));
            let size = (VIRTUAL_DISK_SIZE, value.to_le_bytes());
            let mut bytes = image(&[region_entry()], &[size, (FILE_PARAMETERS, [0; 8])]);
            let _ = parse(&Memory::from_bytes(bytes.clone()));
            bytes[METADATA_AT + at % 200..][..8].copy_from_slice(&value.to_le_bytes());
            bytes[192 * 1024 + at..][..8].copy_from_slice(&value.to_le_bytes());
            let _ = parse(&Memory::from_bytes(bytes));
        }
    }
}
