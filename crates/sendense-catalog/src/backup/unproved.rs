//! How long nobody has looked at a point, and those at which somebody should.
//!
//! What lives here: since when a point waits, and finding those that are due. What does not: what a look found ([`super::verify`]).
//!
//! How long a point is unproved is not told by when it was made, for its bytes may be older: a merge gives it those of another one.
//! `verified_at` and `deep_verified_at` are as old as the look at the oldest of its bytes, and `unproved_since`, which counts where
//! nobody looked, as these bytes themselves ([`super::merge`]). A new point of a machine of which none was ever looked at waits since
//! the others do ([`waits_since`]), and what goes without a look hands its waiting on ([`pass_on`]). So no retention and no merge makes
//! anything look younger than it is, and a machine is looked at, or told as overdue, however short its points are kept.

use super::{Backup, Backups};
use crate::entity;
use crate::entity::backups::Model;
use crate::error::Result;
use crate::tx::Tx;
use crate::value::{self, Ts};
use sea_orm::sea_query::{Expr, Func};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use sendense_types::{BackupId, BackupStatus, PolicyId, RepositoryId, Timestamp, VerifyDepth, VmContextId};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// Points that are settled at once: what some hundred machines make in a day, and far fewer values than a statement may have.
const SETTLED_AT_ONCE: u64 = 10_000;

/// By whom points were made.
#[derive(Debug, Clone, Copy)]
pub enum MadeBy<'a> {
    /// Points that were made by one of these policies.
    AnyOf(&'a [PolicyId]),
    /// Points that were made by none of these policies, or by hand.
    NoneOf(&'a [PolicyId]),
}

/// Which points to find.
#[derive(Debug, Clone, Copy)]
pub struct Unproved<'a> {
    /// Where.
    pub repository_id: &'a RepositoryId,
    /// Whose.
    pub made_by: MadeBy<'a>,
    /// What counts as a look: any, or only one at every block.
    pub depth: VerifyDepth,
    /// Looks that are older count for nothing.
    pub before: Timestamp,
    /// A point that nobody ever looked at counts where it waits for that for longer than since this.
    pub waiting_before: Timestamp,
    /// Of points that wait since before this, only those count that wait since before `before`: when they were made, a first look was
    /// due no sooner than any other.
    pub first_looks_since: Timestamp,
}

/// A point that is due.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Which; without its disks.
    pub point: Backup,
    /// When it was looked at, or else since when it waits for that.
    pub since: Timestamp,
    /// How long that was before [`Unproved::before`], or else before [`Unproved::waiting_before`]: the same for points that are due by
    /// different rules, as long as these are late by the same.
    pub overdue: Duration,
}

/// A machine's points that want to be looked at: how old the oldest of both sorts are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oldest {
    /// The oldest look at a point.
    pub looked_at: Option<Timestamp>,
    /// Since when one waits that nobody ever looked at.
    pub waits_since: Option<Timestamp>,
    /// The same of those that wait since before [`Unproved::first_looks_since`].
    pub waited_before: Option<Timestamp>,
}

impl Unproved<'_> {
    fn column(&self) -> entity::backups::Column {
        match self.depth {
            VerifyDepth::AtRest => entity::backups::Column::VerifiedAt,
            VerifyDepth::Deep => entity::backups::Column::DeepVerifiedAt,
        }
    }

    /// Whether no point can be meant.
    fn is_none(&self) -> bool {
        matches!(self.made_by, MadeBy::AnyOf([]))
    }

    fn points(&self) -> Select<entity::backups::Entity> {
        use entity::backups::{Column, Entity};
        let points = Entity::find()
            .filter(Column::RepositoryId.eq(self.repository_id.as_str()))
            .filter(Column::Status.eq(BackupStatus::Completed.as_str()));
        match self.made_by {
            MadeBy::AnyOf(policies) => points.filter(Column::PolicyId.is_in(policies.iter().map(PolicyId::as_str))),
            MadeBy::NoneOf([]) => points,
            MadeBy::NoneOf(policies) => {
                let others = Column::PolicyId.is_not_in(policies.iter().map(PolicyId::as_str));
                points.filter(Column::PolicyId.is_null().or(others))
            }
        }
    }

    /// Those that were never looked at.
    fn never(&self) -> Select<entity::backups::Entity> {
        use entity::backups::Column::UnprovedSince;
        let waits = UnprovedSince.lt(Ts::from(self.waiting_before));
        let waits = waits.and(UnprovedSince.gte(Ts::from(self.first_looks_since)));
        self.points().filter(self.column().is_null()).filter(waits)
    }

    /// Those that were never looked at and are there for longer than first looks are.
    fn never_before(&self) -> Select<entity::backups::Entity> {
        let waits = entity::backups::Column::UnprovedSince.lt(Ts::from(self.before.min(self.first_looks_since)));
        self.points().filter(self.column().is_null()).filter(waits)
    }

    /// By which limit a point counts that waits since then.
    fn limit_of(&self, waits_since: Timestamp) -> Timestamp {
        if waits_since < self.first_looks_since { self.before } else { self.waiting_before }
    }

    /// Those that were looked at too long ago.
    fn long_ago(&self) -> Select<entity::backups::Entity> {
        self.points().filter(self.column().lt(Ts::from(self.before)))
    }
}

