//! Maintenance modes of repositories: null is the normal one.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0011_repository_modes"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        add_column(m, "repositories", word_opt("mode")).await?;
        add_column(m, "repositories", text_opt("mode_reason")).await?;
        add_column(m, "repositories", big_opt("mode_since")).await?;
        add_column(m, "repositories", text_opt("mode_by")).await
    }
}
