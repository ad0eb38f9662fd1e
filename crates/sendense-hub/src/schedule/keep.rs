//! Carries schedules out: begins what is due, moves what runs on, and ends it.
//!
//! A pass reads everything anew and may be repeated at any time: what a hub that died had begun is found in the catalog and
//! goes on. Of several hubs on one catalog each makes passes; the catalog lets one of them have an occurrence or an execution.
//!
//! ```text
//! waiting --begin a backup--> running --its row ends--> completed | failed
//!    ^------- what may pass, after a while -----'
//! ```
//!
//! Invariant: a machine is noted as running in the transaction that makes its backup, so that none is begun twice, whichever hub
//! dies, or is only stopped for a while.

use super::{Decision, History, Window, decide};
use crate::app::policies::{merges, rules_of};
use crate::app::schedules::{schedule_rules, timetable};
use crate::app::{App, Caller};
use crate::fault::{OrProblem, Result};
use crate::metrics;
use sendense_api::{CreateBackup, PolicyRules, PruneQuery, Role};
use sendense_catalog as catalog;
use sendense_catalog::{Execution, ExecutionVm};
use sendense_types::{
    BackupId, BackupStatus, ExecutionState, Problem, ProblemCode, Timestamp, VmContextId, VmOutcome, WhoActs,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two passes. An idle one costs two small queries, and what is due begins this much late at the most.
const PASS_PERIOD: Duration = Duration::from_secs(2);

/// Between two looks for new machines: a quarter of an hour is soon enough for a night's schedule, and a vCenter bears it.
const DISCOVER_PERIOD: Duration = Duration::from_secs(15 * 60);

/// How long after a failure that may pass a machine is tried again: half a minute for a stall, then as long as restarts and
/// repairs take. After the last it has failed; the next occurrence is its next chance.
const RETRY_SECONDS: [i64; 4] = [30, 300, 900, 1800];

/// How long a machine waits that cannot begin now because of others: a backup by hand, a full queue.
const BUSY_SECONDS: i64 = 60;

/// Why a machine was left out whose backup had not begun when the window closed. Noted before its backup is stopped, so that it is
/// known afterwards who stopped it.
const WINDOW_CLOSED: &str = "the window closed before its turn came";

/// How long an execution waits for a repository that is looked after: a night's and a day's work on the shelf. Then its machines
/// are left out, and the next occurrence has its turn.
const MAINTENANCE_SECONDS_MAX: i64 = 24 * 3600;

/// Backups of one execution that wait or run at once, for each that a hub may run: as many again stand ready, and what a
/// person asks for meanwhile is not behind thousands.
const AT_ONCE_PER_RUNNING: usize = 2;

/// Passes until the hub stops.
pub(crate) async fn keep(app: App) {
    let mut tick = tokio::time::interval(PASS_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = Told::default();
    loop {
        tokio::select! {
            () = app.core.stop.cancelled() => return,
            () = app.core.schedules_changed.notified() => {}
            _ = tick.tick() => {}
        }
        let begun = Instant::now();
        let done = pass(&app, &mut told).await;
        metrics::schedules_passed(begun.elapsed());
        told.of("schedules", done);
    }
}

/// Troubles that the log was told of: each once, until it is over.
#[derive(Default)]
struct Told(BTreeMap<String, Problem>);

impl Told {
    fn of(&mut self, what: &str, done: Result<()>) {
        match done {
            Ok(()) => drop(self.0.remove(what)),
            Err(problem) if self.0.get(what) == Some(&problem) => {}
            Err(problem) => {
                tracing::warn!(of = what, error = %problem.message, details = %problem.details, "carry out schedules");
                self.0.insert(what.to_owned(), problem);
            }
        }
    }

    /// Forgets what is not there any more.
    fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|what, _| is_there(what));
    }
}

/// Looks for machines that policies may mean, so that a new one is protected without anyone's doing.
pub(crate) async fn rediscover(app: App) {
    let begin = tokio::time::Instant::now() + DISCOVER_PERIOD;
    let mut tick = tokio::time::interval_at(begin, DISCOVER_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.core.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        if let Err(problem) = discover_all(&app).await {
            tracing::warn!(error = %problem.message, details = %problem.details, "look for new machines");
        }
    }
}

