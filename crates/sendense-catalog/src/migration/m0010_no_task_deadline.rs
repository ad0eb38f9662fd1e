//! Tasks have no deadline in their rows: nobody ever wrote one. What a task may take is in its request, and counts from the
//! moment it runs; a task that a hub's end interrupted is not begun again, so that nothing has to remember more.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0010_no_task_deadline"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_column(manager, "tasks", "deadline").await
    }
}
