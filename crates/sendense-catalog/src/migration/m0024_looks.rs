//! What a look at the schedules asks for is found in an index: of an execution the machines that run, and those whose turn comes next,
//! however many wait.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0024_looks"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        let by_turn = ["execution_id", "outcome", "turn", "vm_name", "vm_context_id", "not_before"];
        index(m, "execution_vms", "ix_execution_vms_outcome", &by_turn, false).await
    }
}
