//! A repository and the catalog brought into agreement. The repository is the truth.

use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use crate::jobs::merge;
use crate::jobs::work::Work;
use crate::maintenance::Use;
use crate::reconcile::moves;
use crate::reconcile::plan::{Facts, Finding, Repair, leaves_first, plan};
use sendense_api::{FindingKind, MountStatus};
use sendense_block::error::chain;
use sendense_catalog as catalog;
use sendense_catalog::{KnownDisk, KnownVm};
use sendense_repo::manifest::Manifest;
use sendense_repo::recover::{Catalog, Report};
use sendense_repo::survey::Survey;
use sendense_repo::{Hold, Kind, Repository};
use sendense_types::{
    BackupId, BackupStatus, MountId, Problem, ProblemCode, RepositoryId, SourceKind, TaskId, TaskState, Timestamp,
    VmContextId,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Strangers named in the log; the rest is counted.
const STRANGERS_TOLD_MAX: usize = 20;

/// Failed tasks that are looked through for such as were interrupted: more than a hub runs in a day go wrong on no day.
const INTERRUPTED_MAX: u64 = 500;

/// Rows that one transaction forgets: the catalog takes 10,000, and what goes wrong with some keeps no more than these.
const FORGET_AT_ONCE: usize = 1000;

/// The catalog, as far as the repository has to ask: only drafts whose repair was planned are taken back.
struct Planned {
    undo: BTreeSet<(VmContextId, BackupId)>,
    moving: BTreeSet<VmContextId>,
}

impl Catalog for Planned {
    fn is_live(&self, vm: &VmContextId, draft: &BackupId) -> bool {
        !self.undo.contains(&(vm.clone(), draft.clone()))
    }

    fn is_moving(&self, vm: &VmContextId) -> bool {
        self.moving.contains(vm)
    }

    fn knows(&self, _: &VmContextId, _: &BackupId) -> bool {
        // Asked of the plan, which knows what the catalog said before the folder was looked through.
        true
    }
}

/// What a look at a repository came to.
pub(crate) struct Looked {
    /// Points that lie there.
    pub points: u64,
    /// What is or was out of order.
    pub findings: Vec<Finding>,
    /// What was done about it.
    pub done: BTreeSet<Repair>,
}

impl Looked {
    /// What lies in the folder of drafts, deletions and merges that could not be brought to their end: their machine was at
    /// work, or the file system failed.
    pub fn is_left(&self) -> bool {
        let repairs = self.findings.iter().filter_map(|finding| finding.repair.as_ref());
        repairs.filter(|repair| repair.is_in_folder()).any(|repair| !self.done.contains(repair))
    }
}

/// Undoes dead drafts, finishes deletions, takes in points that the catalog does not know and forgets those that are gone.
/// False when it could not be looked through, or something has to be
/// tried again; that is logged.
pub(crate) async fn repository(core: &Arc<Core>, id: &RepositoryId, patience: Duration) -> bool {
    match super::report::look_through(core, id, "start", Doing::Repair, patience).await {
        // The next look by itself is tomorrow's, and until then nobody would take the rest away.
        Ok((_, is_left)) => !is_left,
        // It is done when the mode is set back.
        Err(problem) if problem.code == ProblemCode::RepositoryMaintenance => false,
        Err(problem) => {
            tracing::warn!(repository_id = %id, error = %problem.message, details = %problem.details,
                "recover a repository");
            false
        }
    }
}

/// Whether what is safe is done about what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    Look,
    Repair,
    /// The same, and moves are given up whose other repository is lost for good: a person says so.
    Forget,
}

