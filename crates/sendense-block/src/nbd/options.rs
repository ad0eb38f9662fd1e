//! What a caller may say about a connection. Invariant: what [`Options::check`] lets through can be sent.

use super::{TlsOptions, Uri, frame};
use crate::error::{Error, Kind, Result};
use std::time::Duration;

/// Connections to one export: beyond a few, servers only contend; 16 is what nbdcopy's users go to.
const CONNECTIONS_MAX: usize = 16;
/// Metadata contexts: one bitmap per checkpoint that somebody may ask for.
const CONTEXTS_MAX: usize = 64;

/// How to reach an export and how patient to be. Start with [`Options::new`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the export is.
    pub uri: Uri,
    /// Metadata contexts to ask for beside `base:allocation`, such as `qemu:dirty-bitmap:NAME`.
    pub contexts: Vec<String>,
    /// How many connections to open. More than one only takes effect where it is safe: the server says so
    /// (`CAN_MULTI_CONN`), or [`Options::read_only`] is set.
    pub connections: usize,
    /// The caller will not write, nor does anybody else whose writes it must see. Writes are then refused here.
    pub read_only: bool,
    /// Certificates, for `nbds://` and `nbds+unix://`.
    pub tls: Option<TlsOptions>,
    /// Longest wait for the server to accept a connection.
    pub connect_timeout: Duration,
    /// Longest haggling, TLS included.
    pub handshake_timeout: Duration,
    /// Longest wait for a request in flight without a byte for it. Altogether a request may take ten times as long.
    pub request_timeout: Duration,
    /// Reads and writes are cut into requests of at most this many bytes, up to 16 of which are in flight for one call: a
    /// lone thread that reads fast asks for 1 MiB or more at a time.
    pub request_bytes: u32,
    /// Whether and how to replace a connection that died. Concerns reads and status only: after a lost write nobody knows
    /// what the server has, so the caller must decide.
    pub reconnect: Option<Reconnect>,
}

/// How to replace a connection that died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect {
    /// How many times one call tries; at most 100.
    pub retries: u32,
    /// How long to wait before the second try; doubles with each further one, up to 30 s.
    pub back_off: Duration,
}

impl Options {
    /// One connection, no TLS material, the deadlines that suit a server in the same building.
    pub fn new(uri: Uri) -> Self {
        Self {
            uri,
            contexts: Vec::new(),
            connections: 1,
            read_only: false,
            tls: None,
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            // Measured on two cores over a unix socket: qemu-nbd gives 3 GiB in 1.5 s so and in 2.5 s with requests of 1 MiB,
            // more connections gain nothing, and nbdkit does not mind either way.
            request_bytes: 256 * 1024,
            reconnect: None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |context: String| Err(Error::new(Kind::Invalid, context));
        if self.tls.is_some() && !self.uri.tls() {
            return bad(format!("{} is not encrypted, but certificates are given: write nbds", self.uri));
        }
        if self.connections == 0 || self.connections > CONNECTIONS_MAX {
            return bad(format!("{} connections; 1 to {CONNECTIONS_MAX} are possible", self.connections));
        }
        if self.contexts.len() > CONTEXTS_MAX {
            return bad(format!("{} contexts; at most {CONTEXTS_MAX} are possible", self.contexts.len()));
        }
        for context in &self.contexts {
            if context.is_empty() || context.len() > frame::STRING_BYTES_MAX || context.contains('\0') {
                return bad(format!("{context:?} is no name for a context"));
            }
        }
        if !(4096..=frame::PAYLOAD_BYTES_MAX).contains(&self.request_bytes) {
            return bad(format!("requests of {} bytes; 4096 to 32 MiB are possible", self.request_bytes));
        }
        if self.reconnect.is_some_and(|reconnect| reconnect.retries > 100) {
            return bad("more than 100 retries".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_sent() {
        let good = Options::new("nbd://host/".parse().unwrap());
        assert!(good.check().is_ok());
        let reconnect = Some(Reconnect { retries: 101, back_off: Duration::ZERO });
        for bad in [
            Options { connections: 0, ..good.clone() },
            Options { connections: 17, ..good.clone() },
            Options { contexts: vec![String::new()], ..good.clone() },
            Options { contexts: vec!["x".repeat(4097)], ..good.clone() },
            Options { contexts: vec!["x".into(); 65], ..good.clone() },
            Options { request_bytes: 512, ..good.clone() },
            Options { request_bytes: u32::MAX, ..good.clone() },
            Options { tls: Some(TlsOptions::default()), ..good.clone() },
            Options { reconnect, ..good },
        ] {
            assert_eq!(bad.check().unwrap_err().kind, Kind::Invalid, "{bad:?}");
        }
    }
}
