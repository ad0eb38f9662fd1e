//! Consolidation: a point goes, and what only it held becomes its successor's.
//!
//! ```text
//!   before   older ----- going ----- successor ----- later
//!   after    older ----------------- successor ----- later
//! ```
//!
//! 1. `.merge-<successor>/` is made, and in it for each disk that stands on the going point a new image and its digests: all
//!    blocks of the successor's, and those of the going one that the successor leaves to it. Frames are moved as they are; where most
//!    of one image stays, the new one begins as its copy, which shares its room if the file system can;
//! 2. the new files are synced, read back from the disk, decoded and compared with the digests, block by block; only what a clone
//!    left as it was keeps the digest that it had, unread;
//! 3. the new manifest and an intent are written beside them and synced: **from here on start-up goes forward**;
//! 4. the new files take the successor's names, the manifest last; each name means the old file or the new one at any moment;
//! 5. the going point is deleted as any point is; the intent, then the folder are removed.
//!
//! Steps 1 and 2 take long and share the points with backups and readers; 3 to 5 take an instant and need them alone. The
//! successor keeps its name, so that no later image has to be rewritten. A process that dies before 3 leaves a folder that
//! start-up removes; one that dies after 3, a merge that start-up finishes.
//!
//! A **synthetic full** is the same with one difference: the successor gets the blocks of all that it stands on, stands on
//! nothing afterwards, and no point goes.
//!
//! What lives here: the plan, and the order of the steps. [`prepare`] is steps 1 and 2: [`patch`] begins an image as a copy, [`copying`] makes it,
//! [`blocks`] moves blocks into it. [`switch`] is steps 4 and 5.
//!
//! Invariant: no file of the two points is touched before all that was written of the new ones was read back and found right.

mod blocks;
mod clusters;
mod copying;
mod intent;
mod patch;
mod prepare;
mod switch;

pub(crate) use intent::Intent;
#[doc(hidden)]
pub use intent::parse as parse_intent;
pub use patch::Way;
use prepare::Preparing;
pub(crate) use switch::{Finished, finish, may_have_begun, points_of};

use crate::crashsafe;
use crate::draft::SealedDisk;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::lock::{ChainGuard, Operation};
use crate::manifest::{self, Disk, MANIFEST_BYTES_MAX, Manifest};
use crate::repository::Repository;
use crate::verify::Progress;
#[cfg(test)]
pub(crate) use intent::read as read_intent;
use sendense_block::Cancel;
use sendense_types::{BackupId, BackupType, DiskNumber, Timestamp, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a merge will do. Made without touching anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergePlan {
    /// The VM.
    pub vm_context_id: VmContextId,
    /// The point that goes.
    pub going: BackupId,
    /// The one that takes over what it held.
    pub successor: BackupId,
    /// Whether the other point stays all the same: the successor only becomes a full, and a chain begins with it.
    pub stays: bool,
    /// The disks whose image is written anew; those that do not stand on the going point stay as they are.
    pub disks: BTreeSet<DiskNumber>,
    /// Bytes of the two points' files now.
    pub bytes: u64,
    /// Room that is needed meanwhile, at most; what the going point and the successor's old files hold is free afterwards.
    pub needed_bytes: u64,
}

impl fmt::Display for MergePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disks: Vec<String> = self.disks.iter().map(DiskNumber::to_string).collect();
        let (going, successor, needed) = (&self.going, &self.successor, self.needed_bytes);
        if self.stays {
            return writeln!(f, "make {successor} a full (disks {}, at most {needed} bytes written)", disks.join(", "));
        }
        writeln!(f, "merge {going} into {successor} (disks {}, at most {needed} bytes written)", disks.join(", "))
    }
}

/// How a merge is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that move and that check blocks, 1 to 16.
    pub threads: usize,
    /// Who does it, for messages to those who meet it.
    pub who: String,
    /// How long it waits at its end for those who read the points or build on them.
    pub patience: Duration,
    /// How the new images come about.
    pub way: Way,
    /// All but the change itself comes after whatever else wants the processor or the disk.
    pub humble: bool,
    /// The most bytes to move or check in a second; `None` for as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// How often it looks whether the points are free.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The two points of a merge, as their manifests tell of them.
struct Pair {
    going: Manifest,
    successor: Manifest,
    /// See [`MergePlan::stays`]; then `going` is one of the points that the successor stands on.
    stays: bool,
}

