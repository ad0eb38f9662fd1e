//! Looking restore points up.
//!
//! A page is found in an index first (ids only) and its rows are fetched after, so that a deep page costs steps in an index
//! and not visits to the table.

use super::{Backup, Backups, row};
use crate::error::{Error, Noun, Result};
use crate::{Page, counts, entity, value};
use sea_orm::sea_query::{Expr, Order, Query, SelectStatement};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use sendense_types::{BackupId, BackupStatus, BackupType, RepositoryId, Timestamp, VmContextId};
use std::collections::{BTreeSet, HashMap};

/// So many rows are skipped in less time than it takes to ask for the number of rows first.
const NEAR: u64 = 1000;

/// Machines that one statement names: far below the 32,766 values that SQLite binds.
const VMS_AT_ONCE: usize = 1000;

/// Which backups; what is `None` does not restrict. All are combined with AND.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupFilter {
    /// Of machines that bore this name then.
    pub vm_name: Option<String>,
    /// Of this machine.
    pub vm_context_id: Option<VmContextId>,
    /// In this repository.
    pub repository_id: Option<RepositoryId>,
    /// In this state.
    pub status: Option<BackupStatus>,
    /// Of this type.
    pub backup_type: Option<BackupType>,
}

impl Backups<'_> {
    /// One by its id.
    pub async fn get(&self, id: &BackupId) -> Result<Backup> {
        let found = self.by_ids(&[id.as_str().to_owned()]).await?.pop();
        found.ok_or_else(|| Error::not_found(Noun::Backup, id))
    }

    /// Backups, newest first, with the number of all that match.
    pub async fn list(&self, filter: &BackupFilter, page: Page) -> Result<(Vec<Backup>, u64)> {
        // What comes or goes in between would be counted and not shown, or the other way round.
        self.0.at_one_moment(|tx| async move { list_in(&*tx, filter, page).await }).await
    }

    /// The points that build directly on this one, over all disks, whether completed or being made.
    pub async fn children(&self, id: &BackupId) -> Result<Vec<BackupId>> {
        let children = children_of(self.0.pool(), [id.as_str()]).await?;
        children.iter().map(|id| value::read("backup_id", id)).collect()
    }

    /// The points that build on this one, directly or through others: what a cascading deletion takes along.
    pub async fn dependents(&self, id: &BackupId) -> Result<Vec<BackupId>> {
        let found = descendants_of(self.0.pool(), &BTreeSet::from([id.as_str()])).await?;
        found.iter().map(|id| value::read("backup_id", id)).collect()
    }

    /// The newest completed point of each of these machines, in any repository; machines without one are left out.
    pub async fn newest_of_vms(&self, vms: &[VmContextId]) -> Result<HashMap<VmContextId, Backup>> {
        self.newest_where(vms, Some(is_completed())).await
    }

    /// The newest backup of each of these machines, in whatever state; machines without one are left out.
    pub async fn newest_attempts_of_vms(&self, vms: &[VmContextId]) -> Result<HashMap<VmContextId, Backup>> {
        self.newest_where(vms, None).await
    }

    /// When the newest completed point of each of these machines was made, in any repository; machines without one are left out.
    pub async fn newest_times_of_vms(&self, vms: &[VmContextId]) -> Result<HashMap<VmContextId, Timestamp>> {
        use entity::backups::Column;
        use entity::vm_contexts::{Column as VmColumn, Entity as Machines};
        let newest = newest_of(Column::CreatedAt, Some(is_completed()));
        let mut found = HashMap::new();
        for chunk in vms.chunks(VMS_AT_ONCE) {
            let times: Vec<(String, Option<value::Ts>)> = Machines::find()
                .select_only()
                .column(VmColumn::VmContextId)
                .expr_as(Expr::SubQuery(None, Box::new(newest.clone().into())), "newest")
                .filter(VmColumn::VmContextId.is_in(chunk.iter().map(VmContextId::as_str)))
                .into_tuple()
                .all(self.0.pool())
                .await?;
            for (vm, made) in times {
                if let Some(made) = made {
                    found.insert(value::read("vm_context_id", &vm)?, made.into());
                }
            }
        }
        Ok(found)
    }

    /// How many completed points of a machine in a repository are newer than its newest full of all its disks, which is looked for among
    /// the newest `most`; `None` where it is not among them.
    pub async fn points_since_full(
        &self,
        vm: &VmContextId,
        repository: &RepositoryId,
        most: u64,
    ) -> Result<Option<u64>> {
        use entity::backups::{Column, Entity};
        let newest: Vec<(String, bool)> = Entity::find()
            .select_only()
            .columns([Column::BackupType, Column::Partial])
            .filter(Column::VmContextId.eq(vm.as_str()))
            .filter(Column::RepositoryId.eq(repository.as_str()))
            .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::BackupId)
            .limit(most)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        // Points of some disks only are no full of the machine.
        let is_full = |(kind, partial): &(String, bool)| kind == BackupType::Full.as_str() && !partial;
        Ok(newest.iter().position(is_full).map(|place| place as u64))
    }

    async fn newest_where(&self, vms: &[VmContextId], only: Option<Expr>) -> Result<HashMap<VmContextId, Backup>> {
        let mut found = HashMap::new();
        for chunk in vms.chunks(VMS_AT_ONCE) {
            for backup in self.by_ids(&self.newest_ids(chunk, only.clone()).await?).await? {
                found.insert(backup.vm_context_id.clone(), backup);
            }
        }
        Ok(found)
    }

    /// The newest of each machine's backups of which `only` is true.
    pub(super) async fn newest_ids(&self, vms: &[VmContextId], only: Option<Expr>) -> Result<Vec<String>> {
        use entity::backups::Column;
        use entity::vm_contexts::{Column as VmColumn, Entity as Machines};
        let newest = newest_of(Column::BackupId, only);
        let ids: Vec<Option<String>> = Machines::find()
            .select_only()
            .expr_as(Expr::SubQuery(None, Box::new(newest.into())), "newest")
            .filter(VmColumn::VmContextId.is_in(vms.iter().map(VmContextId::as_str)))
            .into_tuple()
            .all(self.0.pool())
            .await?;
        Ok(ids.into_iter().flatten().collect())
    }

    /// Backups of these ids with their disks, newest first; those that are not there are left out.
    pub async fn of_ids(&self, ids: &[BackupId]) -> Result<Vec<Backup>> {
        self.by_ids(&ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>()).await
    }

    /// Backups of these ids with their disks, newest first.
    pub(super) async fn by_ids(&self, ids: &[String]) -> Result<Vec<Backup>> {
        by_ids_in(self.0.pool(), ids).await
    }
}

