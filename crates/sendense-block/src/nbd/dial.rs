//! From an address to a connected socket.
//!
//! What lives here: name lookup, connecting, and the [`Socket`] of either family. What does not: what is said over it.
//! Invariant: connecting ends within its time, and within a second of a cancellation, whatever the network does.

use super::uri::Address;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, IoSlice, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a wait lasts before it looks at the cancellation again: well below the second within which that must work.
const TICK: Duration = Duration::from_millis(100);
/// How long to wait before a full backlog is tried again, for which nothing can be polled.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);
/// Addresses tried for one host name.
const ADDRESSES_MAX: usize = 8;
/// Centuries of patience must not overflow the clock: a day is as good as for ever here.
pub(super) const FOREVER: Duration = Duration::from_secs(86_400);

/// A connected socket.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// How long a read or a write blocks before it says `WouldBlock`.
    pub(super) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout);
        match self {
            Self::Tcp(socket) => socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout)),
            Self::Unix(socket) => socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout)),
        }
    }

    /// Ends every call on it, now and for ever.
    pub(super) fn shutdown(&self) {
        // An error says that it is shut down already.
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }

    pub(super) fn recv(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        let (count, _) = match self {
            Self::Tcp(socket) => rustix::net::recv(socket, buf, flags)?,
            Self::Unix(socket) => rustix::net::recv(socket, buf, flags)?,
        };
        Ok(count)
    }

    pub(super) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => (&*socket).write_vectored(parts),
            Self::Unix(socket) => (&*socket).write_vectored(parts),
        }
    }
}

/// Connects. Waits at most `timeout`.
pub(super) fn dial(address: &Address, timeout: Duration, cancel: &Cancel) -> Result<Socket> {
    cancel.check()?;
    let deadline = Instant::now() + timeout.min(FOREVER);
    match address {
        Address::Unix(path) => {
            let doing = |error: Error| error.within(format!("connect to socket {}", path.display()));
            let address = SocketAddrUnix::new(path.as_path()).map_err(|errno| doing(system(errno)))?;
            let fd = connect(AddressFamily::UNIX, &address, deadline, cancel);
            Ok(Socket::Unix(fd.map_err(|error| doing(absent(error)))?.into()))
        }
        Address::Tcp { host, port } => Ok(Socket::Tcp(connect_tcp(host, *port, deadline, cancel)?)),
    }
}

fn system(errno: Errno) -> Error {
    Error::io("connect", errno.into())
}

/// Connects without ever blocking in the system call: a full backlog or a silent host must not outlast a cancellation.
fn connect(
    family: AddressFamily,
    address: &impl rustix::net::addr::SocketAddrArg,
    deadline: Instant,
    cancel: &Cancel,
) -> Result<OwnedFd> {
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
                let tick = timespec(left.min(TICK));
                match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&tick)) {
                    Ok(0) | Err(Errno::INTR) => {}
                    Ok(_) => {
                        rustix::net::sockopt::socket_error(&fd).map_err(system)?.map_err(system)?;
                        break;
                    }
                    Err(errno) => return Err(system(errno)),
                }
            }
            // A unix socket's backlog is full.
            Err(Errno::AGAIN) => std::thread::sleep(left.min(BACKLOG_PAUSE)),
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
        match take.recv_timeout(left.min(TICK)) {
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
