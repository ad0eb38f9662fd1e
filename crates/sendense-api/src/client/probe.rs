//! Asking a hub for its certificate, so that a person can say whether it is the right one.

use super::{ClientError, http_client, is_loopback, parse, unreachable};
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// How long the answer may take: a connection, perhaps through a proxy, and half a handshake.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The SHA-256 fingerprint, in hex, of the certificate that the hub at `url` shows. Nothing is sent to it: the connection
/// ends as soon as the certificate is known.
pub async fn fingerprint_of(url: &str, proxy: Option<&str>) -> Result<String, ClientError> {
    let base = parse(url)?;
    if base.scheme() != "https" {
        return Err(ClientError::Options(format!("url {url:?}: only https has a certificate")));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let seen = Arc::new(Seen { certificate: Mutex::new(None), schemes });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Options(format!("TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let http = http_client(config, is_loopback(&base), proxy)?;
    let ended = http.get(base).timeout(ANSWER_TIMEOUT).send().await;
    let certificate = seen.certificate.lock().take();
    match (certificate, ended) {
        (Some(certificate), _) => Ok(hex::encode(Sha256::digest(&certificate))),
        (None, Err(error)) => Err(unreachable(error)),
        (None, Ok(_)) => Err(ClientError::Protocol("the server showed no certificate".to_owned())),
    }
}

/// Takes note of the certificate and believes none.
#[derive(Debug)]
struct Seen {
    certificate: Mutex<Option<Vec<u8>>>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.certificate.lock() = Some(end_entity.as_ref().to_vec());
        Err(refused())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

fn refused() -> rustls::Error {
    rustls::Error::General("only the certificate was asked for".to_owned())
}
