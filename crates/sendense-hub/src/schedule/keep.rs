//! Carries schedules out: begins what is due, moves what runs on, and ends it.
//!
//! A pass reads everything anew and may be repeated at any time: what a hub that died had begun is found in the catalog and
//! goes on. Of several hubs on one catalog each makes passes; the catalog lets one of them have an occurrence or an execution.
//!
//! What lives here: passes, and what is due. What does not: an execution that runs, which `carry` moves on.

use super::carry::move_on;
use super::{Decision, History, decide};
use crate::app::schedules::timetable;
use crate::app::{App, Caller};
use crate::fault::{OrProblem, Result};
use crate::metrics;
use sendense_api::Role;
use sendense_catalog as catalog;
use sendense_catalog::Execution;
use sendense_types::{Problem, ProblemCode};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two passes. An idle one costs two small queries, and what is due begins this much late at the most.
const PASS_PERIOD: Duration = Duration::from_secs(2);

/// Between two looks for new machines: a quarter of an hour is soon enough for a night's schedule, and a vCenter bears it.
const DISCOVER_PERIOD: Duration = Duration::from_secs(15 * 60);

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
        let (begun, mut deciding) = (Instant::now(), Deciding::default());
        let done = pass(&app, &mut told, &mut deciding).await;
        metrics::schedules_passed(begun.elapsed(), deciding.0);
        told.of("schedules", done);
    }
}

/// How long a pass has read and decided so far. The rest of its time it has written.
#[derive(Default)]
pub(super) struct Deciding(Duration);

impl Deciding {
    /// Counts the time that this takes.
    pub(super) async fn by<T>(&mut self, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        self.0 += begun.elapsed();
        done
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
    let mut rounds = app.core.rounds_after(DISCOVER_PERIOD, DISCOVER_PERIOD);
    while rounds.next().await {
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

async fn pass(app: &App, told: &mut Told, deciding: &mut Deciding) -> Result<()> {
    let running = || async { app.core.catalog.executions().running().await.or_problem() };
    let (schedules, mut executions) = deciding.by(async { tokio::try_join!(schedules(app), running()) }).await?;
    let mut has_begun = false;
    for schedule in schedules.values().filter(|schedule| schedule.enabled) {
        let is_running = executions.iter().any(|execution| execution.schedule_id == schedule.schedule_id);
        let done = begin(app, schedule, is_running, deciding).await;
        has_begun |= !matches!(done, Ok(false));
        told.of(schedule.schedule_id.as_str(), done.map(drop));
    }
    if has_begun {
        executions = deciding.by(running()).await?;
    }
    told.keep(|what| {
        let is_running = executions.iter().any(|execution| execution.execution_id.as_str() == what);
        what == "schedules" || is_running || schedules.contains_key(what)
    });
    for execution in executions {
        let Some(execution) = ours(app, execution).await? else { continue };
        let schedule = schedules.get(execution.schedule_id.as_str());
        let done = match move_on(app, &execution, schedule, deciding).await {
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

/// Begins or skips what is due; false when nothing was.
async fn begin(app: &App, row: &catalog::Schedule, is_running: bool, deciding: &mut Deciding) -> Result<bool> {
    let history = History { handled: row.handled, is_running };
    let decided = async { timetable(row).map(|timetable| decide(&timetable, history, app.core.now())) };
    let decision = deciding.by(decided).await?;
    let handled = match decision {
        Decision::Wait(_) => return Ok(false),
        Decision::Run { due, is_late } => {
            let reason = is_late.then(|| "caught up with: no hub was there to begin it".to_owned());
            let new = deciding.by(app.execution_of(row, due, None, reason)).await?;
            app.begin_execution(&new).await
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
            Ok(true)
        }
        // Another hub was faster.
        Err(problem) if problem.code == ProblemCode::Conflict => Ok(true),
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
