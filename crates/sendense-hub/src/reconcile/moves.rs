//! Moves that were cut off and that no task goes on with: settled as the two repositories say.
//!
//! Invariant: nothing is decided here. The target goes forward with what has come to it; the source is told by the target, for which
//! both must be this hub's. A catalog that was made anew knows both by other names, and may know one of them only later: so one that is
//! not found is waited for until a person says that it is lost. One that is in the catalog and cannot be reached may be back tomorrow,
//! whatever anybody says.

use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_repo};
use crate::jobs::moving::Books;
use crate::jobs::work::Work;
use crate::maintenance::Use;
use crate::reconcile::points::Doing;
use sendense_catalog as catalog;
use sendense_repo::Repository;
use sendense_repo::moving::Ends;
use sendense_repo::recover::Report;
use sendense_types::{Problem, ProblemCode, RepositoryId, TaskKind, TaskState, VmContextId};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::runtime::Handle as Runtime;

/// Who settles, for those who meet it.
const WHO: &str = "settle a move";

/// The machines whose points a task moves from or to a repository, or will.
pub(crate) async fn under_way(core: &Core, id: &RepositoryId) -> Result<BTreeSet<VmContextId>> {
    let mut vms = BTreeSet::new();
    for state in [TaskState::Pending, TaskState::Running] {
        let filter =
            catalog::TaskFilter { kind: Some(TaskKind::Move), state: Some(state), ..catalog::TaskFilter::default() };
        let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
        let (rows, _) = core.catalog.tasks().list(&filter, page).await.or_problem()?;
        for work in rows.iter().filter_map(|row| Work::read(&row.request).ok()) {
            if let Work::Move(work) = &work
                && [&work.repository_id, &work.to_repository_id].contains(&id)
            {
                vms.insert(work.vm_context_id.clone());
            }
        }
    }
    Ok(vms)
}

/// Settles what a look at a repository has met. What cannot be settled now is logged, and met again by the next look.
///
/// # Errors
/// A person wants moves to be given up, and that is refused.
pub(super) async fn settle(
    core: &Arc<Core>,
    id: &RepositoryId,
    repository: &Repository,
    report: &Report,
    doing: Doing,
) -> Result<()> {
    let mut refused = Ok(());
    for vm in &report.unmoved {
        tracing::info!(repository_id = %id, vm_id = %vm, "copies of a move that was cut off removed");
    }
    let tell = |vm: &VmContextId, problem: &Problem| {
        tracing::warn!(repository_id = %id, vm_id = %vm, error = %problem.message, details = %problem.details,
            "a move that was cut off is not settled yet");
    };
    for (vm, _) in &report.arriving {
        let (target, of, books) = (repository.clone(), vm.clone(), books(core, vm, id));
        match blocking(move || target.finish_arrival(&of, &books)).await.and_then(|done| done.or_problem()) {
            Ok(_) => tracing::info!(repository_id = %id, vm_id = %vm, "points have arrived by a move that was cut off"),
            Err(problem) => tell(vm, &problem),
        }
    }
    let came = report.arriving.iter().chain(&report.arrived).map(|(vm, from)| (vm, from.clone(), id.to_string()));
    let left = report.leaving.iter().map(|(vm, to)| (vm, id.to_string(), to.clone()));
    for (vm, from, to) in came.chain(left) {
        match both(core, vm, &from, &to, doing).await {
            Ok(()) => tracing::info!(vm_id = %vm, from, to, "a move that was cut off is settled"),
            Err(problem) => {
                tell(vm, &problem);
                if doing == Doing::Forget {
                    refused = refused.and(Err(not_lost(problem)));
                }
            }
        }
    }
    refused
}

fn books(core: &Arc<Core>, vm: &VmContextId, to: &RepositoryId) -> Books {
    Books { core: core.clone(), runtime: Runtime::current(), vm: vm.clone(), to: to.clone(), task: None }
}

/// Lets the two agree.
async fn both(core: &Arc<Core>, vm: &VmContextId, from: &str, to: &str, doing: Doing) -> Result<()> {
    let (mut source, mut target) = (known(core, from).await?, known(core, to).await?);
    match (&source, &target) {
        (Some(here), None) => target = other_end(core, vm, here, true).await?,
        (None, Some(here)) => source = other_end(core, vm, here, false).await?,
        _ => {}
    }
    let lacking = match (&source, &target) {
        (Some(_), None) => to,
        (None, Some(_)) => from,
        _ => "",
    };
    if !lacking.is_empty() && doing != Doing::Forget {
        let details = format!("{lacking} is not in the catalog: add it, or say that it is lost with forget_moves");
        return Err(Problem::new(ProblemCode::Conflict, "the other repository of a move is not known", details));
    }
    let (of, now) = (vm.clone(), core.now());
    match (source, target) {
        (Some((_, source)), Some((to_id, target))) => {
            let ends = Ends { from: from.to_owned(), to: to.to_owned(), who: WHO.to_owned() };
            let books = books(core, vm, &to_id);
            let settled = blocking(move || source.finish_move(&of, &target, &ends, &books)).await?;
            settled.map(drop).map_err(|error| of_repo(&error))
        }
        (None, Some((_, target))) => blocking(move || target.forget_arrival(&of, now)).await?.map(drop).or_problem(),
        (Some((_, source)), None) => blocking(move || source.forget_departure(&of, now)).await?.map(drop).or_problem(),
        (None, None) => Ok(()),
    }
}

/// The other end of a move by what it says: a catalog that was made anew knows both repositories by other names than the move does. While
/// one of them cannot be looked at nobody knows.
async fn other_end(
    core: &Arc<Core>,
    vm: &VmContextId,
    here: &(RepositoryId, Repository),
    is_source: bool,
) -> Result<Option<(RepositoryId, Repository)>> {
    let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
    let (rows, _) = core.catalog.repositories().list(page).await.or_problem()?;
    for row in rows.into_iter().filter(|row| row.repository_id != here.0) {
        let other = open(core, &row).await?;
        let (of, this, that) = (vm.clone(), here.1.clone(), other.clone());
        let is_it =
            blocking(move || if is_source { this.has_moved_to(&of, &that) } else { that.has_moved_to(&of, &this) });
        if is_it.await?.or_problem()? {
            return Ok(Some((row.repository_id, other)));
        }
    }
    Ok(None)
}

/// A repository by the name that it has in a move; none when the catalog knows none of that name.
async fn known(core: &Arc<Core>, name: &str) -> Result<Option<(RepositoryId, Repository)>> {
    let Ok(id) = name.parse::<RepositoryId>() else { return Ok(None) };
    match core.catalog.repositories().get(&id).await {
        Err(error) if error.kind() == catalog::Kind::NotFound => Ok(None),
        found => Ok(Some((id, open(core, &found.or_problem()?).await?))),
    }
}

/// A repository that may be one end of a move.
async fn open(core: &Arc<Core>, row: &catalog::Repository) -> Result<Repository> {
    let opened = core.repositories.by_id(core, &row.repository_id, Use::GoOn).await;
    opened.map_err(|problem| Problem { message: format!("repository {}: {}", row.name, problem.message), ..problem })
}

/// What is in the catalog is not lost, however far away it is now.
fn not_lost(problem: Problem) -> Problem {
    if problem.code != ProblemCode::RepositoryUnavailable {
        return problem;
    }
    let details = format!(
        "{}; it may have the points: bring it back, so that the move is settled, or, where it is lost for good, remove it from the catalog \
         first (repo delete --lost)",
        problem.details
    );
    Problem { details, ..problem }
}
