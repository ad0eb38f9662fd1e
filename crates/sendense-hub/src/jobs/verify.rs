//! Checking a point.

use super::handle::Handle;
use super::work::VerifyWork;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use sendense_repo::verify::{Depth, Options, Report, Scope};
use sendense_types::{Problem, ProblemCode};
use std::sync::Arc;

/// Reads in flight: what a file system on one spinning disk bears beside a backup.
const THREADS: usize = 4;
/// Findings that are told one by one; the log must stay readable.
const FINDINGS_TOLD_MAX: usize = 50;

/// Checks the point. Damage is a failure of the task, told with file and segment.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, work: VerifyWork) -> Result<serde_json::Value> {
    let repository = core.repositories.by_id(core, &work.repository_id).await?;
    let (worker, progress) = (handle.clone(), handle.measure_verify());
    let backup_id = work.backup_id.clone();
    let verified = blocking(move || {
        let options = Options {
            depth: if work.deep { Depth::Deep } else { Depth::AtRest },
            scope: if work.own_files_only { Scope::Point } else { Scope::Chain },
            threads: THREADS,
            who: worker.task_id.to_string(),
        };
        repository.verify(&work.vm_context_id, &work.backup_id, None, &options, &progress, &worker.cancel)
    });
    let report = verified.await?.or_problem()?;
    for finding in report.damaged.iter().chain(&report.unreadable).take(FINDINGS_TOLD_MAX) {
        let segment = finding.segment.map(|segment| format!(", segment {segment}")).unwrap_or_default();
        handle.warn(format!("{}{segment}: {}", finding.file.display(), finding.what));
    }
    judge(&backup_id, &report)
}

fn judge(backup_id: &sendense_types::BackupId, report: &Report) -> Result<serde_json::Value> {
    if let Some(error) = report.error() {
        let details = format!("{} findings; the first: {}", report.damaged.len(), sendense_block::error::chain(&error));
        return Err(Problem::new(ProblemCode::Corrupt, format!("{backup_id} is damaged"), details));
    }
    if let Some(first) = report.unreadable.first() {
        // Not read is not damaged: a transient error must never condemn data.
        let details =
            format!("{} findings; the first: {}: {}", report.unreadable.len(), first.file.display(), first.what);
        let message = format!("{backup_id} could not be read completely");
        return Err(Problem::new(ProblemCode::RepositoryUnavailable, message, details));
    }
    let below = match report.checked_points {
        0 | 1 => String::new(),
        2 => " with the point below it".to_owned(),
        points => format!(" with the {} points below it", points - 1),
    };
    let summary = format!("{backup_id} is sound{below}: {} bytes checked", report.checked_bytes);
    Ok(serde_json::json!({ "summary": summary, "checked_bytes": report.checked_bytes }))
}
