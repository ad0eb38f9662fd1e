//! Schedules: which policy is carried out when. The catalog keeps what they say and which occurrence was handled last; the
//! hub knows what it means.
//!
//! Invariant: the occurrence that was handled last only moves forward, and with the row of its execution in one transaction
//! (see [`crate::Executions`]), so that no two hubs handle one occurrence.

use crate::error::{Conflict, Error, Noun, Result};
use crate::tx::Tx;
use crate::{Catalog, Page, entity, value};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};
use sendense_types::{Name, PolicyId, ScheduleId, Timestamp};
use serde_json::Value;

/// A schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Who.
    pub schedule_id: ScheduleId,
    /// Unique.
    pub name: Name,
    /// What is carried out.
    pub policy_id: PolicyId,
    /// Whether anything begins by itself.
    pub enabled: bool,
    /// When it says so. The shape belongs to the hub.
    pub body: Value,
    /// What was due before is none of its business: when it was made, changed or enabled last.
    pub since: Timestamp,
    /// The newest occurrence that was run or skipped.
    pub handled: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A schedule to add.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSchedule {
    /// Who.
    pub schedule_id: ScheduleId,
    /// Must be unique.
    pub name: Name,
    /// What is carried out.
    pub policy_id: PolicyId,
    /// Whether anything begins by itself.
    pub enabled: bool,
    /// When.
    pub body: Value,
}

/// Schedules.
#[derive(Debug, Clone, Copy)]
pub struct Schedules<'a>(pub(crate) &'a Catalog);

impl Schedules<'_> {
    /// Adds one.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`], [`Conflict::Exists`], [`Error::NotFound`] for the policy.
    pub async fn create(&self, new: &NewSchedule, now: Timestamp) -> Result<Schedule> {
        use entity::schedules::{Column, Entity, Model};
        self.0
            .write(|tx| async move {
                if Entity::find().filter(Column::Name.eq(new.name.as_str())).one(&*tx).await?.is_some() {
                    return Err(taken(&new.name));
                }
                let row = Model {
                    schedule_id: new.schedule_id.as_str().to_owned(),
                    name: new.name.as_str().to_owned(),
                    policy_id: new.policy_id.as_str().to_owned(),
                    enabled: new.enabled,
                    body: new.body.clone(),
                    since: now.into(),
                    handled: None,
                    created_at: now.into(),
                };
                let inserted = Entity::insert(row.clone().into_active_model()).exec_without_returning(&*tx).await;
                inserted.map_err(|error| match Error::from(error) {
                    Error::Orphan(_) => Error::not_found(Noun::Policy, &new.policy_id),
                    error => error.or_conflict(|| Conflict::Exists {
                        what: Noun::Schedule,
                        id: format!("{} or {}", new.schedule_id, new.name),
                    }),
                })?;
                row.try_into()
            })
            .await
    }

    /// One by its id or its name; an id wins over another's name.
    pub async fn find(&self, id_or_name: &str) -> Result<Schedule> {
        use entity::schedules::{Column, Entity};
        let is_it = Column::ScheduleId.eq(id_or_name).or(Column::Name.eq(id_or_name));
        let rows = Entity::find().filter(is_it).all(self.0.pool()).await?;
        let row = rows.iter().find(|row| row.schedule_id == id_or_name).or(rows.first()).cloned();
        row.ok_or_else(|| Error::not_found(Noun::Schedule, id_or_name))?.try_into()
    }

    /// All, by name, with their number.
    pub async fn list(&self, page: Page) -> Result<(Vec<Schedule>, u64)> {
        use entity::schedules::{Column, Entity};
        let rows = Entity::find().order_by_asc(Column::Name).limit(page.limit()).offset(page.offset);
        let rows = rows.all(self.0.pool()).await?;
        let total = value::count(Entity::find(), Column::ScheduleId, self.0.pool()).await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }

    /// Says something else; what was due before now is none of its business any more.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`], [`Error::NotFound`] also for the policy.
    pub async fn replace(&self, new: &NewSchedule, now: Timestamp) -> Result<Schedule> {
        use entity::schedules::{ActiveModel, Column, Entity};
        self.0
            .write(|tx| async move {
                let mut row = lock(&tx, &new.schedule_id).await?;
                row.name = new.name.as_str().to_owned();
                row.policy_id = new.policy_id.as_str().to_owned();
                row.enabled = new.enabled;
                row.body = new.body.clone();
                row.since = now.into();
                let set = ActiveModel {
                    name: Set(row.name.clone()),
                    policy_id: Set(row.policy_id.clone()),
                    enabled: Set(row.enabled),
                    body: Set(row.body.clone()),
                    since: Set(row.since),
                    ..Default::default()
                };
                let is_it = Column::ScheduleId.eq(new.schedule_id.as_str());
                let done = Entity::update_many().set(set).filter(is_it).exec(&*tx).await;
                done.map_err(|error| match Error::from(error) {
                    Error::Orphan(_) => Error::not_found(Noun::Policy, &new.policy_id),
                    error => error.or_conflict(|| Conflict::NameTaken {
                        what: Noun::Schedule,
                        name: new.name.as_str().to_owned(),
                    }),
                })?;
                row.try_into()
            })
            .await
    }

    /// Forgets one, with its executions. Backups that it began go on, and stay.
    pub async fn delete(&self, schedule_id: &ScheduleId) -> Result<()> {
        self.0
            .write(|tx| async move {
                lock(&tx, schedule_id).await?;
                entity::schedules::Entity::delete_by_id(schedule_id.as_str()).exec(&*tx).await?;
                Ok(())
            })
            .await
    }
}

