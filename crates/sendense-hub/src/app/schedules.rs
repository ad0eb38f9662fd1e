//! Schedules and their executions: what they say, what will be, what was.

use super::policies::rules_of;
use super::selector::Selector;
use super::{App, Caller};
use crate::fault::{OrProblem, Result, internal, invalid};
use crate::schedule::{
    CatchUp, Decision, History, Invalid, JITTER_SECONDS_MAX, Schedule as Timetable, When, Window, decide, preview,
    time_zone,
};
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use sendense_api as dto;
use sendense_api::{
    Day, Execution, ExecutionVm, ListQuery, Occurrence, Page, PreviewQuery, Role, Schedule, ScheduleRules,
};
use sendense_catalog as catalog;
use sendense_types::{ExecutionId, Name, Problem, ProblemCode, ScheduleId, Timestamp};

/// Occurrences told at once: every hour of 41 days.
const PREVIEW_MAX: usize = 1000;
/// Days that are looked ahead.
const PREVIEW_DAYS_MAX: u32 = 366;
const DAY_SECONDS: i64 = 86_400;

impl App {
    /// Schedules by name.
    pub async fn list_schedules(&self, page: ListQuery) -> Result<Page<Schedule>> {
        let page = catalog::Page { limit: page.limit.get().into(), offset: page.offset };
        let (rows, total) = self.core.catalog.schedules().list(page).await.or_problem()?;
        let now = self.core.now();
        Ok(Page { items: rows.iter().map(|row| schedule_out(row, now)).collect::<Result<_>>()?, total })
    }

    /// One schedule, by its id or name.
    pub async fn get_schedule(&self, id_or_name: &str) -> Result<Schedule> {
        schedule_out(&self.core.catalog.schedules().find(id_or_name).await.or_problem()?, self.core.now())
    }

    /// Makes a schedule.
    pub async fn create_schedule(&self, caller: &Caller, rules: ScheduleRules) -> Result<Schedule> {
        caller.require(Role::Admin)?;
        let new = self.schedule_asked(ScheduleId::generate(), rules).await?;
        let now = self.core.now();
        let row = self.core.catalog.schedules().create(&new, now).await.or_problem()?;
        self.core.schedules_changed.notify_one();
        tracing::info!(schedule_id = %row.schedule_id, name = %row.name, by = %caller.identity, "schedule made");
        schedule_out(&row, now)
    }

    /// Lets a schedule say something else. Occurrences before now are none of its business any more.
    pub async fn replace_schedule(&self, caller: &Caller, id_or_name: &str, rules: ScheduleRules) -> Result<Schedule> {
        caller.require(Role::Admin)?;
        let id = self.core.catalog.schedules().find(id_or_name).await.or_problem()?.schedule_id;
        let new = self.schedule_asked(id, rules).await?;
        let now = self.core.now();
        let row = self.core.catalog.schedules().replace(&new, now).await.or_problem()?;
        self.core.schedules_changed.notify_one();
        tracing::info!(schedule_id = %row.schedule_id, name = %row.name, enabled = row.enabled, by = %caller.identity,
            "schedule changed");
        schedule_out(&row, now)
    }

    /// Enables or disables a schedule. What was due while it was disabled is not caught up with.
    pub async fn enable_schedule(&self, caller: &Caller, id_or_name: &str, enabled: bool) -> Result<Schedule> {
        caller.require(Role::Operator)?;
        let now = self.core.now();
        let row = self.core.catalog.schedules().find(id_or_name).await.or_problem()?;
        if row.enabled == enabled {
            return schedule_out(&row, now);
        }
        let new = catalog::NewSchedule {
            schedule_id: row.schedule_id,
            name: row.name,
            policy_id: row.policy_id,
            enabled,
            body: row.body,
        };
        let row = self.core.catalog.schedules().replace(&new, now).await.or_problem()?;
        self.core.schedules_changed.notify_one();
        tracing::info!(schedule_id = %row.schedule_id, name = %row.name, enabled, by = %caller.identity,
            "schedule changed");
        schedule_out(&row, now)
    }

    /// Forgets a schedule with its executions. Backups that it began go on.
    pub async fn delete_schedule(&self, caller: &Caller, id_or_name: &str) -> Result<()> {
        caller.require(Role::Admin)?;
        let row = self.core.catalog.schedules().find(id_or_name).await.or_problem()?;
        self.core.catalog.schedules().delete(&row.schedule_id).await.or_problem()?;
        tracing::info!(schedule_id = %row.schedule_id, name = %row.name, by = %caller.identity, "schedule forgotten");
        Ok(())
    }