impl Backups<'_> {
    /// Points that are due, those that are for the longest first: a first look that is three days late comes before another one that is
    /// two, however much longer ago that point was looked at.
    pub async fn longest_overdue(&self, which: &Unproved<'_>, limit: u64) -> Result<Vec<Due>> {
        use entity::backups::Column;
        if which.is_none() {
            return Ok(Vec::new());
        }
        // Each in the order of its index, so that no more rows are read than are asked for, and of points that are late by the same
        // the same come first in every database.
        let in_order = async |points: Select<entity::backups::Entity>| {
            let points = points.order_by_asc(Column::UnprovedSince).order_by_asc(Column::BackupId);
            points.limit(limit).all(self.0.pool()).await
        };
        let (never, long_ago) = (which.never(), which.long_ago().order_by_asc(which.column()));
        let never_before = in_order(which.never_before());
        let (mut rows, never_before, long_ago) = tokio::try_join!(in_order(never), never_before, in_order(long_ago))?;
        rows.extend(never_before.into_iter().chain(long_ago));
        let look = |row: &Model| match which.depth {
            VerifyDepth::AtRest => row.verified_at,
            VerifyDepth::Deep => row.deep_verified_at,
        };
        // What counts for it, and since when.
        let since = |row: &Model| match look(row) {
            Some(looked_at) => (which.before, Timestamp::from(looked_at)),
            None => {
                let since = row.unproved_since.unwrap_or(row.created_at).into();
                (which.limit_of(since), since)
            }
        };
        let overdue = |row: &Model| {
            let (limit, since) = since(row);
            let micros = limit.as_micros().saturating_sub(since.as_micros());
            Duration::from_micros(u64::try_from(micros).unwrap_or_default())
        };
        rows.sort_by(|a, b| {
            let order = |row: &Model| (Reverse(overdue(row)), row.unproved_since);
            order(a).cmp(&order(b)).then_with(|| a.backup_id.cmp(&b.backup_id))
        });
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let told = rows.into_iter().map(|row| {
            let (since, overdue) = (since(&row).1, overdue(&row));
            Ok(Due { point: super::row::read(row, Vec::new())?, since, overdue })
        });
        told.collect()
    }

    /// Whether a point is one of these.
    pub async fn is_due(&self, which: &Unproved<'_>, id: &BackupId) -> Result<bool> {
        if which.is_none() {
            return Ok(false);
        }
        for points in [which.never(), which.never_before(), which.long_ago()] {
            let found = points.filter(entity::backups::Column::BackupId.eq(id.as_str())).one(self.0.pool()).await?;
            if found.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets points wait for their first look since they were made of which that is not written down: a hub of an earlier release writes
    /// nothing of it, and may be at work beside this one while hubs are replaced. Returns how many there were. Doing it again, or
    /// twice at once, does no harm.
    pub async fn settle_waiting(&self, repository: &RepositoryId) -> Result<u64> {
        use entity::backups::{Column, Entity};
        // What was decoded was looked at. So this reads an index in which only failed attempts and what runs are met beside them.
        let unknown: Vec<String> = Entity::find()
            .select_only()
            .column(Column::BackupId)
            .filter(Column::RepositoryId.eq(repository.as_str()))
            .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
            .filter(Column::DeepVerifiedAt.is_null())
            .filter(Column::UnprovedSince.is_null())
            .order_by_asc(Column::BackupId)
            .limit(SETTLED_AT_ONCE)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        if unknown.is_empty() {
            return Ok(0);
        }
        let unknown = &unknown;
        self.0
            .write(|tx| async move {
                let settled = Entity::update_many()
                    .col_expr(Column::UnprovedSince, waits())
                    .filter(Column::BackupId.is_in(unknown.iter().map(String::as_str)))
                    .filter(Column::UnprovedSince.is_null())
                    .exec(&*tx)
                    .await?;
                Ok(settled.rows_affected)
            })
            .await
    }

    /// The machines that have such points.
    pub async fn unproved_machines(&self, which: &Unproved<'_>) -> Result<BTreeMap<VmContextId, Oldest>> {
        use entity::backups::Column;
        if which.is_none() {
            return Ok(BTreeMap::new());
        }
        let oldest = async |points: Select<entity::backups::Entity>, column: Column| {
            let points = points.select_only().column(Column::VmContextId).column_as(column.min(), "since");
            points.group_by(Column::VmContextId).into_tuple::<(String, Option<Ts>)>().all(self.0.pool()).await
        };
        let never = oldest(which.never(), Column::UnprovedSince);
        let never_before = oldest(which.never_before(), Column::UnprovedSince);
        let long_ago = oldest(which.long_ago(), which.column());
        let (never, never_before, long_ago) = tokio::try_join!(never, never_before, long_ago)?;
        let mut machines = BTreeMap::<VmContextId, Oldest>::new();
        for (vm, since) in &never {
            machines.entry(value::read("vm_context_id", vm)?).or_default().waits_since = since.map(Into::into);
        }
        for (vm, since) in &never_before {
            machines.entry(value::read("vm_context_id", vm)?).or_default().waited_before = since.map(Into::into);
        }
        for (vm, since) in &long_ago {
            machines.entry(value::read("vm_context_id", vm)?).or_default().looked_at = since.map(Into::into);
        }
        Ok(machines)
    }
}

/// Since when a row waits: since it was made where a hub of an earlier release wrote nothing of it.
fn waits() -> Expr {
    use entity::backups::Column;
    Func::coalesce([Expr::col(Column::UnprovedSince), Expr::col(Column::CompletedAt)]).into()
}

/// The same of a row that was read.
pub(super) fn waits_of(row: &Model) -> Option<Ts> {
    row.unproved_since.or(row.completed_at)
}

/// Since when a point waits for a look that is made now. Where nobody ever looked at one of the machine's points, it takes over since
/// when these do: they may all go before the first of them is due.
pub(super) async fn waits_since(tx: &Tx, row: &Model, now: Timestamp) -> Result<Ts> {
    use entity::backups::{Column, Entity};
    let others: Option<(Option<Ts>, Option<Ts>)> = Entity::find()
        .select_only()
        .column_as(Column::VerifiedAt.max(), "looked_at")
        .column_as(waits().min(), "waits_since")
        .filter(Column::VmContextId.eq(&row.vm_context_id))
        .filter(Column::RepositoryId.eq(&row.repository_id))
        .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
        .into_tuple()
        .one(&**tx)
        .await?;
    match others {
        Some((None, Some(since))) => Ok(std::cmp::min(since, now.into())),
        _ => Ok(now.into()),
    }
}

/// What goes before anybody looked at it hands its waiting on to the newest point that the same policy made, which stays the longest;
/// but not where somebody looked at a newer one than it. Else no point of a machine would ever be due whose points go within a day.
pub(super) async fn pass_on(tx: &Tx, gone: &[Model]) -> Result<()> {
    let mut groups = BTreeMap::<_, Vec<&Model>>::new();
    for row in gone.iter().filter(|row| row.status == BackupStatus::Completed.as_str()) {
        groups.entry((&row.vm_context_id, &row.repository_id, &row.policy_id)).or_default().push(row);
    }
    for rows in groups.into_values() {
        if rows.iter().any(|row| row.verified_at.is_none()) {
            pass_on_in_group(tx, &rows).await?;
        }
    }
    Ok(())
}

/// The same for points of one machine in one repository that one policy made.
async fn pass_on_in_group(tx: &Tx, gone: &[&Model]) -> Result<()> {
    use entity::backups::{ActiveModel, Column, Entity};
    let Some(of) = gone.first() else { return Ok(()) };
    let left = || {
        let left = Entity::find()
            .filter(Column::VmContextId.eq(&of.vm_context_id))
            .filter(Column::RepositoryId.eq(&of.repository_id))
            .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::BackupId);
        match &of.policy_id {
            Some(policy) => left.filter(Column::PolicyId.eq(policy)),
            None => left.filter(Column::PolicyId.is_null()),
        }
    };
    let Some(newest) = left().one(&**tx).await? else { return Ok(()) };
    let looked_at = left().filter(Column::VerifiedAt.is_not_null()).one(&**tx).await?;
    let looked_at = gone.iter().copied().filter(|row| row.verified_at.is_some()).chain(&looked_at);
    let looked_at = looked_at.map(|row| row.created_at).max();
    let is_newer = |row: &Model| Some(row.created_at) > looked_at;
    let waiting = gone.iter().filter(|row| is_newer(row)).filter_map(|row| waits_of(row)).min();
    let own = waits_of(&newest);
    if !is_newer(&newest) || waiting.is_none() || own.is_some_and(|own| waiting >= Some(own)) {
        return Ok(());
    }
    let set = ActiveModel { unproved_since: Set(waiting), ..Default::default() };
    super::life::update(tx, &newest.backup_id, set).await
}
