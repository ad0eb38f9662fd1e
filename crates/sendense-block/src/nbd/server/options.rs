//! What a server may be told. Invariant: what [`Options::check`] lets through can be served.

use super::tls::ServerTls;
use crate::error::{Error, Kind, Result};
use crate::nbd::frame;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The longest read or write: what every client may send when it was told no limit.
pub(super) const REQUEST_BYTES_MAX: u64 = frame::PAYLOAD_BYTES_MAX as u64;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A socket in the file system, for its owner only (mode 0600). One that a dead server left behind is replaced.
    Unix(PathBuf),
    /// A TCP port; port 0 takes a free one. Anything but loopback demands [`Options::tls`].
    Tcp(SocketAddr),
}

/// Where a server listens, whom it trusts, and how much it takes. Start with [`Options::new`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen.
    pub listen: Listen,
    /// Certificates. With them every client must encrypt and show a certificate of the client authority.
    pub tls: Option<ServerTls>,
    /// Whether `NBD_OPT_LIST` names the exports. Without, strangers see an empty list, and a name is a secret.
    pub list_names: bool,
    /// Connections at the same time; further ones are closed at once.
    pub clients_max: usize,
    /// Threads that serve requests of one connection. They start as requests come.
    pub workers_per_client: usize,
    /// Bytes in flight of one connection: payloads on the way in, and data until it is sent. One request of 32 MiB always
    /// fits.
    pub client_bytes_max: u64,
    /// Bytes in flight of all connections.
    pub bytes_max: u64,
    /// Requests of one connection that were taken and not yet answered.
    pub requests_max: usize,
    /// Options that a client may send before it must choose an export.
    pub handshake_options_max: usize,
    /// The longest export name that can be added or asked for.
    pub name_bytes_max: usize,
    /// The whole haggling, TLS included.
    pub handshake_timeout: Duration,
    /// How long a client may take none of a reply, or send none of the rest of a request it began.
    pub stall_timeout: Duration,
    /// How long a client may ask nothing; no limit when absent.
    pub idle_timeout: Option<Duration>,
}

impl Options {
    /// The limits that suit a hub's restores: dozens of clients, 256 MiB.
    pub fn new(listen: Listen) -> Self {
        Self {
            listen,
            tls: None,
            list_names: false,
            // nbdcopy opens 4 connections, QEMU one per disk: a dozen restores and some lookers-on.
            clients_max: 64,
            // Decompression keeps a core busy; one more than the cores, because one of them is usually sending. Beyond 8 a
            // single connection's socket is the bottleneck.
            workers_per_client: std::thread::available_parallelism().map_or(2, |cores| cores.get() + 1).clamp(2, 8),
            // nbdcopy keeps 64 requests of 256 KiB in flight per connection, which is 16 MiB; the largest request is 32.
            client_bytes_max: REQUEST_BYTES_MAX,
            // Eight connections at their limit.
            bytes_max: 8 * REQUEST_BYTES_MAX,
            // fio's and nbdcopy's queues are 64 deep; a reply without data costs some hundred bytes.
            requests_max: 256,
            // Clients send about five, and two per export of a list.
            handshake_options_max: 256,
            name_bytes_max: 256,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            idle_timeout: None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |context: String| Err(Error::new(Kind::Invalid, context));
        if let Listen::Tcp(address) = self.listen
            && !address.ip().is_loopback()
            && self.tls.is_none()
        {
            let context = format!("listen on {address}: beyond this machine, clients must show certificates (TLS)");
            return Err(Error::new(Kind::Denied, context));
        }
        if !(1..=4096).contains(&self.clients_max) {
            return bad(format!("{} clients at the same time; 1 to 4096 are possible", self.clients_max));
        }
        if !(1..=64).contains(&self.workers_per_client) {
            return bad(format!("{} workers per client; 1 to 64 are possible", self.workers_per_client));
        }
        if self.client_bytes_max < REQUEST_BYTES_MAX || self.bytes_max < self.client_bytes_max {
            return bad(format!(
                "{} bytes in flight per client and {} in total; a client needs {REQUEST_BYTES_MAX}, the total no less",
                self.client_bytes_max, self.bytes_max
            ));
        }
        if !(1..=65_536).contains(&self.requests_max) {
            return bad(format!("{} requests in flight; 1 to 65536 are possible", self.requests_max));
        }
        if self.handshake_options_max < 8 {
            return bad("fewer than 8 options per handshake: clients send as many".into());
        }
        if !(1..=frame::STRING_BYTES_MAX).contains(&self.name_bytes_max) {
            return bad(format!("names of {} bytes; 1 to 4096 are possible", self.name_bytes_max));
        }
        let timeouts = [Some(self.handshake_timeout), Some(self.stall_timeout), self.idle_timeout];
        if timeouts.into_iter().flatten().any(|timeout| timeout < Duration::from_millis(10)) {
            return bad("a timeout below 10 ms".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_served_is_refused_at_the_start() {
        let good = Options::new(Listen::Tcp("127.0.0.1:0".parse().unwrap()));
        assert!(good.check().is_ok());
        let on = |address: &str| Options { listen: Listen::Tcp(address.parse().unwrap()), ..good.clone() };
        assert!(on("[::1]:0").check().is_ok());
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809"] {
            assert_eq!(on(open).check().unwrap_err().kind, Kind::Denied, "{open}");
        }
        for bad in [
            Options { clients_max: 0, ..good.clone() },
            Options { workers_per_client: 0, ..good.clone() },
            Options { workers_per_client: 65, ..good.clone() },
            Options { client_bytes_max: 1, ..good.clone() },
            Options { bytes_max: REQUEST_BYTES_MAX - 1, ..good.clone() },
            Options { requests_max: 0, ..good.clone() },
            Options { handshake_options_max: 1, ..good.clone() },
            Options { name_bytes_max: 0, ..good.clone() },
            Options { name_bytes_max: 4097, ..good.clone() },
            Options { stall_timeout: Duration::ZERO, ..good.clone() },
            Options { idle_timeout: Some(Duration::ZERO), ..good },
        ] {
            assert_eq!(bad.check().unwrap_err().kind, Kind::Invalid, "{bad:?}");
        }
    }
}
