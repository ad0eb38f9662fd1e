//! Gives waiting tasks to free places.
//!
//! The dispatcher has no state of its own: whenever it is woken (a task was made, one ended) and every few seconds (another
//! hub's tasks, limits that changed), it reads what waits and starts what may run. A restart is thus an ordinary pass.

use super::queue::{MERGES_MAX, Needs, startable};
use super::runner;
use super::work::Work;
use crate::core::Core;
use crate::fault::{OrProblem, Result};
use crate::maintenance::allows;
use crate::repositories::{Repositories, Standing};
use sendense_catalog::{Conflict, Error, Page, Task};
use sendense_types::RepositoryMode;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Between two passes without a wake-up: what another hub left, or a repository that came back, waits so long at most.
const PASS_PERIOD: Duration = Duration::from_secs(2);

/// Runs until the hub stops.
pub(crate) async fn run(core: Arc<Core>) {
    let mut tick = tokio::time::interval(PASS_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = core.running.wake.notified() => {}
            _ = tick.tick() => {}
        }
        if let Err(problem) = pass(&core).await {
            tracing::warn!(error = %problem.message, details = %problem.details, "look for work");
        }
    }
}

async fn pass(core: &Arc<Core>) -> Result<()> {
    if core.running.count() >= core.limits.running_per_hub + MERGES_MAX {
        return Ok(());
    }
    let pending = core.catalog.tasks().pending(Page::LIMIT_MAX).await.or_problem()?;
    if pending.is_empty() {
        return Ok(());
    }
    let limits = Limits::read(core).await?;
    let mut waiting: Vec<(Task, Work, Needs)> = Vec::new();
    for task in pending {
        match Work::read(&task.request) {
            Ok(work) if limits.holds_back(&work) || !is_ours(core, &work) => {}
            Ok(work) => {
                let needs = limits.needs(core, &work);
                waiting.push((task, work, needs));
            }
            Err(problem) => runner::refuse(core, &task, &problem).await,
        }
    }
    let needs: Vec<Needs> = waiting.iter().map(|(_, _, needs)| needs.clone()).collect();
    let mut start = startable(&needs, &core.running.needs(), core.limits.running_per_hub);
    // From the back, so that positions stay right while tasks are taken out.
    let mut chosen = Vec::new();
    while let Some(position) = start.pop() {
        chosen.push(waiting.swap_remove(position));
    }
    while let Some((task, work, needs)) = chosen.pop() {
        match runner::claim(core, &task).await {
            Ok(task) => runner::start(core, task, work, needs),
            // Another hub was faster, or a person cancelled it between the reading and here.
            Err(Error::Conflict(Conflict::LeaseLost { .. } | Conflict::WrongState { .. })) => {}
            Err(error) => return Err(error).or_problem(),
        }
    }
    Ok(())
}

/// False for work in a repository that another hub of the deployment owns: it is left to that one. A repository that this
/// hub has not tried to open is tried first, so that no task is taken and failed for want of a look.
fn is_ours(core: &Arc<Core>, work: &Work) -> bool {
    // An import may take a repository over; that is decided when it runs.
    if matches!(work, Work::Import(_)) {
        return true;
    }
    let Some(id) = work.about().repository_id else { return true };
    match core.repositories.standing(core, id) {
        Standing::Open | Standing::Away => true,
        Standing::Elsewhere => false,
        Standing::Untried => {
            Repositories::open_in_background(core, id);
            false
        }
    }
}

/// How many tasks each repository and source bears, where they say so themselves.
struct Limits {
    repositories: HashMap<sendense_types::RepositoryId, usize>,
    sources: HashMap<sendense_types::SourceId, usize>,
    /// Of those that are not in normal use.
    modes: HashMap<sendense_types::RepositoryId, RepositoryMode>,
}

impl Limits {
    async fn read(core: &Core) -> Result<Self> {
        let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
        let (repositories, _) = core.catalog.repositories().list(page).await.or_problem()?;
        let (sources, _) = core.catalog.sources().list(page).await.or_problem()?;
        let modes = repositories.iter().map(|row| (row.repository_id.clone(), row.maintenance.mode));
        let modes = modes.filter(|(_, mode)| *mode != RepositoryMode::Normal).collect();
        let repositories = repositories.into_iter().filter_map(|row| {
            let max = crate::app::repositories::Settings::read(&row.settings).ok()?.running_tasks_max?;
            Some((row.repository_id, max as usize))
        });
        let sources = sources.into_iter().filter_map(|row| {
            let max = crate::app::sources::Settings::read(&row.config).ok()?.running_tasks_max?;
            Some((row.source_id, max as usize))
        });
        Ok(Self { repositories: repositories.collect(), sources: sources.collect(), modes })
    }

    /// True for work that waits until its repository is out of maintenance.
    fn holds_back(&self, work: &Work) -> bool {
        let mut modes = work.repositories().filter_map(|id| self.modes.get(id));
        modes.any(|mode| !allows(*mode, work.wants()))
    }

