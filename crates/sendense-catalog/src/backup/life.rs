//! The life of a backup, step by step, each step one transaction together with its task.
//!
//! ```text
//! begin -> pending --start--> running --plan, progress--> running --finish_*--> completed | failed | cancelled
//! ```
//!
//! Every step but the first carries the task's claim. Cancelling or failing a backup that still waits: claim its task, then
//! finish it.

use super::{Backup, BackupDisk, Backups, chain, row, unproved};
use crate::counts::BackupChanges;
use crate::error::{Conflict, Error, Noun, Result};
use crate::task::{self, Heartbeat, NewTask, Task, TaskClaim, TaskSubject};
use crate::tx::Tx;
use crate::{entity, value};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{
    BackupId, BackupStatus, BackupType, Compression, Consistency, DiskNumber, OnTrackingLoss, Phase, Problem,
    RepositoryId, TaskId, TaskKind, TaskState, Timestamp, VmContextId,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Disks of one VM. vSphere's limit is 256 with four NVMe controllers; libvirt names fewer.
const DISKS_MAX: usize = 1024;

/// A backup to begin.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBackup {
    /// Who.
    pub backup_id: BackupId,
    /// The task that will make it.
    pub task_id: TaskId,
    /// Of which machine.
    pub vm_context_id: VmContextId,
    /// Into which repository.
    pub repository_id: RepositoryId,
    /// What is asked for.
    pub requested_type: BackupType,
    /// By which policy.
    pub policy_id: Option<String>,
    /// A person's words.
    pub tags: BTreeMap<String, String>,
    /// Whether disks are left out.
    pub partial: bool,
    /// Whether to quiesce the guest.
    pub quiesce: bool,
    /// How hard to compress.
    pub compression: Compression,
    /// What to do without tracking.
    pub on_tracking_loss: OnTrackingLoss,
    /// Who asks.
    pub created_by: Option<String>,
    /// The whole request, for the task that will read it.
    pub request: Value,
}

/// What will be made, known once the source is frozen.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupPlan {
    /// Full when any disk's part is.
    pub backup_type: BackupType,
    /// Why it is not what was asked for.
    pub type_reason: Option<String>,
    /// The point it builds on; must be completed, of the same machine, in the same repository.
    pub parent_backup_id: Option<BackupId>,
    /// Bytes to look at.
    pub total_bytes: u64,
    /// What the guest was told.
    pub consistency: Option<Consistency>,
    /// Whether disks are left out.
    pub partial: bool,
    /// The disks; replaces what was planned before.
    pub disks: Vec<BackupDisk>,
}

/// How far a backup is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What it does.
    pub phase: Phase,
    /// Bytes looked at.
    pub bytes_done: u64,
    /// Bytes to look at.
    pub total_bytes: u64,
    /// Bytes that travelled.
    pub bytes_transferred: u64,
    /// Bytes that lie in the repository.
    pub bytes_stored: u64,
    /// Per disk, for those that moved on.
    pub disks: Vec<DiskProgress>,
    /// Until when the next report is expected.
    pub lease_until: Timestamp,
    /// Further words for the task's progress; `None` leaves the last ones.
    pub details: Option<Value>,
}

/// How far a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskProgress {
    /// Which.
    pub disk_id: DiskNumber,
    /// Bytes that travelled.
    pub bytes_transferred: u64,
    /// Bytes that lie in the repository.
    pub bytes_stored: u64,
}

/// What was published.
#[derive(Debug, Clone, PartialEq)]
pub struct Completed {
    /// Full when any disk's part is.
    pub backup_type: BackupType,
    /// Why it is not what was asked for.
    pub type_reason: Option<String>,
    /// The point it builds on.
    pub parent_backup_id: Option<BackupId>,
    /// Bytes looked at.
    pub total_bytes: u64,
    /// Bytes that travelled.
    pub bytes_transferred: u64,
    /// Bytes that lie in the repository.
    pub bytes_stored: u64,
    /// What the guest was told.
    pub consistency: Option<Consistency>,
    /// What must be known of it: why its consistency is less than was asked for, what of the machine could not be read.
    pub consistency_note: Option<String>,
    /// Whether disks are left out.
    pub partial: bool,
    /// The disks as the manifest has them; their status is set to completed.
    pub disks: Vec<BackupDisk>,
}

