//! Instant recoveries: make, look at, discard.

use super::{App, Caller};
use crate::fault::{OrProblem, Result, invalid};
use crate::jobs::work::{MigrateWork, Work};
use crate::maintenance::Use;
use crate::recoveries::{self, Recovery, State, Wanted};
use sendense_api as dto;
use sendense_api::{
    CreateRecovery, ImageFormat, ListQuery, MigrateRecovery, Page, RecoveryDisk, RecoveryDocument, RecoveryMachine,
    RecoveryStatus, Role,
};
use sendense_catalog as catalog;
use sendense_repo::manifest::Content;

impl App {
    /// Serves a point writable.
    pub async fn create_recovery(&self, caller: &Caller, asked: CreateRecovery) -> Result<dto::Recovery> {
        caller.require(Role::Operator)?;
        let row = self.point(&asked.backup_id).await?;
        let wanted = match &asked.source_id {
            Some(source) => Some(Wanted {
                source_id: self.source(source).await?.source_id,
                name: asked.name.to_string(),
                networks: asked.networks,
            }),
            None if asked.networks.is_empty() => None,
            None => return Err(invalid("networks need source_id: without it no machine is made")),
        };
        let (core, by) = (self.core.clone(), caller.identity.clone());
        let made = async move { recoveries::create(&core, row, asked.name, wanted, &by).await };
        let (recovery, notes) = self.to_the_end(made).await?;
        let mut out = self.recovery_with_documents(&recovery, caller).await?;
        out.notes = notes;
        tracing::info!(recovery_id = %out.recovery_id, name = %out.name, backup_id = %out.backup_id, by = %caller.identity,
            "restore point is served writable");
        Ok(out)
    }

    /// The recoveries of this hub, oldest first.
    pub async fn list_recoveries(&self, caller: &Caller, page: ListQuery) -> Result<Page<dto::Recovery>> {
        let all = self.core.recoveries.all();
        let total = all.len() as u64;
        let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
        let items =
            all.iter().skip(skip).take(page.limit.get() as usize).map(|recovery| recovery_out(recovery, caller));
        Ok(Page { items: items.collect(), total })
    }

    /// One recovery, with the recorded configuration for those who may recover.
    pub async fn get_recovery(&self, caller: &Caller, id_or_name: &str) -> Result<dto::Recovery> {
        let recovery = self.core.recoveries.find(id_or_name)?;
        self.recovery_with_documents(&recovery, caller).await
    }

    /// Takes a recovery away with all that was written to it.
    pub async fn delete_recovery(&self, caller: &Caller, id_or_name: &str) -> Result<()> {
        caller.require(Role::Operator)?;
        let recovery = self.core.recoveries.find(id_or_name)?;
        tracing::info!(recovery_id = %recovery.id, by = %caller.identity, "recovery is discarded");
        let core = self.core.clone();
        self.to_the_end(async move { recoveries::discard(&core, &recovery).await }).await
    }

    /// Makes what a recovery has written the next point of its chain. The work begins when there is a place for it, and ends the
    /// recovery.
    pub async fn commit_recovery(&self, caller: &Caller, id_or_name: &str) -> Result<dto::Backup> {
        caller.require(Role::Operator)?;
        let recovery = self.core.recoveries.find(id_or_name)?;
        recoveries::commit::check(&self.core, &recovery).await?;
        let record = recovery.record();
        let vm = self.core.catalog.vms().get(&record.vm_context_id).await.or_problem()?;
        for disk in &record.disks {
            let (vm, repository) = (&record.vm_context_id, &record.repository_id);
            let newest =
                self.core.catalog.backups().newest_completed(vm, repository, disk.disk_id).await.or_problem()?;
            let newest = newest.map(|newest| newest.backup_id);
            if newest.as_ref() != Some(&record.backup_id) {
                return Err(recoveries::commit::not_newest(&record.backup_id, newest.as_ref()));
            }
        }
        let repository = self.core.catalog.repositories().get(&record.repository_id).await.or_problem()?;
        let partial = record.disks.len() < vm.disks.iter().filter(|disk| disk.present).count();
        let backup = self.begin_commit(caller, vm, repository, partial, recovery.id.clone()).await?;
        tracing::info!(recovery_id = %recovery.id, backup_id = %backup.backup_id, by = %caller.identity, "recovery is committed");
        Ok(backup)
    }

