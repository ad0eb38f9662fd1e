//! Health, metrics, and what the API says of itself.

use super::Who;
use crate::app::App;
use crate::http::problem::Result;
use crate::http::router::Shared;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use http::header::CONTENT_TYPE;
use sendense_api::reply::{DebugHealthReply, EndpointListReply, HealthReply};

/// Ask whether the hub serves.
///
/// Needs no token.
#[utoipa::path(
    get, path = "/health", tag = "system",
    responses((status = 200, description = "It does.", body = HealthReply)),
    extensions(("x-role" = json!("none"))),
)]
pub(in crate::http) async fn health(State(app): State<App>) -> Json<HealthReply> {
    Json(app.health().await.into())
}

/// Show how the hub's parts are.
#[utoipa::path(
    get, path = "/debug/health", tag = "system",
    responses((status = 200, description = "Each part.", body = DebugHealthReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn debug_health(
    State(app): State<App>,
    Extension(caller): Who,
) -> Result<Json<DebugHealthReply>> {
    Ok(Json(app.debug_health(&caller).await?.into()))
}

/// List every call that the hub answers.
#[utoipa::path(
    get, path = "/debug/endpoints", tag = "system",
    responses((status = 200, description = "Every call.", body = EndpointListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn debug_endpoints(State(shared): State<Shared>) -> Json<EndpointListReply> {
    let endpoints = shared.operations.endpoints();
    let total = endpoints.len() as u64;
    Json(EndpointListReply { success: true, endpoints, total })
}

/// Read the metrics.
///
/// In Prometheus' text form.
#[utoipa::path(
    get, path = "/metrics", tag = "system",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain")),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics_text().await)
}

/// Read this document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "system",
    responses((status = 200, description = "The OpenAPI document.", body = serde_json::Value)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn openapi(State(shared): State<Shared>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], shared.openapi.clone())
}
