//! Undoing what ended backups and restores left on sources, hub or no hub.
//!
//! What is made on a source is in the journal before it is made; how that source is reached is kept beside it ([`Kept`]), for
//! as long as something may be left on it. So a node that was killed clears up when it comes back, also where its hub is
//! gone.
//!
//! Invariant: only what the journal names is undone, and only when its task is not running here.

use super::message::SourceSpec;
use crate::identity;
use parking_lot::Mutex;
use sendense_block::Cancel;
use sendense_block::error::chain;
use sendense_source::{Journal, Source};
use sendense_types::{SourceId, TaskId};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest kept file that is read: settings and credentials have some KiB, an authority's certificates tens.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How sources are reached on which something may be left. They hold credentials, so they go when nothing is.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
    /// Held while a file is written or removed, so that one that is needed again is not lost.
    change: Mutex<()>,
}

impl Kept {
    /// Opens the folder, making it when it is missing.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder, change: Mutex::new(()) })
    }

    /// Keeps one, durably, before anything is made on it.
    pub fn keep(&self, spec: &SourceSpec) -> Result<(), String> {
        let text = serde_json::to_vec(spec).map_err(|error| error.to_string())?;
        let _change = self.change.lock();
        identity::write(&self.path(&spec.source_id), &text, 0o600).map_err(|error| chain(&error))
    }

    /// One that was kept. What cannot be read is as if it were not there: the hub tells it again.
    pub fn get(&self, source: &SourceId) -> Option<SourceSpec> {
        let path = self.path(source);
        let mut text = Vec::new();
        fs::File::open(&path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
        match serde_json::from_slice(&text) {
            Ok(spec) => Some(spec),
            Err(error) => {
                tracing::warn!(file = %path.display(), error = %error, "a kept source cannot be read");
                None
            }
        }
    }

    /// Removes those that nobody needs any more.
    pub fn forget(&self, is_needed: impl Fn(&SourceId) -> bool) -> io::Result<()> {
        let _change = self.change.lock();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let source = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| id.parse().ok());
            // What bears no source's name is a file whose writing was cut off.
            if source.is_none_or(|source: SourceId| !is_needed(&source)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn path(&self, source: &SourceId) -> PathBuf {
        self.folder.join(format!("{source}.json"))
    }
}

/// What the reaper needs of its node.
pub(super) struct Reaper<'a> {
    /// What was made and not taken away.
    pub journal: &'a dyn Journal,
    /// How sources are reached.
    pub kept: &'a Kept,
    /// Whether a task is running here.
    pub is_running: &'a dyn Fn(&TaskId) -> bool,
    /// Whether some order works on a source.
    pub is_used: &'a dyn Fn(&SourceId) -> bool,
    /// Asks the hub for the sources of this node.
    pub ask_hub: &'a dyn Fn() -> Result<Vec<SourceSpec>, String>,
    /// Opens one.
    pub open: &'a dyn Fn(&SourceSpec) -> sendense_source::Result<Arc<dyn Source>>,
}

impl Reaper<'_> {
    /// One pass. What could not be undone stays in the journal for the next; true when nothing did.
    pub fn pass(&self, stop: &Cancel) -> Result<bool, String> {
        let entries = self.journal.open_entries().map_err(|error| chain(&error))?;
        let orphans: Vec<_> = entries.into_iter().filter(|(_, made)| !(self.is_running)(&made.task_id)).collect();
        // Asked once per pass, and only for what is not known here.
        let mut of_hub: Option<Result<Vec<SourceSpec>, String>> = None;
        for (entry, artefact) in orphans {
            let spec = self.kept.get(&artefact.source_id).or_else(|| {
                let told = of_hub.get_or_insert_with(|| (self.ask_hub)());
                let told = told.as_ref().inspect_err(|error| tracing::warn!(error, "ask the hub for sources"));
                told.ok()?.iter().find(|spec| spec.source_id == artefact.source_id).cloned()
            });
            let Some(spec) = spec else {
                tracing::warn!(entry, source_id = %artefact.source_id, "the source of an orphan is not known here");
                continue;
            };
            let source = match (self.open)(&spec) {
                Ok(source) => source,
                Err(error) => {
                    tracing::warn!(entry, error = chain(&error), "open the source of an orphan");
                    continue;
                }
            };
            match source.reap(&artefact, stop) {
                Ok(true) => {
                    self.journal.close(entry).map_err(|error| chain(&error))?;
                    tracing::info!(entry, kind = ?artefact.kind, "orphan removed");
                }
                Ok(false) => tracing::debug!(entry, kind = ?artefact.kind, "orphan stays for now"),
                Err(error) => tracing::warn!(entry, kind = ?artefact.kind, error = chain(&error), "remove an orphan"),
            }
        }
        let left = self.journal.open_entries().map_err(|error| chain(&error))?;
        let is_needed = |source: &SourceId| {
            (self.is_used)(source) || left.iter().any(|(_, artefact)| artefact.source_id == *source)
        };
        self.kept.forget(is_needed).map_err(|error| format!("forget sources: {error}"))?;
        Ok(left.iter().all(|(_, made)| (self.is_running)(&made.task_id)))
    }
}

