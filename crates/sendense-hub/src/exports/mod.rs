//! Restore points on offer over NBD: one listener, one name with a random part for each.
//!
//! What lives here: the listener, the exports of this life of the hub, and their end when nobody uses them. What does not:
//! the protocol (`sendense_block::nbd::server`), who may ask (`app`). Invariant: an export holds the claim on its chain for
//! as long as a client can read it; nothing is written down, so after a restart nothing of it is left.

#[cfg(test)]
mod tests;

use crate::config::NbdConfig;
use crate::core::{Core, blocking};
use crate::fault::{Result, internal, of_block};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use sendense_block::nbd::server::{
    Device, ExportGuard, ExportOptions, ExportStatus, Exports as Registry, Listen, Options, Server,
};
use sendense_block::nbd::{Address, Uri};
use sendense_block::{self as block, Disk};
use sendense_types::{BackupId, DiskNumber, ExportId, Problem, ProblemCode, Timestamp, VmContextId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The socket in the data directory, which only the hub's own user can open.
const SOCKET: &str = "nbd.sock";
/// Random bytes in a name: nobody guesses 128 bits.
const SECRET_BYTES: usize = 16;
/// How often unused exports are looked for: an export lives for hours.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);
/// How long the end of an export waits for reads in the chain: a read of a few clusters from a share that is slow.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What an export is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Point {
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub disk_id: DiskNumber,
}

/// An export as it is now.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub export_id: ExportId,
    pub point: Point,
    pub uri: String,
    pub size_bytes: u64,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub status: ExportStatus,
}

/// All exports of this hub.
pub(crate) struct Exports {
    config: NbdConfig,
    socket: PathBuf,
    registry: Registry,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    server: Option<Server>,
    open: BTreeMap<ExportId, Open>,
    /// Exports whose chain is being opened; they count.
    opening: usize,
    closed: bool,
}

struct Open {
    guard: ExportGuard,
    point: Point,
    uri: String,
    size_bytes: u64,
    created_at: Timestamp,
    used_at: Timestamp,
    bytes_read: u64,
}

impl Exports {
    /// Nothing on offer, nothing listening.
    pub fn new(config: NbdConfig, data_dir: &std::path::Path) -> Self {
        let socket = data_dir.join(SOCKET);
        Self { config, socket, registry: Registry::new(), state: Mutex::default() }
    }

    /// Listens at once where the operator said where: a wrong address is told at the start. The socket in the data directory
    /// is made with the first export.
    pub fn start(&self) -> block::Result<()> {
        if self.config.listen.is_none() {
            return Ok(());
        }
        self.state.lock().server(|| self.serve()).map(|_| ())
    }

    fn serve(&self) -> block::Result<Server> {
        let listen = match self.config.listen {
            Some(address) => Listen::Tcp(address),
            None => Listen::Unix(self.socket.clone()),
        };
        // What may be listened on is the server's to say, and said first.
        let options = Options { tls: self.config.tls.clone(), ..Options::new(listen) };
        let server = Server::start(options, self.registry.clone())?;
        if let Some(address) = self.config.listen.filter(|address| address.ip().is_unspecified())
            && self.config.host.is_none()
        {
            let context = format!("listen on {address}: how do clients call this machine? (--nbd-host)");
            return Err(block::Error::new(block::Kind::Invalid, context));
        }
        tracing::info!(tls = self.config.tls.is_some(), address = ?self.config.listen, "NBD server listens");
        Ok(server)
    }

