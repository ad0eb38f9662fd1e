//! What verifications found of points, null where none was made, and which blocks are lost.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0009_verification"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        for column in ["verify_state", "verify_depth"] {
            add_column(m, "backups", word_opt(column)).await?;
        }
        for column in ["verified_at", "verify_bytes", "verify_ms"] {
            add_column(m, "backups", big_opt(column)).await?;
        }
        add_column(m, "backups", text_opt("verify_finding")).await?;
        index(m, "backups", "ix_backups_verified", &["repository_id", "verified_at", "completed_at"], false).await?;

        // Apart from the points: it may be long, and hardly any point has it.
        let columns = vec![id("backup_id"), int("disk_id"), id("vm_context_id"), id("repository_id"), json("lost")];
        let keys = vec![foreign(&["backup_id"], "backups", &["backup_id"], ForeignKeyAction::Cascade)];
        create(m, "damage", columns, &["backup_id", "disk_id"], keys).await?;
        index(m, "damage", "ix_damage_vm", &["vm_context_id", "repository_id"], false).await
    }
}
