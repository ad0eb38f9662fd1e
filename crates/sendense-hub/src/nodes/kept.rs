//! Backups of nodes that outlive the hub: one file each in the hub's own folder, written before the first block may come.
//!
//! ```text
//! a disk is begun -> record -> ... the hub dies ... -> start: taken in, its node is waited for -> the backup goes on
//! the backup ends -> no record
//! ```
//!
//! What lives here: the records. What does not: how far the disks are, which their drafts tell. Invariant: a file is there in
//! full or not at all. It holds no credentials, and lies where only the hub reads and writes.

use crate::data_dir::private_file;
use parking_lot::Mutex;
use sendense_node::remote::message::{Answer, BackupOrder, BeginDisk, OrderId};
use sendense_types::{TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The version that this program writes and reads.
const VERSION: u32 = 1;
const SUFFIX: &str = ".json";
/// The longest record: 256 disks, and the configuration of their machine, which no call of a node is longer than.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// A backup that a node makes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    pub task_id: TaskId,
    pub order: OrderId,
    /// The node's name, and the life of it that has frozen the machine.
    pub node: String,
    pub process: String,
    /// Lives of the hub before this one that worked at it.
    pub life: u32,
    pub work: BackupOrder,
    pub partial: bool,
    pub frozen_at: Timestamp,
    pub disks: Vec<BeginDisk>,
    /// What the node has said at the end, so that its machine need not wait for the hub.
    pub answer: Option<Answer>,
}

/// Keeps the record of one backup.
pub(crate) struct Keeper {
    book: Book,
    record: Mutex<Record>,
}

impl Keeper {
    /// For a backup that begins. Nothing is written before its first disk begins.
    pub fn new(book: Book, task_id: TaskId, node: String, work: BackupOrder, partial: bool, now: Timestamp) -> Self {
        let record = Record {
            version: VERSION,
            task_id,
            order: OrderId(String::new()),
            node,
            process: String::new(),
            life: 0,
            work,
            partial,
            frozen_at: now,
            disks: Vec::new(),
            answer: None,
        };
        Self { book, record: Mutex::new(record) }
    }

    /// For one that goes on; its record says so.
    pub fn again(book: Book, mut record: Record) -> io::Result<Self> {
        record.life = record.life.saturating_add(1);
        book.write(&record)?;
        Ok(Self { book, record: Mutex::new(record) })
    }

    /// Its record as it is now.
    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// True when a disk was begun.
    pub fn has_begun(&self) -> bool {
        !self.record.lock().disks.is_empty()
    }

    /// The hub's lives before this one.
    pub fn life(&self) -> u32 {
        self.record.lock().life
    }

    /// The order has this number.
    pub fn ordered(&self, order: &OrderId) {
        self.record.lock().order = order.clone();
    }

    /// This life of the node was told the order.
    pub fn told(&self, process: &str) {
        let mut record = self.record.lock();
        if record.disks.is_empty() {
            process.clone_into(&mut record.process);
        }
    }

    /// A disk was begun.
    pub fn begun(&self, disk: &BeginDisk, frozen_at: Timestamp) -> io::Result<()> {
        let mut record = self.record.lock();
        record.frozen_at = frozen_at;
        record.disks.push(disk.clone());
        self.book.write(&record)
    }

    /// The node has ended well.
    pub fn answered(&self, answer: &Answer) -> io::Result<()> {
        let mut record = self.record.lock();
        record.answer = Some(answer.clone());
        self.book.write(&record)
    }
}

/// The records of a hub.
#[derive(Debug, Clone)]
pub(crate) struct Book(PathBuf);

impl Book {
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    fn path(&self, id: &TaskId) -> PathBuf {
        self.0.join(format!("{id}{SUFFIX}"))
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        if text.len() as u64 > RECORD_BYTES_MAX {
            return Err(io::Error::other("the record is longer than one that is read"));
        }
        private_file::create(&self.path(&record.task_id), &text)
    }

    /// Removes a record. What is gone already is no error.
    pub fn remove(&self, id: &TaskId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(&self.0)?.sync_all(),
        }
    }

    /// All that can be read. What cannot is removed: its backup begins anew.
    pub fn read_all(&self) -> io::Result<BTreeMap<TaskId, Record>> {
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            let id: Option<TaskId> = id.and_then(|id| id.parse().ok());
            match (id, read(&path)) {
                (Some(id), Ok(record)) if record.task_id == id => _ = records.insert(id, record),
                (_, read) => {
                    let error =
                        read.err().map_or_else(|| "it bears another name".to_owned(), |error| error.to_string());
                    tracing::warn!(path = %path.display(), error, "the record of a node's backup cannot be used");
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(records)
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let mut text = Vec::new();
    File::open(path)?.take(RECORD_BYTES_MAX + 1).read_to_end(&mut text)?;
    let record: Record = serde_json::from_slice(&text)?;
    if record.version != VERSION {
        return Err(io::Error::other(format!("version {} was written by another release", record.version)));
    }
    Ok(record)
}
