//! The deployment's identity and the hubs that work on this catalog.
//!
//! What lives here: the one deployment id, and each hub's lease with its epoch. What does not: what hubs do. A hub takes a
//! new epoch at each start; work that an older epoch holds is orphaned at once, without waiting for a lease to run out.
//! Invariant: an epoch is given once.

use crate::error::{Conflict, Error, Noun, Result};
use crate::{Catalog, entity, value};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{DeploymentId, HubId, Timestamp};

/// A hub as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Who.
    pub hub_id: HubId,
    /// Its present epoch.
    pub epoch: i64,
    /// Until when it is alive, unless renewed.
    pub lease_until: Timestamp,
    /// When the epoch began.
    pub started_at: Timestamp,
}

/// The right of one hub process to work. Passed to whatever takes work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubLease {
    /// Who.
    pub hub_id: HubId,
    /// Which start of it.
    pub epoch: i64,
}

/// Deployment and hubs.
#[derive(Debug, Clone, Copy)]
pub struct Hubs<'a>(pub(crate) &'a Catalog);

impl Hubs<'_> {
    /// The deployment's id, made when it is asked for first and the same ever after.
    pub async fn deployment_id(&self, now: Timestamp) -> Result<DeploymentId> {
        if let Some(row) = entity::deployment::Entity::find().one(self.0.pool()).await? {
            return value::read("deployment_id", &row.deployment_id);
        }
        let made = entity::deployment::Model {
            one: 1,
            deployment_id: DeploymentId::generate().into(),
            created_at: now.into(),
        };
        let made = &made;
        self.0
            .write(|tx| async move {
                // Another hub may have been first; its id stays.
                let on_conflict = OnConflict::column(entity::deployment::Column::One)
                    .update_column(entity::deployment::Column::One)
                    .to_owned();
                entity::deployment::Entity::insert(made.clone().into_active_model())
                    .on_conflict(on_conflict)
                    .exec_without_returning(&*tx)
                    .await?;
                let row = entity::deployment::Entity::find().one(&*tx).await?;
                let row = row.ok_or_else(|| Error::Setup("the deployment's row vanished".to_owned()))?;
                value::read("deployment_id", &row.deployment_id)
            })
            .await
    }

    /// Begins a new epoch of this hub. Call it once per start; the data folder's lock keeps two processes of one id apart.
    pub async fn acquire(&self, hub_id: &HubId, lease_until: Timestamp, now: Timestamp) -> Result<HubLease> {
        self.0
            .write(|tx| async move {
                let known = entity::hubs::Entity::find_by_id(hub_id.as_str()).lock_exclusive().one(&*tx).await?;
                let epoch = known.as_ref().map_or(1, |hub| hub.epoch.saturating_add(1));
                let row = entity::hubs::Model {
                    hub_id: hub_id.as_str().to_owned(),
                    epoch,
                    lease_until: lease_until.into(),
                    started_at: now.into(),
                };
                if known.is_none() {
                    entity::hubs::Entity::insert(row.into_active_model()).exec_without_returning(&*tx).await?;
                } else {
                    let change = entity::hubs::ActiveModel {
                        epoch: Set(row.epoch),
                        lease_until: Set(row.lease_until),
                        started_at: Set(row.started_at),
                        ..Default::default()
                    };
                    entity::hubs::Entity::update_many()
                        .set(change)
                        .filter(entity::hubs::Column::HubId.eq(hub_id.as_str()))
                        .exec(&*tx)
                        .await?;
                }
                Ok(HubLease { hub_id: hub_id.clone(), epoch })
            })
            .await
    }

    /// Says that the hub is alive until `lease_until`.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`] when a later start of the same hub took over: this process must stop.
    pub async fn renew(&self, lease: &HubLease, lease_until: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                let change = entity::hubs::ActiveModel { lease_until: Set(lease_until.into()), ..Default::default() };
                let done = entity::hubs::Entity::update_many()
                    .set(change)
                    .filter(entity::hubs::Column::HubId.eq(lease.hub_id.as_str()))
                    .filter(entity::hubs::Column::Epoch.eq(lease.epoch))
                    .exec(&*tx)
                    .await?;
                match done.rows_affected {
                    1 => Ok(()),
                    _ => Err(Conflict::LeaseLost { what: Noun::Hub, id: lease.hub_id.to_string() }.into()),
                }
            })
            .await
    }

    /// All hubs that ever were, by id.
    pub async fn list(&self) -> Result<Vec<Hub>> {
        let rows = entity::hubs::Entity::find().order_by_asc(entity::hubs::Column::HubId).all(self.0.pool()).await?;
        rows.into_iter()
            .map(|row| {
                Ok(Hub {
                    hub_id: value::read("hub_id", &row.hub_id)?,
                    epoch: row.epoch,
                    lease_until: row.lease_until.into(),
                    started_at: row.started_at.into(),
                })
            })
            .collect()
    }
}
