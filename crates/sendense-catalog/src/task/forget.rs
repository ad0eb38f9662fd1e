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

impl Tasks<'_> {
    /// Forgets tasks that ended before `before`, the oldest `most` of them, with their logs; returns their number.
    pub async fn forget_ended(&self, before: Timestamp, most: u64) -> Result<u64> {
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
        let ids: Vec<String> = Entity::find()
            .select_only()
            .column(Column::TaskId)
            .filter(Column::State.is_in(ended.iter().copied()))
            .filter(Column::FinishedAt.lt(Ts::from(before)))
            .filter(is_needed.not())
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::TaskId)
            .limit(most)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        if ids.is_empty() {
            return Ok(0);
        }
        self.0
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
            .await
    }
}
