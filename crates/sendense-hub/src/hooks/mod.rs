//! Hooks: programs of the administrator that are run before and after each backup of a policy.
//!
//! ```text
//! record (fsync) -> before -> backup -> its row -> after, told the outcome -> record goes
//!            hub dies anywhere here ----^   what comes after is owed: the next start runs it, told that it was interrupted
//! ```
//!
//! What lives here: when hooks are run. Below: which may be ([`place`]), running one ([`run`]), what is still to be run
//! ([`record`]), and running what was not when it should have been ([`owed`]). A policy names hooks and nothing more: programs come
//! from the hub's own folder, so no token of the API can bring one in.
//!
//! Invariants: whatever became of the backup, what comes after it is run, once as a rule, and again where a hub died while it ran;
//! what could not be begun stays owed. It is run before anything comes before the machine's next backup here, and never in the
//! middle of that.

mod owed;
mod place;
mod record;
mod run;

pub(crate) use owed::after_orphans;
pub use place::Refused;

use crate::app::App;
use crate::core::{Core, blocking};
use crate::fault::{Result, internal, invalid};
use crate::jobs::handle::Handle;
use crate::jobs::work::BackupWork;
use owed::Owed;
use parking_lot::Mutex;
use place::Place;
use record::{Book, Record};
use run::{Moment, Ran};
use sendense_api::PolicyHooks;
use sendense_block::Cancel;
use sendense_catalog::{Kind, LogLevel, NewLogLine};
use sendense_types::{Problem, ProblemCode, TaskId};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

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
    underway: Arc<Underways>,
    owed: Owed,
}

/// Tasks whose hook is being run, or is about to be by who has the right to.
#[derive(Default)]
struct Underways {
    tasks: Mutex<HashSet<TaskId>>,
    one_ended: Notify,
}

/// The right to run what comes after a backup.
struct Underway(Arc<Underways>, TaskId);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.tasks.lock().remove(&self.1);
        self.0.one_ended.notify_waiters();
    }
}

impl Hooks {
    /// Looks whether the folder may be trusted.
    pub fn open(folder: Option<&Path>, records: &Path) -> Result<Self, Refused> {
        let (place, book) = (Place::open(folder)?, Book::new(records));
        Ok(Self { place, book, underway: Arc::default(), owed: Owed::default() })
    }

    /// The folder, when there is one: no request may name it.
    pub fn folder(&self) -> Option<&Path> {
        self.place.folder()
    }

    /// What stays owed because it could not be begun, for people.
    pub fn troubles(&self) -> Vec<String> {
        self.owed.troubles()
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
            find(&self.place, name).map_err(|problem| Problem { code: ProblemCode::InvalidInput, ..problem })?;
        }
        Ok(())
    }

    fn begin(&self, task_id: &TaskId) -> Option<Underway> {
        let is_free = self.underway.tasks.lock().insert(task_id.clone());
        is_free.then(|| Underway(self.underway.clone(), task_id.clone()))
    }

    /// The same, once nobody else has it.
    async fn turn(&self, task_id: &TaskId) -> Underway {
        loop {
            let mut ended = std::pin::pin!(self.underway.one_ended.notified());
            // From here on no end is missed.
            ended.as_mut().enable();
            match self.begin(task_id) {
                Some(underway) => return underway,
                None => ended.await,
            }
        }
    }
}

fn find(place: &Place, name: &str) -> Result<()> {
    let refused = |error: Refused| {
        let details = sendense_block::error::chain(&error);
        Problem::new(ProblemCode::HookFailed, format!("hook {name} cannot be run"), details)
    };
    place.find(name).map(drop).map_err(refused)
}

/// Runs what comes before a backup, after what is owed for earlier ones of the machine was run, and it was noted what is to come
/// after this one. A hook that fails is a problem of the backup.
pub(crate) async fn before(core: &Arc<Core>, handle: &Arc<Handle>, work: &BackupWork) -> Result<()> {
    owed::settle(core, handle, work).await?;
    let app = App::new(core.clone());
    let Some(rules) = app.rules_behind(work.policy_id.as_deref()).await? else { return Ok(()) };
    let Some(hooks) = rules.hooks else { return Ok(()) };
    let timeout_seconds = hooks.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
    let told = told(core, handle, work, &rules.name);
    if let Some(after) = hooks.after {
        let (task_id, backup_id) = (handle.task_id.clone(), work.backup_id.clone());
        let record = Record::new(task_id, backup_id, work.vm_context_id.clone(), after, timeout_seconds);
        let (place, book, record) = (core.hooks.place.clone(), core.hooks.book.clone(), record.telling(told.clone()));
        let noted = blocking(move || {
            // Before anything is stopped: who cannot be run afterwards is not needed then, but now.
            find(&place, &record.after)?;
            let cannot = "what is to be run after the backup cannot be noted";
            book.keep(&record).map_err(|error| internal(cannot, error.to_string()))
        });
        noted.await??;
    }
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

/// Runs what comes after a backup, if anything is noted and nobody else does.
pub(crate) async fn after(core: &Arc<Core>, task_id: &TaskId, ending: Ending) {
    if let Some(underway) = core.hooks.begin(task_id) {
        run_after(core, &underway, ending).await;
    }
}

async fn run_after(core: &Arc<Core>, underway: &Underway, ending: Ending) {
    let task_id = &underway.1;
    let (book, id) = (core.hooks.book.clone(), task_id.clone());
    let record = match blocking(move || book.read(&id)).await {
        Ok(Ok(Some(record))) => record,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::error!(%task_id, %error, "read what is to be run after a backup"),
        Err(_) => return,
    };
    let mut told = record.told.clone();
    for (name, value) in
        [("OUTCOME", ending.outcome.to_owned()), ("ERROR_CODE", ending.code), ("ERROR", ending.message)]
    {
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
    if let (false, Some(why)) = (ran.has_begun, &ran.failure) {
        if core.hooks.owed.cannot_begin(&record, why, core.now()) {
            tell(core, task_id, &ran).await;
            tracing::error!(%task_id, failure = why, "run what comes after a backup; it stays owed and is tried again");
        }
        return;
    }
    tell(core, task_id, &ran).await;
    if ran.was_stopped {
        return tracing::warn!(%task_id, hook = record.after, "the hub stops; the next start runs the hook again");
    }
    if let Some(failure) = &ran.failure {
        // What was stopped for the backup may still be.
        tracing::error!(%task_id, failure, "run what comes after a backup");
    }
    core.hooks.owed.has_begun(task_id);
    let (book, id) = (core.hooks.book.clone(), task_id.clone());
    if let Ok(Err(error)) = blocking(move || book.remove(&id)).await {
        tracing::error!(%task_id, %error, "remove the note of a hook; it is run again");
    }
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
