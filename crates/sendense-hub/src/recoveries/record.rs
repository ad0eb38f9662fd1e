//! What is kept of a recovery so that it outlives the hub: one file each, written before anything is made.
//!
//! Invariant: a file is there in full or not at all, and goes only when nothing of its recovery is left. One that cannot be read is
//! told and left alone.

use crate::data_dir::private_file;
use sendense_types::{BackupId, DiskNumber, Name, RecoveryId, RepositoryId, SourceId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The version that this program writes and reads.
const VERSION: u32 = 1;
const SUFFIX: &str = ".json";

/// A recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    pub recovery_id: RecoveryId,
    pub name: Name,
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub repository_id: RepositoryId,
    pub state: State,
    /// Where its overlays lie, each in a folder of its own; made by it, and gone with it.
    pub folder: PathBuf,
    pub disks: Vec<DiskRecord>,
    /// The machine that runs on them, where the hub made one.
    #[serde(default)]
    pub machine: Option<MachineRecord>,
    /// Files of disks that have moved, while others have not.
    #[serde(default)]
    pub moved: Vec<PathBuf>,
    pub created_at: Timestamp,
    pub created_by: String,
}

/// A disk of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskRecord {
    pub disk_id: DiskNumber,
    pub disk_key: String,
    pub label: String,
    pub size_bytes: u64,
    /// The name that it is served under: a secret.
    pub export: String,
}

/// A machine on a hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineRecord {
    pub source_id: SourceId,
    pub name: String,
    /// Chosen by us, so nobody else's.
    pub instance_uuid: String,
    /// Where its disks are served: a place that its hypervisor reaches.
    pub socket: PathBuf,
}

/// Where it is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Not all of it is there. When the hub dies now, it is taken away.
    Creating,
    /// It is served, and is served again after each start.
    Ready,
    /// What was written is being made into this point. When the hub dies now, whether the point is there says how it goes on.
    Committing { backup_id: BackupId },
    /// Its machine moves to these files, by the keys of the disks. When the hub dies now, those that have not moved stay here.
    Migrating { files: BTreeMap<String, PathBuf> },
    /// It is being taken away, and nothing stops that.
    Ending,
}

/// What a recovery is of.
pub(crate) struct Of {
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub repository_id: RepositoryId,
}

impl Record {
    pub fn new(
        id: RecoveryId,
        name: Name,
        of: Of,
        dir: &Path,
        disks: Vec<DiskRecord>,
        now: Timestamp,
        by: &str,
    ) -> Self {
        Self {
            version: VERSION,
            folder: dir.join(id.as_str()),
            recovery_id: id,
            name,
            backup_id: of.backup_id,
            vm_context_id: of.vm_context_id,
            vm_name: of.vm_name,
            repository_id: of.repository_id,
            state: State::Creating,
            disks,
            machine: None,
            moved: Vec::new(),
            created_at: now,
            created_by: by.to_owned(),
        }
    }

    /// Its machine with this one.
    #[must_use]
    pub fn with_machine(self, machine: Option<MachineRecord>) -> Self {
        Self { machine, ..self }
    }

    /// The folder of a disk's overlay.
    pub fn overlay(&self, disk: DiskNumber) -> PathBuf {
        self.folder.join(format!("disk-{disk}"))
    }

    /// What an overlay is bound to: never served over anything else.
    pub fn identity(&self, disk: DiskNumber) -> Vec<u8> {
        format!("{} {} disk {disk}", self.vm_context_id, self.backup_id).into_bytes()
    }
}

/// The folder with the records.
pub(super) struct Book(PathBuf);

impl Book {
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    fn path(&self, id: &RecoveryId) -> PathBuf {
        self.0.join(format!("{id}{SUFFIX}"))
    }

    /// Writes a record, in the place of the one that was there; durable when it returns.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(record)?;
        private_file::create(&self.path(&record.recovery_id), &text)
    }

    /// Removes one. What is gone already is no error.
    pub fn remove(&self, id: &RecoveryId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::File::open(&self.0)?.sync_all()
    }

    /// All that can be read.
    pub fn read_all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            let Some(id) = id else { continue };
            match read(&path) {
                Ok(record) if record.recovery_id.as_str() == id => records.push(record),
                Ok(_) => tracing::error!(path = %path.display(), "a recovery's record bears another one's id"),
                Err(error) => {
                    tracing::error!(path = %path.display(), error = %error, "a recovery's record cannot be read")
                }
            }
        }
        records.sort_by(|a, b| (a.created_at, &a.recovery_id).cmp(&(b.created_at, &b.recovery_id)));
        Ok(records)
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let file = private_file::read(path)?.ok_or(io::ErrorKind::NotFound)?;
    let record: Record = serde_json::from_slice(&file.bytes)?;
    if record.version != VERSION {
        return Err(io::Error::other(format!("version {} was written by another release", record.version)));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, seconds: i64) -> Record {
        let of = Of {
            backup_id: "bk-1".parse().unwrap(),
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web".into(),
            repository_id: "repo-1".parse().unwrap(),
        };
        let disk = DiskRecord {
            disk_id: DiskNumber(0),
            disk_key: "vda".into(),
            label: "vda".into(),
            size_bytes: 1,
            export: "secret".into(),
        };
        let now = Timestamp::from_micros(0).plus_seconds(seconds);
        Record::new(id.parse().unwrap(), id.parse().unwrap(), of, Path::new("/x"), vec![disk], now, "admin")
    }

    #[test]
    fn records_outlive_their_writer_and_what_cannot_be_read_stays() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::new(dir.path().to_owned());
        let (old, new) = (record("rcv-z", 1), record("rcv-a", 2));
        book.write(&new).unwrap();
        book.write(&old).unwrap();
        let later = Record { state: State::Ready, ..old.clone() };
        book.write(&later).unwrap();
        fs::write(dir.path().join("rcv-torn.json"), b"{").unwrap();
        fs::write(dir.path().join("rcv-other.json"), serde_json::to_vec(&new).unwrap()).unwrap();
        let text = serde_json::to_string(&old).unwrap().replace("\"version\":1", "\"version\":2");
        fs::write(dir.path().join("rcv-later.json"), text).unwrap();
        assert_eq!(book.read_all().unwrap(), [later, new.clone()]);
        let machine = MachineRecord {
            source_id: "src-1".parse().unwrap(),
            name: "web".into(),
            instance_uuid: "u".into(),
            socket: "/run/nbd".into(),
        };
        let new = new.with_machine(Some(machine));
        book.write(&new).unwrap();
        book.remove(&old.recovery_id).unwrap();
        book.remove(&old.recovery_id).unwrap();
        assert_eq!(book.read_all().unwrap(), [new]);
        assert!(dir.path().join("rcv-torn.json").exists());
        assert_eq!(record("rcv-a", 0).overlay(DiskNumber(1)), Path::new("/x/rcv-a/disk-1"));
    }
}
