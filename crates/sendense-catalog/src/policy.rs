//! Policies: which machines are protected, and how. The catalog keeps what they say; the hub knows what it means.
//!
//! Invariant: a policy that a schedule refers to is not removed.

use crate::error::{Conflict, Error, Noun, Result};
use crate::{Catalog, Page, entity, value};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};
use sendense_types::{Name, PolicyId, Timestamp};
use serde_json::Value;

/// A policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Who.
    pub policy_id: PolicyId,
    /// Unique.
    pub name: Name,
    /// What it says. The shape belongs to the hub.
    pub body: Value,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
}

/// Policies.
#[derive(Debug, Clone, Copy)]
pub struct Policies<'a>(pub(crate) &'a Catalog);

impl Policies<'_> {
    /// Adds one.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`], [`Conflict::Exists`].
    pub async fn create(&self, policy_id: &PolicyId, name: &Name, body: &Value, now: Timestamp) -> Result<Policy> {
        use entity::policies::{Column, Entity, Model};
        self.0
            .write(|tx| async move {
                if Entity::find().filter(Column::Name.eq(name.as_str())).one(&*tx).await?.is_some() {
                    return Err(taken(name));
                }
                let row = Model {
                    policy_id: policy_id.as_str().to_owned(),
                    name: name.as_str().to_owned(),
                    body: body.clone(),
                    created_at: now.into(),
                    updated_at: now.into(),
                };
                let inserted = Entity::insert(row.clone().into_active_model()).exec_without_returning(&*tx).await;
                inserted.map_err(|error| {
                    let id = format!("{policy_id} or {name}");
                    Error::from(error).or_conflict(|| Conflict::Exists { what: Noun::Policy, id })
                })?;
                row.try_into()
            })
            .await
    }

    /// One by its id or its name; an id wins over another's name.
    pub async fn find(&self, id_or_name: &str) -> Result<Policy> {
        use entity::policies::{Column, Entity};
        let is_it = Column::PolicyId.eq(id_or_name).or(Column::Name.eq(id_or_name));
        let rows = Entity::find().filter(is_it).all(self.0.pool()).await?;
        let row = rows.iter().find(|row| row.policy_id == id_or_name).or(rows.first()).cloned();
        row.ok_or_else(|| Error::not_found(Noun::Policy, id_or_name))?.try_into()
    }

    /// All, by name, with their number.
    pub async fn list(&self, page: Page) -> Result<(Vec<Policy>, u64)> {
        use entity::policies::{Column, Entity};
        let rows = Entity::find().order_by_asc(Column::Name).limit(page.limit()).offset(page.offset);
        let rows = rows.all(self.0.pool()).await?;
        let total = value::count(Entity::find(), Column::PolicyId, self.0.pool()).await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }

    /// Says something else, under this name.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`].
    pub async fn replace(&self, policy_id: &PolicyId, name: &Name, body: &Value, now: Timestamp) -> Result<Policy> {
        use entity::policies::{ActiveModel, Column, Entity};
        self.0
            .write(|tx| async move {
                let row = Entity::find_by_id(policy_id.as_str()).lock_exclusive().one(&*tx).await?;
                let mut row = row.ok_or_else(|| Error::not_found(Noun::Policy, policy_id))?;
                let set = ActiveModel {
                    name: Set(name.as_str().to_owned()),
                    body: Set(body.clone()),
                    updated_at: Set(now.into()),
                    ..Default::default()
                };
                let is_it = Column::PolicyId.eq(policy_id.as_str());
                let done = Entity::update_many().set(set).filter(is_it).exec(&*tx).await;
                done.map_err(|error| {
                    Error::from(error)
                        .or_conflict(|| Conflict::NameTaken { what: Noun::Policy, name: name.as_str().to_owned() })
                })?;
                row.name = name.as_str().to_owned();
                row.body = body.clone();
                row.updated_at = now.into();
                row.try_into()
            })
            .await
    }

    /// Forgets one. Points that were made for it stay.
    ///
    /// # Errors
    /// [`Conflict::InUse`] while a schedule refers to it.
    pub async fn delete(&self, policy_id: &PolicyId) -> Result<()> {
        use entity::policies::Entity;
        use entity::schedules::{Column, Entity as Schedules};
        self.0
            .write(|tx| async move {
                let row = Entity::find_by_id(policy_id.as_str()).lock_exclusive().one(&*tx).await?;
                row.ok_or_else(|| Error::not_found(Noun::Policy, policy_id))?;
                let in_use = |by: String| Conflict::InUse { what: Noun::Policy, id: policy_id.to_string(), by };
                let held = Schedules::find().filter(Column::PolicyId.eq(policy_id.as_str())).one(&*tx).await?;
                if let Some(schedule) = held {
                    return Err(in_use(format!("schedule {}", schedule.name)).into());
                }
                let gone = Entity::delete_by_id(policy_id.as_str()).exec(&*tx).await;
                gone.map_err(|error| {
                    Error::from(error).or_conflict(|| in_use("a schedule that was just made".to_owned()))
                })?;
                Ok(())
            })
            .await
    }
}

fn taken(name: &Name) -> Error {
    Conflict::NameTaken { what: Noun::Policy, name: name.as_str().to_owned() }.into()
}

impl TryFrom<entity::policies::Model> for Policy {
    type Error = Error;
    fn try_from(row: entity::policies::Model) -> Result<Self> {
        Ok(Self {
            policy_id: value::read("policy_id", &row.policy_id)?,
            name: value::read("name", &row.name)?,
            body: row.body,
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
        })
    }
}
