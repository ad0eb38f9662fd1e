//! The frame codec: a block as one zstd frame (RFC 8878), or raw when that would not pay.
//!
//! A frame is what lies in the QCOW2 file as a compressed cluster (`compression_type=zstd`), so a block is compressed once,
//! where it is read. One [`Encoder`] per thread: it keeps its context, whose set-up costs more than compressing a block.

use crate::error::{Error, Kind, Result};
use crate::units::BLOCK_BYTES;
use zstd_safe::{CCtx, CParameter, DCtx};

/// A frame must save at least this much, else the block is stored raw: decoding costs every restore, for ever, and a
/// sixteenth of the space is not worth it.
const SAVING_BYTES_MIN: usize = BLOCK_BYTES as usize / 16;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Store every block raw.
    Off,
    /// zstd -1: about twice as fast as the default, a tenth larger on text.
    Fast,
    /// zstd 1: faster than `qemu-img convert -c` and within a few percent of its size; `make bench` measures it.
    #[default]
    Default,
    /// zstd 9: for slow links and cold storage.
    High,
}

impl Level {
    const fn zstd_level(self) -> Option<i32> {
        match self {
            Self::Off => None,
            Self::Fast => Some(-1),
            Self::Default => Some(1),
            Self::High => Some(9),
        }
    }
}

/// Compresses blocks. Memory: one zstd context, below 2 MiB at [`Level::High`] for blocks of 64 KiB.
pub struct Encoder {
    context: Option<CCtx<'static>>,
}

impl Encoder {
    /// The largest frame that [`Encoder::encode`] writes.
    pub const FRAME_BYTES_MAX: usize = BLOCK_BYTES as usize - SAVING_BYTES_MIN;

    /// An encoder for a level.
    pub fn new(level: Level) -> Result<Self> {
        let Some(level) = level.zstd_level() else { return Ok(Self { context: None }) };
        let mut context = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(level),
            // QEMU knows how much a cluster holds, and our digests say whether it is right.
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            context.set_parameter(parameter).map_err(|code| zstd_error("set up compression", code))?;
        }
        Ok(Self { context: Some(context) })
    }

    /// Writes the block's frame to the start of `out` and returns its length, or `None` when the block is to be stored
    /// raw. `out` holds at least [`Encoder::FRAME_BYTES_MAX`] bytes.
    pub fn encode(&mut self, block: &[u8], out: &mut [u8]) -> Option<usize> {
        let context = self.context.as_mut()?;
        let room = out.get_mut(..Self::FRAME_BYTES_MAX)?;
        // The only error that valid parameters leave is "destination too small": the block does not shrink enough.
        context.compress2(room, block).ok()
    }
}

/// Decodes frames. One per thread.
pub struct Decoder {
    context: DCtx<'static>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { context: DCtx::create() }
    }
}

impl Decoder {
    /// Decodes one frame into exactly one block; anything else is [`Kind::Corrupt`]. Hostile frames cost at most one
    /// block of output.
    pub fn decode(&mut self, frame: &[u8], block: &mut [u8]) -> Result<()> {
        let len = self.context.decompress(block, frame).map_err(|code| zstd_error("decode a frame", code))?;
        if len == block.len() {
            return Ok(());
        }
        Err(Error::new(Kind::Corrupt, format!("frame decodes to {len} bytes instead of {}", block.len())))
    }
}

fn zstd_error(context: &str, code: usize) -> Error {
    Error::new(Kind::Corrupt, format!("{context}: {}", zstd_safe::get_error_name(code)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(level: Level, block: &[u8]) -> Option<usize> {
        let mut out = vec![0; Encoder::FRAME_BYTES_MAX];
        let len = Encoder::new(level).unwrap().encode(block, &mut out)?;
        let mut back = vec![0; block.len()];
        Decoder::default().decode(&out[..len], &mut back).unwrap();
        assert_eq!(back, block);
        Some(len)
    }

    #[test]
    fn text_shrinks_and_noise_stays_raw() {
        let text: Vec<u8> = b"the quick brown fox ".iter().copied().cycle().take(65536).collect();
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(65536)
        .collect();
        for level in [Level::Fast, Level::Default, Level::High] {
            assert!(round_trip(level, &text).unwrap() < 1000);
            assert_eq!(round_trip(level, &noise), None);
        }
        assert_eq!(round_trip(Level::Off, &text), None);
    }

    proptest! {
        #[test]
        fn hostile_frames_are_refused(frame in prop::collection::vec(any::<u8>(), 0..300)) {
            // A random text is a frame of exactly one block with no measurable chance; either answer must be orderly.
            let _ = Decoder::default().decode(&frame, &mut vec![0; 65536]);
        }
    }

    #[test]
    fn a_frame_of_another_length_is_corrupt() {
        let mut out = vec![0; Encoder::FRAME_BYTES_MAX];
        let len = Encoder::new(Level::Default).unwrap().encode(&[1; 4096], &mut out).unwrap();
        for size in [4095, 4097] {
            let error = Decoder::default().decode(&out[..len], &mut vec![0; size]).unwrap_err();
            assert_eq!(error.kind, Kind::Corrupt);
        }
    }
}
