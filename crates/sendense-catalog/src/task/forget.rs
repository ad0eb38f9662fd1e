//! Forgetting tasks that nobody asks for any more, with their logs.
//!
//! Invariant: a task that has not ended stays, and so does the one that made a backup which is still known.

use super::Tasks;
use crate::error::Result;
use crate::value::Ts;
use crate::{counts, entity};
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{TaskKind, TaskState, Timestamp};
use std::collections::BTreeMap;

/// A place in the order in which tasks are forgotten: that of their making.
#[derive(Debug, Clone)]
pub struct Place(Ts, String);

impl Tasks<'_> {
    /// Forgets tasks that ended before `before`, the oldest `most` of them behind the place that an earlier call gave, with their logs;
    /// returns their number, and the place where they ended: what stays before it need not be looked at again.
    pub async fn forget_ended(
        &self,
        before: Timestamp,
        behind: Option<Place>,
        most: u64,
    ) -> Result<(u64, Option<Place>)> {
        use entity::tasks::{Column, Entity};
        let of_known_backup = Query::select()
            .expr(Expr::val(1))
            .from(entity::backups::Entity)
            .and_where(
                Expr::col((entity::backups::Entity, entity::backups::Column::BackupId))
                    .equals((Entity, Column::SubjectId)),
            )
            .to_owned();
        let is_needed =
            Condition::all().add(Column::Kind.eq(TaskKind::Backup.as_str())).add(Expr::exists(of_known_backup));
        let ended = TaskState::ALL.iter().filter(|state| state.is_final()).map(|state| state.as_str());
        let ended: Vec<&str> = ended.collect();
        let behind = behind.map(|Place(created_at, task_id)| {
            let same = Condition::all().add(Column::CreatedAt.eq(created_at)).add(Column::TaskId.gt(task_id));
            Condition::any().add(Column::CreatedAt.gt(created_at)).add(same)
        });
        let found: Vec<(String, Ts)> = Entity::find()
            .select_only()
            .column(Column::TaskId)
            .column(Column::CreatedAt)
            .filter(behind.unwrap_or_else(Condition::all))
            .filter(Column::State.is_in(ended.iter().copied()))
            .filter(Column::FinishedAt.lt(Ts::from(before)))
            .filter(is_needed.not())
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::TaskId)
            .limit(most)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        let Some(last) = found.last().map(|(task_id, created_at)| Place(*created_at, task_id.clone())) else {
            return Ok((0, None));
        };
        let ids: Vec<String> = found.into_iter().map(|(task_id, _)| task_id).collect();
        let forgotten = self
            .0
            .write(|tx| {
                let (ids, ended) = (&ids, &ended);
                async move {
                    // What has ended stays so; another hub may have forgotten some of them meanwhile.
                    let chosen = Condition::all()
                        .add(Column::TaskId.is_in(ids.iter().map(String::as_str)))
                        .add(Column::State.is_in(ended.iter().copied()));
                    let rows = Entity::find().filter(chosen.clone()).lock_exclusive().all(&*tx).await?;
                    let mut gone: BTreeMap<(String, String), i64> = BTreeMap::new();
                    for row in rows {
                        *gone.entry((row.kind, row.state)).or_default() += 1;
                    }
                    // Their logs go with them, as the references say.
                    let forgotten = Entity::delete_many().filter(chosen).exec(&*tx).await?.rows_affected;
                    counts::tasks_went(&tx, gone).await?;
                    Ok(forgotten)
                }
            })
            .await?;
        Ok((forgotten, Some(last)))
    }
}
