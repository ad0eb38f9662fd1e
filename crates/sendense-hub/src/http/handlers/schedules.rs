//! Schedules and executions.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, Id, NameOrId, NoBody, Query};
use crate::http::problem::Result;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{
    DoneReply, ExecutionListReply, ExecutionReply, PreviewReply, ScheduleListReply, ScheduleReply,
};
use sendense_api::{ListQuery, PreviewQuery, ProblemBody, ScheduleRules};
use sendense_types::ExecutionId;

/// Make a schedule.
///
/// It carries a policy out by a cron expression or every so often.
#[utoipa::path(
    post, path = "/schedules", tag = "schedules", request_body = ScheduleRules,
    responses(
        (status = 201, description = "The schedule.", body = ScheduleReply),
        (status = 404, description = "There is no such policy.", body = ProblemBody),
        (status = 409, description = "The name is taken.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn create_schedule(
    State(app): State<App>,
    Extension(caller): Who,
    Body(rules): Body<ScheduleRules>,
) -> Result<(StatusCode, Json<ScheduleReply>)> {
    let schedule = app.create_schedule(&caller, rules).await?;
    Ok((StatusCode::CREATED, Json(ScheduleReply::done(format!("schedule {} made", schedule.name), schedule))))
}

/// List schedules.
#[utoipa::path(
    get, path = "/schedules", tag = "schedules", params(ListQuery),
    responses((status = 200, description = "A page of schedules, by name.", body = ScheduleListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_schedules(
    State(app): State<App>,
    Query(page): Query<ListQuery>,
) -> Result<Json<ScheduleListReply>> {
    Ok(Json(app.list_schedules(page).await?.into()))
}

/// Show a schedule.
#[utoipa::path(
    get, path = "/schedules/{schedule_id}", tag = "schedules",
    params(("schedule_id" = String, Path, description = "The schedule's id or name.")),
    responses((status = 200, description = "The schedule.", body = ScheduleReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_schedule(
    State(app): State<App>,
    NameOrId(schedule): NameOrId,
) -> Result<Json<ScheduleReply>> {
    Ok(Json(ScheduleReply::new(app.get_schedule(&schedule).await?)))
}

/// Replace what a schedule says.
///
/// What was due before is not caught up with.
#[utoipa::path(
    put, path = "/schedules/{schedule_id}", tag = "schedules", request_body = ScheduleRules,
    params(("schedule_id" = String, Path, description = "The schedule's id or name.")),
    responses(
        (status = 200, description = "The schedule as it is now.", body = ScheduleReply),
        (status = 409, description = "The name is taken.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn replace_schedule(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(schedule): NameOrId,
    Body(rules): Body<ScheduleRules>,
) -> Result<Json<ScheduleReply>> {
    let schedule = app.replace_schedule(&caller, &schedule, rules).await?;
    Ok(Json(ScheduleReply::done("the schedule was changed", schedule)))
}

/// Forget a schedule.
///
/// With its executions. Backups that it began go on, and points stay.
#[utoipa::path(
    delete, path = "/schedules/{schedule_id}", tag = "schedules",
    params(("schedule_id" = String, Path, description = "The schedule's id or name.")),
    responses((status = 200, description = "It is forgotten.", body = DoneReply)),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn delete_schedule(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(schedule): NameOrId,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_schedule(&caller, &schedule).await?;
    Ok(Json(DoneReply::new("the schedule is forgotten")))
}

/// Enable a schedule.
///
/// What was due while it was disabled is not caught up with.
#[utoipa::path(
    post, path = "/schedules/{schedule_id}/enable", tag = "schedules",
    params(("schedule_id" = String, Path, description = "The schedule's id or name.")),
    responses((status = 200, description = "The schedule as it is now.", body = ScheduleReply)),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn enable_schedule(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(schedule): NameOrId,
    _: NoBody,
) -> Result<Json<ScheduleReply>> {
    let schedule = app.enable_schedule(&caller, &schedule, true).await?;
    Ok(Json(ScheduleReply::done("the schedule is enabled", schedule)))
}

/// Disable a schedule.
///
/// Nothing begins by itself until it is enabled. An execution that runs goes on.
#[utoipa::path(
    post, path = "/schedules/{schedule_id}/disable", tag = "schedules",
    params(("schedule_id" = String, Path, description = "The schedule's id or name.")),
    responses((status = 200, description = "The schedule as it is now.", body = ScheduleReply)),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn disable_schedule(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(schedule): NameOrId,
    _: NoBody,
) -> Result<Json<ScheduleReply>> {
    let schedule = app.enable_schedule(&caller, &schedule, false).await?;
    Ok(Json(ScheduleReply::done("the schedule is disabled", schedule)))
}

/// Carry a schedule out now.
///
/// Also when it is disabled or its window is shut.
#[utoipa::path(
    post, path = "/schedules/{schedule_id}/trigger", tag = "schedules",
    params(("schedule_id" = String, Path, description = "The schedule's id or name.")),
    responses(
        (status = 202, description = "The execution.", body = ExecutionReply),
        (status = 409, description = "An execution of it runs.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn trigger_schedule(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(schedule): NameOrId,
    _: NoBody,
) -> Result<(StatusCode, Json<ExecutionReply>)> {
    let execution = app.trigger_schedule(&caller, &schedule).await?;
    Ok((StatusCode::ACCEPTED, Json(ExecutionReply::done("the schedule is carried out", execution))))
}

/// Look ahead.
///
/// The occurrences of the next days, also of a disabled schedule.
#[utoipa::path(
    get, path = "/schedules/{schedule_id}/preview", tag = "schedules",
    params(("schedule_id" = String, Path, description = "The schedule's id or name."), PreviewQuery),
    responses((status = 200, description = "Occurrences to come, soonest first.", body = PreviewReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn preview_schedule(
    State(app): State<App>,
    NameOrId(schedule): NameOrId,
    Query(how): Query<PreviewQuery>,
) -> Result<Json<PreviewReply>> {
    Ok(Json(PreviewReply::new(app.preview_schedule(&schedule, how).await?)))
}

/// List the executions of a schedule.
#[utoipa::path(
    get, path = "/schedules/{schedule_id}/executions", tag = "schedules",
    params(("schedule_id" = String, Path, description = "The schedule's id or name."), ListQuery),
    responses((status = 200, description = "A page of executions, newest first.", body = ExecutionListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_executions(
    State(app): State<App>,
    NameOrId(schedule): NameOrId,
    Query(page): Query<ListQuery>,
) -> Result<Json<ExecutionListReply>> {
    Ok(Json(app.list_executions(&schedule, page).await?.into()))
}

/// Show an execution.
///
/// With each VM's outcome and why.
#[utoipa::path(
    get, path = "/executions/{execution_id}", tag = "schedules",
    params(("execution_id" = String, Path, description = "The execution.")),
    responses((status = 200, description = "The execution with its VMs.", body = ExecutionReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_execution(
    State(app): State<App>,
    Id(execution): Id<ExecutionId>,
) -> Result<Json<ExecutionReply>> {
    Ok(Json(ExecutionReply::new(app.get_execution(&execution).await?)))
}
