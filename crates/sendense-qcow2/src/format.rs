//! Numbers of the format and the bits of its table entries. No I/O here.
//!
//! Section names refer to QEMU's `docs/interop/qcow2.txt`. Everything on disk is big-endian.

use sendense_block::{ByteLen, ByteOffset};

/// "QFI\xfb" (Header).
pub(crate) const MAGIC: u32 = 0x5146_49fb;

/// Cluster size of everything we write: 64 KiB, QEMU's default and one block.
pub(crate) const CLUSTER_BITS: u32 = 16;
/// [`CLUSTER_BITS`] as a number of bytes.
pub(crate) const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Entries in one of our L2 tables; one table maps 512 MiB.
pub(crate) const TABLE_ENTRIES: u64 = CLUSTER_BYTES / 8;
/// Counts in one of our refcount blocks (16 bits each); one block counts 2 GiB of file.
pub(crate) const REFCOUNTS_PER_BLOCK: u64 = CLUSTER_BYTES / 2;

/// Bytes an L1 table may have; QEMU's limit (`QCOW_MAX_L1_SIZE`), which makes 2 PiB with our clusters.
pub(crate) const L1_BYTES_MAX: u64 = 32 << 20;
/// Longest backing file name (Header, `backing_file_size`).
pub(crate) const NAME_BYTES_MAX: usize = 1023;

/// Incompatible feature bits (Header, bytes 72 to 79).
pub(crate) mod incompatible {
    pub(crate) const DIRTY: u32 = 0;
    pub(crate) const CORRUPT: u32 = 1;
    pub(crate) const DATA_FILE: u32 = 2;
    pub(crate) const COMPRESSION_TYPE: u32 = 3;
    pub(crate) const EXTENDED_L2: u32 = 4;
}

/// Header extension types (Header extensions).
pub(crate) mod extension {
    pub(crate) const END: u32 = 0;
    pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(crate) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(crate) const BITMAPS: u32 = 0x2385_2875;
}

/// Bit 63: the cluster's refcount is exactly one. Never set on compressed clusters.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62: the entry is a compressed cluster descriptor.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor: the cluster reads as zeros.
pub(crate) const ZERO: u64 = 1;
/// Bits 9 to 55: a host offset in an L1 or standard L2 entry.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// A sector: the unit in which compressed lengths are told.
const SECTOR_BYTES: u64 = 512;

/// What an L2 entry says of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Look into the backing file.
    Unallocated,
    /// Zeros, whatever the backing file holds; a host cluster that may be allocated for it is not read.
    Zero,
    /// The cluster as it is.
    Raw(ByteOffset),
    /// Compressed bytes: where they start, and an upper bound of how many there are (whole sectors).
    Compressed(ByteOffset, ByteLen),
}

/// Reads an L2 entry (L2 table entry; Compressed Clusters Descriptor).
pub(crate) fn entry(raw: u64, cluster_bits: u32) -> Entry {
    if raw & COMPRESSED != 0 {
        let offset_bits = compressed_offset_bits(cluster_bits);
        let host = raw & ((1 << offset_bits) - 1);
        let sectors = ((raw & (COMPRESSED - 1)) >> offset_bits) + 1;
        return Entry::Compressed(ByteOffset(host), ByteLen(sectors * SECTOR_BYTES - host % SECTOR_BYTES));
    }
    match raw & OFFSET_MASK {
        _ if raw & ZERO != 0 => Entry::Zero,
        0 => Entry::Unallocated,
        host => Entry::Raw(ByteOffset(host)),
    }
}

/// The entry of a raw cluster with refcount one.
pub(crate) const fn raw_entry(host: ByteOffset) -> u64 {
    host.0 | COPIED
}

/// The entry of a compressed cluster of one of our images: `bytes` is its true length, at least 1, below a cluster.
pub(crate) const fn compressed_entry(host: ByteOffset, bytes: u64) -> u64 {
    let further_sectors = (host.0 + bytes - 1) / SECTOR_BYTES - host.0 / SECTOR_BYTES;
    COMPRESSED | (further_sectors << compressed_offset_bits(CLUSTER_BITS)) | host.0
}

const fn compressed_offset_bits(cluster_bits: u32) -> u32 {
    62 - (cluster_bits - 8)
}

/// A big-endian number in `bytes`, which the caller has sized.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// As [`be16`].
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// As [`be16`].
pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn compressed_entries_cover_their_bytes(host in 0u64..1 << 50, bytes in 1u64..CLUSTER_BYTES) {
            let Entry::Compressed(at, bound) = entry(compressed_entry(ByteOffset(host), bytes), CLUSTER_BITS) else {
                panic!("not compressed");
            };
            prop_assert_eq!(at.0, host);
            // The bound reaches to the end of the last byte's sector, and not beyond.
            prop_assert_eq!((host + bound.0) % 512, 0);
            prop_assert!(bound.0 >= bytes && bound.0 < bytes + 512);
        }
    }

    #[test]
    fn entries_of_every_sort() {
        assert_eq!(entry(0, 16), Entry::Unallocated);
        assert_eq!(entry(COPIED, 16), Entry::Unallocated);
        assert_eq!(entry(ZERO, 16), Entry::Zero);
        assert_eq!(entry(raw_entry(ByteOffset(0x50000)) | ZERO, 16), Entry::Zero);
        assert_eq!(entry(raw_entry(ByteOffset(0x50000)), 16), Entry::Raw(ByteOffset(0x50000)));
        // The largest descriptor that 512-byte clusters allow: one further sector bit.
        assert_eq!(entry(COMPRESSED | 1 << 61, 9), Entry::Compressed(ByteOffset(0), ByteLen(1024)));
    }
}
