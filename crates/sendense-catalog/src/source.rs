//! Sources: hypervisors, image folders, NBD servers.
//!
//! What lives here: rows. What does not: connecting to one. Removing a source **detaches** machines that have backups rather
//! than refusing: their points stay listed and restorable, and when the source is added again, discovery binds them by
//! (kind, instance uuid), so that a mistaken removal costs nothing. Machines without backups go with the source.
//! Invariant: no restore point is lost by removing a source.

use crate::error::{Conflict, Error, Noun, Result};
use crate::{Catalog, Page, entity, value};
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};
use sendense_types::{Name, SourceId, SourceKind, Timestamp};
use serde_json::Value;

/// A source.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Who.
    pub source_id: SourceId,
    /// Unique.
    pub name: Name,
    /// What it is.
    pub kind: SourceKind,
    /// Address, URI or path; not secret. The shape belongs to the hub.
    pub config: Value,
    /// Encrypted credentials, opaque here.
    pub secret: Option<Vec<u8>>,
    /// When it was added.
    pub created_at: Timestamp,
    /// The last discovery that succeeded.
    pub last_discovered_at: Option<Timestamp>,
    /// Why the last discovery failed; `None` after one that succeeded.
    pub last_error: Option<String>,
}

/// A source to add.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSource {
    /// Who.
    pub source_id: SourceId,
    /// Must be unique.
    pub name: Name,
    /// What it is.
    pub kind: SourceKind,
    /// Address, URI or path; not secret.
    pub config: Value,
    /// Encrypted credentials.
    pub secret: Option<Vec<u8>>,
}

/// What to change; `None` leaves as is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceChange {
    /// Another name.
    pub name: Option<Name>,
    /// Another address.
    pub config: Option<Value>,
    /// Other credentials, or none.
    pub secret: Option<Option<Vec<u8>>>,
}

/// Sources.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a>(pub(crate) &'a Catalog);

