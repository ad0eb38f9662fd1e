//! What keeps a point from being deleted, as its repository says it.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0003_holds"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        add_column(manager, "backups", flag("protected").default(false).take()).await?;
        add_column(manager, "backups", big_opt("hold_until")).await
    }
}
