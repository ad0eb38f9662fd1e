//! A volume of a disk: how it is named and what is known of it before it is browsed.
//!
//! Invariant: a [`VolumeId`] is short printable text, so that it can stand in a URL, a log line and a file's name field.

use crate::error::{Error, Result};
use crate::meta::{Consistency, State};
use std::fmt;

/// The longest id: "lvm:" and two LVM names, which have at most 127 characters each.
pub const ID_BYTES_MAX: usize = 272;
/// How many volumes one disk may have. GPT has room for 128 partitions; a volume group of a server holds tens of volumes.
pub const VOLUMES_MAX: usize = 512;
/// The longest text of a volume (label, UUID, kind); what is longer is cut.
pub const TEXT_BYTES_MAX: usize = 256;

/// What a volume is called within its disk: `disk`, `p2`, `lvm:vg0/root`, `luks:p3`, `md:p1`. The same disk always gives the
/// same ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(String);

impl VolumeId {
    /// Reads an id that came from outside.
    ///
    /// # Errors
    /// [`Error::NoVolume`] when it cannot be one.
    pub fn parse(id: &str) -> Result<VolumeId> {
        let sound = !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
        if sound { Ok(VolumeId(id.to_owned())) } else { Err(Error::NoVolume) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One volume of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name within the disk.
    pub id: VolumeId,
    /// What is on it: a file system (`ext4`), `crypto_LUKS`, `swap`, `linear` for a volume whose mapping cannot be read;
    /// empty when nothing is known.
    pub kind: String,
    /// The file system's label, else the partition's name.
    pub label: Option<String>,
    /// The file system's UUID or serial number.
    pub uuid: Option<String>,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Whether it can be browsed.
    pub state: State,
    /// Whether the log was clean; none where there is no readable file system.
    pub consistency: Option<Consistency>,
}

/// A key for an encrypted volume. It is wiped when dropped and never printed.
#[derive(Clone)]
pub struct Key(Vec<u8>);

/// The longest key: LUKS takes passphrases of up to 512 bytes by default; key files are often 4096.
pub const KEY_BYTES_MAX: usize = 8192;

impl Key {
    /// Takes a passphrase or the content of a key file.
    ///
    /// # Errors
    /// [`Error::Limit`] when it is longer than any key that tools make.
    pub fn new(bytes: Vec<u8>) -> Result<Key> {
        let key = Key(bytes);
        if key.0.len() > KEY_BYTES_MAX {
            return Err(Error::Limit(format!("a key has at most {KEY_BYTES_MAX} bytes")));
        }
        Ok(key)
    }

    /// The bytes, for the derivation.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // `black_box` keeps the compiler from dropping stores that nobody reads again.
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}

/// Text of a guest for people: control characters replaced, cut to [`TEXT_BYTES_MAX`]; none when nothing is left.
pub fn shown(text: &str) -> Option<String> {
    let mut shown = String::new();
    for character in text.trim_matches(['\0', ' ']).chars() {
        let character = if character.is_control() { '\u{fffd}' } else { character };
        if shown.len() + character.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        shown.push(character);
    }
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_are_printable_and_short() {
        assert_eq!(VolumeId::parse("lvm:vg0/root").unwrap().as_str(), "lvm:vg0/root");
        for bad in ["", "a b", "a\n", "p1\u{e9}", &"x".repeat(ID_BYTES_MAX + 1)] {
            assert_eq!(VolumeId::parse(bad), Err(Error::NoVolume), "{bad:?}");
        }
    }

    #[test]
    fn texts_of_guests_are_made_harmless_and_keys_are_not_printed() {
        assert_eq!(shown("  root\u{1b}[2J\0\0"), Some("root\u{fffd}[2J".into()));
        assert_eq!(shown("\0\0 "), None);
        assert!(shown(&"\u{20ac}".repeat(500)).unwrap().len() <= TEXT_BYTES_MAX);
        assert_eq!(format!("{:?}", Key::new(b"secret".to_vec()).unwrap()), "Key(..)");
        assert!(Key::new(vec![0; KEY_BYTES_MAX + 1]).is_err());
    }
}
