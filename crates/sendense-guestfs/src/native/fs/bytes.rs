//! Numbers out of bytes. A field beyond the end of a structure is damage, never a panic.

use crate::error::{Error, Result};

/// The `N` bytes at `at`.
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .ok_or_else(|| Error::corrupt("a structure ends before one of its fields"))
}

/// `len` bytes at `at`.
pub fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8]> {
    bytes
        .get(at..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| Error::corrupt("a structure ends before its contents"))
}

/// One byte.
pub fn u8_at(bytes: &[u8], at: usize) -> Result<u8> {
    Ok(array::<1>(bytes, at)?[0])
}

macro_rules! number {
    ($($name:ident, $type:ty, $from:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        pub fn $name(bytes: &[u8], at: usize) -> Result<$type> {
            Ok(<$type>::$from(array(bytes, at)?))
        }
    )*};
}

number! {
    le16, u16, from_le_bytes, "Little-endian, 16 bits.";
    le32, u32, from_le_bytes, "Little-endian, 32 bits.";
    le64, u64, from_le_bytes, "Little-endian, 64 bits.";
    be16, u16, from_be_bytes, "Big-endian, 16 bits.";
    be32, u32, from_be_bytes, "Big-endian, 32 bits.";
    be64, u64, from_be_bytes, "Big-endian, 64 bits.";
}

/// 16 bytes as UUIDs are printed.
pub fn uuid_text(bytes: &[u8; 16]) -> Option<String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

/// A padded label as text; none when nothing is left of it.
pub fn label_text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

/// UTF-16 as UTF-8. A lone surrogate, which Windows allows in names, becomes its three-byte form (WTF-8), so that every
/// name has its own bytes.
pub fn wtf8(units: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in char::decode_utf16(units) {
        match item {
            Ok(character) => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(lone) => {
                let unit = lone.unpaired_surrogate();
                bytes.extend_from_slice(&[
                    0xe0 | (unit >> 12) as u8,
                    0x80 | (unit >> 6 & 0x3f) as u8,
                    0x80 | (unit & 0x3f) as u8,
                ]);
            }
        }
    }
    bytes
}

/// The UTF-16 units of little-endian bytes.
pub fn utf16_le(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields_beyond_the_end_are_damage() {
        assert_eq!(be16(&[1, 2], 0).unwrap(), 0x0102);
        assert!(le32(&[0; 5], 2).is_err());
        assert!(le64(&[0; 8], usize::MAX).is_err());
        assert!(slice(&[0; 8], 4, usize::MAX).is_err());
    }

    #[test]
    fn lone_surrogates_keep_distinct_names() {
        assert_eq!(wtf8([0x61, 0xd83d, 0xde00]), "a😀".as_bytes());
        assert_eq!(wtf8([0xd83d]), [0xed, 0xa0, 0xbd]);
        assert_ne!(wtf8([0xd83d]), wtf8([0xd83e]));
    }
}
