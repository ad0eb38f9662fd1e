//! Decompression of btrfs extents: zlib, LZO and zstd, in safe Rust. The output has the length that is asked for, whatever
//! the input says: what is missing is zeros, what is too much is refused.

use super::bytes::{le16, le32};
use crate::error::{Error, Result};
use std::io::Read;

/// The largest zstd window that Linux lets btrfs use.
const ZSTD_WINDOW_MAX: u64 = 128 * 1024;
const ZSTD_MAGIC: u32 = 0xfd2f_b528;

/// Unpacks an extent to `len` bytes.
pub fn extent(algorithm: u8, packed: &[u8], len: usize, sector_bytes: usize) -> Result<Vec<u8>> {
    let mut unpacked = match algorithm {
        0 => packed.get(..len.min(packed.len())).unwrap_or_default().to_vec(),
        1 => take(flate2::read::ZlibDecoder::new(packed), len)?,
        2 => lzo_segments(packed, len, sector_bytes)?,
        3 => {
            check_window(packed)?;
            let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
            take(decoder.map_err(|error| Error::corrupt(format!("btrfs zstd extent: {error}")))?, len)?
        }
        _ => return Err(Error::unsupported(format!("btrfs compression {algorithm}"))),
    };
    unpacked.resize(len, 0);
    Ok(unpacked)
}

fn take(from: impl Read, len: usize) -> Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(len);
    let read = from.take(len as u64).read_to_end(&mut unpacked);
    read.map_err(|error| Error::corrupt(format!("compressed btrfs extent: {error}")))?;
    Ok(unpacked)
}

/// The decoder sets a window's memory aside as the frame asks, so that the frame's wish is checked first.
fn check_window(frame: &[u8]) -> Result<()> {
    let refused = || Error::corrupt("btrfs zstd extent: its frame asks for too much memory");
    if le32(frame, 0)? != ZSTD_MAGIC {
        return Err(Error::corrupt("btrfs zstd extent: it is no frame"));
    }
    let descriptor = super::bytes::u8_at(frame, 4)?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = super::bytes::u8_at(frame, 5)?;
        let base = 1u64 << (10 + (window >> 3));
        return if base + base / 8 * u64::from(window & 7) <= ZSTD_WINDOW_MAX { Ok(()) } else { Err(refused()) };
    }
    // The window is the content, whose length follows a dictionary's number.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content = match descriptor >> 6 {
        0 => super::bytes::u8_at(frame, at)?.into(),
        1 => u64::from(le16(frame, at)?) + 256,
        2 => le32(frame, at)?.into(),
        _ => super::bytes::le64(frame, at)?,
    };
    if content <= ZSTD_WINDOW_MAX { Ok(()) } else { Err(refused()) }
}

/// btrfs's frame around LZO: the whole length, then segments with their lengths, each a sector when unpacked. No length
/// crosses a sector's end.
fn lzo_segments(packed: &[u8], len: usize, sector_bytes: usize) -> Result<Vec<u8>> {
    let damaged = || Error::corrupt("a btrfs LZO extent contradicts itself");
    let end = (le32(packed, 0)? as usize).min(packed.len());
    let (mut unpacked, mut at) = (Vec::with_capacity(len), 4);
    while unpacked.len() < len && at < end {
        let left = sector_bytes - at % sector_bytes;
        if left < 4 {
            at += left;
        }
        let size = le32(packed, at)? as usize;
        let segment = packed.get(at + 4..).and_then(|rest| rest.get(..size)).ok_or_else(damaged)?;
        let begin = unpacked.len();
        lzo(segment, &mut unpacked, sector_bytes).ok_or_else(damaged)?;
        if unpacked.len() == begin {
            return Err(damaged());
        }
        at += 4 + size;
    }
    unpacked.truncate(len);
    Ok(unpacked)
}

/// One LZO1X stream of at most `max` bytes; none when it is damaged.
fn lzo(packed: &[u8], into: &mut Vec<u8>, max: usize) -> Option<()> {
    let begin = into.len();
    let mut input = packed.iter().copied();
    // A length that does not fit goes on in zero bytes, each 255, and a last one.
    let long = |input: &mut std::iter::Copied<std::slice::Iter<'_, u8>>, base: usize| {
        let mut length = base;
        loop {
            match input.next()? {
                0 => length = length.checked_add(255)?,
                last => return length.checked_add(usize::from(last)),
            }
        }
    };
    // How many literals came last: none, one to three with a match, or four for a run.
    let mut state = 0;
    let mut first = true;
    loop {
        let code = usize::from(input.next()?);
        let literals;
        let (mut back, mut count) = (0, 0);
        if std::mem::take(&mut first) && code > 17 {
            literals = code - 17;
            state = if literals < 4 { literals } else { 4 };
        } else if code < 16 && state == 0 {
            literals = 3 + if code == 0 { long(&mut input, 15)? } else { code };
            state = 4;
        } else {
            let pair = |input: &mut std::iter::Copied<std::slice::Iter<'_, u8>>| {
                Some(usize::from(u16::from_le_bytes([input.next()?, input.next()?])))
            };
            if code < 16 {
                let further = usize::from(input.next()?) << 2 | code >> 2;
                (back, count) = if state == 4 { (further + 2049, 3) } else { (further + 1, 2) };
                literals = code & 3;
            } else if code >= 64 {
                back = (usize::from(input.next()?) << 3 | code >> 2 & 7) + 1;
                count = (code >> 5) + 1;
                literals = code & 3;
            } else if code >= 32 {
                count = 2 + if code & 31 == 0 { long(&mut input, 31)? } else { code & 31 };
                let pair = pair(&mut input)?;
                (back, literals) = ((pair >> 2) + 1, pair & 3);
            } else {
                count = 2 + if code & 7 == 0 { long(&mut input, 7)? } else { code & 7 };
                let pair = pair(&mut input)?;
                (back, literals) = ((code & 8) << 11 | pair >> 2, pair & 3);
                if back == 0 {
                    return Some(());
                }
                back += 16384;
            }
            state = literals;
        }
        if into.len() - begin + count + literals > max {
            return None;
        }
        if count > 0 {
            let from = into.len().checked_sub(back).filter(|from| *from >= begin)?;
            // What is copied may be what was just copied.
            for from in from..from + count {
                into.push(into[from]);
            }
        }
        for _ in 0..literals {
            into.push(input.next()?);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_unpack_or_are_refused(algorithm in 0u8..5, packed in prop::collection::vec(any::<u8>(), 0..3000)) {
            if let Ok(bytes) = extent(algorithm, &packed, 20_000, 4096) {
                prop_assert_eq!(bytes.len(), 20_000);
            }
        }
    }

    #[test]
    fn a_frame_that_asks_for_a_large_window_is_refused() {
        // A window of 2 GiB.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        assert!(extent(3, &frame, 4096, 4096).unwrap_err().to_string().contains("too much memory"));
    }
}
