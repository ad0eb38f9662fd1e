//! A repository that was opened: its folder, the right to write to it, its locks and its room.
//!
//! What lives here: opening, and what every verb needs. The verbs have their own files. What does not: SQL, HTTP,
//! hypervisors, and the time, which is passed in as `now`.
//!
//! Invariant: nothing is written through a repository that was opened read-only, and nothing is published or deleted
//! without the owner record having been checked just before.

use crate::capacity::{Bounds, Capacity, Count, Storage};
use crate::crashsafe::{self, Fs, Kindred, System};
use crate::error::{Error, Kind, Result};
use crate::layout::{self, VmEntry};
use crate::lock::{ChainGuard, ChainLocks, Claim as LockClaim, Operation};
use crate::moving;
use crate::owner::{self, Ownership};
use crate::spare;
use parking_lot::Mutex;
use sendense_types::{BackupId, Timestamp, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a merge may take for the change of names and the removal of large files before one who waits gives up. Not in
/// tests, which hold such claims by hand.
const MERGE_WAIT: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(30) };

/// How long files are counted before the repository is open: a quarter of what the hub gives the opening. A share that answers
/// slowly, or holds many, is opened all the same, and counted by [`Repository::recover`].
const COUNT_TIME: Duration = Duration::from_secs(5);

/// How a repository is opened for writing.
#[derive(Debug, Clone)]
pub struct Options {
    /// As whom.
    pub claim: owner::Claim,
    /// What the operator allows it to hold; `None` for all that the file system has.
    pub limit_bytes: Option<u64>,
    /// What is left alone of the file system; `None` for the usual part (see [`Bounds`]).
    pub floor_bytes: Option<u64>,
    /// Whether a folder that is no repository yet becomes one.
    pub create: Create,
}

/// Whether a folder that is no repository yet becomes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// No: opening fails with [`Kind::NotFound`].
    Never,
    /// Yes, if it does not exist, is empty, or holds points whose owner record was lost.
    IfMissing,
}

/// An open repository. Cheap to clone; clones are one repository.
#[derive(Clone)]
pub struct Repository(Arc<Inner>);

struct Inner {
    root: PathBuf,
    fs: Arc<dyn Fs>,
    ownership: Option<Ownership>,
    locks: ChainLocks,
    capacity: Capacity,
    holds_turn: Mutex<()>,
    /// The points into which this process merges others now.
    merging: Mutex<BTreeSet<(VmContextId, BackupId)>>,
    /// Claims on points that lie between two states, by the point that others were to be merged into: kept until that is done.
    set_aside: Mutex<BTreeMap<(VmContextId, BackupId), ChainGuard>>,
}

/// Says that a merge into a point is under way, until it is dropped.
pub(crate) struct MergeMark(Repository, (VmContextId, BackupId));

impl Drop for MergeMark {
    fn drop(&mut self) {
        self.0.0.merging.lock().remove(&self.1);
    }
}

impl Repository {
    /// Opens a repository for writing and takes it (see [`crate::owner`]). Call [`Repository::recover`] before anything is
    /// begun in it. With a limit, what its files hold is counted; where that takes long, what was met until then counts as
    /// held, and [`Repository::recover`] counts the rest.
    ///
    /// # Errors
    /// [`Kind::Owned`] when another may be at work in it, [`Kind::NotFound`] when it is none.
    pub fn open(path: &Path, options: Options, now: Timestamp) -> Result<Self> {
        Self::open_on(Arc::new(System), path, options, now)
    }

    /// The same on a file system that plays a script, for tests of other crates.
    #[cfg(feature = "faults")]
    #[doc(hidden)]
    pub fn open_scripted(
        script: Arc<dyn crate::testing::stage::Script>,
        path: &Path,
        options: Options,
        now: Timestamp,
    ) -> Result<Self> {
        use crate::testing::stage::{Renames, Stage};
        Self::open_on(Stage::new(script, Renames::AtOnce), path, options, now)
    }

    /// The same on a given file system, for tests that watch or break it.
    pub(crate) fn open_on(fs: Arc<dyn Fs>, path: &Path, options: Options, now: Timestamp) -> Result<Self> {
        Self::open_counting(fs, path, options, COUNT_TIME, now)
    }

