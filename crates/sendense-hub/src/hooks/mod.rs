//! Hooks: programs of the administrator that are run before and after each backup of a policy.
//!
//! ```text
//! record (fsync) -> before -> backup -> after, told the outcome -> record goes
//!            hub dies anywhere here ----^   the next start runs what comes after, told that it was interrupted
//! ```
//!
//! What lives here: when hooks are run. Below: which may be ([`place`]), running one ([`run`]), what is still to be run
//! ([`record`]). A policy names hooks and nothing more: programs come from the hub's own folder, so no token of the API can bring one in.
//!
//! Invariant: whatever became of the backup, what comes after it is run, once as a rule, and again where a hub died while it ran.

mod place;
mod record;
mod run;

pub use place::Refused;

use crate::app::App;
use crate::core::{Core, blocking};
use crate::fault::{Result, internal, invalid};
use crate::jobs::handle::Handle;
use crate::jobs::work::BackupWork;
use parking_lot::Mutex;
use place::Place;
use record::{Book, Record};
use run::{Moment, Ran};
use sendense_api::PolicyHooks;
use sendense_block::Cancel;
use sendense_catalog::{Kind, LogLevel, NewLogLine};
use sendense_types::{BackupStatus, Problem, ProblemCode, TaskId};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a hook may run unless its policy says otherwise: a database that is large takes minutes to stop.
const TIMEOUT_SECONDS: u32 = 600;
/// Nothing that has to be done before a backup takes longer than its window.
const TIMEOUT_SECONDS_MAX: u32 = 3600;
/// How long a hook that runs after a backup may go on when the hub stops. It is run again by the next start when it did not end.
/// With the 20 s that a job has to come back it is less than the 30 s after which a hub that stops waits for nothing more.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The hooks of a hub.
pub(crate) struct Hooks {
    place: Place,
    book: Book,
    /// Tasks whose hook is being run, or is about to be by who has their handle.
    underway: Arc<Mutex<HashSet<TaskId>>>,
}

/// The right to run what comes after a backup.
struct Underway(Arc<Mutex<HashSet<TaskId>>>, TaskId);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl Hooks {
    /// Looks whether the folder may be trusted.
    pub fn open(folder: Option<&Path>, records: &Path) -> Result<Self, Refused> {
        Ok(Self { place: Place::open(folder)?, book: Book::new(records), underway: Arc::default() })
    }

    /// Refuses a policy whose hooks could not be run.
    pub fn check(&self, hooks: &PolicyHooks) -> Result<()> {
        if hooks.before.is_none() && hooks.after.is_none() {
            return Err(invalid("hooks name neither before nor after; leave them out"));
        }
        if hooks.timeout_seconds.is_some_and(|seconds| !(1..=TIMEOUT_SECONDS_MAX).contains(&seconds)) {
            return Err(invalid(format!("timeout_seconds is 1 to {TIMEOUT_SECONDS_MAX}")));
        }
        for name in hooks.before.iter().chain(&hooks.after) {
            self.place.find(name).map_err(|error| {
                let details = sendense_block::error::chain(&error);
                Problem::new(ProblemCode::InvalidInput, format!("hook {name} cannot be run"), details)
            })?;
        }
        Ok(())
    }

    fn begin(&self, task_id: &TaskId) -> Option<Underway> {
        let is_free = self.underway.lock().insert(task_id.clone());
        is_free.then(|| Underway(self.underway.clone(), task_id.clone()))
    }
}

