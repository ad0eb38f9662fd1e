//! Words about a virtual machine and its disks.

use crate::backup::words;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

words! {
    /// Whether the machine runs.
    PowerState {
        /// It runs (or is paused: its memory is alive).
        On = "on",
        /// It is off.
        Off = "off",
        /// Cannot be told.
        Unknown = "unknown",
    }
}

/// The longest name in bytes that a person may give to a thing of ours.
const NAME_BYTES_MAX: usize = 255;

/// A name that a person or a hypervisor gave: 1 to 255 bytes of text without control characters.
/// Not safe as a path component; ids are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name. The caller must send another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name {0:?} is not valid: 1 to 255 bytes without control characters are allowed")]
pub struct NameError(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        if text.trim().is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(NameError(text.chars().take(80).collect()));
        }
        Ok(Self(text))
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.to_owned().try_into()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest tag in bytes.
const TAG_BYTES_MAX: usize = 64;

/// A word that a person hangs on a machine, so that policies may mean all that bear it: 1 to 64 characters of
/// `a-z A-Z 0-9 . _ : / = @ -`, the first a letter or digit, so that `+prod` and `-prod` may say "hang on" and "take off".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// Why a text is not a tag. The caller must send another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tag {0:?} is not valid: 1 to 64 characters of a-z A-Z 0-9 . _ : / = @ - are allowed, the first a letter or digit"
)]
pub struct TagError(String);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Tag {
    type Error = TagError;
    fn try_from(text: String) -> Result<Self, TagError> {
        let may = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/=@-".contains(&byte);
        let begins_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if begins_well && text.len() <= TAG_BYTES_MAX && text.bytes().all(may) {
            Ok(Self(text))
        } else {
            Err(TagError(text.chars().take(80).collect()))
        }
    }
}

impl FromStr for Tag {
    type Err = TagError;
    fn from_str(text: &str) -> Result<Self, TagError> {
        text.to_owned().try_into()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> String {
        tag.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a disk *is*, as its hypervisor tells: the key (`disk-2000`, `vda`) together with the backing's identity (a
/// backing uuid, or source and target). Two disks with equal bindings are the same disk; a disk that was removed and
/// re-added with another backing is another disk and gets another number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskBinding(pub String);

impl fmt::Display for DiskBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A hypervisor's word for "since then": a checkpoint's name, a changeId. Opaque above the source that made it. It lives
/// in the manifest of the very point it belongs to and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrackingToken(pub String);

impl fmt::Display for TrackingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_words_that_a_sign_may_precede() {
        for text in ["prod", "a", "env=prod", "team/db", "k8s:node", "0", &"x".repeat(64)] {
            assert_eq!(text.parse::<Tag>().unwrap().as_str(), text);
        }
        for text in ["", "+prod", "-prod", "a b", "a,b", "a\n", "ä", "*", &"x".repeat(65)] {
            assert!(text.parse::<Tag>().is_err(), "{text:?} was taken");
            assert!(serde_json::from_value::<Tag>(text.into()).is_err(), "{text:?} was taken");
        }
    }
}