/// A column of the newest backup of the machine that the statement around it is at.
fn newest_of(column: entity::backups::Column, only: Option<Expr>) -> SelectStatement {
    use entity::backups::{Column, Entity};
    let is_its = Expr::col((Entity, Column::VmContextId))
        .equals((entity::vm_contexts::Entity, entity::vm_contexts::Column::VmContextId));
    let mut newest = Query::select();
    newest
        .column((Entity, column))
        .from(Entity)
        .and_where(is_its)
        .and_where_option(only)
        .order_by((Entity, Column::CreatedAt), Order::Desc)
        .order_by((Entity, Column::BackupId), Order::Desc)
        .limit(1);
    newest
}

pub(super) fn is_completed() -> Expr {
    Expr::col((entity::backups::Entity, entity::backups::Column::Status)).eq(BackupStatus::Completed.as_str())
}

async fn list_in(db: &impl ConnectionTrait, filter: &BackupFilter, page: Page) -> Result<(Vec<Backup>, u64)> {
    let ids = async |page, order| {
        let ids = page_of_ids(filter, page, order).into_tuple::<String>().all(db).await;
        ids.map_err(Error::from)
    };
    let total = total_in(db, filter);
    if page.offset <= NEAR {
        let (ids, total) = tokio::try_join!(ids(page, Order::Desc), total)?;
        return Ok((by_ids_in(db, &ids).await?, total));
    }
    // A deep page is reached from the end that is nearer.
    let total = total.await?;
    let left = total.saturating_sub(page.offset);
    if left == 0 {
        return Ok((Vec::new(), total));
    }
    let ids = if page.offset <= total / 2 {
        ids(page, Order::Desc).await?
    } else {
        let limit = Ord::min(page.limit(), left);
        ids(Page { limit, offset: left - limit }, Order::Asc).await?
    };
    Ok((by_ids_in(db, &ids).await?, total))
}

/// How many match. Machines have hundreds of backups, which an index counts at once; of everything else there is a counter.
async fn total_in(db: &impl ConnectionTrait, filter: &BackupFilter) -> Result<u64> {
    if filter.vm_name.is_some() || filter.vm_context_id.is_some() {
        return value::count(select(filter), entity::backups::Column::BackupId, db).await;
    }
    counts::backups(db, filter.repository_id.as_ref(), filter.status, filter.backup_type).await
}