/// Where sources are kept in a node's folder.
pub(super) fn kept_path(data_dir: &Path) -> PathBuf {
    data_dir.join("sources")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileJournal;
    use sendense_source::{Artefact, ArtefactKind, SourceContext};
    use sendense_types::SourceKind;
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt;

    struct House {
        folder: tempfile::TempDir,
        journal: FileJournal,
        kept: Kept,
        asked: Cell<u32>,
    }

    impl House {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let journal = FileJournal::open(&folder.path().join("journal")).unwrap();
            let kept = Kept::open(kept_path(folder.path())).unwrap();
            Self { folder, journal, kept, asked: Cell::new(0) }
        }

        fn spec(&self) -> SourceSpec {
            SourceSpec {
                source_id: "src-1".parse().unwrap(),
                kind: SourceKind::Image,
                config: serde_json::json!({ "path": self.folder.path() }),
                secret: Some("hunter2".to_owned()),
                deployment_id: "dep-1".parse().unwrap(),
            }
        }

        /// A socket of a server that is gone.
        fn leave(&self) -> PathBuf {
            let socket = self.folder.path().join("nbd-1.sock");
            fs::write(&socket, "").unwrap();
            let artefact = Artefact {
                source_id: "src-1".parse().unwrap(),
                task_id: "task-1".parse().unwrap(),
                kind: ArtefactKind::ChildProcess,
                vm_key: String::new(),
                details: serde_json::json!({ "socket": &socket }),
            };
            self.journal.record(&artefact).unwrap();
            socket
        }

        fn pass(&self, runs: bool, hub: Result<Vec<SourceSpec>, String>) {
            let reaper = Reaper {
                journal: &self.journal,
                kept: &self.kept,
                is_running: &|_| runs,
                is_used: &|_| runs,
                ask_hub: &|| {
                    self.asked.set(self.asked.get() + 1);
                    hub.clone()
                },
                open: &|spec| {
                    let context = SourceContext {
                        source_id: spec.source_id.clone(),
                        deployment_id: spec.deployment_id.clone(),
                        run_dir: self.folder.path().to_owned(),
                        roots: sendense_source::paths::Roots::new(vec![self.folder.path().to_owned()]),
                    };
                    sendense_source::open(spec.kind, &spec.config, None, context)
                },
            };
            reaper.pass(&Cancel::new()).unwrap();
        }

        fn open_entries(&self) -> usize {
            self.journal.open_entries().unwrap().len()
        }
    }

    #[test]
    fn what_was_left_is_undone_without_a_hub_and_credentials_go_with_it() {
        let house = House::new();
        house.kept.keep(&house.spec()).unwrap();
        let file = house.folder.path().join("sources/src-1.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let socket = house.leave();
        house.pass(true, Err("away".to_owned()));
        assert!(socket.exists() && file.exists(), "a running backup was disturbed");
        house.pass(false, Err("away".to_owned()));
        assert_eq!((house.open_entries(), house.asked.get()), (0, 0));
        assert!(!socket.exists() && !file.exists());
    }

    #[test]
    fn a_source_that_was_not_kept_is_asked_for() {
        let house = House::new();
        let socket = house.leave();
        fs::write(house.folder.path().join("sources/src-1.json"), "{ cut off").unwrap();
        house.pass(false, Err("away".to_owned()));
        assert_eq!((house.open_entries(), house.asked.get()), (1, 1), "nothing can be done yet");
        assert!(socket.exists());
        house.pass(false, Ok(vec![house.spec()]));
        assert_eq!((house.open_entries(), house.asked.get()), (0, 2));
        house.pass(false, Err("away".to_owned()));
        assert_eq!(house.asked.get(), 2, "a hub is asked for nothing");
    }
}
