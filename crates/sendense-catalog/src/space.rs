//! What repositories held from day to day.
//!
//! What lives here: one row for each repository and day, the newest of the day, and no more than [`KEPT_DAYS`] of them. What
//! does not: what follows from them. Invariant: a day has one row, whichever hub writes it.

use crate::error::Result;
use crate::{Catalog, entity, value};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};
use sendense_types::{RepositoryId, Timestamp};

/// Days that are kept: a year and a month, so that a month can be held beside the same one of last year.
pub const KEPT_DAYS: i32 = 400;

const DAY_MICROS: i64 = 86_400_000_000;

/// What a repository held at some time of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceSample {
    /// When it was looked at.
    pub at: Timestamp,
    /// All room.
    pub total_bytes: u64,
    /// What is taken.
    pub used_bytes: u64,
    /// What may still be written.
    pub available_bytes: u64,
}

/// The history of repositories' space.
#[derive(Debug, Clone, Copy)]
pub struct Space<'a>(pub(crate) &'a Catalog);

impl Space<'_> {
    /// Notes what a repository holds now. It replaces what was noted before on the same day (UTC), and what is older than
    /// [`KEPT_DAYS`] is forgotten.
    pub async fn note(&self, id: &RepositoryId, sample: &SpaceSample) -> Result<()> {
        use entity::repository_space::{Column, Entity, Model};
        let day = day_of(sample.at);
        let row = Model {
            repository_id: id.as_str().to_owned(),
            day,
            at: sample.at.into(),
            total_bytes: value::store_u64("total_bytes", sample.total_bytes)?,
            used_bytes: value::store_u64("used_bytes", sample.used_bytes)?,
            available_bytes: value::store_u64("available_bytes", sample.available_bytes)?,
        };
        self.0
            .write(|tx| {
                let row = row.clone();
                async move {
                    let replace = OnConflict::columns([Column::RepositoryId, Column::Day])
                        .update_columns([Column::At, Column::TotalBytes, Column::UsedBytes, Column::AvailableBytes])
                        .to_owned();
                    Entity::insert(row.into_active_model()).on_conflict(replace).exec_without_returning(&*tx).await?;
                    Entity::delete_many()
                        .filter(Column::RepositoryId.eq(id.as_str()))
                        .filter(Column::Day.lte(day.saturating_sub(KEPT_DAYS)))
                        .exec(&*tx)
                        .await?;
                    Ok(())
                }
            })
            .await
    }

    /// What a repository held on each day, oldest first.
    pub async fn history(&self, id: &RepositoryId) -> Result<Vec<SpaceSample>> {
        use entity::repository_space::{Column, Entity};
        let rows = Entity::find()
            .filter(Column::RepositoryId.eq(id.as_str()))
            .order_by_asc(Column::Day)
            .all(self.0.pool())
            .await?;
        let sample = |row: entity::repository_space::Model| {
            Ok(SpaceSample {
                at: row.at.into(),
                total_bytes: value::read_u64("total_bytes", row.total_bytes)?,
                used_bytes: value::read_u64("used_bytes", row.used_bytes)?,
                available_bytes: value::read_u64("available_bytes", row.available_bytes)?,
            })
        };
        rows.into_iter().map(sample).collect()
    }
}

/// The day of a moment, counted from 1970-01-01 (UTC).
fn day_of(at: Timestamp) -> i32 {
    i32::try_from(at.as_micros().div_euclid(DAY_MICROS)).unwrap_or(i32::MAX)
}
