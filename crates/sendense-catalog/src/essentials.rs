//! What of a catalog cannot be made anew from repositories and sources: who we are, where everything is, and what is to be done.
//!
//! What lives here: taking these rows out of a catalog, and putting them into an empty one, on whatever database. What does not:
//! how they are kept. Left out is what manifests tell (points, chains), what is told anew (tasks, their logs, leases) and what
//! ends with the hub that had it (the journal, codes by which nodes enrol).
//!
//! Invariant: the rows go in whole or not at all, and only where there is nothing yet.

use crate::error::{Error, Result};
use crate::{Catalog, entity};
use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryOrder};
use serde::{Deserialize, Serialize};

/// The version of [`Essentials`] that this program writes. A column that comes later has a default, so that older ones are read.
pub const ESSENTIALS_VERSION: u32 = 1;

/// Rows that are inserted by one statement: PostgreSQL allows 65,535 values in one, and the widest table here has 12 columns.
const ROWS_AT_ONCE: usize = 500;

/// The rows. Opaque: they are this crate's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Essentials {
    version: u32,
    deployment: Vec<entity::deployment::Model>,
    settings: Vec<entity::settings::Model>,
    repositories: Vec<entity::repositories::Model>,
    sources: Vec<entity::sources::Model>,
    vm_contexts: Vec<entity::vm_contexts::Model>,
    vm_disks: Vec<entity::vm_disks::Model>,
    #[serde(default)]
    vm_tags: Vec<entity::vm_tags::Model>,
    policies: Vec<entity::policies::Model>,
    schedules: Vec<entity::schedules::Model>,
    tokens: Vec<entity::tokens::Model>,
    nodes: Vec<entity::nodes::Model>,
}

/// How much there is of what, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub repositories: usize,
    pub sources: usize,
    pub vms: usize,
    pub policies: usize,
    pub schedules: usize,
    pub tokens: usize,
    pub nodes: usize,
}

impl Essentials {
    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            repositories: self.repositories.len(),
            sources: self.sources.len(),
            vms: self.vm_contexts.len(),
            policies: self.policies.len(),
            schedules: self.schedules.len(),
            tokens: self.tokens.len(),
            nodes: self.nodes.len(),
        }
    }
}

impl Catalog {
    /// Takes the essentials out, as they are at one moment.
    pub async fn essentials(&self) -> Result<Essentials> {
        self.write(|tx| async move {
            let tx = &*tx;
            Ok(Essentials {
                version: ESSENTIALS_VERSION,
                deployment: entity::deployment::Entity::find().all(tx).await?,
                settings: all::<entity::settings::Entity>(entity::settings::Column::Key, tx).await?,
                repositories: all::<entity::repositories::Entity>(entity::repositories::Column::RepositoryId, tx)
                    .await?,
                sources: all::<entity::sources::Entity>(entity::sources::Column::SourceId, tx).await?,
                vm_contexts: all::<entity::vm_contexts::Entity>(entity::vm_contexts::Column::VmContextId, tx).await?,
                vm_disks: entity::vm_disks::Entity::find()
                    .order_by_asc(entity::vm_disks::Column::VmContextId)
                    .order_by_asc(entity::vm_disks::Column::DiskId)
                    .all(tx)
                    .await?,
                vm_tags: entity::vm_tags::Entity::find()
                    .order_by_asc(entity::vm_tags::Column::VmContextId)
                    .order_by_asc(entity::vm_tags::Column::Tag)
                    .all(tx)
                    .await?,
                policies: all::<entity::policies::Entity>(entity::policies::Column::PolicyId, tx).await?,
                schedules: all::<entity::schedules::Entity>(entity::schedules::Column::ScheduleId, tx).await?,
                tokens: all::<entity::tokens::Entity>(entity::tokens::Column::TokenId, tx).await?,
                nodes: all::<entity::nodes::Entity>(entity::nodes::Column::NodeId, tx).await?,
            })
        })
        .await
    }

    /// Puts essentials into a catalog that holds nothing yet.
    ///
    /// # Errors
    /// [`Error::Setup`] when it holds something, or when a later release wrote the essentials.
    pub async fn restore_essentials(&self, essentials: &Essentials) -> Result<()> {
        if essentials.version != ESSENTIALS_VERSION {
            let version = essentials.version;
            let why = format!("they have version {version}, and this program knows {ESSENTIALS_VERSION}");
            return Err(Error::Setup(why));
        }
        self.write(|tx| async move {
            let tx = &*tx;
            require_empty(tx).await?;
            let rows = essentials.clone();
            insert::<entity::deployment::Entity, _, _>(rows.deployment, tx).await?;
            insert::<entity::settings::Entity, _, _>(rows.settings, tx).await?;
            insert::<entity::repositories::Entity, _, _>(rows.repositories, tx).await?;
            insert::<entity::sources::Entity, _, _>(rows.sources, tx).await?;
            insert::<entity::vm_contexts::Entity, _, _>(rows.vm_contexts, tx).await?;
            insert::<entity::vm_disks::Entity, _, _>(rows.vm_disks, tx).await?;
            insert::<entity::vm_tags::Entity, _, _>(rows.vm_tags, tx).await?;
            insert::<entity::policies::Entity, _, _>(rows.policies, tx).await?;
            insert::<entity::schedules::Entity, _, _>(rows.schedules, tx).await?;
            insert::<entity::tokens::Entity, _, _>(rows.tokens, tx).await?;
            insert::<entity::nodes::Entity, _, _>(rows.nodes, tx).await
        })
        .await
    }
}

async fn all<E: EntityTrait>(by: E::Column, tx: &impl ConnectionTrait) -> Result<Vec<E::Model>> {
    Ok(E::find().order_by_asc(by).all(tx).await?)
}

async fn insert<E, M, A>(rows: Vec<M>, tx: &impl ConnectionTrait) -> Result<()>
where
    E: EntityTrait<Model = M>,
    M: IntoActiveModel<A> + Clone,
    A: ActiveModelTrait<Entity = E> + Send,
{
    for rows in rows.chunks(ROWS_AT_ONCE) {
        let rows = rows.iter().cloned().map(IntoActiveModel::into_active_model);
        E::insert_many(rows).exec_without_returning(tx).await?;
    }
    Ok(())
}

/// Refuses a catalog in which somebody has begun to work: two that are mixed would be neither.
async fn require_empty(tx: &impl ConnectionTrait) -> Result<()> {
    let holds = [
        ("a deployment", entity::deployment::Entity::find().one(tx).await?.is_some()),
        ("repositories", entity::repositories::Entity::find().one(tx).await?.is_some()),
        ("sources", entity::sources::Entity::find().one(tx).await?.is_some()),
        ("machines", entity::vm_contexts::Entity::find().one(tx).await?.is_some()),
        ("policies", entity::policies::Entity::find().one(tx).await?.is_some()),
        ("tokens", entity::tokens::Entity::find().one(tx).await?.is_some()),
        ("nodes", entity::nodes::Entity::find().one(tx).await?.is_some()),
        ("settings", entity::settings::Entity::find().one(tx).await?.is_some()),
    ];
    match holds.iter().find(|(_, is_there)| *is_there) {
        None => Ok(()),
        Some((what, _)) => Err(Error::Setup(format!("the catalog holds {what} already; it must be empty"))),
    }
}
