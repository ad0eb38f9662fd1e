//! A machine's points lie in another repository now. There it was decided before.

use super::{Backups, chain, life};
use crate::counts::BackupChanges;
use crate::entity;
use crate::error::{Error, Kind, Noun, Result};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use sendense_types::{BackupId, BackupStatus, RepositoryId, Timestamp, VmContextId};
use std::collections::BTreeSet;

impl Backups<'_> {
    /// Writes down that these points of a machine lie in that repository, with all that is known of them: their disks, their chains, what
    /// they have lost. Returns how many were somewhere else. What is not known of the machine or its points is passed over, and doing it
    /// again does no harm.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a repository that is not known. Then nothing was changed.
    pub async fn moved(
        &self,
        vm: &VmContextId,
        points: &BTreeSet<BackupId>,
        to: &RepositoryId,
        now: Timestamp,
    ) -> Result<u64> {
        use entity::backups::{ActiveModel, Column, Entity};
        self.0
            .write(|tx| async move {
                if entity::repositories::Entity::find_by_id(to.as_str()).one(&*tx).await?.is_none() {
                    return Err(Error::not_found(Noun::Repository, to));
                }
                match life::lock_vm(&tx, vm).await {
                    Err(error) if error.kind() == Kind::NotFound => return Ok(0),
                    locked => _ = locked?,
                }
                let rows = Entity::find()
                    .filter(Column::BackupId.is_in(points.iter().map(BackupId::as_str)))
                    .filter(Column::VmContextId.eq(vm.as_str()))
                    .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
                    .filter(Column::RepositoryId.ne(to.as_str()))
                    .order_by_asc(Column::BackupId)
                    .all(&*tx)
                    .await?;
                let ids: Vec<&str> = rows.iter().map(|row| row.backup_id.as_str()).collect();
                let repositories: BTreeSet<&str> = rows.iter().map(|row| row.repository_id.as_str()).collect();
                // What was the newest stays so.
                let before = entity::chains::Entity::find()
                    .filter(entity::chains::Column::VmContextId.eq(vm.as_str()))
                    .filter(entity::chains::Column::RepositoryId.is_in(repositories))
                    .order_by_asc(entity::chains::Column::RepositoryId)
                    .order_by_asc(entity::chains::Column::DiskId)
                    .all(&*tx)
                    .await?;
                let set = ActiveModel { repository_id: Set(to.as_str().to_owned()), ..Default::default() };
                Entity::update_many().set(set).filter(Column::BackupId.is_in(ids.clone())).exec(&*tx).await?;
                let set = entity::backup_disks::ActiveModel {
                    repository_id: Set(to.as_str().to_owned()),
                    ..Default::default()
                };
                let of_disks = entity::backup_disks::Column::BackupId.is_in(ids.clone());
                entity::backup_disks::Entity::update_many().set(set).filter(of_disks).exec(&*tx).await?;
                let set =
                    entity::damage::ActiveModel { repository_id: Set(to.as_str().to_owned()), ..Default::default() };
                let of_damage = entity::damage::Column::BackupId.is_in(ids);
                entity::damage::Entity::update_many().set(set).filter(of_damage).exec(&*tx).await?;
                for old in before {
                    let disk_id = old.disk_id;
                    let key = |repository_id: &str| chain::Key {
                        vm_context_id: vm.as_str().to_owned(),
                        repository_id: repository_id.to_owned(),
                        disk_id,
                    };
                    chain::settle(&tx, &key(&old.repository_id), None, now.into()).await?;
                    let newest = Some(old.latest_backup_id.as_str());
                    chain::settle(&tx, &key(to.as_str()), newest, now.into()).await?;
                }
                let mut changes = BackupChanges::default();
                for row in &rows {
                    changes.remove(row);
                    changes.add(to.as_str(), &row.status, &row.backup_type);
                }
                changes.write(&tx).await?;
                Ok(rows.len() as u64)
            })
            .await
    }
}
