//! Repositories.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::Result;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{DoneReply, RepositoryListReply, RepositoryReply, StorageReply, TaskReply, TestReply};
use sendense_api::{CreateRepository, ListQuery, ProblemBody};

/// Make a repository known.
///
/// An empty folder becomes a repository; one that this deployment owns already is taken as it is (import fills the catalog).
#[utoipa::path(
    post, path = "/repositories", tag = "repositories", request_body = CreateRepository,
    responses(
        (status = 201, description = "The repository.", body = RepositoryReply),
        (status = 409, description = "The name is taken, or another deployment owns the folder.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn create_repository(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateRepository>,
) -> Result<(StatusCode, Json<RepositoryReply>)> {
    let repository = app.create_repository(&caller, request).await?;
    let message = format!("repository {} made", repository.name);
    Ok((StatusCode::CREATED, Json(RepositoryReply::done(message, repository))))
}

/// List repositories.
#[utoipa::path(
    get, path = "/repositories", tag = "repositories", params(ListQuery),
    responses((status = 200, description = "A page of repositories.", body = RepositoryListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_repositories(
    State(app): State<App>,
    Query(page): Query<ListQuery>,
) -> Result<Json<RepositoryListReply>> {
    Ok(Json(app.list_repositories(page).await?.into()))
}

/// Show a repository.
#[utoipa::path(
    get, path = "/repositories/{repository_id}", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses((status = 200, description = "The repository.", body = RepositoryReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_repository(
    State(app): State<App>,
    NameOrId(repository): NameOrId,
) -> Result<Json<RepositoryReply>> {
    Ok(Json(RepositoryReply::new(app.get_repository(&repository).await?)))
}

/// Show the space of a repository.
#[utoipa::path(
    get, path = "/repositories/{repository_id}/storage", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses((status = 200, description = "The space.", body = StorageReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn repository_storage(
    State(app): State<App>,
    NameOrId(repository): NameOrId,
) -> Result<Json<StorageReply>> {
    Ok(Json(app.repository_storage(&repository).await?.into()))
}

/// Test a repository.
///
/// Tries what making it would need, and leaves nothing behind.
#[utoipa::path(
    post, path = "/repositories/test", tag = "repositories", request_body = CreateRepository,
    responses(
        (status = 200, description = "It can be used.", body = TestReply),
        (status = 409, description = "Another deployment owns the folder.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn test_repository(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateRepository>,
) -> Result<Json<TestReply>> {
    Ok(Json(TestReply::done("the repository can be used", app.test_repository(&caller, request).await?)))
}

/// Rebuild the catalog from a repository.
///
/// Reads every manifest and takes into the catalog what it does not know.
#[utoipa::path(
    post, path = "/repositories/{repository_id}/import", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses((status = 202, description = "The task that imports.", body = TaskReply)),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn import_repository(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(repository): NameOrId,
    _: NoBody,
) -> Result<(StatusCode, Json<TaskReply>)> {
    let task = app.import_repository(&caller, &repository).await?;
    Ok((StatusCode::ACCEPTED, Json(TaskReply::done("import started", task))))
}

/// Forget a repository.
///
/// Only one that holds no backups.
#[utoipa::path(
    delete, path = "/repositories/{repository_id}", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses(
        (status = 200, description = "It is forgotten.", body = DoneReply),
        (status = 409, description = "It holds backups.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn delete_repository(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(repository): NameOrId,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_repository(&caller, &repository).await?;
    Ok(Json(DoneReply::new(format!("repository {repository} is forgotten"))))
}
