//! File systems that these readers know by name only, so that a volume says what it is, and an appliance is started for those
//! that it reads and for no others.
//!
//! Invariant: a name is given for a mark at its place, never for the want of another.

use super::read_start;
use crate::error::Result;
use sendense_block::ReadAt;

/// A mark, where it lies, and whose it is.
struct Mark {
    at: u64,
    bytes: &'static [u8],
    kind: &'static str,
}

const fn mark(kind: &'static str, at: u64, bytes: &'static [u8]) -> Mark {
    Mark { at, bytes, kind }
}

/// As `blkid` names them.
const MARKS: &[Mark] = &[
    mark("squashfs", 0, b"hsqs"),
    mark("BitLocker", 3, b"-FVE-FS-"),
    mark("exfat", 3, b"EXFAT   "),
    mark("ReFS", 3, b"ReFS\0\0\0\0"),
    mark("apfs", 32, b"NXSB"),
    mark("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    mark("hfsplus", 1024, b"H+\0\x04"),
    mark("hfsplus", 1024, b"HX\0\x05"),
    // Version 2, the only one that any kernel reads.
    mark("nilfs2", 1024, &[2, 0, 0, 0, 0, 0, 0x34, 0x34]),
    mark(
        "bcachefs",
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81],
    ),
    mark("jfs", 32 << 10, b"JFS1"),
    mark("udf", 32 << 10, b"\0BEA01\x01"),
    mark("reiserfs", (64 << 10) + 52, b"ReIsErFs"),
    mark("reiserfs", (64 << 10) + 52, b"ReIsEr2Fs"),
    mark("reiserfs", (64 << 10) + 52, b"ReIsEr3Fs"),
];

/// What the device holds; none when it is nothing that is known even by name.
///
/// # Errors
/// [`crate::Error::Io`] when the device cannot be read.
pub fn name(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    for mark in MARKS {
        if read_start(device, mark.at, mark.bytes.len())?.is_some_and(|bytes| bytes == mark.bytes) {
            return Ok(Some(mark.kind));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sendense_block::backend::Memory;
    use sendense_block::{ByteLen, ByteOffset, WriteAt};

    #[test]
    fn marks_are_found_at_their_place_alone() {
        for mark in MARKS {
            let device = Memory::zeroed(ByteLen(128 << 10));
            device.write_at(ByteOffset(mark.at), mark.bytes).unwrap();
            assert_eq!(name(&device).unwrap(), Some(mark.kind));
            let device = Memory::zeroed(ByteLen(128 << 10));
            device.write_at(ByteOffset(mark.at + 1), mark.bytes).unwrap();
            assert_eq!(name(&device).unwrap(), None, "{}", mark.kind);
        }
        assert_eq!(name(&Memory::zeroed(ByteLen(512))).unwrap(), None);
    }
}
