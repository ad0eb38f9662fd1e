//! Virtual machines.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::Result;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{ChainMoveReply, ConsolidationReply, PruneReply, VmListReply, VmReply};
use sendense_api::{ChangeTags, ConsolidateQuery, MoveQuery, MoveVm, ProblemBody, PruneQuery, PruneVm, VmFilter};

/// List VMs.
///
/// By name. Filters are combined with AND.
#[utoipa::path(
    get, path = "/vms", tag = "vms", params(VmFilter),
    responses(
        (status = 200, description = "A page of VMs.", body = VmListReply),
        (status = 404, description = "There is no such source.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_vms(
    State(app): State<App>,
    Query(filter): Query<VmFilter>,
) -> Result<Json<VmListReply>> {
    Ok(Json(app.list_vms(filter).await?.into()))
}

/// Show a VM.
#[utoipa::path(
    get, path = "/vms/{vm_name}", tag = "vms", params(("vm_name" = String, Path, description = "The VM's name or id.")),
    responses(
        (status = 200, description = "The VM.", body = VmReply),
        (status = 409, description = "Several VMs bear the name.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_vm(State(app): State<App>, NameOrId(vm): NameOrId) -> Result<Json<VmReply>> {
    Ok(Json(VmReply::new(app.get_vm(&vm).await?)))
}

/// Change a VM's tags.
///
/// Tags are words of your own by which policies choose VMs. They stay with a VM through renames and moves.
#[utoipa::path(
    post, path = "/vms/{vm_name}/tags", tag = "vms",
    params(("vm_name" = String, Path, description = "The VM's name or id.")), request_body = ChangeTags,
    responses(
        (status = 200, description = "The VM with the tags that it bears now.", body = VmReply),
        (status = 409, description = "Several VMs bear the name.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn change_tags(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(vm): NameOrId,
    Body(change): Body<ChangeTags>,
) -> Result<Json<VmReply>> {
    Ok(Json(VmReply::new(app.change_tags(&caller, &vm, change).await?)))
}

/// Prune a VM's backups.
///
/// Deletes the points that no rule keeps, and says of every other point why it stays. A point that a later one needs stays
/// until that one goes, and a point that is in use stays for this time. With `dry_run=true` only the plan is shown.
#[utoipa::path(
    post, path = "/vms/{vm_name}/prune", tag = "vms",
    params(("vm_name" = String, Path, description = "The VM's name or id."), PruneQuery), request_body = PruneVm,
    responses(
        (status = 200, description = "What was deleted, or would be, and why the rest stays.", body = PruneReply),
        (status = 404, description = "There is no such VM or repository.", body = ProblemBody),
        (status = 409, description = "Several VMs bear the name, or points are taken into use again and again.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn prune_vm(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(vm): NameOrId,
    Query(how): Query<PruneQuery>,
    Body(request): Body<PruneVm>,
) -> Result<Json<PruneReply>> {
    let prune = app.prune_vm(&caller, &vm, request, how).await?;
    let verb = if prune.dry_run { "would delete" } else { "deleted" };
    let message = format!("{verb} {} backups, {} bytes; {} stay", prune.deleted, prune.freed_bytes, prune.kept);
    Ok(Json(PruneReply::done(message, prune)))
}

/// Make a chain shorter.
///
/// The oldest points of a disk's chain go until so many stay, and what they held becomes their successors'; or, with `full=true`,
/// no point goes, and the newest becomes a full with which a chain begins. With `dry_run=true` only the plan is shown.
#[utoipa::path(
    post, path = "/vms/{vm_name}/consolidate", tag = "vms",
    params(("vm_name" = String, Path, description = "The VM's name or id."), ConsolidateQuery),
    responses(
        (status = 200, description = "What would be done, or that nothing is to do.", body = ConsolidationReply),
        (status = 202, description = "What is done, and the task that does it.", body = ConsolidationReply),
        (status = 404, description = "There is no such VM or repository, or the disk has no backup.", body = ProblemBody),
        (status = 409, description = "Points of it are being merged.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn consolidate_chain(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(vm): NameOrId,
    Query(how): Query<ConsolidateQuery>,
    _: NoBody,
) -> Result<(StatusCode, Json<ConsolidationReply>)> {
    let consolidation = app.consolidate_chain(&caller, &vm, how).await?;
    let status = if consolidation.task_id.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(ConsolidationReply::new(consolidation))))
}

/// Move a VM's backups to another repository.
///
/// All of them go: copied, read back and compared, then taken over there, and only then removed where they lay. Readers go on meanwhile;
/// no backup of the VM begins. A repository that has backups of the VM already takes none. Policies are not changed: where one that backs the
/// VM up names another repository, its next backup there is a full, and the move has to be asked for with `leave_policies`. With
/// `dry_run=true` only the plan is shown.
#[utoipa::path(
    post, path = "/vms/{vm_name}/move", tag = "vms",
    params(("vm_name" = String, Path, description = "The VM's name or id."), MoveQuery), request_body = MoveVm,
    responses(
        (status = 200, description = "What would be done.", body = ChainMoveReply),
        (status = 202, description = "What is done, and the task that does it.", body = ChainMoveReply),
        (status = 404, description = "There is no such VM or repository, or the VM has no backup.", body = ProblemBody),
        (status = 409, description = "Something holds its backups, another move of it is not settled, or a policy goes on elsewhere.",
            body = ProblemBody),
        (status = 507, description = "There is no room for them.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn move_chain(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(vm): NameOrId,
    Query(how): Query<MoveQuery>,
    Body(request): Body<MoveVm>,
) -> Result<(StatusCode, Json<ChainMoveReply>)> {
    let moved = app.move_chain(&caller, &vm, request, how).await?;
    let status = if moved.task_id.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(ChainMoveReply::new(moved))))
}