    /// Offers a disk. `open` reads the chain's tables, so it runs on a thread of its own.
    pub async fn open<D: Disk + 'static>(
        self: &Arc<Self>,
        point: Point,
        now: Timestamp,
        open: impl FnOnce(&ExportId) -> Result<D> + Send + 'static,
    ) -> Result<View> {
        let place = Place::take(self)?;
        blocking(move || {
            let exports = place.0.clone();
            let id = ExportId::generate();
            let disk = open(&id)?;
            exports.offer(id, point, now, disk)
        })
        .await?
    }

    fn offer(&self, id: ExportId, point: Point, now: Timestamp, disk: impl Disk + 'static) -> Result<View> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| internal("no random bytes", error.to_string()))?;
        let name = format!("{}-disk{}-{}", point.backup_id, point.disk_id, URL_SAFE_NO_PAD.encode(secret));
        let description = format!("{id}: disk {} of {}, {}", point.disk_id, point.vm_name, point.backup_id);
        let refused = |error: block::Error| of_block("export the disk", &error);
        let size_bytes = disk.size().0;
        let options = ExportOptions { description, ..ExportOptions::default() };
        let guard = self.registry.add(&name, Device::read_only(disk), options).map_err(refused)?;
        let mut state = self.state.lock();
        if state.closed {
            return Err(Problem::new(ProblemCode::Busy, "the hub stops", ""));
        }
        let uri = state.server(|| self.serve()).and_then(|server| self.uri(server, &name)).map_err(refused)?;
        let open = Open { guard, point, uri, size_bytes, created_at: now, used_at: now, bytes_read: 0 };
        let view = self.view(&id, &open);
        state.open.insert(id, open);
        Ok(view)
    }

    /// Offers a device under a name of the caller's, which keeps the guard: it neither expires nor counts among the exports.
    /// The same name on the same listener makes the same URI, also in the hub's next life.
    pub fn serve_as(
        &self,
        name: &str,
        device: Device,
        description: String,
    ) -> sendense_block::Result<(ExportGuard, String)> {
        let guard = self.registry.add(name, device, ExportOptions { description, ..ExportOptions::default() })?;
        let mut state = self.state.lock();
        if state.closed {
            return Err(sendense_block::Error::new(sendense_block::Kind::Unavailable, "the hub stops"));
        }
        let uri = state.server(|| self.serve()).and_then(|server| self.uri(server, name))?;
        Ok((guard, uri))
    }

    /// What a client on another machine must write, where the operator told how this one is called.
    fn uri(&self, server: &Server, name: &str) -> block::Result<String> {
        let uri = server.uri(name)?;
        let uri = match (&self.config.host, uri.address()) {
            (Some(host), Address::Tcp { port, .. }) => {
                let named = Uri::tcp(host, *port, name)?;
                if uri.tls() { named.with_tls() } else { named }
            }
            _ => uri,
        };
        Ok(uri.to_string())
    }

    fn view(&self, id: &ExportId, open: &Open) -> View {
        View {
            export_id: id.clone(),
            point: open.point.clone(),
            uri: open.uri.clone(),
            size_bytes: open.size_bytes,
            created_at: open.created_at,
            expires_at: open.used_at.plus_seconds(self.idle_seconds()),
            status: open.guard.status(),
        }
    }

    fn idle_seconds(&self) -> i64 {
        i64::from(self.config.idle_seconds)
    }

    /// Everything on offer, oldest first.
    pub fn all(&self) -> Vec<View> {
        self.state.lock().open.iter().map(|(id, open)| self.view(id, open)).collect()
    }

    /// Takes an export back: its clients are cut off, and its claim on the chain ends with the last read.
    pub async fn close(&self, id: &ExportId) -> Result<()> {
        let open = self.state.lock().open.remove(id);
        let Some(open) = open else {
            let details = format!("no export {id}; it may have expired");
            return Err(Problem::new(ProblemCode::ExportNotFound, "export not found", details));
        };
        end(vec![(id.clone(), open)]).await
    }

    /// Ends what nobody has used for long. A connection is a use, and so is what one read since the last look.
    pub async fn sweep(&self, now: Timestamp) {
        let idle = self.idle_seconds() as f64;
        let ended: Vec<_> = {
            let mut state = self.state.lock();
            for open in state.open.values_mut() {
                let status = open.guard.status();
                if status.clients > 0 || status.bytes_read != open.bytes_read {
                    (open.used_at, open.bytes_read) = (now, status.bytes_read);
                }
            }
            state.open.extract_if(.., |_, open| now.seconds_since(open.used_at) >= idle).collect()
        };
        for (export_id, open) in &ended {
            tracing::info!(%export_id, backup_id = %open.point.backup_id, "export ended: nobody used it");
        }
        // What is still in use below is told in the log.
        let _ = end(ended).await;
    }

    /// Ends everything. Blocks until the threads have ended.
    pub fn shutdown(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let (server, open) = (state.server.take(), std::mem::take(&mut state.open));
        drop(state);
        drop(open);
        if let Some(server) = server {
            server.shutdown();
        }
    }
}

impl State {
    fn server(&mut self, serve: impl FnOnce() -> block::Result<Server>) -> block::Result<&Server> {
        let server = match self.server.take() {
            Some(server) => server,
            None => serve()?,
        };
        Ok(self.server.insert(server))
    }
}

/// A place among the exports while a chain is opened.
struct Place(Arc<Exports>);

impl Place {
    fn take(exports: &Arc<Exports>) -> Result<Self> {
        let mut state = exports.state.lock();
        let max = exports.config.exports_max;
        if state.closed || state.open.len() + state.opening >= max {
            let details = format!("{max} exports are open or being opened; end one with DELETE /exports/{{id}}");
            return Err(Problem::new(ProblemCode::Busy, "no more exports are possible now", details));
        }
        state.opening += 1;
        drop(state);
        Ok(Self(exports.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.lock().opening -= 1;
    }
}

async fn end(exports: Vec<(ExportId, Open)>) -> Result<()> {
    blocking(move || {
        for (export_id, open) in exports {
            if let Err(error) = open.guard.close(CLOSE_TIMEOUT) {
                tracing::warn!(%export_id, %error, "export ended, but a read of it hangs; its point stays claimed until then");
            }
        }
    })
    .await
}

/// Looks for unused exports until the hub ends.
pub(crate) async fn keep(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_PERIOD) => core.exports.sweep(core.now()).await,
        }
    }
}
