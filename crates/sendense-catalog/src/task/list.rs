//! Looking tasks up.

use super::{Task, Tasks};
use crate::error::{Error, Noun, Result};
use crate::value::Ts;
use crate::{Page, counts, entity, value};
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use sendense_types::{TaskId, TaskKind, TaskState, Timestamp, VmContextId};

/// Which tasks; what is `None` does not restrict. All are combined with AND.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// What they do.
    pub kind: Option<TaskKind>,
    /// Where they stand.
    pub state: Option<TaskState>,
    /// The id of what they are about.
    pub subject_id: Option<String>,
    /// About a backup of this machine.
    pub vm_context_id: Option<VmContextId>,
}

impl Tasks<'_> {
    /// One by its id.
    pub async fn get(&self, task_id: &TaskId) -> Result<Task> {
        let row = entity::tasks::Entity::find_by_id(task_id.as_str()).one(self.0.pool()).await?;
        row.ok_or_else(|| Error::not_found(Noun::Task, task_id))?.try_into()
    }

    /// Tasks, newest first, with the number of all that match.
    pub async fn list(&self, filter: &TaskFilter, page: Page) -> Result<(Vec<Task>, u64)> {
        use entity::tasks::{Column, Entity};
        let ids: Vec<String> = select(filter)
            .select_only()
            .column(Column::TaskId)
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::TaskId)
            .limit(page.limit())
            .offset(page.offset)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        let rows = Entity::find()
            .filter(Column::TaskId.is_in(ids))
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::TaskId)
            .all(self.0.pool())
            .await?;
        let total = match counts::tasks(self.0.pool(), filter).await? {
            Some(total) => total,
            None => value::count(select(filter), Column::TaskId, self.0.pool()).await?,
        };
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }

    /// Tasks that wait, oldest first: what a hub looks through for work.
    pub async fn pending(&self, limit: u64) -> Result<Vec<Task>> {
        use entity::tasks::Column;
        let rows = entity::tasks::Entity::find()
            .filter(Column::State.eq(TaskState::Pending.as_str()))
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::TaskId)
            .limit(Page { limit, offset: 0 }.limit())
            .all(self.0.pool())
            .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Running tasks whose holder is dead, oldest first: its lease has run out, or its hub has begun a later epoch.
    pub async fn running_tasks_of_dead_hubs(&self, now: Timestamp) -> Result<Vec<Task>> {
        use entity::tasks::{Column, Entity};
        let same_epoch = Query::select()
            .expr(Expr::val(1))
            .from(entity::hubs::Entity)
            .and_where(Expr::col((entity::hubs::Entity, entity::hubs::Column::HubId)).equals((Entity, Column::HubId)))
            .and_where(
                Expr::col((entity::hubs::Entity, entity::hubs::Column::Epoch)).equals((Entity, Column::HubEpoch)),
            )
            .to_owned();
        let rows = Entity::find()
            .filter(Column::State.eq(TaskState::Running.as_str()))
            .filter(
                Condition::any()
                    .add(Column::LeaseUntil.is_null())
                    .add(Column::LeaseUntil.lt(Ts::from(now)))
                    .add(Expr::exists(same_epoch).not()),
            )
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::TaskId)
            .limit(Page::LIMIT_MAX)
            .all(self.0.pool())
            .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

fn select(filter: &TaskFilter) -> Select<entity::tasks::Entity> {
    use entity::tasks::Column;
    let mut select = entity::tasks::Entity::find();
    if let Some(kind) = filter.kind {
        select = select.filter(Column::Kind.eq(kind.as_str()));
    }
    if let Some(state) = filter.state {
        select = select.filter(Column::State.eq(state.as_str()));
    }
    if let Some(id) = &filter.subject_id {
        select = select.filter(Column::SubjectId.eq(id));
    }
    if let Some(id) = &filter.vm_context_id {
        let of_vm = Query::select()
            .column(entity::backups::Column::BackupId)
            .from(entity::backups::Entity)
            .and_where(Expr::col(entity::backups::Column::VmContextId).eq(id.as_str()))
            .to_owned();
        select = select.filter(Column::SubjectId.in_subquery(of_vm));
    }
    select
}