/// Discovers every source, when there is a policy that wants to know. One that does not answer holds up no other for long: each
/// call to a source has its own time limit.
pub(crate) async fn discover_all(app: &App) -> Result<()> {
    let one = catalog::Page { limit: 1, offset: 0 };
    if app.core.catalog.policies().list(one).await.or_problem()?.1 == 0 {
        return Ok(());
    }
    let all = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
    let (sources, _) = app.core.catalog.sources().list(all).await.or_problem()?;
    let caller = Caller { identity: "schedules".to_owned(), role: Role::Operator };
    for source in sources {
        if app.core.stop.is_cancelled() {
            return Ok(());
        }
        if let Err(problem) = app.discover_source(&caller, source.source_id.as_str()).await {
            tracing::warn!(source_id = %source.source_id, error = %problem.message, details = %problem.details,
                "look for new machines of a source; what is known of it stays known");
        }
    }
    Ok(())
}

async fn pass(app: &App, told: &mut Told) -> Result<()> {
    let schedules = schedules(app).await?;
    let running = app.core.catalog.executions().running().await.or_problem()?;
    for schedule in schedules.values().filter(|schedule| schedule.enabled) {
        let is_running = running.iter().any(|execution| execution.schedule_id == schedule.schedule_id);
        told.of(schedule.schedule_id.as_str(), begin(app, schedule, is_running).await);
    }
    let running = app.core.catalog.executions().running().await.or_problem()?;
    told.keep(|what| {
        let is_running = running.iter().any(|execution| execution.execution_id.as_str() == what);
        what == "schedules" || is_running || schedules.contains_key(what)
    });
    for execution in running {
        let Some(execution) = ours(app, execution).await? else { continue };
        let schedule = schedules.get(execution.schedule_id.as_str());
        let done = match move_on(app, &execution, schedule).await {
            // Another hub has it now, or somebody has forgotten the schedule.
            Err(problem) if matches!(problem.code, ProblemCode::Conflict | ProblemCode::ExecutionNotFound) => Ok(()),
            done => done,
        };
        told.of(execution.execution_id.as_str(), done);
    }
    Ok(())
}

async fn schedules(app: &App) -> Result<BTreeMap<String, catalog::Schedule>> {
    let mut all = BTreeMap::new();
    loop {
        let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: all.len() as u64 };
        let (rows, _) = app.core.catalog.schedules().list(page).await.or_problem()?;
        let is_last = (rows.len() as u64) < catalog::Page::LIMIT_MAX;
        all.extend(rows.into_iter().map(|row| (row.schedule_id.to_string(), row)));
        if is_last {
            return Ok(all);
        }
    }
}

/// Begins or skips what is due.
async fn begin(app: &App, row: &catalog::Schedule, is_running: bool) -> Result<()> {
    let history = History { handled: row.handled, is_running };
    let handled = match decide(&timetable(row)?, history, app.core.now()) {
        Decision::Wait(_) => return Ok(()),
        Decision::Run { due, is_late } => {
            let reason = is_late.then(|| "caught up with: no hub was there to begin it".to_owned());
            app.begin_execution(row, due, None, reason).await
        }
        Decision::Skip { due, why } => {
            let new = catalog::NewExecution {
                execution_id: sendense_types::ExecutionId::generate(),
                schedule_id: row.schedule_id.clone(),
                policy_id: row.policy_id.clone(),
                due,
                triggered_by: None,
                reason: Some(why.to_string()),
                vms: Vec::new(),
            };
            app.core.catalog.executions().skip(&new, &app.core.lease, app.core.now()).await.or_problem()
        }
    };
    match handled {
        Ok(execution) => {
            tracing::info!(schedule_id = %row.schedule_id, execution_id = %execution.execution_id,
                due = %execution.due, state = %execution.state, "schedule due");
            Ok(())
        }
        // Another hub was faster.
        Err(problem) if problem.code == ProblemCode::Conflict => Ok(()),
        Err(problem) => Err(problem),
    }
}

/// The execution when this hub carries it out, be it that its hub is dead.
async fn ours(app: &App, execution: Execution) -> Result<Option<Execution>> {
    if execution.hub == app.core.lease {
        return Ok(Some(execution));
    }
    let (id, now) = (&execution.execution_id, app.core.now());
    match app.core.catalog.executions().take_over(id, &app.core.lease, now).await {
        Ok(execution) => {
            tracing::info!(execution_id = %execution.execution_id, "execution of a dead hub taken over");
            Ok(Some(execution))
        }
        Err(error) if matches!(error.kind(), catalog::Kind::Conflict | catalog::Kind::NotFound) => Ok(None),
        Err(error) => Err(error).or_problem(),
    }
}

/// What a pass over an execution knows.
struct Work<'a> {
    app: &'a App,
    execution: &'a Execution,
    rules: PolicyRules,
    caller: Caller,
    /// Whether backups may begin now, and whether those that run may go on.
    may_begin: bool,
    may_run: bool,
    now: Timestamp,
}