    /// The occurrences of the next days, also of a disabled schedule.
    pub async fn preview_schedule(&self, id_or_name: &str, how: PreviewQuery) -> Result<Vec<Occurrence>> {
        if !(1..=PREVIEW_DAYS_MAX).contains(&how.days) {
            return Err(invalid(format!("days is 1 to {PREVIEW_DAYS_MAX}")));
        }
        let row = self.core.catalog.schedules().find(id_or_name).await.or_problem()?;
        let (timetable, now) = (timetable(&row)?, self.core.now());
        let until = now.plus_seconds(i64::from(how.days) * DAY_SECONDS);
        let told = preview(&timetable, now, until, PREVIEW_MAX).into_iter().map(|one| Occurrence {
            due_at: one.due,
            begins_at: one.begins_at,
            may_begin: one.may_begin,
        });
        Ok(told.collect())
    }

    /// Carries a schedule's policy out now, also when the schedule is disabled or its window shut.
    pub async fn trigger_schedule(&self, caller: &Caller, id_or_name: &str) -> Result<Execution> {
        caller.require(Role::Operator)?;
        let row = self.core.catalog.schedules().find(id_or_name).await.or_problem()?;
        let now = self.core.now();
        let new = self.execution_of(&row, now, Some(caller.identity.clone()), None).await?;
        let execution = self.begin_execution(&new).await;
        let execution = execution.map_err(|problem| match problem.code {
            ProblemCode::Conflict => Problem { message: "an execution of the schedule runs".to_owned(), ..problem },
            _ => problem,
        })?;
        tracing::info!(schedule_id = %row.schedule_id, execution_id = %execution.execution_id,
            by = %caller.identity, "schedule triggered");
        self.core.schedules_changed.notify_one();
        self.get_execution(&execution.execution_id).await
    }

    /// An execution of the machines that the policy means now, in the order of their turns. Nothing is begun yet.
    pub(crate) async fn execution_of(
        &self,
        row: &catalog::Schedule,
        due: Timestamp,
        triggered_by: Option<String>,
        reason: Option<String>,
    ) -> Result<catalog::NewExecution> {
        let policy = self.core.catalog.policies().find(row.policy_id.as_str()).await.or_problem()?;
        let rules = rules_of(&policy)?;
        let all = self.core.catalog.vms().seen().await.or_problem()?;
        let mut selector = Selector::new(&rules);
        let chosen = all.iter().filter(|vm| vm.vanished_at.is_none() && selector.means(*vm)).collect();
        let vms = self.in_turn(&rules, chosen).await?;
        let vanished = self.vanished_words(&all, &rules).await?;
        let reason = [reason, vanished].into_iter().flatten().reduce(|all, one| format!("{all}; {one}"));
        Ok(catalog::NewExecution {
            execution_id: ExecutionId::generate(),
            schedule_id: row.schedule_id.clone(),
            policy_id: policy.policy_id,
            due,
            triggered_by,
            reason,
            vms: vms.into_iter().map(|vm| (vm.vm_context_id.clone(), vm.vm_name.clone())).collect(),
        })
    }

    /// Begins it.
    pub(crate) async fn begin_execution(&self, new: &catalog::NewExecution) -> Result<catalog::Execution> {
        self.core.catalog.executions().begin(new, &self.core.lease, self.core.now()).await.or_problem()
    }

    /// Executions of a schedule, newest first.
    pub async fn list_executions(&self, id_or_name: &str, page: ListQuery) -> Result<Page<Execution>> {
        let row = self.core.catalog.schedules().find(id_or_name).await.or_problem()?;
        let page = catalog::Page { limit: page.limit.get().into(), offset: page.offset };
        let (rows, total) = self.core.catalog.executions().list(&row.schedule_id, page).await.or_problem()?;
        Ok(Page { items: rows.into_iter().map(|row| execution_out(row, None)).collect(), total })
    }

    /// One execution with its machines.
    pub async fn get_execution(&self, id: &ExecutionId) -> Result<Execution> {
        let (row, vms) = self.core.catalog.executions().get(id).await.or_problem()?;
        Ok(execution_out(row, Some(vms)))
    }

