//! How many connections there may be.

use axum_server::accept::Accept;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once. Each takes some 20 KiB of buffers (TLS: 50 KiB), so all together stay below 32 MiB of the 256 MiB
/// that a hub may use.
const CONNECTIONS_MAX: usize = 512;

/// Lets so many connections in and closes what is more before a byte of it is read, so that a flood costs no memory.
#[derive(Debug, Clone)]
pub(super) struct Capacity(Arc<Semaphore>);

impl Default for Capacity {
    fn default() -> Self {
        Self::new(CONNECTIONS_MAX)
    }
}

impl Capacity {
    fn new(connections_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(connections_max)))
    }
}

impl<S> Accept<TcpStream, S> for Capacity {
    type Stream = Held;
    type Service = S;
    type Future = Ready<io::Result<(Held, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(place) = self.0.clone().try_acquire_owned() else {
            return ready(Err(io::Error::other("too many connections")));
        };
        // Answers are written whole; waiting to fill a packet only delays events.
        ready(stream.set_nodelay(true).map(|()| (Held { stream, _place: place }, service)))
    }
}

/// A connection that holds its place until it is closed.
#[derive(Debug)]
pub(super) struct Held {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_is_more_is_closed_unread_and_an_end_makes_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let capacity = Capacity::new(1);
        let mut first = TcpStream::connect(address).await.unwrap();
        let (mut held, ()) = capacity.accept(listener.accept().await.unwrap().0, ()).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(capacity.accept(listener.accept().await.unwrap().0, ()).await.is_err());
        assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0, "the second is closed");
        first.write_all(b"x").await.unwrap();
        assert_eq!(held.read_u8().await.unwrap(), b'x', "the first goes on");
        drop(held);
        let _third = TcpStream::connect(address).await.unwrap();
        assert!(capacity.accept(listener.accept().await.unwrap().0, ()).await.is_ok());
    }
}
