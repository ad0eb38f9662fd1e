//! Maintenance modes: what may be done in a repository while somebody looks after it.
//!
//! ```text
//!             begin to read    begin to write    go on with what has begun
//! normal      yes              yes               yes
//! read_only   yes              -                 yes
//! draining    -                -                 yes
//! offline     -                -                 -       the folder is closed, and nobody looks into it
//! ```
//!
//! What lives here: the table, the refusal, and the change from one mode to another. What does not: what each task or call
//! wants, which is said where it asks for the repository. Invariant: nobody gets an open repository without saying what for.

use crate::core::Core;
use crate::fault::{OrProblem, Result};
use crate::jobs::work::Work;
use crate::repositories::Repositories;
use sendense_catalog::{Maintenance, Page, Repository, TaskFilter};
use sendense_types::{Problem, ProblemCode, RepositoryId, RepositoryMode, TaskState};
use std::sync::Arc;

/// What somebody wants of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// To begin something that only looks at points.
    Read,
    /// To begin something that makes, changes or deletes points.
    Write,
    /// To end what was begun before.
    GoOn,
}

/// Whether a mode allows it.
pub(crate) const fn allows(mode: RepositoryMode, wanted: Use) -> bool {
    use RepositoryMode::{Draining, Normal, Offline, ReadOnly};
    match (mode, wanted) {
        (Normal, _) | (ReadOnly, Use::Read | Use::GoOn) | (Draining, Use::GoOn) => true,
        (ReadOnly, Use::Write) | (Draining, Use::Read | Use::Write) | (Offline, _) => false,
    }
}

/// Refuses what a repository's mode does not allow.
pub(crate) fn check(row: &Repository, wanted: Use) -> Result<()> {
    match allows(row.maintenance.mode, wanted) {
        true => Ok(()),
        false => Err(refusal(row)),
    }
}

/// Says which repository is in which mode, since when and why, and how it ends.
fn refusal(row: &Repository) -> Problem {
    let Maintenance { mode, reason, since, by } = &row.maintenance;
    let is = match mode {
        RepositoryMode::Normal => "in use",
        RepositoryMode::ReadOnly => "read-only",
        RepositoryMode::Draining => "draining: nothing begins in it",
        RepositoryMode::Offline => "offline",
    };
    let mut details = reason.clone().unwrap_or_default();
    for (word, told) in [("since", since.map(|at| at.to_string())), ("set by", by.clone())] {
        if let Some(told) = told {
            let comma = if details.is_empty() { "" } else { ", " };
            details.push_str(&format!("{comma}{word} {told}"));
        }
    }
    let comma = if details.is_empty() { "" } else { "; " };
    details.push_str(&format!("{comma}whoever looks after it ends that: sendense repo mode {} normal", row.name));
    Problem::new(ProblemCode::RepositoryMaintenance, format!("repository {} is {is}", row.name), details)
}

/// Changes the mode. A repository goes offline only when nothing is at work in it, and is closed then.
pub(crate) async fn set(core: &Arc<Core>, row: &Repository, to: Maintenance) -> Result<()> {
    let id = &row.repository_id;
    // First the word, so that nothing begins; then the look at what is at work.
    let before = core.catalog.repositories().set_maintenance(id, &to).await.or_problem()?;
    if to.mode == RepositoryMode::Offline
        && let Err(problem) = go_offline(core, row).await
    {
        core.catalog.repositories().set_maintenance(id, &before).await.or_problem()?;
        return Err(problem);
    }
    if to.mode != RepositoryMode::Offline {
        Repositories::open_in_background(core, id);
    }
    core.running.wake.notify_one();
    core.schedules_changed.notify_one();
    Ok(())
}

/// Closes a repository, or refuses because somebody is at work in it, here or on another hub.
async fn go_offline(core: &Arc<Core>, row: &Repository) -> Result<()> {
    let id = &row.repository_id;
    let in_use = |details| Problem::new(ProblemCode::Conflict, "the repository is in use", details);
    let tasks = running_elsewhere(core, id).await?;
    if !tasks.is_empty() {
        let details = format!("{}; let it drain first: sendense repo mode {} draining", tasks.join(", "), row.name);
        return Err(in_use(details));
    }
    close(core, id).await.map_err(|at_work| {
        in_use(format!("{}; let it drain first: sendense repo mode {} draining", at_work.join(", "), row.name))
    })?;
    // Closed here; what another hub has open only that one can close.
    match core.repositories.owner(core, row).await {
        Some(owner) => Err(in_use(format!(
            "hub {owner} has it open; ask that hub, or stop it and wait until its lease on the folder is out"
        ))),
        None => Ok(()),
    }
}

/// Tasks that work in a repository on other hubs.
async fn running_elsewhere(core: &Core, id: &RepositoryId) -> Result<Vec<String>> {
    let filter = TaskFilter { state: Some(TaskState::Running), ..TaskFilter::default() };
    let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let (rows, _) = core.catalog.tasks().list(&filter, page).await.or_problem()?;
    let here = rows
        .into_iter()
        .filter(|task| core.running.get(&task.task_id).is_none())
        .filter(|task| matches!(Work::read(&task.request), Ok(work) if work.repositories().any(|of| of == id)));
    Ok(here.map(|task| format!("task {}", task.task_id)).collect())
}

/// Closes a repository, or says who is at work in it.
pub(crate) async fn close(core: &Arc<Core>, id: &RepositoryId) -> Result<(), Vec<String>> {
    let mut at_work: Vec<String> =
        core.running.of_repository(id).iter().map(|handle| format!("task {}", handle.task_id)).collect();
    let recoveries = core.recoveries.all();
    let here = recoveries.iter().filter(|recovery| recovery.record().repository_id == *id);
    at_work.extend(here.map(|recovery| format!("recovery {}", recovery.id)));
    if !at_work.is_empty() {
        return Err(at_work);
    }
    core.repositories.close(core, id).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use sendense_catalog::Maintenance;
    use sendense_types::{RepositoryKind, Timestamp};

    fn row(mode: RepositoryMode) -> Repository {
        Repository {
            repository_id: "repo-1".parse().unwrap(),
            name: "main".parse().unwrap(),
            kind: RepositoryKind::Local,
            config: serde_json::Value::Null,
            settings: serde_json::Value::Null,
            secret: None,
            created_at: Timestamp::from_micros(0),
            maintenance: Maintenance { mode, ..Maintenance::NONE },
        }
    }

    #[test]
    fn every_mode_and_every_use() {
        let mut table = String::new();
        for mode in RepositoryMode::ALL {
            let allowed = [Use::Read, Use::Write, Use::GoOn].map(|wanted| check(&row(*mode), wanted).is_ok());
            table.push_str(&format!("{mode:<9} {allowed:?}\n"));
        }
        expect![[r#"
            normal    [true, true, true]
            read_only [true, false, true]
            draining  [false, false, true]
            offline   [false, false, false]
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn who_is_refused_learns_why_and_who_acts() {
        let mut row = row(RepositoryMode::ReadOnly);
        row.maintenance.reason = Some("the shelf moves".to_owned());
        row.maintenance.since = Some(Timestamp::from_micros(1_780_000_000_000_000));
        row.maintenance.by = Some("anna".to_owned());
        let problem = check(&row, Use::Write).unwrap_err();
        assert_eq!(problem.code.who_acts(), sendense_types::WhoActs::Operator);
        expect![[
            "repository main is read-only: the shelf moves, since 2026-05-28T20:26:40Z, set by anna; whoever looks after it \
             ends that: sendense repo mode main normal"
        ]]
        .assert_eq(&format!("{}: {}", problem.message, problem.details));
    }
}
