//! Whose certificate a client believes.

use super::ClientError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Whose certificate is believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// The public authorities, as Mozilla lists them.
    #[default]
    Public,
    /// Only the authorities (or the very certificates) in this PEM text.
    CaPem(Vec<u8>),
    /// Only the certificate with this SHA-256, whatever name it bears: for a hub that made its own.
    Fingerprint([u8; 32]),
}

/// What a client shows of itself: the certificate of a node and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: crate::Secret,
}

impl Trust {
    /// Reads a SHA-256 fingerprint: 64 hex digits, colons or not, upper case or lower.
    pub fn fingerprint(text: &str) -> Result<Self, ClientError> {
        let digits: String = text.trim().chars().filter(|c| *c != ':').collect();
        let mut pin = [0; 32];
        hex::decode_to_slice(&digits, &mut pin).map_err(|_| {
            ClientError::Options(format!(
                "fingerprint {text:?} is not 64 hex digits of SHA-256, with or without colons"
            ))
        })?;
        Ok(Self::Fingerprint(pin))
    }

    pub(super) fn tls_config(&self, identity: Option<&Identity>) -> Result<ClientConfig, ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let bad = |error: &dyn std::fmt::Display| ClientError::Options(format!("TLS: {error}"));
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&error))?;
        let builder = match self {
            Self::Public => {
                let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
                builder.with_root_certificates(roots)
            }
            Self::CaPem(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| bad(&format!("certificate file: {error}")))?;
                    roots.add(certificate).map_err(|error| bad(&format!("certificate file: {error}")))?;
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| bad(&format!("certificate file: {error}")))?;
                builder.with_webpki_verifier(verifier)
            }
            Self::Fingerprint(pin) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { pin: *pin, provider }))
            }
        };
        match identity {
            None => Ok(builder.with_no_client_auth()),
            Some(Identity { certificate, key }) => {
                let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
                    .collect::<Result<_, _>>()
                    .map_err(|error| bad(&format!("own certificate: {error}")))?;
                let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
                    .map_err(|error| bad(&format!("own key: {error}")))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| bad(&format!("own certificate: {error}")))
            }
        }
    }
}

/// Believes one certificate. Name and validity do not matter then: the pin says more than both.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found: [u8; 32] = Sha256::digest(end_entity.as_ref()).into();
        if found == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            let found = hex::encode(found);
            Err(rustls::Error::General(format!("the hub's certificate has another SHA-256 fingerprint: {found}")))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let plain = Trust::fingerprint(&"0aFF".repeat(16)).unwrap();
        assert_eq!(Trust::fingerprint(&["0a", "ff"].repeat(16).join(":")).unwrap(), plain);
        for text in ["", "0a", &"0g".repeat(32), &"00".repeat(33)] {
            assert!(Trust::fingerprint(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        assert!(Trust::CaPem(b"no certificate".to_vec()).tls_config(None).is_err());
    }
}