    fn needs(&self, core: &Core, work: &Work) -> Needs {
        work.needs(
            |id| self.repositories.get(id).copied().unwrap_or(core.limits.running_per_repository),
            |id| self.sources.get(id).copied().unwrap_or(core.limits.running_per_source),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::work::{BackupWork, ImportWork, MergeWork, MigrateWork, MoveWork, RestoreWork, VerifyWork};
    use sendense_api::{ImageFormat, RestoreTarget};
    use sendense_types::{BackupType, Compression, OnTrackingLoss, RecoveryId, RepositoryId, SourceId};

    /// One of each sort, in this repository.
    fn each(repository_id: &RepositoryId) -> Vec<Work> {
        let (vm_context_id, vm_name) = ("vm-1".parse().unwrap(), "web".to_owned());
        let (backup_id, source_id): (_, SourceId) = ("bk-1".parse().unwrap(), "src-1".parse().unwrap());
        let backup = BackupWork {
            time_limit_seconds: None,
            bytes_per_second_max: None,
            backup_id,
            vm_context_id,
            vm_name,
            source_id,
            repository_id: repository_id.clone(),
            backup_type: BackupType::Full,
            disk_id: None,
            exclude_disks: Vec::new(),
            quiesce: false,
            quiesce_or_fail: false,
            compression: Compression::Off,
            on_tracking_loss: OnTrackingLoss::Compare,
            policy_id: None,
            tags: Default::default(),
            recovery_id: None,
        };
        let BackupWork { backup_id, vm_context_id, vm_name, source_id, repository_id, .. } = backup.clone();
        vec![
            Work::Backup(backup),
            Work::Restore(RestoreWork {
                backup_id: backup_id.clone(),
                vm_context_id: vm_context_id.clone(),
                vm_name: vm_name.clone(),
                repository_id: repository_id.clone(),
                disk_id: None,
                source_id: None,
                target: RestoreTarget::Nbd { uri: "nbd://host".to_owned() },
                allow_damaged: false,
            }),
            Work::Migrate(MigrateWork {
                recovery_id: RecoveryId::generate(),
                backup_id: backup_id.clone(),
                vm_context_id: vm_context_id.clone(),
                vm_name: vm_name.clone(),
                repository_id: repository_id.clone(),
                source_id,
                folder: "/images".to_owned(),
                format: ImageFormat::Raw,
            }),
            Work::Verify(VerifyWork {
                backup_id: backup_id.clone(),
                vm_context_id: vm_context_id.clone(),
                vm_name: vm_name.clone(),
                repository_id: repository_id.clone(),
                deep: true,
                own_files_only: false,
                aside: false,
            }),
            Work::Merge(MergeWork {
                vm_context_id,
                vm_name,
                repository_id: repository_id.clone(),
                backup_ids: vec![backup_id],
                full: None,
                aside: false,
            }),
            Work::Move(MoveWork {
                vm_context_id: "vm-1".parse().unwrap(),
                vm_name: "web".to_owned(),
                repository_id: repository_id.clone(),
                to_repository_id: RepositoryId::generate(),
                bytes_per_second_max: None,
            }),
            Work::Import(ImportWork { repository_id }),
        ]
    }

    #[test]
    fn every_sort_of_task_waits_in_the_modes_that_do_not_allow_it() {
        let (here, elsewhere) = (RepositoryId::generate(), RepositoryId::generate());
        let mut table = String::new();
        for mode in RepositoryMode::ALL {
            let modes = [(here.clone(), *mode)].into();
            let limits = Limits { repositories: HashMap::new(), sources: HashMap::new(), modes };
            let waiting: Vec<&str> = each(&here)
                .iter()
                .filter(|work| limits.holds_back(work))
                .map(|work| if matches!(work, Work::Migrate(_)) { "migrate" } else { work.kind().as_str() })
                .collect();
            table.push_str(&format!("{mode} holds back [{}]\n", waiting.join(", ")));
            assert!(each(&elsewhere).iter().all(|work| !limits.holds_back(work)), "of another repository");
            let (vm_context_id, vm_name) = ("vm-1".parse().unwrap(), "web".to_owned());
            let (repository_id, to_repository_id) = (elsewhere.clone(), here.clone());
            let bytes_per_second_max = None;
            let here_too =
                Work::Move(MoveWork { vm_context_id, vm_name, repository_id, to_repository_id, bytes_per_second_max });
            assert_eq!(limits.holds_back(&here_too), mode != &RepositoryMode::Normal, "both ends of a move count");
        }
        expect_test::expect![[r#"
            normal holds back []
            read_only holds back [backup, consolidate, move]
            draining holds back [backup, restore, verify, consolidate, move, import]
            offline holds back [backup, restore, migrate, verify, consolidate, move, import]
        "#]]
        .assert_eq(&table);
    }
}
