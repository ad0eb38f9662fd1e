//! The list of what a publication moves out of its draft's folder, written there before the first move.
//!
//! Names in it are relative to the VM's folder. When it is read back, only names that this very point can have are taken,
//! so a forged intent cannot make start-up touch anything else.

use crate::error::{Error, Kind, Result};
use crate::layout::{self, VmEntry};
use sendense_types::{BackupId, DiskNumber};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;

const FORMAT: &str = "sendense-draft-intent";
const VERSION: u32 = 1;
/// 256 disks with two names of at most 90 bytes, and as much again.
pub(crate) const INTENT_BYTES_MAX: u64 = 128 * 1024;

#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    version: u32,
    backup_id: BackupId,
    files: Vec<String>,
}

/// The disks whose files are moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intent {
    pub backup_id: BackupId,
    pub disks: BTreeSet<DiskNumber>,
}

/// The two files of a disk as a publication names them: in the VM's folder, and in the draft's.
pub(crate) fn files(backup: &BackupId, disk: DiskNumber) -> [(String, String); 2] {
    let dir = layout::disk_dir_name(disk);
    [
        (format!("{dir}/{}", layout::image_name(backup)), layout::draft_image_name(disk)),
        (format!("{dir}/{}", layout::digests_name(backup)), layout::draft_digests_name(disk)),
    ]
}

impl Intent {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let files = |disk: &DiskNumber| files(&self.backup_id, *disk).map(|(to, _)| to);
        let text = Text {
            format: FORMAT.into(),
            version: VERSION,
            backup_id: self.backup_id.clone(),
            files: self.disks.iter().flat_map(files).collect(),
        };
        let mut bytes = serde_json::to_vec_pretty(&text).expect("an intent of plain values can be written");
        bytes.push(b'\n');
        bytes
    }
}

/// Reads an intent of this point. Anything may be given. [`Kind::Unsupported`] when it is of a later version: what that
/// means to be undone is not known, so nothing is; else [`Kind::Invalid`].
pub(crate) fn read(bytes: &[u8], backup: &BackupId) -> Result<Intent> {
    let text: Text =
        serde_json::from_slice(bytes).map_err(|error| Error::invalid("read the intent").caused_by(error))?;
    if text.format == FORMAT && text.version != VERSION {
        let context = format!("the intent has version {}; this program knows {VERSION}", text.version);
        return Err(Error::new(Kind::Unsupported, context));
    }
    if text.format != FORMAT || text.backup_id != *backup {
        return Err(Error::invalid(format!("it is no intent of {backup}")));
    }
    let mut disks = BTreeSet::new();
    for name in &text.files {
        let (dir, file) = name.split_once('/').unwrap_or_default();
        match (layout::parse_vm_entry(OsStr::new(dir)), layout::parse_disk_entry(OsStr::new(file))) {
            (VmEntry::Disk(disk), Some(id)) if id == *backup => {
                disks.insert(disk);
            }
            _ => return Err(Error::invalid(format!("the intent names {name:?}"))),
        }
    }
    Ok(Intent { backup_id: backup.clone(), disks })
}

/// Reads an intent of whatever point it names; for the fuzzer.
pub fn parse(bytes: &[u8]) -> Result<()> {
    let backup = "bk-fuzz".parse()?;
    read(bytes, &backup).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn it_is_read_back_and_forged_ones_are_not() {
        let backup_id: BackupId = "bk-1".parse().unwrap();
        let intent = Intent { backup_id: backup_id.clone(), disks: [DiskNumber(0), DiskNumber(3)].into() };
        let text = String::from_utf8(intent.to_bytes()).unwrap();
        expect![[r#"
            {
              "format": "sendense-draft-intent",
              "version": 1,
              "backup_id": "bk-1",
              "files": [
                "disk-0/bk-1.qcow2",
                "disk-0/bk-1.digests",
                "disk-3/bk-1.qcow2",
                "disk-3/bk-1.digests"
              ]
            }
        "#]]
        .assert_eq(&text);
        assert_eq!(read(text.as_bytes(), &backup_id).unwrap(), intent);
        for forged in ["disk-3/bk-2.qcow2", "../bk-1.qcow2", "disk-3/../bk-1.qcow2", "/etc/passwd", "bk-1.qcow2"] {
            assert!(read(text.replace("disk-3/bk-1.qcow2", forged).as_bytes(), &backup_id).is_err(), "{forged}");
        }
        assert!(read(text.as_bytes(), &"bk-2".parse().unwrap()).is_err());
        assert!(read(&text.as_bytes()[..text.len() / 2], &backup_id).is_err());
    }
}