impl Backups<'_> {
    /// Begins a backup: its row and its task, both pending, at once.
    ///
    /// # Errors
    /// [`Conflict::BackupActive`] while the machine has a backup that is not final, whichever hub makes it and by whichever
    /// source it is reached;
    /// [`Error::NotFound`] for the machine or the repository; [`Conflict::Exists`] for an id that is known.
    pub async fn begin(&self, new: &NewBackup, now: Timestamp) -> Result<(Backup, Task)> {
        let begin = |tx: Tx| async move {
            let (mut begun, counted) = begin_all_in(&tx, std::slice::from_ref(new), now).await?;
            let begun = begun.pop().expect("one was asked for")?;
            counted.write(&tx).await?;
            Ok(begun)
        };
        self.0.write(begin).await
    }

    /// Sets a pending backup to running; its task was claimed before.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`], [`Conflict::WrongState`].
    pub async fn start(&self, claim: &TaskClaim, now: Timestamp) -> Result<Backup> {
        self.0
            .write(|tx| async move {
                let row = claimed(&tx, claim).await?;
                require_step(&row, BackupStatus::Running)?;
                let set = entity::backups::ActiveModel {
                    status: Set(BackupStatus::Running.as_str().to_owned()),
                    phase: Set(Some(Phase::Snapshot.as_str().to_owned())),
                    started_at: Set(Some(now.into())),
                    ..Default::default()
                };
                update(&tx, &row.backup_id, set).await?;
                BackupChanges::became(&row, BackupStatus::Running, &row.backup_type).write(&tx).await?;
                reread(&tx, &row.backup_id).await
            })
            .await
    }

    /// Says what will be made. May be said again while the backup runs.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a parent that is not a completed point of this machine in this repository, or a disk that
    /// the machine does not have; [`Conflict::LeaseLost`]; [`Conflict::WrongState`].
    pub async fn plan(&self, claim: &TaskClaim, plan: &BackupPlan) -> Result<Backup> {
        self.0
            .write(|tx| async move {
                let row = claimed(&tx, claim).await?;
                require_running(&row)?;
                let disks: Vec<BackupDisk> = plan
                    .disks
                    .iter()
                    .map(|disk| BackupDisk { status: BackupStatus::Running, ..disk.clone() })
                    .collect();
                replace_disks(&tx, &row, plan.parent_backup_id.as_ref(), &disks).await?;
                let set = entity::backups::ActiveModel {
                    backup_type: Set(plan.backup_type.as_str().to_owned()),
                    type_reason: Set(plan.type_reason.clone()),
                    parent_backup_id: Set(plan.parent_backup_id.as_ref().map(|id| id.as_str().to_owned())),
                    total_bytes: Set(value::store_u64("total_bytes", plan.total_bytes)?),
                    consistency: Set(plan.consistency.map(|word| word.as_str().to_owned())),
                    partial: Set(plan.partial),
                    ..Default::default()
                };
                update(&tx, &row.backup_id, set).await?;
                BackupChanges::became(&row, BackupStatus::Running, plan.backup_type.as_str()).write(&tx).await?;
                reread(&tx, &row.backup_id).await
            })
            .await
    }

    /// Reports how far a running backup is, and that its hub lives; true when someone asked to stop it. Cheap: one short
    /// transaction. Once a second per backup is plenty.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`]: the work must stop at once, without ending the task.
    pub async fn progress(&self, claim: &TaskClaim, progress: &Progress) -> Result<bool> {
        self.0
            .write(|tx| async move {
                let beat = Heartbeat {
                    lease_until: progress.lease_until,
                    progress: progress.details.clone(),
                    bytes_done: progress.bytes_done,
                    bytes_total: progress.total_bytes,
                };
                let cancel = task::heartbeat_in(&tx, claim, &beat).await?;
                let row = claimed(&tx, claim).await?;
                require_running(&row)?;
                let set = entity::backups::ActiveModel {
                    phase: Set(Some(progress.phase.as_str().to_owned())),
                    bytes_done: Set(value::store_u64("bytes_done", progress.bytes_done)?),
                    total_bytes: Set(value::store_u64("total_bytes", progress.total_bytes)?),
                    bytes_transferred: Set(value::store_u64("bytes_transferred", progress.bytes_transferred)?),
                    bytes_stored: Set(value::store_u64("bytes_stored", progress.bytes_stored)?),
                    ..Default::default()
                };
                update(&tx, &row.backup_id, set).await?;
                for disk in &progress.disks {
                    use entity::backup_disks::{ActiveModel, Column, Entity};
                    let set = ActiveModel {
                        bytes_transferred: Set(value::store_u64("bytes_transferred", disk.bytes_transferred)?),
                        bytes_stored: Set(value::store_u64("bytes_stored", disk.bytes_stored)?),
                        ..Default::default()
                    };
                    Entity::update_many()
                        .set(set)
                        .filter(Column::BackupId.eq(&row.backup_id))
                        .filter(Column::DiskId.eq(value::store_u32("disk_id", disk.disk_id.0)?))
                        .exec(&*tx)
                        .await?;
                }
                Ok(cancel)
            })
            .await
    }

    /// The point is published: backup, disks, chains and task, at once. Repeating it after a lost answer gives
    /// [`Conflict::LeaseLost`], because the task's version has moved; read the backup then.
    ///
    /// # Errors
    /// As [`Backups::plan`].
    pub async fn finish_completed(&self, claim: &TaskClaim, done: &Completed, now: Timestamp) -> Result<Backup> {
        self.0
            .write(|tx| async move {
                let row = claimed(&tx, claim).await?;
                require_step(&row, BackupStatus::Completed)?;
                let vm_context_id: VmContextId = value::read("vm_context_id", &row.vm_context_id)?;
                lock_vm(&tx, &vm_context_id).await?;
                let disks: Vec<BackupDisk> = done
                    .disks
                    .iter()
                    .map(|disk| BackupDisk { status: BackupStatus::Completed, ..disk.clone() })
                    .collect();
                replace_disks(&tx, &row, done.parent_backup_id.as_ref(), &disks).await?;
                let total_bytes = value::store_u64("total_bytes", done.total_bytes)?;
                let set = entity::backups::ActiveModel {
                    backup_type: Set(done.backup_type.as_str().to_owned()),
                    type_reason: Set(done.type_reason.clone()),
                    parent_backup_id: Set(done.parent_backup_id.as_ref().map(|id| id.as_str().to_owned())),
                    bytes_done: Set(total_bytes),
                    total_bytes: Set(total_bytes),
                    bytes_transferred: Set(value::store_u64("bytes_transferred", done.bytes_transferred)?),
                    bytes_stored: Set(value::store_u64("bytes_stored", done.bytes_stored)?),
                    consistency: Set(done.consistency.map(|word| word.as_str().to_owned())),
                    consistency_note: Set(done.consistency_note.as_deref().map(row::note)),
                    partial: Set(done.partial),
                    unproved_since: Set(Some(unproved::waits_since(&tx, &row, now).await?)),
                    ..Default::default()
                };
                update(&tx, &row.backup_id, set).await?;
                end(&tx, &row, BackupStatus::Completed, None, now).await?;
                // The backup's row is there, so the chains may refer to it.
                for disk in &disks {
                    let key = chain::Key::new(&row.vm_context_id, &row.repository_id, disk.disk_id)?;
                    chain::settle(&tx, &key, Some(&row.backup_id), now.into()).await?;
                }
                BackupChanges::became(&row, BackupStatus::Completed, done.backup_type.as_str()).write(&tx).await?;
                task::finish_in(&tx, claim, TaskState::Completed, None, None, now).await?;
                reread(&tx, &row.backup_id).await
            })
            .await
    }

    /// The backup came to nothing: its row and its task end as failed. Its draft was removed before.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`], [`Conflict::WrongState`].
    pub async fn finish_failed(&self, claim: &TaskClaim, problem: &Problem, now: Timestamp) -> Result<Backup> {
        self.finish_without_point(claim, BackupStatus::Failed, Some(problem), now).await
    }

    /// The backup was stopped by a person: its row and its task end as cancelled. Its draft was removed before.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`], [`Conflict::WrongState`].
    pub async fn finish_cancelled(&self, claim: &TaskClaim, now: Timestamp) -> Result<Backup> {
        self.finish_without_point(claim, BackupStatus::Cancelled, None, now).await
    }

    async fn finish_without_point(
        &self,
        claim: &TaskClaim,
        status: BackupStatus,
        problem: Option<&Problem>,
        now: Timestamp,
    ) -> Result<Backup> {
        let state = if status == BackupStatus::Failed { TaskState::Failed } else { TaskState::Cancelled };
        self.0
            .write(|tx| async move {
                let row = claimed(&tx, claim).await?;
                require_step(&row, status)?;
                end(&tx, &row, status, problem, now).await?;
                BackupChanges::became(&row, status, &row.backup_type).write(&tx).await?;
                task::finish_in(&tx, claim, state, None, problem, now).await?;
                reread(&tx, &row.backup_id).await
            })
            .await
    }
}

