//! The plan of a merge: which points, which disks, and what room it takes. Made without touching anything; what it says is what is done.
//!
//! Invariant: the points of a plan, their disks, and what stands on what are looked at again under the claim, and a plan that no longer
//! holds is refused.

use super::Merge;
use crate::draft::SealedDisk;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{Disk, Manifest};
use crate::repository::Repository;
use sendense_types::{BackupId, BackupType, DiskNumber, Timestamp, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What becomes of the two points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// The one goes, and the other, the only one that stands on it, takes over what it held.
    Merge,
    /// The one stays for others that stand on it, too; this one gets a copy of what it needs, and stands on what the one stood on.
    Copy,
    /// The other stands on nothing any more: it is a full, with which a chain begins. No point goes.
    Full,
}

/// What a merge will do. Made without touching anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergePlan {
    /// The VM.
    pub vm_context_id: VmContextId,
    /// What becomes of the two.
    pub aim: Aim,
    /// The point that goes, or is made free to go; of a full one that it stands on.
    pub going: BackupId,
    /// The one that takes over what it held.
    pub successor: BackupId,
    /// The disks whose image is written anew; those that do not stand on the going point stay as they are.
    pub disks: BTreeSet<DiskNumber>,
    /// Disks of the going point that no point has which stands on it. They go with it.
    pub dropped: BTreeSet<DiskNumber>,
    /// Bytes of the two points' files now.
    pub bytes: u64,
    /// Room that is needed meanwhile, at most; what the going point and the successor's old files hold is free afterwards.
    pub needed_bytes: u64,
}

impl fmt::Display for MergePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told =
            |disks: &BTreeSet<DiskNumber>| disks.iter().map(DiskNumber::to_string).collect::<Vec<_>>().join(", ");
        let (going, successor) = (&self.going, &self.successor);
        match self.aim {
            Aim::Merge => write!(f, "merge {going} into {successor}")?,
            Aim::Copy => write!(f, "copy what {successor} needs of {going}")?,
            Aim::Full => write!(f, "make {successor} a full")?,
        }
        write!(f, " (disks {}, at most {} bytes written)", told(&self.disks), self.needed_bytes)?;
        if !self.dropped.is_empty() {
            write!(f, "; nothing needs its disks {}, which go too", told(&self.dropped))?;
        }
        writeln!(f)
    }
}

/// The two points of a merge, as their manifests tell of them.
pub(super) struct Pair {
    pub going: Manifest,
    pub successor: Manifest,
    pub aim: Aim,
}

impl Repository {
    /// Plans to let a point go whose data later ones need: the steps, in their order. Of several points that stand on it each but the
    /// last gets a copy of what it needs; the last takes over the point itself. Changes nothing.
    ///
    /// Points that stand on the same disk of one point are rare (two programs wrote into one folder). A disk that some points lack, for
    /// it was left out or was not there, makes the next one that has it stand on an older point than the machine's other disks do.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Held`]; [`Kind::Invalid`] when nothing stands on the point (delete it); and whatever keeps the VM's
    /// points from being listed completely.
    pub fn plan_merge(&self, vm: &VmContextId, going: &BackupId, now: Timestamp) -> Result<Vec<MergePlan>> {
        let children = self.children(vm, going, now)?;
        let going = self.manifest(vm, going)?;
        let needed_by_none = |disk: &Disk| children.iter().all(|child| child.disk(disk.disk_id).is_none());
        let dropped: BTreeSet<DiskNumber> =
            going.disks.iter().filter(|disk| needed_by_none(disk)).map(|disk| disk.disk_id).collect();
        let pair = |child: &Manifest| Pair { going: going.clone(), successor: child.clone(), aim: Aim::Copy };
        let mut pairs: Vec<Pair> = children.iter().map(pair).collect();
        // What is copied stays twice until the point goes, and of what several need it stays so: the least is copied.
        pairs.sort_by_key(|pair| (pair.needed_bytes(), pair.successor.backup_id.clone()));
        if let Some(last) = pairs.last_mut() {
            last.aim = Aim::Merge;
        }
        let plan = |pair: Pair| MergePlan {
            vm_context_id: vm.clone(),
            aim: pair.aim,
            going: pair.going.backup_id.clone(),
            successor: pair.successor.backup_id.clone(),
            needed_bytes: pair.needed_bytes(),
            bytes: pair.going.file_bytes().saturating_add(pair.successor.file_bytes()),
            dropped: if pair.aim == Aim::Merge { dropped.clone() } else { BTreeSet::new() },
            disks: pair.disks(),
        };
        Ok(pairs.into_iter().map(plan).collect())
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
        let (vm_context_id, dropped) = (vm.clone(), BTreeSet::new());
        Ok(MergePlan { vm_context_id, aim: Aim::Full, going, successor, disks, dropped, bytes, needed_bytes })
    }

