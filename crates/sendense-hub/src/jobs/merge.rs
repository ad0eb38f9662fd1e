//! Merging points into their successors, and making a point a full of its own.

use super::handle::Handle;
use super::lease;
use super::work::{MergeWork, VerifyWork};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_repo};
use crate::maintenance::Use;
use sendense_block::Cancel;
use sendense_catalog as catalog;
use sendense_catalog::TaskClaim;
use sendense_repo::merge::{Aim, Options, Way};
use sendense_repo::{Hold, Kind, Manifest, Repository};
use sendense_types::{BackupId, Problem, ProblemCode, VerifyState, VmContextId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Threads that move blocks: as few as keep a disk busy, for backups come first.
const THREADS: usize = 2;
/// How long the new files wait for readers and backups to end before they are given up and made again another time. A
/// mount or an export may last for days; a restore of most machines is done by then.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// How often what is verified aside is asked to make way while points are merged: as often as something to verify is looked for.
const MAKE_WAY_PERIOD: Duration = Duration::from_secs(10);

/// One step of a task.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    /// This point goes.
    Merge(&'a BackupId),
    /// This point stands on nothing any more.
    Full(&'a BackupId),
}

impl<'a> Step<'a> {
    fn of(self) -> &'a BackupId {
        match self {
            Self::Merge(id) | Self::Full(id) => id,
        }
    }
}

/// Merges each point of the list. What stands in the way of one of several is told, and the others are merged.
pub(crate) async fn run(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    claim: &TaskClaim,
    work: MergeWork,
) -> Result<serde_json::Value> {
    let row = core.catalog.repositories().get(&work.repository_id).await.or_problem()?;
    let repository = core.repositories.by_id(core, &work.repository_id, Use::Write).await?;
    let (mut merged, mut left) = (0_u64, 0_u64);
    let mut made_full = None;
    let steps: Vec<Step<'_>> =
        work.backup_ids.iter().map(Step::Merge).chain(work.full.as_ref().map(Step::Full)).collect();
    for step in &steps {
        let id = step.of();
        match whole(core, handle, claim, &work, (&row, &repository), *step).await {
            Ok(Aim::Full) => made_full = Some(id),
            Ok(Aim::Merge | Aim::Copy) => merged += 1,
            Err(Stopped { problem, is_of_this_point }) if is_of_this_point && steps.len() > 1 => {
                left += 1;
                handle.warn(format!("{id} stays as it is: {}: {}", problem.message, problem.details));
            }
            Err(Stopped { problem, .. }) => {
                if merged > 0 {
                    // Whoever stopped it is to know that it was not in vain.
                    let all = steps.len();
                    handle.warn(format!("it ends early: {merged} of {all} points were merged before, and stay so"));
                }
                return Err(problem);
            }
        }
    }
    let rest = if left > 0 { format!("; {left} stay for now") } else { String::new() };
    let summary = match made_full {
        Some(id) if merged == 0 => format!("{id} of {} was made a full{rest}", work.vm_name),
        Some(id) => format!("{merged} points of {} were merged, {id} was made a full{rest}", work.vm_name),
        None => format!("{merged} points of {} were merged into their successors{rest}", work.vm_name),
    };
    Ok(serde_json::json!({ "summary": summary, "merged": merged, "left": left, "full": made_full }))
}

/// One step to its end. Of several points that stand on one that goes each but the last gets a copy first; there are fewer with
/// each, so it ends.
async fn whole(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    claim: &TaskClaim,
    work: &MergeWork,
    (row, repository): (&catalog::Repository, &Repository),
    step: Step<'_>,
) -> Result<Aim, Stopped> {
    let id = step.of();
    if matches!(step, Step::Merge(_)) {
        // What an earlier try has copied may not be written down: then the catalog would refuse to forget the point.
        follow(core, row, repository, id, |_| false).await?;
    }
    loop {
        let (aim, manifest, hold) = one(core, handle, claim, work, repository, step).await?;
        let point = crate::reconcile::point(row, &manifest, hold);
        // Told first: it is so, whatever comes of the catalog or of the rest. Should the catalog be away, the next look at
        // the repository writes it down.
        let (successor, backups) = (&manifest.backup_id, core.catalog.backups());
        match aim {
            Aim::Merge => {
                handle.info(format!("{id} was merged into {successor}"));
                backups.merged(&point, id, core.now()).await.or_problem()?;
                return Ok(aim);
            }
            Aim::Copy => {
                handle.info(format!("{successor} has a copy of what it needed of {id}"));
                backups.took_over(&point, core.now()).await.or_problem()?;
            }
            Aim::Full => {
                handle.info(format!("{id} was made a full; a chain begins with it"));
                backups.became_full(&point, core.now()).await.or_problem()?;
                return Ok(aim);
            }
        }
    }
}

/// Why a point was not merged.
struct Stopped {
    problem: Problem,
    /// True when it says nothing of the other points.
    is_of_this_point: bool,
}

impl From<Problem> for Stopped {
    fn from(problem: Problem) -> Self {
        Self { problem, is_of_this_point: false }
    }
}

impl From<sendense_repo::Error> for Stopped {
    fn from(error: sendense_repo::Error) -> Self {
        let is_of_this_point =
            matches!(error.kind, Kind::Conflict { .. } | Kind::Held { .. } | Kind::Invalid | Kind::NotFound);
        Self { problem: of_repo(&error), is_of_this_point }
    }
}

async fn one(
    core: &Arc<Core>,
    handle: &Arc<Handle>,
    claim: &TaskClaim,
    work: &MergeWork,
    repository: &Repository,
    step: Step<'_>,
) -> Result<(Aim, Manifest, Hold), Stopped> {
    let id = step.of();
    let is_full = matches!(step, Step::Full(_));
    // Also one that is not served now, which claims nothing in the repository.
    if let Some((recovery_id, held)) = core.recoveries.holding(std::slice::from_ref(id)) {
        let details = format!("recovery {recovery_id} runs on {held}");
        let problem = Problem::new(ProblemCode::Conflict, "the point is in use", details);
        return Err(Stopped { problem, is_of_this_point: true });
    }
    // A verification that nobody asked for makes way, as for a deletion, also one that begins meanwhile: of a large point it takes
    // longer than a merge waits.
    let mut changed = vec![id.clone()];
    if !is_full {
        changed.extend(core.catalog.backups().children(id).await.or_problem()?);
    }
    let below = if is_full { core.catalog.backups().with_all_below(id).await } else { Ok(Vec::new()) };
    let read: BTreeSet<BackupId> = match below {
        Ok(below) => changed.iter().cloned().chain(below.into_iter().map(|point| point.backup_id)).collect(),
        // The repository knows whether it is there.
        Err(error) if error.kind() == catalog::Kind::NotFound => changed.iter().cloned().collect(),
        Err(error) => return Err(crate::fault::of_catalog(&error).into()),
    };
    let way = way(core, &read).await?;
    let pace = work.aside.then_some(core.limits.merge_bytes_per_second);
    let hub = core.clone();
    hub.running.make_way(&changed).await;
    let make_way = async {
        loop {
            tokio::time::sleep(MAKE_WAY_PERIOD).await;
            hub.running.make_way(&changed).await;
        }
    };
    // Each merge has a point of no return of its own.
    let cancel = Cancel::new();
    let asked = cancel.clone();
    let _hook = handle.cancel.on_cancel(move || asked.cancel());
    let (progress, who) = (handle.measure_verify(), handle.task_id.to_string());
    let of_core = core;
    let (core, repository, vm, id) = (core.clone(), repository.clone(), work.vm_context_id.clone(), id.clone());
    let (watched, claim, runtime) = (handle.clone(), claim.clone(), tokio::runtime::Handle::current());
    let looked_at = read.clone();
    let done = blocking(move || -> sendense_repo::Result<(Aim, Manifest, Hold)> {
        let plan = match is_full {
            true => repository.plan_full(&vm, &id)?,
            false => {
                let first = repository.plan_merge(&vm, &id, core.now())?.into_iter().next();
                first.ok_or_else(|| sendense_repo::Error::invalid(format!("there is nothing to do of {id}")))?
            }
        };
        let options = Options { threads: THREADS, who, patience: PATIENCE, way, humble: true, bytes_per_second: pace };
        let refuse = || {
            if runtime.block_on(lease::check(&core, &watched, &claim)).is_err() {
                return Err(sendense_repo::Error::new(Kind::Fenced, "another hub took the task over"));
            }
            refuse_recovered(&core, &id)?;
            // What was shared or copied unread may be what somebody found damaged meanwhile: the next try reads all of it.
            match runtime.block_on(self::way(&core, &looked_at)) {
                Ok(now) if now == way => Ok(()),
                Ok(_) => Err(refused("damage of the points became known while they were merged")),
                Err(problem) => {
                    let context = format!("what is known of the points cannot be looked at: {}", problem.message);
                    Err(sendense_repo::Error::new(Kind::Unavailable, context))
                }
            }
        };
        let manifest = repository.execute_merge(&plan, &options, &progress, &cancel, || core.now(), refuse)?;
        // A hold that cannot be read keeps its point all the same: the repository sees to that.
        let hold = repository.hold(&vm, &manifest.backup_id).unwrap_or_default();
        Ok((plan.aim, manifest, hold))
    });
    let done = tokio::select! {
        done = done => done?,
        never = make_way => never,
    };
    if matches!(&done, Err(error) if matches!(error.kind, Kind::Corrupt { .. })) {
        look_closer(of_core, handle, work, &read).await;
    }
    Ok(done?)
}

/// What of an image is shared or copied as it is, is not looked at block by block: not where damage is known of.
async fn way(core: &Core, read: &BTreeSet<BackupId>) -> Result<Way> {
    let ids: Vec<BackupId> = read.iter().cloned().collect();
    // Those that are not there: the repository knows.
    let points = core.catalog.backups().of_ids(&ids).await.or_problem()?;
    let is_sound =
        |point: &catalog::Backup| point.verification.as_ref().is_none_or(|found| found.state == VerifyState::Sound);
    Ok(if points.iter().all(is_sound) { Way::Fitting } else { Way::Rewrite })
}

/// A merge met damage: the points that it read are verified, so that what is damaged is marked, with all that needs it, and told.
async fn look_closer(core: &Arc<Core>, handle: &Arc<Handle>, work: &MergeWork, read: &BTreeSet<BackupId>) {
    for id in read {
        let verify = VerifyWork {
            backup_id: id.clone(),
            vm_context_id: work.vm_context_id.clone(),
            vm_name: work.vm_name.clone(),
            repository_id: work.repository_id.clone(),
            deep: true,
            own_files_only: true,
            aside: false,
        };
        if let Err(problem) = super::verify::run(core, handle, verify).await {
            handle.warn(format!("{id}: {}: {}", problem.message, problem.details));
        }
    }
}

/// A recovery may have begun since the points were looked at.
fn refuse_recovered(core: &Core, id: &BackupId) -> sendense_repo::Result<()> {
    match core.recoveries.holding(std::slice::from_ref(id)) {
        None => Ok(()),
        Some((recovery_id, _)) => Err(refused(format!("recovery {recovery_id} runs on {id}"))),
    }
}

/// Both points stay as they are.
fn refused(why: impl Into<String>) -> sendense_repo::Error {
    sendense_repo::Error::new(Kind::Conflict { holders: Vec::new() }, why.into())
}

/// Writes down what those points are now whose rows still build on a point that they do not stand on any more: the hub died, or the
/// database was away, between a merge and the catalog.
pub(crate) async fn follow(
    core: &Core,
    row: &catalog::Repository,
    repository: &Repository,
    going: &BackupId,
    is_gone: impl Fn(&BackupId) -> bool,
) -> Result<()> {
    for child in core.catalog.backups().children(going).await.or_problem()? {
        if is_gone(&child) {
            continue;
        }
        let vm = core.catalog.backups().get(&child).await.or_problem()?.vm_context_id;
        let (manifest, hold) = stored(repository, &vm, &child).await?;
        if manifest.parents().all(|parent| parent != going) {
            write_down(core, row, &manifest, hold).await?;
            tracing::info!(backup_id = %child, going = %going, "a merge was written down");
        }
    }
    Ok(())
}

/// What the repository says of a point.
pub(crate) async fn stored(repository: &Repository, vm: &VmContextId, id: &BackupId) -> Result<(Manifest, Hold)> {
    let (reader, vm, id) = (repository.clone(), vm.clone(), id.clone());
    let read = blocking(move || -> sendense_repo::Result<(Manifest, Hold)> {
        let manifest = reader.manifest(&vm, &id)?;
        // A hold that cannot be read keeps its point all the same: the repository sees to that.
        let hold = reader.hold(&vm, &id).unwrap_or_default();
        Ok((manifest, hold))
    });
    read.await?.or_problem()
}

/// Writes down what a point has become: a full, or one that has a copy of what it needed of others.
pub(crate) async fn write_down(core: &Core, row: &catalog::Repository, manifest: &Manifest, hold: Hold) -> Result<()> {
    let (backups, now) = (core.catalog.backups(), core.now());
    let point = crate::reconcile::point(row, manifest, hold);
    match manifest.parents().next() {
        None => backups.became_full(&point, now).await.or_problem(),
        Some(_) => backups.took_over(&point, now).await.or_problem(),
    }
}
