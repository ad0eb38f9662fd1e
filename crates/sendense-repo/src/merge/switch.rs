//! The new files take the successor's names and the other point goes, unless it stays: from wherever it was cut off.
//!
//! A new file gets a second name in the folder, and that name is moved over the old file: so the folder still has the file
//! should power fail in the middle of the move, and the move can be made again. Where the file system knows no second names
//! the file itself is moved, and the file system's word that a move is whole is taken.
//!
//! Invariant: the intent is removed, durably, before anything else of the folder is: while it is there, all that is needed to
//! go forward is there too.

use super::intent::{self, INTENT_BYTES_MAX, Intent};
use crate::crashsafe;
use crate::delete;
use crate::draft::undo::clear;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{self, Disk, MANIFEST_BYTES_MAX, Manifest};
use crate::owner::Turn;
use crate::repository::Repository;
use sendense_types::{BackupId, Timestamp, VmContextId};
use std::collections::BTreeSet;
use std::path::Path;

/// A second name of a file, in the merge's folder, that is about to be moved.
const MOVING_SUFFIX: &str = ".moving";

/// What became of a merge that was cut off, or of one that just wrote its intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The successor holds what the other point held, and the other point is gone.
    Merged,
    /// It had not come so far: both points are as they were.
    NotBegun,
}

/// The points that a merge into this one is about, as far as its folder tells.
pub(crate) fn points_of(repository: &Repository, vm: &VmContextId, successor: &BackupId) -> BTreeSet<BackupId> {
    let going = intent_of(repository, vm, successor).map(|intent| intent.going);
    going.into_iter().chain([successor.clone()]).collect()
}

/// True unless it is certain that no name has changed: there is no intent, or half of one, which was synced before the first.
pub(crate) fn may_have_begun(repository: &Repository, vm: &VmContextId, successor: &BackupId) -> bool {
    let intent = intent_of(repository, vm, successor);
    !intent.is_err_and(|error| matches!(error.kind, Kind::NotFound | Kind::Invalid))
}

fn intent_of(repository: &Repository, vm: &VmContextId, successor: &BackupId) -> Result<Intent> {
    let relative = layout::merge_dir(vm, successor).join(layout::INTENT_FILE);
    let bytes = crashsafe::read_small(repository.root(), &relative, INTENT_BYTES_MAX)?;
    intent::read(&bytes, successor)
}

/// Goes forward by the intent, or removes what was prepared when there is none. In one turn: another hub that took the repository
/// in the middle would finish it, and might merge into the same point again before this one goes on.
///
/// # Errors
/// Whatever keeps the points from being set right. That the folder stays of a merge that is done is none: the next look at it
/// finds all in place, and removes it.
pub(crate) fn finish(
    repository: &Repository,
    vm: &VmContextId,
    successor: &BackupId,
    turn: &Turn,
    now: Timestamp,
) -> Result<Finished> {
    let done = match intent_of(repository, vm, successor) {
        // The names need a little room, and what the merge frees comes after them.
        Ok(intent) => repository.with_spare(|| forward(repository, vm, &intent, now))?,
        // No intent, or half of one: it was synced before the first move, so nothing was moved.
        Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => Finished::NotBegun,
        Err(error) => return Err(error),
    };
    match (abandon(repository, vm, successor, turn), done) {
        (Ok(()), _) => {}
        (Err(error), Finished::NotBegun) => return Err(error),
        (Err(error), Finished::Merged) => {
            let error = sendense_block::error::chain(&error);
            tracing::warn!(%successor, vm_context_id = %vm, error, "the folder of a merge that is done stays for now");
        }
    }
    Ok(done)
}

/// Removes the folder with all that is in it, the intent first; nothing when it is gone already. The name says nothing of who made it: hence the turn.
pub(super) fn abandon(repository: &Repository, vm: &VmContextId, successor: &BackupId, _turn: &Turn) -> Result<()> {
    let (fs, dir) = (repository.fs(), repository.at(layout::merge_dir(vm, successor)));
    crashsafe::remove_file_if_there(fs, &dir.join(layout::INTENT_FILE))?;
    match crashsafe::sync_dir(fs, &dir) {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        synced => synced?,
    }
    clear(repository, vm, &dir)
}

