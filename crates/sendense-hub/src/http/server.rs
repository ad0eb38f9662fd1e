//! The listening server: from a bound socket to an orderly end.

use super::capacity::Capacity;
use super::peer::Acceptor;
use super::router;
use super::tls::{self, Identity};
use crate::app::App;
use crate::config::TlsFiles;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use rustls::server::danger::ClientCertVerifier;
use sendense_types::Clock;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long calls that are under way may take when the server ends; what is not done then is cut off.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long clients and calls may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a request's head and for a TLS handshake; also how long a kept connection may be idle.
    pub head: Duration,
    /// For a call, from its head until its answer begins. Discovery of a large hypervisor takes the longest; what takes
    /// longer than this has to be a task.
    pub call: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), call: Duration::from_secs(120) }
    }
}

/// How the API is served.
#[derive(Clone)]
pub struct Options {
    /// Where. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The operator's certificate; absent: plain HTTP on loopback, elsewhere a certificate made at first start.
    pub tls: Option<TlsFiles>,
    /// Where that certificate is kept.
    pub tls_dir: PathBuf,
    /// Checks the certificates of clients that show one: those of nodes.
    pub node_verifier: Arc<dyn ClientCertVerifier>,
    /// How long clients and calls may take.
    pub timeouts: Timeouts,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// Why the API cannot be served. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("listen on {listen}")]
    Listen {
        /// Which.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("prepare TLS")]
    Tls(#[source] tls::Error),
}

/// A server that answers. Dropping it leaves it running until the runtime ends; see [`Server::shutdown`].
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    fingerprint: Option<String>,
    handle: Handle<SocketAddr>,
    stop: CancellationToken,
    served: JoinHandle<io::Result<()>>,
    metrics: JoinHandle<()>,
}

impl Server {
    /// Binds the address and begins to answer; a client that connects after this returns is served.
    pub fn start(app: App, options: Options) -> Result<Self, Error> {
        let Options { listen, tls, tls_dir, node_verifier, timeouts, clock } = options;
        let identity = Identity::for_listener(listen, tls.as_ref(), &tls_dir, &node_verifier, clock.now());
        let identity = identity.map_err(Error::Tls)?;
        let refused = |source| Error::Listen { listen, source };
        let listener = TcpListener::bind(listen).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let local_addr = listener.local_addr().map_err(refused)?;

        let (handle, stop) = (Handle::new(), CancellationToken::new());
        let service = router::router(app, clock, identity.is_some(), timeouts.call, stop.clone())
            .into_make_service_with_connect_info::<SocketAddr>();
        let mut server = axum_server::from_tcp(listener).map_err(refused)?.handle(handle.clone());
        server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(timeouts.head);
        let fingerprint = identity.as_ref().map(|identity| identity.fingerprint.clone());
        // Version 1.1 only: its limits are few and well understood, and the API needs no more. It has to be said last, for a
        // new acceptor forgets it; a test sends the preface of version 2.
        let served = match identity {
            Some(identity) => {
                let config = RustlsConfig::from_config(Arc::new(identity.config));
                let acceptor = RustlsAcceptor::new(config).handshake_timeout(timeouts.head);
                let acceptor = Acceptor(acceptor.acceptor(Capacity::default()));
                tokio::spawn(server.acceptor(acceptor).http1_only().serve(service))
            }
            None => tokio::spawn(server.acceptor(Capacity::default()).http1_only().serve(service)),
        };
        let metrics = tokio::spawn(crate::metrics::keep(stop.clone()));
        Ok(Self { local_addr, fingerprint, handle, stop, served, metrics })
    }

    /// Where it listens, with the port that it got.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The URL for a client on this machine.
    pub fn url(&self) -> String {
        let scheme = if self.fingerprint.is_some() { "https" } else { "http" };
        let mut address = self.local_addr;
        match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(std::net::Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(std::net::Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        format!("{scheme}://{address}")
    }

    /// SHA-256 of the certificate in hex, by which clients may know this hub; none on plain HTTP.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Takes no new connections, ends streams, waits a bounded time for calls that are under way.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.handle.graceful_shutdown(Some(SHUTDOWN_TIMEOUT));
        match self.served.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = %error, "the HTTP server failed"),
            Err(error) => tracing::error!(error = %error, "the HTTP server panicked"),
        }
        if let Err(error) = self.metrics.await {
            tracing::error!(error = %error, "the keeper of metrics panicked");
        }
    }
}