    /// Moves a recovered machine to storage of its own while it runs. The work begins when there is a place for it, and ends the
    /// recovery.
    pub async fn migrate_recovery(
        &self,
        caller: &Caller,
        id_or_name: &str,
        asked: MigrateRecovery,
    ) -> Result<dto::Task> {
        caller.require(Role::Operator)?;
        if asked.format == ImageFormat::Vmdk {
            return Err(invalid("format must be raw or qcow2"));
        }
        let recovery = self.core.recoveries.find(id_or_name)?;
        let (door, machine) = recoveries::migrate::check(&self.core, &recovery).await?;
        let (core, pool) = (self.core.clone(), asked.pool);
        let folder = crate::core::blocking(move || core.check_host_path(&door.folder(&pool)?, false)).await??;
        if !folder.is_dir() {
            return Err(invalid(format!("{} is no folder", folder.display())));
        }
        super::repositories::refuse_inside(&self.core, &folder).await?;
        let record = recovery.record();
        let work = MigrateWork {
            recovery_id: record.recovery_id,
            backup_id: record.backup_id.clone(),
            vm_context_id: record.vm_context_id,
            vm_name: record.vm_name,
            repository_id: record.repository_id,
            source_id: machine.source_id,
            folder: folder.into_os_string().into_string().map_err(|_| invalid("the folder's path is not UTF-8"))?,
            format: asked.format,
        };
        tracing::info!(recovery_id = %recovery.id, by = %caller.identity, "recovery is migrated");
        self.make_task(caller, Work::Migrate(work), catalog::TaskSubject::Backup(record.backup_id)).await
    }

    async fn recovery_with_documents(&self, recovery: &Recovery, caller: &Caller) -> Result<dto::Recovery> {
        let mut out = recovery_out(recovery, caller);
        if caller.role < Role::Operator {
            return Ok(out);
        }
        let record = recovery.record();
        // A repository that is away now is no reason to tell nothing of the recovery.
        let Ok(repository) = self.core.repositories.by_id(&self.core, &record.repository_id, Use::GoOn).await else {
            return Ok(out);
        };
        let read = move || repository.manifest(&record.vm_context_id, &record.backup_id).or_problem();
        let Ok(manifest) = crate::core::blocking(read).await? else { return Ok(out) };
        let documents = manifest.documents.into_iter().filter_map(|document| match document.content {
            Content::Text(content) => Some(RecoveryDocument { name: document.name, content }),
            Content::Hex(_) => None,
        });
        out.documents = documents.collect();
        Ok(out)
    }
}

fn recovery_out(recovery: &Recovery, caller: &Caller) -> dto::Recovery {
    let (record, (served, trouble)) = (recovery.record(), recovery.served());
    let status = match (&record.state, &served) {
        (State::Creating, _) => RecoveryStatus::Creating,
        (State::Ready, Some(_)) => RecoveryStatus::Ready,
        (State::Ready, None) => RecoveryStatus::Unavailable,
        (State::Committing { .. }, _) => RecoveryStatus::Committing,
        (State::Migrating { .. }, _) => RecoveryStatus::Migrating,
        (State::Ending, _) => RecoveryStatus::Ending,
    };
    let disks = record.disks.into_iter().map(|disk| {
        let now = served.as_ref().and_then(|served| served.disk(disk.disk_id));
        RecoveryDisk {
            disk_id: disk.disk_id,
            disk_key: disk.disk_key,
            label: disk.label,
            size_bytes: disk.size_bytes,
            uri: now.filter(|_| caller.role >= Role::Operator).map(|now| now.uri.clone()),
            held_bytes: now.map(|now| now.held().data.0),
            clients: now.map_or(0, |now| now.clients() as u64),
        }
    });
    dto::Recovery {
        recovery_id: record.recovery_id,
        name: record.name,
        backup_id: record.backup_id,
        vm_context_id: record.vm_context_id,
        vm_name: record.vm_name,
        repository_id: record.repository_id,
        status,
        error_message: trouble.map(|problem| problem.message),
        disks: disks.collect(),
        machine: record.machine.map(|machine| RecoveryMachine {
            source_id: machine.source_id,
            name: machine.name,
            instance_uuid: machine.instance_uuid,
        }),
        documents: Vec::new(),
        notes: Vec::new(),
        created_at: record.created_at,
        created_by: record.created_by,
    }
}
