//! Restore points over NBD.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, Id, NoBody, Query};
use crate::http::problem::Result;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{DoneReply, ExportListReply, ExportReply};
use sendense_api::{CreateExport, ListQuery, ProblemBody};
use sendense_types::ExportId;

/// Offer a disk of a restore point to NBD clients.
///
/// The answer's URI is all a client needs; it is a secret. The export is read-only. It ends when it is deleted, when nobody
/// has used it for long, or with the hub.
#[utoipa::path(
    post, path = "/exports", tag = "exports", request_body = CreateExport,
    responses(
        (status = 201, description = "The export with its URI.", body = ExportReply),
        (status = 404, description = "No such backup or disk.", body = ProblemBody),
        (status = 409, description = "The backup holds no point.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn create_export(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateExport>,
) -> Result<(StatusCode, Json<ExportReply>)> {
    let export = app.create_export(&caller, request).await?;
    let message = format!("disk {} of {} is on offer", export.disk_id, export.backup_id);
    Ok((StatusCode::CREATED, Json(ExportReply::done(message, export))))
}

/// List exports.
///
/// Viewers are not told the URIs.
#[utoipa::path(
    get, path = "/exports", tag = "exports", params(ListQuery),
    responses((status = 200, description = "A page of this hub's exports, oldest first.", body = ExportListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_exports(
    State(app): State<App>,
    Extension(caller): Who,
    Query(page): Query<ListQuery>,
) -> Result<Json<ExportListReply>> {
    Ok(Json(app.list_exports(&caller, page).await?.into()))
}

/// Take an export back.
///
/// Its clients are cut off.
#[utoipa::path(
    delete, path = "/exports/{export_id}", tag = "exports",
    params(("export_id" = String, Path, description = "The export's id.")),
    responses(
        (status = 200, description = "It is gone.", body = DoneReply),
        (status = 404, description = "No such export; it may have expired.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn delete_export(
    State(app): State<App>,
    Extension(caller): Who,
    Id(export): Id<ExportId>,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_export(&caller, &export).await?;
    Ok(Json(DoneReply::new(format!("export {export} is gone"))))
}
