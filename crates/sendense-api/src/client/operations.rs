//! One method per operation of the API; each bears the operation's id in the OpenAPI document.

use super::{Client, ClientError};
use crate::reply::{
    BackupListReply, BackupReply, CatalogCopiesReply, CatalogCopyReply, ChainMoveReply, ChainReply, ConsolidationReply,
    DebugHealthReply, DeletionReply, DiscoveryReply, DoneReply, EndpointListReply, ExportListReply, ExportReply,
    HealthReply, LogReply, MergeReply, NewTokenReply, PruneReply, RecoveryListReply, RecoveryReply, ReportListReply,
    ReportReply, RepositoryListReply, RepositoryReply, SourceListReply, SourceReply, SpaceListReply, StorageReply,
    TaskListReply, TaskReply, TestReply, TokenListReply, VmListReply, VmReply,
};
use crate::{
    Backup, BackupFilter, CatalogCopy, Chain, ChainMove, ChainQuery, ChangeTags, ConsolidateQuery, Consolidation,
    CreateBackup, CreateExport, CreateRecovery, CreateRepository, CreateSource, CreateToken, DebugHealth, DeleteQuery,
    DeleteRepository, Deletion, Discovery, Endpoint, Export, Health, ListQuery, LogEntry, Merge, MergeQuery,
    MigrateRecovery, MoveQuery, MoveVm, NewToken, Page, Prune, PruneQuery, PruneVm, ReconcileQuery, Recovery,
    Repository, RepositoryReport, RestoreBackup, Source, SpaceSample, Storage, Task, TaskFilter, TestReport, Token,
    UpdateBackup, UpdateRepository, UpdateSource, VerifyBackup, Vm, VmFilter,
};
use reqwest::Method;
use sendense_types::{BackupId, ExportId, TaskId};

type Result<T> = std::result::Result<T, ClientError>;

/// Backups.
impl Client {
    /// Starts a backup. The reply's `task_id` is what [`Client::wait_for_task`] takes.
    pub async fn create_backup(&self, request: &CreateBackup) -> Result<Backup> {
        Ok(self.send::<_, BackupReply>(Method::POST, &["backups"], request).await?.backup)
    }

    /// Lists backups, newest first.
    pub async fn list_backups(&self, filter: &BackupFilter) -> Result<Page<Backup>> {
        Ok(self.get::<_, BackupListReply>(&["backups"], filter).await?.into())
    }

    /// One backup.
    pub async fn get_backup(&self, backup_id: &BackupId) -> Result<Backup> {
        Ok(self.get::<_, BackupReply>(&["backups", backup_id.as_str()], &()).await?.backup)
    }

    /// Deletes a backup, or shows what that would take.
    pub async fn delete_backup(&self, backup_id: &BackupId, how: &DeleteQuery) -> Result<Deletion> {
        Ok(self.delete::<_, DeletionReply>(&["backups", backup_id.as_str()], how).await?.deletion)
    }

    /// Merges a backup into the one that stands on it, or shows what that would take.
    pub async fn merge_backup(&self, backup_id: &BackupId, how: &MergeQuery) -> Result<Merge> {
        let path = ["backups", backup_id.as_str(), "merge"];
        Ok(self.finish::<MergeReply>(self.call(Method::POST, &path).query(how)).await?.merge)
    }

    /// Hangs tags on the VM with this name or id, and takes others off.
    pub async fn change_tags(&self, vm: &str, change: &ChangeTags) -> Result<Vm> {
        Ok(self.send::<_, VmReply>(Method::POST, &["vms", vm, "tags"], change).await?.vm)
    }

    /// Makes a chain shorter, or shows what that would take.
    pub async fn consolidate_chain(&self, vm: &str, how: &ConsolidateQuery) -> Result<Consolidation> {
        let path = ["vms", vm, "consolidate"];
        Ok(self.finish::<ConsolidationReply>(self.call(Method::POST, &path).query(how)).await?.consolidation)
    }

    /// Moves a VM's backups to another repository, or shows what that would take.
    pub async fn move_chain(&self, vm: &str, request: &MoveVm, how: &MoveQuery) -> Result<ChainMove> {
        let call = self.call(Method::POST, &["vms", vm, "move"]).query(how).json(request);
        Ok(self.finish::<ChainMoveReply>(call).await?.chain_move)
    }