impl Repository {
    /// Plans to let a point go whose data a later one needs. Changes nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Held`]; [`Kind::Invalid`] when nothing stands on the point (delete it) or when several points do;
    /// and whatever keeps the VM's points from being listed completely.
    pub fn plan_merge(&self, vm: &VmContextId, going: &BackupId, now: Timestamp) -> Result<MergePlan> {
        let pair = self.pair(vm, going, now)?;
        let disks = pair.disks();
        let needed = |disk: &Disk| match pair.going.disk(disk.disk_id) {
            Some(old) => {
                old.image.file_bytes + old.digests.file_bytes + disk.image.file_bytes + disk.digests.file_bytes
            }
            None => 0,
        };
        let touched = pair.successor.disks.iter().filter(|disk| disks.contains(&disk.disk_id));
        Ok(MergePlan {
            vm_context_id: vm.clone(),
            going: going.clone(),
            successor: pair.successor.backup_id.clone(),
            stays: false,
            needed_bytes: touched.map(needed).fold(0, u64::saturating_add),
            bytes: pair.going.file_bytes().saturating_add(pair.successor.file_bytes()),
            disks,
        })
    }

    /// Plans to make an incremental a full of the same data, so that a chain begins with it and nothing is lost. Changes nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Invalid`] when it is a full; [`Kind::Corrupt`] when a point that it stands on is missing.
    pub fn plan_full(&self, vm: &VmContextId, point: &BackupId) -> Result<MergePlan> {
        let pair = self.full_pair(vm, point)?;
        let disks = pair.disks();
        let (mut needed_bytes, mut bytes) = (0_u64, 0_u64);
        for disk in &disks {
            let chain = self.chain(vm, point, *disk)?;
            let held = chain.iter().map(|link| link.disk.image.file_bytes + link.disk.digests.file_bytes);
            let held = held.fold(0, u64::saturating_add);
            // No block is held twice; a thousandth, and a little for small ones, is more than tables and digests take.
            let capacity = chain.first().map_or(0, |link| link.disk.capacity_bytes);
            let whole = capacity.saturating_add(capacity / 1000).saturating_add(1 << 20);
            needed_bytes = needed_bytes.saturating_add(held.min(whole));
            bytes = bytes.saturating_add(held);
        }
        let (going, successor) = (pair.going.backup_id, point.clone());
        Ok(MergePlan { vm_context_id: vm.clone(), going, successor, stays: true, disks, bytes, needed_bytes })
    }

    /// Does what the plan says. Blocks until it is done; `progress` counts bytes of blocks, moved and then checked. `refuse` is asked
    /// when nobody else has the points any more, for reasons that the lock table does not know. Returns the successor as it is now.
    ///
    /// A cancellation, or an error, before the new files take their names leaves both points as they were.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when one of the points is in use at the end, or changed since the plan was made: try again later;
    /// [`Kind::Held`]; [`Kind::NoSpace`]; [`Kind::Corrupt`] when a block of the two is not what was backed up; [`Kind::Cancelled`];
    /// [`Kind::Fenced`].
    pub fn execute_merge(
        &self,
        plan: &MergePlan,
        options: &Options,
        progress: &Progress,
        cancel: &Cancel,
        now: impl Fn() -> Timestamp,
        refuse: impl Fn() -> Result<()>,
    ) -> Result<Manifest> {
        let context = match plan.stays {
            true => format!("make {} a full", plan.successor),
            false => format!("merge {} into {}", plan.going, plan.successor),
        };
        let within = |error: Error| error.within(context.clone());
        let merge = Merge { repository: self, plan, options, progress, cancel, refuse: &refuse };
        merge.run(&now).map_err(within)
    }

    /// A point, and one that it stands on.
    fn full_pair(&self, vm: &VmContextId, point: &BackupId) -> Result<Pair> {
        let successor = self.manifest(vm, point)?;
        let Some(parent) = successor.parents().next().cloned() else {
            return Err(Error::invalid(format!("{point} is a full already")));
        };
        Ok(Pair { going: self.manifest(vm, &parent)?, successor, stays: true })
    }

    /// The point and the one that stands on it, which has all its disks.
    fn pair(&self, vm: &VmContextId, going: &BackupId, now: Timestamp) -> Result<Pair> {
        self.refuse_held(vm, [going], now)?;
        let points = self.list(vm)?.complete()?;
        let mut children = points.iter().filter(|point| point.parents().any(|parent| parent == going));
        if !points.iter().any(|point| point.backup_id == *going) {
            return Err(Error::new(Kind::NotFound, format!("no point {going} of {vm}")));
        }
        let why = match (children.next(), children.next()) {
            // Again, as a whole: a listing leaves the segments' digests out.
            (Some(child), None) => {
                let (old, new) = (self.manifest(vm, going)?, self.manifest(vm, &child.backup_id)?);
                let pair = Pair { going: old, successor: new, stays: false };
                let lost = pair.going.disks.iter().find(|disk| pair.successor.disk(disk.disk_id).is_none());
                let Some(lost) = lost else { return Ok(pair) };
                let why = format!("disk {} would be lost: {} does not have it", lost.disk_id, child.backup_id);
                return Err(Error::invalid(format!("{going} cannot be merged into a successor: {why}")));
            }
            (Some(_), Some(_)) => "several points stand on it",
            (None, _) => "nothing stands on it: delete it",
        };
        Err(Error::invalid(format!("{going} cannot be merged into a successor: {why}")))
    }
}

