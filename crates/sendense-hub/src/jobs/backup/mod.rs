//! Backing up one machine, from its inspection to the published point.
//!
//! ```text
//! inspect -> numbers of disks -> parents (from manifests) -> draft -> mover -> seal -> publish -> retire (-> catalog)
//! ```
//!
//! What lives here: the order. [`parents`] decides what each disk stands on, [`landing`] takes the blocks in, [`facts`]
//! says what the manifest and the catalog are told, [`retire`] removes tracking marks, [`resume`] goes on with what an earlier life
//! of the hub has begun. What does not: how disks are read
//! and compared (the mover), and the end in the catalog (the runner).
//!
//! Invariant: whatever fails, the draft is given up, the source is let go, and the row says why; a point exists exactly
//! when its manifest does.

mod facts;
pub(crate) use facts::completed;
mod landing;
mod parents;
mod resume;
mod retire;

use super::damage;
use super::handle::Handle;
use super::lease;
use super::runner::Done;
use super::work::BackupWork;
use crate::app::create::choose_disks;
use crate::app::sources::refresh;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_mover, of_repo};
use crate::hooks;
use crate::maintenance::Use;
use crate::nodes::kept::Keeper;
use crate::nodes::resume::Resuming;
use crate::nodes::run as remote_run;
use crate::nodes::source::RemoteSource;
use crate::recoveries::commit::{self, Commit};
use landing::DraftLanding;
use parents::Standing;
use sendense_block::copy::{SAMPLE_BLOCKS_MIN, Sampling};
use sendense_catalog as catalog;
use sendense_catalog::TaskClaim;
use sendense_node::mover::{self, Assignment, DiskAssignment, PARALLEL_DISKS_DEFAULT};
use sendense_repo::{DraftSpec, Repository};
use sendense_source::{DiskRequest, FreezeRequest, Source, VmRef};
use sendense_types::{Phase, Problem, ProblemCode, RecoveryId};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

/// What a first full is promised before its size is known: one step of the repository's own growing.
const FIRST_FULL_BYTES: u64 = 64 << 20;

/// Everything that is known before the machine is frozen.
struct Prepared {
    work: BackupWork,
    vm: catalog::VmContext,
    disks: Vec<catalog::VmDisk>,
    partial: bool,
    address: String,
    expected_bytes: u64,
    source: From,
    repository: Repository,
    claim: TaskClaim,
}

/// Where a machine is frozen and read.
enum From {
    /// In this process.
    Here(Arc<dyn Source>),
    /// By a node.
    Node(RemoteSource),
}

/// Makes the backup.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, claim: &TaskClaim, work: BackupWork) -> Result<Done> {
    if let Some(resuming) = Resuming::take(&core.nodes, handle) {
        return resume::run(core, handle, claim, work, resuming).await;
    }
    handle.set_phase(Phase::Snapshot);
    core.catalog.backups().start(claim, core.now()).await.or_problem()?;
    let Some(recovery_id) = work.recovery_id.clone() else {
        hooks::before(core, handle, &work).await?;
        let prepared = prepare(core, handle, claim, work).await?;
        return copy(core, handle, prepared).await;
    };
    let point = core.recoveries.find(recovery_id.as_str())?.record().backup_id;
    let made = commit_now(core, handle, claim, work, &recovery_id).await;
    damage::look_closer_after(core, handle, &point, &made).await;
    made
}

/// Makes what was written to a recovery the next point.
async fn commit_now(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    claim: &TaskClaim,
    work: BackupWork,
    recovery_id: &RecoveryId,
) -> Result<Done> {
    let commit = commit::begin(core, recovery_id, &work.backup_id).await?;
    let made = match prepare_commit(core, handle, claim, work, &commit).await {
        Ok(prepared) => copy(core, handle, prepared).await,
        Err(problem) => Err(problem),
    };
    let made = made.map_err(|problem| commit.told(problem));
    commit::end(core, commit, made.is_ok()).await;
    made
}

