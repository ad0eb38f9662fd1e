//! Whose certificate is believed, and the certificate that was.
//!
//! Invariant: only a certificate that was believed is handed on to VDDK, so its thumbprint is never that of somebody in the
//! middle. A probe believes nobody: its connection is given up before a byte of ours went over it.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// SHA-256 of a certificate, as people compare it: `AB:CD:…`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl FromStr for Fingerprint {
    type Err = String;

    /// 64 hex digits, with or without colons, upper case or lower.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.trim().chars().filter(|letter| *letter != ':').collect();
        let mut bytes = [0; 32];
        match hex::decode_to_slice(&digits, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) if digits.len() == 40 => Err(format!(
                "{text:?} is a SHA-1 thumbprint, which can be forged; the SHA-256 one is needed (64 hex digits)"
            )),
            Err(_) => Err(format!("{text:?} is not 64 hex digits of SHA-256, with or without colons")),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&colons(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A certificate that a server showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate(Vec<u8>);

impl Certificate {
    /// Its SHA-256, which is what is pinned.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(Sha256::digest(&self.0).into())
    }

    /// Its SHA-1 as VDDK wants it (`AA:BB:…`). VDDK knows no other; whom it is taken from was checked by SHA-256 or a CA.
    pub fn vddk_thumbprint(&self) -> String {
        colons(&Sha1::digest(&self.0))
    }
}

fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

/// Whose certificate is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The public authorities, as Mozilla lists them.
    Public,
    /// Only the authorities (or the very certificates) in this PEM text.
    CaPem(String),
    /// Only the certificate with this SHA-256, whatever name it bears and however old it is.
    Pin(Fingerprint),
}

/// Where certificates are put down.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// What the server showed last, believed or not; for messages and the probe.
    pub last: Option<Certificate>,
    /// What was believed last.
    pub believed: Option<Certificate>,
}

/// Shared between the verifier and whoever wants to know.
pub(crate) type Seen = Arc<Mutex<Shown>>;

/// A configuration that believes as it is told and puts the server's certificate down.
pub(crate) fn config(trust: &Trust, seen: &Seen) -> Result<ClientConfig> {
    let check = match trust {
        Trust::Pin(pin) => Check::Pin(*pin),
        Trust::Public => authorities(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })?,
        Trust::CaPem(pem) => {
            let bad = |error: &dyn fmt::Display| Error::Options(format!("the authorities' certificates: {error}"));
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| bad(&error))?;
                roots.add(certificate).map_err(|error| bad(&error))?;
            }
            authorities(roots)?
        }
    };
    build(check, seen)
}

/// A configuration that believes nobody: the handshake ends after the certificate was put down.
pub(crate) fn probing(seen: &Seen) -> Result<ClientConfig> {
    build(Check::Nobody, seen)
}

fn authorities(roots: RootCertStore) -> Result<Check> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map(Check::Authorities).map_err(|error| Error::Options(format!("the authorities' certificates: {error}")))
}

fn build(check: Check, seen: &Seen) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Watch { check, seen: seen.clone(), provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Options(format!("TLS: {error}")))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
enum Check {
    Pin(Fingerprint),
    Authorities(Arc<WebPkiServerVerifier>),
    Nobody,
}

/// Checks, and puts down what it saw and what it believed.
#[derive(Debug)]
struct Watch {
    check: Check,
    seen: Seen,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Watch {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Certificate(end_entity.as_ref().to_vec());
        let found = shown.fingerprint();
        self.seen.lock().last = Some(shown.clone());
        let verdict = match &self.check {
            Check::Pin(pin) if *pin == found => Ok(ServerCertVerified::assertion()),
            Check::Pin(_) => Err(rustls::Error::General(format!(
                "it is not the certificate that was confirmed; its SHA-256 is {found}"
            ))),
            Check::Authorities(verifier) => {
                verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            Check::Nobody => Err(rustls::Error::General("only its certificate was asked for".into())),
        };
        if verdict.is_ok() {
            self.seen.lock().believed = Some(shown);
        }
        verdict
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
        let plain: Fingerprint = "0aFF".repeat(16).parse().unwrap();
        assert_eq!(plain.to_string().parse(), Ok(plain));
        assert!("AB:".repeat(19).parse::<Fingerprint>().is_err());
        assert!("0a".repeat(20).parse::<Fingerprint>().unwrap_err().contains("SHA-1"));
        for text in ["", "0a", &"0g".repeat(32), &"00".repeat(33)] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn thumbprints_are_those_of_openssl() {
        // `printf abc | sha1sum`, `printf abc | sha256sum`.
        let certificate = Certificate(b"abc".to_vec());
        assert_eq!(certificate.vddk_thumbprint(), "A9:99:3E:36:47:06:81:6A:BA:3E:25:71:78:50:C2:6C:9C:D0:D8:9D");
        assert!(certificate.fingerprint().to_string().starts_with("BA:78:16:BF:8F:01:CF:EA"));
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        assert!(config(&Trust::CaPem("no certificate".into()), &Seen::default()).is_err());
    }
}
