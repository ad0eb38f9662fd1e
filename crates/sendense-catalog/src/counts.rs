//! How many backups and tasks there are, by what lists ask for most.
//!
//! What lives here: one counter per (repository, status, type) of backups and per (kind, state) of tasks, kept by the very
//! transactions that change what is counted, and counted anew when a hub opens the catalog. What does not: lists. A list
//! tells how many rows match; counting 100,000 of them takes a database tens of milliseconds, adding up a few counters less
//! than one.
//!
//! Counters are the rows that all writers share, so a transaction touches them last: they are held for the moment of a commit
//! only. Invariant: the sum of the counters that match a filter is the number of rows that match it.

use crate::entity;
use crate::error::{Error, Result};
use crate::task::TaskFilter;
use crate::tx::Tx;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, EntityTrait, ExprTrait,
    IntoActiveModel, IsolationLevel, QueryFilter, QueryOrder, QuerySelect, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
};
use sendense_types::{BackupStatus, BackupType, RepositoryId};
use std::collections::BTreeMap;

/// Counters that change together, by what they count. Ordered, so that two transactions take them in the same order.
#[derive(Debug, Default)]
pub(crate) struct BackupChanges(BTreeMap<(String, String, String), i64>);

impl BackupChanges {
    /// A backup is there now.
    pub fn add(&mut self, repository_id: &str, status: &str, backup_type: &str) {
        let key = (repository_id.to_owned(), status.to_owned(), backup_type.to_owned());
        *self.0.entry(key).or_default() += 1;
    }

    /// A row that was there is gone, or is about to be another.
    pub fn remove(&mut self, row: &entity::backups::Model) {
        let key = (row.repository_id.clone(), row.status.clone(), row.backup_type.clone());
        *self.0.entry(key).or_default() -= 1;
    }

    /// A row that was there has another status or type.
    pub fn became(row: &entity::backups::Model, status: BackupStatus, backup_type: &str) -> Self {
        let mut changes = Self::default();
        changes.remove(row);
        changes.add(&row.repository_id, status.as_str(), backup_type);
        changes
    }

    /// Writes the changes. The last step of a transaction, but for a task's own counter.
    pub async fn write(self, tx: &Tx) -> Result<()> {
        use entity::backup_counts::{Column, Entity, Model};
        for ((repository_id, status, backup_type), change) in self.0 {
            if change == 0 {
                continue;
            }
            let row = Model { repository_id, status, backup_type, backups: change };
            let add = OnConflict::columns([Column::RepositoryId, Column::Status, Column::BackupType])
                .value(Column::Backups, Expr::col((Entity, Column::Backups)).add(change))
                .to_owned();
            Entity::insert(row.into_active_model()).on_conflict(add).exec_without_returning(&**tx).await?;
        }
        Ok(())
    }
}

/// A task of this kind has left a state and is in another. The last step of a transaction.
pub(crate) async fn task_became(tx: &Tx, kind: &str, from: &str, to: &str) -> Result<()> {
    let mut changes = BTreeMap::from([(to, 1)]);
    *changes.entry(from).or_default() -= 1;
    for (state, change) in changes {
        tasks_came(tx, kind, state, change).await?;
    }
    Ok(())
}

/// So many tasks of this kind are in a state now that were not. The last step of a transaction.
pub(crate) async fn tasks_came(tx: &Tx, kind: &str, state: &str, change: i64) -> Result<()> {
    use entity::task_counts::{Column, Entity, Model};
    if change == 0 {
        return Ok(());
    }
    let row = Model { kind: kind.to_owned(), state: state.to_owned(), tasks: change };
    let add = OnConflict::columns([Column::Kind, Column::State])
        .value(Column::Tasks, Expr::col((Entity, Column::Tasks)).add(change))
        .to_owned();
    Entity::insert(row.into_active_model()).on_conflict(add).exec_without_returning(&**tx).await?;
    Ok(())
}

/// So many tasks of these kinds and states were forgotten. The last step of a transaction.
pub(crate) async fn tasks_went(tx: &Tx, gone: BTreeMap<(String, String), i64>) -> Result<()> {
    use entity::task_counts::{Column, Entity};
    for ((kind, state), count) in gone {
        Entity::update_many()
            .col_expr(Column::Tasks, Expr::col(Column::Tasks).sub(count))
            .filter(Column::Kind.eq(kind))
            .filter(Column::State.eq(state))
            .exec(&**tx)
            .await?;
    }
    Ok(())
}

/// How many backups there are of these; `None` does not restrict.
pub(crate) async fn backups(
    db: &impl ConnectionTrait,
    repository_id: Option<&RepositoryId>,
    status: Option<BackupStatus>,
    backup_type: Option<BackupType>,
) -> Result<u64> {
    use entity::backup_counts::{Column, Entity};
    let mut select = Entity::find();
    if let Some(id) = repository_id {
        select = select.filter(Column::RepositoryId.eq(id.as_str()));
    }
    if let Some(status) = status {
        select = select.filter(Column::Status.eq(status.as_str()));
    }
    if let Some(backup_type) = backup_type {
        select = select.filter(Column::BackupType.eq(backup_type.as_str()));
    }
    // Ten rows per repository at most. The databases' own sums are decimals, each of another type.
    Ok(sum(select.all(db).await?.into_iter().map(|row| row.backups)))
}

