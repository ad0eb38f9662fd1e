//! Small files, folders and links that lie in their inode (feature inline_data).
//!
//! The first 60 bytes stand where others have their map; the rest is the extended attribute `system.data` behind the inode's
//! fields. Checksums of the inode cover both.
//!
//! Invariant: nothing outside the inode's own bytes is read.

use super::Inode;
use crate::error::{Error, Result};
use crate::native::FileRead;
use crate::native::fs::bytes::{le16, le32, slice, u8_at};
use std::ops::Range;

/// What begins the attributes inside an inode.
const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
/// The name class `system.` of an attribute.
const CLASS_SYSTEM: u8 = 7;
/// The fixed part of an attribute's entry.
const ENTRY_BYTES: usize = 16;
/// Where an inode's further fields begin, which say their own length.
const EXTRA_AT: usize = 0x80;
/// The parent's number, with which a folder begins in place of `.` and `..`.
pub(super) const PARENT_BYTES: usize = 4;

/// What lies in an inode: its first part, and the whole.
pub(super) struct Inline {
    /// Both parts, one behind the other.
    pub bytes: Vec<u8>,
    /// The length of the first; entries of a folder do not go over it.
    pub first: usize,
}

/// The content of an inode that has it inside.
pub(super) fn read(inode: &Inode) -> Result<Inline> {
    let rest = attribute(&inode.body)?
        .ok_or_else(|| Error::corrupt(format!("inode {} without its inline data", inode.number)))?;
    Ok(Inline { bytes: [&inode.block, rest].concat(), first: inode.block.len() })
}

/// The value of `system.data` among the attributes of an inode.
fn attribute(body: &[u8]) -> Result<Option<&[u8]>> {
    let extra = usize::from(le16(body, EXTRA_AT)?);
    let at = EXTRA_AT + extra;
    if le32(body, at)? != ATTRIBUTES_MAGIC {
        return Ok(None);
    }
    let attributes = body.get(at + 4..).unwrap_or_default();
    let mut at = 0;
    // Four bytes of zeros end the entries; each entry takes at least sixteen, so that this ends with the inode.
    while at + 4 <= attributes.len() && le32(attributes, at)? != 0 {
        let name_len = usize::from(u8_at(attributes, at)?);
        let name = slice(attributes, at + ENTRY_BYTES, name_len)?;
        if u8_at(attributes, at + 1)? == CLASS_SYSTEM && name == b"data" {
            if le32(attributes, at + 4)? != 0 {
                return Err(Error::corrupt("inline data in another inode"));
            }
            let (offset, len) = (usize::from(le16(attributes, at + 2)?), le32(attributes, at + 8)? as usize);
            return slice(attributes, offset, len).map(Some);
        }
        at += (ENTRY_BYTES + name_len).next_multiple_of(4);
    }
    Ok(None)
}

/// A file that lies in its inode. Cut longer than that, it goes on with zeros.
pub(super) struct InlineFile {
    bytes: Vec<u8>,
    size: u64,
}

impl InlineFile {
    pub(super) fn open(inode: &Inode) -> Result<InlineFile> {
        let mut bytes = read(inode)?.bytes;
        bytes.truncate(usize::try_from(inode.size).unwrap_or(usize::MAX));
        Ok(InlineFile { bytes, size: inode.size })
    }
}

impl FileRead for InlineFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let len = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let rest = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..)).unwrap_or_default();
        let held = rest.len().min(len);
        let (data, zeros) = buf[..len].split_at_mut(held);
        data.copy_from_slice(&rest[..held]);
        zeros.fill(0);
        Ok(len)
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        let end = self.bytes.len() as u64;
        Ok((offset < end).then_some(offset..end))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nonsense_has_an_answer(mut body in proptest::collection::vec(any::<u8>(), 0..512), extra in 0..64_u16, sound in any::<bool>()) {
            if sound && body.len() > 0x100 {
                body[0x80..0x82].copy_from_slice(&extra.to_le_bytes());
                let at = 0x80 + usize::from(extra);
                body[at..at + 4].copy_from_slice(&ATTRIBUTES_MAGIC.to_le_bytes());
                body[at + 4..at + 6].copy_from_slice(&[4, CLASS_SYSTEM]);
                body[at + 20..at + 24].copy_from_slice(b"data");
            }
            let _ = attribute(&body);
        }
    }

    #[test]
    fn what_was_cut_longer_goes_on_with_zeros() {
        let mut file = InlineFile { bytes: b"tiny".to_vec(), size: 6 };
        let mut buf = [1; 8];
        assert_eq!((file.read_at(1, &mut buf).unwrap(), &buf[..]), (5, &b"iny\0\0\x01\x01\x01"[..]));
        assert_eq!((file.read_at(6, &mut buf).unwrap(), file.read_at(u64::MAX, &mut buf).unwrap()), (0, 0));
        assert_eq!((file.next_data(1).unwrap(), file.next_data(4).unwrap()), (Some(1..4), None));
    }
}
