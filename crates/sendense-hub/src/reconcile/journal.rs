//! What tasks made outside this process and did not take away.

use crate::core::{Core, blocking};
use parking_lot::Mutex;
use sendense_block::Cancel;
use sendense_source::{Artefact, ArtefactKind};
use sendense_types::TaskId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a source may take to undo one thing before the others get their turn; it is tried again.
const REAP_TIMEOUT: Duration = Duration::from_secs(30);

/// Undoes what ended tasks left.
pub(super) async fn reap_orphans(core: &Arc<Core>) {
    reap(core, |task_id| core.running.get(task_id).is_none()).await;
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
            Err(error) => return tracing::warn!(source_id = %source_id, error = %error, "find the source of an orphan"),
        };
        let source = match core.open_source(&row) {
            Ok(source) => source,
            Err(problem) => {
                return tracing::warn!(source_id = %source_id, error = %problem.message, "open the source of an orphan");
            }
        };
        for (entry, artefact) in orphans {
            let Some(underway) = Underway::begin(&core.reaping, entry) else { continue };
            let (source, journal) = (source.clone(), core.journal.clone());
            let cancel = Cancel::new();
            let (asked, kind) = (cancel.clone(), artefact.kind);
            let undone = blocking(move || {
                let _underway = underway;
                let undone = source.reap(&artefact, &asked)?;
                if undone {
                    journal.close(entry)?;
                }
                Ok::<_, sendense_source::Error>(undone)
            });
            match tokio::time::timeout(REAP_TIMEOUT, undone).await {
                Ok(Ok(Ok(true))) => tracing::info!(source_id = %source_id, entry, ?kind, "orphan removed"),
                Ok(Ok(Ok(false))) => tracing::debug!(source_id = %source_id, entry, ?kind, "orphan stays for now"),
                Ok(Ok(Err(error))) => {
                    tracing::warn!(source_id = %source_id, entry, ?kind,
                        error = %sendense_block::error::chain(&error), "remove an orphan");
                }
                Ok(Err(_)) => {}
                Err(_) => {
                    cancel.cancel();
                    tracing::warn!(source_id = %source_id, entry, ?kind, "the source does not answer");
                }
            }
        }
    }))
    .await;
}

/// Entries that a thread is at, each by one: where a share hangs, so does whoever removes a file there, long after nobody
/// waits for him, and each pass would send another one after him.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaping(Arc<Mutex<HashSet<u64>>>);

/// The right to undo an entry.
struct Underway(Reaping, u64);

impl Underway {
    /// None while somebody has it.
    fn begin(reaping: &Reaping, entry: u64) -> Option<Self> {
        reaping.0.lock().insert(entry).then(|| Self(reaping.clone(), entry))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
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
}
