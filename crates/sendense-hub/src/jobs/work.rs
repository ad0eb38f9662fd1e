//! What a task is asked to do, as it is kept in the task's row.
//!
//! Invariant: a row tells all that its work needs, so that any hub of the deployment can do it, also after a restart.

use super::queue::Needs;
use crate::fault::{Result, internal};
use crate::maintenance::Use;
use sendense_api::{ImageFormat, RestoreTarget};
use sendense_repo::OnDamage;
use sendense_types::{
    BackupId, BackupType, Compression, DiskNumber, OnTrackingLoss, RecoveryId, RepositoryId, SourceId, TaskKind,
    VmContextId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The request of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "snake_case")]
pub(crate) enum Work {
    /// Back up a machine.
    Backup(BackupWork),
    /// Restore one disk of a point, or all of it.
    Restore(RestoreWork),
    /// Move a recovered machine to storage of its own.
    Migrate(MigrateWork),
    /// Check a point.
    Verify(VerifyWork),
    /// Merge points into their successors.
    Merge(MergeWork),
    /// Move a machine's points to another repository.
    Move(MoveWork),
    /// Rebuild the catalog from a repository.
    Import(ImportWork),
}

/// A backup to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BackupWork {
    /// Seconds after which it is ended, whatever it has reached.
    #[serde(default)]
    pub time_limit_seconds: Option<u32>,
    /// The most bytes that it reads in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max: Option<u64>,
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub source_id: SourceId,
    pub repository_id: RepositoryId,
    pub backup_type: BackupType,
    /// Only this disk; none: all that the machine has when the backup begins.
    pub disk_id: Option<DiskNumber>,
    /// Left out, by number, key or label.
    pub exclude_disks: Vec<String>,
    pub quiesce: bool,
    /// Fail where the guest cannot be quiesced.
    #[serde(default)]
    pub quiesce_or_fail: bool,
    pub compression: Compression,
    pub on_tracking_loss: OnTrackingLoss,
    pub policy_id: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// Of what this recovery has written, and not of what the machine holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_id: Option<RecoveryId>,
}

/// A disk or machine to restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RestoreWork {
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub repository_id: RepositoryId,
    /// None: the whole machine.
    pub disk_id: Option<DiskNumber>,
    /// Where the machine goes.
    #[serde(default)]
    pub source_id: Option<SourceId>,
    pub target: RestoreTarget,
    /// Also what is damaged.
    #[serde(default)]
    pub allow_damaged: bool,
}

impl RestoreWork {
    /// What damage of the point does to it.
    pub fn on_damage(&self) -> OnDamage {
        if self.allow_damaged { OnDamage::Pass } else { OnDamage::Fail }
    }
}

/// A recovered machine to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MigrateWork {
    pub recovery_id: RecoveryId,
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub repository_id: RepositoryId,
    pub source_id: SourceId,
    /// A folder of the hypervisor's, as it was granted.
    pub folder: String,
    pub format: ImageFormat,
}

/// A point to check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VerifyWork {
    pub backup_id: BackupId,
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub repository_id: RepositoryId,
    /// Decode every block too.
    pub deep: bool,
    /// Leave out the points that it builds on.
    #[serde(default)]
    pub own_files_only: bool,
    /// Asked for by nobody: it takes no place from other tasks, keeps to the hub's pace, and makes way for a deletion.
    #[serde(default)]
    pub aside: bool,
}

/// Points to merge into their successors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MergeWork {
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    pub repository_id: RepositoryId,
    /// In the order in which they go: each before those it stands on.
    pub backup_ids: Vec<BackupId>,
    /// A point that is made a full of its own, after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<BackupId>,
    /// Asked for by nobody: it keeps to the hub's pace.
    #[serde(default)]
    pub aside: bool,
}

impl MergeWork {
    /// Whose points.
    pub fn place(&self) -> (RepositoryId, VmContextId) {
        (self.repository_id.clone(), self.vm_context_id.clone())
    }
}

/// A machine's points to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MoveWork {
    pub vm_context_id: VmContextId,
    pub vm_name: String,
    /// Where they lie.
    pub repository_id: RepositoryId,
    /// Where they go.
    pub to_repository_id: RepositoryId,
    /// The most bytes to copy, or to read back, in a second.
    #[serde(default)]
    pub bytes_per_second_max: Option<u64>,
}

/// A repository to read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImportWork {
    pub repository_id: RepositoryId,
}

/// What a task's work is about, for those who list tasks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct About<'a> {
    pub backup_id: Option<&'a BackupId>,
    pub vm: Option<(&'a VmContextId, &'a str)>,
    pub repository_id: Option<&'a RepositoryId>,
    pub source_id: Option<&'a SourceId>,
}

