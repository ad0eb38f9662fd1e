//! Asking for a backup: what a request means, before anything is made.

use super::{App, Caller, tell, vms, wire};
use crate::fault::{OrProblem, Result, invalid};
use crate::jobs::work::{BackupWork, Work};
use crate::maintenance::{self, Use};
use sendense_api::{Backup, CreateBackup, Role};
use sendense_catalog as catalog;
use sendense_types::{
    BackupId, BackupType, ExecutionId, OnTrackingLoss, Problem, ProblemCode, RecoveryId, SourceId, TaskId, VmContextId,
};
use std::collections::HashMap;

/// Tags of one backup, their keys' and values' length: words for people and selectors, not a store.
const TAGS_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 255;

impl App {
    /// Accepts a backup. The work begins when there is a place for it.
    pub async fn create_backup(&self, caller: &Caller, asked: CreateBackup) -> Result<Backup> {
        let new = self.new_backup(caller, asked).await?;
        self.begin_backup(caller, new).await
    }

    /// Accepts backups of machines that wait in an execution, all like `asked`, and notes each there, both or neither. Of each machine it
    /// is told, in its place, how it is noted now, or why its backup cannot begin; of those at the end that may not wait now, nothing.
    ///
    /// # Errors
    /// What stands in the way of all of them: none has begun then.
    pub(crate) async fn create_backups_in(
        &self,
        caller: &Caller,
        asked: &CreateBackup,
        vms: &[(VmContextId, BackupType)],
        execution_id: &ExecutionId,
    ) -> Result<Vec<Result<catalog::ExecutionVm>>> {
        let repository = self.repository_asked(&asked.repository_id).await?;
        maintenance::check(&repository, Use::Write)?;
        let room = usize::try_from(self.free_to_wait().await?).unwrap_or(usize::MAX);
        self.refuse_when_no_space(&repository).await?;
        let vms = &vms[..room.min(vms.len())];
        let ids: Vec<VmContextId> = vms.iter().map(|(id, _)| id.clone()).collect();
        let known = self.core.catalog.vms().of_ids(&ids).await.or_problem()?;
        let known: HashMap<&VmContextId, &catalog::VmContext> =
            known.iter().map(|vm| (&vm.vm_context_id, vm)).collect();
        let (mut told, mut new) = (Vec::new(), Vec::new());
        for (id, backup_type) in vms {
            let asked = CreateBackup { vm_context_id: Some(id.clone()), backup_type: *backup_type, ..asked.clone() };
            let made = match known.get(id) {
                Some(vm) => new_backup_of(caller, (*vm).clone(), repository.clone(), asked),
                None => Err(Problem::new(ProblemCode::VmNotFound, "VM not found", id.to_string())),
            };
            told.push(made.map(|one| new.push(one)));
        }
        let (executions, now) = (self.core.catalog.executions(), self.core.now());
        let begun = match new.is_empty() {
            true => Vec::new(),
            false => executions.begin_backups(execution_id, &self.core.lease, &new, now).await.or_problem()?,
        };
        let mut begun = begun.into_iter();
        let mut noted = Vec::new();
        for told in told {
            noted.push(match told {
                Err(problem) => Err(problem),
                Ok(()) => match begun.next().expect("each that was asked for is told of") {
                    Ok((row, task, vm)) => {
                        self.begun(caller, &row, &task).await;
                        Ok(vm)
                    }
                    Err(error) => Err(already_running(error)),
                },
            });
        }
        Ok(noted)
    }

    /// What a request comes to, once it is known that it can be met.
    async fn new_backup(&self, caller: &Caller, mut asked: CreateBackup) -> Result<catalog::NewBackup> {
        caller.require(Role::Operator)?;
        check_tags(&asked)?;
        let vm = self.vm_asked(&asked).await?;
        let repository = self.repository_asked(&asked.repository_id).await?;
        maintenance::check(&repository, Use::Write)?;
        if let Some(policy) = &mut asked.policy_id {
            self.policy_by_id(policy).await?;
        }
        let new = new_backup_of(caller, vm, repository.clone(), asked)?;
        self.refuse_when_full().await?;
        self.refuse_when_no_space(&repository).await?;
        Ok(new)
    }

    /// Puts the id of a policy in the place of its name: what the policy says of its points is found by that. A word that no policy
    /// is called by stays as it is.
    async fn policy_by_id(&self, policy: &mut String) -> Result<()> {
        match self.core.catalog.policies().find(policy).await {
            Ok(row) => *policy = row.policy_id.to_string(),
            Err(error) if error.kind() == catalog::Kind::NotFound => {}
            Err(error) => return Err(error).or_problem(),
        }
        Ok(())
    }