    async fn schedule_asked(&self, schedule_id: ScheduleId, mut rules: ScheduleRules) -> Result<catalog::NewSchedule> {
        let name: Name = rules.name.parse().map_err(|error: sendense_types::NameError| invalid(error.to_string()))?;
        if rules.jitter_seconds > JITTER_SECONDS_MAX {
            return Err(invalid(format!("jitter_seconds is at most {JITTER_SECONDS_MAX}")));
        }
        let policy = self.core.catalog.policies().find(&rules.policy_id).await.or_problem()?;
        rules.policy_id = policy.policy_id.to_string();
        times(&rules, self.core.now()).map_err(|error| invalid(error.to_string()))?;
        let enabled = rules.enabled;
        let body = serde_json::to_value(&rules)
            .map_err(|error| internal("a schedule cannot be written", error.to_string()))?;
        Ok(catalog::NewSchedule { schedule_id, name, policy_id: policy.policy_id, enabled, body })
    }
}

/// When a schedule is due, and when it may begin.
fn times(rules: &ScheduleRules, since: Timestamp) -> Result<(When, Option<Window>), Invalid> {
    let zone = time_zone(rules.time_zone.as_deref().unwrap_or("UTC"))?;
    let when = match (&rules.cron, rules.every_seconds) {
        (Some(expression), None) => When::cron(expression, zone.clone())?,
        (None, Some(seconds)) => When::every(seconds, since)?,
        _ => return Err(Invalid::new("exactly one of cron and every_seconds is needed")),
    };
    Ok((when, window(rules, zone)?))
}

fn window(rules: &ScheduleRules, zone: TimeZone) -> Result<Option<Window>, Invalid> {
    let Some(window) = &rules.window else { return Ok(None) };
    let days: Vec<Weekday> = window.days.iter().map(|day| weekday(*day)).collect();
    Window::new(&window.from, &window.until, &days, zone).map(Some)
}

/// The day as the calendar calls it.
pub(crate) const fn weekday(day: Day) -> Weekday {
    match day {
        Day::Monday => Weekday::Monday,
        Day::Tuesday => Weekday::Tuesday,
        Day::Wednesday => Weekday::Wednesday,
        Day::Thursday => Weekday::Thursday,
        Day::Friday => Weekday::Friday,
        Day::Saturday => Weekday::Saturday,
        Day::Sunday => Weekday::Sunday,
    }
}

/// What a row says.
pub(crate) fn schedule_rules(row: &catalog::Schedule) -> Result<ScheduleRules> {
    let read = serde_json::from_value(row.body.clone());
    read.map_err(|error| internal(format!("schedule {} cannot be read", row.name), error.to_string()))
}

/// A row as what is decided by.
pub(crate) fn timetable(row: &catalog::Schedule) -> Result<Timetable> {
    let rules = schedule_rules(row)?;
    let unreadable = |error: Invalid| internal(format!("schedule {} cannot be read", row.name), error.to_string());
    let (when, window) = times(&rules, row.since).map_err(unreadable)?;
    Ok(Timetable {
        id: row.schedule_id.to_string(),
        when,
        window,
        jitter_seconds: rules.jitter_seconds,
        catch_up: match rules.catch_up {
            dto::CatchUp::Once => CatchUp::Once,
            dto::CatchUp::Skip => CatchUp::Skip,
        },
        since: row.since,
    })
}

fn schedule_out(row: &catalog::Schedule, now: Timestamp) -> Result<Schedule> {
    let (name, enabled) = (row.name.to_string(), row.enabled);
    let next_at = match decide(&timetable(row)?, History { handled: row.handled, is_running: false }, now) {
        _ if !enabled => None,
        Decision::Wait(until) => until,
        Decision::Run { .. } | Decision::Skip { .. } => Some(now),
    };
    Ok(Schedule {
        schedule_id: row.schedule_id.clone(),
        name: name.clone(),
        policy_id: row.policy_id.clone(),
        enabled,
        rules: ScheduleRules { name, enabled, policy_id: row.policy_id.to_string(), ..schedule_rules(row)? },
        next_at,
        handled_at: row.handled,
        created_at: row.created_at,
    })
}

fn execution_out(row: catalog::Execution, vms: Option<Vec<catalog::ExecutionVm>>) -> Execution {
    let vm_out = |vm: catalog::ExecutionVm| ExecutionVm {
        vm_context_id: vm.vm_context_id,
        vm_name: vm.vm_name.into(),
        outcome: vm.outcome,
        backup_id: vm.backup_id,
        attempts: vm.attempts,
        reason: vm.reason,
    };
    Execution {
        execution_id: row.execution_id,
        schedule_id: row.schedule_id,
        policy_id: row.policy_id,
        due_at: row.due,
        state: row.state,
        reason: row.reason,
        triggered_by: row.triggered_by,
        started_at: row.started_at,
        finished_at: row.finished_at,
        vms: vms.map(|vms| vms.into_iter().map(vm_out).collect()),
    }
}
