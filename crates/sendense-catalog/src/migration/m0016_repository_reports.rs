//! Reports of what was out of order in repositories.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0016_repository_reports"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![id("repository_id"), big("at"), json("body")];
        let keys = vec![foreign(&["repository_id"], "repositories", &["repository_id"], ForeignKeyAction::Cascade)];
        create(m, "repository_reports", columns, &["repository_id", "at"], keys).await
    }
}
