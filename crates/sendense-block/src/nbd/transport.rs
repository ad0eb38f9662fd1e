//! Bytes to and from a peer: sockets with deadlines, in two halves, with or without TLS.
//!
//! What lives here: [`Link`] (one socket and everything that may end a wait on it), its [`Receiver`] and [`Sender`]. What
//! does not: what the bytes mean. Invariant: no call blocks longer than its [`Patience`] allows by more than one tick, and
//! a cancelled link's calls return at once.
//!
//! A socket is read and written by different threads at the same time. Plain, the halves are independent. With TLS both
//! need the one session, which is locked only to turn bytes into bytes, never while a thread waits in the socket; the
//! records a sender produces are in order on the wire because whoever sends holds the only [`Sender`].

use super::dial::{FOREVER, Socket, dial};
use super::uri::Uri;
use crate::cancel::{Cancel, HookGuard};
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use rustix::net::RecvFlags;
use rustls::Connection;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a thread waits in a system call before it looks at its deadline again. Deadlines are late by at most this.
const TICK_MAX: Duration = Duration::from_millis(500);
/// Shorter would only burn time.
const TICK_MIN: Duration = Duration::from_millis(5);
/// A reply's header and a little more in one system call; what it takes of a payload is copied once more, so keep it small.
const AHEAD_BYTES: usize = 512;
/// Four TLS records of at most 16 KiB and their frames: one system call feeds several.
const RECORDS_BYTES: usize = 4 * (16 * 1024 + 256);
/// As much plaintext as is encrypted in one go, for the same reason.
const PLAINTEXT_BYTES: usize = 64 * 1024;

/// How long to wait: a limit without any byte, and one for all of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    idle: Duration,
    moved: Instant,
    end: Instant,
}

impl Patience {
    /// At most `idle` without a byte and `total` altogether, from now on.
    pub(super) fn new(idle: Duration, total: Duration) -> Self {
        let now = Instant::now();
        Self { idle: idle.min(FOREVER), moved: now, end: now + total.min(FOREVER) }
    }

    /// A byte came or went.
    pub(super) fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// When it ends if nothing moves.
    pub(super) fn until(&self) -> Instant {
        (self.moved + self.idle).min(self.end)
    }

    /// An error once it is over.
    pub(super) fn check(&self) -> Result<(), Broken> {
        let now = Instant::now();
        if now >= self.end {
            Err(Broken::Slow)
        } else if now >= self.until() {
            Err(Broken::Silent(now.saturating_duration_since(self.moved)))
        } else {
            Ok(())
        }
    }
}

/// Why bytes stopped.
#[derive(Debug)]
pub(super) enum Broken {
    /// The peer closed the connection between two messages.
    Closed,
    /// The peer closed it within one.
    CutOff,
    /// Nothing came for too long.
    Silent(Duration),
    /// Something came, but all of it took too long.
    Slow,
    /// The operating system says so.
    Io(io::Error),
    /// TLS says so.
    Tls(rustls::Error),
}

/// A connected socket, shared by its halves and by whoever may shut it down.
pub(super) struct Link {
    socket: Socket,
    cancel: Cancel,
}

/// Shuts the link down when somebody cancels, for as long as it is held.
pub(super) type LinkGuard = HookGuard;

impl Link {
    /// Connects. Waits at most `timeout`, whatever the network does.
    pub(super) fn connect(uri: &Uri, timeout: Duration, cancel: &Cancel) -> Result<(Arc<Self>, LinkGuard)> {
        let link = Self::around(dial(uri.address(), timeout, cancel)?, cancel);
        let guard = link.end_with(cancel);
        Ok((link, guard))
    }

    /// Takes a connected socket, such as one that a client opened to us.
    pub(super) fn around(socket: Socket, cancel: &Cancel) -> Arc<Self> {
        Arc::new(Self { socket, cancel: cancel.clone() })
    }

    /// Shuts the link down when somebody cancels, too.
    pub(super) fn end_with(self: &Arc<Self>, cancel: &Cancel) -> LinkGuard {
        let weak = Arc::downgrade(self);
        cancel.on_cancel(move || {
            if let Some(link) = weak.upgrade() {
                link.shutdown();
            }
        })
    }

    /// How often waits on this link look up; set once, before the link is used.
    pub(super) fn set_tick(&self, patience: Duration) -> Result<()> {
        let tick = (patience / 4).clamp(TICK_MIN, TICK_MAX);
        self.socket.set_timeout(tick).map_err(|error| Error::io("set a socket's timeouts", error))
    }

    /// Ends every wait on it, now and for ever.
    pub(super) fn shutdown(&self) {
        self.socket.shutdown();
    }

