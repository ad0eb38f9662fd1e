//! The table of operations, made from the OpenAPI document, which is made from the router: what a call is named, which role
//! it needs, which query parameters it takes.

use http::Method;
use sendense_api::{Endpoint, Role};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::openapi::path::{Operation as Documented, ParameterIn};
use utoipa::openapi::{OpenApi, PathItem, RefOr, Response};

/// The extension of an operation in the OpenAPI document that tells which role it needs, or `none`, or `node`.
pub(super) const ROLE_EXTENSION: &str = "x-role";
/// The content type of an answer that is a stream without end.
const STREAM_TYPE: &str = "text/event-stream";

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Public,
    /// Nodes, known by their certificates.
    Node,
    /// Bearers of a token with this role or a higher one.
    Role(Role),
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operation {
    pub operation_id: String,
    pub summary: String,
    pub access: Access,
    pub query: BTreeSet<String>,
    pub is_stream: bool,
}

/// Every call, by path and method.
#[derive(Debug, Clone, Default)]
pub(super) struct Operations(BTreeMap<String, BTreeMap<String, Operation>>);

impl Operations {
    /// The table of a document.
    pub fn of(document: &OpenApi) -> Self {
        let mut table = Self::default();
        for (path, item) in &document.paths.paths {
            for (method, documented) in methods(item) {
                let entry = table.0.entry(path.clone()).or_default();
                entry.insert(method.to_owned(), Operation::of(documented));
            }
        }
        table
    }

    /// The call that a matched route and a method mean. `HEAD` is `GET` without the body.
    pub fn find(&self, path: &str, method: &Method) -> Option<&Operation> {
        let method = if method == Method::HEAD { "GET" } else { method.as_str() };
        self.0.get(path)?.get(method)
    }

    /// Every call with its path and method.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Operation)> {
        self.0.iter().flat_map(|(path, methods)| {
            methods.iter().map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
        })
    }

    /// The table for people.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.iter()
            .map(|(path, method, operation)| Endpoint {
                method: method.to_owned(),
                path: path.to_owned(),
                operation_id: operation.operation_id.clone(),
                summary: operation.summary.clone(),
            })
            .collect()
    }
}

impl Operation {
    fn of(documented: &Documented) -> Self {
        let extension = |name: &str| documented.extensions.as_ref().and_then(|extensions| extensions.get(name));
        let access = match extension(ROLE_EXTENSION).and_then(|role| role.as_str()) {
            Some("none") => Access::Public,
            Some("node") => Access::Node,
            // A call that does not say what it needs is for those who may do everything.
            role => Access::Role(role.and_then(|role| role.parse().ok()).unwrap_or(Role::Admin)),
        };
        let query = documented.parameters.iter().flatten().filter_map(|parameter| match parameter {
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => Some(parameter.name.clone()),
            _ => None,
        });
        Self {
            operation_id: documented.operation_id.clone().unwrap_or_default(),
            summary: documented.summary.clone().unwrap_or_default(),
            access,
            query: query.collect(),
            is_stream: documented.responses.responses.values().any(is_stream),
        }
    }
}

fn is_stream(response: &RefOr<Response>) -> bool {
    matches!(response, RefOr::T(response) if response.content.contains_key(STREAM_TYPE))
}

/// The calls of a path.
pub(super) fn methods(item: &PathItem) -> impl Iterator<Item = (&'static str, &Documented)> {
    [("GET", &item.get), ("POST", &item.post), ("PUT", &item.put), ("PATCH", &item.patch), ("DELETE", &item.delete)]
        .into_iter()
        .filter_map(|(method, documented)| Some((method, documented.as_ref()?)))
}
