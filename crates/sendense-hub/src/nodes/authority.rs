//! The hub's own certificate authority, which vouches for nodes and for nobody else.
//!
//! Certificate and key lie in the catalog's settings, the key sealed under the same key file as credentials of sources: all
//! hubs of a deployment have the same authority, and a copy of the database alone can make no node.
//!
//! Invariant: of what a node asks for, only its public key gets into its certificate.

use crate::secrets::{self, Sealer};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use secrecy::ExposeSecret;
use sendense_catalog::Catalog;
use sendense_types::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// The setting that holds the authority, and what its key is sealed for.
const SETTING: &str = "node_authority";

/// How long the authority and its nodes' certificates are valid. Whether a node may come in is looked up in the catalog at
/// every call; the end of its certificate adds nothing to that, and would only stop backups on some night in years.
const YEARS: i64 = 30;
const YEAR_SECONDS: i64 = 366 * DAY_SECONDS;
const DAY_SECONDS: i64 = 24 * 3600;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog.
    #[error("look it up")]
    Catalog(#[from] sendense_catalog::Error),
    /// The stored key.
    #[error("its key")]
    Sealed(#[from] secrets::Error),
    /// The setting is not what this program writes.
    #[error("setting {SETTING} cannot be read: {0}")]
    Setting(String),
    /// A certificate could not be made or used.
    #[error("make or use a certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("use it for TLS: {0}")]
    Tls(String),
}

/// Why a node gets no certificate: its request is wrong.
#[derive(Debug, thiserror::Error)]
#[error("the certificate signing request cannot be used: {0}")]
pub struct BadRequest(String);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    certificate: String,
    key: String,
}

/// Vouches for nodes.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A certificate for a node.
pub(crate) struct Signed {
    /// As text.
    pub pem: String,
    /// Its SHA-256, by which the catalog knows the node.
    pub fingerprint: [u8; 32],
}

impl Authority {
    /// The deployment's authority, made when there is none yet. With `accept_new_key` one whose key is lost is replaced; its
    /// nodes must enrol again then.
    pub async fn open(catalog: &Catalog, sealer: &Sealer, accept_new_key: bool, now: Timestamp) -> Result<Self, Error> {
        let opened = match catalog.settings().get(SETTING).await? {
            Some(stored) => Self::read(stored, sealer),
            None => Self::read(catalog.settings().get_or_set(SETTING, &make(sealer, now)?, now).await?, sealer),
        };
        match opened {
            Err(Error::Sealed(secrets::Error::OtherKey { .. })) if accept_new_key => {
                let made = make(sealer, now)?;
                catalog.settings().set(SETTING, &made, now).await?;
                tracing::warn!("the authority for nodes was made anew: every node must enrol again");
                Self::read(made, sealer)
            }
            opened => opened,
        }
    }

