//! NTFS file records, their attributes, and the runs that say where an attribute's value lies.

use crate::error::{Error, Result};
use crate::native::fs::bytes::{le16, le32, le64, slice, u8_at};

/// Attribute kinds.
pub(super) mod kind {
    pub const STANDARD_INFORMATION: u32 = 0x10;
    pub const ATTRIBUTE_LIST: u32 = 0x20;
    pub const FILE_NAME: u32 = 0x30;
    pub const VOLUME_NAME: u32 = 0x60;
    pub const VOLUME_INFORMATION: u32 = 0x70;
    pub const DATA: u32 = 0x80;
    pub const INDEX_ROOT: u32 = 0x90;
    pub const INDEX_ALLOCATION: u32 = 0xa0;
    pub const BITMAP: u32 = 0xb0;
    pub const REPARSE_POINT: u32 = 0xc0;
}

const END: u32 = 0xffff_ffff;

/// A file record, put right.
pub(super) struct Record {
    pub(super) number: u64,
    bytes: Vec<u8>,
}

/// One attribute of a record.
pub(super) struct Attribute<'r> {
    pub(super) kind: u32,
    /// UTF-16, as it lies there.
    pub(super) name: &'r [u8],
    pub(super) flags: u16,
    /// The first cluster of the value that this part describes.
    pub(super) first_cluster: u64,
    pub(super) body: Body<'r>,
}

/// An attribute's value.
pub(super) enum Body<'r> {
    /// In the record.
    Resident(&'r [u8]),
    /// On the device.
    Runs { runs: &'r [u8], data: u64, initialised: u64, unit_log: u8 },
}

/// A run of clusters; sparse without a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) cluster: Option<u64>,
}

/// Puts back the last two bytes of each sector, which hold a number that proves that all sectors were written.
pub(super) fn fix_up(bytes: &mut [u8], sector_bytes: usize) -> Result<()> {
    let (at, count) = (usize::from(le16(bytes, 4)?), usize::from(le16(bytes, 6)?));
    let fixes = slice(bytes, at, count * 2)?.to_vec();
    let torn = || Error::corrupt("an NTFS record was not wholly written");
    // The first is the number, then one for each sector.
    if count != bytes.len() / sector_bytes + 1 {
        return Err(torn());
    }
    let (number, originals) = fixes.split_at(2);
    for (sector, original) in bytes.chunks_exact_mut(sector_bytes).zip(originals.chunks_exact(2)) {
        let end = &mut sector[sector_bytes - 2..];
        if end != number {
            return Err(torn());
        }
        end.copy_from_slice(original);
    }
    Ok(())
}

impl Record {
    pub(super) fn parse(mut bytes: Vec<u8>, number: u64) -> Result<Record> {
        if !bytes.starts_with(b"FILE") {
            return Err(Error::corrupt(format!("NTFS file record {number} is none")));
        }
        fix_up(&mut bytes, 512)?;
        Ok(Record { number, bytes })
    }

    pub(super) fn sequence(&self) -> Result<u16> {
        le16(&self.bytes, 16)
    }

    pub(super) fn in_use(&self) -> Result<bool> {
        Ok(le16(&self.bytes, 22)? & 1 != 0)
    }

    pub(super) fn is_folder(&self) -> Result<bool> {
        Ok(le16(&self.bytes, 22)? & 2 != 0)
    }

    /// The record that this one extends; zero for none.
    pub(super) fn base(&self) -> Result<u64> {
        le64(&self.bytes, 32)
    }

