//! Nodes, and the codes by which new ones are let in.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0007_nodes"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![
            id("node_id"),
            name("name"),
            // The name while the node is valid: unique among those, because absent values never collide.
            ColumnDef::new("valid_name").string_len(NAME_CHARS).null().take(),
            bytes("certificate", 32),
            text("enrolled_by"),
            big("created_at"),
            big_opt("revoked_at"),
            big_opt("last_seen_at"),
            json_opt("state"),
        ];
        create(m, "nodes", columns, &["node_id"], vec![]).await?;
        index(m, "nodes", "ux_nodes_name", &["valid_name"], true).await?;
        index(m, "nodes", "ux_nodes_certificate", &["certificate"], true).await?;

        let columns = vec![id("code_hash"), name("name"), text("created_by"), big("created_at"), big("expires_at")];
        create(m, "node_codes", columns, &["code_hash"], vec![]).await?;
        index(m, "node_codes", "ix_node_codes_expires", &["expires_at"], false).await
    }
}