    /// What a break means to the caller.
    pub(super) fn explain(&self, broken: Broken) -> Error {
        if self.cancel.is_cancelled() {
            return Error::new(Kind::Cancelled, "stopped on request");
        }
        match broken {
            Broken::Closed => Error::new(Kind::Unavailable, "server closed the connection"),
            Broken::CutOff => Error::new(Kind::Unavailable, "server closed the connection in mid reply"),
            Broken::Silent(idle) => {
                Error::new(Kind::Deadline, format!("server sent nothing for {:.1} s", idle.as_secs_f64()))
            }
            Broken::Slow => Error::new(Kind::Deadline, "server sent too little in the time it had"),
            Broken::Io(error) => Error::io("use the connection", error),
            Broken::Tls(error) => super::tls::explain(error),
        }
    }
}

/// The half that takes bytes from the server.
pub(super) struct Receiver {
    link: Arc<Link>,
    tls: Option<(Arc<Mutex<Connection>>, Buffer)>,
    ahead: Buffer,
}

/// The half that gives bytes to the server.
pub(super) struct Sender {
    link: Arc<Link>,
    tls: Option<Arc<Mutex<Connection>>>,
    records: Vec<u8>,
}

/// Bytes that were received and not yet used.
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        Self { bytes: vec![0; len].into(), start: 0, end: 0 }
    }

    fn held(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn take(&mut self, buf: &mut [u8]) -> usize {
        let count = buf.len().min(self.held().len());
        buf[..count].copy_from_slice(&self.held()[..count]);
        self.start += count;
        count
    }

    /// Moves what is held to the front and gives the room behind it.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.bytes[self.end..]
    }
}

/// The two halves of a fresh link, without TLS.
pub(super) fn halves(link: Arc<Link>) -> (Receiver, Sender) {
    let sender = Sender { link: link.clone(), tls: None, records: Vec::new() };
    (Receiver { link, tls: None, ahead: Buffer::new(AHEAD_BYTES) }, sender)
}

impl Receiver {
    /// Fills `buf`.
    pub(super) fn exact(&mut self, buf: &mut [u8], patience: &mut Patience) -> Result<(), Broken> {
        let mut filled = self.ahead.take(buf);
        while filled < buf.len() {
            match self.some(Some(&mut buf[filled..]), patience) {
                Ok(0) => return Err(Broken::CutOff),
                Ok(count) => filled += count,
                Err(broken) => return Err(broken),
            }
        }
        Ok(())
    }

    /// Takes `len` bytes.
    pub(super) fn bytes(&mut self, len: usize, patience: &mut Patience) -> Result<Vec<u8>, Broken> {
        let mut bytes = vec![0; len];
        self.exact(&mut bytes, patience)?;
        Ok(bytes)
    }

    /// Waits until at least one byte of the next message is there.
    pub(super) fn any(&mut self, patience: &mut Patience) -> Result<(), Broken> {
        if self.ahead.held().is_empty() && self.some(None, patience)? == 0 {
            return Err(Broken::Closed);
        }
        Ok(())
    }

    /// Takes a message whose length its own bytes tell: `decode` says how many bytes it used, or `None` for "more".
    /// No message may be longer than the read-ahead buffer.
    pub(super) fn message<T>(
        &mut self,
        patience: &mut Patience,
        decode: impl Fn(&[u8]) -> Result<Option<(T, usize)>>,
    ) -> Result<Result<T>, Broken> {
        loop {
            match decode(self.ahead.held()) {
                Ok(Some((message, used))) => {
                    self.ahead.start += used;
                    return Ok(Ok(message));
                }
                Ok(None) => {}
                Err(error) => return Ok(Err(error)),
            }
            if self.some(None, patience)? == 0 {
                return Err(if self.ahead.held().is_empty() { Broken::Closed } else { Broken::CutOff });
            }
        }
    }

    /// Receives at least a byte, into `target` or the read-ahead buffer; 0 at the end of the stream.
    fn some(&mut self, target: Option<&mut [u8]>, patience: &mut Patience) -> Result<usize, Broken> {
        // For a payload, the kernel collects: one call per payload, not one per packet.
        let flags = if target.is_some() { RecvFlags::WAITALL } else { RecvFlags::empty() };
        let ahead = target.is_none();
        let buf = match target {
            Some(target) => target,
            None => self.ahead.room(),
        };
        let count = match &mut self.tls {
            None => wait(patience, || self.link.socket.recv(buf, flags))?,
            Some((tls, records)) => decrypt(&self.link, tls, records, buf, patience)?,
        };
        if ahead {
            self.ahead.end += count;
        }
        Ok(count)
    }
}

