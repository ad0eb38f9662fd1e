//! Verifies what nobody has looked at for long, what is due for the longest first, one point at a time and beside everything else.
//!
//! A point is due a day after it was made, and then whenever its last look is as old as its rule says. Only its own files are read:
//! what it stands on has its own turns. A point that took over the bytes of another one in a merge is due when the older ones of its
//! bytes are, so that each byte is read about once in the time of the rule, whatever retention leaves of the points that it was in.
//!
//! Invariant: one runs at a time in this hub. It takes no task's place, waits for none (a hub that is never idle would prove nothing),
//! keeps to its pace, and makes way for a deletion and a merge. A point that could not be verified is passed over for a day, so that
//! it does not stand before all others. A machine's look that came to nothing lets the other machines' points go before its own for a
//! day: of one whose points are merged or deleted sooner than they can be read there is always a new one, which is due at once.

use crate::app::{App, Caller, in_force};
use crate::config::Limits;
use crate::fault::{OrProblem, Result};
use crate::jobs::work::Work;
use crate::maintenance::{Use, allows};
use crate::repositories::Standing;
use sendense_api::{PolicyRules, PolicyVerification, Role};
use sendense_catalog::{Backup, Catalog, Due, Kind, MadeBy, Page, Policy, TaskFilter, Unproved};
use sendense_types::{
    BackupId, PolicyId, ProblemCode, RepositoryId, TaskKind, TaskState, Timestamp, VerifyDepth, VmContextId,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Between two looks: a few small queries, and two points follow each other soon enough.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
const DAY_SECONDS: i64 = 86_400;
/// Points that are looked for in a repository: those of them that were tried within the day are passed over. Where all were, more are
/// looked for.
const CANDIDATES: u64 = 100;
/// Points that are known to have been tried; more than a hub can try in a day with one look in ten seconds are not needed.
const TRIED_MAX: usize = 8640;

/// So many looks lie between two times that points are settled which a hub of an earlier release made: an hour, and none is due before
/// a day is over.
const LOOKS_PER_SETTLING: u32 = 360;

/// What became of former looks.
#[derive(Default)]
pub(crate) struct Tried {
    /// Points of the last day's.
    points: HashMap<BackupId, Timestamp>,
    /// Machines whose last look came to nothing within the day.
    in_vain: HashMap<VmContextId, Timestamp>,
    /// The one that was begun last, and when.
    begun: Option<(BackupId, VmContextId, Timestamp)>,
}

impl Tried {
    fn forget_before_a_day(&mut self, now: Timestamp) {
        let is_of_the_day = |at: &Timestamp| now.seconds_since(*at).abs() < DAY_SECONDS as f64;
        self.points.retain(|_, at| is_of_the_day(at));
        self.in_vain.retain(|_, at| is_of_the_day(at));
    }

    /// Notes what became of the last one, which has ended.
    async fn settle(&mut self, app: &App, now: Timestamp) -> Result<()> {
        let Some((point, vm, begun)) = &self.begun else { return Ok(()) };
        let is_kept = match app.core.catalog.backups().get(point).await {
            Ok(row) => row.verification.is_some_and(|found| found.at >= *begun),
            Err(error) if error.kind() == Kind::NotFound => false,
            Err(error) => return Err(error).or_problem(),
        };
        if is_kept {
            self.in_vain.remove(vm);
        } else {
            self.in_vain.insert(vm.clone(), now);
        }
        self.begun = None;
        Ok(())
    }
}

/// Looks until the hub stops.
pub(crate) async fn keep(app: App) {
    let mut rounds = app.core.rounds(LOOK_PERIOD);
    let mut tried = Tried::default();
    let mut looks = 0_u32;
    while rounds.next().await {
        if looks.is_multiple_of(LOOKS_PER_SETTLING)
            && let Err(problem) = settle(&app).await
        {
            tracing::warn!(error = %problem.message, details = %problem.details, "let points wait for their first look");
        }
        looks = looks.wrapping_add(1);
        if let Err(problem) = look(&app, &mut tried).await {
            tracing::warn!(error = %problem.message, details = %problem.details, "look for points to verify");
        }
    }
}

/// Lets the points of all repositories wait that a hub of an earlier release made.
async fn settle(app: &App) -> Result<()> {
    let all = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let (repositories, _) = app.core.catalog.repositories().list(all).await.or_problem()?;
    for repository in repositories {
        let settled = app.core.catalog.backups().settle_waiting(&repository.repository_id).await.or_problem()?;
        if settled > 0 {
            tracing::info!(repository_id = %repository.repository_id, settled, "points of an earlier release wait for their first look");
        }
    }
    Ok(())
}

/// How often some points are looked at.
pub(crate) struct Rule<'a> {
    pub whose: MadeBy<'a>,
    pub depth: VerifyDepth,
    pub days: u32,
    /// Of points that wait since before this, the first look is due when any other one would be. See [`first_looks_since`].
    pub first_looks_since: Timestamp,
}

