//! Whom a server lets in: certificates of clients, and its own.
//!
//! What lives here: options to a rustls configuration. What does not: the bytes of a session (`transport`), when it starts
//! (`haggle`). Invariant: with TLS, a client without a certificate of the client authority gets no further than TLS.

use crate::error::{Error, Kind, Result};
use crate::nbd::TlsIdentity;
use crate::nbd::tls::{certificates, explain, unreadable};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{Connection, RootCertStore, ServerConfig, ServerConnection};
use std::path::PathBuf;
use std::sync::Arc;

/// Mutual TLS: there is no other kind here.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The server's certificate and key.
    pub identity: TlsIdentity,
    /// PEM file with the authorities that may vouch for clients.
    pub client_ca_file: PathBuf,
}

/// Certificates, read and checked once for all connections.
pub(super) struct Tls(Arc<ServerConfig>);

impl Tls {
    pub(super) fn load(options: &ServerTls) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let file = &options.client_ca_file;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file)? {
            roots
                .add(certificate)
                .map_err(|error| Error::new(Kind::Invalid, format!("trust {}", file.display())).caused_by(error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| Error::new(Kind::Invalid, format!("trust {}", file.display())).caused_by(error))?;
        let identity = &options.identity;
        let key =
            PrivateKeyDer::from_pem_file(&identity.key_file).map_err(|error| unreadable(&identity.key_file, error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(Kind::Unsupported, "set up TLS").caused_by(error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&identity.certificate_file)?, key)
            .map_err(|error| {
                let context = format!("use {} as identity", identity.certificate_file.display());
                Error::new(Kind::Invalid, context).caused_by(error)
            })?;
        // A resumed session would outlive a certificate that is taken back; connections are few and long.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config)))
    }

    /// A session for one connection, not started yet.
    pub(super) fn session(&self) -> Result<Connection> {
        ServerConnection::new(self.0.clone()).map(Connection::Server).map_err(explain)
    }
}
