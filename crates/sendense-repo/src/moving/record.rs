//! Which points move, as both repositories are told in writing.
//!
//! When a record is read back, nothing is believed but ids and numbers: paths are made from them.

use crate::error::{Error, Kind, Result};
use sendense_types::{BackupId, DiskNumber};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FORMAT: &str = "sendense-move";
const VERSION: u32 = 1;
/// Ten thousand points at some 300 bytes, three times over.
pub(super) const RECORD_BYTES_MAX: u64 = 8 << 20;
/// An id of a repository, or whatever the caller calls it.
const NAME_BYTES_MAX: usize = 256;

#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    version: u32,
    from: String,
    to: String,
    points: Vec<Moved>,
}

/// One point that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub backup_id: BackupId,
    pub disks: BTreeSet<DiskNumber>,
    /// BLAKE3 of its manifest's file, as `b3sum` says it.
    pub manifest: String,
}

/// All points of a machine in a repository, parents before children, and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The repository that they come from, in the caller's words.
    pub from: String,
    /// The one that they go to.
    pub to: String,
    pub points: Vec<Moved>,
}

/// BLAKE3 of a manifest's file, as `b3sum` says it.
pub(super) fn digest_of(text: &[u8]) -> String {
    blake3::hash(text).to_hex().to_string()
}

impl Record {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let text = Text {
            format: FORMAT.into(),
            version: VERSION,
            from: self.from.clone(),
            to: self.to.clone(),
            points: self.points.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&text).expect("a record of plain values can be written");
        bytes.push(b'\n');
        bytes
    }

    /// The points.
    pub(crate) fn ids(&self) -> BTreeSet<BackupId> {
        self.points.iter().map(|point| point.backup_id.clone()).collect()
    }
}

/// Reads a record. Anything may be given. [`Kind::Unsupported`] when it is of a later version, else [`Kind::Invalid`].
pub(crate) fn read(bytes: &[u8]) -> Result<Record> {
    let text: Text =
        serde_json::from_slice(bytes).map_err(|error| Error::invalid("read the record of a move").caused_by(error))?;
    if text.format == FORMAT && text.version != VERSION {
        let context = format!("the record of a move has version {}; this program knows {VERSION}", text.version);
        return Err(Error::new(Kind::Unsupported, context));
    }
    let record = Record { from: text.from, to: text.to, points: text.points };
    let is_each_once = record.ids().len() == record.points.len();
    let are_names_short = record.from.len().max(record.to.len()) <= NAME_BYTES_MAX;
    if text.format != FORMAT || record.points.is_empty() || !is_each_once || !are_names_short {
        return Err(Error::invalid("it is no record of a move"));
    }
    Ok(record)
}

/// Reads a record; for the fuzzer.
pub fn parse(bytes: &[u8]) -> Result<()> {
    read(bytes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn it_is_read_back_and_forged_ones_are_not() {
        let point = |id: &str| Moved {
            backup_id: id.parse().unwrap(),
            disks: [DiskNumber(0), DiskNumber(3)].into(),
            manifest: "f00d".into(),
        };
        let record = Record { from: "repo-1".into(), to: "repo-2".into(), points: vec![point("bk-1"), point("bk-2")] };
        let text = String::from_utf8(record.to_bytes()).unwrap();
        expect![[r#"
            {
              "format": "sendense-move",
              "version": 1,
              "from": "repo-1",
              "to": "repo-2",
              "points": [
                {
                  "backup_id": "bk-1",
                  "disks": [
                    0,
                    3
                  ],
                  "manifest": "f00d"
                },
                {
                  "backup_id": "bk-2",
                  "disks": [
                    0,
                    3
                  ],
                  "manifest": "f00d"
                }
              ]
            }
        "#]]
        .assert_eq(&text);
        assert_eq!(read(text.as_bytes()).unwrap(), record);
        for (from, to) in [("bk-1", "../bk-1"), ("bk-1", "bk-2"), ("sendense-move", "sendense-merge"), ("0,", "-1,")] {
            assert!(read(text.replace(from, to).as_bytes()).is_err(), "{to}");
        }
        assert_eq!(read(&text.as_bytes()[..text.len() / 2]).unwrap_err().kind, Kind::Invalid);
        let later = text.replace("\"version\": 1", "\"version\": 2");
        assert_eq!(read(later.as_bytes()).unwrap_err().kind, Kind::Unsupported);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
