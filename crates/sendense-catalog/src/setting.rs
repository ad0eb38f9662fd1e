//! Settings: JSON by key.
//!
//! What lives here: storage. What does not: what a setting means. Invariant: a key has one value.

use crate::error::Result;
use crate::{Catalog, entity, value};
use sea_orm::sea_query::OnConflict;
use sea_orm::{EntityTrait, IntoActiveModel, QueryOrder, QuerySelect};
use sendense_types::Timestamp;
use serde_json::Value;

/// Settings are a closed set of the hub's; more than this means that someone stores data in them.
const SETTINGS_MAX: u64 = 10_000;

/// Settings.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a>(pub(crate) &'a Catalog);

impl Settings<'_> {
    /// The value of a key.
    pub async fn get(&self, key: &str) -> Result<Option<Value>> {
        Ok(entity::settings::Entity::find_by_id(key).one(self.0.pool()).await?.map(|row| row.value))
    }

    /// All keys with their values, by key.
    pub async fn all(&self) -> Result<Vec<(String, Value)>> {
        let rows = entity::settings::Entity::find()
            .order_by_asc(entity::settings::Column::Key)
            .limit(SETTINGS_MAX)
            .all(self.0.pool())
            .await?;
        Ok(rows.into_iter().map(|row| (row.key, row.value)).collect())
    }

    /// Sets a key.
    pub async fn set(&self, key: &str, value: &Value, now: Timestamp) -> Result<()> {
        value::fits("key", key, 255)?;
        self.0
            .write(|tx| async move {
                use entity::settings::Column;
                let row = entity::settings::Model { key: key.to_owned(), value: value.clone(), updated_at: now.into() };
                let replace =
                    OnConflict::column(Column::Key).update_columns([Column::Value, Column::UpdatedAt]).to_owned();
                entity::settings::Entity::insert(row.into_active_model())
                    .on_conflict(replace)
                    .exec_without_returning(&*tx)
                    .await?;
                Ok(())
            })
            .await
    }

    /// The value of a key; where it has none, it gets this one. Of several that do this at once all are told the same.
    pub async fn get_or_set(&self, key: &str, value: &Value, now: Timestamp) -> Result<Value> {
        value::fits("key", key, 255)?;
        self.0
            .write(|tx| async move {
                use entity::settings::{Column, Entity, Model};
                let row = Model { key: key.to_owned(), value: value.clone(), updated_at: now.into() };
                // What is there stays; the row is locked by being set to what it is.
                let keep = OnConflict::column(Column::Key).update_column(Column::Key).to_owned();
                Entity::insert(row.into_active_model()).on_conflict(keep).exec_without_returning(&*tx).await?;
                let row = Entity::find_by_id(key).one(&*tx).await?;
                Ok(row.map_or_else(|| value.clone(), |row| row.value))
            })
            .await
    }

    /// Removes a key; true when it was there.
    pub async fn remove(&self, key: &str) -> Result<bool> {
        self.0
            .write(|tx| async move {
                Ok(entity::settings::Entity::delete_by_id(key).exec(&*tx).await?.rows_affected == 1)
            })
            .await
    }
}
