//! Sectors with new contents, by their place on the disk: what a replayed XFS log changes.
//!
//! They are many and mostly empty: a log that is full of new files changes 60,000 inodes, of whose 512 bytes 176 are not
//! zero. So the zeros at a sector's end are left out, and what is left lies one behind the other in large pieces: memory
//! of its own would cost each sector more than the allocator's due.
//!
//! Invariant: [`Sectors::bytes`] is what they take, and whoever fills them compares it with a bound.

use std::collections::BTreeMap;

/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;
const SECTOR: usize = SECTOR_BYTES as usize;
/// Contents are stored in units of this size: an inode without extents has eleven.
const UNIT: usize = 16;
/// Units of a piece, 64 KiB: what a file system that changes little pays for.
const PIECE_UNITS: u32 = 4096;
/// What an entry of the index takes: key and value are 16 bytes, and a node of the tree is half full when it is filled in
/// ascending order.
const ENTRY_BYTES: usize = 32;

/// The sectors.
#[derive(Debug, Default)]
pub struct Sectors {
    places: BTreeMap<u64, Place>,
    pieces: Vec<Box<[u8]>>,
    /// Units taken of the last piece.
    taken: u32,
}

/// Where a sector's contents are: `units` of them from the unit `first` on, counted over all pieces, and zeros behind.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: u32,
    units: u8,
}

impl Sectors {
    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        self.pieces.len() * PIECE_UNITS as usize * UNIT + self.places.len() * ENTRY_BYTES
    }

    /// Sets a sector's contents.
    pub fn insert(&mut self, sector: u64, contents: &[u8; SECTOR]) {
        let len = contents.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // At most 32, so that a byte holds it.
        let units = len.div_ceil(UNIT) as u8;
        let place = match self.places.get(&sector) {
            Some(old) if old.units >= units => *old,
            // It has grown. Its old place is given up, and counts on.
            _ => {
                let place = Place { first: self.take(units.into()), units };
                self.places.insert(sector, place);
                place
            }
        };
        let (piece, within) = place.split();
        self.pieces[piece][within.clone()].copy_from_slice(&contents[..within.len()]);
    }

    /// Puts what is known over `buf`, which lies at byte `at` of the disk.
    pub fn lay_over(&self, at: u64, buf: &mut [u8]) {
        let end = at.saturating_add(buf.len() as u64);
        for (sector, place) in self.places.range(at / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES)) {
            let mut contents = [0; SECTOR];
            let (piece, within) = place.split();
            contents[..within.len()].copy_from_slice(&self.pieces[piece][within]);
            super::device::lay_over(at, buf, sector * SECTOR_BYTES, &contents);
        }
    }

    /// Room for so many units, in one piece.
    fn take(&mut self, units: u32) -> u32 {
        if self.pieces.is_empty() || self.taken + units > PIECE_UNITS {
            self.pieces.push(vec![0; PIECE_UNITS as usize * UNIT].into_boxed_slice());
            self.taken = 0;
        }
        let first = (self.pieces.len() as u32 - 1) * PIECE_UNITS + self.taken;
        self.taken += units;
        first
    }
}

impl Place {
    /// The piece, and the bytes in it.
    fn split(self) -> (usize, std::ops::Range<usize>) {
        let at = (self.first % PIECE_UNITS) as usize * UNIT;
        ((self.first / PIECE_UNITS) as usize, at..at + usize::from(self.units) * UNIT)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// A sector whose first bytes are not zero, and whose other ones may be.
    fn sector(filled: usize, seed: u8) -> [u8; SECTOR] {
        std::array::from_fn(|at| if at < filled { seed.wrapping_add(at as u8) } else { 0 })
    }

    proptest! {
        /// However sectors grow and shrink, a read sees what a disk would that they had been written to.
        #[test]
        fn a_read_sees_what_was_written_last(writes in prop::collection::vec((0u64..40, 0usize..=SECTOR, any::<u8>()), 0..400),
                                             at in 0u64..20_000, len in 0usize..9000) {
            let mut sectors = Sectors::default();
            let mut model = vec![0xee; 60 * SECTOR];
            for (number, filled, seed) in writes {
                let contents = sector(filled, seed);
                sectors.insert(number, &contents);
                model[number as usize * SECTOR..][..SECTOR].copy_from_slice(&contents);
            }
            let mut buf = vec![0xee; len];
            sectors.lay_over(at, &mut buf);
            prop_assert_eq!(&buf[..], &model[at as usize..at as usize + len]);
        }
    }

    #[test]
    fn new_inodes_take_a_third_of_their_sectors() {
        let mut sectors = Sectors::default();
        for number in 0..60_000 {
            sectors.insert(number, &sector(176, 1));
        }
        assert!(sectors.bytes() < 13 << 20, "{}", sectors.bytes());
        // Written again they take no more.
        let before = sectors.bytes();
        for number in 0..60_000 {
            sectors.insert(number, &sector(170, 2));
        }
        assert_eq!(sectors.bytes(), before);
        let mut buf = [0xee; 600];
        sectors.lay_over(0, &mut buf);
        assert_eq!((buf[1], buf[169], buf[170], buf[511], buf[513]), (3, 171, 0, 0, 3));
    }
}
