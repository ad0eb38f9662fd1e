//! What the replies to one request may say, and what they add up to.
//!
//! What lives here: [`Pending`], the state of a request whose reply has not ended, and [`replay`], which runs whole reply
//! streams over it. Neither does I/O, so that arbitrary bytes can be thrown at them. What does not: sockets and threads
//! (`connection`), which ask `Pending` before they take a payload from the socket.
//!
//! Invariant: a read whose reply ended without an error had every byte of its range delivered exactly once.
//!
//! ```text
//!   header --begin--> Payload::{None, Error, Data, OffsetData, Hole, Status} --take it--> payload --> ended(flags)
//! ```

use super::frame::{self, Command, Cursor, ReplyHeader, chunk, protocol};
use crate::error::{Error, Kind, Result};
use crate::extent::{Extent, ExtentSet};
use crate::units::{ByteLen, ByteOffset};
use std::collections::BTreeMap;
use std::ops::Range;

/// Largest payload of a status chunk: what nbdkit sends at most (a million extents); QEMU stops at an eighth of it.
const STATUS_BYTES_MAX: u32 = 4 + 8 * (1 << 20);
/// Largest payload of an error chunk: error, length, a string, an offset; rounded up for fields yet to be invented.
const ERROR_BYTES_MAX: u32 = 8192;
/// Servers should cut at multiples of 512 bytes; one that cuts finer over a whole request is playing with us.
const CHUNK_SHARE_BYTES: u32 = 512;
/// Chunks that any reply may have beside those of its content: its odd ends, one per context, one per error.
const CHUNKS_FREE: u32 = 64;

/// What follows a reply's header, to be taken from the stream before the next header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    None,
    /// An error's words: small, see [`Pending::error`].
    Error {
        /// Bytes that follow.
        len: u32,
    },
    /// The whole range's bytes (a simple reply to a read).
    Data,
    /// Eight bytes of offset, then the bytes: see [`Pending::data`].
    OffsetData {
        /// Bytes after the offset.
        len: u32,
    },
    /// Twelve bytes: see [`Pending::hole`].
    Hole,
    /// Descriptors: see [`Pending::status`].
    Status {
        /// Bytes that follow.
        len: u32,
    },
}

impl Payload {
    /// True when only the one who asked has a place for it.
    pub const fn is_content(self) -> bool {
        !matches!(self, Self::None | Self::Error { .. })
    }
}

/// One descriptor of a status chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Bytes it covers, at least one.
    pub len: u32,
    /// The context's flags.
    pub flags: u32,
}

/// A failure that the server told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// See [`frame::errno`].
    pub errno: u32,
    /// The server's words; may be empty.
    pub message: String,
    /// Where, when it said so.
    pub at: Option<u64>,
}

/// A request whose reply has not ended.
#[derive(Debug)]
pub struct Pending {
    command: Command,
    offset: u64,
    len: u32,
    structured: bool,
    covered: ExtentSet,
    covered_bytes: u64,
    contexts: Vec<u32>,
    failure: Option<Failure>,
    chunks: u32,
}

impl Pending {
    /// A request that was just sent. `structured` says whether structured replies were agreed on.
    pub fn new(command: Command, offset: u64, len: u32, structured: bool) -> Self {
        Self {
            command,
            offset,
            len,
            structured,
            covered: ExtentSet::new(),
            covered_bytes: 0,
            contexts: Vec::new(),
            failure: None,
            chunks: 0,
        }
    }

    fn range(&self) -> Extent {
        Extent::between(ByteOffset(self.offset), ByteOffset(self.offset.saturating_add(self.len.into())))
    }