    /// The chain of a disk.
    pub async fn backup_chain(&self, which: &ChainQuery) -> Result<Chain> {
        Ok(self.get::<_, ChainReply>(&["backups", "chain"], which).await?.payload)
    }

    /// The chain of a disk of the VM with this name or id.
    pub async fn vm_backup_chain(&self, vm_name: &str, which: &ChainQuery) -> Result<Chain> {
        Ok(self.get::<_, ChainReply>(&["backups", vm_name, "chain"], which).await?.payload)
    }

    /// Stops a backup.
    pub async fn cancel_backup(&self, backup_id: &BackupId) -> Result<Backup> {
        Ok(self.post::<BackupReply>(&["backups", backup_id.as_str(), "cancel"]).await?.backup)
    }

    /// Starts a verification.
    pub async fn verify_backup(&self, backup_id: &BackupId, how: &VerifyBackup) -> Result<Task> {
        let path = ["backups", backup_id.as_str(), "verify"];
        Ok(self.send::<_, TaskReply>(Method::POST, &path, how).await?.task)
    }

    /// Changes what keeps a backup from being deleted.
    pub async fn update_backup(&self, backup_id: &BackupId, change: &UpdateBackup) -> Result<Backup> {
        Ok(self.send::<_, BackupReply>(Method::PATCH, &["backups", backup_id.as_str()], change).await?.backup)
    }

    /// Starts a restore.
    pub async fn restore_backup(&self, backup_id: &BackupId, request: &RestoreBackup) -> Result<Task> {
        let path = ["backups", backup_id.as_str(), "restore"];
        Ok(self.send::<_, TaskReply>(Method::POST, &path, request).await?.task)
    }

    /// The log of the task that made a backup.
    pub async fn backup_log(&self, backup_id: &BackupId, page: &ListQuery) -> Result<Page<LogEntry>> {
        Ok(self.get::<_, LogReply>(&["backups", backup_id.as_str(), "log"], page).await?.into())
    }
}

/// Tasks.
impl Client {
    /// Lists tasks, newest first.
    pub async fn list_tasks(&self, filter: &TaskFilter) -> Result<Page<Task>> {
        Ok(self.get::<_, TaskListReply>(&["tasks"], filter).await?.into())
    }

    /// One task.
    pub async fn get_task(&self, task_id: &TaskId) -> Result<Task> {
        Ok(self.get::<_, TaskReply>(&["tasks", task_id.as_str()], &()).await?.task)
    }

    /// Asks a task to stop.
    pub async fn cancel_task(&self, task_id: &TaskId) -> Result<Task> {
        Ok(self.post::<TaskReply>(&["tasks", task_id.as_str(), "cancel"]).await?.task)
    }

    /// A task's log.
    pub async fn task_log(&self, task_id: &TaskId, page: &ListQuery) -> Result<Page<LogEntry>> {
        Ok(self.get::<_, LogReply>(&["tasks", task_id.as_str(), "log"], page).await?.into())
    }
}

/// Restore points over NBD.
impl Client {
    /// Offers a disk of a restore point to NBD clients.
    pub async fn create_export(&self, request: &CreateExport) -> Result<Export> {
        Ok(self.send::<_, ExportReply>(Method::POST, &["exports"], request).await?.export)
    }

    /// Lists exports, oldest first.
    pub async fn list_exports(&self, page: &ListQuery) -> Result<Page<Export>> {
        Ok(self.get::<_, ExportListReply>(&["exports"], page).await?.into())
    }

    /// Takes an export back.
    pub async fn delete_export(&self, export_id: &ExportId) -> Result<()> {
        self.delete::<_, DoneReply>(&["exports", export_id.as_str()], &()).await.map(drop)
    }
}

/// Instant recoveries.
impl Client {
    /// Serves a restore point writable.
    pub async fn create_recovery(&self, request: &CreateRecovery) -> Result<Recovery> {
        Ok(self.send::<_, RecoveryReply>(Method::POST, &["recoveries"], request).await?.recovery)
    }

    /// Lists recoveries, oldest first.
    pub async fn list_recoveries(&self, page: &ListQuery) -> Result<Page<Recovery>> {
        Ok(self.get::<_, RecoveryListReply>(&["recoveries"], page).await?.into())
    }

    /// One recovery, with the recorded configuration.
    pub async fn recovery(&self, id_or_name: &str) -> Result<Recovery> {
        Ok(self.get::<_, RecoveryReply>(&["recoveries", id_or_name], &()).await?.recovery)
    }

