//! Tables of repositories, for people.

use crate::output::{bytes, moment, or_dash};
use crate::tables::Table;
use sendense_api::{Repository, RepositoryReport, RepositorySpace, SpaceSample};
use sendense_types::{RepositoryMode, SpaceState};

/// Repositories.
pub fn repositories(repositories: &[Repository]) -> Table {
    let mut table = Table::new(&["NAME", "TYPE", "BACKUPS", "USED", "FREE", "PATH", "STATE"], &[2, 3, 4]);
    for repository in repositories {
        let storage = repository.storage.as_ref();
        table.row([
            repository.name.clone(),
            repository.kind.to_string(),
            repository.backup_count.to_string(),
            or_dash(storage.map(|storage| bytes(storage.used_bytes))),
            or_dash(storage.map(|storage| bytes(storage.available_bytes))),
            repository.config.path.clone(),
            match (repository.mode, &repository.problem) {
                (RepositoryMode::Normal, Some(problem)) => problem.clone(),
                (RepositoryMode::Normal, None) => repository.space.as_ref().map_or_else(|| "ok".into(), room_in_short),
                (other, _) => mode(other),
            },
        ]);
    }
    table
}

/// Whether a repository has room, in a word or two.
fn room_in_short(space: &RepositorySpace) -> String {
    match space.state {
        SpaceState::Ok => "ok".to_owned(),
        SpaceState::Low => format!("room is low{}", full_in(space)),
        SpaceState::Critical => format!("hardly any room{}", full_in(space)),
    }
}

/// The same with the figures.
pub fn room(space: &RepositorySpace) -> String {
    let growth = match space.bytes_per_day {
        None => ", growth not known yet".to_owned(),
        Some(shrinks @ ..0) => format!(", shrinks by {} a day", bytes(shrinks.unsigned_abs())),
        Some(grows) => format!(", grows by {} a day", bytes(grows.unsigned_abs())),
    };
    format!("{}: {} % taken{growth}{}", space.state, space.used_percent, full_in(space))
}

fn full_in(space: &RepositorySpace) -> String {
    match (space.full_in_days, space.full_at) {
        (Some(days), Some(at)) => format!(", full in {days:.0} days ({})", moment(at)),
        _ => String::new(),
    }
}

/// What a repository held from day to day.
pub fn space(samples: &[SpaceSample]) -> Table {
    let mut table = Table::new(&["DAY", "USED", "FREE", "SIZE"], &[1, 2, 3]);
    for sample in samples {
        let [used, free, size] = [sample.used_bytes, sample.available_bytes, sample.total_bytes].map(bytes);
        table.row([moment(sample.at), used, free, size]);
    }
    table
}

/// What was out of order in a repository.
pub fn findings(reports: &[RepositoryReport]) -> Table {
    let mut table = Table::new(&["AT", "BY", "WHAT", "OF", "DONE", "WHY"], &[]);
    for report in reports {
        let (at, by) = (moment(report.at), &report.made_by);
        if report.findings.is_empty() {
            let nothing = format!("nothing is out of order, {} points lie there", report.backup_count);
            table.row([at, by.clone(), String::new(), String::new(), String::new(), nothing]);
            continue;
        }
        for finding in &report.findings {
            let done = match (finding.repaired, finding.repairable) {
                (true, _) => "repaired",
                (false, true) => "not yet",
                (false, false) => "look yourself",
            };
            let what = finding.kind.in_words().to_owned();
            table.row([
                at.clone(),
                by.clone(),
                what,
                finding.subject.clone(),
                done.to_owned(),
                finding.message.clone(),
            ]);
        }
    }
    table
}

/// A maintenance mode as it is typed.
pub fn mode(mode: RepositoryMode) -> String {
    mode.as_str().replace('_', "-")
}

/// The same with who set it, when and why.
pub fn mode_in_full(repository: &Repository) -> String {
    let mut text = mode(repository.mode);
    if repository.mode == RepositoryMode::Normal {
        return text;
    }
    if let Some(since) = repository.mode_since {
        text.push_str(&format!(" since {}", moment(since)));
    }
    for (before, told) in [(", by ", &repository.mode_by), (": ", &repository.mode_reason)] {
        if let Some(told) = told {
            text.push_str(&format!("{before}{told}"));
        }
    }
    text
}
