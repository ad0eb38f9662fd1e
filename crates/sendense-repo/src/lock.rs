//! The lock table: which two operations may touch the points of one VM at the same time.
//!
//! An operation claims the points it needs (all their disks): a read or a verification those of the chain it reads, a backup
//! its parents and all below them, a deletion the points it removes.
//!
//! ```text
//!            backup     read       verify     delete     merge      copy       move
//! backup     one VM     share      share      points     points     one VM     one VM
//! read       share      share      share      points     points     share      points
//! verify     share      share      share      points     points     share      points
//! delete     points     points     points     points     points     points     points
//! merge      points     points     points     points     points     points     points
//! copy       one VM     share      share      points     points     one VM     one VM
//! move       one VM     points     points     points     points     one VM     one VM
//! ```
//!
//! *share*: never in each other's way. *points*: in the way when they claim a common point. *one VM*: in the way when they
//! work on the same VM, whatever the points: a VM has one backup at a time, a chain is not moved while it grows, and there is one
//! move of a VM at a time. A move copies as a *copy*, beside readers, and is a *move* from the moment on in which the points go over.
//!
//! Invariant: two operations that are in each other's way never both hold a guard. Claims are taken whole or not at all; only
//! merges are waited for, which take theirs last and wait for nobody, so there is no deadlock. The table is the process's: across hubs the owner record stands guard,
//! and a reader without a hub holds its files open, which a deletion does not take from it.

use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use sendense_types::{BackupId, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often one who waits for a merge looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is done to points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// A new point grows on its parents, which it needs unchanged.
    Backup,
    /// A restore or an export.
    Read,
    /// A check.
    Verify,
    /// Points go away.
    Delete,
    /// Points become one (consolidation).
    Merge,
    /// Points are copied to another repository, and must stay as they are and as many.
    Copy,
    /// Points go to another repository.
    Move,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 7] =
        [Self::Backup, Self::Read, Self::Verify, Self::Delete, Self::Merge, Self::Copy, Self::Move];

    /// True when files come or go under its claim. (A merge prepares its own as a reader; it is counted as it writes them.)
    const fn changes_files(self) -> bool {
        !matches!(self, Self::Read | Self::Verify | Self::Copy)
    }

    /// The table above.
    const fn meets(self, other: Self) -> Meeting {
        use Operation::{Backup, Copy, Delete, Merge, Move, Read, Verify};
        match (self, other) {
            (Backup | Copy | Move, Backup | Copy | Move) => Meeting::OneVm,
            (Backup | Copy, Read | Verify) | (Read | Verify, Backup | Copy | Read | Verify) => Meeting::Share,
            (Delete | Merge, _) | (_, Delete | Merge) | (Move, _) | (_, Move) => Meeting::Points,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backup => "backup",
            Self::Read => "read",
            Self::Verify => "verify",
            Self::Delete => "delete",
            Self::Merge => "merge",
            Self::Copy => "copy",
            Self::Move => "move",
        })
    }
}

enum Meeting {
    Share,
    Points,
    OneVm,
}

/// What somebody wants to do, and to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The operation.
    pub operation: Operation,
    /// The VM the points belong to.
    pub vm: VmContextId,
    /// The points it needs or changes.
    pub points: BTreeSet<BackupId>,
    /// Who does it (a task's id), for the message to the next one.
    pub who: String,
}

impl Claim {
    /// True when the two cannot be at work together.
    pub fn is_in_the_way_of(&self, other: &Self) -> bool {
        self.vm == other.vm
            && match self.operation.meets(other.operation) {
                Meeting::Share => false,
                Meeting::Points => !self.points.is_disjoint(&other.points),
                Meeting::OneVm => true,
            }
    }
}

/// Who stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// What it does.
    pub operation: Operation,
    /// The VM.
    pub vm: VmContextId,
    /// Who it is.
    pub who: String,
}

impl Holder {
    fn of(held: &Claim) -> Self {
        Self { operation: held.operation, vm: held.vm.clone(), who: held.who.clone() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} by {}", self.operation, self.vm, self.who)
    }
}

