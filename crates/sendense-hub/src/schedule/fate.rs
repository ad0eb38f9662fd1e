//! What becomes of a machine of an execution: pure, of (machine, its backup, how things stand, now).
//!
//! ```text
//! waiting --begin a backup--> running --its row ends--> completed | failed
//!    ^------- what may pass, after a while -----'
//! ```

use sendense_catalog::{Backup, ExecutionVm};
use sendense_types::{BackupId, BackupStatus, ExecutionState, Problem, ProblemCode, Timestamp, VmOutcome, WhoActs};
use std::collections::BTreeMap;

/// How long after a failure that may pass a machine is tried again: half a minute for a stall, then as long as restarts and
/// repairs take. After the last it has failed; the next occurrence is its next chance.
const RETRY_SECONDS: [i64; 4] = [30, 300, 900, 1800];

/// How long a machine waits that cannot begin now because of others: a backup by hand, a full queue.
pub(super) const BUSY_SECONDS: i64 = 60;

/// Why a machine was left out whose backup had not begun when the window closed. Noted before its backup is stopped, so that it is
/// known afterwards who stopped it.
const WINDOW_CLOSED: &str = "the window closed before its turn came";

/// How long an execution waits for a repository that is looked after: a night's and a day's work on the shelf. Then its machines
/// are left out, and the next occurrence has its turn.
const MAINTENANCE_SECONDS_MAX: i64 = 24 * 3600;

/// How things stand with an execution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// Whether backups may begin now, and whether those that run may go on.
    pub may_begin: bool,
    pub may_run: bool,
    /// When the execution began.
    pub started_at: Timestamp,
    pub now: Timestamp,
}

/// What is to be done about a machine whose backup was begun.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Nothing: its backup goes on.
    Leave,
    /// Note where it stands now.
    Note(ExecutionVm),
    /// Note that it has a new point, after which older ones may go.
    HasPoint(ExecutionVm),
    /// Stop its backup, if it still waits in the queue, and note that in the same moment.
    StopWaiting(ExecutionVm, BackupId),
    /// Stop its backup.
    Stop(BackupId),
}

/// Decides that. `backup` is the one that the machine's note names, if it is there.
pub(super) fn step(standing: &Standing, vm: &ExecutionVm, backup: Option<&Backup>) -> Step {
    let mut vm = vm.clone();
    let Some(backup_id) = vm.backup_id.clone() else {
        // Both are written at once; a row that says otherwise was changed by other hands.
        return Step::Note(ExecutionVm { outcome: VmOutcome::Waiting, ..vm });
    };
    let Some(backup) = backup else {
        vm.outcome = VmOutcome::Failed;
        vm.reason = Some(format!("backup {backup_id} was deleted"));
        return Step::Note(vm);
    };
    match backup.status {
        // It stands in the queue and has not begun.
        BackupStatus::Pending if !standing.may_begin && came_too_late(vm.reason.as_deref()) => Step::Stop(backup_id),
        BackupStatus::Pending if !standing.may_begin => {
            vm.reason = Some(window_closed(vm.reason.as_deref()));
            Step::StopWaiting(vm, backup_id)
        }
        BackupStatus::Pending | BackupStatus::Running if standing.may_run => Step::Leave,
        BackupStatus::Pending | BackupStatus::Running => Step::Stop(backup_id),
        BackupStatus::Completed => {
            vm.outcome = VmOutcome::Completed;
            vm.reason = None;
            Step::HasPoint(vm)
        }
        BackupStatus::Cancelled => {
            let (outcome, reason) = match vm.reason.take() {
                late @ Some(_) if came_too_late(late.as_deref()) => (VmOutcome::Skipped, late),
                _ if !standing.may_run => (VmOutcome::Skipped, Some("stopped when the window closed".to_owned())),
                _ => (VmOutcome::Failed, Some("stopped by a person".to_owned())),
            };
            Step::Note(ExecutionVm { outcome, reason, ..vm })
        }
        BackupStatus::Failed => {
            let message = backup.error_message.clone().unwrap_or_else(|| "the backup failed".to_owned());
            let code = backup.error_code.unwrap_or(ProblemCode::Internal);
            Step::Note(failed(standing, vm, message, code))
        }
    }
}

