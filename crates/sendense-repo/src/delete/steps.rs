//! Executing the deletion of one point, and finishing one that was cut off.

use super::PlannedPoint;
use crate::crashsafe;
use crate::draft::Intent;
use crate::draft::undo::clear;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{self, MANIFEST_BYTES_MAX};
use crate::repository::Repository;
use sendense_types::{BackupId, VmContextId};
use std::path::Path;

/// What became of a deletion that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// It had taken the point away; now the files are gone too.
    Deleted,
    /// It had not come so far: the point stays.
    NotBegun,
}

pub(super) fn delete(repository: &Repository, vm: &VmContextId, point: &PlannedPoint) -> Result<()> {
    let (fs, dir) = (repository.fs(), repository.at(layout::delete_dir(vm, &point.backup_id)));
    let published = repository.at(layout::manifest(vm, &point.backup_id));
    if there(&published)? {
        if !crashsafe::ensure_dir(fs, &dir)? {
            // From a deletion that died here: its list may be half written.
            crashsafe::remove_file_if_there(fs, &dir.join(layout::INTENT_FILE))?;
        }
        let intent = Intent { backup_id: point.backup_id.clone(), disks: point.disks.clone() };
        crashsafe::write_new(fs, &dir.join(layout::INTENT_FILE), &intent.to_bytes())?;
        crashsafe::sync_dir(fs, &dir)?;
        crashsafe::rename_new(fs, &published, &dir.join(layout::MANIFEST_IN_FOLDER))?;
        // The new name first: should power fail between the two, the manifest has both names, never none.
        crashsafe::sync_dir(fs, &dir)?;
        crashsafe::sync_dir(fs, &repository.at(layout::vm_dir(vm)))?;
    }
    finish(repository, vm, &point.backup_id)?;
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
    if !there(&taken_back)? {
        // The files were removed before the manifest that lists them.
        clear(repository, vm, &dir)?;
        return Ok(Finished::Deleted);
    }
    let relative = layout::delete_dir(vm, backup).join(layout::MANIFEST_IN_FOLDER);
    let manifest = manifest::parse(&crashsafe::read_small(repository.root(), &relative, MANIFEST_BYTES_MAX)?)
        .map_err(|error| Error::corrupt(&relative, None, "read the manifest of a deleted point").caused_by(error))?;
    if manifest.backup_id != *backup || manifest.vm_context_id != *vm {
        return Err(Error::corrupt(&relative, None, format!("it is the manifest of {}", manifest.backup_id)));
    }
    for disk in &manifest.disks {
        let disk_dir = layout::disk_dir(vm, disk.disk_id);
        if !there(&repository.at(&disk_dir))? {
            continue;
        }
        for file in [layout::image(vm, disk.disk_id, backup), layout::digests(vm, disk.disk_id, backup)] {
            crashsafe::remove_file_if_there(fs, &repository.at(file))?;
        }
        crashsafe::sync_dir(fs, &repository.at(&disk_dir))?;
        crashsafe::remove_dir_if_empty(fs, &repository.at(&disk_dir))?;
    }
    crashsafe::sync_dir(fs, &repository.at(layout::vm_dir(vm)))?;
    clear(repository, vm, &dir)?;
    Ok(Finished::Deleted)
}

fn there(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(crashsafe::failed("stat", path, error)),
    }
}
