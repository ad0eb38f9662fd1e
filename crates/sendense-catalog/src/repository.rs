//! Repositories as the hub knows them: where they are and how they are to be used.
//!
//! What lives here: rows. What does not: what lies in a repository. Invariant: a repository that any backup refers to is
//! not removed.

use crate::error::{Conflict, Error, Noun, Result};
use crate::{Catalog, Page, counts, entity, value};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};
use sendense_types::{Name, RepositoryId, RepositoryKind, RepositoryMode, Timestamp};
use serde_json::Value;

/// A repository.
#[derive(Debug, Clone, PartialEq)]
pub struct Repository {
    /// Who.
    pub repository_id: RepositoryId,
    /// Unique.
    pub name: Name,
    /// What it is.
    pub kind: RepositoryKind,
    /// Where it is; not secret. The shape belongs to the hub.
    pub config: Value,
    /// How it is used: default compression, capacity limit … The shape belongs to the hub.
    pub settings: Value,
    /// Encrypted credentials, opaque here.
    pub secret: Option<Vec<u8>>,
    /// When it was added.
    pub created_at: Timestamp,
    /// What may be done in it.
    pub maintenance: Maintenance,
}

/// What may be done in a repository, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// What may be done.
    pub mode: RepositoryMode,
    /// Why not more.
    pub reason: Option<String>,
    /// Since when; none when it never was otherwise.
    pub since: Option<Timestamp>,
    /// Who said so.
    pub by: Option<String>,
}

impl Maintenance {
    /// What a new repository begins with.
    pub const NONE: Self = Self { mode: RepositoryMode::Normal, reason: None, since: None, by: None };
}

/// A repository to add.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRepository {
    /// Who.
    pub repository_id: RepositoryId,
    /// Must be unique.
    pub name: Name,
    /// What it is.
    pub kind: RepositoryKind,
    /// Where it is; not secret.
    pub config: Value,
    /// How it is used.
    pub settings: Value,
    /// Encrypted credentials.
    pub secret: Option<Vec<u8>>,
}

/// What to change; `None` leaves as is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RepositoryChange {
    /// Another name.
    pub name: Option<Name>,
    /// Another place.
    pub config: Option<Value>,
    /// Other settings.
    pub settings: Option<Value>,
    /// Other credentials, or none.
    pub secret: Option<Option<Vec<u8>>>,
}

/// Repositories.
#[derive(Debug, Clone, Copy)]
pub struct Repositories<'a>(pub(crate) &'a Catalog);

