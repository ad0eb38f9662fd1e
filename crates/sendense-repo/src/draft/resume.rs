//! Going on with a draft whose process has died, from its marks.
//!
//! What lives here: what must hold of the folder before a block is put again. What does not: whether anybody has the rest of
//! the blocks, and how long a draft waits for him (the hub).
//!
//! Invariant: nothing that was begun to be published is gone on with, and what cannot be gone on with is left as it is, for
//! whoever asked to take it back.

use super::{Core, DiskDraft, DiskSpec, Draft, DraftSpec};
use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::lock::Operation;
use crate::repository::Repository;
use sendense_types::{BackupId, DiskNumber, Timestamp, VmContextId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A draft that goes on.
pub struct Resumed {
    /// The draft, with all its disks begun.
    pub draft: Draft,
    /// What was noted with the last mark of each disk.
    pub notes: BTreeMap<DiskNumber, Vec<u8>>,
}

impl Repository {
    /// Goes on with a draft of this repository that nobody works on, from the last mark of each of its disks. `disks` are all
    /// that were begun, as they were.
    ///
    /// # Errors
    /// As [`Repository::begin_draft`]; [`Kind::NotFound`] when there is no such draft or a disk of it was never marked,
    /// [`Kind::Invalid`] and [`Kind::Corrupt`] when a disk is not what its mark says, [`Kind::Exists`] when the point exists or
    /// was about to. The folder stays: [`Repository::discard_draft`] takes it away.
    pub fn resume_draft(&self, spec: DraftSpec, disks: Vec<DiskSpec>, now: Timestamp) -> Result<Resumed> {
        let context = format!("go on with {}", spec.backup_id);
        self.resume(spec, disks, now).map_err(|error| error.within(context))
    }

    fn resume(&self, spec: DraftSpec, disks: Vec<DiskSpec>, now: Timestamp) -> Result<Resumed> {
        self.ownership()?.check(now)?;
        let (vm, backup_id) = (spec.vm_context_id, spec.backup_id);
        let guard = self.lock(Operation::Backup, &vm, self.below(&vm, &spec.parents)?, &spec.who)?;
        self.below(&vm, &spec.parents)?;
        // Until all files are open: what is cut and removed by its name must not be another hub's by now.
        let _turn = self.ownership()?.turn(now)?;
        let must_not_be = |path: PathBuf| match path.symlink_metadata() {
            Ok(_) => Err(Error::new(Kind::Exists, format!("{} is there: it was being published", path.display()))),
            Err(_) => Ok(()),
        };
        must_not_be(self.at(layout::manifest(&vm, &backup_id)))?;
        for dir in [layout::vm_dir(&vm), layout::draft_dir(&vm, &backup_id)] {
            let path = self.at(&dir);
            let metadata = path.symlink_metadata().map_err(|error| crashsafe::failed("stat", &path, error))?;
            if !metadata.is_dir() {
                return Err(Error::new(Kind::Denied, format!("{} is not a directory", path.display())));
            }
        }
        let dir = self.at(layout::draft_dir(&vm, &backup_id));
        must_not_be(dir.join(layout::INTENT_FILE))?;
        // Written before the intent, and without that of no meaning.
        crashsafe::remove_file_if_there(self.fs(), &dir.join(layout::MANIFEST_IN_FOLDER))?;
        let reservation = Arc::new(self.capacity().reserve(spec.expected_bytes)?);
        let core = Core { repository: self.clone(), backup_id, vm, parents: spec.parents, reservation, _guard: guard };
        let (mut begun, mut notes) = (BTreeMap::new(), BTreeMap::new());
        for disk in disks {
            let number = disk.number;
            let (draft, note) =
                DiskDraft::resume(&core, disk).map_err(|error| error.within(format!("disk {number}")))?;
            begun.insert(number, Arc::new(draft));
            notes.insert(number, note);
        }
        Ok(Resumed { draft: Draft { core, disks: begun }, notes })
    }

    /// Takes away a draft that nobody works on, as if it had never been; a point that was published meanwhile stays.
    pub fn discard_draft(&self, vm: &VmContextId, backup: &BackupId, now: Timestamp) -> Result<()> {
        let context = || format!("discard the draft of {backup}");
        let discard = || {
            let _turn = self.ownership()?.turn(now)?;
            let _guard = self.lock(Operation::Backup, vm, std::collections::BTreeSet::new(), "discard")?;
            super::undo::undo(self, vm, backup).map(drop)
        };
        discard().map_err(|error: Error| error.within(context()))
    }
}
