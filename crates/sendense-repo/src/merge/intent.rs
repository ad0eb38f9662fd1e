//! What a merge is about to do, written into its folder before the first name changes.
//!
//! When it is read back, nothing is believed but ids and numbers: paths are made from them.

use crate::error::{Error, Kind, Result};
use sendense_types::{BackupId, DiskNumber};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FORMAT: &str = "sendense-merge-intent";
const VERSION: u32 = 1;
/// Of intents by which the other point stays, which programs of before would have deleted.
const VERSION_STAYS: u32 = 2;
/// 256 disks' numbers, two ids, and as much again.
pub(super) const INTENT_BYTES_MAX: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    version: u32,
    successor: BackupId,
    going: BackupId,
    disks: BTreeSet<DiskNumber>,
    before: String,
    going_before: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stays: bool,
}

/// Which point goes, which one takes over, and the disks whose files are new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intent {
    pub successor: BackupId,
    pub going: BackupId,
    pub disks: BTreeSet<DiskNumber>,
    /// BLAKE3 of the successor's manifest before: a merge goes forward from that state only.
    pub before: String,
    /// The same of the other point.
    pub going_before: String,
    /// The other point stays: the successor only does not stand on it any more.
    pub stays: bool,
}

/// BLAKE3 of a manifest's file, as `b3sum` says it.
pub(super) fn digest_of(text: &[u8]) -> String {
    blake3::hash(text).to_hex().to_string()
}

impl Intent {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let text = Text {
            format: FORMAT.into(),
            version: if self.stays { VERSION_STAYS } else { VERSION },
            successor: self.successor.clone(),
            going: self.going.clone(),
            disks: self.disks.clone(),
            before: self.before.clone(),
            going_before: self.going_before.clone(),
            stays: self.stays,
        };
        let mut bytes = serde_json::to_vec_pretty(&text).expect("an intent of plain values can be written");
        bytes.push(b'\n');
        bytes
    }
}

/// Reads the intent of a merge into this point. Anything may be given. [`Kind::Unsupported`] when it is of a later version,
/// else [`Kind::Invalid`].
pub(crate) fn read(bytes: &[u8], successor: &BackupId) -> Result<Intent> {
    let text: Text =
        serde_json::from_slice(bytes).map_err(|error| Error::invalid("read the intent of a merge").caused_by(error))?;
    let version = if text.stays { VERSION_STAYS } else { VERSION };
    if text.format == FORMAT && text.version != version {
        let context = format!("the intent has version {}; this program knows {VERSION_STAYS}", text.version);
        return Err(Error::new(Kind::Unsupported, context));
    }
    if text.format != FORMAT || text.successor != *successor || text.going == text.successor || text.disks.is_empty() {
        return Err(Error::invalid(format!("it is no intent of a merge into {successor}")));
    }
    Ok(Intent {
        successor: text.successor,
        going: text.going,
        disks: text.disks,
        before: text.before,
        going_before: text.going_before,
        stays: text.stays,
    })
}

/// Reads an intent; for the fuzzer.
pub fn parse(bytes: &[u8]) -> Result<()> {
    read(bytes, &"bk-fuzz".parse()?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn it_is_read_back_and_forged_ones_are_not() {
        let intent = Intent {
            successor: "bk-2".parse().unwrap(),
            going: "bk-1".parse().unwrap(),
            disks: [DiskNumber(0), DiskNumber(3)].into(),
            before: "f00d".into(),
            going_before: "beef".into(),
            stays: false,
        };
        let text = String::from_utf8(intent.to_bytes()).unwrap();
        expect![[r#"
            {
              "format": "sendense-merge-intent",
              "version": 1,
              "successor": "bk-2",
              "going": "bk-1",
              "disks": [
                0,
                3
              ],
              "before": "f00d",
              "going_before": "beef"
            }
        "#]]
        .assert_eq(&text);
        assert_eq!(read(text.as_bytes(), &intent.successor).unwrap(), intent);
        for (from, to) in [("bk-1", "../bk-1"), ("bk-1", "bk-2"), ("merge-intent", "draft-intent"), ("0,", "-1,")] {
            assert!(read(text.replace(from, to).as_bytes(), &intent.successor).is_err(), "{to}");
        }
        assert!(read(text.as_bytes(), &intent.going).is_err(), "it is another point's");
        assert!(read(&text.as_bytes()[..text.len() / 2], &intent.successor).is_err());
        let stays = Intent { stays: true, ..intent.clone() };
        assert_eq!(read(&stays.to_bytes(), &intent.successor).unwrap(), stays);
        let later = text.replace("\"version\": 1", "\"version\": 2");
        assert_eq!(read(later.as_bytes(), &intent.successor).unwrap_err().kind, Kind::Unsupported);
    }
}