async fn move_on(app: &App, execution: &Execution, schedule: Option<&catalog::Schedule>) -> Result<()> {
    let now = app.core.now();
    let policy = match app.core.catalog.policies().find(execution.policy_id.as_str()).await {
        // Its schedule was given another one; backups that run go on by themselves.
        Err(error) if error.kind() == catalog::Kind::NotFound => {
            let (executions, state) = (app.core.catalog.executions(), ExecutionState::Failed);
            let (id, why) = (&execution.execution_id, Some("its policy was deleted"));
            return executions.finish(id, &app.core.lease, state, why, now).await.or_problem();
        }
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
    let work = Work {
        app,
        execution,
        rules: rules_of(&policy)?,
        caller: Caller { identity, role: Role::Operator },
        may_begin,
        may_run: may_begin || !stops,
        now,
    };
    let (_, mut vms) = app.core.catalog.executions().get(&execution.execution_id).await.or_problem()?;
    for vm in vms.iter_mut().filter(|vm| vm.outcome == VmOutcome::Running) {
        work.look(vm).await?;
    }
    let at_once = app.core.limits.running_per_hub.saturating_mul(AT_ONCE_PER_RUNNING);
    let at_once = work.rules.vms_at_once.map_or(at_once, |most| at_once.min(most as usize));
    let mut free = at_once.saturating_sub(vms.iter().filter(|vm| vm.outcome == VmOutcome::Running).count());
    for vm in vms.iter_mut().filter(|vm| vm.outcome == VmOutcome::Waiting) {
        if !work.may_begin {
            vm.outcome = VmOutcome::Skipped;
            note_window_closed(vm);
            work.note(vm).await?;
        } else if free > 0 && vm.not_before.is_none_or(|not_before| not_before <= now) {
            work.begin(vm).await?;
            free -= usize::from(vm.outcome == VmOutcome::Running);
        }
    }
    if vms.iter().all(|vm| vm.outcome.is_final()) {
        let (state, reason) = summary(&vms);
        // How it ended comes first, and what was told of its begin stays.
        let reason = reason.map(|ended| match &execution.reason {
            Some(begun) => format!("{ended}; {begun}"),
            None => ended,
        });
        let executions = app.core.catalog.executions();
        executions
            .finish(&execution.execution_id, &app.core.lease, state, reason.as_deref(), now)
            .await
            .or_problem()?;
        tracing::info!(execution_id = %execution.execution_id, state = %state, vms = vms.len(), "execution ended");
    }
    Ok(())
}

/// Notes why a machine is left out, with what it has waited for.
fn note_window_closed(vm: &mut ExecutionVm) {
    let waited = vm.reason.take().map(|reason| format!(" ({reason})")).unwrap_or_default();
    vm.reason = Some(format!("{WINDOW_CLOSED}{waited}"));
}

/// Whether a machine's backup was stopped because it had not begun when the window closed.
fn came_too_late(vm: &ExecutionVm) -> bool {
    vm.reason.as_ref().is_some_and(|reason| reason.starts_with(WINDOW_CLOSED))
}

/// How an execution ended.
fn summary(vms: &[ExecutionVm]) -> (ExecutionState, Option<String>) {
    let count = |outcome: VmOutcome| vms.iter().filter(|vm| vm.outcome == outcome).count();
    match (vms.len(), count(VmOutcome::Failed), count(VmOutcome::Skipped)) {
        (0, _, _) => (ExecutionState::Failed, Some("the policy matches no VM".to_owned())),
        (_, 0, 0) => (ExecutionState::Completed, None),
        (all, failed, skipped) => {
            let reason = format!("of {all} VMs {failed} failed and {skipped} were left out");
            (ExecutionState::Failed, Some(reason))
        }
    }
}

impl Work<'_> {
    async fn note(&self, vm: &ExecutionVm) -> Result<()> {
        let executions = self.app.core.catalog.executions();
        executions.set_vm(&self.execution.execution_id, &self.app.core.lease, vm).await.or_problem()
    }

    /// Looks what became of a backup.
    async fn look(&self, vm: &mut ExecutionVm) -> Result<()> {
        let Some(backup_id) = vm.backup_id.clone() else {
            // Both are written at once; a row that says otherwise was changed by other hands.
            vm.outcome = VmOutcome::Waiting;
            return self.note(vm).await;
        };
        let backup = match self.app.core.catalog.backups().get(&backup_id).await {
            Ok(backup) => backup,
            Err(error) if error.kind() == catalog::Kind::NotFound => {
                vm.outcome = VmOutcome::Failed;
                vm.reason = Some(format!("backup {backup_id} was deleted"));
                return self.note(vm).await;
            }
            Err(error) => return Err(error).or_problem(),
        };
        match backup.status {
            // It stands in the queue and has not begun.
            BackupStatus::Pending if !self.may_begin => {
                if !came_too_late(vm) {
                    note_window_closed(vm);
                    let executions = self.app.core.catalog.executions();
                    let (id, lease) = (&self.execution.execution_id, &self.app.core.lease);
                    // One that has begun in this moment is looked at as such by the next pass.
                    if !executions.cancel_waiting(id, lease, vm).await.or_problem()? {
                        return Ok(());
                    }
                }
                self.cancel(&backup_id).await
            }
            BackupStatus::Pending | BackupStatus::Running if self.may_run => Ok(()),
            BackupStatus::Pending | BackupStatus::Running => self.cancel(&backup_id).await,
            BackupStatus::Completed => {
                vm.outcome = VmOutcome::Completed;
                vm.reason = None;
                self.note(vm).await?;
                self.prune(vm.vm_context_id.clone());
                Ok(())
            }
            BackupStatus::Cancelled if came_too_late(vm) => {
                vm.outcome = VmOutcome::Skipped;
                self.note(vm).await
            }
            BackupStatus::Cancelled if !self.may_run => {
                vm.outcome = VmOutcome::Skipped;
                vm.reason = Some("stopped when the window closed".to_owned());
                self.note(vm).await
            }
            BackupStatus::Cancelled => {
                vm.outcome = VmOutcome::Failed;
                vm.reason = Some("stopped by a person".to_owned());
                self.note(vm).await
            }
            BackupStatus::Failed => {
                let message = backup.error_message.unwrap_or_else(|| "the backup failed".to_owned());
                self.failed(vm, message, backup.error_code.unwrap_or(ProblemCode::Internal)).await
            }
        }
    }

    /// Stops a backup. Asking twice is asking once; its row tells when it has ended.
    async fn cancel(&self, backup_id: &BackupId) -> Result<()> {
        match self.app.cancel_backup(&self.caller, backup_id).await {
            Err(problem) if problem.code != ProblemCode::Conflict => Err(problem),
            _ => Ok(()),
        }
    }

    /// Begins the backup of a machine.
    async fn begin(&self, vm: &mut ExecutionVm) -> Result<()> {
        let backup_type = match self.app.next_type(&self.rules, &vm.vm_context_id).await {
            Ok(backup_type) => backup_type,
            Err(problem) => return self.refused(vm, problem).await,
        };
        let asked = CreateBackup {
            vm_name: None,
            vm_context_id: Some(vm.vm_context_id.clone()),
            repository_id: self.rules.repository_id.clone(),
            backup_type,
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
        };
        match self.app.create_backup_in(&self.caller, asked, &self.execution.execution_id).await {
            Ok(noted) => {
                *vm = noted;
                Ok(())
            }
            // Not begun because of others: it is no attempt of its own.
            Err(problem) if matches!(problem.code, ProblemCode::BackupRunning | ProblemCode::Busy) => {
                vm.not_before = Some(self.now.plus_seconds(BUSY_SECONDS));
                vm.reason = Some(words(&problem));
                self.note(vm).await
            }
            Err(problem) => self.refused(vm, problem).await,
        }
    }

    /// Notes a backup that could not be begun. Where another hub has the execution meanwhile, noting it says so.
    async fn refused(&self, vm: &mut ExecutionVm, problem: Problem) -> Result<()> {
        if problem.code == ProblemCode::RepositoryMaintenance {
            return self.put_off(vm, words(&problem)).await;
        }
        vm.attempts = vm.attempts.saturating_add(1);
        self.failed(vm, words(&problem), problem.code).await
    }

    /// Notes that the repository is looked after: it waits without an attempt of its own, but not for ever.
    async fn put_off(&self, vm: &mut ExecutionVm, reason: String) -> Result<()> {
        vm.reason = Some(reason);
        if self.now.seconds_since(self.execution.started_at) > MAINTENANCE_SECONDS_MAX as f64 {
            vm.outcome = VmOutcome::Skipped;
        } else {
            vm.outcome = VmOutcome::Waiting;
            vm.not_before = Some(self.now.plus_seconds(BUSY_SECONDS));
        }
        self.note(vm).await
    }

    /// Notes a failure: to be tried again when it may pass, and there is a try left.
    async fn failed(&self, vm: &mut ExecutionVm, reason: String, code: ProblemCode) -> Result<()> {
        if code == ProblemCode::RepositoryMaintenance {
            return self.put_off(vm, reason).await;
        }
        vm.reason = Some(reason);
        match pause_seconds(code, vm.attempts) {
            Some(seconds) => {
                vm.outcome = VmOutcome::Waiting;
                vm.not_before = Some(self.now.plus_seconds(seconds));
            }
            None => vm.outcome = VmOutcome::Failed,
        }
        self.note(vm).await
    }

    /// Prunes a machine beside the passes: a repository that hangs holds up no backup.
    fn prune(&self, vm: VmContextId) {
        if self.rules.retention.is_none() {
            return;
        }
        let (app, rules, caller) = (self.app.clone(), self.rules.clone(), self.caller.clone());
        self.app.core.tracker.spawn(async move {
            let pruned = async {
                let machine = app.core.catalog.vms().get(&vm).await.or_problem()?;
                let pruned = app.prune_by(&rules, &machine, PruneQuery::default(), &caller.identity).await?;
                if let Some(pruned) = pruned.as_ref().filter(|_| merges(&rules)) {
                    app.merge_needed(&caller, pruned).await?;
                }
                Result::<_>::Ok(pruned)
            };
            match pruned.await {
                Ok(Some(pruned)) if pruned.deleted > 0 => {
                    tracing::info!(vm_context_id = %vm, deleted = pruned.deleted, kept = pruned.kept,
                        freed_bytes = pruned.freed_bytes, "pruned");
                }
                Ok(_) => {}
                Err(problem) => tracing::warn!(vm_context_id = %vm, error = %problem.message,
                    details = %problem.details, "prune after a backup; the next one tries again"),
            }
        });
    }
}

