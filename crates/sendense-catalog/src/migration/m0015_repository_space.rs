//! What repositories held from day to day.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0015_repository_space"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            id("repository_id"),
            int("day"),
            big("at"),
            big("total_bytes"),
            big("used_bytes"),
            big("available_bytes"),
        ];
        let keys = vec![foreign(&["repository_id"], "repositories", &["repository_id"], ForeignKeyAction::Cascade)];
        create(m, "repository_space", columns, &["repository_id", "day"], keys).await
    }
}