/// The setting that says since when.
const FIRST_LOOKS_SINCE: &str = "verification.first_looks_since";

/// Since when first looks have a time of their own here: since the first start of a hub that knows it. What was there before has its
/// first look when it was to be then, so that a release that looks at new points sooner makes no old ones overdue, and is not busy with
/// nothing but these. Of hubs that start together all are told the same.
pub(crate) async fn first_looks_since(catalog: &Catalog, now: Timestamp) -> sendense_catalog::Result<Timestamp> {
    let since = catalog.settings().get_or_set(FIRST_LOOKS_SINCE, &now.as_micros().into(), now).await?;
    // Nothing else was ever written there; whoever did would have old points be due at once.
    Ok(since.as_i64().map_or(Timestamp::from_micros(0), Timestamp::from_micros))
}

/// A point is looked at for the first time so many days after it was made, whatever the rule: what was never read back is proved least
/// of all, and many go before the rule's time is over.
const FIRST_DAYS: u32 = 1;

impl Rule<'_> {
    /// After how many days the first look at a point is due.
    pub fn first_days(&self) -> u32 {
        self.days.min(FIRST_DAYS)
    }

    /// The points of a repository that are due by the rule, and have been for so many days.
    pub fn due<'a>(&'a self, repository_id: &'a RepositoryId, now: Timestamp, late_days: i64) -> Unproved<'a> {
        let before = |days: u32| now.plus_seconds(-(i64::from(days) + late_days) * DAY_SECONDS);
        Unproved {
            repository_id,
            made_by: self.whose,
            depth: self.depth,
            before: before(self.days),
            waiting_before: before(self.first_days()),
            first_looks_since: self.first_looks_since,
        }
    }
}

/// Policies that say how often their points are verified, by what they say: those that say the same are asked for together, so
/// that the queries of a look are as many as what is said, not as the policies.
pub(crate) fn sayings(policies: &[(Policy, PolicyRules)]) -> BTreeMap<PolicyVerification, Vec<PolicyId>> {
    let mut sayings = BTreeMap::<_, Vec<_>>::new();
    for (policy, rules) in policies {
        if let Some(said) = rules.verification {
            sayings.entry(said).or_default().push(policy.policy_id.clone());
        }
    }
    sayings
}

/// What holds for points, wherever they lie: by policies for those that they made, by the hub for all others. What decodes comes
/// first: it is a look at rest as well.
pub(crate) fn rules<'a>(
    limits: &Limits,
    sayings: &'a BTreeMap<PolicyVerification, Vec<PolicyId>>,
    own: &'a [PolicyId],
    first_looks_since: Timestamp,
) -> Vec<Rule<'a>> {
    let by_policies = sayings.iter().map(|(said, policies)| (Some(*said), MadeBy::AnyOf(policies)));
    let mut rules = Vec::new();
    for (said, whose) in by_policies.chain([(None, MadeBy::NoneOf(own))]) {
        let often = in_force::of(limits, None, said);
        for (depth, days) in [(VerifyDepth::Deep, often.deep_days), (VerifyDepth::AtRest, often.at_rest_days)] {
            rules.extend((days > 0).then_some(Rule { whose, depth, days, first_looks_since }));
        }
    }
    rules
}

/// Begins to verify the point that is due for the longest, and tells which; none where one is verified, or none is due.
pub(crate) async fn look(app: &App, tried: &mut Tried) -> Result<Option<BackupId>> {
    let core = &app.core;
    if core.running.is_at_work_aside() || waits_aside(app).await? {
        return Ok(None);
    }
    let now = core.now();
    tried.forget_before_a_day(now);
    tried.settle(app, now).await?;
    let all = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let (repositories, _) = core.catalog.repositories().list(all).await.or_problem()?;
    let sayings = sayings(&app.all_policies().await?);
    let own: Vec<PolicyId> = sayings.values().flatten().cloned().collect();
    let rules = rules(&core.limits, &sayings, &own, core.first_looks_since);
    let mut open = Vec::new();
    for repository in repositories {
        let id = repository.repository_id;
        if allows(repository.maintenance.mode, Use::Read) && core.repositories.standing(core, &id) == Standing::Open {
            open.push(id);
        }
    }
    let others = |due: &Due| !tried.in_vain.contains_key(&due.point.vm_context_id);
    let mut found = longest(app, &open, &rules, now, tried, others).await?;
    if found.is_none() && !tried.in_vain.is_empty() {
        found = longest(app, &open, &rules, now, tried, |_| true).await?;
    }
    let Some((point, depth)) = found else { return Ok(None) };
    if tried.points.len() >= TRIED_MAX {
        return Ok(None);
    }
    let depth = at_once(app, &rules, &point, depth, now).await?;
    let id = point.backup_id.clone();
    let vm = point.vm_context_id.clone();
    let caller = Caller { identity: "verification".to_owned(), role: Role::Operator };
    let begun = app.verify_aside(&caller, point, depth).await;
    // So many tasks wait that no more may: the next look asks again.
    if matches!(&begun, Err(problem) if problem.code == ProblemCode::Busy) {
        return Ok(None);
    }
    tried.points.insert(id.clone(), now);
    tried.begun = Some((id.clone(), vm, now));
    begun.map(|_| Some(id))
}

