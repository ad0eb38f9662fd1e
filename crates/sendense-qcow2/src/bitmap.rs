//! Persistent dirty bitmaps (Bitmaps extension): which parts of a disk were written since a checkpoint.
//!
//! Invariant: a bitmap that QEMU did not close properly is listed as inconsistent and never answers: a bit missing in it
//! would be a silent gap in a backup.

use crate::format::{be16, be32, be64};
use crate::image::Image;
use sendense_block::device::check_range;
use sendense_block::{ByteLen, ByteOffset, ChangeMap, Error, Extent, ExtentSet, Kind, Result};
use std::sync::Arc;

/// Longest directory: 1,000 bitmaps with the longest names. libvirt keeps one per checkpoint.
const DIRECTORY_BYTES_MAX: u64 = 1 << 20;
/// Fixed part of a directory entry.
const ENTRY_BYTES: usize = 24;
/// Bitmap table entry, bits 9 to 55.
const TABLE_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 0 of a table entry without an offset: the whole cluster of the bitmap is ones.
const ALL_ONES: u64 = 1;

/// Whether a bitmap can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was stored completely.
    Consistent,
    /// It was in use when QEMU last had the image open, or somebody who knows no bitmaps has written since.
    Inconsistent,
    /// Of a type or with extra data that we do not know.
    Unknown,
}

/// A bitmap in an image's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name, unique in the image.
    pub name: String,
    /// How many bytes of the disk a bit stands for, a power of two.
    pub granularity: ByteLen,
    /// QEMU records into it whenever the image is open for writing.
    pub auto: bool,
    /// Whether it can be believed.
    pub state: State,
    table: ByteOffset,
    table_entries: u32,
}

impl Image {
    /// The bitmaps in the image, inconsistent ones too.
    pub fn bitmaps(&self) -> Result<Vec<Bitmap>> {
        let Some(directory) = self.header().bitmaps else { return Ok(Vec::new()) };
        if directory.bytes > DIRECTORY_BYTES_MAX {
            return Err(Error::new(Kind::Unsupported, format!("a bitmap directory of {} bytes", directory.bytes)));
        }
        let mut bytes = vec![0; directory.bytes as usize];
        check_range("image", self.file().size(), directory.at, bytes.len())
            .map_err(|_| corrupt("the directory passes the end of the file").at(directory.at))?;
        self.file().read_at(directory.at, &mut bytes)?;
        let (mut bitmaps, mut rest) = (Vec::new(), bytes.as_slice());
        // Each turn takes at least 24 bytes, so a count that lies ends with the directory.
        for _ in 0..directory.count {
            let (bitmap, entry_bytes) = parse_entry(rest, directory.valid)
                .ok_or_else(|| corrupt("a directory entry is broken").at(directory.at))?;
            bitmaps.push(bitmap);
            rest = rest.get(entry_bytes..).unwrap_or_default();
        }
        Ok(bitmaps)
    }

    /// The bytes of `within` that the bitmap says were written. `bitmap` is one of this image's.
    pub fn dirty(&self, bitmap: &Bitmap, within: Extent) -> Result<ExtentSet> {
        check_range("disk", self.size(), within.start(), usize::try_from(within.len().0).unwrap_or(usize::MAX))?;
        match bitmap.state {
            State::Consistent => {}
            State::Inconsistent => return Err(corrupt(format!("bitmap {:?} is inconsistent", bitmap.name))),
            State::Unknown => {
                return Err(Error::new(Kind::Unsupported, format!("bitmap {:?} is of an unknown type", bitmap.name)));
            }
        }
        // One cluster of the bitmap at a time: 64 KiB of it tell of 32 GiB of disk with the usual granularity.
        let cluster_bytes = self.cluster_bytes().0;
        let span = cluster_bytes * 8 * bitmap.granularity.0;
        let mut dirty = ExtentSet::new();
        for piece in within.pieces(ByteLen(span)) {
            let number = piece.start().0 / span;
            let entry = self.bitmap_table_entry(bitmap, number)?;
            match entry & TABLE_OFFSET_MASK {
                0 if entry & ALL_ONES != 0 => dirty.insert(piece),
                0 => {}
                at => self.dirty_in_cluster(bitmap, number * span, ByteOffset(at), piece, &mut dirty)?,
            }
        }
        Ok(dirty)
    }

