//! What became of a file over the restore points of its machine.

use super::Who;
use super::files::guest_path;
use crate::app::App;
use crate::http::extract::{NameOrId, Query};
use crate::http::problem::Result;
use axum::extract::{OriginalUri, State};
use axum::{Extension, Json};
use sendense_api::reply::FileHistoryReply;
use sendense_api::{HistoryQuery, ProblemBody};

/// Follow a file over the restore points.
///
/// Newest first. Each point is opened by a confined process for one look, which takes no place of an open point; runs of
/// points that hold the same are folded. A file of up to 1 GiB is read for its digest, which is never inferred from its size
/// and time. A point that cannot be read, or whose volume is locked, is told with the reason. What takes more than a minute is
/// told in parts: go on at `next_offset`.
#[utoipa::path(
    get, path = "/vms/{vm_name}/files/history", tag = "vms",
    params(("vm_name" = String, Path, description = "The VM's name or id."), HistoryQuery),
    responses(
        (status = 200, description = "What the points hold under the path.", body = FileHistoryReply),
        (status = 404, description = "There is no such VM or disk, or it has no backup.", body = ProblemBody),
        (status = 409, description = "Several VMs bear the name.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn file_history(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(vm): NameOrId,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<FileHistoryReply>> {
    Ok(Json(app.file_history(&caller, &vm, guest_path(&uri)?, &query).await?.into()))
}