/// Copies, publishes, and removes what is not needed any more.
async fn copy(core: &Arc<Core>, handle: &Arc<Handle>, prepared: Prepared) -> Result<Done> {
    let newest = newest_points(core, &prepared).await?;
    let damaged = match &prepared.work.recovery_id {
        None => {
            let (vm, repository) = (&prepared.work.vm_context_id, &prepared.work.repository_id);
            core.catalog.backups().damaged(vm, repository).await.or_problem()?
        }
        // It is read over the very point that has lost them: only the machine itself can give lost blocks back.
        Some(_) => BTreeMap::new(),
    };
    let (worker, watched, work) = (core.clone(), handle.clone(), prepared.work.clone());
    let runtime = tokio::runtime::Handle::current();
    let made = blocking(move || make(&worker, &watched, &prepared, &newest, &damaged, &runtime)).await?;
    conclude(core, handle, work, made).await
}

/// What is done after a backup, whatever came of it.
async fn conclude(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    work: BackupWork,
    made: Result<catalog::Completed>,
) -> Result<Done> {
    if !handle.is_paused() {
        core.nodes.transfers.forget(&handle.task_id);
    }
    // A backup that was stopped ends at once, and may not hold its machine any more. The next one's turn does for both.
    if handle.stopped().is_none() && work.recovery_id.is_none() {
        retire::retire(core, handle, &work, made.as_ref().ok()).await;
    }
    made.map(|done| Done::Backup(Box::new(done)))
}

async fn prepare(core: &Arc<Core>, handle: &Handle, claim: &TaskClaim, work: BackupWork) -> Result<Prepared> {
    let source_row = core.catalog.sources().get(&work.source_id).await.or_problem()?;
    let repository = core.repositories.by_id(core, &work.repository_id, Use::Write).await?;
    let known = core.catalog.vms().get(&work.vm_context_id).await.or_problem()?;
    let (_, vm) = refresh(core, &source_row, &known, &handle.cancel).await?;
    let (disks, partial) = choose_disks(&vm, work.disk_id, &work.exclude_disks)?;
    handle.info(format!(
        "{} of {} disks are backed up",
        disks.len(),
        vm.disks.iter().filter(|disk| disk.present).count()
    ));
    let address = crate::app::sources::Settings::read(&source_row.config)?.address;
    let expected_bytes = expected_bytes(core, &work).await?;
    let source = match core.remote_source(&source_row)? {
        Some(remote) => From::Node(remote),
        None => From::Here(core.open_source(&source_row)?),
    };
    let claim = claim.clone();
    let prepared = Prepared { work, vm, disks, partial, address, expected_bytes, source, repository, claim };
    facts::left_out(&prepared).into_iter().for_each(|line| handle.warn(line));
    Ok(prepared)
}

/// The same for what a recovery has written: the machine itself, which may be gone, is not asked.
async fn prepare_commit(
    core: &Arc<Core>,
    handle: &Handle,
    claim: &TaskClaim,
    work: BackupWork,
    commit: &Commit,
) -> Result<Prepared> {
    let repository = core.repositories.by_id(core, &work.repository_id, Use::Write).await?;
    let vm = core.catalog.vms().get(&work.vm_context_id).await.or_problem()?;
    let disk = |number| vm.disks.iter().find(|disk| disk.disk_id == number).cloned();
    let disks: Option<Vec<_>> = commit.disks().map(disk).collect();
    let disks = disks.ok_or_else(|| {
        let details = format!("{} has a disk that the catalog does not know", commit.parent);
        Problem::new(ProblemCode::DiskNotFound, "disk not found", details)
    })?;
    let (partial, address) = (commit.manifest.partial, commit.manifest.vm.source.clone());
    let prepared = Prepared {
        work,
        vm,
        disks,
        partial,
        address,
        expected_bytes: 0,
        source: From::Here(commit.source()),
        repository,
        claim: claim.clone(),
    };
    // Looked at when it was asked for, and since then a backup may have been made; from here on none can.
    for newest in newest_points(core, &prepared).await? {
        if newest.as_ref() != Some(&commit.parent) {
            return Err(commit::not_newest(&commit.parent, newest.as_ref()));
        }
    }
    handle.info(format!("what was written over {} is committed, {} disks", commit.parent, prepared.disks.len()));
    Ok(prepared)
}

