//! Who may encrypt: certificates, keys, names.
//!
//! What lives here: options to a rustls configuration, and what TLS failures mean. What does not: the bytes of a session
//! (`transport`), when it starts (`handshake`). Invariant: a server is always verified; there is no option against it.

use super::uri::{Address, Uri};
use crate::error::{Error, Kind, Result};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whom to trust and who we are.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM file with the authorities that may vouch for the server; the web's common ones when absent.
    pub ca_file: Option<PathBuf>,
    /// What we show to servers that ask.
    pub identity: Option<TlsIdentity>,
    /// The name to look for in the server's certificate, where neither the host nor `tls-hostname=` in the URI says it.
    pub server_name: Option<String>,
}

/// A certificate chain and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct TlsIdentity {
    /// Our certificate first, then those that lead to the authority.
    pub certificate_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// A session for one connection, not started yet.
pub(super) fn session(options: &TlsOptions, uri: &Uri) -> Result<Connection> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Kind::Unsupported, "set up TLS").caused_by(error))?
        .with_root_certificates(roots(options)?);
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from_pem_file(&identity.key_file)
                .map_err(|error| unreadable(&identity.key_file, error))?;
            builder.with_client_auth_cert(certificates(&identity.certificate_file)?, key).map_err(|error| {
                Error::new(Kind::Invalid, format!("use {} as identity", identity.certificate_file.display()))
                    .caused_by(error)
            })?
        }
    };
    // Connections live for hours and are few: there is nothing to resume.
    config.resumption = rustls::client::Resumption::disabled();
    let name = server_name(options, uri);
    let server_name = ServerName::try_from(name.to_owned())
        .map_err(|error| Error::new(Kind::Invalid, format!("use {name:?} as a server's name")).caused_by(error))?;
    ClientConnection::new(Arc::new(config), server_name).map(Connection::Client).map_err(explain)
}

fn server_name<'a>(options: &'a TlsOptions, uri: &'a Uri) -> &'a str {
    let host = match uri.address() {
        Address::Tcp { host, .. } => host.split('%').next().unwrap_or(host),
        // Who answers on a socket of this machine is this machine.
        Address::Unix(_) => "localhost",
    };
    uri.tls_hostname().or(options.server_name.as_deref()).unwrap_or(host)
}

fn roots(options: &TlsOptions) -> Result<RootCertStore> {
    let Some(file) = &options.ca_file else {
        return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    };
    let mut store = RootCertStore::empty();
    for certificate in certificates(file)? {
        store
            .add(certificate)
            .map_err(|error| Error::new(Kind::Invalid, format!("trust {}", file.display())).caused_by(error))?;
    }
    Ok(store)
}

pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|error| unreadable(file, error))?;
    if certificates.is_empty() {
        return Err(Error::new(Kind::Invalid, format!("{} holds no certificate", file.display())));
    }
    Ok(certificates)
}

pub(super) fn unreadable(file: &Path, error: pem::Error) -> Error {
    let context = format!("read {}", file.display());
    match error {
        pem::Error::Io(error) => Error::io(context, error),
        error => Error::new(Kind::Invalid, context).caused_by(error.to_string()),
    }
}

/// Who must act after a TLS failure: wrong papers are a denial, nonsense is the peer's.
pub(super) fn explain(error: rustls::Error) -> Error {
    let (kind, context) = match &error {
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => {
            (Kind::Denied, "server's certificate is revoked")
        }
        rustls::Error::InvalidCertificate(_) => (Kind::Denied, "server's certificate is not good"),
        rustls::Error::NoCertificatesPresented => (Kind::Denied, "server shows no certificate"),
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => (Kind::Denied, "server refuses our certificate or the lack of one"),
        _ => (Kind::Protocol, "TLS failed"),
    };
    Error::new(kind, context).caused_by(error)
}
