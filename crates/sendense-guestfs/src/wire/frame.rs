//! Frames on a byte stream: a length, a tag, a payload.
//!
//! Invariant: a reader holds at most one frame, and no frame is longer than [`FRAME_BYTES_MAX`].

use super::FRAME_BYTES_MAX;
use super::codec::{Malformed, Result, malformed};
use std::io::{self, Read, Write};

/// Bytes of the length field.
const LENGTH_BYTES: usize = 4;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub tag: u8,
    /// The rest.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Bytes on the socket; this is what a frame costs of its request's credit.
    pub fn wire_bytes(&self) -> u64 {
        (LENGTH_BYTES + 1 + self.payload.len()) as u64
    }
}

/// Writes one frame in one call where the socket takes it.
///
/// # Errors
/// `InvalidInput` for a frame longer than [`FRAME_BYTES_MAX`], and what the socket answers.
pub fn write(to: &mut impl Write, tag: u8, payload: &[u8]) -> io::Result<()> {
    let len = payload.len() + 1;
    if len > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "frame too long"));
    }
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + len);
    bytes.extend_from_slice(&(len as u32).to_le_bytes());
    bytes.push(tag);
    bytes.extend_from_slice(payload);
    to.write_all(&bytes)
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The peer has closed the socket between two frames.
    #[error("the socket was closed")]
    Closed,
    /// The socket failed, or was closed inside a frame.
    #[error("read a frame")]
    Io(#[source] io::Error),
    /// The peer broke the protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Waits for one whole frame and reads not a byte beyond it.
///
/// # Errors
/// See [`ReadError`].
pub fn read(from: &mut impl Read) -> std::result::Result<Frame, ReadError> {
    let mut length = [0; LENGTH_BYTES];
    let mut have = 0;
    while have < LENGTH_BYTES {
        match from.read(&mut length[have..]) {
            Ok(0) if have == 0 => return Err(ReadError::Closed),
            Ok(0) => return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ReadError::Io(error)),
        }
    }
    let len = check_length(u32::from_le_bytes(length))?;
    let mut tag = [0];
    from.read_exact(&mut tag).map_err(ReadError::Io)?;
    let mut payload = vec![0; len - 1];
    from.read_exact(&mut payload).map_err(ReadError::Io)?;
    Ok(Frame { tag: tag[0], payload })
}

fn check_length(len: u32) -> Result<usize> {
    match len as usize {
        0 => malformed("an empty frame"),
        len if len > FRAME_BYTES_MAX => malformed(format!("a frame of {len} bytes")),
        len => Ok(len),
    }
}

/// Frames out of pieces of any size, for a reader that must not wait.
#[derive(Debug, Default)]
pub struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    /// Takes what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// [`Malformed`] for a length that no frame has.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        let Some(length) = self.bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let end = LENGTH_BYTES + check_length(u32::from_le_bytes(*length))?;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let frame = Frame { tag: self.bytes[LENGTH_BYTES], payload: self.bytes[LENGTH_BYTES + 1..end].to_vec() };
        self.bytes.drain(..end);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cutting(frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 0..8), cut in 1usize..50) {
            let mut bytes = Vec::new();
            for (tag, payload) in &frames {
                write(&mut bytes, *tag, payload).unwrap();
            }
            let mut assembler = Assembler::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                assembler.push(piece);
                while let Some(frame) = assembler.next_frame().unwrap() {
                    got.push((frame.tag, frame.payload));
                }
            }
            prop_assert_eq!(&got, &frames);
            let mut whole = &bytes[..];
            for (tag, payload) in frames {
                prop_assert_eq!(read(&mut whole).unwrap(), Frame { tag, payload });
            }
            prop_assert!(matches!(read(&mut whole), Err(ReadError::Closed)));
        }

        #[test]
        fn any_bytes_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut from = &bytes[..];
            while read(&mut from).is_ok() {}
            let mut assembler = Assembler::default();
            assembler.push(&bytes);
            while let Ok(Some(_)) = assembler.next_frame() {}
        }
    }

    #[test]
    fn lengths_beyond_the_bound_are_refused_before_anything_is_read() {
        for length in [0u32, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            assert!(matches!(read(&mut &length.to_le_bytes()[..]), Err(ReadError::Malformed(_))), "{length}");
        }
        assert!(write(&mut Vec::new(), 1, &vec![0; FRAME_BYTES_MAX]).is_err());
    }
}
