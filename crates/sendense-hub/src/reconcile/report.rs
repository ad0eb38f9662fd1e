//! Reports of what was out of order in repositories: made at the start, each day and on demand, kept and shown.

use super::plan::Finding;
use super::points::{Doing, look};
use crate::core::Core;
use crate::fault::{OrProblem, Result, internal};
use crate::maintenance::{Use, allows};
use crate::repositories::Standing;
use sendense_api::{ReportFinding, RepositoryReport};
use sendense_catalog::{Page, REPORTS_MAX, Report};
use sendense_types::{Problem, ProblemCode, RepositoryId, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Findings that are kept of one look; of more, a person will not read.
const FINDINGS_MAX: usize = 1000;

/// Between two looks by itself: what is out of order and does no harm may be so for a day.
const DAY_SECONDS: f64 = 86_400.0;

/// One that failed by itself is tried again after an hour: it reads every manifest, and what is in its way seldom goes sooner.
const RETRY_SECONDS: f64 = 3600.0;

/// Looks without repair that are kept: a third of all reports, so that whoever looks each hour still finds what was repaired on
/// the last twenty days.
const DRY_RUNS_MAX: usize = 10;

/// Looks through a repository, repairs if that is wanted, and keeps the report.
/// One look at a time; whoever's turn does not come within `patience` is told so.
pub(crate) async fn check(
    core: &Arc<Core>,
    id: &RepositoryId,
    by: &str,
    doing: Doing,
    patience: Duration,
) -> Result<RepositoryReport> {
    look_through(core, id, by, doing, patience).await.map(|(report, _)| report)
}

/// The same. The second part is true when something in the folder could not be done now and can be tried again.
pub(super) async fn look_through(
    core: &Arc<Core>,
    id: &RepositoryId,
    by: &str,
    doing: Doing,
    patience: Duration,
) -> Result<(RepositoryReport, bool)> {
    let row = core.catalog.repositories().get(id).await.or_problem()?;
    let Some(_turn) = core.repositories.checking(id, patience).await else {
        let details = format!("somebody looks through {} at this moment; see its reports", row.name);
        return Err(Problem::new(ProblemCode::Conflict, "the repository is being looked through", details));
    };
    let began = core.now();
    let since = last_repair(&kept(core, id).await?);
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
    if report.dry_run {
        // Before it is added, so that no report of a repair goes for it.
        let beyond = dry_runs_beyond(&kept(core, id).await?, DRY_RUNS_MAX - 1);
        core.catalog.reports().forget(id, &beyond).await.or_problem()?;
    }
    let is_left = doing != Doing::Look && looked.is_left();
    if (half.is_err() || is_left)
        && let Some(last) = kept(core, id).await?.first()
        && says_the_same(&last.body, &body)
    {
        // Tried again in vain: the month's reports do not go for that.
        core.catalog.reports().forget(id, &[last.at]).await.or_problem()?;
    }
    core.catalog.reports().add(id, began, &body).await.or_problem()?;
    half?;
    Ok((report, is_left))
}

/// The reports that are kept of a repository, newest first.
async fn kept(core: &Core, id: &RepositoryId) -> Result<Vec<Report>> {
    let (kept, _) = core.catalog.reports().list(id, Page { limit: REPORTS_MAX, offset: 0 }).await.or_problem()?;
    Ok(kept)
}

fn is_dry_run(report: &Report) -> bool {
    report.body["dry_run"] == true
}

/// Whether two reports differ in nothing but their time.
fn says_the_same(one: &serde_json::Value, other: &serde_json::Value) -> bool {
    ["made_by", "dry_run", "backup_count", "findings", "findings_total"].iter().all(|part| one[part] == other[part])
}

/// When it was looked through last to repair it: a look alone repairs nothing, so it is no reason to put that off.
fn last_repair(newest_first: &[Report]) -> Option<Timestamp> {
    newest_first.iter().find(|report| !is_dry_run(report)).map(|report| report.at)
}

/// The oldest looks that were no more than that, beyond so many.
fn dry_runs_beyond(newest_first: &[Report], max: usize) -> Vec<Timestamp> {
    newest_first.iter().filter(|report| is_dry_run(report)).skip(max).map(|report| report.at).collect()
}

/// Looks through what nobody has looked through for a day, until the hub stops.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut rounds = core.rounds(core.limits.upkeep_period);
    let mut tried = HashMap::new();
    while rounds.next().await {
        if let Err(problem) = pass(&core, &mut tried).await {
            tracing::warn!(error = %problem.message, details = %problem.details, "look through repositories");
        }
    }
}

/// Whether it is time: a day after the last repair, and so long after the last attempt that what fails is not tried all day.
fn is_due(repaired: Option<Timestamp>, tried: Option<Timestamp>, now: Timestamp) -> bool {
    // One that has no report is looked through by whoever opened it.
    repaired.is_some_and(|at| now.seconds_since(at) >= DAY_SECONDS)
        && tried.is_none_or(|at| now.seconds_since(at).abs() >= RETRY_SECONDS)
}

async fn pass(core: &Arc<Core>, tried: &mut HashMap<RepositoryId, Timestamp>) -> Result<()> {
    let (rows, _) = core.catalog.repositories().list(Page { limit: Page::LIMIT_MAX, offset: 0 }).await.or_problem()?;
    tried.retain(|id, _| rows.iter().any(|row| row.repository_id == *id));
    for row in rows.iter().filter(|row| allows(row.maintenance.mode, Use::Write)) {
        let id = &row.repository_id;
        if core.stop.is_cancelled() || core.repositories.standing(core, id) != Standing::Open {
            continue;
        }
        let now = core.now();
        if !is_due(last_repair(&kept(core, id).await?), tried.get(id).copied(), now) {
            continue;
        }
        tried.insert(id.clone(), now);
        // Beside the others, so that a share that hangs holds up its own repository alone; while it does, none begins there again.
        let (core, id) = (core.clone(), id.clone());
        core.clone().tracker.spawn(async move {
            if let Err(problem) = check(&core, &id, "daily", Doing::Repair, Duration::ZERO).await {
                tracing::warn!(repository_id = %id, error = %problem.message, details = %problem.details,
                    "look through a repository");
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000).plus_seconds(3600 * hours)
    }

    #[test]
    fn a_look_alone_puts_no_repair_off() {
        let report = |hours, dry_run| Report { at: at(hours), body: serde_json::json!({ "dry_run": dry_run }) };
        let kept = [report(26, true), report(25, true), report(2, false), report(1, true), report(0, false)];
        assert_eq!(last_repair(&kept), Some(at(2)));
        assert_eq!(last_repair(&kept[..2]), None);
        assert_eq!(dry_runs_beyond(&kept, 1), [at(25), at(1)]);
        assert_eq!(dry_runs_beyond(&kept, 3), []);
        let (one, other) =
            (serde_json::json!({"made_by": "start", "at": 1}), serde_json::json!({"made_by": "start", "at": 2}));
        assert!(says_the_same(&one, &other) && !says_the_same(&one, &serde_json::json!({"made_by": "daily"})));
        for (name, repaired, tried, expected) in [
            ("never looked through", None, None, false),
            ("a day ago", Some(0), None, true),
            ("less than a day ago", Some(1), None, false),
            ("tried a moment ago, in vain", Some(0), Some(24), false),
            ("tried an hour ago, in vain", Some(0), Some(23), true),
            ("tried by a clock that went back", Some(0), Some(48), true),
        ] {
            assert_eq!(is_due(repaired.map(at), tried.map(at), at(24)), expected, "{name}");
        }
    }
}