/// A machine whose backup could not be begun.
pub(super) fn refused(standing: &Standing, mut vm: ExecutionVm, problem: &Problem) -> ExecutionVm {
    match problem.code {
        // Not begun because of others: it is no attempt of its own.
        ProblemCode::BackupRunning | ProblemCode::Busy => {
            vm.not_before = Some(standing.now.plus_seconds(BUSY_SECONDS));
            vm.reason = Some(words(problem));
            vm
        }
        ProblemCode::RepositoryMaintenance => put_off(standing, vm, words(problem)),
        code => {
            vm.attempts = vm.attempts.saturating_add(1);
            failed(standing, vm, words(problem), code)
        }
    }
}

/// A machine whose backup has failed: to be tried again when it may pass, and there is a try left.
fn failed(standing: &Standing, mut vm: ExecutionVm, reason: String, code: ProblemCode) -> ExecutionVm {
    if code == ProblemCode::RepositoryMaintenance {
        return put_off(standing, vm, reason);
    }
    vm.reason = Some(reason);
    match pause_seconds(code, vm.attempts) {
        Some(seconds) => {
            vm.outcome = VmOutcome::Waiting;
            vm.not_before = Some(standing.now.plus_seconds(seconds));
        }
        None => vm.outcome = VmOutcome::Failed,
    }
    vm
}

/// A machine whose repository is looked after: it waits without an attempt of its own, but not for ever.
fn put_off(standing: &Standing, mut vm: ExecutionVm, reason: String) -> ExecutionVm {
    vm.reason = Some(reason);
    if has_waited_enough(standing) {
        vm.outcome = VmOutcome::Skipped;
    } else {
        vm.outcome = VmOutcome::Waiting;
        vm.not_before = Some(standing.now.plus_seconds(BUSY_SECONDS));
    }
    vm
}

/// Whether an execution has waited for its repository as long as it may.
pub(super) fn has_waited_enough(standing: &Standing) -> bool {
    standing.now.seconds_since(standing.started_at) > MAINTENANCE_SECONDS_MAX as f64
}

/// Why a machine is left out when the window closes, with what it has waited for.
pub(super) fn window_closed(waited_for: Option<&str>) -> String {
    let waited = waited_for.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("{WINDOW_CLOSED}{waited}")
}

/// Whether a machine's backup was stopped because it had not begun when the window closed.
fn came_too_late(reason: Option<&str>) -> bool {
    reason.is_some_and(|reason| reason.starts_with(WINDOW_CLOSED))
}

/// How an execution ended, by how many of its machines ended how.
pub(super) fn summary(outcomes: &BTreeMap<VmOutcome, u64>) -> (ExecutionState, Option<String>) {
    let count = |outcome: VmOutcome| outcomes.get(&outcome).copied().unwrap_or(0);
    match (outcomes.values().sum::<u64>(), count(VmOutcome::Failed), count(VmOutcome::Skipped)) {
        (0, _, _) => (ExecutionState::Failed, Some("the policy matches no VM".to_owned())),
        (_, 0, 0) => (ExecutionState::Completed, None),
        (all, failed, skipped) => {
            let reason = format!("of {all} VMs {failed} failed and {skipped} were left out");
            (ExecutionState::Failed, Some(reason))
        }
    }
}