/// What [`begin_all_in`] has begun, as counters know it.
#[must_use = "counters are written last"]
pub(crate) struct Counted {
    backups: BackupChanges,
    tasks: i64,
}

impl Counted {
    /// Writes it. The last step of a transaction.
    pub async fn write(self, tx: &Tx) -> Result<()> {
        self.backups.write(tx).await?;
        task::count_new_in(tx, TaskKind::Backup, self.tasks).await
    }
}

/// Begins backups within a transaction that does more; see [`Backups::begin`]. What stands in the way of one is told in its place and
/// leaves the others alone.
pub(crate) async fn begin_all_in(
    tx: &Tx,
    new: &[NewBackup],
    now: Timestamp,
) -> Result<(Vec<Result<(Backup, Task)>>, Counted)> {
    let mut counted = Counted { backups: BackupChanges::default(), tasks: 0 };
    // Machines are locked by id, so that two transactions do not wait for each other.
    let mut places: Vec<usize> = (0..new.len()).collect();
    places.sort_by_key(|place| &new[*place].vm_context_id);
    let mut begun = Vec::new();
    for place in places {
        let new = &new[place];
        let told = match may_begin(tx, new).await {
            Ok(vm) => {
                let (backup, task) = insert_begun(tx, new, &vm, now).await?;
                let (status, kind) = (backup.status.as_str(), backup.backup_type.as_str());
                counted.backups.add(new.repository_id.as_str(), status, kind);
                counted.tasks += 1;
                Ok((backup, task))
            }
            // Nothing was written, so that the transaction may go on.
            Err(error @ (Error::NotFound { .. } | Error::Conflict(_))) => Err(error),
            Err(error) => return Err(error),
        };
        begun.push((place, told));
    }
    begun.sort_by_key(|(place, _)| *place);
    Ok((begun.into_iter().map(|(_, told)| told).collect(), counted))
}

