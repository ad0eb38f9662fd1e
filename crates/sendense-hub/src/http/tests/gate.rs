//! Who may pass.

use super::{Fixture, calls};
use crate::http::operations::Access;
use axum::body::Body;
use http::StatusCode;
use sendense_api::Role;

#[tokio::test]
async fn every_call_but_health_needs_a_known_token() {
    let fixture = Fixture::new().await;
    for (method, path, access, _) in calls() {
        let answer = fixture.call(&method, &path, None).await;
        if access == Access::Public {
            // Who enrols shows a code instead, in the body.
            let expected = match path.as_str() {
                "/api/v1/health" => StatusCode::OK,
                "/api/v1/nodes/enrol" => StatusCode::BAD_REQUEST,
                other => panic!("{other} is public"),
            };
            assert_eq!(answer.status, expected, "{path}");
            continue;
        }
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        assert_eq!(answer.code(), "unauthorized");
        assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"sendense\"");
        let request = fixture.request(&method, &path, None).header("authorization", "Bearer sdt_unknown");
        let answer = fixture.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    for path in ["/", "/api", "/api/v1/nothing", "/api/v1/health/x"] {
        assert_eq!(fixture.call("GET", path, None).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let long =
        fixture.request("GET", "/api/v1/vms", None).header("authorization", format!("Bearer {}", "x".repeat(9000)));
    assert_eq!(fixture.send(long.body(Body::empty()).unwrap()).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn each_role_may_do_what_it_may_and_no_more() {
    let fixture = Fixture::new().await;
    let roles = [Role::Viewer, Role::Operator, Role::Admin];
    for (method, path, access, _) in calls() {
        // The stream has no end to wait for; another test opens it.
        if path == "/api/v1/events" {
            continue;
        }
        let Access::Role(least) = access else { continue };
        assert!(method == "GET" || least > Role::Viewer, "{method} {path} changes something and a viewer may call it");
        for role in roles {
            let answer = fixture.call(&method, &path, Some(role)).await;
            let refused = answer.status == StatusCode::FORBIDDEN;
            assert_eq!(refused, role < least, "{role}: {method} {path}: {answer:?}");
            if refused {
                assert_eq!(answer.code(), "forbidden");
            }
            assert!(answer.status != StatusCode::UNAUTHORIZED, "{role}: {method} {path}");
            assert!(answer.status != StatusCode::INTERNAL_SERVER_ERROR, "{role}: {method} {path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_revoked_token_is_not_known_any_more() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.call("GET", "/api/v1/vms", Some(Role::Viewer)).await.status, StatusCode::OK);
    let answer = fixture.call("DELETE", "/api/v1/tokens/viewer", Some(Role::Admin)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(fixture.call("GET", "/api/v1/vms", Some(Role::Viewer)).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn names_of_other_machines_and_pages_of_other_origins_are_refused() {
    let fixture = Fixture::new().await;
    let with = |name: &'static str, value: &'static str| {
        let mut request = fixture.request("GET", "/api/v1/health", None).body(Body::empty()).unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    for host in ["localhost:8082", "[::1]:8082", "127.0.0.1"] {
        assert_eq!(fixture.send(with("host", host)).await.status, StatusCode::OK, "{host}");
    }
    for host in ["backup.example", "rebound.example:8082", "192.0.2.1:8082"] {
        assert_eq!(fixture.send(with("host", host)).await.status, StatusCode::FORBIDDEN, "{host}");
    }
    for origin in ["http://evil.example", "https://127.0.0.1:8082", "http://127.0.0.1:80", "null"] {
        assert_eq!(fixture.send(with("origin", origin)).await.status, StatusCode::FORBIDDEN, "{origin}");
    }
    assert_eq!(fixture.send(with("origin", "http://127.0.0.1:8082")).await.status, StatusCode::OK);
    let mut bare = fixture.request("GET", "/api/v1/health", None).body(Body::empty()).unwrap();
    bare.headers_mut().remove("host");
    assert_eq!(fixture.send(bare).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn every_answer_bears_the_security_headers() {
    let fixture = Fixture::new().await;
    let paths = ["/api/v1/health", "/api/v1/nothing", "/docs/", "/docs/page.js", "/docs/swagger-ui.css"];
    for path in paths {
        let answer = fixture.call("GET", path, None).await;
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(answer.headers["x-frame-options"], "DENY", "{path}");
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("http"), "{path} may load from elsewhere: {policy}");
    }
}

#[tokio::test]
async fn the_page_with_the_documentation_is_whole_and_nothing_else_is_there() {
    let fixture = Fixture::new().await;
    for path in ["/docs/", "/docs/page.js", "/docs/page.css", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"] {
        assert_eq!(fixture.call("GET", path, None).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(fixture.call("GET", "/docs", None).await.status, StatusCode::PERMANENT_REDIRECT);
    for path in ["/docs/index.html", "/docs/swagger-initializer.js", "/docs/..%2fx", "/docs/a/b"] {
        assert_eq!(fixture.call("GET", path, None).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}
