//! When every block of a point was decoded last: a look at rest that comes after it does not make that undone.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0020_deep_proof"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        add_column(m, "backups", big_opt("deep_verified_at")).await?;
        let known = "UPDATE backups SET deep_verified_at = verified_at \
                     WHERE deep_verified_at IS NULL AND (verify_depth = 'deep' OR verify_state = 'corrupt')";
        m.get_connection().execute_unprepared(known).await?;
        index(m, "backups", "ix_backups_deep", &["repository_id", "deep_verified_at", "completed_at"], false).await
    }
}