/// Looks through a repository, judges, and does what the judgement says. The second part of the answer is a part of it that could
/// not be repaired and must not wait for a person.
pub(crate) async fn look(
    core: &Arc<Core>,
    row: &catalog::Repository,
    since: Option<Timestamp>,
    doing: Doing,
) -> Result<(Looked, Result<()>)> {
    let id = &row.repository_id;
    let wanted = if doing == Doing::Look { Use::Read } else { Use::Write };
    let repository = core.repositories.by_id(core, id, wanted).await?;
    let mut facts = gather(core, id, &repository, since).await?;
    let mut findings = plan(&facts);
    let mut looked = Looked { points: points_of(&facts.survey), findings: findings.clone(), done: BTreeSet::new() };
    if doing == Doing::Look {
        return Ok((looked, Ok(())));
    }
    let repairs: Vec<Repair> = findings.iter().filter_map(|finding| finding.repair.clone()).collect();
    let (report, settled) = mend(core, id, &repository, &repairs, doing).await?;
    let left: Vec<&str> = report.problems.iter().filter_map(|(path, _)| path.to_str()).collect();
    let is_left = |of: &BackupId| left.iter().any(|path| path.contains(of.as_str()));
    if repairs.iter().any(Repair::is_in_folder) {
        // What a merge or a deletion has changed is seen anew before the catalog follows.
        facts = match gather(core, id, &repository, since).await {
            Ok(facts) => facts,
            // What was done is told all the same.
            Err(problem) => return Ok((looked, Err(problem))),
        };
        findings = plan(&facts);
        let known: HashSet<(FindingKind, String)> =
            looked.findings.iter().map(|finding| (finding.kind, finding.subject.clone())).collect();
        let news = findings.iter().filter(|new| !known.contains(&(new.kind, new.subject.clone())));
        looked.findings.extend(news.cloned());
        looked.done.extend(
            repairs
                .iter()
                .filter(|repair| repair.is_in_folder())
                .filter(|repair| match repair {
                    Repair::UndoDraft(_, of) | Repair::FinishDeletion(_, of) | Repair::FinishMerge(_, of)
                        if is_left(of) =>
                    {
                        false
                    }
                    repair => !findings.iter().any(|left| left.repair.as_ref() == Some(*repair)),
                })
                .cloned(),
        );
    }
    let repairs: Vec<Repair> = findings.into_iter().filter_map(|finding| finding.repair).collect();
    let mut followed = take_in(core, row, &repository, &repairs, &mut looked.done).await;
    followed = followed.and(rewrite(core, row, &repository, &repairs, &mut looked.done).await);
    if report.problems.is_empty() {
        followed = followed.and(forget_gone(core, row, &repository, &repairs, &mut looked).await);
    }
    for repair in &repairs {
        match repair {
            Repair::CloseMount(mount) if core.mounts.close(mount).await.is_ok() => {
                _ = looked.done.insert(repair.clone())
            }
            Repair::Done => _ = looked.done.insert(Repair::Done),
            _ => {}
        }
    }
    // What a merge left half done must not wait for the next start.
    let half = match report.problems.iter().find(|(path, _)| path.to_string_lossy().contains("/.merge-")) {
        Some((_, error)) => Err(crate::fault::of_repo(error)),
        None => followed.and(settled),
    };
    Ok((looked, half))
}

fn points_of(survey: &Survey) -> u64 {
    survey.vms.values().flatten().map(|found| found.points.len() as u64).sum()
}

/// Asks the catalog first, then the folder, then once more who is at work: whatever is in the folder by then was known to one of
/// them, unless it is out of order.
async fn gather(core: &Core, id: &RepositoryId, repository: &Repository, since: Option<Timestamp>) -> Result<Facts> {
    let (rows, parents) = rows(core, id).await?;
    let mut moving = moves::under_way(core, id).await?;
    let mut at_work = at_work(core, id).await?;
    let (surveyed, now) = (repository.clone(), core.now());
    // It only reads, so a hub that stops need not wait for a share that does not answer.
    let survey = tokio::select! {
        survey = blocking(move || surveyed.survey(now)) => survey?.or_problem()?,
        () = core.stop.cancelled() => return Err(Problem::new(ProblemCode::Cancelled, "the hub stops", "")),
    };
    at_work.extend(self::at_work(core, id).await?);
    moving.extend(moves::under_way(core, id).await?);
    Ok(Facts {
        survey,
        rows,
        parents,
        at_work,
        moving,
        interrupted: interrupted(core, id, since).await?,
        ended_mounts: ended_mounts(core, id).await?,
    })
}

/// What points stand on that stand on any.
type Parents = BTreeMap<BackupId, BTreeSet<BackupId>>;

/// The points that the catalog says are there, and what they stand on.
async fn rows(core: &Core, id: &RepositoryId) -> Result<(BTreeMap<BackupId, VmContextId>, Parents)> {
    let status = Some(BackupStatus::Completed);
    let points = catalog::BackupFilter { repository_id: Some(id.clone()), status, ..Default::default() };
    let (mut completed, mut parents) = (BTreeMap::new(), Parents::new());
    let mut offset = 0;
    loop {
        let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset };
        let (rows, _) = core.catalog.backups().list(&points, page).await.or_problem()?;
        if rows.is_empty() {
            return Ok((completed, parents));
        }
        offset += rows.len() as u64;
        for row in &rows {
            let of_disks = row.disks.iter().filter_map(|disk| disk.parent_backup_id.as_ref());
            let on: BTreeSet<BackupId> = of_disks.chain(&row.parent_backup_id).cloned().collect();
            if !on.is_empty() {
                parents.insert(row.backup_id.clone(), on);
            }
        }
        completed.extend(rows.into_iter().map(|row| (row.backup_id, row.vm_context_id)));
    }
}

