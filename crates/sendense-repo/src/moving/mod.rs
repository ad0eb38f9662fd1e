//! All points of a machine go to another repository, files as they are.
//!
//! 1. `.move-in/` is made in the target, with the plan: which points come. Every file is copied to its final name, synced, read
//!    back and compared with its manifest's digests; manifests and holds are laid into the folder;
//! 2. `.move-out/` is made in the source with the same list: what lies there may from now on be another repository's;
//! 3. the list is written into `.move-in/` once more, as the intent, and synced: **the points are the target's now**;
//! 4. holds and manifests get their names in the target, the caller's books are changed ([`Ledger::switch`]), `.move-in/` goes;
//! 5. the points are deleted in the source, children before parents, and `.move-out/` goes last.
//!
//! Before 3 the source has the points, whatever lies in the target; from 3 on the target has them, whatever still lies in the source.
//! A process that dies before 3 leaves copies that are gone on with by whoever asks for the same move again, or taken away; one
//! that dies after 3, a move that goes forward. The target goes forward by itself; the source, when it is in doubt, asks the target.
//! Until that is settled nobody grows, merges or deletes the points in either (see `Repository::lock`); reading is right in both.
//!
//! What lives here: the plan, and the order of the steps. [`files`] copies and reads back, [`settle`] is what comes after the intent.
//!
//! Invariant: nothing is removed from the source before every byte was read back in the target and the intent there is durable.

mod files;
mod record;
mod settle;

pub use record::parse as parse_record;
pub use settle::Finished;

use crate::capacity::Reservation;
use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout::{self, VmEntry};
use crate::lock::{ChainGuard, Operation};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::repository::Repository;
use crate::verify::Progress;
use record::{Moved, Record};
use sendense_block::Cancel;
use sendense_types::{BackupId, DiskNumber, Timestamp, VmContextId};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;
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
    /// The points.
    pub fn ids(&self) -> BTreeSet<BackupId> {
        self.points.iter().map(|point| point.backup_id.clone()).collect()
    }

    fn record(&self, options: &Options) -> Record {
        let moved = |point: &MovedPoint| {
            let (backup_id, disks, manifest) = (point.backup_id.clone(), point.disks.clone(), point.manifest.clone());
            Moved { backup_id, disks, manifest }
        };
        let points = self.points.iter().map(moved).collect();
        Record { from: options.from.clone(), to: options.to.clone(), points }
    }
}

impl fmt::Display for MovePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.points.iter().try_for_each(|point| writeln!(f, "move {} ({} bytes)", point.backup_id, point.bytes))
    }
}

/// How a move is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The repository that the points come from, by a name that whoever goes on with the move knows it by.
    pub from: String,
    /// The one that they go to.
    pub to: String,
    /// Reads in flight while the copies are read back, 1 to 16.
    pub threads: usize,
    /// Who does it, for messages to those who meet it.
    pub who: String,
}

/// The caller's own books of where points lie.
pub trait Ledger {
    /// The time.
    fn now(&self) -> Timestamp;
    /// Asked when nobody else has the points and all is copied: reasons that the repositories do not know.
    ///
    /// # Errors
    /// Why the points stay where they are.
    fn refuse(&self) -> Result<()>;
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
        refuse_unfinished(self, vm, "here")?;
        let listed = self.list(vm)?.complete()?;
        if listed.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("no point of {vm} lies here")));
        }
        refuse_unfinished(target, vm, "in the other repository")?;
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
    /// [`Kind::Conflict`] when somebody has points of the VM, or they changed since the plan was made; [`Kind::NoSpace`];
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
        let now: &dyn Fn() -> Timestamp = &|| ledger.now();
        let mut work = Move { source: self, target, plan, options, progress, cancel, now, ledger, is_resumed: false };
        work.run().map_err(|error| error.within(format!("move the points of {}", plan.vm_context_id)))
    }
}

/// A move under way.
struct Move<'a> {
    source: &'a Repository,
    target: &'a Repository,
    plan: &'a MovePlan,
    options: &'a Options,
    progress: &'a Progress,
    cancel: &'a Cancel,
    now: &'a dyn Fn() -> Timestamp,
    ledger: &'a dyn Ledger,
    /// An earlier life of this move has left copies.
    is_resumed: bool,
}

