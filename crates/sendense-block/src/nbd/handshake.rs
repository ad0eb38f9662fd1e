//! The haggling before the first request: newstyle greeting, TLS, options, and the list of exports.
//!
//! What lives here: the client's side of `doc/proto.md`, sections "Fixed newstyle negotiation" and "Option types". What
//! does not: requests. Invariant: everything that an [`Export`] says has been checked; what the server forbids or does
//! not know is an error with its words, never a guess.
//!
//! ```text
//! greeting -> [STARTTLS] -> STRUCTURED_REPLY -> SET_META_CONTEXT -> GO           -> requests
//!                                                                -> EXPORT_NAME  -> requests  (server knows no GO)
//!                        -> STRUCTURED_REPLY -> LIST -> (INFO, LIST_META_CONTEXT) per export -> ABORT
//! ```

use super::Options;
use super::frame::{self, Cursor, OptionReply, export_flags, info, option, option_reply, protocol};
use super::transport::{self, Broken, Link, LinkGuard, Patience, Receiver, Sender};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::units::ByteLen;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

/// Largest option reply we take: two strings of 4096 bytes and their lengths, rounded up.
const REPLY_BYTES_MAX: u32 = 16 * 1024;
/// Replies to one option: there are four kinds of information, and servers may tell more than was asked.
const REPLIES_MAX: usize = 64;
/// Exports or contexts in a list: far above what a server of virtual machines' disks has, far below what would hurt.
const LIST_MAX: usize = 16 * 1024;
/// Exports that [`list`] asks about one by one: each is two round trips, together some seconds on a slow network.
const DESCRIBED_MAX: usize = 1024;
/// The block sizes' bounds ("Block size constraints").
const MIN_BLOCK_BYTES_MAX: u32 = 64 * 1024;

/// What a server told about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Export {
    pub(super) size: ByteLen,
    pub(super) flags: u16,
    pub(super) blocks: BlockSizes,
    pub(super) description: Option<String>,
    /// Metadata contexts that were agreed on, with their numbers.
    pub(super) contexts: BTreeMap<String, u32>,
    pub(super) structured: bool,
}

/// Smallest, preferred and largest request, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of this; a power of two, at most 64 KiB.
    pub minimum: u32,
    /// What the server likes best.
    pub preferred: u32,
    /// No read or write may be longer.
    pub maximum: u32,
}

impl BlockSizes {
    /// What a careful client assumes of a server that says nothing.
    const UNKNOWN: Self = Self { minimum: 512, preferred: 4096, maximum: frame::PAYLOAD_BYTES_MAX };

    fn check(self) -> Result<Self> {
        let Self { minimum, preferred, maximum } = self;
        let good = minimum.is_power_of_two()
            && minimum <= MIN_BLOCK_BYTES_MAX
            && preferred.is_power_of_two()
            && preferred >= minimum
            && maximum >= minimum
            && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
        if !good {
            return Err(protocol(format!(
                "block sizes {minimum} (smallest), {preferred} (preferred), {maximum} (largest) make no sense"
            )));
        }
        // Larger requests gain nothing, and a server that takes more than everybody must is not asked to.
        Ok(Self { maximum: maximum.min(frame::PAYLOAD_BYTES_MAX), ..self })
    }
}

/// An export of a server, as [`list`] finds it. What a server does not tell of an export it will not open is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// What to ask for.
    pub name: String,
    /// The server's words about it; may be empty.
    pub description: String,
    /// Its size.
    pub size: Option<ByteLen>,
    /// Whether writes are refused.
    pub read_only: Option<bool>,
    /// Its metadata contexts.
    pub contexts: Vec<String>,
}

/// A connection that is ready for requests.
pub(super) struct Ready {
    pub(super) link: Arc<Link>,
    pub(super) guard: LinkGuard,
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
    pub(super) export: Export,
}

