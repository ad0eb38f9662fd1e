//! What a restore does that meets damage in its point: it says who must act or, where what is left is needed all the same, what was
//! written in its place; and it has the point looked at.
//!
//! What is damaged beyond what a restore met, and which other points need that, a verification finds out, which marks and tells it:
//! a restore writes nothing down.

use super::handle::Handle;
use crate::app::App;
use crate::core::Core;
use crate::fault::Result;
use sendense_block::{BLOCK_BYTES, Extent};
use sendense_repo::compared::Given;
use sendense_repo::{ComparedDisk, Damage};
use sendense_types::{BackupId, Problem, ProblemCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// Ranges of damaged blocks that are told one by one; the log must stay readable.
const RANGES_TOLD_MAX: usize = 50;
/// The field of a task's result that tells of damaged blocks.
const FIELD: &str = "damaged_blocks";

/// Damaged blocks of a disk that were written all the same.
pub(crate) struct Passed {
    /// Which disk.
    name: String,
    /// Which blocks.
    damage: Damage,
}

impl Passed {
    /// Those of this disk.
    pub fn of(disk: &ComparedDisk) -> Self {
        Self { name: disk.name().to_owned(), damage: disk.damage() }
    }
}

/// The problem of a restore of this disk: where the disk's damage is the reason, told so that it is clear what to do.
pub(super) fn told(disk: &ComparedDisk, problem: Problem) -> Problem {
    match disk.failure() {
        Some(found) if problem.code == ProblemCode::Corrupt => {
            let details = format!(
                "{found}; it was not restored: take another point, whose verification says that it is sound, or, if what is \
                 left of this one is needed, allow what is damaged (--allow-damaged; allow_damaged in the API)"
            );
            Problem::new(ProblemCode::Corrupt, format!("{} is damaged", disk.name()), details)
        }
        _ => problem,
    }
}

/// The result of a restore, with what it says of damaged blocks that were written. They are told in the task's log, too.
pub(super) fn with_what_passed(handle: &Handle, mut result: Value, passed: &[Passed]) -> Value {
    let count = |given| passed.iter().map(|disk| disk.damage.blocks_given(given)).sum::<u64>();
    let [as_read, zeros, unproved] = [Given::AsRead, Given::Zeros, Given::Unproved].map(count);
    let all = as_read + zeros + unproved;
    if all == 0 {
        return result;
    }
    let lines = passed.iter().flat_map(|disk| {
        let line = |(range, given): (Extent, Given)| {
            let (first, last) = (range.start().0 / BLOCK_BYTES, range.end().0 / BLOCK_BYTES - 1);
            let written = match given {
                Given::AsRead => "is not what was backed up, and was written as it was read",
                Given::Zeros => "cannot be read or decoded, and was written as zeros",
                Given::Unproved => "has no sound digest, and was written as it was read",
            };
            format!("what {} holds in blocks {first} to {last} (bytes {range}) {written}", disk.name)
        };
        disk.damage.ranges().into_iter().map(line)
    });
    let mut lines: Vec<String> = lines.collect();
    let left_out = lines.len().saturating_sub(RANGES_TOLD_MAX);
    lines.truncate(RANGES_TOLD_MAX);
    if left_out > 0 {
        lines.push(format!("{left_out} more ranges of blocks are damaged"));
    }
    lines.into_iter().for_each(|line| handle.warn(line));
    let more = if passed.iter().any(|disk| disk.damage.is_more()) { "more than " } else { "" };
    let warning = format!(
        "WARNING: {more}{all} blocks are damaged in the point and were restored all the same: {as_read} as they were read, {zeros} \
         as zeros, {unproved} that nothing proves"
    );
    handle.warn(warning.clone());
    if let Some(Value::String(summary)) = result.get_mut("summary") {
        *summary = format!("{summary}; {warning}");
    }
    if let Some(result) = result.as_object_mut() {
        result.insert(FIELD.to_owned(), json!({ "as_read": as_read, "zeros": zeros, "unproved": unproved }));
    }
    result
}

/// Whether a restore met damage in its point.
pub(super) fn was_met(restored: &Result<Value>) -> bool {
    match restored {
        Ok(result) => result.get(FIELD).is_some(),
        Err(problem) => problem.code == ProblemCode::Corrupt,
    }
}

/// Has the point verified that a task reads for something else than a restore, where it met damage in it.
pub(super) async fn look_closer_after<T>(core: &Arc<Core>, handle: &Handle, id: &BackupId, done: &Result<T>) {
    if matches!(done, Err(problem) if problem.code == ProblemCode::Corrupt) {
        look_closer(core, handle, id).await;
    }
}

/// Has the point verified, with those that it builds on.
pub(super) async fn look_closer(core: &Arc<Core>, handle: &Handle, id: &BackupId) {
    handle.warn(match App::new(core.clone()).verify_damaged(id).await {
        Ok(task) => format!("{id} and what it builds on are verified block by block by {}", task.task_id),
        Err(problem) => format!("verify {id}: it could not be asked for: {}: {}", problem.message, problem.details),
    });
}
