//! Whose the points are, and what is left to do for the one and the other: from wherever a move was cut off.
//!
//! Invariant: the list in the target decides, as [`super`] says. While it is an intent all that is needed to go forward lies beside it;
//! once the points have arrived nothing is needed but to let go of them in the source.

use super::files::remove_files;
use super::record::{self, RECORD_BYTES_MAX, Record};
use super::{Ends, Ledger, RECOVERER, claim, conflict, write_anew};
use crate::crashsafe::{self, Kindred};
use crate::delete;
use crate::draft::undo::clear;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::lock::{ChainGuard, Operation};
use crate::manifest::{self, MANIFEST_BYTES_MAX};
use crate::owner::Turn;
use crate::repository::Repository;
use sendense_types::{BackupId, Timestamp, VmContextId};
use std::path::{Path, PathBuf};

/// What a manifest is called that is about to get its name.
const NAMING_SUFFIX: &str = ".naming";

/// What became of a move that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The points are the target's, and nothing of them is left in the source.
    Moved,
    /// It had not come so far: they are the source's.
    NotBegun,
}

/// A record, if it is there and whole. Half of one was never synced, so nothing was done by it.
fn record_at(repository: &Repository, path: &Path) -> Result<Option<Record>> {
    match crashsafe::read_small(repository.root(), path, RECORD_BYTES_MAX).and_then(|bytes| record::read(&bytes)) {
        Ok(record) => Ok(Some(record)),
        Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => Ok(None),
        Err(error) => Err(error.within(format!("read {}", path.display()))),
    }
}

fn plan_path(vm: &VmContextId) -> PathBuf {
    layout::move_in_dir(vm).join(layout::MOVE_PLAN_FILE)
}

/// Points that are a target's, and how far what follows from that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The intent says so. They may not have their names yet.
    Decided(Record),
    /// They are points like any other, and the source has not let go of them yet.
    Arrived(Record),
}

/// The points of a VM that have come, until that is settled in both repositories.
pub(crate) fn arrival(target: &Repository, vm: &VmContextId) -> Result<Option<Arrival>> {
    let dir = layout::move_in_dir(vm);
    if let Some(record) = record_at(target, &dir.join(layout::MOVE_ARRIVED_FILE))? {
        return Ok(Some(Arrival::Arrived(record)));
    }
    Ok(record_at(target, &dir.join(layout::INTENT_FILE))?.map(Arrival::Decided))
}

/// True when the points of a VM have come and are points like any other.
pub(crate) fn has_arrived(target: &Repository, vm: &VmContextId) -> Result<bool> {
    Ok(matches!(arrival(target, vm)?, Some(Arrival::Arrived(_))))
}

/// The points that may have gone, and the intent of the source that says so.
fn intent_out(source: &Repository, vm: &VmContextId) -> Result<Option<Record>> {
    record_at(source, &layout::move_out_dir(vm).join(layout::INTENT_FILE))
}

/// True when copies of just these points lie there.
pub(super) fn is_planned(target: &Repository, vm: &VmContextId, record: &Record) -> Result<bool> {
    Ok(record_at(target, &plan_path(vm))?.is_some_and(|plan| plan == *record))
}

fn is_published(repository: &Repository, vm: &VmContextId, backup: &BackupId) -> Result<bool> {
    is_there(repository, &layout::manifest(vm, backup))
}

fn is_there(repository: &Repository, path: &Path) -> Result<bool> {
    let path = repository.at(path);
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(crashsafe::failed("stat", &path, error)),
    }
}

/// Takes the copies away that came without an intent, or only the folder where all that it says is done. Nothing of a point that has
/// its manifest is touched.
pub(super) fn abandon(target: &Repository, vm: &VmContextId, _turn: &Turn) -> Result<()> {
    if arrival(target, vm)?.is_some() {
        return Err(conflict("the points have come to this repository"));
    }
    let dir = target.at(layout::move_in_dir(vm));
    if let Some(plan) = record_at(target, &plan_path(vm))? {
        for point in &plan.points {
            if !is_published(target, vm, &point.backup_id)? {
                remove_files(target, vm, &point.backup_id, &point.disks)?;
            }
        }
        crashsafe::sync_dir(target.fs(), &target.at(layout::vm_dir(vm)))?;
    }
    clear(target, vm, &dir)
}

