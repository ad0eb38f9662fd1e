//! Where clients come in.
//!
//! What lives here: binding a socket so that only those may connect who should, accepting, and being woken up to stop.
//! What does not: what clients say. Invariant: nobody but its owner can ever connect to a unix socket of ours, and no
//! socket of a living server is taken away.

use super::options::Listen;
use crate::error::{Error, Kind, Result};
use crate::nbd::dial::Socket;
use crate::nbd::uri::Address;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Clients that wait to be accepted; the kernel's default limit is higher, and accepting takes microseconds.
const BACKLOG: i32 = 128;
/// Only its owner may connect.
const SOCKET_MODE: u32 = 0o600;
/// A peer that vanished without a word is noticed after 60 + 6 * 10 seconds.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_PAUSE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 6;

pub(super) struct Listener {
    socket: Listening,
    address: Address,
}

enum Listening {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf, device: u64, inode: u64 },
}

impl Listener {
    pub(super) fn bind(listen: &Listen) -> Result<Self> {
        let (socket, address) = match listen {
            Listen::Tcp(address) => {
                let doing = |error| Error::io(format!("listen on {address}"), error);
                let listener = TcpListener::bind(address).map_err(doing)?;
                let bound = listener.local_addr().map_err(doing)?;
                let address = Address::Tcp { host: bound.ip().to_string(), port: bound.port() };
                listener.set_nonblocking(true).map_err(doing)?;
                (Listening::Tcp(listener), address)
            }
            Listen::Unix(path) => {
                let listener =
                    bind_unix(path).map_err(|error| error.within(format!("listen on {}", path.display())))?;
                (listener, Address::Unix(path.clone()))
            }
        };
        Ok(Self { socket, address })
    }

    /// Where it listens, with the port that was free.
    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for a client; `None` once the other end of `wake` is closed.
    pub(super) fn accept(&self, wake: &UnixStream) -> io::Result<Option<Socket>> {
        loop {
            let mut waits = [PollFd::new(self, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
            match rustix::event::poll(&mut waits, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if !waits[1].revents().is_empty() {
                return Ok(None);
            }
            let accepted = match &self.socket {
                Listening::Tcp(listener) => {
                    listener.accept().and_then(|(socket, _)| prepare(&socket).map(|()| Socket::Tcp(socket)))
                }
                Listening::Unix { listener, .. } => listener.accept().map(|(socket, _)| Socket::Unix(socket)),
            };
            match accepted {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.map(Some),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Listening::Tcp(listener) => listener.as_fd(),
            Listening::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listening::Unix { path, device, inode, .. } = &self.socket
            && let Ok(found) = fs::symlink_metadata(path)
            && (found.dev(), found.ino()) == (*device, *inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Replies are small and somebody waits for each; clients may vanish.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_PAUSE)?;
    sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_PROBES)?;
    Ok(())
}

fn bind_unix(path: &Path) -> Result<Listening> {
    let system = |errno: Errno| Error::io("make a socket", errno.into());
    remove_stale(path)?;
    let address = SocketAddrUnix::new(path).map_err(system)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(system)?;
    // Linux gives the new name the mode of the unbound socket, so there is no moment at which others may connect.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(SOCKET_MODE)).map_err(system)?;
    rustix::net::bind(&fd, &address).map_err(system)?;
    let found = fs::symlink_metadata(path).map_err(|error| Error::io("stat the new socket", error))?;
    let listening = Listening::Unix {
        listener: UnixListener::from(fd),
        path: path.to_owned(),
        device: found.dev(),
        inode: found.ino(),
    };
    if found.permissions().mode() & 0o777 & !SOCKET_MODE != 0 {
        return Err(Error::new(Kind::Unsupported, "file system gives the socket a mode that lets others in"));
    }
    // Only a socket that is as it must be listens.
    if let Listening::Unix { listener, .. } = &listening {
        rustix::net::listen(listener, BACKLOG).map_err(system)?;
    }
    Ok(listening)
}

/// A dead server's socket is in the way; a living one's is not ours.
fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("stat the socket", error)),
        Ok(found) if !found.file_type().is_socket() => {
            Err(Error::new(Kind::Exists, "something that is no socket is there"))
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|error| Error::io("remove a dead server's socket", error))
            }
            Err(error) => Err(Error::io("see whether a server listens already", error)),
            Ok(_) => Err(Error::new(Kind::Exists, "another server listens there")),
        },
    }
}