/// Connects and chooses the export.
pub(super) fn connect(options: &Options, contexts: &[String], cancel: &Cancel) -> Result<Ready> {
    let mut haggling = Haggling::greet(options, cancel)?;
    let name = options.uri.export();
    let structured = haggling.structured_replies()?;
    let contexts = if structured { haggling.set_contexts(name, contexts)? } else { BTreeMap::new() };
    let facts = match haggling.describe(option::GO, name)? {
        Described::Export(facts) => facts,
        Described::Refused(error) => return Err(error),
        // Only then: EXPORT_NAME cannot say why it fails.
        Described::UnknownOption => haggling.export_name(name)?,
    };
    haggling.link.set_tick(options.request_timeout)?;
    let Haggling { link, guard, receiver, sender, .. } = haggling;
    let Facts { size, flags, blocks, description } = facts;
    let blocks = blocks.unwrap_or(BlockSizes::UNKNOWN);
    let export = Export { size, flags, blocks, description, contexts, structured };
    Ok(Ready { link, guard, receiver, sender, export })
}

/// Names a server's exports, with what it tells about each (for the first thousand).
pub fn list(options: &Options, cancel: &Cancel) -> Result<Vec<ExportInfo>> {
    let doing = |error: Error| error.within(format!("list the exports of {}", options.uri));
    list_exports(options, cancel).map_err(doing)
}

fn list_exports(options: &Options, cancel: &Cancel) -> Result<Vec<ExportInfo>> {
    let mut haggling = Haggling::greet(options, cancel)?;
    let structured = haggling.structured_replies()?;
    let mut exports = haggling.list()?;
    for export in exports.iter_mut().take(DESCRIBED_MAX) {
        if let Described::Export(facts) = haggling.describe(option::INFO, &export.name)? {
            export.size = Some(facts.size);
            export.read_only = Some(facts.flags & export_flags::READ_ONLY != 0);
            if export.description.is_empty() {
                export.description = facts.description.unwrap_or_default();
            }
        }
        if structured {
            export.contexts = haggling.list_contexts(&export.name)?;
        }
    }
    haggling.abort();
    Ok(exports)
}

struct Haggling {
    link: Arc<Link>,
    guard: LinkGuard,
    receiver: Receiver,
    sender: Sender,
    patience: Patience,
    no_zeroes: bool,
}

struct Facts {
    size: ByteLen,
    flags: u16,
    blocks: Option<BlockSizes>,
    description: Option<String>,
}

enum Described {
    Export(Facts),
    Refused(Error),
    UnknownOption,
}

enum Reply {
    Ack,
    Item { kind: u32, payload: Vec<u8> },
    Refused { kind: u32, error: Error },
}

impl Haggling {
    fn greet(options: &Options, cancel: &Cancel) -> Result<Self> {
        options.check()?;
        let (link, guard) = Link::connect(&options.uri, options.connect_timeout, cancel)?;
        link.set_tick(options.handshake_timeout)?;
        let (receiver, sender) = transport::halves(link.clone());
        let patience = Patience::new(options.handshake_timeout, options.handshake_timeout);
        let mut haggling = Self { link, guard, receiver, sender, patience, no_zeroes: false };
        haggling.newstyle()?;
        if options.uri.tls() {
            haggling.start_tls(options)?;
        }
        Ok(haggling)
    }

    fn newstyle(&mut self) -> Result<()> {
        let greeting = self.take(16)?;
        let mut cursor = Cursor::new(&greeting);
        let (first, second) = (cursor.u64()?, cursor.u64()?);
        if first != frame::MAGIC_SERVER {
            return Err(protocol("what answers is no NBD server"));
        }
        match second {
            frame::MAGIC_OPTION => {}
            frame::MAGIC_OLDSTYLE => {
                return Err(Error::new(Kind::Unsupported, "server speaks the oldstyle protocol, withdrawn in 2016"));
            }
            other => return Err(protocol(format!("server greets with {other:#018x}"))),
        }
        let flags = Cursor::new(&self.take(2)?).u16()?;
        if flags & frame::FLAG_FIXED_NEWSTYLE == 0 {
            return Err(Error::new(Kind::Unsupported, "server does not speak the fixed newstyle protocol"));
        }
        self.no_zeroes = flags & frame::FLAG_NO_ZEROES != 0;
        let ours = flags & (frame::FLAG_FIXED_NEWSTYLE | frame::FLAG_NO_ZEROES);
        self.give(&u32::from(ours).to_be_bytes())
    }

