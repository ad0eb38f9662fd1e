//! Policies, schedules, and what was executed of them.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0006_schedules"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, m: &SchemaManager) -> Result<(), DbErr> {
        let columns = vec![id("policy_id"), name("name"), json("body"), big("created_at"), big("updated_at")];
        create(m, "policies", columns, &["policy_id"], vec![]).await?;
        index(m, "policies", "ux_policies_name", &["name"], true).await?;

        let columns = vec![
            id("schedule_id"),
            name("name"),
            id("policy_id"),
            flag("enabled"),
            json("body"),
            big("since"),
            big_opt("handled"),
            big("created_at"),
        ];
        let keys = vec![foreign(&["policy_id"], "policies", &["policy_id"], ForeignKeyAction::Restrict)];
        create(m, "schedules", columns, &["schedule_id"], keys).await?;
        index(m, "schedules", "ux_schedules_name", &["name"], true).await?;
        index(m, "schedules", "ix_schedules_policy", &["policy_id"], false).await?;

        let columns = vec![
            id("execution_id"),
            id("schedule_id"),
            id("policy_id"),
            big("due"),
            word("state"),
            text_opt("reason"),
            text_opt("triggered_by"),
            id("hub_id"),
            big("hub_epoch"),
            big("started_at"),
            big_opt("finished_at"),
        ];
        let keys = vec![foreign(&["schedule_id"], "schedules", &["schedule_id"], ForeignKeyAction::Cascade)];
        create(m, "executions", columns, &["execution_id"], keys).await?;
        index(m, "executions", "ix_executions_schedule", &["schedule_id", "started_at", "execution_id"], false).await?;
        index(m, "executions", "ix_executions_state", &["state", "started_at", "execution_id"], false).await?;

        let columns = vec![
            id("execution_id"),
            id("vm_context_id"),
            name("vm_name"),
            word("outcome"),
            id_opt("backup_id"),
            int("attempts"),
            big_opt("not_before"),
            text_opt("reason"),
        ];
        let keys = vec![foreign(&["execution_id"], "executions", &["execution_id"], ForeignKeyAction::Cascade)];
        create(m, "execution_vms", columns, &["execution_id", "vm_context_id"], keys).await
    }
}