    fn bitmap_table_entry(&self, bitmap: &Bitmap, number: u64) -> Result<u64> {
        let at = bitmap.table.0.checked_add(number * 8).filter(|_| number < u64::from(bitmap.table_entries));
        let at = ByteOffset(at.ok_or_else(|| corrupt(format!("the table of bitmap {:?} is too short", bitmap.name)))?);
        let mut entry = [0; 8];
        check_range("image", self.file().size(), at, entry.len())
            .map_err(|_| corrupt("a bitmap table passes the end of the file").at(at))?;
        self.file().read_at(at, &mut entry)?;
        Ok(u64::from_be_bytes(entry))
    }

    /// The bits of one cluster of the bitmap, which begins with the disk's byte `base`, as far as `piece` needs them.
    fn dirty_in_cluster(
        &self,
        bitmap: &Bitmap,
        base: u64,
        cluster: ByteOffset,
        piece: Extent,
        dirty: &mut ExtentSet,
    ) -> Result<()> {
        let granularity = bitmap.granularity.0;
        let first_bit = (piece.start().0 - base) / granularity;
        let end_bit = (piece.end().0 - base).div_ceil(granularity);
        let first_byte = first_bit / 8;
        let mut bytes = vec![0; (end_bit.div_ceil(8) - first_byte) as usize];
        let at = ByteOffset(cluster.0 + first_byte);
        if !cluster.0.is_multiple_of(self.cluster_bytes().0) || cluster.0 >= self.file().size().0 {
            return Err(corrupt(format!("bitmap {:?} points to no cluster", bitmap.name)).at(cluster));
        }
        // The file may end inside of its last cluster; the rest reads as zeros.
        let there = self.file().size().0.saturating_sub(at.0).min(bytes.len() as u64) as usize;
        if there > 0 {
            self.file().read_at(at, &mut bytes[..there])?;
        }
        for bit in first_bit..end_bit {
            // Least significant bit first (Bitmap data).
            if bytes[(bit / 8 - first_byte) as usize] & 1 << (bit % 8) != 0 {
                let start = base + bit * granularity;
                dirty.insert(Extent::between(ByteOffset(start), ByteOffset(start + granularity)).intersect(piece));
            }
        }
        Ok(())
    }
}

/// A directory entry and its length (Bitmap directory).
fn parse_entry(bytes: &[u8], valid: bool) -> Option<(Bitmap, usize)> {
    let table = ByteOffset(be64(bytes, 0)?);
    let table_entries = be32(bytes, 8)?;
    let flags = be32(bytes, 12)?;
    let (kind, granularity_bits) = (*bytes.get(16)?, *bytes.get(17)?);
    let (name_bytes, extra_bytes) = (be16(bytes, 18)? as usize, be32(bytes, 20)? as usize);
    let name_at = ENTRY_BYTES.checked_add(extra_bytes)?;
    let name = bytes.get(name_at..)?.get(..name_bytes)?;
    // QEMU's limits: a sector to 2 GiB.
    if !(9..=31).contains(&granularity_bits) {
        return None;
    }
    let (in_use, auto, extra_compatible) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let state = if kind != 1 || flags & !7 != 0 || (extra_bytes > 0 && !extra_compatible) {
        State::Unknown
    } else if in_use || !valid {
        State::Inconsistent
    } else {
        State::Consistent
    };
    let bitmap = Bitmap {
        name: String::from_utf8(name.to_vec()).ok()?,
        granularity: ByteLen(1 << granularity_bits),
        auto,
        state,
        table,
        table_entries,
    };
    Some((bitmap, (name_at + name_bytes).next_multiple_of(8)))
}

/// A bitmap of an image as a map of changes.
pub struct Changes {
    image: Arc<Image>,
    bitmap: Bitmap,
}

impl Changes {
    /// Looks the bitmap up by its name. Fails unless it is there and consistent.
    pub fn new(image: Arc<Image>, name: &str) -> Result<Self> {
        let bitmap = image.bitmaps()?.into_iter().find(|bitmap| bitmap.name == name);
        let bitmap =
            bitmap.ok_or_else(|| Error::new(Kind::NotFound, format!("bitmap {name:?} is not in the image")))?;
        // An empty window asks for nothing but the state.
        image.dirty(&bitmap, Extent::default())?;
        Ok(Self { image, bitmap })
    }
}

impl ChangeMap for Changes {
    fn changed(&self, within: Extent) -> Result<ExtentSet> {
        self.image.dirty(&self.bitmap, within)
    }
}

fn corrupt(why: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, format!("read dirty bitmaps: {}", why.into()))
}