/// What the point may become: the last full's size for a full, one step for an incremental. The promise grows as blocks
/// come; this is only what must be free before the machine is frozen at all.
async fn expected_bytes(core: &Core, work: &BackupWork) -> Result<u64> {
    if work.backup_type == sendense_types::BackupType::Incremental {
        return Ok(0);
    }
    let fulls = catalog::BackupFilter {
        vm_context_id: Some(work.vm_context_id.clone()),
        repository_id: Some(work.repository_id.clone()),
        status: Some(sendense_types::BackupStatus::Completed),
        backup_type: Some(sendense_types::BackupType::Full),
        ..Default::default()
    };
    let one = catalog::Page { limit: 1, offset: 0 };
    let (rows, _) = core.catalog.backups().list(&fulls, one).await.or_problem()?;
    Ok(rows.first().map_or(FIRST_FULL_BYTES, |full| full.bytes_stored))
}

/// The newest point of each disk, as the catalog knows it; what it says is looked up in the manifest before it is used.
async fn newest_points(core: &Core, prepared: &Prepared) -> Result<Vec<Option<sendense_types::BackupId>>> {
    let mut newest = Vec::with_capacity(prepared.disks.len());
    for disk in &prepared.disks {
        let (vm, repository) = (&prepared.work.vm_context_id, &prepared.work.repository_id);
        let point = core.catalog.backups().newest_completed(vm, repository, disk.disk_id).await.or_problem()?;
        newest.push(point.map(|point| point.backup_id));
    }
    Ok(newest)
}

/// The blocking part, on a thread of its own.
fn make(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    prepared: &Prepared,
    newest: &[Option<sendense_types::BackupId>],
    damaged: &BTreeMap<sendense_types::BackupId, catalog::Lost>,
    runtime: &tokio::runtime::Handle,
) -> Result<catalog::Completed> {
    let (work, repository, who) = (&prepared.work, &prepared.repository, handle.task_id.as_str());
    let standings = parents::decide(work, repository, &prepared.disks, newest).map_err(|error| of_repo(&error))?;
    let spec = DraftSpec {
        backup_id: work.backup_id.clone(),
        vm_context_id: work.vm_context_id.clone(),
        parents: standings.iter().filter_map(|standing| Some(standing.parent.as_ref()?.backup_id.clone())).collect(),
        expected_bytes: prepared.expected_bytes,
        who: who.to_owned(),
    };
    let draft = repository.begin_draft(spec, core.now()).map_err(|error| of_repo(&error))?;
    let recall = draft.recall();
    handle.on_abandon(move |handle| {
        if let Err(error) = recall.take_back() {
            handle.warn(format!("the draft could not be removed; the next start will: {error}"));
        }
    });
    let landing = DraftLanding::new(core, handle, prepared, draft, runtime);
    // What was found out before may have taken so long that nobody waits for it any more.
    let go_on = handle.cancel.check().map_err(|error| crate::fault::of_block("begin the backup", &error));
    let moved = go_on.and_then(|()| assignment(core, handle, prepared, &standings, damaged)).and_then(|assignment| {
        let (journal, budget) = (&core.journal, &core.budget);
        let moved = match &prepared.source {
            From::Here(source) => {
                mover::run(&assignment, &**source, &landing, journal, budget, &handle.progress, &handle.cancel)
            }
            From::Node(remote) => {
                let (book, node) = (core.nodes.transfers.book.clone(), remote.node().to_owned());
                let (task_id, now) = (handle.task_id.clone(), core.now());
                let keep = |order: &_| Keeper::new(book, task_id, node, Clone::clone(order), prepared.partial, now);
                remote_run::backup(remote, &assignment, &landing, handle, core.limits.node_lease_seconds, keep)
            }
        };
        moved.map_err(|error| of_mover(&error))
    });
    look_after(handle, prepared, &landing, &moved);
    let (draft, frozen_at) = landing.into_draft();
    finish(core, handle, prepared, draft, frozen_at, moved)
}

/// What a node could not take away is in the node's own journal. A backup that failed there, or of which it had something to say, is
/// reason to see what is left.
fn look_after(handle: &Handle, prepared: &Prepared, landing: &DraftLanding<'_>, moved: &Result<mover::Outcome>) {
    if matches!(prepared.source, From::Node(_)) && (moved.is_err() || landing.was_noted()) {
        handle.look_after(prepared.work.source_id.clone());
    }
}