/// Runs a socket call until it did something.
fn wait(patience: &mut Patience, mut call: impl FnMut() -> io::Result<usize>) -> Result<usize, Broken> {
    loop {
        match call() {
            Ok(count) => {
                patience.moved();
                // Also when bytes come: a server that drips them must not keep us for ever.
                patience.check()?;
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => patience.check()?,
            Err(error) => return Err(Broken::Io(error)),
        }
    }
}

fn decrypt(
    link: &Link,
    tls: &Mutex<Connection>,
    records: &mut Buffer,
    buf: &mut [u8],
    patience: &mut Patience,
) -> Result<usize, Broken> {
    loop {
        let mut session = tls.lock();
        match session.reader().read(buf) {
            Ok(count) => return Ok(count),
            // The peer closed without TLS's goodbye: perhaps somebody between cut it. Not a clean end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Broken::Io(error)),
        }
        if !records.held().is_empty() {
            digest(&mut session, records)?;
            continue;
        }
        drop(session);
        let count = wait(patience, || link.socket.recv(records.room(), RecvFlags::empty()))?;
        records.end += count;
        if count == 0 {
            tls.lock().read_tls(&mut io::empty()).map_err(Broken::Io)?;
        }
    }
}

/// Feeds received records to the session.
fn digest(session: &mut Connection, records: &mut Buffer) -> Result<(), Broken> {
    let mut held = records.held();
    let count = session.read_tls(&mut held).map_err(Broken::Io)?;
    records.start += count;
    session.process_new_packets().map_err(Broken::Tls)?;
    Ok(())
}

impl Sender {
    /// Sends the parts, one after the other.
    pub(super) fn all(&mut self, parts: &mut [IoSlice<'_>], patience: &mut Patience) -> Result<(), Broken> {
        let Some(tls) = &self.tls else { return send(&self.link, parts, patience) };
        for part in parts.iter() {
            let mut rest: &[u8] = part;
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(PLAINTEXT_BYTES));
                let mut session = tls.lock();
                let mut done = 0;
                while done < now.len() {
                    done += session.writer().write(&now[done..]).map_err(Broken::Io)?;
                    drain(&mut session, &mut self.records)?;
                }
                drop(session);
                rest = later;
                if self.records.len() >= PLAINTEXT_BYTES {
                    send(&self.link, &mut [IoSlice::new(&self.records)], patience)?;
                    self.records.clear();
                }
            }
        }
        send(&self.link, &mut [IoSlice::new(&self.records)], patience)?;
        self.records.clear();
        Ok(())
    }

    /// Sends TLS's goodbye, if there is TLS.
    pub(super) fn goodbye(&mut self, patience: &mut Patience) -> Result<(), Broken> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let mut session = tls.lock();
        session.send_close_notify();
        drain(&mut session, &mut self.records)?;
        drop(session);
        send(&self.link, &mut [IoSlice::new(&self.records)], patience)
    }
}

fn drain(session: &mut Connection, records: &mut Vec<u8>) -> Result<(), Broken> {
    while session.wants_write() {
        session.write_tls(records).map_err(Broken::Io)?;
    }
    Ok(())
}

fn send(link: &Link, mut parts: &mut [IoSlice<'_>], patience: &mut Patience) -> Result<(), Broken> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let count = wait(patience, || link.socket.send(parts))?;
        if count == 0 {
            return Err(Broken::Closed);
        }
        IoSlice::advance_slices(&mut parts, count);
    }
    Ok(())
}

/// Does the TLS handshake on two plain halves and makes them encrypted ones.
pub(super) fn start_tls(
    receiver: &mut Receiver,
    sender: &mut Sender,
    mut session: Connection,
    patience: &mut Patience,
) -> Result<(), Broken> {
    let mut records = Buffer::new(RECORDS_BYTES);
    let result = loop {
        let mut out = Vec::new();
        drain(&mut session, &mut out)?;
        send(&sender.link, &mut [IoSlice::new(&out)], patience)?;
        if !session.is_handshaking() {
            break Ok(());
        }
        if records.held().is_empty() {
            let count = wait(patience, || receiver.link.socket.recv(records.room(), RecvFlags::empty()))?;
            if count == 0 {
                break Err(Broken::CutOff);
            }
            records.end += count;
        }
        if let Err(broken) = digest(&mut session, &mut records) {
            // Tell the server why, as TLS asks for; whether it arrives changes nothing.
            let mut alert = Vec::new();
            if drain(&mut session, &mut alert).is_ok() {
                let _ = send(&sender.link, &mut [IoSlice::new(&alert)], patience);
            }
            break Err(broken);
        }
    };
    result?;
    let session = Arc::new(Mutex::new(session));
    receiver.tls = Some((session.clone(), records));
    sender.tls = Some(session);
    Ok(())
}
