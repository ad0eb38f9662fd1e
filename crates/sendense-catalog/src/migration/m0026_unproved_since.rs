//! Since when a point waits for its first look: its age is that of the oldest bytes that it holds, which a merge may have given it.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0026_unproved_since"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        add_column(m, "backups", big_opt("unproved_since")).await?;
        let known = "UPDATE backups SET unproved_since = completed_at \
                     WHERE unproved_since IS NULL AND status = 'completed'";
        m.get_connection().execute_unprepared(known).await?;
        index(m, "backups", "ix_backups_unproved", &["repository_id", "verified_at", "unproved_since"], false).await?;
        index(m, "backups", "ix_backups_undecoded", &["repository_id", "deep_verified_at", "unproved_since"], false)
            .await?;
        // These two begin as the new ones do, and nobody asks for their ends any more.
        drop_index(m, "backups", "ix_backups_verified").await?;
        drop_index(m, "backups", "ix_backups_deep").await
    }
}