/// How far it came.
enum Failed {
    /// The points are the source's.
    Before(Error),
    /// Whose they are is not known: the intent could not be made durable, nor taken back.
    InDoubt(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Before(error)
    }
}

impl Move<'_> {
    fn run(&mut self) -> Result<Done> {
        let (source, target, vm) = (self.source, self.target, &self.plan.vm_context_id);
        source.ownership()?.check((self.now)())?;
        target.ownership()?.check((self.now)())?;
        let _guards = claim(source, target, vm, &self.plan.ids(), &self.options.who)?;
        if source.plan_move(vm, target)? != *self.plan {
            return Err(conflict("the plan is out of date: make it again"));
        }
        let record = self.plan.record(self.options);
        let points: Vec<Manifest> =
            record.points.iter().map(|point| source.manifest(vm, &point.backup_id)).collect::<Result<_>>()?;
        let bytes = points.iter().map(Manifest::file_bytes).fold(0, u64::saturating_add);
        self.progress.total_bytes.store(bytes.saturating_mul(2), Ordering::Relaxed);
        self.progress.done_bytes.store(0, Ordering::Relaxed);
        self.is_resumed = settle::is_planned(target, vm, &record)?;
        let copied_bytes = if self.is_resumed { self.copied_bytes(&points) } else { 0 };
        let reservation = target.capacity().reserve(self.plan.needed_bytes.saturating_sub(copied_bytes))?;
        reservation.resumed(copied_bytes);
        let went = self.begin(&record).and_then(|()| self.prepare(&points, &record, &reservation));
        match went.map_err(Failed::Before).and_then(|()| self.commit(&record)) {
            Ok(()) => {}
            Err(Failed::Before(error)) => {
                self.give_up(&error);
                return Err(error);
            }
            Err(Failed::InDoubt(error)) => {
                let why = "whether the points have gone over is settled by the next look at the repositories";
                return Err(error.within(why));
            }
        }
        drop(reservation);
        target.capacity().settle(i64::try_from(bytes).unwrap_or(i64::MAX));
        let gone_over =
            "the points lie in the other repository now; the next look at the repositories does what is left";
        settle::arrive(target, vm, &record, self.now, self.ledger).map_err(|error| error.within(gone_over))?;
        settle::check_arrived(target, vm, &record).map_err(|error| error.within(gone_over))?;
        let left = settle::leave(source, vm, &record, self.now).err();
        tracing::info!(vm_context_id = %vm, points = points.len(), bytes, from = %record.from, to = %record.to, "moved");
        Ok(Done { points: points.len(), bytes, left })
    }

    /// The plan, in the target, before the first file.
    fn begin(&self, record: &Record) -> Result<()> {
        let (target, vm) = (self.target, &self.plan.vm_context_id);
        let (fs, dir) = (target.fs(), target.at(layout::move_in_dir(vm)));
        let turn = target.ownership()?.turn((self.now)())?;
        if self.is_resumed {
            return Ok(());
        }
        // Of another move that was cut off.
        settle::abandon(target, vm, &turn)?;
        let disks = record.points.iter().flat_map(|point| point.disks.iter().map(|disk| (&point.backup_id, *disk)));
        for file in disks.flat_map(|(id, disk)| [layout::image(vm, disk, id), layout::digests(vm, disk, id)]) {
            let path = target.at(file);
            if path.symlink_metadata().is_ok() {
                return Err(Error::new(Kind::Exists, format!("{} is there already", path.display())));
            }
        }
        crashsafe::ensure_dir(fs, &target.at(layout::vm_dir(vm)))?;
        crashsafe::ensure_dir(fs, &dir)?;
        crashsafe::write_new(fs, &dir.join(layout::MOVE_PLAN_FILE), &record.to_bytes())?;
        crashsafe::sync_dir(fs, &dir)
    }

    /// Step 1.
    fn prepare(&self, points: &[Manifest], record: &Record, reservation: &Reservation) -> Result<()> {
        let (source, target, vm) = (self.source, self.target, &self.plan.vm_context_id);
        let (fs, dir) = (target.fs(), target.at(layout::move_in_dir(vm)));
        for point in points {
            self.cancel.check()?;
            self.copy_point(point, reservation)?;
        }
        for point in &record.points {
            let id = &point.backup_id;
            let text = crashsafe::read_small(source.root(), &layout::manifest(vm, id), MANIFEST_BYTES_MAX)?;
            if record::digest_of(&text) != point.manifest {
                return Err(conflict("the plan is out of date: make it again"));
            }
            reservation.spend(2 * text.len() as u64)?;
            write_anew(self.target, &dir.join(layout::manifest_name(id)), &text)?;
            // As it is, also one that cannot be read: that keeps its point too.
            match crashsafe::read_small(source.root(), &layout::hold(vm, id), crate::hold::HOLD_BYTES_MAX) {
                Ok(hold) => write_anew(self.target, &dir.join(layout::hold_name(id)), &hold)?,
                Err(error) if error.kind == Kind::NotFound => {
                    _ = crashsafe::remove_file_if_there(fs, &dir.join(layout::hold_name(id)))?;
                }
                Err(error) => return Err(error),
            }
        }
        crashsafe::sync_dir(fs, &dir)?;
        // The folders of disks were made in it.
        crashsafe::sync_dir(fs, &target.at(layout::vm_dir(vm)))
    }

    /// Steps 2 and 3.
    fn commit(&self, record: &Record) -> Result<(), Failed> {
        let (source, target, vm) = (self.source, self.target, &self.plan.vm_context_id);
        self.ledger.refuse()?;
        self.cancel.commit().map_err(Error::from)?;
        settle::mark_leaving(source, vm, record, (self.now)())?;
        let dir = target.at(layout::move_in_dir(vm));
        let written = target.ownership().and_then(|ownership| ownership.turn((self.now)())).and_then(|turn| {
            write_anew(target, &dir.join(layout::INTENT_FILE), &record.to_bytes())?;
            crashsafe::sync_dir(target.fs(), &dir)?;
            Ok(turn)
        });
        let Err(error) = written else { return Ok(()) };
        // Without it for certain, or nobody knows.
        let taken_back = crashsafe::remove_file_if_there(target.fs(), &dir.join(layout::INTENT_FILE))
            .and_then(|_| crashsafe::sync_dir(target.fs(), &dir));
        match taken_back {
            Ok(()) => Err(Failed::Before(error)),
            Err(_) => Err(Failed::InDoubt(error)),
        }
    }

    /// Takes everything back, as far as that is possible; the next look at the repositories does the rest. Touches nothing in a
    /// repository that another hub has.
    fn give_up(&self, error: &Error) {
        let (vm, now) = (&self.plan.vm_context_id, (self.now)());
        let source = settle::stay(self.source, vm, now);
        let target = match self.ledger.goes_on() {
            true => Ok(()),
            false => self
                .target
                .ownership()
                .and_then(|ownership| ownership.turn(now))
                .and_then(|turn| settle::abandon(self.target, vm, &turn)),
        };
        for second in [source, target].into_iter().filter_map(Result::err) {
            let (first, error) = (sendense_block::error::chain(error), sendense_block::error::chain(&second));
            tracing::warn!(vm_context_id = %vm, first, error, "a move could not be taken back; the next look does that");
        }
    }
}

/// Claims the points in the source, and the machine in both. Waits for start-up, which puts in order what was cut off.
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
            .and_then(|here| Ok((here, target.lock(Operation::Move, vm, points.clone(), who)?)));
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

/// Fails when somebody has begun something with points of the VM and not ended it. Copies of a move may be gone on with.
fn refuse_unfinished(repository: &Repository, vm: &VmContextId, place: &str) -> Result<()> {
    for (path, entry, _) in repository.vm_entries(vm)? {
        if matches!(entry, VmEntry::Draft(_) | VmEntry::Delete(_) | VmEntry::Merge(_) | VmEntry::MoveOut) {
            return Err(conflict(&format!("something is unfinished {place}: {}", path.display())));
        }
    }
    if settle::has_come(repository, vm)? {
        return Err(conflict(&format!("a move of its points is unfinished {place}")));
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