impl Pair {
    /// The disks of the successor that stand on the point that goes; all that stand on any, when it stays.
    fn disks(&self) -> BTreeSet<DiskNumber> {
        let stands = |disk: &&Disk| match &disk.parent_backup_id {
            Some(parent) => self.stays || *parent == self.going.backup_id,
            None => false,
        };
        self.successor.disks.iter().filter(stands).map(|disk| disk.disk_id).collect()
    }

    /// What a disk of the successor stands on afterwards.
    fn parent(&self, disk: DiskNumber) -> Result<Option<BackupId>> {
        if self.stays {
            return Ok(None);
        }
        let old = self.going.disk(disk).ok_or_else(|| {
            let path = layout::manifest(&self.successor.vm_context_id, &self.successor.backup_id);
            Error::corrupt(&path, None, format!("its disk {disk} stands on a point that has no such disk"))
        })?;
        Ok(old.parent_backup_id.clone())
    }

    /// The successor with its new images.
    fn merged(&self, disks: &BTreeMap<DiskNumber, SealedDisk>) -> Manifest {
        let type_of = |grown: bool| if grown { BackupType::Incremental } else { BackupType::Full };
        let mut manifest = self.successor.clone();
        for disk in &mut manifest.disks {
            if let Some(sealed) = disks.get(&disk.disk_id) {
                disk.parent_backup_id = sealed.spec.parent.clone();
                disk.backup_type = type_of(disk.parent_backup_id.is_some());
                disk.image = sealed.image.clone();
                disk.digests = sealed.digests.clone();
            }
        }
        let grown = manifest.parents().next().is_some();
        manifest.backup_type = type_of(grown);
        manifest
    }
}

/// A merge under way.
struct Merge<'a> {
    repository: &'a Repository,
    plan: &'a MergePlan,
    options: &'a Options,
    progress: &'a Progress,
    cancel: &'a Cancel,
    refuse: &'a dyn Fn() -> Result<()>,
}

