//! What was to be run after backups and was not: the hub died, or the program could not be begun.
//!
//! What lives here: when it is run at last, and telling what cannot be. Nothing is remembered but when it was tried: what is owed is
//! what the records say.
//!
//! Invariant: it is run while no backup of its machine is made, or by the machine's next backup before anything else.

use super::{Ending, Record, run_after};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, internal, of_block};
use crate::jobs::handle::Handle;
use crate::jobs::work::BackupWork;
use parking_lot::Mutex;
use sendense_catalog::{BackupFilter, Kind, Page};
use sendense_types::{BackupStatus, ProblemCode, TaskId, Timestamp, VmContextId};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Between two tries of what cannot be begun: an administrator who puts a program right sees it run while he looks.
const TRY_SECONDS: i64 = 60;

/// How often a backup that waits for what is owed looks whether it was stopped.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// What could not be begun.
#[derive(Default)]
pub(super) struct Owed(Mutex<BTreeMap<TaskId, Trouble>>);

struct Trouble {
    message: String,
    tried_at: Timestamp,
}

impl Owed {
    /// Notes a try that has come to nothing. True when there is news in it.
    pub fn cannot_begin(&self, record: &Record, why: &str, now: Timestamp) -> bool {
        let of = record.told.get("SENDENSE_VM").map_or(record.vm_context_id.as_str(), String::as_str);
        let message = format!("after backup {} of {of}: {why}", record.backup_id);
        let mut troubles = self.0.lock();
        let is_known = troubles.get(&record.task_id).is_some_and(|trouble| trouble.message == message);
        troubles.insert(record.task_id.clone(), Trouble { message, tried_at: now });
        !is_known
    }

    /// It was run.
    pub fn has_begun(&self, task_id: &TaskId) {
        self.0.lock().remove(task_id);
    }

    /// Forgets those of which there is no record any more.
    fn keep(&self, records: &[Record]) {
        self.0.lock().retain(|task_id, _| records.iter().any(|record| record.task_id == *task_id));
    }

    /// What could not be begun, for people.
    pub fn troubles(&self) -> Vec<String> {
        self.0.lock().values().map(|trouble| trouble.message.clone()).collect()
    }

    fn trouble(&self, task_id: &TaskId) -> Option<String> {
        self.0.lock().get(task_id).map(|trouble| trouble.message.clone())
    }

    fn is_due(&self, task_id: &TaskId, now: Timestamp) -> bool {
        let troubles = self.0.lock();
        troubles.get(task_id).is_none_or(|trouble| now.seconds_since(trouble.tried_at) >= TRY_SECONDS as f64)
    }
}

/// Runs what comes after backups that have ended without it: those of a life of this hub that was cut off, and what could not be
/// begun. While the machine is backed up, here or by another hub, it waits.
pub(crate) async fn after_orphans(core: &Arc<Core>) {
    let Some(records) = records(core).await else { return };
    core.hooks.owed.keep(&records);
    for record in records.into_iter().filter(|record| core.running.get(&record.task_id).is_none()) {
        if !core.hooks.owed.is_due(&record.task_id, core.now()) || is_backed_up(core, &record.vm_context_id).await {
            continue;
        }
        let ending = match ending_of(core, &record).await {
            Ok(Some(ending)) => ending,
            Ok(None) => continue,
            Err(problem) => {
                tracing::warn!(task_id = %record.task_id, error = %problem.message,
                    "look how a backup ended whose hook is still to be run");
                continue;
            }
        };
        // Beside the passes: it may take an hour. Twice at once is refused.
        let core = core.clone();
        core.tracker.clone().spawn(async move { super::after(&core, &record.task_id, ending).await });
    }
}

