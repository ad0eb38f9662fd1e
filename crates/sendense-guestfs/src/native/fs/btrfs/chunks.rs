//! Where btrfs's logical addresses lie on the one device: the chunk map.

use super::kind;
use super::tree::Key;
use crate::error::{Error, Result};
use crate::native::fs::bytes::{le16, le64};

/// Chunks kept: 3 MiB of them, and 64 TiB of data in chunks of 1 GiB.
const CHUNKS_MAX: usize = 64 * 1024;
/// RAID0, RAID10, RAID5 and RAID6, which spread a chunk over stripes.
const SPREAD: u64 = 0x8 | 0x40 | 0x80 | 0x100;
const STRIPES_MAX: usize = 2;

#[derive(Debug, Clone, Copy)]
struct Chunk {
    logical: u64,
    len: u64,
    /// One place, or two with the DUP profile; none on this device when it is spread.
    places: [Option<u64>; STRIPES_MAX],
}

/// The chunk map, sorted by logical address.
pub(super) struct Chunks {
    chunks: Vec<Chunk>,
    device: u64,
}

impl Chunks {
    /// The chunks that the superblock names, which hold the tree of all chunks.
    pub(super) fn bootstrap(array: &[u8], device: u64) -> Result<Chunks> {
        let mut chunks = Chunks { chunks: Vec::new(), device };
        let mut at = 0;
        while at < array.len() {
            let key = Key::read(array, at)?;
            let item = array.get(at + 17..).unwrap_or_default();
            if key.kind != kind::CHUNK {
                return Err(Error::corrupt("btrfs superblock names something else than chunks"));
            }
            chunks.add(key.offset, item)?;
            at += 17 + 48 + 32 * usize::from(le16(item, 44)?);
        }
        Ok(chunks)
    }

    pub(super) fn add(&mut self, logical: u64, item: &[u8]) -> Result<()> {
        let (len, profile, stripes) = (le64(item, 0)?, le64(item, 24)?, usize::from(le16(item, 44)?));
        let mut places = [None; STRIPES_MAX];
        if profile & SPREAD == 0 || stripes == 1 {
            for (stripe, place) in places.iter_mut().enumerate().take(stripes) {
                let at = 48 + stripe * 32;
                if le64(item, at)? == self.device {
                    *place = Some(le64(item, at + 8)?);
                }
            }
        }
        let index = self.chunks.partition_point(|chunk| chunk.logical < logical);
        let chunk = Chunk { logical, len, places };
        if let Some(known) = self.chunks.get_mut(index).filter(|known| known.logical == logical) {
            *known = chunk;
        } else if self.chunks.len() < CHUNKS_MAX {
            self.chunks.insert(index, chunk);
        } else {
            return Err(Error::unsupported("btrfs in too many chunks"));
        }
        Ok(())
    }

    /// The device offset of copy `copy` of a logical address, and how many bytes lie there in one piece; none when there is
    /// no such copy.
    pub(super) fn locate(&self, logical: u64, copy: usize) -> Result<Option<(u64, u64)>> {
        let index = self.chunks.partition_point(|chunk| chunk.logical <= logical);
        let chunk = index.checked_sub(1).and_then(|index| self.chunks.get(index));
        let chunk = chunk.filter(|chunk| logical - chunk.logical < chunk.len);
        let chunk = chunk.ok_or_else(|| Error::corrupt(format!("btrfs address {logical} lies in no chunk")))?;
        let within = logical - chunk.logical;
        if chunk.places.iter().all(Option::is_none) {
            return Err(Error::unsupported("btrfs chunk that is spread over devices"));
        }
        let place = chunk.places.iter().flatten().nth(copy);
        let beyond = || Error::corrupt("a btrfs chunk lies beyond the device");
        place.map(|place| Ok((place.checked_add(within).ok_or_else(beyond)?, chunk.len - within))).transpose()
    }
}
