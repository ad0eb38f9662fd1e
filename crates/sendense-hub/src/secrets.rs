//! Credentials of sources at rest: an AES-256-GCM envelope under a key that lies outside the database.
//!
//! What lives here: the key file and the envelope's form. What does not: where envelopes are stored (the catalog) and what
//! they hold. Invariant: an envelope opens only for the row that it was sealed for, because the row's id is authenticated
//! with it; whoever copies it into another row gets an error, not a password.
//!
//! An envelope is text: `v1.<key id>.<nonce>.<ciphertext and tag>`, the last two in base64url.

use crate::catalog_copy::RecoveryKey;
use crate::data_dir::private_file;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of an AES-256 key.
const KEY_BYTES: usize = 32;
/// Bytes of a GCM nonce (NIST SP 800-38D). Random ones may be used for 2^32 envelopes under one key; a hub makes a few.
const NONCE_BYTES: usize = 12;
const VERSION: &str = "v1";

/// Why a secret cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key file cannot be read or made. The operator acts.
    #[error("access key file {}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key file is not 32 bytes. The operator acts.
    #[error("key file {} is damaged: it holds {found} bytes and not {KEY_BYTES}; bring it back from a copy", path.display())]
    KeySize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: usize,
    },
    /// The key file can be read by others. The operator acts.
    #[error("key file {} has mode {mode:o}; nobody but its owner may read it", path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file is not there, but credentials were sealed with it. The operator acts.
    #[error(
        "key file {} is not there, and the credentials in the catalog are sealed with it (key {sealed_with}): bring it back \
         from a copy, or copy it from the data directory of another hub on this catalog; if it is lost for good, start once \
         with --accept-new-key and set the credentials of all sources again",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The id of the key that is missing.
        sealed_with: String,
    },
    /// The key file holds another key than the one that the catalog's credentials are sealed with. The operator acts.
    #[error(
        "key file {} holds key {present}, and the credentials in the catalog are sealed with key {sealed_with}: bring that one \
         back from a copy, or copy it from the data directory of another hub on this catalog; if it is lost for good, start \
         once with --accept-new-key and set the credentials of all sources again",
        path.display()
    )]
    NotTheCatalogs {
        /// The file.
        path: PathBuf,
        /// The id of the key in it.
        present: String,
        /// The id of the key that is missing.
        sealed_with: String,
    },
    /// The envelope was sealed with another key. The operator brings that key back or sets the credentials anew.
    #[error("credentials were sealed with key {sealed_with}, the key file holds key {present}")]
    OtherKey {
        /// The id of the key that sealed it.
        sealed_with: String,
        /// The id of our key.
        present: String,
    },
    /// The envelope is damaged or belongs to another row.
    #[error("stored credentials cannot be opened")]
    Damaged,
    /// The system gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
}

/// Seals and opens credentials. Never printed.
pub struct Sealer {
    cipher: Aes256Gcm,
    key_id: String,
    recovery_key: RecoveryKey,
}

