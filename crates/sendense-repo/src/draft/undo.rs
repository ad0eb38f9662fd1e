//! Taking a draft back, from whatever step it died in; by the draft itself, or by a later start.
//!
//! Invariant: outside of the draft's folder only names in its intent are removed, and of these only files that came from
//! the draft: those that are in it no more, or that are in both places as one file (a move that power loss cut in half).

use super::intent::{self, INTENT_BYTES_MAX, Intent, files};
use crate::crashsafe::{self, Kindred};
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::repository::Repository;
use sendense_types::{BackupId, VmContextId};
use std::collections::BTreeSet;
use std::path::Path;

/// What became of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// It is gone as if it had never been.
    Gone,
    /// It had been published: the point stays, the folder is gone.
    WasPublished,
}

/// Takes back a draft that nobody works on.
pub(crate) fn undo(repository: &Repository, vm: &VmContextId, backup: &BackupId) -> Result<Undone> {
    let (fs, dir) = (repository.fs(), repository.at(layout::draft_dir(vm, backup)));
    if is_published(repository, vm, backup)? {
        // The one who moved the manifest may have died before syncing it.
        crashsafe::sync_dir(fs, &repository.at(layout::vm_dir(vm)))?;
        clear_published(repository, vm, backup)?;
        return Ok(Undone::WasPublished);
    }
    let relative = layout::draft_dir(vm, backup).join(layout::INTENT_FILE);
    let intent = match crashsafe::read_small(repository.root(), &relative, INTENT_BYTES_MAX) {
        Ok(bytes) => intent::read(&bytes, backup),
        Err(error) => Err(error),
    };
    match intent {
        Ok(intent) => {
            take_back(repository, vm, &intent)?;
            // First of the folder, durably: while it is there, "not in the draft" means "was moved by it".
            crashsafe::remove_file_if_there(fs, &dir.join(layout::INTENT_FILE))?;
            crashsafe::sync_dir(fs, &dir)?;
        }
        // No intent, or half of one: it was synced before the first move, so nothing was moved.
        Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => {}
        Err(error) => return Err(error),
    }
    clear(repository, vm, &dir)?;
    Ok(Undone::Gone)
}

/// Removes the folder of a draft that was published.
pub(crate) fn clear_published(repository: &Repository, vm: &VmContextId, backup: &BackupId) -> Result<()> {
    clear(repository, vm, &repository.at(layout::draft_dir(vm, backup)))
}

/// The manifest has its final name, and it is the draft's own.
fn is_published(repository: &Repository, vm: &VmContextId, backup: &BackupId) -> Result<bool> {
    let published = repository.at(layout::manifest(vm, backup));
    let draft = repository.at(layout::draft_dir(vm, backup)).join(layout::MANIFEST_IN_FOLDER);
    came_from(&draft, &published)
}

/// True when `to` exists and is what once was `from`.
fn came_from(from: &Path, to: &Path) -> Result<bool> {
    let there = |path: &Path| match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(crashsafe::failed("stat", path, error)),
    };
    Ok(there(to)? && (!there(from)? || crashsafe::is_same_file(from, to)?))
}

fn take_back(repository: &Repository, vm: &VmContextId, intent: &Intent) -> Result<()> {
    let fs = repository.fs();
    let (vm_dir, dir) = (repository.at(layout::vm_dir(vm)), repository.at(layout::draft_dir(vm, &intent.backup_id)));
    let mut touched = BTreeSet::new();
    for disk in &intent.disks {
        let disk_dir = repository.at(layout::disk_dir(vm, *disk));
        match disk_dir.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            // Made by the publication, which did not come so far.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Ok(_) => return Err(Error::new(Kind::Denied, format!("{} is not a directory", disk_dir.display()))),
            Err(error) => return Err(crashsafe::failed("stat", &disk_dir, error)),
        }
        for (to, from) in files(&intent.backup_id, *disk) {
            if came_from(&dir.join(from), &vm_dir.join(&to))? {
                crashsafe::remove_file_if_there(fs, &vm_dir.join(&to))?;
            }
        }
        touched.insert(disk_dir);
    }
    for disk_dir in &touched {
        crashsafe::sync_dir(fs, disk_dir)?;
        // A new disk's folder goes with its only point.
        crashsafe::remove_dir_if_empty(fs, disk_dir)?;
    }
    crashsafe::sync_dir(fs, &vm_dir)
}

/// Removes a folder with the files in it. Anything else in it is not ours and stays, and the folder with it.
pub(crate) fn clear(repository: &Repository, vm: &VmContextId, dir: &Path) -> Result<()> {
    let fs = repository.fs();
    let entries = match crashsafe::entries(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for (name, kind) in entries {
        if kind != Kindred::Directory {
            crashsafe::remove_file_if_there(fs, &dir.join(name))?;
        }
    }
    if !crashsafe::remove_dir_if_empty(fs, dir)? {
        tracing::warn!(folder = %dir.display(), "a folder holds what is not ours, and stays");
    }
    let vm_dir = repository.at(layout::vm_dir(vm));
    crashsafe::sync_dir(fs, &vm_dir)?;
    // The VM's first point was given up: its folder goes too.
    if crashsafe::remove_dir_if_empty(fs, &vm_dir)? {
        crashsafe::sync_dir(fs, repository.root())?;
    }
    Ok(())
}
