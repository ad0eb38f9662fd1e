//! The words of the NBD protocol: constants, and the fixed-size messages to and from bytes.
//!
//! What lives here: everything both a client and a server say, without I/O and without state. What does not: who may say
//! what when (`handshake`), and what a reply means for a request (`reply`).
//!
//! The numbers are those of `doc/proto.md` of the NetworkBlockDevice project, sections "Values" and "Protocol phases".
//! Everything is big-endian. Invariant: no function here panics, whatever the bytes.

use crate::error::{Error, Kind, Result};

/// First word of a server ("Newstyle negotiation").
pub const MAGIC_SERVER: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Second word of a newstyle server, and first of every option.
pub const MAGIC_OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Second word of an oldstyle server.
pub const MAGIC_OLDSTYLE: u64 = 0x0000_4202_8186_1253;
/// First word of every option reply.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// First word of every request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub const MAGIC_CHUNK: u32 = 0x668e_33ef;

/// Handshake flag, both sides: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, both sides: no 124 bytes of padding after `NBD_OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Transmission flags ("Transmission flags").
pub mod export_flags {
    /// The field is valid.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_CMD_FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_FUA` works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// A rotational medium.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `NBD_CMD_TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `NBD_CMD_WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `NBD_CMD_FLAG_DF` works.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see each other's writes and flush for each other.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `NBD_CMD_CACHE` works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `NBD_CMD_FLAG_FAST_ZERO` works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Option numbers ("Option types").
pub mod option {
    /// Choose an export and start; cannot fail politely.
    pub const EXPORT_NAME: u32 = 1;
    /// Leave.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Switch to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and start.
    pub const GO: u32 = 7;
    /// Structured replies from now on.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Option reply numbers ("Option reply types").
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// A fact about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The server does not know the option.
    pub const ERR_UNSUP: u32 = ERROR_BIT + 1;
    /// The server's policy forbids it.
    pub const ERR_POLICY: u32 = ERROR_BIT + 2;
    /// The option was malformed.
    pub const ERR_INVALID: u32 = ERROR_BIT + 3;
    /// The server's platform cannot do it.
    pub const ERR_PLATFORM: u32 = ERROR_BIT + 4;
    /// TLS must be started first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT + 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT + 6;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT + 7;
    /// The client must ask for block sizes.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT + 8;
    /// The option was too big.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT + 9;
}

/// Information numbers of `NBD_REP_INFO` ("Option reply types").
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// Words for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Command flags ("Command flags").
pub mod command_flags {
    /// Reply when the write is on stable storage.
    pub const FUA: u16 = 1 << 0;
    /// Write zeros without making a hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One content chunk at most.
    pub const DF: u16 = 1 << 2;
    /// One block status descriptor per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than write zeros slowly.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunk types of structured replies ("Structured reply types").
pub mod chunk {
    /// Flag: the reply's last chunk.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing more to say.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Block status descriptors of one context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error type.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The request failed.
    pub const ERROR: u16 = ERROR_BIT + 1;
    /// The request failed at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;
}

/// Status flags of `base:allocation` ("Metadata contexts").
pub mod allocation {
    /// Nothing is allocated here; says nothing about what a read gives.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// Status flag of `qemu:dirty-bitmap:NAME` (QEMU's `docs/interop/nbd.txt`): the range changed.
pub const DIRTY_BITMAP_DIRTY: u32 = 1 << 0;

/// Error numbers of replies ("Error values").
pub mod errno {
    /// Operation not permitted.
    pub const EPERM: u32 = 1;
    /// Input/output error.
    pub const EIO: u32 = 5;
    /// Cannot allocate memory.
    pub const ENOMEM: u32 = 12;
    /// Invalid argument.
    pub const EINVAL: u32 = 22;
    /// No space left on device.
    pub const ENOSPC: u32 = 28;
    /// Value too large.
    pub const EOVERFLOW: u32 = 75;
    /// Operation not supported.
    pub const ENOTSUP: u32 = 95;
    /// The server is going down.
    pub const ESHUTDOWN: u32 = 108;
}

/// The longest string of the protocol ("Conventions").
pub const STRING_BYTES_MAX: usize = 4096;
/// Bytes of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk's header.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of an option without its payload.
pub const OPTION_BYTES: usize = 16;
/// Bytes of an option reply without its payload.
pub const OPTION_REPLY_BYTES: usize = 20;
/// Largest payload that every server takes when it names no limit ("Block size constraints").
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Give bytes.
    Read,
    /// Take bytes.
    Write,
    /// Goodbye; has no reply.
    Disconnect,
    /// Make writes durable.
    Flush,
    /// Forget a range.
    Trim,
    /// Read ahead.
    Cache,
    /// Make a range zero.
    WriteZeroes,
    /// Tell a range's status.
    BlockStatus,
}

impl Command {
    /// Its number on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }

    /// The command with this number; a server answers `EINVAL` to others.
    pub const fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }

    /// Its name in messages.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Cache => "cache",
            Self::WriteZeroes => "zero",
            Self::BlockStatus => "ask the status of",
        }
    }
}

/// A request's header ("Request message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flags`].
    pub flags: u16,
    /// The command's number; see [`Command::from_code`].
    pub command: u16,
    /// Comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

impl Request {
    /// To the wire.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// From the wire.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self> {
        let mut cursor = Cursor::new(bytes);
        match cursor.u32()? {
            MAGIC_REQUEST => {}
            other => return Err(protocol(format!("request starts with {other:#010x} instead of its magic"))),
        }
        Ok(Self {
            flags: cursor.u16()?,
            command: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            len: cursor.u32()?,
        })
    }
}

/// The start of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// "Simple reply message".
    Simple {
        /// 0, or see [`errno`].
        error: u32,
        /// The request's.
        cookie: u64,
    },
    /// "Structured reply chunk message".
    Chunk {
        /// See [`chunk::FLAG_DONE`].
        flags: u16,
        /// See [`chunk`].
        kind: u16,
        /// The request's.
        cookie: u64,
        /// Bytes of payload that follow.
        len: u32,
    },
}

impl ReplyHeader {
    /// From the wire: the header and how many bytes it took, or `None` when more bytes are needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let Some(magic) = bytes.first_chunk::<4>() else { return Ok(None) };
        match u32::from_be_bytes(*magic) {
            MAGIC_SIMPLE_REPLY if bytes.len() >= SIMPLE_REPLY_BYTES => {
                let mut cursor = Cursor::new(&bytes[4..]);
                Ok(Some((Self::Simple { error: cursor.u32()?, cookie: cursor.u64()? }, SIMPLE_REPLY_BYTES)))
            }
            MAGIC_CHUNK if bytes.len() >= CHUNK_BYTES => {
                let mut cursor = Cursor::new(&bytes[4..]);
                let header = Self::Chunk {
                    flags: cursor.u16()?,
                    kind: cursor.u16()?,
                    cookie: cursor.u64()?,
                    len: cursor.u32()?,
                };
                Ok(Some((header, CHUNK_BYTES)))
            }
            MAGIC_SIMPLE_REPLY | MAGIC_CHUNK => Ok(None),
            other => Err(protocol(format!("reply starts with {other:#010x}, which is no reply magic"))),
        }
    }

    /// To the wire.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Simple { error, cookie } => {
                [&MAGIC_SIMPLE_REPLY.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
            }
            Self::Chunk { flags, kind, cookie, len } => [
                &MAGIC_CHUNK.to_be_bytes()[..],
                &flags.to_be_bytes(),
                &kind.to_be_bytes(),
                &cookie.to_be_bytes(),
                &len.to_be_bytes(),
            ]
            .concat(),
        }
    }

    /// Whose reply it is.
    pub const fn cookie(&self) -> u64 {
        match *self {
            Self::Simple { cookie, .. } | Self::Chunk { cookie, .. } => cookie,
        }
    }
}

