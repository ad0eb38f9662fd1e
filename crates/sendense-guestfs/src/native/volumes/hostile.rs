//! Disks made to break their reader: tables with right checksums and any numbers in them.
#![allow(clippy::unwrap_used)]

use super::bytes::crc32;
use super::testing::disk;
use super::{Slot, discover, unlock};
use crate::native::Readers;
use crate::volume::{Key, VOLUMES_MAX};
use proptest::prelude::*;

const DISK_BYTES: usize = 1 << 20;
const NO_FILES: Readers = Readers { detect: |_| Ok(None), open: |_| unreachable!("nothing is detected") };

/// Looks at a disk as the worker would and checks what holds of any answer.
fn look(bytes: Vec<u8>) {
    let device = disk(bytes);
    let Ok(mut slots) = discover(device, NO_FILES) else { return };
    check(&slots);
    for index in 0..slots.len() {
        // A wrong key: every number of the header is used before it is known to be wrong.
        let _ = unlock(&mut slots, index, &Key::new(b"key".to_vec()).unwrap(), NO_FILES);
    }
    check(&slots);
}

fn check(slots: &[Slot]) {
    assert!(slots.len() <= VOLUMES_MAX);
    let ids: std::collections::BTreeSet<_> = slots.iter().map(|slot| slot.volume.id.as_str()).collect();
    assert_eq!(ids.len(), slots.len());
}

fn set(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Numbers that matter: small, at borders of the disk, at borders of the type.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..64, Just(2047), Just(2048), Just(u64::MAX), Just(u64::MAX / 512), Just(1 << 63), any::<u64>()]
}

/// A GPT with sound checksums.
fn gpt(entries: &[(u64, u64)], entries_lba: u64, count: u32, entry_bytes: u32) -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    for (index, (first, last)) in entries.iter().enumerate() {
        let at = 1024 + index * 128;
        set(&mut disk, at, &[7; 16]);
        set(&mut disk, at + 32, &first.to_le_bytes());
        set(&mut disk, at + 40, &last.to_le_bytes());
        set(&mut disk, at + 56, &[0xd8; 72]);
    }
    let table_len = (count as usize).saturating_mul(entry_bytes as usize);
    let table_at = usize::try_from(entries_lba.saturating_mul(512)).unwrap_or(usize::MAX);
    let sum = disk.get(table_at..).and_then(|rest| rest.get(..table_len)).map_or(0, |table| !crc32(!0, table));
    let mut header = vec![0; 512];
    set(&mut header, 0, b"EFI PART");
    set(&mut header, 12, &92u32.to_le_bytes());
    set(&mut header, 24, &1u64.to_le_bytes());
    set(&mut header, 72, &entries_lba.to_le_bytes());
    set(&mut header, 80, &count.to_le_bytes());
    set(&mut header, 84, &entry_bytes.to_le_bytes());
    set(&mut header, 88, &sum.to_le_bytes());
    let sum = !crc32(!0, &header[..92]);
    set(&mut header, 16, &sum.to_le_bytes());
    set(&mut disk, 512, &header);
    disk
}