    /// Makes what was written to a recovery the next point of its chain.
    pub async fn commit_recovery(&self, id_or_name: &str) -> Result<Backup> {
        Ok(self.post::<BackupReply>(&["recoveries", id_or_name, "commit"]).await?.backup)
    }

    /// Moves a recovered machine to storage of its own.
    pub async fn migrate_recovery(&self, id_or_name: &str, request: &MigrateRecovery) -> Result<Task> {
        Ok(self.send::<_, TaskReply>(Method::POST, &["recoveries", id_or_name, "migrate"], request).await?.task)
    }

    /// Takes a recovery away with all that was written to it.
    pub async fn delete_recovery(&self, id_or_name: &str) -> Result<()> {
        self.delete::<_, DoneReply>(&["recoveries", id_or_name], &()).await.map(drop)
    }
}

/// Repositories; each is named by its id or its name.
impl Client {
    /// Makes a repository known, and makes it if its folder is empty.
    pub async fn create_repository(&self, request: &CreateRepository) -> Result<Repository> {
        Ok(self.send::<_, RepositoryReply>(Method::POST, &["repositories"], request).await?.repository)
    }

    /// Lists repositories by name.
    pub async fn list_repositories(&self, page: &ListQuery) -> Result<Page<Repository>> {
        Ok(self.get::<_, RepositoryListReply>(&["repositories"], page).await?.into())
    }

    /// One repository.
    pub async fn get_repository(&self, repository: &str) -> Result<Repository> {
        Ok(self.get::<_, RepositoryReply>(&["repositories", repository], &()).await?.repository)
    }

    /// The space of a repository.
    pub async fn repository_storage(&self, repository: &str) -> Result<Storage> {
        Ok(self.get::<_, StorageReply>(&["repositories", repository, "storage"], &()).await?.payload)
    }

    /// Looks through a repository and repairs what is safe.
    pub async fn reconcile_repository(&self, repository: &str, how: &ReconcileQuery) -> Result<RepositoryReport> {
        let path = ["repositories", repository, "reconcile"];
        Ok(self.finish::<ReportReply>(self.call(Method::POST, &path).query(how)).await?.report)
    }

    /// What was out of order in a repository, newest first.
    pub async fn repository_reports(&self, repository: &str, page: &ListQuery) -> Result<Page<RepositoryReport>> {
        Ok(self.get::<_, ReportListReply>(&["repositories", repository, "reports"], page).await?.into())
    }

    /// What a repository held from day to day.
    pub async fn repository_space(&self, repository: &str, page: &ListQuery) -> Result<Page<SpaceSample>> {
        Ok(self.get::<_, SpaceListReply>(&["repositories", repository, "space"], page).await?.into())
    }

    /// Changes a repository: its maintenance mode and its room.
    pub async fn update_repository(&self, repository: &str, request: &UpdateRepository) -> Result<Repository> {
        let path = ["repositories", repository];
        Ok(self.send::<_, RepositoryReply>(Method::PATCH, &path, request).await?.repository)
    }

    /// Tries what [`Client::create_repository`] would do, and leaves nothing behind.
    pub async fn test_repository(&self, request: &CreateRepository) -> Result<TestReport> {
        Ok(self.send::<_, TestReply>(Method::POST, &["repositories", "test"], request).await?.report)
    }

    /// Starts the rebuilding of the catalog from a repository's manifests.
    pub async fn import_repository(&self, repository: &str) -> Result<Task> {
        Ok(self.post::<TaskReply>(&["repositories", repository, "import"]).await?.task)
    }

    /// Copies the catalog into a repository now.
    pub async fn copy_catalog(&self, repository: &str) -> Result<CatalogCopy> {
        Ok(self.post::<CatalogCopyReply>(&["repositories", repository, "catalog-copies"]).await?.catalog_copy)
    }

    /// The copies of catalogs in a repository, the newest first.
    pub async fn list_catalog_copies(&self, repository: &str) -> Result<Vec<CatalogCopy>> {
        let path = ["repositories", repository, "catalog-copies"];
        Ok(self.get::<_, CatalogCopiesReply>(&path, &()).await?.catalog_copies)
    }