/// Says in the source, durably, that its points may have gone.
pub(super) fn mark_leaving(source: &Repository, vm: &VmContextId, record: &Record, now: Timestamp) -> Result<()> {
    let (fs, dir) = (source.fs(), source.at(layout::move_out_dir(vm)));
    let _turn = source.ownership()?.turn(now)?;
    // That it is full may be why they go.
    source.with_spare(|| {
        crashsafe::ensure_dir(fs, &dir)?;
        write_anew(source, &dir.join(layout::INTENT_FILE), &record.to_bytes())?;
        crashsafe::sync_dir(fs, &dir)
    })
}

/// The points are the source's: it need not ask any more.
pub(super) fn stay(source: &Repository, vm: &VmContextId, now: Timestamp) -> Result<()> {
    let _turn = source.ownership()?.turn(now)?;
    clear(source, vm, &source.at(layout::move_out_dir(vm)))
}

/// Step 5: names, the caller's books, and the word that the points have arrived.
pub(super) fn arrive(
    target: &Repository,
    vm: &VmContextId,
    record: &Record,
    now: &dyn Fn() -> Timestamp,
    ledger: &dyn Ledger,
) -> Result<()> {
    // Until that is written down, too: whoever takes the repository over meanwhile may move the points on, and no word of ours about
    // where they lie may come after that.
    let _turn = target.ownership()?.turn(now())?;
    // They are here and nowhere else to be had: somebody who took the last block since is not in the way.
    target.with_spare(|| name_points(target, vm, record))?;
    check_named(target, vm, record)?;
    ledger.switch(&record.ids()).map_err(|error| error.within("write down where the points lie"))?;
    let dir = target.at(layout::move_in_dir(vm));
    target.with_spare(|| {
        write_anew(target, &dir.join(layout::MOVE_ARRIVED_FILE), &record.to_bytes())?;
        crashsafe::sync_dir(target.fs(), &dir)
    })?;
    // Not needed any more: the points may go on, or go, and none of this is to be done again.
    keep_only_arrived(target, vm)
}

/// Removes all files of the folder but the word that the points have arrived.
fn keep_only_arrived(target: &Repository, vm: &VmContextId) -> Result<()> {
    let (fs, dir) = (target.fs(), target.at(layout::move_in_dir(vm)));
    for (name, kind) in crashsafe::entries(&dir)? {
        if name != layout::MOVE_ARRIVED_FILE && kind != Kindred::Directory {
            crashsafe::remove_file_if_there(fs, &dir.join(name))?;
        }
    }
    crashsafe::sync_dir(fs, &dir)
}

/// The last of step 6: the source has let go, or there is none. Nobody will ask any more.
pub(super) fn forget(target: &Repository, vm: &VmContextId, now: Timestamp) -> Result<()> {
    let _turn = target.ownership()?.turn(now)?;
    keep_only_arrived(target, vm)?;
    clear(target, vm, &target.at(layout::move_in_dir(vm)))
}