    /// Looks at a header of this request's reply: what follows it.
    pub fn begin(&mut self, header: ReplyHeader) -> Result<Payload> {
        match header {
            ReplyHeader::Simple { .. } if self.chunks > 0 => Err(protocol("simple reply in a structured one")),
            ReplyHeader::Simple { error: 0, .. } => match self.command {
                Command::Read if self.structured => {
                    Err(protocol("simple reply to a read although structured replies were agreed on"))
                }
                Command::Read => {
                    self.covered_bytes = self.len.into();
                    Ok(Payload::Data)
                }
                Command::BlockStatus => Err(protocol("simple reply without an error to a block status request")),
                _ => Ok(Payload::None),
            },
            ReplyHeader::Simple { error, .. } => {
                self.failure = Some(Failure { errno: error, message: String::new(), at: None });
                Ok(Payload::None)
            }
            ReplyHeader::Chunk { .. } if !self.structured => {
                Err(protocol("structured reply although none were agreed on"))
            }
            ReplyHeader::Chunk { flags, kind, len, .. } => self.begin_chunk(flags, kind, len),
        }
    }

    fn begin_chunk(&mut self, flags: u16, kind: u16, len: u32) -> Result<Payload> {
        self.chunks += 1;
        let chunks_max = self.len / CHUNK_SHARE_BYTES + CHUNKS_FREE;
        if self.chunks > chunks_max {
            return Err(protocol(format!("reply to a request of {} bytes has over {chunks_max} chunks", self.len)));
        }
        let done = flags & chunk::FLAG_DONE != 0;
        match (kind, self.command) {
            (chunk::NONE, _) if len != 0 => Err(protocol(format!("empty chunk with {len} bytes"))),
            (chunk::NONE, _) if !done => Err(protocol("empty chunk that is not the last")),
            (chunk::NONE, _) => Ok(Payload::None),
            (chunk::OFFSET_DATA, Command::Read) => match len.checked_sub(8) {
                None | Some(0) => Err(protocol(format!("data chunk of {len} bytes has no data"))),
                Some(data) if data > self.len => {
                    Err(protocol(format!("data chunk of {data} bytes in the reply to a read of {}", self.len)))
                }
                Some(len) => Ok(Payload::OffsetData { len }),
            },
            (chunk::OFFSET_HOLE, Command::Read) if len == 12 => Ok(Payload::Hole),
            (chunk::OFFSET_HOLE, Command::Read) => Err(protocol(format!("hole chunk of {len} bytes, not 12"))),
            (chunk::BLOCK_STATUS, Command::BlockStatus) => match len.checked_sub(4) {
                Some(descriptors) if descriptors > 0 && descriptors % 8 == 0 && len <= STATUS_BYTES_MAX => {
                    Ok(Payload::Status { len })
                }
                _ => Err(protocol(format!("block status chunk of {len} bytes"))),
            },
            // An error of a type we do not know still starts as all errors do ("Structured reply types").
            (kind, _) if kind & chunk::ERROR_BIT != 0 && (6..=ERROR_BYTES_MAX).contains(&len) => {
                Ok(Payload::Error { len })
            }
            (kind, _) if kind & chunk::ERROR_BIT != 0 => Err(protocol(format!("error chunk of {len} bytes"))),
            (kind, command) => {
                Err(protocol(format!("chunk of type {kind} in the reply to a request to {}", command.verb())))
            }
        }
    }

    /// Takes an error chunk's payload.
    pub fn error(&mut self, kind: u16, payload: &[u8]) -> Result<()> {
        let mut cursor = Cursor::new(payload);
        let errno = cursor.u32()?;
        if errno == 0 {
            return Err(protocol("error chunk that says success"));
        }
        let len = cursor.u16()?;
        let message = cursor.text(len.into())?;
        let at = if kind == chunk::ERROR_OFFSET {
            let at = cursor.u64()?;
            if !self.range().contains(Extent::between(ByteOffset(at), ByteOffset(at.saturating_add(1)))) {
                return Err(protocol(format!("error at {at}, outside the request {}", self.range())));
            }
            Some(at)
        } else {
            None
        };
        // The first one counts: it is the cause, the others are mostly its consequences.
        self.failure.get_or_insert(Failure { errno, message, at });
        Ok(())
    }