/// Runs what comes before a backup, after it was noted what is to come after it. A hook that fails is a problem of the backup.
pub(crate) async fn before(core: &Arc<Core>, handle: &Arc<Handle>, work: &BackupWork) -> Result<()> {
    let app = App::new(core.clone());
    let Some(rules) = app.rules_behind(work.policy_id.as_deref()).await? else { return Ok(()) };
    let Some(hooks) = rules.hooks else { return Ok(()) };
    let timeout_seconds = hooks.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
    let told = told(core, handle, work, &rules.name);
    if let Some(after) = &hooks.after {
        let record = Record::new(handle.task_id.clone(), work.backup_id.clone(), after.clone(), timeout_seconds);
        let (book, record) = (core.hooks.book.clone(), record.telling(told.clone()));
        blocking(move || book.keep(&record))
            .await?
            .map_err(|error| internal("what is to be run after the backup cannot be noted", error.to_string()))?;
    }
    // Before anything is stopped: who cannot be run afterwards is not needed then, but now.
    core.hooks.check(&hooks).map_err(|problem| Problem { code: ProblemCode::HookFailed, ..problem })?;
    let Some(name) = hooks.before else { return Ok(()) };
    let (place, watched) = (core.hooks.place.clone(), handle.clone());
    let timeout = Duration::from_secs(timeout_seconds.into());
    let ran = blocking(move || run::run(&place, Moment::Before, &name, &told, timeout, &watched.cancel)).await?;
    for (level, line) in ran.lines {
        handle.log(level, line, serde_json::json!({}));
    }
    handle.step();
    match ran.failure {
        None => Ok(()),
        Some(failure) => {
            let details = "what it said is in the task's log; nothing was read";
            Err(Problem::new(ProblemCode::HookFailed, failure, details))
        }
    }
}

/// What a hook is told in its environment.
fn told(core: &Core, handle: &Handle, work: &BackupWork, policy: &str) -> BTreeMap<String, String> {
    let words = [
        ("SENDENSE_POLICY", policy),
        ("SENDENSE_POLICY_ID", work.policy_id.as_deref().unwrap_or_default()),
        ("SENDENSE_VM", work.vm_name.as_str()),
        ("SENDENSE_VM_ID", work.vm_context_id.as_str()),
        ("SENDENSE_SOURCE_ID", work.source_id.as_str()),
        ("SENDENSE_REPOSITORY_ID", work.repository_id.as_str()),
        ("SENDENSE_BACKUP_ID", work.backup_id.as_str()),
        ("SENDENSE_BACKUP_TYPE", work.backup_type.as_str()),
        ("SENDENSE_TASK_ID", handle.task_id.as_str()),
        ("SENDENSE_HUB_ID", core.data_dir.hub_id().as_str()),
    ];
    words.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// How a backup ended, in the words that a hook is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    outcome: &'static str,
    code: String,
    message: String,
}

impl Ending {
    /// As its task ended.
    pub fn of(problem: Option<&Problem>) -> Self {
        match problem {
            None => Self { outcome: "completed", code: String::new(), message: String::new() },
            Some(problem) => Self::failed(problem.code, problem.message.clone()),
        }
    }

    fn failed(code: ProblemCode, message: String) -> Self {
        let outcome = match code {
            ProblemCode::Cancelled => "cancelled",
            ProblemCode::Interrupted => "interrupted",
            _ => "failed",
        };
        Self { outcome, code: code.as_str().to_owned(), message }
    }
}

/// Runs what comes after a backup, if anything is noted.
pub(crate) async fn after(core: &Arc<Core>, task_id: &TaskId, ending: Ending) {
    let Some(underway) = core.hooks.begin(task_id) else { return };
    let (book, id) = (core.hooks.book.clone(), task_id.clone());
    let record = match blocking(move || book.read(&id)).await {
        Ok(Ok(Some(record))) => record,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::error!(%task_id, %error, "read what is to be run after a backup"),
        Err(_) => return,
    };
    let mut told = record.told.clone();
    for (name, value) in
        [("OUTCOME", ending.outcome), ("ERROR_CODE", ending.code.as_str()), ("ERROR", ending.message.as_str())]
    {
        // A variable cannot hold a NUL, and a line of a script should not hold more than one.
        let value: String = value.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        told.insert(format!("SENDENSE_{name}"), value);
    }
    let cancel = Cancel::new();
    let (place, name, asked) = (core.hooks.place.clone(), record.after.clone(), cancel.clone());
    let timeout = Duration::from_secs(record.timeout_seconds.clamp(1, TIMEOUT_SECONDS_MAX).into());
    let mut running = Box::pin(blocking(move || run::run(&place, Moment::After, &name, &told, timeout, &asked)));
    let stopping = async {
        core.stop.cancelled().await;
        tokio::time::sleep(STOP_PATIENCE).await;
    };
    let ran = tokio::select! {
        ran = &mut running => ran,
        () = stopping => {
            cancel.cancel();
            running.await
        }
    };
    let Ok(ran) = ran else { return };
    tell(core, task_id, &ran).await;
    if ran.was_stopped {
        return tracing::warn!(%task_id, hook = record.after, "the hub stops; the next start runs the hook again");
    }
    if let Some(failure) = &ran.failure {
        // What was stopped for the backup may still be.
        tracing::error!(%task_id, failure, "run what comes after a backup");
    }
    let (book, id) = (core.hooks.book.clone(), task_id.clone());
    if let Ok(Err(error)) = blocking(move || book.remove(&id)).await {
        tracing::error!(%task_id, %error, "remove the note of a hook; it is run again");
    }
    drop(underway);
}

