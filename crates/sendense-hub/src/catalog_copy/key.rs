//! The recovery key: what opens copies of the catalog when the machine is gone.
//!
//! It is derived from the key file that seals credentials, so that all hubs of a deployment have the same one and nothing else
//! need be kept on the machine; from it, the key file cannot be told. A person writes it down, so it is text with a check:
//! `SRK-` and 17 groups of four hex digits, of which the last is the check.
//!
//! Invariant: it is printed when it is asked for, and by nothing else.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Bytes of the key.
pub(super) const KEY_BYTES: usize = 32;
/// Bytes of the check: a mistyped key is told from a wrong one in all but one of 65,536 cases.
const CHECK_BYTES: usize = 2;
const PREFIX: &str = "SRK-";
const GROUP_DIGITS: usize = 4;

/// The recovery key.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryKey([u8; KEY_BYTES]);

/// Why a text is no recovery key. The person who typed it acts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is too short, too long, or holds other characters.
    #[error("a recovery key is SRK- and {} hex digits in groups of four", (KEY_BYTES + CHECK_BYTES) * 2)]
    Form,
    /// A digit is wrong.
    #[error("the recovery key was not copied correctly: its check does not agree")]
    Check,
}

impl RecoveryKey {
    /// The recovery key of a deployment, by the key of its credentials.
    pub fn of(sealing_key: &[u8; KEY_BYTES]) -> Self {
        // One block of input of fixed length behind a label of its own: nothing can be appended to it.
        Self(hash("sendense recovery key 1", sealing_key))
    }

    /// Which key it is. It tells keys apart and says nothing of the key.
    pub fn id(&self) -> String {
        hex::encode(&hash("sendense recovery key id", &self.0)[..8])
    }

    /// The text that a person keeps.
    pub fn to_text(&self) -> String {
        let digits = hex::encode([&self.0[..], &self.check()].concat());
        let groups: Vec<String> = digits
            .as_bytes()
            .chunks(GROUP_DIGITS)
            .map(|group| group.iter().map(|digit| char::from(*digit)).collect())
            .collect();
        format!("{PREFIX}{}", groups.join("-"))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    fn check(&self) -> [u8; CHECK_BYTES] {
        let hashed = hash("sendense recovery key check", &self.0);
        [hashed[0], hashed[1]]
    }
}

fn hash(label: &str, bytes: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    Sha256::new().chain_update(label).chain_update(bytes).finalize().into()
}

impl FromStr for RecoveryKey {
    type Err = KeyError;

    /// Takes small and capital letters, and whatever spaces and dashes a person puts between groups.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let rest = match text.get(..PREFIX.len()) {
            Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => &text[PREFIX.len()..],
            _ => return Err(KeyError::Form),
        };
        let digits: String = rest.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
        let bytes = hex::decode(digits).map_err(|_| KeyError::Form)?;
        let (key, check) = bytes.split_at_checked(KEY_BYTES).ok_or(KeyError::Form)?;
        let key = Self(key.try_into().map_err(|_| KeyError::Form)?);
        match check.len() {
            CHECK_BYTES if check == key.check() => Ok(key),
            CHECK_BYTES => Err(KeyError::Check),
            _ => Err(KeyError::Form),
        }
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoveryKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_stays_what_it_is() {
        // A key that was written down years ago must open what is written today.
        let key = RecoveryKey::of(&[7; KEY_BYTES]);
        expect_test::expect![[
            "SRK-665b-91fe-463f-01e2-be97-4a74-6075-720a-dd8f-12b0-6d43-e3c4-bd28-9713-6e2a-b208-0320 9474c550221fe192"
        ]]
        .assert_eq(&format!("{} {}", key.to_text(), key.id()));
        assert!(!format!("{key:?}").contains(&hex::encode(key.bytes())[..8]));
    }

    proptest! {
        #[test]
        fn what_a_person_types_is_read_or_refused(bytes in any::<[u8; KEY_BYTES]>(), at in 0_usize..80, to in any::<char>()) {
            let key = RecoveryKey::of(&bytes);
            let text = key.to_text();
            prop_assert_eq!(text.parse(), Ok(key.clone()));
            prop_assert_eq!(text.to_lowercase().replace('-', " ").replacen("srk ", "srk-", 1).parse(), Ok(key.clone()));
            let mut typed: Vec<char> = text.chars().collect();
            let at = at % typed.len();
            typed[at] = to;
            let typed: String = typed.into_iter().collect();
            match typed.parse::<RecoveryKey>() {
                // The same digit in another form, or a space for a dash.
                Ok(read) => prop_assert_eq!(read, key),
                Err(KeyError::Form | KeyError::Check) => {}
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,100}") {
            let _ = text.parse::<RecoveryKey>();
        }
    }
}
