//! Tasks, their logs, and the stream of events.

use super::Who;
use crate::app::App;
use crate::http::extract::{Id, NoBody, Query};
use crate::http::problem::Result;
use crate::http::router::Shared;
use crate::http::stream;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{LogReply, TaskListReply, TaskReply};
use sendense_api::{ListQuery, ProblemBody, TaskFilter};
use sendense_types::TaskId;

/// List tasks.
///
/// Newest first. Filters are combined with AND.
#[utoipa::path(
    get, path = "/tasks", tag = "tasks", params(TaskFilter),
    responses((status = 200, description = "A page of tasks.", body = TaskListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_tasks(
    State(app): State<App>,
    Query(filter): Query<TaskFilter>,
) -> Result<Json<TaskListReply>> {
    Ok(Json(app.list_tasks(filter).await?.into()))
}

/// Show a task.
#[utoipa::path(
    get, path = "/tasks/{task_id}", tag = "tasks", params(("task_id" = String, Path, description = "The task.")),
    responses((status = 200, description = "The task.", body = TaskReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_task(State(app): State<App>, Id(task_id): Id<TaskId>) -> Result<Json<TaskReply>> {
    Ok(Json(TaskReply::new(app.get_task(&task_id).await?)))
}

/// Stop a task.
#[utoipa::path(
    post, path = "/tasks/{task_id}/cancel", tag = "tasks", params(("task_id" = String, Path, description = "The task.")),
    responses(
        (status = 202, description = "It was asked to stop.", body = TaskReply),
        (status = 409, description = "It has ended already.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn cancel_task(
    State(app): State<App>,
    Extension(caller): Who,
    Id(task_id): Id<TaskId>,
    _: NoBody,
) -> Result<(StatusCode, Json<TaskReply>)> {
    let task = app.cancel_task(&caller, &task_id).await?;
    Ok((StatusCode::ACCEPTED, Json(TaskReply::done("the task was asked to stop", task))))
}

/// Read the log of a task.
///
/// Oldest line first.
#[utoipa::path(
    get, path = "/tasks/{task_id}/log", tag = "tasks",
    params(("task_id" = String, Path, description = "The task."), ListQuery),
    responses((status = 200, description = "A page of the log.", body = LogReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn task_log(
    State(app): State<App>,
    Id(task_id): Id<TaskId>,
    Query(page): Query<ListQuery>,
) -> Result<Json<LogReply>> {
    Ok(Json(app.task_log(&task_id, page).await?.into()))
}

/// Follow what happens.
///
/// Server-sent events, each named by its `type` with an `Event` as data: the progress of every running task and every change
/// of state. Silence is broken by a comment every 15 seconds. A reader that is too slow gets `lagged` and should ask for
/// what it watches.
#[utoipa::path(
    get, path = "/events", tag = "tasks",
    responses((
        status = 200, description = "Events without end.", body = sendense_api::Event, content_type = "text/event-stream",
    )),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn events(State(shared): State<Shared>) -> Result<impl IntoResponse> {
    stream::events(&shared)
}