impl Merge<'_> {
    fn dir(&self) -> PathBuf {
        self.repository.at(layout::merge_dir(&self.plan.vm_context_id, &self.plan.successor))
    }

    fn run(&self, now: &dyn Fn() -> Timestamp) -> Result<Manifest> {
        let (repository, vm) = (self.repository, &self.plan.vm_context_id);
        repository.ownership()?.check(now())?;
        let _mark = repository.mark_merging(vm, &self.plan.successor)?;
        let (read, changed) = self.points()?;
        // Who has them now may have them for days: nothing is prepared in vain.
        drop(repository.lock(Operation::Merge, vm, changed.clone(), &self.options.who)?);
        let reading = repository.lock(Operation::Read, vm, read, &self.options.who)?;
        let pair = self.planned(now())?;
        let turn = repository.ownership()?.turn(now())?;
        if !crashsafe::ensure_dir(repository.fs(), &self.dir())? {
            // Somebody merges into this point now, or died doing so and no start-up has come since.
            return Err(conflict(
                "a merge into this point is under way, or was cut off: the next start of the hub ends it",
            ));
        }
        drop(turn);
        let (plan, options, progress, cancel) = (self.plan, self.options, self.progress, self.cancel);
        let preparing = Preparing { repository, plan, pair: &pair, options, progress, cancel };
        let prepared = preparing.run().and_then(|(disks, reservation)| {
            // Given up and taken anew: nobody waits holding a claim. What came between is found below.
            drop(reading);
            let alone = self.wait_alone(&changed)?;
            // Until the folder is gone: whoever took the repository meanwhile may have made another of the same name.
            let turn = repository.ownership()?.turn(now())?;
            let again = self.planned(now())?;
            if (!self.plan.stays && again.going != pair.going) || again.successor != pair.successor {
                return Err(conflict("one of the points was changed meanwhile"));
            }
            (self.refuse)()?;
            let manifest = pair.merged(&disks);
            self.cancel.commit()?;
            self.write_intent(&manifest)?;
            Ok((manifest, alone, turn, reservation))
        });
        let (manifest, alone, turn, reservation) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.give_up(&error, now());
                return Err(error);
            }
        };
        // No error is a way back from here on: the intent is durable. The claim is kept then: between the two states the
        // points read as damaged, which they are not. The next start, or the next look at the repository, goes on.
        let finish = || switch::finish(repository, vm, &self.plan.successor, &turn, now());
        match finish().or_else(|_| finish()) {
            Ok(Finished::Merged) => drop(alone),
            // Somebody said at the last moment that the point must stay. Both are as they were, and the folder is gone.
            Ok(Finished::NotBegun) => {
                return Err(conflict("at the last moment something came up that keeps the point"));
            }
            Err(error) => {
                repository.set_aside(vm, &self.plan.successor, alone);
                return Err(error.within("the points are set aside until the next start of the hub, which goes on"));
            }
        }
        let grown = i64::try_from(manifest.file_bytes()).unwrap_or(i64::MAX)
            - i64::try_from(pair.successor.file_bytes()).unwrap_or(i64::MAX);
        repository.capacity().settle(grown);
        drop(reservation);
        let (going, successor) = (&self.plan.going, &self.plan.successor);
        tracing::info!(vm_context_id = %vm, %going, %successor, stays = self.plan.stays, "merged");
        Ok(manifest)
    }

    /// The points that are read, and those that are changed.
    fn points(&self) -> Result<(BTreeSet<BackupId>, BTreeSet<BackupId>)> {
        let MergePlan { going, successor, .. } = self.plan;
        if !self.plan.stays {
            let both = BTreeSet::from([going.clone(), successor.clone()]);
            return Ok((both.clone(), both));
        }
        let changed = BTreeSet::from([successor.clone()]);
        let mut read = changed.clone();
        for disk in &self.plan.disks {
            let chain = self.repository.chain(&self.plan.vm_context_id, successor, *disk)?;
            read.extend(chain.into_iter().map(|link| link.backup_id));
        }
        Ok((read, changed))
    }

    /// Claims the points for itself, holding nothing while it waits.
    fn wait_alone(&self, both: &BTreeSet<BackupId>) -> Result<ChainGuard> {
        let begun = Instant::now();
        loop {
            self.cancel.check()?;
            let vm = &self.plan.vm_context_id;
            match self.repository.lock(Operation::Merge, vm, both.clone(), &self.options.who) {
                Err(error)
                    if matches!(error.kind, Kind::Conflict { .. }) && begun.elapsed() < self.options.patience =>
                {
                    std::thread::sleep(LOOK_AGAIN);
                }
                claimed => return claimed,
            }
        }
    }

    /// The two points, if the plan still holds.
    fn planned(&self, now: Timestamp) -> Result<Pair> {
        let (vm, plan) = (&self.plan.vm_context_id, self.plan);
        let pair = match plan.stays {
            true => self.repository.full_pair(vm, &plan.successor)?,
            false => self.repository.pair(vm, &plan.going, now)?,
        };
        if pair.successor.backup_id != self.plan.successor || pair.disks() != self.plan.disks {
            return Err(conflict("the plan is out of date: make it again"));
        }
        Ok(pair)
    }

    /// A point's manifest as it lies there.
    fn published(&self, point: &BackupId) -> Result<Vec<u8>> {
        let path = layout::manifest(&self.plan.vm_context_id, point);
        crashsafe::read_small(self.repository.root(), &path, MANIFEST_BYTES_MAX)
    }

    /// Step 3.
    fn write_intent(&self, manifest: &Manifest) -> Result<()> {
        let (fs, dir) = (self.repository.fs(), self.dir());
        let intent = Intent {
            successor: self.plan.successor.clone(),
            going: self.plan.going.clone(),
            disks: self.plan.disks.clone(),
            before: intent::digest_of(&self.published(&self.plan.successor)?),
            going_before: intent::digest_of(&self.published(&self.plan.going)?),
            stays: self.plan.stays,
        };
        crashsafe::write_new(fs, &dir.join(layout::MANIFEST_IN_FOLDER), &manifest::write(manifest)?)?;
        crashsafe::sync_dir(fs, &dir)?;
        crashsafe::write_new(fs, &dir.join(layout::INTENT_FILE), &intent.to_bytes())?;
        crashsafe::sync_dir(fs, &dir)
    }

    /// Removes what was prepared, as far as that is possible; start-up does the rest. Touches nothing when another hub has
    /// the repository. An intent that could not be made durable goes first: with it the next start would go forward, which
    /// would be right too, but whoever asked was told that it failed.
    fn give_up(&self, error: &Error, now: Timestamp) {
        // Whatever the error: another hub that has the repository now may merge into the same folder.
        let turn = self.repository.ownership().and_then(|ownership| ownership.turn(now));
        let Ok(turn) = turn else { return };
        if let Err(second) = switch::abandon(self.repository, &self.plan.vm_context_id, &self.plan.successor, &turn) {
            tracing::warn!(
                successor = %self.plan.successor,
                first = %error,
                error = sendense_block::error::chain(&second),
                "what a merge prepared could not be removed; the next start will"
            );
        }
    }
}

fn conflict(why: &str) -> Error {
    Error::new(Kind::Conflict { holders: Vec::new() }, why)
}