impl Sources<'_> {
    /// Adds one.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`], [`Conflict::Exists`].
    pub async fn create(&self, new: &NewSource, now: Timestamp) -> Result<Source> {
        self.0
            .write(|tx| async move {
                let named = entity::sources::Entity::find()
                    .filter(entity::sources::Column::Name.eq(new.name.as_str()))
                    .one(&*tx)
                    .await?;
                if named.is_some() {
                    return Err(Conflict::NameTaken { what: Noun::Source, name: new.name.as_str().to_owned() }.into());
                }
                let row = entity::sources::Model {
                    source_id: new.source_id.as_str().to_owned(),
                    name: new.name.as_str().to_owned(),
                    kind: new.kind.as_str().to_owned(),
                    config: new.config.clone(),
                    secret: new.secret.clone(),
                    created_at: now.into(),
                    last_discovered_at: None,
                    last_error: None,
                };
                entity::sources::Entity::insert(row.clone().into_active_model())
                    .exec_without_returning(&*tx)
                    .await
                    .map_err(|error| {
                        Error::from(error).or_conflict(|| Conflict::Exists {
                            what: Noun::Source,
                            id: format!("{} or {}", new.source_id, new.name),
                        })
                    })?;
                row.try_into()
            })
            .await
    }

    /// One by its id.
    pub async fn get(&self, id: &SourceId) -> Result<Source> {
        let row = entity::sources::Entity::find_by_id(id.as_str()).one(self.0.pool()).await?;
        row.ok_or_else(|| Error::not_found(Noun::Source, id))?.try_into()
    }

    /// One by its id or its name; an id wins over another's name.
    pub async fn find(&self, id_or_name: &str) -> Result<Source> {
        let rows = entity::sources::Entity::find()
            .filter(entity::sources::Column::SourceId.eq(id_or_name).or(entity::sources::Column::Name.eq(id_or_name)))
            .all(self.0.pool())
            .await?;
        let row = rows.iter().find(|row| row.source_id == id_or_name).or(rows.first()).cloned();
        row.ok_or_else(|| Error::not_found(Noun::Source, id_or_name))?.try_into()
    }

    /// All, by name, with their number.
    pub async fn list(&self, page: Page) -> Result<(Vec<Source>, u64)> {
        let rows = entity::sources::Entity::find()
            .order_by_asc(entity::sources::Column::Name)
            .limit(page.limit())
            .offset(page.offset)
            .all(self.0.pool())
            .await?;
        let total =
            value::count(entity::sources::Entity::find(), entity::sources::Column::SourceId, self.0.pool()).await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }

    /// Changes one.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`].
    pub async fn update(&self, id: &SourceId, change: &SourceChange) -> Result<Source> {
        self.0
            .write(|tx| async move {
                let row = entity::sources::Entity::find_by_id(id.as_str()).lock_exclusive().one(&*tx).await?;
                let mut row = row.ok_or_else(|| Error::not_found(Noun::Source, id))?;
                if let Some(name) = &change.name {
                    row.name = name.as_str().to_owned();
                }
                if let Some(config) = &change.config {
                    row.config = config.clone();
                }
                if let Some(secret) = &change.secret {
                    row.secret = secret.clone();
                }
                let set = entity::sources::ActiveModel {
                    name: Set(row.name.clone()),
                    config: Set(row.config.clone()),
                    secret: Set(row.secret.clone()),
                    ..Default::default()
                };
                entity::sources::Entity::update_many()
                    .set(set)
                    .filter(entity::sources::Column::SourceId.eq(id.as_str()))
                    .exec(&*tx)
                    .await
                    .map_err(|error| {
                        Error::from(error)
                            .or_conflict(|| Conflict::NameTaken { what: Noun::Source, name: row.name.clone() })
                    })?;
                row.try_into()
            })
            .await
    }

    /// Notes that a discovery failed, and why. A discovery that succeeds is noted by [`crate::Vms::upsert_discovered`].
    pub async fn note_failed_discovery(&self, id: &SourceId, error: &str) -> Result<()> {
        // Enough for a message with its chain; longer ones are logs.
        let error = &value::trim_text(error, 4000);
        self.0
            .write(|tx| async move {
                let set = entity::sources::ActiveModel { last_error: Set(Some(error.clone())), ..Default::default() };
                let done = entity::sources::Entity::update_many()
                    .set(set)
                    .filter(entity::sources::Column::SourceId.eq(id.as_str()))
                    .exec(&*tx)
                    .await?;
                if done.rows_affected == 1 { Ok(()) } else { Err(Error::not_found(Noun::Source, id)) }
            })
            .await
    }

    /// Removes one: machines with backups are detached, machines without go too. Returns the number of detached ones.
    ///
    /// # Errors
    /// [`Conflict::BackupActive`] while one of its machines is being backed up.
    pub async fn delete(&self, id: &SourceId) -> Result<u64> {
        self.0
            .write(|tx| async move {
                let row = entity::sources::Entity::find_by_id(id.as_str()).lock_exclusive().one(&*tx).await?;
                row.ok_or_else(|| Error::not_found(Noun::Source, id))?;
                // Lock the machines, so that no backup of them begins meanwhile.
                let machines = entity::vm_contexts::Entity::find()
                    .filter(entity::vm_contexts::Column::SourceId.eq(id.as_str()))
                    .order_by_asc(entity::vm_contexts::Column::VmContextId)
                    .lock_exclusive()
                    .all(&*tx)
                    .await?;
                let of_source = Query::select()
                    .column(entity::vm_contexts::Column::VmContextId)
                    .from(entity::vm_contexts::Entity)
                    .and_where(Expr::col(entity::vm_contexts::Column::SourceId).eq(id.as_str()))
                    .to_owned();
                let active = entity::backups::Entity::find()
                    .filter(entity::backups::Column::ActiveVmContextId.in_subquery(of_source))
                    .one(&*tx)
                    .await?;
                if let Some(active) = active {
                    return Err(crate::backup::active_conflict(&active)?.into());
                }
                let mut detached = 0;
                for machine in &machines {
                    let has_backup = entity::backups::Entity::find()
                        .filter(entity::backups::Column::VmContextId.eq(&machine.vm_context_id))
                        .one(&*tx)
                        .await?
                        .is_some();
                    if has_backup {
                        let set = entity::vm_contexts::ActiveModel { source_id: Set(None), ..Default::default() };
                        entity::vm_contexts::Entity::update_many()
                            .set(set)
                            .filter(entity::vm_contexts::Column::VmContextId.eq(&machine.vm_context_id))
                            .exec(&*tx)
                            .await?;
                        detached += 1;
                    } else {
                        entity::vm_contexts::Entity::delete_by_id(machine.vm_context_id.as_str()).exec(&*tx).await?;
                    }
                }
                entity::sources::Entity::delete_by_id(id.as_str()).exec(&*tx).await?;
                Ok(detached)
            })
            .await
    }
}

impl TryFrom<entity::sources::Model> for Source {
    type Error = Error;
    fn try_from(row: entity::sources::Model) -> Result<Self> {
        Ok(Self {
            source_id: value::read("source_id", &row.source_id)?,
            name: value::read("name", &row.name)?,
            kind: value::read("kind", &row.kind)?,
            config: row.config,
            secret: row.secret,
            created_at: row.created_at.into(),
            last_discovered_at: row.last_discovered_at.map(Into::into),
            last_error: row.last_error,
        })
    }
}
