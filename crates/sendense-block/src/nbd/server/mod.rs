//! An NBD server: restore points and overlays for any NBD client, on one socket.
//!
//! What lives here: listening and ending (`Server`, `listen`), what is on offer (`exports`, `device`), who may come in
//! (`tls`), the haggling (`haggle`, `words`), requests (`session`, `request`, `work`), replies (`outbox`) and their limits
//! (`budget`, `options`). What does not: what is behind a device, who gave it a name, and when it ends. All calls block and
//! all threads are this module's own; async callers put `start`, `shutdown` and `close` on a thread for blocking work, the
//! rest is immediate.
//!
//! Invariant: whatever bytes a client sends, it gets nothing but what is on offer under a name that it knows, and it holds
//! no more than its share of memory, threads and time.
//!
//! ```text
//! accept --> one thread per connection: haggle, then take requests --> up to N workers of that connection --> outbox
//! ```

mod budget;
mod device;
mod exports;
mod haggle;
mod listen;
mod options;
mod outbox;
mod request;
mod session;
mod tls;
mod words;
mod work;

pub use device::{Device, Unmapped, WritableDisk};
pub use exports::{ExportGuard, ExportOptions, ExportStatus, Exports, Trim};
pub use options::{Listen, Options};
pub use tls::ServerTls;

use super::dial::Socket;
use super::transport::{self, Link};
use super::uri::{Address, Uri};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result, chain};
use budget::Total;
use haggle::{Agreed, End, Haggling};
use listen::Listener;
use session::Session;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tls::Tls;

/// When the process has no more descriptors or threads, clients leave sooner or later.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A running server. Dropping it ends it.
pub struct Server {
    hall: Arc<Hall>,
    address: Address,
    /// Closing it wakes the accepting thread up to stop.
    wake: Option<UnixStream>,
    accepting: Option<JoinHandle<()>>,
}

/// What all connections share.
struct Hall {
    options: Options,
    exports: Exports,
    tls: Option<Tls>,
    cancel: Cancel,
    total: Arc<Total>,
    clients: AtomicUsize,
}

impl Server {
    /// Listens. Exports may be added and removed before and after.
    pub fn start(options: Options, exports: Exports) -> Result<Self> {
        let hall = Hall::new(options, exports)?;
        let listener = Listener::bind(&hall.options.listen)?;
        let address = listener.address().clone();
        let (wake, woken) = UnixStream::pair().map_err(|error| Error::io("make a pair of sockets", error))?;
        let hall = Arc::new(hall);
        let shared = hall.clone();
        let accepting = Builder::new()
            .name("nbd-accept".into())
            .spawn(move || accept(&shared, &listener, &woken))
            .map_err(|error| Error::io("start a thread", error))?;
        Ok(Self { hall, address, wake: Some(wake), accepting: Some(accepting) })
    }

    /// Where it listens, with the port that was free.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// What a client calls an export.
    pub fn uri(&self, export: &str) -> Result<Uri> {
        let uri = match &self.address {
            Address::Tcp { host, port } => Uri::tcp(host, *port, export)?,
            Address::Unix(path) => Uri::unix(path, export)?,
        };
        Ok(if self.hall.tls.is_some() { uri.with_tls() } else { uri })
    }

    /// What it offers.
    pub fn exports(&self) -> &Exports {
        &self.hall.exports
    }

    /// Connections that are open, those that still haggle included.
    pub fn clients(&self) -> usize {
        self.hall.clients.load(Ordering::SeqCst)
    }

    /// Cuts all clients off and waits for all threads, which is as long as a request in a device takes.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.hall.cancel.cancel();
        drop(self.wake.take());
        if let Some(accepting) = self.accepting.take()
            && accepting.join().is_err()
        {
            tracing::error!("NBD server's accepting thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Serves one client on a stream that is already open, such as an inherited socket, until it leaves or is cut off. Blocks.
/// [`Options::listen`] has no meaning here.
pub fn converse(stream: UnixStream, options: Options, exports: &Exports) -> Result<()> {
    let hall = Hall::new(options, exports.clone())?;
    match hall.serve(Socket::Unix(stream)) {
        End::Left => Ok(()),
        End::Refused(why) => Err(Error::new(Kind::Protocol, format!("cut the client off: {why}"))),
        End::Broken(broken) => Err(Error::new(Kind::Unavailable, format!("client is gone: {broken:?}"))),
    }
}

fn accept(hall: &Arc<Hall>, listener: &Listener, woken: &UnixStream) {
    let mut guests: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let socket = match listener.accept(woken) {
            Ok(Some(socket)) => socket,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(reason = chain(&error), "NBD client was not accepted");
                std::thread::sleep(EXHAUSTED_PAUSE);
                continue;
            }
        };
        let (ended, going): (Vec<_>, Vec<_>) = guests.into_iter().partition(JoinHandle::is_finished);
        guests = going;
        ended.into_iter().for_each(join);
        if hall.clients.load(Ordering::SeqCst) >= hall.options.clients_max {
            tracing::warn!(clients_max = hall.options.clients_max, "NBD client was turned away: too many are here");
            continue;
        }
        let guest = Guest::enter(hall);
        match Builder::new().name("nbd-client".into()).spawn(move || guest.stay(socket)) {
            Ok(thread) => guests.push(thread),
            Err(error) => {
                tracing::warn!(reason = chain(&error), "NBD client has no thread");
                std::thread::sleep(EXHAUSTED_PAUSE);
            }
        }
    }
    guests.into_iter().for_each(join);
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of an NBD client panicked");
    }
}

/// A connection, counted as long as it lives.
struct Guest(Arc<Hall>);

impl Guest {
    fn enter(hall: &Arc<Hall>) -> Self {
        hall.clients.fetch_add(1, Ordering::SeqCst);
        Self(hall.clone())
    }

    fn stay(self, socket: Socket) {
        match self.0.serve(socket) {
            End::Left => tracing::debug!("NBD client left"),
            End::Broken(broken) => tracing::debug!(?broken, "NBD client is gone"),
            End::Refused(reason) => tracing::info!(reason, "NBD client was cut off"),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Hall {
    fn new(options: Options, exports: Exports) -> Result<Self> {
        options.check()?;
        let tls = options.tls.as_ref().map(Tls::load).transpose()?;
        let total = Total::new(options.bytes_max);
        Ok(Self { options, exports, tls, cancel: Cancel::new(), total, clients: AtomicUsize::new(0) })
    }

    fn serve(&self, socket: Socket) -> End {
        self.serve_or_end(socket).unwrap_or_else(|end| end)
    }

    fn serve_or_end(&self, socket: Socket) -> Result<End, End> {
        let options = &self.options;
        let link = Link::around(socket, &self.cancel);
        let _stopped = link.end_with(&self.cancel);
        let shortest = options.handshake_timeout.min(options.stall_timeout);
        link.set_tick(options.idle_timeout.map_or(shortest, |idle| idle.min(shortest)))?;
        let (mut receiver, mut sender) = transport::halves(link.clone());
        let agreed = Haggling::new(options, &self.exports, &mut receiver, &mut sender).run(self.tls.as_ref())?;
        let Agreed { entry, .. } = &agreed;
        let _removed = link.end_with(&entry.removed);
        let Some(_user) = entry.join() else { return Err(End::Refused("the export was removed".into())) };
        Ok(Session::new(options, &self.cancel, agreed, link, sender, self.total.clone()).run(&mut receiver))
    }
}
