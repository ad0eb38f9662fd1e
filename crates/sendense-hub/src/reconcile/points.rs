//! A repository and the catalog brought into agreement. The repository is the truth.

use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use crate::maintenance::Use;
use parking_lot::Mutex;
use sendense_block::error::chain;
use sendense_catalog as catalog;
use sendense_catalog::{KnownDisk, KnownVm};
use sendense_repo::manifest::Manifest;
use sendense_repo::recover::{Catalog, Report};
use sendense_repo::{Hold, Kind, Repository};
use sendense_types::{BackupId, BackupStatus, ProblemCode, RepositoryId, SourceKind, VmContextId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Strangers named in the log; the rest is counted.
const STRANGERS_TOLD_MAX: usize = 20;

/// What the catalog knew when a pass began, and what the repository turned out to hold.
struct View {
    completed: HashMap<BackupId, VmContextId>,
    at_work: HashSet<BackupId>,
    seen: Mutex<HashSet<BackupId>>,
}

impl Catalog for View {
    fn is_live(&self, _: &VmContextId, draft: &BackupId) -> bool {
        self.at_work.contains(draft)
    }

    fn knows(&self, _: &VmContextId, point: &BackupId) -> bool {
        self.seen.lock().insert(point.clone());
        self.completed.contains_key(point)
    }
}

/// Undoes dead drafts, finishes deletions, takes in points that the catalog does not know and forgets those that are gone.
/// False when it could not be looked through; that is logged.
pub(crate) async fn repository(core: &Arc<Core>, id: &RepositoryId) -> bool {
    match pass(core, id).await {
        Ok(()) => true,
        // It is done when the mode is set back.
        Err(problem) if problem.code == ProblemCode::RepositoryMaintenance => false,
        Err(problem) => {
            tracing::warn!(repository_id = %id, error = %problem.message, details = %problem.details,
                "recover a repository");
            false
        }
    }
}

async fn pass(core: &Arc<Core>, id: &RepositoryId) -> Result<()> {
    let row = core.catalog.repositories().get(id).await.or_problem()?;
    let repository = core.repositories.by_id(core, id, Use::Write).await?;
    let view = Arc::new(view(core, id).await?);
    let (asked, recovered, now) = (view.clone(), repository.clone(), core.now());
    let report = blocking(move || recovered.recover(&*asked, now)).await?.or_problem()?;
    tell(id, &report);
    let vms: BTreeSet<&VmContextId> = report.unknown.iter().map(|(vm, _)| vm).collect();
    let unknown: HashSet<&BackupId> = report.unknown.iter().map(|(_, point)| point).collect();
    for vm in vms {
        let adopted = adopt_machine(core, &row, &repository, vm, |point| unknown.contains(point)).await?;
        for trouble in adopted.problems {
            tracing::warn!(repository_id = %id, vm_id = %vm, trouble, "take in a point");
        }
    }
    forget_gone(core, &row, &repository, &view, &report).await?;
    // What a merge left half done must not wait for the next start.
    match report.problems.iter().find(|(path, _)| path.to_string_lossy().contains("/.merge-")) {
        Some((_, error)) => Err(crate::fault::of_repo(error)),
        None => Ok(()),
    }
}

async fn view(core: &Core, id: &RepositoryId) -> Result<View> {
    let mut completed = HashMap::new();
    let of_it = catalog::BackupFilter { repository_id: Some(id.clone()), ..Default::default() };
    let points = catalog::BackupFilter { status: Some(BackupStatus::Completed), ..of_it.clone() };
    let mut offset = 0;
    loop {
        let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset };
        let (rows, _) = core.catalog.backups().list(&points, page).await.or_problem()?;
        if rows.is_empty() {
            break;
        }
        offset += rows.len() as u64;
        completed.extend(rows.into_iter().map(|row| (row.backup_id, row.vm_context_id)));
    }
    // The repository is ours, so only this process can be writing a draft in it.
    let running = catalog::BackupFilter { status: Some(BackupStatus::Running), ..of_it };
    let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
    let (rows, _) = core.catalog.backups().list(&running, page).await.or_problem()?;
    let ours = rows.into_iter().filter(|row| row.task_id.as_ref().is_some_and(|id| core.running.get(id).is_some()));
    // One that hangs in its publication is nobody's to undo either.
    let at_work = ours.map(|row| row.backup_id).chain(core.running.publishing_left_behind()).collect();
    Ok(View { completed, at_work, seen: Mutex::default() })
}

fn tell(id: &RepositoryId, report: &Report) {
    for (vm, draft) in &report.undone {
        tracing::info!(repository_id = %id, vm_id = %vm, backup_id = %draft, "unfinished point removed");
    }
    for (vm, point) in &report.deleted {
        tracing::info!(repository_id = %id, vm_id = %vm, backup_id = %point, "deletion finished");
    }
    for (vm, point) in &report.merged {
        tracing::info!(repository_id = %id, vm_id = %vm, backup_id = %point, "merge finished");
    }
    for path in report.strangers.iter().take(STRANGERS_TOLD_MAX) {
        tracing::warn!(repository_id = %id, path = %path.display(), "a file that no point names; it is left alone");
    }
    if report.strangers.len() > STRANGERS_TOLD_MAX {
        tracing::warn!(repository_id = %id, count = report.strangers.len(), "files that no point names");
    }
    for (path, error) in &report.problems {
        tracing::warn!(repository_id = %id, path = %path.display(), error = %chain(error), "recover a part");
    }
}