/// The machine of a backup that may begin, locked. Only reads.
async fn may_begin(tx: &Tx, new: &NewBackup) -> Result<entity::vm_contexts::Model> {
    let (vm, same) = lock_machine(tx, &new.vm_context_id).await?;
    let repository = entity::repositories::Entity::find_by_id(new.repository_id.as_str()).one(&**tx).await?;
    repository.ok_or_else(|| Error::not_found(Noun::Repository, &new.repository_id))?;
    let active = entity::backups::Entity::find()
        .filter(entity::backups::Column::ActiveVmContextId.is_in(same))
        .one(&**tx)
        .await?;
    match active {
        Some(active) => Err(row::active_conflict(&active)?.into()),
        None => Ok(vm),
    }
}

async fn insert_begun(
    tx: &Tx,
    new: &NewBackup,
    vm: &entity::vm_contexts::Model,
    now: Timestamp,
) -> Result<(Backup, Task)> {
    let backup = pending(new, vm, now)?;
    insert(tx, &backup).await?;
    let task = NewTask {
        task_id: new.task_id.clone(),
        kind: TaskKind::Backup,
        subject: TaskSubject::Backup(new.backup_id.clone()),
        request: new.request.clone(),
        created_by: new.created_by.clone(),
    };
    Ok((backup, task::insert_in(tx, &task, now).await?))
}

fn pending(new: &NewBackup, vm: &entity::vm_contexts::Model, now: Timestamp) -> Result<Backup> {
    Ok(Backup {
        consistency_note: None,
        verification: None,
        backup_id: new.backup_id.clone(),
        vm_context_id: new.vm_context_id.clone(),
        vm_name: value::read("vm_name", &vm.vm_name)?,
        repository_id: new.repository_id.clone(),
        requested_type: new.requested_type,
        backup_type: new.requested_type,
        type_reason: None,
        policy_id: new.policy_id.clone(),
        parent_backup_id: None,
        status: BackupStatus::Pending,
        phase: None,
        bytes_done: 0,
        bytes_transferred: 0,
        bytes_stored: 0,
        total_bytes: 0,
        consistency: None,
        error_code: None,
        error_message: None,
        tags: new.tags.clone(),
        partial: new.partial,
        quiesce: new.quiesce,
        compression: new.compression,
        on_tracking_loss: new.on_tracking_loss,
        created_by: new.created_by.clone(),
        task_id: Some(new.task_id.clone()),
        created_at: now,
        started_at: None,
        completed_at: None,
        protected: false,
        hold_until: None,
        disks: Vec::new(),
    })
}