/// Runs what is owed for earlier backups of a machine, before anything of this one is. What cannot be begun is told, and owed on: it
/// must not cost the machine its backups.
///
/// # Errors
/// The backup was stopped meanwhile; or what is owed cannot be looked at, and a later try may.
pub(super) async fn settle(core: &Arc<Core>, handle: &Handle, work: &BackupWork) -> Result<()> {
    let records = records(core).await.ok_or_else(|| {
        internal("what is to be run after earlier backups cannot be looked at", "the hub's log says why".to_owned())
    })?;
    let same = core.catalog.vms().same_machine(&work.vm_context_id).await.or_problem()?;
    let is_of_earlier = |record: &Record| same.contains(&record.vm_context_id) && record.task_id != handle.task_id;
    for record in records.into_iter().filter(is_of_earlier) {
        let Some(ending) = ending_of(core, &record).await? else { continue };
        handle.info(format!("what comes after backup {} is run first", record.backup_id));
        let (its, task_id) = (core.clone(), record.task_id.clone());
        // A task of its own: it is run to its end also when this backup is stopped meanwhile.
        let mut running = core.tracker.spawn(async move {
            let underway = its.hooks.turn(&task_id).await;
            run_after(&its, &underway, ending).await;
        });
        loop {
            tokio::select! {
                _ = &mut running => break,
                () = tokio::time::sleep(LOOK_PERIOD) => {
                    handle.step();
                    handle.cancel.check().map_err(|error| of_block("begin the backup", &error))?;
                }
            }
        }
        if let Some(trouble) = core.hooks.owed.trouble(&record.task_id) {
            handle.warn(format!("{trouble}; what was stopped for that backup may still be"));
        }
    }
    Ok(())
}

/// All that is noted; none when it cannot be looked at. What cannot be read is put aside.
async fn records(core: &Core) -> Option<Vec<Record>> {
    let book = core.hooks.book.clone();
    let found = match blocking(move || book.all()).await.ok()? {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "look for hooks that are still to be run");
            return None;
        }
    };
    let mut records = Vec::new();
    for task_id in found {
        let (book, id) = (core.hooks.book.clone(), task_id.clone());
        match blocking(move || book.read(&id)).await.ok()? {
            Ok(record) => records.extend(record),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                let (book, id) = (core.hooks.book.clone(), task_id.clone());
                let aside = blocking(move || book.put_aside(&id)).await;
                tracing::error!(%task_id, %error, ?aside, "what is to be run after a backup cannot be read; run it by hand");
            }
            Err(error) => {
                tracing::warn!(%task_id, %error, "read what is to be run after a backup; the next look tries again");
            }
        }
    }
    Some(records)
}

/// Whether a backup of the machine has begun and not ended. When that cannot be told, it may.
async fn is_backed_up(core: &Core, vm: &VmContextId) -> bool {
    let same = match core.catalog.vms().same_machine(vm).await {
        Ok(same) => same,
        // Nobody backs up what is not known any more.
        Err(error) => return error.kind() != Kind::NotFound,
    };
    for vm in same {
        let running =
            BackupFilter { vm_context_id: Some(vm), status: Some(BackupStatus::Running), ..Default::default() };
        let found = core.catalog.backups().list(&running, Page { limit: 1, offset: 0 }).await;
        if found.map_or(true, |(rows, _)| !rows.is_empty()) {
            return true;
        }
    }
    false
}

/// How the backup ended; none while it has not, here or on the hub that goes on with it.
async fn ending_of(core: &Core, record: &Record) -> Result<Option<Ending>> {
    let backup = match core.catalog.backups().get(&record.backup_id).await {
        Err(error) if error.kind() == Kind::NotFound => {
            let why = "the backup is not known any more".to_owned();
            return Ok(Some(Ending::failed(ProblemCode::Interrupted, why)));
        }
        found => found.or_problem()?,
    };
    Ok(match backup.status {
        BackupStatus::Pending | BackupStatus::Running => None,
        BackupStatus::Completed => Some(Ending::of(None)),
        BackupStatus::Cancelled => Some(Ending::failed(ProblemCode::Cancelled, String::new())),
        BackupStatus::Failed => {
            let code = backup.error_code.unwrap_or(ProblemCode::Internal);
            Some(Ending::failed(code, backup.error_message.unwrap_or_default()))
        }
    })
}