    /// Enters what recovery `recovery_id` has written as the next incremental of its machine's chain.
    pub(super) async fn begin_commit(
        &self,
        caller: &Caller,
        vm: catalog::VmContext,
        repository: catalog::Repository,
        partial: bool,
        recovery_id: RecoveryId,
    ) -> Result<Backup> {
        maintenance::check(&repository, Use::Write)?;
        self.refuse_when_full().await?;
        let asked = CreateBackup {
            vm_name: None,
            vm_context_id: Some(vm.vm_context_id.clone()),
            repository_id: repository.repository_id.to_string(),
            backup_type: BackupType::Incremental,
            disk_id: None,
            policy_id: None,
            tags: std::collections::BTreeMap::new(),
            quiesce: false,
            quiesce_or_fail: false,
            compression: None,
            on_tracking_loss: None,
            time_limit_seconds: None,
            bytes_per_second_max: None,
            exclude_disks: Vec::new(),
        };
        let source_id = source_of(&vm)?;
        let of = Of { vm, source_id, repository, partial, recovery_id: Some(recovery_id) };
        self.begin_backup(caller, new_backup(caller, of, asked)?).await
    }

    async fn begin_backup(&self, caller: &Caller, new: catalog::NewBackup) -> Result<Backup> {
        let (row, task) = self.core.catalog.backups().begin(&new, self.core.now()).await.map_err(already_running)?;
        self.begun(caller, &row, &task).await;
        Ok(wire::backup(row, None))
    }

    /// Tells everybody that a backup waits for its place.
    async fn begun(&self, caller: &Caller, row: &catalog::Backup, task: &catalog::Task) {
        tracing::info!(backup_id = %row.backup_id, task_id = %task.task_id, vm_id = %row.vm_context_id,
            by = %caller.identity, "backup accepted");
        self.core.running.wake.notify_one();
        tell::task(&self.core, &task.task_id).await;
    }

    async fn vm_asked(&self, asked: &CreateBackup) -> Result<catalog::VmContext> {
        match (&asked.vm_name, &asked.vm_context_id) {
            (Some(name), None) => vms::find(&self.core, name).await,
            (None, Some(id)) => self.core.catalog.vms().get(id).await.or_problem(),
            (Some(name), Some(id)) => {
                let vm = self.core.catalog.vms().get(id).await.or_problem()?;
                if vm.vm_name.as_str() == name {
                    return Ok(vm);
                }
                let details = format!("{id} is named {}", vm.vm_name);
                Err(Problem::new(ProblemCode::InvalidInput, "vm_name and vm_context_id name different VMs", details))
            }
            (None, None) => Err(invalid("vm_name is required (or vm_context_id)")),
        }
    }

    /// A repository named in a body: an unknown one is wrong input, not a missing page.
    async fn repository_asked(&self, id_or_name: &str) -> Result<catalog::Repository> {
        match self.core.catalog.repositories().find(id_or_name).await {
            Err(error) if error.kind() == catalog::Kind::NotFound => {
                let details = format!("no repository {id_or_name:?}");
                Err(Problem::new(ProblemCode::UnknownRepository, "unknown repository", details))
            }
            found => found.or_problem(),
        }
    }

    /// Refuses at once what cannot fit. What a backup really needs is known only when it is planned; then room is reserved.
    async fn refuse_when_no_space(&self, repository: &catalog::Repository) -> Result<()> {
        // An unreachable repository is no reason to refuse: it may be back when the task's turn comes.
        let Ok(storage) = self.core.repositories.storage(&self.core, repository).await else { return Ok(()) };
        if storage.available_bytes > 0 {
            return Ok(());
        }
        let details = format!("repository {} has no byte free", repository.name);
        Err(Problem::new(ProblemCode::NoSpace, "no space in the repository", details))
    }
}

/// What a backup is of.
struct Of {
    vm: catalog::VmContext,
    source_id: SourceId,
    repository: catalog::Repository,
    /// Whether the machine has other disks.
    partial: bool,
    /// What this recovery has written, and not what the machine holds.
    recovery_id: Option<RecoveryId>,
}

/// The rows of a backup of what a machine holds now, if it can be backed up.
fn new_backup_of(
    caller: &Caller,
    vm: catalog::VmContext,
    repository: catalog::Repository,
    asked: CreateBackup,
) -> Result<catalog::NewBackup> {
    let source_id = source_of(&vm)?;
    if let Some(reason) = vms::Facts::read(&vm.facts).unsupported {
        return Err(Problem::new(ProblemCode::Conflict, "the VM cannot be backed up", reason));
    }
    let (_, partial) = choose_disks(&vm, asked.disk_id, &asked.exclude_disks)?;
    new_backup(caller, Of { vm, source_id, repository, partial, recovery_id: None }, asked)
}

