//! Moves an execution that runs on by one step: what has ended is noted, what may begin begins, and when all have ended it ends.
//!
//! However many machines wait, a pass reads only those that run and those whose turn is next: all that it needs is read first, then decided
//! (`fate`), then written, what is alike in one transaction.
//!
//! Invariant: a machine is noted as running in the transaction that makes its backup, so that none is begun twice, whichever hub
//! dies, or is only stopped for a while.

use super::Window;
use super::fate::{BUSY_SECONDS, Standing, Step, has_waited_enough, refused, step, summary, window_closed, words};
use super::keep::Deciding;
use crate::app::policies::rules_of;
use crate::app::schedules::{schedule_rules, timetable};
use crate::app::{App, Caller};
use crate::fault::{OrProblem, Result};
use sendense_api::{CreateBackup, PolicyRules, Role};
use sendense_catalog as catalog;
use sendense_catalog::{Backup, Execution, ExecutionVm};
use sendense_types::{BackupId, BackupType, ExecutionId, ExecutionState, Problem, ProblemCode, VmContextId, VmOutcome};
use std::collections::{BTreeMap, HashMap};

/// Backups of one execution that wait or run at once, for each that a hub may run: as many again stand ready, and what a
/// person asks for meanwhile is not behind thousands.
const AT_ONCE_PER_RUNNING: usize = 2;

/// Machines of one execution that a pass tries to begin. Where none of thousands can begin, the passes between them still move the other
/// executions on.
const TRIED_MAX: usize = 256;

/// What a pass over an execution knows.
struct Work<'a> {
    app: &'a App,
    execution: &'a Execution,
    rules: PolicyRules,
    caller: Caller,
    standing: Standing,
}

/// Moves an execution on.
pub(super) async fn move_on(
    app: &App,
    execution: &Execution,
    schedule: Option<&catalog::Schedule>,
    deciding: &mut Deciding,
) -> Result<()> {
    let Some(work) = deciding.by(Work::of(app, execution, schedule)).await? else {
        let (executions, state) = (app.core.catalog.executions(), ExecutionState::Failed);
        let (id, why) = (&execution.execution_id, Some("its policy was deleted"));
        return executions.finish(id, &app.core.lease, state, why, app.core.now()).await.or_problem();
    };
    let steps = deciding.by(work.steps()).await?;
    let goes_on = |step: &&Step| matches!(step, Step::Leave | Step::Stop(_) | Step::StopWaiting(..));
    let mut running = steps.iter().filter(goes_on).count();
    work.take(steps).await?;
    if work.standing.may_begin {
        running += work.begin_next(running, deciding).await?;
    } else if deciding.by(work.outcomes()).await?.contains_key(&VmOutcome::Waiting) {
        work.leave_out(&window_closed).await?;
    }
    if running > 0 {
        return Ok(());
    }
    let outcomes = deciding.by(work.outcomes()).await?;
    match outcomes.keys().all(|outcome| outcome.is_final()) {
        true => work.end(&outcomes).await,
        false => Ok(()),
    }
}

