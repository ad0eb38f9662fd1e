//! Moving a machine's points to another repository: planned at once, done by a task.

use super::delete::refused;
use super::selector::Selector;
use super::{App, Caller, vms};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, invalid};
use crate::jobs::moving::refuse_recovered;
use crate::jobs::work::{MoveWork, Work};
use crate::maintenance::Use;
use sendense_api::{BYTES_PER_SECOND_MIN, ChainMove, MoveQuery, MoveVm, MovedBackup, Role};
use sendense_catalog as catalog;
use sendense_repo::Kind;
use sendense_types::{BackupId, BackupStatus, Problem, ProblemCode, RepositoryId, TaskKind, TaskState, VmContextId};

impl App {
    /// Moves all points of a machine from one repository to another, or shows what that would take.
    pub async fn move_chain(&self, caller: &Caller, vm: &str, request: MoveVm, how: MoveQuery) -> Result<ChainMove> {
        caller.require(Role::Admin)?;
        if request.bytes_per_second_max.is_some_and(|most| most < BYTES_PER_SECOND_MIN) {
            return Err(invalid(format!("bytes_per_second_max is at least {BYTES_PER_SECOND_MIN}")));
        }
        let vm = vms::find(&self.core, vm).await?;
        let to = self.repository(&request.to_repository_id).await?;
        let from = self.moved_from(&vm, request.repository_id.as_deref(), &to.repository_id).await?;
        let (from_id, to_id) = (&from.repository_id, &to.repository_id);
        if from_id == to_id {
            return Err(invalid(format!("the points lie in {} already", to.name)));
        }
        let wanted = if how.dry_run { Use::Read } else { Use::Write };
        let source = self.core.repositories.by_id(&self.core, from_id, wanted).await?;
        let target = self.core.repositories.by_id(&self.core, to_id, wanted).await?;
        let of = vm.vm_context_id.clone();
        let planned = blocking(move || {
            let plan = source.plan_move(&of, &target)?;
            Ok::<_, sendense_repo::Error>((plan, target.storage()?.available_bytes))
        });
        let (plan, available_bytes) = planned.await?.map_err(|error| match error.kind {
            Kind::NotFound => no_points(&vm, Some(from.name.as_str())),
            _ => refused(&error),
        })?;
        let policies = self.policies_that_stay(&vm, to_id).await?;
        let task_id = if how.dry_run {
            None
        } else {
            let ids: Vec<BackupId> = plan.ids().into_iter().collect();
            refuse_recovered(&self.core, &ids)?;
            self.refuse_at_work(&vm.vm_context_id).await?;
            if !policies.is_empty() && !request.leave_policies {
                let details = format!(
                    "{} would go on elsewhere than in {}, with a full; let them name it afterwards, and say leave_policies",
                    policies.join(", "),
                    to.name
                );
                return Err(Problem::new(
                    ProblemCode::Conflict,
                    "a policy backs the VM up to another repository",
                    details,
                ));
            }
            if plan.needed_bytes > available_bytes {
                let details =
                    format!("{} bytes are needed in {}, {available_bytes} are left", plan.needed_bytes, to.name);
                return Err(Problem::new(ProblemCode::NoSpace, "no space in the repository", details));
            }
            let work = MoveWork {
                vm_context_id: vm.vm_context_id.clone(),
                vm_name: vm.vm_name.to_string(),
                repository_id: from_id.clone(),
                to_repository_id: to_id.clone(),
                bytes_per_second_max: request.bytes_per_second_max,
            };
            let subject = catalog::TaskSubject::Repository(from_id.clone());
            Some(self.make_task(caller, Work::Move(work), subject).await?.task_id)
        };
        Ok(ChainMove {
            dry_run: how.dry_run,
            vm_context_id: vm.vm_context_id,
            vm_name: vm.vm_name.into(),
            repository_id: from.repository_id,
            to_repository_id: to.repository_id,
            bytes_stored: plan.bytes(),
            needed_bytes: plan.needed_bytes,
            available_bytes,
            backups: plan
                .points
                .into_iter()
                .map(|point| MovedBackup { backup_id: point.backup_id, bytes_stored: point.bytes })
                .collect(),
            policies,
            task_id,
        })
    }

    /// The repository that the points lie in: the one that was named, or the only one but the target.
    async fn moved_from(
        &self,
        vm: &catalog::VmContext,
        named: Option<&str>,
        to: &RepositoryId,
    ) -> Result<catalog::Repository> {
        if let Some(id_or_name) = named {
            return self.repository(id_or_name).await;
        }
        let found = self.repositories_of(&vm.vm_context_id, None).await?;
        let mut others = found.iter().filter(|id| *id != to);
        match (others.next(), others.next()) {
            (Some(one), None) => self.core.catalog.repositories().get(one).await.or_problem(),
            (Some(_), Some(_)) => {
                let ids: Vec<&str> = found.iter().filter(|id| *id != to).map(RepositoryId::as_str).collect();
                let details = format!("{}; say which with repository_id", ids.join(", "));
                Err(Problem::new(ProblemCode::Conflict, "the VM has points in several repositories", details))
            }
            (None, _) if found.contains(to) => Err(invalid("the points lie in that repository already")),
            (None, _) => Err(no_points(vm, None)),
        }
    }

    /// The policies that mean a machine and put its next point somewhere else.
    async fn policies_that_stay(&self, vm: &catalog::VmContext, to: &RepositoryId) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (row, rules) in self.all_policies().await? {
            if !Selector::new(&rules).means(vm) {
                continue;
            }
            let repository = self.core.catalog.repositories().find(&rules.repository_id).await;
            if !matches!(repository, Ok(repository) if repository.repository_id == *to) {
                names.push(row.name.to_string());
            }
        }
        Ok(names)
    }

    /// Refuses while a backup or another move of the machine waits or runs.
    async fn refuse_at_work(&self, vm: &VmContextId) -> Result<()> {
        let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
        for (state, status) in
            [(TaskState::Pending, BackupStatus::Pending), (TaskState::Running, BackupStatus::Running)]
        {
            let filter = catalog::BackupFilter {
                vm_context_id: Some(vm.clone()),
                status: Some(status),
                ..catalog::BackupFilter::default()
            };
            let (rows, _) = self.core.catalog.backups().list(&filter, page).await.or_problem()?;
            if let Some(row) = rows.first() {
                let details = format!("{} is {}; wait for its end, or cancel it", row.backup_id, row.status);
                return Err(Problem::new(ProblemCode::Conflict, "the VM is being backed up", details));
            }
            let filter = catalog::TaskFilter {
                kind: Some(TaskKind::Move),
                state: Some(state),
                ..catalog::TaskFilter::default()
            };
            let (rows, _) = self.core.catalog.tasks().list(&filter, page).await.or_problem()?;
            let is_same = |row: &&catalog::Task| matches!(Work::read(&row.request), Ok(Work::Move(work)) if work.vm_context_id == *vm);
            if let Some(row) = rows.iter().find(is_same) {
                let details = format!("task {} is {}", row.task_id, row.state);
                return Err(Problem::new(ProblemCode::Conflict, "the VM's points are being moved", details));
            }
        }
        Ok(())
    }
}

fn no_points(vm: &catalog::VmContext, repository: Option<&str>) -> Problem {
    let place = repository.map(|name| format!(" in {name}")).unwrap_or_default();
    let details = format!("{} has no point{place} that can be restored", vm.vm_name);
    Problem::new(ProblemCode::BackupNotFound, "the VM has no backup", details)
}
