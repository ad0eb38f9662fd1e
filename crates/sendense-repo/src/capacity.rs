//! Room: what the file system has, what the operator allows, and what running backups have been promised.
//!
//! Invariant: promises add up. A backup is refused before its first byte when what is free, less what others were promised
//! and have not written yet, is less than it asks for.

use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is left alone of the file system at the least: room for manifests, journals and deletions (which write a little before
/// they free much). 64 MiB is the bound of one manifest.
const RESERVE_BYTES: u64 = 64 << 20;
/// The most that is left alone where nobody says how much. A hundredth keeps file systems from the state in which they become
/// slow and cannot delete; of very large ones 10 GiB are as good.
const RESERVE_BYTES_MAX: u64 = 10 << 30;
const RESERVE_PART: u64 = 100;
/// By how much a promise that was too small grows at a time: large enough that asking the file system does not show.
const STEP_BYTES: u64 = 64 << 20;

/// The room of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// All of it: the file system's size, or the limit if that is less.
    pub total_bytes: u64,
    /// What published points hold (allocated bytes), or what others hold on the same file system. At the least, while the files
    /// are still being counted.
    pub used_bytes: u64,
    /// What new points may still write, promises to running backups deducted.
    pub available_bytes: u64,
}

/// What the operator allows a repository to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// What its files may hold; `None` for all that the file system has.
    pub limit_bytes: Option<u64>,
    /// What is left alone of the file system; `None` for a hundredth of it, between 64 MiB and 10 GiB. Never less than 64 MiB.
    pub floor_bytes: Option<u64>,
}

impl Bounds {
    fn floor_bytes(&self, file_system: &FileSystem) -> u64 {
        let usual = (file_system.total_bytes / RESERVE_PART).min(RESERVE_BYTES_MAX);
        self.floor_bytes.unwrap_or(usual).max(RESERVE_BYTES)
    }
}

/// What a walk through the files found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub held_bytes: u64,
    /// Every file was met, and nobody added or removed any meanwhile.
    pub is_exact: bool,
}

/// Keeps the promises. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Capacity {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    bounds: Bounds,
    /// Promised and not yet written.
    promised_bytes: u64,
    /// What this repository's files hold; kept only for the limit.
    held_bytes: u64,
    /// They hold more perhaps: not all were met yet.
    is_at_least: bool,
    /// How often what they hold changed, so that a count in which it did is known. Files are counted while nobody holds this lock:
    /// it is taken for sums only, and whoever asks for the bounds waits for no file system.
    changes: u64,
}

impl State {
    fn change(&mut self, held_bytes: u64) {
        self.held_bytes = held_bytes;
        self.changes += 1;
    }

    fn available(&self, file_system: &FileSystem) -> u64 {
        self.unwritten(file_system).saturating_sub(self.promised_bytes)
    }

    /// What may still be written, by whoever it was promised to.
    fn unwritten(&self, file_system: &FileSystem) -> u64 {
        let floor_bytes = self.bounds.floor_bytes(file_system);
        let free = file_system.available_bytes.saturating_sub(floor_bytes);
        match self.bounds.limit_bytes {
            None => free,
            Some(limit) => free.min(limit.saturating_sub(self.held_bytes)),
        }
    }
}

impl Capacity {
    /// The capacity of a folder whose files hold so much now; at the least, if the count is not exact.
    pub(crate) fn new(root: &Path, bounds: Bounds, held: Count) -> Self {
        let state = State { bounds, held_bytes: held.held_bytes, is_at_least: !held.is_exact, ..State::default() };
        Self { root: root.to_owned(), state: Arc::new(Mutex::new(state)) }
    }

    /// The bounds that hold now.
    pub(crate) fn bounds(&self) -> Bounds {
        self.state.lock().bounds
    }