/// Holds before manifests, parents before children. Done twice is done once.
fn name_points(target: &Repository, vm: &VmContextId, record: &Record) -> Result<()> {
    let (fs, dir) = (target.fs(), layout::move_in_dir(vm));
    for point in &record.points {
        let (id, named) = (&point.backup_id, layout::manifest(vm, &point.backup_id));
        match crashsafe::read_small(target.root(), &named, MANIFEST_BYTES_MAX) {
            Ok(text) if record::digest_of(&text) == point.manifest => continue,
            Ok(_) => return Err(Error::new(Kind::Exists, format!("another point is called {id} there"))),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        let copy = dir.join(layout::manifest_name(id));
        let text = crashsafe::read_small(target.root(), &copy, MANIFEST_BYTES_MAX)?;
        let manifest = manifest::parse(&text)
            .map_err(|error| Error::corrupt(&copy, None, "read the manifest of a moved point").caused_by(error))?;
        if record::digest_of(&text) != point.manifest || manifest.backup_id != *id || manifest.vm_context_id != *vm {
            return Err(Error::corrupt(&copy, None, format!("it is not the manifest of {id}")));
        }
        for disk in &manifest.disks {
            target.open_image_at(&layout::image(vm, disk.disk_id, id), disk)?;
            target.open_digest_file_at(layout::digests(vm, disk.disk_id, id), disk)?;
        }
        match crashsafe::read_small(target.root(), &dir.join(layout::hold_name(id)), crate::hold::HOLD_BYTES_MAX) {
            Ok(hold) => crashsafe::replace(fs, &target.at(layout::hold(vm, id)), &hold)?,
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Written anew rather than moved: the folder keeps its copy, by which this step can be made again.
        let naming = target.at(dir.join(format!("{}{NAMING_SUFFIX}", layout::manifest_name(id))));
        write_anew(target, &naming, &text)?;
        crashsafe::rename_over(fs, &naming, &target.at(&named))?;
    }
    crashsafe::sync_dir(fs, &target.at(layout::vm_dir(vm)))
}

/// All of the points have their names in the target, just as they were.
fn check_named(target: &Repository, vm: &VmContextId, record: &Record) -> Result<()> {
    for point in &record.points {
        let path = layout::manifest(vm, &point.backup_id);
        let text = crashsafe::read_small(target.root(), &path, MANIFEST_BYTES_MAX)?;
        if record::digest_of(&text) != point.manifest {
            return Err(Error::corrupt(&path, None, "it is not what was copied"));
        }
    }
    Ok(())
}

/// Step 6. What the points hold does not keep them here: they lie in the other repository, holds and all.
pub(super) fn leave(source: &Repository, vm: &VmContextId, record: &Record, now: &dyn Fn() -> Timestamp) -> Result<()> {
    for point in record.points.iter().rev() {
        // One turn for each: another hub waits no longer than the files of one point take.
        let _turn = source.ownership()?.turn(now())?;
        let id = &point.backup_id;
        let within = |error: Error| error.within(format!("remove {id} here"));
        // One that was cut off may have left its manifest with two names, or none.
        if source.at(layout::delete_dir(vm, id)).symlink_metadata().is_ok() {
            delete::finish(source, vm, id).map_err(within)?;
        }
        match source.manifest(vm, id) {
            Ok(manifest) => {
                let bytes = manifest.file_bytes();
                let planned = delete::PlannedPoint { backup_id: id.clone(), disks: point.disks.clone(), bytes };
                delete::delete(source, vm, &planned).map_err(within)?;
            }
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(within(error)),
        }
    }
    stay(source, vm, now())
}

impl Repository {
    /// The repository that the points of a VM may have gone to. Where nothing says so they have not, and the folder goes.
    pub(crate) fn move_that_left(&self, vm: &VmContextId, now: Timestamp) -> Result<Option<String>> {
        let Some(_guard) = self.lock_to_settle(vm)? else { return Ok(None) };
        match intent_out(self, vm)? {
            Some(record) => Ok(Some(record.to)),
            None => stay(self, vm, now).map(|()| None),
        }
    }

    /// Takes copies away that nobody goes on with, under its own claim. False while somebody is at work with them.
    pub(crate) fn recover_move_in(&self, vm: &VmContextId, turn: &Turn) -> Result<bool> {
        let Some(_guard) = self.lock_to_settle(vm)? else { return Ok(false) };
        // Since it was looked at a move may have come so far.
        if arrival(self, vm)?.is_some() {
            return Ok(false);
        }
        abandon(self, vm, turn).map(|()| true)
    }

    /// The VM, for whoever settles a move; none while somebody in this process is at work with it.
    fn lock_to_settle(&self, vm: &VmContextId) -> Result<Option<ChainGuard>> {
        match self.lock(Operation::Move, vm, Default::default(), RECOVERER) {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if matches!(error.kind, Kind::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes forward with points that have come to this repository: names, the caller's books. The other one is not needed for that.
    /// False when there are none, or somebody in this process is at work with them.
    ///
    /// # Errors
    /// Whatever keeps it from being done; it is tried again with the next look.
    pub fn finish_arrival(&self, vm: &VmContextId, ledger: &dyn Ledger) -> Result<bool> {
        let Some(Arrival::Decided(record)) = arrival(self, vm)? else { return Ok(false) };
        if self.locks().is_moving(vm) {
            return Ok(false);
        }
        let _guard = self.lock(Operation::Move, vm, record.ids(), RECOVERER)?;
        // Somebody may have ended it since.
        let Some(Arrival::Decided(record)) = arrival(self, vm)? else { return Ok(false) };
        arrive(self, vm, &record, &|| ledger.now(), ledger)?;
        Ok(true)
    }

    /// Settles a move from this repository to `target` that was cut off, or ended but for what was left here: whose the points are, and
    /// what follows from that here and there.
    ///
    /// # Errors
    /// [`Kind::Conflict`] while somebody has points of the VM, or when another move is unfinished there; whatever keeps it from being
    /// done. It is tried again with the next look.
    pub fn finish_move(&self, vm: &VmContextId, target: &Self, ends: &Ends, ledger: &dyn Ledger) -> Result<Finished> {
        let now: &dyn Fn() -> Timestamp = &|| ledger.now();
        self.ownership()?.check(now())?;
        target.ownership()?.check(now())?;
        if !is_there(self, &layout::move_out_dir(vm))? && !is_there(target, &layout::move_in_dir(vm))? {
            return Ok(Finished::NotBegun);
        }
        let points = intent_out(self, vm)?.map(|record| record.ids()).unwrap_or_default();
        let _guards = claim(self, target, vm, &points, &ends.who)?;
        let left = intent_out(self, vm)?;
        if left.as_ref().is_some_and(|record| record.to != ends.to) {
            return Err(conflict("a move to another repository is unfinished here"));
        }
        let come = arrival(target, vm)?;
        let (Some(Arrival::Decided(record) | Arrival::Arrived(record)), Some(come)) = (&come, &come) else {
            // Half of a mark, or one that nothing followed: with both repositories ours nothing can follow it any more.
            stay(self, vm, now())?;
            return Ok(Finished::NotBegun);
        };
        match &left {
            // Of an earlier try, or another one's.
            Some(left) if left != record => {
                stay(self, vm, now())?;
                return Ok(Finished::NotBegun);
            }
            None if record.from != ends.from => {
                return Err(conflict("a move from another repository is unfinished there"));
            }
            _ => {}
        }
        if matches!(come, Arrival::Decided(_)) {
            arrive(target, vm, record, now, ledger)?;
        } else if left.is_some() {
            // Books that were made anew may have met the points here first. Those that went there since are nowhere.
            let _turn = target.ownership()?.turn(now())?;
            let mut there = record.ids();
            for id in record.ids() {
                if !is_published(target, vm, &id)? {
                    there.remove(&id);
                }
            }
            ledger.switch(&there)?;
        }
        // Without the mark it was done before, and what lies here has come since.
        if left.is_some() {
            ledger.refuse(&record.ids())?;
            leave(self, vm, record, now)?;
        }
        forget(target, vm, now())?;
        Ok(Finished::Moved)
    }

    /// True while a move of the VM's points, or what has changed for one, is not settled here.
    ///
    /// # Errors
    /// The folder cannot be looked at.
    pub fn is_move_unsettled(&self, vm: &VmContextId) -> Result<bool> {
        Ok(is_there(self, &layout::move_out_dir(vm))? || is_there(self, &layout::move_in_dir(vm))?)
    }

    /// True where just the points of a VM that have come to the other repository may have gone from here, whatever the two are called
    /// by now.
    ///
    /// # Errors
    /// Either cannot be read.
    pub fn has_moved_to(&self, vm: &VmContextId, other: &Self) -> Result<bool> {
        let (Some(left), Some(come)) = (intent_out(self, vm)?, arrival(other, vm)?) else {
            // What is not found in a folder from which the file system went says nothing.
            self.check_present()?;
            return other.check_present().map(|()| false);
        };
        let (Arrival::Decided(come) | Arrival::Arrived(come)) = come;
        Ok(left == come)
    }

    /// Says that the repository that points may have gone to does not exist any more: those that lie here are this one's. False when
    /// nothing says that any have gone.
    ///
    /// # Errors
    /// [`Kind::Conflict`] while somebody moves points of the VM; [`Kind::Fenced`].
    pub fn forget_departure(&self, vm: &VmContextId, now: Timestamp) -> Result<bool> {
        let _guard = self.lock(Operation::Move, vm, Default::default(), RECOVERER)?;
        if !is_there(self, &layout::move_out_dir(vm))? {
            return Ok(false);
        }
        stay(self, vm, now).map(|()| true)
    }

    /// Says that the repository that points have come from does not exist any more, so that nobody will ask for them. Nothing of the
    /// points is touched. False when none have arrived.
    ///
    /// # Errors
    /// [`Kind::Conflict`] while somebody moves points of the VM; [`Kind::Fenced`].
    pub fn forget_arrival(&self, vm: &VmContextId, now: Timestamp) -> Result<bool> {
        let _guard = self.lock(Operation::Move, vm, Default::default(), RECOVERER)?;
        if !has_arrived(self, vm)? {
            return Ok(false);
        }
        forget(self, vm, now).map(|()| true)
    }
}
