//! The sealed form of a copy.
//!
//! ```text
//! "SNDSCOPY"  version (u32)  header length (u32)  header (JSON)  ciphertext and tag (AES-256-GCM)
//! ```
//!
//! Numbers are little endian. The header says whose copy it is and which key opens it, so that a wrong key is told from a damaged
//! file. Everything before the ciphertext is authenticated with it.
//!
//! What lives here: sealing and opening bytes. What does not: what is in them. Invariant: nothing comes out of a file in which one
//! bit is not as it was sealed.

use super::key::RecoveryKey;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use sendense_types::{DeploymentId, HubId, Timestamp};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"SNDSCOPY";
const VERSION: u32 = 1;
/// Magic, version, and the header's length.
const START_BYTES: usize = 16;
/// A header is some 250 bytes; more is not ours.
const HEADER_BYTES_MAX: usize = 4096;
/// Bytes of a GCM nonce. Random ones may be used for 2^32 copies under one key; a hub makes one a day.
const NONCE_BYTES: usize = 12;

/// What is told of a copy to who has no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Whose catalog.
    pub deployment_id: DeploymentId,
    /// Which hub made it.
    pub hub_id: HubId,
    /// When.
    pub made_at: Timestamp,
    /// Which key opens it ([`RecoveryKey::id`]).
    pub key_id: String,
    nonce: String,
}

/// Why a copy cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("it is not a copy of a catalog")]
    NotACopy,
    /// A later release wrote it.
    #[error("it has version {0}; this program knows {VERSION}")]
    Version(u32),
    /// It ends too early, or something in it was changed.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Its file has another's name. An older copy under a newer name would give back what was taken away since, such as tokens.
    #[error("it was made at {made_at} for {deployment_id}, which is not what its name says: the file was renamed")]
    Renamed {
        /// When, as is sealed.
        made_at: Timestamp,
        /// Whose, as is sealed.
        deployment_id: DeploymentId,
    },
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It was sealed with another key.
    #[error("it was sealed with another recovery key: with {sealed_with}, and the one that was given is {given}")]
    OtherKey {
        /// The key's id.
        sealed_with: String,
        /// The id of the one that was given.
        given: String,
    },
    /// The system gives no random numbers.
    #[error("get random numbers: {0}")]
    Random(String),
}

/// Seals bytes.
pub(super) fn seal(
    key: &RecoveryKey,
    deployment_id: &DeploymentId,
    hub_id: &HubId,
    made_at: Timestamp,
    plain: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| Error::Random(error.to_string()))?;
    let header = Header {
        deployment_id: deployment_id.clone(),
        hub_id: hub_id.clone(),
        made_at,
        key_id: key.id(),
        nonce: hex::encode(nonce),
    };
    let header = serde_json::to_vec(&header).expect("ids and words always make JSON");
    let len = u32::try_from(header.len()).expect("a header is a few hundred bytes");
    let mut sealed = [&MAGIC[..], &VERSION.to_le_bytes(), &len.to_le_bytes(), &header].concat();
    let payload = Payload { msg: plain, aad: &sealed };
    let ciphertext =
        cipher(key).encrypt(&Nonce::from(nonce), payload).map_err(|_| Error::Damaged("it is too large"))?;
    sealed.extend(ciphertext);
    Ok(sealed)
}

/// What a copy tells without a key, and where its ciphertext begins.
pub(super) fn header(sealed: &[u8]) -> Result<(Header, usize), Error> {
    let cut = || Error::Damaged("it ends too early");
    if !sealed.starts_with(MAGIC) {
        return Err(if MAGIC.starts_with(sealed) { cut() } else { Error::NotACopy });
    }
    let number = |at: usize| Some(u32::from_le_bytes(sealed.get(at..at + 4)?.try_into().ok()?));
    let (Some(version), Some(len)) = (number(8), number(12)) else { return Err(cut()) };
    if version != VERSION {
        return Err(Error::Version(version));
    }
    let len = usize::try_from(len).ok().filter(|len| *len <= HEADER_BYTES_MAX);
    let len = len.ok_or(Error::Damaged("its header is too long"))?;
    let header = sealed.get(START_BYTES..START_BYTES + len).ok_or_else(cut)?;
    let header = serde_json::from_slice(header).map_err(|_| Error::Damaged("its header cannot be read"))?;
    Ok((header, START_BYTES + len))
}

