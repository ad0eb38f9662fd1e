//! The first schema.
//!
//! Lists are served newest first by an index that ends in `(created_at, id)`; the columns after these let the filters that
//! are combined with the leading one be tested in the index, without a visit to the table.

use super::table::*;
use sea_orm_migration::prelude::*;

pub struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0001_initial"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        hubs(manager).await?;
        machines(manager).await?;
        backups(manager).await?;
        tasks(manager).await?;
        rest(manager).await
    }
}

async fn hubs(m: &SchemaManager<'_>) -> Result<(), DbErr> {
    create(m, "deployment", vec![int("one"), id("deployment_id"), big("created_at")], &["one"], vec![]).await?;
    let columns = vec![id("hub_id"), big("epoch"), big("lease_until"), big("started_at")];
    create(m, "hubs", columns, &["hub_id"], vec![]).await?;
    let columns = vec![name("name"), name("owner"), big("epoch"), big("lease_until")];
    create(m, "leases", columns, &["name"], vec![]).await
}

async fn machines(m: &SchemaManager<'_>) -> Result<(), DbErr> {
    let columns = vec![
        id("source_id"),
        name("name"),
        word("kind"),
        json("config"),
        bytes_opt("secret", 16_384),
        big("created_at"),
        big_opt("last_discovered_at"),
        text_opt("last_error"),
    ];
    create(m, "sources", columns, &["source_id"], vec![]).await?;
    index(m, "sources", "ux_sources_name", &["name"], true).await?;

    let columns = vec![
        id("repository_id"),
        name("name"),
        word("kind"),
        json("config"),
        json("settings"),
        bytes_opt("secret", 16_384),
        big("created_at"),
    ];
    create(m, "repositories", columns, &["repository_id"], vec![]).await?;
    index(m, "repositories", "ux_repositories_name", &["name"], true).await?;

    let columns = vec![
        id("vm_context_id"),
        id_opt("source_id"),
        word("kind"),
        name("instance_uuid"),
        name("vm_name"),
        text_opt("path"),
        word("power_state"),
        json("facts"),
        big("created_at"),
        big_opt("last_seen_at"),
        big_opt("vanished_at"),
    ];
    // A source goes only after its contexts were detached or deleted in the same transaction.
    let keys = vec![foreign(&["source_id"], "sources", &["source_id"], ForeignKeyAction::Restrict)];
    create(m, "vm_contexts", columns, &["vm_context_id"], keys).await?;
    index(m, "vm_contexts", "ux_vm_contexts_identity", &["source_id", "instance_uuid"], true).await?;
    index(m, "vm_contexts", "ix_vm_contexts_kind_uuid", &["kind", "instance_uuid"], false).await?;
    index(m, "vm_contexts", "ix_vm_contexts_name", &["vm_name", "vm_context_id"], false).await?;

    let columns = vec![
        id("vm_context_id"),
        int("disk_id"),
        text("disk_key"),
        text("binding"),
        text("label"),
        big("capacity_bytes"),
        text_opt("datastore"),
        word_opt("format"),
        flag("present"),
        id_opt("job_id"),
    ];
    let keys = vec![foreign(&["vm_context_id"], "vm_contexts", &["vm_context_id"], ForeignKeyAction::Cascade)];
    create(m, "vm_disks", columns, &["vm_context_id", "disk_id"], keys).await
}

