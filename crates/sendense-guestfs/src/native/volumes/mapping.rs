//! A device made of pieces of another one: a partition is one piece, a logical volume several.
//!
//! Invariant: no read leaves the pieces, and no piece leaves the device below.

use crate::error::{Error, Result};
use sendense_block::device::check_range;
use sendense_block::{ByteLen, ByteOffset, ReadAt};
use std::sync::Arc;

/// One piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins on the device below.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

/// Pieces of a device, one after the other.
pub struct Mapping {
    below: Arc<dyn ReadAt>,
    /// The end of each piece in this device, and the piece. Sorted.
    pieces: Vec<(u64, Piece)>,
}

impl Mapping {
    /// Puts pieces together.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a piece passes the end of the device below: the table that named it is wrong, or the disk was cut.
    pub fn new(below: Arc<dyn ReadAt>, pieces: impl IntoIterator<Item = Piece>) -> Result<Mapping> {
        let size = below.size().0;
        let mut end = 0u64;
        let mut kept = Vec::new();
        for piece in pieces {
            if piece.start.checked_add(piece.len).is_none_or(|piece_end| piece_end > size) {
                return Err(Error::corrupt("it passes the end of the disk"));
            }
            if piece.len > 0 {
                end =
                    end.checked_add(piece.len).ok_or_else(|| Error::corrupt("its pieces are larger than any disk"))?;
                kept.push((end, piece));
            }
        }
        Ok(Mapping { below, pieces: kept })
    }

    /// One piece as a device.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn slice(below: Arc<dyn ReadAt>, start: u64, len: u64) -> Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(Mapping::new(below, [Piece { start, len }])?))
    }
}

impl ReadAt for Mapping {
    fn size(&self) -> ByteLen {
        ByteLen(self.pieces.last().map_or(0, |(end, _)| *end))
    }

    fn read_at(&self, at: ByteOffset, mut buf: &mut [u8]) -> sendense_block::Result<()> {
        check_range("the volume", self.size(), at, buf.len())?;
        let mut at = at.0;
        let mut index = self.pieces.partition_point(|(end, _)| *end <= at);
        while let (false, Some((end, piece))) = (buf.is_empty(), self.pieces.get(index)) {
            // Inside the piece, because `at` lies below its end and not below its begin.
            let left = end - at;
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let (now, rest) = buf.split_at_mut(len);
            self.below.read_at(ByteOffset(piece.start + (piece.len - left)), now)?;
            at += len as u64;
            buf = rest;
            index += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::disk;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_as_the_pieces_put_together(
            pieces in prop::collection::vec((0u64..900, 0u64..100), 0..6),
            at in 0usize..700, len in 0usize..300,
        ) {
            let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7 % 251) as u8).collect();
            let stupid: Vec<u8> = pieces.iter().flat_map(|(start, len)| &bytes[*start as usize..(start + len) as usize]).copied().collect();
            let mapping = Mapping::new(disk(bytes), pieces.iter().map(|&(start, len)| Piece { start, len })).unwrap();
            prop_assert_eq!(mapping.size().0, stupid.len() as u64);
            let mut buf = vec![0; len];
            let read = mapping.read_at(ByteOffset(at as u64), &mut buf);
            match stupid.get(at..at + len) {
                Some(expected) => { read.unwrap(); prop_assert_eq!(buf, expected); }
                None => prop_assert!(read.is_err()),
            }
        }
    }

    #[test]
    fn a_piece_beyond_the_end_is_refused() {
        for (start, len) in [(90, 11), (u64::MAX, 2), (101, 0)] {
            assert!(Mapping::slice(disk(vec![0; 100]), start, len).is_err(), "{start} {len}");
        }
    }
}