    /// Forgets a repository that holds no backups, or one that is lost.
    pub async fn delete_repository(&self, repository: &str, how: &DeleteRepository) -> Result<()> {
        self.delete::<_, DoneReply>(&["repositories", repository], how).await.map(drop)
    }
}

/// Sources and VMs; each is named by its id or its name.
impl Client {
    /// Makes a source known.
    pub async fn create_source(&self, request: &CreateSource) -> Result<Source> {
        Ok(self.send::<_, SourceReply>(Method::POST, &["sources"], request).await?.source)
    }

    /// Lists sources by name.
    pub async fn list_sources(&self, page: &ListQuery) -> Result<Page<Source>> {
        Ok(self.get::<_, SourceListReply>(&["sources"], page).await?.into())
    }

    /// One source.
    pub async fn get_source(&self, source: &str) -> Result<Source> {
        Ok(self.get::<_, SourceReply>(&["sources", source], &()).await?.source)
    }

    /// Changes a source.
    pub async fn update_source(&self, source: &str, request: &UpdateSource) -> Result<Source> {
        Ok(self.send::<_, SourceReply>(Method::PATCH, &["sources", source], request).await?.source)
    }

    /// Forgets a source. Backups of its machines stay.
    pub async fn delete_source(&self, source: &str) -> Result<()> {
        self.delete::<_, DoneReply>(&["sources", source], &()).await.map(drop)
    }

    /// Tries whether a source answers.
    pub async fn test_source(&self, source: &str) -> Result<TestReport> {
        Ok(self.post::<TestReply>(&["sources", source, "test"]).await?.report)
    }

    /// Lists a source's machines and takes them into the catalog.
    pub async fn discover_source(&self, source: &str) -> Result<Discovery> {
        Ok(self.post::<DiscoveryReply>(&["sources", source, "discover"]).await?.payload)
    }

    /// Lists VMs by name.
    pub async fn list_vms(&self, filter: &VmFilter) -> Result<Page<Vm>> {
        Ok(self.get::<_, VmListReply>(&["vms"], filter).await?.into())
    }

    /// One VM.
    pub async fn get_vm(&self, vm: &str) -> Result<Vm> {
        Ok(self.get::<_, VmReply>(&["vms", vm], &()).await?.vm)
    }

    /// Deletes the points of a VM that no rule keeps, or shows what would go.
    pub async fn prune_vm(&self, vm: &str, request: &PruneVm, how: &PruneQuery) -> Result<Prune> {
        let call = self.call(Method::POST, &["vms", vm, "prune"]).query(how).json(request);
        Ok(self.finish::<PruneReply>(call).await?.prune)
    }
}

/// Tokens and health.
impl Client {
    /// Makes a token; its secret is shown only now.
    pub async fn create_token(&self, request: &CreateToken) -> Result<NewToken> {
        Ok(self.send::<_, NewTokenReply>(Method::POST, &["tokens"], request).await?.payload)
    }

    /// Lists tokens by name.
    pub async fn list_tokens(&self, page: &ListQuery) -> Result<Page<Token>> {
        Ok(self.get::<_, TokenListReply>(&["tokens"], page).await?.into())
    }

    /// Ends a token, by its id or name.
    pub async fn revoke_token(&self, token: &str) -> Result<()> {
        self.delete::<_, DoneReply>(&["tokens", token], &()).await.map(drop)
    }

    /// Whether the hub serves; needs no token.
    pub async fn health(&self) -> Result<Health> {
        Ok(self.get::<_, HealthReply>(&["health"], &()).await?.payload)
    }

    /// How the hub's parts are.
    pub async fn debug_health(&self) -> Result<DebugHealth> {
        Ok(self.get::<_, DebugHealthReply>(&["debug", "health"], &()).await?.payload)
    }

    /// Every call that the hub answers.
    pub async fn debug_endpoints(&self) -> Result<Vec<Endpoint>> {
        Ok(self.get::<_, EndpointListReply>(&["debug", "endpoints"], &()).await?.endpoints)
    }

    /// The hub's metrics, in Prometheus' text form.
    pub async fn metrics(&self) -> Result<String> {
        let body = self.finish_bytes(self.call(Method::GET, &["metrics"])).await?;
        String::from_utf8(body).map_err(|_| ClientError::Protocol("the metrics are not text".to_owned()))
    }

    /// The OpenAPI document.
    pub async fn openapi(&self) -> Result<serde_json::Value> {
        self.get(&["openapi.json"], &()).await
    }
}
