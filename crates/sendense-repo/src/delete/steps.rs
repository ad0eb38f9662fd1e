//! Executing the deletion of one point, and finishing one that was cut off.

use super::PlannedPoint;
use crate::crashsafe;
use crate::draft::intent::{self, INTENT_BYTES_MAX, Intent};
use crate::draft::undo::clear;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{self, MANIFEST_BYTES_MAX};
use crate::repository::Repository;
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::collections::BTreeSet;
use std::path::Path;

/// What became of a deletion that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// It had taken the point away; now the files are gone too.
    Deleted,
    /// It had not come so far: the point stays.
    NotBegun,
}

pub(crate) fn delete(repository: &Repository, vm: &VmContextId, point: &PlannedPoint) -> Result<()> {
    let (fs, dir) = (repository.fs(), repository.at(layout::delete_dir(vm, &point.backup_id)));
    let published = repository.at(layout::manifest(vm, &point.backup_id));
    if there(&published)? {
        let intent = Intent { backup_id: point.backup_id.clone(), disks: point.disks.clone() };
        // Nothing is free before this has taken a little.
        repository.with_spare(|| {
            if !crashsafe::ensure_dir(fs, &dir)? {
                // From a deletion that died here, or found no room: its list may be half written.
                crashsafe::remove_file_if_there(fs, &dir.join(layout::INTENT_FILE))?;
            }
            crashsafe::write_new(fs, &dir.join(layout::INTENT_FILE), &intent.to_bytes())?;
            crashsafe::sync_dir(fs, &dir)
        })?;
        repository.with_spare(|| crashsafe::rename_new(fs, &published, &dir.join(layout::MANIFEST_IN_FOLDER)))?;
        // The new name first: should power fail between the two, the manifest has both names, never none.
        crashsafe::sync_dir(fs, &dir)?;
        crashsafe::sync_dir(fs, &repository.at(layout::vm_dir(vm)))?;
    }
    finish(repository, vm, &point.backup_id)?;
    repository.keep_spare();
    repository.capacity().settle(-i64::try_from(point.bytes).unwrap_or(i64::MAX));
    tracing::info!(backup_id = %point.backup_id, vm_context_id = %vm, "deleted");
    Ok(())
}

/// Finishes a deletion, from whatever step it died in.
pub(crate) fn finish(repository: &Repository, vm: &VmContextId, backup: &BackupId) -> Result<Finished> {
    let (fs, dir) = (repository.fs(), repository.at(layout::delete_dir(vm, backup)));
    let taken_back = dir.join(layout::MANIFEST_IN_FOLDER);
    let published = repository.at(layout::manifest(vm, backup));
    if there(&published)? {
        if there(&taken_back)? && !crashsafe::is_same_file(&published, &taken_back)? {
            let context =
                format!("{} and {} are two manifests of one point", published.display(), taken_back.display());
            return Err(Error::new(Kind::Exists, context));
        }
        clear(repository, vm, &dir)?;
        return Ok(Finished::NotBegun);
    }
    for disk in disks_of(repository, vm, backup)? {
        let disk_dir = layout::disk_dir(vm, disk);
        if !there(&repository.at(&disk_dir))? {
            continue;
        }
        for file in [layout::image(vm, disk, backup), layout::digests(vm, disk, backup)] {
            crashsafe::remove_file_if_there(fs, &repository.at(file))?;
        }
        crashsafe::sync_dir(fs, &repository.at(&disk_dir))?;
        crashsafe::remove_dir_if_empty(fs, &repository.at(&disk_dir))?;
    }
    for file in [layout::hold(vm, backup), layout::hold_half(vm, backup)] {
        crashsafe::remove_file_if_there(fs, &repository.at(file))?;
    }
    crashsafe::sync_dir(fs, &repository.at(layout::vm_dir(vm)))?;
    clear(repository, vm, &dir)?;
    Ok(Finished::Deleted)
}

/// The disks of a point whose manifest was taken away.
fn disks_of(repository: &Repository, vm: &VmContextId, backup: &BackupId) -> Result<BTreeSet<DiskNumber>> {
    let folder = layout::delete_dir(vm, backup);
    let taken_back = folder.join(layout::MANIFEST_IN_FOLDER);
    match crashsafe::read_small(repository.root(), &taken_back, MANIFEST_BYTES_MAX) {
        Ok(bytes) => {
            let manifest = manifest::parse(&bytes).map_err(|error| {
                Error::corrupt(&taken_back, None, "read the manifest of a deleted point").caused_by(error)
            })?;
            if manifest.backup_id != *backup || manifest.vm_context_id != *vm {
                return Err(Error::corrupt(&taken_back, None, format!("it is the manifest of {}", manifest.backup_id)));
            }
            return Ok(manifest.disks.iter().map(|disk| disk.disk_id).collect());
        }
        Err(error) if error.kind == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The manifest has neither name: power failed while it was moved, on a file system that keeps the one folder and loses
    // the other; or all files were removed, and it with them. The list was durable before, so it is whole while it is there.
    match crashsafe::read_small(repository.root(), &folder.join(layout::INTENT_FILE), INTENT_BYTES_MAX) {
        Ok(bytes) => match intent::read(&bytes, backup) {
            Ok(intent) => Ok(intent.disks),
            Err(error) if error.kind == Kind::Invalid => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        },
        Err(error) if error.kind == Kind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn there(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(crashsafe::failed("stat", path, error)),
    }
}
