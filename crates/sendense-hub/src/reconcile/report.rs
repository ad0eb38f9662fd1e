//! Reports of what was out of order in repositories: made at the start, each day and on demand, kept and shown.

use super::plan::Finding;
use super::points::{Doing, look};
use crate::core::Core;
use crate::fault::{OrProblem, Result, internal};
use crate::maintenance::{Use, allows};
use crate::repositories::Standing;
use sendense_api::{ReportFinding, RepositoryReport};
use sendense_catalog::Page;
use sendense_types::RepositoryId;
use std::sync::Arc;

/// Findings that are kept of one look; of more, a person will not read.
const FINDINGS_MAX: usize = 1000;

/// Between two looks by itself: what is out of order and does no harm may be so for a day.
const DAY_SECONDS: f64 = 86_400.0;

/// Looks through a repository, repairs if that is wanted, and keeps the report.
pub(crate) async fn check(core: &Arc<Core>, id: &RepositoryId, by: &str, doing: Doing) -> Result<RepositoryReport> {
    let row = core.catalog.repositories().get(id).await.or_problem()?;
    let turn = core.repositories.checking(id);
    let _turn = turn.lock().await;
    let began = core.now();
    let before = core.catalog.reports().list(id, Page { limit: 1, offset: 0 }).await.or_problem()?;
    let since = before.0.first().map(|kept| kept.at);
    let (looked, half) = look(core, &row, since, doing).await?;
    let is_done = |finding: &Finding| finding.repair.as_ref().is_some_and(|repair| looked.done.contains(repair));
    let findings_total = looked.findings.len() as u64;
    let findings = looked.findings.iter().take(FINDINGS_MAX).map(|finding| ReportFinding {
        kind: finding.kind,
        subject: finding.subject.clone(),
        message: finding.message.clone(),
        repairable: finding.repair.is_some(),
        repaired: is_done(finding),
    });
    let report = RepositoryReport {
        repository_id: id.clone(),
        at: began,
        made_by: by.to_owned(),
        dry_run: doing == Doing::Look,
        backup_count: looked.points,
        findings: findings.collect(),
        findings_total,
    };
    let left = report.findings.iter().filter(|finding| !finding.repaired).count();
    if findings_total > 0 {
        tracing::info!(repository_id = %id, name = %row.name, by, findings = findings_total, left,
            "a repository was looked through");
    }
    let body = serde_json::to_value(&report)
        .map_err(|error| internal("a report cannot be written down", error.to_string()))?;
    core.catalog.reports().add(id, began, &body).await.or_problem()?;
    half?;
    Ok(report)
}

/// Looks through what nobody has looked through for a day, until the hub stops.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut tick = tokio::time::interval(core.limits.upkeep_period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        if let Err(problem) = pass(&core).await {
            tracing::warn!(error = %problem.message, details = %problem.details, "look through repositories");
        }
    }
}

async fn pass(core: &Arc<Core>) -> Result<()> {
    let (rows, _) = core.catalog.repositories().list(Page { limit: Page::LIMIT_MAX, offset: 0 }).await.or_problem()?;
    for row in rows.iter().filter(|row| allows(row.maintenance.mode, Use::Write)) {
        let id = &row.repository_id;
        if core.stop.is_cancelled() || core.repositories.standing(core, id) != Standing::Open {
            continue;
        }
        let (last, _) = core.catalog.reports().list(id, Page { limit: 1, offset: 0 }).await.or_problem()?;
        // One that has none is looked through by whoever opened it.
        if last.first().is_some_and(|last| core.now().seconds_since(last.at) >= DAY_SECONDS)
            && let Err(problem) = check(core, id, "daily", Doing::Repair).await
        {
            tracing::warn!(repository_id = %id, error = %problem.message, details = %problem.details,
                "look through a repository");
        }
    }
    Ok(())
}