/// Refuses a copy that lies under a name which is not its own.
pub(super) fn check_name(header: &Header, name: &str) -> Result<(), Error> {
    match sendense_repo::catalog_copy::parse_name(name) {
        Some((made_at, deployment_id)) if (made_at, &deployment_id) == (header.made_at, &header.deployment_id) => {
            Ok(())
        }
        _ => Err(Error::Renamed { made_at: header.made_at, deployment_id: header.deployment_id.clone() }),
    }
}

/// Opens a copy.
pub(super) fn open(key: &RecoveryKey, sealed: &[u8]) -> Result<(Header, Vec<u8>), Error> {
    let (header, at) = header(sealed)?;
    let (start, ciphertext) = sealed.split_at(at);
    let nonce = hex::decode(&header.nonce).ok().and_then(|nonce| <[u8; NONCE_BYTES]>::try_from(nonce).ok());
    let nonce = nonce.ok_or(Error::Damaged("its header cannot be read"))?;
    let payload = Payload { msg: ciphertext, aad: start };
    match cipher(key).decrypt(&Nonce::from(nonce), payload) {
        Ok(plain) => Ok((header, plain)),
        Err(_) if header.key_id != key.id() => Err(Error::OtherKey { sealed_with: header.key_id, given: key.id() }),
        Err(_) => Err(Error::Damaged("it is not what was sealed")),
    }
}

fn cipher(key: &RecoveryKey) -> Aes256Gcm {
    Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(number: u8) -> RecoveryKey {
        RecoveryKey::of(&[number; 32])
    }

    fn sealed(plain: &[u8]) -> Vec<u8> {
        let at = Timestamp::from_micros(1_800_000_000_000_000);
        seal(&key(1), &"dep-1".parse().unwrap(), &"hub-1".parse().unwrap(), at, plain).unwrap()
    }

    #[test]
    fn a_wrong_key_a_later_version_and_another_file_are_told_apart() {
        let sealed = sealed(b"a secret");
        assert!(!sealed.windows(8).any(|part| part == b"a secret"));
        let (header, plain) = open(&key(1), &sealed).unwrap();
        assert_eq!((header.deployment_id.as_str(), plain.as_slice()), ("dep-1", &b"a secret"[..]));
        assert_matches!(open(&key(2), &sealed), Err(Error::OtherKey { .. }));
        let mut later = sealed.clone();
        later[8] = 2;
        assert_matches!(open(&key(1), &later), Err(Error::Version(2)));
        assert_matches!(open(&key(1), b"PK something else"), Err(Error::NotACopy));
        assert_matches!(open(&key(1), b""), Err(Error::Damaged(_)));
        for len in 0..sealed.len() {
            assert_matches!(open(&key(1), &sealed[..len]), Err(Error::Damaged(_)));
        }
    }

    proptest! {
        #[test]
        fn one_bit_is_enough_to_refuse(at in 0_usize..4096, bit in 0_u8..8, plain in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut changed = sealed(&plain);
            let at = at % changed.len();
            changed[at] ^= 1 << bit;
            prop_assert!(open(&key(1), &changed).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), len in any::<u32>()) {
            prop_assert!(open(&key(1), &bytes).is_err());
            let begun = [&MAGIC[..], &VERSION.to_le_bytes(), &len.to_le_bytes(), &bytes].concat();
            prop_assert!(open(&key(1), &begun).is_err());
        }
    }
}
