//! The outermost layer: whatever the rest answers leaves as the API promises.

use super::problem::{of_status, status_of};
use super::router::Shared;
use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_RANGE, CONTENT_SECURITY_POLICY, ETAG, HeaderValue, REFERRER_POLICY, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{Method, Uri};
use sendense_api::ProblemBody;
use sendense_types::{Problem, ProblemCode};
use std::time::Instant;

/// When to come again after a 503. Tasks end every few minutes; a person retries sooner, a program should not.
const RETRY_AFTER_SECONDS: &str = "10";

/// Writes problem bodies and security headers, counts.
pub(super) async fn finish(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let begun_at = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut response = next.run(request).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        response = with_problem(&shared, response, &method, &uri);
    }
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The page with the documentation sets its own, wider policy.
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    #[cfg(test)]
    super::tests::contract::assert_promised(&method, route.as_deref(), response.status());
    count(&method, route, response.status().as_u16(), begun_at);
    response
}

/// The same answer with its problem in the body.
fn with_problem(shared: &Shared, mut response: Response, method: &Method, uri: &Uri) -> Response {
    let problem = response.extensions_mut().remove::<Problem>();
    let problem = problem.unwrap_or_else(|| named(of_status(response.status()), method, uri));
    let (code, status) = (problem.code, status_of(problem.code));
    if status.is_server_error() && status.as_u16() == 500 {
        tracing::error!(%method, path = uri.path(), code = %code, error = %problem.message, "call failed");
    } else {
        tracing::debug!(%method, path = uri.path(), code = %code, error = %problem.message, "call refused");
    }
    let kept = [ALLOW, CONTENT_RANGE, ETAG].map(|name| (response.headers_mut().remove(&name), name));
    let mut answer = (status, Json(ProblemBody::new(problem, shared.clock.now()))).into_response();
    let headers = answer.headers_mut();
    for (value, name) in kept {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    if status.as_u16() == 503 {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    if code == ProblemCode::Unauthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sendense\""));
    }
    answer
}

/// Says which route or method it was.
fn named(mut problem: Problem, method: &Method, uri: &Uri) -> Problem {
    if matches!(problem.code, ProblemCode::RouteNotFound | ProblemCode::MethodNotAllowed) {
        let path: String = uri.path().chars().take(200).collect();
        problem.details = format!("{method} {path}");
    }
    problem
}

/// Counts a call under its route's pattern, never under its path: labels stay bounded whatever is asked.
fn count(method: &Method, route: Option<String>, status: u16, begun_at: Instant) {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
    crate::metrics::call_answered(method, route.unwrap_or_else(|| "none".to_owned()), status, begun_at.elapsed());
}
