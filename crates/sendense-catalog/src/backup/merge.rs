//! A point took over what the one below it held, and that one is gone, or stays for others. In the repository it happened before.

use super::unproved::waits_of;
use super::{Backup, Backups, chain, delete, life};
use crate::counts::BackupChanges;
use crate::entity;
use crate::entity::backups::{ActiveModel, Model};
use crate::error::{Conflict, Error, Noun, Result};
use crate::tx::Tx;
use crate::value::{self, Ts};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{BackupId, BackupStatus, Timestamp, VerifyDepth, VerifyState};
use std::collections::BTreeSet;

/// The points whose bytes became another one's own.
#[derive(Debug, Clone, Copy)]
enum Others<'i> {
    /// This one, which is no more.
    Gone(&'i BackupId),
    /// Those that it stood on and does not stand on any more.
    Left,
    /// All that it stood on, directly or through others.
    Below,
}

impl Backups<'_> {
    /// Writes down what the successor is now (its type, parents, disks and bytes) and forgets the point that went. Doing it
    /// again does no harm.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a successor that is not known; [`Conflict::WrongState`] when it is no completed point;
    /// [`Conflict::HasDependents`] when another point still builds on the one that went. Then nothing was changed.
    pub async fn merged(&self, successor: &Backup, going: &BackupId, now: Timestamp) -> Result<()> {
        self.rewrite(successor, Others::Gone(going), now).await
    }

    /// Writes down that a point got a copy of what it needed of others, which stay, and does not stand on them any more: its type,
    /// parents, disks and bytes. Doing it again does no harm.
    ///
    /// # Errors
    /// As of [`Backups::merged`].
    pub async fn took_over(&self, point: &Backup, now: Timestamp) -> Result<()> {
        self.rewrite(point, Others::Left, now).await
    }

    /// Writes down that a point was made a full: its type, parents, disks and bytes. Doing it again does no harm.
    ///
    /// # Errors
    /// As of [`Backups::merged`].
    pub async fn became_full(&self, point: &Backup, now: Timestamp) -> Result<()> {
        self.rewrite(point, Others::Below, now).await
    }

    async fn rewrite(&self, successor: &Backup, others: Others<'_>, now: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                life::lock_vm(&tx, &successor.vm_context_id).await?;
                let row = entity::backups::Entity::find_by_id(successor.backup_id.as_str()).one(&*tx).await?;
                let row = row.ok_or_else(|| Error::not_found(Noun::Backup, &successor.backup_id))?;
                if value::read::<BackupStatus>("status", &row.status)? != BackupStatus::Completed {
                    let (what, id) = (Noun::Backup, row.backup_id);
                    return Err(Conflict::WrongState { what, id, state: row.status }.into());
                }
                // Whose bytes became its own. One that is gone was written down before.
                let taken: Vec<Model> = match others {
                    Others::Gone(going) => {
                        entity::backups::Entity::find_by_id(going.as_str()).one(&*tx).await?.into_iter().collect()
                    }
                    Others::Left => left(&tx, &row, successor).await?,
                    Others::Below => all_below(&tx, &row).await?,
                };
                life::replace_disks(&tx, &row, successor.parent_backup_id.as_ref(), &successor.disks).await?;
                let proof = proof(&row, &taken);
                let set = entity::backups::ActiveModel {
                    backup_type: Set(successor.backup_type.as_str().to_owned()),
                    parent_backup_id: Set(successor.parent_backup_id.as_ref().map(|id| id.as_str().to_owned())),
                    bytes_stored: Set(value::store_u64("bytes_stored", successor.bytes_stored)?),
                    generation: Set(row.generation.wrapping_add(1)),
                    ..proof
                };
                life::update(&tx, &row.backup_id, set).await?;
                if !matches!(others, Others::Gone(_)) {
                    settle_chains(&tx, &row).await?;
                }
                let mut changes = BackupChanges::became(&row, BackupStatus::Completed, successor.backup_type.as_str());
                if let Others::Gone(going) = others {
                    delete::delete_in(&tx, &BTreeSet::from([going.as_str()]), now.into(), &mut changes).await?;
                }
                changes.write(&tx).await
            })
            .await
    }
}