    /// "TLS support": first of all options, so that nobody on the way can bend the others.
    fn start_tls(&mut self, options: &Options) -> Result<()> {
        let session = super::tls::session(&options.tls.clone().unwrap_or_default(), &options.uri)?;
        self.ask(option::STARTTLS, &[])?;
        match self.reply(option::STARTTLS)? {
            Reply::Ack => {}
            Reply::Item { .. } => return Err(protocol("server answers STARTTLS with an item")),
            Reply::Refused { error, .. } => {
                return Err(Error::new(Kind::Unsupported, "server offers no TLS").caused_by(error));
            }
        }
        // Option replies are read to the byte, so what anybody sent after the acknowledgement is TLS or breaks it.
        transport::start_tls(&mut self.receiver, &mut self.sender, session, &mut self.patience)
            .map_err(|broken| self.link.explain(broken))
    }

    fn structured_replies(&mut self) -> Result<bool> {
        self.ask(option::STRUCTURED_REPLY, &[])?;
        match self.reply(option::STRUCTURED_REPLY)? {
            Reply::Ack => Ok(true),
            Reply::Item { .. } => Err(protocol("server answers STRUCTURED_REPLY with an item")),
            Reply::Refused { kind: option_reply::ERR_TLS_REQD, error } => Err(error),
            Reply::Refused { .. } => Ok(false),
        }
    }

    /// Asks for contexts by name. The server agrees to those it has.
    fn set_contexts(&mut self, name: &str, wanted: &[String]) -> Result<BTreeMap<String, u32>> {
        let mut contexts = BTreeMap::new();
        self.ask(option::SET_META_CONTEXT, &context_query(name, wanted)?)?;
        for _ in 0..=wanted.len() {
            match self.reply(option::SET_META_CONTEXT)? {
                Reply::Ack => return Ok(contexts),
                Reply::Refused { kind: option_reply::ERR_UNKNOWN, error } => return Err(no_export(error)),
                Reply::Refused { kind: option_reply::ERR_TLS_REQD, error } => return Err(error),
                Reply::Refused { .. } => return Ok(BTreeMap::new()),
                Reply::Item { kind, payload } => {
                    let (id, context) = read_context(kind, &payload)?;
                    if !wanted.contains(&context) {
                        return Err(protocol(format!("server sets context {context:?}, which was not asked for")));
                    }
                    if contexts.values().any(|other| *other == id) || contexts.insert(context, id).is_some() {
                        return Err(protocol(format!("server sets context number {id} or its name twice")));
                    }
                }
            }
        }
        Err(protocol("server sets more contexts than were asked for"))
    }

    fn list_contexts(&mut self, name: &str) -> Result<Vec<String>> {
        let mut contexts = Vec::new();
        self.ask(option::LIST_META_CONTEXT, &context_query(name, &[])?)?;
        for _ in 0..LIST_MAX {
            match self.reply(option::LIST_META_CONTEXT)? {
                Reply::Ack => return Ok(contexts),
                Reply::Refused { .. } => return Ok(Vec::new()),
                Reply::Item { kind, payload } => contexts.push(read_context(kind, &payload)?.1),
            }
        }
        Err(protocol(format!("server lists more than {LIST_MAX} contexts")))
    }

