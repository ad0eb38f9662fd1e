//! Backups: looking at them, stopping, verifying and restoring them.

use super::repositories::{refuse_inside, refuse_known_folder};
use super::{App, Caller, vms, wire};
use crate::fault::{OrProblem, Result, invalid};
use crate::jobs::restore::refuse_when_no_space;
use crate::jobs::work::{RestoreWork, VerifyWork, Work};
use sendense_api::{
    Backup, BackupFilter, ImageFormat, ListQuery, LogEntry, Page, RestoreBackup, RestoreTarget, Role, Task,
    VerifyBackup,
};
use sendense_catalog as catalog;
use sendense_types::{
    BackupId, BackupStatus, DiskNumber, Problem, ProblemCode, SourceKind, TaskKind, TaskState, VerifyDepth,
};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

impl App {
    /// Backups, newest first.
    pub async fn list_backups(&self, filter: BackupFilter) -> Result<Page<Backup>> {
        let page = catalog::Page { limit: filter.limit.get().into(), offset: filter.offset };
        let repository_id = match &filter.repository_id {
            Some(id_or_name) => Some(self.repository(id_or_name).await?.repository_id),
            None => None,
        };
        let filter = catalog::BackupFilter {
            vm_name: filter.vm_name,
            vm_context_id: filter.vm_context_id,
            repository_id,
            status: filter.status,
            backup_type: filter.backup_type,
        };
        let (rows, total) = self.core.catalog.backups().list(&filter, page).await.or_problem()?;
        Ok(Page { items: rows.into_iter().map(|row| self.backup_out(row)).collect(), total })
    }

    /// One backup, with the disks that were left out.
    pub async fn get_backup(&self, id: &BackupId) -> Result<Backup> {
        let row = self.core.catalog.backups().get(id).await.or_problem()?;
        let mut backup = self.backup_out(row);
        if let (true, Some(task_id)) = (backup.partial, &backup.task_id)
            && let Ok(task) = self.core.catalog.tasks().get(task_id).await
            && let Ok(Work::Backup(work)) = Work::read(&task.request)
        {
            backup.excluded_disks = work.exclude_disks;
        }
        Ok(backup)
    }

    /// Stops a backup. Its draft is removed.
    pub async fn cancel_backup(&self, caller: &Caller, id: &BackupId) -> Result<Backup> {
        let row = self.core.catalog.backups().get(id).await.or_problem()?;
        let task_id = match (&row.task_id, row.status.is_final()) {
            (Some(task_id), false) => task_id,
            _ => {
                caller.require(Role::Operator)?;
                let details = format!("{id} is {}", row.status);
                return Err(Problem::new(ProblemCode::Conflict, "the backup has ended already", details));
            }
        };
        self.cancel_task(caller, task_id).await?;
        self.get_backup(id).await
    }

    /// Checks what lies in the repository against what was written.
    pub async fn verify_backup(&self, caller: &Caller, id: &BackupId, how: VerifyBackup) -> Result<Task> {
        caller.require(Role::Operator)?;
        let row = self.point(id).await?;
        let work = VerifyWork {
            backup_id: row.backup_id.clone(),
            vm_context_id: row.vm_context_id,
            vm_name: row.vm_name.into(),
            repository_id: row.repository_id,
            deep: how.deep,
            own_files_only: how.own_files_only,
            aside: false,
        };
        self.make_task(caller, Work::Verify(work), catalog::TaskSubject::Backup(row.backup_id)).await
    }

    /// Checks a point beside everything else.
    pub(crate) async fn verify_aside(&self, caller: &Caller, row: catalog::Backup, depth: VerifyDepth) -> Result<Task> {
        let work = VerifyWork {
            backup_id: row.backup_id.clone(),
            vm_context_id: row.vm_context_id,
            vm_name: row.vm_name.into(),
            repository_id: row.repository_id,
            deep: depth == VerifyDepth::Deep,
            own_files_only: true,
            aside: true,
        };
        self.make_task(caller, Work::Verify(work), catalog::TaskSubject::Backup(row.backup_id)).await
    }