    /// Takes a data chunk's offset: where in the request's buffer its bytes go.
    pub fn data(&mut self, at: u64, len: u32) -> Result<Range<usize>> {
        self.cover(at, len)
    }

    /// Takes a hole chunk's payload: where in the request's buffer zeros go.
    pub fn hole(&mut self, payload: &[u8; 12]) -> Result<Range<usize>> {
        let mut cursor = Cursor::new(payload);
        let (at, len) = (cursor.u64()?, cursor.u32()?);
        if len == 0 {
            return Err(protocol("hole of no bytes"));
        }
        self.cover(at, len)
    }

    fn cover(&mut self, at: u64, len: u32) -> Result<Range<usize>> {
        let range = self.range();
        let piece = Extent::new(ByteOffset(at), ByteLen(len.into()))
            .filter(|piece| range.contains(*piece))
            .ok_or_else(|| protocol(format!("chunk of {len} bytes at {at}, outside the request {range}")))?;
        if self.covered.overlaps(piece) {
            return Err(protocol(format!("chunk {piece} overlaps an earlier one")));
        }
        self.covered.insert(piece);
        self.covered_bytes += u64::from(len);
        let start = usize::try_from(at - self.offset).map_err(|_| protocol("chunk beyond memory"))?;
        Ok(start..start + len as usize)
    }

    /// Takes a status chunk's payload: the context's id and its descriptors, cut at the end of the request.
    pub fn status(&mut self, payload: &[u8]) -> Result<(u32, Vec<Descriptor>)> {
        let mut cursor = Cursor::new(payload);
        let context = cursor.u32()?;
        if self.contexts.contains(&context) {
            return Err(protocol(format!("context {context} comes twice in one block status reply")));
        }
        self.contexts.push(context);
        let mut descriptors = Vec::with_capacity(cursor.left() / 8);
        let mut left = self.len;
        while cursor.left() > 0 {
            let (len, flags) = (cursor.u32()?, cursor.u32()?);
            if len == 0 {
                return Err(protocol("block status extent of no bytes"));
            }
            if left == 0 {
                return Err(protocol(format!("block status extent beyond the request {}", self.range())));
            }
            // The last one may reach further than was asked; what we did not ask for we do not use.
            descriptors.push(Descriptor { len: len.min(left), flags });
            left = left.saturating_sub(len);
        }
        Ok((context, descriptors))
    }

    /// Call after each payload: `None` while more chunks come, then how the request went.
    pub fn ended(&mut self, header: ReplyHeader) -> Option<Result<(), Ending>> {
        if let ReplyHeader::Chunk { flags, .. } = header
            && flags & chunk::FLAG_DONE == 0
        {
            return None;
        }
        if let Some(failure) = self.failure.take() {
            return Some(Err(Ending::Failed(failure)));
        }
        match self.command {
            Command::Read if self.covered_bytes != u64::from(self.len) => {
                let missing = self.covered.gaps(self.range());
                let at = missing.as_slice().first().map_or(self.offset, |gap| gap.start().0);
                Some(Err(Ending::Broken(protocol(format!(
                    "reply says success but {} of {} bytes never came, the first at {at}",
                    missing.byte_len().0,
                    self.len
                )))))
            }
            Command::BlockStatus if self.contexts.is_empty() => {
                Some(Err(Ending::Broken(protocol("block status reply without a status"))))
            }
            _ => Some(Ok(())),
        }
    }
}

/// How a reply ends when not well.
#[derive(Debug)]
pub enum Ending {
    /// The server says that the request failed. The connection is good.
    Failed(Failure),
    /// The server broke the protocol. The connection must go.
    Broken(Error),
}

impl Failure {
    /// As an error of ours. `read 65536 bytes of nbd://host/disk`, `EIO`, the server's words.
    pub fn into_error(self, doing: &str, at: u64) -> Error {
        let name = frame::errno_name(self.errno);
        let words = if self.message.is_empty() { name } else { format!("{name} ({})", self.message) };
        Error::new(frame::kind_of_errno(self.errno), format!("{doing}: server says {words}"))
            .at(ByteOffset(self.at.unwrap_or(at)))
    }
}

