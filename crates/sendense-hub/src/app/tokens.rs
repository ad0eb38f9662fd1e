//! Tokens: who calls, and what that one may do.
//!
//! A token is 32 random bytes; the catalog keeps its SHA-256 and nothing else. With 256 random bits there is nothing to
//! guess, so no slow hash is needed, and a lookup by hash leaks no useful timing.

use super::App;
use crate::core::Core;
use crate::fault::{OrProblem, Result, internal, invalid};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use sendense_api::{CreateToken, ListQuery, NewToken, Page, Role, Token};
use sendense_catalog::TokenRole;
use sendense_types::{Name, Problem, ProblemCode, Timestamp};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// So that a token is recognised in a log or a repository where it should not be.
const PREFIX: &str = "sdt_";
const SECRET_BYTES: usize = 32;
/// A use is noted so often per token: each note is a write.
const NOTE_PERIOD_S: f64 = 60.0;
/// Tokens whose last note is remembered. More are in use nowhere; forgetting costs a write.
const NOTES_MAX: usize = 1000;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's name, for logs and rows.
    pub identity: String,
    /// What the token allows.
    pub role: Role,
}

/// When uses were noted.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<HashMap<String, Timestamp>>);

impl Notes {
    fn is_due(&self, token_id: &str, now: Timestamp) -> bool {
        let mut notes = self.0.lock();
        if notes.get(token_id).is_some_and(|noted| now.seconds_since(*noted).abs() < NOTE_PERIOD_S) {
            return false;
        }
        if notes.len() >= NOTES_MAX {
            notes.clear();
        }
        notes.insert(token_id.to_owned(), now);
        true
    }
}

/// What the catalog keeps of a token.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.trim().as_bytes()).into()
}

/// A new token's secret.
pub(crate) fn generate() -> Result<String> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| internal("no random bytes", error.to_string()))?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// Keeps a new token in the catalog.
pub(crate) async fn keep(
    core: &Core,
    name: Name,
    role: TokenRole,
    secret: &str,
) -> sendense_catalog::Result<sendense_catalog::Token> {
    let token_id = format!("token-{}", hex::encode(&hash(&format!("id of {secret}"))[..8]));
    let new = sendense_catalog::NewToken { token_id, name, role, hash: hash(secret) };
    core.catalog.tokens().create(&new, core.now()).await
}

impl App {
    /// Who bears this token; none when it is not known or void.
    pub async fn authenticate(&self, bearer: &str) -> Result<Option<Caller>> {
        let core = &self.core;
        let Some(token) = core.catalog.tokens().by_hash(&hash(bearer)).await.or_problem()? else { return Ok(None) };
        let now = core.now();
        if core.token_notes.is_due(&token.token_id, now)
            && let Err(error) = core.catalog.tokens().note_used(&token.token_id, now).await
        {
            tracing::debug!(token_id = %token.token_id, error = %error, "note a token's use");
        }
        Ok(Some(Caller { identity: token.name.to_string(), role: role_out(token.role) }))
    }

    /// Makes a token. Its secret is told this once.
    pub async fn create_token(&self, caller: &Caller, new: CreateToken) -> Result<NewToken> {
        caller.require(Role::Admin)?;
        let name: Name = new.name.parse().map_err(|error: sendense_types::NameError| invalid(error.to_string()))?;
        let all = self.core.catalog.tokens().list(every()).await.or_problem()?.0;
        if all.iter().any(|token| token.name == name && token.revoked_at.is_none()) {
            let message = format!("a token named {:?} exists already", name.as_str());
            return Err(Problem::new(ProblemCode::Conflict, message, ""));
        }
        let secret = generate()?;
        let token = keep(&self.core, name, role_in(new.role), &secret).await.or_problem()?;
        tracing::info!(token_id = %token.token_id, role = %token.role, by = %caller.identity, "token made");
        Ok(NewToken { token: wire(token), secret })
    }

    /// Tokens that are valid.
    pub async fn list_tokens(&self, caller: &Caller, page: ListQuery) -> Result<Page<Token>> {
        caller.require(Role::Admin)?;
        let all = self.core.catalog.tokens().list(every()).await.or_problem()?.0;
        let valid: Vec<Token> = all.into_iter().filter(|token| token.revoked_at.is_none()).map(wire).collect();
        let total = valid.len() as u64;
        let offset = usize::try_from(page.offset).unwrap_or(usize::MAX);
        Ok(Page { items: valid.into_iter().skip(offset).take(page.limit.get() as usize).collect(), total })
    }

    /// Makes a token void, by its id or name.
    pub async fn revoke_token(&self, caller: &Caller, id_or_name: &str) -> Result<()> {
        caller.require(Role::Admin)?;
        let all = self.core.catalog.tokens().list(every()).await.or_problem()?.0;
        let valid = all.into_iter().filter(|token| token.revoked_at.is_none());
        let found = valid.into_iter().find(|token| token.token_id == id_or_name || token.name.as_str() == id_or_name);
        let Some(token) = found else {
            return Err(Problem::new(ProblemCode::InvalidInput, format!("no valid token {id_or_name:?}"), ""));
        };
        self.core.catalog.tokens().revoke(&token.token_id, self.core.now()).await.or_problem()?;
        tracing::info!(token_id = %token.token_id, by = %caller.identity, "token revoked");
        Ok(())
    }
}

/// Tokens are made by hand; a thousand are more than anybody has.
fn every() -> sendense_catalog::Page {
    sendense_catalog::Page { limit: sendense_catalog::Page::LIMIT_MAX, offset: 0 }
}

fn wire(token: sendense_catalog::Token) -> Token {
    Token {
        token_id: token.token_id,
        name: token.name.to_string(),
        role: role_out(token.role),
        created_at: token.created_at,
        last_used_at: token.last_used_at,
    }
}

fn role_out(role: TokenRole) -> Role {
    match role {
        TokenRole::Viewer => Role::Viewer,
        TokenRole::Operator => Role::Operator,
        TokenRole::Admin => Role::Admin,
    }
}

fn role_in(role: Role) -> TokenRole {
    match role {
        Role::Viewer => TokenRole::Viewer,
        Role::Operator => TokenRole::Operator,
        Role::Admin => TokenRole::Admin,
    }
}
