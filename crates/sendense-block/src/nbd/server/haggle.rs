//! The haggling before the first request, the server's side: greeting, TLS, options.
//!
//! What lives here: `doc/proto.md`, sections "Fixed newstyle negotiation" and "Option types". What does not: parsing
//! (`words`), requests (`session`). Invariant: where TLS is demanded, nothing about exports is said or done before it.
//!
//! ```text
//! greeting -> [STARTTLS] -> LIST, INFO, STRUCTURED_REPLY, SET_META_CONTEXT … -> GO or EXPORT_NAME -> requests
//!          -> ABORT, a broken rule, too many options, too late               -> the end
//! ```

use super::exports::{Entry, Exports};
use super::options::Options;
use super::tls::Tls;
use super::words::{OptionHeader, Query, Wanted};
use crate::error::Error;
use crate::nbd::frame::{self, OptionReply, info, option, option_reply};
use crate::nbd::status::BASE_ALLOCATION;
use crate::nbd::transport::{self, Broken, Patience, Receiver, Sender};
use std::io::IoSlice;
use std::sync::Arc;

/// The number by which we call `base:allocation`.
pub(super) const BASE_ALLOCATION_ID: u32 = 1;
/// Longest payload of an option that is looked at: a name and some contexts, each of up to 4096 bytes.
const PAYLOAD_MAX: u32 = 32 * 1024;
/// A payload up to this long is read away and answered with "too big"; whoever sends more is cut off.
const SKIPPED_MAX: u32 = 1 << 20;

/// Why there are no requests to serve.
#[derive(Debug)]
pub(super) enum End {
    /// The client said goodbye.
    Left,
    /// The socket or the client's patience with us ended.
    Broken(Broken),
    /// The client broke the protocol, or a limit.
    Refused(String),
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Refused(crate::error::chain(&error))
    }
}

/// What was agreed on.
pub(super) struct Agreed {
    pub(super) entry: Arc<Entry>,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

pub(super) struct Haggling<'a> {
    options: &'a Options,
    exports: &'a Exports,
    receiver: &'a mut Receiver,
    sender: &'a mut Sender,
    patience: Patience,
    encrypted: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    contexts_of: Option<String>,
}

impl<'a> Haggling<'a> {
    pub(super) fn new(
        options: &'a Options,
        exports: &'a Exports,
        receiver: &'a mut Receiver,
        sender: &'a mut Sender,
    ) -> Self {
        let patience = Patience::new(options.handshake_timeout, options.handshake_timeout);
        Self {
            options,
            exports,
            receiver,
            sender,
            patience,
            encrypted: false,
            no_zeroes: false,
            structured: false,
            contexts_of: None,
        }
    }

    /// Until an export is chosen.
    pub(super) fn run(mut self, tls: Option<&Tls>) -> Result<Agreed, End> {
        self.greet()?;
        for _ in 0..self.options.handshake_options_max {
            let mut header = [0; frame::OPTION_BYTES];
            self.receiver.exact(&mut header, &mut self.patience)?;
            let OptionHeader { option, len } = OptionHeader::decode(&header)?;
            if len > PAYLOAD_MAX {
                self.skip(option, len)?;
                continue;
            }
            let payload = self.receiver.bytes(len as usize, &mut self.patience)?;
            if let Some(tls) = tls
                && !self.encrypted
            {
                self.before_tls(tls, option, &payload)?;
                continue;
            }
            match option {
                option::EXPORT_NAME => return self.export_name(&payload),
                option::GO => {
                    if let Some(entry) = self.describe(option, &payload)? {
                        return Ok(self.agreed(entry));
                    }
                }
                option::INFO => {
                    self.describe(option, &payload)?;
                }
                option::LIST => self.list(&payload)?,
                option::STRUCTURED_REPLY if payload.is_empty() => {
                    self.structured = true;
                    self.acknowledge(option)?;
                }
                option::STRUCTURED_REPLY => self.refuse(option, option_reply::ERR_INVALID, "it has no payload")?,
                option::SET_META_CONTEXT => self.set_contexts(&payload)?,
                option::LIST_META_CONTEXT => self.list_contexts(&payload)?,
                option::STARTTLS if self.encrypted => {
                    self.refuse(option, option_reply::ERR_INVALID, "TLS is on already")?;
                }
                option::STARTTLS => self.refuse(option, option_reply::ERR_POLICY, "this server has no certificate")?,
                option::ABORT => return Err(self.abort()),
                _ => self.refuse(option, option_reply::ERR_UNSUP, "the option is not known")?,
            }
        }
        Err(End::Refused(format!("more than {} options", self.options.handshake_options_max)))
    }

