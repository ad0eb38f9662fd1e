//! What policies choose machines by beside their names: the folder that a source tells, and the words that people hang on them.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0019_vm_tags"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        add_column(m, "vm_contexts", text_opt("folder")).await?;
        // A tag has at most as many characters as an id.
        let columns = vec![id("vm_context_id"), id("tag")];
        let keys = vec![foreign(&["vm_context_id"], "vm_contexts", &["vm_context_id"], ForeignKeyAction::Cascade)];
        create(m, "vm_tags", columns, &["vm_context_id", "tag"], keys).await?;
        index(m, "vm_tags", "ix_vm_tags_tag", &["tag", "vm_context_id"], false).await
    }
}