impl Repositories<'_> {
    /// Adds one.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`], [`Conflict::Exists`].
    pub async fn create(&self, new: &NewRepository, now: Timestamp) -> Result<Repository> {
        self.0
            .write(|tx| async move {
                let named = entity::repositories::Entity::find()
                    .filter(entity::repositories::Column::Name.eq(new.name.as_str()))
                    .one(&*tx)
                    .await?;
                if named.is_some() {
                    return Err(taken(&new.name));
                }
                let row = entity::repositories::Model {
                    repository_id: new.repository_id.as_str().to_owned(),
                    name: new.name.as_str().to_owned(),
                    kind: new.kind.as_str().to_owned(),
                    config: new.config.clone(),
                    settings: new.settings.clone(),
                    secret: new.secret.clone(),
                    created_at: now.into(),
                    mode: None,
                    mode_reason: None,
                    mode_since: None,
                    mode_by: None,
                };
                entity::repositories::Entity::insert(row.clone().into_active_model())
                    .exec_without_returning(&*tx)
                    .await
                    .map_err(|error| {
                        Error::from(error).or_conflict(|| Conflict::Exists {
                            what: Noun::Repository,
                            id: format!("{} or {}", new.repository_id, new.name),
                        })
                    })?;
                row.try_into()
            })
            .await
    }

    /// One by its id.
    pub async fn get(&self, id: &RepositoryId) -> Result<Repository> {
        let row = entity::repositories::Entity::find_by_id(id.as_str()).one(self.0.pool()).await?;
        row.ok_or_else(|| Error::not_found(Noun::Repository, id))?.try_into()
    }

    /// One by its id or its name; an id wins over another's name.
    pub async fn find(&self, id_or_name: &str) -> Result<Repository> {
        let rows = entity::repositories::Entity::find()
            .filter(
                entity::repositories::Column::RepositoryId
                    .eq(id_or_name)
                    .or(entity::repositories::Column::Name.eq(id_or_name)),
            )
            .all(self.0.pool())
            .await?;
        let row = rows.iter().find(|row| row.repository_id == id_or_name).or(rows.first()).cloned();
        row.ok_or_else(|| Error::not_found(Noun::Repository, id_or_name))?.try_into()
    }

    /// All, by name, with their number.
    pub async fn list(&self, page: Page) -> Result<(Vec<Repository>, u64)> {
        let rows = entity::repositories::Entity::find()
            .order_by_asc(entity::repositories::Column::Name)
            .limit(page.limit())
            .offset(page.offset)
            .all(self.0.pool())
            .await?;
        let total = value::count(
            entity::repositories::Entity::find(),
            entity::repositories::Column::RepositoryId,
            self.0.pool(),
        )
        .await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }

    /// Changes one.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`].
    pub async fn update(&self, id: &RepositoryId, change: &RepositoryChange) -> Result<Repository> {
        self.0
            .write(|tx| async move {
                let row = entity::repositories::Entity::find_by_id(id.as_str()).lock_exclusive().one(&*tx).await?;
                let mut row = row.ok_or_else(|| Error::not_found(Noun::Repository, id))?;
                if let Some(name) = &change.name {
                    row.name = name.as_str().to_owned();
                }
                if let Some(config) = &change.config {
                    row.config = config.clone();
                }
                if let Some(settings) = &change.settings {
                    row.settings = settings.clone();
                }
                if let Some(secret) = &change.secret {
                    row.secret = secret.clone();
                }
                let set = entity::repositories::ActiveModel {
                    name: Set(row.name.clone()),
                    config: Set(row.config.clone()),
                    settings: Set(row.settings.clone()),
                    secret: Set(row.secret.clone()),
                    ..Default::default()
                };
                entity::repositories::Entity::update_many()
                    .set(set)
                    .filter(entity::repositories::Column::RepositoryId.eq(id.as_str()))
                    .exec(&*tx)
                    .await
                    .map_err(|error| {
                        Error::from(error)
                            .or_conflict(|| Conflict::NameTaken { what: Noun::Repository, name: row.name.clone() })
                    })?;
                row.try_into()
            })
            .await
    }

    /// Says what may be done in one from now on, and gives what was said before.
    pub async fn set_maintenance(&self, id: &RepositoryId, to: &Maintenance) -> Result<Maintenance> {
        self.0
            .write(|tx| async move {
                let row = entity::repositories::Entity::find_by_id(id.as_str()).lock_exclusive().one(&*tx).await?;
                let before: Repository = row.ok_or_else(|| Error::not_found(Noun::Repository, id))?.try_into()?;
                let set = entity::repositories::ActiveModel {
                    mode: Set(Some(to.mode.as_str().to_owned())),
                    mode_reason: Set(to.reason.clone()),
                    mode_since: Set(to.since.map(Into::into)),
                    mode_by: Set(to.by.clone()),
                    ..Default::default()
                };
                entity::repositories::Entity::update_many()
                    .set(set)
                    .filter(entity::repositories::Column::RepositoryId.eq(id.as_str()))
                    .exec(&*tx)
                    .await?;
                Ok(before.maintenance)
            })
            .await
    }

    /// Forgets one. What lies in it is not touched.
    ///
    /// # Errors
    /// [`Conflict::InUse`] while any backup refers to it, also a failed one.
    pub async fn delete(&self, id: &RepositoryId) -> Result<()> {
        self.0
            .write(|tx| async move {
                let row = entity::repositories::Entity::find_by_id(id.as_str()).lock_exclusive().one(&*tx).await?;
                row.ok_or_else(|| Error::not_found(Noun::Repository, id))?;
                let held =
                    entity::backups::Entity::find().filter(entity::backups::Column::RepositoryId.eq(id.as_str()));
                let held = value::count(held, entity::backups::Column::BackupId, &*tx).await?;
                let in_use = |by: String| Conflict::InUse { what: Noun::Repository, id: id.to_string(), by };
                if held > 0 {
                    return Err(in_use(format!("{held} backups lie in it")).into());
                }
                entity::repositories::Entity::delete_by_id(id.as_str()).exec(&*tx).await.map_err(|error| {
                    Error::from(error).or_conflict(|| in_use("a backup has just begun in it".to_owned()))
                })?;
                counts::forget_repository(&tx, id).await
            })
            .await
    }
}

fn taken(name: &Name) -> Error {
    Conflict::NameTaken { what: Noun::Repository, name: name.as_str().to_owned() }.into()
}

impl TryFrom<entity::repositories::Model> for Repository {
    type Error = Error;
    fn try_from(row: entity::repositories::Model) -> Result<Self> {
        Ok(Self {
            repository_id: value::read("repository_id", &row.repository_id)?,
            name: value::read("name", &row.name)?,
            kind: value::read("kind", &row.kind)?,
            config: row.config,
            settings: row.settings,
            secret: row.secret,
            created_at: row.created_at.into(),
            maintenance: Maintenance {
                mode: row.mode.map_or(Ok(RepositoryMode::Normal), |mode| value::read("mode", &mode))?,
                reason: row.mode_reason,
                since: row.mode_since.map(Into::into),
                by: row.mode_by,
            },
        })
    }
}
