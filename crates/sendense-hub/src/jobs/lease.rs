//! Whether a task still is this hub's, asked directly before what cannot be taken back.
//!
//! A hub that was stopped for longer than its lease goes on in the middle of its work, before its next report tells it that
//! another hub has ended the task. The owner record of the repository is what keeps it from doing harm; this look keeps it from
//! publishing a point that the catalog calls failed.

use super::handle::{Handle, Stop};
use crate::core::Core;
use crate::fault::Result;
use sendense_catalog::{Kind, TaskClaim};
use sendense_types::TaskState;
use std::time::Duration;

/// How long the database may take to say so. Where it is away the repository's own record decides alone.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Fails, and stops the task, when another hub has it.
pub(crate) async fn check(core: &Core, handle: &Handle, claim: &TaskClaim) -> Result<()> {
    let asked = tokio::time::timeout(ASK_TIMEOUT, core.catalog.tasks().get(&claim.task_id)).await;
    let is_lost = match asked {
        Ok(Ok(task)) => task.version != claim.version || task.state != TaskState::Running,
        Ok(Err(error)) => error.kind() == Kind::NotFound,
        Err(_) => false,
    };
    if !is_lost {
        return Ok(());
    }
    handle.stop(Stop::LeaseLost);
    Err(Stop::LeaseLost.problem())
}
