//! Virtual machines.

use crate::app::App;
use crate::http::extract::{NameOrId, Query};
use crate::http::problem::Result;
use axum::Json;
use axum::extract::State;
use sendense_api::reply::{VmListReply, VmReply};
use sendense_api::{ProblemBody, VmFilter};

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
