//! The journal as a folder: one small file per open entry, durable before `record` returns.
//!
//! A crash may leave a `.new` file that was not renamed: nothing had been made for it, so it is removed at the next start.

use parking_lot::Mutex;
use sendense_source::{Artefact, Error, Journal, Kind, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Open entries at the most. A node runs tens of tasks with a handful of artefacts each; more means that closing fails.
const ENTRIES_MAX: usize = 10_000;

/// A journal in a folder of its own.
#[derive(Debug)]
pub struct FileJournal {
    folder: PathBuf,
    next: Mutex<u64>,
}

impl FileJournal {
    /// Opens the folder, making it when it is missing.
    pub fn open(folder: &Path) -> Result<Self> {
        let failed = |error| failed("open the journal", folder, error);
        fs::create_dir_all(folder).map_err(failed)?;
        let mut next = 1;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(number) = number_of(&name) {
                next = next.max(number + 1);
            } else if name.to_string_lossy().ends_with(".new") {
                fs::remove_file(folder.join(&name)).map_err(failed)?;
            }
        }
        sync(folder).map_err(failed)?;
        Ok(Self { folder: folder.to_owned(), next: Mutex::new(next) })
    }

    fn path(&self, entry: u64) -> PathBuf {
        self.folder.join(format!("{entry}.json"))
    }
}

impl Journal for FileJournal {
    fn record(&self, artefact: &Artefact) -> Result<u64> {
        let mut next = self.next.lock();
        let (entry, path) = (*next, self.path(*next));
        let failed = |error| failed("write a journal entry", &path, error);
        let text = serde_json::to_vec_pretty(artefact).map_err(|error| failed(error.into()))?;
        let draft = path.with_extension("new");
        let mut file = File::create(&draft).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&draft, &path).and_then(|()| sync(&self.folder)).map_err(failed)?;
        *next += 1;
        Ok(entry)
    }

    fn close(&self, entry: u64) -> Result<()> {
        let path = self.path(entry);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("close a journal entry", &path, error)),
            _ => sync(&self.folder).map_err(|error| failed("close a journal entry", &path, error)),
        }
    }

    fn open_entries(&self) -> Result<Vec<(u64, Artefact)>> {
        let read = |error| failed("read the journal", &self.folder, error);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            let Some(number) = number_of(&entry.file_name()) else { continue };
            let text = match fs::read(entry.path()) {
                Ok(text) => text,
                // Closed between the listing and the reading.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(read(error)),
            };
            let artefact =
                serde_json::from_slice(&text).map_err(|error| failed("parse", &entry.path(), error.into()))?;
            entries.push((number, artefact));
            if entries.len() > ENTRIES_MAX {
                return Err(Error::new(Kind::Failed, format!("the journal has more than {ENTRIES_MAX} open entries")));
            }
        }
        entries.sort_by_key(|(number, _)| *number);
        Ok(entries)
    }
}

fn number_of(name: &std::ffi::OsStr) -> Option<u64> {
    name.to_str()?.strip_suffix(".json")?.parse().ok()
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::new(Kind::Failed, format!("{what} {}", path.display())).hint("make room, check permissions").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_source::ArtefactKind;
    use sendense_types::{SourceId, TaskId};

    fn artefact(vm_key: &str) -> Artefact {
        Artefact {
            source_id: SourceId::generate(),
            task_id: TaskId::generate(),
            kind: ArtefactKind::Checkpoint,
            vm_key: vm_key.into(),
            details: serde_json::json!({ "name": "x" }),
        }
    }

    #[test]
    fn entries_survive_the_process_and_numbers_are_not_reused_while_open() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (artefact("one"), artefact("two"));
        let journal = FileJournal::open(dir.path()).unwrap();
        let first = journal.record(&one).unwrap();
        let second = journal.record(&two).unwrap();
        drop(journal);
        std::fs::write(dir.path().join("9.new"), b"{").unwrap();
        let journal = FileJournal::open(dir.path()).unwrap();
        assert_eq!(journal.open_entries().unwrap(), [(first, one), (second, two.clone())]);
        journal.close(first).unwrap();
        journal.close(first).unwrap();
        let third = journal.record(&two).unwrap();
        assert!(third > second);
        assert_eq!(journal.open_entries().unwrap().len(), 2);
        assert!(!dir.path().join("9.new").exists());
    }
}
