//! A folder's entries in pages: read once, sorted by name, kept while somebody turns pages.
//!
//! Readers give a folder in the order in which it lies on the disk, page by page. A person wants it by name, with a total, and
//! may ask for any page. A folder too large to be kept is gone through for each page, in the disk's order.
//!
//! Invariant: what is kept of one point is below [`FOLDER_BYTES_MAX`], and goes when nobody asks for it.

use super::Reader;
use parking_lot::Mutex;
use sendense_guestfs::meta::Entry;
use sendense_guestfs::session::PAGE_ENTRIES_MAX;
use sendense_guestfs::{Error, GuestPath, Result, VolumeId};
use sendense_types::Timestamp;
use std::ops::Range;
use std::sync::Arc;

/// The largest folder that is kept: some 150,000 entries. With eight open points the hub stays below its 256 MiB.
const FOLDER_BYTES_MAX: usize = 24 << 20;
/// The most entries that a folder has: more than ext4 (10 million and a bit) and NTFS in use have. Only a reader that was taken
/// over gives pages without end, and whoever asked would never be answered.
const ENTRIES_MAX: u64 = 32 << 20;
/// How long a folder is kept after it was asked for; a person who turns pages is quicker.
const KEPT_SECONDS: f64 = 120.0;

/// A folder, or the asked part of one that is too large.
pub(crate) struct Folder {
    entries: Vec<Entry>,
    /// Number of the first of `entries`; `None` when all are here.
    part: Option<u64>,
    /// How many entries the folder has.
    pub total: u64,
}

impl Folder {
    /// Reads all of a folder; `offset` and `limit` count only when it is too large to be kept.
    pub fn read(reader: &dyn Reader, volume: &VolumeId, path: &GuestPath, offset: u64, limit: usize) -> Result<Folder> {
        Self::read_bounded(reader, volume, path, offset..offset.saturating_add(limit as u64), ENTRIES_MAX)
    }

    fn read_bounded(
        reader: &dyn Reader,
        volume: &VolumeId,
        path: &GuestPath,
        asked: Range<u64>,
        entries_max: u64,
    ) -> Result<Folder> {
        let (mut all, mut bytes, mut asked_part, mut total) = (Vec::new(), 0usize, Vec::new(), 0u64);
        let mut after = None;
        loop {
            let page = reader.list(volume, path, after, PAGE_ENTRIES_MAX)?;
            for entry in page.entries {
                bytes = bytes.saturating_add(size_of::<Entry>() + entry.name.len());
                bytes = bytes.saturating_add(entry.target.as_ref().map_or(0, Vec::len));
                if bytes > FOLDER_BYTES_MAX {
                    all = Vec::new();
                }
                if asked.contains(&total) {
                    asked_part.push(entry.clone());
                }
                if bytes <= FOLDER_BYTES_MAX {
                    all.push(entry);
                }
                total += 1;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
            if total > entries_max {
                return Err(Error::Limit(format!("the folder has more than {entries_max} entries")));
            }
        }
        if bytes > FOLDER_BYTES_MAX {
            return Ok(Folder { entries: asked_part, part: Some(asked.start), total });
        }
        all.sort_by(|one: &Entry, other| one.name.cmp(&other.name));
        Ok(Folder { entries: all, part: None, total })
    }

    /// A page.
    pub fn page(&self, offset: u64, limit: usize) -> &[Entry] {
        let from = offset.saturating_sub(self.part.unwrap_or(0));
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.entries.len());
        let until = from.saturating_add(limit).min(self.entries.len());
        &self.entries[from..until]
    }
}

/// What is kept of one point: the folder that was listed last.
#[derive(Default)]
pub(super) struct Listing {
    turn: tokio::sync::Mutex<()>,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    volume: VolumeId,
    path: GuestPath,
    folder: Arc<Folder>,
    asked_at: Timestamp,
}

impl Listing {
    /// One folder is read at a time, so that those who ask for the same one read it once.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The folder, if it is the one that is kept.
    pub fn known(&self, volume: &VolumeId, path: &GuestPath, now: Timestamp) -> Option<Arc<Folder>> {
        let mut kept = self.kept.lock();
        let known = kept.as_mut().filter(|kept| kept.volume == *volume && kept.path == *path)?;
        known.asked_at = now;
        Some(known.folder.clone())
    }

    /// Keeps a folder that is here whole.
    pub fn keep(&self, volume: VolumeId, path: GuestPath, folder: Folder, now: Timestamp) -> Arc<Folder> {
        let folder = Arc::new(folder);
        *self.kept.lock() = folder.part.is_none().then(|| Kept { volume, path, folder: folder.clone(), asked_at: now });
        folder
    }

    /// Drops what nobody has asked for lately.
    pub fn forget_old(&self, now: Timestamp) {
        self.kept.lock().take_if(|kept| now.seconds_since(kept.asked_at).abs() > KEPT_SECONDS);
    }
}

/// The same with another bound, for tests.
#[cfg(test)]
pub(super) fn read_at_most(reader: &dyn Reader, volume: &VolumeId, entries_max: u64) -> Result<u64> {
    Folder::read_bounded(reader, volume, &GuestPath::root(), 0..1, entries_max).map(|folder| folder.total)
}