/// The claims that are held now. Cheap to clone; clones are one table.
#[derive(Debug, Clone, Default)]
pub struct ChainLocks(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    held: BTreeMap<u64, Claim>,
    /// How many claims were taken by those who add or remove files.
    changing: u64,
    /// No claim is taken any more.
    shut: bool,
}

impl ChainLocks {
    /// Takes a claim, or says who holds what is in its way. Never waits.
    pub fn acquire(&self, claim: Claim) -> Result<ChainGuard> {
        let mut table = self.0.lock();
        if table.shut {
            return Err(Error::new(Kind::Unavailable, "the repository was closed"));
        }
        let holders: Vec<Holder> =
            table.held.values().filter(|held| held.is_in_the_way_of(&claim)).map(Holder::of).collect();
        if !holders.is_empty() {
            return Err(in_the_way(&claim, holders));
        }
        let id = table.next;
        table.next += 1;
        table.changing += u64::from(claim.operation.changes_files());
        table.held.insert(id, claim);
        Ok(ChainGuard { locks: self.clone(), id })
    }

    /// Makes another claim of one that is held, for the same holder, or says who is in the way of that; then the old one stands. At
    /// no moment is there neither.
    pub fn change(&self, guard: &ChainGuard, claim: Claim) -> Result<()> {
        let mut table = self.0.lock();
        let others = table.held.iter().filter(|(id, _)| **id != guard.id).map(|(_, held)| held);
        let holders: Vec<Holder> = others.filter(|held| held.is_in_the_way_of(&claim)).map(Holder::of).collect();
        if !holders.is_empty() {
            return Err(in_the_way(&claim, holders));
        }
        table.changing += u64::from(claim.operation.changes_files());
        // Not one that was taken from its holder meanwhile.
        match table.held.get_mut(&guard.id) {
            Some(held) => *held = claim,
            None => return Err(Error::new(Kind::Cancelled, "the claim was taken away")),
        }
        Ok(())
    }

    /// Takes all claims from somebody who was given up and may hold their guards for ever: a thread that is stuck in the kernel.
    /// Whatever it does later must change nothing.
    pub fn release_of(&self, who: &str) {
        self.0.lock().held.retain(|_, claim| claim.who != who);
    }