/// Inserts a backup's row, without disks.
pub(super) async fn insert(tx: &Tx, backup: &Backup) -> Result<()> {
    let row = row::store(backup)?.into_active_model();
    match entity::backups::Entity::insert(row).exec_without_returning(&**tx).await.map_err(Error::from) {
        Ok(_) => Ok(()),
        Err(Error::Duplicate(_)) => {
            Err(Conflict::Exists { what: Noun::Backup, id: backup.backup_id.to_string() }.into())
        }
        // The VM is locked; the repository was there a moment ago.
        Err(Error::Orphan(_)) => Err(Error::not_found(Noun::Repository, &backup.repository_id)),
        Err(other) => Err(other),
    }
}

/// Locks a VM's row: the first step of what changes its backups or chains.
pub(crate) async fn lock_vm(tx: &Tx, id: &VmContextId) -> Result<entity::vm_contexts::Model> {
    let row = entity::vm_contexts::Entity::find_by_id(id.as_str()).lock_exclusive().one(&**tx).await?;
    row.ok_or_else(|| Error::not_found(Noun::Vm, id))
}

/// The row of a machine, locked, and the ids of all rows that are this machine: a hypervisor may be registered twice, by its own
/// name and behind a node, say. What a backup leaves on a machine must not be taken for a dead task's by the backup of the other.
async fn lock_machine(tx: &Tx, id: &VmContextId) -> Result<(entity::vm_contexts::Model, Vec<String>)> {
    use crate::vm::same_machine;
    use entity::vm_contexts::{Column, Entity};
    let row = Entity::find_by_id(id.as_str()).one(&**tx).await?;
    let row = row.ok_or_else(|| Error::not_found(Noun::Vm, id))?;
    // All in one order, so that no two wait for each other.
    let same = same_machine(&row).order_by_asc(Column::VmContextId).lock_exclusive().all(&**tx).await?;
    let ids = same.iter().map(|row| row.vm_context_id.clone()).collect();
    let row = same.into_iter().find(|row| row.vm_context_id == id.as_str());
    Ok((row.ok_or_else(|| Error::not_found(Noun::Vm, id))?, ids))
}

/// The row of the backup that a claimed task makes; both are locked.
async fn claimed(tx: &Tx, claim: &TaskClaim) -> Result<entity::backups::Model> {
    let task = task::require_claim(tx, claim).await?;
    let backup_id = match (task.subject_kind.as_str(), task.subject_id) {
        ("backup", Some(id)) if task.kind == TaskKind::Backup.as_str() => id,
        _ => return Err(Error::Invalid { field: "task_id", reason: format!("{} makes no backup", claim.task_id) }),
    };
    let row = entity::backups::Entity::find_by_id(backup_id.as_str()).lock_exclusive().one(&**tx).await?;
    row.ok_or_else(|| Error::not_found(Noun::Backup, backup_id))
}

fn require_step(row: &entity::backups::Model, next: BackupStatus) -> Result<()> {
    let status: BackupStatus = value::read("status", &row.status)?;
    if status.may_become(next) { Ok(()) } else { Err(wrong_state(row)) }
}

fn require_running(row: &entity::backups::Model) -> Result<()> {
    if row.status == BackupStatus::Running.as_str() { Ok(()) } else { Err(wrong_state(row)) }
}

fn wrong_state(row: &entity::backups::Model) -> Error {
    Conflict::WrongState { what: Noun::Backup, id: row.backup_id.clone(), state: row.status.clone() }.into()
}

