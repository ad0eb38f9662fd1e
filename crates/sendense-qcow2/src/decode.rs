//! Decompressing one cluster (Compressed clusters), with contexts from a bounded pool.
//!
//! Invariant: exactly a cluster comes out or an error; no input makes the output or a buffer larger than a cluster.

use crate::header::Compression;
use flate2::{Decompress, FlushDecompress};
use parking_lot::Mutex;
use sendense_block::{Error, Kind, Result};
use zstd_safe::DCtx;

/// Contexts kept for the next reader, in the whole process: more than the threads that decode at once on the machines we
/// know (8 backups or restores of 2 threads). A kept one has about 300 KiB, so 5 MiB in all. More are freed.
const KEPT_MAX: usize = 16;
/// A scratch buffer larger than this (an image with clusters above 64 KiB) is freed after use, not kept.
const KEPT_BUFFER_BYTES: usize = 128 << 10;

static POOL: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

/// What decoding needs: a context per method, the compressed bytes, a cluster.
#[derive(Default)]
pub(crate) struct Scratch {
    zstd: Option<DCtx<'static>>,
    deflate: Option<Decompress>,
    /// Compressed bytes as read.
    pub(crate) input: Vec<u8>,
    /// A decoded cluster of which only a part was asked for.
    pub(crate) cluster: Vec<u8>,
}

/// Runs `work` with a scratch from the pool.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = POOL.lock().pop().unwrap_or_default();
    let result = work(&mut scratch);
    for buffer in [&mut scratch.input, &mut scratch.cluster] {
        if buffer.capacity() > KEPT_BUFFER_BYTES {
            *buffer = Vec::new();
        }
    }
    let mut pool = POOL.lock();
    if pool.len() < KEPT_MAX {
        pool.push(scratch);
    }
    result
}

/// Decodes `input`, which may have bytes of other clusters behind its end, into all of `cluster`.
pub(crate) fn decode(scratch: &mut Contexts<'_>, how: Compression, input: &[u8], cluster: &mut [u8]) -> Result<()> {
    match how {
        Compression::Zstd => decode_zstd(scratch.zstd, input, cluster),
        Compression::Zlib => decode_deflate(scratch.deflate, input, cluster),
    }
}

/// The contexts of a scratch, borrowed apart from its buffers.
pub(crate) struct Contexts<'a> {
    zstd: &'a mut Option<DCtx<'static>>,
    deflate: &'a mut Option<Decompress>,
}

impl Scratch {
    /// The contexts, the input buffer and the cluster buffer, to be borrowed each for itself.
    pub(crate) fn split(&mut self) -> (Contexts<'_>, &mut Vec<u8>, &mut Vec<u8>) {
        (Contexts { zstd: &mut self.zstd, deflate: &mut self.deflate }, &mut self.input, &mut self.cluster)
    }
}

/// QEMU allows several frames for a cluster, and so do we. Each turn consumes at least a frame's header.
fn decode_zstd(context: &mut Option<DCtx<'static>>, mut input: &[u8], mut cluster: &mut [u8]) -> Result<()> {
    let wrong = |code| corrupt(zstd_safe::get_error_name(code));
    let context = match context {
        Some(context) => context,
        None => context
            .insert(DCtx::try_create().ok_or_else(|| Error::new(Kind::Unavailable, "no memory for a zstd context"))?),
    };
    while !cluster.is_empty() {
        // The descriptor tells whole sectors; the frame itself tells where it ends.
        let frame_bytes = zstd_safe::find_frame_compressed_size(input).map_err(wrong)?;
        let (frame, rest) = input.split_at_checked(frame_bytes).ok_or_else(|| corrupt("the frame is cut short"))?;
        let decoded = context.decompress(cluster, frame).map_err(wrong)?;
        cluster = &mut cluster[decoded..];
        input = rest;
    }
    Ok(())
}

fn decode_deflate(context: &mut Option<Decompress>, input: &[u8], cluster: &mut [u8]) -> Result<()> {
    let context = context.get_or_insert_with(|| Decompress::new(false));
    context.reset(false);
    context.decompress(input, cluster, FlushDecompress::Finish).map_err(|error| corrupt(&error.to_string()))?;
    if context.total_out() == cluster.len() as u64 { Ok(()) } else { Err(corrupt("it decodes to less than a cluster")) }
}

fn corrupt(why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("decode a compressed cluster: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(how: Compression, input: &[u8], len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        with_scratch(|scratch| decode(&mut scratch.split().0, how, input, &mut out)).map(|()| out)
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_in_an_error_or_a_cluster(input in prop::collection::vec(any::<u8>(), 0..600)) {
            for how in [Compression::Zlib, Compression::Zstd] {
                if let Err(error) = decoded(how, &input, 512) {
                    prop_assert_eq!(error.kind, Kind::Corrupt);
                }
            }
        }

        #[test]
        fn damaged_frames_never_panic(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let block: Vec<u8> = (0..65536u32).map(|n| (n / 7) as u8).collect();
            let mut frame = zstd::bulk::compress(&block, 3).unwrap();
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            let _ = decoded(Compression::Zstd, &frame, block.len());
        }
    }

    #[test]
    fn frames_that_are_too_short_or_too_long_are_corrupt() {
        let block = vec![7; 65536];
        let mut frame = zstd::bulk::compress(&block, 1).unwrap();
        assert_eq!(decoded(Compression::Zstd, &frame, 65536).unwrap(), block);
        assert_eq!(decoded(Compression::Zstd, &frame, 65535).unwrap_err().kind, Kind::Corrupt);
        assert_eq!(decoded(Compression::Zstd, &frame, 65537).unwrap_err().kind, Kind::Corrupt);
        // Two frames, then what the neighbour left in the last sector.
        let second = frame.clone();
        frame.extend(second);
        frame.extend([0xaa; 100]);
        assert_eq!(decoded(Compression::Zstd, &frame, 2 * 65536).unwrap(), vec![7; 2 * 65536]);
    }
}