    /// Sets other bounds. What was promised stays promised. A first limit needs to know what the files hold: `count` says so, or
    /// `None` when it cannot be known now; then nothing is changed, and false is returned. As much when somebody wrote meanwhile.
    pub(crate) fn set_bounds(&self, bounds: Bounds, count: impl FnOnce() -> Result<Option<u64>>) -> Result<bool> {
        let changes = {
            let mut state = self.state.lock();
            if bounds.limit_bytes.is_none() || state.bounds.limit_bytes.is_some() {
                state.bounds = bounds;
                return Ok(true);
            }
            state.changes
        };
        let Some(held_bytes) = count()? else { return Ok(false) };
        let mut state = self.state.lock();
        if state.changes != changes {
            return Ok(false);
        }
        state.change(held_bytes);
        (state.bounds, state.is_at_least) = (bounds, false);
        Ok(true)
    }

    /// The room as it is now.
    pub(crate) fn storage(&self) -> Result<Storage> {
        let free = file_system(&self.root)?;
        let state = self.state.lock();
        let available_bytes = state.available(&free);
        let (total_bytes, used_bytes) = match state.bounds.limit_bytes {
            Some(limit) if limit < free.total_bytes => (limit, state.held_bytes),
            _ => (free.total_bytes, free.total_bytes - free.free_bytes),
        };
        Ok(Storage { total_bytes, used_bytes, available_bytes })
    }

    /// What may still be written, promises not deducted.
    pub(crate) fn unwritten_bytes(&self) -> Result<u64> {
        let free = file_system(&self.root)?;
        Ok(self.state.lock().unwritten(&free))
    }

    /// Promises room, or refuses with [`Kind::NoSpace`].
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reservation> {
        let reservation = Reservation { capacity: self.clone(), left: Mutex::new(Left::default()) };
        self.promise(bytes)?;
        reservation.left.lock().promised_bytes = bytes;
        Ok(reservation)
    }

    /// Published files take (positive) or deleted ones give back (negative) room under the limit.
    pub(crate) fn settle(&self, bytes: i64) {
        let mut state = self.state.lock();
        let held_bytes = state.held_bytes.saturating_add_signed(bytes);
        state.change(held_bytes);
    }

    /// Counts anew what the files hold. Where somebody adds or removes some meanwhile, all stays as it is, unless what is known is
    /// only what they hold at the least: then a count that was disturbed may still show that it is more. `count` is told
    /// whether that is so.
    pub(crate) fn recount(&self, count: impl FnOnce(bool) -> Result<Option<Count>>) -> Result<()> {
        let (changes, is_at_least) = {
            let state = self.state.lock();
            if state.bounds.limit_bytes.is_none() {
                return Ok(());
            }
            (state.changes, state.is_at_least)
        };
        let Some(found) = count(is_at_least)? else { return Ok(()) };
        let mut state = self.state.lock();
        if found.is_exact && state.changes == changes {
            state.change(found.held_bytes);
            state.is_at_least = false;
        } else if state.is_at_least {
            let held_bytes = state.held_bytes.max(found.held_bytes);
            state.change(held_bytes);
        }
        Ok(())
    }

    fn promise(&self, bytes: u64) -> Result<()> {
        let free = file_system(&self.root)?;
        let mut state = self.state.lock();
        let available_bytes = state.available(&free);
        if bytes > available_bytes {
            let context = format!("reserve {bytes} bytes: {available_bytes} are available");
            return Err(Error::new(Kind::NoSpace, context));
        }
        state.promised_bytes += bytes;
        Ok(())
    }

    /// Promises so much of it as there is room; says how much that is.
    fn promise_up_to(&self, bytes: u64) -> Result<u64> {
        let free = file_system(&self.root)?;
        let mut state = self.state.lock();
        let promised = bytes.min(state.available(&free));
        state.promised_bytes += promised;
        Ok(promised)
    }
}

/// Room promised to one backup. What was written is deducted; what is left is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    capacity: Capacity,
    left: Mutex<Left>,
}

#[derive(Debug, Default)]
struct Left {
    /// Promised and not yet written.
    promised_bytes: u64,
    /// Written, and held under the limit until publication or abandonment.
    written_bytes: u64,
    /// Nothing may be written any more.
    closed: bool,
}