/// Locks a schedule's row.
pub(crate) async fn lock(tx: &Tx, schedule_id: &ScheduleId) -> Result<entity::schedules::Model> {
    let row = entity::schedules::Entity::find_by_id(schedule_id.as_str()).lock_exclusive().one(&**tx).await?;
    row.ok_or_else(|| Error::not_found(Noun::Schedule, schedule_id))
}

/// Notes that an occurrence is handled.
///
/// # Errors
/// [`Conflict::WrongState`] when it, or a later one, was handled before, or the schedule is disabled.
pub(crate) async fn handle(tx: &Tx, schedule_id: &ScheduleId, due: Timestamp) -> Result<()> {
    use entity::schedules::{ActiveModel, Column, Entity};
    let row = lock(tx, schedule_id).await?;
    let wrong = |state: &str| Conflict::WrongState {
        what: Noun::Schedule,
        id: schedule_id.to_string(),
        state: state.to_owned(),
    };
    if !row.enabled {
        return Err(wrong("disabled").into());
    }
    if Timestamp::from(row.since) > due || row.handled.is_some_and(|handled| Timestamp::from(handled) >= due) {
        return Err(wrong("past that occurrence").into());
    }
    let set = ActiveModel { handled: Set(Some(due.into())), ..Default::default() };
    Entity::update_many().set(set).filter(Column::ScheduleId.eq(schedule_id.as_str())).exec(&**tx).await?;
    Ok(())
}

fn taken(name: &Name) -> Error {
    Conflict::NameTaken { what: Noun::Schedule, name: name.as_str().to_owned() }.into()
}

impl TryFrom<entity::schedules::Model> for Schedule {
    type Error = Error;
    fn try_from(row: entity::schedules::Model) -> Result<Self> {
        Ok(Self {
            schedule_id: value::read("schedule_id", &row.schedule_id)?,
            name: value::read("name", &row.name)?,
            policy_id: value::read("policy_id", &row.policy_id)?,
            enabled: row.enabled,
            body: row.body,
            since: row.since.into(),
            handled: row.handled.map(Into::into),
            created_at: row.created_at.into(),
        })
    }
}
