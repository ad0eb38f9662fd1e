//! Restore points that are open for browsing: open, list, close, volumes.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, Id, NoBody, Query};
use crate::http::problem::{Failure, Result};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{
    CleanupStatusReply, DoneReply, MountListReply, MountReply, MountResourcesReply, VolumeListReply,
};
use sendense_api::{CreateMount, ListQuery, ProblemBody, UnlockVolume};
use sendense_types::{MountId, ProblemCode};

/// Open a restore point.
///
/// A confined process of its own reads the disk; nothing is mounted on the hub's machine. A point that nobody uses is closed
/// after a while (`expires_at`).
#[utoipa::path(
    post, path = "/restore/mount", tag = "restore", request_body = CreateMount,
    responses(
        (status = 201, description = "The point is open.", body = MountReply),
        (status = 404, description = "There is no such backup, disk or volume.", body = ProblemBody),
        (status = 409, description = "The backup holds no point, or is being deleted.", body = ProblemBody),
        (status = 502, description = "The disk cannot be read.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn create_mount(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateMount>,
) -> Result<(StatusCode, Json<MountReply>)> {
    Ok((StatusCode::CREATED, Json(app.create_mount(&caller, request).await?.into())))
}

/// Close an open point.
///
/// Its process ends, downloads from it break off, and its backup can be deleted again.
#[utoipa::path(
    delete, path = "/restore/{mount_id}", tag = "restore", params(("mount_id" = String, Path, description = "The mount.")),
    responses((status = 200, description = "It is closed.", body = DoneReply)),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn delete_mount(
    State(app): State<App>,
    Extension(caller): Who,
    Id(mount_id): Id<MountId>,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_mount(&caller, &mount_id).await?;
    Ok(Json(DoneReply::new(format!("{mount_id} is closed"))))
}

/// List the open points.
///
/// Oldest first.
#[utoipa::path(
    get, path = "/restore/mounts", tag = "restore", params(ListQuery),
    responses((status = 200, description = "A page of the open points.", body = MountListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_mounts(
    State(app): State<App>,
    Query(page): Query<ListQuery>,
) -> Result<Json<MountListReply>> {
    Ok(Json(app.list_mounts(page).await?.into()))
}

/// List the volumes of an open point.
///
/// Partitions, logical volumes and file systems: each with its state, and why it cannot be read.
#[utoipa::path(
    get, path = "/restore/{mount_id}/volumes", tag = "restore",
    params(("mount_id" = String, Path, description = "The mount.")),
    responses(
        (status = 200, description = "What is on the disk.", body = VolumeListReply),
        (status = 502, description = "The process that read the disk has ended.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn list_volumes(
    State(app): State<App>,
    Id(mount_id): Id<MountId>,
) -> Result<Json<VolumeListReply>> {
    let volumes = app.list_volumes(&mount_id).await?;
    let total = volumes.len() as u64;
    Ok(Json(VolumeListReply { success: true, volumes, total }))
}

/// Unlock an encrypted volume.
///
/// The key is used once and kept nowhere.
#[utoipa::path(
    post, path = "/restore/{mount_id}/volumes/{volume}/unlock", tag = "restore",
    params(
        ("mount_id" = String, Path, description = "The mount."),
        ("volume" = String, Path, description = "The volume, percent-encoded."),
    ),
    request_body = UnlockVolume,
    responses(
        (status = 200, description = "All volumes; what lies inside has joined them.", body = VolumeListReply),
        (status = 400, description = "The key does not open the volume.", body = ProblemBody),
        (status = 502, description = "The process that read the disk has ended.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn unlock_volume(
    State(app): State<App>,
    Extension(caller): Who,
    Path((mount_id, volume)): Path<(String, String)>,
    Body(request): Body<UnlockVolume>,
) -> Result<Json<VolumeListReply>> {
    let mount_id: MountId = mount_id.parse().map_err(|error: sendense_types::IdError| {
        Failure::new(ProblemCode::MountNotFound, "mount not found", error.to_string())
    })?;
    let volumes = app.unlock_volume(&caller, &mount_id, &volume, &request.key).await?;
    let total = volumes.len() as u64;
    Ok(Json(VolumeListReply { success: true, volumes, total }))
}

/// Show how many points may be open.
#[utoipa::path(
    get, path = "/restore/resources", tag = "restore",
    responses((status = 200, description = "What is taken and what is left.", body = MountResourcesReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn mount_resources(State(app): State<App>) -> Json<MountResourcesReply> {
    Json(app.mount_resources().into())
}

/// Show what closes points that nobody uses.
#[utoipa::path(
    get, path = "/restore/cleanup-status", tag = "restore",
    responses((status = 200, description = "How often it looks and what it did.", body = CleanupStatusReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn cleanup_status(State(app): State<App>) -> Json<CleanupStatusReply> {
    Json(app.cleanup_status().into())
}
