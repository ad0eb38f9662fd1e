//! Taking in a published point that only its manifest knows of: after an import, or when the hub died between publishing and
//! the catalog.
//!
//! The repository is the truth, so a row that says `failed` or `cancelled` gives way to a published point: that is the one
//! step that the state machine does not have. A row that is pending or running belongs to its task, whose holder (or whoever
//! takes it over) completes it.

use super::{Backup, Backups, chain, life};
use crate::counts::BackupChanges;
use crate::error::{Conflict, Error, Noun, Result};
use crate::tx::Tx;
use crate::vm::{KnownDisk, KnownVm};
use crate::{entity, value};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter};
use sendense_types::{BackupStatus, PowerState, Timestamp};

impl Backups<'_> {
    /// Takes in a published point with its machine and disks; false when it was known as completed already. Parents come
    /// before children: adopt in the order of parent links.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a parent or a repository that is not known; [`Conflict::DiskBound`] when a disk number is
    /// bound to another disk; [`Conflict::WrongState`] when the point's task is still at work; [`Error::Invalid`] when the
    /// point is not a completed one of the machine.
    pub async fn adopt(&self, vm: &KnownVm, point: &Backup, now: Timestamp) -> Result<bool> {
        value::fits("instance_uuid", &vm.instance_uuid, 255)?;
        if point.vm_context_id != vm.vm_context_id || point.status != BackupStatus::Completed {
            let reason = format!("{} is not a completed point of {}", point.backup_id, vm.vm_context_id);
            return Err(Error::Invalid { field: "point", reason });
        }
        self.0
            .write(|tx| async move {
                know_vm(&tx, vm, now).await?;
                let mut changes = BackupChanges::default();
                let known = entity::backups::Entity::find_by_id(point.backup_id.as_str()).one(&*tx).await?;
                if let Some(known) = known {
                    let status: BackupStatus = value::read("status", &known.status)?;
                    let id = known.backup_id.clone();
                    if known.vm_context_id != point.vm_context_id.as_str() {
                        return Err(Conflict::Exists { what: Noun::Backup, id }.into());
                    }
                    match status {
                        BackupStatus::Completed => return Ok(false),
                        BackupStatus::Pending | BackupStatus::Running => {
                            return Err(Conflict::WrongState { what: Noun::Backup, id, state: known.status }.into());
                        }
                        BackupStatus::Failed | BackupStatus::Cancelled => {
                            entity::backups::Entity::delete_by_id(id).exec(&*tx).await?;
                            changes.remove(&known);
                        }
                    }
                }
                let repository = entity::repositories::Entity::find_by_id(point.repository_id.as_str());
                if repository.one(&*tx).await?.is_none() {
                    return Err(Error::not_found(Noun::Repository, &point.repository_id));
                }
                // The row first, then what refers to it.
                let row = super::row::store(&Backup { phase: None, parent_backup_id: None, ..point.clone() })?;
                life::insert(&tx, &Backup { phase: None, parent_backup_id: None, ..point.clone() }).await?;
                life::replace_disks(&tx, &row, point.parent_backup_id.as_ref(), &point.disks).await?;
                life::set_parent(&tx, &point.backup_id, point.parent_backup_id.as_ref()).await?;
                for disk in &point.disks {
                    let key = chain::Key::new(&row.vm_context_id, &row.repository_id, disk.disk_id)?;
                    let prefer = newer(&tx, &key, point).await?;
                    chain::settle(&tx, &key, prefer.as_deref(), now.into()).await?;
                }
                changes.add(&row.repository_id, &row.status, &row.backup_type);
                changes.write(&tx).await?;
                Ok(true)
            })
            .await
    }
}