/// Boot sectors with any records, chained or not.
fn boot_sector(records: &[(u8, u32, u32)]) -> [u8; 512] {
    let mut sector = [0; 512];
    for (index, (kind, first, sectors)) in records.iter().enumerate().take(4) {
        let at = 446 + index * 16;
        sector[at + 4] = *kind;
        set(&mut sector, at + 8, &first.to_le_bytes());
        set(&mut sector, at + 12, &sectors.to_le_bytes());
    }
    set(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

fn record() -> impl Strategy<Value = (u8, u32, u32)> {
    let kind = prop_oneof![Just(0u8), Just(5), Just(15), Just(0x83), Just(0xee), any::<u8>()];
    let sectors = || prop_oneof![0u32..32, Just(2047), Just(2048), Just(u32::MAX), any::<u32>()];
    (kind, sectors(), sectors())
}

proptest! {
    #[test]
    fn partition_tables_of_any_numbers(
        entries in prop::collection::vec((number(), number()), 0..8), lba in number(),
        count in prop_oneof![0u32..130, any::<u32>()], entry_bytes in prop_oneof![Just(128u32), Just(0), any::<u32>()],
    ) {
        look(gpt(&entries, lba, count, entry_bytes));
        look(gpt(&entries, 2, 8, 128));
    }

    #[test]
    fn boot_sectors_of_any_numbers(sectors in prop::collection::vec(prop::collection::vec(record(), 4), 1..8)) {
        let mut bytes = vec![0; DISK_BYTES];
        for (at, records) in sectors.iter().enumerate() {
            set(&mut bytes, at * 512, &boot_sector(records));
        }
        look(bytes);
    }

    #[test]
    fn superblocks_of_mirrors_of_any_numbers(numbers in prop::collection::vec(number(), 8), roles in any::<u32>(), at in 0usize..2) {
        let at = [0, 4096][at];
        let mut block = vec![0; 1024];
        set(&mut block, 0, &0xa92b_4efcu32.to_le_bytes());
        set(&mut block, 4, &1u32.to_le_bytes());
        set(&mut block, 72, &1u32.to_le_bytes());
        for (field, number) in [80usize, 128, 136, 160].into_iter().zip(&numbers) {
            set(&mut block, field, &number.to_le_bytes());
        }
        set(&mut block, 144, &(at as u64 / 512).to_le_bytes());
        set(&mut block, 220, &(roles % 512).to_le_bytes());
        let covered = &block[..(256 + (roles % 512) as usize * 2).min(1024)];
        let sum: u64 = covered.chunks_exact(4).map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap()))).sum();
        set(&mut block, 216, &(((sum & 0xffff_ffff) + (sum >> 32)) as u32).to_le_bytes());
        let mut bytes = vec![0; DISK_BYTES];
        set(&mut bytes, at, &block);
        look(bytes);
    }

    #[test]
    fn encrypted_headers_of_any_numbers(version in 1u8..3, json in "[\\[\\]{}:,\"0-9a-z-]{0,300}", fields in prop::collection::vec((0usize..592, any::<u8>()), 0..12)) {
        let mut bytes = vec![0; DISK_BYTES];
        set(&mut bytes, 0, b"LUKS\xba\xbe\0");
        bytes[7] = version;
        if version == 2 {
            set(&mut bytes, 8, &16384u64.to_be_bytes());
            set(&mut bytes, 4096, json.as_bytes());
        } else {
            set(&mut bytes, 8, b"aes");
            set(&mut bytes, 40, b"xts-plain64");
            set(&mut bytes, 72, b"sha256");
        }
        for (at, byte) in fields {
            bytes[at.max(8)] = byte;
        }
        look(bytes);
    }

    #[test]
    fn encrypted_headers_of_the_right_form(memory in number(), stripes in number(), offset in number(), sector in number(), size in number()) {
        let json = format!(
            r#"{{"keyslots":{{"0":{{"type":"luks2","key_size":64,"af":{{"type":"luks1","stripes":{stripes},"hash":"sha256"}},
            "area":{{"type":"raw","offset":"{offset}","size":"{size}","encryption":"aes-xts-plain64","key_size":64}},
            "kdf":{{"type":"argon2id","time":1,"memory":{},"cpus":1,"salt":"AAAAAAAAAAA="}}}}}},
            "segments":{{"0":{{"type":"crypt","offset":"{offset}","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":{sector}}}}},
            "digests":{{"0":{{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1,"salt":"AAAA","digest":"AAAA"}}}}}}"#,
            memory.clamp(0, 1 << 14) | memory >> 40 << 30
        );
        let mut bytes = vec![0; DISK_BYTES];
        set(&mut bytes, 0, b"LUKS\xba\xbe\0\x02");
        set(&mut bytes, 8, &16384u64.to_be_bytes());
        set(&mut bytes, 4096, json.as_bytes());
        look(bytes);
    }
}
