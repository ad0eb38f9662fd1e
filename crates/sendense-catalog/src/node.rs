//! Nodes, and the codes by which new ones are let in.
//!
//! What lives here: rows. What does not: certificates and what is in them, making and hashing codes. Invariants: a code lets
//! one node in, once and before it expires; of the nodes that are valid no two bear one name; a revoked node is never found
//! by its certificate, and never becomes valid again.

use crate::error::{Conflict, Error, Noun, Result};
use crate::{Catalog, Page, entity, value};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{Name, NodeId, Timestamp};

/// A code that lets a node in.
#[derive(Debug, Clone)]
pub struct NewNodeCode {
    /// SHA-256 of the code.
    pub hash: [u8; 32],
    /// What the node will be called.
    pub name: Name,
    /// Who made it.
    pub created_by: String,
    /// From when on it is void.
    pub expires_at: Timestamp,
}

/// A node that shows its code.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// SHA-256 of the code.
    pub code_hash: [u8; 32],
    /// Its id.
    pub node_id: NodeId,
    /// SHA-256 of its certificate.
    pub certificate: [u8; 32],
}

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its id.
    pub node_id: NodeId,
    /// What a person calls it; unique among those that are valid.
    pub name: Name,
    /// Who made the code that let it in.
    pub enrolled_by: String,
    /// When it was let in.
    pub created_at: Timestamp,
    /// Since when it is void.
    pub revoked_at: Option<Timestamp>,
    /// When it last said something, to the precision with which the hub reports it.
    pub last_seen_at: Option<Timestamp>,
    /// What it last said of itself.
    pub state: Option<serde_json::Value>,
    /// What its blocks may take of its line, in the hub's words.
    pub bandwidth: Option<serde_json::Value>,
}

/// Nodes.
#[derive(Debug, Clone, Copy)]
pub struct Nodes<'a>(pub(crate) &'a Catalog);

