//! How a file system was left, for the kinds whose kernel reads on without a word: those that have no log, and those whose log
//! only their own repair tool replays.
//!
//! Everything else is the kernel's to replay; whether it had to is seen at the mount.
//!
//! Invariant: what cannot be told counts as not closed.

use crate::error::{Error, Result};
use sendense_block::{ByteOffset, ReadAt};

/// What the file system says of its last use.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// Closed, or the kernel replays its log.
    Closed,
    /// In use, and there is no log.
    Open,
    /// In use, with a log that the kernel does not replay.
    OpenLog,
}

/// Looks at a file system of this kind before it is mounted.
///
/// # Errors
/// [`Error::Io`]: the device cannot be read.
pub fn left(kind: &str, device: &dyn ReadAt) -> Result<Left> {
    let open = |open: bool| if open { Left::Open } else { Left::Closed };
    match kind {
        // What the kernel calls ext4 is ext2 when it has no journal.
        "ext4" => {
            const HAS_JOURNAL: u8 = 4;
            let superblock = read::<128>(device, 1024)?;
            Ok(open(superblock[92] & HAS_JOURNAL == 0 && superblock[58] & 1 == 0))
        }
        "vfat" => {
            let start = read::<96>(device, 0)?;
            // The short form of the table's length is zero on FAT32, whose flags lie elsewhere.
            let flags = if start[22..24] == [0, 0] { start[65] } else { start[37] };
            Ok(open(flags & 1 != 0))
        }
        "jfs" => {
            let superblock = read::<44>(device, 32 << 10)?;
            Ok(if superblock[40..44] == [0; 4] { Left::Closed } else { Left::OpenLog })
        }
        "hfsplus" => {
            const UNMOUNTED: u32 = 1 << 8;
            const JOURNALED: u32 = 1 << 13;
            let attributes = u32::from_be_bytes(read(device, 1024 + 4)?);
            Ok(match (attributes & UNMOUNTED != 0, attributes & JOURNALED != 0) {
                (true, _) => Left::Closed,
                (false, true) => Left::OpenLog,
                (false, false) => Left::Open,
            })
        }
        "udf" => Ok(open(!udf_is_closed(device)?)),
        _ => Ok(Left::Closed),
    }
}

/// Whether the last record of the volume's integrity says "closed". On the way to it: the anchor in block 256, the volume's
/// description, the place of those records.
fn udf_is_closed(device: &dyn ReadAt) -> Result<bool> {
    const ANCHOR: u16 = 2;
    const VOLUME: u16 = 6;
    const INTEGRITY: u16 = 9;
    /// More blocks than a description or a list of records ever has; UDF asks for 16.
    const BLOCKS_MAX: u64 = 64;
    let tag = |block: &[u8; 512]| u16::from_le_bytes([block[0], block[1]]);
    let u32_at = |block: &[u8; 512], at: usize| {
        u64::from(u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]))
    };
    for block_bytes in [512, 1024, 2048, 4096] {
        // Beyond the end there is nothing of this kind.
        let block = |number: u64| match read::<512>(device, number * block_bytes) {
            Ok(block) => Ok(block),
            Err(Error::Corrupt(_)) => Ok([0; 512]),
            Err(error) => Err(error),
        };
        let anchor = block(256)?;
        // A block number of another size may lie on something else of that kind.
        if tag(&anchor) != ANCHOR || u32_at(&anchor, 12) != 256 {
            continue;
        }
        let (description, length) = (u32_at(&anchor, 20), u32_at(&anchor, 16) / block_bytes);
        for number in description..description + length.min(BLOCKS_MAX) {
            let volume = block(number)?;
            if tag(&volume) != VOLUME {
                continue;
            }
            let (records, length) = (u32_at(&volume, 436), u32_at(&volume, 432) / block_bytes);
            let mut closed = false;
            for number in records..records + length.min(BLOCKS_MAX) {
                let record = block(number)?;
                if tag(&record) != INTEGRITY {
                    break;
                }
                closed = u32_at(&record, 28) == 1;
            }
            return Ok(closed);
        }
    }
    Ok(false)
}

fn read<const N: usize>(device: &dyn ReadAt, at: u64) -> Result<[u8; N]> {
    if at + N as u64 > device.size().0 {
        return Err(Error::corrupt("the device ends within what describes its file system"));
    }
    let mut bytes = [0; N];
    device.read_at(ByteOffset(at), &mut bytes).map_err(|error| Error::Io(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use sendense_block::backend::Memory;
    use sendense_block::{ByteLen, WriteAt};

    fn check(kind: &str, marks: &[(u64, &[u8])], expected: Left) {
        let device = Memory::zeroed(ByteLen(1 << 20));
        for (at, bytes) in marks {
            device.write_at(ByteOffset(*at), bytes).unwrap();
        }
        assert_eq!(left(kind, &device).unwrap(), expected, "{kind} {marks:?}");
    }

    #[test]
    fn each_kind_has_its_mark() {
        check("ext4", &[], Left::Open);
        check("ext4", &[(1024 + 58, &[1])], Left::Closed);
        check("ext4", &[(1024 + 92, &[4])], Left::Closed);
        check("vfat", &[], Left::Closed);
        check("vfat", &[(65, &[1])], Left::Open);
        check("vfat", &[(22, &[9]), (65, &[1])], Left::Closed);
        check("vfat", &[(22, &[9]), (37, &[1])], Left::Open);
        check("jfs", &[], Left::Closed);
        check("jfs", &[((32 << 10) + 40, &[1])], Left::OpenLog);
        check("hfsplus", &[(1024 + 4, &[0, 0, 0x21, 0])], Left::Closed);
        check("hfsplus", &[(1024 + 4, &[0, 0, 0x20, 0])], Left::OpenLog);
        check("hfsplus", &[], Left::Open);
        check("xfs", &[], Left::Closed);
        // Nothing of what UDF writes is there.
        check("udf", &[], Left::Open);
    }

    #[test]
    fn the_last_record_of_a_udf_volume_counts() {
        let anchor =
            [&[2u8, 0][..], &[0; 10], &256u32.to_le_bytes(), &8192u32.to_le_bytes(), &32u32.to_le_bytes()].concat();
        let volume = [&[6u8, 0][..], &[0; 430], &4096u32.to_le_bytes(), &60u32.to_le_bytes()].concat();
        let record = |closed: u8| [&[9u8, 0][..], &[0; 26], &[closed, 0, 0, 0]].concat();
        let base = [(256 * 512, &anchor[..]), (33 * 512, &volume[..])];
        let with = |records: &[(u64, Vec<u8>)], expected| {
            let records = records.iter().map(|(at, bytes)| (at * 512, &bytes[..]));
            check("udf", &base.into_iter().chain(records).collect::<Vec<_>>(), expected);
        };
        with(&[], Left::Open);
        with(&[(60, record(1))], Left::Closed);
        with(&[(60, record(1)), (61, record(0))], Left::Open);
        with(&[(60, record(0)), (61, record(1))], Left::Closed);
        // Behind a gap there is none.
        with(&[(60, record(1)), (62, record(0))], Left::Closed);
    }

    proptest! {
        #[test]
        fn nonsense_has_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..70_000), kind in 0..6usize) {
            let kind = ["ext4", "vfat", "jfs", "hfsplus", "udf", "xfs"][kind];
            let device = Memory::zeroed(ByteLen(bytes.len() as u64));
            device.write_at(ByteOffset(0), &bytes).unwrap();
            prop_assert!(matches!(left(kind, &device), Ok(_) | Err(Error::Corrupt(_))));
        }
    }
}
