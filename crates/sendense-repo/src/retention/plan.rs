//! The plan of a prune: what really goes, and what holds the rest. Made without touching anything; what it lets go is what is
//! deleted.
//!
//! Invariant: a point goes only when every point that stands on it goes too, so that executing the plan needs no cascade.

use super::judge::{Reason, Verdict};
use crate::error::Result;
use crate::lock::{Claim, Operation};
use crate::repository::Repository;
use sendense_types::{BackupId, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Points named in a reason: enough to see what it is about, short enough to read.
const NAMED_MAX: usize = 3;

/// What becomes of every point of a VM in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunePlan {
    /// The VM.
    pub vm_context_id: VmContextId,
    /// Its points, each before those it stands on.
    pub entries: Vec<Entry>,
}

/// What becomes of one point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The point.
    pub backup_id: BackupId,
    /// Bytes of its files.
    pub bytes: u64,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a point, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is deleted.
    Goes,
    /// Retention keeps it.
    Stays(Reason),
    /// It might go, but these stay and stand on it.
    NeededBy(Vec<BackupId>),
    /// It might go, but somebody works with it now.
    InUse(String),
    /// Nobody judged it: the catalog does not know it yet.
    Unknown,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goes => write!(f, "no rule keeps it"),
            Self::Stays(reason) => reason.fmt(f),
            Self::NeededBy(ids) => {
                let names: Vec<&str> = ids.iter().take(NAMED_MAX).map(BackupId::as_str).collect();
                write!(f, "needed by {}", names.join(", "))?;
                match ids.len().checked_sub(NAMED_MAX) {
                    Some(more) if more > 0 => write!(f, " and {more} more"),
                    _ => Ok(()),
                }
            }
            Self::InUse(holder) => write!(f, "in use: {holder}"),
            Self::Unknown => write!(f, "not in the catalog yet"),
        }
    }
}

impl PrunePlan {
    /// The points that go, each before those it stands on.
    pub fn going(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.fate == Fate::Goes)
    }
}

/// A point as one that others stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The point.
    pub backup_id: BackupId,
    /// The points that it stands on, disk by disk.
    pub parents: BTreeSet<BackupId>,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Makes a plan of all points of a VM, parents before children, of what was said of them, of what is claimed now, and of the
/// points that are `busy` in a way that the lock table does not know.
pub fn plan(
    vm: &VmContextId,
    all: &[Member],
    verdicts: &BTreeMap<BackupId, Verdict>,
    claims: &[Claim],
    busy: &BTreeMap<BackupId, String>,
) -> PrunePlan {
    let mut staying_children: BTreeMap<&BackupId, BTreeSet<&BackupId>> = BTreeMap::new();
    let mut entries = Vec::with_capacity(all.len());
    for point in all.iter().rev() {
        let fate = match (verdicts.get(&point.backup_id), staying_children.get(&point.backup_id)) {
            (None, _) => Fate::Unknown,
            (Some(Verdict::Stays(reason)), _) => Fate::Stays(*reason),
            (Some(Verdict::Goes), Some(children)) => Fate::NeededBy(children.iter().map(|id| (*id).clone()).collect()),
            (Some(Verdict::Goes), None) => {
                match holder(vm, &point.backup_id, claims).or_else(|| busy.get(&point.backup_id).cloned()) {
                    Some(holder) => Fate::InUse(holder),
                    None => Fate::Goes,
                }
            }
        };
        if fate != Fate::Goes {
            for parent in &point.parents {
                staying_children.entry(parent).or_default().insert(&point.backup_id);
            }
        }
        entries.push(Entry { backup_id: point.backup_id.clone(), bytes: point.bytes, fate });
    }
    PrunePlan { vm_context_id: vm.clone(), entries }
}

/// Who stands in the way of deleting a point.
fn holder(vm: &VmContextId, id: &BackupId, claims: &[Claim]) -> Option<String> {
    let deletion = Claim {
        operation: Operation::Delete,
        vm: vm.clone(),
        points: BTreeSet::from([id.clone()]),
        who: String::new(),
    };
    let claim = claims.iter().find(|claim| claim.is_in_the_way_of(&deletion))?;
    Some(format!("{} by {}", claim.operation, claim.who))
}

impl Repository {
    /// Plans a prune of a VM's points. Changes nothing; what goes is deleted with [`Repository::plan_delete`] and
    /// [`Repository::execute_delete`], which look again at what stands on it and who uses it.
    ///
    /// # Errors
    /// Whatever keeps the VM's points from being listed completely.
    pub fn plan_prune(
        &self,
        vm: &VmContextId,
        verdicts: &BTreeMap<BackupId, Verdict>,
        busy: &BTreeMap<BackupId, String>,
    ) -> Result<PrunePlan> {
        let points = self.list(vm)?.complete()?;
        let members = points.iter().map(|point| Member {
            backup_id: point.backup_id.clone(),
            parents: point.parents().cloned().collect(),
            bytes: point.file_bytes(),
        });
        Ok(plan(vm, &members.collect::<Vec<_>>(), verdicts, &self.locks().held(), busy))
    }
}