    /// A point, and one that it stands on.
    fn full_pair(&self, vm: &VmContextId, point: &BackupId) -> Result<Pair> {
        let successor = self.manifest(vm, point)?;
        let Some(parent) = successor.parents().next().cloned() else {
            return Err(Error::invalid(format!("{point} is a full already")));
        };
        Ok(Pair { going: self.manifest(vm, &parent)?, successor, aim: Aim::Full })
    }

    /// The points that stand on one that may go, without the segments' digests.
    fn children(&self, vm: &VmContextId, going: &BackupId, now: Timestamp) -> Result<Vec<Manifest>> {
        self.refuse_held(vm, [going], now)?;
        let points = self.list(vm)?.complete()?;
        if !points.iter().any(|point| point.backup_id == *going) {
            return Err(Error::new(Kind::NotFound, format!("no point {going} of {vm}")));
        }
        let stands_on_it = |point: &Manifest| point.parents().any(|parent| parent == going);
        let children: Vec<Manifest> = points.into_iter().filter(stands_on_it).collect();
        if children.is_empty() {
            let context = format!("{going} cannot be merged into a successor: nothing stands on it: delete it");
            return Err(Error::invalid(context));
        }
        Ok(children)
    }
}

impl Merge<'_> {
    /// The two points, if the plan still holds.
    pub(super) fn planned(&self, now: Timestamp) -> Result<Pair> {
        let (repository, vm, plan) = (self.repository, &self.plan.vm_context_id, self.plan);
        let pair = match plan.aim {
            Aim::Full => repository.full_pair(vm, &plan.successor)?,
            Aim::Merge | Aim::Copy => {
                let children = repository.children(vm, &plan.going, now)?;
                // A copy of what one alone needs would be in vain.
                let is_alone = children.len() == 1;
                if is_alone != (plan.aim == Aim::Merge)
                    || !children.iter().any(|child| child.backup_id == plan.successor)
                {
                    return Err(super::conflict(
                        "other points stand on it than when it was planned: make the plan again",
                    ));
                }
                // Again, as a whole: a listing leaves the segments' digests out.
                let (going, successor) =
                    (repository.manifest(vm, &plan.going)?, repository.manifest(vm, &plan.successor)?);
                Pair { going, successor, aim: plan.aim }
            }
        };
        if pair.successor.backup_id != plan.successor || pair.disks() != plan.disks {
            return Err(super::conflict("the plan is out of date: make it again"));
        }
        Ok(pair)
    }
}

impl Pair {
    /// The disks of the successor that stand on the point that goes; all that stand on any, of a full.
    pub(super) fn disks(&self) -> BTreeSet<DiskNumber> {
        self.standing().map(|disk| disk.disk_id).collect()
    }

    fn standing(&self) -> impl Iterator<Item = &Disk> {
        self.successor.disks.iter().filter(move |disk| match &disk.parent_backup_id {
            Some(parent) => self.aim == Aim::Full || *parent == self.going.backup_id,
            None => false,
        })
    }

    /// Room for new files of what both have of the disks.
    fn needed_bytes(&self) -> u64 {
        let bytes = |disk: &Disk| disk.image.file_bytes.saturating_add(disk.digests.file_bytes);
        let needed = |disk: &Disk| match self.going.disk(disk.disk_id) {
            Some(old) => bytes(old).saturating_add(bytes(disk)),
            None => 0,
        };
        self.standing().map(needed).fold(0, u64::saturating_add)
    }

    /// What a disk of the successor stands on afterwards.
    pub(super) fn parent(&self, disk: DiskNumber) -> Result<Option<BackupId>> {
        if self.aim == Aim::Full {
            return Ok(None);
        }
        let old = self.going.disk(disk).ok_or_else(|| {
            let path = layout::manifest(&self.successor.vm_context_id, &self.successor.backup_id);
            Error::corrupt(&path, None, format!("its disk {disk} stands on a point that has no such disk"))
        })?;
        Ok(old.parent_backup_id.clone())
    }

    /// The successor with its new images.
    pub(super) fn merged(&self, disks: &BTreeMap<DiskNumber, SealedDisk>) -> Manifest {
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