    fn greet(&mut self) -> Result<(), End> {
        let flags = frame::FLAG_FIXED_NEWSTYLE | frame::FLAG_NO_ZEROES;
        let greeting =
            [&frame::MAGIC_SERVER.to_be_bytes()[..], &frame::MAGIC_OPTION.to_be_bytes(), &flags.to_be_bytes()].concat();
        self.give(&greeting)?;
        let mut answer = [0; 4];
        self.receiver.exact(&mut answer, &mut self.patience)?;
        let theirs = u32::from_be_bytes(answer);
        if theirs & !u32::from(flags) != 0 {
            return Err(End::Refused(format!("client flags {theirs:#x} are not known")));
        }
        self.no_zeroes = theirs & u32::from(frame::FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    /// "TLS versions", FORCEDTLS mode: nothing but TLS and goodbyes.
    fn before_tls(&mut self, tls: &Tls, option: u32, payload: &[u8]) -> Result<(), End> {
        match option {
            option::STARTTLS if payload.is_empty() => {
                self.acknowledge(option)?;
                // Options are read to the byte, so what anybody sent after this one is TLS or breaks it.
                let session = tls.session()?;
                transport::start_tls(self.receiver, self.sender, session, &mut self.patience)?;
                self.encrypted = true;
                Ok(())
            }
            option::STARTTLS => self.refuse(option, option_reply::ERR_INVALID, "it has no payload"),
            option::ABORT => Err(self.abort()),
            // It has no way to be refused politely.
            option::EXPORT_NAME => Err(End::Refused("export chosen before TLS".into())),
            _ => self.refuse(option, option_reply::ERR_TLS_REQD, "start TLS first"),
        }
    }

    fn abort(&mut self) -> End {
        // Clients often leave without waiting for it.
        let _ = self.acknowledge(option::ABORT);
        End::Left
    }

    fn export_name(mut self, payload: &[u8]) -> Result<Agreed, End> {
        let found = std::str::from_utf8(payload).ok().and_then(|name| self.find(name));
        let entry = found.ok_or_else(|| End::Refused("unknown export".into()))?;
        let mut answer = [&entry.size.to_be_bytes()[..], &entry.flags.to_be_bytes()].concat();
        if !self.no_zeroes {
            answer.resize(answer.len() + 124, 0);
        }
        self.give(&answer)?;
        Ok(self.agreed(entry))
    }

    fn agreed(&self, entry: Arc<Entry>) -> Agreed {
        let allocation = self.structured && self.contexts_of.as_deref() == Some(entry.name.as_str());
        Agreed { entry, structured: self.structured, allocation }
    }

    fn find(&self, name: &str) -> Option<Arc<Entry>> {
        if name.len() > self.options.name_bytes_max {
            return None;
        }
        self.exports.find(name)
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`: the export, if there is one.
    fn describe(&mut self, option: u32, payload: &[u8]) -> Result<Option<Arc<Entry>>, End> {
        let Ok(wanted) = Wanted::parse(payload) else {
            self.refuse(option, option_reply::ERR_INVALID, "it is malformed")?;
            return Ok(None);
        };
        let Some(entry) = self.find(&wanted.name) else {
            self.unknown(option)?;
            return Ok(None);
        };
        let sizes = [1, entry.options.preferred_bytes, frame::PAYLOAD_BYTES_MAX].map(u32::to_be_bytes).concat();
        self.fact(option, info::EXPORT, &[&entry.size.to_be_bytes()[..], &entry.flags.to_be_bytes()].concat())?;
        self.fact(option, info::BLOCK_SIZE, &sizes)?;
        if wanted.infos.contains(&info::NAME) {
            self.fact(option, info::NAME, entry.name.as_bytes())?;
        }
        if wanted.infos.contains(&info::DESCRIPTION) && !entry.options.description.is_empty() {
            self.fact(option, info::DESCRIPTION, entry.options.description.as_bytes())?;
        }
        self.acknowledge(option)?;
        Ok(Some(entry))
    }

    fn list(&mut self, payload: &[u8]) -> Result<(), End> {
        if !payload.is_empty() {
            return self.refuse(option::LIST, option_reply::ERR_INVALID, "it has no payload");
        }
        if self.options.list_names {
            for (name, description) in self.exports.names() {
                let len = (name.len() as u32).to_be_bytes();
                let item = [&len[..], name.as_bytes(), description.as_bytes()].concat();
                self.reply(option::LIST, option_reply::SERVER, &item)?;
            }
        }
        self.acknowledge(option::LIST)
    }

    fn set_contexts(&mut self, payload: &[u8]) -> Result<(), End> {
        // "A client that sends it again replaces what it chose", also where the second choice fails.
        self.contexts_of = None;
        let Some(query) = self.query(option::SET_META_CONTEXT, payload)? else { return Ok(()) };
        if query.contexts.iter().any(|context| context == BASE_ALLOCATION) {
            self.context(option::SET_META_CONTEXT, BASE_ALLOCATION_ID)?;
            self.contexts_of = Some(query.name);
        }
        self.acknowledge(option::SET_META_CONTEXT)
    }

    fn list_contexts(&mut self, payload: &[u8]) -> Result<(), End> {
        let Some(query) = self.query(option::LIST_META_CONTEXT, payload)? else { return Ok(()) };
        let asked = |context: &String| context == "base:" || context == BASE_ALLOCATION;
        if query.contexts.is_empty() || query.contexts.iter().any(asked) {
            self.context(option::LIST_META_CONTEXT, 0)?;
        }
        self.acknowledge(option::LIST_META_CONTEXT)
    }

    /// A query about an export that exists; everything else is answered.
    fn query(&mut self, option: u32, payload: &[u8]) -> Result<Option<Query>, End> {
        if !self.structured {
            self.refuse(option, option_reply::ERR_INVALID, "choose structured replies first")?;
            return Ok(None);
        }
        let Ok(query) = Query::parse(payload) else {
            self.refuse(option, option_reply::ERR_INVALID, "it is malformed")?;
            return Ok(None);
        };
        if self.find(&query.name).is_none() {
            self.unknown(option)?;
            return Ok(None);
        }
        Ok(Some(query))
    }

    fn skip(&mut self, option: u32, len: u32) -> Result<(), End> {
        // A choice of an export has no answer but the export.
        if len > SKIPPED_MAX || option == option::EXPORT_NAME {
            return Err(End::Refused(format!("option {option} of {len} bytes")));
        }
        let mut left = len as usize;
        let mut waste = [0; 4096];
        while left > 0 {
            let now = left.min(waste.len());
            self.receiver.exact(&mut waste[..now], &mut self.patience)?;
            left -= now;
        }
        self.refuse(option, option_reply::ERR_TOO_BIG, "the option is too long")
    }

    fn unknown(&mut self, option: u32) -> Result<(), End> {
        self.refuse(option, option_reply::ERR_UNKNOWN, "there is no such export")
    }

    fn acknowledge(&mut self, option: u32) -> Result<(), End> {
        self.reply(option, option_reply::ACK, &[])
    }

    fn refuse(&mut self, option: u32, kind: u32, words: &str) -> Result<(), End> {
        self.reply(option, kind, words.as_bytes())
    }

    fn fact(&mut self, option: u32, kind: u16, fact: &[u8]) -> Result<(), End> {
        self.reply(option, option_reply::INFO, &[&kind.to_be_bytes()[..], fact].concat())
    }

    fn context(&mut self, option: u32, id: u32) -> Result<(), End> {
        self.reply(option, option_reply::META_CONTEXT, &[&id.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat())
    }

    fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> Result<(), End> {
        // Our payloads are names, descriptions and a few words.
        let len = u32::try_from(payload.len()).map_err(|_| End::Refused("reply too long".into()))?;
        self.give(&[&OptionReply { option, kind, len }.encode()[..], payload].concat())
    }

    fn give(&mut self, bytes: &[u8]) -> Result<(), End> {
        Ok(self.sender.all(&mut [IoSlice::new(bytes)], &mut self.patience)?)
    }
}
