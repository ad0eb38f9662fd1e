//! All points of a machine go to another repository, files as they are.
//!
//! 1. `.move-in/` is made in the target, with the plan: which points come. Every file is copied to its final name, synced, read
//!    back and compared with its manifest's digests. Readers of the source go on meanwhile; backups, merges and deletions wait;
//! 2. the machine is claimed for itself in both; manifests and holds are laid into the folder, synced;
//! 3. `.move-out/` is made in the source with the same list: what lies there may from now on be another repository's;
//! 4. the list is written into `.move-in/` once more, as the intent, and synced: **the points are the target's now**;
//! 5. holds and manifests get their names in the target, the caller's books are changed ([`Ledger::switch`]), and the list is
//!    written a third time, as arrived: from here on the target grows, merges and deletes them as its own;
//! 6. the points are deleted in the source, children before parents, `.move-out/` goes, and `.move-in/` goes last.
//!
//! **Who has the points** is one question with one answer: the target, if the very list of the source's `.move-out/` lies in the
//! target's `.move-in/` as intent or as arrived; else the source. No name of a point is looked at for it, for points may have gone on
//! from the target by then, or been pruned there. That list stays in the target until `.move-out/` is gone for good, so the question
//! can be answered as long as anybody may ask it.
//!
//! - **A process that dies** before 4 leaves copies, which are gone on with by whoever asks for the same move again, or taken away;
//!   after 4 it leaves a move that goes forward. The target goes forward by itself; the source asks the target.
//! - **A second move** of the machine is refused from the first folder to the last, whatever the repositories: a source with either
//!   folder lets nothing go, a target with points, an intent or `.move-out/` takes nothing. So no two moves overlap.
//! - **Two hubs**: each change of a name in a repository is made in a turn of its owner record ([`crate::owner`]). A file of the target
//!   is opened in a turn, so a hub that lost the repository writes, at the worst, into files that nobody names any more, or the same
//!   bytes once more. The intent is written in a turn of the target after the mark in a turn of the source: whoever has taken one of the
//!   two meanwhile has fenced it. That a move did *not* come so far is decided only by who has both.
//! - **A full disk** is met before 4 (the room is reserved first, and all bytes are there by then) and leaves the source as it was; the
//!   few small files after 4 use the target's spare room ([`crate::spare`]), and where that is not enough the next look writes them when
//!   there is room again. The mark and the deletions in the source use its own: it may be full to the last block.
//!
//! What lives here: the plan, and who is asked what. [`run`] is the order of the steps, [`files`] copies and reads back, [`settle`] is
//! what comes after the intent.
//!
//! Invariant: nothing is removed from the source before every byte was read back in the target and the intent there is durable.

mod files;
mod record;
mod run;
mod settle;

pub use record::parse as parse_record;
pub use settle::Finished;
pub(crate) use settle::{Arrival, arrival, has_arrived};

use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout::{self, VmEntry};
use crate::lock::{ChainGuard, Operation};
use crate::manifest::MANIFEST_BYTES_MAX;
use crate::repository::Repository;
use crate::verify::Progress;
use record::{Moved, Record};
use sendense_block::Cancel;
use sendense_types::{BackupId, DiskNumber, Timestamp, VmContextId};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What start-up calls itself, which is waited for when it puts something in order.
pub(crate) const RECOVERER: &str = "recover";
/// So long a move waits for it. Not in tests, which hold such claims by hand.
const RECOVERY_WAIT: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(30) };
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a move will do. Made without touching anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovePlan {
    /// The VM.
    pub vm_context_id: VmContextId,
    /// Its points, parents before children.
    pub points: Vec<MovedPoint>,
    /// Room that is needed in the target, and free in the source afterwards.
    pub needed_bytes: u64,
}

/// One point of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedPoint {
    /// The point.
    pub backup_id: BackupId,
    /// Its disks.
    pub disks: BTreeSet<DiskNumber>,
    /// Bytes of its images and digests.
    pub bytes: u64,
    manifest: String,
}

impl MovePlan {
    /// Bytes of all images and digests.
    pub fn bytes(&self) -> u64 {
        self.points.iter().map(|point| point.bytes).fold(0, u64::saturating_add)
    }