async fn by_ids_in(db: &impl ConnectionTrait, ids: &[String]) -> Result<Vec<Backup>> {
    use entity::{backup_disks, backups};
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = backups::Entity::find()
        .filter(backups::Column::BackupId.is_in(ids))
        .order_by_desc(backups::Column::CreatedAt)
        .order_by_desc(backups::Column::BackupId)
        .all(db);
    let disks = backup_disks::Entity::find()
        .filter(backup_disks::Column::BackupId.is_in(ids))
        .order_by_asc(backup_disks::Column::BackupId)
        .order_by_asc(backup_disks::Column::DiskId)
        .all(db);
    let (rows, disks) = tokio::try_join!(rows, disks)?;
    let mut by_backup = HashMap::<String, Vec<backup_disks::Model>>::new();
    for disk in disks {
        by_backup.entry(disk.backup_id.clone()).or_default().push(disk);
    }
    rows.into_iter()
        .map(|row| {
            let disks = by_backup.remove(&row.backup_id).unwrap_or_default();
            row::read(row, disks)
        })
        .collect()
}

/// The statement that finds a page's ids.
pub(super) fn page_of_ids(filter: &BackupFilter, page: Page, order: Order) -> Select<entity::backups::Entity> {
    use entity::backups::Column;
    select(filter)
        .select_only()
        .column(Column::BackupId)
        .order_by(Column::CreatedAt, order.clone())
        .order_by(Column::BackupId, order)
        .limit(page.limit())
        .offset(page.offset)
}

/// The rows that match, in no order.
pub(super) fn select(filter: &BackupFilter) -> Select<entity::backups::Entity> {
    use entity::backups::Column;
    let mut select = entity::backups::Entity::find();
    if let Some(name) = &filter.vm_name {
        select = select.filter(Column::VmName.eq(name));
    }
    if let Some(id) = &filter.vm_context_id {
        select = select.filter(Column::VmContextId.eq(id.as_str()));
    }
    if let Some(id) = &filter.repository_id {
        select = select.filter(Column::RepositoryId.eq(id.as_str()));
    }
    if let Some(status) = filter.status {
        select = select.filter(Column::Status.eq(status.as_str()));
    }
    if let Some(backup_type) = filter.backup_type {
        select = select.filter(Column::BackupType.eq(backup_type.as_str()));
    }
    select
}

/// Points that build directly on one of these, or are being made on one. Failed attempts need nothing.
pub(super) async fn children_of<'i>(
    db: &impl ConnectionTrait,
    ids: impl IntoIterator<Item = &'i str>,
) -> Result<BTreeSet<String>> {
    use entity::{backup_disks, backups};
    let ids: Vec<&str> = ids.into_iter().collect();
    let alive = [BackupStatus::Pending, BackupStatus::Running, BackupStatus::Completed].map(BackupStatus::as_str);
    let by_disk: Vec<String> = backup_disks::Entity::find()
        .select_only()
        .column(backup_disks::Column::BackupId)
        .filter(backup_disks::Column::ParentBackupId.is_in(ids.iter().copied()))
        .filter(backup_disks::Column::Status.is_in(alive))
        .into_tuple()
        .all(db)
        .await?;
    let by_point: Vec<String> = backups::Entity::find()
        .select_only()
        .column(backups::Column::BackupId)
        .filter(backups::Column::ParentBackupId.is_in(ids.iter().copied()))
        .filter(backups::Column::Status.is_in(alive))
        .into_tuple()
        .all(db)
        .await?;
    Ok(by_disk.into_iter().chain(by_point).collect())
}