impl Reservation {
    /// Promises what the backup may become, all told, as far as there is room; what is missing is returned. Others then find
    /// only what is left. This one goes on: nobody knows yet how far its data shrinks.
    pub(crate) fn expect(&self, bytes: u64) -> Result<u64> {
        let mut left = self.left.lock();
        if left.closed {
            return Ok(0);
        }
        let more = bytes.saturating_sub(left.promised_bytes.saturating_add(left.written_bytes));
        let promised = self.capacity.promise_up_to(more)?;
        left.promised_bytes += promised;
        Ok(more - promised)
    }

    /// Promises more, all of it or nothing: [`Kind::NoSpace`].
    pub(crate) fn grow(&self, bytes: u64) -> Result<()> {
        let mut left = self.left.lock();
        self.capacity.promise(bytes)?;
        left.promised_bytes += bytes;
        Ok(())
    }

    /// Gives everything back. Whoever still comes to write is refused.
    pub(crate) fn close(&self) {
        let mut left = self.left.lock();
        let given = std::mem::replace(&mut *left, Left { closed: true, ..Left::default() });
        // What was written is either published (and then settled with its true size) or removed: not held by us.
        let mut state = self.capacity.state.lock();
        state.promised_bytes = state.promised_bytes.saturating_sub(given.promised_bytes);
        let held_bytes = state.held_bytes.saturating_sub(given.written_bytes);
        state.change(held_bytes);
    }

    /// So much was written by an earlier life of the draft: it is counted with the repository's files already, and given back
    /// with the rest.
    pub(crate) fn resumed(&self, bytes: u64) {
        let mut left = self.left.lock();
        if !left.closed {
            left.written_bytes = left.written_bytes.saturating_add(bytes);
        }
    }

    /// Counts bytes that are about to be written. Grows the promise when it was too small, if there is room.
    pub(crate) fn spend(&self, bytes: u64) -> Result<()> {
        let mut left = self.left.lock();
        if left.closed {
            return Err(Error::new(Kind::Cancelled, "the draft was taken back"));
        }
        if bytes > left.promised_bytes {
            let missing = bytes - left.promised_bytes;
            let step = missing.max(STEP_BYTES);
            // Near the end of the room a whole step may not be there although the bytes are.
            let grown = match self.capacity.promise(step) {
                Ok(()) => step,
                Err(error) if error.kind == Kind::NoSpace => self.capacity.promise(missing).map(|()| missing)?,
                Err(error) => return Err(error),
            };
            left.promised_bytes += grown;
        }
        left.promised_bytes -= bytes;
        left.written_bytes += bytes;
        let mut state = self.capacity.state.lock();
        state.promised_bytes = state.promised_bytes.saturating_sub(bytes);
        let held_bytes = state.held_bytes.saturating_add(bytes);
        state.change(held_bytes);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.close();
    }
}

struct FileSystem {
    total_bytes: u64,
    free_bytes: u64,
    available_bytes: u64,
}