    /// Checks a point in which damage was met, with all that it builds on; gives the task that does it.
    pub(crate) async fn verify_damaged(&self, id: &BackupId) -> Result<Task> {
        for state in [TaskState::Pending, TaskState::Running] {
            let filter = catalog::TaskFilter {
                kind: Some(TaskKind::Verify),
                state: Some(state),
                subject_id: Some(id.as_str().to_owned()),
                ..catalog::TaskFilter::default()
            };
            let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
            let (rows, _) = self.core.catalog.tasks().list(&filter, page).await.or_problem()?;
            let does_it = |row: &catalog::Task| matches!(Work::read(&row.request), Ok(Work::Verify(work)) if work.deep && !work.own_files_only);
            if let Some(row) = rows.into_iter().find(does_it) {
                return Ok(self.task_out(row));
            }
        }
        let caller = Caller { identity: "restore".to_owned(), role: Role::Operator };
        self.verify_backup(&caller, id, VerifyBackup { deep: true, own_files_only: false }).await
    }

    /// Restores one disk of a point, or all of it, to a target.
    pub async fn restore_backup(&self, caller: &Caller, id: &BackupId, asked: RestoreBackup) -> Result<Task> {
        caller.require(Role::Operator)?;
        let row = self.point(id).await?;
        let disk_id = match (&asked.target, asked.disk_id) {
            (RestoreTarget::Vm { .. }, None) => None,
            (RestoreTarget::Vm { onto: true, .. }, disk_id) => Some(disk_asked(&row, disk_id)?),
            (RestoreTarget::Vm { .. }, Some(_)) => return Err(invalid("a VM takes all disks: leave disk_id out")),
            (_, disk_id) => Some(disk_asked(&row, disk_id)?),
        };
        let target = self.check_target(asked.target).await?;
        let work = RestoreWork {
            backup_id: row.backup_id.clone(),
            vm_context_id: row.vm_context_id,
            vm_name: row.vm_name.into(),
            repository_id: row.repository_id,
            disk_id,
            source_id: match &target {
                RestoreTarget::Vm { source_id, .. } => source_id.parse().ok(),
                _ => None,
            },
            target,
            allow_damaged: asked.allow_damaged,
        };
        refuse_when_no_space(&self.core, &work).await?;
        self.make_task(caller, Work::Restore(work), catalog::TaskSubject::Backup(row.backup_id)).await
    }

    /// The log of the task that makes or made a backup.
    pub async fn backup_log(&self, id: &BackupId, page: ListQuery) -> Result<Page<LogEntry>> {
        let row = self.core.catalog.backups().get(id).await.or_problem()?;
        match &row.task_id {
            Some(task_id) => self.task_log(task_id, page).await,
            // An imported point was made by a task of another catalog.
            None => Ok(Page { items: Vec::new(), total: 0 }),
        }
    }

    /// A backup that can be restored.
    pub(super) async fn point(&self, id: &BackupId) -> Result<catalog::Backup> {
        let row = self.core.catalog.backups().get(id).await.or_problem()?;
        if row.status == BackupStatus::Completed {
            return Ok(row);
        }
        let details = format!("{id} is {}", row.status);
        Err(Problem::new(ProblemCode::Conflict, "the backup holds no point", details))
    }

    /// Refuses what cannot be written, before a task is made; the task looks again.
    async fn check_target(&self, target: RestoreTarget) -> Result<RestoreTarget> {
        match target {
            RestoreTarget::File { path, format, overwrite, onto, resize, force, subformat } => {
                let raw = format == ImageFormat::Raw;
                if onto && (overwrite || !raw) || resize && !onto || subformat.is_some() && format != ImageFormat::Vmdk
                {
                    let message = "onto takes raw targets and no overwrite; resize needs onto; subformat needs vmdk";
                    return Err(invalid(message));
                }
                let resolved = self.core.check_host_path(Path::new(&path), !onto)?;
                // What lies in a repository is written by backups alone: a restored file there could replace a point.
                refuse_known_folder(&self.core, &resolved).await?;
                let kind = resolved.symlink_metadata().map(|found| found.file_type()).ok();
                if kind.is_some_and(|kind| kind.is_block_device()) {
                    if !raw {
                        return Err(invalid("a block device takes the format raw only"));
                    }
                    if !force {
                        return Err(crate::jobs::restore::forced(&resolved));
                    }
                    crate::restore::check_unused(&resolved)?;
                } else if onto && !kind.is_some_and(|kind| kind.is_file()) {
                    return Err(invalid(format!("{path} is no file")));
                } else if kind.is_some() && !overwrite && !onto {
                    let details = format!("{path} exists; nothing is overwritten unasked");
                    return Err(Problem::new(ProblemCode::Conflict, "the target exists already", details));
                }
                let path = resolved.into_os_string().into_string().map_err(|_| invalid("the path is not UTF-8"))?;
                Ok(RestoreTarget::File { path, format, overwrite, onto, resize, force, subformat })
            }
            RestoreTarget::Nbd { uri } => {
                crate::restore::check_uri(&uri, &self.core.roots)?;
                Ok(RestoreTarget::Nbd { uri })
            }
            vm @ RestoreTarget::Vm { onto: true, .. } => self.check_onto(vm).await,
            RestoreTarget::Vm { force: true, .. } => Err(invalid("force needs onto: a new VM loses nothing")),
            RestoreTarget::Vm {
                source_id,
                name,
                pool,
                format,
                networks,
                keep_identity,
                folder,
                cluster,
                onto,
                force,
            } => {
                if format == ImageFormat::Vmdk {
                    return Err(invalid("the disks of a VM are raw or qcow2"));
                }
                let source = self.source(&source_id).await?;
                self.core.restorer(&source)?;
                let pool = match source.kind {
                    SourceKind::Libvirt if folder.is_some() || cluster.is_some() => {
                        return Err(invalid("folder and cluster mean nothing on libvirt"));
                    }
                    SourceKind::Libvirt if pool.starts_with('/') => self.check_folder(&pool).await?,
                    SourceKind::Libvirt | SourceKind::Vsphere => pool,
                    kind => {
                        let message = format!(
                            "source {} is of kind {kind}; VMs are restored to libvirt and vSphere",
                            source.name
                        );
                        return Err(invalid(message));
                    }
                };
                let source_id = source.source_id.as_str().to_owned();
                Ok(RestoreTarget::Vm {
                    source_id,
                    name,
                    pool,
                    format,
                    networks,
                    keep_identity,
                    folder,
                    cluster,
                    onto,
                    force,
                })
            }
        }
    }

