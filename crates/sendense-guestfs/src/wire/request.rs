//! What the hub says.
//!
//! Invariant: encoding and decoding agree; what does not decode is [`Malformed`](super::Malformed), also on the worker's side.

use super::codec::{Decoder, Encoder, Result, malformed};
use super::frame::Frame;
use crate::path::{GuestPath, NAME_BYTES_MAX, PATH_BYTES_MAX};
use crate::session::WalkOptions;
use crate::volume::{ID_BYTES_MAX, KEY_BYTES_MAX, Key, VolumeId};
use std::ops::Range;

/// The longest description of the disk (which descriptor is which image): a chain of 1000 images with 250 bytes each.
pub const SETUP_BYTES_MAX: usize = 256 * 1024;

const START: u8 = 0x01;
const REQUEST: u8 = 0x02;
const CREDIT: u8 = 0x03;
const CANCEL: u8 = 0x04;

/// A frame from the hub.
#[derive(Debug, Clone)]
pub enum Message {
    /// The first frame: how to confine oneself, and what the descriptors that follow it are.
    Start(Start),
    /// A new request under a number that is not in use.
    Request {
        /// The number.
        id: u32,
        /// What is asked.
        call: Call,
    },
    /// So many bytes of answers were consumed and may be sent anew.
    Credit {
        /// The request.
        id: u32,
        /// How many.
        bytes: u64,
    },
    /// The answer is no longer wanted; the worker still ends it with `Done` or `Failed`.
    Cancel {
        /// The request.
        id: u32,
    },
}

/// How a worker begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The protocol's version.
    pub version: u32,
    /// User and group id to become when started by root; see [`ids`](crate::sandbox::ids).
    pub uid: u32,
    /// How many descriptors follow.
    pub descriptors: u32,
    /// What the descriptors are; only the binary understands it.
    pub setup: Vec<u8>,
}

/// A call of a session.
#[derive(Debug, Clone)]
pub enum Call {
    /// All volumes.
    Volumes,
    /// Open an encrypted volume.
    Unlock(VolumeId, Key),
    /// The path without links.
    Resolve(VolumeId, GuestPath),
    /// One entry.
    Stat(VolumeId, GuestPath),
    /// The target of a link.
    Readlink(VolumeId, GuestPath),
    /// A page of a folder: after, limit.
    List(VolumeId, GuestPath, Option<u64>, u32),
    /// A part of a file.
    Read(VolumeId, GuestPath, Range<u64>),
    /// A page of data ranges: from.
    DataRanges(VolumeId, GuestPath, u64),
    /// Everything below a folder.
    Walk(VolumeId, GuestPath, WalkOptions),
}

impl Message {
    /// The frame's tag and payload.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        let mut to = Encoder::new();
        let tag = match self {
            Message::Start(start) => {
                to.u32(start.version).u32(start.uid).u32(start.descriptors).bytes(&start.setup);
                START
            }
            Message::Request { id, call } => {
                to.u32(*id);
                call.encode(&mut to);
                REQUEST
            }
            Message::Credit { id, bytes } => {
                to.u32(*id).u64(*bytes);
                CREDIT
            }
            Message::Cancel { id } => {
                to.u32(*id);
                CANCEL
            }
        };
        (tag, to.finish())
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`Malformed`](super::Malformed).
    pub fn decode(frame: &Frame) -> Result<Message> {
        let mut from = Decoder::new(&frame.payload);
        let message = match frame.tag {
            START => Message::Start(Start {
                version: from.u32()?,
                uid: from.u32()?,
                descriptors: from.u32()?,
                setup: from.bytes(SETUP_BYTES_MAX)?.to_vec(),
            }),
            REQUEST => Message::Request { id: from.u32()?, call: Call::decode(&mut from)? },
            CREDIT => Message::Credit { id: from.u32()?, bytes: from.u64()? },
            CANCEL => Message::Cancel { id: from.u32()? },
            other => return malformed(format!("tag {other} from the hub")),
        };
        from.end()?;
        Ok(message)
    }
}