/// The newest of the chain's latest point and the adopted one, which links decide where they can and else the time.
async fn newer(tx: &Tx, key: &chain::Key, point: &Backup) -> Result<Option<String>> {
    let id = (key.vm_context_id.clone(), key.repository_id.clone(), key.disk_id);
    let Some(chain) = entity::chains::Entity::find_by_id(id).one(&**tx).await? else { return Ok(None) };
    let latest = entity::backups::Entity::find_by_id(chain.latest_backup_id.as_str()).one(&**tx).await?;
    let links = chain::links(&**tx, key).await?;
    let builds_on_latest = chain::path(&links, point.backup_id.as_str()).contains(&chain.latest_backup_id);
    let is_younger = latest.is_none_or(|latest| Timestamp::from(latest.created_at) < point.created_at);
    let newest = if builds_on_latest || is_younger { point.backup_id.to_string() } else { chain.latest_backup_id };
    Ok(Some(newest))
}

/// Makes the machine and its disks known, and locks the machine.
async fn know_vm(tx: &Tx, vm: &KnownVm, now: Timestamp) -> Result<()> {
    use entity::vm_contexts::{Entity, Model};
    if Entity::find_by_id(vm.vm_context_id.as_str()).one(&**tx).await?.is_none() {
        let row = Model {
            vm_context_id: vm.vm_context_id.as_str().to_owned(),
            source_id: None,
            kind: vm.kind.as_str().to_owned(),
            instance_uuid: vm.instance_uuid.clone(),
            vm_name: vm.vm_name.as_str().to_owned(),
            path: vm.path.clone(),
            folder: None,
            power_state: PowerState::Unknown.as_str().to_owned(),
            facts: serde_json::Value::Object(serde_json::Map::new()),
            created_at: now.into(),
            last_seen_at: None,
            vanished_at: None,
        };
        Entity::insert(row.into_active_model()).exec_without_returning(&**tx).await.map_err(|error| {
            Error::from(error).or_conflict(|| Conflict::Exists { what: Noun::Vm, id: vm.vm_context_id.to_string() })
        })?;
    }
    life::lock_vm(tx, &vm.vm_context_id).await?;
    if let Some(path) = &vm.path {
        // Points are adopted oldest first: the place where the machine was last is the one to look for it.
        use entity::vm_contexts::{ActiveModel, Column};
        let set = ActiveModel { path: Set(Some(path.clone())), ..Default::default() };
        let of_vm = Column::VmContextId.eq(vm.vm_context_id.as_str()).and(Column::SourceId.is_null());
        Entity::update_many().set(set).filter(of_vm).exec(&**tx).await?;
    }
    let known = entity::vm_disks::Entity::find()
        .filter(entity::vm_disks::Column::VmContextId.eq(vm.vm_context_id.as_str()))
        .all(&**tx)
        .await?;
    for disk in &vm.disks {
        know_disk(tx, vm, &known, disk).await?;
    }
    Ok(())
}

async fn know_disk(tx: &Tx, vm: &KnownVm, known: &[entity::vm_disks::Model], disk: &KnownDisk) -> Result<()> {
    let disk_id = value::store_u32("disk_id", disk.disk_id.0)?;
    let bound =
        |bound: String| Conflict::DiskBound { vm_context_id: vm.vm_context_id.clone(), disk_id: disk.disk_id, bound };
    if let Some(row) = known.iter().find(|row| row.disk_id == disk_id) {
        if row.binding == disk.binding.0 {
            return Ok(());
        }
        return Err(bound(format!("the number is {:?}", row.binding)).into());
    }
    if let Some(row) = known.iter().find(|row| row.binding == disk.binding.0) {
        return Err(bound(format!("{:?} is number {}", row.binding, row.disk_id)).into());
    }
    let row = entity::vm_disks::Model {
        vm_context_id: vm.vm_context_id.as_str().to_owned(),
        disk_id,
        disk_key: disk.disk_key.clone(),
        binding: disk.binding.0.clone(),
        label: disk.label.clone(),
        capacity_bytes: value::store_u64("capacity_bytes", disk.capacity_bytes)?,
        datastore: None,
        format: None,
        present: false,
        job_id: None,
    };
    entity::vm_disks::Entity::insert(row.into_active_model())
        .exec_without_returning(&**tx)
        .await
        .map_err(|error| Error::from(error).or_conflict(|| bound("the manifest binds the number twice".to_owned())))?;
    Ok(())
}