impl<'a> Work<'a> {
    /// What the policy and the schedule say of it now; none where the policy is gone.
    async fn of(
        app: &'a App,
        execution: &'a Execution,
        schedule: Option<&catalog::Schedule>,
    ) -> Result<Option<Work<'a>>> {
        let now = app.core.now();
        let policy = match app.core.catalog.policies().find(execution.policy_id.as_str()).await {
            // Its schedule was given another one; backups that run go on by themselves.
            Err(error) if error.kind() == catalog::Kind::NotFound => return Ok(None),
            found => found.or_problem()?,
        };
        // A person who triggers it by hand has a reason to.
        let is_open = |window: &Window| window.is_open(now) || execution.triggered_by.is_some();
        let (may_begin, stops) = match schedule {
            Some(row) => {
                let window = timetable(row)?.window;
                let stops = schedule_rules(row)?.window.is_some_and(|window| window.stop_running);
                (window.as_ref().is_none_or(is_open), stops)
            }
            None => (true, false),
        };
        let identity = match (&execution.triggered_by, schedule) {
            (Some(by), _) => by.clone(),
            (None, Some(row)) => format!("schedule {}", row.name),
            (None, None) => format!("schedule {}", execution.schedule_id),
        };
        let standing = Standing { may_begin, may_run: may_begin || !stops, started_at: execution.started_at, now };
        let caller = Caller { identity, role: Role::Operator };
        Ok(Some(Work { app, execution, rules: rules_of(&policy)?, caller, standing }))
    }

    fn id(&self) -> &ExecutionId {
        &self.execution.execution_id
    }

    /// What is to be done about the machines whose backups were begun.
    async fn steps(&self) -> Result<Vec<Step>> {
        let catalog = &self.app.core.catalog;
        let vms = catalog.executions().vms_running(self.id()).await.or_problem()?;
        let ids: Vec<BackupId> = vms.iter().filter_map(|vm| vm.backup_id.clone()).collect();
        let backups = catalog.backups().of_ids(&ids).await.or_problem()?;
        let backups: HashMap<&BackupId, &Backup> = backups.iter().map(|one| (&one.backup_id, one)).collect();
        let backup_of = |vm: &ExecutionVm| vm.backup_id.as_ref().and_then(|id| backups.get(id).copied());
        Ok(vms.iter().map(|vm| step(&self.standing, vm, backup_of(vm))).collect())
    }

    /// Does it.
    async fn take(&self, steps: Vec<Step>) -> Result<()> {
        let (mut notes, mut have_points, mut stops, mut stop_waiting) = (vec![], vec![], vec![], vec![]);
        for step in steps {
            match step {
                Step::Leave => {}
                Step::Note(vm) => notes.push(vm),
                Step::HasPoint(vm) => {
                    have_points.push(vm.vm_context_id.clone());
                    notes.push(vm);
                }
                Step::StopWaiting(vm, backup_id) => stop_waiting.push((vm, backup_id)),
                Step::Stop(backup_id) => stops.push(backup_id),
            }
        }
        self.note(&notes).await?;
        for vm in have_points {
            let (policy_id, by) = (self.execution.policy_id.clone(), self.caller.identity.clone());
            self.app.prune_soon(policy_id, &self.rules, vm, by);
        }
        for (vm, backup_id) in stop_waiting {
            let executions = self.app.core.catalog.executions();
            // One that has begun in this moment is looked at as such by the next pass.
            if executions.cancel_waiting(self.id(), &self.app.core.lease, &vm).await.or_problem()? {
                stops.push(backup_id);
            }
        }
        for backup_id in stops {
            self.stop(&backup_id).await?;
        }
        Ok(())
    }

    async fn note(&self, vms: &[ExecutionVm]) -> Result<()> {
        if vms.is_empty() {
            return Ok(());
        }
        self.app.core.catalog.executions().set_vms(self.id(), &self.app.core.lease, vms).await.or_problem()
    }

    /// Stops a backup. Asking twice is asking once; its row tells when it has ended.
    async fn stop(&self, backup_id: &BackupId) -> Result<()> {
        match self.app.cancel_backup(&self.caller, backup_id).await {
            Err(problem) if problem.code != ProblemCode::Conflict => Err(problem),
            _ => Ok(()),
        }
    }

    /// Begins the backups of those whose turn is next, as far as there are places; returns how many.
    async fn begin_next(&self, running: usize, deciding: &mut Deciding) -> Result<usize> {
        let at_once = self.app.core.limits.running_per_hub.saturating_mul(AT_ONCE_PER_RUNNING);
        let at_once = self.rules.vms_at_once.map_or(at_once, |most| at_once.min(most as usize));
        let mut free = at_once.saturating_sub(running);
        let (mut begun, mut tried) = (0, 0);
        while free > 0 {
            let executions = self.app.core.catalog.executions();
            let due = deciding.by(executions.vms_due(self.id(), self.standing.now, free as u64)).await.or_problem()?;
            if due.is_empty() {
                break;
            }
            if tried >= TRIED_MAX {
                self.app.core.schedules_changed.notify_one();
                break;
            }
            tried += due.len();
            let begins = self.begin(&due, deciding).await?;
            begun += begins;
            free -= begins;
        }
        Ok(begun)
    }

    /// Begins the backups of machines, or notes why not; returns how many have begun.
    async fn begin(&self, due: &[ExecutionVm], deciding: &mut Deciding) -> Result<usize> {
        let (mut vms, mut refusals) = (Vec::new(), Vec::new());
        for vm in due {
            match deciding.by(self.app.next_type(&self.rules, &vm.vm_context_id)).await {
                Ok(backup_type) => vms.push((vm, backup_type)),
                Err(problem) => refusals.push(refused(&self.standing, vm.clone(), &problem)),
            }
        }
        let begun = self.begin_these(&vms, &mut refusals).await;
        self.note(&refusals).await?;
        begun
    }

    /// Begins backups together, and adds those that cannot be begun to `refusals`.
    async fn begin_these(&self, vms: &[(&ExecutionVm, BackupType)], refusals: &mut Vec<ExecutionVm>) -> Result<usize> {
        let asked: Vec<(VmContextId, BackupType)> =
            vms.iter().map(|(vm, backup_type)| (vm.vm_context_id.clone(), *backup_type)).collect();
        let told = self.app.create_backups_in(&self.caller, &self.asked(), &asked, self.id()).await;
        let mut begun = 0;
        match told {
            Ok(told) => {
                for ((vm, _), told) in vms.iter().zip(told) {
                    match told {
                        Ok(_) => begun += 1,
                        Err(problem) => refusals.push(refused(&self.standing, (*vm).clone(), &problem)),
                    }
                }
            }
            // They wait all alike, and no machine has had an attempt.
            Err(problem) if problem.code == ProblemCode::RepositoryMaintenance => self.wait_for(&problem).await?,
            Err(problem) if problem.code == ProblemCode::Busy => self.put_off(&problem).await?,
            // Another hub has the execution now.
            Err(problem) if problem.code == ProblemCode::Conflict => return Err(problem),
            // Whose fault it was is not said: each alone, so that one that cannot be read ends no other.
            Err(problem) if problem.code == ProblemCode::Internal && vms.len() > 1 => {
                tracing::warn!(execution_id = %self.id(), error = %problem.message, details = %problem.details,
                    "begin backups together; they are begun one by one");
                for vm in vms {
                    begun += Box::pin(self.begin_these(std::slice::from_ref(vm), refusals)).await?;
                }
            }
            Err(problem) => refusals.extend(vms.iter().map(|(vm, _)| refused(&self.standing, (*vm).clone(), &problem))),
        }
        Ok(begun)
    }

    /// What is asked of every machine; its id and its type are put in.
    fn asked(&self) -> CreateBackup {
        CreateBackup {
            vm_name: None,
            vm_context_id: None,
            repository_id: self.rules.repository_id.clone(),
            backup_type: BackupType::Incremental,
            disk_id: None,
            policy_id: Some(self.execution.policy_id.to_string()),
            tags: BTreeMap::new(),
            quiesce: self.rules.quiesce || self.rules.quiesce_or_fail,
            quiesce_or_fail: self.rules.quiesce_or_fail,
            compression: self.rules.compression,
            on_tracking_loss: self.rules.on_tracking_loss,
            time_limit_seconds: self.rules.time_limit_seconds,
            bytes_per_second_max: self.rules.bytes_per_second_max,
            exclude_disks: Vec::new(),
        }
    }

    /// Lets all that wait do so until the repository is in use again, but not for ever.
    async fn wait_for(&self, problem: &Problem) -> Result<()> {
        match has_waited_enough(&self.standing) {
            true => self.leave_out(&|_| words(problem)).await,
            false => self.put_off(problem).await,
        }
    }

    async fn put_off(&self, problem: &Problem) -> Result<()> {
        let (now, until) = (self.standing.now, self.standing.now.plus_seconds(BUSY_SECONDS));
        let (executions, lease) = (self.app.core.catalog.executions(), &self.app.core.lease);
        executions.put_off_due(self.id(), lease, now, until, &words(problem)).await.or_problem().map(drop)
    }

    async fn leave_out(&self, why: &(dyn Fn(Option<&str>) -> String + Sync)) -> Result<()> {
        let executions = self.app.core.catalog.executions();
        executions.leave_out_waiting(self.id(), &self.app.core.lease, why).await.or_problem().map(drop)
    }

    async fn outcomes(&self) -> Result<BTreeMap<VmOutcome, u64>> {
        self.app.core.catalog.executions().outcomes(self.id()).await.or_problem()
    }

    async fn end(&self, outcomes: &BTreeMap<VmOutcome, u64>) -> Result<()> {
        let (state, reason) = summary(outcomes);
        // How it ended comes first, and what was told of its begin stays.
        let reason = reason.map(|ended| match &self.execution.reason {
            Some(begun) => format!("{ended}; {begun}"),
            None => ended,
        });
        let (executions, lease, now) = (self.app.core.catalog.executions(), &self.app.core.lease, self.standing.now);
        executions.finish(self.id(), lease, state, reason.as_deref(), now).await.or_problem()?;
        let vms: u64 = outcomes.values().sum();
        tracing::info!(execution_id = %self.id(), state = %state, vms, "execution ended");
        Ok(())
    }
}