    fn read(stored: serde_json::Value, sealer: &Sealer) -> Result<Self, Error> {
        let stored: Stored = serde_json::from_value(stored).map_err(|error| Error::Setting(error.to_string()))?;
        let key = sealer.open_sealed(SETTING, &stored.key)?;
        let key = KeyPair::from_pem(key.expose_secret())?;
        let certificate = CertificateDer::from_pem_slice(stored.certificate.as_bytes())
            .map_err(|error| Error::Setting(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    /// A certificate for the key in `request` (PEM), in the name of the node.
    pub(crate) fn sign(&self, request: &str, node_id: &NodeId, now: Timestamp) -> Result<Signed, BadRequest> {
        // Reading it proves that whoever asks has the key: the request is signed with it.
        let mut request =
            CertificateSigningRequestParams::from_pem(request).map_err(|error| BadRequest(error.to_string()))?;
        let mut params = params(node_id.as_str(), now);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        let signed = request.signed_by(&self.issuer).map_err(|error| BadRequest(error.to_string()))?;
        Ok(Signed { fingerprint: Sha256::digest(signed.der()).into(), pem: signed.pem() })
    }

    /// Checks the certificates of clients that show one; who shows none is let in, as somebody else than a node.
    pub(crate) fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let tls = |error: &dyn fmt::Display| Error::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(|error| tls(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| tls(&error))
    }
}

fn make(sealer: &Sealer, now: Timestamp) -> Result<serde_json::Value, Error> {
    let key = KeyPair::generate()?;
    let mut params = params("Sendense nodes", now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?.pem();
    let key = sealer.seal(SETTING, &key.serialize_pem())?;
    serde_json::to_value(Stored { certificate, key }).map_err(|error| Error::Setting(error.to_string()))
}

fn params(name: &str, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    // From a day before, for machines whose clock is behind.
    params.not_before = crate::http::certificate_time(now.plus_seconds(-DAY_SECONDS));
    params.not_after = crate::http::certificate_time(now.plus_seconds(YEARS * YEAR_SECONDS));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls_pki_types::UnixTime;
    use std::path::Path;
    use std::time::Duration;

    const NOW: i64 = 1_780_000_000;

    fn now() -> Timestamp {
        Timestamp::from_micros(NOW * 1_000_000)
    }

    fn sealer(folder: &Path, name: &str) -> Sealer {
        Sealer::make(&folder.join(name)).unwrap()
    }

    async fn catalog(folder: &Path) -> Catalog {
        Catalog::open(&format!("sqlite://{}/catalog.db?mode=rwc", folder.display())).await.unwrap()
    }

    fn request(key: &KeyPair) -> String {
        // Asks for more than it may have.
        let mut params = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "somebody else");
        params.is_ca = IsCa::NoCa;
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn is_accepted(authority: &Authority, pem: &str) -> bool {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(NOW as u64 + 9 * 366 * 86400));
        authority.verifier().unwrap().verify_client_cert(&certificate, &[], at).is_ok()
    }

    #[tokio::test]
    async fn all_hubs_of_a_catalog_have_one_authority_and_only_its_nodes_are_believed() {
        let folder = tempfile::tempdir().unwrap();
        let (catalog, sealer) = (catalog(folder.path()).await, sealer(folder.path(), "key"));
        let one = Authority::open(&catalog, &sealer, false, now()).await.unwrap();
        let two = Authority::open(&catalog, &sealer, false, now()).await.unwrap();
        let key = KeyPair::generate().unwrap();
        let signed = one.sign(&request(&key), &"node-1".parse().unwrap(), now()).unwrap();
        assert!(is_accepted(&one, &signed.pem) && is_accepted(&two, &signed.pem));

        let (_, parsed) = x509_parser::pem::parse_x509_pem(signed.pem.as_bytes()).unwrap();
        assert_eq!(Sha256::digest(&parsed.contents)[..], signed.fingerprint);
        let parsed = parsed.parse_x509().unwrap();
        assert_eq!(parsed.subject().to_string(), "CN=node-1");
        assert!(parsed.subject_alternative_name().unwrap().is_none(), "names that it asked for were taken");
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth, "it could pass for a hub");
        assert!(!parsed.is_ca(), "it could vouch for others");

        let elsewhere = tempfile::tempdir().unwrap();
        let other = self::catalog(elsewhere.path()).await;
        let other = Authority::open(&other, &sealer, false, now()).await.unwrap();
        assert!(!is_accepted(&other, &signed.pem), "a node of another deployment");
        let own = CertificateParams::default().self_signed(&key).unwrap().pem();
        assert!(!is_accepted(&one, &own), "a certificate that a node made itself");
        // The authority itself vouches for nobody's connection.
        let stored = catalog.settings().get(SETTING).await.unwrap().unwrap();
        assert!(!is_accepted(&one, stored["certificate"].as_str().unwrap()));
        assert!(!stored.to_string().contains("PRIVATE"), "the key lies in the clear");
    }

    #[tokio::test]
    async fn a_lost_key_is_an_error_until_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path()).await;
        let old = Authority::open(&catalog, &sealer(folder.path(), "old"), false, now()).await.unwrap();
        let signed = old.sign(&request(&KeyPair::generate().unwrap()), &"node-1".parse().unwrap(), now()).unwrap();
        let new_key = sealer(folder.path(), "new");
        let refused = Authority::open(&catalog, &new_key, false, now()).await;
        assert_matches!(refused, Err(Error::Sealed(secrets::Error::OtherKey { .. })));
        let new = Authority::open(&catalog, &new_key, true, now()).await.unwrap();
        assert!(!is_accepted(&new, &signed.pem));
        assert!(Authority::open(&catalog, &new_key, false, now()).await.is_ok());
        catalog.settings().set(SETTING, &serde_json::json!({"certificate": "x"}), now()).await.unwrap();
        assert_matches!(Authority::open(&catalog, &new_key, true, now()).await, Err(Error::Setting(_)));
    }

    proptest! {
        #[test]
        fn a_request_that_is_none_is_refused(text in any::<String>(), der in prop::collection::vec(any::<u8>(), 0..400)) {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::default().self_signed(&key).unwrap();
            let authority = Authority {
                issuer: Issuer::from_ca_cert_der(certificate.der(), key).unwrap(),
                certificate: certificate.der().clone(),
            };
            let id = "node-1".parse().unwrap();
            prop_assert!(authority.sign(&text, &id, now()).is_err());
            use base64::Engine;
            let der = base64::engine::general_purpose::STANDARD.encode(der);
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{der}\n-----END CERTIFICATE REQUEST-----\n");
            prop_assert!(authority.sign(&pem, &id, now()).is_err());
        }
    }
}
