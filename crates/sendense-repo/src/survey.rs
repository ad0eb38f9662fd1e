//! What lies in a repository, looked at and not touched.
//!
//! Invariant: nothing is changed, and what could not be looked through is said to be unknown, never to be absent.

use crate::crashsafe;
use crate::error::Result;
use crate::layout::{self, VmEntry};
use crate::moving;
use crate::owner;
use crate::repository::Repository;
use sendense_types::{BackupId, DiskNumber, Timestamp, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What lies in a repository.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The folders of machines; with the reason where one could not be looked through.
    pub vms: BTreeMap<VmContextId, std::result::Result<VmSurvey, String>>,
    /// Files and folders beside them that are not ours, relative to the repository.
    pub strangers: Vec<PathBuf>,
}

/// How points stand that are between two repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moving {
    /// They have come, and are points like any other; the repository that they came from has not let go of them yet.
    Arrived,
    /// Whoever moved them has died.
    CutOff,
    /// Somebody in this process moves them now.
    UnderWay,
}

/// What lies in a machine's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmSurvey {
    /// Published points, whether or not their manifests can be read.
    pub points: BTreeSet<BackupId>,
    /// Those whose manifests can be read, with the points that each stands on.
    pub parents: BTreeMap<BackupId, BTreeSet<BackupId>>,
    /// Those whose manifests cannot be read, with the reason.
    pub unreadable: BTreeMap<BackupId, String>,
    /// Drafts, whoever works on them.
    pub drafts: BTreeSet<BackupId>,
    /// Points whose deletion was begun and not ended, by nobody in this process.
    pub deletions: BTreeSet<BackupId>,
    /// Points into which others were to be merged, by nobody in this process.
    pub merges: BTreeSet<BackupId>,
    /// Points that somebody in this process deletes, or merges others into, now.
    pub under_way: BTreeSet<BackupId>,
    /// Where its points are between two repositories. Unless they have arrived, nothing else is said of what lies beside the points.
    pub moving: Option<Moving>,
    /// Files and folders that no manifest names, relative to the repository.
    pub strangers: Vec<PathBuf>,
    /// Whether there is a folder for disks.
    pub has_disks: bool,
}

impl Repository {
    /// Looks through all of it, every manifest included.
    ///
    /// # Errors
    /// Only when the repository is not ours or cannot be listed at all; all else is in the survey.
    pub fn survey(&self, now: Timestamp) -> Result<Survey> {
        // A folder whose file system is not mounted would look as if all had gone.
        self.ownership()?.check(now)?;
        let mut survey = Survey::default();
        for (name, kind) in crashsafe::entries(self.root())? {
            let own = layout::OWN.iter().any(|own| name == *own);
            match (kind, name.to_str().map(str::parse::<VmContextId>)) {
                (crashsafe::Kindred::Directory, Some(Ok(vm))) => {
                    let looked = self.survey_vm(&vm).and_then(|found| self.with_unreadable(&vm, found));
                    survey.vms.insert(vm, looked.map_err(|error| sendense_block::error::chain(&error)));
                }
                _ if own => {}
                _ => survey.strangers.push(PathBuf::from(name)),
            }
        }
        // A replacement of the record that was cut off.
        if owner::read(self.root())?.is_some() {
            let half = PathBuf::from(format!("{}.new", layout::OWNER_FILE));
            survey.strangers.retain(|path| *path != half);
        }
        Ok(survey)
    }

    fn with_unreadable(&self, vm: &VmContextId, mut found: VmSurvey) -> Result<VmSurvey> {
        let listing = self.list(vm)?;
        let problems = listing.problems.into_iter();
        found.unreadable =
            problems.map(|problem| (problem.backup_id, sendense_block::error::chain(&problem.error))).collect();
        let parents =
            listing.points.into_iter().map(|point| (point.backup_id.clone(), point.parents().cloned().collect()));
        found.parents = parents.collect();
        Ok(found)
    }

    /// Looks through a machine's folder.
    pub(crate) fn survey_vm(&self, vm: &VmContextId) -> Result<VmSurvey> {
        let mut found = VmSurvey::default();
        let deleted: BTreeSet<BackupId> = self.locks().deleting(vm);
        let (mut disks, mut holds) = (Vec::new(), Vec::new());
        for (path, entry, _) in self.vm_entries(vm)? {
            match entry {
                VmEntry::Manifest(id) => _ = found.points.insert(id),
                VmEntry::Disk(number) => disks.push((path, number)),
                // The next change of the hold, or the deletion of the point, removes one that is half written.
                VmEntry::Hold(id) | VmEntry::HoldHalf(id) => holds.push((path, id)),
                VmEntry::Draft(id) => _ = found.drafts.insert(id),
                VmEntry::Delete(id) if deleted.contains(&id) => _ = found.under_way.insert(id),
                VmEntry::Merge(id) if self.is_merging(vm, &id) => _ = found.under_way.insert(id),
                VmEntry::Delete(id) => _ = found.deletions.insert(id),
                VmEntry::Merge(id) => _ = found.merges.insert(id),
                VmEntry::MoveIn | VmEntry::MoveOut if self.locks().is_moving(vm) => {
                    found.moving = Some(Moving::UnderWay);
                }
                VmEntry::MoveIn if moving::has_arrived(self, vm)? => {
                    found.moving = found.moving.max(Some(Moving::Arrived));
                }
                VmEntry::MoveIn | VmEntry::MoveOut => found.moving = found.moving.max(Some(Moving::CutOff)),
                VmEntry::Stranger => found.strangers.push(path),
            }
        }
        let is_live = |id: &BackupId| found.points.contains(id) || self.at(layout::delete_dir(vm, id)).exists();
        let dead: Vec<PathBuf> = holds.into_iter().filter(|(_, id)| !is_live(id)).map(|(path, _)| path).collect();
        found.strangers.extend(dead);
        found.has_disks = !disks.is_empty();
        if found.moving > Some(Moving::Arrived) {
            found.strangers.clear();
            return Ok(found);
        }
        for (dir, number) in disks {
            self.find_strangers(vm, dir, number, &mut found)?;
        }
        Ok(found)
    }

    fn find_strangers(&self, vm: &VmContextId, dir: PathBuf, number: DiskNumber, found: &mut VmSurvey) -> Result<()> {
        for (name, kind) in crashsafe::entries(&self.at(&dir))? {
            let id = layout::parse_disk_entry(&name).filter(|_| kind == crashsafe::Kindred::File);
            let named = match id {
                // A live draft of this process is moving its files now, or the point has just been published.
                Some(id) if !found.points.contains(&id) => {
                    self.at(layout::draft_dir(vm, &id)).exists()
                        || self.at(layout::delete_dir(vm, &id)).exists()
                        || self.at(layout::manifest(vm, &id)).exists()
                }
                Some(id) => match self.manifest(vm, &id) {
                    Ok(manifest) => manifest.disk(number).is_some(),
                    // What a manifest that cannot be read names is not known.
                    Err(_) => true,
                },
                None => false,
            };
            if !named {
                found.strangers.push(dir.join(name));
            }
        }
        Ok(())
    }
}
