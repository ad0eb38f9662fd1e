//! What tasks made outside this process and did not take away.

use super::left_over::{Known, Thing, forget, gone, kind, stays, words};
use crate::core::{Core, blocking};
use parking_lot::Mutex;
use sendense_block::Cancel;
use sendense_catalog::Kind;
use sendense_source::{Artefact, ArtefactKind};
use sendense_types::{SourceId, TaskId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a source may take to undo one thing before the others get their turn; it is tried again.
const REAP_TIMEOUT: Duration = Duration::from_secs(30);

/// What is known of a thing that its source could not undo just now.
pub(super) const NOT_NOW: &str =
    "its source cannot be reached, or somebody else works on the machine (its task's log may say more)";
/// The same where nobody can reach it any more.
const NO_SOURCE: &str = "its source was removed: look after it there, then remove its entry from the hub's journal";

/// Undoes what ended tasks left.
pub(crate) async fn reap_orphans(core: &Arc<Core>) {
    reap(core, |task_id| core.running.get(task_id).is_none()).await;
    let journal = core.journal.clone();
    if let Ok(Ok(entries)) = blocking(move || journal.open_entries()).await {
        let open: HashSet<Thing> = entries.iter().map(|(_, artefact)| Thing::of(artefact)).collect();
        forget(core, |thing, known| known == Known::Journal && !open.contains(thing));
    }
}

/// Undoes what one task left, when it has ended.
pub(crate) async fn reap_task(core: &Arc<Core>, task_id: &TaskId) {
    reap(core, |of| of == task_id).await;
}

async fn reap(core: &Arc<Core>, is_orphan: impl Fn(&TaskId) -> bool) {
    let journal = core.journal.clone();
    let entries = match blocking(move || journal.open_entries()).await {
        Ok(Ok(entries)) => entries,
        Ok(Err(error)) => return tracing::error!(error = %error, "read the journal"),
        Err(_) => return,
    };
    let mut orphans: Vec<(u64, Artefact)> =
        entries.into_iter().filter(|(_, artefact)| is_orphan(&artefact.task_id)).collect();
    // A guest that stands still is the worst of them.
    orphans.sort_by_key(|(entry, artefact)| (artefact.kind != ArtefactKind::FrozenGuest, *entry));
    let mut by_source: HashMap<_, Vec<_>> = HashMap::new();
    for (entry, artefact) in orphans {
        by_source.entry(artefact.source_id.clone()).or_default().push((entry, artefact));
    }
    // Side by side: a source that does not answer must not keep another one's guest frozen.
    futures::future::join_all(by_source.into_iter().map(|(source_id, orphans)| async move {
        let row = match core.catalog.sources().get(&source_id).await {
            Ok(row) => row,
            Err(error) if error.kind() == Kind::NotFound => return without_source(core, &source_id, orphans).await,
            Err(error) => return tracing::warn!(source_id = %source_id, error = %error, "find the source of an orphan"),
        };
        let source = match core.open_source(&row) {
            Ok(source) => source,
            Err(problem) => {
                tracing::warn!(source_id = %source_id, error = %problem.message, "open the source of an orphan");
                for (_, artefact) in &orphans {
                    stays(core, artefact, Known::Journal, 1, &problem.message).await;
                }
                return;
            }
        };
        for (entry, artefact) in orphans {
            let Some(underway) = Underway::begin(&core.reaping, entry) else {
                stays(core, &artefact, Known::Journal, 1, "an earlier try has not come back").await;
                continue;
            };
            let (source, journal) = (source.clone(), core.journal.clone());
            let cancel = Cancel::new();
            let (asked, orphan, kind) = (cancel.clone(), artefact.clone(), artefact.kind);
            let undone = blocking(move || {
                let _underway = underway;
                let undone = source.reap(&orphan, &asked)?;
                if undone {
                    journal.close(entry)?;
                }
                Ok::<_, sendense_source::Error>(undone)
            });
            match tokio::time::timeout(REAP_TIMEOUT, undone).await {
                Ok(Ok(Ok(true))) => {
                    tracing::info!(source_id = %source_id, entry, ?kind, "orphan removed");
                    gone(core, &artefact);
                }
                Ok(Ok(Ok(false))) => {
                    tracing::debug!(source_id = %source_id, entry, ?kind, "orphan stays for now");
                    stays(core, &artefact, Known::Journal, 1, NOT_NOW).await;
                }
                Ok(Ok(Err(error))) => {
                    let error = sendense_block::error::chain(&error);
                    tracing::warn!(source_id = %source_id, entry, ?kind, error, "remove an orphan");
                    stays(core, &artefact, Known::Journal, 1, &error).await;
                }
                Ok(Err(_)) => {}
                Err(_) => {
                    cancel.cancel();
                    tracing::warn!(source_id = %source_id, entry, ?kind, "the source does not answer");
                    stays(core, &artefact, Known::Journal, 1, "the source does not answer").await;
                }
            }
        }
    }))
    .await;
}

/// Undoes what ended tasks left on this host, when nobody knows any more how to reach the rest: their source was removed. The
/// rest is told once in the hub's life, and its record stays, because it may still be there.
async fn without_source(core: &Arc<Core>, source_id: &SourceId, orphans: Vec<(u64, Artefact)>) {
    let (journal, reaping) = (core.journal.clone(), core.reaping.clone());
    let left = blocking(move || {
        orphans.into_iter().filter(|(entry, artefact)| {
            let Some(_underway) = Underway::begin(&reaping, *entry) else { return false };
            let undone = sendense_source::reap_here(artefact).and_then(|undone| match undone {
                true => journal.close(*entry).map(|()| true),
                false => Ok(false),
            });
            match undone {
                Ok(undone) => !undone,
                Err(error) => {
                    let error = sendense_block::error::chain(&error);
                    tracing::warn!(entry, kind = ?artefact.kind, %error, "remove an orphan whose source was removed");
                    false
                }
            }
        }).collect::<Vec<_>>()
    });
    let left = left.await.unwrap_or_default();
    for (_, artefact) in &left {
        stays(core, artefact, Known::Journal, 1, NO_SOURCE).await;
    }
    if !left.is_empty() && core.reaping.tell(source_id) {
        let entries: Vec<u64> = left.iter().map(|(entry, _)| *entry).collect();
        tracing::warn!(%source_id, ?entries, "the source of orphans was removed; what is left of them on its hypervisor \
                has to be looked after there");
    }
}

/// What is left of ended tasks and could not be undone yet, in words.
pub(crate) async fn left_over(core: &Core, entries: &[(u64, Artefact)]) -> Vec<String> {
    let mut gone: HashMap<&SourceId, bool> = HashMap::new();
    let mut told = Vec::new();
    for (entry, artefact) in entries.iter().filter(|(_, artefact)| core.running.get(&artefact.task_id).is_none()) {
        let source_id = &artefact.source_id;
        if !gone.contains_key(source_id) {
            let found = core.catalog.sources().get(source_id).await;
            gone.insert(source_id, matches!(found, Err(error) if error.kind() == Kind::NotFound));
        }
        let what = words(kind(artefact.kind), &artefact.vm_key);
        let removed = if gone[source_id] { ", which was removed" } else { "" };
        told.push(format!("{what} on {source_id}{removed} (entry {entry}, {})", artefact.task_id));
    }
    told
}

/// Entries that a thread is at, each by one: where a share hangs, so does whoever removes a file there, long after nobody
/// waits for him, and each pass would send another one after him.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaping {
    underway: Arc<Mutex<HashSet<u64>>>,
    /// Sources that are gone, and of whose orphans that was said.
    told: Arc<Mutex<HashSet<SourceId>>>,
}

impl Reaping {
    /// True the first time.
    fn tell(&self, source_id: &SourceId) -> bool {
        self.told.lock().insert(source_id.clone())
    }
}

/// The right to undo an entry.
struct Underway(Reaping, u64);

impl Underway {
    /// None while somebody has it.
    fn begin(reaping: &Reaping, entry: u64) -> Option<Self> {
        reaping.underway.lock().insert(entry).then(|| Self(reaping.clone(), entry))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.underway.lock().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_undoes_an_entry() {
        let reaping = Reaping::default();
        let first = Underway::begin(&reaping, 1).unwrap();
        assert!(Underway::begin(&reaping, 1).is_none(), "the first has not ended");
        assert!(Underway::begin(&reaping, 2).is_some(), "another entry is free");
        drop(first);
        assert!(Underway::begin(&reaping, 1).is_some());
    }

    #[test]
    fn a_source_that_is_gone_is_told_once() {
        let (reaping, gone) = (Reaping::default(), "src-1".parse().unwrap());
        assert!(reaping.tell(&gone) && !reaping.tell(&gone));
        assert!(reaping.tell(&"src-2".parse().unwrap()));
    }
}