    /// The same, but waits for merges: they hold points for the moment in which names change. Whoever calls this may hold
    /// other claims: a merge that holds its points waits for nobody.
    pub fn acquire_patiently(&self, claim: Claim, patience: Duration) -> Result<ChainGuard> {
        let begun = Instant::now();
        loop {
            let refused = match self.acquire(claim.clone()) {
                Err(error) => error,
                claimed => return claimed,
            };
            let Kind::Conflict { holders } = &refused.kind else { return Err(refused) };
            if !holders.iter().all(|holder| holder.operation == Operation::Merge) || begun.elapsed() >= patience {
                return Err(refused);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Shuts the table for good when nobody holds anything, or says who does: no claim comes between the look and the end.
    ///
    /// # Errors
    /// Those who hold claims.
    pub fn shut(&self) -> std::result::Result<(), Vec<Holder>> {
        let mut table = self.0.lock();
        let holders: Vec<Holder> = table.held.values().map(Holder::of).collect();
        table.shut = holders.is_empty();
        if table.shut { Ok(()) } else { Err(holders) }
    }

    /// The points of a VM that somebody deletes now.
    pub fn deleting(&self, vm: &VmContextId) -> BTreeSet<BackupId> {
        let table = self.0.lock();
        let claims = table.held.values().filter(|claim| claim.operation == Operation::Delete && claim.vm == *vm);
        claims.flat_map(|claim| claim.points.iter().cloned()).collect()
    }

    /// True while points of a VM come from another repository, or go over to it.
    pub fn is_moving(&self, vm: &VmContextId) -> bool {
        self.0.lock().held.values().any(|claim| claim.operation == Operation::Move && claim.vm == *vm)
    }

    /// Nothing while somebody adds or removes files; else a number that is another as soon as somebody has begun to.
    pub(crate) fn stillness(&self) -> Option<u64> {
        let table = self.0.lock();
        let is_still = !table.held.values().any(|claim| claim.operation.changes_files());
        is_still.then_some(table.changing)
    }

    /// Everything that is held now.
    pub fn held(&self) -> Vec<Claim> {
        self.0.lock().held.values().cloned().collect()
    }
}

fn in_the_way(claim: &Claim, holders: Vec<Holder>) -> Error {
    let names: Vec<String> = holders.iter().map(Holder::to_string).collect();
    let context = format!("{} of {}: in the way: {}", claim.operation, claim.vm, names.join(", "));
    Error::new(Kind::Conflict { holders }, context)
}

/// A claim that is held until this is dropped.
#[derive(Debug)]
pub struct ChainGuard {
    locks: ChainLocks,
    id: u64,
}

impl Drop for ChainGuard {
    fn drop(&mut self) {
        self.locks.0.lock().held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::fmt::Write;

    fn claim(operation: Operation, vm: &str, points: &[&str]) -> Claim {
        let points = points.iter().map(|id| id.parse().unwrap()).collect();
        Claim { operation, vm: vm.parse().unwrap(), points, who: format!("task-{operation}") }
    }

    /// An operation that is added and forgotten in the list would be tried with none.
    #[test]
    fn all_are_all() {
        for (number, operation) in Operation::ALL.into_iter().enumerate() {
            let place = match operation {
                Operation::Backup => 0,
                Operation::Read => 1,
                Operation::Verify => 2,
                Operation::Delete => 3,
                Operation::Merge => 4,
                Operation::Copy => 5,
                Operation::Move => 6,
            };
            assert_eq!(place, number);
        }
        assert_eq!(Operation::ALL.len(), Operation::Move as usize + 1, "move is the last");
    }

    #[test]
    fn a_table_is_shut_only_when_nobody_holds_anything() {
        let locks = ChainLocks::default();
        let guard = locks.acquire(claim(Operation::Read, "vm-1", &["bk-1"])).unwrap();
        let holders = locks.shut().unwrap_err();
        assert_eq!(holders.iter().map(ToString::to_string).collect::<Vec<_>>(), ["read of vm-1 by task-read"]);
        drop(locks.acquire(claim(Operation::Backup, "vm-1", &["bk-1"])).unwrap());
        drop(guard);
        locks.shut().unwrap();
        let refused = locks.acquire(claim(Operation::Read, "vm-1", &["bk-1"])).unwrap_err();
        assert_eq!(refused.kind, Kind::Unavailable);
    }

    /// Takes every pair, in both orders, on a common point, on two points of a VM, and on two VMs.
    #[test]
    fn every_pair() {
        let mut table = String::new();
        for first in Operation::ALL {
            for second in Operation::ALL {
                let mut cell = [false; 3];
                let places = [("vm", &["p", "q"]), ("vm", &["r", "s"]), ("other", &["p", "q"])];
                for (free, (vm, points)) in cell.iter_mut().zip(places) {
                    let locks = ChainLocks::default();
                    let held = locks.acquire(claim(first, "vm", &["p", "q"])).unwrap();
                    match locks.acquire(claim(second, vm, points)) {
                        Ok(_) => *free = true,
                        Err(error) => {
                            let holder =
                                Holder { operation: first, vm: "vm".parse().unwrap(), who: format!("task-{first}") };
                            assert_eq!(error.kind, Kind::Conflict { holders: vec![holder] });
                        }
                    }
                    drop(held);
                    assert!(locks.held().is_empty());
                    locks.acquire(claim(second, vm, points)).expect("free once the guard is gone");
                }
                let word = match cell {
                    [true, true, true] => "share",
                    [false, true, true] => "points",
                    [false, false, true] => "one VM",
                    other => panic!("{first} and {second}: {other:?}"),
                };
                write!(table, "{word:<7}").unwrap();
            }
            table = table.trim_end().to_owned() + "\n";
        }
        expect![[r#"
            one VM share  share  points points one VM one VM
            share  share  share  points points share  points
            share  share  share  points points share  points
            points points points points points points points
            points points points points points points points
            one VM share  share  points points one VM one VM
            one VM points points points points one VM one VM
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn who_was_given_up_is_in_nobodys_way_and_its_guard_takes_nothing_from_the_next() {
        let locks = ChainLocks::default();
        let stuck = locks.acquire(claim(Operation::Backup, "vm", &["p"])).unwrap();
        let read = locks.acquire(claim(Operation::Read, "vm", &["p"])).unwrap();
        locks.release_of("task-backup");
        let next = locks.acquire(claim(Operation::Backup, "vm", &["p"])).unwrap();
        drop(stuck);
        assert!(locks.acquire(claim(Operation::Backup, "vm", &["p"])).is_err(), "the next one's claim stands");
        drop((read, next));
        assert!(locks.held().is_empty());
    }

    #[test]
    fn a_claim_becomes_another_one_and_nobody_comes_between() {
        let locks = ChainLocks::default();
        let guard = locks.acquire(claim(Operation::Move, "vm", &["p"])).unwrap();
        locks.change(&guard, claim(Operation::Copy, "vm", &["p"])).unwrap();
        let before = locks.stillness().unwrap();
        let reader = locks.acquire(claim(Operation::Read, "vm", &["p"])).unwrap();
        let refused = locks.change(&guard, claim(Operation::Move, "vm", &["p"])).unwrap_err();
        assert_eq!(refused.to_string(), "move of vm: in the way: read of vm by task-read");
        assert!(locks.acquire(claim(Operation::Backup, "vm", &[])).is_err(), "the old one stands");
        drop(reader);
        locks.change(&guard, claim(Operation::Move, "vm", &["p"])).unwrap();
        assert!(locks.acquire(claim(Operation::Read, "vm", &["p"])).is_err());
        assert_eq!(locks.stillness(), None);
        locks.release_of("task-move");
        assert_eq!(locks.change(&guard, claim(Operation::Copy, "vm", &["p"])).unwrap_err().kind, Kind::Cancelled);
        drop(guard);
        assert!(locks.stillness().is_some_and(|now| now != before) && locks.held().is_empty());
    }

    #[test]
    fn a_merge_is_waited_for_and_nothing_else_is() {
        let locks = ChainLocks::default();
        let merge = locks.acquire(claim(Operation::Merge, "vm", &["p"])).unwrap();
        let read = || claim(Operation::Read, "vm", &["p"]);
        assert!(locks.acquire_patiently(read(), Duration::ZERO).is_err());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| locks.acquire_patiently(read(), Duration::from_secs(60)));
            std::thread::sleep(3 * LOOK_AGAIN);
            drop(merge);
            waiting.join().unwrap().unwrap();
        });
        let _delete = locks.acquire(claim(Operation::Delete, "vm", &["p"])).unwrap();
        // Would take a minute if it waited for this.
        assert!(locks.acquire_patiently(read(), Duration::from_secs(60)).is_err());
    }

    #[test]
    fn stillness_ends_with_whoever_adds_or_removes_files_and_is_another_afterwards() {
        for operation in Operation::ALL {
            let locks = ChainLocks::default();
            let before = locks.stillness().unwrap();
            let held = locks.acquire(claim(operation, "vm", &["p"])).unwrap();
            let changes = !matches!(operation, Operation::Read | Operation::Verify | Operation::Copy);
            assert_eq!(locks.stillness().is_none(), changes, "{operation}");
            drop(held);
            assert_eq!(locks.stillness() != Some(before), changes, "{operation}");
        }
    }

    #[test]
    fn all_holders_are_named() {
        let locks = ChainLocks::default();
        let _read = locks.acquire(claim(Operation::Read, "vm", &["p"])).unwrap();
        let _verify = locks.acquire(claim(Operation::Verify, "vm", &["p"])).unwrap();
        let error = locks.acquire(claim(Operation::Delete, "vm", &["p"])).unwrap_err();
        expect!["delete of vm: in the way: read of vm by task-read, verify of vm by task-verify"]
            .assert_eq(&error.to_string());
    }
}
