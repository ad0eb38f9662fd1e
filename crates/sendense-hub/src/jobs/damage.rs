//! What a restore does that meets damage in its point: it says who must act, and has the point looked at.
//!
//! What is damaged beyond the first block that a restore met, and which other points need that, a verification finds out, which
//! marks and tells it: a restore writes nothing down.

use super::handle::Handle;
use crate::app::App;
use crate::core::Core;
use sendense_repo::ComparedDisk;
use sendense_types::{BackupId, Problem, ProblemCode};
use std::sync::Arc;

/// The problem of a restore of this disk: where the disk's damage is the reason, told so that it is clear what to do.
pub(super) fn told(disk: &ComparedDisk, problem: Problem) -> Problem {
    match disk.damage() {
        Some(found) if problem.code == ProblemCode::Corrupt => {
            let details =
                format!("{found}; it was not restored: take another point, whose verification says that it is sound");
            Problem::new(ProblemCode::Corrupt, format!("{} is damaged", disk.name()), details)
        }
        _ => problem,
    }
}

/// Has the point verified, with those that it builds on.
pub(super) async fn look_closer(core: &Arc<Core>, handle: &Handle, id: &BackupId) {
    handle.warn(match App::new(core.clone()).verify_damaged(id).await {
        Ok(task) => format!("{id} and what it builds on are verified block by block by {}", task.task_id),
        Err(problem) => format!("verify {id}: it could not be asked for: {}: {}", problem.message, problem.details),
    });
}
