//! Named leases: at most one owner at a time, with an epoch that fences the former ones.
//!
//! What lives here: compare-and-set on one row per name. What does not: what a lease is for. Invariant: the epoch of a name
//! grows with each change of owner and never repeats.

use crate::error::{Conflict, Noun, Result};
use crate::{Catalog, entity, value};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect};
use sendense_types::Timestamp;

/// A lease that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is about.
    pub name: String,
    /// Who holds it.
    pub owner: String,
    /// Which holding of the name this is.
    pub epoch: i64,
    /// Until when, unless renewed.
    pub until: Timestamp,
}

/// Named leases.
#[derive(Debug, Clone, Copy)]
pub struct Leases<'a>(pub(crate) &'a Catalog);

impl Leases<'_> {
    /// Takes a lease that is free, run out, or held by the same owner (who then gets a new epoch too).
    ///
    /// # Errors
    /// [`Conflict::LeaseHeld`] with the holder.
    pub async fn acquire(&self, name: &str, owner: &str, until: Timestamp, now: Timestamp) -> Result<Lease> {
        value::fits("name", name, 255)?;
        value::fits("owner", owner, 255)?;
        let taken = self
            .0
            .write(|tx| async move {
                let held = entity::leases::Entity::find_by_id(name).lock_exclusive().one(&*tx).await?;
                let epoch = match &held {
                    Some(held) if held.owner != owner && Timestamp::from(held.lease_until) > now => {
                        return Err(Conflict::LeaseHeld {
                            name: name.to_owned(),
                            owner: held.owner.clone(),
                            until: held.lease_until.into(),
                        }
                        .into());
                    }
                    Some(held) => held.epoch.saturating_add(1),
                    None => 1,
                };
                let row = entity::leases::Model {
                    name: name.to_owned(),
                    owner: owner.to_owned(),
                    epoch,
                    lease_until: until.into(),
                };
                if held.is_none() {
                    entity::leases::Entity::insert(row.into_active_model()).exec_without_returning(&*tx).await?;
                } else {
                    let change = entity::leases::ActiveModel {
                        owner: Set(row.owner),
                        epoch: Set(epoch),
                        lease_until: Set(row.lease_until),
                        ..Default::default()
                    };
                    entity::leases::Entity::update_many()
                        .set(change)
                        .filter(entity::leases::Column::Name.eq(name))
                        .exec(&*tx)
                        .await?;
                }
                Ok(Lease { name: name.to_owned(), owner: owner.to_owned(), epoch, until })
            })
            .await;
        // Two first takers: the row's key let one of them in.
        taken.map_err(|error| {
            error.or_conflict(|| Conflict::LeaseHeld { name: name.to_owned(), owner: "another".to_owned(), until })
        })
    }

    /// Prolongs a lease that is still ours, even when it has run out meanwhile, as long as nobody took it.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`]: what it protects must not be touched any more.
    pub async fn renew(&self, lease: &Lease, until: Timestamp) -> Result<Lease> {
        self.set(lease, until).await?;
        Ok(Lease { until, ..lease.clone() })
    }

    /// Gives a lease back; the epoch stays known.
    pub async fn release(&self, lease: &Lease) -> Result<()> {
        self.set(lease, Timestamp::from_micros(0)).await
    }

    /// Who holds the name, also when the time has run out.
    pub async fn get(&self, name: &str) -> Result<Option<Lease>> {
        let row = entity::leases::Entity::find_by_id(name).one(self.0.pool()).await?;
        Ok(row.map(|row| Lease { name: row.name, owner: row.owner, epoch: row.epoch, until: row.lease_until.into() }))
    }

    async fn set(&self, lease: &Lease, until: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                let change = entity::leases::ActiveModel { lease_until: Set(until.into()), ..Default::default() };
                let done = entity::leases::Entity::update_many()
                    .set(change)
                    .filter(entity::leases::Column::Name.eq(&lease.name))
                    .filter(entity::leases::Column::Owner.eq(&lease.owner))
                    .filter(entity::leases::Column::Epoch.eq(lease.epoch))
                    .exec(&*tx)
                    .await?;
                match done.rows_affected {
                    1 => Ok(()),
                    _ => Err(Conflict::LeaseLost { what: Noun::Lease, id: lease.name.clone() }.into()),
                }
            })
            .await
    }
}
