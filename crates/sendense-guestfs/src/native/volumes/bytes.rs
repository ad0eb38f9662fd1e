//! Numbers and pieces of what was read from a disk.
//!
//! Invariant: nothing here panics; what lies beyond the end is absent.

use crate::error::{Error, Result};
use sendense_block::{ByteOffset, ReadAt};

/// Reads exactly `len` bytes; none when the device is too short for them.
///
/// # Errors
/// The device cannot be read.
pub fn read(device: &dyn ReadAt, at: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if at.checked_add(len as u64).is_none_or(|end| end > device.size().0) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    device.read_at(ByteOffset(at), &mut bytes).map_err(Error::from)?;
    Ok(Some(bytes))
}

/// A fixed number of bytes at an offset.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// Two bytes, little-endian.
pub fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// Four bytes, little-endian.
pub fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// Eight bytes, little-endian.
pub fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// The reflected CRC-32 that GPT (`seed` all ones, inverted at the end) and LVM (its own seed, not inverted) use.
pub fn crc32(seed: u32, bytes: &[u8]) -> u32 {
    let mut crc = seed;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    crc
}

/// A GUID as GPT stores it: the first three groups little-endian.
pub fn guid(bytes: [u8; 16]) -> String {
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = bytes;
    let first = format!("{:08x}", u32::from_le_bytes([a0, a1, a2, a3]));
    let (second, third) = (u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]));
    let [d0, d1, e @ ..] = rest;
    let tail: String = e.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{first}-{second:04x}-{third:04x}-{d0:02x}{d1:02x}-{tail}")
}

/// A UUID stored in the order in which it is printed.
pub fn uuid(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_ids_are_the_well_known_ones() {
        assert_eq!(!crc32(!0, b"123456789"), 0xCBF4_3926);
        let bytes = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid(bytes), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(uuid(bytes), "28732ac1-1ff8-d211-ba4b-00a0c93ec93b");
        assert_eq!(le32(&[1, 2, 3], 0), None);
        assert_eq!(le16(&[1, 2, 3], usize::MAX), None);
    }
}
