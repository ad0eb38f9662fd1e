//! The journal of artefacts: each snapshot, checkpoint, mount, export and child process is written down **before** it is
//! made, and struck off after it is gone.
//!
//! What lives here: rows. What does not: making or reaping. Invariant: an entry that is not done may exist in the world, so
//! whoever finds one without a live task must look and reap; reaping what never came to be is harmless.

use crate::error::{Conflict, Error, Noun, Result};
use crate::{Catalog, entity, value};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{TaskId, Timestamp};
use serde_json::Value;

/// Open entries that one call returns. A backup has a handful at a time, so this is thousands of backups.
const OPEN_MAX: u64 = 10_000;

/// Something that was made, or was about to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Artefact {
    /// Its id, which its name in the world carries.
    pub artefact_id: String,
    /// For which task.
    pub task_id: Option<TaskId>,
    /// Which node or hub made it, and can reap it.
    pub node: String,
    /// `checkpoint`, `backup_job`, `freeze`, `mount`, `process` …
    pub kind: String,
    /// What is needed to find and reap it.
    pub particulars: Value,
    /// When it was written down.
    pub created_at: Timestamp,
    /// When it was known to be gone.
    pub done_at: Option<Timestamp>,
}

/// Something that is about to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewArtefact {
    /// Its id, unique.
    pub artefact_id: String,
    /// For which task.
    pub task_id: Option<TaskId>,
    /// Which node or hub makes it.
    pub node: String,
    /// What it is, at most 24 characters.
    pub kind: String,
    /// What is needed to find and reap it.
    pub particulars: Value,
}

/// The journal.
#[derive(Debug, Clone, Copy)]
pub struct Journal<'a>(pub(crate) &'a Catalog);

impl Journal<'_> {
    /// Writes down what is about to be made.
    ///
    /// # Errors
    /// [`Conflict::Exists`] when the id is known.
    pub async fn record(&self, new: &NewArtefact, now: Timestamp) -> Result<Artefact> {
        value::fits("artefact_id", &new.artefact_id, 64)?;
        value::fits("node", &new.node, 64)?;
        value::fits("kind", &new.kind, 24)?;
        self.0
            .write(|tx| async move {
                let row = entity::journal::Model {
                    artefact_id: new.artefact_id.clone(),
                    task_id: new.task_id.as_ref().map(|id| id.as_str().to_owned()),
                    node: new.node.clone(),
                    kind: new.kind.clone(),
                    particulars: new.particulars.clone(),
                    created_at: now.into(),
                    done_at: None,
                };
                entity::journal::Entity::insert(row.clone().into_active_model())
                    .exec_without_returning(&*tx)
                    .await
                    .map_err(|error| {
                        Error::from(error)
                            .or_conflict(|| Conflict::Exists { what: Noun::Artefact, id: new.artefact_id.clone() })
                    })?;
                row.try_into()
            })
            .await
    }

    /// Strikes an entry off: the thing is gone, or never came to be. The first moment stays.
    pub async fn done(&self, artefact_id: &str, now: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                let row = entity::journal::Entity::find_by_id(artefact_id).lock_exclusive().one(&*tx).await?;
                let row = row.ok_or_else(|| Error::not_found(Noun::Artefact, artefact_id))?;
                if row.done_at.is_none() {
                    let set = entity::journal::ActiveModel { done_at: Set(Some(now.into())), ..Default::default() };
                    entity::journal::Entity::update_many()
                        .set(set)
                        .filter(entity::journal::Column::ArtefactId.eq(artefact_id))
                        .exec(&*tx)
                        .await?;
                }
                Ok(())
            })
            .await
    }

    /// What may still exist, oldest first.
    pub async fn open(&self) -> Result<Vec<Artefact>> {
        let rows = entity::journal::Entity::find()
            .filter(entity::journal::Column::DoneAt.is_null())
            .order_by_asc(entity::journal::Column::CreatedAt)
            .order_by_asc(entity::journal::Column::ArtefactId)
            .limit(OPEN_MAX)
            .all(self.0.pool())
            .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// What may still exist of one task, oldest first.
    pub async fn open_of_task(&self, task_id: &TaskId) -> Result<Vec<Artefact>> {
        let rows = entity::journal::Entity::find()
            .filter(entity::journal::Column::TaskId.eq(task_id.as_str()))
            .filter(entity::journal::Column::DoneAt.is_null())
            .order_by_asc(entity::journal::Column::CreatedAt)
            .order_by_asc(entity::journal::Column::ArtefactId)
            .all(self.0.pool())
            .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Forgets entries that were struck off before `before`; returns their number.
    pub async fn forget_done(&self, before: Timestamp) -> Result<u64> {
        self.0
            .write(|tx| async move {
                let done = entity::journal::Entity::delete_many()
                    .filter(entity::journal::Column::DoneAt.lt(crate::value::Ts::from(before)))
                    .exec(&*tx)
                    .await?;
                Ok(done.rows_affected)
            })
            .await
    }
}

impl TryFrom<entity::journal::Model> for Artefact {
    type Error = Error;
    fn try_from(row: entity::journal::Model) -> Result<Self> {
        Ok(Self {
            artefact_id: row.artefact_id,
            task_id: value::read_opt("task_id", row.task_id.as_deref())?,
            node: row.node,
            kind: row.kind,
            particulars: row.particulars,
            created_at: row.created_at.into(),
            done_at: row.done_at.map(Into::into),
        })
    }
}