/// Puts into the task's log what a hook said: the task may have ended.
async fn tell(core: &Core, task_id: &TaskId, ran: &Ran) {
    let at = core.now();
    let line = |(level, message): &(LogLevel, String)| NewLogLine {
        at,
        level: *level,
        message: message.clone(),
        fields: serde_json::json!({}),
    };
    let lines: Vec<NewLogLine> = ran.lines.iter().map(line).collect();
    match core.catalog.tasks().append_log(task_id, &lines).await {
        Err(error) if error.kind() != Kind::NotFound => tracing::warn!(%task_id, %error, "keep what a hook said"),
        _ => {}
    }
}

/// Runs what comes after backups that have ended without it: those of a life of this hub that was cut off.
pub(crate) async fn after_orphans(core: &Arc<Core>) {
    let book = core.hooks.book.clone();
    let found = match blocking(move || book.all()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return tracing::error!(%error, "look for hooks that are still to be run"),
        Err(_) => return,
    };
    for task_id in found.into_iter().filter(|task_id| core.running.get(task_id).is_none()) {
        let Some(ending) = ending_of(core, &task_id).await else { continue };
        // Beside the passes, which renew the hub's lease. Twice at once is refused.
        let core = core.clone();
        core.tracker.clone().spawn(async move { after(&core, &task_id, ending).await });
    }
}

/// How the backup of a task ended; none while it has not, here or on the hub that goes on with it.
async fn ending_of(core: &Core, task_id: &TaskId) -> Option<Ending> {
    let (book, id) = (core.hooks.book.clone(), task_id.clone());
    let record = match blocking(move || book.read(&id)).await.ok()? {
        Ok(record) => record?,
        Err(error) if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            tracing::warn!(%task_id, %error, "read what is to be run after a backup; the next look tries again");
            return None;
        }
        Err(error) => {
            let (book, id) = (core.hooks.book.clone(), task_id.clone());
            let aside = blocking(move || book.put_aside(&id)).await;
            tracing::error!(%task_id, %error, ?aside, "what is to be run after a backup cannot be read; run it by hand");
            return None;
        }
    };
    let forgotten = || Ending::failed(ProblemCode::Interrupted, "the backup is not known any more".to_owned());
    match core.catalog.backups().get(&record.backup_id).await {
        Ok(backup) => match backup.status {
            BackupStatus::Pending | BackupStatus::Running => None,
            BackupStatus::Completed => Some(Ending::of(None)),
            BackupStatus::Cancelled => Some(Ending::failed(ProblemCode::Cancelled, String::new())),
            BackupStatus::Failed => {
                let code = backup.error_code.unwrap_or(ProblemCode::Internal);
                Some(Ending::failed(code, backup.error_message.unwrap_or_default()))
            }
        },
        Err(error) if error.kind() == Kind::NotFound => Some(forgotten()),
        Err(error) => {
            tracing::warn!(%task_id, %error, "look how a backup ended whose hook is still to be run");
            None
        }
    }
}