/// Lets the chains of a machine in a repository say where they begin now. When they last grew stays.
async fn settle_chains(tx: &Tx, row: &Model) -> Result<()> {
    use entity::chains::{Column, Entity};
    let of_machine = Column::VmContextId.eq(&row.vm_context_id).and(Column::RepositoryId.eq(&row.repository_id));
    for chain in Entity::find().filter(of_machine).order_by_asc(Column::DiskId).all(&**tx).await? {
        let (vm_context_id, repository_id) = (chain.vm_context_id, chain.repository_id);
        let key = chain::Key { vm_context_id, repository_id, disk_id: chain.disk_id };
        chain::settle(tx, &key, Some(&chain.latest_backup_id), chain.updated_at).await?;
    }
    Ok(())
}

/// The points that a point stood on, and stands on no more.
async fn left(tx: &Tx, row: &Model, now: &Backup) -> Result<Vec<Model>> {
    use entity::backup_disks::{Column, Entity};
    let before: Vec<Option<String>> = Entity::find()
        .select_only()
        .column(Column::ParentBackupId)
        .filter(Column::BackupId.eq(&row.backup_id))
        .into_tuple()
        .all(&**tx)
        .await?;
    let stands_on =
        |id: &String| now.disks.iter().any(|disk| disk.parent_backup_id.as_ref().is_some_and(|on| on.as_str() == id));
    let left = before.into_iter().flatten().filter(|id| !stands_on(id));
    Ok(entity::backups::Entity::find().filter(entity::backups::Column::BackupId.is_in(left)).all(&**tx).await?)
}

/// The points that a point stands on.
async fn all_below(tx: &Tx, row: &Model) -> Result<Vec<Model>> {
    let below = super::verify::with_ids_below(&**tx, &row.vm_context_id, &row.repository_id, &row.backup_id).await?;
    let others = below.into_iter().filter(|id| *id != row.backup_id);
    Ok(entity::backups::Entity::find().filter(entity::backups::Column::BackupId.is_in(others)).all(&**tx).await?)
}

/// What is known of a point that took over what others held: no more than of them, and looked at no later. Parts of their files may
/// have become its own without having been read.
fn proof(row: &Model, others: &[Model]) -> ActiveModel {
    let is = |row: &Model, state: VerifyState| row.verify_state.as_deref() == Some(state.as_str());
    // What is said of a damaged one stays until somebody looks again.
    if others.is_empty() || is(row, VerifyState::Corrupt) || is(row, VerifyState::Affected) {
        return ActiveModel::default();
    }
    let all = || others.iter().chain([row]);
    // Looked at as long ago as the oldest of the bytes was. What nobody looked at counts since it waits for that: then all of it has
    // its turn when the other part has, and the largest image of a chain is not read again with each point that it takes over.
    let oldest = |look: fn(&Model) -> Option<Ts>| {
        all().any(|row| look(row).is_some()).then(|| all().filter_map(|row| look(row).or(waits_of(row))).min())
    };
    let looks = ActiveModel {
        // Its chain is another one now.
        verify_open_ms: Set(None),
        verified_at: Set(oldest(|row| row.verified_at).flatten()),
        deep_verified_at: Set(oldest(|row| row.deep_verified_at).flatten()),
        unproved_since: Set(all().filter_map(waits_of).min()),
        ..Default::default()
    };
    if !all().all(|row| is(row, VerifyState::Sound)) {
        return ActiveModel {
            verify_state: Set(None),
            verify_depth: Set(None),
            verify_bytes: Set(None),
            verify_ms: Set(None),
            verify_finding: Set(None),
            ..looks
        };
    }
    let deep = all().all(|row| row.verify_depth.as_deref() == Some(VerifyDepth::Deep.as_str()));
    let depth = if deep { VerifyDepth::Deep } else { VerifyDepth::AtRest };
    ActiveModel { verify_depth: Set(Some(depth.as_str().to_owned())), ..looks }
}
