//! Certificates: when TLS is needed, the operator's, or one made at first start.
//!
//! Invariant: plain HTTP is served on loopback addresses only.

use crate::config::TlsFiles;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use sendense_types::Timestamp;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How long a certificate of ours is valid: what clients with the strictest rule for servers accept (825 days).
const VALID_SECONDS: i64 = 825 * DAY_SECONDS;
/// A start so near to the end makes a new certificate: a hub is restarted for updates more often than every 90 days.
const RENEW_SECONDS: i64 = 90 * DAY_SECONDS;
/// Valid from a day before, for clients whose clock is behind.
const BEFORE_SECONDS: i64 = DAY_SECONDS;
const DAY_SECONDS: i64 = 24 * 3600;

/// Why there is no certificate to serve with. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("access {}", path.display())]
    Access {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} does not hold a PEM {what}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// Certificate and key cannot be used, or do not belong together.
    #[error("use certificate {}", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A certificate could not be made.
    #[error("make a certificate")]
    Make(#[source] rcgen::Error),
}

/// What a listener shows of itself.
pub(super) struct Identity {
    pub config: ServerConfig,
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
}

impl Identity {
    /// The identity for a listener; none where plain HTTP is enough. Clients that show a certificate must show one that
    /// `clients` accepts.
    pub fn for_listener(
        listen: SocketAddr,
        given: Option<&TlsFiles>,
        tls_dir: &Path,
        clients: &Arc<dyn ClientCertVerifier>,
        now: Timestamp,
    ) -> Result<Option<Self>, Error> {
        match given {
            Some(files) => Self::load(&files.certificate, &files.key, clients).map(Some),
            None if listen.ip().to_canonical().is_loopback() => Ok(None),
            None => Self::own(listen.ip(), tls_dir, clients, now).map(Some),
        }
    }

    /// Our own certificate, made when it is not there or ends soon.
    fn own(listen: IpAddr, dir: &Path, clients: &Arc<dyn ClientCertVerifier>, now: Timestamp) -> Result<Self, Error> {
        let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        if ends_at(&certificate).is_none_or(|end| end.seconds_since(now) < RENEW_SECONDS as f64) || !key.exists() {
            make(listen, dir, &certificate, &key, now)?;
            tracing::info!(certificate = %certificate.display(), "made a certificate");
        }
        Self::load(&certificate, &key, clients)
    }

    fn load(certificate: &Path, key: &Path, clients: &Arc<dyn ClientCertVerifier>) -> Result<Self, Error> {
        let wrong = |path: &Path, what| {
            let path = path.to_owned();
            move |source| Error::Pem { path, what, source }
        };
        let text = fs::read(certificate).map_err(access(certificate))?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(wrong(certificate, "certificate"))?;
        let Some(first) = chain.first() else {
            return Err(wrong(certificate, "certificate")(pem::Error::NoItemsFound));
        };
        let fingerprint = hex::encode(Sha256::digest(first.as_ref()));
        let text = fs::read(key).map_err(access(key))?;
        let secret = PrivateKeyDer::from_pem_slice(&text).map_err(wrong(key, "private key"))?;
        let unusable = |source| Error::Unusable { path: certificate.to_owned(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(clients.clone())
            .with_single_cert(chain, secret)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config, fingerprint })
    }
}

fn access(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Access { path, source }
}

/// When a certificate ends; none when it cannot be read, for then a new one is needed anyway.
fn ends_at(path: &Path) -> Option<Timestamp> {
    let certificate = CertificateDer::from_pem_file(path).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
    Some(Timestamp::from_micros(parsed.validity().not_after.timestamp().checked_mul(1_000_000)?))
}

/// Makes key and certificate. The key comes first: a crash in between leaves a key without a certificate, and the next
/// start makes both anew.
fn make(listen: IpAddr, dir: &Path, certificate: &Path, key: &Path, now: Timestamp) -> Result<(), Error> {
    let mut params = CertificateParams::default();
    params.not_before = certificate_time(now.plus_seconds(-BEFORE_SECONDS));
    params.not_after = certificate_time(now.plus_seconds(VALID_SECONDS));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Sendense hub");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut names = vec!["localhost".to_owned()];
    if let Ok(host) = fs::read_to_string("/proc/sys/kernel/hostname") {
        names.push(host.trim().to_owned());
    }
    for name in names {
        // A machine may bear a name that no certificate can; it is then left out.
        if let Ok(name) = name.try_into() {
            params.subject_alt_names.push(SanType::DnsName(name));
        }
    }
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    if !listen.is_unspecified() {
        addresses.push(listen);
    }
    params.subject_alt_names.extend(addresses.into_iter().map(SanType::IpAddress));
    let pair = KeyPair::generate().map_err(Error::Make)?;
    let made = params.self_signed(&pair).map_err(Error::Make)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(access(dir))?;
    replace(key, pair.serialize_pem().as_bytes(), 0o600)?;
    replace(certificate, made.pem().as_bytes(), 0o644)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(access(dir))
}