    /// Its attributes, until the end mark or the first damage.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Result<Attribute<'_>>> {
        let mut at = le16(&self.bytes, 20).map(usize::from);
        std::iter::from_fn(move || {
            let here = match &at {
                Ok(here) => *here,
                Err(_) => return None,
            };
            match self.attribute(here) {
                Ok(None) => {
                    at = Err(Error::NotFound);
                    None
                }
                Ok(Some((attribute, next))) => {
                    at = Ok(next);
                    Some(Ok(attribute))
                }
                Err(error) => {
                    at = Err(Error::NotFound);
                    Some(Err(error))
                }
            }
        })
    }

    fn attribute(&self, at: usize) -> Result<Option<(Attribute<'_>, usize)>> {
        let kind = le32(&self.bytes, at)?;
        if kind == END {
            return Ok(None);
        }
        let len = le32(&self.bytes, at + 4)? as usize;
        let bytes = slice(&self.bytes, at, len)?;
        // A length of zero would stay here for ever.
        if len < 24 {
            return Err(Error::corrupt(format!("NTFS file record {} has a short attribute", self.number)));
        }
        let name = slice(bytes, le16(bytes, 10)?.into(), usize::from(u8_at(bytes, 9)?) * 2)?;
        let (first_cluster, body) = if u8_at(bytes, 8)? == 0 {
            (0, Body::Resident(slice(bytes, le16(bytes, 20)?.into(), le32(bytes, 16)? as usize)?))
        } else {
            let first = le64(bytes, 16)?;
            let runs = bytes.get(usize::from(le16(bytes, 32)?)..).unwrap_or_default();
            // Only the first part says how long the value is.
            let (data, initialised) = if first == 0 { (le64(bytes, 48)?, le64(bytes, 56)?) } else { (0, 0) };
            (first, Body::Runs { runs, data, initialised, unit_log: u8_at(bytes, 34)? })
        };
        let attribute = Attribute { kind, name, flags: le16(bytes, 12)?, first_cluster, body };
        Ok(Some((attribute, at + len)))
    }

    /// The attribute, or the part of it, that begins with a cluster.
    pub(super) fn find(&self, kind: u32, name: &[u8], first_cluster: u64) -> Result<Option<Attribute<'_>>> {
        for attribute in self.attributes() {
            let attribute = attribute?;
            if (attribute.kind, attribute.name, attribute.first_cluster) == (kind, name, first_cluster) {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }
}

impl Run {
    /// The runs of a part that begins with cluster `first`. There are at most as many as half the bytes.
    pub(super) fn decode(bytes: &[u8], first: u64) -> Result<Vec<Run>> {
        let damaged = || Error::corrupt("NTFS runs contradict themselves");
        let (mut runs, mut at, mut first, mut cluster) = (Vec::new(), 0, first, 0_i64);
        while let Some(header) = bytes.get(at).copied().filter(|header| *header != 0) {
            let (count_bytes, offset_bytes) = (usize::from(header & 0xf), usize::from(header >> 4));
            if count_bytes == 0 || count_bytes > 8 || offset_bytes > 8 {
                return Err(damaged());
            }
            let count = signed(slice(bytes, at + 1, count_bytes)?);
            let count = u64::try_from(count).ok().filter(|count| *count > 0).ok_or_else(damaged)?;
            let place = if offset_bytes == 0 {
                None
            } else {
                let offset = signed(slice(bytes, at + 1 + count_bytes, offset_bytes)?);
                cluster = cluster.checked_add(offset).ok_or_else(damaged)?;
                Some(u64::try_from(cluster).map_err(|_| damaged())?)
            };
            runs.push(Run { first, count, cluster: place });
            first = first.checked_add(count).ok_or_else(damaged)?;
            at += 1 + count_bytes + offset_bytes;
        }
        Ok(runs)
    }
}

/// A little-endian number of up to eight bytes with its sign.
fn signed(bytes: &[u8]) -> i64 {
    let mut wide = [if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn runs_go_forth_and_back_and_have_holes() {
        let runs = Run::decode(&[0x21, 0x18, 0x34, 0x56, 0x01, 0x10, 0x11, 0x02, 0xf0, 0x00, 0xff], 4).unwrap();
        let run = |first, count, cluster| Run { first, count, cluster };
        assert_eq!(runs, [run(4, 24, Some(0x5634)), run(28, 16, None), run(44, 2, Some(0x5624))]);
        assert!(Run::decode(&[0x11, 0x01, 0x80], 0).is_err(), "before the device");
        assert!(Run::decode(&[0x11, 0x00, 0x01], 0).is_err(), "an empty run");
        assert!(Run::decode(&[0x21, 0x01], 0).is_err(), "cut off");
    }
}
