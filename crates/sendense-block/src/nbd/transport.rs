//! Bytes to and from a server: sockets with deadlines, in two halves, with or without TLS.
//!
//! What lives here: [`Link`] (one socket and everything that may end a wait on it), its [`Receiver`] and [`Sender`]. What
//! does not: what the bytes mean. Invariant: no call blocks longer than its [`Patience`] allows by more than one tick, and
//! a cancelled link's calls return at once.
//!
//! A socket is read and written by different threads at the same time. Plain, the halves are independent. With TLS both
//! need the one session, which is locked only to turn bytes into bytes, never while a thread waits in the socket; the
//! records a sender produces are in order on the wire because whoever sends holds the only [`Sender`].

use super::uri::{Address, Uri};
use crate::cancel::{Cancel, HookGuard};
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustls::ClientConnection;
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
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
/// Addresses tried for one host name.
const ADDRESSES_MAX: usize = 8;

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
        // Centuries of patience must not overflow the clock: a day is as good as for ever here.
        Self { idle, moved: now, end: now + total.min(Duration::from_secs(86_400)) }
    }

    /// A byte came or went.
    pub(super) fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// When it ends if nothing moves.
    pub(super) fn until(&self) -> Instant {
        (self.moved + self.idle.min(Duration::from_secs(86_400))).min(self.end)
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

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
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
        cancel.check()?;
        let deadline = Instant::now() + timeout.min(Duration::from_secs(86_400));
        let socket = match uri.address() {
            Address::Unix(path) => {
                let address = SocketAddrUnix::new(path.as_path())
                    .map_err(|errno| Error::io(format!("use {} as a socket's path", path.display()), errno.into()))?;
                let fd = connect(AddressFamily::UNIX, &address, deadline, cancel)
                    .map_err(|error| absent(error).within(format!("connect to socket {}", path.display())))?;
                Socket::Unix(fd.into())
            }
            Address::Tcp { host, port } => Socket::Tcp(connect_tcp(host, *port, deadline, cancel)?),
        };
        let link = Arc::new(Self { socket, cancel: cancel.clone() });
        let weak = Arc::downgrade(&link);
        let guard = cancel.on_cancel(move || {
            if let Some(link) = weak.upgrade() {
                link.shutdown();
            }
        });
        Ok((link, guard))
    }

    /// How often waits on this link look up; set once, before the link is used.
    pub(super) fn set_tick(&self, patience: Duration) -> Result<()> {
        let tick = Some((patience / 4).clamp(TICK_MIN, TICK_MAX));
        match &self.socket {
            Socket::Tcp(socket) => socket.set_read_timeout(tick).and_then(|()| socket.set_write_timeout(tick)),
            Socket::Unix(socket) => socket.set_read_timeout(tick).and_then(|()| socket.set_write_timeout(tick)),
        }
        .map_err(|error| Error::io("set a socket's timeouts", error))
    }

    /// Ends every wait on it, now and for ever.
    pub(super) fn shutdown(&self) {
        // An error says that it is shut down already.
        let _ = match &self.socket {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
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

    fn recv(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        let (count, _) = rustix::net::recv(&self.socket, buf, flags)?;
        Ok(count)
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.socket {
            Socket::Tcp(socket) => (&*socket).write_vectored(parts),
            Socket::Unix(socket) => (&*socket).write_vectored(parts),
        }
    }
}

/// Connects without ever blocking in the system call: a full backlog or a silent host must not outlast a cancellation.
fn connect(
    family: AddressFamily,
    address: &impl rustix::net::addr::SocketAddrArg,
    deadline: Instant,
    cancel: &Cancel,
) -> Result<OwnedFd> {
    let system = |errno: Errno| Error::io("connect", errno.into());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(system)?;
    loop {
        cancel.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(Kind::Deadline, "server did not accept the connection in time"));
        }
        match rustix::net::connect(&fd, address) {
            Ok(()) | Err(Errno::ISCONN) => break,
            Err(Errno::INTR) => {}
            Err(Errno::INPROGRESS | Errno::ALREADY) => {
                let tick = timespec(left.min(TICK_MAX / 5));
                match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&tick)) {
                    Ok(0) | Err(Errno::INTR) => {}
                    Ok(_) => {
                        rustix::net::sockopt::socket_error(&fd).map_err(system)?.map_err(system)?;
                        break;
                    }
                    Err(errno) => return Err(system(errno)),
                }
            }
            // A unix socket's backlog is full; nothing can be polled for that.
            Err(Errno::AGAIN) => std::thread::sleep(left.min(TICK_MIN)),
            Err(errno) => return Err(system(errno)),
        }
    }
    rustix::io::ioctl_fionbio(&fd, false).map_err(system)?;
    Ok(fd)
}

