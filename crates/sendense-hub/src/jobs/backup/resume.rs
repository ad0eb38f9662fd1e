//! Going on with a node's backup that an earlier life of the hub has begun.
//!
//! ```text
//! repository open again -> draft from its marks -> node's calls are answered again -> (as every backup) seal -> publish
//! ```
//!
//! Invariant: the point is made of what was frozen at the beginning. Where the node does not hold that any more, or the draft
//! cannot be gone on with, the backup ends, and its draft is taken away.

use super::landing::DraftLanding;
use super::parents::{Found, Standing};
use super::{From, Prepared, assignment, conclude, facts, finish, look_after};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_mover, of_repo};
use crate::jobs::handle::{Handle, Stop};
use crate::jobs::runner::Done;
use crate::jobs::work::BackupWork;
use crate::maintenance::Use;
use crate::nodes::kept::Record;
use crate::nodes::resume::Resuming;
use crate::nodes::run as remote_run;
use sendense_catalog as catalog;
use sendense_catalog::{Lost, TaskClaim};
use sendense_node::mover::DiskStart;
use sendense_repo::{DiskSpec, DraftSpec, Kind, Manifest, Repository, Resumed};
use sendense_types::{BackupId, Phase, Problem, ProblemCode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two attempts to reach what a start has not opened yet, or holds for a moment.
const PAUSE: Duration = Duration::from_millis(200);

/// Goes on.
pub(super) async fn run(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    claim: &TaskClaim,
    work: BackupWork,
    resuming: Resuming,
) -> Result<Done> {
    handle.set_phase(Phase::Transferring);
    handle.info("the hub was restarted; the backup goes on from what is durable");
    // The node has let the machine go when it has heard nothing for so long.
    let until = Instant::now() + Duration::from_secs(core.limits.node_lease_seconds.into());
    let (repository, made) = go_on(core, handle, claim, &work, resuming, until).await?;
    if let (Some(repository), Err(_)) = (repository, &made)
        && !handle.is_paused()
    {
        discard(core, handle, &work, repository).await;
    }
    conclude(core, handle, work, made).await
}

/// The point, and the repository if it was reached. The node's order is over with the return of this, or the handle is paused.
async fn go_on(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    claim: &TaskClaim,
    work: &BackupWork,
    resuming: Resuming,
    until: Instant,
) -> Result<(Option<Repository>, Result<catalog::Completed>)> {
    let repository = match open(core, handle, work, until).await {
        Ok(repository) => repository,
        Err(problem) => return Ok((None, Err(outlives_hub(handle, problem)))),
    };
    let prepared = prepare(core, claim, work.clone(), repository.clone(), &resuming.record()).await;
    let made = match prepared {
        Ok((prepared, damaged)) => {
            let (worker, watched, runtime) = (core.clone(), handle.clone(), tokio::runtime::Handle::current());
            blocking(move || make(&worker, &watched, &prepared, &damaged, resuming, until, &runtime)).await?
        }
        Err(problem) => Err(outlives_hub(handle, problem)),
    };
    Ok((Some(repository), made))
}

/// The hub ends again before the backup goes on: the next life goes on with it, from where the first has left it. Whatever else
/// was wrong is found again then.
fn outlives_hub(handle: &Handle, problem: Problem) -> Problem {
    if handle.stopped() == Some(Stop::Shutdown) && handle.pause() {
        handle.info("the hub ends again; its next start goes on with the backup");
    }
    problem
}

/// The repository, which this start may not have opened yet.
async fn open(core: &Core, handle: &Handle, work: &BackupWork, until: Instant) -> Result<Repository> {
    loop {
        match core.repositories.by_id(core, &work.repository_id, Use::GoOn).await {
            Err(problem) if Instant::now() >= until || handle.cancel.is_cancelled() => return Err(problem),
            Err(_) => tokio::time::sleep(PAUSE).await,
            opened => return opened,
        }
    }
}

/// What is known of the machine without asking its node.
async fn prepare(
    core: &Core,
    claim: &TaskClaim,
    work: BackupWork,
    repository: Repository,
    record: &Record,
) -> Result<(Prepared, BTreeMap<BackupId, Lost>)> {
    let source_row = core.catalog.sources().get(&work.source_id).await.or_problem()?;
    let vm = core.catalog.vms().get(&work.vm_context_id).await.or_problem()?;
    let disk = |number| vm.disks.iter().find(|disk| disk.disk_id == number).cloned();
    let disks: Option<Vec<_>> = record.work.disks.iter().map(|ordered| disk(ordered.number)).collect();
    let disks = disks.ok_or_else(|| cannot("the machine has other disks now"))?;
    let remote =
        core.remote_source(&source_row)?.ok_or_else(|| cannot("its source is not bound to a node any more"))?;
    let damaged = core.catalog.backups().damaged(&work.vm_context_id, &work.repository_id).await.or_problem()?;
    let address = crate::app::sources::Settings::read(&source_row.config)?.address;
    let prepared = Prepared {
        vm,
        disks,
        partial: record.partial,
        address,
        expected_bytes: 0,
        source: From::Node(remote),
        repository,
        claim: claim.clone(),
        work,
    };
    Ok((prepared, damaged))
}

fn cannot(why: &str) -> Problem {
    Problem::new(ProblemCode::Interrupted, "interrupted: hub restarted", why)
}

fn make(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    prepared: &Prepared,
    damaged: &BTreeMap<BackupId, Lost>,
    resuming: Resuming,
    until: Instant,
    runtime: &tokio::runtime::Handle,
) -> Result<catalog::Completed> {
    let record = resuming.record();
    let From::Node(remote) = &prepared.source else { return Err(cannot("its source is not bound to a node any more")) };
    let standings = record.work.disks.iter().map(|ordered| {
        let found = |backup_id: &BackupId| Found { backup_id: backup_id.clone(), token: None, capacity_bytes: 0 };
        Standing { parent: ordered.parent.as_ref().map(found), reason: ordered.reason.clone() }
    });
    let standings: Vec<_> = standings.collect();
    let found = resume(core, handle, prepared, &record, until).map_err(|problem| outlives_hub(handle, problem))?;
    let Resumed { draft, notes } = match found {
        Left::Draft(resumed) => resumed,
        Left::Point(manifest) => {
            handle.info(format!("it was published as {} before the hub was restarted", manifest.backup_id));
            return Ok(facts::completed(&manifest));
        }
    };
    let recall = draft.recall();
    handle.on_abandon(move |handle| {
        if let Err(error) = recall.take_back() {
            handle.warn(format!("the draft could not be removed; the next start will: {error}"));
        }
    });
    let planned = record.disks.iter().map(|begun| {
        facts::planned(&DiskStart {
            number: begun.number,
            disk: &begun.disk,
            reader: None,
            backup_type: begun.backup_type,
            parent: record.work.disks.iter().find(|ordered| ordered.number == begun.number).and_then(|ordered| {
                ordered.parent.as_ref().filter(|_| begun.backup_type == sendense_types::BackupType::Incremental)
            }),
            type_reason: begun.type_reason.as_deref(),
            read: sendense_block::ByteLen(begun.read),
            audit: begun.audit,
        })
    });
    let state = (planned.collect(), record.frozen_at);
    let landing = DraftLanding::again(core, handle, prepared, draft, runtime, state);
    let ready = assignment(core, handle, prepared, &standings, damaged)
        .and_then(|assignment| landing.with_draft(|draft| remote_run::go_on(&resuming, &assignment, (draft, &notes))))
        .map_err(|problem| outlives_hub(handle, problem));
    let moved = ready.and_then(|bytes| {
        handle.info(format!("{bytes} bytes are durable and are not sent again"));
        let lease_seconds = core.limits.node_lease_seconds;
        let moved = remote_run::conduct_again(remote, &resuming, &landing, handle, lease_seconds);
        moved.map_err(|error| of_mover(&error))
    });
    look_after(handle, prepared, &landing, &moved);
    let (draft, frozen_at) = landing.into_draft();
    finish(core, handle, prepared, draft, frozen_at, moved)
}

/// What the earlier life of the hub has left.
enum Left {
    Draft(Resumed),
    /// The hub ended between the publication and its row.
    Point(Box<Manifest>),
}

/// The draft, which start-up may be looking at in this moment.
fn resume(core: &Core, handle: &Handle, prepared: &Prepared, record: &Record, until: Instant) -> Result<Left> {
    let (work, repository) = (&prepared.work, &prepared.repository);
    let spec = DraftSpec {
        backup_id: work.backup_id.clone(),
        vm_context_id: work.vm_context_id.clone(),
        parents: record.work.disks.iter().filter_map(|ordered| ordered.parent.clone()).collect(),
        expected_bytes: 0,
        who: handle.task_id.as_str().to_owned(),
    };
    let disks = record.disks.iter().map(|begun| DiskSpec {
        number: begun.number,
        binding: begun.disk.binding.clone(),
        capacity: begun.disk.capacity,
        parent: record.work.disks.iter().find(|ordered| ordered.number == begun.number).and_then(|ordered| {
            ordered.parent.clone().filter(|_| begun.backup_type == sendense_types::BackupType::Incremental)
        }),
    });
    let disks: Vec<_> = disks.collect();
    let go_on = || match repository.resume_draft(spec.clone(), disks.clone(), core.now()) {
        // It was being published. What is not a point yet will not be one.
        Err(error) if error.kind == Kind::Exists => {
            let (vm, backup) = (&work.vm_context_id, &work.backup_id);
            repository.discard_draft(vm, backup, core.now())?;
            match repository.manifest(vm, backup) {
                Ok(manifest) => Ok(Left::Point(Box::new(manifest))),
                Err(missing) if missing.kind == Kind::NotFound => Err(error),
                Err(unreadable) => Err(unreadable),
            }
        }
        resumed => resumed.map(Left::Draft),
    };
    loop {
        match go_on() {
            Err(error)
                if matches!(error.kind, Kind::Conflict { .. })
                    && Instant::now() < until
                    && !handle.cancel.is_cancelled() =>
            {
                std::thread::sleep(PAUSE);
            }
            Err(error) if error.kind == Kind::Exists => return Err(cannot(&error.to_string())),
            left => return left.map_err(|error| of_repo(&error)),
        }
    }
}

/// Takes away the draft of a backup that could not be gone on with. One that was gone on with is gone already.
async fn discard(core: &Arc<Core>, handle: &Handle, work: &BackupWork, repository: Repository) {
    let (vm, backup, now) = (work.vm_context_id.clone(), work.backup_id.clone(), core.now());
    let discarded = blocking(move || repository.discard_draft(&vm, &backup, now)).await;
    if let Ok(Err(error)) = discarded {
        handle.warn(format!("the draft could not be removed; the next start will: {error}"));
    }
}
