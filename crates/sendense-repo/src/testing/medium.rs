//! A disk that loses power: what it may hold afterwards, after any prefix of the recorded steps.
//!
//! The promise of POSIX and no more: after the sync of a file its bytes and its length are there; after the sync of a
//! folder the names in it are. Whatever was not synced is there, or not, or half, each change for itself and in any order;
//! only the changes of one name keep theirs. A rename between two folders may thus be seen twice or not at all. No file
//! system in use is as bad as that.

use super::Dice;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The number of the repository's folder.
pub const ROOT: u32 = 0;

/// What a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    File(u32),
    Folder(u32),
}

/// A change, or a demand that changes be durable.
#[derive(Debug, Clone)]
pub enum Change {
    Name { folder: u32, name: OsString, node: Option<Node> },
    Write { file: u32, at: u64, bytes: Arc<[u8]> },
    SetLen { file: u32, len: u64 },
    SyncFile(u32),
    SyncFolder(u32),
}

#[derive(Debug, Clone, Default)]
struct Name {
    durable: Option<Node>,
    pending: Vec<Option<Node>>,
}

#[derive(Debug, Clone, Default)]
struct Bytes {
    durable: Arc<Vec<u8>>,
    pending: Vec<Change>,
}

/// The disk.
#[derive(Debug, Clone, Default)]
pub struct Medium {
    names: BTreeMap<(u32, OsString), Name>,
    files: BTreeMap<u32, Bytes>,
}

/// Of each thing that was not synced, which of its possible states is met: one number for each.
pub type Fate = Vec<usize>;

/// What may become of a file's unsynced bytes: none, all, the last write torn, every second write, zeros of full length.
const BYTES_FATES: usize = 5;

impl Medium {
    /// A durable name.
    pub fn put(&mut self, folder: u32, name: &OsStr, node: Node) {
        self.names.insert((folder, name.to_owned()), Name { durable: Some(node), pending: Vec::new() });
    }

    /// A file's durable bytes.
    pub fn fill(&mut self, file: u32, bytes: Vec<u8>) {
        self.files.insert(file, Bytes { durable: Arc::new(bytes), pending: Vec::new() });
    }

    /// Does a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Name { folder, name, node } => {
                self.names.entry((*folder, name.clone())).or_default().pending.push(*node);
            }
            Change::Write { file, .. } | Change::SetLen { file, .. } => {
                self.files.entry(*file).or_default().pending.push(change.clone());
            }
            Change::SyncFile(file) => {
                let bytes = self.files.entry(*file).or_default();
                bytes.durable = Arc::new(bytes.after(1));
                bytes.pending.clear();
            }
            Change::SyncFolder(folder) => {
                for (_, name) in self.names.range_mut((*folder, OsString::new())..(*folder + 1, OsString::new())) {
                    if let Some(last) = name.pending.pop() {
                        name.durable = last;
                        name.pending.clear();
                    }
                }
            }
        }
    }

    /// In how many ways each thing that was not synced may be met.
    fn ways(&self) -> Vec<usize> {
        let names = self.names.values().map(|name| name.pending.len() + 1);
        let files = self.files.values().map(|bytes| if bytes.pending.is_empty() { 1 } else { BYTES_FATES });
        names.chain(files).collect()
    }

    /// All fates where there are few, else nothing kept, everything kept, and as many others as fit.
    pub fn fates(&self, most: usize, dice: &mut Dice) -> Vec<Fate> {
        let ways = self.ways();
        let all = ways.iter().try_fold(1usize, |product, ways| product.checked_mul(*ways));
        if let Some(all) = all.filter(|all| *all <= most) {
            return (0..all)
                .map(|mut number| ways.iter().map(|ways| (number % ways, number /= ways).0).collect())
                .collect();
        }
        let none: Fate = vec![0; ways.len()];
        let names = self.names.len();
        let kept = ways.iter().enumerate().map(|(at, ways)| if at < names { ways - 1 } else { 1.min(ways - 1) });
        let mut fates = vec![none, kept.collect()];
        while fates.len() < most {
            fates.push(ways.iter().map(|ways| dice.below(*ways)).collect());
        }
        fates
    }

    /// Makes a folder hold what is met after the power came back. `store` keeps files between calls: the same bytes of the
    /// same file are linked, not written again. The repository never changes a file that it opened, so they stay as they are.
    pub fn build(&self, fate: &[usize], target: &Path, store: &mut Store) {
        let names = self.names.iter().zip(fate);
        let met: BTreeMap<_, _> = names
            .filter_map(|((place, name), fate)| {
                let node = if *fate == 0 { name.durable } else { name.pending[*fate - 1] };
                Some((place, node?))
            })
            .collect();
        let fates: BTreeMap<u32, usize> =
            self.files.keys().copied().zip(fate[self.names.len()..].iter().copied()).collect();
        let mut open = vec![(ROOT, target.to_owned())];
        while let Some((folder, path)) = open.pop() {
            std::fs::create_dir(&path).unwrap();
            let (from, to) = ((folder, OsString::new()), (folder + 1, OsString::new()));
            for ((_, name), node) in met.range::<&(u32, OsString), _>(&from..&to) {
                match *node {
                    Node::Folder(number) => open.push((number, path.join(name))),
                    Node::File(number) => {
                        let bytes = match self.files.get(&number) {
                            Some(bytes) if bytes.pending.is_empty() => bytes.durable.clone(),
                            Some(bytes) => Arc::new(bytes.after(fates[&number])),
                            None => Arc::default(),
                        };
                        std::fs::hard_link(store.keep(number, &bytes), path.join(name)).unwrap();
                    }
                }
            }
        }
    }
}

impl Bytes {
    fn after(&self, fate: usize) -> Vec<u8> {
        let mut bytes = self.durable.to_vec();
        let last = self.pending.len().saturating_sub(1);
        for (at, change) in self.pending.iter().enumerate() {
            match (fate, change) {
                (0, _) => {}
                (2, Change::Write { at: start, bytes: written, .. }) if at == last => {
                    overwrite(&mut bytes, *start, &written[..written.len() / 2]);
                }
                (3, _) if at % 2 == 0 => {}
                (4, Change::Write { at: start, bytes: written, .. }) => {
                    overwrite(&mut bytes, *start, &vec![0; written.len()]);
                }
                (_, Change::Write { at: start, bytes: written, .. }) => overwrite(&mut bytes, *start, written),
                (_, Change::SetLen { len, .. }) => bytes.resize(*len as usize, 0),
                _ => unreachable!("names are not bytes"),
            }
        }
        bytes
    }
}

fn overwrite(bytes: &mut Vec<u8>, at: u64, written: &[u8]) {
    let end = at as usize + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at as usize..end].copy_from_slice(written);
}

/// Files that were built before.
pub struct Store {
    folder: tempfile::TempDir,
    kept: BTreeMap<(u32, [u8; 32]), PathBuf>,
}

impl Store {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), kept: BTreeMap::new() }
    }

    /// A folder beside the kept files, on the same file system, that does not exist yet.
    pub fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn keep(&mut self, file: u32, bytes: &[u8]) -> &Path {
        let count = self.kept.len();
        let key = (file, *blake3::hash(bytes).as_bytes());
        self.kept.entry(key).or_insert_with(|| {
            let path = self.folder.path().join(format!("file-{count}"));
            std::fs::write(&path, bytes).unwrap();
            path
        })
    }
}