/// A socket that is not there means a server that is not up, which may change; "not found" is for exports.
fn absent(mut error: Error) -> Error {
    if error.kind == Kind::NotFound {
        error.kind = Kind::Unavailable;
    }
    error
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() }
}

fn connect_tcp(host: &str, port: u16, deadline: Instant, cancel: &Cancel) -> Result<TcpStream> {
    let addresses = resolve(host, port, deadline, cancel)?;
    let mut last = Error::new(Kind::Unavailable, format!("find an address of {host}"));
    for (at, address) in addresses.iter().enumerate() {
        // What is left is shared by the addresses left, so that one silent address does not eat it all.
        let share = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - at) as u32;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        match connect(family, address, Instant::now() + share, cancel) {
            Ok(fd) => {
                let socket = TcpStream::from(fd);
                // Requests are small and somebody waits for each.
                socket.set_nodelay(true).map_err(|error| Error::io("set TCP_NODELAY", error))?;
                return Ok(socket);
            }
            Err(error) if error.kind == Kind::Cancelled => return Err(error),
            Err(error) => last = error.within(format!("connect to {address}")),
        }
    }
    Err(last)
}

/// The resolver of the C library can neither be stopped nor given a deadline, so a name is looked up on a thread of its
/// own, which ends when the resolver gives up (10 s by default); addresses need none.
fn resolve(host: &str, port: u16, deadline: Instant, cancel: &Cancel) -> Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (give, take) = mpsc::sync_channel(1);
    let name = host.to_owned();
    std::thread::Builder::new()
        .name("nbd-resolve".into())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs().map(|found| found.take(ADDRESSES_MAX).collect());
            // Nobody listens any more after a deadline.
            let _ = give.send(found);
        })
        .map_err(|error| Error::io("start a thread", error))?;
    loop {
        cancel.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(Kind::Deadline, format!("no address of {host} was found in time")));
        }
        match take.recv_timeout(left.min(TICK_MAX / 5)) {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => {
                return Err(Error::new(Kind::Unavailable, format!("find an address of {host}")).caused_by(error));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Kind::Unavailable, format!("find an address of {host}")));
            }
        }
    }
}

/// The half that takes bytes from the server.
pub(super) struct Receiver {
    link: Arc<Link>,
    tls: Option<(Arc<Mutex<ClientConnection>>, Buffer)>,
    ahead: Buffer,
}

/// The half that gives bytes to the server.
pub(super) struct Sender {
    link: Arc<Link>,
    tls: Option<Arc<Mutex<ClientConnection>>>,
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
            None => wait(patience, || self.link.recv(buf, flags))?,
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
    tls: &Mutex<ClientConnection>,
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
        let count = wait(patience, || link.recv(records.room(), RecvFlags::empty()))?;
        records.end += count;
        if count == 0 {
            tls.lock().read_tls(&mut io::empty()).map_err(Broken::Io)?;
        }
    }
}

/// Feeds received records to the session.
fn digest(session: &mut ClientConnection, records: &mut Buffer) -> Result<(), Broken> {
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

fn drain(session: &mut ClientConnection, records: &mut Vec<u8>) -> Result<(), Broken> {
    while session.wants_write() {
        session.write_tls(records).map_err(Broken::Io)?;
    }
    Ok(())
}

fn send(link: &Link, mut parts: &mut [IoSlice<'_>], patience: &mut Patience) -> Result<(), Broken> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        let count = wait(patience, || link.send(parts))?;
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
    mut session: ClientConnection,
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
            let count = wait(patience, || receiver.link.recv(records.room(), RecvFlags::empty()))?;
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
