//! NTFS files whose bytes do not simply lie on the device: those inside their record, and those compressed with LZNT1.

use super::{Inode, Ntfs};
use crate::error::{Error, Result};
use crate::native::FileRead;
use crate::native::fs::bytes::le16;
use std::ops::Range;
use std::sync::Arc;

/// The largest unit that is compressed together: Windows uses 64 KiB.
const UNIT_BYTES_MAX: u64 = 1 << 20;
/// Each chunk of a compressed unit unpacks to this.
const CHUNK_BYTES: usize = 4096;

/// A small file.
pub(super) struct Resident(pub(super) Inode);

impl FileRead for Resident {
    fn size(&self) -> u64 {
        self.0.0.data.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let bytes = self.0.0.data.resident.as_deref().unwrap_or_default();
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// A compressed file.
pub(super) struct Compressed {
    volume: Arc<Ntfs>,
    inode: Inode,
    unit_bytes: u64,
    /// The last unit that was unpacked.
    unit: Option<(u64, Vec<u8>)>,
}

impl Compressed {
    pub(super) fn open(volume: Arc<Ntfs>, inode: Inode) -> Result<Compressed> {
        let unit_bytes = volume.cluster_bytes.checked_shl(inode.0.data.unit_log.into()).unwrap_or(0);
        if inode.0.data.unit_log == 0 || !(CHUNK_BYTES as u64..=UNIT_BYTES_MAX).contains(&unit_bytes) {
            return Err(Error::unsupported(format!("NTFS compression in units of {unit_bytes} bytes")));
        }
        Ok(Compressed { volume, inode, unit_bytes, unit: None })
    }

    /// A unit is stored whole when all its clusters are there, is zero when none is, and else is compressed into those that
    /// are.
    fn load(&mut self, number: u64) -> Result<()> {
        if self.unit.as_ref().is_some_and(|(loaded, _)| *loaded == number) {
            return Ok(());
        }
        let (start, end) = (number * self.unit_bytes, (number + 1) * self.unit_bytes);
        let map = self.volume.map_stream(&self.inode.0.data, start, usize::MAX, end)?;
        let mut stored = Vec::new();
        for segment in map.segments {
            let (from, to) = (segment.start.max(start), (segment.start + segment.len).min(end));
            if from < to {
                let at = stored.len();
                stored.resize(at + (to - from) as usize, 0);
                self.volume.device.read(segment.at + (from - segment.start), &mut stored[at..])?;
            }
        }
        let mut unit = match stored.len() as u64 {
            0 => vec![0; self.unit_bytes as usize],
            len if len >= self.unit_bytes => stored,
            _ => unpack(&stored, self.unit_bytes as usize)?,
        };
        let written = self.inode.0.data.initialised.saturating_sub(start).min(self.unit_bytes) as usize;
        unit[written..].fill(0);
        self.unit = Some((number, unit));
        Ok(())
    }
}

impl FileRead for Compressed {
    fn size(&self) -> u64 {
        self.inode.0.data.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let wanted = self.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            self.load(at / self.unit_bytes)?;
            let within = (at % self.unit_bytes) as usize;
            let unit = self.unit.as_ref().map(|(_, unit)| &unit[within..]).unwrap_or_default();
            let len = unit.len().min(wanted - done);
            buf[done..done + len].copy_from_slice(&unit[..len]);
            done += len;
        }
        Ok(wanted)
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.size();
        if offset >= size {
            return Ok(None);
        }
        let start = offset / self.unit_bytes * self.unit_bytes;
        let map = self.volume.map_stream(&self.inode.0.data, start, 1, u64::MAX)?;
        let next = map.segments.iter().find(|segment| segment.start + segment.len > start);
        Ok(match next {
            // The unit that the segment lies in.
            Some(segment) => {
                let unit = segment.start.max(start) / self.unit_bytes * self.unit_bytes;
                let range = unit.max(offset)..unit.saturating_add(self.unit_bytes).min(size);
                (!range.is_empty()).then_some(range)
            }
            None => (map.until < size).then_some(map.until..size),
        })
    }
}

/// Unpacks LZNT1. What is missing at the end is zeros.
fn unpack(packed: &[u8], len: usize) -> Result<Vec<u8>> {
    let damaged = || Error::corrupt("an NTFS file is wrongly compressed");
    let mut unpacked = Vec::with_capacity(len);
    let mut at = 0;
    while unpacked.len() < len && at + 2 <= packed.len() {
        let header = le16(packed, at)?;
        if header == 0 {
            break;
        }
        let size = usize::from(header & 0xfff) + 1;
        let chunk = packed.get(at + 2..at + 2 + size).ok_or_else(damaged)?;
        at += 2 + size;
        let begin = unpacked.len();
        if header & 0x8000 == 0 {
            unpacked.extend_from_slice(chunk);
        } else {
            unpack_chunk(chunk, &mut unpacked).ok_or_else(damaged)?;
        }
        // Each chunk stands for as much, even when zeros at its end were left out.
        unpacked.resize(begin + CHUNK_BYTES, 0);
    }
    unpacked.resize(len, 0);
    Ok(unpacked)
}

/// One chunk: groups of eight items, each a byte or a reference to what came before in the chunk.
fn unpack_chunk(chunk: &[u8], into: &mut Vec<u8>) -> Option<()> {
    let begin = into.len();
    let mut items = chunk.iter().copied();
    while let Some(flags) = items.next() {
        for bit in 0..8 {
            let Some(first) = items.next() else { return Some(()) };
            if flags >> bit & 1 == 0 {
                into.push(first);
            } else {
                let token = u16::from_le_bytes([first, items.next()?]);
                let position = into.len() - begin;
                // The further in the chunk, the more bits reach back and the fewer count.
                let mut length_bits = 12;
                let mut reach = position.checked_sub(1)?;
                while reach >= 0x10 {
                    reach >>= 1;
                    length_bits -= 1;
                }
                let back = usize::from(token >> length_bits) + 1;
                let count = usize::from(token & ((1 << length_bits) - 1)) + 3;
                let from = into.len().checked_sub(back).filter(|from| *from >= begin)?;
                // What is copied may be what was just copied.
                for from in from..from + count {
                    into.push(into[from]);
                }
            }
            if into.len() - begin > CHUNK_BYTES {
                return None;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unpacks_the_published_example() {
        let packed = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2, 0x47, 0x01, 0xa0, 0x45,
            0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0, 0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4,
            0x02, 0x4a, 0x44, 0xef, 0x03, 0x58, 0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00,
            0x04, 0x01, 0x18, 0x90, 0x00,
        ];
        let text = "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# \
                    E D E A F# F# G A A G F# E D D E F# E D D\0";
        assert_eq!(unpack(&packed, 4096).unwrap()[..text.len()], *text.as_bytes());
    }

    proptest! {
        #[test]
        fn any_bytes_unpack_or_are_refused(packed in prop::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(bytes) = unpack(&packed, 65536) {
                prop_assert_eq!(bytes.len(), 65536);
            }
        }
    }
}