impl Work {
    /// Reads the request of a task's row.
    pub fn read(request: &serde_json::Value) -> Result<Self> {
        Self::deserialize(request).map_err(|error| internal("a task's request cannot be read", error.to_string()))
    }

    /// The form that a task's row keeps.
    pub fn write(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|error| internal("a task's request cannot be written", error.to_string()))
    }

    /// How long it may take, all told, where whoever asked for it says so.
    pub fn time_limit_seconds(&self) -> Option<u32> {
        if let Self::Backup(work) = self { work.time_limit_seconds } else { None }
    }

    /// What it wants of its repository when it begins.
    pub fn wants(&self) -> Use {
        match self {
            Self::Backup(_) | Self::Merge(_) | Self::Move(_) => Use::Write,
            Self::Restore(_) | Self::Verify(_) | Self::Import(_) => Use::Read,
            // It is how a recovery that reads from the repository already comes to its end.
            Self::Migrate(_) => Use::GoOn,
        }
    }

    /// The kind of task that does it.
    pub fn kind(&self) -> TaskKind {
        match self {
            Self::Backup(_) => TaskKind::Backup,
            Self::Restore(_) | Self::Migrate(_) => TaskKind::Restore,
            Self::Verify(_) => TaskKind::Verify,
            Self::Merge(_) => TaskKind::Consolidate,
            Self::Move(_) => TaskKind::Move,
            Self::Import(_) => TaskKind::Import,
        }
    }

    /// What it is about.
    pub fn about(&self) -> About<'_> {
        match self {
            Self::Backup(work) => About {
                backup_id: Some(&work.backup_id),
                vm: Some((&work.vm_context_id, &work.vm_name)),
                repository_id: Some(&work.repository_id),
                source_id: Some(&work.source_id),
            },
            Self::Restore(work) => About {
                backup_id: Some(&work.backup_id),
                vm: Some((&work.vm_context_id, &work.vm_name)),
                repository_id: Some(&work.repository_id),
                source_id: work.source_id.as_ref(),
            },
            Self::Migrate(work) => About {
                backup_id: Some(&work.backup_id),
                vm: Some((&work.vm_context_id, &work.vm_name)),
                repository_id: Some(&work.repository_id),
                source_id: Some(&work.source_id),
            },
            Self::Verify(work) => About {
                backup_id: Some(&work.backup_id),
                vm: Some((&work.vm_context_id, &work.vm_name)),
                repository_id: Some(&work.repository_id),
                source_id: None,
            },
            Self::Merge(work) => About {
                backup_id: None,
                vm: Some((&work.vm_context_id, &work.vm_name)),
                repository_id: Some(&work.repository_id),
                source_id: None,
            },
            Self::Move(work) => About {
                backup_id: None,
                vm: Some((&work.vm_context_id, &work.vm_name)),
                repository_id: Some(&work.repository_id),
                source_id: None,
            },
            Self::Import(work) => About { repository_id: Some(&work.repository_id), ..About::default() },
        }
    }

    /// The repositories in which it works.
    pub fn repositories(&self) -> impl Iterator<Item = &RepositoryId> {
        let to = if let Self::Move(work) = self { Some(&work.to_repository_id) } else { None };
        self.about().repository_id.into_iter().chain(to)
    }

    /// What it occupies; `maximum` says how many tasks a repository or source bears.
    pub fn needs(
        &self,
        repository_max: impl Fn(&RepositoryId) -> usize,
        source_max: impl Fn(&SourceId) -> usize,
    ) -> Needs {
        let about = self.about();
        if matches!(self, Self::Merge(_) | Self::Move(_)) {
            // One at a time in each repository, and never in a backup's place.
            return Needs { rewrites: self.repositories().cloned().collect(), ..Needs::default() };
        }
        Needs {
            rewrites: Vec::new(),
            aside: match self {
                Self::Verify(work) if work.aside => Some(work.backup_id.clone()),
                _ => None,
            },
            repository: about.repository_id.map(|id| (id.clone(), repository_max(id))),
            source: about.source_id.map(|id| (id.clone(), source_max(id))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_read_back_from_its_row() {
        let work = Work::Verify(VerifyWork {
            backup_id: BackupId::generate(),
            vm_context_id: VmContextId::generate(),
            vm_name: "web".to_owned(),
            repository_id: RepositoryId::generate(),
            deep: true,
            own_files_only: false,
            aside: true,
        });
        let row = work.write().unwrap();
        assert_eq!(row["work"], "verify");
        assert_eq!(Work::read(&row).unwrap(), work);
        assert_eq!(work.kind(), TaskKind::Verify);
        assert!(Work::read(&serde_json::json!({"work": "unheard"})).is_err());
    }
}