/// A request as [`replay`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// What it asks.
    pub command: Command,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

/// What [`replay`] found for a request: its bytes (of a read), its descriptors by context (of a block status).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Bytes of a read.
    pub data: Vec<u8>,
    /// Descriptors of a block status request.
    pub status: BTreeMap<u32, Vec<Descriptor>>,
    /// The server's refusal.
    pub failure: Option<Failure>,
}

/// Decodes a whole stream of replies, as a connection would, without one: for tests and fuzzing. The cookies are the
/// positions in `asked`. Returns the answers that ended, by cookie; stops at the end of the bytes (also in mid reply) or
/// with an error at the first violation.
pub fn replay(asked: &[Asked], structured: bool, mut bytes: &[u8]) -> Result<BTreeMap<u64, Answer>> {
    let mut pending: BTreeMap<u64, (Pending, Answer)> = asked
        .iter()
        .zip(0u64..)
        .map(|(asked, cookie)| {
            let len = if asked.command == Command::Read { asked.len as usize } else { 0 };
            let answer = Answer { data: vec![0xa5; len], ..Answer::default() };
            (cookie, (Pending::new(asked.command, asked.offset, asked.len, structured), answer))
        })
        .collect();
    let mut answers = BTreeMap::new();
    while let Some((header, used)) = ReplyHeader::decode(bytes)? {
        bytes = &bytes[used..];
        let cookie = header.cookie();
        let (request, answer) = pending
            .get_mut(&cookie)
            .ok_or_else(|| protocol(format!("reply with cookie {cookie:#x}, which is not in flight")))?;
        let Some(rest) = replay_payload(request, answer, header, bytes)? else { break };
        bytes = rest;
        match request.ended(header) {
            None => continue,
            Some(Err(Ending::Broken(error))) => return Err(error),
            Some(Err(Ending::Failed(failure))) => answer.failure = Some(failure),
            Some(Ok(())) => {}
        }
        if let Some((_, answer)) = pending.remove(&cookie) {
            answers.insert(cookie, answer);
        }
    }
    Ok(answers)
}

/// Takes one payload from the front of `bytes`; `None` when it is not all there.
fn replay_payload<'a>(
    request: &mut Pending,
    answer: &mut Answer,
    header: ReplyHeader,
    bytes: &'a [u8],
) -> Result<Option<&'a [u8]>> {
    let payload = request.begin(header)?;
    let len = match payload {
        Payload::None => 0,
        Payload::Data => answer.data.len(),
        Payload::OffsetData { len } => 8 + len as usize,
        Payload::Hole => 12,
        Payload::Status { len } | Payload::Error { len } => len as usize,
    };
    let Some((taken, rest)) = bytes.split_at_checked(len) else { return Ok(None) };
    let outside = || Error::new(Kind::OutOfRange, "place for a chunk");
    match payload {
        Payload::None => {}
        Payload::Data => answer.data.copy_from_slice(taken),
        Payload::OffsetData { len } => {
            let mut cursor = Cursor::new(taken);
            let place = request.data(cursor.u64()?, len)?;
            answer.data.get_mut(place).ok_or_else(outside)?.copy_from_slice(cursor.take(len as usize)?);
        }
        Payload::Hole => {
            let place = request.hole(taken.first_chunk().ok_or_else(outside)?)?;
            answer.data.get_mut(place).ok_or_else(outside)?.fill(0);
        }
        Payload::Status { .. } => {
            let (context, descriptors) = request.status(taken)?;
            answer.status.insert(context, descriptors);
        }
        Payload::Error { .. } => {
            let kind = if let ReplyHeader::Chunk { kind, .. } = header { kind } else { chunk::ERROR };
            request.error(kind, taken)?;
        }
    }
    Ok(Some(rest))
}
