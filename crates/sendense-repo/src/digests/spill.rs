//! Digests while blocks arrive: 16 bytes per block in a sparse file, at the place of the block's number.
//!
//! Sixteen zero bytes mean "not held". A block of zeros has its own well-known digest. A block of data whose digest is
//! either of these is refused by [`check`]: one does not occur (2^-128), the other is a lie.

use crate::crashsafe::NewFile;
use crate::error::{Error, Result};
use sendense_block::digest::DIGEST_BYTES;
use sendense_block::{Block, BlockIndex, ByteLen, ByteOffset, Content, Digest, Extent, Payload};
use sendense_qcow2::Held;
use std::sync::Arc;

const ABSENT: [u8; DIGEST_BYTES] = [0; DIGEST_BYTES];

/// The digests of the blocks that were put so far.
pub(crate) struct Spill {
    file: Arc<dyn NewFile>,
    blocks: u64,
}

/// Refuses digests that cannot be kept.
pub(crate) fn check(block: &Block<'_>) -> Result<()> {
    let zero = matches!(block.payload, Payload::Zero);
    if block.digest.0 == ABSENT || zero != (block.digest == Digest::of_zero_block()) {
        return Err(Error::invalid(format!("block {}: its digest does not fit its content", block.index)));
    }
    Ok(())
}

impl Spill {
    /// Keeps digests in an empty file.
    pub(crate) fn new(file: Arc<dyn NewFile>, blocks: u64) -> Result<Self> {
        // The full length at once, all of it a hole: then reading needs no special case.
        file.set_len(ByteLen(blocks * DIGEST_BYTES as u64))?;
        Ok(Self { file, blocks })
    }

    /// Goes on with a file that [`Spill::new`] made.
    pub(crate) fn open(file: Arc<dyn NewFile>, blocks: u64) -> Result<Self> {
        if file.size().0 != blocks * DIGEST_BYTES as u64 {
            return Err(Error::invalid("the digests of the draft are not as many as its disk has blocks"));
        }
        Ok(Self { file, blocks })
    }

    /// Makes what was kept durable.
    pub(crate) fn sync(&self) -> Result<()> {
        crate::crashsafe::sync_file(&*self.file)
    }

    /// Brings what is kept for these blocks together with what the image holds of them: a block that only one of both knows was
    /// being put when the process died, and is forgotten by both.
    pub(crate) fn agree(&self, first: BlockIndex, held: &mut [Held]) -> Result<()> {
        let mut bytes = vec![0; held.len() * DIGEST_BYTES];
        self.file.read_at(place(first.0), &mut bytes)?;
        let mut is_changed = false;
        for (digest, held) in bytes.as_chunks_mut::<DIGEST_BYTES>().0.iter_mut().zip(held) {
            let agrees = match held {
                Held::Absent => *digest == ABSENT,
                Held::Zero => *digest == Digest::of_zero_block().0,
                Held::Data => *digest != ABSENT && *digest != Digest::of_zero_block().0,
            };
            if !agrees {
                is_changed |= *digest != ABSENT;
                (*digest, *held) = (ABSENT, Held::Absent);
            }
        }
        if is_changed {
            self.file.write_at(place(first.0), &bytes)?;
        }
        Ok(())
    }

    /// Keeps the digests of a batch, whose numbers rise.
    pub(crate) fn put(&self, batch: &[Block<'_>]) -> Result<()> {
        for run in batch.chunk_by(|a, b| a.index.0 + 1 == b.index.0) {
            let bytes: Vec<u8> = run.iter().flat_map(|block| block.digest.0).collect();
            self.file.write_at(place(run[0].index.0), &bytes)?;
        }
        Ok(())
    }

    /// Keeps the digests of blocks that follow each other; none for those not held.
    pub(crate) fn keep(&self, first: BlockIndex, digests: &[Option<Digest>]) -> Result<()> {
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.map_or(ABSENT, |digest| digest.0)).collect();
        Ok(self.file.write_at(place(first.0), &bytes)?)
    }

    /// The digests of `out.len()` blocks from `first` on; `None` for those not held.
    pub(crate) fn get(&self, first: BlockIndex, out: &mut Vec<Option<Digest>>, count: usize) -> Result<()> {
        let mut bytes = vec![0; count * DIGEST_BYTES];
        self.file.read_at(place(first.0), &mut bytes)?;
        out.clear();
        out.extend(bytes.as_chunks().0.iter().map(|digest| (*digest != ABSENT).then_some(Digest(*digest))));
        Ok(())
    }

    /// The first block at or after `from` that may be held; `None` when there is none. Skips holes of the file.
    pub(crate) fn next_held(&self, from: u64) -> Result<Option<u64>> {
        let mut at = place(from).0;
        let end = place(self.blocks).0;
        while at < end {
            // A window of 16 MiB of digests (64 GiB of disk) bounds the list of extents.
            let window = Extent::between(ByteOffset(at), ByteOffset(end.min(at.saturating_add(16 << 20))));
            let map = self.file.allocation(window)?;
            if let Some(data) = map.iter().find(|mapped| mapped.content == Content::Data) {
                return Ok(Some(data.extent.start().0 / DIGEST_BYTES as u64));
            }
            at = window.end().0;
        }
        Ok(None)
    }
}

fn place(index: u64) -> ByteOffset {
    // Block numbers end at 2 PiB / 64 KiB = 2^35, so this cannot overflow.
    ByteOffset(index * DIGEST_BYTES as u64)
}
