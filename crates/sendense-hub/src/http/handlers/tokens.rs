//! Tokens.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::Result;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{DoneReply, NewTokenReply, TokenListReply};
use sendense_api::{CreateToken, ListQuery, ProblemBody};

/// Make a token.
///
/// Its secret is shown in this answer and never again.
#[utoipa::path(
    post, path = "/tokens", tag = "tokens", request_body = CreateToken,
    responses(
        (status = 201, description = "The token with its secret.", body = NewTokenReply),
        (status = 409, description = "The name is taken.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn create_token(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreateToken>,
) -> Result<(StatusCode, Json<NewTokenReply>)> {
    Ok((StatusCode::CREATED, Json(app.create_token(&caller, request).await?.into())))
}

/// List tokens.
#[utoipa::path(
    get, path = "/tokens", tag = "tokens", params(ListQuery),
    responses((status = 200, description = "A page of tokens, without secrets.", body = TokenListReply)),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn list_tokens(
    State(app): State<App>,
    Extension(caller): Who,
    Query(page): Query<ListQuery>,
) -> Result<Json<TokenListReply>> {
    Ok(Json(app.list_tokens(&caller, page).await?.into()))
}

/// End a token.
#[utoipa::path(
    delete, path = "/tokens/{token_id}", tag = "tokens",
    params(("token_id" = String, Path, description = "The token's id or name.")),
    responses((status = 200, description = "It is void.", body = DoneReply)),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn revoke_token(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(token): NameOrId,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.revoke_token(&caller, &token).await?;
    Ok(Json(DoneReply::new(format!("token {token} is void"))))
}