    /// A machine that exists, by its id from here on. What state it is in, the task looks at.
    async fn check_onto(&self, mut target: RestoreTarget) -> Result<RestoreTarget> {
        let RestoreTarget::Vm { source_id, name, networks, keep_identity, folder, cluster, force, .. } = &mut target
        else {
            return Err(invalid("the target is no machine"));
        };
        if !networks.is_empty() || *keep_identity || folder.is_some() || cluster.is_some() {
            return Err(invalid("networks, keep_identity, folder and cluster are of a new VM, not of one that exists"));
        }
        let source = self.source(source_id).await?;
        self.core.restorer(&source)?;
        if source.kind != SourceKind::Vsphere {
            let kind = source.kind;
            return Err(invalid(format!(
                "onto is for vSphere, {} is of kind {kind}: restore its disks onto their files",
                source.name
            )));
        }
        let vm = vms::find(&self.core, name).await?;
        if vm.source_id.as_ref() != Some(&source.source_id) {
            let details = format!("{} is no VM of the source {}", vm.vm_name, source.name);
            return Err(Problem::new(ProblemCode::VmNotFound, "VM not found", details));
        }
        if !*force {
            let details = format!("what the disks of {} hold is lost: say force", vm.vm_name);
            return Err(Problem::new(ProblemCode::Conflict, "the VM exists", details));
        }
        *source_id = source.source_id.as_str().to_owned();
        *name = vm.vm_context_id.as_str().to_owned();
        Ok(target)
    }

    /// The resolved form of a folder that a machine's disks may go to. What a pool's name stands for, the task finds out.
    async fn check_folder(&self, path: &str) -> Result<String> {
        let resolved = self.core.check_host_path(Path::new(path), false)?;
        refuse_inside(&self.core, &resolved).await?;
        if !resolved.is_dir() {
            return Err(invalid(format!("{path} is no folder")));
        }
        resolved.into_os_string().into_string().map_err(|_| invalid("the path is not UTF-8"))
    }

    pub(super) fn backup_out(&self, row: catalog::Backup) -> Backup {
        let live = row.task_id.as_ref().and_then(|task_id| self.core.running.view(task_id));
        wire::backup(row, live)
    }
}

pub(super) fn disk_asked(row: &catalog::Backup, asked: Option<DiskNumber>) -> Result<DiskNumber> {
    let list = || row.disks.iter().map(|disk| disk.disk_id.to_string()).collect::<Vec<_>>().join(", ");
    match (asked, row.disks.as_slice()) {
        (Some(number), disks) if disks.iter().any(|disk| disk.disk_id == number) => Ok(number),
        (Some(number), _) => {
            let details = format!("{} holds disks {}, not {number}", row.backup_id, list());
            Err(Problem::new(ProblemCode::DiskNotFound, "disk not found", details))
        }
        (None, [disk]) => Ok(disk.disk_id),
        (None, _) => Err(invalid(format!("disk_id is required: the point holds disks {}", list()))),
    }
}