/// The repository is ours, so only this process can be writing a draft in it.
async fn at_work(core: &Core, id: &RepositoryId) -> Result<BTreeSet<BackupId>> {
    let status = Some(BackupStatus::Running);
    let running = catalog::BackupFilter { repository_id: Some(id.clone()), status, ..Default::default() };
    let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
    let (rows, _) = core.catalog.backups().list(&running, page).await.or_problem()?;
    let ours = rows.into_iter().filter(|row| row.task_id.as_ref().is_some_and(|id| core.running.get(id).is_some()));
    // One that hangs in its publication is nobody's to undo either.
    Ok(ours.map(|row| row.backup_id).chain(core.running.publishing_left_behind()).collect())
}

/// Tasks in the repository that were ended since then because their hub was dead.
async fn interrupted(core: &Core, id: &RepositoryId, since: Option<Timestamp>) -> Result<Vec<(TaskId, String)>> {
    let failed = catalog::TaskFilter { state: Some(TaskState::Failed), ..catalog::TaskFilter::default() };
    let page = catalog::Page { limit: INTERRUPTED_MAX, offset: 0 };
    let (rows, _) = core.catalog.tasks().list(&failed, page).await.or_problem()?;
    let is_new = |task: &catalog::Task| {
        let ended = task.finished_at.is_some_and(|at| since.is_none_or(|since| at > since));
        ended && task.error_code == Some(ProblemCode::Interrupted)
    };
    let of_it = rows.into_iter().filter(is_new).filter_map(|task| {
        let work = Work::read(&task.request).ok()?;
        let about = work.about();
        let of = about.vm.map(|(_, name)| format!(" of {name}")).unwrap_or_default();
        (about.repository_id == Some(id)).then(|| (task.task_id, format!("{}{of}", work.kind())))
    });
    Ok(of_it.collect())
}

/// Points of the repository that are open for browsing although what read them has ended.
async fn ended_mounts(core: &Core, id: &RepositoryId) -> Result<Vec<(MountId, String)>> {
    let mut ended = Vec::new();
    for mount in core.mounts.all() {
        let (MountStatus::Failed, why) = mount.status() else { continue };
        match core.catalog.backups().get(&mount.point.backup_id).await {
            Ok(row) if row.repository_id != *id => {}
            Err(error) if error.kind() != catalog::Kind::NotFound => return Err(error).or_problem(),
            _ => ended.push((mount.id.clone(), why.unwrap_or_default())),
        }
    }
    Ok(ended)
}

