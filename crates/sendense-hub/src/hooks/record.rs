//! Which hooks are still to be run after backups, kept on disk: what was stopped before a backup is started again also when the
//! hub dies between.
//!
//! Invariant: a record is on stable storage before anything is run before its backup, and goes when what comes after was run.

use crate::data_dir::private_file;
use sendense_types::{BackupId, TaskId, VmContextId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;

/// What is to be run after a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    pub task_id: TaskId,
    pub backup_id: BackupId,
    /// The machine.
    pub vm_context_id: VmContextId,
    /// The hook's name.
    pub after: String,
    pub timeout_seconds: u32,
    /// What it is told of the backup.
    pub told: BTreeMap<String, String>,
}

impl Record {
    /// Of this task's backup of a machine, telling nothing yet.
    pub fn new(task_id: TaskId, backup_id: BackupId, vm: VmContextId, after: String, timeout_seconds: u32) -> Self {
        let told = BTreeMap::new();
        Self { version: VERSION, task_id, backup_id, vm_context_id: vm, after, timeout_seconds, told }
    }

    /// With what it is told.
    pub fn telling(self, told: BTreeMap<String, String>) -> Self {
        Self { told, ..self }
    }
}

/// The records of this hub.
#[derive(Debug, Clone)]
pub(super) struct Book(PathBuf);

impl Book {
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    fn path(&self, task_id: &TaskId) -> PathBuf {
        // An id is safe as one component of a path.
        self.0.join(format!("{task_id}.json"))
    }

    pub fn keep(&self, record: &Record) -> io::Result<()> {
        private_file::create(&self.path(&record.task_id), &serde_json::to_vec_pretty(record)?)
    }

    /// None when there is none.
    pub fn read(&self, task_id: &TaskId) -> io::Result<Option<Record>> {
        match private_file::read(&self.path(task_id))? {
            None => Ok(None),
            Some(file) => {
                let record: Record = serde_json::from_slice(&file.bytes)?;
                let is_ours = record.version == VERSION && record.task_id == *task_id;
                is_ours.then_some(Some(record)).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "it is not this task's, or of another release")
                })
            }
        }
    }

    pub fn remove(&self, task_id: &TaskId) -> io::Result<()> {
        match fs::remove_file(self.path(task_id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Puts aside what cannot be read, so that it is complained of once.
    pub fn put_aside(&self, task_id: &TaskId) -> io::Result<PathBuf> {
        let aside = self.0.join(format!("{task_id}.damaged"));
        fs::rename(self.path(task_id), &aside)?;
        Ok(aside)
    }

    /// Tasks of which there are records. Names that are none are passed over: `.new` files of a write that was cut off.
    pub fn all(&self) -> io::Result<Vec<TaskId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            found.extend(id.and_then(|id| id.parse().ok()));
        }
        found.sort_unstable();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kept_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::new(dir.path());
        let mut record =
            Record::new(TaskId::generate(), BackupId::generate(), VmContextId::generate(), "start-db".to_owned(), 60);
        record.told.insert("SENDENSE_VM".to_owned(), "web ü\u{1f600}".to_owned());
        book.keep(&record).unwrap();
        fs::write(dir.path().join("task-x.new"), "{").unwrap();
        assert_eq!(book.all().unwrap(), [record.task_id.clone()]);
        assert_eq!(book.read(&record.task_id).unwrap(), Some(record.clone()));
        // Under another name it is not believed, nor when it is damaged.
        let other = TaskId::generate();
        fs::copy(book.path(&record.task_id), book.path(&other)).unwrap();
        assert!(book.read(&other).is_err());
        fs::write(book.path(&other), "{").unwrap();
        assert!(book.read(&other).is_err());
        let aside = book.put_aside(&other).unwrap();
        assert!(aside.exists());
        assert_eq!(book.all().unwrap(), [record.task_id.clone()]);
        book.remove(&record.task_id).unwrap();
        book.remove(&record.task_id).unwrap();
        assert_eq!(book.read(&record.task_id).unwrap(), None);
    }
}
