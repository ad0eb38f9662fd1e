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
//! 5. the going point is deleted as any point is, with the disks that its successor has not, on which nothing stands; the intent,
//!    then the folder are removed.
//!
//! Steps 1 and 2 take long and share the points with backups and readers; 3 to 5 take an instant and need them alone. The
//! successor keeps its name, so that no later image has to be rewritten. A process that dies before 3 leaves a folder that
//! start-up removes; one that dies after 3, a merge that start-up finishes.
//!
//! A **synthetic full** is the same with one difference: the successor gets the blocks of all that it stands on, stands on
//! nothing afterwards, and no point goes.
//!
//! Where several points stand on the one that goes, for one of them has a disk that was not there in between, each but one gets a
//! **copy** of what it needs: a merge after which the going point stays for the others, and this one stands on what that stood on.
//!
//! ```text
//!   before   going --disk 0-- next --disk 0-- last        after the copy   going --disk 0-- next --disk 0-- last
//!                 `------------disk 1-----------'         after the merge             next --disk 0-- last
//! ```
//!
//! What lives here: the order of the steps. [`plan`] says what is done, [`prepare`] is steps 1 and 2: [`patch`] begins an image as a copy, [`copying`] makes it,
//! [`blocks`] moves blocks into it. [`switch`] is steps 4 and 5.
//!
//! Invariant: no file of the two points is touched before all that was written of the new ones was read back and found right.

mod blocks;
mod clusters;
mod copying;
mod intent;
mod patch;
mod plan;
mod prepare;
mod switch;

pub(crate) use intent::Intent;
#[doc(hidden)]
pub use intent::parse as parse_intent;
pub use patch::Way;
pub use plan::{Aim, MergePlan};
use prepare::Preparing;
pub(crate) use switch::{Finished, finish, may_have_begun, points_of};

use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::lock::{ChainGuard, Operation};
use crate::manifest::{self, MANIFEST_BYTES_MAX, Manifest};
use crate::repository::Repository;
use crate::verify::Progress;
#[cfg(test)]
pub(crate) use intent::read as read_intent;
use sendense_block::Cancel;
use sendense_types::{BackupId, Timestamp};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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

impl Repository {
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
        let (going, successor) = (&plan.going, &plan.successor);
        let context = match plan.aim {
            Aim::Merge => format!("merge {going} into {successor}"),
            Aim::Copy => format!("copy what {successor} needs of {going}"),
            Aim::Full => format!("make {successor} a full"),
        };
        let within = |error: Error| error.within(context.clone());
        let merge = Merge { repository: self, plan, options, progress, cancel, refuse: &refuse };
        merge.run(&now).map_err(within)
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
            if (self.plan.aim != Aim::Full && again.going != pair.going) || again.successor != pair.successor {
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
        tracing::info!(vm_context_id = %vm, %going, %successor, aim = ?self.plan.aim, "merged");
        Ok(manifest)
    }

    /// The points that are read, and those that are changed.
    fn points(&self) -> Result<(BTreeSet<BackupId>, BTreeSet<BackupId>)> {
        let MergePlan { going, successor, .. } = self.plan;
        if self.plan.aim != Aim::Full {
            // Of a copy, too: what the going point stands on is to stay what it is.
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
            stays: self.plan.aim != Aim::Merge,
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
