//! Repositories.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::{Failure, Result};
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{
    CatalogCopiesReply, CatalogCopyReply, DoneReply, ReportListReply, ReportReply, RepositoryListReply,
    RepositoryReply, SpaceListReply, StorageReply, TaskReply, TestReply,
};
use sendense_api::{CreateRepository, DeleteRepository, ListQuery, ProblemBody, ReconcileQuery, UpdateRepository};

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

/// Change a repository.
///
/// Its maintenance mode, and what it may take. `read_only`: points are read and verified, none is made, changed or deleted. `draining`: what runs
/// comes to its end, and nothing begins. `offline`: only when nothing is at work in it; the hub closes the folder and leaves it
/// alone. What is not allowed is refused with `repository_maintenance`; tasks that wait already wait until it is.
#[utoipa::path(
    patch, path = "/repositories/{repository_id}", tag = "repositories", request_body = UpdateRepository,
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses(
        (status = 200, description = "The repository as it is now.", body = RepositoryReply),
        (status = 409, description = "It cannot go offline: something is at work in it.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn update_repository(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(repository): NameOrId,
    Body(request): Body<UpdateRepository>,
) -> Result<Json<RepositoryReply>> {
    if request == UpdateRepository::default() {
        return Err(Failure::invalid("there is nothing to change", "give at least one field"));
    }
    let repository = app.update_repository(&caller, &repository, request).await?;
    Ok(Json(RepositoryReply::done("the repository was changed", repository)))
}

/// Show the space of a repository.
#[utoipa::path(
    get, path = "/repositories/{repository_id}/storage", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses(
        (status = 200, description = "The space.", body = StorageReply),
        (status = 409, description = "The repository is offline.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn repository_storage(
    State(app): State<App>,
    NameOrId(repository): NameOrId,
) -> Result<Json<StorageReply>> {
    Ok(Json(app.repository_storage(&repository).await?.into()))
}

/// Show what a repository held from day to day.
///
/// The last look of each day (UTC), oldest first; 400 days are kept. What that means is in the repository itself (`space`).
#[utoipa::path(
    get, path = "/repositories/{repository_id}/space", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name."), ListQuery),
    responses((status = 200, description = "A page of days.", body = SpaceListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn repository_space(
    State(app): State<App>,
    NameOrId(repository): NameOrId,
    Query(page): Query<ListQuery>,
) -> Result<Json<SpaceListReply>> {
    Ok(Json(app.repository_space(&repository, page).await?.into()))
}

/// Look through a repository.
///
/// Compares its folder, the catalog and what runs: unfinished points that no task works on, points that only one of folder and
/// catalog knows, half deletions and merges, tasks whose lease ran out, points open for browsing that nobody reads any more, files
/// that nobody knows. What is safe is repaired; the rest is told. What cannot be looked through is not changed. The report is kept.
/// The hub does the same whenever it opens a repository, and each day.
#[utoipa::path(
    post, path = "/repositories/{repository_id}/reconcile", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name."), ReconcileQuery),
    responses(
        (status = 200, description = "What was found and done.", body = ReportReply),
        (status = 409, description = "The repository's mode does not allow it, or something else goes through it.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn reconcile_repository(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(repository): NameOrId,
    Query(how): Query<ReconcileQuery>,
    _: NoBody,
) -> Result<Json<ReportReply>> {
    Ok(Json(ReportReply::new(app.reconcile_repository(&caller, &repository, how).await?)))
}

/// List what was out of order in a repository.
///
/// The last thirty reports, newest first.
#[utoipa::path(
    get, path = "/repositories/{repository_id}/reports", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name."), ListQuery),
    responses((status = 200, description = "A page of reports.", body = ReportListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn repository_reports(
    State(app): State<App>,
    NameOrId(repository): NameOrId,
    Query(page): Query<ListQuery>,
) -> Result<Json<ReportListReply>> {
    Ok(Json(app.repository_reports(&repository, page).await?.into()))
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
    responses(
        (status = 202, description = "The task that imports.", body = TaskReply),
        (status = 409, description = "The repository is draining or offline.", body = ProblemBody),
    ),
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

/// Copy the catalog into a repository.
///
/// Sealed with the recovery key. The hub does it once a day by itself; the last seven stay.
#[utoipa::path(
    post, path = "/repositories/{repository_id}/catalog-copies", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses(
        (status = 201, description = "The copy that was made.", body = CatalogCopyReply),
        (status = 409, description = "The repository's mode does not allow it.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn copy_catalog(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(repository): NameOrId,
    _: NoBody,
) -> Result<(StatusCode, Json<CatalogCopyReply>)> {
    let copy = app.copy_catalog(&caller, &repository).await?;
    Ok((StatusCode::CREATED, Json(CatalogCopyReply::new(copy))))
}

/// List copies of catalogs.
///
/// Those in a repository, the newest first.
#[utoipa::path(
    get, path = "/repositories/{repository_id}/catalog-copies", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name.")),
    responses(
        (status = 200, description = "The copies.", body = CatalogCopiesReply),
        (status = 409, description = "The repository is draining or offline.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_catalog_copies(
    State(app): State<App>,
    NameOrId(repository): NameOrId,
) -> Result<Json<CatalogCopiesReply>> {
    Ok(Json(CatalogCopiesReply::new(app.list_catalog_copies(&repository).await?)))
}

/// Forget a repository.
///
/// Only one that holds no backups; or, with `lost=true`, one that cannot be reached, with all that is known of its points. Nothing of its
/// folder is touched.
#[utoipa::path(
    delete, path = "/repositories/{repository_id}", tag = "repositories",
    params(("repository_id" = String, Path, description = "The repository's id or name."), DeleteRepository),
    responses(
        (status = 200, description = "It is forgotten.", body = DoneReply),
        (status = 409, description = "It holds backups, or is not lost.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn delete_repository(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(repository): NameOrId,
    Query(how): Query<DeleteRepository>,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_repository(&caller, &repository, how).await?;
    Ok(Json(DoneReply::new(format!("repository {repository} is forgotten"))))
}
