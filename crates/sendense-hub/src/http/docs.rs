//! The page at `/docs`: the OpenAPI document to browse, from files inside the binary.
//!
//! The page itself holds no data and needs no token; it asks the reader for one, keeps it in memory and fetches the
//! document with it. Its content policy allows scripts and connections of this origin only.

use super::router::Shared;
use axum::Router;
use axum::extract::Path;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use std::sync::Arc;
use utoipa_swagger_ui::Config;

const PAGE: &str = include_str!("docs/index.html");
const SCRIPT: &str = include_str!("docs/page.js");
const STYLE: &str = include_str!("docs/page.css");
/// Files of the viewer that the page uses; nothing else of it is served.
const VIEWER_FILES: [&str; 2] = ["swagger-ui.css", "swagger-ui-bundle.js"];
/// The viewer sets styles on elements and shows icons that are written into its style sheet.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page's routes.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(|| async { with_policy(Html(PAGE)) }))
        .route("/docs/{file}", get(file))
}

/// True for what any browser may fetch.
pub(super) fn is_public(path: &str) -> bool {
    path == "/docs" || path.starts_with("/docs/")
}

async fn file(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "page.js" => with_policy(([(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)),
        "page.css" => with_policy(([(CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)),
        name if VIEWER_FILES.contains(&name) => match utoipa_swagger_ui::serve(name, Arc::new(Config::default())) {
            Ok(Some(file)) => with_policy(([(CONTENT_TYPE, file.content_type)], file.bytes.into_owned())),
            _ => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn with_policy(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody was quicker than the large script of the viewer: the browser sent the form, its policy forbade that, and
    /// nothing was to be seen.
    #[test]
    fn the_button_sleeps_until_somebody_listens() {
        assert!(PAGE.contains("<button type=\"submit\" disabled>"), "{PAGE}");
        let (listens, wakes) = (SCRIPT.find("addEventListener(\"submit\""), SCRIPT.find(".disabled = false"));
        assert!(listens.is_some() && listens < wakes, "{SCRIPT}");
    }
}
