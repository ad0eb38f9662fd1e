//! How long nobody has looked at a point, and those at which somebody should.
//!
//! What lives here: since when a point waits, and finding those that are due. What does not: what a look found ([`super::verify`]).
//!
//! How long a point is unproved is not told by when it was made, for its bytes may be older: a merge gives it those of another one.
//! `verified_at` and `deep_verified_at` are as old as the look at the oldest of its bytes, and `unproved_since`, which counts where
//! nobody looked, as these bytes themselves ([`super::merge`]). A new point of a machine of which none was ever looked at waits since
//! the others do ([`waits_since`]). So no retention and no merge makes anything look younger than it is.

use super::{Backup, Backups};
use crate::entity;
use crate::error::Result;
use crate::tx::Tx;
use crate::value::{self, Ts};
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use sendense_types::{BackupStatus, PolicyId, RepositoryId, Timestamp, VerifyDepth, VmContextId};
use std::collections::BTreeMap;

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
}

/// A machine's points that want to be looked at: how old the oldest of both sorts are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oldest {
    /// The oldest look at a point.
    pub looked_at: Option<Timestamp>,
    /// Since when one waits that nobody ever looked at.
    pub waits_since: Option<Timestamp>,
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
        let waits = entity::backups::Column::UnprovedSince.lt(Ts::from(self.waiting_before));
        self.points().filter(self.column().is_null()).filter(waits)
    }

    /// Those that were looked at too long ago.
    fn long_ago(&self) -> Select<entity::backups::Entity> {
        self.points().filter(self.column().lt(Ts::from(self.before)))
    }
}

impl Backups<'_> {
    /// Points that nobody has looked at for so long, those whose look, or else whose waiting for one, is the oldest first; with the
    /// time of that.
    pub async fn longest_unproved(&self, which: &Unproved<'_>, limit: u64) -> Result<Vec<(Backup, Timestamp)>> {
        use entity::backups::{Column, Model};
        if which.is_none() {
            return Ok(Vec::new());
        }
        let column = which.column();
        let look = |row: &Model| match which.depth {
            VerifyDepth::AtRest => row.verified_at,
            VerifyDepth::Deep => row.deep_verified_at,
        };
        let never = which.never().order_by_asc(Column::UnprovedSince).order_by_asc(Column::CompletedAt);
        let never = never.limit(limit).all(self.0.pool());
        let long_ago = which.long_ago().order_by_asc(column).limit(limit).all(self.0.pool());
        let (mut rows, long_ago) = tokio::try_join!(never, long_ago)?;
        rows.extend(long_ago);
        let since = |row: &Model| look(row).or(row.unproved_since).unwrap_or(row.created_at);
        rows.sort_by(|a, b| (since(a), a.completed_at, &a.backup_id).cmp(&(since(b), b.completed_at, &b.backup_id)));
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let told = rows.into_iter().map(|row| {
            let since = since(&row).into();
            Ok((super::row::read(row, Vec::new())?, since))
        });
        told.collect()
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
        let (never, long_ago) = tokio::try_join!(never, oldest(which.long_ago(), which.column()))?;
        let mut machines = BTreeMap::<VmContextId, Oldest>::new();
        for (vm, since) in &never {
            machines.entry(value::read("vm_context_id", vm)?).or_default().waits_since = since.map(Into::into);
        }
        for (vm, since) in &long_ago {
            machines.entry(value::read("vm_context_id", vm)?).or_default().looked_at = since.map(Into::into);
        }
        Ok(machines)
    }
}

/// Since when a point waits for a look that is made now. Where nobody ever looked at one of the machine's points, it takes over since
/// when these do: they may all go before the first of them is due.
pub(super) async fn waits_since(tx: &Tx, row: &entity::backups::Model, now: Timestamp) -> Result<Ts> {
    use entity::backups::{Column, Entity};
    let others: Option<(Option<Ts>, Option<Ts>)> = Entity::find()
        .select_only()
        .column_as(Column::VerifiedAt.max(), "looked_at")
        .column_as(Column::UnprovedSince.min(), "waits_since")
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