    fn list(&mut self) -> Result<Vec<ExportInfo>> {
        let mut exports = Vec::new();
        self.ask(option::LIST, &[])?;
        for _ in 0..LIST_MAX {
            match self.reply(option::LIST)? {
                Reply::Ack => return Ok(exports),
                Reply::Refused { error, .. } => return Err(error),
                Reply::Item { kind: option_reply::SERVER, payload } => {
                    let mut cursor = Cursor::new(&payload);
                    let len = cursor.u32()?;
                    let name = cursor.string(usize::try_from(len).unwrap_or(usize::MAX))?;
                    let description = cursor.text(cursor.left())?;
                    exports.push(ExportInfo { name, description, size: None, read_only: None, contexts: Vec::new() });
                }
                Reply::Item { kind, .. } => return Err(protocol(format!("server answers LIST with item {kind}"))),
            }
        }
        Err(protocol(format!("server lists more than {LIST_MAX} exports")))
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`.
    fn describe(&mut self, option: u32, name: &str) -> Result<Described> {
        let mut payload = string(name)?;
        let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
        payload.extend((wanted.len() as u16).to_be_bytes());
        payload.extend(wanted.iter().flat_map(|wanted| wanted.to_be_bytes()));
        self.ask(option, &payload)?;
        let (mut export, mut blocks, mut description) = (None, None, None);
        for _ in 0..REPLIES_MAX {
            match self.reply(option)? {
                Reply::Ack => {
                    let (size, flags) =
                        export.ok_or_else(|| protocol("server describes an export without its size"))?;
                    return Ok(Described::Export(Facts { size, flags, blocks, description }));
                }
                Reply::Refused { kind: option_reply::ERR_UNSUP, .. } => return Ok(Described::UnknownOption),
                Reply::Refused { kind: option_reply::ERR_UNKNOWN, error } => {
                    return Ok(Described::Refused(no_export(error)));
                }
                Reply::Refused { error, .. } => return Ok(Described::Refused(error)),
                Reply::Item { kind: option_reply::INFO, payload } => {
                    let mut cursor = Cursor::new(&payload);
                    match cursor.u16()? {
                        info::EXPORT => {
                            export = Some((ByteLen(cursor.u64()?), cursor.u16()?));
                            cursor.end()?;
                        }
                        info::BLOCK_SIZE => {
                            let (minimum, preferred, maximum) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
                            cursor.end()?;
                            blocks = Some(BlockSizes { minimum, preferred, maximum }.check()?);
                        }
                        info::DESCRIPTION => description = Some(cursor.text(cursor.left())?),
                        info::NAME => {
                            cursor.string(cursor.left())?;
                        }
                        // "The client MUST ignore information it does not know."
                        _ => {}
                    }
                }
                Reply::Item { kind, .. } => {
                    return Err(protocol(format!("server describes an export with item {kind}")));
                }
            }
        }
        Err(protocol(format!("server describes an export in more than {REPLIES_MAX} replies")))
    }

    /// `NBD_OPT_EXPORT_NAME`: no option reply, and a closed connection for "no".
    fn export_name(&mut self, name: &str) -> Result<Facts> {
        self.give(&frame::encode_option(option::EXPORT_NAME, name.as_bytes()))?;
        let mut answer = [0; 10];
        match self.receiver.exact(&mut answer, &mut self.patience) {
            Ok(()) => {}
            Err(Broken::CutOff) => {
                return Err(no_export(self.link.explain(Broken::Closed)));
            }
            Err(broken) => return Err(self.link.explain(broken)),
        }
        let mut cursor = Cursor::new(&answer);
        let (size, flags) = (ByteLen(cursor.u64()?), cursor.u16()?);
        if !self.no_zeroes {
            self.take(124)?;
        }
        Ok(Facts { size, flags, blocks: None, description: None })
    }

    /// Says goodbye; whether the server hears it changes nothing.
    fn abort(&mut self) {
        if self.ask(option::ABORT, &[]).is_ok() {
            let _ = self.sender.goodbye(&mut self.patience);
        }
    }

    fn ask(&mut self, option: u32, payload: &[u8]) -> Result<()> {
        self.give(&frame::encode_option(option, payload))
    }

    fn reply(&mut self, option: u32) -> Result<Reply> {
        let mut header = [0; frame::OPTION_REPLY_BYTES];
        self.receiver.exact(&mut header, &mut self.patience).map_err(|broken| self.link.explain(broken))?;
        let header = OptionReply::decode(&header)?;
        if header.option != option {
            return Err(protocol(format!("server answers option {} instead of {option}", header.option)));
        }
        if header.len > REPLY_BYTES_MAX {
            return Err(protocol(format!("option reply of {} bytes, more than {REPLY_BYTES_MAX}", header.len)));
        }
        let payload = self.take(header.len as usize)?;
        match header.kind {
            option_reply::ACK if payload.is_empty() => Ok(Reply::Ack),
            option_reply::ACK => Err(protocol("acknowledgement with a payload")),
            kind if kind & option_reply::ERROR_BIT != 0 => Ok(Reply::Refused { kind, error: refusal(kind, &payload)? }),
            kind => Ok(Reply::Item { kind, payload }),
        }
    }

    fn give(&mut self, bytes: &[u8]) -> Result<()> {
        self.sender.all(&mut [IoSlice::new(bytes)], &mut self.patience).map_err(|broken| self.link.explain(broken))
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        self.receiver.bytes(len, &mut self.patience).map_err(|broken| self.link.explain(broken))
    }
}

fn no_export(error: Error) -> Error {
    Error::new(Kind::NotFound, "server has no export of that name").caused_by(error)
}

fn refusal(kind: u32, payload: &[u8]) -> Result<Error> {
    let (our_kind, name) = match kind {
        option_reply::ERR_UNSUP => (Kind::Unsupported, "the option is not supported"),
        option_reply::ERR_POLICY => (Kind::Denied, "its policy forbids it"),
        option_reply::ERR_INVALID => (Kind::Invalid, "the option is invalid"),
        option_reply::ERR_PLATFORM => (Kind::Unsupported, "its platform does not support it"),
        option_reply::ERR_TLS_REQD => (Kind::Denied, "it wants TLS (nbds://)"),
        option_reply::ERR_UNKNOWN => (Kind::NotFound, "there is no such export"),
        option_reply::ERR_SHUTDOWN => (Kind::Unavailable, "it is shutting down"),
        option_reply::ERR_BLOCK_SIZE_REQD => (Kind::Unsupported, "it wants a client that respects block sizes"),
        option_reply::ERR_TOO_BIG => (Kind::Unsupported, "the request is too big for it"),
        _ => (Kind::Unsupported, "it failed in an unknown way"),
    };
    let words = Cursor::new(payload).text(payload.len())?;
    let words = if words.is_empty() { String::new() } else { format!(" ({words})") };
    Ok(Error::new(our_kind, format!("server says: {name}{words}")))
}

fn string(text: &str) -> Result<Vec<u8>> {
    if text.len() > frame::STRING_BYTES_MAX || text.contains('\0') {
        return Err(Error::new(Kind::Invalid, format!("{text:?} is no name for an export or a context")));
    }
    let len = u32::try_from(text.len()).expect("just compared with 4096");
    Ok([&len.to_be_bytes()[..], text.as_bytes()].concat())
}

fn context_query(name: &str, queries: &[String]) -> Result<Vec<u8>> {
    let count = u32::try_from(queries.len()).expect("checked with the options");
    let mut payload = string(name)?;
    payload.extend(count.to_be_bytes());
    for query in queries {
        payload.extend(string(query)?);
    }
    Ok(payload)
}

fn read_context(kind: u32, payload: &[u8]) -> Result<(u32, String)> {
    if kind != option_reply::META_CONTEXT {
        return Err(protocol(format!("server names a context with item {kind}")));
    }
    let mut cursor = Cursor::new(payload);
    Ok((cursor.u32()?, cursor.string(cursor.left())?))
}
