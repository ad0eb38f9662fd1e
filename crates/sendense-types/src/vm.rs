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
