//! Bytes on their way from a thread that reads a guest's disk to one client.
//!
//! Invariant: what waits for a slow client is at most [`WAITING`] pieces, and the thread ends soon after the client has gone,
//! has taken nothing for [`STALL`], or the point was closed.

use super::Task;
use axum::body::Bytes;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Pieces that wait: one on its way out, one ready. With a quarter of a MiB each, and two MiB that the reader may send ahead,
/// a download costs less than 3 MiB.
const WAITING: usize = 2;
/// Bytes of a piece that is gathered from small writes.
const GATHERED_BYTES: usize = 128 * 1024;
/// How long a client may take nothing at all. Browsers that pause a download drop the connection sooner.
const STALL: Duration = Duration::from_secs(300);

/// What a client receives.
pub(crate) type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// The thread's end.
pub(crate) struct Outlet {
    sender: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
    task: Task,
    gathered: Vec<u8>,
}

/// Runs `work` on a thread; what it writes comes out of the answer. When it fails, so does the last piece, and the client sees
/// a connection that broke: never an end that looks whole.
pub(crate) fn run(
    task: Task,
    what: String,
    work: impl FnOnce(&mut Outlet) -> io::Result<()> + Send + 'static,
) -> Pieces {
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut outlet = Outlet { sender, runtime: Handle::current(), task, gathered: Vec::new() };
    tokio::task::spawn_blocking(move || {
        let done = work(&mut outlet).and_then(|()| outlet.flush());
        if let Err(error) = done {
            let mount_id = outlet.task.mount().id.clone();
            if error.kind() == io::ErrorKind::BrokenPipe {
                tracing::debug!(%mount_id, what, error = %error, "the client has gone");
            } else {
                tracing::warn!(%mount_id, what, error = %error, "a download broke off");
            }
            // It must arrive: an archive has no length that would give a short one away. Where nobody listens, or takes
            // anything, nobody need be told.
            let told = tokio::time::timeout(STALL, outlet.sender.send(Err(error)));
            let _ = outlet.runtime.block_on(told);
        }
    });
    receiver
}

impl Outlet {
    /// The point's session.
    pub fn reader(&self) -> Arc<dyn super::Reader> {
        self.task.reader().clone()
    }

    /// Sends a piece as it is, after what was gathered.
    pub fn send(&mut self, piece: Vec<u8>) -> io::Result<()> {
        self.flush()?;
        self.put(piece)
    }

    fn put(&self, piece: Vec<u8>) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let gone = |why: &str| io::Error::new(io::ErrorKind::BrokenPipe, why.to_owned());
        self.runtime.block_on(async {
            tokio::select! {
                () = self.task.mount().closed.cancelled() => Err(io::Error::other("the point was closed")),
                sent = tokio::time::timeout(STALL, self.sender.send(Ok(piece.into()))) => match sent {
                    Ok(sent) => sent.map_err(|_| gone("the connection was closed")),
                    Err(_) => Err(gone("the client took nothing for too long")),
                },
            }
        })
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHERED_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        self.put(gathered)
    }
}