fn words(problem: &Problem) -> String {
    if problem.details.is_empty() {
        problem.message.clone()
    } else {
        format!("{}: {}", problem.message, problem.details)
    }
}

/// How long to wait before the next try, where the same backup may succeed later without anyone acting. What ended with a hub
/// is begun anew at once, the first time: nothing of the machine or the repository was at fault.
fn pause_seconds(code: ProblemCode, attempts: u32) -> Option<i64> {
    let may_pass = code.who_acts() == WhoActs::Time
        || matches!(code, ProblemCode::Interrupted | ProblemCode::SourceFailed | ProblemCode::HookFailed);
    let pause = RETRY_SECONDS.get(usize::try_from(attempts.saturating_sub(1)).ok()?).copied();
    match (code, attempts) {
        (ProblemCode::Interrupted, 1) => Some(0),
        _ => pause.filter(|_| may_pass),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(outcome: VmOutcome) -> ExecutionVm {
        ExecutionVm {
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web".parse().unwrap(),
            outcome,
            backup_id: None,
            attempts: 1,
            not_before: None,
            reason: None,
        }
    }

    #[test]
    fn an_execution_is_complete_only_when_every_machine_has_a_point() {
        use VmOutcome::{Completed, Failed, Skipped};
        for (outcomes, state) in [
            (&[Completed, Completed][..], ExecutionState::Completed),
            (&[Completed, Failed], ExecutionState::Failed),
            (&[Completed, Skipped], ExecutionState::Failed),
            (&[], ExecutionState::Failed),
        ] {
            let vms: Vec<ExecutionVm> = outcomes.iter().map(|outcome| vm(*outcome)).collect();
            let (ended, reason) = summary(&vms);
            assert_eq!(ended, state, "{outcomes:?}");
            assert_eq!(reason.is_some(), ended == ExecutionState::Failed);
        }
        let (_, reason) = summary(&[vm(Completed), vm(Failed), vm(Skipped)]);
        assert_eq!(reason.unwrap(), "of 3 VMs 1 failed and 1 were left out");
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        for code in [ProblemCode::Interrupted, ProblemCode::SourceUnavailable, ProblemCode::RepositoryUnavailable] {
            let pauses: Vec<_> = (1..=6).map(|attempts| pause_seconds(code, attempts)).collect();
            let first = if code == ProblemCode::Interrupted { 0 } else { 30 };
            assert_eq!(pauses, [Some(first), Some(300), Some(900), Some(1800), None, None], "{code:?}");
        }
        for code in [ProblemCode::NoSpace, ProblemCode::VmNotFound, ProblemCode::Corrupt, ProblemCode::Internal] {
            assert_eq!(pause_seconds(code, 1), None, "{code:?}");
        }
    }
}