/// The id of the key that an envelope was sealed with.
pub fn key_id_of(envelope: &str) -> Option<&str> {
    let mut parts = envelope.split('.');
    if parts.next() == Some(VERSION) { parts.next() } else { None }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Makes a key file where there is none.
    pub fn make(path: &Path) -> Result<Self, Error> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| Error::Random(error.to_string()))?;
        private_file::create(path, &key).map_err(|source| Error::KeyFile { path: path.to_owned(), source })?;
        Ok(Self::new(&key))
    }

    /// Reads the key file; none when it is not there.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::KeyFile { path: path.to_owned(), source };
        match private_file::read(path) {
            Ok(None) => Ok(None),
            Ok(Some(file)) if file.mode & 0o077 != 0 => Err(Error::KeyMode { path: path.to_owned(), mode: file.mode }),
            Ok(Some(file)) => match <[u8; KEY_BYTES]>::try_from(file.bytes.as_slice()) {
                Ok(key) => Ok(Some(Self::new(&key))),
                Err(_) => Err(Error::KeySize { path: path.to_owned(), found: file.bytes.len() }),
            },
            Err(source) => Err(failed(source)),
        }
    }

    fn new(key: &[u8; KEY_BYTES]) -> Self {
        // Eight bytes of a hash tell keys apart and say nothing of the key.
        let key_id = hex::encode(&Sha256::digest(key)[..8]);
        let cipher = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key));
        Self { cipher, key_id, recovery_key: RecoveryKey::of(key) }
    }

    /// What opens copies of the catalog.
    pub fn recovery_key(&self) -> &RecoveryKey {
        &self.recovery_key
    }

    /// Which key this is. It tells keys apart and says nothing of the key.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Seals `secret` for the row with this id.
    pub fn seal(&self, row_id: &str, secret: &str) -> Result<String, Error> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| Error::Random(error.to_string()))?;
        let payload = Payload { msg: secret.as_bytes(), aad: row_id.as_bytes() };
        let sealed = self.cipher.encrypt(&Nonce::from(nonce), payload).map_err(|_| Error::Damaged)?;
        let (nonce, sealed) = (URL_SAFE_NO_PAD.encode(nonce), URL_SAFE_NO_PAD.encode(sealed));
        Ok(format!("{VERSION}.{}.{nonce}.{sealed}", self.key_id))
    }

    /// Opens what was sealed for the row with this id.
    pub fn open_sealed(&self, row_id: &str, envelope: &str) -> Result<SecretString, Error> {
        let mut parts = envelope.split('.');
        let (Some(VERSION), Some(key_id), Some(nonce), Some(sealed), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::Damaged);
        };
        if key_id != self.key_id {
            return Err(Error::OtherKey { sealed_with: key_id.to_owned(), present: self.key_id.clone() });
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Damaged);
        let nonce = <[u8; NONCE_BYTES]>::try_from(decode(nonce)?).map_err(|_| Error::Damaged)?;
        let (sealed, aad) = (decode(sealed)?, row_id.as_bytes());
        let secret =
            self.cipher.decrypt(&Nonce::from(nonce), Payload { msg: &sealed, aad }).map_err(|_| Error::Damaged)?;
        String::from_utf8(secret).map(SecretString::from).map_err(|_| Error::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_comes_back_only_for_its_row_and_key() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Sealer::read(&folder.path().join("key")).unwrap().is_none());
        let sealer = Sealer::make(&folder.path().join("key")).unwrap();
        let sealed = sealer.seal("src-1", "hunter2").unwrap();
        assert!(!sealed.contains("hunter2"));
        assert_ne!(sealed, sealer.seal("src-1", "hunter2").unwrap(), "each envelope has its own nonce");
        let again = Sealer::read(&folder.path().join("key")).unwrap().unwrap();
        assert_eq!((again.key_id(), key_id_of(&sealed)), (sealer.key_id(), Some(sealer.key_id())));
        assert_eq!(again.open_sealed("src-1", &sealed).unwrap().expose_secret(), "hunter2");
        assert_matches!(again.open_sealed("src-2", &sealed), Err(Error::Damaged));
        let other = Sealer::make(&folder.path().join("other")).unwrap();
        assert_matches!(other.open_sealed("src-1", &sealed), Err(Error::OtherKey { .. }));
        assert!(!format!("{sealer:?}").contains("cipher"));
    }

    #[test]
    fn a_key_file_that_is_short_or_open_to_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        Sealer::make(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_matches!(Sealer::read(&path), Err(Error::KeyMode { mode: 0o640, .. }));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, b"short").unwrap();
        assert_matches!(Sealer::read(&path), Err(Error::KeySize { found: 5, .. }));
    }

    proptest! {
        #[test]
        fn an_envelope_that_was_changed_is_refused(text in "[a-z0-9.]{0,80}", at in 0_usize..60, flip in 1_u8..127) {
            let sealer = Sealer::new(&[7; KEY_BYTES]);
            prop_assert!(sealer.open_sealed("src-1", &text).is_err());
            let mut sealed = sealer.seal("src-1", "a secret that is long enough").unwrap().into_bytes();
            sealed[at] = (sealed[at] ^ flip) & 0x7f;
            let changed = String::from_utf8(sealed).unwrap();
            prop_assert!(sealer.open_sealed("src-1", &changed).is_err());
        }
    }
}
