//! Access tokens, of which only the hash is kept.
//!
//! What lives here: rows. What does not: making, hashing or judging tokens. Invariant: a revoked token is never found.

use crate::error::{Conflict, Error, Noun, Result};
use crate::{Catalog, Page, entity, value};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{Name, Timestamp};
use std::fmt;
use std::str::FromStr;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenRole {
    /// Look.
    Viewer,
    /// Back up and restore too.
    Operator,
    /// Everything.
    Admin,
}

impl TokenRole {
    /// The text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for TokenRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TokenRole {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Viewer, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not one of viewer, operator, admin"))
    }
}

/// A token, without what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public id.
    pub token_id: String,
    /// What a person calls it; not unique.
    pub name: Name,
    /// What it allows.
    pub role: TokenRole,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was used last, to the precision with which the hub reports it.
    pub last_used_at: Option<Timestamp>,
    /// Since when it is void.
    pub revoked_at: Option<Timestamp>,
}

/// A token to keep.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its public id.
    pub token_id: String,
    /// What a person calls it.
    pub name: Name,
    /// What it allows.
    pub role: TokenRole,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
}

/// Access tokens.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a>(pub(crate) &'a Catalog);

impl Tokens<'_> {
    /// Keeps a new one.
    ///
    /// # Errors
    /// [`Conflict::Exists`] when the id or the hash is known.
    pub async fn create(&self, new: &NewToken, now: Timestamp) -> Result<Token> {
        value::fits("token_id", &new.token_id, 64)?;
        self.0
            .write(|tx| async move {
                let row = entity::tokens::Model {
                    token_id: new.token_id.clone(),
                    name: new.name.as_str().to_owned(),
                    role: new.role.as_str().to_owned(),
                    hash: new.hash.to_vec(),
                    created_at: now.into(),
                    last_used_at: None,
                    revoked_at: None,
                };
                entity::tokens::Entity::insert(row.clone().into_active_model())
                    .exec_without_returning(&*tx)
                    .await
                    .map_err(|error| {
                        Error::from(error)
                            .or_conflict(|| Conflict::Exists { what: Noun::Token, id: new.token_id.clone() })
                    })?;
                row.try_into()
            })
            .await
    }

    /// The valid token with this hash.
    pub async fn by_hash(&self, hash: &[u8; 32]) -> Result<Option<Token>> {
        let row = entity::tokens::Entity::find()
            .filter(entity::tokens::Column::Hash.eq(hash.to_vec()))
            .filter(entity::tokens::Column::RevokedAt.is_null())
            .one(self.0.pool())
            .await?;
        row.map(TryInto::try_into).transpose()
    }

    /// Notes a use. Report it at most once a minute per token; each report is a write.
    pub async fn note_used(&self, token_id: &str, now: Timestamp) -> Result<()> {
        let set = entity::tokens::ActiveModel { last_used_at: Set(Some(now.into())), ..Default::default() };
        self.set(token_id, set).await
    }

    /// Makes one void. The first moment stays when it was void already.
    pub async fn revoke(&self, token_id: &str, now: Timestamp) -> Result<()> {
        self.0
            .write(|tx| async move {
                let row = entity::tokens::Entity::find_by_id(token_id).lock_exclusive().one(&*tx).await?;
                let row = row.ok_or_else(|| Error::not_found(Noun::Token, token_id))?;
                if row.revoked_at.is_none() {
                    let set = entity::tokens::ActiveModel { revoked_at: Set(Some(now.into())), ..Default::default() };
                    entity::tokens::Entity::update_many()
                        .set(set)
                        .filter(entity::tokens::Column::TokenId.eq(token_id))
                        .exec(&*tx)
                        .await?;
                }
                Ok(())
            })
            .await
    }

    /// All, also void ones, in the order they were made, with their number.
    pub async fn list(&self, page: Page) -> Result<(Vec<Token>, u64)> {
        let rows = entity::tokens::Entity::find()
            .order_by_asc(entity::tokens::Column::CreatedAt)
            .order_by_asc(entity::tokens::Column::TokenId)
            .limit(page.limit())
            .offset(page.offset)
            .all(self.0.pool())
            .await?;
        let total =
            value::count(entity::tokens::Entity::find(), entity::tokens::Column::TokenId, self.0.pool()).await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }

    async fn set(&self, token_id: &str, set: entity::tokens::ActiveModel) -> Result<()> {
        let set = &set;
        self.0
            .write(|tx| async move {
                let done = entity::tokens::Entity::update_many()
                    .set(set.clone())
                    .filter(entity::tokens::Column::TokenId.eq(token_id))
                    .exec(&*tx)
                    .await?;
                if done.rows_affected == 1 { Ok(()) } else { Err(Error::not_found(Noun::Token, token_id)) }
            })
            .await
    }
}

impl TryFrom<entity::tokens::Model> for Token {
    type Error = Error;
    fn try_from(row: entity::tokens::Model) -> Result<Self> {
        Ok(Self {
            token_id: row.token_id,
            name: value::read("name", &row.name)?,
            role: value::read("role", &row.role)?,
            created_at: row.created_at.into(),
            last_used_at: row.last_used_at.map(Into::into),
            revoked_at: row.revoked_at.map(Into::into),
        })
    }
}