impl Nodes<'_> {
    /// Keeps a code; codes that have expired go.
    ///
    /// # Errors
    /// [`Conflict::NameTaken`] when a valid node bears the name, [`Conflict::Exists`] when the code is known.
    pub async fn add_code(&self, new: &NewNodeCode, now: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                use entity::node_codes::{Column, Entity, Model};
                if valid_name(new.name.as_str()).one(&*tx).await?.is_some() {
                    return Err(name_taken(&new.name));
                }
                Entity::delete_many().filter(Column::ExpiresAt.lte(value::Ts::from(now))).exec(&*tx).await?;
                let row = Model {
                    code_hash: hex(&new.hash),
                    name: new.name.as_str().to_owned(),
                    created_by: new.created_by.clone(),
                    created_at: now.into(),
                    expires_at: new.expires_at.into(),
                };
                Entity::insert(row.into_active_model()).exec_without_returning(&*tx).await.map_err(|error| {
                    Error::from(error)
                        .or_conflict(|| Conflict::Exists { what: Noun::NodeCode, id: "(hidden)".to_owned() })
                })?;
                Ok(())
            })
            .await
    }

    /// Lets a node in by its code, which is used up by that.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such code (any more), [`Conflict::NameTaken`] when another node was let in by
    /// that name since; the code then stays.
    pub async fn enrol(&self, new: &NewNode, now: Timestamp) -> Result<Node> {
        let code_hash = hex(&new.code_hash);
        let code_hash = &code_hash;
        self.0
            .write(|tx| async move {
                let unknown = || Error::not_found(Noun::NodeCode, "(hidden)");
                let code = entity::node_codes::Entity::find_by_id(code_hash).lock_exclusive().one(&*tx).await?;
                let code = code.filter(|code| Timestamp::from(code.expires_at) > now).ok_or_else(unknown)?;
                // Where a database lets two read the row, only one of them deletes it.
                let used = entity::node_codes::Entity::delete_by_id(code_hash).exec(&*tx).await?;
                if used.rows_affected != 1 {
                    return Err(unknown());
                }
                let name: Name = value::read("name", &code.name)?;
                let row = entity::nodes::Model {
                    node_id: new.node_id.as_str().to_owned(),
                    name: code.name.clone(),
                    valid_name: Some(code.name),
                    certificate: new.certificate.to_vec(),
                    enrolled_by: code.created_by,
                    created_at: now.into(),
                    revoked_at: None,
                    last_seen_at: None,
                    state: None,
                    bandwidth: None,
                };
                // Asked first, so that what collides at the insertion is an id or a certificate.
                if valid_name(name.as_str()).one(&*tx).await?.is_some() {
                    return Err(name_taken(&name));
                }
                entity::nodes::Entity::insert(row.clone().into_active_model())
                    .exec_without_returning(&*tx)
                    .await
                    .map_err(|error| {
                        Error::from(error)
                            .or_conflict(|| Conflict::NameTaken { what: Noun::Node, name: name.to_string() })
                    })?;
                row.try_into()
            })
            .await
    }

    /// The valid node with this certificate.
    pub async fn by_certificate(&self, certificate: &[u8; 32]) -> Result<Option<Node>> {
        let row = entity::nodes::Entity::find()
            .filter(entity::nodes::Column::Certificate.eq(certificate.to_vec()))
            .filter(entity::nodes::Column::RevokedAt.is_null())
            .one(self.0.pool())
            .await?;
        row.map(TryInto::try_into).transpose()
    }

    /// The valid node with this name.
    pub async fn by_name(&self, name: &str) -> Result<Option<Node>> {
        valid_name(name).one(self.0.pool()).await?.map(TryInto::try_into).transpose()
    }

    /// The node with this id, or the valid one with this name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn find(&self, id_or_name: &str) -> Result<Node> {
        if let Some(node) = self.by_name(id_or_name).await? {
            return Ok(node);
        }
        let row = entity::nodes::Entity::find_by_id(id_or_name).one(self.0.pool()).await?;
        row.ok_or_else(|| Error::not_found(Noun::Node, id_or_name))?.try_into()
    }

    /// Notes that it said something, and what it said of itself. Report it every few seconds at most; each report is a
    /// write. Does nothing for a node that is void.
    pub async fn note_seen(&self, node_id: &NodeId, state: &serde_json::Value, now: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                let set = entity::nodes::ActiveModel {
                    last_seen_at: Set(Some(now.into())),
                    state: Set(Some(state.clone())),
                    ..Default::default()
                };
                entity::nodes::Entity::update_many()
                    .set(set)
                    .filter(entity::nodes::Column::NodeId.eq(node_id.as_str()))
                    .filter(entity::nodes::Column::RevokedAt.is_null())
                    .exec(&*tx)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Keeps what its blocks may take of its line; nothing at all lifts the limit.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for a node that is void.
    pub async fn limit(&self, node_id: &NodeId, bandwidth: Option<&serde_json::Value>) -> Result<()> {
        self.0
            .write(|tx| async move {
                // Asked by reading: MariaDB counts no row that already was as it shall be.
                let row = entity::nodes::Entity::find_by_id(node_id.as_str()).lock_exclusive().one(&*tx).await?;
                if row.is_none_or(|row| row.revoked_at.is_some()) {
                    return Err(Error::not_found(Noun::Node, node_id.as_str()));
                }
                let set = entity::nodes::ActiveModel { bandwidth: Set(bandwidth.cloned()), ..Default::default() };
                let one = entity::nodes::Column::NodeId.eq(node_id.as_str());
                entity::nodes::Entity::update_many().set(set).filter(one).exec(&*tx).await?;
                Ok(())
            })
            .await
    }

    /// Makes one void; its name is free then. The first moment stays when it was void already.
    pub async fn revoke(&self, node_id: &NodeId, now: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                let set = entity::nodes::ActiveModel {
                    revoked_at: Set(Some(now.into())),
                    valid_name: Set(None),
                    ..Default::default()
                };
                entity::nodes::Entity::update_many()
                    .set(set)
                    .filter(entity::nodes::Column::NodeId.eq(node_id.as_str()))
                    .filter(entity::nodes::Column::RevokedAt.is_null())
                    .exec(&*tx)
                    .await?;
                let row = entity::nodes::Entity::find_by_id(node_id.as_str()).one(&*tx).await?;
                row.map(drop).ok_or_else(|| Error::not_found(Noun::Node, node_id.as_str()))
            })
            .await
    }

    /// Those that are valid, by name, with their number.
    pub async fn list(&self, page: Page) -> Result<(Vec<Node>, u64)> {
        let valid = || entity::nodes::Entity::find().filter(entity::nodes::Column::RevokedAt.is_null());
        let rows = valid()
            .order_by_asc(entity::nodes::Column::Name)
            .limit(page.limit())
            .offset(page.offset)
            .all(self.0.pool())
            .await?;
        let total = value::count(valid(), entity::nodes::Column::NodeId, self.0.pool()).await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }
}

fn valid_name(name: &str) -> sea_orm::Select<entity::nodes::Entity> {
    entity::nodes::Entity::find().filter(entity::nodes::Column::ValidName.eq(name))
}

fn name_taken(name: &Name) -> Error {
    Conflict::NameTaken { what: Noun::Node, name: name.to_string() }.into()
}

/// A hash as a key: text, because keys of bytes are not the same in every database.
fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl TryFrom<entity::nodes::Model> for Node {
    type Error = Error;
    fn try_from(row: entity::nodes::Model) -> Result<Self> {
        Ok(Self {
            node_id: value::read("node_id", &row.node_id)?,
            name: value::read("name", &row.name)?,
            enrolled_by: row.enrolled_by,
            created_at: row.created_at.into(),
            revoked_at: row.revoked_at.map(Into::into),
            last_seen_at: row.last_seen_at.map(Into::into),
            state: row.state,
            bandwidth: row.bandwidth,
        })
    }
}
