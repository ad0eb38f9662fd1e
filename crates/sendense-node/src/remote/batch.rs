//! A batch of blocks as it travels: per block its number, its digest, what follows, and that.
//!
//! ```text
//! number 8 | digest 16 | kind 1 (0 zero, 1 raw, 2 zstd) | length 4 | bytes         all numbers big end first
//! ```
//!
//! Invariant: what [`Checked`] gives out are blocks whose bytes have the digest that was said, whoever sent them.

use sendense_block::codec::{Decoder, Encoder};
use sendense_block::{BLOCK_BYTES, Block, BlockIndex, Digest, Error, Kind, Payload, Result};

const BLOCK: usize = BLOCK_BYTES as usize;
const DIGEST_BYTES: usize = sendense_block::digest::DIGEST_BYTES;
/// Bytes before a block's own.
const HEAD_BYTES: usize = 8 + DIGEST_BYTES + 1 + 4;

/// Appends a block to a batch.
pub fn append(batch: &mut Vec<u8>, block: &Block<'_>) {
    let (kind, bytes): (u8, &[u8]) = match block.payload {
        Payload::Zero => (0, &[]),
        Payload::Raw(bytes) => (1, bytes),
        Payload::Zstd(bytes) => (2, bytes),
    };
    batch.extend_from_slice(&block.index.0.to_be_bytes());
    batch.extend_from_slice(&block.digest.0);
    batch.push(kind);
    // A payload is at most one block long.
    batch.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    batch.extend_from_slice(bytes);
}

/// Takes a batch apart. Lengths and kinds are checked, what the blocks hold is not: see [`Checked`].
pub fn parse(batch: &[u8]) -> Result<Vec<Block<'_>>> {
    let malformed = |what: &str| Error::new(Kind::Protocol, format!("a batch of blocks is malformed: {what}"));
    let mut blocks = Vec::new();
    let mut rest = batch;
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| malformed("it ends too early"))?;
        let (number, head) = head.split_first_chunk::<8>().ok_or_else(|| malformed("number"))?;
        let (digest, head) = head.split_first_chunk::<DIGEST_BYTES>().ok_or_else(|| malformed("digest"))?;
        let (kind, length) = head.split_first().ok_or_else(|| malformed("kind"))?;
        let length = <[u8; 4]>::try_from(length).map_err(|_| malformed("length"))?;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| malformed("length"))?;
        let (bytes, next) = after.split_at_checked(length).ok_or_else(|| malformed("it ends too early"))?;
        let payload = match (kind, length) {
            (0, 0) => Payload::Zero,
            (1, BLOCK) => Payload::Raw(bytes),
            (2, 1..=Encoder::FRAME_BYTES_MAX) => Payload::Zstd(bytes),
            _ => return Err(malformed("kind and length do not fit")),
        };
        blocks.push(Block { index: BlockIndex(u64::from_be_bytes(*number)), digest: Digest(*digest), payload });
        rest = next;
    }
    Ok(blocks)
}

/// Checks blocks against their digests, by decoding them.
#[derive(Default)]
pub struct Checked {
    decoder: Decoder,
    block: Vec<u8>,
}

impl Checked {
    /// The blocks of a batch in rising order (lanes fill one as they come), once each of them is what its digest says, comes
    /// once, and is on a disk of `blocks_max` blocks.
    pub fn parse<'b>(&mut self, batch: &'b [u8], blocks_max: u64) -> Result<Vec<Block<'b>>> {
        let mut blocks = parse(batch)?;
        blocks.sort_unstable_by_key(|block| block.index);
        self.block.resize(BLOCK, 0);
        let wrong = |block: &Block<'_>, what: &str| {
            Error::new(Kind::Protocol, format!("block {} {what}", block.index)).at(block.index.offset())
        };
        let mut next = 0;
        for block in &blocks {
            if block.index.0 >= blocks_max {
                return Err(wrong(block, "lies beyond the disk's end"));
            }
            if block.index.0 < next {
                return Err(wrong(block, "comes twice in a batch"));
            }
            next = block.index.0 + 1;
            let digest = match block.payload {
                Payload::Zero => Digest::of_zero_block(),
                Payload::Raw(bytes) => Digest::of(bytes),
                Payload::Zstd(frame) => {
                    self.decoder.decode(frame, &mut self.block)?;
                    Digest::of(&self.block)
                }
            };
            if digest != block.digest {
                return Err(wrong(block, "does not have the digest that was said"));
            }
        }
        Ok(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sendense_block::codec::Level;

    fn content(seed: u8) -> Vec<u8> {
        (0..BLOCK).map(|at| (at / 64) as u8 ^ seed).collect()
    }

    /// Three blocks, one of each kind.
    fn batch() -> Vec<u8> {
        let (one, two) = (content(1), content(2));
        let mut frame = vec![0; Encoder::FRAME_BYTES_MAX];
        let len = Encoder::new(Level::Default).unwrap().encode(&two, &mut frame).unwrap();
        let mut batch = Vec::new();
        for (index, digest, payload) in [
            (3, Digest::of(&one), Payload::Raw(&one)),
            (4, Digest::of_zero_block(), Payload::Zero),
            (9, Digest::of(&two), Payload::Zstd(&frame[..len])),
        ] {
            append(&mut batch, &Block { index: BlockIndex(index), digest, payload });
        }
        batch
    }

    #[test]
    fn what_was_sent_comes_out() {
        let batch = batch();
        let mut checked = Checked::default();
        let blocks = checked.parse(&batch, 10).unwrap();
        assert_eq!(blocks.iter().map(|block| block.index.0).collect::<Vec<_>>(), [3, 4, 9]);
        assert!(matches!(blocks[0].payload, Payload::Raw(bytes) if bytes == content(1)));
        assert_eq!(checked.parse(&batch, 9).unwrap_err().kind, Kind::Protocol, "beyond the end");
        let twice = [batch.clone(), batch.clone()].concat();
        assert_eq!(checked.parse(&twice, 10).unwrap_err().kind, Kind::Protocol, "twice");
        // Lanes put their blocks as they come.
        let mut mixed = Vec::new();
        for block in parse(&batch).unwrap().iter().rev() {
            append(&mut mixed, block);
        }
        let indices: Vec<_> = checked.parse(&mixed, 10).unwrap().iter().map(|block| block.index.0).collect();
        assert_eq!(indices, [3, 4, 9]);
    }

    proptest! {
        #[test]
        fn a_batch_that_was_changed_is_refused(at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
            let mut batch = batch();
            let at = at.index(batch.len());
            batch[at] ^= flip;
            let mut checked = Checked::default();
            // A number is not covered by a digest, and a frame may say the same in other words. What comes out is never
            // anything else than what was said.
            for block in checked.parse(&batch, u64::MAX).unwrap_or_default() {
                let mut out = vec![0; BLOCK];
                match block.payload {
                    Payload::Zero => {}
                    Payload::Raw(bytes) => out.copy_from_slice(bytes),
                    Payload::Zstd(frame) => Decoder::default().decode(frame, &mut out).unwrap(),
                }
                prop_assert!([content(1), content(2), vec![0; BLOCK]].contains(&out));
            }
        }

        #[test]
        fn nonsense_never_panics(batch in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Checked::default().parse(&batch, 10);
        }
    }
}
