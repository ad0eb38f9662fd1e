//! Sources: hypervisors, image folders, NBD servers.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::{Failure, Result};
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{DiscoveryReply, DoneReply, SourceListReply, SourceReply, TestReply};
use sendense_api::{CreateSource, ListQuery, ProblemBody, UpdateSource};

/// Make a source known.
#[utoipa::path(
    post, path = "/sources", tag = "sources", request_body = CreateSource,
    responses(
        (status = 201, description = "The source.", body = SourceReply),
        (status = 409, description = "The name is taken.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn create_source(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateSource>,
) -> Result<(StatusCode, Json<SourceReply>)> {
    let source = app.create_source(&caller, request).await?;
    let message = format!("source {} made", source.name);
    Ok((StatusCode::CREATED, Json(SourceReply::done(message, source))))
}

/// List sources.
#[utoipa::path(
    get, path = "/sources", tag = "sources", params(ListQuery),
    responses((status = 200, description = "A page of sources.", body = SourceListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_sources(
    State(app): State<App>,
    Query(page): Query<ListQuery>,
) -> Result<Json<SourceListReply>> {
    Ok(Json(app.list_sources(page).await?.into()))
}

/// Show a source.
#[utoipa::path(
    get, path = "/sources/{source_id}", tag = "sources",
    params(("source_id" = String, Path, description = "The source's id or name.")),
    responses((status = 200, description = "The source.", body = SourceReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_source(
    State(app): State<App>,
    NameOrId(source): NameOrId,
) -> Result<Json<SourceReply>> {
    Ok(Json(SourceReply::new(app.get_source(&source).await?)))
}

/// Change a source.
///
/// What is left out stays as it is; at least one field is given.
#[utoipa::path(
    patch, path = "/sources/{source_id}", tag = "sources", request_body = UpdateSource,
    params(("source_id" = String, Path, description = "The source's id or name.")),
    responses(
        (status = 200, description = "The source as it is now.", body = SourceReply),
        (status = 409, description = "The name is taken.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn update_source(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(source): NameOrId,
    Body(request): Body<UpdateSource>,
) -> Result<Json<SourceReply>> {
    if request == UpdateSource::default() {
        return Err(Failure::invalid("there is nothing to change", "give at least one field"));
    }
    Ok(Json(SourceReply::done("the source was changed", app.update_source(&caller, &source, request).await?)))
}

/// Forget a source.
///
/// Backups of its machines stay.
#[utoipa::path(
    delete, path = "/sources/{source_id}", tag = "sources",
    params(("source_id" = String, Path, description = "The source's id or name.")),
    responses(
        (status = 200, description = "It is forgotten.", body = DoneReply),
        (status = 409, description = "A task works on it.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn delete_source(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(source): NameOrId,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_source(&caller, &source).await?;
    Ok(Json(DoneReply::new(format!("source {source} is forgotten"))))
}

/// Test a source.
#[utoipa::path(
    post, path = "/sources/{source_id}/test", tag = "sources",
    params(("source_id" = String, Path, description = "The source's id or name.")),
    responses(
        (status = 200, description = "It answers.", body = TestReply),
        (status = 502, description = "It does not do what it should.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn test_source(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(source): NameOrId,
    _: NoBody,
) -> Result<Json<TestReply>> {
    Ok(Json(TestReply::done("the source answers", app.test_source(&caller, &source).await?)))
}

/// Discover a source's machines.
///
/// Lists them with their disks and networks, and takes them into the catalog.
#[utoipa::path(
    post, path = "/sources/{source_id}/discover", tag = "sources",
    params(("source_id" = String, Path, description = "The source's id or name.")),
    responses(
        (status = 200, description = "The machines.", body = DiscoveryReply),
        (status = 502, description = "The source does not do what it should.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn discover_source(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(source): NameOrId,
    _: NoBody,
) -> Result<Json<DiscoveryReply>> {
    Ok(Json(app.discover_source(&caller, &source).await?.into()))
}