impl Call {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Call::Volumes => {
                to.u8(0);
            }
            Call::Unlock(volume, key) => {
                to.u8(1).bytes(volume.as_str().as_bytes()).bytes(key.bytes());
            }
            Call::Resolve(volume, path) => place(to.u8(2), volume, path),
            Call::Stat(volume, path) => place(to.u8(3), volume, path),
            Call::Readlink(volume, path) => place(to.u8(4), volume, path),
            Call::List(volume, path, after, limit) => {
                place(to.u8(5), volume, path);
                to.option(*after, |to, after| {
                    to.u64(after);
                });
                to.u32(*limit);
            }
            Call::Read(volume, path, range) => {
                place(to.u8(6), volume, path);
                to.u64(range.start).u64(range.end);
            }
            Call::DataRanges(volume, path, from) => {
                place(to.u8(7), volume, path);
                to.u64(*from);
            }
            Call::Walk(volume, path, options) => {
                place(to.u8(8), volume, path);
                to.u32(u32::try_from(options.depth_max).unwrap_or(u32::MAX)).u64(options.entries_max);
                to.option(options.name.as_deref(), |to, name| {
                    to.bytes(name);
                });
                to.u8(options.ignore_case.into());
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Call> {
        let kind = from.u8()?;
        if kind == 0 {
            return Ok(Call::Volumes);
        }
        let volume = VolumeId::parse(from.text(ID_BYTES_MAX)?).or_else(|error| malformed(error.to_string()))?;
        if kind == 1 {
            let key = Key::new(from.bytes(KEY_BYTES_MAX)?.to_vec()).or_else(|error| malformed(error.to_string()))?;
            return Ok(Call::Unlock(volume, key));
        }
        let path = path(from)?;
        Ok(match kind {
            2 => Call::Resolve(volume, path),
            3 => Call::Stat(volume, path),
            4 => Call::Readlink(volume, path),
            5 => Call::List(volume, path, from.option(Decoder::u64)?, from.u32()?),
            6 => Call::Read(volume, path, from.u64()?..from.u64()?),
            7 => Call::DataRanges(volume, path, from.u64()?),
            8 => {
                let options = WalkOptions {
                    depth_max: from.u32()? as usize,
                    entries_max: from.u64()?,
                    name: from.option(|from| Ok(from.bytes(NAME_BYTES_MAX)?.to_vec()))?,
                    ignore_case: from.bool()?,
                };
                Call::Walk(volume, path, options)
            }
            other => return malformed(format!("call {other}")),
        })
    }
}

fn place(to: &mut Encoder, volume: &VolumeId, path: &GuestPath) {
    to.bytes(volume.as_str().as_bytes()).bytes(&path.to_bytes());
}

/// A guest path: absolute, and every component checked.
pub fn path(from: &mut Decoder<'_>) -> Result<GuestPath> {
    GuestPath::parse(from.bytes(PATH_BYTES_MAX)?).or_else(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn calls() -> Vec<Call> {
        let volume = VolumeId::parse("lvm:vg0/root").unwrap();
        let path = GuestPath::parse(b"/etc/\xff").unwrap();
        let options = WalkOptions { name: Some(b"*.conf".to_vec()), ignore_case: true, ..WalkOptions::default() };
        vec![
            Call::Volumes,
            Call::Unlock(volume.clone(), Key::new(b"secret".to_vec()).unwrap()),
            Call::Resolve(volume.clone(), path.clone()),
            Call::Stat(volume.clone(), path.clone()),
            Call::Readlink(volume.clone(), path.clone()),
            Call::List(volume.clone(), path.clone(), Some(7), 1000),
            Call::Read(volume.clone(), path.clone(), 5..u64::MAX),
            Call::DataRanges(volume.clone(), path.clone(), 9),
            Call::Walk(volume, path, options),
        ]
    }

    fn messages() -> Vec<Message> {
        let mut messages: Vec<_> = calls().into_iter().map(|call| Message::Request { id: 3, call }).collect();
        messages.push(Message::Start(Start { version: 1, uid: 65534, descriptors: 2, setup: vec![1, 2, 3] }));
        messages.push(Message::Credit { id: 1, bytes: 4096 });
        messages.push(Message::Cancel { id: 1 });
        messages
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        for message in messages() {
            let (tag, payload) = message.encode();
            let heard = Message::decode(&Frame { tag, payload: payload.clone() }).unwrap();
            assert_eq!(heard.encode(), (tag, payload.clone()), "{message:?}");
            for cut in 0..payload.len() {
                // A shorter frame is never taken for a whole one.
                assert!(
                    Message::decode(&Frame { tag, payload: payload[..cut].to_vec() }).is_err(),
                    "{message:?} {cut}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(tag in 0u8..8, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&Frame { tag, payload });
        }

        #[test]
        fn mutated_frames_decode_or_are_refused(which in 0usize..12, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let (tag, mut payload) = messages()[which].encode();
            let at = at.index(payload.len());
            payload[at] = byte;
            let _ = Message::decode(&Frame { tag, payload });
        }
    }
}
