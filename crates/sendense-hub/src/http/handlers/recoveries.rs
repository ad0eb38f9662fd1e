//! Instant recoveries.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::Result;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{BackupReply, DoneReply, RecoveryListReply, RecoveryReply, TaskReply};
use sendense_api::{CreateRecovery, ListQuery, MigrateRecovery, ProblemBody};

/// Serve a restore point writable.
///
/// Every disk gets an NBD URI, which is a secret. What is written lies beside the point, which stays as it is and cannot be
/// deleted meanwhile. A recovery outlives the hub: after a start it is served under the same URIs, with all that was written.
/// With `source_id` a machine of that libvirt source is defined from the recorded configuration, and started on the disks.
#[utoipa::path(
    post, path = "/recoveries", tag = "recoveries", request_body = CreateRecovery,
    responses(
        (status = 201, description = "The recovery with its URIs and the recorded configuration.", body = RecoveryReply),
        (status = 404, description = "No such backup.", body = ProblemBody),
        (status = 409, description = "The backup holds no point, or the name is taken.", body = ProblemBody),
        (status = 507, description = "There is no space for what would be written.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn create_recovery(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateRecovery>,
) -> Result<(StatusCode, Json<RecoveryReply>)> {
    let recovery = app.create_recovery(&caller, request).await?;
    let message = format!("{} of {} is served writable", recovery.backup_id, recovery.vm_name);
    Ok((StatusCode::CREATED, Json(RecoveryReply::done(message, recovery))))
}

/// List recoveries.
///
/// Viewers are not told the URIs.
#[utoipa::path(
    get, path = "/recoveries", tag = "recoveries", params(ListQuery),
    responses((status = 200, description = "A page of this hub's recoveries, oldest first.", body = RecoveryListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_recoveries(
    State(app): State<App>,
    Extension(caller): Who,
    Query(page): Query<ListQuery>,
) -> Result<Json<RecoveryListReply>> {
    Ok(Json(app.list_recoveries(&caller, page).await?.into()))
}

/// Show a recovery.
///
/// With the recorded configuration of the machine, which viewers are not told.
#[utoipa::path(
    get, path = "/recoveries/{recovery}", tag = "recoveries",
    params(("recovery" = String, Path, description = "The recovery's id or name.")),
    responses((status = 200, description = "The recovery.", body = RecoveryReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_recovery(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(recovery): NameOrId,
) -> Result<Json<RecoveryReply>> {
    Ok(Json(RecoveryReply::new(app.get_recovery(&caller, &recovery).await?)))
}

/// Commit a recovery.
///
/// What was written becomes the next incremental of the chain, and the recovery ends. Only of the newest point, with the machine
/// shut down and no client connected. The answer comes at once; the work goes on as the task `task_id`.
#[utoipa::path(
    post, path = "/recoveries/{recovery}/commit", tag = "recoveries",
    params(("recovery" = String, Path, description = "The recovery's id or name.")),
    responses(
        (status = 202, description = "The backup waits or runs.", body = BackupReply),
        (status = 409, description = "It is in use, not of the newest point, or being worked on.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn commit_recovery(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(recovery): NameOrId,
    _: NoBody,
) -> Result<(StatusCode, Json<BackupReply>)> {
    let backup = app.commit_recovery(&caller, &recovery).await?;
    let message = format!("what was written to {recovery} becomes {}", backup.backup_id);
    Ok((StatusCode::ACCEPTED, Json(BackupReply::done(message, backup))))
}

/// Migrate a recovered machine.
///
/// While it runs its hypervisor copies its disks to storage of their own, and the recovery ends. The answer comes at once; the
/// work goes on as a task. When it fails, or is cancelled, the machine goes on with the recovery's disks where they have not moved.
#[utoipa::path(
    post, path = "/recoveries/{recovery}/migrate", tag = "recoveries", request_body = MigrateRecovery,
    params(("recovery" = String, Path, description = "The recovery's id or name.")),
    responses(
        (status = 202, description = "The task waits or runs.", body = TaskReply),
        (status = 409, description = "It has no machine that runs, or is being worked on.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn migrate_recovery(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(recovery): NameOrId,
    Body(request): Body<MigrateRecovery>,
) -> Result<(StatusCode, Json<TaskReply>)> {
    let task = app.migrate_recovery(&caller, &recovery, request).await?;
    Ok((StatusCode::ACCEPTED, Json(TaskReply::done(format!("the machine of {recovery} moves"), task))))
}

/// Discard a recovery.
///
/// Its clients are cut off, and what was written to it is lost. The restore point stays.
#[utoipa::path(
    delete, path = "/recoveries/{recovery}", tag = "recoveries",
    params(("recovery" = String, Path, description = "The recovery's id or name.")),
    responses(
        (status = 200, description = "It is gone.", body = DoneReply),
        (status = 409, description = "It is being worked on.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn delete_recovery(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(recovery): NameOrId,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_recovery(&caller, &recovery).await?;
    Ok(Json(DoneReply::new(format!("recovery {recovery} is gone"))))
}