/// The rows of a backup.
fn new_backup(caller: &Caller, of: Of, asked: CreateBackup) -> Result<catalog::NewBackup> {
    let Of { vm, source_id, repository, partial, recovery_id } = of;
    let settings = super::repositories::Settings::read(&repository.settings)?;
    let compression = asked.compression.unwrap_or(settings.compression);
    let on_tracking_loss = asked.on_tracking_loss.unwrap_or(OnTrackingLoss::Compare);
    let (backup_id, task_id) = (BackupId::generate(), TaskId::generate());
    let work = Work::Backup(BackupWork {
        backup_id: backup_id.clone(),
        vm_context_id: vm.vm_context_id.clone(),
        vm_name: vm.vm_name.to_string(),
        source_id,
        repository_id: repository.repository_id.clone(),
        backup_type: asked.backup_type,
        disk_id: asked.disk_id,
        exclude_disks: asked.exclude_disks.clone(),
        quiesce: asked.quiesce,
        quiesce_or_fail: asked.quiesce_or_fail,
        compression,
        on_tracking_loss,
        policy_id: asked.policy_id.clone(),
        tags: asked.tags.clone(),
        recovery_id,
        time_limit_seconds: asked.time_limit_seconds,
        bytes_per_second_max: asked.bytes_per_second_max,
    });
    Ok(catalog::NewBackup {
        backup_id,
        task_id,
        vm_context_id: vm.vm_context_id,
        repository_id: repository.repository_id,
        requested_type: asked.backup_type,
        policy_id: asked.policy_id,
        tags: asked.tags,
        partial,
        quiesce: asked.quiesce,
        compression,
        on_tracking_loss,
        created_by: Some(caller.identity.clone()),
        request: work.write()?,
    })
}

fn source_of(vm: &catalog::VmContext) -> Result<SourceId> {
    vm.source_id.clone().ok_or_else(|| {
        let details =
            format!("{} ({}) is known from its backups only; discover its source", vm.vm_name, vm.vm_context_id);
        Problem::new(ProblemCode::Conflict, "the VM is on no source", details)
    })
}

/// True when a disk has this id, key or label.
fn is(disk: &catalog::VmDisk, word: &str) -> bool {
    disk.disk_id.to_string() == word || disk.disk_key == word || disk.label == word
}

/// True when one of these words means the disk.
pub(crate) fn is_any(disk: &catalog::VmDisk, words: &[String]) -> bool {
    words.iter().any(|word| is(disk, word))
}

/// The disks that a request means, and whether the machine has others beside them.
pub(crate) fn choose_disks(
    vm: &catalog::VmContext,
    only: Option<sendense_types::DiskNumber>,
    exclude: &[String],
) -> Result<(Vec<catalog::VmDisk>, bool)> {
    let unsupported = vms::Facts::read(&vm.facts).unsupported_disks;
    let present: Vec<&catalog::VmDisk> = vm.disks.iter().filter(|disk| disk.present).collect();
    for word in exclude {
        if !present.iter().any(|disk| is(disk, word)) {
            let details = format!("{} has no disk with id, key or label {word:?}", vm.vm_name);
            return Err(Problem::new(ProblemCode::DiskNotFound, "disk not found", details));
        }
    }
    if let Some(number) = only {
        let Some(disk) = present.iter().find(|disk| disk.disk_id == number) else {
            let details = format!("{} has no disk {number}", vm.vm_name);
            return Err(Problem::new(ProblemCode::DiskNotFound, "disk not found", details));
        };
        if let Some(reason) = unsupported.get(&disk.disk_key) {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("disk {number} cannot be backed up"),
                reason.clone(),
            ));
        }
    }
    let chosen: Vec<catalog::VmDisk> = present
        .iter()
        .filter(|disk| only.is_none_or(|number| disk.disk_id == number))
        .filter(|disk| !is_any(disk, exclude))
        .filter(|disk| !unsupported.contains_key(&disk.disk_key))
        .map(|disk| (*disk).clone())
        .collect();
    if chosen.is_empty() {
        let details = format!("{} has {} disks, none of which is left to back up", vm.vm_name, present.len());
        return Err(Problem::new(ProblemCode::DiskNotFound, "no disk to back up", details));
    }
    let partial = chosen.len() < present.len();
    Ok((chosen, partial))
}

fn check_tags(asked: &CreateBackup) -> Result<()> {
    if asked.tags.len() > TAGS_MAX {
        return Err(invalid(format!("tags: at most {TAGS_MAX} are allowed")));
    }
    for (key, value) in &asked.tags {
        if key.is_empty() || key.len() > TAG_BYTES_MAX || value.len() > TAG_BYTES_MAX {
            return Err(invalid(format!(
                "tags: keys and values have at most {TAG_BYTES_MAX} bytes, keys at least one"
            )));
        }
        // They stand in lists and logs that people read on terminals, and not every database takes a NUL.
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(invalid(format!("tags: {key:?} or its value holds a control character")));
        }
    }
    Ok(())
}

fn already_running(error: catalog::Error) -> Problem {
    match &error {
        catalog::Error::Conflict(catalog::Conflict::BackupActive { backup_id, .. }) => Problem::new(
            ProblemCode::BackupRunning,
            "the VM is being backed up already",
            format!("backup {backup_id} is not done yet"),
        ),
        _ => crate::fault::of_catalog(&error),
    }
}

/// The type of a point of several disks: incremental as soon as one of them needs a parent.
pub(crate) fn type_of(disks: impl IntoIterator<Item = sendense_types::BackupType>) -> sendense_types::BackupType {
    use sendense_types::BackupType::{Full, Incremental};
    if disks.into_iter().any(|kind| kind == Incremental) { Incremental } else { Full }
}