async fn backups(m: &SchemaManager<'_>) -> Result<(), DbErr> {
    let columns = vec![
        id("backup_id"),
        id("vm_context_id"),
        id_opt("active_vm_context_id"),
        name("vm_name"),
        id("repository_id"),
        word("requested_type"),
        word("backup_type"),
        text_opt("type_reason"),
        id_opt("policy_id"),
        id_opt("parent_backup_id"),
        word("status"),
        word_opt("phase"),
        big("bytes_done"),
        big("bytes_transferred"),
        big("bytes_stored"),
        big("total_bytes"),
        word_opt("consistency"),
        id_opt("error_code"),
        text_opt("error_message"),
        json("tags"),
        flag("partial"),
        flag("quiesce"),
        word("compression"),
        word("on_tracking_loss"),
        text_opt("created_by"),
        id_opt("task_id"),
        big("created_at"),
        big_opt("started_at"),
        big_opt("completed_at"),
    ];
    let keys = vec![
        foreign(&["vm_context_id"], "vm_contexts", &["vm_context_id"], ForeignKeyAction::Restrict),
        foreign(&["repository_id"], "repositories", &["repository_id"], ForeignKeyAction::Restrict),
        foreign(&["parent_backup_id"], "backups", &["backup_id"], ForeignKeyAction::Restrict),
    ];
    create(m, "backups", columns, &["backup_id"], keys).await?;
    // The guard that no two hubs back up one VM at once: the VM's id while the backup is not final, else NULL.
    index(m, "backups", "ux_backups_active", &["active_vm_context_id"], true).await?;
    index(m, "backups", "ix_backups_recent", &["created_at", "backup_id"], false).await?;
    let per_vm = ["vm_context_id", "created_at", "backup_id", "status"];
    index(m, "backups", "ix_backups_vm", &per_vm, false).await?;
    index(m, "backups", "ix_backups_name", &["vm_name", "created_at", "backup_id"], false).await?;
    let per_repository = ["repository_id", "created_at", "backup_id", "status", "backup_type"];
    index(m, "backups", "ix_backups_repository", &per_repository, false).await?;
    let per_status = ["status", "created_at", "backup_id", "repository_id", "backup_type"];
    index(m, "backups", "ix_backups_status", &per_status, false).await?;
    let per_type = ["backup_type", "created_at", "backup_id"];
    index(m, "backups", "ix_backups_type", &per_type, false).await?;
    index(m, "backups", "ix_backups_parent", &["parent_backup_id"], false).await?;

    let columns = vec![
        id("backup_id"),
        int("disk_id"),
        id("vm_context_id"),
        id("repository_id"),
        text("disk_key"),
        text("label"),
        word("backup_type"),
        text_opt("type_reason"),
        text_opt("file_path"),
        big("capacity_bytes"),
        big("bytes_transferred"),
        big("bytes_stored"),
        text_opt("backing_file"),
        text_opt("change_id"),
        word("status"),
        id_opt("parent_backup_id"),
    ];
    let keys = vec![
        foreign(&["backup_id"], "backups", &["backup_id"], ForeignKeyAction::Cascade),
        foreign(&["vm_context_id", "disk_id"], "vm_disks", &["vm_context_id", "disk_id"], ForeignKeyAction::Restrict),
        foreign(&["parent_backup_id"], "backups", &["backup_id"], ForeignKeyAction::Restrict),
    ];
    create(m, "backup_disks", columns, &["backup_id", "disk_id"], keys).await?;
    let per_disk = ["vm_context_id", "disk_id", "repository_id", "status", "backup_id", "parent_backup_id"];
    index(m, "backup_disks", "ix_backup_disks_disk", &per_disk, false).await?;
    index(m, "backup_disks", "ix_backup_disks_parent", &["parent_backup_id", "backup_id"], false).await?;

    let columns = vec![
        id("vm_context_id"),
        id("repository_id"),
        int("disk_id"),
        id("full_backup_id"),
        id("latest_backup_id"),
        big("updated_at"),
    ];
    let keys = vec![
        foreign(&["vm_context_id", "disk_id"], "vm_disks", &["vm_context_id", "disk_id"], ForeignKeyAction::Restrict),
        foreign(&["repository_id"], "repositories", &["repository_id"], ForeignKeyAction::Restrict),
        foreign(&["full_backup_id"], "backups", &["backup_id"], ForeignKeyAction::Restrict),
        foreign(&["latest_backup_id"], "backups", &["backup_id"], ForeignKeyAction::Restrict),
    ];
    create(m, "chains", columns, &["vm_context_id", "repository_id", "disk_id"], keys).await?;
    index(m, "chains", "ix_chains_full", &["full_backup_id"], false).await?;
    index(m, "chains", "ix_chains_latest", &["latest_backup_id"], false).await
}

async fn tasks(m: &SchemaManager<'_>) -> Result<(), DbErr> {
    let columns = vec![
        id("task_id"),
        word("kind"),
        word("state"),
        word("subject_kind"),
        id_opt("subject_id"),
        json("request"),
        json_opt("result"),
        id_opt("hub_id"),
        big_opt("hub_epoch"),
        big_opt("lease_until"),
        big("version"),
        int("attempts"),
        flag("cancel_requested"),
        json_opt("progress"),
        big("bytes_done"),
        big("bytes_total"),
        id_opt("error_code"),
        text_opt("error_message"),
        big("log_next"),
        text_opt("created_by"),
        big("created_at"),
        big_opt("started_at"),
        big_opt("finished_at"),
        big_opt("deadline"),
    ];
    create(m, "tasks", columns, &["task_id"], vec![]).await?;
    index(m, "tasks", "ix_tasks_recent", &["created_at", "task_id"], false).await?;
    index(m, "tasks", "ix_tasks_state", &["state", "created_at", "task_id", "kind"], false).await?;
    index(m, "tasks", "ix_tasks_kind", &["kind", "created_at", "task_id"], false).await?;
    index(m, "tasks", "ix_tasks_subject", &["subject_id", "created_at", "task_id"], false).await?;

    let columns = vec![id("task_id"), big("seq"), big("at"), word("level"), text("message"), json("fields")];
    let keys = vec![foreign(&["task_id"], "tasks", &["task_id"], ForeignKeyAction::Cascade)];
    create(m, "task_log", columns, &["task_id", "seq"], keys).await
}

async fn rest(m: &SchemaManager<'_>) -> Result<(), DbErr> {
    let columns = vec![
        id("token_id"),
        name("name"),
        word("role"),
        bytes("hash", 32),
        big("created_at"),
        big_opt("last_used_at"),
        big_opt("revoked_at"),
    ];
    create(m, "tokens", columns, &["token_id"], vec![]).await?;
    index(m, "tokens", "ux_tokens_hash", &["hash"], true).await?;

    create(m, "settings", vec![name("key"), json("value"), big("updated_at")], &["key"], vec![]).await?;

    let columns = vec![
        id("artefact_id"),
        id_opt("task_id"),
        id("node"),
        word("kind"),
        json("particulars"),
        big("created_at"),
        big_opt("done_at"),
    ];
    create(m, "journal", columns, &["artefact_id"], vec![]).await?;
    index(m, "journal", "ix_journal_open", &["done_at", "created_at", "artefact_id"], false).await?;
    index(m, "journal", "ix_journal_task", &["task_id"], false).await
}
