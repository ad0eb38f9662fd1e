//! Removing tracking marks (checkpoints) that no chain needs any more.
//!
//! A mark goes only when no chain's newest point, in any repository, names it. What the newest points name is read from the
//! catalog; the point that was published just now is not in it yet and is added here.
//!
//! Invariant: this happens while the backup still holds its machine. Once the catalog says that it has ended, the machine's
//! next backup may begin, and its mark, which no point names yet, would be taken for one that nobody needs.

use super::super::handle::Handle;
use super::super::work::BackupWork;
use crate::core::Core;
use crate::fault::{OrProblem, Result};
use sendense_block::Cancel;
use sendense_catalog::{BackupDisk, Completed, TokenInUse};
use sendense_source::VmRef;
use sendense_types::{RepositoryId, TrackingToken};
use std::sync::Arc;

/// Removes what is not needed after a backup that was published, or failed: then its own mark goes too. What does not work
/// now is done after the machine's next backup, and costs no point.
pub(super) async fn retire(core: &Arc<Core>, handle: &Handle, work: &BackupWork, published: Option<&Completed>) {
    match try_retire(core, work, published).await {
        Ok(retired) if retired.is_empty() => {}
        Ok(retired) => handle.info(format!("{} tracking marks that no chain needs were removed", retired.len())),
        Err(problem) => {
            tracing::warn!(task_id = %handle.task_id, error = %problem.message, details = %problem.details, "retire");
            handle.warn(format!("tracking marks could not be removed: {}", problem.message));
        }
    }
}

async fn try_retire(core: &Arc<Core>, work: &BackupWork, published: Option<&Completed>) -> Result<Vec<TrackingToken>> {
    let in_use = core.catalog.backups().tokens_in_use(&work.vm_context_id).await.or_problem()?;
    let disks = published.map_or(&[][..], |point| &point.disks);
    let keep = kept(in_use, &work.repository_id, disks);
    let source_row = core.catalog.sources().get(&work.source_id).await.or_problem()?;
    let vm = core.catalog.vms().get(&work.vm_context_id).await.or_problem()?;
    let source = core.open_source(&source_row)?;
    let reference = VmRef { instance_uuid: vm.instance_uuid, name: vm.vm_name.into() };
    let journal = core.journal.clone();
    // Not the task's own: a source that is slow here must not end a backup that is published.
    let cancel = Cancel::new();
    crate::app::sources::answer(&source_row.name, &cancel, move |cancel| {
        source.retire(&reference, &keep, &journal, cancel)
    })
    .await
}

/// The marks that stay: those of every chain's newest point once `disks` are the newest in `repository`.
fn kept(in_use: Vec<TokenInUse>, repository: &RepositoryId, disks: &[BackupDisk]) -> Vec<TrackingToken> {
    let replaced =
        |used: &TokenInUse| used.repository_id == *repository && disks.iter().any(|disk| disk.disk_id == used.disk_id);
    let others = in_use.into_iter().filter(|used| !replaced(used)).map(|used| used.token);
    others.chain(disks.iter().filter_map(|disk| disk.change_id.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_types::{BackupId, BackupStatus, BackupType, DiskNumber};

    fn token(name: &str) -> TrackingToken {
        TrackingToken(name.to_owned())
    }

    fn used(repository: &str, disk: u32, name: &str) -> TokenInUse {
        TokenInUse {
            repository_id: repository.parse().unwrap(),
            disk_id: DiskNumber(disk),
            backup_id: BackupId::generate(),
            token: token(name),
        }
    }

    fn disk(number: u32, name: Option<&str>) -> BackupDisk {
        BackupDisk {
            disk_id: DiskNumber(number),
            disk_key: format!("vd{number}"),
            label: String::new(),
            backup_type: BackupType::Incremental,
            type_reason: None,
            file_path: None,
            capacity_bytes: 0,
            bytes_transferred: 0,
            bytes_stored: 0,
            backing_file: None,
            change_id: name.map(token),
            tracking_audit: None,
            status: BackupStatus::Completed,
            parent_backup_id: None,
        }
    }

    #[test]
    fn only_what_the_new_point_replaces_goes() {
        let in_use = || vec![used("repo-1", 0, "a"), used("repo-1", 1, "a"), used("repo-2", 0, "b")];
        let here: RepositoryId = "repo-1".parse().unwrap();
        let kept = |disks: &[BackupDisk]| {
            let kept = kept(in_use(), &here, disks);
            kept.into_iter().map(|token| token.0).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[disk(0, Some("c")), disk(1, Some("c"))]), ["b", "c", "c"]);
        assert_eq!(kept(&[disk(0, Some("c"))]), ["a", "b", "c"], "the other disk's newest point still names it");
        assert_eq!(kept(&[disk(0, None), disk(1, None)]), ["b"]);
        assert_eq!(kept(&[]), ["a", "a", "b"], "after a failure nothing is replaced");
    }
}