/// An option with its payload, to the wire.
pub fn encode_option(option: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("our options are a few strings of at most 4096 bytes");
    [&MAGIC_OPTION.to_be_bytes()[..], &option.to_be_bytes(), &len.to_be_bytes(), payload].concat()
}

/// The start of an option reply ("Fixed newstyle negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReply {
    /// The option it answers.
    pub option: u32,
    /// See [`option_reply`].
    pub kind: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}

impl OptionReply {
    /// From the wire.
    pub fn decode(bytes: &[u8; OPTION_REPLY_BYTES]) -> Result<Self> {
        let mut cursor = Cursor::new(bytes);
        match cursor.u64()? {
            MAGIC_OPTION_REPLY => Ok(Self { option: cursor.u32()?, kind: cursor.u32()?, len: cursor.u32()? }),
            other => Err(protocol(format!("option reply starts with {other:#018x} instead of its magic"))),
        }
    }

    /// To the wire, without its payload.
    pub fn encode(&self) -> [u8; OPTION_REPLY_BYTES] {
        let mut bytes = [0; OPTION_REPLY_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.kind.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// What kind of failure an error number is, seen from the client.
pub const fn kind_of_errno(error: u32) -> Kind {
    match error {
        errno::EPERM => Kind::Denied,
        errno::EINVAL => Kind::Invalid,
        errno::ENOSPC => Kind::NoSpace,
        errno::EOVERFLOW | errno::ENOTSUP => Kind::Unsupported,
        errno::ESHUTDOWN => Kind::Unavailable,
        _ => Kind::Io,
    }
}

/// An error number's name.
pub fn errno_name(error: u32) -> String {
    match error {
        errno::EPERM => "EPERM".into(),
        errno::EIO => "EIO".into(),
        errno::ENOMEM => "ENOMEM".into(),
        errno::EINVAL => "EINVAL".into(),
        errno::ENOSPC => "ENOSPC".into(),
        errno::EOVERFLOW => "EOVERFLOW".into(),
        errno::ENOTSUP => "ENOTSUP".into(),
        errno::ESHUTDOWN => "ESHUTDOWN".into(),
        other => format!("error {other}"),
    }
}

/// An error that blames the peer.
pub(crate) fn protocol(context: impl Into<String>) -> Error {
    Error::new(Kind::Protocol, context)
}

/// Walks over a message's bytes; running out of them is the peer's fault.
#[derive(Debug, Clone)]
pub struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// At the start of a message.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| protocol(format!("message ends {} bytes early", N - self.0.len())))?;
        self.0 = rest;
        Ok(*head)
    }

    /// 16 bits.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.0.len() {
            return Err(protocol(format!("message claims {len} bytes where {} are left", self.0.len())));
        }
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(head)
    }

    /// A string that names something: UTF-8 without NUL, at most [`STRING_BYTES_MAX`] bytes.
    pub fn string(&mut self, len: usize) -> Result<String> {
        let bytes = check_string(self.take(len)?)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| protocol("string is not UTF-8"))
    }

    /// A string for people: as [`Cursor::string`], but bytes that are not UTF-8 are shown as such.
    pub fn text(&mut self, len: usize) -> Result<String> {
        Ok(String::from_utf8_lossy(check_string(self.take(len)?)?).into_owned())
    }

    /// How many bytes are left.
    pub const fn left(&self) -> usize {
        self.0.len()
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(protocol(format!("message has {left} bytes too many"))),
        }
    }
}

fn check_string(bytes: &[u8]) -> Result<&[u8]> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(protocol(format!("string of {} bytes, more than the {STRING_BYTES_MAX} allowed", bytes.len())));
    }
    if bytes.contains(&0) {
        return Err(protocol("string holds a NUL"));
    }
    Ok(bytes)
}