/// The point of these repositories that is due for the longest by one of these rules, and how it is to be looked at.
async fn longest(
    app: &App,
    repositories: &[RepositoryId],
    rules: &[Rule<'_>],
    now: Timestamp,
    tried: &Tried,
    is_meant: impl Fn(&Due) -> bool,
) -> Result<Option<(Backup, VerifyDepth)>> {
    let mut longest: Option<(Due, VerifyDepth)> = None;
    for id in repositories {
        for rule in rules {
            let which = rule.due(id, now, 0);
            let is_untried = |due: &Due| !tried.points.contains_key(&due.point.backup_id) && is_meant(due);
            let found = first(app, &which, is_untried).await?.map(|due| (due, rule.depth));
            // The first of two that are as late stays.
            longest = longest.into_iter().chain(found).min_by_key(|(due, _)| Reverse(due.overdue));
        }
    }
    Ok(longest.map(|(due, depth)| (due.point, depth)))
}

/// How a point is looked at: where it is due to be decoded, too, for however short a time, one look serves for both.
async fn at_once(
    app: &App,
    rules: &[Rule<'_>],
    point: &Backup,
    depth: VerifyDepth,
    now: Timestamp,
) -> Result<VerifyDepth> {
    for rule in rules.iter().filter(|rule| rule.depth == VerifyDepth::Deep && rule.depth != depth) {
        let which = rule.due(&point.repository_id, now, 0);
        if app.core.catalog.backups().is_due(&which, &point.backup_id).await.or_problem()? {
            return Ok(rule.depth);
        }
    }
    Ok(depth)
}

/// Whether a verification of this kind waits to be begun.
async fn waits_aside(app: &App) -> Result<bool> {
    let filter = TaskFilter { kind: Some(TaskKind::Verify), state: Some(TaskState::Pending), ..TaskFilter::default() };
    let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
    let (rows, _) = app.core.catalog.tasks().list(&filter, page).await.or_problem()?;
    Ok(rows.iter().any(|row| matches!(Work::read(&row.request), Ok(Work::Verify(work)) if work.aside)))
}

/// The point that is due for the longest of those that are meant. However many cannot be read, they must not keep all others of their
/// repository from being looked at.
async fn first(app: &App, which: &Unproved<'_>, is_meant: impl Fn(&Due) -> bool) -> Result<Option<Due>> {
    let mut candidates = Some(CANDIDATES);
    while let Some(asked) = candidates {
        let found = app.core.catalog.backups().longest_overdue(which, asked).await.or_problem()?;
        candidates = more_than(asked, found.len());
        let first = found.into_iter().find(|due| is_meant(due));
        if first.is_some() {
            return Ok(first);
        }
    }
    Ok(None)
}

/// How many to ask for when none that was found is meant; none where these were all there are, or as many as may be known to have been
/// tried.
fn more_than(asked: u64, found: usize) -> Option<u64> {
    (found as u64 == asked && asked <= TRIED_MAX as u64).then_some(asked * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_cannot_be_verified_keep_no_other_from_it() {
        for (points, tried, expected) in [
            (0, 0, None),
            (50, 0, Some(0)),
            (50, 50, None),
            (100, 100, None),
            (101, 100, Some(100)),
            (5000, 99, Some(99)),
            (5000, 4000, Some(4000)),
            (50_000, TRIED_MAX as u64, Some(TRIED_MAX as u64)),
        ] {
            let (mut candidates, mut first) = (Some(CANDIDATES), None);
            while let (Some(asked), None) = (candidates, first) {
                let found: Vec<u64> = (0..points).take(asked as usize).collect();
                candidates = more_than(asked, found.len());
                first = found.into_iter().find(|point| *point >= tried);
            }
            assert_eq!(first, expected, "{tried} of {points} were tried");
        }
    }
}