/// Publishes what was moved, or gives the draft up.
fn finish(
    core: &Core,
    handle: &Handle,
    prepared: &Prepared,
    draft: sendense_repo::Draft,
    frozen_at: sendense_types::Timestamp,
    moved: Result<mover::Outcome>,
) -> Result<catalog::Completed> {
    let abandon = |draft: sendense_repo::Draft| {
        if let Err(error) = draft.abandon() {
            handle.warn(format!("the draft could not be removed; the next start will: {error}"));
        }
    };
    let outcome = match moved {
        Ok(outcome) => outcome,
        // Its files stay for the next life of the hub.
        Err(problem) if handle.is_paused() => return Err(problem),
        Err(problem) => {
            abandon(draft);
            return Err(problem);
        }
    };
    handle.set_phase(Phase::Finalizing);
    if let Err(error) = handle.cancel.check() {
        abandon(draft);
        return Err(crate::fault::of_block("finish the backup", &error));
    }
    let sealed = draft.seal().map_err(|error| of_repo(&error))?;
    // The last moment at which a person can change the mind, or another hub's word counts: publication is not taken back.
    let ours = tokio::runtime::Handle::current().block_on(lease::check(core, handle, &prepared.claim));
    let go_on =
        ours.and_then(|()| handle.cancel.commit().map_err(|error| crate::fault::of_block("finish the backup", &error)));
    if let Err(problem) = go_on {
        if let Err(error) = sealed.abandon() {
            handle.warn(format!("the draft could not be removed; the next start will: {error}"));
        }
        return Err(problem);
    }
    let facts = facts::of_point(prepared, &outcome, frozen_at);
    facts.notes.iter().for_each(|note| handle.warn(note.as_str()));
    let manifest = sealed.publish(facts, core.now()).map_err(|error| of_repo(&error))?;
    handle.info(format!("published as {}", manifest.backup_id));
    crate::metrics::backup_bytes(handle.progress.snapshot().done.0, manifest.file_bytes());
    Ok(facts::completed(&manifest))
}

fn assignment(
    core: &Core,
    handle: &Handle,
    prepared: &Prepared,
    standings: &[Standing],
    damaged: &BTreeMap<sendense_types::BackupId, catalog::Lost>,
) -> Result<Assignment> {
    let work = &prepared.work;
    let mut requests = Vec::with_capacity(prepared.disks.len());
    let mut disks = Vec::with_capacity(prepared.disks.len());
    for (disk, standing) in prepared.disks.iter().zip(standings) {
        requests.push(DiskRequest {
            key: disk.disk_key.clone(),
            binding: disk.binding.clone(),
            since: standing.parent.as_ref().and_then(|parent| parent.token.clone()),
            since_capacity: standing.parent.as_ref().map(|parent| parent.capacity_bytes),
        });
        let parentage = standing.parentage(&prepared.repository, &work.vm_context_id, disk.disk_id, damaged, handle)?;
        disks.push(DiskAssignment { number: disk.disk_id, key: disk.disk_key.clone(), parentage });
    }
    let freeze = FreezeRequest {
        vm: VmRef { instance_uuid: prepared.vm.instance_uuid.clone(), name: prepared.vm.vm_name.to_string() },
        disks: requests,
        quiesce: work.quiesce,
        quiesce_or_fail: work.quiesce_or_fail,
        deployment_id: core.deployment_id.clone(),
        task_id: handle.task_id.clone(),
    };
    Ok(Assignment {
        freeze,
        disks,
        level: crate::app::level(work.compression),
        on_tracking_loss: work.on_tracking_loss,
        parallel_disks: PARALLEL_DISKS_DEFAULT,
        audit: sampling(core.limits.audit_per_million),
        bytes_per_second_max: work.bytes_per_second_max,
    })
}

/// Other blocks at each backup: what one misses the next may find.
fn sampling(per_million: u32) -> Sampling {
    match per_million {
        0 => Sampling::NONE,
        per_million => {
            Sampling { per_million, blocks_min: SAMPLE_BLOCKS_MIN, seed: RandomState::new().build_hasher().finish() }
        }
    }
}
