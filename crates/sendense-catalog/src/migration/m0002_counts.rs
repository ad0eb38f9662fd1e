//! Counters of backups and tasks, so that a list need not count its rows. They are filled when the catalog is opened, which
//! is after every migration.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0002_counts"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![id("repository_id"), word("status"), word("backup_type"), big("backups")];
        create(manager, "backup_counts", columns, &["repository_id", "status", "backup_type"], vec![]).await?;
        let columns = vec![word("kind"), word("state"), big("tasks")];
        create(manager, "task_counts", columns, &["kind", "state"], vec![]).await
    }
}
