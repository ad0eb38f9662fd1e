//! Checking a point.

use super::handle::Handle;
use super::work::VerifyWork;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use crate::maintenance::Use;
use crate::verification;
use sendense_repo::humble::humbly;
use sendense_repo::verify::{Depth, Options, PointReport, Report, Scope, Work};
use sendense_repo::{Kind, layout};
use sendense_types::{BackupId, Problem, ProblemCode, VerifyState};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reads in flight: what a file system on one spinning disk bears beside a backup.
const THREADS: usize = 4;
/// Findings that are told one by one; the log must stay readable.
const FINDINGS_TOLD_MAX: usize = 50;

/// Checks the point, and keeps what was found of it and of those that it builds on. Damage that it needs is a failure of the
/// task, told with file and segment.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, work: VerifyWork) -> Result<serde_json::Value> {
    let repository = core.repositories.by_id(core, &work.repository_id, Use::Read).await?;
    let generations = generations(core, &work).await?;
    let (worker, progress) = (handle.clone(), handle.measure_verify());
    let (of, pace) = (work.clone(), work.aside.then_some(core.limits.verify_bytes_per_second));
    let verified = blocking(move || {
        let options = Options {
            depth: if of.deep { Depth::Deep } else { Depth::AtRest },
            scope: if of.own_files_only { Scope::Point } else { Scope::Chain },
            // Aside too: it is the pace that keeps those low, and one read at a time would not keep up with it where each takes long.
            threads: THREADS,
            bytes_per_second: pace,
            who: worker.task_id.to_string(),
        };
        let verify = || {
            let cancel = &worker.cancel;
            repository.verify(&of.vm_context_id, &of.backup_id, None, &options, &progress, cancel)
        };
        if of.aside { humbly(verify) } else { verify() }
    });
    let verified = match verified.await? {
        Err(error) => Err((of_manifest(core, &work, &error).await?, error)),
        Ok(report) => Ok(report),
    };
    let report = match verified {
        Ok(report) => report,
        Err((None, error)) => return Err(error).or_problem(),
        Err((Some(report), error)) => {
            verification::record(core, &work, &report, &generations).await?;
            return Err(error).or_problem();
        }
    };
    for finding in report.damaged.iter().chain(&report.unreadable).take(FINDINGS_TOLD_MAX) {
        let segment = finding.segment.map(|segment| format!(", segment {segment}")).unwrap_or_default();
        handle.warn(format!("{}{segment}: {}", finding.file.display(), finding.what));
    }
    let stands = verification::record(core, &work, &report, &generations).await?;
    judge(&work.backup_id, &report, stands)
}

/// Which files the points have that are looked at. Asked before: a merge may replace them as soon as they are not claimed any more.
async fn generations(core: &Core, work: &VerifyWork) -> Result<BTreeMap<BackupId, i32>> {
    let backups = core.catalog.backups();
    let looked_at = match work.own_files_only {
        true => vec![work.backup_id.clone()],
        false => match backups.with_all_below(&work.backup_id).await {
            Ok(chain) => chain.into_iter().map(|point| point.backup_id).collect(),
            // The repository knows whether it is there.
            Err(error) if error.kind() == sendense_catalog::Kind::NotFound => Vec::new(),
            Err(error) => return Err(error).or_problem(),
        },
    };
    backups.generations(&looked_at).await.or_problem()
}

/// A report of a manifest that is damaged: nothing can be said of its point any more.
async fn of_manifest(core: &Core, work: &VerifyWork, error: &sendense_repo::Error) -> Result<Option<Report>> {
    let Kind::Corrupt { file, .. } = &error.kind else { return Ok(None) };
    let chain = core.catalog.backups().with_all_below(&work.backup_id).await.or_problem()?;
    let is_it = |id: &BackupId| layout::manifest(&work.vm_context_id, id).display().to_string() == *file;
    let Some(point) = chain.into_iter().find(|point| is_it(&point.backup_id)) else { return Ok(None) };
    let lost = |disk: &sendense_catalog::BackupDisk| (disk.disk_id, verification::lost::whole(disk.capacity_bytes));
    let found = PointReport {
        damage: Some(sendense_block::error::chain(error)),
        lost: point.disks.iter().map(lost).collect(),
        ..PointReport::default()
    };
    Ok(Some(Report { points: [(point.backup_id, found)].into(), ..Report::default() }))
}

fn judge(backup_id: &BackupId, report: &Report, stands: Option<VerifyState>) -> Result<serde_json::Value> {
    let is_hurt = stands != Some(VerifyState::Sound);
    if let (Some(error), true) = (report.error(), is_hurt) {
        let details = format!("{} findings; the first: {}", report.damaged.len(), sendense_block::error::chain(&error));
        let message = match stands {
            Some(VerifyState::Affected) => format!("{backup_id} needs what a point below it has lost"),
            _ => format!("{backup_id} is damaged"),
        };
        return Err(Problem::new(ProblemCode::Corrupt, message, details));
    }
    if let Some(first) = report.unreadable.first() {
        // Not read is not damaged: a transient error must never condemn data.
        let details =
            format!("{} findings; the first: {}: {}", report.unreadable.len(), first.file.display(), first.what);
        let message = format!("{backup_id} could not be read completely");
        return Err(Problem::new(ProblemCode::RepositoryUnavailable, message, details));
    }
    if stands == Some(VerifyState::Affected) {
        let details = "its own files are as they were written; verify it with the points that it builds on";
        let message = format!("{backup_id} needs what a point below it has lost");
        return Err(Problem::new(ProblemCode::Corrupt, message, details));
    }
    if stands == Some(VerifyState::Corrupt) {
        let details =
            "every block was decoded to find that, and now the files were only read; verify it with all blocks";
        return Err(Problem::new(ProblemCode::Corrupt, format!("{backup_id} is damaged"), details));
    }
    let below = match report.checked_points {
        0 | 1 => String::new(),
        2 => " with the point below it".to_owned(),
        points => format!(" with the {} points below it", points - 1),
    };
    // What is damaged there was stored again since.
    let healed = match report.damaged.len() {
        0 => String::new(),
        findings => format!("; it needs nothing of what is damaged below it ({findings} findings)"),
    };
    let figures = figures(report);
    let speed_bps = figures.bytes_per_second();
    let speed = speed_bps.map(|speed| format!(", {} MB/s", speed / 1_000_000)).unwrap_or_default();
    let summary = format!("{backup_id} is sound{below}: {} bytes checked{speed}{healed}", report.checked_bytes);
    Ok(serde_json::json!({ "summary": summary, "checked_bytes": report.checked_bytes, "speed_bps": speed_bps }))
}

/// What was decoded, or else read, of all points, and how long it took.
fn figures(report: &Report) -> Work {
    let sum = |of: fn(&PointReport) -> Work| {
        report.points.values().map(of).fold(Work::default(), |sum, work| Work {
            bytes: sum.bytes.saturating_add(work.bytes),
            took: sum.took.saturating_add(work.took),
        })
    };
    let decoded = sum(|point| point.decoded);
    if decoded.bytes > 0 { decoded } else { sum(|point| point.read) }
}
