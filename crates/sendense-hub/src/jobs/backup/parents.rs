//! What each disk of a new point stands on.
//!
//! Invariant: a parent is taken from its *manifest*, never from the catalog alone: same repository, same disk (its binding),
//! and the tracking token is the one that this very manifest holds. Where there is no usable parent the disk becomes a full,
//! and the reason is said.

use super::super::handle::Handle;
use super::super::work::BackupWork;
use crate::fault::{Result, of_repo};
use crate::verification::lost;
use sendense_catalog::{Lost, VmDisk};
use sendense_node::mover::{Parent, Parentage};
use sendense_repo::{CHAIN_DEPTH_MAX, Kind, Repository};
use sendense_types::{BackupId, BackupType, DiskNumber, TrackingToken, VmContextId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a disk stands on.
#[derive(Debug)]
pub(super) struct Standing {
    /// The parent, if it has one.
    pub parent: Option<Found>,
    /// Why it has none although an incremental was asked for.
    pub reason: Option<String>,
}

/// A parent, as its manifest tells it.
#[derive(Debug)]
pub(super) struct Found {
    pub backup_id: BackupId,
    pub token: Option<TrackingToken>,
    pub capacity_bytes: u64,
}

impl Standing {
    fn full(reason: Option<String>) -> Self {
        Self { parent: None, reason }
    }

    /// The same with the parent's digests opened, for the mover. What `damaged` points have lost is stored again.
    pub fn parentage(
        &self,
        repository: &Repository,
        vm: &VmContextId,
        disk: DiskNumber,
        damaged: &BTreeMap<BackupId, Lost>,
        handle: &Handle,
    ) -> Result<Parentage> {
        let Some(parent) = &self.parent else { return Ok(Parentage::None { reason: self.reason.clone() }) };
        let lost = lost::of_disk(damaged, disk);
        let digests = repository
            .open_digests_knowing(vm, &parent.backup_id, disk, handle.task_id.as_str(), &lost)
            .map_err(|error| of_repo(&error))?;
        let blocks = digests.lost_blocks().map_err(|error| of_repo(&error))?;
        let lost =
            (blocks > 0).then(|| format!("{blocks} blocks of {} are lost and are stored again", parent.backup_id));
        Ok(Parentage::Parent(Parent { backup_id: parent.backup_id.clone(), digests: Arc::new(digests), lost }))
    }
}

/// Decides for each disk; `newest` are the points that the catalog calls the newest, in the order of `disks`.
pub(super) fn decide(
    work: &BackupWork,
    repository: &Repository,
    disks: &[VmDisk],
    newest: &[Option<BackupId>],
) -> sendense_repo::Result<Vec<Standing>> {
    let decided = disks.iter().zip(newest).map(|(disk, newest)| match (work.backup_type, newest) {
        (BackupType::Full, _) => Ok(Standing::full(None)),
        (BackupType::Incremental, None) => {
            Ok(Standing::full(Some("full: this repository holds no earlier point of this disk".to_owned())))
        }
        (BackupType::Incremental, Some(newest)) => look(repository, &work.vm_context_id, disk, newest),
    });
    decided.collect()
}

fn look(
    repository: &Repository,
    vm: &VmContextId,
    disk: &VmDisk,
    newest: &BackupId,
) -> sendense_repo::Result<Standing> {
    let full = |reason: String| Ok(Standing::full(Some(format!("full: {reason}"))));
    let links = match repository.chain(vm, newest, disk.disk_id) {
        Ok(links) => links,
        Err(error) => {
            return match error.kind {
                Kind::NotFound => full(format!("the newest point {newest} is not in the repository any more")),
                // A damaged chain must not grow. A full is a new, sound one, and says why it was made.
                Kind::Corrupt { .. } => full(format!("the chain of {newest} is damaged: {error}")),
                _ => Err(error),
            };
        }
    };
    let Some(point) = links.first() else { return full(format!("the newest point {newest} lacks this disk")) };
    if point.disk.binding != disk.binding {
        return full(format!("disk {} of {newest} is another disk", disk.disk_id));
    }
    match repository.check_chain(vm, newest, disk.disk_id) {
        Err(error) if matches!(error.kind, Kind::Corrupt { .. }) => {
            return full(format!("the chain of {newest} is damaged: {error}"));
        }
        checked => checked?,
    }
    if links.len() >= CHAIN_DEPTH_MAX {
        return full(format!("the chain has {} images, the most that one may have", links.len()));
    }
    Ok(Standing {
        parent: Some(Found {
            backup_id: newest.clone(),
            token: point.disk.token.clone(),
            capacity_bytes: point.disk.capacity_bytes,
        }),
        reason: None,
    })
}