    /// The same with other time to count files in.
    pub(crate) fn open_counting(
        fs: Arc<dyn Fs>,
        path: &Path,
        options: Options,
        count_time: Duration,
        now: Timestamp,
    ) -> Result<Self> {
        let within = |error: Error| error.within(format!("open the repository {}", path.display()));
        prepare(&*fs, path, options.create).map_err(within)?;
        let ownership = Ownership::take(path, fs.clone(), options.claim, now).map_err(within)?;
        spare::keep(&*fs, path);
        let bounds = Bounds { limit_bytes: options.limit_bytes, floor_bytes: options.floor_bytes };
        let held = match bounds.limit_bytes {
            Some(_) => count_files(path, Some(Instant::now() + count_time)).map_err(within)?,
            None => Count { held_bytes: 0, is_exact: true },
        };
        if !held.is_exact {
            tracing::info!(repository = %path.display(), "it takes long to count its files: opened before that is done");
        }
        Ok(Self(Arc::new(Inner {
            root: path.to_owned(),
            fs,
            ownership: Some(ownership),
            locks: ChainLocks::default(),
            capacity: Capacity::new(path, bounds, held),
            holds_turn: Mutex::new(()),
            merging: Mutex::default(),
            set_aside: Mutex::default(),
        })))
    }

    /// Opens a repository for reading: on a read-only mount, beside a working hub, or when there is no hub at all.
    /// Writes nothing and needs no owner record.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        crashsafe::entries(path).map_err(|error| error.within("open the repository"))?;
        Ok(Self(Arc::new(Inner {
            root: path.to_owned(),
            fs: Arc::new(System),
            ownership: None,
            locks: ChainLocks::default(),
            capacity: Capacity::new(path, Bounds::default(), Count { held_bytes: 0, is_exact: true }),
            holds_turn: Mutex::new(()),
            merging: Mutex::default(),
            set_aside: Mutex::default(),
        })))
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// The lock table.
    pub fn locks(&self) -> &ChainLocks {
        &self.0.locks
    }

    /// The room it has.
    pub fn storage(&self) -> Result<Storage> {
        self.0.capacity.storage()
    }

    /// What may still be written, whether or not it was promised to somebody. What is promised is more than what is needed in the
    /// end as a rule, so this says how full the repository is, and [`Repository::storage`] what may begin.
    pub fn unwritten_bytes(&self) -> Result<u64> {
        self.0.capacity.unwritten_bytes()
    }

    /// What may be written.
    pub fn bounds(&self) -> Bounds {
        self.0.capacity.bounds()
    }

    /// Sets other bounds for what is written from now on. False when a first limit has to wait: somebody adds or removes files at
    /// this moment, and what they take is not known.
    pub fn set_bounds(&self, bounds: Bounds) -> Result<bool> {
        self.0.capacity.set_bounds(bounds, || {
            let found = self.count(false)?;
            Ok(found.filter(|found| found.is_exact).map(|found| found.held_bytes))
        })
    }

    /// Extends the lease. The hub calls it at a third of the lease's length; [`Kind::Fenced`] means: stop using this
    /// repository, another has it.
    pub fn renew(&self, now: Timestamp) -> Result<()> {
        self.ownership()?.renew(now)
    }

    /// Gives the lease back, so that another hub need not wait for its end. Nothing may be written through this repository
    /// afterwards; what is tried is refused when the lease was taken meanwhile.
    pub fn release(&self, now: Timestamp) -> Result<()> {
        self.ownership()?.release(now)
    }

    /// How many times the repository was taken, ours included.
    pub fn epoch(&self) -> Result<u64> {
        Ok(self.ownership()?.epoch())
    }

    pub(crate) fn ownership(&self) -> Result<&Ownership> {
        self.0.ownership.as_ref().ok_or_else(|| Error::new(Kind::Denied, "the repository is open for reading only"))
    }

    /// Fails unless the folder still is the repository that was opened. A file that is not found says nothing before: where a
    /// file system went away, an empty folder is left, or one in which nothing can be read.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]; [`Kind::Fenced`] when another has the repository.
    pub(crate) fn check_present(&self) -> Result<()> {
        let away =
            || Error::new(Kind::Unavailable, format!("{} is not the repository any more", self.root().display()));
        match (owner::read(self.root()), &self.0.ownership) {
            (Err(error), _) => Err(away().caused_by(error)),
            (Ok(record @ Some(_)), Some(ownership)) => ownership.check_record(&record),
            (Ok(None), Some(_)) => Err(away().caused_by(Error::new(Kind::NotFound, "the owner record is gone"))),
            (Ok(Some(_)), None) => Ok(()),
            // One that is only read needs no record, but it was a folder with something in it.
            (Ok(None), None) => match crashsafe::entries(self.root()) {
                Ok(entries) if !entries.is_empty() => Ok(()),
                Ok(_) => Err(away().caused_by(Error::new(Kind::NotFound, "the folder is empty"))),
                Err(error) => Err(away().caused_by(error)),
            },
        }
    }

    pub(crate) fn fs(&self) -> &dyn Fs {
        &*self.0.fs
    }

    /// Does something that must be possible on a full file system too: see [`spare::with`].
    pub(crate) fn with_spare<T>(&self, work: impl FnMut() -> Result<T>) -> Result<T> {
        spare::with(self.fs(), self.root(), work)
    }