    /// The points.
    pub fn ids(&self) -> BTreeSet<BackupId> {
        self.points.iter().map(|point| point.backup_id.clone()).collect()
    }

    fn record(&self, ends: &Ends) -> Record {
        let moved = |point: &MovedPoint| {
            let (backup_id, disks, manifest) = (point.backup_id.clone(), point.disks.clone(), point.manifest.clone());
            Moved { backup_id, disks, manifest }
        };
        let points = self.points.iter().map(moved).collect();
        Record { from: ends.from.clone(), to: ends.to.clone(), points }
    }
}

impl fmt::Display for MovePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.points.iter().try_for_each(|point| writeln!(f, "move {} ({} bytes)", point.backup_id, point.bytes))
    }
}

/// Between which two, and by whom.
#[derive(Debug, Clone)]
pub struct Ends {
    /// The repository that the points come from, by a name that whoever goes on with the move knows it by.
    pub from: String,
    /// The one that they go to.
    pub to: String,
    /// Who does it, for messages to those who meet it.
    pub who: String,
}

/// How a move is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Between which two, and by whom.
    pub ends: Ends,
    /// Reads in flight while the copies are read back, 1 to 16.
    pub threads: usize,
    /// How long it waits, when all is copied, for those who read the points.
    pub patience: Duration,
    /// All but the change itself comes after whatever else wants the processor or the disk.
    pub humble: bool,
    /// The most bytes to copy or read back in a second; `None` for as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// The caller's own books of where points lie.
pub trait Ledger: Sync {
    /// The time.
    fn now(&self) -> Timestamp;
    /// Asked when nobody else has the points and all is copied, and again before what a move that was cut off has left is removed from
    /// the source: reasons that the repositories do not know.
    ///
    /// # Errors
    /// Why the points stay where they are.
    fn refuse(&self, points: &BTreeSet<BackupId>) -> Result<()>;
    /// The points are the target's now. Asked again when it failed or nobody knows whether it worked.
    ///
    /// # Errors
    /// Why that could not be written down. The move then goes on another time.
    fn switch(&self, points: &BTreeSet<BackupId>) -> Result<()>;
    /// Whether the copies stay when the move is stopped now, because the next start goes on with it.
    fn goes_on(&self) -> bool;
}

/// What became of a move.
#[derive(Debug)]
pub struct Done {
    /// How many points.
    pub points: usize,
    /// Bytes of their files.
    pub bytes: u64,
    /// Why what lies in the source could not be removed. It is not the source's any more, and the next look there removes it.
    pub left: Option<Error>,
}