/// Writes a file whole or not at all; nobody can read it before it has its mode.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(access(&new)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(access(&new))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(access(&new))?;
    fs::rename(&new, path).map_err(access(path))
}

/// A moment in the words of the certificate library, to the second.
pub(crate) fn certificate_time(moment: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(moment.as_micros().div_euclid(1_000_000))
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: i64 = 1_780_000_000;

    fn nobody() -> Arc<dyn ClientCertVerifier> {
        Arc::new(rustls::server::NoClientAuth)
    }

    fn identity(listen: &str, dir: &Path, day: i64) -> Option<String> {
        let now = Timestamp::from_micros(NOW * 1_000_000).plus_seconds(day * DAY_SECONDS);
        let identity = Identity::for_listener(listen.parse().unwrap(), None, dir, &nobody(), now).unwrap();
        identity.map(|identity| identity.fingerprint)
    }

    #[test]
    fn only_loopback_goes_without() {
        let dir = tempfile::tempdir().unwrap();
        for listen in ["127.0.0.1:0", "127.1.2.3:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            assert_eq!(identity(listen, dir.path(), 0), None, "{listen}");
        }
        for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[2001:db8::1]:0"] {
            assert!(identity(listen, dir.path(), 0).is_some(), "{listen}");
        }
    }

    #[test]
    fn a_certificate_is_kept_until_it_ends_soon() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let first = identity("192.0.2.1:0", dir, 0);
        assert_eq!(identity("192.0.2.1:0", dir, 734), first);
        let second = identity("192.0.2.1:0", dir, 736);
        assert_ne!(second, first);
        for file in ["certificate.pem", "key.pem"] {
            fs::write(dir.join(file), "damaged").unwrap();
            if file == "key.pem" {
                // Who damaged the key has to say so; another one would change what clients know the hub by.
                let now = Timestamp::from_micros(NOW * 1_000_000).plus_seconds(736 * DAY_SECONDS);
                let listen = "192.0.2.1:0".parse().unwrap();
                assert!(matches!(Identity::for_listener(listen, None, dir, &nobody(), now), Err(Error::Pem { .. })));
                continue;
            }
            assert_ne!(identity("192.0.2.1:0", dir, 736), second, "a damaged {file} is made anew");
        }
    }

    #[test]
    fn the_certificate_says_who_and_how_long_and_the_key_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        identity("192.0.2.1:0", dir.path(), 0).unwrap();
        let path = dir.path().join("certificate.pem");
        let certificate = CertificateDer::from_pem_file(&path).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        assert_eq!(parsed.validity().not_before.timestamp(), NOW - DAY_SECONDS);
        assert_eq!(parsed.validity().not_after.timestamp(), NOW + 825 * DAY_SECONDS);
        let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value.general_names);
        assert!(names.contains("localhost") && names.contains("[192, 0, 2, 1]"), "{names}");
        let key = fs::metadata(dir.path().join("key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_given_certificate_is_used_also_on_loopback_and_must_fit_its_key() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let fingerprint = identity("192.0.2.1:0", one.path(), 0);
        identity("192.0.2.1:0", two.path(), 0).unwrap();
        let given = |certificate: &Path, key: &Path| {
            let files = TlsFiles { certificate: certificate.join("certificate.pem"), key: key.join("key.pem") };
            let now = Timestamp::from_micros(NOW * 1_000_000);
            Identity::for_listener("127.0.0.1:0".parse().unwrap(), Some(&files), Path::new("/nowhere"), &nobody(), now)
        };
        let used = given(one.path(), one.path()).unwrap().map(|identity| identity.fingerprint);
        assert_eq!(used, fingerprint);
        assert!(matches!(given(one.path(), two.path()), Err(Error::Unusable { .. })));
        assert!(matches!(given(Path::new("/nowhere"), one.path()), Err(Error::Access { .. })));
    }
}