/// How many tasks there are of this kind and state; `None` when the filter asks for more than the counters know.
pub(crate) async fn tasks(db: &impl ConnectionTrait, filter: &TaskFilter) -> Result<Option<u64>> {
    use entity::task_counts::{Column, Entity};
    if filter.subject_id.is_some() || filter.vm_context_id.is_some() {
        return Ok(None);
    }
    let mut select = Entity::find();
    if let Some(kind) = filter.kind {
        select = select.filter(Column::Kind.eq(kind.as_str()));
    }
    if let Some(state) = filter.state {
        select = select.filter(Column::State.eq(state.as_str()));
    }
    Ok(Some(sum(select.all(db).await?.into_iter().map(|row| row.tasks))))
}

/// A number of rows is shown and never reckoned with, so a sum that went wrong is better shown as none than an error.
fn sum(counters: impl Iterator<Item = i64>) -> u64 {
    u64::try_from(counters.sum::<i64>()).unwrap_or(0)
}

/// Forgets the counters of a repository that is removed; nothing is counted there any more.
pub(crate) async fn forget_repository(tx: &Tx, id: &RepositoryId) -> Result<()> {
    use entity::backup_counts::{Column, Entity};
    Entity::delete_many().filter(Column::RepositoryId.eq(id.as_str())).exec(&**tx).await?;
    Ok(())
}

/// Counts everything anew. Whatever made a counter wrong (a hub of an older release that works on the same database, a person
/// at the SQL prompt) is right again after the next start of a hub.
pub(crate) async fn recount(single: &DatabaseConnection) -> Result<()> {
    let is_sqlite = single.get_database_backend() == DbBackend::Sqlite;
    let options = TransactionOptions {
        isolation_level: (!is_sqlite).then_some(IsolationLevel::ReadCommitted),
        access_mode: None,
        sqlite_transaction_mode: is_sqlite.then_some(SqliteTransactionMode::Immediate),
    };
    let tx = single.begin_with_options(options).await?;
    recount_backups(&tx).await?;
    recount_tasks(&tx).await?;
    tx.commit().await.map_err(Error::from)
}

async fn recount_backups(tx: &impl ConnectionTrait) -> Result<()> {
    use entity::backup_counts::{ActiveModel, Column, Entity, Model};
    use entity::backups::Column as Of;
    // This locks the counters. A writer at work elsewhere waits here with its rows uncommitted, so that they are not counted,
    // and adds itself after.
    Entity::update_many().set(ActiveModel { backups: Set(0), ..Default::default() }).exec(tx).await?;
    let groups: Vec<(String, String, String, i64)> = entity::backups::Entity::find()
        .select_only()
        .column(Of::RepositoryId)
        .column(Of::Status)
        .column(Of::BackupType)
        .column_as(Of::BackupId.count(), "counted")
        .group_by(Of::RepositoryId)
        .group_by(Of::Status)
        .group_by(Of::BackupType)
        .order_by_asc(Of::RepositoryId)
        .order_by_asc(Of::Status)
        .order_by_asc(Of::BackupType)
        .into_tuple()
        .all(tx)
        .await?;
    for (repository_id, status, backup_type, backups) in groups {
        let row = Model { repository_id, status, backup_type, backups };
        let replace = OnConflict::columns([Column::RepositoryId, Column::Status, Column::BackupType])
            .update_column(Column::Backups)
            .to_owned();
        Entity::insert(row.into_active_model()).on_conflict(replace).exec_without_returning(tx).await?;
    }
    Ok(())
}

async fn recount_tasks(tx: &impl ConnectionTrait) -> Result<()> {
    use entity::task_counts::{ActiveModel, Column, Entity, Model};
    use entity::tasks::Column as Of;
    Entity::update_many().set(ActiveModel { tasks: Set(0), ..Default::default() }).exec(tx).await?;
    let groups: Vec<(String, String, i64)> = entity::tasks::Entity::find()
        .select_only()
        .column(Of::Kind)
        .column(Of::State)
        .column_as(Of::TaskId.count(), "counted")
        .group_by(Of::Kind)
        .group_by(Of::State)
        .order_by_asc(Of::Kind)
        .order_by_asc(Of::State)
        .into_tuple()
        .all(tx)
        .await?;
    for (kind, state, tasks) in groups {
        let row = Model { kind, state, tasks };
        let replace = OnConflict::columns([Column::Kind, Column::State]).update_column(Column::Tasks).to_owned();
        Entity::insert(row.into_active_model()).on_conflict(replace).exec_without_returning(tx).await?;
    }
    Ok(())
}