fn forward(repository: &Repository, vm: &VmContextId, intent: &Intent, now: Timestamp) -> Result<Finished> {
    let (fs, dir) = (repository.fs(), repository.at(layout::merge_dir(vm, &intent.successor)));
    let (text, manifest) = new_manifest(repository, vm, intent)?;
    let published = layout::manifest(vm, &intent.successor);
    let before = match crashsafe::read_small(repository.root(), &published, MANIFEST_BYTES_MAX) {
        Ok(before) => before,
        Err(error) if error.kind == Kind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    if before != text && intent::digest_of(&before) != intent.before {
        // It was given up and could not be removed; the successor has gone since, or is another.
        return Ok(Finished::NotBegun);
    }
    let disks: Vec<&Disk> = manifest.disks.iter().filter(|disk| intent.disks.contains(&disk.disk_id)).collect();
    let mut moves = Vec::with_capacity(disks.len() * 2);
    for disk in &disks {
        let number = disk.disk_id;
        moves.push((dir.join(layout::draft_image_name(number)), layout::image(vm, number, &intent.successor)));
        moves.push((dir.join(layout::draft_digests_name(number)), layout::digests(vm, number, &intent.successor)));
    }
    let mut begun = before == text;
    for (from, to) in &moves {
        begun |= has_name(repository, from, to)?;
    }
    // Until the first name changes both points are whole, and the world may have changed since the intent was written.
    if !begun && !still_right(repository, vm, intent, &manifest, now)? {
        return Ok(Finished::NotBegun);
    }
    for (from, to) in &moves {
        take_name(repository, from, to)?;
    }
    for disk in &disks {
        let number = disk.disk_id;
        // Opened as the new manifest has it: where a file cannot have two names, its old one would be left otherwise.
        repository.open_image_at(&layout::image(vm, number, &intent.successor), disk)?;
        repository.open_digest_file_at(layout::digests(vm, number, &intent.successor), disk)?;
        crashsafe::sync_dir(fs, &repository.at(layout::disk_dir(vm, number)))?;
    }
    // Written anew rather than moved: the folder keeps its copy, by which this step can be made again.
    if before != text {
        let half = dir.join(format!("{}{MOVING_SUFFIX}", layout::MANIFEST_IN_FOLDER));
        crashsafe::remove_file_if_there(fs, &half)?;
        crashsafe::write_new(fs, &half, &text)?;
        crashsafe::rename_over(fs, &half, &repository.at(&published))?;
    }
    // Also when it had its name already: whoever gave it may have died before this.
    crashsafe::sync_dir(fs, &repository.at(layout::vm_dir(vm)))?;
    if !intent.stays {
        remove_going(repository, vm, &intent.going)?;
    }
    Ok(Finished::Merged)
}

/// The manifest that the successor gets, as text too.
fn new_manifest(repository: &Repository, vm: &VmContextId, intent: &Intent) -> Result<(Vec<u8>, Manifest)> {
    let path = layout::merge_dir(vm, &intent.successor).join(layout::MANIFEST_IN_FOLDER);
    let corrupt = |why: String| Error::corrupt(&path, None, why);
    let text = crashsafe::read_small(repository.root(), &path, MANIFEST_BYTES_MAX)?;
    let manifest = manifest::parse(&text)
        .map_err(|error| corrupt("read the manifest of a merged point".into()).caused_by(error))?;
    if manifest.backup_id != intent.successor
        || manifest.vm_context_id != *vm
        || manifest.parents().any(|parent| *parent == intent.going)
        || !intent.disks.iter().all(|disk| manifest.disk(*disk).is_some())
    {
        return Err(corrupt(format!("it is not the manifest of {} without {}", intent.successor, intent.going)));
    }
    Ok((text, manifest))
}

/// True while all that the merge was planned by still holds: the points are as they were, nothing else stands on the one that
/// goes, what lies below is there, and nobody said that the point must stay.
fn still_right(
    repository: &Repository,
    vm: &VmContextId,
    intent: &Intent,
    manifest: &Manifest,
    now: Timestamp,
) -> Result<bool> {
    let is_in = |listed: &[Manifest], id: &BackupId| listed.iter().any(|point| point.backup_id == *id);
    if intent.stays {
        // Nothing goes, and the successor holds from now on what it needs beside what it stands on still.
        let listed = if manifest.parents().next().is_some() { repository.list(vm)?.complete()? } else { Vec::new() };
        return Ok(manifest.parents().all(|parent| is_in(&listed, parent)));
    }
    let going = layout::manifest(vm, &intent.going);
    match crashsafe::read_small(repository.root(), &going, MANIFEST_BYTES_MAX) {
        Ok(text) if intent::digest_of(&text) == intent.going_before => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind == Kind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    if repository.hold(vm, &intent.going)?.holds(now) {
        return Ok(false);
    }
    let listed = repository.list(vm)?.complete()?;
    let others = |point: &&Manifest| point.backup_id != intent.successor;
    let stands_on_it = |point: &Manifest| point.parents().any(|parent| *parent == intent.going);
    let is_free = !listed.iter().filter(others).any(stands_on_it);
    Ok(is_free && manifest.parents().all(|parent| is_in(&listed, parent)))
}

/// True when a prepared file has its final name.
fn has_name(repository: &Repository, from: &Path, to: &Path) -> Result<bool> {
    match from.symlink_metadata() {
        Ok(_) => crashsafe::is_same_file(from, &repository.at(to)),
        // Moved itself: while there is an intent, nothing else takes it away.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(crashsafe::failed("stat", from, error)),
    }
}

/// Gives a prepared file its final name, in the place of the old one, unless it has it.
fn take_name(repository: &Repository, from: &Path, to: &Path) -> Result<()> {
    let (fs, to_path) = (repository.fs(), repository.at(to));
    if has_name(repository, from, to)? {
        return Ok(());
    }
    let mut moving = from.as_os_str().to_owned();
    moving.push(MOVING_SUFFIX);
    let moving = Path::new(&moving);
    crashsafe::remove_file_if_there(fs, moving)?;
    if crashsafe::link(fs, from, moving)? {
        crashsafe::rename_over(fs, moving, &to_path)
    } else {
        crashsafe::rename_over(fs, from, &to_path)
    }
}

/// Deletes the point that was merged. Nothing stands on it: its successor's manifest no longer does.
fn remove_going(repository: &Repository, vm: &VmContextId, going: &BackupId) -> Result<()> {
    let listed = repository.list(vm)?.complete()?;
    if !listed.iter().any(|point| point.backup_id == *going) {
        return delete::finish(repository, vm, going).map(drop);
    }
    let plan = delete::plan(vm, &listed, &BTreeSet::from([going.clone()]), delete::Extent::Named)?;
    plan.points.iter().try_for_each(|point| delete::delete(repository, vm, point))
}
