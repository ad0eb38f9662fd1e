//! Attempts that came to nothing, once they are old.

use super::{Backups, delete};
use crate::counts::BackupChanges;
use crate::entity;
use crate::error::Result;
use crate::value::{self, Ts};
use sea_orm::sea_query::{Alias, Expr, Query};
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{BackupId, BackupStatus, Timestamp};
use std::collections::BTreeSet;

impl Backups<'_> {
    /// Attempts that failed or were cancelled before `before` and after which their machine was tried again, the oldest `most` of
    /// them. They hold nothing: [`Backups::forget_failures`] forgets them.
    pub async fn old_failures(&self, before: Timestamp, most: u64) -> Result<Vec<BackupId>> {
        use entity::backups::{Column, Entity};
        let later = Alias::new("later");
        let tried_again = Query::select()
            .expr(Expr::val(1))
            .from_as(Entity, later.clone())
            .and_where(Expr::col((later.clone(), Column::VmContextId)).equals((Entity, Column::VmContextId)))
            .and_where(Expr::col((later, Column::CreatedAt)).gt(Expr::col((Entity, Column::CreatedAt))))
            .to_owned();
        let nothing = [BackupStatus::Failed, BackupStatus::Cancelled].map(|status| status.as_str());
        let ids: Vec<String> = Entity::find()
            .select_only()
            .column(Column::BackupId)
            .filter(Column::Status.is_in(nothing))
            .filter(Column::CreatedAt.lt(Ts::from(before)))
            .filter(Column::CompletedAt.lt(Ts::from(before)))
            .filter(Expr::exists(tried_again))
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::BackupId)
            .limit(most)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        ids.iter().map(|id| value::read("backup_id", id)).collect()
    }

    /// Forgets attempts, as [`Backups::delete`] does; returns their number. One that has become a point meanwhile stays: a repository
    /// that comes back may hold what was thought to have failed.
    pub async fn forget_failures(&self, ids: &[BackupId], now: Timestamp) -> Result<u64> {
        self.0
            .write(|tx| async move {
                use entity::backups::{Column, Entity};
                let nothing = [BackupStatus::Failed, BackupStatus::Cancelled].map(|status| status.as_str());
                let rows = Entity::find()
                    .filter(Column::BackupId.is_in(ids.iter().map(BackupId::as_str)))
                    .filter(Column::Status.is_in(nothing))
                    .order_by_asc(Column::BackupId)
                    .lock_exclusive()
                    .all(&*tx)
                    .await?;
                let ids: BTreeSet<&str> = rows.iter().map(|row| row.backup_id.as_str()).collect();
                if ids.is_empty() {
                    return Ok(0);
                }
                let mut changes = BackupChanges::default();
                let forgotten = delete::delete_in(&tx, &ids, now.into(), &mut changes).await?;
                changes.write(&tx).await?;
                Ok(forgotten.len() as u64)
            })
            .await
    }
}
