//! Keeps what was done to a repository's folder as changes of names and of bytes, without the paths they were asked with.

use super::medium::{Change, Medium, Node, ROOT};
use super::stage::{Act, Script, told};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One thing that was done.
#[derive(Debug, Clone)]
pub struct Step {
    /// In words, for messages.
    pub what: String,
    /// What it changes; a rename changes two names.
    pub changes: Vec<Change>,
}

/// A script that records.
pub struct Record(Mutex<Recorded>);

struct Recorded {
    nodes: BTreeMap<PathBuf, Node>,
    before: Medium,
    steps: Vec<Step>,
    next_folder: u32,
    /// By inode: a file may have two names.
    old_files: BTreeMap<u64, u32>,
}

/// Numbers of folders, and of files that were there before, lie above those of new files.
const FIRST_OLD: u32 = 1 << 20;

impl Record {
    /// Records what is done to a folder from now on. All that it holds now is taken to be durable.
    pub fn of(root: &Path) -> Arc<Self> {
        let mut recorded = Recorded {
            nodes: BTreeMap::from([(root.to_owned(), Node::Folder(ROOT))]),
            before: Medium::default(),
            steps: Vec::new(),
            next_folder: FIRST_OLD,
            old_files: BTreeMap::new(),
        };
        recorded.scan(root, ROOT);
        Arc::new(Self(Mutex::new(recorded)))
    }

    /// What there was before, and the steps since.
    pub fn take(&self) -> (Medium, Vec<Step>) {
        let recorded = self.0.lock();
        (recorded.before.clone(), recorded.steps.clone())
    }
}

impl Recorded {
    fn scan(&mut self, folder: &Path, number: u32) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            self.next_folder += 1;
            let metadata = path.symlink_metadata().unwrap();
            let node = if metadata.is_dir() {
                Node::Folder(self.next_folder)
            } else {
                Node::File(*self.old_files.entry(metadata.ino()).or_insert(self.next_folder))
            };
            self.before.put(number, path.file_name().unwrap(), node);
            self.nodes.insert(path.clone(), node);
            match node {
                Node::Folder(number) => self.scan(&path, number),
                Node::File(number) => self.before.fill(number, std::fs::read(&path).unwrap()),
            }
        }
    }

    fn name(&self, path: &Path, node: Option<Node>) -> Change {
        let Some(Node::Folder(folder)) = self.nodes.get(path.parent().unwrap()) else {
            panic!("{} lies in no folder that was recorded", path.display());
        };
        Change::Name { folder: *folder, name: path.file_name().map(OsStr::to_owned).unwrap(), node }
    }

    fn make(&mut self, path: &Path, node: Node) -> Vec<Change> {
        self.nodes.insert(path.to_owned(), node);
        vec![self.name(path, Some(node))]
    }

    fn changes(&mut self, act: &Act<'_>) -> Vec<Change> {
        match *act {
            Act::CreateDir(path) => {
                self.next_folder += 1;
                self.make(path, Node::Folder(self.next_folder))
            }
            Act::CreateFile(path, number) => self.make(path, Node::File(number)),
            Act::Write(file, at, bytes) => vec![Change::Write { file, at, bytes: bytes.into() }],
            Act::Clone(file, bytes) => vec![Change::Write { file, at: 0, bytes: bytes.into() }],
            Act::Punch(file, at, len) => vec![Change::Write { file, at, bytes: vec![0; len as usize].into() }],
            Act::SetLen(file, len) => vec![Change::SetLen { file, len }],
            Act::SyncFile(file) => vec![Change::SyncFile(file)],
            Act::SyncDir(path) => match self.nodes.get(path) {
                Some(Node::Folder(folder)) => vec![Change::SyncFolder(*folder)],
                // The folder above the repository.
                _ => Vec::new(),
            },
            Act::Rename(from, to) => {
                let node = self.nodes.remove(from).unwrap();
                let mut changes = self.make(to, node);
                changes.push(self.name(from, None));
                changes
            }
            Act::Link(from, to) => {
                let node = self.nodes[from];
                self.make(to, node)
            }
            Act::RemoveFile(path) | Act::RemoveDir(path) => {
                self.nodes.remove(path).unwrap();
                vec![self.name(path, None)]
            }
        }
    }
}

impl Script for Record {
    fn before(&self, _act: &Act<'_>) -> io::Result<()> {
        Ok(())
    }

    fn after(&self, act: &Act<'_>) {
        let mut recorded = self.0.lock();
        let changes = recorded.changes(act);
        recorded.steps.push(Step { what: told(act), changes });
    }

    fn number(&self, path: &Path) -> Option<u32> {
        match self.0.lock().nodes.get(path) {
            Some(Node::File(number)) => Some(*number),
            _ => None,
        }
    }
}
