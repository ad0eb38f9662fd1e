//! A point took over what the one below it held, and that one is gone. In the repository it happened before.

use super::{Backup, Backups, delete, life};
use crate::counts::BackupChanges;
use crate::entity::backups::{ActiveModel, Model};
use crate::error::{Conflict, Error, Noun, Result};
use crate::{entity, value};
use sea_orm::{ActiveValue::Set, EntityTrait};
use sendense_types::{BackupId, BackupStatus, Timestamp, VerifyDepth, VerifyState};
use std::collections::BTreeSet;

impl Backups<'_> {
    /// Writes down what the successor is now (its type, parents, disks and bytes) and forgets the point that went. Doing it
    /// again does no harm.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a successor that is not known; [`Conflict::WrongState`] when it is no completed point;
    /// [`Conflict::HasDependents`] when another point still builds on the one that went. Then nothing was changed.
    pub async fn merged(&self, successor: &Backup, going: &BackupId, now: Timestamp) -> Result<()> {
        self.rewrite(successor, Some(going), now).await
    }

    /// Writes down that a point was made a full: its type, parents, disks and bytes. Doing it again does no harm.
    ///
    /// # Errors
    /// As of [`Backups::merged`].
    pub async fn became_full(&self, point: &Backup, now: Timestamp) -> Result<()> {
        self.rewrite(point, None, now).await
    }

    async fn rewrite(&self, successor: &Backup, going: Option<&BackupId>, now: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                life::lock_vm(&tx, &successor.vm_context_id).await?;
                let row = entity::backups::Entity::find_by_id(successor.backup_id.as_str()).one(&*tx).await?;
                let row = row.ok_or_else(|| Error::not_found(Noun::Backup, &successor.backup_id))?;
                if value::read::<BackupStatus>("status", &row.status)? != BackupStatus::Completed {
                    let (what, id) = (Noun::Backup, row.backup_id);
                    return Err(Conflict::WrongState { what, id, state: row.status }.into());
                }
                life::replace_disks(&tx, &row, successor.parent_backup_id.as_ref(), &successor.disks).await?;
                let other = match going {
                    Some(going) => Some(entity::backups::Entity::find_by_id(going.as_str()).one(&*tx).await?),
                    None => None,
                };
                let proof = proof(&row, other);
                let set = entity::backups::ActiveModel {
                    backup_type: Set(successor.backup_type.as_str().to_owned()),
                    parent_backup_id: Set(successor.parent_backup_id.as_ref().map(|id| id.as_str().to_owned())),
                    bytes_stored: Set(value::store_u64("bytes_stored", successor.bytes_stored)?),
                    generation: Set(row.generation.wrapping_add(1)),
                    ..proof
                };
                life::update(&tx, &row.backup_id, set).await?;
                let mut changes = BackupChanges::became(&row, BackupStatus::Completed, successor.backup_type.as_str());
                if let Some(going) = going {
                    delete::delete_in(&tx, &BTreeSet::from([going.as_str()]), now.into(), &mut changes).await?;
                }
                changes.write(&tx).await
            })
            .await
    }
}

/// What is known of a point that took over what others held: no more than of them. Parts of their files may have become its own
/// without having been read. `other` is the one that goes; none where it is gone already, and nothing at all where none goes.
fn proof(row: &Model, other: Option<Option<Model>>) -> ActiveModel {
    let is_sound = |row: &Model| row.verify_state.as_deref() == Some(VerifyState::Sound.as_str());
    // What is said of a damaged one stays until somebody looks again. Where the other is gone this was written before.
    if !is_sound(row) || other.as_ref().is_some_and(Option::is_none) {
        return ActiveModel::default();
    }
    let Some(other) = other.flatten().filter(|other| is_sound(other)) else {
        return ActiveModel {
            verify_state: Set(None),
            verify_depth: Set(None),
            verified_at: Set(None),
            verify_bytes: Set(None),
            verify_ms: Set(None),
            verify_open_ms: Set(None),
            verify_finding: Set(None),
            deep_verified_at: Set(None),
            ..Default::default()
        };
    };
    let deep = VerifyDepth::Deep.as_str();
    let both = |row: &Model| row.verify_depth.as_deref() == Some(deep);
    let depth = if both(row) && both(&other) { VerifyDepth::Deep } else { VerifyDepth::AtRest };
    ActiveModel {
        verify_depth: Set(Some(depth.as_str().to_owned())),
        // Its chain is another one now.
        verify_open_ms: Set(None),
        verified_at: Set(row.verified_at.min(other.verified_at)),
        deep_verified_at: Set(row.deep_verified_at.min(other.deep_verified_at)),
        ..Default::default()
    }
}
