//! The front door as callers meet it: a hub on an embedded catalog, asked through the router or a real connection.

pub(super) mod contract;
mod failures;
mod gate;
mod hooks;
mod house;
mod journey;
mod left_over;
mod limits;
mod listener;
mod maintenance;
mod merges;
mod merges_due;
mod moves;
mod node_calls;
mod node_restores;
mod nodes;
mod order;
mod policies;
mod schedules;
mod space;
mod stuck;
mod verification;

use super::openapi;
use super::operations::{Access, Operations};
use super::router::{self, Shared};
use crate::{Caller, HubConfig, RunningHub};
use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use sendense_api::{CreateToken, Role};
use sendense_types::SystemClock;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

/// Long enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A hub with a token of each role.
struct Fixture {
    hub: RunningHub,
    router: Router,
    tokens: [String; 3],
    folder: tempfile::TempDir,
}

/// An answer, its body as JSON; null when it is none.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(router::documented()).await
    }

    /// With routes that only a test has.
    async fn with(routes: OpenApiRouter<Shared>) -> Self {
        Self::configured(routes, |_| ()).await
    }

    /// With settings of the test's own.
    async fn configured(routes: OpenApiRouter<Shared>, configure: impl FnOnce(&mut HubConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = HubConfig::new(folder.path().join("data"));
        config.listen.set_port(0);
        config.allow_paths.push(folder.path().to_owned());
        configure(&mut config);
        let hub = crate::Hub::start(config).await.unwrap();
        let admin = std::fs::read_to_string(hub.admin_token_path()).unwrap().trim().to_owned();
        let root = Caller { identity: "test".to_owned(), role: Role::Admin };
        let mut tokens = [String::new(), String::new(), admin];
        for role in [Role::Viewer, Role::Operator] {
            let new = CreateToken { name: role.to_string(), role };
            tokens[role as usize] = hub.app().create_token(&root, new).await.unwrap().secret;
        }
        let app = hub.app().clone();
        let router = router::layered(routes, app, Arc::new(SystemClock), false, PATIENCE, CancellationToken::new());
        Self { hub, router, tokens, folder }
    }

    fn token(&self, role: Role) -> &str {
        &self.tokens[role as usize]
    }

    fn request(&self, method: &str, path: &str, role: Option<Role>) -> http::request::Builder {
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header("host", "127.0.0.1:8082");
        match role {
            Some(role) => request.header("authorization", format!("Bearer {}", self.token(role))),
            None => request,
        }
    }

    /// Sends a request. Whatever fails must bear the problem body.
    async fn send(&self, request: Request<Body>) -> Answer {
        let what = format!("{} {}", request.method(), request.uri());
        let is_head = request.method() == Method::HEAD;
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let answer = Answer { status, headers, body };
        if status.as_u16() >= 400 && !is_head {
            answer.assert_problem(&what);
        }
        answer
    }

    /// A call without a body.
    async fn call(&self, method: &str, path: &str, role: Option<Role>) -> Answer {
        self.send(self.request(method, path, role).body(Body::empty()).unwrap()).await
    }

    /// A call with a JSON body, by the admin.
    async fn json(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = self.request(method, path, Some(Role::Admin)).header("content-type", "application/json");
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }
}

impl Answer {
    fn assert_problem(&self, what: &str) {
        assert_eq!(self.headers["content-type"], "application/json", "{what}");
        assert_eq!(self.body["success"], false, "{what}: {self:?}");
        for field in ["error", "code", "details", "timestamp"] {
            assert!(self.body[field].is_string(), "{what} has no {field}: {self:?}");
        }
        assert!(!self.error().is_empty(), "{what}");
        assert!(self.body["timestamp"].as_str().unwrap().ends_with('Z'), "{what}");
        assert!(self.status != StatusCode::UNPROCESSABLE_ENTITY, "{what}: 422 is never used");
        assert_eq!(self.headers.contains_key("retry-after"), self.status.as_u16() == 503, "{what}: {self:?}");
    }

    fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// Every documented call: method, path with its parameters filled in, who may make it, whether it takes a body.
fn calls() -> Vec<(String, String, Access, bool)> {
    let document = openapi::complete(router::documented().into_openapi());
    let mut calls = Vec::new();
    for (path, method, operation) in Operations::of(&document).iter() {
        let item = &document.paths.paths[path];
        let takes_body = super::operations::methods(item)
            .any(|(candidate, documented)| candidate == method && documented.request_body.is_some());
        calls.push((method.to_owned(), concrete(path), operation.access, takes_body));
    }
    assert!(calls.len() >= 35, "only {} calls are documented", calls.len());
    calls
}

/// Those that somebody with a token may make.
fn with_tokens() -> impl Iterator<Item = (String, String, Access, bool)> {
    calls().into_iter().filter(|(_, _, access, _)| *access != Access::Node)
}

/// A path with its parameters filled in.
fn concrete(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "x-1" } else { part });
    parts.collect::<Vec<_>>().join("/")
}
