//! Reports of what was out of order in repositories.
//!
//! What lives here: the newest [`REPORTS_MAX`] of each repository. What does not: what a report says. Invariant: a report that
//! is newer never goes before one that is older.

use crate::error::Result;
use crate::value::Ts;
use crate::{Catalog, Page, entity, value};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{RepositoryId, Timestamp};
use serde_json::Value;

/// Reports that are kept of a repository: a month of days.
pub const REPORTS_MAX: u64 = 30;

/// A report.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// When it was made.
    pub at: Timestamp,
    /// What it says. The shape belongs to the hub.
    pub body: Value,
}

/// Reports.
#[derive(Debug, Clone, Copy)]
pub struct Reports<'a>(pub(crate) &'a Catalog);

impl Reports<'_> {
    /// Keeps a report, and forgets the oldest beyond the bound.
    pub async fn add(&self, id: &RepositoryId, at: Timestamp, body: &Value) -> Result<()> {
        use entity::repository_reports::{Column, Entity, Model};
        self.0
            .write(|tx| async move {
                let row = Model { repository_id: id.as_str().to_owned(), at: at.into(), body: body.clone() };
                let replace =
                    OnConflict::columns([Column::RepositoryId, Column::At]).update_column(Column::Body).to_owned();
                Entity::insert(row.into_active_model()).on_conflict(replace).exec_without_returning(&*tx).await?;
                let beyond = Entity::find()
                    .filter(Column::RepositoryId.eq(id.as_str()))
                    .order_by_desc(Column::At)
                    .offset(REPORTS_MAX)
                    .limit(1)
                    .one(&*tx)
                    .await?;
                if let Some(beyond) = beyond {
                    Entity::delete_many()
                        .filter(Column::RepositoryId.eq(id.as_str()))
                        .filter(Column::At.lte(beyond.at))
                        .exec(&*tx)
                        .await?;
                }
                Ok(())
            })
            .await
    }

    /// Forgets reports by when they were made; what is not known is passed over.
    pub async fn forget(&self, id: &RepositoryId, at: &[Timestamp]) -> Result<()> {
        use entity::repository_reports::{Column, Entity};
        if at.is_empty() {
            return Ok(());
        }
        let at: Vec<Ts> = at.iter().map(|at| (*at).into()).collect();
        self.0
            .write(|tx| {
                let at = at.clone();
                async move {
                    let chosen = Entity::delete_many().filter(Column::RepositoryId.eq(id.as_str()));
                    chosen.filter(Column::At.is_in(at)).exec(&*tx).await?;
                    Ok(())
                }
            })
            .await
    }

    /// The reports of a repository, newest first, with their number.
    pub async fn list(&self, id: &RepositoryId, page: Page) -> Result<(Vec<Report>, u64)> {
        use entity::repository_reports::{Column, Entity};
        let of_it = || Entity::find().filter(Column::RepositoryId.eq(id.as_str()));
        let rows = of_it().order_by_desc(Column::At).limit(page.limit()).offset(page.offset).all(self.0.pool()).await?;
        let total = value::count(of_it(), Column::At, self.0.pool()).await?;
        Ok((rows.into_iter().map(|row| Report { at: row.at.into(), body: row.body }).collect(), total))
    }
}
