//! Nodes: what people do with them, and how one comes in.

use super::Who;
use crate::app::{App, NodeCaller};
use crate::http::auth::unknown_code;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::{Failure, Result};
use crate::http::router::Shared;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Request, State};
use axum::{Extension, Json};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use sendense_api::reply::{DoneReply, EnrolmentReply, NodeListReply, NodeWelcomeReply, PairingReply};
use sendense_api::{CreatePairing, EnrolNode, ListQuery, NodeHello, NodeLimit, ProblemBody};
use std::net::SocketAddr;

/// Make a code that lets a node in.
///
/// It is good for a quarter of an hour and for one node, and is shown in this answer and never again.
#[utoipa::path(
    post, path = "/nodes/pairings", tag = "nodes", request_body = CreatePairing,
    responses(
        (status = 201, description = "The code.", body = PairingReply),
        (status = 409, description = "A valid node bears the name, or the hub serves plain HTTP.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn create_pairing(
    State(app): State<App>,
    Extension(caller): Who,
    Body(request): Body<CreatePairing>,
) -> Result<(StatusCode, Json<PairingReply>)> {
    Ok((StatusCode::CREATED, Json(app.create_pairing(&caller, request).await?.into())))
}

/// Let a node in by its code.
///
/// Needs no token: the code is the secret. The node's key stays where it was made.
#[utoipa::path(
    post, path = "/nodes/enrol", tag = "nodes", request_body = EnrolNode,
    responses(
        (status = 201, description = "The node with its certificate.", body = EnrolmentReply),
        (status = 401, description = "The code is not known, was used, or has expired.", body = ProblemBody),
        (status = 409, description = "Another node bears the name by now.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("none"))),
)]
pub(in crate::http) async fn enrol_node(
    State(shared): State<Shared>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    Body(request): Body<EnrolNode>,
) -> Result<(StatusCode, Json<EnrolmentReply>)> {
    match shared.app.enrol_node(request).await? {
        Some(enrolment) => Ok((StatusCode::CREATED, Json(enrolment.into()))),
        None => Err(unknown_code(&shared, peer.map(|Extension(ConnectInfo(peer))| peer.ip()))),
    }
}

/// List nodes.
#[utoipa::path(
    get, path = "/nodes", tag = "nodes", params(ListQuery),
    responses((status = 200, description = "A page of nodes that are valid, by name.", body = NodeListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_nodes(
    State(app): State<App>,
    Query(page): Query<ListQuery>,
) -> Result<Json<NodeListReply>> {
    Ok(Json(app.list_nodes(page).await?.into()))
}

/// Limit what a node's blocks take of its line.
///
/// Replaces what was said before; an empty object lifts the limit. It holds at once, also for transfers that run, and from the first to the
/// last moment of a window within half a minute. The node keeps to its own `--bandwidth` beside it.
#[utoipa::path(
    put, path = "/nodes/{node_id}/limit", tag = "nodes", request_body = NodeLimit,
    params(("node_id" = String, Path, description = "The node's id or name.")),
    responses((status = 200, description = "It holds.", body = DoneReply)),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn limit_node(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(node): NameOrId,
    Body(limit): Body<NodeLimit>,
) -> Result<Json<DoneReply>> {
    app.limit_node(&caller, &node, limit).await?;
    Ok(Json(DoneReply::new(format!("the limit of node {node} is set"))))
}

/// Revoke a node.
///
/// Whatever it does is refused from now on, also on connections that it has. Its name is free again.
#[utoipa::path(
    delete, path = "/nodes/{node_id}", tag = "nodes",
    params(("node_id" = String, Path, description = "The node's id or name.")),
    responses((status = 200, description = "It is void.", body = DoneReply)),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn revoke_node(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(node): NameOrId,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.revoke_node(&caller, &node).await?;
    Ok(Json(DoneReply::new(format!("node {node} is void"))))
}

/// Say something as a node.
///
/// The words between nodes and hubs of one release; not for others. The session, orders and blocks travel so.
#[utoipa::path(
    post, path = "/node/call", tag = "nodes",
    request_body(content = String, content_type = "application/octet-stream", description = "A head and what follows."),
    responses(
        (status = 200, description = "The answer, likewise.", body = String, content_type = "application/octet-stream"),
        (status = 404, description = "The backup or restore that the call is about is not there any more.", body = ProblemBody),
        (status = 409, description = "It is not this node's, or not in the state that the call is for.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("node"))),
)]
pub(in crate::http) async fn node_call(
    State(app): State<App>,
    Extension(node): Extension<NodeCaller>,
    request: Request,
) -> Result<Bytes> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(length) = length else {
        return Err(Failure::invalid("the call does not say how long it is", "a node's call has a content-length"));
    };
    let room = app.node_body_room(&node, length).await?;
    let body = crate::http::extract::bytes(request, length).await?;
    Ok(Bytes::from_owner(app.node_call(&node, body, room).await?))
}

/// Begin as a node.
///
/// For nodes, which show their certificate in the TLS handshake.
#[utoipa::path(
    post, path = "/node/hello", tag = "nodes", request_body = NodeHello,
    responses((status = 200, description = "As whom the hub knows the node.", body = NodeWelcomeReply)),
    extensions(("x-role" = json!("node"))),
)]
pub(in crate::http) async fn node_hello(
    State(app): State<App>,
    Extension(node): Extension<NodeCaller>,
    Body(hello): Body<NodeHello>,
) -> Result<Json<NodeWelcomeReply>> {
    Ok(Json(app.node_hello(&node, hello).await?.into()))
}
