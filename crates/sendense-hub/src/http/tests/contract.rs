//! The OpenAPI document against the router and against the file in `docs`.

use super::Fixture;
use crate::http::operations::{Operations, ROLE_EXTENSION};
use crate::http::{openapi, openapi_document, router};
use expect_test::expect_file;
use http::{Method, StatusCode};
use sendense_api::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// The statuses that the document promises, by path and method.
type Promised = BTreeMap<(String, String), BTreeSet<u16>>;

/// Whatever a test asks, the answer's status is one that the document promises.
pub(in crate::http) fn assert_promised(method: &Method, route: Option<&str>, status: StatusCode) {
    static PROMISED: OnceLock<Promised> = OnceLock::new();
    let promised = PROMISED.get_or_init(|| {
        let document: serde_json::Value = serde_json::from_str(&openapi_document()).unwrap();
        let mut promised = Promised::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let statuses = operation["responses"].as_object().unwrap().keys();
                let statuses = statuses.map(|status| status.parse().unwrap()).collect();
                promised.insert((path.clone(), method.to_uppercase()), statuses);
            }
        }
        promised
    });
    let method = if method == Method::HEAD { Method::GET } else { method.clone() };
    let Some(route) = route else { return };
    // What is no call of the API, the web page for one, promises nothing.
    let Some(statuses) = promised.get(&(route.to_owned(), method.to_string())) else { return };
    assert!(statuses.contains(&status.as_u16()), "{method} {route} answers {status}, which the document does not say");
}

#[test]
fn the_document_is_as_committed() {
    expect_file!["../../../../../docs/openapi.json"].assert_eq(&openapi_document());
}

#[test]
fn every_operation_is_described() {
    let document = openapi::complete(router::documented().into_openapi());
    let mut ids = BTreeSet::new();
    for (path, item) in &document.paths.paths {
        for (method, operation) in crate::http::operations::methods(item) {
            let what = format!("{method} {path}");
            let id = operation.operation_id.clone().unwrap();
            assert!(ids.insert(id), "{what} has the operation id of another");
            assert!(operation.summary.as_ref().is_some_and(|summary| summary.ends_with('.')), "{what} has no summary");
            let role =
                operation.extensions.as_ref().and_then(|all| all.get(ROLE_EXTENSION)).and_then(|role| role.as_str());
            let role = role.unwrap_or_else(|| panic!("{what} does not say which role it needs"));
            assert!(role == "none" || role == "node" || role.parse::<Role>().is_ok(), "{what}: {role}");
        }
    }
    // A response or parameter without a description makes the document invalid; so does a reference to nothing.
    let json: serde_json::Value = serde_json::from_str(&openapi_document()).unwrap();
    check_references(&json, &json);
    for (path, item) in json["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                // What is shared stands elsewhere; `check_references` found it.
                if response.get("$ref").is_some() {
                    continue;
                }
                let description = response["description"].as_str().unwrap_or_default();
                assert!(!description.is_empty(), "{method} {path} {status} has no description");
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                assert!(
                    parameter["description"].is_string(),
                    "{method} {path}: {} has no description",
                    parameter["name"]
                );
            }
        }
    }
}

fn check_references(at: &serde_json::Value, document: &serde_json::Value) {
    match at {
        serde_json::Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(|reference| reference.as_str()) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference} points to nothing");
            }
            fields.values().for_each(|value| check_references(value, document));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| check_references(item, document)),
        _ => {}
    }
}

#[tokio::test]
async fn the_endpoints_are_those_of_the_document() {
    let fixture = Fixture::new().await;
    let served = fixture.call("GET", "/api/v1/openapi.json", Some(Role::Viewer)).await;
    assert_eq!(served.body, serde_json::from_str::<serde_json::Value>(&openapi_document()).unwrap());
    let expected = Operations::of(&openapi::complete(router::documented().into_openapi())).endpoints();
    let answer = fixture.call("GET", "/api/v1/debug/endpoints", Some(Role::Viewer)).await;
    assert_eq!(answer.body["total"], expected.len());
    assert_eq!(answer.body["endpoints"], serde_json::to_value(expected).unwrap());
    let items = served.body["paths"].as_object().unwrap().values();
    let documented = items.map(|item| item.as_object().unwrap().len()).sum::<usize>();
    assert_eq!(answer.body["total"], documented);
}

#[tokio::test]
async fn metrics_count_calls_by_route_and_not_by_path() {
    let fixture = Fixture::new().await;
    fixture.call("GET", "/api/v1/backups/never-such-a-backup", Some(Role::Viewer)).await;
    let request =
        fixture.request("GET", "/api/v1/metrics", Some(Role::Viewer)).body(axum::body::Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(fixture.router.clone(), request).await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("route=\"/api/v1/backups/{backup_id}\",status=\"404\""), "{text}");
    assert!(!text.contains("never-such-a-backup"));
    let bucket = "sendense_http_request_seconds_bucket{route=\"/api/v1/backups/{backup_id}\",le=\"0.05\"}";
    assert!(text.contains(bucket), "{text}");
}