/// Points that build on one of these, directly or through others; without these. One statement pair per generation, at
/// most as many as the longest chain has points.
pub(super) async fn descendants_of(db: &impl ConnectionTrait, ids: &BTreeSet<&str>) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::<String>::new();
    let mut generation = children_of(db, ids.iter().copied()).await?;
    loop {
        generation.retain(|id| !all.contains(id) && !ids.contains(id.as_str()));
        if generation.is_empty() {
            return Ok(all);
        }
        all.extend(generation.iter().cloned());
        generation = children_of(db, generation.iter().map(String::as_str)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;
    use sea_orm::{DbBackend, QueryTrait, Statement};

    /// How SQLite would run a statement, one step per line.
    async fn plan(catalog: &Catalog, statement: Statement) -> String {
        let explain = Statement { sql: format!("EXPLAIN QUERY PLAN {}", statement.sql), ..statement };
        let rows = catalog.pool().query_all_raw(explain).await.expect("explain");
        rows.iter().map(|row| row.try_get::<String>("", "detail").expect("a step")).collect::<Vec<_>>().join("\n")
    }

    fn filters() -> Vec<BackupFilter> {
        let id = |text: &str| text.parse().expect("an id");
        (0..32_u32)
            .map(|bits| BackupFilter {
                vm_name: (bits & 1 > 0).then(|| "vm".to_owned()),
                vm_context_id: (bits & 2 > 0).then(|| "vm-1".parse().expect("an id")),
                repository_id: (bits & 4 > 0).then(|| id("repo-1")),
                status: (bits & 8 > 0).then_some(BackupStatus::Completed),
                backup_type: (bits & 16 > 0).then_some(BackupType::Full),
            })
            .collect()
    }

    #[tokio::test]
    async fn lists_walk_an_index_and_sort_nothing() {
        let folder = tempfile::tempdir().expect("make a folder");
        let url = format!("sqlite://{}/catalog.db?mode=rwc", folder.path().display());
        let catalog = Catalog::open(&url).await.expect("open");
        for filter in filters() {
            for order in [Order::Desc, Order::Asc] {
                let page = page_of_ids(&filter, Page::default(), order).build(DbBackend::Sqlite);
                let plan = plan(&catalog, page).await;
                let indexed =
                    plan.lines().all(|step| step.contains("USING INDEX") || step.contains("USING COVERING INDEX"));
                assert!(indexed && !plan.contains("TEMP B-TREE"), "{filter:?}\n{plan}");
                let restricted = filter != BackupFilter::default();
                assert_eq!(plan.starts_with("SEARCH"), restricted, "{filter:?}\n{plan}");
            }
        }
    }

    #[tokio::test]
    async fn lookups_search_an_index() {
        let folder = tempfile::tempdir().expect("make a folder");
        let url = format!("sqlite://{}/catalog.db?mode=rwc", folder.path().display());
        let catalog = Catalog::open(&url).await.expect("open");
        for sql in [
            "SELECT * FROM backups WHERE backup_id IN ('a', 'b')",
            "SELECT * FROM backup_disks WHERE backup_id IN ('a', 'b') ORDER BY backup_id, disk_id",
            "SELECT backup_id FROM backup_disks WHERE parent_backup_id IN ('a') AND status IN ('completed')",
            "SELECT backup_id FROM backups WHERE parent_backup_id IN ('a') AND status IN ('completed')",
            "SELECT backup_id, parent_backup_id FROM backup_disks WHERE vm_context_id = 'a' AND disk_id = 0 \
             AND repository_id = 'r' AND status = 'completed'",
            "SELECT * FROM backups WHERE active_vm_context_id = 'a'",
            "SELECT * FROM vm_contexts WHERE vm_name = 'a' ORDER BY vm_name, vm_context_id",
            "SELECT * FROM vm_contexts WHERE source_id IS NULL AND kind = 'a' AND instance_uuid = 'b'",
            "SELECT task_id FROM tasks WHERE state = 'pending' ORDER BY created_at, task_id",
            "SELECT task_id FROM tasks WHERE subject_id = 'a' ORDER BY created_at DESC, task_id DESC",
            "SELECT * FROM tokens WHERE hash = x'00' AND revoked_at IS NULL",
            "SELECT * FROM execution_vms WHERE execution_id = 'a' AND outcome = 'running' \
             ORDER BY turn, vm_name, vm_context_id",
            "SELECT * FROM execution_vms WHERE execution_id = 'a' AND outcome = 'waiting' \
             AND (not_before IS NULL OR not_before <= 1) ORDER BY turn, vm_name, vm_context_id LIMIT 9",
            "SELECT outcome, COUNT(vm_context_id) FROM execution_vms WHERE execution_id = 'a' GROUP BY outcome",
            "SELECT * FROM journal WHERE done_at IS NULL ORDER BY created_at, artefact_id",
        ] {
            let plan = plan(&catalog, Statement::from_string(DbBackend::Sqlite, sql)).await;
            let searched = plan.lines().all(|step| step.starts_with("SEARCH"));
            assert!(searched, "{sql}\n{plan}");
        }
    }
}