fn file_system(root: &Path) -> Result<FileSystem> {
    let stat = rustix::fs::statvfs(root)
        .map_err(|errno| Error::io(format!("ask for the room of {}", root.display()), errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let total_bytes = bytes(stat.f_blocks);
    Ok(FileSystem {
        total_bytes,
        free_bytes: bytes(stat.f_bfree).min(total_bytes),
        available_bytes: bytes(stat.f_bavail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_expected_is_kept_from_others_as_far_as_there_is_room() {
        let (_dir, capacity) = limited(100, 0);
        let first = capacity.reserve(10 * MIB).unwrap();
        first.spend(10 * MIB).unwrap();
        assert_eq!(first.expect(60 * MIB).unwrap(), 0);
        assert_eq!(capacity.storage().unwrap().available_bytes, 40 * MIB);
        // Less than before changes nothing, and the same again neither.
        assert_eq!(first.expect(MIB).unwrap(), 0);
        assert_eq!(first.expect(60 * MIB).unwrap(), 0);
        let second = capacity.reserve(0).unwrap();
        assert_eq!(second.expect(50 * MIB).unwrap(), 10 * MIB);
        // All is promised, and most of it not written: nobody has to hurry to buy disks.
        assert_eq!(capacity.storage().unwrap().available_bytes, 0);
        assert_eq!(capacity.unwritten_bytes().unwrap(), 90 * MIB);
        assert_eq!(capacity.reserve(MIB).unwrap_err().kind, Kind::NoSpace);
        drop((first, second));
        assert_eq!(capacity.storage().unwrap().available_bytes, 100 * MIB);
    }

    fn exact(held_mib: u64) -> Count {
        Count { held_bytes: held_mib * MIB, is_exact: true }
    }

    fn limited(limit_mib: u64, held_mib: u64) -> (tempfile::TempDir, Capacity) {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { limit_bytes: Some(limit_mib * MIB), floor_bytes: None };
        let capacity = Capacity::new(dir.path(), bounds, exact(held_mib));
        (dir, capacity)
    }

    #[test]
    fn promises_add_up_and_are_given_back() {
        let (_dir, capacity) = limited(100, 10);
        let first = capacity.reserve(50 * MIB).unwrap();
        assert_eq!(capacity.reserve(50 * MIB).unwrap_err().kind, Kind::NoSpace);
        let second = capacity.reserve(40 * MIB).unwrap();
        assert_eq!(capacity.storage().unwrap().available_bytes, 0);
        drop((first, second));
        assert_eq!(
            capacity.storage().unwrap(),
            Storage { total_bytes: 100 * MIB, used_bytes: 10 * MIB, available_bytes: 90 * MIB }
        );
    }

    #[test]
    fn what_is_written_is_counted_once() {
        let (_dir, capacity) = limited(100, 0);
        let reservation = capacity.reserve(60 * MIB).unwrap();
        reservation.spend(60 * MIB).unwrap();
        assert_eq!(capacity.storage().unwrap().available_bytes, 40 * MIB);
        // The promise was too small: it grows while there is room, and not beyond.
        reservation.spend(30 * MIB).unwrap();
        assert_eq!(reservation.spend(11 * MIB).unwrap_err().kind, Kind::NoSpace);
        reservation.spend(10 * MIB).unwrap();
        drop(reservation);
        assert_eq!(capacity.storage().unwrap().available_bytes, 100 * MIB);
        capacity.settle(5 << 20);
        assert_eq!(capacity.storage().unwrap().used_bytes, 5 * MIB);
    }

    #[test]
    fn more_than_the_file_system_has_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let capacity = Capacity::new(dir.path(), Bounds::default(), exact(0));
        assert_eq!(capacity.reserve(u64::MAX / 2).unwrap_err().kind, Kind::NoSpace);
        let storage = capacity.storage().unwrap();
        assert!(storage.used_bytes + storage.available_bytes <= storage.total_bytes);
    }

    #[test]
    fn the_floor_is_kept_free_of_whatever_size_the_file_system_is() {
        let of = |total_gib: u64, available_gib: u64| FileSystem {
            total_bytes: total_gib << 30,
            free_bytes: available_gib << 30,
            available_bytes: available_gib << 30,
        };
        for (name, file_system, floor_bytes, expected) in [
            ("a hundredth", of(500, 100), None, (100 << 30) - 5 * (1 << 30)),
            ("no more than 10 GiB", of(50_000, 100), None, 90 << 30),
            ("no less than 64 MiB", of(1, 1), None, (1 << 30) - RESERVE_BYTES),
            ("as is asked for", of(500, 100), Some(70 << 30), 30 << 30),
            ("none is asked for", of(500, 100), Some(0), (100 << 30) - RESERVE_BYTES),
            ("more than there is", of(500, 100), Some(200 << 30), 0),
        ] {
            let bounds = Bounds { limit_bytes: None, floor_bytes };
            let state = State { bounds, ..State::default() };
            assert_eq!(state.available(&file_system), expected, "{name}");
        }
    }

    #[test]
    fn bounds_are_changed_while_promises_are_out() {
        let (_dir, capacity) = limited(100, 10);
        let set = |limit_mib: Option<u64>, floor_bytes| {
            let limit_bytes = limit_mib.map(|mib| mib * MIB);
            assert!(capacity.set_bounds(Bounds { limit_bytes, floor_bytes }, || unreachable!("it is known")).unwrap());
        };
        let promise = capacity.reserve(50 * MIB).unwrap();
        set(Some(70), None);
        assert_eq!(capacity.storage().unwrap().available_bytes, 10 * MIB);
        set(Some(20), None);
        assert_eq!(capacity.reserve(1).unwrap_err().kind, Kind::NoSpace);
        // What was promised may still be written.
        promise.spend(50 * MIB).unwrap();
        assert_eq!(promise.spend(1).unwrap_err().kind, Kind::NoSpace);
        set(None, Some(u64::MAX));
        assert_eq!(capacity.storage().unwrap().available_bytes, 0);
        // A first limit waits until it is known what the files hold.
        let limit = Bounds { limit_bytes: Some(100 * MIB), floor_bytes: None };
        assert!(!capacity.set_bounds(limit, || Ok(None)).unwrap());
        assert_eq!(capacity.bounds().limit_bytes, None);
        assert!(capacity.set_bounds(limit, || Ok(Some(70 * MIB))).unwrap());
        assert_eq!(capacity.storage().unwrap().available_bytes, 30 * MIB);
    }

    /// Counting takes as long as it takes: whoever asks, promises and writes meanwhile waits for none of it.
    #[test]
    fn nobody_waits_for_a_count_and_one_that_was_disturbed_is_not_taken() {
        let (_dir, capacity) = limited(100, 10);
        let promise = capacity.reserve(20 * MIB).unwrap();
        let used = || capacity.storage().unwrap().used_bytes;
        // Before the lock was given up for the count, any of these stood still for ever.
        let disturbed = |_: bool| {
            assert!(capacity.state.try_lock().is_some(), "whoever renews a lease asks for the bounds");
            promise.spend(5 * MIB).unwrap();
            Ok(Some(exact(77)))
        };
        capacity.recount(disturbed).unwrap();
        assert_eq!(used(), 15 * MIB);
        capacity.recount(|_| Ok(Some(Count { is_exact: false, ..exact(77) }))).unwrap();
        assert_eq!(used(), 15 * MIB, "somebody added or removed files");
        capacity.recount(|_| Ok(Some(exact(14)))).unwrap();
        assert_eq!(used(), 14 * MIB);
        // A first limit, too, waits for a moment in which nobody writes.
        let (none, limit) = (Bounds::default(), capacity.bounds());
        assert!(capacity.set_bounds(none, || unreachable!("no limit")).unwrap());
        let disturbed = || {
            assert_eq!(capacity.bounds(), none);
            capacity.settle(1);
            Ok(Some(3 * MIB))
        };
        assert!(!capacity.set_bounds(limit, disturbed).unwrap());
        assert_eq!(capacity.bounds(), none);
        assert!(capacity.set_bounds(limit, || Ok(Some(3 * MIB))).unwrap());
        assert_eq!((capacity.bounds(), used()), (limit, 3 * MIB));
    }

    /// Not all files were met: the limit holds for what is known, and that only grows until they were.
    #[test]
    fn what_is_held_at_the_least_counts_until_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { limit_bytes: Some(100 * MIB), floor_bytes: None };
        let capacity = Capacity::new(dir.path(), bounds, Count { is_exact: false, ..exact(40) });
        let used = || capacity.storage().unwrap().used_bytes;
        assert_eq!(capacity.reserve(61 * MIB).unwrap_err().kind, Kind::NoSpace);
        let promise = capacity.reserve(10 * MIB).unwrap();
        let count = |found: Count| {
            capacity.recount(|is_at_least| {
                assert!(is_at_least);
                Ok(Some(found))
            })
        };
        count(Count { is_exact: false, ..exact(70) }).unwrap();
        count(Count { is_exact: false, ..exact(30) }).unwrap();
        assert_eq!(used(), 70 * MIB);
        drop(promise);
        count(exact(30)).unwrap();
        assert_eq!(used(), 30 * MIB);
        let known = |is_at_least: bool| {
            assert!(!is_at_least);
            Ok(None)
        };
        capacity.recount(known).unwrap();
        assert_eq!(used(), 30 * MIB);
    }
}
