//! What an audit of change tracking found, by disk. Null where none was made, as in all rows of before.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0005_tracking_audit"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in ["audit_blocks_checked", "audit_blocks_different"] {
            add_column(manager, "backup_disks", big_opt(column)).await?;
        }
        Ok(())
    }
}
