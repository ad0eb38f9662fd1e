//! `sendense history`: in which restore points of a machine a file is, and which of them hold the same.

use super::files::{path_of, shown};
use crate::args::HistoryArgs;
use crate::context::Context;
use crate::exit;
use crate::output::{json, moment, or_dash, say, table as show};
use crate::tables::Table;
use anyhow::Result;
use sendense_api::reply::FileHistoryReply;
use sendense_api::{
    FileHistory, FileKind, FileVersion, HistoryQuery, LIMIT_MAX, Limit, VersionState, VolumeConsistency,
};
use sendense_types::DiskNumber;
use std::collections::BTreeSet;

/// Runs the command.
pub async fn run(context: &Context, args: HistoryArgs) -> Result<u8> {
    let HistoryArgs { vm, path, disk, volume } = args;
    let path = path_of(&path);
    let mut query = HistoryQuery {
        path: path.clone(),
        disk_id: disk.map(DiskNumber),
        volume,
        limit: Limit::try_from(LIMIT_MAX).unwrap_or_default(),
        offset: 0,
    };
    let mut history = context.client.file_history(&vm, &query).await?;
    while let Some(next) = history.next_offset.filter(|next| *next > query.offset) {
        say(format!("{next} of {} restore points", history.total));
        query.offset = next;
        let older = context.client.file_history(&vm, &query).await?;
        (history.total, history.next_offset) = (older.total, older.next_offset);
        append(&mut history, older.versions);
    }
    let is_there = history.versions.iter().any(|version| version.state == VersionState::Present);
    if context.json {
        json(&FileHistoryReply::from(history))?;
    } else {
        show(versions(&history));
        if !is_there {
            say(format!("no restore point of {} that can be read holds {}", history.vm_name, shown(&path)));
        }
    }
    Ok(if is_there { 0 } else { exit::NOT_FOUND })
}

/// Adds older versions. A backup that was made meanwhile moves all points on, so one may be told twice.
fn append(history: &mut FileHistory, older: Vec<FileVersion>) {
    let known: BTreeSet<_> =
        history.versions.iter().flat_map(|version| &version.points).map(|point| point.backup_id.clone()).collect();
    for mut version in older {
        version.points.retain(|point| !known.contains(&point.backup_id));
        if !version.points.is_empty() {
            FileVersion::fold(&mut history.versions, version);
        }
    }
}

fn versions(history: &FileHistory) -> Table {
    let mut table =
        Table::new(&["NEWEST", "OLDEST", "POINTS", "STATE", "SIZE", "MODIFIED", "SHA-256", "BACKUP", "NOTE"], &[2, 4]);
    for version in &history.versions {
        let (newest, oldest) = (version.points.first(), version.points.last());
        table.row([
            or_dash(newest.map(|point| moment(point.created_at))),
            or_dash(oldest.map(|point| moment(point.created_at))),
            version.points.len().to_string(),
            state(version).to_owned(),
            or_dash(version.file.as_ref().map(|file| file.size)),
            or_dash(version.file.as_ref().and_then(|file| file.modified_time).map(moment)),
            // Sixteen digits tell files apart for a person; programs take the JSON.
            or_dash(version.sha256.as_ref().map(|digest| digest.chars().take(16).collect::<String>())),
            or_dash(newest.map(|point| &point.backup_id)),
            note(version),
        ]);
    }
    table
}

fn state(version: &FileVersion) -> &'static str {
    match (version.state, version.file.as_ref().map(|file| file.kind)) {
        (VersionState::Absent, _) => "absent",
        (VersionState::Unreadable, _) => "unreadable",
        (VersionState::Present, Some(FileKind::Directory)) => "folder",
        (VersionState::Present, Some(FileKind::Symlink)) => "link",
        (VersionState::Present, Some(FileKind::Other)) => "other",
        (VersionState::Present, Some(FileKind::File) | None) => "present",
    }
}

/// What else a person must know. It holds words of guests, which the table makes harmless.
fn note(version: &FileVersion) -> String {
    let target = version.file.as_ref().and_then(|file| file.target.as_ref());
    let mut notes: Vec<String> = target.map(|target| format!("-> {target}")).into_iter().collect();
    notes.extend([&version.reason, &version.sha256_missing].into_iter().flatten().cloned());
    if version.consistency == Some(VolumeConsistency::LogNotReplayed) {
        notes.push("the volume's log could not be replayed: the last changes may be missing".to_owned());
    }
    notes.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_api::HistoryPoint;
    use sendense_types::Timestamp;

    fn version(state: VersionState, points: &[u32]) -> FileVersion {
        let point = |number: &u32| HistoryPoint {
            backup_id: format!("bk-{number}").parse().unwrap(),
            created_at: Timestamp::from_micros(i64::from(*number)),
        };
        FileVersion {
            reason: Some("a\u{1b}[2J".to_owned()).filter(|_| state == VersionState::Unreadable),
            points: points.iter().map(point).collect(),
            ..FileVersion::nothing(state)
        }
    }

    fn history(versions: Vec<FileVersion>) -> FileHistory {
        FileHistory {
            vm_context_id: "vm-1".parse().unwrap(),
            vm_name: "web".into(),
            disk_id: DiskNumber(0),
            path: "/x".into(),
            path_encoded: "/x".into(),
            versions,
            total: 9,
            next_offset: None,
        }
    }

    #[test]
    fn pages_are_folded_and_a_point_is_told_once() {
        use VersionState::{Absent, Present};
        let mut history = history(vec![version(Present, &[9, 8])]);
        append(&mut history, vec![version(Present, &[8, 7]), version(Absent, &[6]), version(Present, &[9])]);
        let told: Vec<(VersionState, usize)> =
            history.versions.iter().map(|version| (version.state, version.points.len())).collect();
        assert_eq!(told, [(Present, 3), (Absent, 1)]);
    }

    #[test]
    fn a_reason_does_not_act_on_a_terminal() {
        let shown = versions(&history(vec![version(VersionState::Unreadable, &[1])])).to_string();
        assert!(shown.contains("a\\u{1b}[2J") && !shown.contains('\u{1b}'), "{shown}");
    }
}
