//! The catalog's copy of what keeps a point, for lists; the repository decides.

use super::Backups;
use crate::entity;
use crate::error::{Error, Noun, Result};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter};
use sendense_types::{BackupId, Timestamp};

impl Backups<'_> {
    /// Notes what keeps a point.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn set_hold(&self, backup_id: &BackupId, protected: bool, hold_until: Option<Timestamp>) -> Result<()> {
        use entity::backups::{ActiveModel, Column, Entity};
        let set = ActiveModel {
            protected: Set(protected),
            hold_until: Set(hold_until.map(Into::into)),
            ..Default::default()
        };
        let set = &set;
        self.0
            .write(|tx| async move {
                // Read first: MariaDB counts no row that is as it was.
                if Entity::find_by_id(backup_id.as_str()).one(&*tx).await?.is_none() {
                    return Err(Error::not_found(Noun::Backup, backup_id));
                }
                let is_it = Column::BackupId.eq(backup_id.as_str());
                Entity::update_many().set(set.clone()).filter(is_it).exec(&*tx).await?;
                Ok(())
            })
            .await
    }
}
