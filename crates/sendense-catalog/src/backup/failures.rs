//! Attempts that came to nothing, once they are old.

use super::Backups;
use crate::entity;
use crate::error::Result;
use crate::value::{self, Ts};
use sea_orm::sea_query::{Alias, Expr, Query};
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{BackupId, BackupStatus, Timestamp};

impl Backups<'_> {
    /// Attempts that failed or were cancelled before `before` and after which their machine was tried again, the oldest `most` of
    /// them. They hold nothing: [`Backups::delete`] forgets them.
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
}