impl Repository {
    /// Plans to move all points of a VM to another repository. Changes nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it has none here; [`Kind::Exists`] when it has some there; [`Kind::Conflict`] when something of it is
    /// unfinished in either; [`Kind::Corrupt`] when a point stands on one that is missing; and whatever keeps the points from being
    /// listed completely.
    pub fn plan_move(&self, vm: &VmContextId, target: &Self) -> Result<MovePlan> {
        if is_same_folder(self, target)? {
            return Err(Error::invalid("the points lie in that repository already"));
        }
        refuse_unfinished(self, vm, "here", false)?;
        let listed = self.list(vm)?.complete()?;
        if listed.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("no point of {vm} lies here")));
        }
        refuse_unfinished(target, vm, "in the other repository", true)?;
        let there = target.vm_entries(vm)?;
        if let Some((path, ..)) = there.iter().find(|(_, entry, _)| matches!(entry, VmEntry::Manifest(_))) {
            let why = format!("points of {vm} lie in the other repository already: {}", path.display());
            return Err(Error::new(Kind::Exists, why));
        }
        let ids: BTreeSet<&BackupId> = listed.iter().map(|point| &point.backup_id).collect();
        let (mut points, mut needed_bytes) = (Vec::with_capacity(listed.len()), 0_u64);
        for point in &listed {
            let path = layout::manifest(vm, &point.backup_id);
            if let Some(missing) = point.parents().find(|parent| !ids.contains(parent)) {
                let why = format!("{} stands on {missing}, which is not there", point.backup_id);
                return Err(Error::corrupt(&path, None, why));
            }
            let text = crashsafe::read_small(self.root(), &path, MANIFEST_BYTES_MAX)?;
            // The manifest twice: in the folder of the move, and under its name.
            let needed = point.file_bytes().saturating_add(2 * text.len() as u64);
            needed_bytes = needed_bytes.saturating_add(needed);
            points.push(MovedPoint {
                backup_id: point.backup_id.clone(),
                disks: point.disks.iter().map(|disk| disk.disk_id).collect(),
                bytes: point.file_bytes(),
                manifest: record::digest_of(&text),
            });
        }
        Ok(MovePlan { vm_context_id: vm.clone(), points, needed_bytes })
    }

    /// Does what the plan says. Blocks until it is done; `progress` counts bytes, copied and then read back.
    ///
    /// A cancellation, or an error, before the points are the target's leaves the source as it was and nothing in the target, unless
    /// [`Ledger::goes_on`].
    ///
    /// # Errors
    /// [`Kind::Conflict`] when somebody has points of the VM, or still reads them when all is copied and the patience is at its end, or
    /// they changed since the plan was made; [`Kind::NoSpace`];
    /// [`Kind::Corrupt`] when a file is not what its manifest says; [`Kind::Cancelled`]; [`Kind::Fenced`]. An error from after the
    /// points have become the target's says so: what is left to do is done by the next look at the repositories.
    pub fn execute_move(
        &self,
        target: &Self,
        plan: &MovePlan,
        options: &Options,
        progress: &Progress,
        cancel: &Cancel,
        ledger: &dyn Ledger,
    ) -> Result<Done> {
        let work = run::Move { source: self, target, plan, options, progress, cancel, ledger };
        work.run().map_err(|error| error.within(format!("move the points of {}", plan.vm_context_id)))
    }
}

/// Claims the machine in both, and its points in the source: in the target nobody is in the way of points that come. Waits for
/// start-up, which puts in order what was cut off.
fn claim(
    source: &Repository,
    target: &Repository,
    vm: &VmContextId,
    points: &BTreeSet<BackupId>,
    who: &str,
) -> Result<(ChainGuard, ChainGuard)> {
    let begun = Instant::now();
    loop {
        let both = source
            .lock(Operation::Move, vm, points.clone(), who)
            .and_then(|here| Ok((here, target.lock(Operation::Move, vm, BTreeSet::new(), who)?)));
        match both {
            Err(Error { kind: Kind::Conflict { holders }, .. })
                if holders.iter().all(|holder| holder.who == RECOVERER) && begun.elapsed() < RECOVERY_WAIT =>
            {
                std::thread::sleep(LOOK_AGAIN);
            }
            claimed => return claimed,
        }
    }
}

/// Writes a small file, in the place of what an earlier life has left.
fn write_anew(repository: &Repository, path: &Path, bytes: &[u8]) -> Result<()> {
    crashsafe::remove_file_if_there(repository.fs(), path)?;
    crashsafe::write_new(repository.fs(), path, bytes)
}

/// Fails when somebody has begun something with points of the VM and not ended it. Copies that came without an intent may be gone
/// on with where they lie.
fn refuse_unfinished(repository: &Repository, vm: &VmContextId, place: &str, may_hold_copies: bool) -> Result<()> {
    for (path, entry, _) in repository.vm_entries(vm)? {
        let is_unfinished = match entry {
            VmEntry::Draft(_) | VmEntry::Delete(_) | VmEntry::Merge(_) | VmEntry::MoveOut => true,
            VmEntry::MoveIn => !may_hold_copies || arrival(repository, vm)?.is_some(),
            _ => false,
        };
        if is_unfinished {
            return Err(conflict(&format!("something is unfinished {place}: {}", path.display())));
        }
    }
    Ok(())
}

fn is_same_folder(a: &Repository, b: &Repository) -> Result<bool> {
    let real = |repository: &Repository| {
        let root = repository.root();
        root.canonicalize().map_err(|error| crashsafe::failed("resolve", root, error))
    };
    Ok(real(a)? == real(b)?)
}

fn conflict(why: &str) -> Error {
    Error::new(Kind::Conflict { holders: Vec::new() }, why)
}