/// Sets what a backup of `row` holds of each disk, after checking that every parent is a point it may build on.
pub(super) async fn replace_disks(
    tx: &Tx,
    row: &entity::backups::Model,
    parent: Option<&BackupId>,
    disks: &[BackupDisk],
) -> Result<()> {
    use entity::backup_disks::{Column, Entity};
    if disks.len() > DISKS_MAX {
        return Err(Error::Invalid { field: "disks", reason: format!("at most {DISKS_MAX} are allowed") });
    }
    let mut parents: Vec<&BackupId> =
        disks.iter().filter_map(|disk| disk.parent_backup_id.as_ref()).chain(parent).collect();
    parents.sort_unstable();
    parents.dedup();
    if !parents.is_empty() {
        let found: Vec<String> = entity::backups::Entity::find()
            .filter(entity::backups::Column::BackupId.is_in(parents.iter().map(|id| id.as_str())))
            .filter(entity::backups::Column::VmContextId.eq(&row.vm_context_id))
            .filter(entity::backups::Column::RepositoryId.eq(&row.repository_id))
            .filter(entity::backups::Column::Status.eq(BackupStatus::Completed.as_str()))
            .order_by_asc(entity::backups::Column::BackupId)
            .lock_shared()
            .all(&**tx)
            .await?
            .into_iter()
            .map(|row| row.backup_id)
            .collect();
        for id in parents {
            if id.as_str() == row.backup_id || !found.iter().any(|found| found == id.as_str()) {
                return Err(Error::not_found(Noun::Backup, id));
            }
        }
    }
    for disk in disks {
        let Some(parent) = &disk.parent_backup_id else { continue };
        let has_disk = Entity::find()
            .filter(Column::BackupId.eq(parent.as_str()))
            .filter(Column::DiskId.eq(value::store_u32("disk_id", disk.disk_id.0)?))
            .one(&**tx)
            .await?;
        if has_disk.is_none() {
            return Err(Error::not_found(Noun::Disk, format!("{} of {parent}", disk.disk_id)));
        }
    }
    Entity::delete_many().filter(Column::BackupId.eq(&row.backup_id)).exec(&**tx).await?;
    let (backup_id, vm) =
        (value::read("backup_id", &row.backup_id)?, value::read("vm_context_id", &row.vm_context_id)?);
    let repository = value::read("repository_id", &row.repository_id)?;
    for disk in disks {
        let stored = row::store_disk(&backup_id, &vm, &repository, disk)?;
        match Entity::insert(stored.into_active_model()).exec_without_returning(&**tx).await.map_err(Error::from) {
            Ok(_) => {}
            Err(Error::Duplicate(_)) => {
                return Err(Error::Invalid { field: "disks", reason: format!("disk {} is told twice", disk.disk_id) });
            }
            Err(Error::Orphan(_)) => {
                return Err(Error::not_found(Noun::Disk, format!("{} of {vm}", disk.disk_id)));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Sets the final state of a backup and of its disks, and frees the VM for the next one.
async fn end(
    tx: &Tx,
    row: &entity::backups::Model,
    status: BackupStatus,
    problem: Option<&Problem>,
    now: Timestamp,
) -> Result<()> {
    let set = entity::backups::ActiveModel {
        status: Set(status.as_str().to_owned()),
        active_vm_context_id: Set(None),
        phase: Set(None),
        error_code: Set(problem.map(|problem| problem.code.as_str().to_owned())),
        error_message: Set(problem.map(task::error_text)),
        completed_at: Set(Some(now.into())),
        ..Default::default()
    };
    update(tx, &row.backup_id, set).await?;
    let set = entity::backup_disks::ActiveModel { status: Set(status.as_str().to_owned()), ..Default::default() };
    entity::backup_disks::Entity::update_many()
        .set(set)
        .filter(entity::backup_disks::Column::BackupId.eq(&row.backup_id))
        .exec(&**tx)
        .await?;
    Ok(())
}

pub(super) async fn update(tx: &Tx, backup_id: &str, set: entity::backups::ActiveModel) -> Result<()> {
    let done = entity::backups::Entity::update_many()
        .set(set)
        .filter(entity::backups::Column::BackupId.eq(backup_id))
        .exec(&**tx)
        .await?;
    if done.rows_affected == 1 { Ok(()) } else { Err(Error::not_found(Noun::Backup, backup_id)) }
}

/// Sets the point that a backup builds on.
pub(super) async fn set_parent(tx: &Tx, backup_id: &BackupId, parent: Option<&BackupId>) -> Result<()> {
    let parent = parent.map(|id| id.as_str().to_owned());
    let set = entity::backups::ActiveModel { parent_backup_id: Set(parent), ..Default::default() };
    update(tx, backup_id.as_str(), set).await
}

/// The backup as this transaction sees it.
pub(super) async fn reread(tx: &Tx, backup_id: &str) -> Result<Backup> {
    let row = entity::backups::Entity::find_by_id(backup_id).one(&**tx).await?;
    let row = row.ok_or_else(|| Error::not_found(Noun::Backup, backup_id))?;
    let disks = entity::backup_disks::Entity::find()
        .filter(entity::backup_disks::Column::BackupId.eq(backup_id))
        .order_by_asc(entity::backup_disks::Column::DiskId)
        .all(&**tx)
        .await?;
    row::read(row, disks)
}