/// Takes back the drafts of the plan and finishes what was begun. The second part of the answer is what a person wanted and is refused.
async fn mend(
    core: &Arc<Core>,
    id: &RepositoryId,
    repository: &Repository,
    repairs: &[Repair],
    doing: Doing,
) -> Result<(Report, Result<()>)> {
    let undo = repairs.iter().filter_map(|repair| match repair {
        Repair::UndoDraft(vm, draft) => Some((vm.clone(), draft.clone())),
        _ => None,
    });
    let planned = Planned { undo: undo.collect(), moving: moves::under_way(core, id).await? };
    let (mended, now) = (repository.clone(), core.now());
    let report = blocking(move || mended.recover(&planned, now)).await?.or_problem()?;
    tell(id, &report);
    let settled = moves::settle(core, id, repository, &report, doing).await;
    Ok((report, settled))
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

/// Takes the points of the plan into the catalog.
async fn take_in(
    core: &Core,
    row: &catalog::Repository,
    repository: &Repository,
    repairs: &[Repair],
    done: &mut BTreeSet<Repair>,
) -> Result<()> {
    let mut unknown: BTreeMap<&VmContextId, BTreeSet<&BackupId>> = BTreeMap::new();
    for repair in repairs {
        if let Repair::Adopt(vm, point) = repair {
            unknown.entry(vm).or_default().insert(point);
        }
    }
    for (vm, points) in unknown {
        let adopted = match adopt_machine(core, row, repository, vm, |point| points.contains(point)).await {
            Ok(adopted) => adopted,
            Err(problem) => {
                left(row, vm.as_str(), &problem)?;
                continue;
            }
        };
        for trouble in &adopted.problems {
            tracing::warn!(repository_id = %row.repository_id, vm_id = %vm, trouble, "take in a point");
        }
        for point in points {
            if core.catalog.backups().get(point).await.is_ok() {
                done.insert(Repair::Adopt(vm.clone(), point.clone()));
            }
        }
    }
    Ok(())
}

/// Writes down which points have become fulls, or have a copy of what they needed: the hub died, or the database was away, between that
/// and the catalog.
async fn rewrite(
    core: &Core,
    row: &catalog::Repository,
    repository: &Repository,
    repairs: &[Repair],
    done: &mut BTreeSet<Repair>,
) -> Result<()> {
    for repair in repairs {
        let Repair::Rewrite(vm, id) = repair else { continue };
        let written = async {
            let (manifest, hold) = merge::stored(repository, vm, id).await?;
            merge::write_down(core, row, &manifest, hold).await
        };
        match written.await {
            Ok(()) => _ = done.insert(repair.clone()),
            Err(problem) => left(row, id.as_str(), &problem)?,
        }
    }
    Ok(())
}

/// Passes over what could not be repaired: one point's trouble keeps nothing else from being put in order. Only a catalog that
/// does not answer ends the repair, for nothing else would come of it.
fn left(row: &catalog::Repository, subject: &str, problem: &Problem) -> Result<()> {
    if problem.code == ProblemCode::Busy {
        return Err(problem.clone());
    }
    tracing::warn!(repository_id = %row.repository_id, subject, error = %problem.message, details = %problem.details,
        "it stays out of order");
    Ok(())
}

/// Forgets completed rows whose point is gone. A row goes only when the repository was listed completely and its manifest,
/// looked for once more, is not there: what cannot be read is not gone. One on which a point stands that is still there stays,
/// because it says what that point lacks.
async fn forget_gone(
    core: &Core,
    row: &catalog::Repository,
    repository: &Repository,
    repairs: &[Repair],
    looked: &mut Looked,
) -> Result<()> {
    let candidates = repairs.iter().filter_map(|repair| match repair {
        Repair::ForgetRow(vm, point) => Some((point.clone(), vm.clone())),
        _ => None,
    });
    let candidates: Vec<(BackupId, VmContextId)> = candidates.collect();
    if candidates.is_empty() {
        return Ok(());
    }
    let reader = repository.clone();
    let gone = blocking(move || {
        let is_gone = |(point, vm): &(BackupId, VmContextId)| {
            matches!(reader.manifest(vm, point), Err(error) if error.kind == Kind::NotFound)
        };
        candidates.into_iter().filter(is_gone).collect::<BTreeMap<_, _>>()
    })
    .await?;
    // Asked after the look: a point that has moved lies in its new place before it is not here any more, and its row says so.
    let gone = still_of(core, row, gone).await?;
    let mut standing_on = BTreeMap::new();
    for id in gone.keys() {
        if let Err(problem) = merge::follow(core, row, repository, id, |child| gone.contains_key(child)).await {
            left(row, id.as_str(), &problem)?;
        }
        standing_on.insert(id.clone(), core.catalog.backups().children(id).await.or_problem()?);
    }
    let going = leaves_first(standing_on);
    for ids in going.chunks(FORGET_AT_ONCE) {
        match core.catalog.backups().delete(ids, core.now()).await {
            Ok(_) => {
                for id in ids {
                    tracing::warn!(backup_id = %id, "the point is not in its repository any more; its row is removed");
                    looked.done.insert(Repair::ForgetRow(gone[id].clone(), id.clone()));
                }
            }
            // A point has begun on one of them this moment; the next look sees it.
            Err(error) => left(row, &format!("{} rows", ids.len()), &crate::fault::of_catalog(&error))?,
        }
    }
    let stays: BTreeSet<&BackupId> = gone.keys().filter(|id| !going.contains(id)).collect();
    for finding in &mut looked.findings {
        if let Some(Repair::ForgetRow(_, id)) = &finding.repair
            && stays.contains(id)
        {
            finding.message.push_str("; a point that is still there stands on it, and cannot be read without it");
            finding.repair = None;
        }
    }
    Ok(())
}

/// Those of these points whose rows say that they lie in this repository.
async fn still_of(
    core: &Core,
    row: &catalog::Repository,
    points: BTreeMap<BackupId, VmContextId>,
) -> Result<BTreeMap<BackupId, VmContextId>> {
    let mut still = BTreeMap::new();
    for (id, vm) in points {
        match core.catalog.backups().get(&id).await {
            Ok(known) if known.repository_id == row.repository_id => _ = still.insert(id, vm),
            Ok(_) => {}
            Err(error) if error.kind() == catalog::Kind::NotFound => {}
            Err(error) => return Err(error).or_problem(),
        }
    }
    Ok(still)
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
