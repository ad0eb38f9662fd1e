//! Backups: make, list, chain, delete, merge, cancel, verify, restore, log.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, Id, NameOrId, NoBody, Query};
use crate::http::problem::{Failure, Result};
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{BackupListReply, BackupReply, ChainReply, DeletionReply, LogReply, MergeReply, TaskReply};
use sendense_api::{
    BackupFilter, ChainQuery, CreateBackup, DeleteQuery, ListQuery, MergeQuery, ProblemBody, RestoreBackup,
    UpdateBackup, VerifyBackup,
};
use sendense_types::{BackupId, VmContextId};

/// Start a backup.
///
/// Of a VM, or of one disk of it. The answer comes at once; the work goes on as the task `task_id`.
#[utoipa::path(
    post, path = "/backups", tag = "backups", request_body = CreateBackup,
    responses(
        (status = 202, description = "The backup waits or runs.", body = BackupReply),
        (status = 404, description = "There is no such VM or disk.", body = ProblemBody),
        (status = 409, description = "The VM is being backed up already, or several VMs bear the name.", body = ProblemBody),
        (status = 507, description = "The repository is too full.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn create_backup(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateBackup>,
) -> Result<(StatusCode, Json<BackupReply>)> {
    let backup = app.create_backup(&caller, request).await?;
    let message = format!("{} backup of {} started", backup.backup_type, backup.vm_name);
    Ok((StatusCode::ACCEPTED, Json(BackupReply::done(message, backup))))
}

/// List backups.
///
/// Newest first. Filters are combined with AND.
#[utoipa::path(
    get, path = "/backups", tag = "backups", params(BackupFilter),
    responses(
        (status = 200, description = "A page of backups.", body = BackupListReply),
        (status = 404, description = "There is no such repository.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_backups(
    State(app): State<App>,
    Query(filter): Query<BackupFilter>,
) -> Result<Json<BackupListReply>> {
    Ok(Json(app.list_backups(filter).await?.into()))
}

/// Show a backup.
#[utoipa::path(
    get, path = "/backups/{backup_id}", tag = "backups", params(("backup_id" = String, Path, description = "The backup.")),
    responses((status = 200, description = "The backup.", body = BackupReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_backup(
    State(app): State<App>,
    Id(backup_id): Id<BackupId>,
) -> Result<Json<BackupReply>> {
    Ok(Json(BackupReply::new(app.get_backup(&backup_id).await?)))
}

/// Protect a backup, hold it until a date, or let it go.
///
/// Neither a deletion nor a rule takes it meanwhile. An operator may keep a backup; to let it go earlier takes an admin.
#[utoipa::path(
    patch, path = "/backups/{backup_id}", tag = "backups", request_body = UpdateBackup,
    params(("backup_id" = String, Path, description = "The backup.")),
    responses(
        (status = 200, description = "The backup as it is now.", body = BackupReply),
        (status = 409, description = "It holds no point, or is being deleted.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn update_backup(
    State(app): State<App>,
    Extension(caller): Who,
    Id(backup_id): Id<BackupId>,
    Body(request): Body<UpdateBackup>,
) -> Result<Json<BackupReply>> {
    if request == UpdateBackup::default() {
        return Err(Failure::invalid("there is nothing to change", "give at least one field"));
    }
    Ok(Json(BackupReply::done("the backup was changed", app.update_backup(&caller, &backup_id, request).await?)))
}

/// Delete a backup.
///
/// Its files and its rows. With `dry_run=true` only the plan is shown.
#[utoipa::path(
    delete, path = "/backups/{backup_id}", tag = "backups",
    params(("backup_id" = String, Path, description = "The backup."), DeleteQuery),
    responses(
        (status = 200, description = "What was deleted, or would be.", body = DeletionReply),
        (status = 409, description = "Later points need it (they are named), it is in use, or it must stay.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn delete_backup(
    State(app): State<App>,
    Extension(caller): Who,
    Id(backup_id): Id<BackupId>,
    Query(how): Query<DeleteQuery>,
    _: NoBody,
) -> Result<Json<DeletionReply>> {
    let deletion = app.delete_backup(&caller, &backup_id, how).await?;
    let verb = if deletion.dry_run { "would delete" } else { "deleted" };
    let message = format!("{verb} {} backups, {} bytes", deletion.backups.len(), deletion.freed_bytes);
    Ok(Json(DeletionReply::done(message, deletion)))
}

/// Merge a backup into the one that stands on it.
///
/// The backup goes although a later one needs its data: that one takes the data over, and keeps its id. A task writes the new
/// images beside the old ones, reads them back, and then changes all at once. With `dry_run=true` only the plan is shown.
#[utoipa::path(
    post, path = "/backups/{backup_id}/merge", tag = "backups",
    params(("backup_id" = String, Path, description = "The backup that goes."), MergeQuery),
    responses(
        (status = 200, description = "The plan.", body = MergeReply),
        (status = 202, description = "The plan, and the task that carries it out.", body = MergeReply),
        (status = 409, description = "None or several backups stand on it, it is in use, or it must stay.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn merge_backup(
    State(app): State<App>,
    Extension(caller): Who,
    Id(backup_id): Id<BackupId>,
    Query(how): Query<MergeQuery>,
    _: NoBody,
) -> Result<(StatusCode, Json<MergeReply>)> {
    let merge = app.merge_backup(&caller, &backup_id, how).await?;
    let (verb, status) =
        if merge.dry_run { ("would merge", StatusCode::OK) } else { ("merging", StatusCode::ACCEPTED) };
    let message = format!("{verb} {backup_id} into {}", merge.successor_id);
    Ok((status, Json(MergeReply::done(message, merge))))
}

/// Show the chain of a disk.
#[utoipa::path(
    get, path = "/backups/chain", tag = "backups", params(ChainQuery),
    responses(
        (status = 200, description = "The chain, oldest point first.", body = ChainReply),
        (status = 404, description = "There is no such VM or disk.", body = ProblemBody),
        (status = 409, description = "Several VMs bear the name.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn backup_chain(
    State(app): State<App>,
    Query(which): Query<ChainQuery>,
) -> Result<Json<ChainReply>> {
    match (&which.vm_name, &which.vm_context_id) {
        (None, None) => Err(Failure::invalid("vm_context_id is required", "or vm_name")),
        (Some(_), Some(_)) => Err(Failure::invalid("vm_name and vm_context_id exclude each other", "")),
        _ => Ok(Json(app.backup_chain(which).await?.into())),
    }
}

/// Show the chain of a disk of a named VM.
#[utoipa::path(
    get, path = "/backups/{vm_name}/chain", tag = "backups",
    params(
        ("vm_name" = String, Path, description = "The VM's name or id."),
        ("disk_id" = Option<u32>, Query, description = "The disk. Left out: 0."),
        ("repository_id" = Option<String>, Query, description = "The repository (id or name). Left out: the one that holds the disk's newest point."),
    ),
    responses(
        (status = 200, description = "The chain, oldest point first.", body = ChainReply),
        (status = 409, description = "Several VMs bear the name.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn vm_backup_chain(
    State(app): State<App>,
    NameOrId(vm): NameOrId,
    Query(which): Query<ChainQuery>,
) -> Result<Json<ChainReply>> {
    let by_name = ChainQuery { vm_name: Some(vm.clone()), ..which.clone() };
    match app.backup_chain(by_name).await {
        // An id is taken where a name is; a name comes first, for a person chose it.
        Err(problem) if problem.code == sendense_types::ProblemCode::VmNotFound => match vm.parse::<VmContextId>() {
            Ok(id) => {
                let by_id = ChainQuery { vm_context_id: Some(id), ..which };
                Ok(Json(app.backup_chain(by_id).await?.into()))
            }
            Err(_) => Err(problem.into()),
        },
        chain => Ok(Json(chain?.into())),
    }
}

/// Stop a backup.
///
/// The draft is removed; earlier points stay as they are.
#[utoipa::path(
    post, path = "/backups/{backup_id}/cancel", tag = "backups",
    params(("backup_id" = String, Path, description = "The backup.")),
    responses(
        (status = 202, description = "It was asked to stop.", body = BackupReply),
        (status = 409, description = "It has ended already.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn cancel_backup(
    State(app): State<App>,
    Extension(caller): Who,
    Id(backup_id): Id<BackupId>,
    _: NoBody,
) -> Result<(StatusCode, Json<BackupReply>)> {
    let backup = app.cancel_backup(&caller, &backup_id).await?;
    Ok((StatusCode::ACCEPTED, Json(BackupReply::done("the backup was asked to stop", backup))))
}

/// Verify a backup.
///
/// Checks the digests of all files that a restore of it reads, down the chain; `deep` also decodes every block. What is asked
/// may stand in the body or in the query.
#[utoipa::path(
    post, path = "/backups/{backup_id}/verify", tag = "backups",
    params(
        ("backup_id" = String, Path, description = "The backup."),
        ("deep" = Option<bool>, Query, description = "As in the body."),
        ("own_files_only" = Option<bool>, Query, description = "As in the body."),
    ),
    request_body = Option<VerifyBackup>,
    responses(
        (status = 202, description = "The task that verifies.", body = TaskReply),
        (status = 409, description = "The backup holds no point, or is being deleted.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn verify_backup(
    State(app): State<App>,
    Extension(caller): Who,
    Id(backup_id): Id<BackupId>,
    Query(query): Query<VerifyBackup>,
    Body(body): Body<VerifyBackup>,
) -> Result<(StatusCode, Json<TaskReply>)> {
    let how =
        VerifyBackup { deep: query.deep || body.deep, own_files_only: query.own_files_only || body.own_files_only };
    let task = app.verify_backup(&caller, &backup_id, how).await?;
    Ok((StatusCode::ACCEPTED, Json(TaskReply::done("verification started", task))))
}

/// Restore a disk or the VM of a backup.
///
/// Into a file on the hub's machine (raw, QCOW2, VMDK), onto a file or a block device that exists, into an NBD export, or as a new VM.
#[utoipa::path(
    post, path = "/backups/{backup_id}/restore", tag = "backups",
    params(("backup_id" = String, Path, description = "The backup.")), request_body = RestoreBackup,
    responses(
        (status = 202, description = "The task that restores.", body = TaskReply),
        (status = 409, description = "The target exists, is in use, too small or not forced, or the backup holds no point.", body = ProblemBody),
        (status = 507, description = "The disk's data does not fit where it is to go.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn restore_backup(
    State(app): State<App>,
    Extension(caller): Who,
    Id(backup_id): Id<BackupId>,
    Body(request): Body<RestoreBackup>,
) -> Result<(StatusCode, Json<TaskReply>)> {
    let task = app.restore_backup(&caller, &backup_id, request).await?;
    Ok((StatusCode::ACCEPTED, Json(TaskReply::done("restore started", task))))
}

/// Read the log of a backup.
///
/// Of the task that made it, oldest line first.
#[utoipa::path(
    get, path = "/backups/{backup_id}/log", tag = "backups",
    params(("backup_id" = String, Path, description = "The backup."), ListQuery),
    responses((status = 200, description = "A page of the log.", body = LogReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn backup_log(
    State(app): State<App>,
    Id(backup_id): Id<BackupId>,
    Query(page): Query<ListQuery>,
) -> Result<Json<LogReply>> {
    Ok(Json(app.backup_log(&backup_id, page).await?.into()))
}