/// Forgets completed rows whose point is gone. A row goes only when the repository was listed completely and its manifest,
/// looked for once more, is not there: what cannot be read is not gone.
async fn forget_gone(
    core: &Core,
    row: &catalog::Repository,
    repository: &Repository,
    view: &View,
    report: &Report,
) -> Result<()> {
    if !report.problems.is_empty() {
        return Ok(());
    }
    let seen = view.seen.lock().clone();
    let candidates: Vec<(BackupId, VmContextId)> = view
        .completed
        .iter()
        .filter(|(point, _)| !seen.contains(*point))
        .map(|(point, vm)| (point.clone(), vm.clone()))
        .collect();
    if candidates.is_empty() {
        return Ok(());
    }
    let looked = repository.clone();
    let gone = blocking(move || {
        let is_gone = |(point, vm): &(BackupId, VmContextId)| {
            matches!(looked.manifest(vm, point), Err(error) if error.kind == Kind::NotFound)
        };
        candidates.into_iter().filter(is_gone).map(|(point, _)| point).collect::<Vec<_>>()
    })
    .await?;
    crate::jobs::merge::catch_up(core, row, repository, &gone).await?;
    for point in &gone {
        tracing::warn!(backup_id = %point, "the point is not in its repository any more; its row is removed");
    }
    core.catalog.backups().delete(&gone, core.now()).await.or_problem().map(drop)
}

/// What came of taking in a machine's points.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    /// Points that were not in the catalog.
    pub added: u64,
    /// Points that were.
    pub known: u64,
    /// What could not be read or taken in, for people.
    pub problems: Vec<String>,
}

/// Takes in points of one machine, parents before children.
pub(crate) async fn adopt_machine(
    core: &Core,
    row: &catalog::Repository,
    repository: &Repository,
    vm: &VmContextId,
    wanted: impl Fn(&BackupId) -> bool,
) -> Result<Adopted> {
    let (lister, of) = (repository.clone(), vm.clone());
    let listing = blocking(move || lister.list(&of)).await?.or_problem()?;
    let mut adopted = Adopted::default();
    for problem in &listing.problems {
        adopted.problems.push(format!("{}: {}", problem.path.display(), chain(&problem.error)));
    }
    for manifest in listing.points.iter().filter(|point| wanted(&point.backup_id)) {
        let (reader, of, id) = (repository.clone(), vm.clone(), manifest.backup_id.clone());
        let hold = blocking(move || reader.hold(&of, &id)).await?.unwrap_or_else(|error| {
            // The repository lets no point go whose hold it cannot read; the catalog's copy is for lists.
            adopted.problems.push(format!("{}: {}", manifest.backup_id, chain(&error)));
            Hold::default()
        });
        let (known, point) = (machine(manifest), self::point(row, manifest, hold));
        match core.catalog.backups().adopt(&known, &point, core.now()).await {
            Ok(true) => adopted.added += 1,
            Ok(false) => {
                adopted.known += 1;
                let held = core.catalog.backups().set_hold(&manifest.backup_id, hold.protected, hold.until).await;
                if let Err(error) = held {
                    adopted.problems.push(format!("{}: {}", manifest.backup_id, chain(&error)));
                }
            }
            // Its task is at work in this moment and will complete the row itself.
            Err(catalog::Error::Conflict(catalog::Conflict::WrongState { .. })) => adopted.known += 1,
            Err(error) if error.kind() == catalog::Kind::Unavailable => return Err(error).or_problem(),
            Err(error) => adopted.problems.push(format!("{}: {}", manifest.backup_id, chain(&error))),
        }
    }
    Ok(adopted)
}

fn machine(manifest: &Manifest) -> KnownVm {
    let disks = manifest.disks.iter().map(|disk| KnownDisk {
        disk_id: disk.disk_id,
        disk_key: disk.disk_key.clone(),
        binding: disk.binding.clone(),
        label: disk.label.clone(),
        capacity_bytes: disk.capacity_bytes,
    });
    KnownVm {
        vm_context_id: manifest.vm_context_id.clone(),
        kind: manifest.vm.kind,
        // Without an identity no discovery can bind it; its own id keeps it apart from every other machine.
        instance_uuid: manifest.vm.instance_uuid.clone().unwrap_or_else(|| manifest.vm_context_id.to_string()),
        vm_name: manifest.vm.name.clone(),
        // The path of an image folder's machine is the folder: the source's address.
        path: (manifest.vm.kind == SourceKind::Image).then(|| manifest.vm.source.clone()),
        disks: disks.collect(),
    }
}

/// A published point as the catalog keeps it.
pub(crate) fn point(row: &catalog::Repository, manifest: &Manifest, hold: Hold) -> catalog::Backup {
    let done = crate::jobs::backup::completed(manifest);
    catalog::Backup {
        backup_id: manifest.backup_id.clone(),
        vm_context_id: manifest.vm_context_id.clone(),
        vm_name: manifest.vm.name.clone(),
        repository_id: row.repository_id.clone(),
        requested_type: manifest.requested_type,
        backup_type: done.backup_type,
        type_reason: done.type_reason,
        policy_id: manifest.policy_id.clone(),
        parent_backup_id: done.parent_backup_id,
        status: BackupStatus::Completed,
        phase: None,
        bytes_done: done.total_bytes,
        bytes_transferred: done.bytes_transferred,
        bytes_stored: done.bytes_stored,
        total_bytes: done.total_bytes,
        consistency: done.consistency,
        consistency_note: done.consistency_note,
        error_code: None,
        error_message: None,
        tags: manifest.tags.clone(),
        partial: manifest.partial,
        quiesce: manifest.consistency != sendense_types::Consistency::Crash,
        compression: sendense_types::Compression::Default,
        on_tracking_loss: sendense_types::OnTrackingLoss::Compare,
        created_by: None,
        task_id: None,
        created_at: manifest.created_at,
        started_at: None,
        completed_at: Some(manifest.created_at),
        protected: hold.protected,
        hold_until: hold.until,
        verification: None,
        disks: done.disks,
    }
}