/// A problem in one sentence.
pub(super) fn words(problem: &Problem) -> String {
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
    use crate::rows;

    fn counted(outcomes: &[VmOutcome]) -> BTreeMap<VmOutcome, u64> {
        let mut counted = BTreeMap::new();
        for outcome in outcomes {
            *counted.entry(*outcome).or_default() += 1;
        }
        counted
    }

    fn now() -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000)
    }

    fn vm() -> ExecutionVm {
        ExecutionVm {
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web".parse().unwrap(),
            outcome: VmOutcome::Running,
            backup_id: Some("bk-1".parse().unwrap()),
            attempts: 1,
            not_before: None,
            reason: None,
        }
    }

    fn backup(status: BackupStatus, error: Option<ProblemCode>) -> Backup {
        let error_message = error.map(|_| "it broke".to_owned());
        Backup { error_code: error, error_message, ..rows::backup(status, now()) }
    }

    /// Under an open window; shut, so that what runs goes on; and shut, so that it is stopped.
    fn standings() -> [Standing; 3] {
        [(true, true), (false, true), (false, false)].map(|(may_begin, may_run)| Standing {
            may_begin,
            may_run,
            started_at: now().plus_seconds(-3600),
            now: now(),
        })
    }

    /// A step in a few words.
    fn told(step: Step) -> String {
        let vm_told = |vm: ExecutionVm| {
            let after = vm.not_before.map(|at| format!(" after {} s", at.seconds_since(now()))).unwrap_or_default();
            format!("{}{after}, {}", vm.outcome, vm.reason.as_deref().unwrap_or("-"))
        };
        match step {
            Step::Leave => "leave".to_owned(),
            Step::Note(vm) => vm_told(vm),
            Step::HasPoint(vm) => format!("point: {}", vm_told(vm)),
            Step::StopWaiting(vm, id) => format!("stop {id} if it waits: {}", vm_told(vm)),
            Step::Stop(id) => format!("stop {id}"),
        }
    }

    #[test]
    fn a_step_follows_from_the_backup_and_the_window() {
        use BackupStatus::{Cancelled, Completed, Failed, Pending, Running};
        let late = "the window closed before its turn came";
        let stop_late = format!("stop bk-1 if it waits: running, {late}");
        for (status, error, steps) in [
            (Pending, None, ["leave", stop_late.as_str(), stop_late.as_str()]),
            (Running, None, ["leave", "leave", "stop bk-1"]),
            (Completed, None, ["point: completed, -"; 3]),
            (
                Cancelled,
                None,
                [
                    "failed, stopped by a person",
                    "failed, stopped by a person",
                    "skipped, stopped when the window closed",
                ],
            ),
            (Failed, Some(ProblemCode::NoSpace), ["failed, it broke"; 3]),
            (Failed, Some(ProblemCode::SourceUnavailable), ["waiting after 30 s, it broke"; 3]),
            (Failed, Some(ProblemCode::Interrupted), ["waiting after 0 s, it broke"; 3]),
            (Failed, Some(ProblemCode::RepositoryMaintenance), ["waiting after 60 s, it broke"; 3]),
            (Failed, None, ["failed, the backup failed"; 3]),
        ] {
            let backup = backup(status, error);
            let found = standings().map(|standing| told(step(&standing, &vm(), Some(&backup))));
            assert_eq!(found, steps, "{status} {error:?}");
        }
        let gone = standings().map(|standing| told(step(&standing, &vm(), None)));
        assert_eq!(gone, ["failed, backup bk-1 was deleted"; 3]);
        let unknown = ExecutionVm { backup_id: None, ..vm() };
        assert_eq!(standings().map(|standing| told(step(&standing, &unknown, None))), ["waiting, -"; 3]);
        // One that was told once that it came too late is only asked again to stop, and is left out when it has.
        let told_late = ExecutionVm { reason: Some(format!("{late} (it was busy)")), ..vm() };
        let shut = standings()[1];
        assert_eq!(told(step(&shut, &told_late, Some(&backup(Pending, None)))), "stop bk-1");
        let left_out = told(step(&shut, &told_late, Some(&backup(Cancelled, None))));
        assert_eq!(left_out, format!("skipped, {late} (it was busy)"));
    }

    #[test]
    fn what_cannot_begin_because_of_others_has_had_no_attempt() {
        let waits = ExecutionVm { outcome: VmOutcome::Waiting, backup_id: None, attempts: 0, ..vm() };
        let open = standings()[0];
        let weary = Standing { started_at: now().plus_seconds(-25 * 3600), ..open };
        for (standing, code, attempts, expected) in [
            (&open, ProblemCode::BackupRunning, 0, "waiting after 60 s, no: why"),
            (&open, ProblemCode::Busy, 0, "waiting after 60 s, no: why"),
            (&open, ProblemCode::RepositoryMaintenance, 0, "waiting after 60 s, no: why"),
            (&weary, ProblemCode::RepositoryMaintenance, 0, "skipped, no: why"),
            (&open, ProblemCode::SourceUnavailable, 1, "waiting after 30 s, no: why"),
            (&open, ProblemCode::VmNotFound, 1, "failed, no: why"),
        ] {
            let vm = refused(standing, waits.clone(), &Problem::new(code, "no", "why"));
            assert_eq!((vm.attempts, told(Step::Note(vm)).as_str()), (attempts, expected), "{code:?}");
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
            let (ended, reason) = summary(&counted(outcomes));
            assert_eq!(ended, state, "{outcomes:?}");
            assert_eq!(reason.is_some(), ended == ExecutionState::Failed);
        }
        let (_, reason) = summary(&counted(&[Completed, Failed, Skipped]));
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
