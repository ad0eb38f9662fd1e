//! The order of the steps up to the intent, and the way back from each of them.

use super::files::Copying;
use super::record::{self, Record};
use super::{Done, Ledger, MovePlan, Options, claim, conflict, settle, write_anew};
use crate::capacity::Reservation;
use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::humble::humbly;
use crate::layout;
use crate::lock::{ChainGuard, Claim, Operation};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::repository::Repository;
use crate::verify::{Pace, Progress};
use sendense_block::Cancel;
use sendense_types::Timestamp;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it looks whether the points are free.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A move under way.
pub(super) struct Move<'a> {
    pub source: &'a Repository,
    pub target: &'a Repository,
    pub plan: &'a MovePlan,
    pub options: &'a Options,
    pub progress: &'a Progress,
    pub cancel: &'a Cancel,
    pub ledger: &'a dyn Ledger,
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
    pub fn now(&self) -> Timestamp {
        self.ledger.now()
    }

    pub fn run(&self) -> Result<Done> {
        let (source, target, vm) = (self.source, self.target, &self.plan.vm_context_id);
        let now: &dyn Fn() -> Timestamp = &|| self.ledger.now();
        source.ownership()?.check(now())?;
        target.ownership()?.check(now())?;
        // Who has them now may have them for days: nothing is copied in vain.
        let (here, _there) = claim(source, target, vm, &self.plan.ids(), &self.options.ends.who)?;
        self.check_plan()?;
        source.locks().change(&here, self.claim_of(Operation::Copy))?;
        let record = self.plan.record(&self.options.ends);
        let points: Vec<Manifest> =
            record.points.iter().map(|point| source.manifest(vm, &point.backup_id)).collect::<Result<_>>()?;
        let bytes = points.iter().map(Manifest::file_bytes).fold(0, u64::saturating_add);
        self.progress.total_bytes.store(bytes.saturating_mul(2), Ordering::Relaxed);
        self.progress.done_bytes.store(0, Ordering::Relaxed);
        let is_resumed = settle::is_planned(target, vm, &record)?;
        let pace = Pace::new(self.options.bytes_per_second);
        let copying = Copying { of: self, pace: &pace, is_resumed };
        let copied_bytes = if is_resumed { copying.copied_bytes(&points) } else { 0 };
        let reservation = target.capacity().reserve(self.plan.needed_bytes.saturating_sub(copied_bytes));
        // What an earlier life of it has copied takes room where there is none.
        let reservation = reservation.inspect_err(|error| {
            if is_resumed {
                self.give_up(error)
            }
        })?;
        reservation.resumed(copied_bytes);
        let went = self.begin(&record, is_resumed).and_then(|()| copying.run(&points, &reservation));
        let went = went.and_then(|()| self.wait_alone(&here)).and_then(|()| self.lay_down(&record, &reservation));
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
        let gone_over =
            "the points lie in the other repository now; the next look at the repositories does what is left";
        settle::arrive(target, vm, &record, now, self.ledger).map_err(|error| error.within(gone_over))?;
        drop(reservation);
        target.capacity().settle(i64::try_from(bytes).unwrap_or(i64::MAX));
        let left = settle::leave(source, vm, &record, now).and_then(|()| settle::forget(target, vm, now())).err();
        tracing::info!(vm_context_id = %vm, points = points.len(), bytes, from = %record.from, to = %record.to, "moved");
        Ok(Done { points: points.len(), bytes, left })
    }

    fn claim_of(&self, operation: Operation) -> Claim {
        let (vm, points) = (self.plan.vm_context_id.clone(), self.plan.ids());
        Claim { operation, vm, points, who: self.options.ends.who.clone() }
    }

    fn check_plan(&self) -> Result<()> {
        match self.source.plan_move(&self.plan.vm_context_id, self.target)? == *self.plan {
            true => Ok(()),
            false => Err(conflict("the plan is out of date: make it again")),
        }
    }

    /// The plan, in the target, before the first file.
    fn begin(&self, record: &Record, is_resumed: bool) -> Result<()> {
        let (target, vm) = (self.target, &self.plan.vm_context_id);
        let (fs, dir) = (target.fs(), target.at(layout::move_in_dir(vm)));
        let turn = target.ownership()?.turn(self.now())?;
        if is_resumed {
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

    /// Takes the points for itself. What it has already it keeps while it waits, so that no point comes or goes.
    fn wait_alone(&self, here: &ChainGuard) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.cancel.check()?;
            match self.source.locks().change(here, self.claim_of(Operation::Move)) {
                Err(error)
                    if matches!(error.kind, Kind::Conflict { .. }) && begun.elapsed() < self.options.patience =>
                {
                    std::thread::sleep(LOOK_AGAIN);
                }
                claimed => return claimed,
            }
        }
    }

    /// Step 2, when nobody changes a hold any more.
    fn lay_down(&self, record: &Record, reservation: &Reservation) -> Result<()> {
        let (source, target, vm) = (self.source, self.target, &self.plan.vm_context_id);
        self.check_plan()?;
        let (fs, dir) = (target.fs(), target.at(layout::move_in_dir(vm)));
        let _turn = target.ownership()?.turn(self.now())?;
        for point in &record.points {
            let id = &point.backup_id;
            let text = crashsafe::read_small(source.root(), &layout::manifest(vm, id), MANIFEST_BYTES_MAX)?;
            if record::digest_of(&text) != point.manifest {
                return Err(conflict("the plan is out of date: make it again"));
            }
            reservation.spend(2 * text.len() as u64)?;
            write_anew(target, &dir.join(layout::manifest_name(id)), &text)?;
            // As it is, also one that cannot be read: that keeps its point too.
            match crashsafe::read_small(source.root(), &layout::hold(vm, id), crate::hold::HOLD_BYTES_MAX) {
                Ok(hold) => write_anew(target, &dir.join(layout::hold_name(id)), &hold)?,
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

    /// Steps 3 and 4.
    fn commit(&self, record: &Record) -> Result<(), Failed> {
        let (source, target, vm) = (self.source, self.target, &self.plan.vm_context_id);
        self.ledger.refuse(&record.ids())?;
        self.cancel.commit().map_err(Error::from)?;
        settle::mark_leaving(source, vm, record, self.now())?;
        let dir = target.at(layout::move_in_dir(vm));
        let written = target.ownership().and_then(|ownership| ownership.turn(self.now())).and_then(|turn| {
            write_anew(target, &dir.join(layout::INTENT_FILE), &record.to_bytes())?;
            crashsafe::sync_dir(target.fs(), &dir)?;
            Ok(turn)
        });
        let Err(error) = written else { return Ok(()) };
        // Without it for certain, or nobody knows. Another hub that has the repository by now may have read it.
        let taken_back = target.ownership().and_then(|ownership| ownership.turn(self.now())).and_then(|turn| {
            crashsafe::remove_file_if_there(target.fs(), &dir.join(layout::INTENT_FILE))?;
            crashsafe::sync_dir(target.fs(), &dir)?;
            Ok(turn)
        });
        match taken_back {
            Ok(_) => Err(Failed::Before(error)),
            Err(_) => Err(Failed::InDoubt(error)),
        }
    }

    /// Takes everything back, as far as that is possible; the next look at the repositories does the rest. Touches nothing in a
    /// repository that another hub has.
    fn give_up(&self, error: &Error) {
        let (vm, now) = (&self.plan.vm_context_id, self.now());
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

impl Copying<'_> {
    /// Step 1: all files, each read back.
    fn run(&self, points: &[Manifest], reservation: &Reservation) -> Result<()> {
        let copy = || {
            points.iter().try_for_each(|point| {
                self.of.cancel.check()?;
                self.copy_point(point, reservation)
            })
        };
        if self.of.options.humble { humbly(copy) } else { copy() }
    }
}