    /// Makes the spare room whole again, as far as there is room.
    pub(crate) fn keep_spare(&self) {
        spare::keep(self.fs(), self.root());
    }

    pub(crate) fn capacity(&self) -> &Capacity {
        &self.0.capacity
    }

    /// Notes that points are merged into this one. [`Kind::Conflict`] when that is so already.
    pub(crate) fn mark_merging(&self, vm: &VmContextId, successor: &BackupId) -> Result<MergeMark> {
        let key = (vm.clone(), successor.clone());
        if !self.0.merging.lock().insert(key.clone()) {
            let context = format!("a merge into {successor} is under way");
            return Err(Error::new(Kind::Conflict { holders: Vec::new() }, context));
        }
        Ok(MergeMark(self.clone(), key))
    }

    /// True while this process merges others into this point.
    pub(crate) fn is_merging(&self, vm: &VmContextId, successor: &BackupId) -> bool {
        self.0.merging.lock().contains(&(vm.clone(), successor.clone()))
    }

    /// Keeps a claim on points that a merge could not set right, so that nobody touches them before a later look does.
    pub(crate) fn set_aside(&self, vm: &VmContextId, successor: &BackupId, guard: ChainGuard) {
        self.0.set_aside.lock().insert((vm.clone(), successor.clone()), guard);
    }

    /// The claim that was kept, for whoever goes on with that merge.
    pub(crate) fn take_up(&self, vm: &VmContextId, successor: &BackupId) -> Option<ChainGuard> {
        self.0.set_aside.lock().remove(&(vm.clone(), successor.clone()))
    }

    /// Whose turn it is to change a hold: one at a time, for all points.
    pub(crate) fn holds_turn(&self) -> &Mutex<()> {
        &self.0.holds_turn
    }

    /// Counts anew what the files take, unless somebody adds or removes some now and keeps the count himself. Nobody waits for it.
    pub(crate) fn recount(&self) -> Result<()> {
        self.0.capacity.recount(|is_at_least| self.count(is_at_least))
    }

    /// What the files take; nothing while somebody adds or removes some, unless a lower bound is good as well.
    fn count(&self, at_least: bool) -> Result<Option<Count>> {
        let still = self.0.locks.stillness();
        if still.is_none() && !at_least {
            return Ok(None);
        }
        let found = count_files(&self.0.root, None)?;
        let is_exact = found.is_exact && still.is_some() && self.0.locks.stillness() == still;
        Ok(Some(Count { is_exact, ..found }))
    }

    /// The absolute path of something in it.
    pub(crate) fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.root.join(relative)
    }

    pub(crate) fn lock(
        &self,
        operation: Operation,
        vm: &VmContextId,
        points: BTreeSet<BackupId>,
        who: &str,
    ) -> Result<ChainGuard> {
        let claim = LockClaim { operation, vm: vm.clone(), points, who: who.to_owned() };
        let changes = matches!(operation, Operation::Backup | Operation::Delete | Operation::Merge);
        if changes {
            self.refuse_moving(vm)?;
        }
        let guard = match operation {
            // No backup fails and no restore is refused because names change at this moment.
            Operation::Backup | Operation::Read | Operation::Verify => {
                self.0.locks.acquire_patiently(claim, MERGE_WAIT)
            }
            Operation::Delete | Operation::Merge | Operation::Copy | Operation::Move => self.0.locks.acquire(claim),
        }?;
        if changes {
            // A move may have come and gone meanwhile.
            self.refuse_moving(vm)?;
        }
        Ok(guard)
    }

    /// Fails while points of a VM are between two repositories, also when whoever moved them has died: which repository has them is
    /// settled before anything else is done to them. Reading is right all the while.
    pub(crate) fn refuse_moving(&self, vm: &VmContextId) -> Result<()> {
        let (come, gone) = (layout::move_in_dir(vm), layout::move_out_dir(vm));
        for dir in [&come, &gone] {
            let path = self.at(dir);
            match path.symlink_metadata() {
                Ok(_) if *dir == come && moving::has_arrived(self, vm)? => {}
                Ok(_) => {
                    let context =
                        format!("the points of {vm} are being moved to another repository, or a move was cut off");
                    return Err(Error::new(Kind::Conflict { holders: Vec::new() }, context));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(crashsafe::failed("stat", &path, error)),
            }
        }
        Ok(())
    }

    /// The VMs that have a folder, sorted.
    pub fn vms(&self) -> Result<Vec<VmContextId>> {
        let mut vms = Vec::new();
        for (name, kind) in crashsafe::entries(&self.0.root)? {
            if let (Kindred::Directory, Some(Ok(vm))) = (kind, name.to_str().map(str::parse)) {
                vms.push(vm);
            }
        }
        Ok(vms)
    }

    /// What lies in a VM's folder; nothing when it has none.
    pub(crate) fn vm_entries(&self, vm: &VmContextId) -> Result<Vec<(PathBuf, VmEntry, Kindred)>> {
        let dir = layout::vm_dir(vm);
        let entries = match crashsafe::entries(&self.at(&dir)) {
            Ok(entries) => entries,
            Err(error) if error.kind == Kind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(entries
            .into_iter()
            .map(|(name, kind)| {
                let entry = match (layout::parse_vm_entry(&name), kind) {
                    (entry @ (VmEntry::Manifest(_) | VmEntry::Hold(_) | VmEntry::HoldHalf(_)), Kindred::File)
                    | (
                        entry @ (VmEntry::Disk(_)
                        | VmEntry::Draft(_)
                        | VmEntry::Delete(_)
                        | VmEntry::Merge(_)
                        | VmEntry::MoveIn
                        | VmEntry::MoveOut),
                        Kindred::Directory,
                    ) => entry,
                    _ => VmEntry::Stranger,
                };
                (dir.join(name), entry, kind)
            })
            .collect())
    }
}

/// Makes sure that there is a folder that is, or may become, a repository.
fn prepare(fs: &dyn Fs, path: &Path, create: Create) -> Result<()> {
    let missing = || Err(Error::new(Kind::NotFound, format!("{} is not a repository", path.display())));
    if create == Create::Never {
        return if owner::read(path)?.is_some() { Ok(()) } else { missing() };
    }
    match crashsafe::entries(path) {
        Err(error) if error.kind == Kind::NotFound => {
            crashsafe::ensure_dir(fs, path)?;
            Ok(())
        }
        Err(error) => Err(error),
        Ok(entries) => {
            let is_ours = |name: &std::ffi::OsStr| {
                name.to_str().is_some_and(|name| name.starts_with(layout::OWNER_FILE) || layout::OWN.contains(&name))
            };
            // A file system's own folder for lost files does not make it somebody's.
            let others: Vec<_> = entries.iter().filter(|(name, _)| !is_ours(name) && name != "lost+found").collect();
            if others.is_empty() || owner::read(path)?.is_some() {
                return Ok(());
            }
            let reader = Repository::open_read_only(path)?;
            for vm in reader.vms()? {
                if reader.vm_entries(&vm)?.iter().any(|(_, entry, _)| matches!(entry, VmEntry::Manifest(_))) {
                    return Ok(());
                }
            }
            Err(Error::invalid(format!("{} is not empty and not a repository", path.display())))
        }
    }
}

/// What the files of a repository take on the file system, as far as there is time to look.
fn count_files(root: &Path, until: Option<Instant>) -> Result<Count> {
    let mut held_bytes = 0u64;
    let mut folders = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match crashsafe::entries(&folder) {
            // It went since its name was read: others are at work.
            Err(error) if error.kind == Kind::NotFound && depth > 0 => continue,
            entries => entries?,
        };
        for (name, kind) in entries {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Count { held_bytes, is_exact: false });
            }
            if depth == 0 && name == layout::SPARE_FILE {
                continue;
            }
            let path = folder.join(name);
            match kind {
                // <repository>/<vm>/<disk>/<file>: nothing of ours lies deeper.
                Kindred::Directory if depth < 2 => folders.push((path, depth + 1)),
                Kindred::File => match path.symlink_metadata() {
                    Ok(metadata) => held_bytes = held_bytes.saturating_add(metadata.blocks().saturating_mul(512)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(crashsafe::failed("stat", &path, error)),
                },
                _ => {}
            }
        }
    }
    Ok(Count { held_bytes, is_exact: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{claim, now};

    fn options(create: Create) -> Options {
        Options { claim: claim(), limit_bytes: None, floor_bytes: None, create }
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let open = |path: &Path, create| Repository::open(path, options(create), now()).map(drop);
        assert_eq!(open(dir.path(), Create::IfMissing).unwrap_err().kind, Kind::Invalid);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "it was left alone");
        let fresh = dir.path().join("repo");
        assert_eq!(open(&fresh, Create::Never).unwrap_err().kind, Kind::NotFound);
        open(&fresh, Create::IfMissing).unwrap();
        open(&fresh, Create::Never).unwrap();
    }

    #[test]
    fn reading_needs_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let reader = Repository::open_read_only(dir.path()).unwrap();
        assert_eq!(reader.vms().unwrap(), []);
        assert_eq!(reader.renew(now()).unwrap_err().kind, Kind::Denied);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(Repository::open_read_only(&dir.path().join("none")).err().unwrap().kind, Kind::NotFound);
    }
}
